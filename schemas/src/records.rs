//! The record types, as Rust sees them. Texts are borrowed from the Kafka bytes they came in.
//!
//! All instants are microseconds since 1970 UTC, all dates days since 1970-01-01. `avro/` says
//! how they are written.

use crate::decimal::{Dec8, Dec16};

/// One trade, or one aggregate trade. Version 1 of the schema leaves the options `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick<'a> {
    /// Where it was observed (`binance`, `binance.agg`, …); ids are unique per source and symbol.
    pub source: &'a str,
    pub symbol: &'a str,
    /// The source's own id.
    pub trade_id: i64,
    pub price: Dec8,
    pub quantity: Dec8,
    /// When the trade was made, µs.
    pub trade_time: i64,
    /// When the source sent it, µs.
    pub event_time: Option<i64>,
    /// True if the buyer was the maker (the taker sold).
    pub buyer_maker: Option<bool>,
    /// When it was received, µs by the receiver's clock.
    pub ingest_time: Option<i64>,
    /// An aggregate trade stands for the single trades `first_trade_id ..= last_trade_id`.
    pub first_trade_id: Option<i64>,
    pub last_trade_id: Option<i64>,
}

impl Tick<'_> {
    /// How many single trades this record stands for: 1, or last − first + 1 of an aggregate
    /// trade. Saturates; validation rejects what is not positive.
    #[inline]
    pub fn trades(&self) -> i64 {
        match (self.first_trade_id, self.last_trade_id) {
            (Some(first), Some(last)) => last.saturating_sub(first).saturating_add(1),
            _ => 1,
        }
    }

    /// Appends the Kafka key `source:symbol`.
    pub fn key(&self, out: &mut Vec<u8>) {
        crate::keys::input(self.source, self.symbol, out);
    }
}

/// How far a bar has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Stream time has not passed the end yet.
    Forming,
    /// A forming bar that became a table version.
    Checkpoint,
    /// Stream time has passed the end.
    Closed,
}

/// What a bar was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Trades,
    Vendor,
}

/// Whether the prices of a bar hold later splits already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Basis {
    AsQuoted,
    SplitAdjusted,
}

macro_rules! symbols {
    ($name:ident { $($variant:ident => $symbol:literal),+ }) => {
        impl $name {
            /// Every one, in the order of the Avro symbols.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The symbol used in Avro and in the tables.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $symbol),+ }
            }

            /// From the symbol used in Avro and in the tables.
            pub fn from_symbol(symbol: &str) -> Option<Self> {
                match symbol { $($symbol => Some($name::$variant),)+ _ => None }
            }
        }
    };
}

symbols!(Stage { Forming => "forming", Checkpoint => "checkpoint", Closed => "closed" });
symbols!(Origin { Trades => "trades", Vendor => "vendor" });
symbols!(Basis { AsQuoted => "as_quoted", SplitAdjusted => "split_adjusted" });

/// One version of one OHLCV bar. Natural key: source, symbol, bar_interval, bar_start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar<'a> {
    pub source: &'a str,
    pub symbol: &'a str,
    /// `1m`, `5m`, `1h`, `1d` …
    pub bar_interval: &'a str,
    /// Inclusive, µs.
    pub bar_start: i64,
    /// Exclusive, µs.
    pub bar_end: i64,
    /// Date in the bar's calendar, days since 1970.
    pub trade_date: i32,
    /// UUIDv5 of the natural key ([`crate::keys::bar_id`]).
    pub tick_id: [u8; 16],
    pub open: Dec8,
    pub high: Dec8,
    pub low: Dec8,
    pub close: Dec8,
    pub volume: Dec8,
    /// Exact sum of price × quantity.
    pub quote_volume: Dec16,
    /// Single trades.
    pub trade_count: i64,
    pub taker_buy_base: Dec8,
    pub taker_buy_quote: Dec16,
    /// quote_volume / volume, half to even.
    pub vwap: Dec8,
    pub first_trade_time: i64,
    pub first_trade_id: i64,
    pub last_trade_time: i64,
    pub last_trade_id: i64,
    pub stage: Stage,
    /// 0 for the first emitted version, one more per correction.
    pub revision: i32,
    pub origin: Origin,
    pub basis: Basis,
    /// Date at which split-adjusted prices were fetched.
    pub basis_at: Option<i32>,
    pub retracted: bool,
    /// Number of the task's commit that wrote this version.
    pub commit: i64,
    /// Input positions that this version reflects, exclusive.
    pub ticks_offset: i64,
    pub bars_offset: i64,
    /// System time of the commit, µs.
    pub sys_from: i64,
    /// `sys_from` of the version this one replaces; `None` for the first.
    pub prev_sys_from: Option<i64>,
}

