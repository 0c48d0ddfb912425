//! One table against the ledger, snapshot by snapshot and as a whole (INV-13), and what is to be told of it.
//!
//! Pure. A snapshot must have added as many rows as the commits that it took made; one that is not the sink's, none. What
//! it did never changes, so each is judged once, when the ledger has been read as far. The whole table must hold what
//! the ledger says at its position, but for what snapshots have breaks for: that way losses and doublings that cancel out
//! are found, and nothing is told twice. Which snapshots have breaks stands in `quality.breaks` alone, so it is known
//! after a restart, and when the snapshots have expired.
//!
//! Data flows: snapshots of the table, running totals of the ledger → [`Trail::follow`], [`Trail::compare`] → breaks as
//! they are known → [`Trail::changes`].

use std::collections::{BTreeMap, BTreeSet};

use finlake_lakehouse::SnapshotChange;
use finlake_reconcile::counts::{self, Balance, Of};
use finlake_reconcile::{Finding, Layer, TOTAL, resolved};
use finlake_schemas::{Break, BreakStatus};

use super::auditor::NAME;
use super::publish::Breaks;

/// What the ledger says that a table holds at a commit of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Rows, and how many of them may be none.
    Rows(i64, i64),
    /// Its entry comes later.
    Ahead,
    /// Its entry was not read, or not all before it were.
    Unknown,
}

/// A snapshot, and the last commit of each partition that it holds.
#[derive(Debug, Clone, Default)]
struct Place {
    snapshot: Option<i64>,
    commits: BTreeMap<i32, i64>,
    /// The history is known from the table's first snapshot on: a partition without a commit has none.
    rooted: bool,
}

impl Place {
    /// The commits between this and the next snapshot; those before are `None` where nothing tells them.
    fn took(&self, next: &SnapshotChange) -> Option<Vec<(i32, Option<i64>, i64)>> {
        let before = |p: &i32| self.commits.get(p).copied().or(self.rooted.then_some(0));
        let commits = next.commits.as_ref()?.iter();
        Some(commits.map(|(p, to)| (*p, before(p), *to)).collect())
    }

    fn step(&mut self, to: &SnapshotChange) {
        self.snapshot = Some(to.id);
        self.commits.extend(to.commits.iter().flatten());
    }
}

/// Why a snapshot was not judged.
enum Unjudged {
    /// The ledger has not been read as far.
    Ahead,
    /// It cannot be judged any more: what it did is part of the whole.
    Never,
}

/// The table as a whole.
#[derive(Debug, Clone, Copy)]
struct Whole {
    snapshot: i64,
    rows: Balance,
    /// It holds all that the ledger has for it up to this system time (µs).
    reached: i64,
}

/// What the audit knows of one table.
pub(super) struct Trail {
    table: String,
    layer: Layer,
    /// The table's own id: one of the same name that was made anew begins anew.
    uuid: u128,
    /// All snapshots up to here were judged.
    judged: Place,
    /// By snapshot.
    found: BTreeMap<i64, Finding>,
    /// Snapshots that lead to the current one, and all that are kept.
    line: BTreeSet<i64>,
    kept: BTreeSet<i64>,
    whole: Option<Whole>,
}

impl Trail {
    pub fn new(table: String, layer: Layer) -> Trail {
        Trail {
            table,
            layer,
            uuid: 0,
            judged: Place::default(),
            found: BTreeMap::new(),
            line: BTreeSet::new(),
            kept: BTreeSet::new(),
            whole: None,
        }
    }

    /// Nothing is known of the ledger any more.
    pub fn forget(&mut self) {
        *self = Trail::new(std::mem::take(&mut self.table), self.layer);
    }

    /// The table could not be read this time.
    pub fn unseen(&mut self) {
        self.whole = None;
    }

