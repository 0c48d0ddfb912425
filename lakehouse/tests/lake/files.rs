//! Files: bounds, pruning, merging, expiry, orphans.

use std::collections::BTreeSet;
use std::sync::Arc;

use finlake_lakehouse::index::{read_entries, read_manifest_list};
use finlake_lakehouse::{Lakehouse, Table, maintain};
use futures::TryStreamExt;
use iceberg::expr::Reference;
use iceberg::spec::Datum;

use crate::common::*;

fn on_disk(dir: &std::path::Path, out: &mut BTreeSet<String>) {
    for e in std::fs::read_dir(dir).unwrap() {
        let path = e.unwrap().path();
        if path.is_dir() {
            on_disk(&path, out);
        } else {
            out.insert(format!("file://{}", path.display()));
        }
    }
}

async fn referenced(lake: &Lakehouse, table: Table) -> BTreeSet<String> {
    let loaded = lake.load(table).await.unwrap().unwrap();
    let mut all = maintain::referenced(lake.file_io(), &loaded.metadata)
        .await
        .unwrap();
    all.insert(loaded.location);
    all
}

/// Data files that are live in a kept snapshot, and everything that leads to them.
async fn needed(lake: &Lakehouse, table: Table) -> BTreeSet<String> {
    let loaded = lake.load(table).await.unwrap().unwrap();
    let mut out = BTreeSet::from([loaded.location.clone()]);
    for s in loaded.metadata.snapshots() {
        out.insert(s.manifest_list().to_string());
        let manifests = read_manifest_list(lake.file_io(), &loaded.metadata, s)
            .await
            .unwrap();
        for m in manifests {
            for e in read_entries(lake.file_io(), &m).await.unwrap() {
                out.insert(e.file.file_path().to_string());
            }
            out.insert(m.manifest_path);
        }
    }
    out
}

#[tokio::test]
async fn upkeep_bounds_files_and_leaves_no_orphan() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let ops: Vec<Vec<(u8, u8)>> = (0..60u8)
        .map(|i| vec![(i, i), (i / 2, i / 3), (i.wrapping_mul(5), 7 - i % 8)])
        .collect();
    let all = ledger(&ops);
    let mut silver_sink = sink(&lake, Table::Ohlcv, &[0]).await;
    let mut ticks = sink(&lake, Table::Ticks, &[0]).await;
    let (mut merged, mut expired) = (0, 0);
    for c in 1..=60 {
        let out = silver_sink
            .commit(silver(&lake, 0, c, c, &all))
            .await
            .unwrap();
        merged += out.files_merged;
        expired += out.expired;
        merged += ticks.commit(bronze(0, c, c)).await.unwrap().files_merged;
    }
    assert!(
        merged > 0 && expired > 50,
        "{merged} merged, {expired} expired"
    );
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 600);
    let found = rows(&lake, Table::Ohlcv).await;
    assert_eq!(as_versions(&found), expected(&all));
    for table in [Table::Ticks, Table::Ohlcv] {
        let loaded = lake.load(table).await.unwrap().unwrap();
        let m = &loaded.metadata;
        assert!(m.snapshots().len() <= 4);
        assert!(m.metadata_log().len() <= 20);
        let current = m.current_snapshot().unwrap();
        let manifests = read_manifest_list(lake.file_io(), m, current)
            .await
            .unwrap();
        assert!(manifests.len() <= 7, "{} manifests", manifests.len());
        let live: u64 = manifests
            .iter()
            .map(|f| u64::from(f.added_files_count.unwrap() + f.existing_files_count.unwrap()))
            .sum();
        assert_eq!(
            current.summary().additional_properties["total-data-files"],
            live.to_string()
        );
        assert!(live <= 60, "{live} live files of {table}");
        let known = referenced(&lake, table).await;
        let mut there = BTreeSet::new();
        let place = m.location().strip_prefix("file://").unwrap();
        on_disk(std::path::Path::new(place), &mut there);
        let needed = needed(&lake, table).await;
        let missing: Vec<_> = needed.difference(&there).collect();
        assert!(missing.is_empty(), "{table}: missing {missing:?}");
        let orphans: Vec<_> = there.difference(&known).collect();
        assert!(orphans.is_empty(), "{table}: {orphans:?}");
    }
}

