//! Every record is accepted, counted as a duplicate, or in the dead-letter topic with its reason.

mod common;

use common::*;
use finlake_pipeline::PipelineConfig;
use finlake_schemas::{Dec8, topics};
use proptest::prelude::*;

fn sim() -> Sim {
    Sim::new(&PipelineConfig::default())
}

#[test]
fn each_reason() {
    let mut s = sim();
    let good = t(1, 0, 10).tick();
    let mut bytes = Vec::new();
    s.codec.encode_tick(&good, 2, &mut bytes).unwrap();
    let ts = T0 / 1000;
    let key = Some(&b"x:A"[..]);
    s.append(ts, key, None);
    s.append(ts, key, Some(b""));
    s.append(ts, key, Some(b"{\"json\":1}"));
    s.append(ts, key, Some(&bytes[..bytes.len() - 1]));
    let mut unknown = bytes.clone();
    unknown[4] = 99;
    s.append(ts, key, Some(&unknown));
    s.append(ts, None, Some(&bytes));
    s.append(ts, Some(b"x:B"), Some(&bytes));
    s.append(ts - 10_001, key, Some(&bytes));
    let mut tick = good;
    tick.quantity = Dec8(0);
    s.append_tick(&tick, ts);
    tick = good;
    (tick.price, tick.quantity) = (Dec8::MAX, Dec8(2));
    s.append_tick(&tick, ts);
    s.append(ts, key, Some(&bytes));
    s.pipe(11);
    s.driver.stop().unwrap();
    let dead = s.dead();
    let classes: Vec<&str> = dead.iter().map(|(class, _)| class.as_str()).collect();
    assert_eq!(
        classes,
        [
            "malformed",
            "malformed",
            "malformed",
            "malformed",
            "unknown_schema",
            "bad_key",
            "bad_key",
            "future",
            "invalid",
            "overflow"
        ]
    );
    assert!(
        dead.iter()
            .enumerate()
            .all(|(n, (_, at))| *at == n.to_string())
    );
    let letters = s.driver.outputs(topics::DLQ);
    assert_eq!(
        letters[4].value.as_deref(),
        Some(&unknown[..]),
        "as received"
    );
    assert_eq!(letters[5].key, None);
    assert!(
        letters
            .iter()
            .all(|l| !l.header("finlake.error.message").unwrap().is_empty())
    );
    assert!(
        letters
            .iter()
            .all(|l| l.header("finlake.app.id") == Some("finlake"))
    );
    let i = &s.ledger()[0].inputs[0];
    assert_eq!(
        (i.records, i.accepted, i.duplicates, i.rejected),
        (11, 1, 0, 10)
    );
    assert_eq!(s.versions().len(), 3);
    check_ledger(&s);
}

/// One absurd stamp closes nothing.
#[test]
fn the_future_does_not_move_stream_time() {
    let mut s = sim();
    s.trades(&[t(1, 0, 10)]);
    let far = t(2, 900 * DAY, 10).tick();
    s.append_tick(&far, T0 / 1000);
    s.pipe(1);
    s.trades(&[t(3, 1, 11)]);
    s.commit();
    assert_eq!(s.versions().len(), 0);
    assert_eq!(s.ledger()[0].stream_times, [("x".to_owned(), T0 + 1)]);
    assert_eq!(s.dead()[0].0, "future");
}

/// A rejected trade leaves no trace: its id may come again, in a form that fits.
#[test]
fn sums_that_would_overflow() {
    let mut s = sim();
    let mut big = t(1, 0, 1).tick();
    // 6 × 10^37 of the 10^38 units of a quote volume: one fits nowhere beside another.
    (big.price, big.quantity) = (Dec8(6_000_000_000_000_000_000), Dec8(10i128.pow(19)));
    s.append_tick(&big, T0 / 1000);
    (big.trade_id, big.quantity) = (2, Dec8(7 * 10i128.pow(18)));
    s.append_tick(&big, T0 / 1000);
    (big.trade_id, big.trade_time) = (3, T0 + 2 * MIN);
    s.append_tick(&big, T0 / 1000 + 120_000);
    big.quantity = Dec8(1);
    s.append_tick(&big, T0 / 1000 + 120_000);
    s.pipe(4);
    s.driver.stop().unwrap();
    let classes: Vec<String> = s.dead().into_iter().map(|d| d.0).collect();
    assert_eq!(classes, ["overflow", "overflow"]);
    let rows = current(&s);
    let day = rows.values().find(|b| b.bar_interval == "1d").unwrap();
    assert_eq!(day.trade_count, 2);
    assert_eq!(day.stage.as_str(), "checkpoint");
    check_ledger(&s);
}

