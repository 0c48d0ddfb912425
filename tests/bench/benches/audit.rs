//! T10: what the continuous audit costs, as a process of its own, beside a process of stream and sink.

use crate::feed::{Feed, Spec};
use crate::harness::secs;
use crate::meter::row;
use crate::world::{World, size};

/// Measures over `seconds` at `rate` trades a second, after a few seconds of start.
fn beside(rate: u64, seconds: u64) {
    let Some(world) = World::start(4) else { return };
    world.create_topics();
    let spec = Spec {
        symbols: 20,
        trades: rate * (seconds + 25),
        density: rate,
        linger_ms: 5,
    };
    let mut feed = Feed::new(&world.kafka, world.partitions, spec);
    let pipeline = world.run("a", "stream,sink");
    let audit = world.run("b", "audit");
    // Joining a group, opening tables: not what is measured.
    feed.pace(&world.codec, rate, secs(20), |_| {});
    let entries = || audit.metrics().sum("finlake_audit_entries_total");
    let before = (pipeline.usage(), audit.usage(), entries(), feed.sent);
    feed.pace(&world.codec, rate, secs(seconds), |_| {});
    let after = (pipeline.usage(), audit.usage(), entries(), feed.sent);
    let (of, by) = (after.0.cpu - before.0.cpu, after.1.cpu - before.1.cpu);
    let checked = after.2 - before.2;
    assert!(checked > 0.0, "the audit has read nothing");
    let found = audit.metrics().sum("finlake_audit_findings_total");
    row(
        "T10",
        &format!("audit as a process of its own, {rate} trades/s"),
        "≤ 2 % of stream and sink",
        &format!(
            "{:.1} %: {by:.2} s of {of:.2} s CPU in {seconds} s, {} trades, {checked} entries ({:.0} µs each, idle \
             wake-ups included); RSS {:.0} MB against {:.0} MB; {found} findings",
            by / of * 100.0,
            after.3 - before.3,
            by / checked * 1e6,
            after.1.rss,
            after.0.rss
        ),
    );
    pipeline.stop();
    audit.stop();
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn audit_beside_10_000_trades_a_second() {
    beside(10_000, size("BENCH_SECONDS", 200));
}

#[test]
#[ignore = "benchmark: ./test --bench"]
fn audit_beside_1_000_trades_a_second() {
    beside(1_000, size("BENCH_SECONDS", 60));
}
