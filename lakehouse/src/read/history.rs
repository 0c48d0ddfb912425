//! The versions of one key, oldest first: who closed what, and the input behind each.

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, cast, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use futures::TryStreamExt;

use super::{Filter, Pinned, Scan};
use crate::boxed;
use crate::error::{LakeError, Result};
use crate::tables::{OPEN_END, Table};

/// The key of a row of a version table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionKey {
    /// A bar of Silver.
    Bar {
        /// Source.
        source: String,
        /// Symbol.
        symbol: String,
        /// Interval, such as `1m`.
        interval: String,
        /// Start, µs.
        start: i64,
    },
    /// Metrics of Gold.
    Metrics {
        /// Source.
        source: String,
        /// Symbol.
        symbol: String,
        /// Trade date, days since 1970.
        date: i32,
    },
}

impl VersionKey {
    /// The table whose rows have such keys.
    pub fn table(&self) -> Table {
        match self {
            VersionKey::Bar { .. } => Table::Ohlcv,
            VersionKey::Metrics { .. } => Table::Metrics,
        }
    }

    fn filter(&self) -> Filter {
        match self {
            VersionKey::Bar {
                source,
                symbol,
                interval,
                start,
            } => Filter::all()
                .source(source)
                .symbol(symbol)
                .interval(interval)
                .between("bar_start", *start..start.saturating_add(1)),
            VersionKey::Metrics {
                source,
                symbol,
                date,
            } => Filter::all()
                .source(source)
                .symbol(symbol)
                .dates(*date..date.saturating_add(1)),
        }
    }
}

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionInfo {
    /// System time (µs) from which it was known.
    pub sys_from: i64,
    /// System time (µs) at which it was closed; the open end if it was not.
    pub sys_to: i64,
    /// sys_from of the version that closed it, if that is in the table too; a closed version
    /// without one was retracted.
    pub closed_by: Option<i64>,
    /// The version it says it replaces.
    pub prev_sys_from: Option<i64>,
    /// Revision.
    pub revision: i32,
    /// Task commit that emitted it.
    pub commit: i64,
    /// Position of `market.ticks` it reflects, exclusive.
    pub ticks_offset: i64,
    /// Position of `market.bars` it reflects, exclusive.
    pub bars_offset: i64,
    /// Kafka partition of its record (input and output alike).
    pub kafka_partition: i32,
    /// Offset of its record on the output topic.
    pub kafka_offset: i64,
    /// File it stands in.
    pub file: String,
    /// Row in that file, from 0.
    pub row: u64,
}

impl VersionInfo {
    /// Whether it holds now.
    pub fn is_current(&self) -> bool {
        self.sys_to == OPEN_END
    }
}

/// All versions of a key.
#[derive(Debug, Clone)]
pub struct History {
    /// What versions are about, by (sys_from, sys_to), then offset.
    pub versions: Vec<VersionInfo>,
    /// The whole rows in the same order.
    pub rows: RecordBatch,
}

impl Pinned {
    /// All rows of a key, by sys_from. Empty if the table never held it.
    ///
    /// # Errors
    /// `Config` if this is not the key's table, `Storage`, `Parquet`.
    #[boxed]
    pub async fn history(&self, key: &VersionKey) -> Result<History> {
        if key.table() != self.table {
            return Err(LakeError::Config(format!(
                "a key of {} was looked for in {}",
                key.table(),
                self.table
            )));
        }
        let scan = Scan::default().filter(key.filter());
        let parts: Vec<_> = self.scan(&scan).await?.try_collect().await?;
        let mut places = Vec::new();
        for p in &parts {
            places.extend(p.row_numbers().into_iter().map(|n| (p.file.to_string(), n)));
        }
        let rows = match parts.first() {
            None => RecordBatch::new_empty(self.def.arrow_schema()),
            Some(first) => {
                let batches: Vec<&RecordBatch> = parts.iter().map(|p| &p.batch).collect();
                arrow::compute::concat_batches(&first.batch.schema(), batches)?
            }
        };
        let column = |name: &str| {
            rows.column_by_name(name)
                .cloned()
                .ok_or_else(|| LakeError::Internal(format!("{} without {name}", self.table)))
        };
        let order: UInt32Array = if rows.num_rows() == 0 {
            UInt32Array::from(Vec::<u32>::new())
        } else {
            let by = ["sys_from", "sys_to", "kafka_offset"]
                .into_iter()
                .map(|name| {
                    Ok(SortColumn {
                        values: column(name)?,
                        options: None,
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            lexsort_to_indices(&by, None)?
        };
        let rows = take_record_batch(&rows, &order)?;
        let long = |name: &str| -> Result<Vec<Option<i64>>> {
            let c = rows
                .column_by_name(name)
                .ok_or_else(|| LakeError::Internal(format!("{} without {name}", self.table)))?;
            let longs = cast(c, &DataType::Int64)?;
            Ok(longs.as_primitive::<Int64Type>().iter().collect())
        };
        let int = |name: &str| -> Result<Vec<i32>> {
            let c = rows
                .column_by_name(name)
                .ok_or_else(|| LakeError::Internal(format!("{} without {name}", self.table)))?;
            let ints = cast(c, &DataType::Int32)?;
            let ints = ints.as_primitive::<Int32Type>();
            Ok((0..ints.len())
                .map(|i| if ints.is_valid(i) { ints.value(i) } else { 0 })
                .collect())
        };
        let (from, to, prev) = (long("sys_from")?, long("sys_to")?, long("prev_sys_from")?);
        let (commit, ticks, bars) = (long("commit")?, long("ticks_offset")?, long("bars_offset")?);
        let offset = long("kafka_offset")?;
        let (revision, partition) = (int("revision")?, int("kafka_partition")?);
        let versions = order
            .values()
            .iter()
            .enumerate()
            .map(|(i, at)| {
                let sys_to = to[i].unwrap_or(OPEN_END);
                let (file, row) = places[*at as usize].clone();
                VersionInfo {
                    sys_from: from[i].unwrap_or_default(),
                    sys_to,
                    closed_by: from.iter().flatten().find(|s| **s == sys_to).copied(),
                    prev_sys_from: prev[i],
                    revision: revision[i],
                    commit: commit[i].unwrap_or_default(),
                    ticks_offset: ticks[i].unwrap_or_default(),
                    bars_offset: bars[i].unwrap_or_default(),
                    kafka_partition: partition[i],
                    kafka_offset: offset[i].unwrap_or_default(),
                    file,
                    row,
                }
            })
            .collect();
        Ok(History { versions, rows })
    }
}
