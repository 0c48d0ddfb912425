//! What a run looked at: only there can a break that is no longer found be called resolved.
//!
//! Pure. A break is judged by what the run that does not find it can vouch for, cause by cause: the rule was measured,
//! for this interval and this scope; the version is not older than what the topic retains; the bar had a reference; the
//! tables have reached all that the ledger knew when the break was told. Whatever is not known to have been looked at was
//! not. Data flows: options and report of a run → [`Scope`] → [`changes`](crate::changes).

use std::collections::{BTreeMap, BTreeSet};

use finlake_schemas::Break;

use crate::accuracy::Compared;
use crate::books::Books;
use crate::findings::{Layer, bar_of};
use crate::outputs;
use crate::rules::{self, Measure};
use crate::run::{Options, Pins, Report};

/// What a run notes while it looks, beside what it finds.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// Silver and Gold: from this system time (µs) on every version was compared with its topic.
    pub written_since: BTreeMap<Layer, i64>,
    /// Bars that were compared with somebody else's.
    pub compared: Compared,
    /// The tables hold all that the ledger says up to this system time (µs); `None` without a ledger.
    pub reached: Option<i64>,
}

/// What a run has looked at.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Layers checked.
    pub layers: BTreeSet<String>,
    /// Only this date (days since 1970); a break without a date is then out of scope.
    pub date: Option<i32>,
    /// Only this symbol; a break without a symbol is then out of scope.
    pub symbol: Option<String>,
    /// Beginnings of causes that were not looked at this time (a source was not reachable).
    pub unchecked: BTreeSet<String>,
    /// Looked at as of an earlier system time: what came later may be broken still.
    pub past: bool,
    /// Intervals whose bars were recomputed.
    pub intervals: BTreeSet<String>,
    /// Rules that were measured in this scope, and whether each holds.
    pub measured: BTreeMap<Measure, bool>,
    pub looked: Looked,
}

impl Scope {
    /// Of a run that is over.
    pub fn of(options: &Options, report: &Report) -> Scope {
        let layers = options.layers.iter().map(|l| l.as_str().to_owned());
        let mut layers: BTreeSet<String> = layers.collect();
        if options.layers.contains(&Layer::Bronze) {
            layers.extend([Layer::Feed, Layer::Ledger].map(|l| l.as_str().to_owned()));
        }
        let mut measured = BTreeMap::new();
        for m in &report.measured {
            *measured.entry(m.rule.measure.clone()).or_insert(true) &= !m.is_broken();
        }
        let mut unchecked = report.unchecked_causes.clone();
        if options.dates.is_some() || options.symbol.is_some() {
            // Needs every row of a commit.
            unchecked.extend(["INV-13", "position", "accepted"].map(str::to_owned));
        }
        let intervals = options.market.intervals.list().iter();
        Scope {
            layers,
            date: options.dates.map(|(from, _)| from),
            symbol: options.symbol.clone(),
            unchecked,
            past: options.as_of.is_some(),
            intervals: intervals.map(|i| i.name().to_owned()).collect(),
            measured,
            looked: report.looked.clone(),
        }
    }

    /// Whether a break would have been found again.
    pub fn covers(&self, known: &Break) -> bool {
        let date = self.date.is_none_or(|d| known.trade_date == Some(d));
        let symbol = self
            .symbol
            .as_ref()
            .is_none_or(|s| known.symbol.as_ref() == Some(s));
        let cause = class(&known.cause);
        !self.past
            && self.layers.contains(&known.layer)
            && date
            && symbol
            && (by_topic(known, cause) || !self.unchecked.contains(cause))
            // A table that is being rebuilt has not come to the broken row yet.
            && self.looked.reached.is_some_and(|t| known.system_time <= t)
            && self.judged(known, cause)
    }

    /// Whether what finds breaks of this cause was at work.
    fn judged(&self, known: &Break, cause: &str) -> bool {
        let bar = bar_of(&known.key);
        let recomputed = bar.is_none_or(|(interval, _)| self.intervals.contains(interval));
        let measured = |measure: &Measure| self.measured.contains_key(measure);
        match (cause, bar) {
            ("ohlc_order", _) => recomputed && measured(&Measure::OhlcOrder),
            ("volume_sum", Some((interval, _))) => measured(&Measure::VolumeSum(interval.into())),
            ("trade-id", _) => measured(&Measure::IdGaps),
            ("validator", _) => {
                let key = |m: &Measure| rules::scoped(m, self.date, self.symbol.as_deref());
                self.measured.keys().any(|m| key(m) == known.key)
            }
            ("kline_accuracy", Some((interval, _))) => {
                self.accurate(known, &Measure::KlineAccuracy(interval.into()))
            }
            ("vendor_accuracy", Some((interval, _))) => {
                self.accurate(known, &Measure::VendorAccuracy(interval.into()))
            }
            (cause, _) if by_topic(known, cause) => {
                let since = self.since(&known.layer);
                let moment = outputs::moment(&known.cause);
                moment.is_some_and(|t| since.is_some_and(|since| since <= t))
            }
            _ if known.layer == Layer::Silver.as_str() => recomputed,
            _ => true,
        }
    }

    /// A single bar may differ within what the rule allows; that the rule holds is known of its whole scope only.
    fn accurate(&self, known: &Break, measure: &Measure) -> bool {
        let whole = self.date.is_none() && self.symbol.is_none();
        match self.looked.compared.verdict(&known.cause, &known.key) {
            None => false,
            Some(true) => true,
            Some(false) => whole && self.measured.get(measure) == Some(&true),
        }
    }

    fn since(&self, layer: &str) -> Option<i64> {
        let mut all = self.looked.written_since.iter();
        all.find(|(l, _)| l.as_str() == layer).map(|(_, t)| *t)
    }
}

/// What a cause begins with.
pub(crate) fn class(cause: &str) -> &str {
    cause.split(':').next().unwrap_or_default()
}

/// What the topics of Silver and Gold decide, by the system time of the version; Bronze has such a cause too.
fn by_topic(known: &Break, cause: &str) -> bool {
    let versions = [Layer::Silver, Layer::Gold].map(Layer::as_str);
    versions.contains(&known.layer.as_str()) && outputs::CAUSES.contains(&cause)
}

/// Up to which system time (µs) all of these tables hold what the ledger says; heartbeats, of which tables need not know
/// at once, apart.
pub(crate) fn reached(books: &Books, pins: &Pins) -> i64 {
    let pinned: Vec<_> = [&pins.bronze, &pins.silver, &pins.gold]
        .into_iter()
        .flatten()
        .collect();
    let everything = |_: usize| i64::MAX;
    let lines = books.counts(&everything, |line| {
        let idle = line.taken.is_none_or(|t| t.start == t.end);
        match idle && line.bars == 0 && line.metrics == 0 {
            true => i64::MAX,
            false => line.system_time,
        }
    });
    let beyond = lines
        .iter()
        .filter(|((p, commit), _)| pinned.iter().any(|t| t.position(*p).commit < *commit));
    let first = beyond.map(|(_, time)| *time).min();
    first.map_or(i64::MAX, |t| t.saturating_sub(1))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod undecided;