    fn of(&self) -> Of<'_> {
        Of {
            layer: self.layer,
            table: &self.table,
        }
    }

    /// Judges the snapshots that are new, as far as the ledger was read. `line` leads to the current one, oldest first;
    /// `kept` are all. Gives the commits that the rest of them waits for.
    pub fn follow(
        &mut self,
        uuid: u128,
        line: &[SnapshotChange],
        kept: BTreeSet<i64>,
        ledger: impl Fn(i32, i64) -> At,
    ) -> Vec<(i32, i64)> {
        if self.uuid != uuid {
            self.forget();
            self.uuid = uuid;
        }
        // Of the last look: it stands if the table is not compared at this one.
        self.whole = None;
        self.line = line.iter().map(|s| s.id).collect();
        self.kept = kept;
        let (next, mut at) = match self.unjudged(line) {
            Some(next) => (next, self.judged.clone()),
            // New to it, or it was rolled back.
            None => (
                0,
                Place {
                    rooted: line.first().is_some_and(|s| s.parent.is_none()),
                    ..Place::default()
                },
            ),
        };
        let mut found = std::mem::take(&mut self.found);
        found.retain(|id, _| self.line.contains(id));
        let mut waiting = None;
        let mut wanted = Vec::new();
        for s in line.get(next..).unwrap_or_default() {
            let took = at.took(s);
            if waiting.is_none() {
                match judge(self.of(), s, &at, took.as_deref(), &ledger) {
                    Ok(finding) => found.extend(finding.map(|f| (s.id, f))),
                    Err(Unjudged::Ahead) => waiting = Some(at.clone()),
                    Err(Unjudged::Never) => {}
                }
            }
            if waiting.is_some() {
                let all = took.into_iter().flatten();
                wanted.extend(
                    all.flat_map(|(p, from, to)| from.into_iter().chain([to]).map(move |c| (p, c))),
                );
            }
            at.step(s);
        }
        self.judged = waiting.unwrap_or(at);
        self.found = found;
        wanted
    }

    /// Where on the line it goes on.
    fn unjudged(&self, line: &[SnapshotChange]) -> Option<usize> {
        let last = self.judged.snapshot?;
        if line.last().is_some_and(|s| s.id == last) {
            return Some(line.len());
        }
        line.iter().position(|s| s.parent == Some(last))
    }

    /// The table as a whole, at its current snapshot. It holds all that the ledger has for it up to `reached`.
    pub fn compare(&mut self, snapshot: i64, rows: Balance, reached: i64) {
        self.whole = Some(Whole {
            snapshot,
            rows,
            reached,
        });
    }

    /// Whether anything is wrong.
    pub fn finds(&self) -> bool {
        !self.found.is_empty() || self.whole.is_some_and(|w| w.rows.off() != 0)
    }

    /// The table certainly does not hold what this snapshot did: it was rolled back. One that is not kept may have expired.
    fn left(&self, snapshot: i64) -> bool {
        !self.line.contains(&snapshot) && self.kept.contains(&snapshot)
    }

    /// Breaks to open and to resolve, by what is known of them. `now` in µs.
    pub fn changes(&self, known: &Breaks, now: i64) -> Vec<Break> {
        let mut out = Vec::new();
        // By how many rows the table is off because of snapshots that have breaks.
        let mut told = 0;
        let mut ended = Vec::new();
        for finding in self.found.values() {
            let before = known.get(&finding.id());
            if before.is_some_and(|b| b.status == BreakStatus::Resolved) {
                ended.push(finding);
                continue;
            }
            told += counts::off(&finding.cause).unwrap_or(0);
            if before.is_none() {
                out.push(finding.to_break(NAME, now));
            }
        }
        let Some(whole) = self.whole else {
            return out;
        };
        let mine = self.known(known, &whole);
        told += mine.held;
        let off = |told: i64| {
            let actual = whole.rows.actual - told;
            Balance {
                actual,
                ..whole.rows
            }
            .off()
        };
        let mut gone = mine.gone;
        if off(told) == 0 {
            // What they did is not in the table any more: it was made anew, or put right. Some that cancel out may be
            // there or not: they stay.
            if mine.late.iter().map(|(_, off)| off).sum::<i64>() != 0 {
                gone.extend(mine.late.iter().map(|(b, _)| *b));
            }
        } else {
            told += mine.late.iter().map(|(_, off)| off).sum::<i64>();
        }
        // A snapshot is as wrong as it ever was, yet somebody has made up for it, or else its break was ended by who saw
        // other tables.
        if off(told) != 0 {
            for finding in ended {
                told += counts::off(&finding.cause).unwrap_or(0);
                out.push(again(finding, known, now));
            }
        }
        let mut still = None;
        if !mine.open.contains(&off(told))
            && let Some(rest) = counts::totals(self.of(), whole.snapshot, whole.rows, told)
        {
            still = Some(rest.id());
            let before = known.get(&rest.id());
            if before.is_none_or(|b| b.status == BreakStatus::Resolved) {
                out.push(again(&rest, known, now));
            }
        }
        gone.extend(
            mine.totals
                .into_iter()
                .filter(|b| Some(b.break_id) != still),
        );
        out.extend(gone.into_iter().map(|b| resolved(b, now)));
        out
    }

    /// What is known of this table, and neither resolved nor found by this process.
    fn known<'a>(&self, known: &'a Breaks, whole: &Whole) -> Known<'a> {
        let mut out = Known {
            open: BTreeSet::from([0]),
            ..Known::default()
        };
        let mine = known.values().filter(|b| {
            b.table == self.table && b.cause.starts_with(TOTAL) && b.status != BreakStatus::Resolved
        });
        for b in mine {
            // A table that is being filled anew has not come to the broken rows yet.
            let settled = b.system_time <= whole.reached;
            let off = counts::off(&b.cause).unwrap_or(0);
            match counts::snapshot(b) {
                None if settled => out.totals.push(b),
                None => {}
                Some(id) if self.found.contains_key(&id) => {}
                Some(id) if self.line.contains(&id) => out.held += off,
                Some(id) if self.left(id) => out.gone.extend(settled.then_some(b)),
                Some(_) if settled => out.late.push((b, off)),
                Some(_) if out.open.len() < SUMS => {
                    let with: Vec<i64> = out.open.iter().map(|sum| sum + off).collect();
                    out.open.extend(with);
                }
                Some(_) => {}
            }
        }
        out
    }
}

