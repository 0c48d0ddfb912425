//! Which records of `market.bars` can be taken: corrections of bars, vendors' bars, corporate
//! actions. The check needs the record alone, so it gives the same answer on a replay; whether a
//! correction still fits the bar it speaks of is the task's to say.

use finlake_schemas::{
    ActionKind, Assertion, BarContent, BarsInput, CorporateAction, Dec8, VendorBar, dlq as class,
};

use crate::interval::{Interval, Intervals};
use crate::ohlcv::{MAX_UNSCALED, Ohlcv, Point};
use crate::validate::{MAX_NAME, OPEN_END, Reject};

/// A checked correction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Correction {
    /// Place of its interval in [`Intervals::list`].
    pub interval: usize,
    /// µs.
    pub start: i64,
    pub content: Ohlcv,
    pub retracted: bool,
    /// System time (µs) and revision of the open version that the sender saw.
    pub expected: Option<(i64, i32)>,
}

/// The largest sum that still leaves room for trades to come.
const HALF: i128 = MAX_UNSCALED / 2;

/// Checks a correction against its record's key and the intervals that are computed.
pub fn correction(
    a: &Assertion<'_>,
    key: Option<&[u8]>,
    intervals: &Intervals,
) -> Result<Correction, Reject> {
    names(a.source, a.symbol, key)?;
    let mut list = intervals.list().iter();
    let Some(interval) = list.position(|i| i.name() == a.bar_interval) else {
        return invalid(format!(
            "bars of `{}` are not computed here: add it to `stream.intervals`, or leave it as it is",
            short(a.bar_interval)
        ));
    };
    let of = &intervals.list()[interval];
    if !(0..OPEN_END).contains(&a.bar_start) || of.start_of(a.bar_start) != a.bar_start {
        return invalid(format!(
            "bar_start {} is not the start of a {of} bar",
            a.bar_start
        ));
    }
    let expected = match (a.expected_sys_from, a.expected_revision) {
        (None, None) => None,
        (Some(sys_from), Some(revision)) if revision >= 0 && (0..OPEN_END).contains(&sys_from) => {
            Some((sys_from, revision))
        }
        other => {
            return invalid(format!(
                "expected_sys_from and expected_revision must both be those of the version that is \
                 replaced, or both be null, they are {other:?}"
            ));
        }
    };
    if a.retracted && expected.is_none() {
        return invalid(
            "nothing can be retracted where no version is expected: state expected_sys_from and \
             expected_revision"
                .to_owned(),
        );
    }
    Ok(Correction {
        interval,
        start: a.bar_start,
        content: content(&a.content, of, a.bar_start)?,
        retracted: a.retracted,
        expected,
    })
}

/// A bar's content that some set of trades could have.
fn content(c: &BarContent, interval: &Interval, start: i64) -> Result<Ohlcv, Reject> {
    let inside = start..start + interval.length();
    let point = |time, id| Point { time, id };
    let bar = Ohlcv {
        first: point(c.first_trade_time, c.first_trade_id),
        last: point(c.last_trade_time, c.last_trade_id),
        open: c.open,
        high: c.high,
        low: c.low,
        close: c.close,
        volume: c.volume,
        quote_volume: c.quote_volume,
        trade_count: c.trade_count,
        taker_buy_base: c.taker_buy_base,
        taker_buy_quote: c.taker_buy_quote,
    };
    prices([c.open, c.high, c.low, c.close])?;
    let parts = [
        (c.volume.0, c.taker_buy_base.0, "volume", "taker_buy_base"),
        (
            c.quote_volume.0,
            c.taker_buy_quote.0,
            "quote_volume",
            "taker_buy_quote",
        ),
    ];
    for (sum, part, whole, of) in parts {
        if sum <= 0 || part < 0 || part > sum {
            return invalid(format!("{whole} must be above zero and {of} a part of it"));
        }
        if sum > HALF {
            return Err(Reject {
                class: class::OVERFLOW,
                message: format!("{whole} leaves no room for a trade to come in decimal(38)"),
            });
        }
    }
    if c.trade_count < 1 || c.trade_count > i64::MAX / 2 {
        return invalid(format!("trade_count {} is none", c.trade_count));
    }
    let ordered = bar.first <= bar.last && bar.first.id >= 0 && bar.last.id >= 0;
    if !(ordered && inside.contains(&bar.first.time) && inside.contains(&bar.last.time)) {
        return invalid(
            "first and last trade must lie in the bar, the first not after the last".to_owned(),
        );
    }
    Ok(bar)
}

