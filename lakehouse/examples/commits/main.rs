//! Measures commits: `cargo run -p finlake-lakehouse --example commits -- [flat|bronze|small|day] [n]`.
//!
//! `flat`: time per commit over n commits of a Silver table with corrections, 10 s apart by the
//! handed-in clock: first 100 against last 100 (target T9, at most 1.5 ×).
//! `bronze`: 10,000 trades per commit, n commits: CPU against the parquet crate writing the same
//! rows with the same settings (target T4, at most 1.3 ×), and peak memory.
//! `small`: 1,000 trades per commit, n commits: what tiny files cost (`PLAIN=0` compresses them).
//! `day`: 1,000 symbols, 4 Kafka partitions, 8 buckets, a commit each 10 s for n hours of market:
//! live files per table (target T12, at most 200), time per commit, and a full scan of Silver
//! against the same rows in one plain sorted file (at most 1.5 ×).

mod day;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use finlake_lakehouse::writer::writer_properties;
use finlake_lakehouse::{
    BronzeRows, Cut, KafkaIds, LakeConfig, Lakehouse, PartitionBatch, RecordAt, Rows, SinkBatch,
    Table, TableSink, VersionRows,
};
use finlake_schemas::{Bar, Basis, Dec8, Dec16, Origin, Stage, Tick};
use parquet::arrow::ArrowWriter;

const T0: i64 = 1_723_075_200_000_000;
const MINUTE: i64 = 60_000_000;

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let n = |default: i64| args.get(2).and_then(|a| a.parse().ok()).unwrap_or(default);
    match args.get(1).map(String::as_str) {
        Some("bronze") => bronze(n(60), 10_000).await,
        Some("small") => bronze(n(300), 1_000).await,
        Some("day") => day::run(n(24)).await,
        _ => flat(n(1_000)).await,
    }
}

async fn open(dir: &std::path::Path, sync: bool) -> Result<(Lakehouse, Arc<AtomicI64>), Failure> {
    let mut config = LakeConfig::local(dir);
    config
        .storage
        .insert("finlake.storage.sync".into(), sync.to_string());
    if let Ok(rows) = std::env::var("PLAIN") {
        config.upkeep.plain_rows = rows.parse()?;
    }
    if let Ok(rows) = std::env::var("COPY") {
        config.upkeep.copy_rows = rows.parse()?;
    }
    open_with(config).await
}

async fn open_with(config: LakeConfig) -> Result<(Lakehouse, Arc<AtomicI64>), Failure> {
    // Ahead of the wall clock that creation stamps.
    let clock = Arc::new(AtomicI64::new(4_000_000_000_000));
    let now = clock.clone();
    let lake = Lakehouse::open(config)
        .await?
        .with_clock(Arc::new(move || now.load(Ordering::SeqCst)));
    lake.ensure_tables(&KafkaIds {
        cluster_id: "bench".into(),
        topic_ids: BTreeMap::new(),
    })
    .await?;
    Ok((lake, clock))
}

fn batch(commit: i64, rows: Rows) -> SinkBatch {
    let system_time = T0 + commit * 10_000_000;
    SinkBatch {
        parts: vec![PartitionBatch {
            partition: 0,
            input_start: (commit - 1) * 10_000,
            cuts: vec![Cut {
                commit,
                input_end: commit * 10_000,
                system_time,
                ..Cut::default()
            }],
            frontier: system_time,
            rows,
        }],
    }
}

