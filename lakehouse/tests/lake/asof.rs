//! INV-5 and INV-7 as a reader sees them: 200 as-of queries, asked when the tables were whole up to
//! their instant, give the same answers after everything that happens to tables.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use finlake_lakehouse::query::{AsOf, Options, QueryEngine};
use finlake_lakehouse::{Filter, LakeConfig, Lakehouse, Scan, Table, TableSink};
use proptest::prelude::*;

use crate::common::*;

/// One query and what it answered.
struct Saved {
    sql: String,
    as_of: AsOf,
    answer: Vec<BTreeMap<String, String>>,
}

async fn ask(
    engine: &QueryEngine,
    sql: &str,
    as_of: AsOf,
) -> (Vec<BTreeMap<String, String>>, bool) {
    let options = Options {
        as_of,
        ..Options::default()
    };
    let answer = engine.sql(sql, &options).await.unwrap();
    let is_final = answer.stability.is_final;
    let batches: Vec<RecordBatch> = answer.collect().await.unwrap();
    (batches.iter().flat_map(texts).collect(), is_final)
}

/// Versions of one Kafka partition: symbols of its own.
fn versions(ops: &[Vec<(u8, u8)>], partition: i32) -> Vec<Version> {
    let mut all = ledger(ops);
    for v in &mut all {
        v.symbol = format!("{}{partition}", v.symbol);
    }
    all
}

const COLUMNS: &str = "symbol, bar_interval, bar_start, trade_count, close, stage, sys_from, \
                       prev_sys_from, commit, kafka_offset";

/// What the records say, without any table: versions known at `s` that are valid (and over) at `v`.
fn known(all: &[Version], as_of: AsOf) -> Vec<(String, String, i64, i64)> {
    let (s, mut out) = (as_of.system.unwrap(), Vec::new());
    for (v, to) in expected(all) {
        let end = v.start + length(v.interval);
        let held = as_of
            .valid
            .is_none_or(|t| v.start <= t && (as_of.running || end <= t));
        if v.sys <= s && s < to && held {
            out.push((v.symbol, v.interval.to_string(), v.start, v.payload));
        }
    }
    out.sort();
    out
}

fn plain(rows: &[BTreeMap<String, String>]) -> Vec<(String, String, i64, i64)> {
    let mut out: Vec<_> = rows
        .iter()
        .map(|r| {
            let n = |c: &str| r[c].parse().unwrap();
            (
                r["symbol"].clone(),
                r["bar_interval"].clone(),
                n("bar_start"),
                n("trade_count"),
            )
        })
        .collect();
    out.sort();
    out
}

async fn take(
    lake: &Lakehouse,
    sinks: &mut [TableSink; 2],
    all: &[Vec<Version>; 2],
    first: i64,
    last: i64,
) {
    for p in 0..2usize {
        let batch = silver(lake, p as i32, first, last, &all[p]);
        sinks[p].commit(batch).await.unwrap();
    }
}

