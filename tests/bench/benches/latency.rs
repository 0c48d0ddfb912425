//! T5: trade → `market.ohlcv.live`, exactly once.

use crate::feed::{Feed, Spec};
use crate::harness::{eventually, secs};
use crate::live::LiveMeter;
use crate::meter::{quantile, row};
use crate::world::{World, size};

const RATE: u64 = 10_000;
/// Seconds before the measurement: the broker's code is compiled while it runs.
const WARM: u64 = 20;

fn live(symbols: usize, commit_ms: u32, target: &str) {
    let Some(mut world) = World::start(4) else {
        return;
    };
    world.set("stream.commit_interval_ms", commit_ms);
    world.set("stream.emit", "commit");
    world.create_topics();
    let seconds = size("BENCH_SECONDS", 60);
    let spec = Spec {
        symbols,
        trades: RATE * (seconds + WARM + 5),
        density: RATE,
        linger_ms: 1,
    };
    let mut feed = Feed::new(&world.kafka, world.partitions, spec);
    let instance = world.run("a", "stream");
    let mut next = vec![0; world.partitions as usize];
    let partitions = feed.partitions.clone();
    feed.pace(&world.codec, RATE, secs(WARM), |symbol| {
        next[partitions[symbol] as usize] += 1;
    });
    let names: Vec<String> = feed.names().to_vec();
    let mut meter = LiveMeter::start(&world, &names, next);
    std::thread::sleep(secs(2));
    let before = instance.usage();
    let sent = feed.sent;
    feed.pace(&world.codec, RATE, secs(seconds), |symbol| {
        meter.note(symbol, partitions[symbol]);
    });
    let after = instance.usage();
    eventually("every trade is in a live record", secs(30), || {
        (meter.open() == 0).then_some(())
    });
    let all = meter.finish();
    assert_eq!(all.len() as u64, feed.sent - sent, "every trade counted");
    let ms = |per_mille| quantile(&all, per_mille) / 1000.0;
    row(
        "T5",
        &format!(
            "trade → .live at 10,000 trades/s, {symbols} symbols, commit {commit_ms} ms, emit = commit, {} trades",
            all.len()
        ),
        target,
        &format!(
            "p50 {:.1} ms, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.1}; {:.1} CPU-s per million",
            ms(500),
            ms(900),
            ms(990),
            ms(999),
            ms(1000),
            (after.cpu - before.cpu) / all.len() as f64 * 1e6
        ),
    );
    instance.stop();
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn live_at_20_ms() {
    live(20, 20, "p50 ≤ 20 ms, p99 ≤ 50 ms");
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn live_at_100_ms() {
    live(20, 100, "");
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn live_thousand_symbols() {
    live(1_000, 20, "");
}
