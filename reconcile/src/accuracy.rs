//! Accuracy: closed bars against what others computed for the same interval, the exchange's own
//! klines and vendors' bars.
//!
//! Pure. Others use other feeds, so an inequality alone is no break: a bar counts as differing
//! when open, high, low, close, volume or trade count is more than 0.01 % away, the measure is
//! the share of differing bars among those compared, and only a share beyond the rule's limit
//! makes findings. Data flows: `run` collects [`References`], bars go through
//! [`References::compare`], what comes out is judged with the other rules.

use std::collections::BTreeMap;

use finlake_schemas::{BreakKind, Stage, hash128};
use rustc_hash::FxHashMap;

use crate::findings::{Finding, Findings, Layer, MATERIAL};
use crate::rules::{Measure, Tally};
use crate::silver::{self, BarRow, bar_name, decimal, relative};
use crate::trades::{Names, Rules as Market};

/// Who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The exchange, by its klines: compared with bars of its own trades, aggregate ones too.
    Exchange,
    /// A vendor: compared with the bars of that symbol whatever exchange they come from.
    Vendor,
}

/// One bar of somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// Place of its interval in the configured list.
    pub interval: u8,
    /// µs.
    pub start: i64,
    /// Open, high, low, close, volume: decimal(38,8) units.
    pub values: [i128; 5],
    /// Where it is said.
    pub trade_count: Option<i64>,
}

/// All references of a run. Of several for one interval the one with the highest order counts.
#[derive(Debug, Default)]
pub struct References {
    /// Source and symbol, each once.
    names: Vec<(Who, String, String)>,
    by_name: BTreeMap<(Who, String, String), u32>,
    rows: Vec<(u32, Reference, i64)>,
    sorted: bool,
}

const COLUMNS: [&str; 5] = ["open", "high", "low", "close", "volume"];

/// Bars that were compared with somebody else's, and whether they agree; by the hash of what a break of theirs would be
/// called, since there may be millions.
#[derive(Debug, Clone, Default)]
pub struct Compared(FxHashMap<u128, bool>);

impl Compared {
    pub(crate) fn note(&mut self, cause: &str, key: &str, agrees: bool) {
        self.0
            .insert(hash128(cause.as_bytes(), key.as_bytes()), agrees);
    }

    /// Whether the bar of a break agrees now; `None` if it was not compared.
    pub fn verdict(&self, cause: &str, key: &str) -> Option<bool> {
        self.0
            .get(&hash128(cause.as_bytes(), key.as_bytes()))
            .copied()
    }
}

impl References {
    /// Adds one; `order` says which of two is newer.
    pub fn push(&mut self, who: Who, source: &str, symbol: &str, reference: Reference, order: i64) {
        let name = (who, source.to_owned(), symbol.to_owned());
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let id = *self.by_name.entry(name).or_insert_with_key(|name| {
            self.names.push(name.clone());
            next
        });
        self.rows.push((id, reference, order));
        self.sorted = false;
    }

    /// How many were added.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// None were added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Must be called between the last `push` and the first `compare`.
    pub fn sort(&mut self) {
        self.rows
            .sort_by_key(|(id, r, order)| (*id, r.interval, r.start, *order));
        // The newest of each is the last of its run.
        let mut kept: Vec<(u32, Reference, i64)> = Vec::with_capacity(self.rows.len());
        for row in std::mem::take(&mut self.rows) {
            match kept.last_mut() {
                Some(last)
                    if (last.0, last.1.interval, last.1.start)
                        == (row.0, row.1.interval, row.1.start) =>
                {
                    *last = row;
                }
                _ => kept.push(row),
            }
        }
        self.rows = kept;
        self.sorted = true;
    }

    /// References of one bar.
    fn of<'a>(
        &'a self,
        who: Who,
        source: &'a str,
        symbol: &'a str,
        interval: u8,
        start: i64,
    ) -> impl Iterator<Item = (&'a str, &'a Reference)> {
        // Aggregate trades have a source of their own, and their klines are the exchange's.
        let exchange = source.strip_suffix(".agg").unwrap_or(source);
        let names = self
            .names
            .iter()
            .enumerate()
            .filter(move |(_, (w, from, name))| {
                *w == who && name == symbol && (who == Who::Vendor || from == exchange)
            });
        names.filter_map(move |(id, (_, from, _))| {
            let wanted = (id as u32, interval, start);
            let at = self
                .rows
                .binary_search_by_key(&wanted, |(id, r, _)| (*id, r.interval, r.start))
                .ok()?;
            Some((from.as_str(), &self.rows[at].1))
        })
    }

    /// Compares one bar with what others say of its interval, for one rule. Only a closed bar
    /// made from trades is compared.
    #[allow(clippy::too_many_arguments)]
    pub fn compare(
        &self,
        measure: &Measure,
        row: &BarRow,
        names: &Names,
        market: &Market,
        tally: &mut Tally,
        compared: &mut Compared,
        out: &mut Findings,
    ) {
        debug_assert!(self.sorted);
        let (who, interval) = match measure {
            Measure::KlineAccuracy(i) => (Who::Exchange, i),
            Measure::VendorAccuracy(i) => (Who::Vendor, i),
            _ => return,
        };
        let name = market.intervals.list()[usize::from(row.key.interval)].name();
        if name != interval || row.stage != Some(Stage::Closed) || !row.from_trades {
            return;
        }
        let (source, symbol) = names.get(row.key.symbol);
        let references = self.of(who, source, symbol, row.key.interval, row.key.start);
        for (from, theirs) in references {
            let cause = match who {
                Who::Exchange => "kline_accuracy".to_owned(),
                Who::Vendor => format!("vendor_accuracy:{from}"),
            };
            let key = bar_name(row.key, names, market);
            let differs = differs(theirs, row);
            compared.note(&cause, &key, differs.is_none());
            let Some((expected, actual, worst)) = differs else {
                tally.add(measure.clone(), 0.0, 1.0);
                continue;
            };
            tally.add(measure.clone(), 1.0, 1.0);
            let f = Finding::new(
                BreakKind::ValueDrift,
                Layer::Silver,
                silver::TABLE,
                key,
                cause,
            );
            out.push(f.of(source, symbol).on(row.trade_date).expected(expected).actual(actual).detail(
                format!(
                    "{from} says otherwise of this interval, by {:.4} % at most: trades are missing \
                     if there is a trade-id gap in the bar; if there is none, and \
                     `finlake reconcile --layer silver` finds nothing else, the feeds differ",
                    worst * 100.0
                ),
            ));
        }
    }
}

