//! Corrections that come by `market.bars`: taken, held already, stale, unsound; and what follows.

mod common;

use common::*;
use finlake_pipeline::{Emit, PipelineConfig};
use finlake_schemas::{
    ActionKind, Assertion, Bar, BarContent, Basis, CorporateAction, Dec8, Dec16, LedgerEntry,
    VendorBar, topics,
};

fn sim() -> Sim {
    Sim::new(&PipelineConfig {
        emit: Emit::Commit,
        ..PipelineConfig::default()
    })
}

/// Asserts that `bar` closes at `close`, as one who sees `bar` in the table.
fn correction<'a>(bar: &Bar<'a>, close: i64) -> Assertion<'a> {
    let close = Dec8::from_int(close);
    let content = BarContent {
        close,
        high: bar.high.max(close),
        low: bar.low.min(close),
        ..BarContent::of(bar)
    };
    Assertion {
        assertion_id: [9; 16],
        source: bar.source,
        symbol: bar.symbol,
        bar_interval: bar.bar_interval,
        bar_start: bar.bar_start,
        expected_sys_from: Some(bar.sys_from),
        expected_revision: Some(bar.revision),
        content,
        retracted: false,
        origin: "test",
        reason: "because",
        sent_at: T0,
    }
}

/// The newest version of a bar, on the heap so that the sim can go on.
struct Seen(Vec<u8>, std::sync::Arc<finlake_schemas::Codec>);

impl Seen {
    fn bar(&self) -> Bar<'_> {
        self.1.decode_bar(&self.0).unwrap()
    }
}

fn newest(s: &Sim, interval: &str, start: i64) -> Seen {
    let records = s.driver.outputs(topics::OHLCV).into_iter().rev();
    let mut bytes = records.map(|r| r.value.clone().unwrap());
    let found = bytes.find(|b| {
        let bar = s.codec.decode_bar(b).unwrap();
        (bar.bar_interval, bar.bar_start) == (interval, T0 + start)
    });
    Seen(found.expect("emitted"), s.codec.clone())
}

fn retraction<'a>(bar: &Bar<'a>) -> Assertion<'a> {
    Assertion {
        content: BarContent::of(bar),
        retracted: true,
        ..correction(bar, 1)
    }
}

/// Two minutes, the first closed.
fn with_a_closed_minute() -> (Sim, Seen) {
    let mut s = sim();
    s.trades(&[t(1, 0, 10), t(2, 30_000_000, 12), t(3, MIN, 13)]);
    s.wait(100_000);
    let seen = newest(&s, "1m", 0);
    assert_eq!(seen.bar().revision, 0);
    (s, seen)
}

#[test]
fn a_correction_becomes_the_next_version_at_once() {
    let (mut s, seen) = with_a_closed_minute();
    s.assert(&correction(&seen.bar(), 15));
    s.commit();
    let now = newest(&s, "1m", 0);
    let bar = now.bar();
    assert_eq!(
        (bar.close, bar.high),
        (Dec8::from_int(15), Dec8::from_int(15))
    );
    assert_eq!(
        (bar.revision, bar.prev_sys_from),
        (1, Some(seen.bar().sys_from))
    );
    assert_eq!((bar.bars_offset, bar.ticks_offset), (1, 3));
    // Sent twice, as one who does not know whether it arrived: it holds already.
    s.assert(&correction(&seen.bar(), 15));
    s.commit();
    assert_eq!(newest(&s, "1m", 0).bar().revision, 1);
    // One who has not seen it is told so.
    s.assert(&correction(&seen.bar(), 16));
    s.commit();
    assert_eq!(s.refused(), ["stale_assertion"]);
    // A late trade goes on from there, ten seconds later at most.
    s.trades(&[t(4, 1, 99)]);
    s.wait(20_000_000);
    let bar = newest(&s, "1m", 0);
    assert_eq!(
        (bar.bar().revision, bar.bar().high),
        (2, Dec8::from_int(99))
    );
    current(&s);
    check_ledger(&s);
    let inputs: Vec<_> = s.ledger().iter().map(|e| e.inputs[1].clone()).collect();
    let sum = |f: fn(&finlake_schemas::InputRange) -> i64| inputs.iter().map(f).sum::<i64>();
    assert_eq!(
        (
            sum(|i| i.accepted),
            sum(|i| i.duplicates),
            sum(|i| i.rejected)
        ),
        (1, 1, 1)
    );
}

