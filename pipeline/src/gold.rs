//! Daily statistics that follow the closed daily bars, version by version, in the same commit.
//!
//! The store holds one record per symbol and date under `source:symbol ‖ 0 ‖ date (big-endian)`:
//! the close, and of the newest version its revision, system time and a hash of its content, so
//! that only values that changed are sent again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bincode::{Decode, Encode};
use finlake_market::gold::{GoldValues, values};
use finlake_market::interval::DAY;
use finlake_schemas::{Bar, Dec8, Metrics, Stage, WindowMetrics, hash128, keys};
use finlake_topology::state::Versioned;
use finlake_topology::state::codec::{Body, CodecError};
use finlake_topology::{Context, Failure, Forward, Micros, Processor, SinkId};

use crate::config::Plan;
use crate::ledger::Counts;
use crate::{BARS, Market, Msg, TICKS};

const STORE: usize = 0;

/// The newest version of a date's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct Emitted {
    revision: i32,
    sys_from: Micros,
    content: u128,
}

/// A date as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct DayValue {
    close: i128,
    emitted: Option<Emitted>,
    /// The daily bar was taken back: no window sees the close, and the table has no open row.
    retracted: bool,
}

/// As it was before bars could be taken back.
#[derive(Decode)]
struct DayValueV1 {
    close: i128,
    emitted: Option<Emitted>,
}

impl Versioned for DayValue {
    const WHAT: &'static str = "daily close";
    const VERSION: u8 = 2;

    fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
        match body.version() {
            1 => body.read::<DayValueV1>().map(|v| DayValue {
                close: v.close,
                emitted: v.emitted,
                retracted: false,
            }),
            2 => body.read(),
            _ => body.unknown(),
        }
    }
}

/// A date with its place in the series.
type Day = (i32, DayValue);

pub(crate) struct Gold {
    plan: Arc<Plan>,
    counts: Counts,
    sink: SinkId,
    /// Closes emitted in this commit, by (source, symbol) and date.
    changed: BTreeMap<(String, String), BTreeMap<i32, Change>>,
}

/// A daily close, or that it is one no longer.
#[derive(Clone, Copy)]
struct Change {
    close: Dec8,
    retracted: bool,
}

impl Gold {
    pub fn new(plan: Arc<Plan>, counts: Counts, sink: SinkId) -> Self {
        Self {
            plan,
            counts,
            sink,
            changed: BTreeMap::new(),
        }
    }

    fn note(&mut self, bar: &Bar<'_>) {
        let list = self.plan.intervals.list();
        let daily = bar.bar_interval == list[self.plan.intervals.daily()].name();
        if daily && bar.stage == Stage::Closed {
            let key = (bar.source.to_owned(), bar.symbol.to_owned());
            let dates = self.changed.entry(key).or_default();
            let (close, retracted) = (bar.close, bar.retracted);
            dates.insert(bar.trade_date, Change { close, retracted });
        }
    }

    /// Recomputes every date whose windows hold a changed close.
    fn symbol(
        &self,
        ctx: &mut Context<'_>,
        source: &str,
        symbol: &str,
        changed: &BTreeMap<i32, Change>,
    ) -> Result<(), Failure> {
        let (Some((&first, _)), Some((&last, _))) =
            (changed.first_key_value(), changed.last_key_value())
        else {
            return Ok(());
        };
        let reach = self.plan.config.gold.reach();
        let prefix = prefix(source, symbol);
        let mut days: BTreeMap<i32, DayValue> = BTreeMap::new();
        days.extend(before(ctx, &prefix, first, reach)?);
        days.extend(from(ctx, &prefix, first, last, reach)?);
        for (&date, change) in changed {
            let day = days.entry(date).or_insert(DayValue {
                close: change.close.0,
                emitted: None,
                retracted: false,
            });
            day.close = change.close.0;
            day.retracted = change.retracted;
        }
        // The closes that hold, oldest first.
        let mut closes: Vec<Dec8> = Vec::with_capacity(days.len());
        // How many dates from here on still see the last changed close.
        let mut seen = 0;
        for (date, mut day) in days {
            let changed_here = changed.contains_key(&date);
            if changed_here {
                // One that was taken back is missed by as many as would have seen it.
                let after = match self.plan.config.faults.correction_not_carried {
                    false => reach,
                    true => 0,
                };
                seen = after + usize::from(!day.retracted);
            }
            if day.retracted {
                if changed_here {
                    self.take_back(ctx, source, symbol, date, &mut day)?;
                    let value = day.to_bytes().map_err(Failure::fatal)?;
                    ctx.put(STORE, &day_key(&prefix, date), &value);
                }
                continue;
            }
            closes.push(Dec8(day.close));
            if seen == 0 {
                continue;
            }
            seen -= 1;
            let window = &closes[closes.len().saturating_sub(reach + 1)..];
            let values = values(window, &self.plan.config.gold);
            let sent = self.send(ctx, source, symbol, date, &mut day, &values)?;
            if sent || changed_here {
                let value = day.to_bytes().map_err(Failure::fatal)?;
                ctx.put(STORE, &day_key(&prefix, date), &value);
            }
        }
        Ok(())
    }

