//! Validators: what must hold of good data whatever computed it, as rules with thresholds.
//!
//! Pure. A rule is written `name<=threshold` or `name:argument<=threshold`; the threshold is the
//! greatest value that is still fine. Results are measured values; one beyond its threshold is a
//! finding. Completeness: `id_gaps` (missing trade ids per million), `missing_bars:INTERVAL` (share of
//! intervals without a bar between an instrument's first and last), `null_rate:COLUMN`.
//! Consistency: `ohlc_order` (bars with low > open, close or high), `volume_sum:INTERVAL` (bars
//! whose volume is not the sum of the shortest ones in them), `current_unique` (keys with two
//! current rows). Accuracy, where there is something to compare with: `kline_accuracy:INTERVAL`
//! and `vendor_accuracy:INTERVAL` (share of closed bars that differ by more than 0.01 % from the
//! exchange's own klines, from vendors' bars; see `accuracy`).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use finlake_market::{Interval, IntervalError};
use finlake_schemas::{BreakKind, Severity, Stage, keys};

use crate::columns::TICKS;
use crate::findings::{Finding, Findings, Layer};
use crate::silver::{self, BarRow, bar_name, decimal};
use crate::trades::{BarKey, Names, Rules as Market};

/// What a rule measures.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    IdGaps,
    MissingBars(String),
    NullRate(String),
    OhlcOrder,
    VolumeSum(String),
    CurrentUnique,
    KlineAccuracy(String),
    VendorAccuracy(String),
}

/// A measure and the greatest value that is still fine.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub measure: Measure,
    pub limit: f64,
}

/// Not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    #[error(
        "`{0}` is not a rule: write name<=limit, such as id_gaps<=0, missing_bars:1d<=0.05, \
         null_rate:buyer_maker<=0.5, ohlc_order<=0, volume_sum:1h<=0, current_unique<=0, \
         kline_accuracy:1m<=0, vendor_accuracy:1d<=0.01"
    )]
    Syntax(String),
    #[error("`{0}`: {1}")]
    Interval(String, IntervalError),
    #[error("`{0}`: no such column in {table}; it has {list}", table = crate::bronze::TABLE, list = TICKS.join(", "))]
    Column(String),
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Measure::IdGaps => f.write_str("id_gaps"),
            Measure::MissingBars(i) => write!(f, "missing_bars:{i}"),
            Measure::NullRate(c) => write!(f, "null_rate:{c}"),
            Measure::OhlcOrder => f.write_str("ohlc_order"),
            Measure::VolumeSum(i) => write!(f, "volume_sum:{i}"),
            Measure::CurrentUnique => f.write_str("current_unique"),
            Measure::KlineAccuracy(i) => write!(f, "kline_accuracy:{i}"),
            Measure::VendorAccuracy(i) => write!(f, "vendor_accuracy:{i}"),
        }
    }
}

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Rule, BadRule> {
        let bad = || BadRule::Syntax(text.to_owned());
        let (what, limit) = text.split_once("<=").ok_or_else(bad)?;
        let limit: f64 = limit.trim().parse().map_err(|_| bad())?;
        if !limit.is_finite() || limit < 0.0 {
            return Err(bad());
        }
        let (name, argument) = match what.trim().split_once(':') {
            Some((name, argument)) if !argument.is_empty() => (name, Some(argument.to_owned())),
            Some(_) => return Err(bad()),
            None => (what.trim(), None),
        };
        let interval = |i: String| match Interval::parse(&i) {
            Ok(_) => Ok(i),
            Err(e) => Err(BadRule::Interval(text.to_owned(), e)),
        };
        let measure = match (name, argument) {
            ("id_gaps", None) => Measure::IdGaps,
            ("ohlc_order", None) => Measure::OhlcOrder,
            ("current_unique", None) => Measure::CurrentUnique,
            ("missing_bars", Some(i)) => Measure::MissingBars(interval(i)?),
            ("null_rate", Some(c)) if !TICKS.contains(&c.as_str()) => {
                return Err(BadRule::Column(text.to_owned()));
            }
            ("null_rate", Some(c)) => Measure::NullRate(c),
            ("volume_sum", Some(i)) => Measure::VolumeSum(interval(i)?),
            ("kline_accuracy", Some(i)) => Measure::KlineAccuracy(interval(i)?),
            ("vendor_accuracy", Some(i)) => Measure::VendorAccuracy(interval(i)?),
            _ => return Err(bad()),
        };
        Ok(Rule { measure, limit })
    }
}

