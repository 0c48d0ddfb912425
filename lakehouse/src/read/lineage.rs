//! The snapshots that lead to a table's current one: what each did to the number of rows, and which commits it took.

use std::collections::BTreeMap;

use iceberg::spec::Snapshot;

use super::Pinned;
use crate::admin::parse;
use crate::error::Result;
use crate::maintain::lineage;
use crate::properties::S_POSITIONS;

/// One snapshot, by its summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotChange {
    pub id: i64,
    /// The one it was put on; `None` of a table's first.
    pub parent: Option<i64>,
    /// Rows added less rows removed.
    pub change: i64,
    /// Rows after it.
    pub rows: i64,
    /// Last commit in the table after it, by Kafka partition, of the partitions that it moved; `None` if it is no commit
    /// of the sink.
    pub commits: Option<BTreeMap<i32, i64>>,
}

impl Pinned {
    /// The snapshots that lead to this one, oldest first, as far as they are kept.
    ///
    /// # Errors
    /// `Corrupt` for positions this version does not know.
    pub fn lineage(&self) -> Result<Vec<SnapshotChange>> {
        let mut out: Vec<SnapshotChange> = Vec::new();
        let mut parent: Option<&Snapshot> = None;
        let all = lineage(self.metadata());
        for snapshot in &all {
            let change = change(snapshot, parent);
            let rows = match out.last() {
                Some(before) => before.rows + change,
                None => total(snapshot).unwrap_or(change),
            };
            out.push(SnapshotChange {
                id: snapshot.snapshot_id(),
                parent: snapshot.parent_snapshot_id(),
                change,
                rows,
                commits: commits(snapshot)?,
            });
            parent = Some(snapshot);
        }
        Ok(out)
    }
}

/// By the totals where both have one: whatever else an engine leaves out, totals are what the next one goes on from.
fn change(snapshot: &Snapshot, parent: Option<&Snapshot>) -> i64 {
    match (total(snapshot), parent.and_then(total)) {
        (Some(after), Some(before)) => after - before,
        _ => number(snapshot, "added-records") - number(snapshot, "deleted-records"),
    }
}

fn commits(snapshot: &Snapshot) -> Result<Option<BTreeMap<i32, i64>>> {
    let summary = &snapshot.summary().additional_properties;
    let Some(text) = summary.get(S_POSITIONS) else {
        return Ok(None);
    };
    let positions = parse(text)?.into_iter();
    Ok(Some(positions.map(|(p, at)| (p, at.commit)).collect()))
}

fn total(snapshot: &Snapshot) -> Option<i64> {
    let summary = &snapshot.summary().additional_properties;
    summary.get("total-records")?.parse().ok()
}

fn number(snapshot: &Snapshot, name: &str) -> i64 {
    let summary = &snapshot.summary().additional_properties;
    summary.get(name).and_then(|n| n.parse().ok()).unwrap_or(0)
}
