use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::array_value_to_string;
use finlake_schemas::{Bar, Basis, Dec8, Dec16, Origin, Stage};

use super::*;
use crate::lake::LakeConfig;
use crate::plan::Cut;
use crate::properties::KafkaIds;
use crate::rows::VersionRows;
use crate::sink::{PartitionBatch, Rows, SinkBatch, TableSink};
use crate::tables::OPEN_END;

const MINUTE: i64 = 60_000_000;
const HOUR: i64 = 60 * MINUTE;
const T0: i64 = 1_700_000_000_000_000 / HOUR * HOUR;

/// A version as a row of the table must be.
#[derive(Debug, Clone)]
struct Version {
    symbol: String,
    start: i64,
    close: i64,
    sys_from: i64,
    sys_to: i64,
}

/// A Silver table with a plain model of it beside it.
struct Fixture {
    _dir: tempfile::TempDir,
    lake: Lakehouse,
    sink: TableSink,
    model: Vec<Version>,
    commits: BTreeMap<i32, i64>,
    offset: i64,
}

impl Fixture {
    async fn new(partitions: i32) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LakeConfig::local(dir.path());
        config.kafka_partitions = partitions;
        let lake = Lakehouse::open(config).await.unwrap();
        let ids = KafkaIds {
            cluster_id: "c".into(),
            ..KafkaIds::default()
        };
        lake.ensure_tables(&ids).await.unwrap();
        let mut sink = TableSink::open(&lake, Table::Ohlcv).await.unwrap();
        sink.assign(&(0..partitions).collect::<Vec<_>>())
            .await
            .unwrap();
        Fixture {
            _dir: dir,
            lake,
            sink,
            model: Vec::new(),
            commits: BTreeMap::new(),
            offset: 0,
        }
    }

    fn engine(&self) -> QueryEngine {
        QueryEngine::open(&self.lake)
    }

    /// One task commit: per (symbol, start) a new close, or `None` for a retraction.
    async fn commit(&mut self, partition: i32, system: i64, bars: &[(&str, i64, Option<i64>)]) {
        let def = self.lake.def(Table::Ohlcv);
        let mut rows = VersionRows::new(&def, partition).unwrap();
        let number = self.commits.entry(partition).or_default();
        let input_start = *number * 10;
        *number += 1;
        for (symbol, start, close) in bars {
            let open = self
                .model
                .iter_mut()
                .find(|v| v.symbol == *symbol && v.start == *start && v.sys_to == OPEN_END);
            let prev = open.map(|v| {
                v.sys_to = system;
                v.sys_from
            });
            if let Some(close) = close {
                self.model.push(Version {
                    symbol: (*symbol).to_owned(),
                    start: *start,
                    close: *close,
                    sys_from: system,
                    sys_to: OPEN_END,
                });
            } else if prev.is_none() {
                continue;
            }
            let bar = bar(
                symbol,
                *start,
                close.unwrap_or_default(),
                *number,
                system,
                prev,
                close.is_none(),
            );
            rows.push_bar(&bar, self.offset).unwrap();
            self.offset += 1;
        }
        let cut = Cut {
            commit: *number,
            input_end: *number * 10,
            system_time: system,
            ..Cut::default()
        };
        let part = PartitionBatch {
            partition,
            input_start,
            cuts: vec![cut],
            frontier: system,
            rows: if rows.is_empty() {
                Rows::None
            } else {
                Rows::Versions(rows)
            },
        };
        self.sink
            .commit(SinkBatch { parts: vec![part] })
            .await
            .unwrap();
    }

    /// What an as-of query must give: (symbol, start, close).
    fn expected(&self, as_of: &AsOf) -> BTreeSet<(String, i64, i64)> {
        self.model
            .iter()
            .filter(|v| match as_of.system {
                Some(s) => v.sys_from <= s && s < v.sys_to,
                None if as_of.valid.is_some() => v.sys_to == OPEN_END,
                None => true,
            })
            .filter(|v| {
                as_of.valid.is_none_or(|t| {
                    v.start <= t && t < OPEN_END && (as_of.running || v.start + HOUR <= t)
                })
            })
            .map(|v| (v.symbol.clone(), v.start, v.close))
            .collect()
    }
}

