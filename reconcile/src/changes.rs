//! What a run changes of what is known: breaks to open, and breaks that have ended.
//!
//! Pure. A break ends only where the run has looked, can judge it, and no layer below lacks rows.

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::{Break, BreakKind, BreakStatus};

use crate::findings::{Findings, Layer, TOTAL};
use crate::same::Same;
use crate::scope::{Scope, class};

/// The table whose rows are counted as a whole only: no reconciliation has seen each of its commits.
pub(crate) const COUNTED_WHOLE: &str = "bronze.market_bars";

/// What changes between two runs over one scope: breaks to open, and breaks to resolve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Not known before, or known as resolved.
    pub open: Vec<Break>,
    /// Known as open or explained, in the scope of the run, and no longer found.
    pub resolve: Vec<Break>,
    /// Found, and known already.
    pub known: usize,
    /// By the id of a finding that has other names: the breaks that it is, and their keys.
    pub named: BTreeMap<[u8; 16], Vec<([u8; 16], String)>>,
}

/// Compares what a run found with the newest version of every known break. `now` in µs; a new
/// version is always later than the one it follows.
pub fn changes(
    found: &Findings,
    known: &BTreeMap<[u8; 16], Break>,
    scope: &Scope,
    found_by: &str,
    now: i64,
) -> Changes {
    let mut out = Changes::default();
    let mut seen = BTreeSet::new();
    // Tables of which rows are missing or too many.
    let mut miscounted = BTreeSet::new();
    let same = Same::of(known);
    for finding in found.list() {
        if matches!(finding.kind, BreakKind::Missing | BreakKind::Duplicate) {
            miscounted.insert(finding.table.as_str());
        }
        let split = same.split(finding);
        seen.extend(&split.known);
        if split.new.is_empty() {
            out.known += 1;
        }
        let parts = split.known.iter();
        let parts = parts.filter_map(|id| Some((*id, known.get(id)?.key.clone())));
        let new = split.new.iter().map(|f| (f.id(), f.key.clone()));
        let mut parts: Vec<_> = parts.chain(new).collect();
        parts.dedup();
        if parts.iter().map(|(id, _)| id).ne([&finding.id()]) {
            out.named.insert(finding.id(), parts);
        }
        for new in split.new {
            let id = new.id();
            seen.insert(id);
            let before = known.get(&id);
            let later = before.map_or(now, |b| now.max(b.system_time + 1));
            out.open.push(new.to_break(found_by, later));
        }
    }
    // A cut list proves nothing about what it does not name.
    if found.is_cut() {
        return out;
    }
    let mut ended = BTreeSet::new();
    // From the input upwards: what a layer misses cannot be told while the one below it lacks rows.
    for (layer, below) in FROM_BELOW {
        let gaps = match below {
            Some(below) => lacks(below.as_str(), found, known, &ended),
            None => BTreeSet::new(),
        };
        for (id, b) in known.iter().filter(|(_, b)| b.layer == layer.as_str()) {
            // A total is the sum of what every commit is checked for.
            let outdone = b.cause.starts_with(TOTAL)
                && !miscounted.contains(b.table.as_str())
                && b.table != COUNTED_WHOLE;
            let hidden = b.kind == BreakKind::Missing
                && (gaps.contains(&None) || gaps.contains(&b.symbol.as_deref()));
            if b.status != BreakStatus::Resolved
                && !seen.contains(id)
                && !hidden
                && (b.found_by == found_by || outdone)
                && found.decides(&b.cause, &b.key)
                && scope.covers(b)
            {
                ended.insert(*id);
                out.resolve.push(resolved(b, now));
            }
        }
    }
    out
}

/// The layers in which a break may end, and what each is judged by. The ledger cannot heal; its entries can only be
/// forgotten.
const FROM_BELOW: [(Layer, Option<Layer>); 4] = [
    (Layer::Bronze, None),
    (Layer::Feed, Some(Layer::Bronze)),
    (Layer::Silver, Some(Layer::Bronze)),
    (Layer::Gold, Some(Layer::Silver)),
];

