//! Several writers, zombies, and other engines.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use finlake_lakehouse::catalog::{CatalogOps, Loaded, Proposal, SqliteCatalog, Swap};
use finlake_lakehouse::commit::{Change, Committed, Committer};
use finlake_lakehouse::index::{FileMeta, Kind};
use finlake_lakehouse::split::Splitter;
use finlake_lakehouse::writer::FileWriter;
use finlake_lakehouse::{Filter, LakeError, Lakehouse, Scan, SinkBatch, Table, snapshot};
use iceberg::spec::{
    MAIN_BRANCH, Operation, SnapshotReference, SnapshotRetention, TableMetadataBuilder, Transform,
    UnboundPartitionSpec,
};

use crate::common::*;

async fn race(table: Table) {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 2)).await;
    let ops: Vec<Vec<(u8, u8)>> = (0..40u8)
        .map(|i| vec![(i, i), (i / 3, i / 2), (i.wrapping_mul(7), 3)])
        .collect();
    let mut tasks = vec![];
    for p in 0..2 {
        let lake = lake.clone();
        let mut all = ledger(&ops);
        for v in &mut all {
            v.symbol = format!("{}-{p}", v.symbol); // a key lives in one Kafka partition
        }
        tasks.push(tokio::spawn(async move {
            let mut s = sink(&lake, table, &[p]).await;
            for c in 1..=40 {
                let batch = match table {
                    Table::Ticks => bronze(p, c, c),
                    _ => silver(&lake, p, c, c, &all),
                };
                s.commit(batch).await.unwrap();
            }
            (s.reattached(), all)
        }));
    }
    let mut lost = 0;
    let mut all = vec![];
    for t in tasks {
        let (l, versions) = t.await.unwrap();
        lost += l;
        all.extend(versions);
    }
    assert!(lost > 0, "the writers never met");
    let found = rows(&lake, table).await;
    if table == Table::Ticks {
        assert_eq!(found.len(), 800);
        let mut keys: Vec<_> = found
            .iter()
            .map(|r| (r["kafka_partition"].clone(), r["kafka_offset"].clone()))
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 800);
    } else {
        let mut want: Vec<_> = (0..2)
            .flat_map(|p| {
                let mine: Vec<Version> = all
                    .iter()
                    .filter(|v| v.symbol.ends_with(&format!("-{p}")))
                    .cloned()
                    .collect();
                expected(&mine)
            })
            .collect();
        want.sort();
        assert_eq!(as_versions(&found), want);
    }
    for p in 0..2 {
        let at = lake.position(table, p).await.unwrap().unwrap();
        assert_eq!(at.commit, 40);
    }
}

/// A lost swap, after which as many hot files as settled ones are attached again: one manifest was taken for both, so that
/// rows that had cooled were lost and hot ones stood twice.
#[tokio::test]
async fn as_many_hot_files_as_settled_ones_are_told_apart_after_a_lost_swap() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 2)).await;
    let mut writers = [
        sink(&lake, Table::Ohlcv, &[0]).await,
        sink(&lake, Table::Ohlcv, &[1]).await,
    ];
    // Of the second: two symbols, each with a new bar, and four bars of the month before, which cool at once.
    let ops: [&[(u8, u8)]; 2] = [
        &[(0, 4)],
        &[(20, 7), (18, 2), (2, 3), (6, 5), (1, 6), (15, 3)],
    ];
    let mut want = Vec::new();
    for (p, writer) in writers.iter_mut().enumerate() {
        let mut all = ledger(&[ops[p].to_vec()]);
        for v in &mut all {
            v.symbol = format!("{}-{p}", v.symbol);
        }
        let batch = silver(&lake, p as i32, 1, 1, &all);
        let outcome = writer.commit(batch).await.unwrap();
        if p == 1 {
            assert_eq!((outcome.lost_swaps, outcome.files_added), (1, 4));
        }
        want.extend(expected(&all));
    }
    want.sort();
    assert_eq!(as_versions(&rows(&lake, Table::Ohlcv).await), want);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_bronze_lose_no_row() {
    race(Table::Ticks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_of_silver_lose_no_row() {
    race(Table::Ohlcv).await;
}

#[tokio::test]
async fn a_zombie_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut zombie = sink(&lake, Table::Ticks, &[0]).await;
    zombie.commit(bronze(0, 1, 1)).await.unwrap();
    let mut heir = sink(&lake, Table::Ticks, &[0]).await;
    heir.commit(bronze(0, 2, 3)).await.unwrap();
    let e = zombie.commit(bronze(0, 2, 2)).await.unwrap_err();
    assert!(e.is_stale(), "{e}");
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 30);
    // It reads the table again: the same batch is in there already.
    let out = zombie.commit(bronze(0, 2, 2)).await.unwrap();
    assert_eq!(out.snapshot, None);
    heir.commit(bronze(0, 4, 4)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 40);
}

