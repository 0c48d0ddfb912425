//! INV-13: what the tables hold against what the ledger says, by commit number.
//!
//! Pure. Three strengths: [`totals`] compares the rows of a whole table with the ledger's running totals at the table's
//! own position, [`by_snapshot`] those that each snapshot added with the commits that it took (cheap: table metadata and
//! ledger entries; what the audit does all the time), [`by_commit`] compares the rows of every commit.

use std::collections::BTreeMap;

use finlake_schemas::{Break, BreakKind, LedgerEntry};

use crate::changes::COUNTED_WHOLE;
use crate::findings::{Finding, Findings, Layer, TOTAL};

/// Where rows of a commit come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Records of an input topic: Bronze.
    Input(&'static str),
    /// Records of an output topic: Silver and Gold.
    Output(&'static str),
}

impl Counted {
    /// How many rows the entry says.
    pub fn of(self, entry: &LedgerEntry) -> i64 {
        match self {
            Counted::Input(topic) => entry
                .inputs
                .iter()
                .filter(|i| i.topic == topic)
                .map(|i| i.records)
                .sum(),
            Counted::Output(topic) => entry
                .outputs
                .iter()
                .filter(|o| o.topic == topic)
                .map(|o| o.count)
                .sum(),
        }
    }
}

/// A table's name and place for findings.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    pub layer: Layer,
    pub table: &'a str,
}

/// Rows by (partition, commit).
pub type Rows = BTreeMap<(i32, i64), i64>;

/// Compares the rows of every commit up to the table's cut. `uncounted`: so many rows of a commit may be missing at
/// most, since the ledger does not say how many of its records retract (see [`crate::books::Line`]).
pub fn by_commit(of: Of<'_>, ledger: &Rows, table: &Rows, uncounted: &Rows, out: &mut Findings) {
    for (&(partition, commit), &expected) in ledger {
        let actual = table.get(&(partition, commit)).copied().unwrap_or(0);
        let allowed = uncounted.get(&(partition, commit)).copied().unwrap_or(0);
        if actual == expected || (actual < expected && actual + allowed >= expected) {
            continue;
        }
        push(of, partition, commit, expected, actual, out);
    }
    let first = |p: i32| ledger.range((p, i64::MIN)..=(p, i64::MAX)).next();
    for (&(partition, commit), &actual) in table {
        // What lies before the retained part of the ledger cannot be judged.
        let known = first(partition).is_some_and(|((_, c), _)| *c <= commit);
        if known && !ledger.contains_key(&(partition, commit)) {
            push(of, partition, commit, 0, actual, out);
        }
    }
}

fn push(of: Of<'_>, partition: i32, commit: i64, expected: i64, actual: i64, out: &mut Findings) {
    let (kind, detail) = if actual < expected {
        (
            BreakKind::Missing,
            "the table lost rows of this commit, or never took them",
        )
    } else {
        (
            BreakKind::Duplicate,
            "the table holds rows that this commit did not make: it was applied twice, or rows \
             were copied",
        )
    };
    out.push(
        Finding::new(
            kind,
            of.layer,
            of.table,
            format!("{partition}:{commit}"),
            "INV-13:rows",
        )
        .expected(format!("{expected} rows"))
        .actual(format!("{actual} rows"))
        .detail(detail),
    );
}

/// What a table holds, against what the ledger's running totals say that it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Rows by the ledger.
    pub expected: i64,
    /// Rows of the table.
    pub actual: i64,
    /// So many rows may be missing, since the ledger's writer of then did not count which records retract (see
    /// [`crate::TaskAudit`]); 0 of every ledger that this version began.
    pub uncounted: i64,
}

impl Balance {
    /// Rows too many; negative: too few; 0 within what may be missing.
    pub fn off(self) -> i64 {
        let off = self.actual - self.expected;
        if off < 0 && off + self.uncounted >= 0 {
            return 0;
        }
        off
    }
}

fn kind(off: i64) -> BreakKind {
    if off < 0 {
        BreakKind::Missing
    } else {
        BreakKind::Duplicate
    }
}

