//! Pinned reads and histories.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use finlake_lakehouse::{Filter, LakeError, Pinned, Scan, ScanBatch, Table, VersionKey};
use futures::TryStreamExt;
use proptest::prelude::*;

use crate::common::*;

async fn parts(pinned: &Pinned, scan: &Scan) -> Vec<ScanBatch> {
    pinned
        .scan(scan)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap()
}

fn offsets(parts: &[ScanBatch]) -> BTreeSet<i64> {
    let mut out = BTreeSet::new();
    for p in parts {
        let column = p.batch.column_by_name("kafka_offset").unwrap();
        for v in column.as_primitive::<Int64Type>().values() {
            assert!(out.insert(*v), "offset {v} twice");
        }
    }
    out
}

/// A pinned table answers the same while the live one moves on, its files being merged and its
/// snapshots expiring (INV-5); its watermarks are those of its rows.
#[tokio::test]
async fn a_pinned_table_does_not_move() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=5 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let pinned = lake.pin(Table::Ticks, "finlake-test").await.unwrap();
    assert_eq!(
        (pinned.position(0).commit, pinned.position(0).input_end),
        (5, 50)
    );
    assert_eq!(pinned.frontier(), Some(sys_of(5)));
    for c in 6..=30 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let scan = Scan::columns(&["kafka_offset", "symbol"]);
    assert_eq!(offsets(&parts(&pinned, &scan).await), (0..50).collect());
    let pins = lake.pins(Table::Ticks).await.unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (pins[0].name.as_str(), pins[0].snapshot),
        ("finlake-test", pinned.snapshot_id())
    );
    let day = std::time::Duration::from_secs(86_400);
    assert!(
        lake.unpin_stale(Table::Ticks, "finlake-", day)
            .await
            .unwrap()
            .is_empty()
    );
    let later = lake
        .clone()
        .with_clock(std::sync::Arc::new(|| i64::MAX / 2));
    assert!(
        later
            .unpin_stale(Table::Ticks, "other-", day)
            .await
            .unwrap()
            .is_empty()
    );
    let gone = later
        .unpin_stale(Table::Ticks, "finlake-", day)
        .await
        .unwrap();
    assert_eq!(gone, ["finlake-test"]);
    // An old snapshot under a tag that a run has just given.
    let hour = 3_600_000;
    let of = lake.snapshot(Table::Ticks).await.unwrap();
    let newest = of.metadata().current_snapshot().unwrap().timestamp_ms();
    let now = newest + 240 * hour;
    let later = lake.clone().with_clock(std::sync::Arc::new(move || now));
    let tags = [
        format!("finlake-reconcile-{}-7", now - hour),
        format!("finlake-reconcile-{}-8", now - 25 * hour),
    ];
    for tag in &tags {
        lake.pin(Table::Ticks, tag).await.unwrap();
    }
    let gone = later
        .unpin_stale(Table::Ticks, "finlake-", day)
        .await
        .unwrap();
    assert_eq!(
        gone,
        tags[1..],
        "the pinned snapshot is old, the run is not"
    );
    lake.unpin(Table::Ticks, &tags[0]).await.unwrap();
    let now = lake.snapshot(Table::Ticks).await.unwrap();
    assert_eq!(offsets(&parts(&now, &scan).await), (0..300).collect());
    now.unpin().await.unwrap();
}