/// Checks a vendor's bar or a corporate action.
pub fn other(input: &BarsInput<'_>, key: Option<&[u8]>) -> Result<(), Reject> {
    match input {
        BarsInput::Vendor(bar) => vendor_bar(bar, key),
        BarsInput::Action(action) => corporate_action(action, key),
        BarsInput::Assertion(_) => Ok(()),
    }
}

fn vendor_bar(bar: &VendorBar<'_>, key: Option<&[u8]>) -> Result<(), Reject> {
    names(bar.source, bar.symbol, key)?;
    if let Err(e) = Interval::parse(bar.bar_interval) {
        return invalid(e.to_string());
    }
    if bar.bar_start < 0 || bar.bar_start >= bar.bar_end || bar.bar_end >= OPEN_END {
        return invalid("bar_start must lie before bar_end, both from 1970 on".to_owned());
    }
    prices([bar.open, bar.high, bar.low, bar.close])?;
    if bar.volume.0 < 0 {
        return invalid(format!("volume {} is below zero", bar.volume));
    }
    Ok(())
}

fn corporate_action(action: &CorporateAction<'_>, key: Option<&[u8]>) -> Result<(), Reject> {
    names(action.source, action.symbol, key)?;
    let sound = match action.kind {
        ActionKind::Split => {
            action.ratio_to.0 > 0 && action.ratio_from.0 > 0 && action.amount.0 == 0
        }
        ActionKind::Dividend => action.amount.0 > 0 && action.ratio_to == action.ratio_from,
    };
    if sound {
        return Ok(());
    }
    invalid(format!(
        "a split has a ratio above zero and no amount, a dividend an amount above zero and the ratio \
         1 for 1; this {} has {} for {} and {}",
        action.kind.as_str(),
        action.ratio_to,
        action.ratio_from,
        action.amount
    ))
}

fn prices([open, high, low, close]: [Dec8; 4]) -> Result<(), Reject> {
    let within = |p: Dec8| low.0 <= p.0 && p.0 <= high.0;
    if low.0 > 0 && within(open) && within(close) {
        return Ok(());
    }
    invalid(format!(
        "prices must be above zero and low the least, high the greatest of them: open {open}, high \
         {high}, low {low}, close {close}"
    ))
}

fn names(source: &str, symbol: &str, key: Option<&[u8]>) -> Result<(), Reject> {
    for (what, name) in [("source", source), ("symbol", symbol)] {
        let bad = name.is_empty()
            || name.len() > MAX_NAME
            || name.bytes().any(|b| b < 0x20 || b == 0x7f)
            || (what == "source" && name.contains(':'));
        if bad {
            return invalid(format!(
                "{what} `{}` is empty, longer than {MAX_NAME} bytes, or holds a control character \
                 or a colon",
                short(name).escape_debug()
            ));
        }
    }
    if key.is_some_and(|k| finlake_schemas::keys::is_input(k, source, symbol)) {
        return Ok(());
    }
    Err(Reject {
        class: class::BAD_KEY,
        message: format!("the record key must be `{source}:{symbol}`: send it again with that key"),
    })
}

#[cold]
fn invalid<T>(message: String) -> Result<T, Reject> {
    Err(Reject {
        class: class::INVALID,
        message,
    })
}

