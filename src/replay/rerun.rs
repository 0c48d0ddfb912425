//! The topology again: the production task over stores in memory, fed from the topics or from Bronze.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, bail};
use finlake_lakehouse::{Filter, Lakehouse, Pinned, Scan, Table};
use finlake_market::interval::DAY;
use finlake_pipeline::Market;
use finlake_schemas::{Codec, LedgerEntry, topics};
use finlake_topology::state::StateDb;
use finlake_topology::task::CommitKind;
use finlake_topology::{OutputRecord, RecordBatch, TestDriver, TopicIdx, Topology};
use tokio::runtime::Handle;

use super::compare::{Difference, Replayed, Row, Rows, Tally, compare};
use super::topics::Cursor;
use super::{bronze, live};
use crate::app::{App, pipeline_config};
use crate::output::Progress;

/// Records per batch, and per commit where no ledger says otherwise.
const CHUNK: usize = 20_000;
/// Offsets of Bronze that are read at once.
const WINDOW: i64 = 200_000;
/// 0001-01-01: before any market, and within what the date transforms take.
const EARLIEST: i32 = -719_162;

/// What a replay found.
#[derive(Debug, Default)]
pub struct Rerun {
    /// Input records fed.
    pub records: u64,
    /// Of them, read from Bronze.
    pub from_bronze: u64,
    pub silver: Tally,
    pub gold: Tally,
    /// Silver's, in order of key.
    pub silver_differences: Vec<Difference>,
    /// Gold's, in order of key.
    pub gold_differences: Vec<Difference>,
}

impl Rerun {
    /// Whether nothing differs.
    pub fn is_equal(&self) -> bool {
        self.silver.different == 0 && self.gold.different == 0
    }

    fn compared(&mut self, silver: (&Rows, &Replayed), gold: (&Rows, &Replayed)) {
        (self.silver, self.silver_differences) = compare(silver.0, silver.1);
        (self.gold, self.gold_differences) = compare(gold.0, gold.1);
    }
}

/// The tables that a replay is compared with.
struct Tables {
    silver: Pinned,
    gold: Pinned,
    bronze: Pinned,
}

impl Tables {
    /// Silver and Gold first: Bronze must not be behind them.
    async fn open(lake: &Lakehouse) -> Result<Tables> {
        Ok(Tables {
            silver: lake.snapshot(Table::Ohlcv).await?,
            gold: lake.snapshot(Table::Metrics).await?,
            bronze: lake.snapshot(Table::Ticks).await?,
        })
    }
}

/// Replays everything up to what the tables hold, commit by commit as the ledger has it.
///
/// # Errors
/// Kafka, catalog or storage; input that neither the topic nor Bronze holds.
pub fn whole(app: &App, lake: &Lakehouse, runtime: &Handle, quiet: bool) -> Result<Rerun> {
    let tables = runtime.block_on(Tables::open(lake))?;
    let mut rerun = Rerun::default();
    let (mut silver, mut gold) = (Replayed::default(), Replayed::default());
    let partitions = 0..app.config.kafka.partitions;
    let total = partitions.clone().map(|p| tables.silver.position(p));
    let total: i64 = total.map(|at| at.input_end).sum();
    let progress = Progress::new(
        quiet,
        "replaying",
        "records",
        Some(total.max(0).unsigned_abs()),
    );
    for p in partitions {
        let mut replay = Partition {
            app,
            tables: &tables,
            runtime,
            progress: &progress,
            number: p,
            rerun: &mut rerun,
        };
        replay.whole(&mut silver, &mut gold)?;
    }
    progress.done();
    let windows = &app.config.gold.windows;
    let (bars, metrics) = runtime.block_on(async {
        let bars = live::bars(&tables.silver, None).await?;
        anyhow::Ok((bars, live::metrics(&tables.gold, windows, None).await?))
    })?;
    rerun.compared((&bars, &silver), (&metrics, &gold));
    Ok(rerun)
}

