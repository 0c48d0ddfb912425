//! The trade's own decoder and encoder: the one record that is met millions of times a second.
//!
//! Field for field what the serde way does, which stays the reference: a property test holds the
//! two equal on good and on hostile bytes.

use serde::Deserialize;

use super::{DecodeError, by_name, dec8, put_decimal, put_header};
use crate::records::Tick;
use crate::schema::Writer;

/// A trade as serde sees it; the decimals stay bytes, so that overflow can be told from nonsense.
#[derive(Deserialize)]
struct RawTick<'a> {
    #[serde(borrow)]
    source: &'a str,
    #[serde(borrow)]
    symbol: &'a str,
    trade_id: i64,
    #[serde(borrow)]
    price: &'a [u8],
    #[serde(borrow)]
    quantity: &'a [u8],
    trade_time: i64,
    #[serde(default)]
    event_time: Option<i64>,
    #[serde(default)]
    buyer_maker: Option<bool>,
    #[serde(default)]
    ingest_time: Option<i64>,
    #[serde(default)]
    first_trade_id: Option<i64>,
    #[serde(default)]
    last_trade_id: Option<i64>,
}

impl<'a> RawTick<'a> {
    #[inline]
    fn tick(self, id: u32) -> Result<Tick<'a>, DecodeError> {
        Ok(Tick {
            source: self.source,
            symbol: self.symbol,
            trade_id: self.trade_id,
            price: dec8(self.price, "price", id)?,
            quantity: dec8(self.quantity, "quantity", id)?,
            trade_time: self.trade_time,
            event_time: self.event_time,
            buyer_maker: self.buyer_maker,
            ingest_time: self.ingest_time,
            first_trade_id: self.first_trade_id,
            last_trade_id: self.last_trade_id,
        })
    }
}

pub(super) fn decode_by_name<'a>(
    datum: &'a [u8],
    writer: &Writer,
) -> Result<Tick<'a>, DecodeError> {
    by_name::<RawTick<'a>>(datum, writer)?.tick(writer.id)
}

#[inline]
pub(super) fn decode_v1(datum: &[u8], id: u32) -> Result<Tick<'_>, DecodeError> {
    decode(datum, id, |_| Ok((None, None, None, None, None)))
}

#[inline]
pub(super) fn decode_v2(datum: &[u8], id: u32) -> Result<Tick<'_>, DecodeError> {
    decode(datum, id, |cursor| {
        Ok((
            cursor.option(Cursor::long)?,
            cursor.option(Cursor::boolean)?,
            cursor.option(Cursor::long)?,
            cursor.option(Cursor::long)?,
            cursor.option(Cursor::long)?,
        ))
    })
}

/// event_time, buyer_maker, ingest_time, first_trade_id, last_trade_id.
type Options = (
    Option<i64>,
    Option<bool>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

#[inline(always)]
fn decode<'a>(
    datum: &'a [u8],
    id: u32,
    options: impl FnOnce(&mut Cursor<'a>) -> Result<Options, &'static str>,
) -> Result<Tick<'a>, DecodeError> {
    let mut cursor = Cursor { rest: datum };
    match raw(&mut cursor, options) {
        Ok(raw) => raw.tick(id),
        Err(why) => Err(malformed(id, why)),
    }
}

#[inline(always)]
fn raw<'a>(
    cursor: &mut Cursor<'a>,
    options: impl FnOnce(&mut Cursor<'a>) -> Result<Options, &'static str>,
) -> Result<RawTick<'a>, &'static str> {
    let source = cursor.text()?;
    let symbol = cursor.text()?;
    let trade_id = cursor.long()?;
    let price = cursor.bytes()?;
    let quantity = cursor.bytes()?;
    let trade_time = cursor.long()?;
    let (event_time, buyer_maker, ingest_time, first_trade_id, last_trade_id) = options(cursor)?;
    if !cursor.rest.is_empty() {
        return Err("bytes after its end");
    }
    Ok(RawTick {
        source,
        symbol,
        trade_id,
        price,
        quantity,
        trade_time,
        event_time,
        buyer_maker,
        ingest_time,
        first_trade_id,
        last_trade_id,
    })
}

#[cold]
fn malformed(id: u32, why: &'static str) -> DecodeError {
    DecodeError::Malformed {
        id,
        why: why.to_owned(),
    }
}

