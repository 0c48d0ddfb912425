//! The records, field by field in the order of our newest schemas. A test holds the two equal.

use super::cursor::{Cursor, Fault, UNFIT};
use super::plan::{Wire, skip};
use super::slot::{Record, Slot, branch, enumeration};
use crate::records::{
    ActionKind, Assertion, Bar, BarContent, Basis, Break, BreakKind, BreakStatus, CorporateAction,
    InputRange, Kline, LedgerEntry, Metrics, Origin, OutputCount, Severity, Stage, Tick, VendorBar,
    WindowMetrics,
};

enumeration!(
    Stage,
    Origin,
    Basis,
    ActionKind,
    BreakKind,
    Severity,
    BreakStatus
);

macro_rules! record {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl<'a> Slot<'a> for $type {
            fn zero() -> Self {
                Self { $($field: Slot::zero()),+ }
            }

            #[inline]
            fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
                Self::prefix(c, usize::MAX)
            }

            fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
                let Wire::Record(steps) = branch(c, wire)? else {
                    return Err(UNFIT);
                };
                let mut record = Self::zero();
                for step in steps {
                    let Some(field) = step.field else {
                        skip(c, &step.wire)?;
                        continue;
                    };
                    let mut at = 0u16;
                    $(
                        if field == at {
                            record.$field = Slot::via(c, &step.wire)
                                .map_err(|fault| fault.at(stringify!($field)))?;
                        }
                        at += 1;
                    )+
                    let _ = at;
                }
                Ok(record)
            }

            #[inline]
            fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
                $( self.$field.put(out).map_err(|fault| fault.at(stringify!($field)))?; )+
                Ok(())
            }
        }

        impl<'a> Record<'a> for $type {
            #[cfg(test)]
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),+];

            #[inline(always)]
            fn prefix(c: &mut Cursor<'a>, fields: usize) -> Result<Self, Fault> {
                let mut read = 0;
                let record = Self {
                    $($field: {
                        read += 1;
                        if read <= fields {
                            Slot::own(c).map_err(|fault: Fault| fault.at(stringify!($field)))?
                        } else {
                            Slot::zero()
                        }
                    }),+
                };
                Ok(record)
            }
        }
    };
}

record!(Tick<'a> {
    source, symbol, trade_id, price, quantity, trade_time,
    event_time, buyer_maker, ingest_time, first_trade_id, last_trade_id,
});

record!(Bar<'a> {
    source, symbol, bar_interval, bar_start, bar_end, trade_date, tick_id,
    open, high, low, close, volume, quote_volume, trade_count,
    taker_buy_base, taker_buy_quote, vwap,
    first_trade_time, first_trade_id, last_trade_time, last_trade_id,
    stage, revision, origin, basis, basis_at, retracted,
    commit, ticks_offset, bars_offset, sys_from, prev_sys_from,
});

record!(WindowMetrics {
    n,
    ret,
    volatility,
    sharpe
});

record!(Metrics<'a> {
    source, symbol, trade_date, metric_id, close, observations, return_1, windows,
    periods, risk_free, valid_from, revision, retracted,
    commit, ticks_offset, bars_offset, sys_from, prev_sys_from,
});

record!(InputRange {
    topic,
    start,
    end,
    records,
    hash,
    accepted,
    duplicates,
    rejected,
    skipped,
});

record!(OutputCount { topic, count, hash });

record!(LedgerEntry {
    app_id,
    task,
    commit,
    system_time,
    stream_times,
    inputs,
    outputs,
    corrections,
    totals,
    schema_ids,
    prev_hash,
    last,
    heartbeat,
});

record!(VendorBar<'a> {
    source, symbol, bar_interval, bar_start, bar_end, trade_date,
    open, high, low, close, volume, basis, basis_at, ingest_time,
});

record!(Kline<'a> {
    source, symbol, bar_interval, bar_start, bar_end,
    open, high, low, close, volume, trade_count,
    quote_volume, taker_buy_base, taker_buy_quote, closed, event_time, ingest_time,
});

record!(CorporateAction<'a> {
    source, symbol, ex_date, kind, ratio_to, ratio_from, amount, currency, retracted, ingest_time,
});

record!(BarContent {
    open,
    high,
    low,
    close,
    volume,
    quote_volume,
    trade_count,
    taker_buy_base,
    taker_buy_quote,
    first_trade_time,
    first_trade_id,
    last_trade_time,
    last_trade_id,
});

record!(Assertion<'a> {
    assertion_id, source, symbol, bar_interval, bar_start, expected_sys_from, expected_revision,
    content, retracted, origin, reason, sent_at,
});

record!(Break {
    break_id,
    kind,
    severity,
    layer,
    table,
    key,
    cause,
    source,
    symbol,
    trade_date,
    status,
    expected,
    actual,
    detail,
    found_by,
    system_time,
});

/// A named number: a record of a text and a long, whatever the schema calls them.
impl<'a> Slot<'a> for (String, i64) {
    fn zero() -> Self {
        (String::new(), 0)
    }
    fn own(c: &mut Cursor<'a>) -> Result<Self, Fault> {
        Ok((Slot::own(c)?, Slot::own(c)?))
    }
    fn via(c: &mut Cursor<'a>, wire: &Wire) -> Result<Self, Fault> {
        let Wire::Record(steps) = branch(c, wire)? else {
            return Err(UNFIT);
        };
        let mut pair = Self::zero();
        for step in steps {
            match step.field {
                Some(0) => pair.0 = Slot::via(c, &step.wire)?,
                Some(1) => pair.1 = Slot::via(c, &step.wire)?,
                _ => skip(c, &step.wire)?,
            }
        }
        Ok(pair)
    }
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.0.put(out)?;
        self.1.put(out)
    }
}