#[tokio::test]
async fn gaps_and_shifted_inputs_stop() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    s.commit(bronze(0, 1, 2)).await.unwrap();
    let e = s.commit(bronze(0, 5, 6)).await.unwrap_err();
    assert!(e.to_string().contains("commits 3..=4 are lost"), "{e}");
    let mut shifted = bronze(0, 3, 3);
    shifted.parts[0].input_start = 21;
    let e = s.commit(shifted).await.unwrap_err();
    assert!(matches!(e, LakeError::PositionMismatch { .. }), "{e}");
    s.commit(bronze(0, 1, 3)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 30);
}

/// Commits to Bronze what another engine made of `base`.
async fn swap(dir: &Path, lake: &Lakehouse, base: &Loaded, proposal: Proposal) {
    let files = lake.file_io().clone();
    let catalog = SqliteCatalog::open(&dir.join("catalog.db"), "finlake", files)
        .await
        .unwrap();
    let ident = lake.ident(Table::Ticks);
    let staged = catalog.stage(&ident, base, proposal).await.unwrap();
    let done = catalog.swap(&ident, base, staged).await.unwrap();
    assert!(matches!(done, Swap::Done(_)));
}

/// Another engine changes Bronze's metadata.
async fn alter(
    dir: &Path,
    lake: &Lakehouse,
    base: &Loaded,
    change: impl FnOnce(TableMetadataBuilder) -> TableMetadataBuilder,
) {
    let before = (*base.metadata).clone();
    let before = before.into_builder(Some(base.location.clone()));
    let built = change(before).build().unwrap();
    let proposal = Proposal {
        metadata: built.metadata,
        updates: built.changes,
        requirements: vec![],
    };
    swap(dir, lake, base, proposal).await;
}

#[tokio::test]
async fn a_rollback_by_another_engine_stops_the_sink() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=3 {
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let base = lake.load(Table::Ticks).await.unwrap().unwrap();
    let parent = base
        .metadata
        .current_snapshot()
        .unwrap()
        .parent_snapshot_id()
        .unwrap();
    let retention = SnapshotRetention::branch(None, None, None);
    let parent = SnapshotReference::new(parent, retention);
    let back = |table: TableMetadataBuilder| table.set_ref(MAIN_BRANCH, parent).unwrap();
    alter(dir.path(), &lake, &base, back).await;
    let e = s.commit(bronze(0, 4, 4)).await.unwrap_err();
    assert!(matches!(e, LakeError::TableMoved { .. }), "{e}");
    assert!(lake.watermarks(Table::Ticks).await.is_err());
    // Adopting goes back to where the rolled-back table stands; the lost commit can come again.
    lake.adopt(Table::Ticks).await.unwrap();
    let at = lake.position(Table::Ticks, 0).await.unwrap().unwrap();
    assert_eq!((at.commit, at.input_end), (2, 20));
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    s.commit(bronze(0, 3, 4)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 40);
    // What snapshots count goes on across the adoption.
    let counted = lake
        .snapshot(Table::Ticks)
        .await
        .unwrap()
        .lineage()
        .unwrap();
    let counted: Vec<i64> = counted.iter().map(|s| s.rows).collect();
    assert_eq!(counted, [0, 10, 20, 20, 40]);
    let last = lake.load(Table::Ticks).await.unwrap().unwrap();
    let summary = &last
        .metadata
        .current_snapshot()
        .unwrap()
        .summary()
        .additional_properties;
    assert_eq!(summary["total-records"], "40");
}

#[tokio::test]
async fn a_replace_by_another_engine_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    s.commit(bronze(0, 1, 2)).await.unwrap();
    let base = lake.load(Table::Ticks).await.unwrap().unwrap();
    let list = base
        .metadata
        .current_snapshot()
        .unwrap()
        .manifest_list()
        .to_string();
    let (proposal, _) = snapshot::propose(
        &base,
        snapshot::NewSnapshot {
            id: snapshot::fresh_id(&base.metadata),
            operation: Operation::Replace,
            manifest_list: list,
            summary: HashMap::new(),
            now_ms: 0, // a clock far behind must not break anything
            properties: HashMap::new(),
            expire: vec![],
        },
    )
    .unwrap();
    swap(dir.path(), &lake, &base, proposal).await;
    s.commit(bronze(0, 3, 3)).await.unwrap();
    assert_eq!(s.reattached(), 1);
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 30);
}

