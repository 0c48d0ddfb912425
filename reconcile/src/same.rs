//! One cause under several names: what a run found against the breaks that are open.
//!
//! Pure. A loss is named by what the run could see. A whole run names the range of offsets that the
//! ledger misses, a run over one date the offsets of that date; a gap that was filled in part is a
//! shorter one; a drift that recomputation finds is `close:…`, and `record:close:…` where Bronze could
//! not be read and only the topic says it. So a range that lies in ranges that are open is known, and
//! of one that goes beyond them only the rest is new; a version that is known to be wrong in a column
//! is not told once more for it by another comparison, but for other columns, or when it got worse.

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::{Break, BreakKind, BreakStatus, Severity};

use crate::findings::{Finding, Layer};
use crate::outputs::moment;
use crate::scope::class;

type Id = [u8; 16];

/// An open break of a half-open range.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: i64,
    to: i64,
    id: Id,
    /// No range up to this one ends later.
    reach: i64,
}

/// Open breaks that have several names.
pub(crate) struct Same<'a> {
    /// By kind, layer, cause, and what stands before the range; in order.
    ranges: BTreeMap<(BreakKind, &'a str, &'a str, &'a str), Vec<Range>>,
    /// All others, by kind, layer, table and key.
    others: BTreeMap<(BreakKind, &'a str, &'a str, &'a str), Vec<&'a Break>>,
}

/// What of a finding is new, and the open breaks that the rest of it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub known: Vec<Id>,
    pub new: Vec<Finding>,
}

