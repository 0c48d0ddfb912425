//! Planted defects do what they say, and leave the table as its sink would have left it otherwise:
//! so that what must find them is shown the defect and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array};
use arrow::datatypes::Decimal128Type;
use finlake_lakehouse::faults::{Alteration, Faults, Plant, alter, tamper};
use finlake_lakehouse::{Filter, LakeError, Lakehouse, OPEN_END, Table};
use iceberg::spec::PrimitiveType;

use crate::common::*;

/// The lake with `plant` armed: it strikes once.
fn armed(lake: &Lakehouse, plant: Plant) -> (Lakehouse, Arc<AtomicBool>) {
    let left = Arc::new(AtomicBool::new(false));
    let hook = left.clone();
    let faults =
        Faults::none().planting(move |p, _| p == plant && hook.swap(false, Ordering::SeqCst));
    (lake.clone().with_faults(faults), left)
}

fn bars(commits: i64) -> Vec<Version> {
    (1..=commits)
        .map(|commit| Version {
            symbol: "BTCUSDT".into(),
            interval: "1m",
            start: T0,
            payload: commit,
            closed: true,
            retracted: false,
            commit,
            sys: sys_of(commit),
            prev: (commit > 1).then(|| sys_of(commit - 1)),
        })
        .collect()
}

fn count(rows: &[BTreeMap<String, String>], column: &str, value: &str) -> usize {
    rows.iter().filter(|r| r[column] == value).count()
}

#[tokio::test]
async fn a_commit_twice() {
    let dir = tempfile::tempdir().unwrap();
    let clean = open(plain(dir.path(), 1)).await;
    let (lake, strike) = armed(&clean, Plant::CommitTwice);
    let mut s = sink(&lake, Table::Ticks, &[0]).await;
    for c in 1..=4 {
        strike.store(c == 2, Ordering::SeqCst);
        s.commit(bronze(0, c, c)).await.unwrap();
    }
    let all = rows(&clean, Table::Ticks).await;
    assert_eq!(all.len(), 50);
    assert_eq!(count(&all, "commit", "2"), 20);
    assert_eq!(
        clean
            .position(Table::Ticks, 0)
            .await
            .unwrap()
            .unwrap()
            .commit,
        4
    );

    let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
    let versions = bars(3);
    for c in 1..=3 {
        strike.store(c == 2, Ordering::SeqCst);
        s.commit(silver(&lake, 0, c, c, &versions)).await.unwrap();
    }
    let all = rows(&clean, Table::Ohlcv).await;
    // Version 1 was closed twice, version 2 stays open once beside version 3.
    assert_eq!(count(&all, "commit", "1"), 2);
    assert_eq!(count(&all, "commit", "2"), 2);
    assert_eq!(count(&all, "is_current", "true"), 2);
}

#[tokio::test]
async fn closed_versions_lost_or_left_open() {
    for (plant, current, total) in [(Plant::ClosedRowLost, 1, 3), (Plant::ClosingSkipped, 2, 4)] {
        let dir = tempfile::tempdir().unwrap();
        let clean = open(plain(dir.path(), 1)).await;
        let (lake, strike) = armed(&clean, plant);
        let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
        let versions = bars(4);
        for c in 1..=4 {
            strike.store(c == 3, Ordering::SeqCst);
            s.commit(silver(&lake, 0, c, c, &versions)).await.unwrap();
        }
        let all = rows(&clean, Table::Ohlcv).await;
        assert_eq!(all.len(), total, "{plant:?}");
        assert_eq!(count(&all, "is_current", "true"), current, "{plant:?}");
        let second = all.iter().find(|r| r["commit"] == "2");
        match plant {
            Plant::ClosedRowLost => assert!(second.is_none()),
            _ => assert_eq!(second.unwrap()["sys_to"], OPEN_END.to_string()),
        }
    }
}

