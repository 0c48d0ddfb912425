//! What each table must hold after a commit, by the running totals of the ledger's entries.
//!
//! Pure. Rows of a table = records that the ledger counts for it, less those that retract: exactly, but for corrections
//! that builds before the totals of retractions took. Data flows: the state after an entry → lines → rows expected at the
//! tables' positions.

use std::collections::{BTreeSet, VecDeque};

use finlake_lakehouse::Table;
use finlake_reconcile::{Layer, TaskAudit};
use finlake_schemas::{LedgerEntry, topics};

/// Lines remembered per partition for tables that stand still: they must be found within them.
const REMEMBERED: usize = 50_000;

/// The tables that are compared.
pub(super) const TABLES: [(Table, Layer); 4] = [
    (Table::Ticks, Layer::Bronze),
    (Table::Ohlcv, Layer::Silver),
    (Table::Metrics, Layer::Gold),
    (Table::Bars, Layer::Bronze),
];

/// What the tables must hold after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub commit: i64,
    /// Of the entry, µs.
    system_time: i64,
    /// Rows, in the order of [`TABLES`].
    rows: [i64; TABLES.len()],
    /// So many rows of each versioned table may be none, see [`TaskAudit::uncounted`].
    uncounted: i64,
}

impl Line {
    /// `None` if the audit has not seen every entry, so that it knows no totals.
    pub fn of(state: &TaskAudit) -> Option<Line> {
        let total = |name: &str| state.totals.get(name).copied().unwrap_or(0);
        let taken = |name: &str| state.taken.get(name).copied().unwrap_or(0);
        state.whole.then(|| Line {
            commit: state.commit,
            system_time: state.system_time,
            rows: [
                taken(topics::TICKS),
                total(topics::OHLCV) - total(LedgerEntry::BARS_RETRACTED),
                total(topics::METRICS) - total(LedgerEntry::METRICS_RETRACTED),
                taken(topics::BARS),
            ],
            uncounted: state.uncounted,
        })
    }

    /// Rows of a table, and how many of them may be none.
    pub fn rows(&self, table: Table) -> (i64, i64) {
        let at = TABLES.iter().position(|(t, _)| *t == table);
        let rows = at.map_or(0, |at| self.rows[at]);
        (rows, if table.versioned() { self.uncounted } else { 0 })
    }
}

/// Lines of one partition, by commit.
#[derive(Default)]
pub(super) struct Lines(VecDeque<Line>);

impl Lines {
    /// The next one.
    pub fn push(&mut self, line: Line) {
        self.0.push_back(line);
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    /// Forgets those before this commit, but for these.
    pub fn forget_before(&mut self, commit: i64, but: &BTreeSet<i64>) {
        if self.0.front().is_some_and(|l| l.commit < commit) {
            self.0
                .retain(|l| l.commit >= commit || but.contains(&l.commit));
        }
    }

    /// That of a commit, if it is remembered.
    pub fn at(&self, commit: i64) -> Option<&Line> {
        let at = self.0.partition_point(|l| l.commit < commit);
        self.0.get(at).filter(|l| l.commit == commit)
    }

    /// A table at this commit holds all that the ledger has for it up to this system time (µs).
    pub fn reached(&self, table: Table, commit: i64) -> i64 {
        let rows = self.at(commit).map(|l| l.rows(table));
        let mut after = self.0.iter().filter(|l| l.commit > commit);
        let next = after.find(|l| Some(l.rows(table)) != rows);
        next.map_or(i64::MAX, |l| l.system_time - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use finlake_reconcile::counts;
    use finlake_schemas::BreakKind;

    use super::*;

    fn state(totals: &[(&str, i64)], uncounted: i64) -> TaskAudit {
        let list = |list: &[(&str, i64)]| -> BTreeMap<String, i64> {
            list.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect()
        };
        TaskAudit {
            commit: 7,
            totals: list(totals),
            taken: list(&[(topics::TICKS, 900), (topics::BARS, 5)]),
            whole: true,
            uncounted,
            ..TaskAudit::default()
        }
    }

    /// What the audit says of a table with so many rows at that commit.
    fn found(line: &Line, table: Table, rows: i64) -> Vec<(BreakKind, String)> {
        let (expected, uncounted) = line.rows(table);
        let of = counts::Of {
            layer: Layer::Silver,
            table: "t",
        };
        let rows = counts::Balance {
            expected,
            actual: rows,
            uncounted,
        };
        let found = counts::totals(of, 1, rows, 0).into_iter();
        found.map(|f| (f.kind, f.cause)).collect()
    }

    #[test]
    fn a_row_lost_beside_retractions_is_missed() {
        let counted = [
            (topics::OHLCV, 60),
            (topics::METRICS, 20),
            (LedgerEntry::BARS_RETRACTED, 3),
            (LedgerEntry::METRICS_RETRACTED, 1),
        ];
        let line = Line::of(&state(&counted, 0)).unwrap();
        for (table, rows) in [
            (Table::Ticks, 900),
            (Table::Ohlcv, 57),
            (Table::Metrics, 19),
            (Table::Bars, 5),
        ] {
            assert_eq!(found(&line, table, rows), []);
            for (off, kind) in [(-1, BreakKind::Missing), (1, BreakKind::Duplicate)] {
                let cause = format!("INV-13:total:{off}");
                assert_eq!(found(&line, table, rows + off), [(kind, cause)], "{table}");
            }
        }
    }

    #[test]
    fn what_no_build_counted_may_be_none() {
        let line = Line::of(&state(&[(topics::OHLCV, 60)], 2)).unwrap();
        assert_eq!(found(&line, Table::Ohlcv, 58), []);
        let missing = |off: &str| [(BreakKind::Missing, format!("INV-13:total:{off}"))];
        assert_eq!(found(&line, Table::Ohlcv, 57), missing("-3"));
        assert_eq!(
            found(&line, Table::Bars, 4),
            missing("-1"),
            "Bronze takes all"
        );
        let cut = TaskAudit {
            whole: false,
            ..state(&[], 0)
        };
        assert_eq!(Line::of(&cut), None);
    }

    #[test]
    fn a_table_has_reached_what_changes_nothing_in_it() {
        let mut lines = Lines::default();
        for (commit, bars) in [(7, 60), (8, 60), (9, 61), (10, 61)] {
            let state = TaskAudit {
                commit,
                system_time: commit * 100,
                ..state(&[(topics::OHLCV, bars)], 0)
            };
            lines.push(Line::of(&state).unwrap());
        }
        let reached = [7, 8, 9, 10].map(|c| lines.reached(Table::Ohlcv, c));
        assert_eq!(reached, [899, 899, i64::MAX, i64::MAX]);
        assert_eq!(lines.reached(Table::Metrics, 7), i64::MAX);
    }
}