#[test]
fn what_has_moved_on_is_not_overwritten() {
    let (mut s, seen) = with_a_closed_minute();
    // A late trade that waits for its turn: the sender cannot know of it.
    s.trades(&[t(4, 1, 11)]);
    s.commit();
    let second = newest(&s, "1m", 0);
    assert_eq!(second.bar().revision, 1);
    s.trades(&[t(5, 2, 11)]);
    s.commit();
    s.assert(&correction(&second.bar(), 15));
    s.assert(&correction(&seen.bar(), 15));
    s.commit();
    assert_eq!(s.refused(), ["stale_assertion", "stale_assertion"]);
    s.wait(20_000_000);
    assert_eq!(newest(&s, "1m", 0).bar().trade_count, 4);
    // Two in one commit: the second has not seen the first.
    let third = newest(&s, "1m", 0);
    s.assert(&correction(&third.bar(), 15));
    s.assert(&correction(&third.bar(), 16));
    s.trades(&[t(6, 3, 14)]);
    s.commit();
    let fourth = newest(&s, "1m", 0);
    assert_eq!(fourth.bar().revision, 3);
    assert_eq!(
        (fourth.bar().close, fourth.bar().trade_count),
        (Dec8::from_int(15), 5)
    );
    assert_eq!(s.refused().len(), 3);
    current(&s);
    check_ledger(&s);
}

#[test]
fn bars_are_taken_back_and_begin_anew() {
    let (mut s, seen) = with_a_closed_minute();
    s.assert(&retraction(&seen.bar()));
    s.commit();
    let gone = newest(&s, "1m", 0);
    assert!(gone.bar().retracted);
    assert_eq!(gone.bar().prev_sys_from, Some(seen.bar().sys_from));
    // Again: it holds already.
    s.assert(&retraction(&seen.bar()));
    s.commit();
    assert!(s.refused().is_empty());
    // The table has no open version now, and a correction must say so.
    s.assert(&correction(&gone.bar(), 15));
    s.commit();
    assert_eq!(s.refused(), ["stale_assertion"]);
    s.assert(&Assertion {
        expected_sys_from: None,
        expected_revision: None,
        ..correction(&seen.bar(), 15)
    });
    s.commit();
    let back = newest(&s, "1m", 0);
    assert_eq!((back.bar().revision, back.bar().prev_sys_from), (2, None));
    assert!(!back.bar().retracted);
    // Taken back once more; then a trade begins it anew.
    s.assert(&retraction(&back.bar()));
    s.commit();
    s.driver.crash_and_restore().unwrap();
    s.trades(&[t(9, 7, 50)]);
    s.wait(20_000_000);
    let anew = newest(&s, "1m", 0);
    assert_eq!((anew.bar().revision, anew.bar().trade_count), (4, 1));
    assert_eq!(anew.bar().prev_sys_from, None);
    current(&s);
    check_ledger(&s);
    // Counted through the crash; so many records of Silver are no rows.
    let entries = s.ledger();
    assert_eq!(entries[0].total(LedgerEntry::BARS_RETRACTED), Some(0));
    let last = entries.last().unwrap();
    assert_eq!(last.total(LedgerEntry::BARS_RETRACTED), Some(2));
    assert_eq!(last.total(LedgerEntry::METRICS_RETRACTED), Some(0));
    let rows = s.versions().iter().filter(|b| !b.retracted).count() as i64;
    assert_eq!(last.total(topics::OHLCV), Some(rows + 2));
}

/// A minute that has left the store: the sender's word stands for what the store forgot.
#[test]
fn an_evicted_minute_comes_back_for_35_days() {
    let (mut s, seen) = with_a_closed_minute();
    s.trades(&[t(4, 36 * DAY, 20)]);
    s.commit();
    assert!(
        s.driver
            .store("bars")
            .unwrap()
            .iter()
            .all(|(k, _)| !k.starts_with(b"Bx:A\0\0\0\0\x01\0")),
        "evicted"
    );
    // The trade that came too late, and is listed.
    s.trades(&[t(5, 1, 99)]);
    s.commit();
    assert_eq!(s.dead(), [("too_late:1m".to_owned(), "4".to_owned())]);
    // What replay makes of it.
    let first = seen.bar();
    let fixed = Assertion {
        content: BarContent {
            high: Dec8::from_int(99),
            volume: Dec8::from_int(6),
            quote_volume: Dec16::from_int(2 * (10 + 12 + 99)),
            taker_buy_base: Dec8::from_int(6),
            taker_buy_quote: Dec16::from_int(2 * (10 + 12 + 99)),
            trade_count: 3,
            ..BarContent::of(&first)
        },
        ..correction(&first, 12)
    };
    s.assert(&fixed);
    s.commit();
    let second = newest(&s, "1m", 0);
    let bar = second.bar();
    assert_eq!((bar.revision, bar.prev_sys_from), (1, Some(first.sys_from)));
    assert_eq!(bar.trade_count, 3);
    // It is in the store: known, and open to late trades, until 35 days are over.
    s.driver.crash_and_restore().unwrap();
    s.assert(&fixed);
    s.trades(&[t(6, 2, 5)]);
    s.wait(20_000_000);
    let third = newest(&s, "1m", 0);
    assert_eq!(
        (third.bar().revision, third.bar().low),
        (2, Dec8::from_int(5))
    );
    assert_eq!(third.bar().trade_count, 4);
    assert!(s.refused().is_empty());
    for days in [40, 70] {
        s.trades(&[t(100 + days, days * DAY, 20)]);
        s.commit();
    }
    s.assert(&correction(&third.bar(), 7));
    s.commit();
    assert_eq!(newest(&s, "1m", 0).bar().revision, 3);
    // 71 days and an hour: 35 days from when it came back.
    s.trades(&[t(200, 72 * DAY, 20)]);
    s.commit();
    s.trades(&[t(201, 3, 6)]);
    s.commit();
    let late = s.dead().iter().filter(|(c, _)| c == "too_late:1m").count();
    assert_eq!(late, 2, "the first, and now again");
    let kept = s.driver.store("bars").unwrap();
    assert!(kept.iter().all(|(k, _)| k[0] != b'K'), "no note is left");
    current(&s);
    check_ledger(&s);
}

