//! The content of a bar: an exact fold over a set of trades, and the merge of two such folds.
//!
//! Open and close follow (trade time, trade id), never the order of arrival, so the result is a
//! function of the set of trades alone [INV-1]. All sums are exact integers; nothing here rounds
//! but [`Ohlcv::vwap`].

use finlake_schemas::{Dec8, Dec16};
use thiserror::Error;

/// The largest unscaled value of a decimal(38, s): 38 nines.
pub const MAX_UNSCALED: i128 = 99_999_999_999_999_999_999_999_999_999_999_999_999;

/// Trades whose quote volume and quantity stay below this (unscaled) can be summed 10^8 times
/// before a decimal(38, s) is full; larger ones are checked against the bar they would go into.
pub const ORDINARY: i128 = 1_000_000_000_000_000_000_000_000_000_000;

/// Extraordinary trades may fill half of a sum's range; the rest is kept for ordinary ones.
const HALF: i128 = MAX_UNSCALED / 2;

/// A sum left the range of its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the sum of {0} does not fit its decimal(38) column")]
pub struct Overflow(pub &'static str);

/// Position of a trade in the market's own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Trade time, µs UTC.
    pub time: i64,
    /// Trade id; decides between trades of the same instant.
    pub id: i64,
}

/// What the fold needs of a validated trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trade {
    pub at: Point,
    pub price: Dec8,
    pub quantity: Dec8,
    /// price × quantity, exact.
    pub quote: Dec16,
    /// The buyer was the taker; false where the feed does not say.
    pub taker_buy: bool,
    /// Single trades it stands for: 1, or more for an aggregate trade.
    pub trades: i64,
}

impl Trade {
    /// Small enough to be summed without a look at the bar (see [`ORDINARY`]).
    #[inline]
    pub fn is_ordinary(&self) -> bool {
        self.quote.0 < ORDINARY && self.quantity.0 < ORDINARY
    }

    /// Whether it may begin a bar without endangering the bar's sums.
    pub fn has_room(&self) -> bool {
        self.quote.0 <= HALF && self.quantity.0 <= HALF
    }
}

/// Content of a bar, never empty: it begins with a trade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ohlcv {
    pub first: Point,
    pub last: Point,
    pub open: Dec8,
    pub high: Dec8,
    pub low: Dec8,
    pub close: Dec8,
    pub volume: Dec8,
    pub quote_volume: Dec16,
    pub trade_count: i64,
    pub taker_buy_base: Dec8,
    pub taker_buy_quote: Dec16,
}

impl Ohlcv {
    /// The bar of one trade.
    #[inline]
    pub fn of(t: &Trade) -> Self {
        let (base, quote) = if t.taker_buy {
            (t.quantity, t.quote)
        } else {
            (Dec8(0), Dec16(0))
        };
        Self {
            first: t.at,
            last: t.at,
            open: t.price,
            high: t.price,
            low: t.price,
            close: t.price,
            volume: t.quantity,
            quote_volume: t.quote,
            trade_count: t.trades,
            taker_buy_base: base,
            taker_buy_quote: quote,
        }
    }

    /// Adds one trade. On an error the content is unusable: ask [`Ohlcv::has_room`] first, or fold
    /// ordinary trades only.
    #[inline]
    pub fn fold(&mut self, t: &Trade) -> Result<(), Overflow> {
        if t.at > self.last {
            self.last = t.at;
            self.close = t.price;
        } else if t.at < self.first {
            self.first = t.at;
            self.open = t.price;
        }
        if t.price.0 > self.high.0 {
            self.high = t.price;
        } else if t.price.0 < self.low.0 {
            self.low = t.price;
        }
        add(&mut self.volume.0, t.quantity.0, "volume")?;
        add(&mut self.quote_volume.0, t.quote.0, "quote_volume")?;
        if t.taker_buy {
            // Parts of the two sums above, so they fit if those do.
            add(&mut self.taker_buy_base.0, t.quantity.0, "taker_buy_base")?;
            add(&mut self.taker_buy_quote.0, t.quote.0, "taker_buy_quote")?;
        }
        self.trade_count = self
            .trade_count
            .checked_add(t.trades)
            .ok_or(Overflow("trade_count"))?;
        Ok(())
    }

