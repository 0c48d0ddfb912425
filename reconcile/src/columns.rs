//! Arrow columns as the comparisons want them: rows of Bronze into slices and content hashes, of
//! Silver and Gold into versions.
//!
//! No I/O. Columns go by name; one that is absent or of another type is an error, since a table
//! whose schema drifted is not compared row by row. Rows beyond the cut are left out here, and
//! rows closed beyond it are open.

mod bars;
mod stamps;
mod ticks;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use finlake_market::{Ohlcv, Point};
use finlake_schemas::{Dec8, Dec16, Stage};

use crate::gold::{Close, MetricsRow};
use crate::silver::BarRow;
use crate::trades::{BarKey, Names, Rules};

pub use bars::{assertion_columns, assertions, vendor_columns, vendors};
pub use stamps::{STAMPS, Stamps};
pub use ticks::{Bronze, Hashed, IDS, TICKS, TOPIC_ONLY, ids};

/// A column is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {0} is missing or of another type; see SCHEMA_DRIFT")]
pub struct BadColumn(pub String);

type Result<T> = std::result::Result<T, BadColumn>;

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch
        .column_by_name(name)
        .ok_or_else(|| BadColumn(name.to_owned()))
}

macro_rules! numbers {
    ($name:ident, $ty:ty, $native:ty) => {
        fn $name<'a>(batch: &'a RecordBatch, name: &str) -> Result<Numbers<'a, $native>> {
            let array = column(batch, name)?
                .as_primitive_opt::<$ty>()
                .ok_or_else(|| BadColumn(name.to_owned()))?;
            Ok(Numbers {
                values: array.values(),
                array: (array.null_count() > 0).then_some(array as &dyn Array),
            })
        }
    };
}

/// A column of numbers with its nulls.
#[derive(Clone, Copy)]
struct Numbers<'a, T> {
    values: &'a [T],
    /// Only where there are nulls.
    array: Option<&'a dyn Array>,
}

// A call per value would be a sixth of a reconciliation: the compiler does not inline these by itself.
impl<T: Copy> Numbers<'_, T> {
    #[inline(always)]
    fn get(&self, at: usize) -> Option<T> {
        if self.array.is_some_and(|a| a.is_null(at)) {
            return None;
        }
        Some(self.values[at])
    }

    #[inline(always)]
    fn or(&self, at: usize, default: T) -> T {
        self.get(at).unwrap_or(default)
    }
}

numbers!(longs, Int64Type, i64);
numbers!(ints, Int32Type, i32);
numbers!(dates, Date32Type, i32);
numbers!(instants, TimestampMicrosecondType, i64);
numbers!(decimals, Decimal128Type, i128);
numbers!(doubles, Float64Type, f64);

/// A dictionary column of texts.
struct Texts<'a> {
    keys: &'a [i32],
    nulls: Option<&'a dyn Array>,
    values: Vec<Option<&'a str>>,
}

impl<'a> Texts<'a> {
    fn of(batch: &'a RecordBatch, name: &str) -> Result<Texts<'a>> {
        let bad = || BadColumn(name.to_owned());
        let dictionary = column(batch, name)?
            .as_dictionary_opt::<Int32Type>()
            .ok_or_else(bad)?;
        let values = dictionary.values().as_string_opt::<i32>().ok_or_else(bad)?;
        let keys = dictionary.keys();
        Ok(Texts {
            keys: keys.values(),
            nulls: (keys.null_count() > 0).then_some(keys as &dyn Array),
            values: values.iter().collect(),
        })
    }

    #[inline(always)]
    fn get(&self, at: usize) -> Option<&'a str> {
        let id = self.id(at);
        if id < 0 {
            return None;
        }
        self.values[id as usize]
    }

    /// The dictionary's number, −1 for null.
    #[inline(always)]
    fn id(&self, at: usize) -> i32 {
        if self.nulls.is_some_and(|a| a.is_null(at)) {
            return -1;
        }
        self.keys[at]
    }
}

/// The number of each row's instrument; looked up only where it changes.
struct Symbols<'a> {
    sources: Texts<'a>,
    symbols: Texts<'a>,
    last: Option<((i32, i32), u32)>,
}