#[test]
fn what_never_was_is_asserted_as_new() {
    let mut s = sim();
    s.trades(&[t(1, 0, 10), t(2, 40 * DAY, 12)]);
    s.commit();
    let seen = newest(&s, "1m", 0);
    let first = seen.bar();
    let at = |start: i64, expected: Option<i64>| Assertion {
        bar_start: T0 + start,
        expected_sys_from: expected,
        expected_revision: expected.map(|_| 4),
        content: BarContent {
            first_trade_time: T0 + start,
            last_trade_time: T0 + start,
            ..BarContent::of(&first)
        },
        ..correction(&first, 10)
    };
    // Inside the retention the task knows that there is none.
    s.assert(&at(39 * DAY, Some(5)));
    s.assert(&at(39 * DAY, None));
    // Beyond it the sender knows.
    s.assert(&at(DAY, Some(5)));
    s.assert(&at(2 * DAY, None));
    s.commit();
    assert_eq!(s.refused(), ["stale_assertion"]);
    let version = |s: &Sim, start| {
        let seen = newest(s, "1m", start);
        (seen.bar().revision, seen.bar().prev_sys_from)
    };
    assert_eq!(version(&s, 39 * DAY), (0, None));
    assert_eq!(version(&s, DAY), (5, Some(5)));
    assert_eq!(version(&s, 2 * DAY), (0, None));
    // Nor does anybody forming a bar need help, nor a source that never traded here.
    s.assert(&at(40 * DAY, Some(5)));
    s.assert(&Assertion {
        source: "q",
        ..at(0, None)
    });
    s.commit();
    assert_eq!(s.refused().len(), 3);
    check_ledger(&s);
}

/// A checkpoint of a forming bar can be corrected, unless trades have come since.
#[test]
fn a_forming_bar_is_corrected_where_it_stands_still() {
    let mut s = sim();
    s.trades(&[t(1, 0, 10)]);
    s.wait(61_000_000);
    let seen = newest(&s, "1d", 0);
    s.assert(&retraction(&seen.bar()));
    s.assert(&correction(&seen.bar(), 11));
    s.commit();
    let second = newest(&s, "1d", 0);
    assert_eq!(
        (second.bar().revision, second.bar().close),
        (1, Dec8::from_int(11))
    );
    assert_eq!(second.bar().stage, finlake_schemas::Stage::Checkpoint);
    s.trades(&[t(2, 5, 12)]);
    s.assert(&correction(&second.bar(), 13));
    s.commit();
    assert_eq!(s.refused(), ["stale_assertion", "stale_assertion"]);
    s.driver.stop().unwrap();
    assert_eq!(newest(&s, "1d", 0).bar().trade_count, 2);
    current(&s);
    check_ledger(&s);
}

