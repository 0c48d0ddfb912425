//! One line of a recorded WebSocket connection. Pure; borrows from the line, allocates nothing
//! for a trade.
//!
//! Known forms: `<receive time in ns> <JSON>`, `<receive time in s>: <JSON>`, and the JSON alone;
//! the JSON is a combined-stream envelope `{"stream", "data"}` or the bare event. Single trades
//! (`trade`) and aggregate trades (`aggTrade`) are trades; every other event is named and skipped.

use std::fmt;

use finlake_schemas::Tick;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{LineFault, Sources, decimal, micros, micros_from_seconds};

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    Trade(Tick<'a>),
    /// Another event, by its name.
    Skipped(&'a str),
    /// Nothing but white space.
    Blank,
}

/// Reads one line.
///
/// # Errors
/// The line is no message, or a trade that lacks something.
pub fn parse_line<'a>(line: &'a [u8], sources: &'a Sources) -> Result<Parsed<'a>, LineFault> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(Parsed::Blank);
    }
    // Recorders write the connection's address before and after the messages.
    if line.starts_with(b"wss://") || line.starts_with(b"ws://") {
        return Ok(Parsed::Skipped("connection"));
    }
    let (received, json) = match line[0] {
        b'{' | b'[' => (None, line),
        _ => split_receive_time(line)?,
    };
    let node: Node<'a, Data<'a>> = match serde_json::from_slice(json) {
        Ok(Any::Object(node)) => node,
        Ok(Any::Other) => return Ok(Parsed::Skipped("other")),
        Err(e) => return Err(LineFault::Json(e.to_string())),
    };
    let stream = node.stream.text();
    match node.data {
        Data(Some(Any::Object(event))) => event.parsed(stream, received, sources),
        // An array of events: no stream of trades sends those.
        Data(Some(Any::Other)) => Ok(Parsed::Skipped(kind_of(stream))),
        Data(None) => node.parsed(stream, received, sources),
    }
}

/// `1723161253937085768 {…` (ns) or `1633998512.0633569: {…` (s); gives µs.
pub(super) fn split_receive_time(line: &[u8]) -> Result<(Option<i64>, &[u8]), LineFault> {
    let end = line
        .iter()
        .position(|b| b.is_ascii_whitespace())
        .ok_or(LineFault::Prefix)?;
    let (stamp, json) = line.split_at(end);
    let json = json.trim_ascii_start();
    let stamp = std::str::from_utf8(stamp).map_err(|_| LineFault::Prefix)?;
    let received = match stamp.strip_suffix(':') {
        Some(seconds) => micros_from_seconds(seconds),
        None => stamp.parse::<i64>().ok().map(|ns| ns.div_euclid(1_000)),
    };
    match (received, json.first()) {
        // Plausible instants only: a number in other units would be believed for ever.
        (Some(us), Some(b'{' | b'[')) => match micros("receive time", us) {
            Ok(same) if same == us => Ok((received, json)),
            _ => Err(LineFault::Prefix),
        },
        _ => Err(LineFault::Prefix),
    }
}

/// What follows the symbol in a stream's name: `btcusdt@bookTicker` is a `bookTicker`.
fn kind_of(stream: Option<&str>) -> &str {
    stream
        .and_then(|name| name.split('@').nth(1))
        .unwrap_or("other")
}

/// The fields of an event that any trade uses; of an envelope, `stream` and `data`.
#[derive(Deserialize)]
#[serde(bound(deserialize = "D: Deserialize<'de> + Default, 'de: 'a"))]
struct Node<'a, D> {
    #[serde(default)]
    stream: Scalar<'a>,
    #[serde(default)]
    data: D,
    /// Name of the event.
    #[serde(default)]
    e: Scalar<'a>,
    #[serde(default, rename = "E")]
    event_time: Scalar<'a>,
    #[serde(default, rename = "s")]
    symbol: Scalar<'a>,
    /// Id of a single trade.
    #[serde(default)]
    t: Scalar<'a>,
    /// Id of an aggregate trade (of a single one, formerly, the seller's order).
    #[serde(default)]
    a: Scalar<'a>,
    #[serde(default, rename = "p")]
    price: Scalar<'a>,
    #[serde(default, rename = "q")]
    quantity: Scalar<'a>,
    #[serde(default, rename = "f")]
    first: Scalar<'a>,
    #[serde(default, rename = "l")]
    last: Scalar<'a>,
    #[serde(default, rename = "T")]
    trade_time: Scalar<'a>,
    #[serde(default, rename = "m")]
    maker: Scalar<'a>,
}

