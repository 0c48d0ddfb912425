//! Rows of version tables against the model: INV-2 … INV-8.

use finlake_lakehouse::{LakeError, Table};
use proptest::prelude::*;

use crate::common::*;

fn version(commit: i64, payload: i64, prev: Option<i64>) -> Version {
    Version {
        symbol: "BTCUSDT".into(),
        interval: "1h",
        start: T0,
        payload,
        closed: true,
        retracted: false,
        commit,
        sys: sys_of(commit),
        prev,
    }
}

#[tokio::test]
async fn append_correct_retract() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut sink = sink(&lake, Table::Ohlcv, &[0]).await;
    let mut retraction = version(3, 2, Some(sys_of(2)));
    retraction.retracted = true;
    let all = vec![
        version(1, 1, None),
        version(2, 2, Some(sys_of(1))),
        retraction.clone(),
        version(4, 5, None),
    ];
    for c in 1..=4 {
        let out = sink.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
        assert!(out.snapshot.is_some());
        assert_eq!(out.closed, u64::from(c == 2 || c == 3));
    }
    let rows = rows(&lake, Table::Ohlcv).await;
    assert_eq!(as_versions(&rows), expected(&all));
    check_invariants(&rows, &[retraction]);
    assert_eq!(sink.hot_rows(), 1);
    let at = lake.position(Table::Ohlcv, 0).await.unwrap().unwrap();
    assert_eq!((at.commit, at.input_end, at.frontier), (4, 40, sys_of(4)));
    let row = rows.iter().find(|r| r["commit"] == "4").unwrap();
    assert_eq!(row["close"], "5.00000000");
    assert_eq!(row["tick_id"].len(), 36);
    assert_eq!(row["kafka_offset"], "3"); // INV-8
}

#[tokio::test]
async fn several_versions_in_one_batch_go_straight_to_history() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut sink = sink(&lake, Table::Ohlcv, &[0]).await;
    let all: Vec<Version> = (1..=5)
        .map(|c| version(c, c, (c > 1).then(|| sys_of(c - 1))))
        .collect();
    let out = sink.commit(silver(&lake, 0, 1, 5, &all)).await.unwrap();
    assert_eq!((out.opened, out.closed, out.files_added), (1, 4, 2));
    assert_eq!(
        as_versions(&rows(&lake, Table::Ohlcv).await),
        expected(&all)
    );
}

#[tokio::test]
async fn what_cannot_be_closed_stops() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut sink = sink(&lake, Table::Ohlcv, &[0]).await;
    let first = [version(1, 1, None)];
    sink.commit(silver(&lake, 0, 1, 1, &first)).await.unwrap();
    let twice = [version(2, 2, None)];
    let e = sink
        .commit(silver(&lake, 0, 2, 2, &twice))
        .await
        .unwrap_err();
    assert!(matches!(e, LakeError::DuplicateOpenRow { .. }), "{e}");
    let lost = [version(2, 2, Some(sys_of(1) - 1))];
    let e = sink
        .commit(silver(&lake, 0, 2, 2, &lost))
        .await
        .unwrap_err();
    assert!(matches!(e, LakeError::MissingOpenRow { .. }), "{e}");
    let mut unknown = version(2, 2, Some(sys_of(1)));
    unknown.symbol = "NONE".into();
    let e = sink
        .commit(silver(&lake, 0, 2, 2, &[unknown]))
        .await
        .unwrap_err();
    assert!(matches!(e, LakeError::MissingOpenRow { .. }), "{e}");
    // Nothing of that reached the table, and the right record still fits.
    let right = [version(1, 1, None), version(2, 2, Some(sys_of(1)))];
    sink.commit(silver(&lake, 0, 2, 2, &right)).await.unwrap();
    assert_eq!(
        as_versions(&rows(&lake, Table::Ohlcv).await),
        expected(&right)
    );
}

#[tokio::test]
async fn settled_rows_are_found_and_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
    // Forty closed minutes: all but the youngest cool.
    let mut all: Vec<Version> = (0..40)
        .map(|i| Version {
            interval: "1m",
            start: T0 + i * MINUTE,
            ..version(1 + i, i + 1, None)
        })
        .collect();
    for c in 1..=40 {
        s.commit(silver(&lake, 0, c, c, &all)).await.unwrap();
    }
    assert!(s.hot_rows() <= 16, "{} rows stayed hot", s.hot_rows());
    // Correct an old one and a young one, after a restart.
    drop(s);
    let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
    for (commit, i) in [(41, 3), (42, 39)] {
        all.push(Version {
            payload: 100 + commit,
            commit,
            sys: sys_of(commit),
            prev: Some(sys_of(1 + i)),
            ..all[i as usize].clone()
        });
        let out = s.commit(silver(&lake, 0, commit, commit, &all)).await;
        assert_eq!(out.unwrap().closed, 1);
    }
    let rows = rows(&lake, Table::Ohlcv).await;
    assert_eq!(as_versions(&rows), expected(&all));
    check_invariants(&rows, &[]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("LAKE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(16),
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    })]

    /// Random ledgers, cut into random batches, offered with overlaps and restarts: the rows are
    /// those of the ledger (INV-2 … INV-6), and any other way of cutting gives the same rows
    /// (INV-7).
    #[test]
    fn tables_equal_the_ledger(
        ops in prop::collection::vec(prop::collection::vec((0u8..24, 0u8..8), 0..6), 1..24),
        splits in prop::collection::vec((1i64..6, 0i64..3, any::<bool>()), 1..12),
        buckets in prop::option::of(1u32..4),
    ) {
        let all = ledger(&ops);
        let last = ops.len() as i64;
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut config = eager(dir.path(), 1);
            config.buckets = buckets;
            let lake = open(config).await;
            let mut s = sink(&lake, Table::Ohlcv, &[0]).await;
            let mut at = 0;
            for (len, overlap, restart) in splits.iter().cycle() {
                if at >= last {
                    break;
                }
                if *restart {
                    s = sink(&lake, Table::Ohlcv, &[0]).await;
                }
                let to = (at + len).min(last);
                let from = (at + 1 - overlap).max(1);
                s.commit(silver(&lake, 0, from, to, &all)).await.unwrap();
                at = to;
            }
            let found = rows(&lake, Table::Ohlcv).await;
            let retractions: Vec<Version> =
                all.iter().filter(|v| v.retracted).cloned().collect();
            check_invariants(&found, &retractions);
            assert_eq!(as_versions(&found), expected(&all));
            let again = tempfile::tempdir().unwrap();
            let rebuilt = open(plain(again.path(), 1)).await;
            let mut s = sink(&rebuilt, Table::Ohlcv, &[0]).await;
            s.commit(silver(&rebuilt, 0, 1, last, &all)).await.unwrap();
            assert_eq!(rows(&rebuilt, Table::Ohlcv).await, found, "INV-7");
        });
    }
}
