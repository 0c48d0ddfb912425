//! `quality.breaks` and `bronze.market_bars`: what their sinks promise.

use std::collections::BTreeMap;

use finlake_lakehouse::{
    BarsRows, BreakBatch, BreaksSink, Cut, LakeError, OPEN_END, PartitionBatch, RecordAt,
    SinkBatch, Table,
};
use finlake_schemas::{Break, BreakKind, BreakStatus, Severity, keys};
use proptest::prelude::*;

use crate::common::*;

fn a_break(n: u8, status: BreakStatus, actual: u8, system_time: i64) -> Break {
    let key = format!("binance:BTCUSDT:1m:{n}");
    Break {
        break_id: keys::break_id(
            BreakKind::ValueDrift,
            "silver",
            "silver.market_ohlcv",
            &key,
            "close",
        ),
        kind: BreakKind::ValueDrift,
        severity: Severity::Material,
        layer: "silver".into(),
        table: "silver.market_ohlcv".into(),
        key,
        cause: "close".into(),
        source: Some("binance".into()),
        // Not part of the key: may change.
        symbol: (!actual.is_multiple_of(3)).then(|| "BTCUSDT".into()),
        trade_date: Some(19_000),
        status,
        expected: Some("1".into()),
        actual: Some(actual.to_string()),
        detail: String::new(),
        found_by: "reconcile".into(),
        system_time,
    }
}

fn status(n: u8) -> BreakStatus {
    [
        BreakStatus::Opened,
        BreakStatus::Explained,
        BreakStatus::Resolved,
    ][usize::from(n % 3)]
}

/// What the table must hold: per break its versions in order.
fn model(records: &[(i64, Break)]) -> Vec<(String, String, String, i64)> {
    let mut open: BTreeMap<[u8; 16], (Break, i64, i64)> = BTreeMap::new();
    let mut out = Vec::new();
    let mut clock = 0;
    let row = |b: &Break, from: i64, to: i64, valid: i64| {
        let id = uuid::Uuid::from_bytes(b.break_id).to_string();
        (
            id,
            format!("{}/{}", b.status.as_str(), b.actual.clone().unwrap()),
            format!("{from}/{to}"),
            valid,
        )
    };
    for (_, b) in records {
        let before = open.get(&b.break_id).cloned();
        if let Some((old, ..)) = &before
            && (old.status, &old.actual) == (b.status, &b.actual)
        {
            continue;
        }
        // Opened once; what is resolved can only come back.
        let resolved = before
            .as_ref()
            .map(|(old, ..)| old.status == BreakStatus::Resolved);
        if resolved.is_some_and(|r| r != (b.status == BreakStatus::Opened)) {
            continue;
        }
        clock = b.system_time.max(clock + 1);
        let valid = before.as_ref().map_or(clock, |(_, _, valid)| *valid);
        if let Some((old, from, valid)) = before {
            out.push(row(&old, from, clock, valid));
        }
        open.insert(b.break_id, (b.clone(), clock, valid));
    }
    out.extend(
        open.values()
            .map(|(b, from, valid)| row(b, *from, OPEN_END, *valid)),
    );
    out.sort();
    out
}

