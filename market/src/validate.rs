//! Which ticks are trades: every reason for which a record is refused, and nothing else.
//!
//! A refused record goes to the dead-letter topic with the class and the message made here. The
//! check needs the record alone, so it gives the same answer on a replay.

use finlake_schemas::dlq as class;
use finlake_schemas::{Dec16, Tick};

use crate::ohlcv::{MAX_UNSCALED, Point, Trade};

/// Open end of valid and system time: 9999-12-31T00:00:00Z in µs.
pub const OPEN_END: i64 = 253_402_214_400_000_000;

/// Longest source or symbol, in bytes.
pub const MAX_NAME: usize = 128;

/// Single trades one aggregate trade may stand for.
pub const MAX_TRADES: i64 = 1_000_000_000;

/// Why a record was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub class: &'static str,
    pub message: String,
}

impl Reject {
    #[cold]
    fn new(class: &'static str, message: String) -> Self {
        Self { class, message }
    }
}

/// Bounds that come from configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How far a trade may lie after its record's Kafka timestamp, µs.
    pub max_ahead: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_ahead: 10_000_000,
        }
    }
}

/// Checks one tick against its record's key and Kafka timestamp (ms; negative = none, then the
/// `future` rule cannot apply) and gives what the fold needs.
#[inline]
pub fn validate(
    tick: &Tick<'_>,
    key: Option<&[u8]>,
    kafka_ts_ms: i64,
    limits: &Limits,
) -> Result<Trade, Reject> {
    if !names_hold(tick.source, tick.symbol, key) {
        return Err(bad_names(tick, key));
    }
    validate_values(tick, kafka_ts_ms, limits)
}

/// Whether source and symbol are names, and the record's key says the same: the half of
/// [`validate`] that is the same for all records of one instrument.
#[inline]
pub fn names_hold(source: &str, symbol: &str, key: Option<&[u8]>) -> bool {
    let (source, symbol) = (source.as_bytes(), symbol.as_bytes());
    let key_holds = key.is_some_and(|k| {
        k.len() == source.len() + 1 + symbol.len()
            && k[source.len()] == b':'
            && &k[..source.len()] == source
            && &k[source.len() + 1..] == symbol
    });
    key_holds
        && !source.is_empty()
        && !symbol.is_empty()
        && source.len() <= MAX_NAME
        && symbol.len() <= MAX_NAME
        && plain(source, key.unwrap_or_default())
}

/// The other half: numbers and times.
#[inline]
pub fn validate_values(
    tick: &Tick<'_>,
    kafka_ts_ms: i64,
    limits: &Limits,
) -> Result<Trade, Reject> {
    if tick.trade_id < 0 || tick.price.0 <= 0 || tick.quantity.0 <= 0 {
        return Err(bad_numbers(tick));
    }
    let trades = match (tick.first_trade_id, tick.last_trade_id) {
        (None, None) => 1,
        (Some(first), Some(last)) if first >= 0 && last >= first && last - first < MAX_TRADES => {
            last - first + 1
        }
        _ => return Err(bad_numbers(tick)),
    };
    if !(0..OPEN_END).contains(&tick.trade_time) {
        return Err(bad_time(tick));
    }
    if kafka_ts_ms >= 0 {
        let latest = kafka_ts_ms
            .saturating_mul(1000)
            .saturating_add(limits.max_ahead);
        // A Kafka timestamp is whole milliseconds, cut off: allow the trade the rest of its one.
        if tick.trade_time > latest.saturating_add(999) {
            return Err(too_early(tick, kafka_ts_ms, limits));
        }
    }
    let quote = product(tick.price.0, tick.quantity.0).ok_or_else(|| too_large(tick))?;
    Ok(Trade {
        at: Point {
            time: tick.trade_time,
            id: tick.trade_id,
        },
        price: tick.price,
        quantity: tick.quantity,
        quote: Dec16(quote),
        taker_buy: tick.buyer_maker == Some(false),
        trades,
    })
}

/// Exact product of two positive decimals at scale 8, if it and its factors fit their columns.
#[inline]
fn product(price: i128, quantity: i128) -> Option<i128> {
    // Nearly every trade: one widening multiplication that cannot overflow.
    let product = match (i64::try_from(price), i64::try_from(quantity)) {
        (Ok(p), Ok(q)) => i128::from(p) * i128::from(q),
        _ => price.checked_mul(quantity)?,
    };
    (product <= MAX_UNSCALED && price <= MAX_UNSCALED && quantity <= MAX_UNSCALED)
        .then_some(product)
}