struct Partition<'a> {
    app: &'a App,
    tables: &'a Tables,
    runtime: &'a Handle,
    progress: &'a Progress,
    number: i32,
    rerun: &'a mut Rerun,
}

impl Partition<'_> {
    fn whole(&mut self, silver: &mut Replayed, gold: &mut Replayed) -> Result<()> {
        let app = self.app;
        let cuts = [&self.tables.silver, &self.tables.gold].map(|t| t.position(self.number).commit);
        let last = cuts[0].max(cuts[1]);
        if last == 0 {
            return Ok(());
        }
        let entries = self.entries(last)?;
        let mut inputs = [
            Input::open(app, topics::TICKS, self.number)?,
            Input::open(app, topics::BARS, self.number)?,
        ];
        let mut driver = driver(&app.topology, self.number)?;
        let mut batch = RecordBatch::new();
        for (i, entry) in entries.iter().enumerate() {
            driver.set_now(entry.system_time);
            for (idx, input) in inputs.iter_mut().enumerate() {
                let range = entry.inputs.iter().find(|r| r.topic == input.topic);
                if let Some(range) = range.filter(|r| r.end > r.start) {
                    self.feed(&mut driver, &mut batch, idx, input, range.start..range.end)?;
                }
            }
            driver.punctuate()?;
            // A graceful stop is two entries: what was open, then the last heartbeat.
            let stopping = entry.last || entries.get(i + 1).is_some_and(|next| next.last);
            driver.commit_as(CommitKind {
                stopping,
                last: entry.last,
            })?;
            let outputs = driver.take_outputs();
            collect(
                &app.codec,
                outputs,
                (entry.commit <= cuts[0]).then_some(&mut silver.settled),
                (entry.commit <= cuts[1]).then_some(&mut gold.settled),
            )?;
        }
        driver.stop()?;
        let outputs = driver.take_outputs();
        let (bars, metrics) = (&mut silver.last, &mut gold.last);
        collect(&app.codec, outputs, Some(bars), Some(metrics))
    }

    /// The ledger up to commit `last`, which must begin with commit 1.
    fn entries(&self, last: i64) -> Result<Vec<LedgerEntry>> {
        let app = self.app;
        let mut cursor = Cursor::open(&app.config, topics::LEDGER, self.number, 0)?;
        let (mut entries, high) = (Vec::<LedgerEntry>::new(), cursor.high);
        cursor.until(high, |r| {
            let entry = app.codec.decode_ledger(r.value.unwrap_or_default())?;
            if entry.commit <= last {
                entries.push(entry);
            }
            Ok(())
        })?;
        match (entries.first(), entries.last()) {
            (Some(first), Some(end)) if first.commit == 1 && end.commit == last => Ok(entries),
            (first, end) => bail!(
                "{}/{} holds commits {:?} to {:?}, the tables hold 1 to {last}: a whole replay follows the ledger. \
                 Replay a range instead (--from-timestamp), which needs Bronze only",
                topics::LEDGER,
                self.number,
                first.map(|e| e.commit),
                end.map(|e| e.commit)
            ),
        }
    }

    fn feed(
        &mut self,
        driver: &mut TestDriver<Market>,
        batch: &mut RecordBatch,
        idx: usize,
        input: &mut Input,
        range: Range<i64>,
    ) -> Result<()> {
        let mut at = range.start;
        let topic = TopicIdx(idx as u16);
        // What retention took away stands in Bronze.
        while at < range.end.min(input.cursor.low) {
            anyhow::ensure!(
                input.topic == topics::TICKS,
                "{} begins at offset {}: offsets {at}.. are gone",
                input.topic,
                input.cursor.low
            );
            let end = range.end.min(input.cursor.low);
            let records = self.bronze(input, at..end)?;
            batch.clear();
            for r in &records {
                let (key, value) = (r.key.as_deref(), r.value.as_deref());
                batch.push(topic, self.number, r.offset, r.timestamp_ms, key, value);
            }
            self.rerun.from_bronze += records.len() as u64;
            self.pipe(driver, batch)?;
            at = end;
        }
        if at >= range.end {
            return Ok(());
        }
        let number = self.number;
        batch.clear();
        input.cursor.until(range.end, |r| {
            batch.push(topic, number, r.offset, r.timestamp_ms, r.key, r.value);
            if batch.len() >= CHUNK {
                driver.pipe_batch(batch)?;
                self.rerun.records += batch.len() as u64;
                self.progress.add(batch.len() as u64);
                batch.clear();
            }
            Ok(())
        })?;
        self.pipe(driver, batch)
    }

    fn pipe(&mut self, driver: &mut TestDriver<Market>, batch: &mut RecordBatch) -> Result<()> {
        driver.pipe_batch(batch)?;
        self.rerun.records += batch.len() as u64;
        self.progress.add(batch.len() as u64);
        batch.clear();
        Ok(())
    }

    /// Records of a range out of Bronze, read ahead window by window.
    fn bronze(&self, input: &mut Input, range: Range<i64>) -> Result<Vec<bronze::Stored>> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if !input.window.contains(&at) {
                input.window = at..at.saturating_add(WINDOW);
                let (bronze, codec) = (&self.tables.bronze, &self.app.codec);
                let read = bronze::offsets(bronze, codec, self.number, input.window.clone());
                input.stored = self.runtime.block_on(read)?.into();
            }
            let end = range.end.min(input.window.end);
            while input.stored.front().is_some_and(|r| r.offset < end) {
                found.extend(input.stored.pop_front());
            }
            at = end;
        }
        Ok(found)
    }
}