/// The rules in effect where none are configured: what may never be wrong.
pub const DEFAULT: &str = "id_gaps<=0, ohlc_order<=0, volume_sum:1h<=0, current_unique<=0";

/// Reads a list, separated by commas.
///
/// # Errors
/// The first that is not a rule.
pub fn parse(text: &str) -> Result<Vec<Rule>, BadRule> {
    text.split(',')
        .map(str::trim)
        .filter(|t| !t.is_empty())
        .map(str::parse)
        .collect()
}

/// A measured value.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub rule: Rule,
    pub value: f64,
    /// Of how many: ids, bars, rows, what the rule counts.
    pub of: u64,
}

impl Measured {
    /// Beyond the limit.
    pub fn is_broken(&self) -> bool {
        self.value > self.rule.limit
    }
}

/// Sums of a measure over slices: what went wrong, and of how many.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    sums: BTreeMap<Measure, (f64, f64)>,
    /// Bars of an instrument, for `missing_bars`: between its first and last over all slices.
    bars: BTreeMap<(Measure, u32), Bars>,
}

/// Bars of one interval.
#[derive(Debug, Clone, Copy)]
struct Bars {
    /// Starts, µs.
    first: i64,
    last: i64,
    length: i64,
    there: i64,
}

impl Tally {
    /// `wrong` of `all`.
    pub fn add(&mut self, measure: Measure, wrong: f64, all: f64) {
        let sum = self.sums.entry(measure).or_default();
        sum.0 += wrong;
        sum.1 += all;
    }

    /// Bars of an instrument in a slice.
    fn bars(&mut self, measure: Measure, symbol: u32, new: Bars) {
        let of = self
            .bars
            .entry((measure, symbol))
            .or_insert(Bars { there: 0, ..new });
        of.first = of.first.min(new.first);
        of.last = of.last.max(new.last);
        of.there += new.there;
    }

    /// What went wrong, and of how many.
    fn sum(&self, measure: &Measure) -> Option<(f64, f64)> {
        let mut sum = self.sums.get(measure).copied();
        for of in self.bars.iter().filter(|((m, _), _)| m == measure) {
            let of = of.1;
            let due = (of.last - of.first) / of.length + 1;
            let (wrong, all) = sum.unwrap_or_default();
            sum = Some((wrong + (due - of.there) as f64, all + due as f64));
        }
        sum
    }

    /// Whether anything of it was measured.
    pub fn has(&self, measure: &Measure) -> bool {
        self.sum(measure).is_some()
    }

    /// Takes over another tally.
    pub fn absorb(&mut self, other: Tally) {
        for (measure, (wrong, all)) in other.sums {
            self.add(measure, wrong, all);
        }
        for ((measure, symbol), of) in other.bars {
            self.bars(measure, symbol, of);
        }
    }

    /// Judges the rules whose measures were taken. Counts stay counts; `missing_bars`, `null_rate` and
    /// the accuracies are shares, `id_gaps` is per million.
    pub fn judge(&self, rules: &[Rule]) -> Vec<Measured> {
        let mut out = Vec::new();
        for rule in rules {
            let Some((wrong, all)) = self.sum(&rule.measure) else {
                continue;
            };
            let share = if all > 0.0 { wrong / all } else { 0.0 };
            let value = match &rule.measure {
                Measure::MissingBars(_)
                | Measure::NullRate(_)
                | Measure::KlineAccuracy(_)
                | Measure::VendorAccuracy(_) => share,
                Measure::IdGaps => share * 1e6,
                _ => wrong,
            };
            out.push(Measured {
                rule: rule.clone(),
                value,
                of: all as u64,
            });
        }
        out
    }
}

/// What a share that was measured over a scope is called: of each scope it is another one.
pub fn scoped(measure: &Measure, date: Option<i32>, symbol: Option<&str>) -> String {
    let mut out = measure.to_string();
    if let Some(date) = date {
        out.push_str(&format!(" on {}", keys::iso_date(date)));
    }
    if let Some(symbol) = symbol {
        out.push_str(&format!(" of {symbol}"));
    }
    out
}