/// A whole table at this snapshot. `told`: by so many rows it is off because of snapshots that have breaks of their own
/// ([`by_snapshot`]).
pub fn totals(of: Of<'_>, snapshot: i64, whole: Balance, told: i64) -> Option<Finding> {
    let rest = Balance {
        actual: whole.actual - told,
        ..whole
    };
    let off = rest.off();
    if off == 0 {
        return None;
    }
    let mut detail = format!(
        "the table and the ledger disagree; `finlake {}` says where",
        rows_by(of)
    );
    if told != 0 {
        detail.push_str(&format!(
            "; {told} rows of the difference belong to snapshots that have breaks of their own"
        ));
    }
    // One break for one difference, whichever snapshot shows it first.
    let finding = Finding::new(
        kind(off),
        of.layer,
        of.table,
        of.table,
        format!("{TOTAL}{off}"),
    );
    let finding = finding
        .expected(format!("{} rows", whole.expected))
        .actual(format!("{} rows in snapshot {snapshot}", whole.actual));
    Some(finding.detail(detail))
}

/// The commits that a snapshot took, as (partition, commit before, commit after).
pub type Spans = [(i32, i64, i64)];

/// One snapshot: the rows that it added or removed, against those of the commits that it took; `None` if it is no commit
/// of the sink: then none. The same break whenever it is found, since a snapshot never changes.
pub fn by_snapshot(
    of: Of<'_>,
    snapshot: i64,
    took: Option<&Spans>,
    rows: Balance,
) -> Option<Finding> {
    let off = rows.off();
    if off == 0 {
        return None;
    }
    let (commits, detail) = match (took, off < 0) {
        (Some(took), true) => (
            spans(took),
            "the snapshot has fewer rows than the commits that it took: it lost them, or took others away",
        ),
        (Some(took), false) => (
            spans(took),
            "the snapshot has more rows than the commits that it took: they were applied twice, or rows were copied",
        ),
        (None, _) => (
            "no commit".to_owned(),
            "the snapshot is not the sink's, and changes how many rows there are: another engine, or a hand",
        ),
    };
    let finding = Finding::new(
        kind(off),
        of.layer,
        of.table,
        format!("{}{AT}{snapshot}", of.table),
        format!("{TOTAL}{off}"),
    );
    let finding = finding
        .expected(format!("{} rows more: {commits}", rows.expected))
        .actual(format!("{} rows more by snapshot {snapshot}", rows.actual));
    Some(finding.detail(format!(
        "{detail}; `finlake tables snapshots {}` shows it, `finlake {}` says which rows",
        of.table,
        rows_by(of)
    )))
}

/// Between table and snapshot in the key of a snapshot's break.
const AT: char = '@';
/// Partitions that a break names.
const NAMED: usize = 16;

/// `commits 5-9 of partition 0, 7 of partition 3`.
fn spans(took: &Spans) -> String {
    let moved: Vec<_> = took.iter().filter(|(_, from, to)| from != to).collect();
    let one = |&&(p, from, to): &&(i32, i64, i64)| match to - from {
        1 => format!("{to} of partition {p}"),
        // Went back: a second writer put its own commit on top.
        n if n < 0 => format!("{to} after {from} of partition {p}"),
        _ => format!("{}-{to} of partition {p}", from + 1),
    };
    let named: Vec<_> = moved.iter().take(NAMED).map(one).collect();
    match (moved.len(), moved.len().saturating_sub(NAMED)) {
        (0, _) => "no new commit".to_owned(),
        (_, 0) => format!("commits {}", named.join(", ")),
        (_, more) => format!(
            "commits {}, and of {more} partitions more",
            named.join(", ")
        ),
    }
}

/// Which command names the rows.
fn rows_by(of: Of<'_>) -> String {
    match of.table {
        COUNTED_WHOLE => "replay --all --verify".to_owned(),
        _ => format!("reconcile --layer {}", of.layer.as_str()),
    }
}

/// By how many rows the cause of a break of [`totals`] or [`by_snapshot`] says that the table is off; `None` for any
/// other.
pub fn off(cause: &str) -> Option<i64> {
    cause.strip_prefix(TOTAL)?.parse().ok()
}

