//! The retained part of the ledger, as reconciliation needs it: per partition and commit what was
//! taken and what was made.
//!
//! Pure. Folds entries as they are read; the ledger's own arithmetic is checked on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
    /// Schemas that the commit met in its input.
    pub schema_ids: Arc<[i32]>,
    /// A graceful stop.
    pub last: bool,
}

/// Commits in which the bars of an interval were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// The first of them.
    pub from: i64,
    /// Stream time by source, µs, at the commit before: bars that were forming then have only the
    /// trades that came since. Nothing if the interval was there from the start, or nobody knows.
    pub began: Vec<(String, i64)>,
    /// `None`: they are still.
    pub end: Option<End>,
}

/// Where an interval is no longer configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// The first commit without it.
    pub commit: i64,
    /// Stream time by source, µs, at the commit before.
    pub stream_times: Vec<(String, i64)>,
    /// The commit before was a graceful stop's: nothing waited then.
    pub last: bool,
}

impl Made {
    /// Whether a commit is one of them.
    pub fn has(&self, commit: i64) -> bool {
        self.from <= commit && self.end.as_ref().is_none_or(|end| commit < end.commit)
    }
}

/// All entries by partition and commit.
#[derive(Debug, Clone, Default)]
pub struct Books {
    lines: BTreeMap<(i32, i64), Line>,
    audit: LedgerAudit,
    /// Which intervals were configured, by partition and the first commit of which that holds. Nothing
    /// stands there of commits whose writer did not say.
    intervals: BTreeMap<(i32, i64), BTreeSet<String>>,
    /// The first commit of an interval that was added before the first entry that is left.
    began: BTreeMap<(i32, String), i64>,
    /// Lists of schemas; there are few.
    schemas: Vec<Arc<[i32]>>,
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
        let intervals = self.audit.intervals(entry);
        let first = self.audit.task(entry.task).is_none();
        if !self.audit.push(entry, value, &mut self.findings) {
            return;
        }
        let [bars, metrics] = retracted.unwrap_or([0, 0]);
        if first {
            self.begin(entry);
        }
        if let Some(intervals) = intervals {
            let task = (entry.task, i64::MIN)..(entry.task, entry.commit);
            let before = self.intervals.range(task).next_back();
            if before.is_none_or(|(_, known)| *known != intervals) {
                self.intervals.insert((entry.task, entry.commit), intervals);
            }
        }
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
            schema_ids: self.schemas(&entry.schema_ids),
            last: entry.last,
        };
        self.lines.insert((entry.task, entry.commit), line);
    }

    /// What the first entry that is left says of those before: how many commits each interval had.
    fn begin(&mut self, entry: &LedgerEntry) {
        let most = entry.commits_by_interval().map(|(_, n)| n).max();
        let fewer = entry
            .commits_by_interval()
            .filter(|(_, n)| Some(*n) != most);
        for (interval, n) in fewer {
            let at = (entry.task, interval.to_owned());
            self.began.insert(at, entry.commit - n + 1);
        }
    }

    fn schemas(&mut self, ids: &[i32]) -> Arc<[i32]> {
        if let Some(known) = self.schemas.iter().find(|known| ***known == *ids) {
            return known.clone();
        }
        let new: Arc<[i32]> = ids.into();
        self.schemas.push(new.clone());
        new
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

    /// The commits up to `cut` in which bars of an interval were made, in order; all of them if no
    /// writer said.
    pub fn made(&self, partition: i32, interval: &str, cut: i64) -> Vec<Made> {
        let known = self
            .intervals
            .range((partition, i64::MIN)..=(partition, cut));
        let mut known = known.peekable();
        let began = self.began.get(&(partition, interval.to_owned()));
        // What was before the first that is known is taken to have been so already.
        let mut from = began.copied().unwrap_or(i64::MIN);
        let made = |from: i64, end| Made {
            from,
            began: self.times_before(partition, from),
            end,
        };
        if known.peek().is_none() {
            return vec![made(from, None)];
        }
        let mut out: Vec<Made> = Vec::new();
        while let Some((_, names)) = known.next() {
            let to = known.peek().map(|((_, commit), _)| *commit);
            if names.contains(interval) {
                let end = to.map(|to| self.end(partition, to));
                match out.last_mut() {
                    Some(last) if last.end.as_ref().is_some_and(|e| e.commit == from) => {
                        last.end = end;
                    }
                    _ => out.push(made(from, end)),
                }
            }
            from = to.unwrap_or(i64::MAX);
        }
        out
    }

    /// Stream times at the commit before this one.
    fn times_before(&self, partition: i32, commit: i64) -> Vec<(String, i64)> {
        let line = self.line(partition, commit.saturating_sub(1));
        line.map_or(Vec::new(), |l| l.stream_times.clone())
    }

    /// How far the task was before this commit.
    fn end(&self, partition: i32, commit: i64) -> End {
        let line = self.line(partition, commit - 1);
        End {
            commit,
            stream_times: self.times_before(partition, commit),
            last: line.is_some_and(|l| l.last),
        }
    }

    /// The line of a commit.
    pub fn line(&self, partition: i32, commit: i64) -> Option<&Line> {
        self.lines.get(&(partition, commit))
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

    #[test]
    fn intervals_are_known_by_the_commits_that_made_their_bars() {
        let books = |entries: &[(LedgerEntry, Vec<u8>)]| {
            let mut books = Books::default();
            for (entry, value) in entries {
                books.push(entry, value);
            }
            assert!(books.findings.is_empty(), "{:?}", books.findings.list());
            books
        };
        let commits = [(1, 0, 0); 6];
        let of = |name: &str| (LedgerEntry::commits_of(name), 1);
        let entries = rewritten(ledger(0, &commits), |n, entry| {
            entry.totals.push(of("1m"));
            // From the third commit on, and not in the fifth.
            if n >= 2 && n != 4 {
                entry.totals.push(of("4h"));
            }
        });
        let of = |books: &Books, name: &str, cut: i64| -> Vec<(i64, Option<i64>)> {
            let made = books.made(0, name, cut).into_iter();
            made.map(|m| (m.from, m.end.map(|e| e.commit))).collect()
        };
        let end = i64::MAX;
        let whole = books(&entries);
        assert_eq!(of(&whole, "1m", end), [(i64::MIN, None)]);
        assert_eq!(of(&whole, "4h", end), [(3, Some(5)), (6, None)]);
        assert_eq!(of(&whole, "1h", end), []);
        // At a cut before it went.
        assert_eq!(of(&whole, "4h", 4), [(3, None)]);
        assert!(whole.made(0, "4h", end)[0].has(4) && !whole.made(0, "4h", end)[0].has(5));
        // The first entry that is left says how many commits had it.
        let cut = books(&entries[2..]);
        assert_eq!(of(&cut, "4h", end), [(3, Some(5)), (6, None)]);
        assert_eq!(of(&cut, "1m", end), [(i64::MIN, None)]);
        // A writer that does not say makes all, and so does one that hands on what it does not know.
        let silent = books(&ledger(0, &commits));
        assert_eq!(of(&silent, "4h", end), [(i64::MIN, None)]);
        let older = rewritten(ledger(0, &commits), |n, entry| {
            if n < 2 {
                entry.totals.push((LedgerEntry::commits_of("1m"), 1));
            }
        });
        assert_eq!(of(&books(&older), "1m", end), [(i64::MIN, None)]);
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
