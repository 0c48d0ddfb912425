//! The life of bars, version by version: golden stories of what is sent when.

mod common;

use common::*;
use finlake_pipeline::{Emit, PipelineConfig, build};
use finlake_schemas::{Codec, topics};
use insta::assert_snapshot;

fn sim(emit: Emit) -> Sim {
    Sim::new(&PipelineConfig {
        emit,
        ..PipelineConfig::default()
    })
}

#[test]
fn the_whole_topology() {
    let config = PipelineConfig::default();
    let topology = build(&config, Codec::offline().into()).unwrap();
    assert_snapshot!(topology.describe("finlake"));
}

/// Forming → closed → corrected, at most once in ten seconds.
#[test]
fn closed_and_corrected() {
    let mut s = sim(Emit::Commit);
    s.trades(&[t(1, 0, 10), t(2, 30_000_000, 12), t(3, 59_999_999, 11)]);
    s.wait(100_000);
    assert_eq!(s.versions().len(), 0, "nothing is over yet");
    // The first trade of the next minute closes the first.
    s.trades(&[t(4, MIN, 13)]);
    s.wait(100_000);
    // Late trades: the first correction at once, the next when ten seconds are over.
    s.trades(&[t(5, 40_000_000, 9)]);
    s.wait(100_000);
    s.trades(&[t(6, 41_000_000, 8)]);
    s.wait(100_000);
    s.trades(&[t(7, 42_000_000, 7)]);
    s.wait(100_000);
    assert_eq!(s.versions().len(), 2);
    assert!(!s.wait(9_000_000), "not yet due");
    assert!(s.wait(1_000_000), "due without any input");
    assert!(!s.wait(5_000_000), "said once");
    assert_snapshot!(s.story(topics::OHLCV));
    check_ledger(&s);
    let corrections: Vec<i64> = s.ledger().iter().map(|e| e.corrections).collect();
    assert_eq!(corrections.iter().sum::<i64>(), 2);
}

/// A bar of a day becomes a version at each full hour of stream time, and when it closes.
#[test]
fn checkpoints_on_the_hour() {
    let mut s = sim(Emit::Every(1_000_000));
    for hour in [0, 1, 2, 5, 23, 24] {
        s.trades(&[t(hour, hour * HOUR + 1, 10 + hour)]);
        s.wait(100_000);
    }
    assert_snapshot!(s.story(topics::OHLCV));
    check_ledger(&s);
}

/// A minute without input: what has changed becomes a version, once.
#[test]
fn idle_once_if_changed() {
    let mut s = sim(Emit::Every(1_000_000));
    s.trades(&[t(1, 0, 10), t(2, 0, 20).of("B"), t(3, 0, 30).from("y")]);
    s.commit();
    // Source y goes on; x is quiet.
    s.driver.advance(30_000_000).unwrap();
    s.trades(&[t(4, MIN, 31).from("y")]);
    s.commit();
    assert_eq!(s.versions().len(), 1);
    s.wait(29_000_000);
    assert_eq!(s.versions().len(), 1);
    s.wait(1_000_000);
    let story = s.story(topics::OHLCV);
    s.wait(60_000_000);
    s.wait(60_000_000);
    assert_eq!(s.versions().len(), 1 + 6 + 3, "x, then y, each once");
    assert_snapshot!(story);
    // More input, and a quiet minute again.
    s.trades(&[t(5, 1, 11)]);
    s.wait(61_000_000);
    assert_eq!(s.versions().len(), 13);
    assert_eq!(s.versions()[12].revision, 1);
    check_ledger(&s);
}

/// A graceful stop makes forming bars whole and does not wait with corrections.
#[test]
fn stop_emits_everything_once() {
    let mut s = sim(Emit::Every(1_000_000));
    s.trades(&[t(1, 0, 10), t(2, MIN, 11)]);
    s.commit();
    s.trades(&[t(3, 1, 12)]);
    s.commit();
    s.trades(&[t(4, 2, 13)]);
    s.commit();
    s.driver.stop().unwrap();
    assert_snapshot!(s.story(topics::OHLCV));
    let entries = s.ledger();
    let last: Vec<bool> = entries.iter().map(|e| e.last).collect();
    assert_eq!(last, [false, false, false, false, true]);
    assert!(entries[4].heartbeat, "the stop's last entry adds nothing");
    check_ledger(&s);
    // A stop of a restarted task that has seen nothing new says nothing.
    s.driver.crash_and_restore().unwrap();
    let before = s.versions().len();
    s.driver.stop().unwrap();
    assert_eq!(s.versions().len(), before);
}

