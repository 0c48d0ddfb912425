//! The demo's market: forty quiet days so that Gold has something to say, one busy quarter of a day, and everything
//! that goes wrong in a real feed: duplicates, trades minutes late, poison, and a last group of trades that is held
//! back until the first part is in the tables.

use finlake_schemas::{Codec, EncodeError};

use crate::generate::{GeneratedTrade, Market, MarketSpec, Rng, Segment};

/// 2026-01-05T00:00:00Z: the demo's dates do not depend on the day it runs.
const START: i64 = 1_767_571_200_000_000;
const DAY: i64 = 86_400_000_000;
const QUIET_DAYS: i64 = 40;

/// What a producer is to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Both parts of the demo's feed.
#[derive(Debug, Default)]
pub struct Feed {
    pub first: Vec<Message>,
    pub late: Vec<Message>,
    pub poison: usize,
    pub duplicates: usize,
}

/// Makes the feed of a seed.
///
/// # Errors
/// The codec does not know the tick's schema.
pub fn feed(seed: u64, symbols: usize, trades: u64, codec: &Codec) -> Result<Feed, EncodeError> {
    let quiet = trades / 8;
    let market = Market::new(MarketSpec {
        seed,
        symbols,
        segments: vec![
            Segment {
                start: START,
                span: QUIET_DAYS * DAY,
                trades: quiet,
            },
            Segment {
                start: START + QUIET_DAYS * DAY,
                span: DAY / 4,
                trades: trades - quiet,
            },
        ],
    });
    let names = market.symbols().to_vec();
    let mut rng = Rng::new(seed ^ 0x5EED_FEED);
    let mut feed = Feed::default();
    // Trades that arrive some thousand records after their turn.
    let mut delayed: Vec<(u64, GeneratedTrade)> = Vec::new();
    let every = (trades / 24).max(1);
    for (i, trade) in (0u64..).zip(market) {
        while let Some(at) = delayed.iter().position(|(due, _)| *due <= i) {
            let (_, late) = delayed.swap_remove(at);
            feed.first.push(message(&late, &names, codec)?);
        }
        if i > quiet && i % (every * 2) == every {
            feed.late.push(message(&trade, &names, codec)?);
            continue;
        }
        if rng.chance(3_000) {
            delayed.push((i + 1 + rng.below(trades / 40 + 1), trade));
            continue;
        }
        feed.first.push(message(&trade, &names, codec)?);
        if rng.chance(5_000) {
            feed.first.push(message(&trade, &names, codec)?);
            feed.duplicates += 1;
        }
        if i % every == every / 2 {
            feed.first.push(poison(i / every, &trade, &names, codec)?);
            feed.poison += 1;
        }
    }
    for (_, trade) in delayed {
        feed.first.push(message(&trade, &names, codec)?);
    }
    Ok(feed)
}

fn message(
    trade: &GeneratedTrade,
    names: &[String],
    codec: &Codec,
) -> Result<Message, EncodeError> {
    let tick = trade.tick(names);
    let (mut key, mut value) = (Vec::new(), Vec::new());
    tick.key(&mut key);
    // A tenth of the producers has not moved to version 2 of the schema yet.
    codec.encode_tick(
        &tick,
        if trade.trade_id % 10 == 0 { 1 } else { 2 },
        &mut value,
    )?;
    Ok(Message { key, value })
}

/// One of the ways in which a record can be unusable.
fn poison(
    kind: u64,
    trade: &GeneratedTrade,
    names: &[String],
    codec: &Codec,
) -> Result<Message, EncodeError> {
    let mut good = message(trade, names, codec)?;
    match kind % 6 {
        0 => good.value.truncate(good.value.len() / 2),
        1 => good.value = b"{\"price\": 42}".to_vec(),
        2 => good.value[1..5].copy_from_slice(&9_999_999u32.to_be_bytes()),
        3 => good.key = b"sim:NOT-THIS-ONE".to_vec(),
        _ => {
            let mut tick = trade.tick(names);
            if kind % 6 == 4 {
                tick.price = finlake_schemas::Dec8(-tick.price.0);
            } else {
                // The year 2100: it must not close every bar.
                tick.trade_time = 4_102_444_800_000_000;
            }
            tick.trade_id += 1 << 40;
            good.value.clear();
            codec.encode_tick(&tick, 2, &mut good.value)?;
        }
    }
    Ok(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_feed_with_every_kind_of_trouble() {
        let codec = Codec::offline();
        let a = feed(1, 8, 20_000, &codec).unwrap();
        let b = feed(1, 8, 20_000, &codec).unwrap();
        assert_eq!((&a.first, &a.late), (&b.first, &b.late));
        assert!(
            a.poison >= 20 && a.duplicates > 50 && a.late.len() >= 5,
            "{} {} {}",
            a.poison,
            a.duplicates,
            a.late.len()
        );
        assert_eq!(
            a.first.len() + a.late.len(),
            20_000 + a.poison + a.duplicates
        );
    }
}