/// Gold follows a daily bar that is corrected, taken back, and put in.
#[test]
fn gold_follows() {
    let mut config = PipelineConfig::default();
    config.gold.windows = vec![2, 3];
    let mut s = Sim::new(&config);
    let prices = [10, 11, 12, 15, 14, 20, 18, 19];
    for (day, price) in prices.iter().enumerate() {
        s.trades(&[t(day as i64, day as i64 * DAY, *price)]);
    }
    s.commit();
    // Days 0 to 6 are closed.
    assert_eq!(s.metrics().len(), 7);
    let dates = |s: &Sim, from: usize| -> Vec<(i32, i32, bool)> {
        let all = s.metrics();
        let day0 = (T0 / DAY) as i32;
        let of = |m: &finlake_schemas::Metrics<'_>| (m.trade_date - day0, m.revision, m.retracted);
        all[from..].iter().map(of).collect()
    };
    let seen = newest(&s, "1d", 2 * DAY);
    s.assert(&correction(&seen.bar(), 13));
    s.commit();
    assert_eq!(
        dates(&s, 7),
        [(2, 1, false), (3, 1, false), (4, 1, false), (5, 1, false)],
        "the day and the three that see it"
    );
    assert!(
        s.metrics()[7..]
            .iter()
            .all(|m| m.prev_sys_from.is_some() && m.bars_offset == 1)
    );
    // Taken back: its row goes, those that saw it are as if it had never been.
    let seen = newest(&s, "1d", 2 * DAY);
    s.assert(&retraction(&seen.bar()));
    s.commit();
    assert_eq!(
        dates(&s, 11),
        [(2, 2, true), (3, 2, false), (4, 2, false), (5, 2, false)]
    );
    let day3 = s.metrics()[12].return_1;
    assert_eq!(day3, Some(4.0 / 11.0), "from day 1 to day 3");
    // And put in again.
    s.assert(&Assertion {
        expected_sys_from: None,
        expected_revision: None,
        ..correction(&seen.bar(), 12)
    });
    s.commit();
    let again = dates(&s, 15);
    assert_eq!(
        again,
        [(2, 3, false), (3, 3, false), (4, 3, false), (5, 3, false)]
    );
    let all = s.metrics();
    assert_eq!(all[15].prev_sys_from, None, "there was no open row");
    assert_eq!(all[16].prev_sys_from, Some(all[12].sys_from));
    // The values are those of the beginning.
    for (now, then) in all[15..].iter().zip(&all[2..6]) {
        assert_eq!((now.return_1, &now.windows), (then.return_1, &then.windows));
    }
    check_ledger(&s);
    let entries = s.ledger();
    let total = |name| entries.last().unwrap().total(name);
    assert_eq!(total(LedgerEntry::BARS_RETRACTED), Some(1));
    assert_eq!(total(LedgerEntry::METRICS_RETRACTED), Some(1));
    assert_eq!(total(topics::METRICS), Some(all.len() as i64));
}

/// Whatever else comes by that topic is in the dead-letter topic with its reason.
#[test]
fn poison_and_what_a_later_version_will_take() {
    let (mut s, seen) = with_a_closed_minute();
    let key = Some(&b"x:A"[..]);
    let mut good = Vec::new();
    s.codec
        .encode_assertion(&correction(&seen.bar(), 15), &mut good)
        .unwrap();
    s.send_bars(key, None);
    s.send_bars(key, Some(b""));
    s.send_bars(key, Some(&good[..good.len() - 1]));
    let mut unknown = good.clone();
    unknown[4] = 99;
    s.send_bars(key, Some(&unknown));
    s.send_bars(Some(b"x:B"), Some(&good));
    s.assert(&Assertion {
        bar_interval: "7m",
        ..correction(&seen.bar(), 15)
    });
    let mut tick = Vec::new();
    s.codec
        .encode_tick(&t(1, 0, 1).tick(), 2, &mut tick)
        .unwrap();
    s.send_bars(key, Some(&tick));
    let mut bytes = Vec::new();
    let vendor = VendorBar {
        source: "x",
        symbol: "A",
        bar_interval: "1d",
        bar_start: 0,
        bar_end: DAY,
        trade_date: 0,
        open: Dec8(1),
        high: Dec8(1),
        low: Dec8(1),
        close: Dec8(1),
        volume: Dec8(1),
        basis: Basis::AsQuoted,
        basis_at: None,
        ingest_time: None,
    };
    s.codec.encode_vendor_bar(&vendor, &mut bytes).unwrap();
    s.send_bars(key, Some(&bytes));
    bytes.clear();
    let split = CorporateAction {
        source: "x",
        symbol: "A",
        ex_date: 1,
        kind: ActionKind::Split,
        ratio_to: Dec8(2),
        ratio_from: Dec8(1),
        amount: Dec8(0),
        currency: None,
        retracted: false,
        ingest_time: None,
    };
    s.codec.encode_action(&split, &mut bytes).unwrap();
    s.send_bars(key, Some(&bytes));
    s.send_bars(key, Some(&good));
    s.commit();
    assert_eq!(
        s.refused(),
        [
            "malformed",
            "malformed",
            "malformed",
            "unknown_schema",
            "bad_key",
            "invalid",
            "unknown_schema",
            "unsupported",
            "unsupported"
        ]
    );
    let letters = s.driver.outputs(topics::DLQ);
    assert_eq!(
        letters[3].value.as_deref(),
        Some(&unknown[..]),
        "as received"
    );
    assert_eq!(letters[8].header("finlake.offset"), Some("8"));
    let entry = s.ledger().pop().unwrap();
    assert_eq!(entry.schema_ids, [2, 6, 7, 8, 99]);
    assert_eq!((entry.inputs[1].accepted, entry.inputs[1].rejected), (1, 9));
    check_ledger(&s);
}