impl<'a, D> Node<'a, D> {
    fn parsed(
        &self,
        stream: Option<&'a str>,
        received: Option<i64>,
        sources: &'a Sources,
    ) -> Result<Parsed<'a>, LineFault> {
        let aggregate = match self.e.text() {
            Some("trade") => false,
            Some("aggTrade") => true,
            Some(other) => return Ok(Parsed::Skipped(other)),
            None => return Ok(Parsed::Skipped(kind_of(stream))),
        };
        let text = |field: &'static str, v: &Scalar<'a>| v.text().ok_or(LineFault::Field(field));
        let int = |field: &'static str, v: &Scalar<'a>| v.int().ok_or(LineFault::Field(field));
        let (source, trade_id, first, last) = if aggregate {
            (
                &sources.aggregate,
                int("a", &self.a)?,
                Some(int("f", &self.first)?),
                Some(int("l", &self.last)?),
            )
        } else {
            (&sources.single, int("t", &self.t)?, None, None)
        };
        Ok(Parsed::Trade(Tick {
            source,
            symbol: text("s", &self.symbol)?,
            trade_id,
            price: decimal("p", text("p", &self.price)?)?,
            quantity: decimal("q", text("q", &self.quantity)?)?,
            trade_time: micros("T", int("T", &self.trade_time)?)?,
            event_time: match self.event_time.int() {
                Some(stamp) => Some(micros("E", stamp)?),
                None => None,
            },
            buyer_maker: Some(self.maker.bool().ok_or(LineFault::Field("m"))?),
            ingest_time: received,
            first_trade_id: first,
            last_trade_id: last,
        }))
    }
}

/// An object, or something else, which is read over.
enum Any<T> {
    Object(T),
    Other,
}

/// The `data` of an envelope; `None` where there is none.
#[derive(Default)]
struct Data<'a>(Option<Any<Node<'a, IgnoredAny>>>);

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Any::deserialize(d).map(|any| Data(Some(any)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Any<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct AnyVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for AnyVisitor<T> {
            type Value = Any<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Any<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Any::Object)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Any<T>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Any::Other)
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Any<T>, E> {
                Ok(Any::Other)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Any<T>, E> {
                Ok(Any::Other)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Any<T>, E> {
                Ok(Any::Other)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Any<T>, E> {
                Ok(Any::Other)
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Any<T>, E> {
                Ok(Any::Other)
            }

            fn visit_unit<E: de::Error>(self) -> Result<Any<T>, E> {
                Ok(Any::Other)
            }
        }

        d.deserialize_any(AnyVisitor(std::marker::PhantomData))
    }
}

/// A field whose type depends on the event: `a` is an id here and a list of asks there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Scalar<'a> {
    Text(&'a str),
    Int(i64),
    Bool(bool),
    #[default]
    Other,
}

impl<'a> Scalar<'a> {
    fn text(&self) -> Option<&'a str> {
        match self {
            Scalar::Text(text) => Some(text),
            _ => None,
        }
    }

    fn int(&self) -> Option<i64> {
        match self {
            Scalar::Int(value) => Some(*value),
            _ => None,
        }
    }

    fn bool(&self) -> Option<bool> {
        match self {
            Scalar::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Text(v))
            }

            // A text with escapes cannot be borrowed; no name or number of an exchange has one.
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_bool<E: de::Error>(self, v: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Bool(v))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Int(v))
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Scalar<'de>, E> {
                Ok(i64::try_from(v).map_or(Scalar::Other, Scalar::Int))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_unit<E: de::Error>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }

        d.deserialize_any(ScalarVisitor)
    }
}
