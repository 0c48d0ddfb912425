//! T1b, T6, T7: the stream role under a steady feed.

use std::time::{Duration, Instant};

use crate::feed::{Feed, Spec};
use crate::harness::secs;
use crate::meter::row;
use crate::world::{World, size};

const RATE: u64 = 10_000;

fn spec(symbols: usize, seconds: u64) -> Spec {
    Spec {
        symbols,
        trades: RATE * seconds,
        density: RATE,
        linger_ms: 5,
    }
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn steady_feed() {
    let Some(world) = World::start(4) else { return };
    world.create_topics();
    let seconds = size("BENCH_SECONDS", 40);
    let mut feed = Feed::new(&world.kafka, world.partitions, spec(20, seconds + 5));
    let instance = world.run("a", "stream");
    feed.pace(&world.codec, RATE, secs(5), |_| {});
    let (before, sent) = (instance.usage(), feed.sent);
    feed.pace(&world.codec, RATE, secs(seconds), |_| {});
    let after = instance.usage();
    row(
        "T1b",
        "CPU-s per million at 10,000 trades/s, 20 symbols, commit 100 ms",
        "≤ 5",
        &format!(
            "{:.2}, RSS {:.0} MB",
            (after.cpu - before.cpu) / (feed.sent - sent) as f64 * 1e6,
            after.rss
        ),
    );
    instance.stop();
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn thousand_symbols() {
    let Some(world) = World::start(4) else { return };
    world.create_topics();
    let seconds = size("BENCH_SECONDS", 90);
    let mut feed = Feed::new(
        &world.kafka,
        world.partitions,
        spec(1_000, seconds * 2 + 60),
    );
    let instance = world.run("a", "stream");
    feed.pace(&world.codec, RATE, secs(seconds), |_| {});
    let usage = instance.usage();
    row(
        "T6",
        "resident memory, stream role, 1,000 symbols at 10,000 trades/s",
        "≤ 120 MB",
        &format!(
            "{:.0} MB after {seconds} s (peak {:.0}), {:.2} CPU-s per million",
            usage.rss,
            usage.peak,
            usage.cpu / feed.sent as f64 * 1e6
        ),
    );
    // T7: killed in full flight, started again on its store.
    let mut process = instance.process;
    process.kill9();
    let killed = Instant::now();
    let feeder = std::thread::spawn({
        let codec = finlake_schemas::Codec::offline();
        move || {
            feed.pace(&codec, RATE, secs(10), |_| {});
            feed
        }
    });
    let mut instance = world.run("a", "stream");
    let [first, _] = instance.until("finlake_stream_records_total", 1.0, secs(60));
    let log = instance.process.log();
    let at = |text: &str| log.lines().find(|l| l.contains(text)).map(str::to_owned);
    feeder.join().unwrap();
    row(
        "T7",
        "kill -9 to the first committed record, started at once, 1,000 symbols",
        "≤ 1 s after the group hands the partitions back",
        &format!(
            "{:.2} s from the kill, start-up included; {}",
            (first.0 - killed).as_secs_f64(),
            at("replayed").unwrap_or_else(|| "nothing to replay".into())
        ),
    );
    std::thread::sleep(Duration::from_millis(500));
    instance.stop();
}
