//! A generated market: trades of any number of symbols, the same for the same seed on every machine.
//!
//! Integer arithmetic only and a generator of our own (SplitMix64), so that a seed means the same trades for ever.
//! Used by the demo, the benchmarks and the tests; never a substitute for recorded data.

use finlake_schemas::{Dec8, Tick};

/// SplitMix64 (Steele, Lea, Flood 2014): 64 bits of state, passes BigCrush, three lines.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, n); `n` above 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// True in `per_million` of a million draws.
    pub fn chance(&mut self, per_million: u64) -> bool {
        self.below(1_000_000) < per_million
    }
}

/// What market to generate.
#[derive(Debug, Clone)]
pub struct MarketSpec {
    pub seed: u64,
    pub symbols: usize,
    /// Stretches of market time, in order.
    pub segments: Vec<Segment>,
}

/// A stretch of market time with trades spread evenly over it.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// First trade time, µs since 1970 UTC.
    pub start: i64,
    /// Length, µs.
    pub span: i64,
    /// Trades over all symbols.
    pub trades: u64,
}

/// A generated trade; `symbol` indexes [`Market::symbols`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratedTrade {
    pub symbol: usize,
    pub trade_id: i64,
    pub price: Dec8,
    pub quantity: Dec8,
    /// µs since 1970 UTC.
    pub trade_time: i64,
    pub buyer_maker: bool,
}

impl GeneratedTrade {
    /// As a Tick v2 of source [`SOURCE`].
    pub fn tick<'a>(&self, names: &'a [String]) -> Tick<'a> {
        Tick {
            source: SOURCE,
            symbol: &names[self.symbol],
            trade_id: self.trade_id,
            price: self.price,
            quantity: self.quantity,
            trade_time: self.trade_time,
            event_time: Some(self.trade_time + 2_000),
            buyer_maker: Some(self.buyer_maker),
            ingest_time: Some(self.trade_time + 5_000),
            first_trade_id: None,
            last_trade_id: None,
        }
    }
}

/// The source that generated trades name.
pub const SOURCE: &str = "sim";

struct Walk {
    next_id: i64,
    /// Price in units of `tick`.
    level: i64,
    tick: i128,
}

/// An iterator of trades in time order; ids of a symbol are consecutive.
pub struct Market {
    spec: MarketSpec,
    rng: Rng,
    names: Vec<String>,
    walks: Vec<Walk>,
    segment: usize,
    made: u64,
}

impl Market {
    pub fn new(spec: MarketSpec) -> Self {
        let mut rng = Rng::new(spec.seed);
        let names = (0..spec.symbols).map(symbol_name).collect();
        let walks = (0..spec.symbols)
            .map(|i| Walk {
                next_id: 1_000 + rng.below(1 << 32) as i64,
                level: 5_000 + rng.below(5_000) as i64,
                tick: TICKS
                    .get(i)
                    .copied()
                    .unwrap_or(10i128.pow(4 + rng.below(5) as u32)),
            })
            .collect();
        Self {
            spec,
            rng,
            names,
            walks,
            segment: 0,
            made: 0,
        }
    }

    pub fn symbols(&self) -> &[String] {
        &self.names
    }
}

/// Price steps (1e-8) of the well-known names, so that prices look like theirs.
const TICKS: [i128; 8] = [
    1_000_000_000,
    50_000_000,
    3_000_000,
    10_000_000,
    30_000,
    10_000,
    4_000,
    500_000,
];

/// Well-known names first, then `SIM0008USDT` and so on.
fn symbol_name(i: usize) -> String {
    const KNOWN: [&str; 8] = [
        "BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT", "ADAUSDT", "DOGEUSDT", "AVAXUSDT",
    ];
    KNOWN
        .get(i)
        .map_or_else(|| format!("SIM{i:04}USDT"), |s| (*s).to_owned())
}

impl Iterator for Market {
    type Item = GeneratedTrade;

    fn next(&mut self) -> Option<GeneratedTrade> {
        if self.walks.is_empty() {
            return None;
        }
        let mut segment = *self.spec.segments.get(self.segment)?;
        while self.made == segment.trades {
            self.made = 0;
            self.segment += 1;
            segment = *self.spec.segments.get(self.segment)?;
        }
        let n = self.walks.len() as u64;
        // Half of the trades go to a fifth of the symbols, as in a real market.
        let symbol = if self.rng.chance(500_000) {
            self.rng.below(n.div_ceil(5))
        } else {
            self.rng.below(n)
        } as usize;
        let time = segment.start
            + (i128::from(segment.span) * i128::from(self.made) / i128::from(segment.trades))
                as i64;
        self.made += 1;
        let step = self.rng.below(7) as i64 - 3;
        let walk = &mut self.walks[symbol];
        walk.level = (walk.level + step).clamp(1_000, 20_000);
        let trade_id = walk.next_id;
        walk.next_id += 1;
        Some(GeneratedTrade {
            symbol,
            trade_id,
            price: Dec8(i128::from(walk.level) * walk.tick),
            quantity: Dec8(i128::from(1 + self.rng.below(500_000)) * 10_000),
            trade_time: time,
            buyer_maker: self.rng.chance(500_000),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MarketSpec {
        MarketSpec {
            seed: 7,
            symbols: 10,
            segments: vec![
                Segment {
                    start: 1_700_000_000_000_000,
                    span: 3_600_000_000,
                    trades: 9_000,
                },
                Segment {
                    start: 1_700_003_600_000_000,
                    span: 60_000_000,
                    trades: 1_000,
                },
            ],
        }
    }

    #[test]
    fn a_seed_means_the_same_trades() {
        let a: Vec<_> = Market::new(spec()).collect();
        let b: Vec<_> = Market::new(spec()).collect();
        assert_eq!(a, b);
        let c: Vec<_> = Market::new(MarketSpec { seed: 8, ..spec() }).collect();
        assert_ne!(a, c);
    }

    #[test]
    fn ids_are_consecutive_and_times_in_order() {
        let mut last = std::collections::BTreeMap::new();
        let mut time = 0;
        for t in Market::new(spec()) {
            assert!(t.trade_time >= time && t.price.0 > 0 && t.quantity.0 > 0);
            time = t.trade_time;
            if let Some(id) = last.insert(t.symbol, t.trade_id) {
                assert_eq!(t.trade_id, id + 1);
            }
        }
        assert_eq!(last.len(), 10);
        assert_eq!(Market::new(spec()).count(), 10_000);
    }
}
