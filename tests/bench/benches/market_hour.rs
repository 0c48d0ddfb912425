//! T12: 1,000 symbols, one simulated hour, some 360 table commits; what the tables look like afterwards, and how
//! fast they are read.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use datafusion::prelude::{ParquetReadOptions, SessionContext};
use finlake_lakehouse::query::{Options, QueryEngine};
use finlake_lakehouse::writer::writer_properties;
use finlake_lakehouse::{LakeConfig, Lakehouse, Table, inspect};
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;

use crate::feed::{Feed, Spec};
use crate::harness::{eventually, secs};
use crate::meter::row;
use crate::world::{World, size};

/// Simulated seconds per second: an hour in six minutes, so one commit a second stands for one every 10 s.
const SPEED: u64 = 10;

#[test]
#[ignore = "benchmark: ./test --bench"]
fn market_hour() {
    let Some(mut world) = World::start(4) else {
        return;
    };
    world.set("lake.buckets", 8);
    world.set("lake.commit_interval", "1s");
    // Fifteen minutes of the market's time.
    world.set("lake.keep_snapshots_for", "90s");
    world.create_topics();
    let seconds = size("BENCH_SECONDS", 3_600);
    let density = size("BENCH_DENSITY", 1_000);
    let spec = Spec {
        symbols: 1_000,
        trades: seconds * density,
        density,
        linger_ms: 5,
    };
    let mut feed = Feed::new(&world.kafka, world.partitions, spec);
    let stream = world.run("a", "stream");
    let mut sink = world.run("a", "sink");
    feed.pace(
        &world.codec,
        density * SPEED,
        Duration::from_secs(seconds / SPEED + 10),
        |_| {},
    );
    stream.stop();
    let sent = feed.sent as f64;
    eventually("all rows are in Bronze", secs(120), || {
        assert!(sink.process.is_running(), "{}", sink.process.tail());
        (sink.metrics().with("finlake_sink_rows_total", "ticks") >= sent).then_some(())
    });
    std::thread::sleep(secs(2));
    let commits: Vec<f64> = ["ticks", "ohlcv", "metrics"]
        .map(|t| sink.metrics().with("finlake_sink_commits_total", t))
        .to_vec();
    let usage = sink.usage();
    sink.stop();
    row(
        "T12",
        &format!("1,000 symbols, {seconds} s of market, {sent} trades: sink"),
        "",
        &format!(
            "{commits:?} commits, {:.2} CPU-s per million, peak {:.0} MB",
            usage.cpu / sent * 1e6,
            usage.peak
        ),
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let lake = Lakehouse::open(LakeConfig {
            buckets: Some(8),
            kafka_partitions: 4,
            ..LakeConfig::local(&world.data())
        })
        .await
        .unwrap();
        for info in inspect::tables(&lake).await.unwrap() {
            let kinds = inspect::files(&lake, info.table).await.unwrap();
            let kinds: Vec<String> = kinds
                .iter()
                .map(|k| format!("{} {} ({} rows)", k.files, k.kind, k.rows))
                .collect();
            row(
                "T12",
                &format!("{}: live files", info.table),
                "≤ 200",
                &format!(
                    "{} files, {:.1} MB, {} rows, {} snapshots; {}",
                    info.files,
                    info.bytes as f64 / 1e6,
                    info.rows,
                    info.snapshots,
                    kinds.join(", ")
                ),
            );
        }
        scans(&lake, &world.dir()).await;
    });
}

const ALL: &str = "select * from silver.market_ohlcv";
const ONE: &str = "select * from silver.market_ohlcv where symbol = 'SIM0500USDT'";

/// Silver through finlake against the same rows written once, sorted, as plain Parquet.
async fn scans(lake: &Lakehouse, dir: &Path) {
    let engine = QueryEngine::open(lake);
    let plain = dir.join("silver.parquet");
    let sorted = format!("{ALL} order by symbol, bar_start, bar_interval, sys_from");
    let answer = engine.sql(&sorted, &Options::default()).await.unwrap();
    let schema = answer.schema.clone();
    let props = writer_properties(&lake.def(Table::Ohlcv)).unwrap();
    let file = File::create(&plain).unwrap();
    let mut writer = ArrowWriter::try_new(file, schema, Some(props)).unwrap();
    for batch in answer.collect().await.unwrap() {
        writer.write(&batch).unwrap();
    }
    writer.close().unwrap();
    for (what, sql) in [("full scan", ALL), ("one symbol", ONE)] {
        let ours = best(async || {
            let answer = engine.sql(sql, &Options::default()).await.unwrap();
            let mut batches = std::pin::pin!(answer.batches());
            let mut rows = 0;
            while let Some(b) = batches.try_next().await.unwrap() {
                rows += b.num_rows();
            }
            rows
        })
        .await;
        let theirs = best(async || {
            // A session each time: we load the table each time, too.
            let session = SessionContext::new();
            let path = plain.to_str().unwrap();
            let options = ParquetReadOptions::default();
            session
                .register_parquet("silver", path, options)
                .await
                .unwrap();
            let sql = sql.replace("silver.market_ohlcv", "silver");
            let mut batches = session
                .sql(&sql)
                .await
                .unwrap()
                .execute_stream()
                .await
                .unwrap();
            let mut rows = 0;
            while let Some(b) = batches.try_next().await.unwrap() {
                rows += b.num_rows();
            }
            rows
        })
        .await;
        assert_eq!(ours.1, theirs.1, "{sql}");
        row(
            "T12",
            &format!("Silver, {what}, {} rows", ours.1),
            "≤ 1.5 × plain sorted Parquet",
            &format!(
                "{:.1} ms = {:.2} × {:.1} ms",
                ours.0 * 1e3,
                ours.0 / theirs.0,
                theirs.0 * 1e3
            ),
        );
    }
}

/// The best of nine, in seconds, and what it gave.
async fn best(mut run: impl AsyncFnMut() -> usize) -> (f64, usize) {
    let mut best = (f64::MAX, 0);
    for _ in 0..9 {
        let began = Instant::now();
        let rows = run().await;
        best = (best.0.min(began.elapsed().as_secs_f64()), rows);
    }
    best
}