/// A finding for every rule beyond its limit whose single faults have none of their own. `date` and `symbol`: the scope
/// that was measured.
pub fn broken(measured: &[Measured], date: Option<i32>, symbol: Option<&str>, out: &mut Findings) {
    for m in measured.iter().filter(|m| m.is_broken()) {
        let (kind, layer, table) = match m.rule.measure {
            // Each gap, bar and row is a finding of its own.
            Measure::IdGaps
            | Measure::OhlcOrder
            | Measure::VolumeSum(_)
            | Measure::CurrentUnique
            | Measure::KlineAccuracy(_)
            | Measure::VendorAccuracy(_) => continue,
            Measure::MissingBars(_) => (BreakKind::Missing, Layer::Silver, silver::TABLE),
            Measure::NullRate(_) => (BreakKind::Missing, Layer::Bronze, crate::bronze::TABLE),
        };
        let key = scoped(&m.rule.measure, date, symbol);
        let mut f = Finding::new(kind, layer, table, key, "validator")
            .severity(Severity::Minor)
            .expected(format!("at most {}", m.rule.limit))
            .actual(format!("{:.6}", m.value))
            .detail("a validator's threshold is passed; the threshold is quality.rules");
        f.trade_date = date;
        f.symbol = symbol.map(str::to_owned);
        out.push(f);
    }
}

#[allow(clippy::too_many_arguments)]
/// Measures the current rows of one slice. `rows` sorted by key; `whole` says of a bar that no
/// trade of it is on its way, so that its sums can be judged.
pub fn bars(
    rules: &[Rule],
    rows: &[BarRow],
    names: &Names,
    market: &Market,
    open_end: i64,
    whole: impl Fn(BarKey) -> bool,
    tally: &mut Tally,
    out: &mut Findings,
) {
    let current: Vec<&BarRow> = rows.iter().filter(|r| r.sys_to == open_end).collect();
    let finding = |kind, row: &BarRow, cause: String| {
        let (source, symbol) = names.get(row.key.symbol);
        Finding::new(
            kind,
            Layer::Silver,
            silver::TABLE,
            bar_name(row.key, names, market),
            cause,
        )
        .of(source, symbol)
        .on(row.trade_date)
    };
    for rule in rules {
        let measure = || rule.measure.clone();
        match &rule.measure {
            Measure::OhlcOrder => {
                let mut wrong = 0;
                for row in &current {
                    let c = &row.content;
                    let low = c.low <= c.open && c.low <= c.close;
                    if low && c.high >= c.open && c.high >= c.close && c.low <= c.high {
                        continue;
                    }
                    wrong += 1;
                    out.push(
                        finding(BreakKind::ValueDrift, row, "ohlc_order".into())
                            .expected("low <= open, close <= high")
                            .actual(format!(
                                "open {} high {} low {} close {}",
                                c.open, c.high, c.low, c.close
                            ))
                            .detail("the bar contradicts itself"),
                    );
                }
                tally.add(measure(), f64::from(wrong), current.len() as f64);
            }
            Measure::CurrentUnique => {
                let pairs = current.windows(2).filter(|p| p[0].key == p[1].key);
                // Each is a DUPLICATE by INV-2 already.
                tally.add(measure(), pairs.count() as f64, current.len() as f64);
            }
            Measure::MissingBars(interval) => {
                let list = market.intervals.list();
                let Some(k) = list.iter().position(|i| i.name() == interval) else {
                    continue;
                };
                let mut of: Vec<BarKey> = current
                    .iter()
                    .map(|r| r.key)
                    .filter(|b| usize::from(b.interval) == k)
                    .collect();
                of.dedup();
                for group in of.chunk_by(|a, b| a.symbol == b.symbol) {
                    let bars = Bars {
                        first: group[0].start,
                        last: group[group.len() - 1].start,
                        length: list[k].length(),
                        there: group.len() as i64,
                    };
                    tally.bars(measure(), group[0].symbol, bars);
                }
            }
            Measure::VolumeSum(interval) => {
                let Some(sums) = volume_sums(interval, &current, market, &whole) else {
                    continue; // no such bars: nothing is measured
                };
                let (wrong, open) = sums;
                for row in open {
                    out.undecided("volume_sum", bar_name(row.key, names, market));
                }
                for (row, sum) in &wrong {
                    out.push(
                        finding(BreakKind::ValueDrift, row, "volume_sum".into())
                            .expected(format!("volume {}", decimal(*sum, 8)))
                            .actual(format!("volume {}", row.content.volume))
                            .detail("the bar's volume is not the sum of the shorter bars in it"),
                    );
                }
                tally.add(measure(), wrong.len() as f64, current.len() as f64);
            }
            Measure::IdGaps
            | Measure::NullRate(_)
            | Measure::KlineAccuracy(_)
            | Measure::VendorAccuracy(_) => {}
        }
    }
}