/// `.live` has the latest state of every bar: at each commit, or once a second per symbol.
#[test]
fn live_follows_the_emit_policy() {
    let count = |s: &Sim| s.bars(topics::LIVE).len();
    let mut s = sim(Emit::Commit);
    s.trades(&[t(1, 0, 10)]);
    s.wait(20_000);
    s.trades(&[t(2, 1, 11)]);
    s.wait(20_000);
    assert_eq!(count(&s), 6);
    assert_snapshot!(s.story(topics::LIVE));

    let mut s = sim(Emit::Every(1_000_000));
    s.trades(&[t(1, 0, 10)]);
    s.wait(20_000);
    assert_eq!(count(&s), 3, "the first at once");
    s.trades(&[t(2, 1, 11)]);
    s.wait(20_000);
    s.trades(&[t(3, 2, 12)]);
    s.wait(20_000);
    assert_eq!(count(&s), 3, "then it waits for its second");
    assert!(s.wait(1_000_000), "and comes without further input");
    assert_eq!(count(&s), 6);
    assert_eq!(s.bars(topics::LIVE)[5].1.trade_count, 3);
    // Closing does not wait; the new minute's bar does.
    s.trades(&[t(4, MIN, 13)]);
    s.wait(20_000);
    let live = s.bars(topics::LIVE);
    let closed = live.iter().filter(|(_, b)| b.stage.as_str() == "closed");
    assert_eq!(closed.count(), 1);
    assert_eq!(live.len(), 7);
}

/// Duplicates and another order of arrival change nothing but the number of versions.
#[test]
fn duplicates_are_counted_and_change_nothing() {
    let mut s = sim(Emit::Commit);
    s.trades(&[t(1, 0, 10), t(1, 0, 10), t(2, 5, 11), t(1, 3, 99)]);
    s.commit();
    s.trades(&[t(2, 5, 11), t(3, MIN, 12), t(1, 0, 10)]);
    s.commit();
    let inputs: Vec<_> = s.ledger().iter().map(|e| e.inputs[0].clone()).collect();
    assert_eq!((inputs[0].accepted, inputs[0].duplicates), (2, 2));
    assert_eq!((inputs[1].accepted, inputs[1].duplicates), (1, 2));
    assert_eq!(s.versions()[0].trade_count, 2);
    check_ledger(&s);
}

/// Aggregate trades count for the trades they stand for.
#[test]
fn aggregate_trades() {
    let mut s = sim(Emit::Commit);
    for (id, first, last) in [(1, 10, 14), (2, 15, 15), (1, 10, 14)] {
        let mut tick = t(id, id, 10).from("x.agg").tick();
        (tick.first_trade_id, tick.last_trade_id) = (Some(first), Some(last));
        s.append_tick(&tick, T0 / 1000);
    }
    s.pipe(3);
    s.driver.stop().unwrap();
    assert!(s.versions().iter().all(|b| b.trade_count == 6));
    let i = &s.ledger()[0].inputs[0];
    assert_eq!((i.accepted, i.duplicates), (2, 1));
}

/// The ledger of a quiet task: heartbeats with their own system time, totals carried on.
#[test]
fn heartbeats() {
    let mut s = sim(Emit::Every(1_000_000));
    assert!(
        s.driver.maybe_commit().unwrap(),
        "directly after assignment"
    );
    s.trades(&[t(1, 0, 10)]);
    s.commit();
    for _ in 0..3 {
        s.wait(10_000_000);
    }
    let beats: Vec<bool> = s.ledger().iter().map(|e| e.heartbeat).collect();
    assert_eq!(beats, [true, false, true, true, true]);
    assert_eq!(s.ledger()[4].stream_times, [("x".to_owned(), T0)]);
    assert_eq!(s.ledger()[1].schema_ids, [2]);
    assert!(s.ledger()[4].schema_ids.is_empty());
    check_ledger(&s);
}

/// A correction that was sent before its time, of a symbol that has left memory since.
#[test]
fn a_dropped_symbol_is_not_due() {
    let mut s = Sim::new(&PipelineConfig {
        correct_every: HOUR,
        retention_1m: DAY,
        cached_symbols: 0,
        ..PipelineConfig::default()
    });
    s.trades(&[t(1, 0, 10), t(2, MIN, 11)]);
    s.commit();
    s.trades(&[t(3, 1, 12)]);
    s.wait(1_000_000);
    s.trades(&[t(4, 2, 13)]);
    s.wait(1_000_000);
    assert_eq!(s.versions().len(), 2, "the second correction waits");
    // The bar leaves the store, so its correction does not wait any longer.
    s.trades(&[t(5, 3 * DAY, 14)]);
    s.wait(1_000_000);
    let last = |s: &Sim| {
        let rows = current(s);
        let row = &rows[&("x".into(), "A".into(), "1m".into(), T0)];
        (row.trade_count, row.revision)
    };
    assert_eq!(last(&s), (3, 2));
    // Everything of A is closed; another symbol takes its place.
    s.trades(&[t(1, 9 * DAY, 10).of("B")]);
    s.wait(1_000_000);
    s.trades(&[t(2, 9 * DAY, 10).of("B")]);
    s.wait(2 * HOUR);
    s.wait(2 * HOUR);
    assert_eq!(last(&s), (3, 2));
    check_ledger(&s);
}
