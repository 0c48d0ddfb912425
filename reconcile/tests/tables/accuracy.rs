//! Bars against klines and vendors' bars: shares, findings only beyond the limit, and what is said
//! where there is nothing to compare with.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
use finlake_lakehouse::{Filter, Scan, Table};
use finlake_reconcile::{Layer, rules};
use finlake_schemas::{BreakKind, Dec8, Kline, Severity};

use crate::injections::{reconcile, show, spec};
use crate::market::{Made, SOURCE, make, options};
use crate::topic::Pristine;

/// The exchange's klines are what the bars are.
pub async fn klines(made: &Made, interval: &'static str) -> Vec<Kline<'static>> {
    let pinned = made.lake.snapshot(Table::Ohlcv).await.unwrap();
    let filter = Filter::all()
        .current()
        .interval(interval)
        .text("stage", "closed");
    let rows: RecordBatch = pinned
        .collect(&Scan::default().filter(filter))
        .await
        .unwrap();
    let time = |name: &str, at: usize| {
        let column = rows.column_by_name(name).unwrap();
        column.as_primitive::<TimestampMicrosecondType>().value(at)
    };
    let dec = |name: &str, at: usize| {
        let column = rows.column_by_name(name).unwrap();
        Dec8(column.as_primitive::<Decimal128Type>().value(at))
    };
    let symbols = rows.column_by_name("symbol").unwrap().as_string::<i32>();
    let counts = rows.column_by_name("trade_count").unwrap();
    let one = |at: usize| Kline {
        source: SOURCE,
        symbol: symbols.value(at).to_owned().leak(),
        bar_interval: interval,
        bar_start: time("bar_start", at),
        bar_end: time("bar_end", at),
        open: dec("open", at),
        high: dec("high", at),
        low: dec("low", at),
        close: dec("close", at),
        volume: dec("volume", at),
        trade_count: counts.as_primitive::<Int64Type>().value(at),
        quote_volume: None,
        taker_buy_base: None,
        taker_buy_quote: None,
        closed: true,
        event_time: None,
        ingest_time: None,
    };
    (0..rows.num_rows()).map(one).collect()
}

#[tokio::test]
async fn klines_are_an_oracle_with_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(41)).await;
    let mut topic = Pristine::of(&made).await;
    let run = async |topic: &Pristine, rule: &str| {
        let mut o = options(&[Layer::Silver]);
        o.validators = rules::parse(rule).unwrap();
        reconcile(&made.lake, &o, Some(&made.books), Some(topic)).await
    };
    // Nothing there: said, no break, not "clean by measure" either.
    let report = run(&topic, "kline_accuracy:1m<=0, vendor_accuracy:1d<=0").await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert!(report.measured.is_empty());
    let why: Vec<&str> = report.unmeasured.iter().map(|(_, w)| w.as_str()).collect();
    assert!(why[0].contains("market.klines is empty"), "{why:?}");
    assert!(
        why[1].contains("vendors' bars") || why[1].contains("market_bars"),
        "{why:?}"
    );

    topic.klines = klines(&made, "1m").await;
    let all = topic.klines.len();
    assert!(all > 500, "{all}");
    let report = run(&topic, "kline_accuracy:1m<=0, kline_accuracy:6m<=0").await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    assert_eq!(
        (report.measured[0].value, report.measured[0].of),
        (0.0, all as u64)
    );
    assert_eq!(report.unmeasured.len(), 1, "no such interval");

    // One beyond 0.01 %, one within, one that is not over.
    let wrong = topic.klines[3];
    topic.klines[3].close = Dec8(wrong.close.0 + wrong.close.0 / 5_000);
    topic.klines[4].close = Dec8(topic.klines[4].close.0 + topic.klines[4].close.0 / 20_000);
    topic.klines[5].close = Dec8(1);
    topic.klines[5].closed = false;
    let report = run(&topic, "kline_accuracy:1m<=0").await;
    let share = 1.0 / (all - 1) as f64;
    assert!(
        (report.measured[0].value - share).abs() < 1e-12,
        "{:?}",
        report.measured
    );
    let found = report.findings.list();
    assert_eq!(found.len(), 1, "{}", show(&report));
    assert_eq!(
        (found[0].kind, found[0].severity, found[0].cause.as_str()),
        (BreakKind::ValueDrift, Severity::Material, "kline_accuracy")
    );
    assert!(found[0].key.contains(wrong.symbol), "{:?}", found[0]);
    assert!(
        found[0].expected.as_ref().unwrap().starts_with("close "),
        "{:?}",
        found[0]
    );
    assert_eq!(report.exit_code(), 1);
    // The limit is the user's.
    let report = run(&topic, "kline_accuracy:1m<=0.01").await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
    // A later kline of the interval takes the place of the wrong one.
    topic.klines.push(wrong);
    let report = run(&topic, "kline_accuracy:1m<=0").await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
}

/// A vendor's bars lie in `bronze.market_bars`; adjusted prices are not compared.
#[tokio::test]
async fn vendors_bars_are_compared_as_quoted() {
    use finlake_lakehouse::{BarsRows, Cut, PartitionBatch, RecordAt, SinkBatch, TableSink};
    use finlake_schemas::{BarsInput, Basis, VendorBar, topics};

    let dir = tempfile::tempdir().unwrap();
    let made = make(dir.path(), &spec(43)).await;
    let ours = klines(&made, "1m").await;
    let def = made.lake.def(Table::Bars);
    let mut rows = BarsRows::new(&def, topics::BARS, 0);
    for (n, k) in ours.iter().take(20).enumerate() {
        let adjusted = n >= 10;
        let close = if n == 3 || adjusted { Dec8(1) } else { k.close };
        let bar = VendorBar {
            source: "vendor",
            symbol: k.symbol,
            bar_interval: k.bar_interval,
            bar_start: k.bar_start,
            bar_end: k.bar_end,
            trade_date: 0,
            open: k.open,
            high: k.high,
            low: k.low,
            close,
            volume: k.volume,
            basis: if adjusted {
                Basis::SplitAdjusted
            } else {
                Basis::AsQuoted
            },
            basis_at: None,
            ingest_time: None,
        };
        let at = RecordAt {
            offset: n as i64,
            timestamp: 1_000_000,
            key: None,
            schema_id: Some(6),
            commit: 1,
            sys_from: 5_000_000,
        };
        rows.push(&at, Some(&BarsInput::Vendor(bar)), Some(b"raw"))
            .unwrap();
    }
    let mut sink = TableSink::open(&made.lake, Table::Bars).await.unwrap();
    sink.assign(&[0]).await.unwrap();
    let part = PartitionBatch {
        partition: 0,
        input_start: 0,
        cuts: vec![Cut {
            commit: 1,
            input_end: 20,
            system_time: 5_000_000,
            ..Cut::default()
        }],
        frontier: 5_000_000,
        rows: rows.into(),
    };
    sink.commit(SinkBatch { parts: vec![part] }).await.unwrap();

    let mut o = options(&[Layer::Silver]);
    o.validators = rules::parse("vendor_accuracy:1m<=0").unwrap();
    let report = reconcile(&made.lake, &o, None, None).await;
    let m = &report.measured[0];
    assert_eq!((m.of, m.value), (10, 0.1), "{}", show(&report));
    let found = report.findings.list();
    assert_eq!(
        (found.len(), found[0].cause.as_str()),
        (1, "vendor_accuracy:vendor")
    );
    o.validators = rules::parse("vendor_accuracy:1m<=0.1").unwrap();
    let report = reconcile(&made.lake, &o, None, None).await;
    assert_eq!(report.exit_code(), 0, "{}", show(&report));
}