/// Bronze by month instead of by day, as another engine's `ALTER TABLE … REPLACE PARTITION FIELD`.
async fn by_month(dir: &Path, lake: &Lakehouse) {
    let base = lake.load(Table::Ticks).await.unwrap().unwrap();
    let mut spec = UnboundPartitionSpec::builder();
    for f in base.metadata.default_partition_spec().fields() {
        spec = match f.transform {
            Transform::Day => spec
                .add_partition_field(f.source_id, "trade_time_month", Transform::Month)
                .unwrap(),
            other => spec
                .add_partition_field(f.source_id, f.name.clone(), other)
                .unwrap(),
        };
    }
    let spec = spec.build();
    let change = |table: TableMetadataBuilder| table.add_default_partition_spec(spec).unwrap();
    alter(dir, lake, &base, change).await;
}

/// Files are written for one partition spec; under another one a day's number would be taken for a
/// month's, and queries by time would pass the rows over.
#[tokio::test]
async fn a_partition_spec_that_another_engine_changed_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    s.commit(bronze(0, 1, 1)).await.unwrap();
    by_month(dir.path(), &lake).await;
    s.commit(bronze(0, 2, 2)).await.unwrap();
    s.commit(bronze(0, 3, 3)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ticks).await.len(), 30);
    let day = (T0 / DAY) as i32;
    let pinned = lake.snapshot(Table::Ticks).await.unwrap();
    let dated = Scan::default().filter(Filter::all().dates(day - 1..day + 40));
    assert_eq!(pinned.collect(&dated).await.unwrap().num_rows(), 24); // of ten, two do not decode
    let months = pinned.files(&Filter::all()).await.unwrap();
    assert!(months.iter().any(|f| f.path.contains("trade_time_month=")));
}

/// What `rewrite_data_files` does: the current files of a partition tuple become one.
async fn compact(lake: &Lakehouse, table: Table) {
    let mut committer = Committer::open(lake, table).await.unwrap();
    let metadata = committer.base().metadata();
    let files = FileWriter::new(lake, committer.def(), metadata).unwrap();
    let splitter = Splitter::new(committer.def(), metadata).unwrap();
    let mut tuples: BTreeMap<String, Vec<Arc<FileMeta>>> = BTreeMap::new();
    for f in committer.base().files() {
        if matches!(f.kind, Kind::Hot(_) | Kind::Settled(_)) {
            let of = tuples.entry(format!("{:?}", f.partition));
            of.or_default().push(f.clone());
        }
    }
    let (mut added, mut removed) = (vec![], BTreeSet::new());
    for group in tuples.values() {
        let mut batches = vec![];
        for f in group {
            batches.push(files.read(&f.path, None).await.unwrap());
            removed.insert(f.path.clone());
        }
        let all = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
        let tuple = group[0].partition.clone();
        let dir = splitter.dir(&tuple);
        let one = files.write(Kind::Foreign, tuple, &dir, &[all], false).await;
        added.push(Arc::new(one.unwrap()));
    }
    let change = Change {
        added,
        removed,
        operation: Operation::Replace,
        expected: BTreeMap::new(),
        positions: BTreeMap::new(),
        summary: HashMap::new(),
    };
    let done = committer.commit(&change).await.unwrap();
    assert!(matches!(done, Committed::Done(_)));
}

/// One commit closes rows of two Kafka partitions that another engine's compaction put into one file.
#[tokio::test]
async fn a_compacted_file_of_two_kafka_partitions_is_rewritten_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = plain(dir.path(), 2);
    config.buckets = Some(1); // the symbols of both share a tuple
    let lake = open(config).await;
    let mut writer = sink(&lake, Table::Ohlcv, &[0, 1]).await;
    // Of each: a bar that is corrected, and one that stays.
    let all = [0, 1].map(|p| {
        let v = |hour: i64, commit: i64, prev: Option<i64>| Version {
            symbol: format!("S{p}"),
            interval: "1h",
            start: T0 + hour * HOUR,
            payload: commit,
            closed: true,
            retracted: false,
            commit,
            sys: sys_of(commit),
            prev,
        };
        vec![v(0, 1, None), v(1, 1, None), v(0, 2, Some(sys_of(1)))]
    });
    let both = |c: i64| SinkBatch {
        parts: [0usize, 1]
            .into_iter()
            .flat_map(|p| silver(&lake, p as i32, c, c, &all[p]).parts)
            .collect(),
    };
    writer.commit(both(1)).await.unwrap();
    compact(&lake, Table::Ohlcv).await;
    writer.commit(both(2)).await.unwrap();
    let mut want = expected(&all.concat());
    want.sort();
    assert_eq!(as_versions(&rows(&lake, Table::Ohlcv).await), want);
}
