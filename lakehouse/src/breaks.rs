//! `quality.breaks`: versions of breaks, sunk by the offsets of their own topic.
//!
//! ```text
//! let mut sink = BreaksSink::open(&lake).await?;
//! sink.assign(&[0, 1]).await?;                       // owns these Kafka partitions of quality.breaks
//! let from = sink.next_offset(0);                    // where to read on; None: from the log start
//! sink.apply(vec![BreakBatch { partition: 0, start, next, records }]).await?;  // one snapshot
//! ```
//!
//! Exactly once: the next offset of each partition stands in the table's properties and moves in
//! the same commit as the rows, by the same compare-and-swap as every table. A batch must begin at
//! the stored offset; what the table holds already is trimmed, a gap is refused.
//!
//! Bi-temporal, by the rules of every table: a record asserts its break from the time it was first
//! known on (`valid_from`, the same for all versions); it closes the open version and opens its
//! own, so `resolved` closes `opened`. A record that says what the open version says is no new
//! version, nor is one that comes out of turn ([`follows`]): two runs that found the same thing at
//! the same time open it once. System time is the record's, raised where needed so that it grows within a partition.
//! Open breaks are `is_current AND status <> 'resolved'`.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use finlake_schemas::{Break, BreakStatus, hash128, keys};

use crate::batch::{Outcome, PartitionBatch, Rows, SinkBatch};
use crate::boxed;
use crate::error::{LakeError, Result};
use crate::lake::Lakehouse;
use crate::plan::{Cut, OffsetRange};
use crate::read::{Filter, Scan};
use crate::rows::{BreakAt, VersionRows};
use crate::sink::TableSink;
use crate::tables::Table;

/// Records of one Kafka partition of the breaks topic.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakBatch {
    /// Kafka partition.
    pub partition: i32,
    /// Position from which the records were read.
    pub start: i64,
    /// Position after them; beyond the last record's offset where offsets hold no record.
    pub next: i64,
    /// Offset and record, ascending.
    pub records: Vec<(i64, Break)>,
}

/// Whether a record makes a version after what is known of its break (`None`: nothing). What is
/// open is not opened again, or a run that did not know would undo an explanation; what is
/// resolved can only be opened.
pub fn follows(before: Option<BreakStatus>, next: BreakStatus) -> bool {
    match before {
        None => true,
        Some(BreakStatus::Resolved) => next == BreakStatus::Opened,
        Some(_) => next != BreakStatus::Opened,
    }
}

/// The open version of a break.
#[derive(Debug, Clone, Copy)]
struct Open {
    sys_from: i64,
    valid_from: i64,
    status: BreakStatus,
    /// Of what it says.
    content: u128,
}

/// Columns that make two versions of a break differ.
const CONTENT: [&str; 6] = [
    "severity", "status", "expected", "actual", "detail", "found_by",
];

