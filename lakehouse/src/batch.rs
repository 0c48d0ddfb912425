//! What the sink is handed and what it answers: batches of whole task commits, outcomes.
//!
//! Pure data and its checks. Data flows: the consumer fills a `SinkBatch`, `sink` takes it apart.

use std::ops::Range;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;

use crate::error::{LakeError, Result};
use crate::plan::{Cut, Offer, OffsetRange};
use crate::rows::{BarsRows, BronzeRows, VersionRows, Versions};

/// Rows of one Kafka partition.
// One per partition and batch, moved once: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Rows {
    /// No rows: only the position or the frontier moves.
    None,
    /// Bronze: trades.
    Bronze(BronzeRows),
    /// Bronze: records of `market.bars`.
    Bars(BarsRows),
    /// Silver, Gold or breaks.
    Versions(VersionRows),
}

impl From<BronzeRows> for Rows {
    fn from(rows: BronzeRows) -> Rows {
        Rows::Bronze(rows)
    }
}

impl From<BarsRows> for Rows {
    fn from(rows: BarsRows) -> Rows {
        Rows::Bars(rows)
    }
}

impl From<VersionRows> for Rows {
    fn from(rows: VersionRows) -> Rows {
        Rows::Versions(rows)
    }
}

/// One Kafka partition's part of a batch.
#[derive(Debug)]
pub struct PartitionBatch {
    /// Kafka partition.
    pub partition: i32,
    /// Input position at which the first commit starts.
    pub input_start: i64,
    /// Whole task commits, ascending.
    pub cuts: Vec<Cut>,
    /// Frontier after the batch (µs).
    pub frontier: i64,
    /// Rows of those commits, in commit order.
    pub rows: Rows,
}

/// What came within a commit interval, over all partitions this process owns.
#[derive(Debug, Default)]
pub struct SinkBatch {
    /// At most one per Kafka partition.
    pub parts: Vec<PartitionBatch>,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// The new snapshot; `None` if everything was in the table already.
    pub snapshot: Option<i64>,
    /// Rows that became visible and open.
    pub opened: u64,
    /// Rows that were closed (moved to history).
    pub closed: u64,
    /// Files written, merged ones included.
    pub files_added: usize,
    /// Files replaced.
    pub files_removed: usize,
    /// Small files merged into others.
    pub files_merged: usize,
    /// Swaps lost to others on the way.
    pub lost_swaps: u32,
    /// Snapshots expired.
    pub expired: usize,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Outcome) {
        self.snapshot = other.snapshot.or(self.snapshot);
        self.opened += other.opened;
        self.closed += other.closed;
        self.files_added += other.files_added;
        self.files_removed += other.files_removed;
        self.files_merged += other.files_merged;
        self.lost_swaps += other.lost_swaps;
        self.expired += other.expired;
    }
}

/// The rows of a partition, finished once and kept over plans.
pub(crate) enum Finished {
    None,
    Bronze(RecordBatch),
    Versions(Versions),
}

impl Finished {
    /// Commit number of each row.
    ///
    /// # Errors
    /// `Internal` (a defect).
    pub(crate) fn commits(&self) -> Result<Vec<i64>> {
        Ok(match self {
            Finished::None => Vec::new(),
            Finished::Bronze(batch) => batch
                .column_by_name("commit")
                .and_then(|c| c.as_primitive_opt::<Int64Type>())
                .ok_or_else(|| LakeError::Internal("Bronze without commit".into()))?
                .values()
                .to_vec(),
            Finished::Versions(v) => v.meta.iter().map(|m| m.commit).collect(),
        })
    }
}

/// The rows of the commits taken, out of ascending commit numbers.
pub(crate) fn taken(numbers: &[i64], commits: OffsetRange) -> Range<usize> {
    numbers.partition_point(|n| *n < commits.start)..numbers.partition_point(|n| *n < commits.end)
}

/// Rows must lie within the offered commits, in their order (INV-13).
pub(crate) fn check_rows(rows: &Finished, offer: &Offer) -> Result<()> {
    let range = offer.cuts.first().zip(offer.cuts.last());
    let mut last = i64::MIN;
    for n in rows.commits()? {
        let inside = range.is_some_and(|(a, b)| a.commit <= n && n <= b.commit);
        if n < last || !inside {
            return Err(LakeError::Internal(format!(
                "a row of commit {n} in partition {} is out of order or outside the batch (INV-13)",
                offer.partition
            )));
        }
        last = n;
    }
    Ok(())
}

/// Both halves of a batch, cut at commit numbers; `None` if no partition has two commits.
pub(crate) fn halves(offers: &[Offer]) -> Option<[Vec<Offer>; 2]> {
    if offers.iter().all(|o| o.cuts.len() < 2) {
        return None;
    }
    let (mut early, mut late) = (Vec::new(), Vec::new());
    for o in offers {
        let mid = o.cuts.len().div_ceil(2);
        let (a, b) = o.cuts.split_at(mid);
        let Some(last) = a.last() else {
            late.push(o.clone());
            continue;
        };
        early.push(Offer {
            cuts: a.to_vec(),
            frontier: if b.is_empty() {
                o.frontier
            } else {
                last.system_time
            },
            ..*o
        });
        if !b.is_empty() {
            late.push(Offer {
                input_start: last.input_end,
                cuts: b.to_vec(),
                ..*o
            });
        }
    }
    Some([early, late])
}
