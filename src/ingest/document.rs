//! Files that are one JSON document: REST answers, and a message written over several lines.
//! Pure. They hold a thousand trades or so, and are read as a whole.

use finlake_schemas::Tick;
use serde_json::Value;

use super::{LineFault, Sources, decimal, micros, micros_from_seconds};

/// A trade of a document, or what is wrong with it.
pub type Entry = Result<DocumentTrade, LineFault>;

/// A trade with the text it owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentTrade {
    pub symbol: String,
    pub tick: Tick<'static>,
    pub aggregate: bool,
}

/// Kraken's answer to `Trades`: `{"error": [], "result": {PAIR: [[price, volume, time, side, type,
/// misc, id], …], "last": …}}`.
///
/// # Errors
/// The document is something else.
pub fn kraken(text: &[u8]) -> Result<Vec<Entry>, String> {
    // Times are decimal seconds with seven digits: through a double they would lose their end.
    let value: Value =
        serde_json::from_slice(&quote_numbers(text)).map_err(|e| format!("not JSON: {e}"))?;
    let result = value
        .get("result")
        .and_then(Value::as_object)
        .ok_or("no \"result\" as Kraken's answer has it")?;
    let mut entries = Vec::new();
    for (pair, trades) in result {
        let Some(trades) = trades.as_array() else {
            continue;
        };
        for trade in trades {
            entries.push(kraken_trade(pair, trade));
        }
    }
    Ok(entries)
}

fn kraken_trade(pair: &str, trade: &Value) -> Entry {
    let cell = |field: &'static str, at: usize| {
        trade
            .get(at)
            .and_then(Value::as_str)
            .ok_or(LineFault::Field(field))
    };
    let time = micros_from_seconds(cell("time", 2)?).ok_or(LineFault::Field("time"))?;
    let id = cell("id", 6)?.parse().map_err(|_| LineFault::Field("id"))?;
    Ok(DocumentTrade {
        symbol: pair.to_owned(),
        aggregate: false,
        tick: Tick {
            trade_id: id,
            price: decimal("price", cell("price", 0)?)?,
            quantity: decimal("volume", cell("volume", 1)?)?,
            trade_time: micros("time", time)?,
            // The side is the taker's.
            buyer_maker: Some(match cell("side", 3)? {
                "b" => false,
                "s" => true,
                _ => return Err(LineFault::Field("side")),
            }),
            ..EMPTY
        },
    })
}

/// The exchange's REST trades: an array of `{id, price, qty, time, isBuyerMaker}` or of aggregate
/// trades `{a, p, q, f, l, T, m}`, bare or recorded as `{"queryString", "data"}`.
///
/// # Errors
/// The document is something else, or no symbol is known.
pub fn rest(text: &[u8], symbol: Option<&str>) -> Result<Vec<Entry>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| format!("not JSON: {e}"))?;
    let asked = value
        .get("queryString")
        .and_then(Value::as_str)
        .and_then(|query| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix("symbol="))
        });
    let symbol = symbol
        .or(asked)
        .ok_or("the file does not say its symbol; give --symbol")?;
    let trades = match &value {
        Value::Array(trades) => trades,
        _ => value
            .get("data")
            .and_then(Value::as_array)
            .ok_or("no array of trades")?,
    };
    Ok(trades
        .iter()
        .map(|trade| rest_trade(symbol, trade))
        .collect())
}

fn rest_trade(symbol: &str, trade: &Value) -> Entry {
    let aggregate = trade.get("a").is_some();
    let either = |long: &'static str, short: &'static str| {
        let name = if aggregate { short } else { long };
        trade.get(name).ok_or(LineFault::Field(long))
    };
    let int = |field: &'static str, value: &Value| value.as_i64().ok_or(LineFault::Field(field));
    let number = |field: &'static str, value: &Value| {
        decimal(field, value.as_str().ok_or(LineFault::Field(field))?)
    };
    let bound = |name: &'static str| match (aggregate, trade.get(name)) {
        (false, _) => Ok(None),
        (true, Some(value)) => int(name, value).map(Some),
        (true, None) => Err(LineFault::Field(name)),
    };
    Ok(DocumentTrade {
        symbol: symbol.to_owned(),
        aggregate,
        tick: Tick {
            trade_id: int("id", either("id", "a")?)?,
            price: number("price", either("price", "p")?)?,
            quantity: number("qty", either("qty", "q")?)?,
            trade_time: micros("time", int("time", either("time", "T")?)?)?,
            buyer_maker: Some(
                either("isBuyerMaker", "m")?
                    .as_bool()
                    .ok_or(LineFault::Field("isBuyerMaker"))?,
            ),
            first_trade_id: bound("f")?,
            last_trade_id: bound("l")?,
            ..EMPTY
        },
    })
}

impl DocumentTrade {
    /// The source it belongs to.
    pub fn source<'a>(&self, sources: &'a Sources) -> &'a std::sync::Arc<str> {
        match self.aggregate {
            true => &sources.aggregate,
            false => &sources.single,
        }
    }
}

const EMPTY: Tick<'static> = Tick {
    source: "",
    symbol: "",
    trade_id: 0,
    price: finlake_schemas::Dec8::ZERO,
    quantity: finlake_schemas::Dec8::ZERO,
    trade_time: 0,
    event_time: None,
    buyer_maker: None,
    ingest_time: None,
    first_trade_id: None,
    last_trade_id: None,
};

/// Puts every number of a JSON text in quotes, so that its digits survive the reading.
fn quote_numbers(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 8);
    let (mut in_text, mut escaped, mut in_number) = (false, false, false);
    for &byte in text {
        let digit = byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.');
        // e and E belong to a number only once it has begun: true and false hold them too.
        let number = !in_text && (digit || (in_number && matches!(byte, b'e' | b'E')));
        if number != in_number {
            out.push(b'"');
            in_number = number;
        }
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
        } else if byte == b'"' {
            in_text = true;
        }
        out.push(byte);
    }
    if in_number {
        out.push(b'"');
    }
    out
}