fn bar<'a>(
    symbol: &'a str,
    start: i64,
    close: i64,
    commit: i64,
    sys_from: i64,
    prev_sys_from: Option<i64>,
    retracted: bool,
) -> Bar<'a> {
    let price = Dec8(i128::from(close) * 100_000_000);
    Bar {
        source: "test",
        symbol,
        bar_interval: "1h",
        bar_start: start,
        bar_end: start + HOUR,
        trade_date: (start / (24 * HOUR)) as i32,
        tick_id: [7; 16],
        open: price,
        high: price,
        low: price,
        close: price,
        volume: Dec8(10_000_000),
        quote_volume: Dec16(1),
        trade_count: 3,
        taker_buy_base: Dec8(0),
        taker_buy_quote: Dec16(0),
        vwap: price,
        first_trade_time: start,
        first_trade_id: 1,
        last_trade_time: start,
        last_trade_id: 3,
        stage: Stage::Closed,
        revision: 0,
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: None,
        retracted,
        commit,
        ticks_offset: commit * 10,
        bars_offset: 0,
        sys_from,
        prev_sys_from,
    }
}

fn at(system: Option<i64>, valid: Option<i64>, running: bool) -> AsOf {
    AsOf {
        system,
        valid,
        running,
    }
}

async fn ask(engine: &QueryEngine, sql: &str) -> Result<Vec<Vec<String>>, QueryError> {
    ask_as_of(engine, sql, AsOf::default()).await
}

async fn ask_as_of(
    engine: &QueryEngine,
    sql: &str,
    as_of: AsOf,
) -> Result<Vec<Vec<String>>, QueryError> {
    let options = Options {
        as_of,
        ..Options::default()
    };
    let batches = engine.sql(sql, &options).await?.collect().await?;
    let mut rows = Vec::new();
    for batch in &batches {
        for row in 0..batch.num_rows() {
            let cells = batch
                .columns()
                .iter()
                .map(|c| array_value_to_string(c, row).unwrap());
            rows.push(cells.collect());
        }
    }
    Ok(rows)
}

fn triples(batches: &[RecordBatch]) -> BTreeSet<(String, i64, i64)> {
    let mut out = BTreeSet::new();
    for batch in batches {
        let symbol = batch.column(0).as_string::<i32>();
        let start = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let close = batch.column(2).as_primitive::<Decimal128Type>();
        for i in 0..batch.num_rows() {
            let close = (close.value(i) / 100_000_000) as i64;
            assert!(
                out.insert((symbol.value(i).to_owned(), start.value(i), close)),
                "a row twice"
            );
        }
    }
    out
}

/// A generator of its own, so that a failure names its seed.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// INV-2, INV-5, INV-6 as a reader sees them: whatever was emitted, corrected and retracted in
/// whichever order, every as-of query gives exactly the model's rows, by option and by function.
#[tokio::test]
async fn as_of_queries_equal_the_model() {
    for seed in 1..=3 {
        let mut random = Seeded(seed);
        let mut fixture = Fixture::new(2).await;
        let mut system = T0;
        let mut systems = vec![T0 - 1];
        for _ in 0..12 {
            system += 1 + random.below(3 * HOUR as u64) as i64;
            systems.extend([system - 1, system, system + 1]);
            let partition = random.below(2) as i32;
            let mut bars = BTreeMap::new();
            for _ in 0..random.below(6) {
                // Symbols of one partition only: a key lives in one task.
                let symbol =
                    [["AA", "BB"], ["CC", "DD"]][partition as usize][random.below(2) as usize];
                let start = T0 + random.below(5) as i64 * HOUR;
                let close = (random.below(6) > 0).then(|| 100 + random.below(1000) as i64);
                bars.insert((symbol, start), close);
            }
            let bars: Vec<_> = bars.into_iter().map(|((s, t), c)| (s, t, c)).collect();
            fixture.commit(partition, system, &bars).await;
        }
        let engine = fixture.engine();
        for _ in 0..25 {
            let s = systems[random.below(systems.len() as u64) as usize];
            let v = T0 - HOUR + random.below(16) as i64 * HOUR / 2;
            let running = random.below(2) == 0;
            for as_of in [
                at(Some(s), Some(v), running),
                at(Some(s), None, false),
                at(None, Some(v), running),
                at(None, None, false),
            ] {
                let plain = "SELECT symbol, bar_start, close FROM silver.market_ohlcv";
                let options = Options {
                    as_of,
                    ..Options::default()
                };
                let got = engine
                    .sql(plain, &options)
                    .await
                    .unwrap()
                    .collect()
                    .await
                    .unwrap();
                assert_eq!(
                    triples(&got),
                    fixture.expected(&as_of),
                    "seed {seed} {as_of:?}"
                );
                let (s_text, v_text) = (iso_instant(s), iso_instant(v));
                let from = match as_of {
                    AsOf {
                        system: Some(_),
                        valid: Some(_),
                        ..
                    } => format!(
                        "as_of('silver.market_ohlcv', '{v_text}', TIMESTAMP '{s_text}', running => {running})"
                    ),
                    AsOf {
                        system: Some(_), ..
                    } => format!("as_of_system('market_ohlcv', '{s_text}')"),
                    AsOf { valid: Some(_), .. } => {
                        format!(
                            "as_of_valid('silver.market_ohlcv', TIMESTAMP '{v_text}', {running})"
                        )
                    }
                    _ => continue,
                };
                let sql = format!("SELECT symbol, bar_start, close FROM {from}");
                let answer = engine.sql(&sql, &Options::default()).await.unwrap();
                assert_eq!(answer.stability.asked, as_of.system);
                let got = answer.collect().await.unwrap();
                assert_eq!(triples(&got), fixture.expected(&as_of), "seed {seed} {sql}");
            }
        }
    }
}