/// An input topic's partition, and what was read ahead of it from Bronze.
struct Input {
    topic: &'static str,
    cursor: Cursor,
    window: Range<i64>,
    stored: std::collections::VecDeque<bronze::Stored>,
}

impl Input {
    fn open(app: &App, topic: &'static str, partition: i32) -> Result<Input> {
        Ok(Input {
            topic,
            cursor: Cursor::open(&app.config, topic, partition, 0)?,
            window: 0..0,
            stored: std::collections::VecDeque::new(),
        })
    }
}

fn driver(topology: &Topology<Market>, partition: i32) -> Result<TestDriver<Market>> {
    Ok(TestDriver::over(
        topology,
        "replay",
        StateDb::memory(),
        partition,
    )?)
}

/// Takes Silver and Gold records in; later ones replace earlier ones.
fn collect(
    codec: &Codec,
    outputs: Vec<OutputRecord>,
    silver: Option<&mut Rows>,
    gold: Option<&mut Rows>,
) -> Result<()> {
    let mut into = [silver, gold];
    for record in outputs {
        let value = record.value.as_deref().unwrap_or_default();
        let (rows, row) = match record.topic.as_str() {
            topics::OHLCV => (0, Row::of_bar(&codec.decode_bar(value)?)),
            topics::METRICS => (1, Row::of_metrics(&codec.decode_metrics(value)?)),
            _ => continue,
        };
        let (Some(rows), Some(key)) = (&mut into[rows], record.key) else {
            continue;
        };
        match row {
            Some(row) => rows.insert(key, row),
            None => rows.remove(&key),
        };
    }
    Ok(())
}

/// What a range is asked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// Trade time, µs.
    Time(i64),
    /// Offset of `market.ticks` by partition; other partitions are left out.
    Offsets(BTreeMap<i32, i64>),
}

