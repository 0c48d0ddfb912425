//! What a check that looked could not judge: it finds nothing, and a break from before stays open.

use std::collections::BTreeMap;
use std::sync::Arc;

use finlake_market::{Interval, Intervals, Limits, Ohlcv, Point, Trade};
use finlake_schemas::{Dec8, Dec16, Stage};

use crate::bisect::Side;
use crate::books::{End, Made};
use crate::bronze::{self, Taken};
use crate::findings::Findings;
use crate::rules::{self, Tally};
use crate::silver::{self, BarRow, Moment};
use crate::trades::{BarKey, Counted, Expected, Names, Rules, Seen};

const MINUTE: i64 = 60_000_000;
const HOUR: i64 = 60 * MINUTE;
const END: i64 = i64::MAX;

fn market() -> (Rules, Names) {
    let list = ["1m", "1h", "1d"].map(|t| Interval::parse(t).unwrap());
    let mut names = Names::default();
    names.id("s", "X");
    let rules = Rules {
        intervals: Intervals::new(&list).unwrap(),
        limits: Limits::default(),
        retention_1m: 1,
    };
    (rules, names)
}

fn content() -> Ohlcv {
    Ohlcv::of(&Trade {
        at: Point { time: 0, id: 1 },
        price: Dec8(100_000_000),
        quantity: Dec8(100_000_000),
        quote: Dec16(10_000_000_000_000_000),
        taker_buy: false,
        trades: 1,
    })
}

/// The first bar of an interval; the version reflects input before offset 10.
fn row(interval: u8, length: i64, stage: Stage) -> BarRow {
    BarRow {
        key: BarKey {
            symbol: 0,
            interval,
            start: 0,
        },
        bar_end: length,
        content: content(),
        vwap: 100_000_000,
        stage: Some(stage),
        ticks_offset: 10,
        ..BarRow::sample(0, 0)
    }
}

/// One bar whose last trade came at this offset with commit 7, and its row, if it has one.
fn silver(last_offset: i64, moment: &Moment, row: Option<BarRow>) -> Findings {
    let (rules, names) = market();
    let bar = Expected {
        key: BarKey {
            symbol: 0,
            interval: 0,
            start: 0,
        },
        at: Vec::new(),
        total: Some(content()),
        replayed: None,
        last_offset,
        last_commit: 7,
    };
    let (mut rows, mut out): (Vec<BarRow>, _) = (row.into_iter().collect(), Findings::default());
    silver::compare(&[bar], &mut rows, &names, &rules, moment, END, &mut out);
    out
}

/// Stream time, and how long ago commit 7 was.
fn moment(stream: i64, ago: i64) -> Moment {
    Moment {
        commit: 9,
        system_time: 1_000,
        stream_times: [("s".to_owned(), stream)].into(),
        settled: false,
        patience: 100,
        commit_times: [(7, 1_000 - ago)].into(),
        asserted: Default::default(),
        asserted_until: i64::MAX,
        made: Arc::default(),
    }
}

#[test]
fn a_bar_that_still_forms_may_lack_its_row() {
    let key = "s:X:1m:0";
    let closed = silver(5, &moment(MINUTE, 500), None);
    assert_eq!(closed.list()[0].cause, "row");
    // Told at a graceful stop; the task goes on, and stream time has not passed the bar's end.
    let forming = silver(5, &moment(MINUTE - 1, 500), None);
    assert!(forming.is_empty() && !forming.decides("row", key));
    let there = silver(5, &moment(MINUTE, 500), Some(row(0, MINUTE, Stage::Closed)));
    assert!(there.is_empty() && there.decides("row", key) && there.decides("version", key));
}

#[test]
fn of_an_interval_nothing_is_missed_while_it_was_not_configured() {
    let key = "s:X:1m:0";
    // The bar's last trade came with commit 7, at offset 5 or, where its row does not have it, 12.
    let made = |from: i64, end: Option<(i64, i64, bool)>, row: Option<BarRow>| {
        let end = end.map(|(commit, stream, last)| End {
            commit,
            stream_times: vec![("s".to_owned(), stream)],
            last,
        });
        let moment = Moment {
            made: [vec![Made {
                from,
                began: Vec::new(),
                end,
            }]]
            .into(),
            ..moment(MINUTE, 500)
        };
        let (offset, cause) = match row {
            Some(_) => (12, "version"),
            None => (5, "row"),
        };
        let out = silver(offset, &moment, row);
        let causes: Vec<_> = out.list().iter().map(|f| f.cause.clone()).collect();
        assert!(causes.iter().all(|c| c == cause), "{causes:?}");
        assert_eq!(causes.is_empty(), !out.decides(cause, key));
        !causes.is_empty()
    };
    let late = || Some(row(0, MINUTE, Stage::Closed));
    assert!(made(i64::MIN, None, None) && made(7, None, None) && made(7, None, late()));
    // Added later; removed before the trade; removed before the bar had closed.
    assert!(!made(8, None, None) && !made(8, None, late()));
    assert!(!made(1, Some((7, MINUTE, true)), None));
    assert!(!made(1, Some((9, MINUTE - 1, true)), None));
    // Removed when it had closed: its row must be there, a correction only after a graceful stop.
    assert!(made(1, Some((9, MINUTE, false)), None));
    assert!(made(1, Some((9, MINUTE, true)), late()));
    assert!(!made(1, Some((9, MINUTE, false)), late()));
}