/// Filters are used for skipping files, and the answers are those without skipping.
#[tokio::test]
async fn filters_skip_files_and_lose_no_row() {
    let mut fixture = Fixture::new(1).await;
    for n in 0..4 {
        let bars: Vec<_> = (0..24)
            .map(|h| ("AA", T0 + (n * 24 + h) * HOUR, Some(100 + n)))
            .collect();
        fixture.commit(0, T0 + n + 1, &bars).await;
        fixture
            .commit(0, T0 + n + 100, &[("BB", T0 + n / 2 * HOUR, Some(7 + n))])
            .await;
    }
    let engine = fixture.engine();
    let noon = iso_instant(T0 + 30 * HOUR);
    let cases = [
        "symbol = 'BB'".to_owned(),
        "symbol IN ('BB', 'ZZ') AND close > 8".to_owned(),
        "NOT (symbol = 'AA' AND close > 101.5)".to_owned(),
        "is_current AND symbol <> 'AA'".to_owned(),
        "NOT is_current".to_owned(),
        format!("bar_start >= TIMESTAMP '{noon}'"),
        format!(
            "bar_start BETWEEN '{noon}' AND TIMESTAMP '2100-01-01' AND CAST(close AS BIGINT) = 102"
        ),
        format!("bar_end > '{noon}' OR symbol = 'BB'"),
        "trade_date = DATE '2023-11-15'".to_owned(),
        "sys_to = open_end()".to_owned(),
        "sys_to > now()".to_owned(),
        "sys_to >= TIMESTAMP '9999-12-31'".to_owned(),
        "sys_from <= now() AND valid_to > TIMESTAMP '2262-05-01 00:00:00'".to_owned(),
        "basis_at IS NULL".to_owned(),
        "CAST(trade_count AS VARCHAR) = '3'".to_owned(),
        "symbol LIKE 'B%'".to_owned(),
        "kafka_offset % 2 = 0 AND kafka_offset < 50".to_owned(),
    ];
    for case in &cases {
        // The second one hides the filter from the scan.
        let pushed = format!("SELECT count(*) FROM silver.market_ohlcv WHERE {case}");
        let hidden =
            format!("SELECT sum(CASE WHEN {case} THEN 1 ELSE 0 END) FROM silver.market_ohlcv");
        let (a, b) = (
            ask(&engine, &pushed).await.unwrap(),
            ask(&engine, &hidden).await.unwrap(),
        );
        assert_eq!(a, b, "{case}");
        assert_ne!(a, [["0"]], "{case} proves nothing");
    }
    let plan = ask(
        &engine,
        "EXPLAIN SELECT close FROM silver.market_ohlcv WHERE symbol = 'BB'",
    )
    .await;
    let plan = format!("{:?}", plan.unwrap());
    assert!(plan.contains("skip unless: symbol ="), "{plan}");
    let all = ask(&engine, "EXPLAIN SELECT close FROM silver.market_ohlcv")
        .await
        .unwrap();
    let files = |plan: &str| -> usize {
        let rest = plan.split("files=").nth(1).unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    };
    assert!(files(&plan) < files(&format!("{all:?}")), "{plan} {all:?}");
}