impl<'a> Symbols<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Symbols<'a>> {
        Ok(Symbols {
            sources: Texts::of(batch, "source")?,
            symbols: Texts::of(batch, "symbol")?,
            last: None,
        })
    }

    #[inline(always)]
    fn number(&mut self, at: usize, names: &mut Names) -> u32 {
        let met = (self.sources.id(at), self.symbols.id(at));
        if let Some((of, number)) = self.last
            && of == met
        {
            return number;
        }
        let (source, symbol) = (self.sources.get(at), self.symbols.get(at));
        let number = names.id(source.unwrap_or_default(), symbol.unwrap_or_default());
        self.last = Some((met, number));
        number
    }
}

fn flags<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a arrow::array::BooleanArray> {
    column(batch, name)?
        .as_boolean_opt()
        .ok_or_else(|| BadColumn(name.to_owned()))
}

fn flag(array: &arrow::array::BooleanArray, at: usize) -> Option<bool> {
    array.is_valid(at).then(|| array.value(at))
}

/// What is read of Silver.
pub const BARS: &[&str] = &[
    "tick_id",
    "source",
    "symbol",
    "bar_interval",
    "bar_start",
    "bar_end",
    "trade_date",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trade_count",
    "taker_buy_base",
    "taker_buy_quote",
    "vwap",
    "first_trade_time",
    "first_trade_id",
    "last_trade_time",
    "last_trade_id",
    "stage",
    "revision",
    "origin",
    "valid_from",
    "valid_to",
    "sys_from",
    "sys_to",
    "is_current",
    "prev_sys_from",
    "commit",
    "ticks_offset",
    "bars_offset",
    "kafka_partition",
    "kafka_offset",
];

fn uuid(text: Option<&str>) -> Option<[u8; 16]> {
    uuid::Uuid::parse_str(text?)
        .ok()
        .map(uuid::Uuid::into_bytes)
}

/// Appends the rows of a batch of Silver, by partition; intervals that are not configured are
/// left out and counted.
///
/// # Errors
/// [`BadColumn`].
pub fn bars(
    batch: &RecordBatch,
    rules: &Rules,
    names: &mut Names,
    until: &dyn Fn(usize) -> i64,
    open_end: i64,
    out: &mut [Vec<BarRow>],
) -> Result<u64> {
    let tick_ids = column(batch, "tick_id")?;
    let id_texts = Plain::of(tick_ids, "tick_id")?;
    let mut symbols = Symbols::of(batch)?;
    let intervals = Texts::of(batch, "bar_interval")?;
    let stages = Texts::of(batch, "stage")?;
    let origins = Texts::of(batch, "origin")?;
    let t = |name: &str| instants(batch, name);
    let l = |name: &str| longs(batch, name);
    let d = |name: &str| decimals(batch, name);
    let (start, end) = (t("bar_start")?, t("bar_end")?);
    let date = dates(batch, "trade_date")?;
    let (open, high, low, close) = (d("open")?, d("high")?, d("low")?, d("close")?);
    let (volume, quote, vwap) = (d("volume")?, d("quote_volume")?, d("vwap")?);
    let (buy_base, buy_quote) = (d("taker_buy_base")?, d("taker_buy_quote")?);
    let count = l("trade_count")?;
    let (first_time, first_id) = (t("first_trade_time")?, l("first_trade_id")?);
    let (last_time, last_id) = (t("last_trade_time")?, l("last_trade_id")?);
    let revision = ints(batch, "revision")?;
    let (valid_from, valid_to) = (t("valid_from")?, t("valid_to")?);
    let (sys_from, sys_to) = (t("sys_from")?, t("sys_to")?);
    let (prev, current) = (t("prev_sys_from")?, flags(batch, "is_current")?);
    let (commit, ticks_offset) = (l("commit")?, l("ticks_offset")?);
    let bars_offset = l("bars_offset")?;
    let (partition, kafka_offset) = (ints(batch, "kafka_partition")?, l("kafka_offset")?);
    let list = rules.intervals.list();
    let mut others = 0;
    for at in 0..batch.num_rows() {
        let p = usize::try_from(partition.or(at, -1)).unwrap_or(usize::MAX);
        if p >= out.len() {
            return Err(BadColumn("kafka_partition".into()));
        }
        let (from, limit) = (sys_from.or(at, 0), until(p));
        if from > limit {
            continue;
        }
        let interval = intervals.get(at).unwrap_or_default();
        let Some(k) = list.iter().position(|i| i.name() == interval) else {
            others += 1;
            continue;
        };
        let symbol = symbols.number(at, names);
        let to = sys_to.or(at, 0);
        let beyond = to > limit && to != open_end;
        out[p].push(BarRow {
            key: BarKey {
                symbol,
                interval: k as u8,
                start: start.or(at, i64::MIN),
            },
            bar_end: end.or(at, 0),
            trade_date: date.or(at, 0),
            tick_id: uuid(id_texts.get(at)),
            content: Ohlcv {
                first: Point {
                    time: first_time.or(at, 0),
                    id: first_id.or(at, 0),
                },
                last: Point {
                    time: last_time.or(at, 0),
                    id: last_id.or(at, 0),
                },
                open: Dec8(open.or(at, 0)),
                high: Dec8(high.or(at, 0)),
                low: Dec8(low.or(at, 0)),
                close: Dec8(close.or(at, 0)),
                volume: Dec8(volume.or(at, 0)),
                quote_volume: Dec16(quote.or(at, 0)),
                trade_count: count.or(at, 0),
                taker_buy_base: Dec8(buy_base.or(at, 0)),
                taker_buy_quote: Dec16(buy_quote.or(at, 0)),
            },
            vwap: vwap.or(at, 0),
            stage: stages.get(at).and_then(Stage::from_symbol),
            from_trades: origins.get(at) == Some("trades"),
            revision: revision.or(at, 0),
            valid_from: valid_from.or(at, 0),
            valid_to: valid_to.or(at, 0),
            sys_from: from,
            sys_to: if beyond { open_end } else { to },
            is_current: beyond || flag(current, at).unwrap_or(false),
            prev_sys_from: prev.get(at),
            commit: commit.or(at, 0),
            ticks_offset: ticks_offset.or(at, 0),
            bars_offset: bars_offset.or(at, 0),
            kafka_offset: kafka_offset.or(at, 0),
        });
    }
    Ok(others)
}

