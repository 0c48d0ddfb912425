//! What ends a break and what does not: runs over real tables that did not look at it leave it open.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use finlake_market::Intervals;
use finlake_reconcile::{Finding, Layer, Options, Report, Scope, changes, rules};
use finlake_schemas::{Break, BreakKind, Dec8};

use crate::accuracy::klines;
use crate::injections::{ALL, reconcile, show, spec};
use crate::market::{Made, Spec, T0, make, options};
use crate::topic::Pristine;

/// After everything that the ledger has of these markets.
const LATER: i64 = i64::MAX / 2;

type Known = BTreeMap<[u8; 16], Break>;

/// What a run opens.
fn opened(options: &Options, report: &Report) -> Known {
    let scope = Scope::of(options, report);
    let made = changes(&report.findings, &Known::new(), &scope, "reconcile", LATER);
    assert!(!made.open.is_empty(), "{}", show(report));
    made.open.into_iter().map(|b| (b.break_id, b)).collect()
}

/// How many of them a later run resolves.
fn ended(known: &Known, options: &Options, report: &Report) -> usize {
    let scope = Scope::of(options, report);
    let made = changes(&report.findings, known, &scope, "reconcile", LATER);
    made.resolve.len()
}

async fn run(made: &Made, options: &Options, topic: &Pristine) -> Report {
    reconcile(&made.lake, options, Some(&made.books), Some(topic)).await
}

fn ruled(text: &str) -> Options {
    let mut o = options(&ALL);
    o.validators = rules::parse(text).unwrap();
    o
}

#[tokio::test]
async fn a_break_of_accuracy_ends_where_its_own_bar_was_compared() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(47)).await;
    let mut topic = Pristine::of(&made).await;
    let (minutes, hours) = (klines(&made, "1m").await, klines(&made, "1h").await);
    let all = [minutes.clone(), hours.clone()].concat();
    let o = ruled("kline_accuracy:1m<=0");
    topic.klines = all.clone();
    topic.klines[3].close = Dec8(all[3].close.0 * 2);
    let known = opened(&o, &run(&made, &o, &topic).await);
    assert_eq!(known.len(), 1);
    let wrong = topic.klines.clone();

    // Another interval, no interval, another part of the market.
    let hourly = ruled("kline_accuracy:1h<=0");
    let report = run(&made, &hourly, &topic).await;
    assert_eq!((report.measured.len(), report.exit_code()), (1, 0));
    assert_eq!(
        ended(&known, &hourly, &report),
        0,
        "hours say nothing of a minute"
    );
    let none = ruled("");
    assert_eq!(ended(&known, &none, &run(&made, &none, &topic).await), 0);
    let mut other = o.clone();
    other.symbol = all
        .iter()
        .map(|k| k.symbol.to_owned())
        .find(|s| s != all[3].symbol);
    assert!(other.symbol.is_some());
    assert_eq!(ended(&known, &other, &run(&made, &other, &topic).await), 0);
    // Its kline has gone with retention; others of the interval are there.
    topic.klines = all.clone();
    topic.klines.remove(3);
    let report = run(&made, &o, &topic).await;
    assert_eq!((report.measured[0].value, report.exit_code()), (0.0, 0));
    assert_eq!(ended(&known, &o, &report), 0);
    // A share that is small enough of its symbol is not small enough of all, and the other way round.
    topic.klines = wrong;
    let mut lenient = ruled("kline_accuracy:1m<=0.5");
    lenient.symbol = Some(all[3].symbol.to_owned());
    assert_eq!(
        ended(&known, &lenient, &run(&made, &lenient, &topic).await),
        0
    );
    lenient.symbol = None;
    assert_eq!(
        ended(&known, &lenient, &run(&made, &lenient, &topic).await),
        1
    );
    // Mended.
    topic.klines = all;
    assert_eq!(ended(&known, &o, &run(&made, &o, &topic).await), 1);
}

#[tokio::test]
async fn a_rule_that_is_not_asked_ends_no_break() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(53)).await;
    let topic = Pristine::of(&made).await;
    // No share at all is fine.
    let strict = ruled("missing_bars:1m<=0, null_rate:trade_id<=0");
    let report = run(&made, &strict, &topic).await;
    let known = opened(&strict, &report);
    assert_eq!(ended(&known, &strict, &report), 0, "they are broken still");
    for text in ["", "missing_bars:1d<=1", "null_rate:price<=1"] {
        let o = ruled(text);
        assert_eq!(
            ended(&known, &o, &run(&made, &o, &topic).await),
            0,
            "{text}"
        );
    }
    let mut day = ruled("missing_bars:1m<=1, null_rate:trade_id<=1");
    let first = (T0 / 86_400_000_000) as i32;
    day.dates = Some((first, first + 1));
    assert_eq!(ended(&known, &day, &run(&made, &day, &topic).await), 0);
    let loose = ruled("missing_bars:1m<=1, null_rate:trade_id<=1");
    let report = run(&made, &loose, &topic).await;
    assert_eq!(ended(&known, &loose, &report), known.len());
}