async fn stored(lake: &finlake_lakehouse::Lakehouse) -> Vec<(String, String, String, i64)> {
    let mut out: Vec<_> = rows(lake, Table::Breaks)
        .await
        .iter()
        .map(|r| {
            assert_eq!(
                r["is_current"] == "true",
                r["sys_to"] == OPEN_END.to_string()
            );
            (
                r["break_id"].clone(),
                format!("{}/{}", r["status"], r["actual"]),
                format!("{}/{}", r["sys_from"], r["sys_to"]),
                r["valid_from"].parse().unwrap(),
            )
        })
        .collect();
    out.sort();
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// However records are cut into batches, offered twice, and the sink restarted: the rows are
    /// those of the records, each once, bi-temporally.
    #[test]
    fn breaks_are_taken_once(
        records in prop::collection::vec((0u8..6, 0u8..3, 0u8..3, -3i64..40), 1..30),
        cuts in prop::collection::vec((0usize..30, any::<bool>()), 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let lake = open(eager(dir.path(), 1)).await;
            let mut time = T0;
            // Offsets have holes, as compaction leaves them.
            let records: Vec<(i64, Break)> = records.iter().enumerate().map(|(i, (n, s, a, step))| {
                time += step;
                (i as i64 * 3, a_break(*n, status(*s), *a, time))
            }).collect();
            let mut sink = BreaksSink::open(&lake).await.unwrap();
            sink.assign(&[0]).await.unwrap();
            assert_eq!(sink.next_offset(0), None);
            let mut at = 0usize;
            let mut ends: Vec<(usize, bool)> = cuts.iter().map(|(c, r)| ((*c).min(records.len()), *r)).collect();
            ends.push((records.len(), false));
            ends.sort();
            for (end, restart) in ends {
                let batch = |from: usize, to: usize| BreakBatch {
                    partition: 0,
                    start: from as i64 * 3,
                    next: to as i64 * 3,
                    records: records[from..to].to_vec(),
                };
                // Begins before what the table holds, as after a crash.
                let from = at.saturating_sub(2);
                sink.apply(vec![batch(from, end)]).await.unwrap();
                sink.apply(vec![batch(at, end)]).await.unwrap();
                if end > 0 {
                    assert_eq!(sink.next_offset(0), Some(end as i64 * 3));
                }
                at = end;
                if restart {
                    sink = BreaksSink::open(&lake).await.unwrap();
                    sink.assign(&[0]).await.unwrap();
                }
            }
            assert_eq!(stored(&lake).await, model(&records), "INV-2, INV-6");
            let gap = BreakBatch { partition: 0, start: at as i64 * 3 + 1, next: at as i64 * 3 + 9, records: vec![] };
            let e = sink.apply(vec![gap]).await.unwrap_err();
            assert!(matches!(e, LakeError::OffsetGap { .. }), "{e}");
        });
    }
}

/// Two sinks of one partition: the one that was asleep takes nothing twice.
#[tokio::test]
async fn a_woken_breaks_sink_takes_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(plain(dir.path(), 1)).await;
    let mut asleep = BreaksSink::open(&lake).await.unwrap();
    asleep.assign(&[0]).await.unwrap();
    let mut owner = BreaksSink::open(&lake).await.unwrap();
    owner.assign(&[0]).await.unwrap();
    let records = vec![
        (0, a_break(1, BreakStatus::Opened, 1, T0)),
        (1, a_break(1, BreakStatus::Resolved, 1, T0 + 5)),
    ];
    let batch = |a: usize, b: usize| BreakBatch {
        partition: 0,
        start: a as i64,
        next: b as i64,
        records: records[a..b].to_vec(),
    };
    owner.apply(vec![batch(0, 2)]).await.unwrap();
    let e = asleep.apply(vec![batch(0, 1)]).await.unwrap_err();
    assert!(e.is_stale(), "{e}");
    asleep.apply(vec![batch(0, 1)]).await.unwrap();
    assert_eq!(asleep.next_offset(0), Some(2));
    assert_eq!(stored(&lake).await, model(&records));
}

/// Every record of `market.bars` is one row, bound to the commit that took it in.
#[tokio::test]
async fn bars_are_sunk_by_commits() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(eager(dir.path(), 1)).await;
    let mut s = sink(&lake, Table::Bars, &[0]).await;
    for commit in 1..=9i64 {
        let mut rows = BarsRows::new(&lake.def(Table::Bars), "market.bars", 0);
        let at = RecordAt {
            offset: commit * 2,
            timestamp: T0,
            key: Some(b"yahoo:NVDA"),
            schema_id: None,
            commit,
            sys_from: sys_of(commit),
        };
        rows.push(&at, None, Some(b"junk")).unwrap();
        for _ in 0..2 {
            let part = PartitionBatch {
                partition: 0,
                input_start: (commit - 1) * 2,
                cuts: vec![Cut {
                    commit,
                    input_end: commit * 2,
                    system_time: sys_of(commit),
                    ..Cut::default()
                }],
                frontier: sys_of(commit),
                rows: std::mem::replace(
                    &mut rows,
                    BarsRows::new(&lake.def(Table::Bars), "market.bars", 0),
                )
                .into(),
            };
            s.commit(SinkBatch { parts: vec![part] }).await.unwrap();
        }
    }
    let all = rows(&lake, Table::Bars).await;
    assert_eq!(all.len(), 9);
    assert!(
        all.iter()
            .all(|r| r["record_kind"] == "∅" && r["valid_from"] == T0.to_string())
    );
    assert!(s.live_files() <= 3, "{} files", s.live_files());
}