#[tokio::test]
async fn projections_counts_and_limits() {
    let mut fixture = Fixture::new(1).await;
    let bars: Vec<_> = (0..10).map(|h| ("AA", T0 + h * HOUR, Some(h))).collect();
    fixture.commit(0, T0 + 1, &bars).await;
    fixture.commit(0, T0 + 2, &[("BB", T0, Some(1))]).await;
    let engine = fixture.engine();
    for (sql, want) in [
        ("SELECT count(*) FROM silver.market_ohlcv", "11"),
        (
            "SELECT count(*) FROM silver.market_ohlcv WHERE is_current",
            "11",
        ),
        (
            "SELECT count(symbol) FROM market_ohlcv WHERE symbol = 'AA'",
            "10",
        ),
        (
            "SELECT count(*) FROM (SELECT symbol FROM silver.market_ohlcv LIMIT 4)",
            "4",
        ),
        (
            "SELECT count(*) FROM (SELECT 1 FROM silver.market_ohlcv WHERE close >= 5 LIMIT 20)",
            "5",
        ),
        ("SELECT sum(close) FROM silver.market_ohlcv", "46.00000000"),
        (
            "SELECT max(close * volume) FROM silver.market_ohlcv",
            "0.9000000000000000",
        ),
        (
            "SELECT count(*) FROM silver.market_ohlcv WHERE close * 0.1 = 0.9",
            "1",
        ),
        ("SELECT count(*) FROM bronze.market_ticks", "0"),
        ("SELECT max(symbol) FROM silver.market_ohlcv", "BB"),
        (
            "SELECT count(DISTINCT symbol) FROM silver.market_ohlcv WHERE is_current",
            "2",
        ),
    ] {
        assert_eq!(ask(&engine, sql).await.unwrap(), [[want]], "{sql}");
    }
}

#[tokio::test]
async fn an_answer_says_whether_it_is_final() {
    let mut fixture = Fixture::new(2).await;
    let engine = fixture.engine();
    let sql = "SELECT symbol FROM silver.market_ohlcv";
    let stability = |system| {
        let engine = engine.clone();
        async move {
            let options = Options {
                as_of: at(system, None, false),
                ..Options::default()
            };
            engine.sql(sql, &options).await.unwrap().stability
        }
    };
    fixture.commit(0, T0 + 100, &[("AA", T0, Some(1))]).await;
    assert!(
        !stability(Some(T0)).await.is_final,
        "partition 1 has said nothing yet"
    );
    fixture.commit(1, T0 + 50, &[]).await;
    let whole = stability(Some(T0 + 50)).await;
    assert_eq!((whole.frontier, whole.is_final), (Some(T0 + 50), true));
    assert_eq!(whole.tables, ["silver.market_ohlcv"]);
    assert!(!stability(Some(T0 + 51)).await.is_final);
    assert!(!stability(None).await.is_final);

    let stable = |system| Options {
        as_of: at(system, None, false),
        stable: true,
        memory: None,
    };
    assert!(engine.sql(sql, &stable(Some(T0 + 50))).await.is_ok());
    let refused = engine
        .sql(sql, &stable(Some(T0 + 51)))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains(&iso_instant(T0 + 50)), "{refused}");
    let refused = engine
        .sql(sql, &stable(None))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("--as-of-system"), "{refused}");
    // A table that holds less, in a subquery, counts too; a statement without tables is final.
    let both = format!("{sql} WHERE symbol IN (SELECT symbol FROM gold.market_metrics)");
    let error = engine
        .sql(&both, &stable(Some(T0 + 50)))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("gold.market_metrics"), "{error}");
    assert!(engine.sql("SELECT 1", &stable(None)).await.is_ok());
}

/// INV-5: the answer at or below the frontier is the same after whatever comes later.
#[tokio::test]
async fn an_answer_below_the_frontier_never_changes() {
    let mut fixture = Fixture::new(1).await;
    fixture
        .commit(
            0,
            T0 + 10,
            &[("AA", T0, Some(1)), ("AA", T0 + HOUR, Some(2))],
        )
        .await;
    let engine = fixture.engine();
    let sql = "SELECT symbol, bar_start, close FROM silver.market_ohlcv";
    let options = Options {
        as_of: at(Some(T0 + 10), None, false),
        stable: true,
        memory: None,
    };
    let before = engine
        .sql(sql, &options)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    for n in 0..5 {
        fixture
            .commit(
                0,
                T0 + 20 + n,
                &[("AA", T0, Some(5 + n)), ("AA", T0 + HOUR, None)],
            )
            .await;
    }
    let after = engine
        .sql(sql, &options)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(triples(&before), triples(&after));
    assert_eq!(triples(&before).len(), 2);
}