async fn sinks(lake: &Lakehouse) -> [TableSink; 2] {
    [
        sink(lake, Table::Ohlcv, &[0]).await,
        sink(lake, Table::Ohlcv, &[1]).await,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn two_hundred_answers_hold(
        ops in prop::collection::vec(prop::collection::vec((0u8..24, 0u8..16), 2..8), 50),
        picks in prop::collection::vec((0u64..u64::MAX, 0u8..4, 0i64..90, any::<bool>()), 200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let lake = open(eager(dir.path(), 2)).await;
            let mut writers = sinks(&lake).await;
            let other: Vec<_> = ops.iter().rev().cloned().collect();
            let all = [versions(&ops, 0), versions(&other, 1)];
            let records: Vec<Version> = all.concat();
            let engine = QueryEngine::open(&lake);
            let mut saved: Vec<Saved> = Vec::new();
            let mut picks = picks.into_iter();
            // Four queries after each commit: at its own instant or an earlier one.
            for commit in 1..=50i64 {
                take(&lake, &mut writers, &all, commit, commit).await;
                for (salt, shape, valid, running) in picks.by_ref().take(4) {
                    let back = (salt % 37) as i64 * 10_000_000 / 2;
                    let system = (sys_of(commit) - back).max(T0);
                    let as_of = AsOf {
                        system: Some(system),
                        valid: (valid > 9).then(|| T0 - 31 * DAY + valid * 12 * HOUR),
                        running,
                    };
                    let sql = match shape {
                        0 => format!("SELECT {COLUMNS} FROM silver.market_ohlcv ORDER BY 1, 2, 3"),
                        1 => format!(
                            "SELECT {COLUMNS} FROM silver.market_ohlcv WHERE symbol = 'BTCUSDT{}' \
                             AND bar_interval <> '1d' ORDER BY 1, 2, 3",
                            salt % 2
                        ),
                        2 => "SELECT symbol, bar_interval, count(*) AS n, sum(volume) AS v, \
                              max(sys_from) AS s FROM silver.market_ohlcv GROUP BY 1, 2 ORDER BY 1, 2"
                            .to_string(),
                        _ => format!(
                            "SELECT {COLUMNS} FROM silver.market_ohlcv WHERE stage = 'closed' \
                             AND trade_count > {} ORDER BY 1, 2, 3",
                            salt % 5
                        ),
                    };
                    let (answer, is_final) = ask(&engine, &sql, as_of).await;
                    assert!(is_final, "the frontier has passed {system}");
                    if shape == 0 {
                        assert_eq!(plain(&answer), known(&records, as_of), "an evaluation without tables");
                    }
                    saved.push(Saved { sql, as_of, answer });
                }
            }
            assert_eq!(saved.len(), 200);
            assert!(saved.iter().filter(|s| !s.answer.is_empty()).count() > 60, "proves something");
            let again = async |engine: QueryEngine, when: &str| {
                for s in &saved {
                    let (answer, _) = ask(&engine, &s.sql, s.as_of).await;
                    assert_eq!(answer, s.answer, "{when}: {} {:?}", s.sql, s.as_of);
                }
            };
            // Corrections went on after each query, files were merged, hot rows cooled, snapshots
            // expired: `eager` does all of it. Nothing of the first commits' files is left.
            let now = lake.load(Table::Ohlcv).await.unwrap().unwrap();
            assert!(now.metadata.snapshots().len() <= 6, "snapshots expired");
            again(QueryEngine::open(&lake), "after corrections, merges and expiry").await;

            // The same by the reader that reconciliation uses.
            let pinned = lake.snapshot(Table::Ohlcv).await.unwrap();
            for s in saved.iter().filter(|s| s.as_of.valid.is_none() && s.sql.contains("WHERE symbol")) {
                let symbol = s.sql.split('\'').nth(1).unwrap();
                let filter = Filter::all().as_of_system(s.as_of.system.unwrap()).symbol(symbol)
                    .one_of("bar_interval", &["1m", "1h"]);
                let rows = pinned.collect(&Scan::default().filter(filter)).await.unwrap();
                assert_eq!(plain(&texts(&rows)), plain(&s.answer), "{}", s.sql);
            }

            // Idle tables are merged to the end.
            for commit in 51..=58 {
                take(&lake, &mut writers, &all, commit, commit).await;
            }
            again(QueryEngine::open(&lake), "after upkeep at rest").await;

            // Rebuilt from the records: other batches, other upkeep, another lake (INV-7).
            let elsewhere = tempfile::tempdir().unwrap();
            let mut config: LakeConfig = eager(elsewhere.path(), 2);
            config.buckets = Some(4);
            config.hot.patience = Duration::from_secs(3_000);
            config.hot.max_rows = 3;
            let rebuilt = open(config).await;
            let mut writers = sinks(&rebuilt).await;
            for (first, last) in [(1, 7), (8, 8), (9, 31), (32, 50)] {
                take(&rebuilt, &mut writers, &all, first, last).await;
            }
            again(QueryEngine::open(&rebuilt), "after a rebuild").await;
        });
    }
}