/// Sums that are tried at most.
const SUMS: usize = 1_000;

/// Breaks of a table, by what the table can have to do with them.
#[derive(Default)]
struct Known<'a> {
    /// Of the table as a whole.
    totals: Vec<&'a Break>,
    /// Rows that snapshots are off which lead to the current one.
    held: i64,
    /// Of snapshots that do not.
    gone: Vec<&'a Break>,
    /// Of snapshots that are not kept, and by how many rows each was off.
    late: Vec<(&'a Break, i64)>,
    /// By so many rows the table may be off because of those of them that it may have come to, or not yet.
    open: BTreeSet<i64>,
}

/// The record that opens a break, or opens it again.
pub(super) fn again(finding: &Finding, known: &Breaks, now: i64) -> Break {
    let before = known.get(&finding.id());
    let later = before.map_or(now, |b| now.max(b.system_time + 1));
    finding.to_break(NAME, later)
}

/// `at`: the snapshot judged before; `took`: what lies between.
fn judge(
    of: Of<'_>,
    s: &SnapshotChange,
    at: &Place,
    took: Option<&[(i32, Option<i64>, i64)]>,
    ledger: &impl Fn(i32, i64) -> At,
) -> Result<Option<Finding>, Unjudged> {
    if s.parent != at.snapshot {
        // The oldest that is kept.
        return Err(Unjudged::Never);
    }
    let mut rows = Balance {
        actual: s.change,
        ..Balance::default()
    };
    let Some(took) = took else {
        return Ok(counts::by_snapshot(of, s.id, None, rows));
    };
    let (mut spans, mut ahead) = (Vec::new(), false);
    for &(p, from, to) in took {
        let Some(from) = from else {
            return Err(Unjudged::Never);
        };
        match (ledger(p, from), ledger(p, to)) {
            (At::Unknown, _) | (_, At::Unknown) => return Err(Unjudged::Never),
            (At::Rows(before, none_before), At::Rows(after, none_after)) => {
                rows.expected += after - before;
                rows.uncounted += (none_after - none_before).max(0);
            }
            _ => ahead = true,
        }
        spans.push((p, from, to));
    }
    if ahead {
        return Err(Unjudged::Ahead);
    }
    Ok(counts::by_snapshot(of, s.id, Some(&spans), rows))
}

#[cfg(test)]
mod tests;