/// At most 64 characters, for messages.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use finlake_schemas::{Basis, Dec16};

    use super::*;

    fn intervals() -> Intervals {
        let list: Vec<_> = ["1m", "1h"]
            .iter()
            .map(|n| Interval::parse(n).unwrap())
            .collect();
        Intervals::new(&list).unwrap()
    }

    fn sound() -> Assertion<'static> {
        Assertion {
            assertion_id: [1; 16],
            source: "x",
            symbol: "A:B",
            bar_interval: "1m",
            bar_start: 60_000_000,
            expected_sys_from: Some(5),
            expected_revision: Some(0),
            content: BarContent {
                open: Dec8(3),
                high: Dec8(4),
                low: Dec8(2),
                close: Dec8(2),
                volume: Dec8(10),
                quote_volume: Dec16(30),
                trade_count: 2,
                taker_buy_base: Dec8(0),
                taker_buy_quote: Dec16(0),
                first_trade_time: 60_000_000,
                first_trade_id: 7,
                last_trade_time: 119_999_999,
                last_trade_id: 6,
            },
            retracted: false,
            origin: "replay",
            reason: "",
            sent_at: 0,
        }
    }

    #[test]
    fn a_sound_correction_is_taken() {
        let c = correction(&sound(), Some(b"x:A:B"), &intervals()).unwrap();
        assert_eq!(
            (c.interval, c.start, c.expected),
            (0, 60_000_000, Some((5, 0)))
        );
        assert_eq!(
            c.content.last,
            Point {
                time: 119_999_999,
                id: 6
            }
        );
    }

    #[test]
    fn every_flaw_is_refused() {
        type Flaw = fn(&mut Assertion<'static>);
        let flaws: [(Flaw, &str); 19] = [
            (|a| a.source = "", "invalid"),
            (|a| a.source = "x:y", "invalid"),
            (|a| a.symbol = "A\n", "invalid"),
            (|a| a.symbol = "C", "bad_key"),
            (|a| a.bar_interval = "5m", "invalid"),
            (|a| a.bar_start += 1, "invalid"),
            (|a| a.bar_start = -60_000_000, "invalid"),
            (|a| a.expected_revision = None, "invalid"),
            (|a| a.expected_revision = Some(-1), "invalid"),
            (
                |a| (a.retracted, a.expected_sys_from, a.expected_revision) = (true, None, None),
                "invalid",
            ),
            (|a| a.content.low = Dec8(0), "invalid"),
            (|a| a.content.high = Dec8(1), "invalid"),
            (|a| a.content.close = Dec8(5), "invalid"),
            (|a| a.content.volume = Dec8(0), "invalid"),
            (|a| a.content.taker_buy_quote = Dec16(31), "invalid"),
            (|a| a.content.quote_volume = Dec16(MAX_UNSCALED), "overflow"),
            (|a| a.content.trade_count = 0, "invalid"),
            (|a| a.content.last_trade_time = 120_000_000, "invalid"),
            (|a| a.content.first_trade_time = 119_999_999, "invalid"),
        ];
        for (n, (flaw, expected)) in flaws.into_iter().enumerate() {
            let mut a = sound();
            flaw(&mut a);
            let refused = correction(&a, Some(b"x:A:B"), &intervals()).unwrap_err();
            assert_eq!(refused.class, expected, "{n}: {}", refused.message);
        }
        assert!(correction(&sound(), None, &intervals()).is_err());
    }

    #[test]
    fn vendors_records_are_looked_at_too() {
        let bar = VendorBar {
            source: "yahoo",
            symbol: "NVDA",
            bar_interval: "1d",
            bar_start: 0,
            bar_end: 1,
            trade_date: 0,
            open: Dec8(1),
            high: Dec8(1),
            low: Dec8(1),
            close: Dec8(1),
            volume: Dec8(0),
            basis: Basis::AsQuoted,
            basis_at: None,
            ingest_time: None,
        };
        let key = Some(&b"yahoo:NVDA"[..]);
        assert_eq!(other(&BarsInput::Vendor(bar), key), Ok(()));
        let backwards = VendorBar { bar_end: 0, ..bar };
        assert!(other(&BarsInput::Vendor(backwards), key).is_err());
        let cheap = VendorBar {
            low: Dec8(2),
            ..bar
        };
        assert!(other(&BarsInput::Vendor(cheap), key).is_err());
        let split = CorporateAction {
            source: "yahoo",
            symbol: "NVDA",
            ex_date: 1,
            kind: ActionKind::Split,
            ratio_to: Dec8(10),
            ratio_from: Dec8(1),
            amount: Dec8(0),
            currency: None,
            retracted: false,
            ingest_time: None,
        };
        assert_eq!(other(&BarsInput::Action(split), key), Ok(()));
        let dividend = CorporateAction {
            kind: ActionKind::Dividend,
            ..split
        };
        assert!(other(&BarsInput::Action(dividend), key).is_err());
        assert!(other(&BarsInput::Action(split), Some(b"yahoo:AMD")).is_err());
    }
}