impl<'a> Same<'a> {
    /// Of everything known.
    pub fn of(known: &'a BTreeMap<Id, Break>) -> Same<'a> {
        let mut same = Same {
            ranges: BTreeMap::new(),
            others: BTreeMap::new(),
        };
        for (id, b) in known {
            if b.status == BreakStatus::Resolved {
                continue;
            }
            let layer = b.layer.as_str();
            if let Some((of, from, to)) = range(&b.key).filter(|_| has_ranges(layer)) {
                let at = (b.kind, layer, b.cause.as_str(), of);
                let id = *id;
                let range = Range {
                    from,
                    to,
                    id,
                    reach: to,
                };
                same.ranges.entry(at).or_default().push(range);
            } else {
                let at = (b.kind, layer, b.table.as_str(), b.key.as_str());
                same.others.entry(at).or_default().push(b);
            }
        }
        for ranges in same.ranges.values_mut() {
            ranges.sort_unstable_by_key(|r| (r.from, r.to));
            let mut reach = i64::MIN;
            for range in ranges {
                reach = reach.max(range.to);
                range.reach = reach;
            }
        }
        same
    }

    /// Tells what is known of a finding from what is new.
    pub fn split(&self, finding: &Finding) -> Split {
        let layer = finding.layer.as_str();
        if let Some(found) = range(&finding.key).filter(|_| has_ranges(layer)) {
            return self.split_range(finding, found);
        }
        let at = (
            finding.kind,
            layer,
            finding.table.as_str(),
            finding.key.as_str(),
        );
        let open = self.others.get(&at).map_or(&[][..], Vec::as_slice);
        if finding.kind == BreakKind::ValueDrift {
            return split_drift(finding, open);
        }
        let known = open.iter().filter(|b| covers(b, finding));
        let known: Vec<Id> = known.map(|b| b.break_id).collect();
        let new = match known.is_empty() {
            true => vec![finding.clone()],
            false => Vec::new(),
        };
        Split { known, new }
    }

    fn split_range(&self, finding: &Finding, (of, from, to): (&str, i64, i64)) -> Split {
        let layer = finding.layer.as_str();
        let at = (finding.kind, layer, finding.cause.as_str(), of);
        let open = self.ranges.get(&at).map_or(&[][..], Vec::as_slice);
        let mut split = Split {
            known: Vec::new(),
            new: Vec::new(),
        };
        let mut rest = Vec::new();
        let mut next = from;
        let first = open.partition_point(|r| r.reach <= from);
        for r in open[first..].iter().take_while(|r| r.from < to) {
            if r.to <= from {
                continue;
            }
            split.known.push(r.id);
            if next < r.from {
                rest.push((next, r.from));
            }
            next = next.max(r.to);
        }
        if next < to {
            rest.push((next, to));
        }
        for part in rest {
            let mut new = finding.clone();
            if part != (from, to) {
                new.key = format!("{of}:{}..{}", part.0, part.1);
                new.expected = new
                    .expected
                    .map(|text| format!("{text} in {}, of which a part is known", finding.key));
            }
            split.new.push(new);
        }
        split
    }
}

/// Of these a key may be a range; those of the ledger are of one commit.
fn has_ranges(layer: &str) -> bool {
    [Layer::Bronze, Layer::Feed]
        .map(Layer::as_str)
        .contains(&layer)
}

/// What stands before a half-open range, and its ends: `market.ticks/3:17..20`, `binance:BTCUSDT:5..9`.
pub(crate) fn range(key: &str) -> Option<(&str, i64, i64)> {
    let (of, ends) = key.rsplit_once(':')?;
    let (from, to) = ends.split_once("..")?;
    Some((of, from.parse().ok()?, to.parse().ok()?))
}

/// Whether an open break that is no drift is what was found.
fn covers(open: &Break, found: &Finding) -> bool {
    let (a, b) = (open.cause.as_str(), found.cause.as_str());
    if a == b || found.also.iter().any(|cause| cause == a) {
        return true;
    }
    if class(b) != "record" {
        return false;
    }
    // Only the topic says it this time: of a row that recomputation missed, or of one that a version's history did.
    match found.kind {
        BreakKind::Missing => a == "row" || a == format!("INV-6:{}", end(b)),
        BreakKind::Duplicate => a == format!("INV-2:{}", end(b)),
        BreakKind::ValueDrift | BreakKind::SchemaDrift | BreakKind::Ledger => false,
    }
}

/// The system time that a cause ends with, as it is spelt.
fn end(cause: &str) -> &str {
    cause.rsplit(':').next().unwrap_or_default()
}

/// The columns that a drift's cause names, and the version's system time; a cause of another shape is its own column.
fn columns(cause: &str) -> (BTreeSet<&str>, Option<i64>) {
    let of = cause.strip_prefix("record:").unwrap_or(cause);
    match of.split_once(':') {
        Some((columns, _)) if moment(of).is_some() && of.matches(':').count() == 1 => {
            (columns.split('+').collect(), moment(of))
        }
        _ => (BTreeSet::from([cause]), None),
    }
}

/// A wrong version is one break for each column, whoever finds it.
fn split_drift(finding: &Finding, open: &[&Break]) -> Split {
    let (wrong, version) = columns(&finding.cause);
    let same = |b: &&&Break| {
        let (columns, of) = columns(&b.cause);
        of == version && !columns.is_disjoint(&wrong)
    };
    let known: Vec<&Break> = open.iter().filter(same).copied().collect();
    let told: BTreeSet<&str> = known.iter().flat_map(|b| columns(&b.cause).0).collect();
    let rest: Vec<&str> = wrong.difference(&told).copied().collect();
    let was_material = known.iter().any(|b| b.severity == Severity::Material);
    let mut new = finding.clone();
    let is_new = match (known.first(), version) {
        (None, _) => true,
        (Some(_), Some(version)) if !rest.is_empty() => {
            new.cause = format!("{}:{version}", rest.join("+"));
            true
        }
        // It got worse: what was said of it, an explanation too, was of less.
        (Some(first), _) if finding.severity == Severity::Material && !was_material => {
            new.cause.clone_from(&first.cause);
            true
        }
        _ => false,
    };
    Split {
        known: known.iter().map(|b| b.break_id).collect(),
        new: if is_new { vec![new] } else { Vec::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(from: i64, to: i64) -> Finding {
        let key = format!("market.ticks/3:{from}..{to}");
        Finding::new(BreakKind::Missing, Layer::Bronze, "t", key, "position")
    }

    fn of_bar(kind: BreakKind, cause: &str) -> Finding {
        Finding::new(kind, Layer::Silver, "t", "s:X:1m:0", cause)
    }

    fn drift(cause: &str) -> Finding {
        of_bar(BreakKind::ValueDrift, cause).severity(Severity::Minor)
    }

    fn row(cause: &str) -> Finding {
        of_bar(BreakKind::Missing, cause)
    }

    fn known(findings: &[Finding]) -> BTreeMap<Id, Break> {
        let all = findings
            .iter()
            .map(|f| (f.id(), f.to_break("reconcile", 1)));
        all.collect()
    }

    /// Keys and causes of what is new, and how many breaks the rest is.
    fn split(open: &[Finding], found: &Finding) -> (Vec<(String, String)>, usize) {
        let known = known(open);
        let split = Same::of(&known).split(found);
        let new = split.new.into_iter().map(|f| (f.key, f.cause)).collect();
        (new, split.known.len())
    }

    fn keys(open: &[Finding], found: &Finding) -> (Vec<String>, usize) {
        let (new, known) = split(open, found);
        (new.into_iter().map(|n| n.0).collect(), known)
    }

    fn causes(open: &[Finding], found: &Finding) -> (Vec<String>, usize) {
        let (new, known) = split(open, found);
        (new.into_iter().map(|n| n.1).collect(), known)
    }

    #[test]
    fn of_a_range_only_what_is_not_open_is_new() {
        let key = |from: i64, to: i64| format!("market.ticks/3:{from}..{to}");
        // A run over a date saw a part of it, or the whole run before it all.
        assert_eq!(keys(&[lost(5, 30)], &lost(10, 20)), (vec![], 1));
        assert_eq!(
            keys(&[lost(10, 20)], &lost(5, 30)),
            (vec![key(5, 10), key(20, 30)], 1)
        );
        assert_eq!(
            keys(&[lost(5, 10), lost(20, 30)], &lost(5, 30)),
            (vec![key(10, 20)], 2)
        );
        assert_eq!(keys(&[lost(5, 30)], &lost(5, 30)), (vec![], 1));
        // A long one before short ones.
        let open = [lost(0, 100), lost(3, 4), lost(40, 50)];
        assert_eq!(keys(&open, &lost(60, 120)), (vec![key(100, 120)], 1));
        // Neighbours, other partitions and other kinds are others.
        assert_eq!(keys(&[lost(5, 10)], &lost(10, 20)), (vec![key(10, 20)], 0));
        let other = Finding {
            key: "market.ticks/4:5..30".into(),
            ..lost(5, 30)
        };
        assert_eq!(keys(&[other], &lost(5, 30)), (vec![key(5, 30)], 0));
        let doubled = Finding {
            kind: BreakKind::Duplicate,
            ..lost(5, 30)
        };
        assert_eq!(keys(&[doubled], &lost(5, 30)), (vec![key(5, 30)], 0));
    }

    #[test]
    fn what_is_resolved_opens_again_under_its_own_name() {
        let mut known = known(&[lost(5, 30)]);
        for b in known.values_mut() {
            b.status = BreakStatus::Resolved;
        }
        let split = Same::of(&known).split(&lost(10, 20));
        assert_eq!((split.new.len(), split.known.len()), (1, 0));
    }

    #[test]
    fn a_wrong_version_is_one_break_for_each_column_whoever_finds_it() {
        let told = |open: &str, found: &str| causes(&[drift(open)], &drift(found));
        let known = (vec![], 1);
        assert_eq!(told("close:70", "record:close:70"), known);
        assert_eq!(told("record:close+vwap:70", "close:70"), known);
        let new = |cause: &str| (vec![cause.to_owned()], 0);
        assert_eq!(told("close:70", "record:close:71"), new("record:close:71"));
        assert_eq!(told("close:70", "record:stage:70"), new("record:stage:70"));
        assert_eq!(told("INV-3:70", "close:70"), new("close:70"));
        assert_eq!(
            told("stamp:sys_to", "stamp:valid_to"),
            new("stamp:valid_to")
        );
        // What came after the first is told by itself, an explanation of that does not hold for it.
        let rest = (vec!["volume:70".to_owned()], 1);
        assert_eq!(told("close:70", "close+volume:70"), rest);
        let both = [drift("close:70"), drift("volume:70")];
        assert_eq!(causes(&both, &drift("close+volume:70")), (vec![], 2));
        // Or it is the same, and worse.
        let worse = drift("record:close:70").severity(Severity::Material);
        assert_eq!(
            causes(&[drift("close:70")], &worse),
            (vec!["close:70".to_owned()], 1)
        );
        let open = [drift("close:70").severity(Severity::Material)];
        assert_eq!(causes(&open, &worse), (vec![], 1));
    }

    #[test]
    fn a_lost_row_is_one_break_and_two_are_two() {
        let is_known = |open: &str, found: &str| causes(&[row(open)], &row(found)).1 == 1;
        assert!(is_known("row", "record:70") && is_known("INV-6:70", "record:70"));
        assert!(!is_known("version", "row") && !is_known("record:70", "record:71"));
        // The row of which it is said is there, and the one before is lost.
        assert!(!is_known("INV-6:prev:70", "record:70"));
        assert!(!is_known("record:70", "INV-6:prev:70"));
        // One version was lost; now the bar is.
        assert!(!is_known("record:70", "row"));
        let mut joined = row("row");
        joined.also.push("record:70".to_owned());
        assert_eq!(causes(&[row("record:70")], &joined), (vec![], 1));
        let twice = |cause: &str| of_bar(BreakKind::Duplicate, cause);
        assert_eq!(causes(&[twice("INV-2:70")], &twice("record:70")).1, 1);
        assert_eq!(causes(&[twice("invented:70")], &twice("record:70")).1, 0);
    }
}