fn bar<'a>(
    symbol: &'a str,
    bar_interval: &'a str,
    start: i64,
    length: i64,
    commit: i64,
    prev: Option<i64>,
    closed: bool,
) -> Bar<'a> {
    let price = Dec8(i128::from(commit) * 1_000_003);
    Bar {
        source: "binance",
        symbol,
        bar_interval,
        bar_start: start,
        bar_end: start + length,
        trade_date: start.div_euclid(1_440 * MINUTE) as i32,
        tick_id: finlake_schemas::keys::bar_id("binance", symbol, bar_interval, start),
        open: price,
        high: price,
        low: price,
        close: price,
        volume: price,
        quote_volume: Dec16(price.0),
        trade_count: commit,
        taker_buy_base: price,
        taker_buy_quote: Dec16(price.0),
        vwap: price,
        first_trade_time: start,
        first_trade_id: commit,
        last_trade_time: start + length - 1,
        last_trade_id: commit,
        stage: if closed {
            Stage::Closed
        } else {
            Stage::Checkpoint
        },
        revision: 0,
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: None,
        retracted: false,
        commit,
        ticks_offset: commit,
        bars_offset: 0,
        sys_from: T0 + commit * 10_000_000,
        prev_sys_from: prev,
    }
}

/// Four symbols; each commit closes a minute bar of one of them, corrects the one before it, and
/// now and then a checkpoint of the day.
async fn flat(n: i64) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (lake, clock) = open(dir.path(), std::env::var("SYNC").is_ok()).await?;
    let mut sink = TableSink::open(&lake, Table::Ohlcv).await?;
    sink.assign(&[0]).await?;
    let symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"];
    let mut times = Vec::new();
    let mut used = Vec::new();
    let mut merged = 0;
    for commit in 1..=n {
        if commit % 100 == 1 {
            used.push(cpu());
        }
        clock.fetch_add(10_000, Ordering::SeqCst);
        let mut rows = VersionRows::new(&lake.def(Table::Ohlcv), 0)?;
        let symbol = symbols[(commit % 4) as usize];
        let start = |c: i64| T0 + c / 4 * MINUTE;
        rows.push_bar(
            &bar(symbol, "1m", start(commit), MINUTE, commit, None, true),
            commit,
        )?;
        if commit > 4 {
            let old = commit - 4;
            let prev = T0 + old * 10_000_000;
            rows.push_bar(
                &bar(symbol, "1m", start(old), MINUTE, commit, Some(prev), true),
                commit,
            )?;
        }
        let begun = Instant::now();
        let out = sink.commit(batch(commit, rows.into())).await?;
        times.push(begun.elapsed());
        merged += out.files_merged;
    }
    let p50 = |t: &[Duration]| {
        let mut t = t.to_vec();
        t.sort();
        (t[t.len() / 2], t[t.len() * 99 / 100])
    };
    let k = times.len().min(100);
    let (first, last) = (p50(&times[..k]), p50(&times[times.len() - k..]));
    let mean = |t: &[Duration]| t.iter().sum::<Duration>() / t.len() as u32;
    println!(
        "{n} commits, first 100: p50 {:?} p99 {:?}",
        first.0, first.1
    );
    println!("{n} commits, last  100: p50 {:?} p99 {:?}", last.0, last.1);
    let tail = &times[times.len() - (times.len() / 10).max(1)..];
    let head = &times[..(times.len() / 10).max(1)];
    println!(
        "ratio of p50 {:.2}; mean of the last tenth / first tenth {:.2}",
        last.0.as_secs_f64() / first.0.as_secs_f64(),
        mean(tail).as_secs_f64() / mean(head).as_secs_f64()
    );
    used.push(cpu());
    let per: Vec<String> = used
        .windows(2)
        .map(|w| format!("{:.1}", (w[1] - w[0]) * 10.0))
        .collect();
    let step = per.len().div_ceil(12);
    let shown: Vec<&str> = per.iter().step_by(step).map(String::as_str).collect();
    println!("CPU ms per commit, by hundreds: {}", shown.join(" "));
    println!(
        "live files {}, hot rows {}, files merged {merged}, peak memory {} kB",
        sink.live_files(),
        sink.hot_rows(),
        peak_kb()
    );
    Ok(())
}