/// Statistics over the last `n` daily returns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowMetrics {
    /// Length in daily returns.
    pub n: i32,
    /// close(t) / close(t−n) − 1.
    pub ret: Option<f64>,
    /// Annualised sample standard deviation of the daily returns.
    pub volatility: Option<f64>,
    /// `None` too where the standard deviation is zero.
    pub sharpe: Option<f64>,
}

/// One version of the daily metrics of an instrument. Natural key: source, symbol, trade_date.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics<'a> {
    pub source: &'a str,
    pub symbol: &'a str,
    /// Days since 1970.
    pub trade_date: i32,
    /// UUIDv5 of the natural key ([`crate::keys::metrics_id`]).
    pub metric_id: [u8; 16],
    pub close: Dec8,
    /// Daily closes known up to this date.
    pub observations: i64,
    pub return_1: Option<f64>,
    pub windows: Vec<WindowMetrics>,
    /// Trading days in a year: 365 crypto, 252 equities.
    pub periods: i32,
    /// Annual rate.
    pub risk_free: f64,
    /// End of the day's bar, µs.
    pub valid_from: i64,
    pub revision: i32,
    pub retracted: bool,
    pub commit: i64,
    pub ticks_offset: i64,
    pub bars_offset: i64,
    /// System time of the commit, µs.
    pub sys_from: i64,
    pub prev_sys_from: Option<i64>,
}

/// What a commit took from one input topic: positions `[start, end)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRange {
    pub topic: String,
    pub start: i64,
    pub end: i64,
    pub records: i64,
    /// Sum mod 2^128 of [`crate::hash128`].
    pub hash: u128,
    pub accepted: i64,
    pub duplicates: i64,
    pub rejected: i64,
    /// Positions without a record: transaction markers, compaction.
    pub skipped: i64,
}

/// What a commit wrote to one output topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputCount {
    pub topic: String,
    pub count: i64,
    /// Sum mod 2^128 of [`crate::hash128`].
    pub hash: u128,
}

/// One commit of one task, in the same transaction as what it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    pub app_id: String,
    /// The partition the task owns.
    pub task: i32,
    /// 1, 2, 3 … without a gap.
    pub commit: i64,
    /// µs; later than that of any earlier entry of the task.
    pub system_time: i64,
    /// Stream time in µs by source, in order of source.
    pub stream_times: Vec<(String, i64)>,
    pub inputs: Vec<InputRange>,
    pub outputs: Vec<OutputCount>,
    pub corrections: i64,
    /// Running totals by name; see [`LedgerEntry::total`].
    pub totals: Vec<(String, i64)>,
    /// Writer schemas met in the inputs.
    pub schema_ids: Vec<i32>,
    /// Hash of the previous entry of this task, 0 for the first.
    pub prev_hash: u128,
    /// Written by a graceful stop.
    pub last: bool,
    pub heartbeat: bool,
}

impl LedgerEntry {
    /// Running total: records of [`crate::topics::OHLCV`] that retract, each of which closes a row and makes none.
    pub const BARS_RETRACTED: &'static str = "market.ohlcv.retracted";
    /// The same of [`crate::topics::METRICS`].
    pub const METRICS_RETRACTED: &'static str = "market.metrics.retracted";

    /// Running total: commits in which bars of this interval were made. In a commit in which it does not grow the
    /// interval was not configured.
    pub fn commits_of(interval: &str) -> String {
        format!("{}{interval}", Self::COMMITS_OF)
    }

    /// What the names of [`LedgerEntry::commits_of`] begin with.
    pub const COMMITS_OF: &'static str = "commits.";

    /// Each interval that has such a total, and the total.
    pub fn commits_by_interval(&self) -> impl Iterator<Item = (&str, i64)> {
        let totals = self.totals.iter();
        totals.filter_map(|(name, n)| Some((name.strip_prefix(Self::COMMITS_OF)?, *n)))
    }