    /// Sends a date's row if it says something new.
    fn send(
        &self,
        ctx: &mut Context<'_>,
        source: &str,
        symbol: &str,
        date: i32,
        day: &mut DayValue,
        values: &GoldValues,
    ) -> Result<bool, Failure> {
        let row = self.row(source, symbol, date, day, values);
        let content = content_of(&row);
        if day.emitted.is_some_and(|e| e.content == content) {
            return Ok(false);
        }
        self.emit(ctx, day, row, content)?;
        Ok(true)
    }

    /// A date's row, but for what its commit adds.
    fn row<'a>(
        &self,
        source: &'a str,
        symbol: &'a str,
        date: i32,
        day: &DayValue,
        values: &GoldValues,
    ) -> Metrics<'a> {
        let config = &self.plan.config.gold;
        Metrics {
            source,
            symbol,
            trade_date: date,
            metric_id: keys::metrics_id(source, symbol, date),
            close: Dec8(day.close),
            observations: values.observations.into(),
            return_1: values.return_1,
            windows: values
                .windows
                .iter()
                .map(|w| WindowMetrics {
                    n: w.n.into(),
                    ret: w.ret,
                    volatility: w.volatility,
                    sharpe: w.sharpe,
                })
                .collect(),
            periods: config.periods.into(),
            risk_free: config.risk_free,
            valid_from: (i64::from(date) + 1) * DAY,
            revision: 0,
            retracted: false,
            commit: 0,
            ticks_offset: 0,
            bars_offset: 0,
            sys_from: 0,
            prev_sys_from: None,
        }
    }

    /// Retracts a date's row, if it has an open one. Its values are of no consequence.
    fn take_back(
        &self,
        ctx: &mut Context<'_>,
        source: &str,
        symbol: &str,
        date: i32,
        day: &mut DayValue,
    ) -> Result<(), Failure> {
        if day.emitted.is_none_or(|e| e.content == RETRACTED) {
            return Ok(());
        }
        let none = values(&[Dec8(day.close)], &self.plan.config.gold);
        let mut row = self.row(source, symbol, date, day, &none);
        row.retracted = true;
        self.emit(ctx, day, row, RETRACTED)
    }

    /// Sends a row as the next version.
    fn emit(
        &self,
        ctx: &mut Context<'_>,
        day: &mut DayValue,
        mut row: Metrics<'_>,
        content: u128,
    ) -> Result<(), Failure> {
        row.revision = day.emitted.map_or(0, |e| e.revision.saturating_add(1));
        row.commit = ctx.commit();
        row.ticks_offset = ctx.position(TICKS);
        row.bars_offset = ctx.position(BARS);
        row.sys_from = ctx.system_time();
        let open = day.emitted.filter(|e| e.content != RETRACTED);
        row.prev_sys_from = open.map(|e| e.sys_from);
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let codec = &self.plan.codec;
        keys::metrics(row.source, row.symbol, row.trade_date, &mut key);
        codec
            .encode_metrics(&row, &mut value)
            .map_err(Failure::fatal)?;
        ctx.produce(self.sink, &key, &value, &[])?;
        ctx.count(self.counts.metrics_retracted, i64::from(row.retracted));
        day.emitted = Some(Emitted {
            revision: row.revision,
            sys_from: row.sys_from,
            content,
        });
        Ok(())
    }
}

/// Stands for the content of a row that was taken back; no hash in practice.
const RETRACTED: u128 = 0;

