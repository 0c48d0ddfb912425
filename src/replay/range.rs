//! A range of trade time again, out of Bronze: widened to whole days, and to the closes that Gold's windows need.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, Result, bail};
use finlake_lakehouse::{Filter, Lakehouse, Pinned, Scan, Table};
use finlake_market::interval::DAY;
use finlake_pipeline::Market;
use finlake_topology::{OutputRecord, RecordBatch, TestDriver, TopicIdx};
use tokio::runtime::Handle;

use super::compare::{Replayed, Rows, Sides};
use super::corrected::{self, Corrected};
use super::keys::{self, Wanted};
use super::rerun::{CHUNK, Rerun, Tables, collect, driver, shadow_of};
use super::shadow::{self, Latest, Shadow};
use super::{bronze, live};
use crate::app::{App, pipeline_config};
use crate::output::Progress;

/// 0001-01-01: before any market, and within what the date transforms take.
const EARLIEST: i32 = -719_162;
/// 9999-12-31: after any.
const LATEST: i32 = 2_932_896;
/// The interval that Gold takes its closes from.
const DAILY: &str = "1d";

/// Which range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub from: From,
    /// Trade time, µs, exclusive; none: to the newest bar.
    pub to: Option<i64>,
    /// Only these keys are compared; none: all.
    pub keys: Vec<Wanted>,
    /// When it is asked, µs: the system time of what a shadow gets.
    pub now: i64,
}

/// Where a range begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// Trade time, µs.
    Time(i64),
    /// Offset of `market.ticks` by partition; other partitions are left out.
    Offsets(BTreeMap<i32, i64>),
}

/// Replays the trades of a range of trade time out of Bronze, widened to whole days, with no bar too old for a
/// correction; and before it what Gold's longest window needs. Bars that somebody corrected are set apart.
///
/// # Errors
/// Catalog or storage; Bronze is behind Silver; nothing in the range, or nothing of the keys.
pub fn range(
    app: &App,
    lake: &Lakehouse,
    keep: Option<&Lakehouse>,
    runtime: &Handle,
    asked: &Asked,
    quiet: bool,
) -> Result<Rerun> {
    let tables = runtime.block_on(Tables::open(lake))?;
    let partitions: Vec<i32> = match &asked.from {
        From::Time(_) => (0..app.config.kafka.partitions).collect(),
        From::Offsets(offsets) => offsets.keys().copied().collect(),
    };
    let corrections = runtime.block_on(lake.snapshot(Table::Bars))?;
    current(&tables, &corrections, &partitions)?;
    let dates = runtime.block_on(dates(&tables, &asked.from, asked.to))?;
    let longest = longest(&app.config.gold.windows);
    let begin = runtime.block_on(closes_before(&tables, dates.start, longest))?;
    let days = begin..dates.end;
    let find = Corrected::find(&corrections, &tables.silver, &days);
    let mut corrected = runtime.block_on(find)?;
    let about = about(&tables, &partitions, &dates);
    let mut shadow = shadow_of(app, keep, runtime, &about)?;
    let mut rerun = Rerun {
        asked_bronze: true,
        ..Rerun::default()
    };
    let (mut silver, mut gold) = (Replayed::default(), Replayed::default());
    let progress = Progress::new(quiet, "replaying", "records", None);
    let behind = until_closed(&tables, &partitions, &dates, longest_bar(app));
    let mut feed = Feed {
        app,
        tables: &tables,
        runtime,
        days: begin..runtime.block_on(behind)?,
        dates: &dates,
        now: asked.now,
        progress: &progress,
        rerun: &mut rerun,
    };
    feed.partitions(&partitions, shadow.as_mut(), [&mut silver, &mut gold])?;
    progress.done();
    if !corrected.is_empty() {
        let live = runtime.block_on(closes(&tables, days))?;
        let replayed = corrected::closes([&silver.settled, &silver.last], DAILY);
        corrected.follow(DAILY, longest, [&live, &replayed]);
    }
    only(&mut silver, &mut gold, &dates);
    let (bars, metrics) = live_rows(app, &tables, runtime, asked, (&partitions, dates))?;
    let mut sides = Sides {
        bars,
        metrics,
        silver,
        gold,
    };
    keys::narrow(&asked.keys, &mut sides)?;
    rerun.compared(&sides);
    rerun.set_apart(&corrected);
    rerun.keep(shadow, [])?;
    Ok(rerun)
}

/// What the tables hold of the range: bars and metrics.
fn live_rows(
    app: &App,
    tables: &Tables,
    runtime: &Handle,
    asked: &Asked,
    (partitions, dates): (&[i32], Range<i32>),
) -> Result<(Rows, Rows)> {
    let which = live::Which {
        dates: Some(dates),
        known: None,
        partitions: matches!(asked.from, From::Offsets(_)).then(|| partitions.to_vec()),
    };
    runtime.block_on(async {
        let bars = live::bars(&tables.silver, &which).await?;
        let windows = &app.config.gold.windows;
        Ok((bars, live::metrics(&tables.gold, windows, &which).await?))
    })
}

