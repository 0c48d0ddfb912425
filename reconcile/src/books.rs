//! The retained part of the ledger, as reconciliation needs it: per partition and commit what was
//! taken and what was made.
//!
//! Pure. Folds entries as they are read; the ledger's own arithmetic is checked on the way.

use std::collections::BTreeMap;

use finlake_schemas::{LedgerEntry, topics};

use crate::bronze::Taken;
use crate::counts::{Counted, Rows};
use crate::findings::Findings;
use crate::ledger::{LedgerAudit, asserted};

/// One entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    pub system_time: i64,
    pub taken: Option<Taken>,
    /// Rows of Silver: its records less those that retract.
    pub bars: i64,
    /// Rows of Gold.
    pub metrics: i64,
    /// So many of the rows may be none, in each table: corrections taken by a commit of which the ledger does not say how
    /// many records retract, since the entry before it is not retained or its writer did not count them. 0 otherwise.
    pub uncounted: i64,
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
        let retracted = self.audit.retracted(entry);
        if !self.audit.push(entry, value, &mut self.findings) {
            return;
        }
        let [bars, metrics] = retracted.unwrap_or([0, 0]);
        let line = Line {
            system_time: entry.system_time,
            taken: Taken::of(entry),
            bars: Counted::Output(topics::OHLCV).of(entry) - bars,
            metrics: Counted::Output(topics::METRICS).of(entry) - metrics,
            uncounted: match retracted {
                Some(_) => 0,
                None => asserted(entry),
            },
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
    use finlake_schemas::BreakKind;

    use super::*;
    use crate::counts;
    use crate::findings::Layer;
    use crate::ledger::tests::{correct, ledger, retracting, rewritten};

    #[test]
    fn books_are_whole_if_each_partition_begins_with_its_first_commit() {
        let books = |keys: &[(i32, i64)]| Books {
            lines: keys.iter().map(|k| (*k, Line::default())).collect(),
            ..Books::default()
        };
        assert!(books(&[(0, 1), (0, 2), (1, 1), (1, 2)]).are_whole());
        assert!(!books(&[(0, 1), (0, 2), (1, 5), (1, 6)]).are_whole());
        assert!(!books(&[(0, 2), (1, 1)]).are_whole());
        assert!(books(&[]).are_whole());
    }

    /// A row lost in the very commit that retracts one is missed; where the ledger counts nothing, as many as there were
    /// corrections may be none.
    #[test]
    fn a_row_lost_beside_a_retraction_is_missed() {
        const OF: counts::Of<'_> = counts::Of {
            layer: Layer::Silver,
            table: "silver.market_ohlcv",
        };
        let commits = [(5, 0, 0), (3, 0, 0), (4, 0, 0)];
        let counting = retracting(ledger(0, &commits), &[0, 1, 0]);
        let silent = rewritten(ledger(0, &commits), correct);
        let cut = counting[1..].to_vec();
        let table = |rows: [i64; 3]| -> Rows {
            let commits = rows.into_iter().zip(1..);
            commits.map(|(n, commit)| ((0, commit), n)).collect()
        };
        let found = |entries: &Vec<(LedgerEntry, Vec<u8>)>, rows| {
            let mut books = Books::default();
            for (entry, value) in entries {
                books.push(entry, value);
            }
            assert!(books.findings.is_empty(), "{:?}", books.findings.list());
            let rows = table(rows);
            let until = |_| i64::MAX;
            let (bars, uncounted) = (
                books.counts(&until, |l| l.bars),
                books.counts(&until, |l| l.uncounted),
            );
            let mut out = Findings::default();
            counts::by_commit(OF, &bars, &rows, &uncounted, &mut out);
            let keys = out.list().iter().map(|f| (f.kind, f.key.clone()));
            keys.collect::<Vec<_>>()
        };
        let missing = |key: &str| vec![(BreakKind::Missing, key.to_owned())];
        assert_eq!(found(&counting, [5, 2, 4]), []);
        assert_eq!(found(&counting, [5, 1, 4]), missing("0:2"));
        assert_eq!(
            found(&counting, [5, 3, 4]),
            [(BreakKind::Duplicate, "0:2".to_owned())]
        );
        assert_eq!(found(&counting, [5, 2, 3]), missing("0:3"));
        // Of the first entry that is left it is not known how far the totals were before.
        assert_eq!(found(&cut, [5, 2, 4]), []);
        assert_eq!(found(&cut, [5, 1, 4]), missing("0:2"));
        assert_eq!(found(&cut, [5, 2, 3]), missing("0:3"));
        // One correction in each commit, by a writer that did not count.
        assert_eq!(found(&silent, [5, 2, 4]), []);
        assert_eq!(found(&silent, [5, 1, 4]), missing("0:2"));
    }
}
