//! The tables rebuilt from their topics, by the production sink into a warehouse of their own or a shadow, and every
//! version of every row compared with the live tables [INV-7].
//!
//! Rows are compared by the hash of all their columns, summed per partition and run of commits; only where sums differ
//! are rows looked at. A live stream goes on meanwhile: rows of later commits are left out, and what later commits
//! closed counts as open.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use finlake_lakehouse::{Filter, Lakehouse, OPEN_END, Pinned, Position, Scan, Table};
use finlake_schemas::topics;
use futures::TryStreamExt;
use tokio::runtime::Handle;

use super::shadow::{self, Kept};
use crate::app::{App, PlantedFaults, Sinks, ends};
use crate::config::Catalog;
use crate::parts;

/// Commits summed together.
const RUN: i64 = 1 << 12;
/// Differing rows shown per table.
const SHOWN: usize = 20;

/// The tables that follow from topics.
pub const TABLES: [Table; 4] = [Table::Ticks, Table::Ohlcv, Table::Metrics, Table::Bars];

/// What was found of one table.
#[derive(Debug)]
pub struct Verified {
    pub table: Table,
    /// Rows of the live table.
    pub live: u64,
    /// Rows rebuilt, up to the same commits.
    pub rebuilt: u64,
    /// Rows that only one of them holds, at most 20: `-` live, `+` rebuilt, and the row as text.
    pub differences: Vec<String>,
    pub equal: bool,
}

/// Rebuilds and compares. The sink reads under a group of its own, into the shadow `keep`, or into a folder that is
/// removed afterwards.
///
/// # Errors
/// Kafka, catalog or storage; topics that no longer hold everything.
pub fn run(
    app: &App,
    lake: &Lakehouse,
    keep: Option<&Lakehouse>,
    runtime: &Handle,
    name: &str,
) -> Result<(Vec<Verified>, Kept)> {
    let mut live = Vec::new();
    for table in TABLES {
        live.push(runtime.block_on(lake.snapshot(table))?);
    }
    if let Some(shadow) = keep {
        rebuild(app, shadow, runtime, name)?;
        let verified = verified(&live, shadow, runtime)?;
        let about = verified.iter().map(|v| {
            let verdict = if v.equal { "equal" } else { "different" };
            (v.table.name().to_owned(), verdict.to_owned())
        });
        let kept = shadow::finished(shadow, runtime, about.collect())?;
        return Ok((verified, kept));
    }
    let dir = scratch(app, name)?;
    let result = aside(app, &dir, runtime).and_then(|aside| {
        rebuild(app, &aside, runtime, name)?;
        verified(&live, &aside, runtime)
    });
    std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    result.map(|verified| (verified, Kept::new()))
}

fn verified(live: &[Pinned], rebuilt: &Lakehouse, runtime: &Handle) -> Result<Vec<Verified>> {
    let mut verified = Vec::new();
    for (table, live) in TABLES.into_iter().zip(live) {
        let rebuilt = runtime.block_on(rebuilt.snapshot(table))?;
        verified.push(runtime.block_on(compare(table, live, &rebuilt))?);
    }
    Ok(verified)
}