/// What Gold's windows reach back, in closes.
fn longest(windows: &[i32]) -> usize {
    let longest = windows.iter().copied().max().unwrap_or(1);
    longest.max(1).unsigned_abs() as usize
}

/// The longest bar, in whole days.
fn longest_bar(app: &App) -> i32 {
    let lengths = app.config.stream.intervals.list().iter();
    let longest = lengths.map(|i| i.length()).max().unwrap_or(DAY);
    i32::try_from((longest + DAY - 1) / DAY).unwrap_or(1)
}

/// Refuses tables of input records that are behind what Silver reflects.
fn current(tables: &Tables, corrections: &Pinned, partitions: &[i32]) -> Result<()> {
    for &p in partitions {
        let (held, cut) = (tables.bronze.position(p), tables.silver.position(p));
        anyhow::ensure!(
            held.input_end >= cut.input_end,
            "bronze.market_ticks is at input position {} of partition {p} and Silver at {}: run again when the sink has \
             committed Bronze",
            held.input_end,
            cut.input_end
        );
        let held = corrections.position(p);
        anyhow::ensure!(
            held.commit >= cut.commit,
            "bronze.market_bars is at commit {} of partition {p} and Silver at {}: corrections may be missing from it. \
             Run again when the sink has committed it",
            held.commit,
            cut.commit
        );
    }
    Ok(())
}

/// Feeds the trades of the days to tasks that begin with nothing.
struct Feed<'a> {
    app: &'a App,
    tables: &'a Tables,
    runtime: &'a Handle,
    /// Those fed, and of them those asked for.
    days: Range<i32>,
    dates: &'a Range<i32>,
    now: i64,
    progress: &'a Progress,
    rerun: &'a mut Rerun,
}

impl Feed<'_> {
    fn partitions(
        &mut self,
        partitions: &[i32],
        mut shadow: Option<&mut Shadow>,
        [silver, gold]: [&mut Replayed; 2],
    ) -> Result<()> {
        let mut config = pipeline_config(&self.app.config);
        // The remedy for `too_late`: here no bar has left the store.
        config.retention_1m = i64::MAX / 4;
        let topology = finlake_pipeline::build(&config, self.app.codec.clone())?;
        for &p in partitions {
            let driver = driver(&topology, p)?;
            self.partition(p, driver, shadow.as_deref_mut(), [silver, gold])?;
        }
        if let Some(shadow) = shadow {
            let others = (0..self.app.config.kafka.partitions).filter(|p| !partitions.contains(p));
            shadow.leave_out(&others.collect::<Vec<_>>(), self.now)?;
        }
        Ok(())
    }

    /// Takes what one partition gives: bars and metrics. Which version of an unfinished bar the table has is the
    /// task's clock's.
    fn partition(
        &mut self,
        p: i32,
        mut driver: TestDriver<Market>,
        shadow: Option<&mut Shadow>,
        [silver, gold]: [&mut Replayed; 2],
    ) -> Result<()> {
        let codec = &self.app.codec;
        let end = self.tables.silver.position(p).input_end;
        let (table, days) = (&self.tables.bronze, self.days.clone());
        let mut records = self.runtime.block_on(async {
            let mut records = bronze::days(table, codec, p, days.clone()).await?;
            bronze::earlier_of_same_id(table, codec, p, days, &mut records).await?;
            anyhow::Ok(records)
        })?;
        records.retain(|r| r.offset < end);
        self.rerun.from_bronze += records.len() as u64;
        let mut latest = Latest::default();
        let mut take = |outputs: Vec<OutputRecord>| {
            if shadow.is_some() {
                latest.take(codec, &outputs)?;
            }
            collect(codec, outputs, |layer, key, row| {
                [&mut *silver, &mut *gold][layer].take(key, row, true);
            })
        };
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
            take(driver.take_outputs())?;
            self.rerun.records += chunk.len() as u64;
            self.progress.add(chunk.len() as u64);
        }
        driver.stop()?;
        take(driver.take_outputs())?;
        if let Some(shadow) = shadow {
            let dates = self.dates;
            latest.retain(|key| bar_of(key, dates), |key| metrics_of(key, dates));
            shadow.begin(p)?;
            shadow.versions(&latest, end, self.now)?;
        }
        Ok(())
    }
}