/// Names end up in keys, paths and partitions: no colon in a source (it ends there in the key), no
/// control characters anywhere.
#[inline]
fn plain(source: &[u8], key: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // Eight bytes at a time; the high bit of each byte says that it is below 0x20 or equals 0x7f.
    // A borrow may mark the byte above a marked one, never one where none is marked.
    let control = |word: u64| {
        let del = word ^ (ONES * 0x7f);
        (word.wrapping_sub(ONES * 0x20) & !word | del.wrapping_sub(ONES) & !del) & HIGH
    };
    let (words, rest) = key.as_chunks::<8>();
    let marks = words
        .iter()
        .fold(0, |marks, w| marks | control(u64::from_le_bytes(*w)));
    let rest_marked = rest
        .iter()
        .fold(false, |marked, b| marked | (*b < 0x20) | (*b == 0x7f));
    let colon = source.iter().fold(false, |found, b| found | (*b == b':'));
    marks == 0 && !rest_marked && !colon
}

#[cold]
fn bad_names(tick: &Tick<'_>, key: Option<&[u8]>) -> Reject {
    let (source, symbol) = (shorten(tick.source), shorten(tick.symbol));
    for (what, name, text) in [
        ("source", tick.source, &source),
        ("symbol", tick.symbol, &symbol),
    ] {
        if name.is_empty() {
            return Reject::new(class::INVALID, format!("the {what} is empty: name it"));
        }
        if name.len() > MAX_NAME {
            return Reject::new(
                class::INVALID,
                format!(
                    "{what} `{text}` has {} bytes, at most {MAX_NAME} are taken",
                    name.len()
                ),
            );
        }
        let colon = what == "source" && name.contains(':');
        if colon || name.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Reject::new(
                class::INVALID,
                format!(
                    "{what} `{}` holds a control character{}",
                    text.escape_debug(),
                    if colon { " or a colon" } else { "" }
                ),
            );
        }
    }
    let key = match key {
        None => "there is none".to_owned(),
        Some(k) => format!(
            "it is `{}`",
            shorten(&String::from_utf8_lossy(k)).escape_debug()
        ),
    };
    Reject::new(
        class::BAD_KEY,
        format!("the record key must be `{source}:{symbol}`, {key}: send it again with that key"),
    )
}

#[cold]
fn bad_numbers(tick: &Tick<'_>) -> Reject {
    let message = if tick.trade_id < 0 {
        format!("trade_id {} is negative", tick.trade_id)
    } else if tick.price.0 <= 0 {
        format!("price {} is not above zero", tick.price)
    } else if tick.quantity.0 <= 0 {
        format!("quantity {} is not above zero", tick.quantity)
    } else {
        format!(
            "first_trade_id {:?} and last_trade_id {:?} are not a range of 1 to {MAX_TRADES} ids",
            tick.first_trade_id, tick.last_trade_id
        )
    };
    Reject::new(class::INVALID, message)
}

#[cold]
fn bad_time(tick: &Tick<'_>) -> Reject {
    Reject::new(
        class::INVALID,
        format!(
            "trade_time {} µs lies outside 1970..9999: check the unit, it must be microseconds",
            tick.trade_time
        ),
    )
}

#[cold]
fn too_early(tick: &Tick<'_>, kafka_ts_ms: i64, limits: &Limits) -> Reject {
    Reject::new(
        class::FUTURE,
        format!(
            "trade_time {} µs is {} ms after the record's timestamp, at most {} ms are allowed: \
             check the clocks of the exchange and of the broker, then redrive",
            tick.trade_time,
            tick.trade_time / 1000 - kafka_ts_ms,
            limits.max_ahead / 1000
        ),
    )
}

#[cold]
fn too_large(tick: &Tick<'_>) -> Reject {
    Reject::new(
        class::OVERFLOW,
        format!(
            "price {} × quantity {} does not fit decimal(38,16)",
            tick.price, tick.quantity
        ),
    )
}