/// What is more than 0.01 % away: theirs, ours, and the largest difference.
fn differs(theirs: &Reference, row: &BarRow) -> Option<(String, String, f64)> {
    let c = &row.content;
    let ours = [c.open.0, c.high.0, c.low.0, c.close.0, c.volume.0];
    let (mut expected, mut actual, mut worst) = (Vec::new(), Vec::new(), 0.0f64);
    let mut note = |name: &str, e: i128, a: i128, scale: usize| {
        let difference = relative(e, a);
        if difference > MATERIAL {
            worst = worst.max(difference);
            expected.push(format!("{name} {}", decimal(e, scale)));
            actual.push(format!("{name} {}", decimal(a, scale)));
        }
    };
    for ((name, e), a) in COLUMNS.into_iter().zip(theirs.values).zip(ours) {
        note(name, e, a, 8);
    }
    if let Some(count) = theirs.trade_count {
        note("trade_count", count.into(), c.trade_count.into(), 0);
    }
    (!expected.is_empty()).then(|| (expected.join(", "), actual.join(", "), worst))
}

#[cfg(test)]
mod tests {
    use finlake_market::{Interval, Intervals, Limits};

    use super::*;

    const MINUTE: i64 = 60_000_000;

    fn market() -> Market {
        let list = ["1m", "1d"].map(|t| Interval::parse(t).unwrap());
        Market {
            intervals: Intervals::new(&list).unwrap(),
            limits: Limits::default(),
            retention_1m: 1,
        }
    }

    fn reference(start: i64) -> Reference {
        Reference {
            interval: 0,
            start,
            values: [10_000_000_000; 5],
            trade_count: Some(100_000),
        }
    }

    #[test]
    fn only_what_is_beyond_a_ten_thousandth_differs() {
        let (market, mut names) = (market(), Names::default());
        let ids = [
            names.id("x", "A"),
            names.id("x.agg", "A"),
            names.id("y", "A"),
        ];
        let mut all = References::default();
        let mut minor = reference(0);
        minor.values[3] += 1_000_000; // 0.01 %, not beyond it
        let mut count = reference(MINUTE);
        count.trade_count = Some(100_011);
        let mut close = reference(2 * MINUTE);
        close.values[3] += 1_100_000;
        // Restated: the second one counts.
        let wrong = Reference {
            values: [1; 5],
            ..minor
        };
        for (r, order) in [(minor, 2), (wrong, 1), (count, 3), (close, 4)] {
            all.push(Who::Exchange, "x", "A", r, order);
        }
        all.push(Who::Vendor, "v", "A", reference(0), 1);
        all.sort();
        let (mut tally, mut out) = (Tally::default(), Findings::default());
        let mut compared = Compared::default();
        let klines = Measure::KlineAccuracy("1m".into());
        let vendors = Measure::VendorAccuracy("1m".into());
        for n in 0..4 {
            for id in ids {
                let row = BarRow::sample(id, n * MINUTE);
                for measure in [&klines, &vendors] {
                    all.compare(
                        measure,
                        &row,
                        &names,
                        &market,
                        &mut tally,
                        &mut compared,
                        &mut out,
                    );
                }
            }
        }
        let mut forming = BarRow::sample(ids[0], MINUTE);
        forming.stage = Some(Stage::Checkpoint);
        all.compare(
            &klines,
            &forming,
            &names,
            &market,
            &mut tally,
            &mut compared,
            &mut out,
        );
        let rules = crate::rules::parse("kline_accuracy:1m<=0.5, vendor_accuracy:1m<=0").unwrap();
        let measured: Vec<f64> = tally.judge(&rules).iter().map(|m| m.value).collect();
        assert_eq!(measured, [4.0 / 6.0, 0.0]);
        let said: Vec<_> = out
            .list()
            .iter()
            .map(|f| (f.key.as_str(), f.expected.as_deref().unwrap()))
            .collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].0.starts_with("x:A:1m:"), "{said:?}");
        assert_eq!(said[0].1, "trade_count 100011");
    }
}
