//! T1, T2: the stream role over a topic that is there already.

use finlake_schemas::topics;

use crate::bare::{self, Way};
use crate::feed::{Feed, Spec};
use crate::harness::secs;
use crate::meter::row;
use crate::world::{World, size};

#[test]
#[ignore = "benchmark: ./test --bench"]
fn catching_up() {
    let Some(world) = World::start(4) else { return };
    world.create_topics();
    let trades = size("BENCH_TRADES", 6_000_000);
    let spec = Spec {
        symbols: 20,
        trades,
        density: 10_000,
        linger_ms: 50,
    };
    Feed::new(&world.kafka, world.partitions, spec).rush(&world.codec);
    let mut bytes = 0u64;
    let mut limit = |way| {
        bare::read(&world.kafka, topics::TICKS, world.partitions, way, |m| {
            bytes += (m.key.len() + m.value.len()) as u64;
        })
    };
    // The first reading warms the page cache.
    limit(Way::Batch);
    let [batch, poll] = [limit(Way::Batch), limit(Way::Poll)];
    for (way, cost) in [("batch", batch), ("poll", poll)] {
        row(
            "T2",
            &format!("the bare client alone, by {way}"),
            "",
            &format!(
                "{:.2} M records/s, {:.2} CPU-s per million",
                cost.rate() / 1e6,
                cost.per_million()
            ),
        );
    }
    let mut instance = world.run("a", "stream");
    let metric = "finlake_stream_records_total";
    let [first, last] = instance.until(metric, trades as f64, secs(600));
    let done = last.2 - first.2;
    let wall = (last.0 - first.0).as_secs_f64();
    let cpu = (last.1.cpu - first.1.cpu) / done * 1e6;
    let rate = done / wall;
    let commits = instance.metrics().sum("finlake_stream_commits_total");
    row(
        "T1",
        "CPU-s per million trades, catching up, 20 symbols",
        "≤ 1.0",
        &format!(
            "{cpu:.2} ({:.2} with start-up; bare client {:.2}), {commits} commits",
            last.1.cpu / trades as f64 * 1e6,
            batch.per_million()
        ),
    );
    row(
        "T2",
        "trades/s, exactly once, broker on the same machine",
        "≥ 1 M/s, ≥ 60 % of the client",
        &format!(
            "{:.2} M/s, {:.0} % of the bare client, peak {:.0} MB",
            rate / 1e6,
            rate / batch.rate() * 100.0,
            last.1.peak
        ),
    );
    instance.stop();
}
