//! What a check finds: one wrong thing, named so that it gets the same name whenever it is found.
//!
//! Pure. The id of a break is a function of kind, layer, table, key and cause alone, so a second
//! run (or the audit beside a run) never opens it twice. Data flows: checks → [`Findings`] → the
//! command's output and `quality.breaks`.

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::{Break, BreakKind, BreakStatus, Severity, keys};

use crate::outputs::moment;
use crate::same::{Same, range};
use crate::scope::{Scope, class};

/// Beyond this relative difference a drift is material: 0.01 %.
pub const MATERIAL: f64 = 1e-4;

/// What stands for all columns of a bar's versions where they cannot be judged.
pub(crate) const VALUES: &str = "values";

/// How the causes of breaks begin that tell a table's row count from the ledger's totals.
pub const TOTAL: &str = "INV-13:total:";

/// The table whose rows are counted as a whole only: no reconciliation has seen each of its commits.
pub(crate) const COUNTED_WHOLE: &str = "bronze.market_bars";

/// Where something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// What the exchange sent, or did not.
    Feed,
    Ledger,
    Bronze,
    Silver,
    Gold,
}

impl Layer {
    /// As breaks spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layer::Feed => "feed",
            Layer::Ledger => "ledger",
            Layer::Bronze => "bronze",
            Layer::Silver => "silver",
            Layer::Gold => "gold",
        }
    }
}

/// One wrong thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: BreakKind,
    pub severity: Severity,
    pub layer: Layer,
    /// Full name of the table, or of the topic where no table is concerned.
    pub table: String,
    /// Natural key, offset range, id range or column.
    pub key: String,
    /// What makes two findings of one key two.
    pub cause: String,
    pub source: Option<String>,
    pub symbol: Option<String>,
    /// Days since 1970.
    pub trade_date: Option<i32>,
    pub expected: Option<String>,
    pub actual: Option<String>,
    /// What it means and what to do next.
    pub detail: String,
    /// Other causes under which the same may have been told before.
    pub also: Vec<String>,
}

impl Finding {
    /// A finding with the parts that make its id; the rest is filled in by the builder methods.
    pub fn new(
        kind: BreakKind,
        layer: Layer,
        table: impl Into<String>,
        key: impl Into<String>,
        cause: impl Into<String>,
    ) -> Finding {
        Finding {
            kind,
            severity: Severity::Material,
            layer,
            table: table.into(),
            key: key.into(),
            cause: cause.into(),
            source: None,
            symbol: None,
            trade_date: None,
            expected: None,
            actual: None,
            detail: String::new(),
            also: Vec::new(),
        }
    }

    /// Names the instrument.
    #[must_use]
    pub fn of(mut self, source: &str, symbol: &str) -> Finding {
        self.source = Some(source.to_owned());
        self.symbol = Some(symbol.to_owned());
        self
    }

    /// Names the date, days since 1970.
    #[must_use]
    pub fn on(mut self, date: i32) -> Finding {
        self.trade_date = Some(date);
        self
    }

    /// What should be there.
    #[must_use]
    pub fn expected(mut self, text: impl Into<String>) -> Finding {
        self.expected = Some(text.into());
        self
    }

    /// What is there.
    #[must_use]
    pub fn actual(mut self, text: impl Into<String>) -> Finding {
        self.actual = Some(text.into());
        self
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Finding {
        self.severity = severity;
        self
    }

    /// What it means and what to do next.
    #[must_use]
    pub fn detail(mut self, text: impl Into<String>) -> Finding {
        self.detail = text.into();
        self
    }

    /// The break's id.
    pub fn id(&self) -> [u8; 16] {
        keys::break_id(
            self.kind,
            self.layer.as_str(),
            &self.table,
            &self.key,
            &self.cause,
        )
    }

    /// The record that opens this break. `system_time` in µs.
    pub fn to_break(&self, found_by: &str, system_time: i64) -> Break {
        Break {
            break_id: self.id(),
            kind: self.kind,
            severity: self.severity,
            layer: self.layer.as_str().to_owned(),
            table: self.table.clone(),
            key: self.key.clone(),
            cause: self.cause.clone(),
            source: self.source.clone(),
            symbol: self.symbol.clone(),
            trade_date: self.trade_date,
            status: BreakStatus::Opened,
            expected: self.expected.clone(),
            actual: self.actual.clone(),
            detail: self.detail.clone(),
            found_by: found_by.to_owned(),
            system_time,
        }
    }
}

/// Findings in the order in which they were made, each once, and no more than a person can use:
/// beyond the limit they are only counted. The limit holds for each class (kind, layer and what
/// the cause begins with) by itself, so that thousands of one do not hide the few of another.
#[derive(Debug, Clone)]
pub struct Findings {
    list: Vec<Finding>,
    known: BTreeSet<[u8; 16]>,
    listed: BTreeMap<(BreakKind, Layer, String), usize>,
    counts: BTreeMap<(BreakKind, Severity), u64>,
    limit: usize,
    /// A check stopped before it had named all.
    cut_off: bool,
    /// Beginning of a cause, and a key: what could not be judged this time.
    undecided: BTreeSet<(String, String)>,
}

impl Default for Findings {
    fn default() -> Findings {
        Findings::limited(10_000)
    }
}

impl Findings {
    /// Keeps at most `limit` findings of each class.
    pub fn limited(limit: usize) -> Findings {
        Findings {
            list: Vec::new(),
            known: BTreeSet::new(),
            listed: BTreeMap::new(),
            counts: BTreeMap::new(),
            limit,
            cut_off: false,
            undecided: BTreeSet::new(),
        }
    }