    /// A running total; `None` if the entry's writer does not keep it.
    pub fn total(&self, name: &str) -> Option<i64> {
        let found = self.totals.iter().find(|(n, _)| n == name);
        found.map(|(_, n)| *n)
    }
}

/// A vendor's bar, as it came: one interval of one instrument, prices as the vendor states them.
/// The producer knows the exchange's calendar, so the bounds come with the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VendorBar<'a> {
    /// The vendor (`yahoo`, `csv` …); a source of its own, never mixed with an exchange's trades.
    pub source: &'a str,
    pub symbol: &'a str,
    /// `1d` nearly always.
    pub bar_interval: &'a str,
    /// Inclusive, µs.
    pub bar_start: i64,
    /// Exclusive, µs.
    pub bar_end: i64,
    /// Date in the exchange's calendar, days since 1970.
    pub trade_date: i32,
    pub open: Dec8,
    pub high: Dec8,
    pub low: Dec8,
    pub close: Dec8,
    pub volume: Dec8,
    /// Whether the prices hold later splits already.
    pub basis: Basis,
    /// Date at which split-adjusted prices were fetched.
    pub basis_at: Option<i32>,
    /// When it was fetched, µs by the receiver's clock.
    pub ingest_time: Option<i64>,
}

impl VendorBar<'_> {
    /// Appends the Kafka key `source:symbol`.
    pub fn key(&self, out: &mut Vec<u8>) {
        crate::keys::input(self.source, self.symbol, out);
    }
}

/// A bar as the exchange itself computed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kline<'a> {
    /// The exchange, as in its trades.
    pub source: &'a str,
    pub symbol: &'a str,
    /// `1m`, `5m`, `1h`, `1d` …
    pub bar_interval: &'a str,
    /// Inclusive, µs.
    pub bar_start: i64,
    /// Exclusive, µs.
    pub bar_end: i64,
    pub open: Dec8,
    pub high: Dec8,
    pub low: Dec8,
    pub close: Dec8,
    pub volume: Dec8,
    /// Single trades; exchanges publish intervals without any too.
    pub trade_count: i64,
    pub quote_volume: Option<Dec16>,
    pub taker_buy_base: Option<Dec8>,
    pub taker_buy_quote: Option<Dec16>,
    /// Whether the interval was over.
    pub closed: bool,
    /// When the exchange sent it, µs.
    pub event_time: Option<i64>,
    /// When it was received, µs by the receiver's clock.
    pub ingest_time: Option<i64>,
}

impl Kline<'_> {
    /// Appends the Kafka key `source:symbol`.
    pub fn key(&self, out: &mut Vec<u8>) {
        crate::keys::input(self.source, self.symbol, out);
    }
}

/// What a corporate action does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// `ratio_to` new shares for `ratio_from` old ones.
    Split,
    /// `amount` of cash per share.
    Dividend,
}

symbols!(ActionKind { Split => "split", Dividend => "dividend" });

/// A split or a dividend. Natural key: source, symbol, ex_date, kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CorporateAction<'a> {
    pub source: &'a str,
    pub symbol: &'a str,
    /// First date without the right, in the exchange's calendar, days since 1970.
    pub ex_date: i32,
    pub kind: ActionKind,
    /// Of a split, exact: 4 for 1 is `ratio_to` = 4, `ratio_from` = 1. Both 1 for a dividend.
    pub ratio_to: Dec8,
    pub ratio_from: Dec8,
    /// Of a dividend, per share, as quoted on the ex-date; 0 for a split.
    pub amount: Dec8,
    /// ISO 4217; `None` for a split or where the vendor does not say.
    pub currency: Option<&'a str>,
    /// The vendor takes it back.
    pub retracted: bool,
    /// When it was fetched, µs by the receiver's clock.
    pub ingest_time: Option<i64>,
}

impl CorporateAction<'_> {
    /// Appends the Kafka key `source:symbol`.
    pub fn key(&self, out: &mut Vec<u8>) {
        crate::keys::input(self.source, self.symbol, out);
    }
}

/// What a bar says, without who said it when: all that makes two versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarContent {
    pub open: Dec8,
    pub high: Dec8,
    pub low: Dec8,
    pub close: Dec8,
    pub volume: Dec8,
    /// Exact sum of price × quantity.
    pub quote_volume: Dec16,
    /// Single trades.
    pub trade_count: i64,
    pub taker_buy_base: Dec8,
    pub taker_buy_quote: Dec16,
    /// µs.
    pub first_trade_time: i64,
    pub first_trade_id: i64,
    /// µs.
    pub last_trade_time: i64,
    pub last_trade_id: i64,
}