/// A folder beside the data, for the rebuilt tables.
fn scratch(app: &App, name: &str) -> Result<std::path::PathBuf> {
    let dir = app.config.data.path().join(format!("replay-{name}"));
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// A lakehouse in that folder.
fn aside(app: &App, dir: &std::path::Path, runtime: &Handle) -> Result<Lakehouse> {
    let mut config = app.config.clone();
    config.lake.catalog = Catalog::Sqlite {
        path: dir.join("catalog.db"),
    };
    config.lake.warehouse = dir
        .join("warehouse")
        .to_str()
        .context("the data folder's name is not text")?
        .to_owned();
    config.lake.namespace_prefix = None;
    Ok(runtime.block_on(parts::open_lake(&config))?)
}

fn rebuild(app: &App, into: &Lakehouse, runtime: &Handle, name: &str) -> Result<()> {
    let mut config = app.config.clone();
    config.kafka.application_id = format!("{}-{name}", app.config.kafka.application_id);
    config.kafka.instance_id = name.to_owned();
    let drain = ends(&config, topics::LEDGER)?;
    let rebuilding = App {
        config,
        codec: app.codec.clone(),
        topology: app.topology.clone(),
        metrics: Arc::new(crate::serve::metrics::Metrics::new()?),
        faults: PlantedFaults::default(),
    };
    let sinks = Sinks::into(&rebuilding, into.clone(), runtime)?;
    sinks.drain_to(drain);
    // Nobody comes after it: the group is to be empty at once.
    sinks
        .control
        .leave
        .store(true, std::sync::atomic::Ordering::Relaxed);
    sinks.join()
}

type Sums = BTreeMap<(i32, i64), (u64, u128)>;

async fn compare(table: Table, live: &Pinned, rebuilt: &Pinned) -> Result<Verified> {
    let cuts: BTreeMap<i32, Position> = live.watermarks().positions.clone();
    let (a, n) = sums(live, &cuts).await?;
    let (b, m) = sums(rebuilt, &cuts).await?;
    let mut keys: Vec<_> = a.keys().chain(b.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    let mut differences = Vec::new();
    let mut equal = true;
    for key in keys {
        if a.get(&key) == b.get(&key) {
            continue;
        }
        equal = false;
        if differences.len() < SHOWN {
            let (x, y) = (
                rows(live, &cuts, key).await?,
                rows(rebuilt, &cuts, key).await?,
            );
            let only = |one: &[String], other: &[String], sign: &str| {
                let lines = one.iter().filter(|l| other.binary_search(l).is_err());
                lines.map(|l| format!("{sign} {l}")).collect::<Vec<_>>()
            };
            differences.extend(only(&x, &y, "-"));
            differences.extend(only(&y, &x, "+"));
            differences.truncate(SHOWN);
        }
    }
    Ok(Verified {
        table,
        live: n,
        rebuilt: m,
        differences,
        equal,
    })
}

/// Rows and sums of row hashes per partition and run of commits, as of the cuts.
async fn sums(pinned: &Pinned, cuts: &BTreeMap<i32, Position>) -> Result<(Sums, u64)> {
    let mut sums = Sums::new();
    let mut total = 0;
    let mut batches = pinned.scan(&Scan::default()).await?;
    while let Some(found) = batches.try_next().await? {
        let batch = as_of(&found.batch, cuts)?;
        total += batch.num_rows() as u64;
        let hashes = hashes(&batch)?;
        let (partition, commit) = (ints(&batch)?, commits(&batch)?);
        for (i, hash) in hashes.into_iter().enumerate() {
            let at = (partition.value(i), commit.value(i) / RUN);
            let sum = sums.entry(at).or_default();
            sum.0 += 1;
            sum.1 = sum.1.wrapping_add(hash);
        }
    }
    Ok((sums, total))
}

/// Rows of one run as text, sorted.
async fn rows(
    pinned: &Pinned,
    cuts: &BTreeMap<i32, Position>,
    (partition, run): (i32, i64),
) -> Result<Vec<String>> {
    let filter = Filter::all()
        .partition(partition)
        .commits(run * RUN..(run + 1) * RUN);
    let scan = Scan {
        filter,
        ..Scan::default()
    };
    let batch = as_of(&pinned.collect(&scan).await?, cuts)?;
    let mut lines: Vec<String> = (0..batch.num_rows())
        .map(|i| text(&batch, i))
        .collect::<Result<_>>()?;
    lines.sort_unstable();
    Ok(lines)
}

fn text(batch: &RecordBatch, row: usize) -> Result<String> {
    let options = FormatOptions::default().with_null("null");
    let mut line = String::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let formatter = ArrayFormatter::try_new(column, &options)?;
        line.push_str(&format!("{}={} ", field.name(), formatter.value(row)));
    }
    Ok(line)
}

/// One hash per row over all columns.
fn hashes(batch: &RecordBatch) -> Result<Vec<u128>> {
    let schema = batch.schema();
    let columns = schema.fields().iter().map(|f| f.name().as_str());
    Ok(finlake_reconcile::hashes::rows(batch, columns)?)
}

fn ints(batch: &RecordBatch) -> Result<&arrow::array::PrimitiveArray<Int32Type>> {
    super::live::column(batch, "kafka_partition")
}

fn commits(batch: &RecordBatch) -> Result<&arrow::array::PrimitiveArray<Int64Type>> {
    super::live::column(batch, "commit")
}

/// The rows as they stood when the table was at these cuts.
fn as_of(batch: &RecordBatch, cuts: &BTreeMap<i32, Position>) -> Result<RecordBatch> {
    let (partition, commit) = (ints(batch)?, commits(batch)?);
    let cut = |i: usize| cuts.get(&partition.value(i)).copied().unwrap_or_default();
    let keep: BooleanArray = (0..batch.num_rows())
        .map(|i| Some(commit.value(i) <= cut(i).commit))
        .collect();
    let sys_to = super::live::column::<TimestampMicrosecondType>(batch, "sys_to")?;
    let reopened = |i: usize| sys_to.value(i) != OPEN_END && sys_to.value(i) > cut(i).frontier;
    let ends: TimestampMicrosecondArray = (0..batch.num_rows())
        .map(|i| {
            let end = if reopened(i) {
                OPEN_END
            } else {
                sys_to.value(i)
            };
            Some(end)
        })
        .collect::<TimestampMicrosecondArray>()
        .with_timezone("+00:00");
    let current: BooleanArray = ends.values().iter().map(|e| Some(*e == OPEN_END)).collect();
    let columns: Vec<ArrayRef> = batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, column)| match field.name().as_str() {
            "sys_to" => Arc::new(ends.clone()) as ArrayRef,
            "is_current" => Arc::new(current.clone()) as ArrayRef,
            _ => column.clone(),
        })
        .collect();
    let batch = RecordBatch::try_new(batch.schema(), columns)?;
    Ok(filter_record_batch(&batch, &keep)?)
}
