use std::sync::Arc;

use finlake_market::{Interval, Intervals, Limits, Point};
use finlake_schemas::{BreakKind, Dec8, Dec16, keys};

use super::*;
use crate::findings::Findings;
use crate::silver::{self, Moment};
use crate::trades::{Expected, Names, Rules};

const END: i64 = i64::MAX;
const START: i64 = 1_767_571_200_000_000;
const UNIT: i128 = 100_000_000;

fn rules() -> Rules {
    Rules {
        intervals: Intervals::new(&[Interval::parse("1m").unwrap()]).unwrap(),
        limits: Limits::default(),
        retention_1m: 0,
    }
}

fn key() -> BarKey {
    BarKey {
        symbol: 0,
        interval: 0,
        start: START,
    }
}

/// What `count` trades of one unit at prices 10 to `high` give.
fn content(count: i64, high: i128) -> Ohlcv {
    let n = i128::from(count);
    let point = |id| Point {
        time: START + id,
        id,
    };
    Ohlcv {
        first: point(1),
        last: point(count),
        open: Dec8(10 * UNIT),
        high: Dec8(high * UNIT),
        low: Dec8(10 * UNIT),
        close: Dec8(10 * UNIT),
        volume: Dec8(n * UNIT),
        quote_volume: Dec16(10 * n * UNIT * UNIT),
        trade_count: count,
        taker_buy_base: Dec8(0),
        taker_buy_quote: Dec16(0),
    }
}

/// A version made at `sys`, with the inputs up to these offsets.
fn row(content: Ohlcv, sys: (i64, i64), prev: Option<i64>, ticks: i64, bars: i64) -> BarRow {
    BarRow {
        trade_date: finlake_market::interval::date_of(START),
        tick_id: Some(keys::bar_id("sim", "A", "1m", START)),
        content,
        vwap: content.vwap().0,
        sys_from: sys.0,
        sys_to: sys.1,
        is_current: sys.1 == END,
        prev_sys_from: prev,
        commit: sys.0,
        ticks_offset: ticks,
        bars_offset: bars,
        kafka_offset: sys.0,
        ..BarRow::sample(0, START)
    }
}

/// An assertion at an offset, of a high, about the version of a system time.
fn asserted(offset: i64, high: i128, volume: i128, expected: Option<i64>) -> Asserted {
    Asserted {
        offset,
        expected,
        retracted: false,
        open: 10 * UNIT,
        high: high * UNIT,
        low: 10 * UNIT,
        close: 10 * UNIT,
        volume: volume * UNIT,
    }
}

/// What the comparison says. `trades`: how many came before each offset.
fn told(trades: &[(i64, i64)], rows: &[BarRow], all: &[Asserted]) -> Vec<(BreakKind, String)> {
    let mut names = Names::default();
    names.id("sim", "A");
    let mut assertions = Assertions::default();
    for a in all {
        assertions.push(key(), a.clone());
    }
    let at = |n: &(i64, i64)| (n.0, (n.1 > 0).then(|| content(n.1, 10)));
    let last = trades.last().copied();
    let bar = Expected {
        key: key(),
        at: trades.iter().map(at).collect(),
        total: last.and_then(|n| at(&n).1),
        replayed: None,
        last_offset: last.map_or(0, |n| n.0 - 1),
        last_commit: 1,
    };
    let moment = Moment {
        commit: 100,
        system_time: 100,
        stream_times: [("sim".to_owned(), END)].into(),
        settled: true,
        asserted: Arc::new(assertions),
        asserted_until: 100,
        ..Moment::default()
    };
    let mut out = Findings::default();
    let expected = match last {
        Some(_) => vec![bar],
        None => Vec::new(),
    };
    let mut rows = rows.to_vec();
    for (n, row) in (0..).zip(rows.iter_mut()) {
        row.revision = n;
    }
    silver::compare(
        &expected,
        &mut rows,
        &names,
        &rules(),
        &moment,
        END,
        &mut out,
    );
    let list = out.list().iter();
    list.map(|f| (f.kind, f.cause.clone())).collect()
}

#[test]
fn an_applied_correction_is_no_drift() {
    let made = row(content(2, 10), (1, 5), None, 2, 0);
    let corrected = row(content(2, 12), (5, END), Some(1), 2, 1);
    let trades = [(2, 2)];
    let rows = [made.clone(), corrected.clone()];
    assert_eq!(told(&trades, &rows, &[asserted(0, 12, 2, Some(1))]), []);
    // Nobody asserted it; or something else, or later, or of another version.
    for all in [
        vec![],
        vec![asserted(0, 13, 2, Some(1))],
        vec![asserted(0, 12, 3, Some(1))],
        vec![asserted(1, 12, 2, Some(1))],
        vec![asserted(0, 12, 2, Some(2))],
        vec![asserted(0, 12, 2, None)],
    ] {
        let found = told(&trades, &rows, &all);
        assert_eq!(
            found,
            [(BreakKind::ValueDrift, "high:5".to_owned())],
            "{all:?}"
        );
    }
    // A refused one beside it changes nothing.
    let both = [asserted(0, 12, 2, Some(1)), asserted(1, 99, 2, Some(1))];
    assert_eq!(told(&trades, &rows, &both), []);
}

#[test]
fn trades_after_a_correction_are_added_to_it() {
    let made = row(content(2, 10), (1, 5), None, 2, 0);
    let corrected = row(content(2, 12), (5, 7), Some(1), 2, 1);
    let late = row(content(3, 12), (7, END), Some(5), 4, 1);
    let trades = [(2, 2), (4, 3)];
    let all = [asserted(0, 12, 2, Some(1))];
    let rows = [made.clone(), corrected, late.clone()];
    assert_eq!(told(&trades, &rows, &all), []);
    // In one commit: the version has both.
    let at_once = row(content(3, 12), (5, END), Some(1), 4, 1);
    assert_eq!(told(&trades, &[made.clone(), at_once], &all), []);
    // A sum that does not follow, a price that cannot.
    for wrong in [content(4, 12), content(3, 11)] {
        let mut rows = rows.clone();
        rows[2].content = wrong;
        rows[2].vwap = wrong.vwap().0;
        let found = told(&trades, &rows, &all);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, BreakKind::ValueDrift);
    }
}

#[test]
fn a_retracted_bar_may_end_and_come_back() {
    let made = row(content(2, 10), (1, 5), None, 2, 0);
    let mut back = asserted(0, 10, 2, Some(1));
    assert_eq!(
        told(
            &[(2, 2)],
            std::slice::from_ref(&made),
            std::slice::from_ref(&back)
        ),
        [(BreakKind::Missing, "INV-6:5".to_owned())],
        "nothing was retracted"
    );
    back.retracted = true;
    assert_eq!(
        told(
            &[(2, 2)],
            std::slice::from_ref(&made),
            std::slice::from_ref(&back)
        ),
        []
    );
    // A late trade: what was asserted, and the trade.
    let again = row(content(3, 10), (7, END), None, 4, 1);
    assert_eq!(told(&[(2, 2), (4, 3)], &[made, again], &[back]), []);
}

#[test]
fn a_bar_without_trades_may_be_asserted() {
    let alone = row(content(2, 12), (5, END), None, 2, 1);
    let rows = std::slice::from_ref(&alone);
    assert_eq!(told(&[], rows, &[asserted(0, 12, 2, None)]), []);
    assert_eq!(
        told(&[], rows, &[asserted(0, 13, 2, None)]),
        [(BreakKind::ValueDrift, "trades".to_owned())]
    );
}