#[test]
fn what_a_bar_lacked_when_its_interval_was_added_is_held_against_its_newest_version_only() {
    let (rules, names) = market();
    let told = |began: i64| {
        let mut first = row(0, MINUTE, Stage::Closed);
        first.content.volume = Dec8(1);
        (first.sys_to, first.is_current) = (20, false);
        let mut second = row(0, MINUTE, Stage::Closed);
        (second.sys_from, second.prev_sys_from, second.revision) = (20, Some(1), 1);
        let moment = Moment {
            made: [vec![Made {
                from: 1,
                began: vec![("s".to_owned(), began)],
                end: None,
            }]]
            .into(),
            ..moment(MINUTE, 500)
        };
        let (mut rows, mut out) = (vec![first.clone(), second], Findings::default());
        let bar = Expected {
            key: first.key,
            at: vec![(10, Some(content()))],
            total: Some(content()),
            replayed: None,
            last_offset: 5,
            last_commit: 7,
        };
        silver::compare(&[bar], &mut rows, &names, &rules, &moment, END, &mut out);
        let of_values = out.list().iter().filter(|f| f.cause.contains("volume"));
        of_values.count()
    };
    assert_eq!((told(0), told(-1)), (0, 1));
}

#[test]
fn a_bar_that_waits_for_its_correction_may_have_waited_before() {
    let key = "s:X:1m:0";
    let closed = || Some(row(0, MINUTE, Stage::Closed));
    let overdue = silver(12, &moment(MINUTE, 500), closed());
    assert_eq!(overdue.list()[0].cause, "version");
    // One more trade, a moment ago.
    let waits = silver(15, &moment(MINUTE, 50), closed());
    assert!(waits.is_empty() && !waits.decides("version", key));
    assert!(waits.decides("row", key));
}

#[test]
fn sums_are_judged_of_whole_bars() {
    let (rules, names) = market();
    let measure = |wanted: &str, stage: Stage, whole: bool| {
        let rows = [row(0, MINUTE, Stage::Closed), row(1, HOUR, stage)];
        let rule = rules::parse(wanted).unwrap();
        let (mut tally, mut out) = (Tally::default(), Findings::default());
        rules::bars(
            &rule,
            &rows,
            &names,
            &rules,
            END,
            |_| whole,
            &mut tally,
            &mut out,
        );
        (tally.has(&rule[0].measure), out)
    };
    let key = "s:X:1h:0";
    let (measured, out) = measure("volume_sum:1h<=0", Stage::Closed, true);
    assert!(measured && out.is_empty() && out.decides("volume_sum", key));
    for (stage, whole) in [(Stage::Closed, false), (Stage::Checkpoint, true)] {
        let (_, out) = measure("volume_sum:1h<=0", stage, whole);
        assert!(out.is_empty() && !out.decides("volume_sum", key));
    }
    // There are no such bars, or none that are shorter.
    for wanted in ["volume_sum:5m<=0", "volume_sum:1m<=0"] {
        assert!(!measure(wanted, Stage::Closed, true).0, "{wanted}");
    }
}

#[test]
fn gaps_at_the_newest_ids_may_have_been_told_before() {
    let (_, names) = market();
    let mut seen = Seen::default();
    seen.absorb(0, &[(1, 5), (8, 9), (12, 12)]);
    let gaps = |settled: i64| {
        let mut out = Findings::default();
        let settled = BTreeMap::from([(0, settled)]);
        let (alone, none) = (Seen::default(), BTreeMap::new());
        bronze::gaps(&seen, &alone, &none, &settled, &names, None, &mut out);
        out
    };
    let (old, all) = (gaps(8), gaps(12));
    assert_eq!((old.list().len(), all.list().len()), (1, 2));
    assert!(!old.decides("trade-id", "s:X:10..12") && old.decides("trade-id", "s:X:6..8"));
    assert!(all.decides("trade-id", "s:X:10..12"));
}

#[test]
fn what_was_accepted_is_not_known_of_a_commit_that_lost_rows() {
    let taken = Taken {
        start: 0,
        end: 10,
        records: 10,
        accepted: 10,
        duplicates: 0,
        rejected: 0,
    };
    let ledger = BTreeMap::from([(1, taken), (2, taken), (3, taken)]);
    let rows = |records, accepted| Counted {
        records,
        accepted,
        duplicates: records - accepted,
        rejected: 0,
    };
    let counted = BTreeMap::from([(1, rows(9, 9)), (2, rows(10, 10))]);
    let mut out = Findings::default();
    bronze::outcomes(4, &ledger, &counted, &mut out);
    assert!(out.is_empty());
    let decided = ["4:1", "4:2", "4:3"].map(|key| out.decides("accepted", key));
    assert_eq!(decided, [false, true, false]);
}

#[test]
fn a_comparison_that_stopped_on_the_way_is_a_cut_list() {
    let records: Vec<(i64, u128)> = (0..10_001).map(|k| (k, 1)).collect();
    let changed = |n: usize| -> Vec<(i64, u128)> {
        let all = records.iter().enumerate();
        all.map(|(at, (k, h))| (*k, h + u128::from(at < n)))
            .collect()
    };
    for (n, cut) in [(10_000, false), (10_001, true)] {
        let mut out = Findings::default();
        let expected = Side::new(records.clone());
        bronze::topic(0, &expected, &Side::new(changed(n)), &mut out);
        // Neighbours are one finding, however many they are.
        assert_eq!((out.list().len(), out.is_cut()), (1, cut), "{n}");
    }
}