    /// Adds one; the same thing found again is not counted again.
    pub fn push(&mut self, finding: Finding) {
        let class = finding.cause.split(':').next().unwrap_or_default();
        let class = (finding.kind, finding.layer, class.to_owned());
        let of_class = self.listed.entry(class).or_default();
        let listed = *of_class < self.limit;
        if listed {
            if !self.known.insert(finding.id()) {
                return;
            }
            *of_class += 1;
        }
        *self
            .counts
            .entry((finding.kind, finding.severity))
            .or_default() += 1;
        if listed {
            self.list.push(finding);
        }
    }

    /// Those kept.
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// Adds to the texts of those kept; what makes their ids must stay.
    pub fn amend(&mut self, mut change: impl FnMut(&mut Finding)) {
        self.list.iter_mut().for_each(&mut change);
    }

    /// How many there are of each kind and severity.
    pub fn counts(&self) -> &BTreeMap<(BreakKind, Severity), u64> {
        &self.counts
    }

    /// All of them, those beyond the limit too.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Nothing was found.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Whether some were only counted, or not even that.
    pub fn is_cut(&self) -> bool {
        self.cut_off || self.total() > self.list.len() as u64
    }

    /// A check stopped before it had named all.
    pub fn cut_off(&mut self) {
        self.cut_off = true;
    }

    /// What `cause` begins with cannot be judged of this key now: it may be broken still, though nothing is found.
    pub fn undecided(&mut self, cause: &str, key: impl Into<String>) {
        self.undecided.insert((cause.to_owned(), key.into()));
    }

    /// Without what was found: a rule allows it. What could not be judged, or not be named, stays so.
    #[must_use]
    pub fn allowed(self) -> Findings {
        Findings {
            cut_off: self.cut_off,
            undecided: self.undecided,
            ..Findings::limited(self.limit)
        }
    }

    /// Whether a break of this cause and key could be judged.
    pub fn decides(&self, cause: &str, key: &str) -> bool {
        let undecided = |class: &str| {
            let asked = (class.to_owned(), key.to_owned());
            self.undecided.contains(&asked)
        };
        let values = of_values(cause) && undecided(VALUES);
        !(undecided(class(cause)) || values || self.in_range(cause, key))
    }

    /// Whether a part of the range that a key names could not be judged.
    fn in_range(&self, cause: &str, key: &str) -> bool {
        let Some((of, from, to)) = range(key) else {
            return false;
        };
        let of_class = (class(cause).to_owned(), of.to_owned());
        let mut keys = self.undecided.range(of_class..);
        let mut keys = keys
            .by_ref()
            .take_while(|(c, key)| c == class(cause) && key.starts_with(of));
        keys.any(|(_, key)| {
            range(key).is_some_and(|(other, a, b)| other == of && a < to && from < b)
        })
    }

    /// Takes over another list.
    pub fn absorb(&mut self, other: Findings) {
        self.cut_off |= other.cut_off;
        self.undecided.extend(other.undecided);
        let kept = other.list.len() as u64;
        let mut uncounted: BTreeMap<(BreakKind, Severity), u64> = other.counts;
        debug_assert!(uncounted.values().sum::<u64>() >= kept);
        for finding in other.list {
            if let Some(n) = uncounted.get_mut(&(finding.kind, finding.severity)) {
                *n -= 1;
            }
            self.push(finding);
        }
        for (what, n) in uncounted {
            if n > 0 {
                *self.counts.entry(what).or_default() += n;
            }
        }
    }
}

/// Whether a cause names columns of a version whose values drifted: `close+vwap:1700000000000000`.
fn of_values(cause: &str) -> bool {
    let class = class(cause);
    let others = ["record", "invented", "version", "revision"];
    moment(cause).is_some() && !others.contains(&class) && !class.starts_with("INV-")
}

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

/// Interval and start (µs) that the key of a bar's break names; `None` for other keys.
pub(crate) fn bar_of(key: &str) -> Option<(&str, i64)> {
    let mut parts = key.rsplitn(4, ':');
    let start = parts.next()?.parse().ok()?;
    let interval = parts.next()?;
    (parts.next().is_some() && parts.next().is_some()).then_some((interval, start))
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
    use crate::scope::Looked;

    fn finding(key: &str) -> Finding {
        Finding::new(BreakKind::Missing, Layer::Silver, "silver.x", key, "row")
            .of("binance", "BTCUSDT")
            .on(7)
    }

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
    fn one_cause_is_one_break() {
        let mut all = Findings::default();
        all.push(finding("a"));
        all.push(finding("a").actual("other text"));
        all.push(finding("b"));
        assert_eq!((all.list().len(), all.total()), (2, 2));
        assert_eq!(finding("a").id(), finding("a").detail("x").id());
        assert_ne!(finding("a").id(), finding("b").id());
    }

    #[test]
    fn beyond_the_limit_findings_are_counted() {
        let mut some = Findings::limited(2);
        for n in 0..5 {
            some.push(finding(&n.to_string()));
        }
        assert_eq!((some.list().len(), some.total()), (2, 5));
        assert!(some.is_cut());
        // Another class has its own limit.
        let mut rows = some.clone();
        rows.push(Finding {
            cause: "INV-13:rows".into(),
            ..finding("0")
        });
        assert_eq!((rows.list().len(), rows.total()), (3, 6));
        let mut all = Findings::default();
        all.push(finding("0"));
        all.absorb(some);
        assert_eq!((all.list().len(), all.total()), (2, 5));
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
