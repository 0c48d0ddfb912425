//! Bars that somebody corrected: what `market.bars` asserted, as `bronze.market_bars` has it, so
//! that a correction that was applied is not taken for drift.
//!
//! Pure. An assertion names the version that it replaces; its content stands until trades come,
//! which are added to it. So a version is right if it follows from an assertion's content and the
//! trades between the offsets of the two versions: sums are compared exactly, of the prices
//! whether they can be so. Bronze holds every assertion, those too that the task refused; a refused
//! one names a version that is not there, or one that was replaced by another.

use std::collections::{BTreeMap, BTreeSet};

use finlake_market::Ohlcv;

use crate::silver::BarRow;
use crate::trades::BarKey;

/// What one record asserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asserted {
    /// In `market.bars`.
    pub offset: i64,
    /// `sys_from` of the version that it replaces; `None`: there was none.
    pub expected: Option<i64>,
    pub retracted: bool,
    pub open: i128,
    pub high: i128,
    pub low: i128,
    pub close: i128,
    pub volume: i128,
}

/// All of them, by bar.
#[derive(Debug, Clone, Default)]
pub struct Assertions {
    of: BTreeMap<BarKey, Vec<Asserted>>,
}

impl Assertions {
    /// Adds one.
    pub fn push(&mut self, key: BarKey, asserted: Asserted) {
        self.of.entry(key).or_default().push(asserted);
    }

    /// Those of a bar.
    pub fn of(&self, key: BarKey) -> &[Asserted] {
        self.of.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Whether the version that began at `sys_from` was retracted.
    pub fn retracts(&self, key: BarKey, sys_from: i64) -> bool {
        let of = |a: &Asserted| a.retracted && a.expected == Some(sys_from);
        self.of(key).iter().any(of)
    }
}

/// The versions of one bar that follow from an assertion, found one after the other.
pub struct Followed<'a> {
    asserted: &'a [Asserted],
    /// `sys_from` of those found.
    found: BTreeSet<i64>,
}

impl<'a> Followed<'a> {
    /// Of a bar.
    pub fn new(asserted: &'a [Asserted]) -> Followed<'a> {
        Followed {
            asserted,
            found: BTreeSet::new(),
        }
    }

    /// Whether a version follows from an assertion. `group`: all of the bar's, by system time;
    /// `before` gives the trades up to an offset that a version reflects, `None` if it has none.
    pub fn follows(
        &mut self,
        row: &BarRow,
        group: &[BarRow],
        before: &dyn Fn(i64) -> Option<Ohlcv>,
    ) -> bool {
        if self.asserted.is_empty() || row.vwap != row.content.vwap().0 {
            return false;
        }
        let version = |at: i64| group.iter().find(|r| r.sys_from == at);
        let grown = |from: &BarRow| Grown::of(before(from.ticks_offset), before(row.ticks_offset));
        let by_assertion = self.asserted.iter().any(|a| {
            if a.offset >= row.bars_offset {
                return false;
            }
            match a.expected {
                // A bar that only the assertion knew.
                None => row.prev_sys_from.is_none() && Grown::default().on_asserted(a, row),
                Some(at) => version(at).is_some_and(|from| {
                    let next = if a.retracted {
                        row.prev_sys_from.is_none() && from.sys_to <= row.sys_from
                    } else {
                        row.prev_sys_from == Some(at)
                    };
                    next && grown(from).is_some_and(|g| g.on_asserted(a, row))
                }),
            }
        });
        let by_version = || {
            let from = row.prev_sys_from.filter(|at| self.found.contains(at));
            let from = from.and_then(version);
            from.is_some_and(|from| grown(from).is_some_and(|g| g.on_version(from, row)))
        };
        let follows = by_assertion || by_version();
        if follows {
            self.found.insert(row.sys_from);
        }
        follows
    }
}

/// What trades added between two versions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Grown {
    count: i64,
    volume: i128,
    quote: i128,
    buy_base: i128,
    buy_quote: i128,
}

impl Grown {
    /// `None` if the later one has fewer.
    fn of(before: Option<Ohlcv>, after: Option<Ohlcv>) -> Option<Grown> {
        let sums = |o: Option<Ohlcv>| {
            o.map_or(Grown::default(), |o| Grown {
                count: o.trade_count,
                volume: o.volume.0,
                quote: o.quote_volume.0,
                buy_base: o.taker_buy_base.0,
                buy_quote: o.taker_buy_quote.0,
            })
        };
        let (a, b) = (sums(before), sums(after));
        (b.count >= a.count).then(|| Grown {
            count: b.count - a.count,
            volume: b.volume - a.volume,
            quote: b.quote - a.quote,
            buy_base: b.buy_base - a.buy_base,
            buy_quote: b.buy_quote - a.buy_quote,
        })
    }

    fn on_asserted(self, a: &Asserted, row: &BarRow) -> bool {
        let c = &row.content;
        let prices = if self.count == 0 {
            (c.open.0, c.high.0, c.low.0, c.close.0) == (a.open, a.high, a.low, a.close)
        } else {
            c.high.0 >= a.high && c.low.0 <= a.low
        };
        prices && c.volume.0 == a.volume + self.volume
    }

    fn on_version(self, from: &BarRow, row: &BarRow) -> bool {
        let (a, c) = (&from.content, &row.content);
        let sums = c.trade_count == a.trade_count + self.count
            && c.volume.0 == a.volume.0 + self.volume
            && c.quote_volume.0 == a.quote_volume.0 + self.quote
            && c.taker_buy_base.0 == a.taker_buy_base.0 + self.buy_base
            && c.taker_buy_quote.0 == a.taker_buy_quote.0 + self.buy_quote;
        if self.count == 0 {
            a == c
        } else {
            sums && c.high >= a.high && c.low <= a.low
        }
    }
}

#[cfg(test)]
mod tests;