/// Every filter gives exactly the rows that the same condition gives over all rows, with text as
/// plain strings or as dictionaries, and every row is where its row number says.
#[tokio::test]
async fn filters_are_exact_and_rows_are_where_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=12 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let pinned = lake.snapshot(Table::Ticks).await.unwrap();
    let whole = texts(&pinned.collect(&Scan::default()).await.unwrap());
    assert_eq!(whole.len(), 120);
    let day = T0 / DAY;
    type Row = std::collections::BTreeMap<String, String>;
    type Case = (Filter, Box<dyn Fn(&Row) -> bool>);
    let long = |r: &Row, c: &str| r[c].parse::<i64>().ok();
    let cases: Vec<Case> = vec![
        (Filter::all(), Box::new(|_| true)),
        (
            Filter::all().symbol("X/Y Z"),
            Box::new(|r| r["symbol"] == "X/Y Z"),
        ),
        (
            Filter::all().one_of("symbol", &["BTCUSDT", "no"]),
            Box::new(|r| r["symbol"] == "BTCUSDT"),
        ),
        (
            Filter::all().offsets(17..63),
            Box::new(move |r| (17..63).contains(&long(r, "kafka_offset").unwrap())),
        ),
        (
            Filter::all().commits(3..4).partition(0),
            Box::new(|r| r["commit"] == "3"),
        ),
        (Filter::all().partition(1), Box::new(|_| false)),
        (
            Filter::all().null("trade_id", true),
            Box::new(|r| r["trade_id"] == "∅"),
        ),
        (
            Filter::all()
                .null("trade_id", false)
                .flag("buyer_maker", true),
            Box::new(|r| r["buyer_maker"] == "true"),
        ),
        (
            Filter::all().dates(day as i32..day as i32 + 1),
            Box::new(move |r| long(r, "trade_time").is_some_and(|t| (T0..T0 + DAY).contains(&t))),
        ),
        (
            Filter::all().as_of_system(sys_of(4)),
            Box::new(move |r| long(r, "sys_from").unwrap() <= sys_of(4)),
        ),
    ];
    for (filter, keeps) in cases {
        let want: Vec<_> = whole.iter().filter(|r| keeps(r)).cloned().collect();
        for dictionaries in [false, true] {
            let scan = Scan {
                filter: filter.clone(),
                dictionaries,
                batch_rows: 7,
                ..Scan::default()
            };
            let got = parts(&pinned, &scan).await;
            let mut rows: Vec<_> = got.iter().flat_map(|p| texts(&p.batch)).collect();
            rows.sort();
            let mut sorted = want.clone();
            sorted.sort();
            assert_eq!(rows, sorted, "{filter:?}");
            for p in &got {
                // The same row, found again by file and number.
                let all: Vec<_> = pinned.files(&Filter::all()).await.unwrap();
                let file = all.iter().find(|f| f.path == p.file).unwrap();
                let every: Vec<ScanBatch> = pinned
                    .read_file(file, &Scan::default())
                    .await
                    .unwrap()
                    .try_collect()
                    .await
                    .unwrap();
                let every: Vec<_> = every.iter().flat_map(|p| texts(&p.batch)).collect();
                for (n, row) in p.row_numbers().into_iter().zip(texts(&p.batch)) {
                    assert_eq!(every[n as usize], row, "{filter:?}");
                }
            }
        }
    }
    // Records that did not decode have a partition of their own, and no other file is read for them.
    let files = |filter: Filter| {
        let pinned = &pinned;
        async move { pinned.files(&filter).await.unwrap() }
    };
    let odd = files(Filter::all().null("trade_time", true)).await;
    let rest = files(Filter::all().null("trade_time", false)).await;
    assert!(!odd.is_empty() && !rest.is_empty());
    assert!(odd.iter().all(|f| !rest.contains(f)));
    assert_eq!(odd.len() + rest.len(), files(Filter::all()).await.len());
    let narrow = pinned
        .files(&Filter::all().symbol("BTCUSDT"))
        .await
        .unwrap();
    assert!(narrow.len() < pinned.files(&Filter::all()).await.unwrap().len());
    for wrong in [
        Filter::all().text("nothing", "x"),
        Filter::all().text("trade_id", "x"),
    ] {
        let e = pinned.files(&wrong).await.unwrap_err();
        assert!(matches!(e, LakeError::Config(_)), "{e}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// The history of a key is the chain of its versions (INV-6), whichever files they stand in.
    #[test]
    fn histories_are_chains(ops in prop::collection::vec(prop::collection::vec((0u8..6, 0u8..16), 0..4), 1..14)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let lake = open(eager(dir.path(), 1)).await;
            let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
            let all = ledger(&ops);
            for c in 1..=ops.len() as i64 {
                s.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
            }
            let pinned = lake.snapshot(Table::Ohlcv).await.unwrap();
            let keys: BTreeSet<_> = all.iter().map(|v| (v.symbol.clone(), v.interval, v.start)).collect();
            for (symbol, interval, start) in keys {
                let key = VersionKey::Bar { source: "binance".into(), symbol: symbol.clone(), interval: interval.into(), start };
                let history = pinned.history(&key).await.unwrap();
                assert_eq!(history.rows.num_rows(), history.versions.len());
                let mine: Vec<_> = all.iter().filter(|v| (&v.symbol, v.interval, v.start) == (&symbol, interval, start)).collect();
                let asserted: Vec<_> = mine.iter().filter(|v| !v.retracted).collect();
                assert_eq!(history.versions.len(), asserted.len());
                for (got, want) in history.versions.iter().zip(&asserted) {
                    assert_eq!((got.sys_from, got.prev_sys_from, got.commit), (want.sys, want.prev, want.commit));
                    let next = mine.iter().find(|v| v.prev == Some(want.sys));
                    assert_eq!(got.sys_to, next.map_or(finlake_lakehouse::OPEN_END, |v| v.sys));
                    assert_eq!(got.closed_by, next.filter(|v| !v.retracted).map(|v| v.sys));
                    assert_eq!(got.is_current(), next.is_none());
                }
            }
            let nothing = VersionKey::Bar { source: "binance".into(), symbol: "NONE".into(), interval: "1m".into(), start: 0 };
            assert!(pinned.history(&nothing).await.unwrap().versions.is_empty());
            let wrong = VersionKey::Metrics { source: "b".into(), symbol: "x".into(), date: 1 };
            assert!(pinned.history(&wrong).await.is_err());
        });
    }
}
