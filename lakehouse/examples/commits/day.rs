//! A day of a market of 1,000 symbols, as the sink commits it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use finlake_lakehouse::{
    BronzeRows, Cut, Filter, LakeConfig, Lakehouse, PartitionBatch, RecordAt, Rows, Scan,
    SinkBatch, Table, TableSink, VersionRows,
};
use finlake_schemas::{Dec8, Metrics, Tick};
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Failure, MINUTE, T0, bar, cpu, open_with, peak_kb};

const SYMBOLS: i64 = 1_000;
const PARTITIONS: i32 = 4;
/// Trades per commit: two per symbol.
const TRADES: i64 = 2_000;

type Parts<R> = [R; PARTITIONS as usize];

struct Market {
    symbols: Vec<String>,
    /// System time of each symbol's open 1d version.
    days: Vec<Option<i64>>,
    offsets: [i64; 3],
}

impl Market {
    fn partition(symbol: i64) -> usize {
        (symbol * 7 / 3 % i64::from(PARTITIONS)) as usize
    }

    fn ticks(&mut self, commit: i64) -> Parts<BronzeRows> {
        let mut parts = std::array::from_fn(|p| BronzeRows::new("market.ticks", p as i32));
        for i in 0..TRADES {
            let which = i % SYMBOLS;
            let symbol = &self.symbols[which as usize];
            self.offsets[0] += 1;
            let time = T0 + (commit - 1) * 10_000_000 + i * 5_000;
            let key = format!("binance:{symbol}");
            let at = RecordAt {
                offset: self.offsets[0],
                timestamp: time,
                key: Some(key.as_bytes()),
                schema_id: Some(1),
                commit,
                sys_from: T0 + commit * 10_000_000,
            };
            let tick = Tick {
                source: "binance",
                symbol,
                trade_id: commit * 2 + i / SYMBOLS,
                price: Dec8(i128::from(1_000_000 + i * commit % 9_999) * 1_000_000),
                quantity: Dec8(i128::from(i * 7_919 % 100_000) * 1_000),
                trade_time: time,
                event_time: Some(time + 3_000),
                buyer_maker: Some(i % 2 == 0),
                ingest_time: Some(time + 4_000),
                first_trade_id: None,
                last_trade_id: None,
            };
            parts[Market::partition(which)].push_tick(&at, &tick, b"");
        }
        parts
    }

    /// Each commit closes the minute bars of a sixth of the symbols and corrects some older ones;
    /// each hour brings hour bars and the next checkpoint of the day bars.
    fn bars(&mut self, lake: &Lakehouse, commit: i64) -> Result<Parts<VersionRows>, Failure> {
        let def = lake.def(Table::Ohlcv);
        let mut parts = parts(|p| VersionRows::new(&def, p))?;
        let system = |commit: i64| T0 + commit * 10_000_000;
        let minute = (commit - 1) / 6;
        for which in (0..SYMBOLS).filter(|s| s % 6 == commit % 6) {
            let symbol = self.symbols[which as usize].as_str();
            let rows = &mut parts[Market::partition(which)];
            let mut push = |offsets: &mut i64, interval, start, length, prev, closed| {
                *offsets += 1;
                let bar = bar(symbol, interval, start, length, commit, prev, closed);
                rows.push_bar(&bar, *offsets)
            };
            let offsets = &mut self.offsets[1];
            if minute > 0 {
                let start = T0 + (minute - 1) * MINUTE;
                push(offsets, "1m", start, MINUTE, None, true)?;
            }
            if minute > 2 && which % 97 == minute % 97 {
                let start = T0 + (minute - 3) * MINUTE;
                let prev = system(commit - 12);
                push(offsets, "1m", start, MINUTE, Some(prev), true)?;
            }
            if minute > 0 && minute % 60 == 0 {
                let start = T0 + (minute - 60) * MINUTE;
                push(offsets, "1h", start, 60 * MINUTE, None, true)?;
                let prev = self.days[which as usize].replace(system(commit));
                let date = T0 + (minute - 1) / 1_440 * 1_440 * MINUTE;
                push(offsets, "1d", date, 1_440 * MINUTE, prev, false)?;
            }
        }
        Ok(parts)
    }

    /// A metrics row of each symbol, some each commit, for the day before.
    fn metrics(&mut self, lake: &Lakehouse, commit: i64) -> Result<Parts<VersionRows>, Failure> {
        let def = lake.def(Table::Metrics);
        let mut parts = parts(|p| VersionRows::new(&def, p))?;
        for which in (0..SYMBOLS).filter(|s| s % 360 == commit % 360) {
            let date = (T0 / MINUTE / 1_440) as i32 - (commit / 360) as i32;
            self.offsets[2] += 1;
            let symbol = &self.symbols[which as usize];
            let row = Metrics {
                source: "binance",
                symbol,
                trade_date: date,
                metric_id: finlake_schemas::keys::metrics_id("binance", symbol, date),
                close: Dec8(1),
                observations: 1,
                return_1: Some(0.5),
                windows: Vec::new(),
                periods: 365,
                risk_free: 0.0,
                valid_from: i64::from(date + 1) * 1_440 * MINUTE,
                revision: 0,
                retracted: false,
                commit,
                ticks_offset: commit,
                bars_offset: 0,
                sys_from: T0 + commit * 10_000_000,
                prev_sys_from: None,
            };
            parts[Market::partition(which)].push_metrics(&row, self.offsets[2])?;
        }
        Ok(parts)
    }
}

fn parts<R, E>(mut make: impl FnMut(i32) -> Result<R, E>) -> Result<Parts<R>, Failure>
where
    Failure: From<E>,
{
    let made: Result<Vec<R>, E> = (0..PARTITIONS).map(&mut make).collect();
    made?.try_into().map_err(|_| "as many as partitions".into())
}

