//! Rows of `bronze.market_bars`: what people asserted of bars, and vendors' bars.

use super::*;
use crate::asserted::{Asserted, Assertions};

const NAMES: [&str; 4] = ["source", "symbol", "bar_interval", "bar_start"];
const VALUES: [&str; 5] = ["open", "high", "low", "close", "volume"];

/// What is read of assertions.
pub fn assertion_columns() -> Vec<&'static str> {
    let own = ["expected_sys_from", "retracted", "kafka_offset"];
    NAMES.into_iter().chain(VALUES).chain(own).collect()
}

/// What is read of vendors' bars.
pub fn vendor_columns() -> Vec<&'static str> {
    NAMES
        .into_iter()
        .chain(VALUES)
        .chain(["basis", "kafka_offset"])
        .collect()
}

/// What both have.
struct Common<'a> {
    interval: Texts<'a>,
    start: Numbers<'a, i64>,
    values: [Numbers<'a, i128>; 5],
    offset: Numbers<'a, i64>,
}

impl<'a> Common<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Common<'a>> {
        let [_, _, interval, start] = NAMES;
        let [open, high, low, close, volume] = VALUES.map(|name| decimals(batch, name));
        Ok(Common {
            interval: Texts::of(batch, interval)?,
            start: instants(batch, start)?,
            values: [open?, high?, low?, close?, volume?],
            offset: longs(batch, "kafka_offset")?,
        })
    }

    /// Start and values; `None` if a column could not hold one, which the task has refused.
    fn content(&self, at: usize) -> Option<(i64, [i128; 5])> {
        let mut values = [0; 5];
        for (value, column) in values.iter_mut().zip(&self.values) {
            *value = column.get(at)?;
        }
        Some((self.start.get(at)?, values))
    }
}

/// Adds the assertions of a batch about bars of configured intervals.
///
/// # Errors
/// [`BadColumn`].
pub fn assertions(
    batch: &RecordBatch,
    rules: &Rules,
    names: &mut Names,
    out: &mut Assertions,
) -> Result<()> {
    let common = Common::of(batch)?;
    let mut symbols = Symbols::of(batch)?;
    let expected = instants(batch, "expected_sys_from")?;
    let retracted = flags(batch, "retracted")?;
    let list = rules.intervals.list();
    for at in 0..batch.num_rows() {
        let name = common.interval.get(at).unwrap_or_default();
        let interval = list.iter().position(|i| i.name() == name);
        let (Some((start, values)), Some(interval)) = (common.content(at), interval) else {
            continue;
        };
        let [open, high, low, close, volume] = values;
        let key = BarKey {
            symbol: symbols.number(at, names),
            interval: interval as u8,
            start,
        };
        let asserted = Asserted {
            offset: common.offset.or(at, -1),
            expected: expected.get(at),
            retracted: flag(retracted, at) == Some(true),
            open,
            high,
            low,
            close,
            volume,
        };
        out.push(key, asserted);
    }
    Ok(())
}

/// A vendor's bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VendorBar<'a> {
    pub source: &'a str,
    pub symbol: &'a str,
    pub interval: &'a str,
    pub as_quoted: bool,
    pub start: i64,
    /// Open, high, low, close, volume.
    pub values: [i128; 5],
    pub offset: i64,
}

/// Hands on the vendors' bars of a batch that have all their values.
///
/// # Errors
/// [`BadColumn`].
pub fn vendors(batch: &RecordBatch, mut take: impl FnMut(VendorBar<'_>)) -> Result<()> {
    let common = Common::of(batch)?;
    let (source, symbol) = (Texts::of(batch, "source")?, Texts::of(batch, "symbol")?);
    let basis = Texts::of(batch, "basis")?;
    for at in 0..batch.num_rows() {
        let Some((start, values)) = common.content(at) else {
            continue;
        };
        take(VendorBar {
            source: source.get(at).unwrap_or_default(),
            symbol: symbol.get(at).unwrap_or_default(),
            interval: common.interval.get(at).unwrap_or_default(),
            as_quoted: basis.get(at) == Some("as_quoted"),
            start,
            values,
            offset: common.offset.or(at, -1),
        });
    }
    Ok(())
}