const TRUNCATED: &str = "it ends before its last field";

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Zigzag varint of at most ten bytes.
    #[inline]
    fn long(&mut self) -> Result<i64, &'static str> {
        let Some(&word) = self.rest.first_chunk::<8>() else {
            return self.long_by_bytes();
        };
        // Eight bytes at once: the first one without its high bit is the last of the number.
        let word = u64::from_le_bytes(word);
        let ends = !word & 0x8080_8080_8080_8080;
        if ends == 0 {
            return self.long_by_bytes();
        }
        let bits = ends.trailing_zeros();
        let length = (bits as usize + 1) / 8;
        let mut x = word & (u64::MAX >> (63 - bits)) & 0x7f7f_7f7f_7f7f_7f7f;
        // Close the gaps that the high bits leave, pairwise: 7 + 7, 14 + 14, 28 + 28 bits.
        x = (x & 0x007f_007f_007f_007f) | ((x & 0x7f00_7f00_7f00_7f00) >> 1);
        x = (x & 0x0000_3fff_0000_3fff) | ((x & 0x3fff_0000_3fff_0000) >> 2);
        x = (x & 0x0000_0000_0fff_ffff) | ((x & 0x0fff_ffff_0000_0000) >> 4);
        self.rest = &self.rest[length..];
        Ok(unzigzag(x))
    }

    fn long_by_bytes(&mut self) -> Result<i64, &'static str> {
        let mut value: u64 = 0;
        for (at, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                if at == 9 && byte > 1 {
                    break;
                }
                self.rest = &self.rest[at + 1..];
                return Ok(unzigzag(value));
            }
        }
        Err("a number is truncated or exceeds 64 bits")
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], &'static str> {
        let length = match self.rest {
            [byte, rest @ ..] if byte & 0x81 == 0 => {
                self.rest = rest;
                usize::from(*byte >> 1)
            }
            _ => usize::try_from(self.long()?).map_err(|_| "a negative length")?,
        };
        match self.rest.split_at_checked(length) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => Err(TRUNCATED),
        }
    }

    #[inline]
    fn text(&mut self) -> Result<&'a str, &'static str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a text is not UTF-8")
    }

    #[inline]
    fn boolean(&mut self) -> Result<bool, &'static str> {
        match self.rest {
            [byte @ (0 | 1), rest @ ..] => {
                self.rest = rest;
                Ok(*byte == 1)
            }
            [] => Err(TRUNCATED),
            _ => Err("a boolean is neither 0 nor 1"),
        }
    }

    /// A union of null and one other type.
    #[inline]
    fn option<T>(
        &mut self,
        some: impl FnOnce(&mut Self) -> Result<T, &'static str>,
    ) -> Result<Option<T>, &'static str> {
        let branch = match self.rest {
            // One byte, nearly always; longer spellings of 0 and 1 are legal all the same.
            [byte @ (0 | 2), rest @ ..] => {
                self.rest = rest;
                i64::from(*byte >> 1)
            }
            _ => self.long()?,
        };
        match branch {
            0 => Ok(None),
            1 => some(self).map(Some),
            _ => Err("a union has no such branch"),
        }
    }
}

/// Appends the framed datum. The decimals are in range: the caller has looked.
#[inline]
pub(super) fn encode(tick: &Tick<'_>, version: u8, id: u32, out: &mut Vec<u8>) {
    // 5 header, 2 lengths, 17 + 17 decimals, 7 longs with their branch: never regrown.
    out.reserve(tick.source.len() + tick.symbol.len() + 128);
    put_header(id, out);
    put_text(tick.source, out);
    put_text(tick.symbol, out);
    put_long(tick.trade_id, out);
    put_decimal(tick.price, out);
    put_decimal(tick.quantity, out);
    put_long(tick.trade_time, out);
    if version == 1 {
        return;
    }
    put_option(tick.event_time, out);
    match tick.buyer_maker {
        None => out.push(0),
        Some(maker) => out.extend_from_slice(&[2, u8::from(maker)]),
    }
    put_option(tick.ingest_time, out);
    put_option(tick.first_trade_id, out);
    put_option(tick.last_trade_id, out);
}

#[inline]
fn put_text(text: &str, out: &mut Vec<u8>) {
    // A text in memory is shorter than i64::MAX.
    put_long(text.len() as i64, out);
    out.extend_from_slice(text.as_bytes());
}

#[inline]
fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    let mut bytes = [0u8; 10];
    let mut length = 0;
    while rest >= 0x80 {
        bytes[length] = rest as u8 | 0x80;
        rest >>= 7;
        length += 1;
    }
    bytes[length] = rest as u8;
    let end = out.len() + length + 1;
    out.extend_from_slice(&bytes);
    out.truncate(end);
}

#[inline]
fn put_option(value: Option<i64>, out: &mut Vec<u8>) {
    match value {
        None => out.push(0),
        Some(value) => {
            out.push(2);
            put_long(value, out);
        }
    }
}
