//! INV-13: what the tables hold against what the ledger says, by commit number.
//!
//! Pure. Two strengths: [`totals`] compares the rows of a whole table with the ledger's running
//! totals at the table's own position (cheap: table metadata and one ledger entry per partition;
//! what the audit does all the time), [`by_commit`] compares the rows of every commit.

use std::collections::BTreeMap;

use finlake_schemas::{BreakKind, LedgerEntry};

use crate::findings::{COUNTED_WHOLE, Finding, Findings, Layer, TOTAL};

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

/// Compares a table's row count with the ledger's running totals at the table's positions:
/// `expected` is their sum over partitions. `uncounted`: rows that may be missing, since the ledger's writer of then did
/// not count which records retract (see [`crate::TaskAudit`]); 0 of every ledger that this version began.
pub fn totals(
    of: Of<'_>,
    snapshot: i64,
    expected: i64,
    actual: i64,
    uncounted: i64,
    out: &mut Findings,
) {
    if actual == expected || (actual < expected && actual + uncounted >= expected) {
        return;
    }
    let kind = if actual < expected {
        BreakKind::Missing
    } else {
        BreakKind::Duplicate
    };
    out.push(
        // One break for one difference, whichever snapshot shows it first.
        Finding::new(
            kind,
            of.layer,
            of.table,
            of.table,
            format!("{TOTAL}{}", actual - expected),
        )
        .expected(format!("{expected} rows"))
        .actual(format!("{actual} rows in snapshot {snapshot}"))
        .detail(format!(
            "the table and the ledger disagree; `finlake {}` says where",
            match of.table {
                COUNTED_WHOLE => "replay --all --verify".to_owned(),
                _ => format!("reconcile --layer {}", of.layer.as_str()),
            }
        )),
    );
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

    #[test]
    fn totals_name_the_difference_once() {
        let mut out = Findings::default();
        totals(OF, 1, 10, 10, 0, &mut out);
        totals(OF, 2, 12, 11, 1, &mut out);
        assert!(out.is_empty(), "one row of then may be none");
        totals(OF, 3, 12, 11, 0, &mut out);
        totals(OF, 4, 22, 21, 0, &mut out);
        totals(OF, 5, 22, 23, 5, &mut out);
        let found: Vec<_> = out
            .list()
            .iter()
            .map(|f| (f.kind, f.cause.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                (BreakKind::Missing, "INV-13:total:-1"),
                (BreakKind::Duplicate, "INV-13:total:1")
            ]
        );
    }
}