    /// Adds the content of another bar whose trades are none of this one's. Commutative and
    /// associative.
    pub fn merge(&mut self, other: &Ohlcv) -> Result<(), Overflow> {
        if other.last > self.last {
            self.last = other.last;
            self.close = other.close;
        }
        if other.first < self.first {
            self.first = other.first;
            self.open = other.open;
        }
        if other.high.0 > self.high.0 {
            self.high = other.high;
        }
        if other.low.0 < self.low.0 {
            self.low = other.low;
        }
        add(&mut self.volume.0, other.volume.0, "volume")?;
        add(
            &mut self.quote_volume.0,
            other.quote_volume.0,
            "quote_volume",
        )?;
        add(
            &mut self.taker_buy_base.0,
            other.taker_buy_base.0,
            "taker_buy_base",
        )?;
        add(
            &mut self.taker_buy_quote.0,
            other.taker_buy_quote.0,
            "taker_buy_quote",
        )?;
        self.trade_count = self
            .trade_count
            .checked_add(other.trade_count)
            .ok_or(Overflow("trade_count"))?;
        Ok(())
    }

    /// Whether an extraordinary trade may be added without endangering the sums.
    pub fn has_room(&self, t: &Trade) -> bool {
        let fits = |a: i128, b: i128| a.checked_add(b).is_some_and(|s| s <= HALF);
        fits(self.volume.0, t.quantity.0) && fits(self.quote_volume.0, t.quote.0)
    }

    /// quote volume / volume, rounded half to even at scale 8. It lies within [low, high].
    pub fn vwap(&self) -> Dec8 {
        // Never empty: every volume is positive, and a mean of prices fits where they do.
        self.quote_volume
            .div_half_even(self.volume)
            .unwrap_or(self.close)
    }
}