/// Bars whose volume is not the sum of what is in them, with that sum; and bars of which that cannot be said yet.
type Sums<'a> = (Vec<(&'a BarRow, i128)>, Vec<&'a BarRow>);

/// `None` if there are no bars of this interval, or none that fit into it.
fn volume_sums<'a>(
    interval: &str,
    current: &[&'a BarRow],
    market: &Market,
    whole: &impl Fn(BarKey) -> bool,
) -> Option<Sums<'a>> {
    let list = market.intervals.list();
    let k = list.iter().position(|i| i.name() == interval)?;
    if k == 0 || list[k].length() % list[0].length() != 0 {
        return None;
    }
    let (mut wrong, mut open) = (Vec::new(), Vec::new());
    let of_interval = |row: &&&BarRow| usize::from(row.key.interval) == k && row.from_trades;
    for row in current.iter().filter(of_interval) {
        if row.stage != Some(Stage::Closed) || !whole(row.key) {
            open.push(*row);
            continue;
        }
        let from = BarKey {
            interval: 0,
            ..row.key
        };
        let end = row.key.start + list[k].length();
        let at = current.partition_point(|r| r.key < from);
        let inside = current[at..].iter().take_while(|r| {
            r.key.symbol == from.symbol && r.key.interval == 0 && r.key.start < end
        });
        let (mut sum, mut all) = (0i128, true);
        let mut before = None;
        for part in inside {
            // A row that stands twice is a DUPLICATE already.
            if before.replace(part.key) == Some(part.key) {
                continue;
            }
            sum += part.content.volume.0;
            all &= whole(part.key);
        }
        if !all {
            open.push(*row);
        } else if sum != row.content.volume.0 {
            wrong.push((*row, sum));
        }
    }
    Some((wrong, open))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        let rules = parse(DEFAULT).unwrap();
        assert_eq!(rules.len(), 4);
        for text in [
            "missing_bars:1d<=0.05",
            "null_rate:buyer_maker<=1",
            "kline_accuracy:1m<=0.0001",
            "vendor_accuracy:1d<=0.01",
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(format!("{}<={}", rule.measure, rule.limit), text);
        }
        for bad in [
            "x",
            "id_gaps",
            "id_gaps<=-1",
            "id_gaps:1<=0",
            "missing_bars<=0",
            "kline_accuracy:<=1",
            "klines:close<=1",
            "missing_bars:1q<=0",
            "volume_sum:7h<=0",
            "kline_accuracy:hour<=0",
            "null_rate:nosuch<=0",
            "ohlc_order<=NaN",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }

    /// Slices are days: what lies between two of them is missing as well.
    #[test]
    fn missing_bars_are_those_between_the_first_and_last_of_all_slices() {
        let mut t = Tally::default();
        let day = 86_400_000_000;
        let measure = Measure::MissingBars("1d".into());
        assert!(!t.has(&measure));
        // The 5th, 6th and 11th of one instrument; one day of another.
        for (symbol, at) in [(0, 5), (0, 11), (1, 8), (0, 6)] {
            let mut slice = Tally::default();
            let bars = Bars {
                first: at * day,
                last: at * day,
                length: day,
                there: 1,
            };
            slice.bars(measure.clone(), symbol, bars);
            t.absorb(slice);
        }
        let m = t.judge(&parse("missing_bars:1d<=0.4").unwrap());
        assert_eq!((m[0].value, m[0].of, m[0].is_broken()), (0.5, 8, true));
    }

    #[test]
    fn tallies_are_judged() {
        let mut t = Tally::default();
        t.add(Measure::NullRate("raw".into()), 1.0, 4.0);
        t.add(Measure::NullRate("raw".into()), 1.0, 4.0);
        t.add(Measure::IdGaps, 3.0, 1_000.0);
        let rules = parse("null_rate:raw<=0.2, id_gaps<=3000, ohlc_order<=0").unwrap();
        let m = t.judge(&rules);
        assert_eq!(
            m.iter()
                .map(|m| (m.value, m.is_broken()))
                .collect::<Vec<_>>(),
            [(0.25, true), (3000.0, false)]
        );
        let mut out = Findings::default();
        broken(&m, Some(3), None, &mut out);
        broken(&m, None, Some("X"), &mut out);
        broken(&m, None, None, &mut out);
        let keys: Vec<_> = out.list().iter().map(|f| f.key.as_str()).collect();
        let each = [
            "null_rate:raw on 1970-01-04",
            "null_rate:raw of X",
            "null_rate:raw",
        ];
        assert_eq!(keys, each, "a share of a day is not the share of all");
    }
}
