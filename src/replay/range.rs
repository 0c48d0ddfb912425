//! A range of trade time again, out of Bronze: widened to whole days, and to the closes that Gold's windows need.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, bail};
use finlake_lakehouse::{Filter, Lakehouse, Scan};
use finlake_market::interval::DAY;
use finlake_topology::{OutputRecord, RecordBatch, TopicIdx};
use tokio::runtime::Handle;

use super::compare::{Replayed, Rows};
use super::rerun::{CHUNK, Rerun, Tables, collect, driver};
use super::shadow::{self, Latest, Shadow};
use super::{bronze, live};
use crate::app::{App, pipeline_config};
use crate::output::Progress;

/// 0001-01-01: before any market, and within what the date transforms take.
const EARLIEST: i32 = -719_162;

/// Which range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub from: From,
    /// Trade time, µs, exclusive; none: to the newest bar.
    pub to: Option<i64>,
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
/// correction; and before it what Gold's longest window needs.
///
/// # Errors
/// Catalog or storage; Bronze is behind Silver; nothing in the range.
pub fn range(
    app: &App,
    lake: &Lakehouse,
    keep: Option<&Lakehouse>,
    runtime: &Handle,
    asked: &Asked,
    quiet: bool,
) -> Result<Rerun> {
    let tables = runtime.block_on(Tables::open(lake))?;
    let (from, to) = (&asked.from, asked.to);
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
    let mut shadow = match keep {
        Some(keep) => {
            let about = about(&tables, &partitions, &dates);
            Some(Shadow::open(keep, app.codec.clone(), runtime, &about)?)
        }
        None => None,
    };

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
        let (mut bars, mut metrics, mut latest) = (Rows::new(), Rows::new(), Latest::default());
        let mut take = |outputs: Vec<OutputRecord>| {
            if shadow.is_some() {
                latest.take(&app.codec, &outputs)?;
            }
            collect(&app.codec, outputs, Some(&mut bars), Some(&mut metrics))
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
            rerun.records += chunk.len() as u64;
            progress.add(chunk.len() as u64);
        }
        driver.stop()?;
        take(driver.take_outputs())?;
        if let Some(shadow) = &mut shadow {
            latest.retain(|key| bar_of(key, &dates), |key| metrics_of(key, &dates));
            shadow.begin(p)?;
            shadow.versions(&latest, cut.input_end, asked.now)?;
        }
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
    if let Some(shadow) = &mut shadow {
        let others = (0..app.config.kafka.partitions).filter(|p| !partitions.contains(p));
        shadow.leave_out(&others.collect::<Vec<_>>(), asked.now)?;
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
    rerun.keep(shadow)?;
    Ok(rerun)
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