#[tokio::test]
async fn what_is_wrong_says_what_to_do() {
    let fixture = Fixture::new(1).await;
    let engine = fixture.engine();
    for (sql, part) in [
        (
            "SELECT * FROM silver.nope",
            "there are: bronze.market_bars, bronze.market_ticks",
        ),
        (
            "SELECT * FROM as_of_system('silver.nope', '2026-01-01')",
            "there are: bronze.market_bars, bronze.market_ticks",
        ),
        (
            "SELECT * FROM as_of_system('silver.market_ohlcv')",
            "as_of_system('table', system time)",
        ),
        (
            "SELECT * FROM as_of('silver.market_ohlcv', '2026-01-01', 'soon')",
            "soon",
        ),
        (
            "SELECT * FROM as_of_valid('silver.market_ohlcv', NULL)",
            "null",
        ),
        (
            "SELECT * FROM as_of_valid('silver.market_ohlcv', '2026-01-01', ending => true)",
            "running",
        ),
        (
            "SELECT * FROM as_of_system('silver.market_ohlcv', '9999-12-31')",
            "open_end",
        ),
        ("DELETE FROM silver.market_ohlcv", "queries only"),
        ("CREATE TABLE x AS SELECT 1", "queries only"),
        (
            "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
            "queries only",
        ),
        ("SELECT nope FROM silver.market_ohlcv", "nope"),
        ("SELEC 1", "SELEC"),
    ] {
        let error = engine
            .sql(sql, &Options::default())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{sql}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    let lake = Lakehouse::open(LakeConfig::local(empty.path()))
        .await
        .unwrap();
    let error = QueryEngine::open(&lake)
        .sql("SELECT * FROM silver.market_ohlcv", &Options::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("finlake run"), "{error}");
}

#[tokio::test]
async fn the_tables_are_described() {
    let fixture = Fixture::new(1).await;
    let engine = fixture.engine();
    let sql = "SELECT table_schema, count(*) FROM information_schema.tables \
               WHERE table_schema <> 'information_schema' GROUP BY 1 ORDER BY 1";
    let rows = ask(&engine, sql).await.unwrap();
    assert_eq!(
        rows,
        [
            ["bronze", "2"],
            ["gold", "1"],
            ["quality", "1"],
            ["silver", "1"]
        ]
    );
    let rows = ask(&engine, "DESCRIBE silver.market_ohlcv").await.unwrap();
    assert!(
        rows.iter()
            .any(|r| r[0] == "close" && r[1].contains("Decimal128(38, 8)")),
        "{rows:?}"
    );
}

#[tokio::test]
async fn large_and_small_parts_of_a_result_are_all_there() {
    let mut fixture = Fixture::new(1).await;
    let mut want = 0;
    for n in 0..6i64 {
        let count = [1, 500, 3, 700, 2, 50][n as usize];
        let bars: Vec<_> = (0..count)
            .map(|h| ("AA", T0 + (n * 1000 + h) * HOUR, Some(h)))
            .collect();
        want += count;
        fixture.commit(0, T0 + n + 1, &bars).await;
    }
    let engine = fixture.engine();
    let options = Options::default();
    let sql = "SELECT kafka_offset FROM silver.market_ohlcv ORDER BY kafka_offset";
    let batches = engine
        .sql(sql, &options)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let offsets: Vec<i64> = batches
        .iter()
        .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    assert_eq!(offsets, (0..want).collect::<Vec<_>>());
}

#[tokio::test]
async fn inspection_tells_what_is_there() {
    use crate::inspect;
    let mut fixture = Fixture::new(2).await;
    fixture
        .commit(
            0,
            T0 + 10,
            &[("AA", T0, Some(1)), ("AA", T0 + HOUR, Some(2))],
        )
        .await;
    fixture.commit(1, T0 + 20, &[("CC", T0, Some(1))]).await;
    fixture.commit(0, T0 + 30, &[("AA", T0, Some(3))]).await;
    let lake = &fixture.lake;
    let tables = inspect::tables(lake).await.unwrap();
    let silver = tables.iter().find(|t| t.table == Table::Ohlcv).unwrap();
    assert!(silver.exists && !silver.moved);
    assert_eq!((silver.rows, silver.frontier), (4, Some(T0 + 20)));
    let files = inspect::files(lake, Table::Ohlcv).await.unwrap();
    assert_eq!(files.iter().map(|f| f.rows).sum::<u64>(), 4);
    assert_eq!(files.iter().map(|f| f.bytes).sum::<u64>(), silver.bytes);
    assert_eq!(files.iter().find(|f| f.kind == "history").unwrap().rows, 1);
    let offsets = inspect::offsets(lake, Table::Ohlcv).await.unwrap();
    let got: Vec<_> = offsets
        .iter()
        .map(|o| (o.partition, o.commit, o.input_end, o.frontier))
        .collect();
    assert_eq!(got, [(0, 2, 20, T0 + 30), (1, 1, 10, T0 + 20)]);
    let snapshots = inspect::snapshots(lake, Table::Ohlcv, 2).await.unwrap();
    assert_eq!(snapshots.len(), 2);
    assert!(snapshots[0].is_current && snapshots[0].sequence > snapshots[1].sequence);
    assert_eq!(snapshots[0].total_rows, 4);
}