/// A text column with or without a dictionary.
enum Plain<'a> {
    Strings(&'a arrow::array::StringArray),
    Dictionary(
        &'a arrow::array::Int32DictionaryArray,
        &'a arrow::array::StringArray,
    ),
}

impl<'a> Plain<'a> {
    fn of(array: &'a ArrayRef, name: &str) -> Result<Plain<'a>> {
        if let Some(strings) = array.as_string_opt::<i32>() {
            return Ok(Plain::Strings(strings));
        }
        let bad = || BadColumn(name.to_owned());
        let dictionary = array.as_dictionary_opt::<Int32Type>().ok_or_else(bad)?;
        let values = dictionary.values().as_string_opt::<i32>().ok_or_else(bad)?;
        Ok(Plain::Dictionary(dictionary, values))
    }

    fn get(&self, at: usize) -> Option<&'a str> {
        match self {
            Plain::Strings(s) => s.is_valid(at).then(|| s.value(at)),
            Plain::Dictionary(d, values) => d.key(at).map(|k| values.value(k)),
        }
    }
}

/// What is read of Silver for Gold: closed daily bars.
pub const CLOSES: &[&str] = &[
    "source",
    "symbol",
    "trade_date",
    "close",
    "stage",
    "sys_from",
    "sys_to",
    "kafka_partition",
];

/// Appends closed daily bars.
///
/// # Errors
/// [`BadColumn`].
pub fn closes(
    batch: &RecordBatch,
    names: &mut Names,
    until: &dyn Fn(usize) -> i64,
    open_end: i64,
    out: &mut Vec<Close>,
) -> Result<()> {
    let mut symbols = Symbols::of(batch)?;
    let stages = Texts::of(batch, "stage")?;
    let date = dates(batch, "trade_date")?;
    let close = decimals(batch, "close")?;
    let (sys_from, sys_to) = (instants(batch, "sys_from")?, instants(batch, "sys_to")?);
    let partition = ints(batch, "kafka_partition")?;
    for at in 0..batch.num_rows() {
        let limit = until(usize::try_from(partition.or(at, 0)).unwrap_or(0));
        let from = sys_from.or(at, 0);
        if from > limit || stages.get(at) != Some("closed") {
            continue;
        }
        let to = sys_to.or(at, 0);
        out.push(Close {
            symbol: symbols.number(at, names),
            date: date.or(at, 0),
            close: close.or(at, 0),
            sys_from: from,
            sys_to: if to > limit { open_end } else { to },
        });
    }
    Ok(())
}

