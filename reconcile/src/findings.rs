//! What a check finds: one wrong thing, named so that it gets the same name whenever it is found.
//!
//! Pure. The id of a break is a function of kind, layer, table, key and cause alone, so a second
//! run (or the audit beside a run) never opens it twice. Data flows: checks → [`Findings`] → the
//! command's output and `quality.breaks`.

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::{Break, BreakKind, BreakStatus, Severity, keys};

use crate::outputs::moment;
use crate::same::range;
use crate::scope::class;

/// Beyond this relative difference a drift is material: 0.01 %.
pub const MATERIAL: f64 = 1e-4;

/// What stands for all columns of a bar's versions where they cannot be judged.
pub(crate) const VALUES: &str = "values";

/// How the causes of breaks begin that tell a table's row count from the ledger's totals.
pub const TOTAL: &str = "INV-13:total:";

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

/// Interval and start (µs) that the key of a bar's break names; `None` for other keys.
pub(crate) fn bar_of(key: &str) -> Option<(&str, i64)> {
    let mut parts = key.rsplitn(4, ':');
    let start = parts.next()?.parse().ok()?;
    let interval = parts.next()?;
    (parts.next().is_some() && parts.next().is_some()).then_some((interval, start))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn finding(key: &str) -> Finding {
        Finding::new(BreakKind::Missing, Layer::Silver, "silver.x", key, "row")
            .of("binance", "BTCUSDT")
            .on(7)
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
}