/// The snapshot that a break of [`by_snapshot`] is about.
pub fn snapshot(b: &Break) -> Option<i64> {
    let rest = b.key.strip_prefix(b.table.as_str())?;
    rest.strip_prefix(AT)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Of<'_> = Of {
        layer: Layer::Bronze,
        table: "bronze.market_ticks",
    };

    fn rows(list: &[(i32, i64, i64)]) -> Rows {
        list.iter().map(|(p, c, n)| ((*p, *c), *n)).collect()
    }

    #[test]
    fn each_commit_is_judged() {
        let ledger = rows(&[(0, 3, 10), (0, 4, 0), (0, 5, 7), (1, 1, 4), (1, 2, 2)]);
        let table = rows(&[
            (0, 1, 99),
            (0, 3, 9),
            (0, 5, 8),
            (1, 1, 4),
            (1, 2, 1),
            (1, 3, 1),
        ]);
        let mut out = Findings::default();
        by_commit(OF, &ledger, &table, &rows(&[(1, 2, 1)]), &mut out);
        let found: Vec<_> = out
            .list()
            .iter()
            .map(|f| (f.kind, f.key.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (BreakKind::Missing, "0:3"),
                (BreakKind::Duplicate, "0:5"),
                (BreakKind::Duplicate, "1:3")
            ]
        );
    }

    fn rows_off(expected: i64, actual: i64, uncounted: i64) -> Balance {
        Balance {
            expected,
            actual,
            uncounted,
        }
    }

    #[test]
    fn totals_name_the_difference_once() {
        let found = |snapshot, rows, told| totals(OF, snapshot, rows, told);
        assert_eq!(found(1, rows_off(10, 10, 0), 0), None);
        assert_eq!(
            found(2, rows_off(12, 11, 1), 0),
            None,
            "one row of then may be none"
        );
        let first = found(3, rows_off(12, 11, 0), 0).unwrap();
        let later = found(4, rows_off(22, 21, 0), 0).unwrap();
        assert_eq!(first.id(), later.id());
        let named = |f: Finding| (f.kind, f.cause);
        assert_eq!(
            named(first),
            (BreakKind::Missing, "INV-13:total:-1".to_owned())
        );
        let more = found(5, rows_off(22, 23, 5), 0).unwrap();
        assert_eq!(
            named(more),
            (BreakKind::Duplicate, "INV-13:total:1".to_owned())
        );
    }

    #[test]
    fn totals_leave_out_what_is_told_of_snapshots() {
        assert_eq!(totals(OF, 1, rows_off(10, 13, 0), 3), None);
        let cause = |actual, told| totals(OF, 1, rows_off(10, actual, 0), told).unwrap().cause;
        assert_eq!(cause(13, 5), "INV-13:total:-2");
        assert_eq!(cause(10, -4), "INV-13:total:4");
    }

    #[test]
    fn a_snapshot_is_named_with_the_commits_that_it_took() {
        let took = [(0, 4, 9), (1, 3, 3), (2, 6, 7)];
        assert_eq!(by_snapshot(OF, 77, Some(&took), rows_off(5, 5, 0)), None);
        let lost = by_snapshot(OF, 77, Some(&took), rows_off(5, 3, 1)).unwrap();
        assert_eq!(
            (lost.kind, lost.key.as_str(), lost.cause.as_str()),
            (
                BreakKind::Missing,
                "bronze.market_ticks@77",
                "INV-13:total:-2"
            )
        );
        assert_eq!(
            lost.expected.as_deref(),
            Some("5 rows more: commits 5-9 of partition 0, 7 of partition 2")
        );
        let b = lost.to_break("audit", 1);
        assert_eq!((off(&b.cause), snapshot(&b)), (Some(-2), Some(77)));
        let whole = totals(OF, 77, rows_off(5, 4, 0), 0).unwrap();
        let whole = whole.to_break("audit", 1);
        assert_eq!((off(&whole.cause), snapshot(&whole)), (Some(-1), None));
        let foreign = by_snapshot(OF, 78, None, rows_off(0, 4, 0)).unwrap();
        assert_eq!(foreign.kind, BreakKind::Duplicate);
        assert_eq!(foreign.expected.as_deref(), Some("0 rows more: no commit"));
        let many: Vec<_> = (0..20).map(|p| (p, 0, 1)).collect();
        assert!(spans(&many).ends_with("and of 4 partitions more"));
        assert_eq!(spans(&[(0, 20, 10)]), "commits 10 after 20 of partition 0");
        assert_eq!(spans(&[(0, 20, 20)]), "no new commit");
    }
}