fn content(cells: [Option<&str>; 6]) -> u128 {
    let mut bytes = Vec::new();
    for cell in cells {
        // Null and empty differ; lengths keep neighbours apart.
        match cell {
            None => bytes.push(0),
            Some(text) => {
                bytes.push(1);
                bytes.extend((text.len() as u64).to_le_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    hash128(b"break", &bytes)
}

fn content_of(b: &Break) -> u128 {
    content([
        Some(b.severity.as_str()),
        Some(b.status.as_str()),
        b.expected.as_deref(),
        b.actual.as_deref(),
        Some(&b.detail),
        Some(&b.found_by),
    ])
}

type OpenBreaks = HashMap<Box<[u8]>, Open>;
/// Breaks that a batch leaves open, in the order they came.
type Opened = Vec<(Box<[u8]>, Open)>;

/// The writing half of `quality.breaks` in one process.
#[derive(Debug)]
pub struct BreaksSink {
    lake: Lakehouse,
    sink: TableSink,
    open: BTreeMap<i32, OpenBreaks>,
    /// The index may differ from the table.
    stale: bool,
}

impl BreaksSink {
    /// Opens the table for writing; owns no partition yet.
    ///
    /// # Errors
    /// As [`TableSink::open`].
    #[boxed]
    pub async fn open(lake: &Lakehouse) -> Result<BreaksSink> {
        Ok(BreaksSink {
            lake: lake.clone(),
            sink: TableSink::open(lake, Table::Breaks).await?,
            open: BTreeMap::new(),
            stale: false,
        })
    }

    /// Takes partitions over: reads the table again.
    ///
    /// # Errors
    /// As [`TableSink::assign`].
    #[boxed]
    pub async fn assign(&mut self, partitions: &[i32]) -> Result<()> {
        for p in partitions {
            self.open.entry(*p).or_default();
        }
        self.stale = true;
        self.sink.assign(partitions).await?;
        self.load().await
    }

    /// Gives partitions up.
    pub fn revoke(&mut self, partitions: &[i32]) {
        self.sink.revoke(partitions);
        for p in partitions {
            self.open.remove(p);
        }
    }

    /// Where reading goes on; `None`: the table holds nothing of this partition, begin at the log
    /// start. Exact for assigned partitions.
    pub fn next_offset(&self, partition: i32) -> Option<i64> {
        let at = self.sink.positions().get(&partition)?;
        (at.commit > 0).then_some(at.input_end)
    }

    /// Live data files, as last seen.
    pub fn live_files(&self) -> usize {
        self.sink.live_files()
    }

    async fn load(&mut self) -> Result<()> {
        let pinned = self.lake.snapshot(Table::Breaks).await?;
        for (p, open) in &mut self.open {
            open.clear();
            let scan = Scan::columns(&[
                "break_id",
                "sys_from",
                "valid_from",
                "severity",
                "status",
                "expected",
                "actual",
                "detail",
                "found_by",
            ])
            .filter(Filter::all().current().partition(*p));
            let rows = pinned.collect(&scan).await?;
            let missing = || LakeError::Internal("quality.breaks without its columns".into());
            let text = |name: &str| {
                rows.column_by_name(name)
                    .and_then(|c| c.as_string_opt::<i32>())
                    .ok_or_else(missing)
            };
            let time = |name: &str| -> Result<Vec<i64>> {
                let c = rows.column_by_name(name).ok_or_else(missing)?;
                let longs = cast(c, &DataType::Int64)?;
                Ok(longs.as_primitive::<Int64Type>().values().to_vec())
            };
            let ids = text("break_id")?;
            let statuses = text("status")?;
            let (sys_from, valid_from) = (time("sys_from")?, time("valid_from")?);
            let mut columns = Vec::with_capacity(CONTENT.len());
            for name in CONTENT {
                columns.push(text(name)?);
            }
            for row in 0..rows.num_rows() {
                let mut cells = [None; 6];
                for (cell, column) in cells.iter_mut().zip(&columns) {
                    *cell = column.is_valid(row).then(|| column.value(row));
                }
                let one = Open {
                    sys_from: sys_from[row],
                    valid_from: valid_from[row],
                    status: BreakStatus::from_symbol(statuses.value(row)).ok_or_else(|| {
                        LakeError::Internal(format!(
                            "quality.breaks holds a status {:?}",
                            statuses.value(row)
                        ))
                    })?,
                    content: content(cells),
                };
                if open.insert(ids.value(row).as_bytes().into(), one).is_some() {
                    return Err(LakeError::DuplicateOpenRow {
                        table: Table::Breaks,
                        key: ids.value(row).to_string(),
                    });
                }
            }
        }
        self.stale = false;
        Ok(())
    }

    /// Takes records in: rows and next offsets as one snapshot. Offering them again is safe.
    ///
    /// # Errors
    /// `OffsetGap` if a batch begins past the stored offset; the rest as [`TableSink::commit`].
    #[boxed]
    pub async fn apply(&mut self, batches: Vec<BreakBatch>) -> Result<Outcome> {
        if self.stale {
            self.sink.resync().await?;
            self.load().await?;
        }
        let mut parts = Vec::new();
        let mut moved: Vec<(i32, Opened)> = Vec::new();
        for batch in batches {
            let (part, opened) = self.versions(batch)?;
            if let Some(part) = part {
                moved.push((part.partition, opened));
                parts.push(part);
            }
        }
        if parts.is_empty() {
            return Ok(Outcome::default());
        }
        self.stale = true;
        let outcome = self.sink.commit(SinkBatch { parts }).await?;
        for (p, opened) in moved {
            self.open.entry(p).or_default().extend(opened);
        }
        self.stale = false;
        Ok(outcome)
    }

    /// The versions that a batch makes, and the breaks they leave open.
    fn versions(&self, batch: BreakBatch) -> Result<(Option<PartitionBatch>, Opened)> {
        let partition = batch.partition;
        let known = self.open.get(&partition).ok_or_else(|| {
            LakeError::Internal(format!(
                "partition {partition} of quality.breaks is not assigned to this sink"
            ))
        })?;
        let stored = self
            .sink
            .positions()
            .get(&partition)
            .copied()
            .unwrap_or_default();
        let offered = OffsetRange::new(batch.start, batch.next);
        if stored.commit > 0
            && let Some(missing) = offered.gap(stored.input_end)
        {
            return Err(LakeError::OffsetGap {
                table: Table::Breaks,
                partition,
                stored: missing.start,
                offered: missing.end,
            });
        }
        let from = if stored.commit > 0 {
            stored.input_end
        } else {
            batch.start
        };
        if stored.commit > 0 && offered.trim(from).is_empty() {
            return Ok((None, Vec::new()));
        }
        let commit = stored.commit + 1;
        let mut rows = VersionRows::new(&self.lake.def(Table::Breaks), partition)?;
        let mut changed: HashMap<Box<[u8]>, Open> = HashMap::new();
        let mut order: Vec<Box<[u8]>> = Vec::new();
        let mut clock = stored.frontier;
        for (offset, b) in batch.records.iter().filter(|(o, _)| *o >= from) {
            let mut key = Vec::new();
            keys::breaks(b.break_id, &mut key);
            let key: Box<[u8]> = key.into();
            let open = changed.get(&key).or_else(|| known.get(&key)).copied();
            let says = content_of(b);
            let status = open.map(|o| o.status);
            if open.is_some_and(|o| o.content == says) || !follows(status, b.status) {
                continue;
            }
            clock = b.system_time.max(clock + 1);
            let valid_from = open.map_or(clock, |o| o.valid_from);
            let at = BreakAt {
                valid_from,
                sys_from: clock,
                prev: open.map(|o| o.sys_from),
                commit,
            };
            rows.push_break(b, &at, *offset)?;
            let one = Open {
                sys_from: clock,
                valid_from,
                status: b.status,
                content: says,
            };
            if changed.insert(key.clone(), one).is_none() {
                order.push(key);
            }
        }
        let part = PartitionBatch {
            partition,
            input_start: from,
            cuts: vec![Cut {
                commit,
                input_end: batch.next,
                system_time: clock,
                ..Cut::default()
            }],
            frontier: clock,
            rows: if rows.is_empty() {
                Rows::None
            } else {
                Rows::Versions(rows)
            },
        };
        let opened = order
            .into_iter()
            .filter_map(|k| changed.get(&k).map(|o| (k.clone(), *o)))
            .collect();
        Ok((Some(part), opened))
    }
}