/// What the tables of a shadow say about the range.
fn about(tables: &Tables, partitions: &[i32], dates: &Range<i32>) -> BTreeMap<String, String> {
    let date = finlake_schemas::keys::iso_date;
    let cuts = partitions
        .iter()
        .map(|p| (*p, tables.silver.position(*p).input_end));
    let range = format!("{} to {}", date(dates.start), date(dates.end - 1));
    BTreeMap::from([
        ("range".to_owned(), range),
        ("input-ends".to_owned(), shadow::positions(cuts)),
        ("compared-with".to_owned(), tables.named()),
    ])
}

/// Drops what was fed only so that Gold has its closes.
fn only(silver: &mut Replayed, gold: &mut Replayed, dates: &Range<i32>) {
    silver.settled.retain(|key, _| bar_of(key, dates));
    silver.last.retain(|key, _| bar_of(key, dates));
    gold.settled.retain(|key, _| metrics_of(key, dates));
}

/// The last part of a key.
fn end_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.rsplit(':').next()
}

/// Whether a bar begins on one of these days.
fn bar_of(key: &[u8], dates: &Range<i32>) -> bool {
    let start: Option<i64> = end_of(key).and_then(|text| text.parse().ok());
    start.is_some_and(|us| dates.contains(&(us.div_euclid(DAY) as i32)))
}

/// Whether metrics are of one of these days. Dates as the keys spell them are in order as texts.
fn metrics_of(key: &[u8], dates: &Range<i32>) -> bool {
    let iso = finlake_schemas::keys::iso_date;
    end_of(key).is_some_and(|date| (iso(dates.start)..iso(dates.end)).contains(&date.to_owned()))
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
        .collect(&Scan::columns(&["bar_end"]).filter(Filter::all().current().interval(DAILY)))
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

/// The day up to which trades are fed: so that the bars that begin on the last of the days are whole, and closed where the
/// live ones are, which takes a later trade of their source in their partition.
async fn until_closed(
    tables: &Tables,
    partitions: &[i32],
    dates: &Range<i32>,
    longest_bar: i32,
) -> Result<i32> {
    let first = dates.end.saturating_add(longest_bar - 1);
    let mut end = first;
    for &p in partitions {
        let filter = Filter::all()
            .current()
            .interval(DAILY)
            .partition(p)
            .dates(first..LATEST);
        let scan = Scan::columns(&["source", "trade_date"]).filter(filter);
        let batch = tables.silver.collect(&scan).await?;
        let source = live::texts(&batch, "source")?;
        let date = live::column::<arrow::datatypes::Date32Type>(&batch, "trade_date")?;
        let mut next: BTreeMap<&str, i32> = BTreeMap::new();
        for i in 0..batch.num_rows() {
            let first = next.entry(source.value(i)).or_insert(i32::MAX);
            *first = date.value(i).min(*first);
        }
        end = end.max(next.into_values().max().map_or(end, |day| day + 1));
    }
    Ok(end)
}

/// The daily closes of these days: `source:symbol:` and day.
async fn closes(tables: &Tables, days: Range<i32>) -> Result<BTreeSet<(Vec<u8>, i32)>> {
    let filter = Filter::all()
        .current()
        .interval(DAILY)
        .flag("retracted", false)
        .dates(days);
    Ok(days_of(tables, filter).await?.into_iter().collect())
}

/// Instrument (`source:symbol:`) and day of the bars that pass a filter.
async fn days_of(tables: &Tables, filter: Filter) -> Result<Vec<(Vec<u8>, i32)>> {
    let scan = Scan::columns(&["source", "symbol", "trade_date"]).filter(filter);
    let batch = tables.silver.collect(&scan).await?;
    let (source, symbol) = (
        live::texts(&batch, "source")?,
        live::texts(&batch, "symbol")?,
    );
    let date = live::column::<arrow::datatypes::Date32Type>(&batch, "trade_date")?;
    let of = |i| (instrument(source.value(i), symbol.value(i)), date.value(i));
    Ok((0..batch.num_rows()).map(of).collect())
}

/// `source:symbol:`.
pub(super) fn instrument(source: &str, symbol: &str) -> Vec<u8> {
    let mut key = Vec::new();
    finlake_schemas::keys::input(source, symbol, &mut key);
    key.push(b':');
    key
}

/// The first day of which the window needs the close: for each symbol `n` + 1 closes before `first`, the least of them.
async fn closes_before(tables: &Tables, first: i32, n: usize) -> Result<i32> {
    let filter = Filter::all()
        .current()
        .interval(DAILY)
        .dates(EARLIEST..first);
    let mut closes: BTreeMap<Vec<u8>, Vec<i32>> = BTreeMap::new();
    for (instrument, day) in days_of(tables, filter).await? {
        closes.entry(instrument).or_default().push(day);
    }
    let firsts = closes.into_values().map(|mut dates| {
        dates.sort_unstable();
        dates[dates.len().saturating_sub(n + 1)]
    });
    Ok(firsts.min().unwrap_or(first))
}