/// The first 64 characters, for messages.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use finlake_schemas::Dec8;

    const ONE: i128 = 100_000_000;

    fn tick() -> Tick<'static> {
        Tick {
            source: "binance",
            symbol: "BTCUSDT",
            trade_id: 7,
            price: Dec8(100 * ONE),
            quantity: Dec8(ONE / 2),
            trade_time: 1_700_000_000_000_000,
            event_time: None,
            buyer_maker: Some(false),
            ingest_time: None,
            first_trade_id: None,
            last_trade_id: None,
        }
    }

    fn check(tick: &Tick<'_>) -> Result<Trade, Reject> {
        let key = format!("{}:{}", tick.source, tick.symbol);
        validate(
            tick,
            Some(key.as_bytes()),
            1_700_000_000_000,
            &Limits::default(),
        )
    }

    #[test]
    fn a_good_one() {
        let trade = check(&tick()).unwrap();
        assert_eq!(trade.quote, Dec16(50 * ONE * ONE));
        assert!(trade.taker_buy);
        assert_eq!(trade.trades, 1);
        let mut aggregate = tick();
        (aggregate.first_trade_id, aggregate.last_trade_id) = (Some(10), Some(14));
        assert_eq!(check(&aggregate).unwrap().trades, 5);
        let mut v1 = tick();
        v1.buyer_maker = None;
        assert!(!check(&v1).unwrap().taker_buy);
    }

    type Change = fn(&mut Tick<'_>);

    #[test]
    fn each_reason_has_its_class() {
        let cases: &[(&str, Change)] = &[
            ("invalid", |t| t.source = ""),
            ("invalid", |t| t.symbol = ""),
            ("invalid", |t| t.source = "a:b"),
            ("invalid", |t| t.symbol = "a\nb"),
            ("invalid", |t| t.trade_id = -1),
            ("invalid", |t| t.price = Dec8(0)),
            ("invalid", |t| t.price = Dec8(i128::MIN)),
            ("invalid", |t| t.quantity = Dec8(-1)),
            ("invalid", |t| t.first_trade_id = Some(1)),
            ("invalid", |t| t.last_trade_id = Some(1)),
            ("invalid", |t| {
                (t.first_trade_id, t.last_trade_id) = (Some(2), Some(1))
            }),
            ("invalid", |t| {
                (t.first_trade_id, t.last_trade_id) = (Some(0), Some(i64::MAX))
            }),
            ("invalid", |t| {
                (t.first_trade_id, t.last_trade_id) = (Some(i64::MIN), Some(0))
            }),
            ("invalid", |t| t.trade_time = -1),
            ("invalid", |t| t.trade_time = i64::MAX),
            ("future", |t| t.trade_time += 10_001_000),
            ("overflow", |t| {
                (t.price, t.quantity) = (Dec8(i128::MAX), Dec8(1))
            }),
            ("overflow", |t| {
                (t.price, t.quantity) = (Dec8(MAX_UNSCALED), Dec8(2))
            }),
            ("overflow", |t| t.quantity = Dec8(MAX_UNSCALED)),
        ];
        for (n, (class, change)) in cases.iter().enumerate() {
            let mut t = tick();
            change(&mut t);
            let got = check(&t).expect_err(&format!("case {n}"));
            assert_eq!(got.class, *class, "case {n}: {}", got.message);
            assert!(!got.message.is_empty());
        }
    }

    /// Every byte at every place of a word and of the rest.
    #[test]
    fn control_characters_are_found_anywhere() {
        for place in 0..19 {
            for byte in 0..=0x7f {
                let mut symbol = *b"ABCDEFGHIJKLMNOPQRS";
                symbol[place] = byte;
                let mut t = tick();
                t.symbol = std::str::from_utf8(&symbol).unwrap();
                let control = byte < 0x20 || byte == 0x7f;
                assert_eq!(check(&t).is_err(), control, "{byte} at {place}");
            }
        }
        let mut t = tick();
        t.symbol = "比特币-テザー";
        assert!(check(&t).is_ok());
    }

    #[test]
    fn the_key_must_be_source_and_symbol() {
        for key in [
            None,
            Some(&b""[..]),
            Some(b"binance"),
            Some(b"binance:ETHUSDT"),
            Some(b"binance-BTCUSDT"),
            Some(b"\xff\xfe"),
        ] {
            let got = validate(&tick(), key, -1, &Limits::default()).unwrap_err();
            assert_eq!(got.class, class::BAD_KEY);
            assert!(got.message.contains("binance:BTCUSDT"), "{}", got.message);
        }
    }

    #[test]
    fn the_future_rule_needs_a_timestamp_and_spares_the_rest_of_the_millisecond() {
        let mut t = tick();
        t.trade_time = 1_700_000_010_000_999;
        assert!(check(&t).is_ok());
        t.trade_time += 1;
        assert_eq!(check(&t).unwrap_err().class, class::FUTURE);
        let free = validate(&t, Some(b"binance:BTCUSDT"), -1, &Limits::default());
        assert!(free.is_ok());
    }
}