#[tokio::test]
async fn a_tag_pins_its_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=5 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let handle = lake.pin(Table::Ticks, "reconcile-1").await.unwrap();
    let pinned = handle.snapshot_id();
    for c in 6..=30 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let table = lake.table(Table::Ticks).await.unwrap();
    let count = |snapshot| {
        let table = table.clone();
        async move {
            let scan = table.scan().snapshot_id(snapshot).build().unwrap();
            let batches: Vec<_> = scan.to_arrow().await.unwrap().try_collect().await.unwrap();
            batches
                .iter()
                .map(arrow::array::RecordBatch::num_rows)
                .sum::<usize>()
        }
    };
    assert_eq!(count(pinned).await, 50, "INV-5");
    lake.unpin(Table::Ticks, "reconcile-1").await.unwrap();
    for c in 31..=40 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let now = lake.load(Table::Ticks).await.unwrap().unwrap();
    assert!(now.metadata.snapshot_by_id(pinned).is_none());
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 400);
}

/// Filters on bounded columns give what the same filter gives over all rows.
#[tokio::test]
async fn bounds_prune_rightly() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = eager(dir.path(), 1);
    config.buckets = Some(3);
    let lake = open(config).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=20 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let all = rows(&lake, Table::Ticks).await;
    let table = lake.table(Table::Ticks).await.unwrap();
    let instants: Vec<i64> = all
        .iter()
        .filter_map(|r| r["trade_time"].parse().ok())
        .collect();
    for symbol in ["BTCUSDT", "X/Y Z", "ZZZ"] {
        for t in [instants[3], instants[50], instants[100] + 1] {
            let filter = Reference::new("symbol")
                .equal_to(Datum::string(symbol))
                .and(Reference::new("trade_time").less_than(Datum::timestamptz_micros(t)));
            let scan = table.scan().with_filter(filter).build().unwrap();
            let tasks: Vec<_> = scan
                .plan_files()
                .await
                .unwrap()
                .try_collect()
                .await
                .unwrap();
            let batches: Vec<_> = scan.to_arrow().await.unwrap().try_collect().await.unwrap();
            let mut found: Vec<_> = batches.iter().flat_map(texts).collect();
            found.sort();
            let want: Vec<_> = all
                .iter()
                .filter(|r| r["symbol"] == symbol)
                .filter(|r| r["trade_time"].parse::<i64>().is_ok_and(|v| v < t))
                .cloned()
                .collect();
            assert_eq!(found, want, "{symbol} before {t}");
            if symbol == "ZZZ" {
                assert!(tasks.is_empty(), "{} files for no symbol", tasks.len());
            }
        }
    }
}

#[tokio::test]
async fn old_unknown_files_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = eager(dir.path(), 1);
    config.upkeep.orphan_age = std::time::Duration::from_secs(3600);
    let lake = open(config).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=5 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let location = lake
        .load(Table::Ticks)
        .await
        .unwrap()
        .unwrap()
        .metadata
        .location()
        .to_string();
    let orphan = format!("{location}/data/orphan.parquet");
    lake.file_io()
        .new_output(&orphan)
        .unwrap()
        .write("x".into())
        .await
        .unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as i64;
    let early = lake.clone().with_clock(Arc::new(move || now + 60_000));
    assert_eq!(early.sweep(Table::Ticks).await.unwrap(), 0);
    let late = lake.clone().with_clock(Arc::new(move || now + 7_200_000));
    assert_eq!(late.sweep(Table::Ticks).await.unwrap(), 1);
    assert!(!lake.file_io().exists(&orphan).await.unwrap());
    s.commit(bronze(0, 6, 6)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 60);
}