/// Appends the rows of a batch of Gold. `windows` as configured.
///
/// # Errors
/// [`BadColumn`].
pub fn metrics(
    batch: &RecordBatch,
    windows: &[u16],
    names: &mut Names,
    until: &dyn Fn(usize) -> i64,
    open_end: i64,
    out: &mut Vec<MetricsRow>,
) -> Result<()> {
    let ids = Plain::of(column(batch, "metric_id")?, "metric_id")?;
    let mut symbols = Symbols::of(batch)?;
    let date = dates(batch, "trade_date")?;
    let close = decimals(batch, "close")?;
    let t = |name: &str| instants(batch, name);
    let (observations, commit) = (longs(batch, "observations")?, longs(batch, "commit")?);
    let periods = ints(batch, "periods")?;
    let (return_1, risk_free) = (doubles(batch, "return_1")?, doubles(batch, "risk_free")?);
    let (valid_from, valid_to) = (t("valid_from")?, t("valid_to")?);
    let (sys_from, sys_to, prev) = (t("sys_from")?, t("sys_to")?, t("prev_sys_from")?);
    let current = flags(batch, "is_current")?;
    let (partition, offset) = (
        ints(batch, "kafka_partition")?,
        longs(batch, "kafka_offset")?,
    );
    let revision = ints(batch, "revision")?;
    let mut of = Vec::new();
    for n in windows {
        let c = |what: &str| doubles(batch, &format!("{what}_{n}"));
        of.push((*n, [c("return")?, c("volatility")?, c("sharpe")?]));
    }
    for at in 0..batch.num_rows() {
        let limit = until(usize::try_from(partition.or(at, 0)).unwrap_or(0));
        let from = sys_from.or(at, 0);
        if from > limit {
            continue;
        }
        let to = sys_to.or(at, 0);
        let beyond = to > limit && to != open_end;
        out.push(MetricsRow {
            symbol: symbols.number(at, names),
            date: date.or(at, 0),
            metric_id: uuid(ids.get(at)),
            close: close.or(at, 0),
            observations: observations.or(at, -1),
            return_1: return_1.get(at),
            windows: of
                .iter()
                .map(|(n, c)| (*n, [c[0].get(at), c[1].get(at), c[2].get(at)]))
                .collect(),
            periods: periods.or(at, 0),
            risk_free: risk_free.or(at, f64::NAN),
            revision: revision.or(at, -1),
            valid_from: valid_from.or(at, 0),
            valid_to: valid_to.or(at, 0),
            sys_from: from,
            sys_to: if beyond { open_end } else { to },
            is_current: beyond || flag(current, at).unwrap_or(false),
            prev_sys_from: prev.get(at),
            commit: commit.or(at, 0),
            kafka_offset: offset.or(at, 0),
        });
    }
    Ok(())
}

/// Kafka partitions of the rows that [`metrics`] takes of this batch.
///
/// # Errors
/// [`BadColumn`].
pub fn partitions(batch: &RecordBatch, until: &dyn Fn(usize) -> i64) -> Result<Vec<i32>> {
    let partition = ints(batch, "kafka_partition")?;
    let sys_from = instants(batch, "sys_from")?;
    let all = (0..batch.num_rows()).map(|at| (partition.or(at, 0), sys_from.or(at, 0)));
    Ok(all
        .filter(|(p, from)| *from <= until(usize::try_from(*p).unwrap_or(0)))
        .map(|(p, _)| p)
        .collect())
}

/// What is read of Gold, with these windows.
pub fn metrics_columns(windows: &[u16]) -> Vec<String> {
    let fixed = [
        "metric_id",
        "source",
        "symbol",
        "trade_date",
        "close",
        "observations",
        "return_1",
        "periods",
        "risk_free",
        "revision",
        "valid_from",
        "valid_to",
        "sys_from",
        "sys_to",
        "is_current",
        "prev_sys_from",
        "commit",
        "kafka_partition",
        "kafka_offset",
    ];
    let mut all: Vec<String> = fixed.iter().map(|c| (*c).to_owned()).collect();
    for n in windows {
        for what in ["return", "volatility", "sharpe"] {
            all.push(format!("{what}_{n}"));
        }
    }
    all
}