/// 35 days behind its symbol's own latest trade a 1m bar has left the store: the trade still
/// corrects the longer ones, and is listed.
#[test]
fn too_late_for_a_minute() {
    let mut s = sim();
    s.trades(&[t(1, 0, 10), t(2, 35 * DAY + MIN - 1, 11)]);
    s.commit();
    s.trades(&[t(3, 30_000_000, 12)]);
    s.commit();
    assert_eq!(s.dead(), [], "one microsecond before the bar leaves");
    s.trades(&[t(4, 35 * DAY + MIN, 13)]);
    s.commit();
    s.trades(&[t(5, 40_000_000, 9), t(6, MIN, 14)]);
    // Another symbol of the source is not late because this one is ahead.
    s.trades(&[t(1, 50_000_000, 20).of("B")]);
    s.driver.advance(60_000_000).unwrap();
    s.driver.stop().unwrap();
    assert_eq!(s.dead(), [("too_late:1m".to_owned(), "4".to_owned())]);
    let rows = current(&s);
    let row = |symbol: &str, interval: &str, at: i64| {
        let text = |s: &str| s.to_owned();
        let row = &rows[&(text("x"), text(symbol), text(interval), T0 + at)];
        (row.trade_count, row.stage.as_str())
    };
    assert_eq!(row("A", "1m", 0), (2, "closed"));
    assert_eq!(row("A", "1h", 0), (4, "closed"));
    assert_eq!(row("A", "1d", 0), (4, "closed"));
    assert_eq!(row("A", "1m", MIN), (1, "closed"));
    assert_eq!(row("B", "1m", 0), (1, "closed"));
    let i = s.ledger().iter().map(|e| e.inputs[0].rejected).sum::<i64>();
    assert_eq!(i, 0, "too late is accepted, not rejected");
    // What left the retention has left the store; longer bars have not.
    let bars = s.driver.store("bars").unwrap();
    let minutes = |name: &str, n: u32| {
        let prefix = [b"B", name.as_bytes(), &[0], &n.to_be_bytes()].concat();
        bars.iter().filter(|(k, _)| k.starts_with(&prefix)).count()
    };
    assert_eq!((minutes("x:A", 60), minutes("x:A", 1440)), (1, 1));
    check_ledger(&s);
}

#[test]
fn old_minutes_leave_the_store() {
    let mut s = sim();
    for day in 0..80 {
        s.trades(&[t(day, day * DAY, 10)]);
        s.commit();
    }
    let bars = s.driver.store("bars").unwrap();
    let count = |n: u32| {
        let prefix = [&b"Bx:A\0"[..], &n.to_be_bytes()].concat();
        bars.iter().filter(|(k, _)| k.starts_with(&prefix)).count()
    };
    assert_eq!(count(1440), 79);
    assert_eq!(count(60), 79);
    assert!((34..=36).contains(&count(1)), "{}", count(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever the bytes, nothing panics and every record is accounted for.
    #[test]
    fn any_bytes(records in prop::collection::vec(
        (
            prop::option::of(prop::collection::vec(any::<u8>(), 0..12)),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
            any::<bool>(),
            0usize..80,
            any::<u8>(),
        ),
        1..40,
    )) {
        let mut s = sim();
        let mut good = Vec::new();
        s.codec.encode_tick(&t(7, 0, 10).tick(), 2, &mut good).unwrap();
        for (key, value, mutate, place, byte) in &records {
            if *mutate {
                // A good record with one byte changed.
                let mut bytes = good.clone();
                let place = place % bytes.len();
                bytes[place] = *byte;
                s.append(T0 / 1000, Some(b"x:A"), Some(&bytes));
            } else {
                s.append(T0 / 1000, key.as_deref(), value.as_deref());
            }
        }
        s.pipe(records.len());
        s.driver.stop().unwrap();
        let i = s.ledger()[0].inputs[0].clone();
        prop_assert_eq!(i.records as usize, records.len());
        // A trade of long ago is listed, and accepted all the same.
        let dead = s.dead();
        let refused = dead.iter().filter(|(class, _)| !class.starts_with("too_late"));
        prop_assert_eq!(i.rejected as usize, refused.count());
        check_ledger(&s);
    }
}
