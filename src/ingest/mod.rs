//! Trades from files into `market.ticks`: recorded WebSocket messages, the exchange's archive
//! CSVs, REST answers. The exchange's own klines go into `market.klines` ([`klines`]).
//!
//! Files come in as bytes, are parsed by pure functions ([`message`], [`csv`], [`document`]),
//! merged by trade time ([`Inputs`]) and leave as Avro `Tick` v2 through [`Out`] ([`KafkaOut`] in
//! production). Nothing here judges a trade: duplicates and impossible prices are the pipeline's
//! business. What must never happen is a line lost in silence: each becomes a trade, or is counted
//! as another kind of message, or is reported with its number.

pub mod csv;
pub mod document;
pub mod files;
pub mod klines;
pub mod message;
pub mod produce;

#[cfg(test)]
mod kafka_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use finlake_schemas::{Dec8, Tick};
use thiserror::Error;

pub use files::{Inputs, open_inputs};
pub use produce::{KafkaOut, Out, run};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Told from its first bytes.
    #[default]
    Auto,
    /// One message of the exchange's WebSocket a line, with or without envelope and receive time.
    Messages,
    /// Trades or aggregate trades in the exchange's archive layout, or with a header.
    Csv,
    /// The exchange's REST answer: an array of trades.
    Rest,
    /// Kraken's REST answer to `Trades`.
    Kraken,
}

/// What is asked of an import.
#[derive(Debug, Clone, Default)]
pub struct IngestOptions {
    pub format: Format,
    /// Source of the trades; aggregate trades get `.agg` added. Default: `binance`, `kraken`.
    pub source: Option<String>,
    /// Symbol, where the file does not say it.
    pub symbol: Option<String>,
    /// Stop at the first broken line.
    pub strict: bool,
    /// Trades per second; `None` is as fast as it goes.
    pub rate: Option<u32>,
    /// Stop after this many trades.
    pub limit: Option<u64>,
}

/// The sources that a file's trades belong to: aggregate trades have ids of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub single: Arc<str>,
    pub aggregate: Arc<str>,
}

impl Sources {
    /// `name` and `name.agg`.
    pub fn named(name: &str) -> Sources {
        let aggregate = match name.ends_with(".agg") {
            true => name.to_owned(),
            false => format!("{name}.agg"),
        };
        Sources {
            single: name.into(),
            aggregate: aggregate.into(),
        }
    }
}

/// A trade that no longer borrows from its line. Cloning shares the texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedTrade {
    pub source: Arc<str>,
    pub symbol: Arc<str>,
    pub trade_id: i64,
    pub price: Dec8,
    pub quantity: Dec8,
    /// µs.
    pub trade_time: i64,
    pub event_time: Option<i64>,
    pub buyer_maker: Option<bool>,
    /// When the recorder received it, µs by its clock; `None` where the file does not say.
    pub ingest_time: Option<i64>,
    pub first_trade_id: Option<i64>,
    pub last_trade_id: Option<i64>,
}

impl OwnedTrade {
    /// As the record to be encoded.
    pub fn tick(&self) -> Tick<'_> {
        Tick {
            source: &self.source,
            symbol: &self.symbol,
            trade_id: self.trade_id,
            price: self.price,
            quantity: self.quantity,
            trade_time: self.trade_time,
            event_time: self.event_time,
            buyer_maker: self.buyer_maker,
            ingest_time: self.ingest_time,
            first_trade_id: self.first_trade_id,
            last_trade_id: self.last_trade_id,
        }
    }
}

/// What is wrong with one line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LineFault {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("field {0} is missing or of the wrong type")]
    Field(&'static str),
    #[error("{field} is not a decimal with at most 8 digits after the point: {why}")]
    Decimal { field: &'static str, why: String },
    /// Neither 13 digits (ms) nor 16 (µs).
    #[error("{field} {value} is neither a millisecond nor a microsecond stamp")]
    Stamp { field: &'static str, value: i64 },
    #[error("the text before the message is not a receive time")]
    Prefix,
    #[error("{found} columns where the file's layout has {expected}")]
    Columns { found: usize, expected: usize },
    #[error("longer than {0} bytes")]
    TooLong(usize),
}

/// A broken line, as it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineIssue {
    pub file: PathBuf,
    /// Counted from 1; in a document, the number of the trade.
    pub line: u64,
    pub fault: LineFault,
}

impl fmt::Display for LineIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.fault)
    }
}

/// Why an import stopped.
#[derive(Debug, Error)]
pub enum IngestError {
    #[error("{}: cannot be read: {error}", file.display())]
    Read {
        file: PathBuf,
        error: std::io::Error,
    },
    #[error("{}: {why}", file.display())]
    Layout { file: PathBuf, why: String },
    #[error("{0}; correct or remove the line, or import without --strict")]
    Strict(LineIssue),
    #[error("cannot encode trade {trade_id} of {symbol}: {error}")]
    Encode {
        symbol: String,
        trade_id: i64,
        error: finlake_schemas::EncodeError,
    },
    #[error("cannot produce to Kafka: {0}; bringing the files in again does no harm")]
    Kafka(String),
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Trades acknowledged by Kafka.
    pub trades: u64,
    /// Lines read, blank ones and headers included.
    pub lines: u64,
    /// Messages of other kinds, by kind.
    pub skipped: Vec<(String, u64)>,
    /// Broken lines.
    pub broken: u64,
    /// The first of them.
    pub issues: Vec<LineIssue>,
    /// Trade times of the first and the last trade sent, µs.
    pub first_time: Option<i64>,
    pub last_time: Option<i64>,
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub trades: u64,
    /// Bytes of the files as they lie on disk.
    pub bytes_read: u64,
    /// `None` if a size is not known (standard input).
    pub bytes_total: Option<u64>,
    /// Of the latest trade, µs.
    pub trade_time: i64,
}

/// Watches an import; the command line draws a bar with it.
pub trait Progress {
    /// Every thousand trades or so, and at the end.
    fn position(&mut self, _position: Position) {}
    /// At each broken line.
    fn issue(&mut self, _issue: &LineIssue) {}
}

/// Watches nothing.
pub struct Quiet;

impl Progress for Quiet {}

/// Milliseconds or microseconds since 1970 as microseconds: archives and streams use both, and
/// the number of digits tells (13 until 2286 and 16 until then; spot archives changed in 2025).
fn micros(field: &'static str, value: i64) -> Result<i64, LineFault> {
    match value {
        100_000_000_000..100_000_000_000_000 => Ok(value * 1_000),
        100_000_000_000_000..100_000_000_000_000_000 => Ok(value),
        _ => Err(LineFault::Stamp { field, value }),
    }
}

/// Decimal seconds since 1970 as microseconds, digits beyond cut off. A double has seven digits
/// to give at present, so it is read as text.
fn micros_from_seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let mut micros = 0;
    for at in 0..6 {
        let digit = fraction.as_bytes().get(at).map_or(0, |b| b - b'0');
        micros = micros * 10 + i64::from(digit);
    }
    seconds.checked_mul(1_000_000)?.checked_add(micros)
}

fn decimal(field: &'static str, text: &str) -> Result<Dec8, LineFault> {
    Dec8::parse(text).map_err(|e| LineFault::Decimal {
        field,
        why: e.to_string(),
    })
}