/// Replays the trades of a range of trade time out of Bronze, widened to whole days, with no bar too old for a
/// correction; and before it what Gold's longest window needs.
///
/// # Errors
/// Catalog or storage; Bronze is behind Silver; nothing in the range.
pub fn range(
    app: &App,
    lake: &Lakehouse,
    runtime: &Handle,
    from: &From,
    to: Option<i64>,
    quiet: bool,
) -> Result<Rerun> {
    let tables = runtime.block_on(Tables::open(lake))?;
    let partitions: Vec<i32> = match from {
        From::Time(_) => (0..app.config.kafka.partitions).collect(),
        From::Offsets(offsets) => offsets.keys().copied().collect(),
    };
    let dates = runtime.block_on(dates(&tables, from, to))?;
    let windows = &app.config.gold.windows;
    let longest = windows
        .iter()
        .copied()
        .max()
        .unwrap_or(1)
        .max(1)
        .unsigned_abs();
    let begin = runtime.block_on(closes_before(&tables, dates.start, longest as usize))?;

    let mut config = pipeline_config(&app.config);
    // The remedy for `too_late`: here no bar has left the store.
    config.retention_1m = i64::MAX / 4;
    let topology = finlake_pipeline::build(&config, app.codec.clone())?;
    let mut rerun = Rerun::default();
    let (mut silver, mut gold) = (Replayed::default(), Replayed::default());
    let progress = Progress::new(quiet, "replaying", "records", None);
    for &p in &partitions {
        let (held, cut) = (tables.bronze.position(p), tables.silver.position(p));
        anyhow::ensure!(
            held.input_end >= cut.input_end,
            "bronze.market_ticks is at input position {} of partition {p} and Silver at {}: run again when the sink has \
             committed Bronze",
            held.input_end,
            cut.input_end
        );
        let read = bronze::days(&tables.bronze, &app.codec, p, begin..dates.end);
        let mut records = runtime.block_on(read)?;
        records.retain(|r| r.offset < cut.input_end);
        rerun.from_bronze += records.len() as u64;
        let mut driver = driver(&topology, p)?;
        let (mut bars, mut metrics) = (Rows::new(), Rows::new());
        let mut batch = RecordBatch::new();
        for chunk in records.chunks(CHUNK) {
            batch.clear();
            for r in chunk {
                let (key, value) = (r.key.as_deref(), r.value.as_deref());
                batch.push(TopicIdx(0), p, r.offset, r.timestamp_ms, key, value);
            }
            driver.set_now(chunk.iter().map(|r| r.sys_from).max().unwrap_or(0));
            driver.pipe_batch(&batch)?;
            driver.commit()?;
            collect(
                &app.codec,
                driver.take_outputs(),
                Some(&mut bars),
                Some(&mut metrics),
            )?;
            rerun.records += chunk.len() as u64;
            progress.add(chunk.len() as u64);
        }
        driver.stop()?;
        let outputs = driver.take_outputs();
        collect(&app.codec, outputs, Some(&mut bars), Some(&mut metrics))?;
        for (key, row) in bars {
            let rows = if row.closed {
                &mut silver.settled
            } else {
                &mut silver.last
            };
            rows.insert(key, row);
        }
        gold.settled.extend(metrics);
    }
    progress.done();
    let (mut bars, mut metrics) = runtime.block_on(async {
        let bars = live::bars(&tables.silver, Some(&dates)).await?;
        let metrics = live::metrics(&tables.gold, windows, Some(&dates)).await?;
        anyhow::Ok((bars, metrics))
    })?;
    only(&mut silver, &mut gold, &dates);
    if matches!(from, From::Offsets(_)) {
        // Other partitions' keys are not asked for: those of these partitions are the ones that were fed.
        let symbols = runtime.block_on(symbols(&tables, &partitions))?;
        let mine = |key: &[u8]| symbols.iter().any(|s| key.starts_with(s));
        bars.retain(|key, _| mine(key));
        metrics.retain(|key, _| mine(key));
    }
    rerun.compared((&bars, &silver), (&metrics, &gold));
    Ok(rerun)
}