impl BarContent {
    /// The content of a bar. Its `vwap` follows from the rest.
    pub fn of(bar: &Bar<'_>) -> BarContent {
        BarContent {
            open: bar.open,
            high: bar.high,
            low: bar.low,
            close: bar.close,
            volume: bar.volume,
            quote_volume: bar.quote_volume,
            trade_count: bar.trade_count,
            taker_buy_base: bar.taker_buy_base,
            taker_buy_quote: bar.taker_buy_quote,
            first_trade_time: bar.first_trade_time,
            first_trade_id: bar.first_trade_id,
            last_trade_time: bar.last_trade_time,
            last_trade_id: bar.last_trade_id,
        }
    }
}

/// A correction of one Silver bar, sent by replay or repair through `market.bars`. The live task
/// alone gives out system time and revision; the sender says which version it means to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assertion<'a> {
    /// Names this assertion in logs, tables and dead letters; UUIDv5 of its cause or random.
    pub assertion_id: [u8; 16],
    /// The bar: its natural key, interval in text (`1m`), start in µs.
    pub source: &'a str,
    pub symbol: &'a str,
    pub bar_interval: &'a str,
    pub bar_start: i64,
    /// `sys_from` of the open version in the table, µs; `None`: the table has no open version.
    pub expected_sys_from: Option<i64>,
    /// `revision` of that version; `None` exactly where `expected_sys_from` is.
    pub expected_revision: Option<i32>,
    /// What holds; of a retraction, what held (the version that is closed).
    pub content: BarContent,
    /// The bar holds no longer: its open version is closed and none follows.
    pub retracted: bool,
    /// Who sends it: `replay`, `repair` …
    pub origin: &'a str,
    /// Why, for a person: the run, the break it resolves.
    pub reason: &'a str,
    /// When it was made, µs by the sender's clock.
    pub sent_at: i64,
}

impl Assertion<'_> {
    /// Appends the Kafka key `source:symbol`.
    pub fn key(&self, out: &mut Vec<u8>) {
        crate::keys::input(self.source, self.symbol, out);
    }
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakKind {
    Missing,
    Duplicate,
    ValueDrift,
    SchemaDrift,
    /// The ledger's own rules (INV-11, INV-12, INV-13).
    Ledger,
}

symbols!(BreakKind {
    Missing => "MISSING",
    Duplicate => "DUPLICATE",
    ValueDrift => "VALUE_DRIFT",
    SchemaDrift => "SCHEMA_DRIFT",
    Ledger => "LEDGER"
});

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A value differs by no more than the threshold (0.01 %).
    Minor,
    Material,
}

symbols!(Severity { Minor => "minor", Material => "material" });

/// Where a break is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BreakStatus {
    Opened,
    /// Still there, and known why.
    Explained,
    /// No longer there.
    Resolved,
}

symbols!(BreakStatus {
    Opened => "opened",
    Explained => "explained",
    Resolved => "resolved"
});

/// One version of one break. Natural key: `break_id`, which its cause fixes: a break is never
/// opened twice for one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Break {
    /// UUIDv5 of kind, layer, table, key and cause ([`crate::keys::break_id`]).
    pub break_id: [u8; 16],
    pub kind: BreakKind,
    pub severity: Severity,
    /// `feed`, `ledger`, `bronze`, `silver`, `gold`.
    pub layer: String,
    /// Full name, e.g. `silver.market_ohlcv`; the topic's name where no table is concerned.
    pub table: String,
    /// Natural key of the row, range of offsets or ids, column: what the kind speaks of.
    pub key: String,
    /// What makes two breaks of one key two: a column, an input offset, a rule's name.
    pub cause: String,
    pub source: Option<String>,
    pub symbol: Option<String>,
    /// Days since 1970.
    pub trade_date: Option<i32>,
    pub status: BreakStatus,
    pub expected: Option<String>,
    pub actual: Option<String>,
    /// For a person: what it means and what to do next.
    pub detail: String,
    /// `audit`, `reconcile`, a validator's name …
    pub found_by: String,
    /// When this version was made, µs; later than that of the version before.
    pub system_time: i64,
}