/// Hash of what a row says, without revision, system times, commit and offsets. Doubles go in by
/// their bits: the same closes give the same bits.
fn content_of(row: &Metrics<'_>) -> u128 {
    let mut bytes = Vec::with_capacity(128);
    let mut put = |value: Option<f64>| {
        bytes.push(u8::from(value.is_some()));
        bytes.extend_from_slice(&value.unwrap_or(0.0).to_bits().to_le_bytes());
    };
    put(row.return_1);
    put(Some(row.risk_free));
    for w in &row.windows {
        put(Some(f64::from(w.n)));
        put(w.ret);
        put(w.volatility);
        put(w.sharpe);
    }
    bytes.extend_from_slice(&row.close.0.to_le_bytes());
    bytes.extend_from_slice(&row.observations.to_le_bytes());
    bytes.extend_from_slice(&row.periods.to_le_bytes());
    bytes.push(u8::from(row.retracted));
    hash128(&[], &bytes)
}

fn prefix(source: &str, symbol: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    keys::input(source, symbol, &mut key);
    key.push(0);
    key
}

/// Dates are not negative (trades lie in 1970 or later), so byte order is time order.
fn day_key(prefix: &[u8], date: i32) -> Vec<u8> {
    let mut key = prefix.to_vec();
    key.extend_from_slice(&date.max(0).to_be_bytes());
    key
}

/// At least the last `count` days that hold before `date`, if there are as many.
fn before(ctx: &Context<'_>, prefix: &[u8], date: i32, count: usize) -> Result<Vec<Day>, Failure> {
    // Markets close on some days: ask for a longer span until there are enough.
    let mut span = i32::try_from(count).unwrap_or(i32::MAX).saturating_mul(2);
    loop {
        let start = date.saturating_sub(span).max(0);
        let (from, to) = (day_key(prefix, start), day_key(prefix, date));
        let mut days = Vec::new();
        scan(ctx, &from, &to, |day| {
            days.push(day);
            true
        })?;
        let holding = days.iter().filter(|(_, day)| !day.retracted);
        if holding.count() >= count || start == 0 {
            return Ok(days);
        }
        span = span.saturating_mul(4);
    }
}

/// The days from `first` to `last`, and `more` that hold after that.
fn from(
    ctx: &Context<'_>,
    prefix: &[u8],
    first: i32,
    last: i32,
    more: usize,
) -> Result<Vec<Day>, Failure> {
    let mut days = Vec::new();
    let mut left = more;
    let end = day_key(prefix, i32::MAX);
    scan(ctx, &day_key(prefix, first), &end, |day| {
        if day.0 > last {
            if left == 0 {
                return false;
            }
            left -= usize::from(!day.1.retracted);
        }
        days.push(day);
        true
    })?;
    Ok(days)
}

fn scan(
    ctx: &Context<'_>,
    from: &[u8],
    to: &[u8],
    mut each: impl FnMut(Day) -> bool,
) -> Result<(), Failure> {
    let mut broken = None;
    ctx.scan(STORE, from, Some(to), &mut |key, value| {
        let date = key.last_chunk::<4>().map(|b| i32::from_be_bytes(*b));
        match (date, DayValue::from_bytes(value)) {
            (Some(date), Ok(day)) if each((date, day)) => ControlFlow::Continue(()),
            (Some(_), Ok(_)) => ControlFlow::Break(()),
            (_, Err(e)) => {
                broken = Some(Failure::fatal(e));
                ControlFlow::Break(())
            }
            (None, _) => {
                broken = Some(Failure::fatal("daily close: damaged key in the store"));
                ControlFlow::Break(())
            }
        }
    })?;
    broken.map_or(Ok(()), Err)
}

impl Processor<Market> for Gold {
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        msg: Msg<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        if let Msg::Version(bar) = msg {
            self.note(bar);
        }
        out.forward(ctx, msg)
    }

    fn prepare_commit(
        &mut self,
        ctx: &mut Context<'_>,
        _out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        for ((source, symbol), dates) in std::mem::take(&mut self.changed) {
            self.symbol(ctx, &source, &symbol, &dates)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.changed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: stores and changelogs hold these bytes.
    #[test]
    fn day_fixture() {
        let day = DayValue {
            close: 300,
            emitted: Some(Emitted {
                revision: 1,
                sys_from: 2,
                content: 3,
            }),
            retracted: false,
        };
        let v1 = b"\x01\xfb\x58\x02\x01\x02\x04\x03";
        assert_eq!(DayValue::from_bytes(v1).unwrap(), day);
        let v2 = b"\x02\xfb\x58\x02\x01\x02\x04\x03\x00";
        assert_eq!(day.to_bytes().unwrap(), v2);
        assert_eq!(DayValue::from_bytes(v2).unwrap(), day);
        assert!(DayValue::from_bytes(b"\x09").is_err());
    }
}