#[inline]
fn add(sum: &mut i128, value: i128, what: &'static str) -> Result<(), Overflow> {
    *sum = sum
        .checked_add(value)
        .filter(|s| *s <= MAX_UNSCALED)
        .ok_or(Overflow(what))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trade(id: i64, time: i64, price: i128, quantity: i128, taker_buy: bool) -> Trade {
        Trade {
            at: Point { time, id },
            price: Dec8(price),
            quantity: Dec8(quantity),
            quote: Dec16(price * quantity),
            taker_buy,
            trades: 1 + id % 3,
        }
    }

    fn trades() -> impl Strategy<Value = Vec<Trade>> {
        let one = (
            0i64..50,
            1i128..1_000_000_000_000,
            1i128..1_000_000_000_000,
            any::<bool>(),
        );
        prop::collection::vec(one, 1..40).prop_map(|v| {
            v.into_iter()
                .enumerate()
                .map(|(id, (time, p, q, m))| trade(id as i64, time, p, q, m))
                .collect()
        })
    }

    fn folded(trades: &[Trade]) -> Ohlcv {
        let mut bar = Ohlcv::of(&trades[0]);
        for t in &trades[1..] {
            bar.fold(t).unwrap();
        }
        bar
    }

    /// The definition, written down without any of the code above.
    fn by_definition(trades: &[Trade]) -> Ohlcv {
        let mut sorted = trades.to_vec();
        sorted.sort_by_key(|t| (t.at.time, t.at.id));
        let takers = || sorted.iter().filter(|t| t.taker_buy);
        Ohlcv {
            first: sorted[0].at,
            last: sorted[sorted.len() - 1].at,
            open: sorted[0].price,
            close: sorted[sorted.len() - 1].price,
            high: Dec8(sorted.iter().map(|t| t.price.0).max().unwrap()),
            low: Dec8(sorted.iter().map(|t| t.price.0).min().unwrap()),
            volume: Dec8(sorted.iter().map(|t| t.quantity.0).sum()),
            quote_volume: Dec16(sorted.iter().map(|t| t.price.0 * t.quantity.0).sum()),
            trade_count: sorted.iter().map(|t| t.trades).sum(),
            taker_buy_base: Dec8(takers().map(|t| t.quantity.0).sum()),
            taker_buy_quote: Dec16(takers().map(|t| t.price.0 * t.quantity.0).sum()),
        }
    }

    proptest! {
        /// INV-1: the content is a function of the set of trades.
        #[test]
        fn inv_1_order_does_not_matter((trades, shuffled) in trades().prop_flat_map(|t| {
            (Just(t.clone()), Just(t).prop_shuffle())
        })) {
            prop_assert_eq!(folded(&shuffled), by_definition(&trades));
        }

        #[test]
        fn merge_is_associative_and_commutative(trades in trades(), a in 0usize..40, b in 0usize..40) {
            let (a, b) = (a.min(b) % trades.len(), a.max(b) % trades.len());
            let (a, b) = (a.min(b), a.max(b));
            let parts: Vec<Ohlcv> = [&trades[..a], &trades[a..b], &trades[b..]]
                .into_iter()
                .filter(|p| !p.is_empty())
                .map(folded)
                .collect();
            let all = folded(&trades);
            let merged = |order: &[usize]| {
                let mut it = order.iter().filter_map(|i| parts.get(*i));
                let mut bar = *it.next().unwrap();
                for p in it {
                    bar.merge(p).unwrap();
                }
                bar
            };
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                prop_assert_eq!(merged(&order), all);
            }
            if parts.len() == 3 {
                let mut tail = parts[1];
                tail.merge(&parts[2]).unwrap();
                let mut bar = parts[0];
                bar.merge(&tail).unwrap();
                prop_assert_eq!(bar, all);
            }
        }

        #[test]
        fn vwap_lies_between_low_and_high_and_is_half_even(trades in trades()) {
            let bar = folded(&trades);
            let vwap = bar.vwap();
            prop_assert!(bar.low <= vwap && vwap <= bar.high);
            // |vwap × volume − quote| ≤ volume / 2
            let off = (vwap.0 * bar.volume.0 - bar.quote_volume.0).abs();
            prop_assert!(off * 2 <= bar.volume.0);
            if off * 2 == bar.volume.0 {
                prop_assert_eq!(vwap.0 & 1, 0);
            }
        }
    }

    #[test]
    fn the_same_instant_is_ordered_by_id() {
        let a = trade(7, 100, 5, 1, false);
        let b = trade(8, 100, 9, 1, false);
        for order in [[a, b], [b, a]] {
            let bar = folded(&order);
            assert_eq!((bar.open, bar.close), (Dec8(5), Dec8(9)));
        }
    }

    #[test]
    fn half_even() {
        let mut bar = folded(&[trade(0, 0, 1, 1, false), trade(1, 0, 2, 1, false)]);
        assert_eq!(bar.vwap(), Dec8(2), "1.5 → 2");
        bar = folded(&[trade(0, 0, 2, 1, false), trade(1, 0, 3, 1, false)]);
        assert_eq!(bar.vwap(), Dec8(2), "2.5 → 2");
    }

    #[test]
    fn sums_stop_at_the_column() {
        let mut big = trade(0, 0, 1, 1, true);
        big.quote = Dec16(HALF);
        assert!(!big.is_ordinary());
        let mut bar = Ohlcv::of(&trade(1, 0, 1, 1, false));
        assert!(!bar.has_room(&big));
        bar.quote_volume = Dec16(MAX_UNSCALED);
        assert_eq!(
            bar.fold(&trade(2, 1, 1, 1, false)),
            Err(Overflow("quote_volume"))
        );
    }
}
