//! Fifty million rows, late and repeated trades among them, reconciled while trades keep coming, then replayed and
//! rebuilt: no breaks, nothing differs. T11 as a user sees it: reading tables and topics, with the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::feed::{Feed, Spec};
use crate::harness::{FinlakeProcess, secs};
use crate::meter::{Usage, row, usage};
use crate::world::{World, size};

/// Trades a second while the command runs.
const LIVE: u64 = 5_000;

/// Runs a command to its end; its output, seconds, and what it used.
fn measured(mut process: FinlakeProcess, code: i32) -> (String, f64, Usage) {
    let began = Instant::now();
    let mut last = Usage::default();
    while process.is_running() {
        last = usage(process.pid()).unwrap_or(last);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let took = began.elapsed().as_secs_f64();
    let said = format!("{}\n{}", process.stdout(), process.log());
    assert_eq!(process.code(), Some(code), "{said}");
    (process.stdout(), took, last)
}

#[test]
#[ignore = "chaos: ./test --chaos"]
fn fifty_million_rows_are_clean_while_trades_come_in() {
    let Some(mut world) = World::start(4) else {
        return;
    };
    world.set("lake.commit_interval", "2s");
    world.create_topics();
    let rows = size("BENCH_TRADES", 50_000_000);
    let spec = Spec {
        symbols: 20,
        trades: rows + rows / 2,
        density: 300,
        linger_ms: 20,
    };
    let mut feed = Feed::disorderly(&world.kafka, world.partitions, spec);
    let mut instance = world.run("a", "stream,sink");
    while feed.sent < rows && feed.send(&world.codec) {}
    feed.flush();
    let done = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&done);
    let codec = finlake_schemas::Codec::offline();
    let feeder = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            feed.pace(&codec, LIVE, secs(1), |_| {});
        }
        feed.sent
    });
    let taken = |scrape: crate::meter::Scrape| scrape.with("finlake_sink_rows_total", "ticks");
    let by = Instant::now() + secs(1_800);
    while taken(instance.metrics()) < rows as f64 {
        assert!(instance.process.is_running(), "{}", instance.process.tail());
        assert!(Instant::now() < by, "{}", instance.process.tail());
        std::thread::sleep(secs(1));
    }
    let said = instance.metrics();
    let outcome = |what: &str| said.with("finlake_stream_trades_total", what);
    let (twice, corrected) = (outcome("duplicates"), outcome("corrections"));
    assert!(twice > rows as f64 / 250.0 - 100.0, "{twice} duplicates");
    assert!(corrected > 20.0, "{corrected} corrections");
    println!("{twice} trades came twice; {corrected} closed bars were sent again");
    for (what, more) in [
        ("the tables alone", Some("--no-kafka")),
        ("with ledger and topics", None),
    ] {
        let before = taken(instance.metrics());
        let command = world
            .finlake("reconcile")
            .args(["reconcile", "--quiet", "-o", "json"]);
        let (said, took, cost) = measured(command.args(more).spawn(), 0);
        let json: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(json["breaks"], 0, "{json:#}");
        let of = |layer: &str| json["compared_rows"][layer].as_u64().unwrap();
        assert!(of("bronze") >= rows, "{json:#}");
        let all = (of("bronze") + of("silver") + of("gold")) as f64 / 1e6;
        let during = taken(instance.metrics()) - before;
        assert!(during > 0.0 || took < 5.0, "nothing came in meanwhile");
        row(
            "T11",
            &format!("`finlake reconcile`, {what}, {LIVE} trades/s coming in"),
            ">= 5 M rows/s per core",
            &format!(
                "{all:.1} M rows, {took:.1} s, {:.1} s of CPU: {:.2} M rows/s of CPU; at most {:.0} MB; {during:.0} \
                 rows came in meanwhile; no breaks",
                cost.cpu,
                all / cost.cpu,
                cost.peak
            ),
        );
    }
    done.store(true, Ordering::Relaxed);
    let sent = feeder.join().unwrap();
    let code = instance.process.stop(secs(300));
    assert_eq!(code, 0, "{}", instance.process.tail());
    world.until_caught_up("a", "stream,sink");
    let replay = world
        .finlake("replay")
        .args(["replay", "--all", "--verify", "--quiet"]);
    let (_, took, cost) = measured(replay.spawn(), 0);
    row(
        "check 3",
        "`finlake replay --all --verify`",
        "equal row for row",
        &format!(
            "{sent} trades: equal, {took:.0} s, {:.0} s of CPU, at most {:.0} MB",
            cost.cpu, cost.peak
        ),
    );
}