fn ticks(commit: i64, n: i64) -> BronzeRows {
    let mut rows = BronzeRows::new("market.ticks", 0);
    let symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"];
    let keys = symbols.map(|s| format!("binance:{s}"));
    for i in 0..n {
        let offset = (commit - 1) * n + i;
        // A cheap pseudo-random walk.
        let noise = (offset.wrapping_mul(6_364_136_223_846_793_005) >> 33).rem_euclid(1_000);
        let which = (noise % 4) as usize;
        let at = RecordAt {
            offset,
            timestamp: T0 + offset * 100,
            key: Some(keys[which].as_bytes()),
            schema_id: Some(1),
            commit: (commit - 1) * 10 + i * 10 / n + 1,
            sys_from: T0 + commit * 10_000_000 + i * 10 / n,
        };
        let tick = Tick {
            source: "binance",
            symbol: symbols[which],
            trade_id: offset,
            price: Dec8((6_000_000 + i128::from(noise)) * 1_000_000),
            quantity: Dec8(i128::from(noise * 7_919 % 100_000) * 1_000),
            trade_time: T0 + offset * 100 - 3_000,
            event_time: Some(T0 + offset * 100),
            buyer_maker: Some(noise % 2 == 0),
            ingest_time: Some(T0 + offset * 100 + 900),
            first_trade_id: None,
            last_trade_id: None,
        };
        rows.push_tick(&at, &tick, b"");
    }
    rows
}

async fn bronze(n: i64, per_commit: i64) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (lake, clock) = open(dir.path(), std::env::var("SYNC").is_ok()).await?;
    let def = lake.def(Table::Ticks);
    let million = |n: i64| (n * per_commit) as f64 / 1e6;

    // The same rows in the same four files per commit, by the parquet crate alone.
    let begun = cpu();
    for commit in 1..=n {
        let all = ticks(commit, per_commit).finish(&def)?;
        let symbols = all.column_by_name("symbol").ok_or("symbol")?;
        for which in 0..4 {
            let wanted: arrow::array::BooleanArray = {
                use arrow::array::AsArray;
                let d = symbols.as_dictionary::<arrow::datatypes::Int32Type>();
                d.keys().iter().map(|k| Some(k == Some(which))).collect()
            };
            let part = arrow::compute::filter_record_batch(&all, &wanted)?;
            let props = writer_properties(&def)?;
            let mut w = ArrowWriter::try_new(Vec::new(), part.schema(), Some(props))?;
            w.write(&part)?;
            std::fs::write(dir.path().join("bare.parquet"), w.into_inner()?)?;
        }
    }
    let bare = cpu() - begun;
    println!("bare parquet: {:.2} CPU-s per million", bare / million(n));

    let mut sink = TableSink::open(&lake, Table::Ticks).await?;
    sink.assign(&[0]).await?;
    let begun = cpu();
    let mut wall = Duration::ZERO;
    let mut merged = 0;
    for commit in 1..=n {
        clock.fetch_add(1_000, Ordering::SeqCst);
        let rows = ticks(commit, per_commit);
        let system_time = T0 + commit * 10_000_000;
        let cuts = (0..10)
            .map(|i| Cut {
                commit: (commit - 1) * 10 + i + 1,
                input_end: (commit - 1) * per_commit + (i + 1) * per_commit / 10,
                system_time: system_time + i,
                ..Cut::default()
            })
            .collect();
        let part = PartitionBatch {
            partition: 0,
            input_start: (commit - 1) * per_commit,
            cuts,
            frontier: system_time + 9,
            rows: rows.into(),
        };
        let t = Instant::now();
        let out = sink.commit(SinkBatch { parts: vec![part] }).await?;
        wall += t.elapsed();
        merged += out.files_merged;
    }
    let own = cpu() - begun;
    println!(
        "sink: {:.2} CPU-s per million, {:.2} × bare; {:?} per commit; {merged} files merged, {} \
         live; peak memory {} kB",
        own / million(n),
        own / bare,
        wall / n as u32,
        sink.live_files(),
        peak_kb()
    );
    Ok(())
}

/// CPU seconds of this process (user + system), from /proc; 0 where there is none.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .unwrap_or(0)
}
