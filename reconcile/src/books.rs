//! The retained part of the ledger, as reconciliation needs it: per partition and commit what was
//! taken and what was made.
//!
//! Pure. Folds entries as they are read; the ledger's own arithmetic is checked on the way.

use std::collections::BTreeMap;

use finlake_schemas::{LedgerEntry, topics};

use crate::bronze::Taken;
use crate::counts::{Counted, Rows};
use crate::findings::Findings;
use crate::ledger::LedgerAudit;

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub system_time: i64,
    pub taken: Option<Taken>,
    pub bars: i64,
    pub metrics: i64,
    pub stream_times: Vec<(String, i64)>,
    /// A graceful stop.
    pub last: bool,
}

/// All entries by partition and commit.
#[derive(Debug, Clone, Default)]
pub struct Books {
    lines: BTreeMap<(i32, i64), Line>,
    audit: LedgerAudit,
    /// What is wrong with the ledger itself.
    pub findings: Findings,
}

impl Books {
    /// Nothing of this partition's ledger was cut off: it must begin with commit 1.
    pub fn from_start(&mut self, partition: i32) {
        self.audit.from_start(partition);
    }

    /// Takes an entry as it was read.
    pub fn push(&mut self, entry: &LedgerEntry, value: &[u8]) {
        if !self.audit.push(entry, value, &mut self.findings) {
            return;
        }
        let line = Line {
            system_time: entry.system_time,
            taken: Taken::of(entry),
            bars: Counted::Output(topics::OHLCV).of(entry),
            metrics: Counted::Output(topics::METRICS).of(entry),
            stream_times: entry.stream_times.clone(),
            last: entry.last,
        };
        self.lines.insert((entry.task, entry.commit), line);
    }

    /// Every partition's entries are here from its first commit on: retention took none.
    pub fn are_whole(&self) -> bool {
        let mut task = None;
        self.lines
            .keys()
            .all(|&(partition, commit)| task.replace(partition) == Some(partition) || commit <= 1)
    }

    /// Nothing was read.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Lines of a partition up to a system time (µs), by commit.
    pub fn until(&self, partition: i32, system_time: i64) -> impl Iterator<Item = (i64, &Line)> {
        self.lines
            .range((partition, i64::MIN)..=(partition, i64::MAX))
            .map(|((_, commit), line)| (*commit, line))
            .take_while(move |(_, line)| line.system_time <= system_time)
    }

    /// Counts by commit up to each partition's system time.
    pub fn counts(&self, until: &dyn Fn(usize) -> i64, of: impl Fn(&Line) -> i64) -> Rows {
        let mut rows = Rows::new();
        for (&(p, commit), line) in &self.lines {
            if line.system_time <= until(usize::try_from(p).unwrap_or(usize::MAX)) {
                rows.insert((p, commit), of(line));
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_whole_if_each_partition_begins_with_its_first_commit() {
        let books = |keys: &[(i32, i64)]| Books {
            lines: keys
                .iter()
                .map(|k| {
                    (
                        *k,
                        Line {
                            system_time: 0,
                            taken: None,
                            bars: 0,
                            metrics: 0,
                            stream_times: Vec::new(),
                            last: false,
                        },
                    )
                })
                .collect(),
            ..Books::default()
        };
        assert!(books(&[(0, 1), (0, 2), (1, 1), (1, 2)]).are_whole());
        assert!(!books(&[(0, 1), (0, 2), (1, 5), (1, 6)]).are_whole());
        assert!(!books(&[(0, 2), (1, 1)]).are_whole());
        assert!(books(&[]).are_whole());
    }
}