/// A zombie whose commit goes through because nobody compares positions. Without the plant it is
/// refused: `races` tests that.
#[tokio::test]
async fn a_rebased_commit() {
    let dir = tempfile::tempdir().unwrap();
    let clean = open(plain(dir.path(), 1)).await;
    let (lake, strike) = armed(&clean, Plant::Rebased);
    let mut zombie = sink(&lake, Table::Ticks, &[0]).await;
    let mut owner = sink(&clean, Table::Ticks, &[0]).await;
    owner.commit(bronze(0, 1, 3)).await.unwrap();
    strike.store(true, Ordering::SeqCst);
    zombie.commit(bronze(0, 1, 2)).await.unwrap();
    let all = rows(&clean, Table::Ticks).await;
    assert_eq!(all.len(), 50, "commits 1 and 2 are there twice");
    assert_eq!(count(&all, "commit", "1"), 20);
    // The position has gone back: the owner notices at its next commit.
    let e = owner.commit(bronze(0, 4, 4)).await.unwrap_err();
    assert!(matches!(e, LakeError::Stale { .. }), "{e}");
}

#[tokio::test]
async fn damaged_files_and_columns() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
    let versions = bars(6);
    for c in 1..=5 {
        s.commit(silver(&lake, 0, c, c, &versions)).await.unwrap();
    }
    let before = rows(&lake, Table::Ohlcv).await;
    let pinned = lake.snapshot(Table::Ohlcv).await.unwrap();
    let open_file = &pinned.files(&Filter::all().current()).await.unwrap()[0];
    // A price drifts.
    let new = tamper(&lake, Table::Ohlcv, &open_file.path, |rows| {
        let at = rows.schema().index_of("close").unwrap();
        let close = rows.column(at).as_primitive::<Decimal128Type>();
        let moved: Decimal128Array = close.iter().map(|v| v.map(|v| v + v / 5_000)).collect();
        let mut columns = rows.columns().to_vec();
        columns[at] = Arc::new(moved.with_data_type(close.data_type().clone())) as ArrayRef;
        Ok(arrow::array::RecordBatch::try_new(rows.schema(), columns)?)
    })
    .await
    .unwrap()
    .unwrap();
    let after = rows(&lake, Table::Ohlcv).await;
    let differs = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert_eq!((before.len(), differs), (after.len(), 1));
    // The table is still FinLake's, and the sink goes on with what stands there.
    s.commit(silver(&lake, 0, 6, 6, &versions)).await.unwrap();
    assert_eq!(rows(&lake, Table::Ohlcv).await.len(), 6);
    let e = tamper(&lake, Table::Ohlcv, &new, Ok).await.unwrap_err();
    assert!(matches!(e, LakeError::Config(_)), "{e}");
    // Rows vanish with their file.
    let pinned = lake.snapshot(Table::Ohlcv).await.unwrap();
    let open_file = &pinned.files(&Filter::all().current()).await.unwrap()[0];
    let gone = tamper(&lake, Table::Ohlcv, &open_file.path, |r| Ok(r.slice(0, 0)))
        .await
        .unwrap();
    assert_eq!((gone, rows(&lake, Table::Ohlcv).await.len()), (None, 5));
    // Columns.
    for alteration in [
        Alteration::Rename("vwap".into(), "average".into()),
        Alteration::Drop("taker_buy_base".into()),
        Alteration::Retype("close".into(), PrimitiveType::Double),
        Alteration::Add("surplus".into(), PrimitiveType::Long),
    ] {
        alter(&lake, Table::Ohlcv, &alteration).await.unwrap();
        let pinned = lake.snapshot(Table::Ohlcv).await.unwrap();
        let schema = pinned.metadata().current_schema();
        let e = lake.def(Table::Ohlcv).check(schema).unwrap_err();
        assert!(matches!(e, LakeError::SchemaDrift { .. }), "{e}");
    }
    let none = Alteration::Drop("nothing".into());
    assert!(alter(&lake, Table::Ohlcv, &none).await.is_err());
}