/// `source:symbol:` of everything that Silver holds of these partitions.
async fn symbols(
    tables: &Tables,
    partitions: &[i32],
) -> Result<std::collections::BTreeSet<Vec<u8>>> {
    let mut found = std::collections::BTreeSet::new();
    for &p in partitions {
        let filter = Filter::all().partition(p).current().interval("1d");
        let scan = Scan::columns(&["source", "symbol"]).filter(filter);
        let batch = tables.silver.collect(&scan).await?;
        let (source, symbol) = (
            live::texts(&batch, "source")?,
            live::texts(&batch, "symbol")?,
        );
        for i in 0..batch.num_rows() {
            let mut key = Vec::new();
            finlake_schemas::keys::input(source.value(i), symbol.value(i), &mut key);
            key.push(b':');
            found.insert(key);
        }
    }
    Ok(found)
}

/// Drops what was fed only so that Gold has its closes.
fn only(silver: &mut Replayed, gold: &mut Replayed, dates: &Range<i32>) {
    let start_of = |key: &[u8]| -> Option<i64> {
        let text = std::str::from_utf8(key).ok()?;
        text.rsplit(':').next()?.parse().ok()
    };
    let inside = |key: &Vec<u8>, _: &mut Row| {
        start_of(key).is_some_and(|us| dates.contains(&(us.div_euclid(DAY) as i32)))
    };
    silver.settled.retain(inside);
    silver.last.retain(inside);
    let days: std::collections::BTreeSet<String> =
        dates.clone().map(finlake_schemas::keys::iso_date).collect();
    gold.settled.retain(|key, _| {
        let date = key.rsplit(|b| *b == b':').next();
        date.and_then(|d| std::str::from_utf8(d).ok())
            .is_some_and(|d| days.contains(d))
    });
}

/// Whole days that hold the range.
async fn dates(tables: &Tables, from: &From, to: Option<i64>) -> Result<Range<i32>> {
    let start = match from {
        From::Time(at) => *at,
        From::Offsets(offsets) => {
            let mut least: Option<i64> = None;
            for (&p, &offset) in offsets {
                let found = bronze::earliest(&tables.bronze, p, offset).await?;
                least = least.into_iter().chain(found).min();
            }
            least.context("Bronze holds no trade at or after these offsets")?
        }
    };
    let newest = tables
        .silver
        .collect(&Scan::columns(&["bar_end"]).filter(Filter::all().current().interval("1d")))
        .await?;
    let ends = live::column::<arrow::datatypes::TimestampMicrosecondType>(&newest, "bar_end")?;
    let Some(end) = ends.values().iter().copied().max() else {
        bail!("silver.market_ohlcv has no bars yet");
    };
    let end = to.unwrap_or(i64::MAX).min(end);
    if start >= end {
        bail!(
            "the range begins at {} and ends at {}: there is nothing in it",
            crate::output::format_instant(start),
            crate::output::format_instant(end)
        );
    }
    let day = |us: i64| us.div_euclid(DAY) as i32;
    Ok(day(start)..day(end - 1) + 1)
}

/// The first day of which the window needs the close: for each symbol `n` + 1 closes before `first`, the least of them.
async fn closes_before(tables: &Tables, first: i32, n: usize) -> Result<i32> {
    let filter = Filter::all()
        .current()
        .interval("1d")
        .dates(EARLIEST..first);
    let scan = Scan::columns(&["source", "symbol", "trade_date"]).filter(filter);
    let batch = tables.silver.collect(&scan).await?;
    let (source, symbol) = (
        live::texts(&batch, "source")?,
        live::texts(&batch, "symbol")?,
    );
    let date = live::column::<arrow::datatypes::Date32Type>(&batch, "trade_date")?;
    let mut closes: BTreeMap<(&str, &str), Vec<i32>> = BTreeMap::new();
    for i in 0..batch.num_rows() {
        let key = (source.value(i), symbol.value(i));
        closes.entry(key).or_default().push(date.value(i));
    }
    let firsts = closes.into_values().map(|mut dates| {
        dates.sort_unstable();
        dates[dates.len().saturating_sub(n + 1)]
    });
    Ok(firsts.min().unwrap_or(first))
}