/// A break of a bar that a run finds right, told at this system time.
fn of_bar(cause: &str, date: i32, told: i64) -> Known {
    let key = format!("binance:S1X0:1m:{}", i64::from(date) * 86_400_000_000);
    let f = Finding::new(
        BreakKind::ValueDrift,
        Layer::Silver,
        "silver.market_ohlcv",
        key,
        cause,
    );
    let b = f.of("binance", "S1X0").on(date).to_break("reconcile", told);
    Known::from([(b.break_id, b)])
}

/// The table may have lost what the topic no longer has: rows that are there prove nothing.
#[tokio::test]
async fn what_the_topic_no_longer_has_ends_no_break() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(59)).await;
    let mut topic = Pristine::of(&made).await;
    let last = (T0 / 86_400_000_000) as i32 + 5;
    let mut o = options(&ALL);
    o.dates = Some((last, last + 1));
    let early = of_bar(&format!("record:close:{T0}"), last, LATER);
    assert_eq!(ended(&early, &o, &run(&made, &o, &topic).await), 1);
    topic.first = 100;
    let report = run(&made, &o, &topic).await;
    assert!(
        report.notes.is_empty(),
        "the day's own rows are retained: {:?}",
        report.notes
    );
    assert_eq!(ended(&early, &o, &report), 0);
    let late = of_bar(&format!("record:close:{}", LATER - 1), last, LATER);
    assert_eq!(ended(&late, &o, &report), 1, "its version was compared");
    // What recomputation finds needs no topic of versions.
    let drift = of_bar("close:7", last, LATER);
    assert_eq!(ended(&drift, &o, &report), 1);
    // Without topics at all nothing is known of records.
    let blind = reconcile(&made.lake, &o, Some(&made.books), None).await;
    assert_eq!(ended(&late, &o, &blind), 0);
}

/// A table that is filled anew is right as far as it has come.
#[tokio::test]
async fn a_table_that_has_not_come_so_far_ends_no_break() {
    let (dir, half) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = make(dir.path(), &spec(61)).await;
    let part = Spec {
        trades: 800,
        ..spec(61)
    };
    let part = make(half.path(), &part).await;
    let o = options(&ALL);
    let report = reconcile(&whole.lake, &o, Some(&whole.books), None).await;
    let day = (T0 / 86_400_000_000) as i32;
    let commits = whole
        .books
        .until(0, i64::MAX)
        .map(|(_, line)| line.system_time);
    let last = commits.max().unwrap();
    let (early, late) = (of_bar("close:7", day, 1), of_bar("close:7", day, last));
    assert_eq!(ended(&late, &o, &report), 1);
    let report = reconcile(&part.lake, &o, Some(&whole.books), None).await;
    let reached = report.looked.reached.unwrap();
    assert!(reached < last, "{reached} of {last}");
    let scope = Scope::of(&o, &report);
    assert!(scope.covers(early.values().next().unwrap()));
    assert!(!scope.covers(late.values().next().unwrap()));
}

/// Intervals are those that the table holds: of the others nothing was compared.
#[tokio::test]
async fn an_interval_that_is_not_compared_ends_no_break() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(67)).await;
    let day = (T0 / 86_400_000_000) as i32;
    let known = of_bar("row", day, 1);
    let mut o = options(&ALL);
    let report = reconcile(&made.lake, &o, Some(&made.books), None).await;
    assert_eq!(ended(&known, &o, &report), 1);
    let list = ["1h", "1d"].map(|i| i.parse().unwrap());
    o.market.intervals = Intervals::new(&list).unwrap();
    assert_eq!(ended(&known, &o, &report), 0);
}

/// A bar of a week is read whole, and the other days of its week lie nowhere else.
#[tokio::test]
async fn a_day_of_a_span_of_several_is_compared_once() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(71)).await;
    let topic = Pristine::of(&made).await;
    let day = (T0 / 86_400_000_000) as i32;
    let list = ["1m", "1h", "1d", "7d"].map(|i| i.parse().unwrap());
    for day in day..day + 3 {
        let mut o = options(&[Layer::Bronze]);
        o.market.intervals = Intervals::new(&list).unwrap();
        o.dates = Some((day, day + 1));
        let before = topic.asked.load(Ordering::Relaxed);
        let report = run(&made, &o, &topic).await;
        assert_eq!(report.exit_code(), 0, "day {day}: {}", show(&report));
        let asked = topic.asked.load(Ordering::Relaxed) - before;
        assert!((1..=2).contains(&asked), "{asked} times, of two partitions");
    }
}