fn batch(commit: i64, rows: Parts<Rows>) -> SinkBatch {
    let system_time = T0 + commit * 10_000_000;
    let parts = rows
        .into_iter()
        .zip(0..)
        .map(|(rows, partition)| PartitionBatch {
            partition,
            input_start: (commit - 1) * TRADES,
            cuts: vec![Cut {
                commit,
                input_end: commit * TRADES,
                system_time,
                ..Cut::default()
            }],
            frontier: system_time,
            rows,
        });
    SinkBatch {
        parts: parts.collect(),
    }
}

/// Commits `hours` of market and prints what stands after each hour.
pub async fn run(hours: i64) -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let mut config = LakeConfig::local(dir.path());
    config
        .storage
        .insert("finlake.storage.sync".into(), "false".into());
    config.kafka_partitions = PARTITIONS;
    config.buckets = Some(8);
    let (lake, clock) = open_with(config).await?;
    let tables = [Table::Ticks, Table::Ohlcv, Table::Metrics];
    let mut sinks = Vec::new();
    for table in tables {
        let mut sink = TableSink::open(&lake, table).await?;
        sink.assign(&(0..PARTITIONS).collect::<Vec<_>>()).await?;
        sinks.push(sink);
    }
    let mut market = Market {
        symbols: (0..SYMBOLS).map(|i| format!("SYM{i:04}")).collect(),
        days: vec![None; SYMBOLS as usize],
        offsets: [0; 3],
    };
    let mut most = [0; 3];
    let begun = cpu();
    for hour in 0..hours {
        let mut times: [Vec<Duration>; 3] = Default::default();
        let mut merged = [0; 3];
        for commit in hour * 360 + 1..=(hour + 1) * 360 {
            clock.fetch_add(10_000, Ordering::SeqCst);
            let rows = [
                market.ticks(commit).map(Rows::from),
                market.bars(&lake, commit)?.map(Rows::from),
                market.metrics(&lake, commit)?.map(Rows::from),
            ];
            for (i, rows) in rows.into_iter().enumerate() {
                let t = Instant::now();
                let out = sinks[i].commit(batch(commit, rows)).await?;
                times[i].push(t.elapsed());
                merged[i] += out.files_merged;
                most[i] = most[i].max(sinks[i].live_files());
            }
        }
        for (i, table) in tables.iter().enumerate() {
            times[i].sort();
            let at = |q: usize| times[i][(times[i].len() - 1) * q / 100];
            println!(
                "hour {:>2} {table:<20} {:>3} files (most {:>3}), {:>4} merged, commit p50 {:.1?} p99 {:.1?}",
                hour + 1,
                sinks[i].live_files(),
                most[i],
                merged[i],
                at(50),
                at(99)
            );
        }
    }
    println!(
        "{:.1} CPU-s in all, peak memory {} kB",
        cpu() - begun,
        peak_kb()
    );
    for table in tables {
        scan(&lake, table, dir.path()).await?;
    }
    Ok(())
}

/// A full scan of a table against the same rows in one plain sorted file.
async fn scan(lake: &Lakehouse, table: Table, dir: &std::path::Path) -> Result<(), Failure> {
    let pinned = lake.snapshot(table).await?;
    let files = pinned.files(&Filter::all()).await?;
    let mut kinds: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for f in &files {
        let name = f.path.rsplit('/').next().unwrap_or_default();
        let kind = name.split('-').next().unwrap_or_default().to_string();
        let k = kinds.entry(kind).or_default();
        *k = (k.0 + 1, k.1 + f.rows, k.2 + f.bytes);
    }
    println!("{table}: {kinds:?} (files, rows, bytes)");
    // The comparison holds all rows in memory, twice.
    if kinds.values().map(|k| k.1).sum::<u64>() > 3_000_000 {
        return Ok(());
    }
    let whole = pinned.collect(&Scan::default()).await?;
    let by = ["symbol", lake.def(table).time].map(|name| arrow::compute::SortColumn {
        values: whole
            .column_by_name(name)
            .cloned()
            .unwrap_or_else(|| whole.column(0).clone()),
        options: None,
    });
    let order = arrow::compute::lexsort_to_indices(&by, None)?;
    let sorted = arrow::compute::take_record_batch(&whole, &order)?;
    let props = finlake_lakehouse::writer::writer_properties(&lake.def(table))?;
    let path = dir.join("plain.parquet");
    let file = std::fs::File::create(&path)?;
    let mut writer = ArrowWriter::try_new(file, sorted.schema(), Some(props))?;
    writer.write(&sorted)?;
    writer.close()?;
    drop((whole, sorted));
    let (mut plain, mut own) = (f64::MAX, f64::MAX);
    for _ in 0..3 {
        let t = Instant::now();
        let bytes = bytes::Bytes::from(std::fs::read(&path)?);
        let mut rows = 0;
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?
            .with_batch_size(64 * 1024)
            .build()?
        {
            rows += batch?.num_rows();
        }
        plain = plain.min(t.elapsed().as_secs_f64());
        let t = Instant::now();
        let mut stream = pinned.scan(&Scan::default()).await?;
        let mut seen = 0;
        while let Some(b) = stream.try_next().await? {
            seen += b.batch.num_rows();
        }
        own = own.min(t.elapsed().as_secs_f64());
        assert_eq!(rows, seen);
    }
    println!(
        "{table}: full scan {own:.3} s, one plain sorted file {plain:.3} s: {:.2} x",
        own / plain
    );
    Ok(())
}