/// Symbols of which this layer lacks rows that are no history; `None` for all.
fn lacks<'a>(
    layer: &str,
    found: &'a Findings,
    known: &'a BTreeMap<[u8; 16], Break>,
    ended: &BTreeSet<[u8; 16]>,
) -> BTreeSet<Option<&'a str>> {
    let rows = |cause: &str| match class(cause) {
        "INV-6" => !cause.starts_with("INV-6:prev"),
        // Of what the task did, and of a share: no row is absent.
        "accepted" | "validator" => false,
        _ => true,
    };
    let now = found
        .list()
        .iter()
        .filter(|f| f.kind == BreakKind::Missing && f.layer.as_str() == layer && rows(&f.cause));
    let still = known.iter().filter(|(id, b)| {
        b.kind == BreakKind::Missing
            && b.layer == layer
            && b.status != BreakStatus::Resolved
            && rows(&b.cause)
            && !ended.contains(*id)
    });
    now.map(|f| f.symbol.as_deref())
        .chain(still.map(|(_, b)| b.symbol.as_deref()))
        .collect()
}

/// The version that ends a break. `now` in µs.
pub fn resolved(open: &Break, now: i64) -> Break {
    Break {
        status: BreakStatus::Resolved,
        system_time: now.max(open.system_time + 1),
        detail: format!("{}; a later run no longer finds it", open.detail),
        ..open.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::tests::finding;
    use crate::findings::{Finding, VALUES};
    use crate::scope::Looked;

    fn scope() -> Scope {
        Scope {
            layers: BTreeSet::from(["silver".to_owned()]),
            looked: looked(),
            ..Scope::default()
        }
    }

    /// All that the ledger says.
    fn looked() -> Looked {
        Looked {
            reached: Some(i64::MAX),
            ..Looked::default()
        }
    }

    #[test]
    fn a_break_is_opened_once_resolved_once_and_may_come_back() {
        let mut found = Findings::default();
        found.push(finding("a"));
        let first = changes(&found, &BTreeMap::new(), &scope(), "reconcile", 100);
        assert_eq!(first.open.len(), 1);
        let mut known: BTreeMap<_, _> =
            first.open.iter().map(|b| (b.break_id, b.clone())).collect();
        let again = changes(&found, &known, &scope(), "reconcile", 200);
        assert_eq!((again.open.len(), again.known), (0, 1));

        let nothing = Findings::default();
        let gone = changes(&nothing, &known, &scope(), "reconcile", 50);
        assert_eq!(gone.resolve.len(), 1);
        assert_eq!(
            gone.resolve[0].system_time, 101,
            "later than the version before"
        );
        known.insert(gone.resolve[0].break_id, gone.resolve[0].clone());
        assert_eq!(
            changes(&nothing, &known, &scope(), "reconcile", 300),
            Changes::default()
        );
        let back = changes(&found, &known, &scope(), "reconcile", 10);
        assert_eq!(back.open[0].system_time, 102);
    }

    #[test]
    fn a_total_that_the_audit_missed_is_resolved_by_the_count_of_every_commit() {
        let total = |table: &str| {
            let cause = format!("{TOTAL}3");
            Finding::new(BreakKind::Duplicate, Layer::Silver, table, table, cause)
        };
        let known: BTreeMap<_, _> = ["silver.x", "silver.y", COUNTED_WHOLE]
            .map(|t| (total(t).id(), total(t).to_break("audit", 1)))
            .into();
        let mut found = Findings::default();
        found.push(finding("a"));
        let ended = changes(&found, &known, &scope(), "reconcile", 9).resolve;
        let tables: Vec<_> = ended.iter().map(|b| b.table.as_str()).collect();
        assert_eq!(
            tables,
            ["silver.y"],
            "silver.x still misses a row, and nobody has counted the rest"
        );
        let uncounted = Scope {
            unchecked: BTreeSet::from(["INV-13".to_owned()]),
            ..scope()
        };
        let none = changes(&Findings::default(), &known, &uncounted, "reconcile", 9);
        assert_eq!(none, Changes::default());
    }

    #[test]
    fn the_ledger_does_not_heal() {
        let finding = Finding::new(
            BreakKind::Missing,
            Layer::Ledger,
            "finlake.ledger",
            "0:7",
            "INV-12:commit",
        );
        let known = BTreeMap::from([(finding.id(), finding.to_break("reconcile", 1))]);
        let all = Scope {
            layers: BTreeSet::from(["ledger".to_owned()]),
            looked: looked(),
            ..Scope::default()
        };
        let gone = changes(&Findings::default(), &known, &all, "reconcile", 9);
        assert_eq!(gone, Changes::default(), "its entry was only forgotten");
    }

    #[test]
    fn only_what_was_looked_at_is_resolved() {
        let mut found = Findings::default();
        found.push(finding("a"));
        let known: BTreeMap<_, _> = found
            .list()
            .iter()
            .map(|f| (f.id(), f.to_break("reconcile", 1)))
            .collect();
        let nothing = Findings::default();
        let resolves = |scope: Scope, by: &str| changes(&nothing, &known, &scope, by, 9).resolve;
        let other = |change: fn(&mut Scope)| {
            let mut s = scope();
            change(&mut s);
            s
        };
        assert_eq!(resolves(scope(), "reconcile").len(), 1);
        assert_eq!(resolves(scope(), "audit").len(), 0);
        assert_eq!(resolves(other(|s| s.date = Some(8)), "reconcile").len(), 0);
        assert_eq!(resolves(other(|s| s.date = Some(7)), "reconcile").len(), 1);
        let symbol = other(|s| s.symbol = Some("ETHUSDT".into()));
        assert_eq!(resolves(symbol, "reconcile").len(), 0);
        let gold = other(|s| s.layers = BTreeSet::from(["gold".to_owned()]));
        assert_eq!(resolves(gold, "reconcile").len(), 0);
        assert_eq!(resolves(other(|s| s.past = true), "reconcile").len(), 0);
        let unread = other(|s| s.unchecked = BTreeSet::from(["row".to_owned()]));
        assert_eq!(resolves(unread, "reconcile").len(), 0);
    }

    #[test]
    fn what_cannot_be_judged_is_not_resolved() {
        let known: BTreeMap<_, _> = ["a", "b"]
            .map(|k| (finding(k).id(), finding(k).to_break("reconcile", 1)))
            .into();
        let resolves = |found: &Findings| {
            let made = changes(found, &known, &scope(), "reconcile", 9).resolve;
            made.into_iter().map(|b| b.key).collect::<Vec<_>>()
        };
        let mut found = Findings::default();
        found.undecided("row", "a");
        found.undecided("version", "b");
        assert_eq!(
            resolves(&found),
            ["b"],
            "of b it is the row that is asked for"
        );
        // A rule that allows what was found says nothing of what could not be judged.
        let mut all = Findings::default();
        found.push(finding("b"));
        all.absorb(found.allowed());
        assert_eq!(resolves(&all), ["b"]);
        all.cut_off();
        assert_eq!(resolves(&all), [""; 0], "a check stopped on the way");
        // Values that cannot be judged are those of every column.
        let mut values = Findings::default();
        values.undecided(VALUES, "a");
        assert!(!values.decides("high:7", "a") && !values.decides("close+vwap:7", "a"));
        assert!(values.decides("high:7", "b") && values.decides("row", "a"));
        assert!(values.decides("INV-2:7", "a") && values.decides("record:7", "a"));
    }

    #[test]
    fn what_a_layer_misses_is_not_told_while_the_one_below_lacks_rows() {
        let of = |kind, layer, cause: &str, symbol: &str| {
            Finding::new(kind, layer, "t", symbol, cause).of("s", symbol)
        };
        let silver = of(BreakKind::Missing, Layer::Silver, "row", "X");
        let gold = of(BreakKind::Missing, Layer::Gold, "row", "X");
        let other = of(BreakKind::Missing, Layer::Gold, "row", "Y");
        let drift = of(BreakKind::ValueDrift, Layer::Silver, "close:7", "X");
        let mut lost = of(BreakKind::Missing, Layer::Bronze, "position", "0");
        lost.symbol = None;
        let known: BTreeMap<_, _> = [&silver, &gold, &other, &drift, &lost]
            .map(|f| (f.id(), f.to_break("reconcile", 1)))
            .into();
        let mut all = scope();
        all.layers = ["bronze", "silver", "gold"].map(str::to_owned).into();
        let resolves = |found: &Findings, scope: &Scope| {
            let made = changes(found, &known, scope, "reconcile", 9).resolve;
            let mut made: Vec<_> = made
                .into_iter()
                .map(|b| (b.layer, b.symbol.unwrap_or_default()))
                .collect();
            made.sort();
            made
        };
        let pair = |layer: &str, symbol: &str| (layer.to_owned(), symbol.to_owned());
        let nothing = Findings::default();
        assert_eq!(resolves(&nothing, &all).len(), 5, "all was repaired");
        // Bronze still lacks rows, or nobody has looked at it since.
        let mut found = Findings::default();
        found.push(lost);
        let some = [pair("gold", "Y"), pair("silver", "X")];
        assert_eq!(resolves(&found, &all), some);
        all.layers.remove("bronze");
        assert_eq!(
            resolves(&nothing, &all),
            some,
            "the drift alone, and what Silver has"
        );
    }
}
