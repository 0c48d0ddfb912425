//! What the bars processor remembers, in memory and in its store.
//!
//! Store keys: `S ‖ source:symbol` is the symbol's record with its open bars; `B ‖ source:symbol ‖
//! 0 ‖ minutes (u32) ‖ start (i64)`, big-endian, is a closed bar; `T ‖ source` is stream time;
//! `K ‖ source:symbol ‖ 0 ‖ until (i64) ‖ start (i64)` is a 1m bar that came back by a correction
//! and leaves when the symbol's latest trade has reached `until`. A symbol's open bars lie together because every trade changes all of them: one write per commit.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use finlake_market::interval::MINUTE;
use finlake_market::{Ohlcv, Point};
use finlake_schemas::{Dec8, Dec16};
use finlake_topology::Micros;
use finlake_topology::state::Versioned;
use finlake_topology::state::codec::{Body, CodecError};

/// The newest version of a bar that was emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Emitted {
    pub revision: i32,
    pub sys_from: Micros,
    pub closed: bool,
    /// It took the bar back: the table has no open row.
    pub retracted: bool,
}

/// A bar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub start: i64,
    pub content: Ohlcv,
    pub emitted: Option<Emitted>,
    /// The content differs from the newest version's.
    pub changed: bool,
    /// The content differs from what `.live` shows.
    pub live_due: bool,
    /// System time of the last correction, 0 if there was none.
    pub corrected_at: Micros,
    /// The bar holds no longer; the content is what held.
    pub retracted: bool,
    /// It had left the store and came back by a correction: it stays until its symbol's latest
    /// trade has reached this time. 0 for all others.
    pub kept_until: i64,
    /// A correction from market.bars goes out with this commit.
    pub urgent: bool,
    /// Surrogate id, once it was needed.
    pub id: Option<[u8; 16]>,
}

impl Cell {
    pub fn new(start: i64, content: Ohlcv) -> Self {
        Self {
            start,
            content,
            emitted: None,
            changed: true,
            live_due: true,
            corrected_at: 0,
            retracted: false,
            kept_until: 0,
            urgent: false,
            id: None,
        }
    }

    /// The version that the next one replaces, as the table has it: none after a retraction.
    pub fn open_version(&self) -> Option<Emitted> {
        self.emitted.filter(|e| !e.retracted)
    }

    /// Emitted as closed, whatever happened since.
    pub fn was_closed(&self) -> bool {
        self.emitted.is_some_and(|e| e.closed)
    }
}

/// A symbol's bars. The fields that every trade touches come first.
pub(crate) struct Symbol {
    /// Trades of one bucket of the grid that are not yet in the bars.
    pub delta: Option<Ohlcv>,
    /// That bucket; empty if there is no delta.
    pub grid: (i64, i64),
    /// The symbol's own latest accepted trade.
    pub latest: i64,
    /// Which of the processor's sources.
    pub source: u32,
    pub source_len: u16,
    /// Listed to be looked at in this commit.
    pub visiting: bool,
    /// The record must be written.
    pub dirty: bool,
    /// Waits for its turn on `.live`.
    pub waiting: bool,
    /// When its forming bars last went to `.live`.
    pub live_at: Micros,
    /// 1m bars that end up to here are deleted.
    pub swept: i64,
    /// The forming bar of each interval: the bucket that holds stream time.
    pub open: Box<[Option<Cell>]>,
    /// Closed bars in hand, by (interval, start): changed in this commit, or waiting for their
    /// correction.
    pub closed: BTreeMap<(usize, i64), Cell>,
    /// `source:symbol`.
    pub name: Box<str>,
}

/// No bucket.
pub(crate) const NO_GRID: (i64, i64) = (i64::MIN, i64::MIN);

impl Symbol {
    pub fn new(name: &str, source: u32, source_len: u16, intervals: usize) -> Self {
        Self {
            delta: None,
            grid: NO_GRID,
            latest: i64::MIN,
            source,
            source_len,
            visiting: false,
            dirty: false,
            waiting: false,
            live_at: 0,
            swept: 0,
            open: vec![None; intervals].into_boxed_slice(),
            closed: BTreeMap::new(),
            name: name.into(),
        }
    }

    /// Nothing in hand that the store does not find again by itself.
    pub fn is_idle(&self) -> bool {
        self.closed.is_empty() && !self.waiting && self.open.iter().all(Option::is_none)
    }
}

/// A bar as stored.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BarValue {
    first: (i64, i64),
    last: (i64, i64),
    open: i128,
    high: i128,
    low: i128,
    close: i128,
    volume: i128,
    quote_volume: i128,
    trade_count: i64,
    taker_buy_base: i128,
    taker_buy_quote: i128,
    emitted: Option<Emitted>,
    changed: bool,
    live_due: bool,
    corrected_at: i64,
    retracted: bool,
    kept_until: i64,
}

impl From<&Cell> for BarValue {
    fn from(cell: &Cell) -> Self {
        let c = &cell.content;
        Self {
            first: (c.first.time, c.first.id),
            last: (c.last.time, c.last.id),
            open: c.open.0,
            high: c.high.0,
            low: c.low.0,
            close: c.close.0,
            volume: c.volume.0,
            quote_volume: c.quote_volume.0,
            trade_count: c.trade_count,
            taker_buy_base: c.taker_buy_base.0,
            taker_buy_quote: c.taker_buy_quote.0,
            emitted: cell.emitted,
            changed: cell.changed,
            live_due: cell.live_due,
            corrected_at: cell.corrected_at,
            retracted: cell.retracted,
            kept_until: cell.kept_until,
        }
    }
}

impl BarValue {
    /// See [`Cell::kept_until`].
    pub fn kept_until(&self) -> i64 {
        self.kept_until
    }

    pub fn into_cell(self, start: i64) -> Cell {
        let point = |(time, id)| Point { time, id };
        Cell {
            start,
            content: Ohlcv {
                first: point(self.first),
                last: point(self.last),
                open: Dec8(self.open),
                high: Dec8(self.high),
                low: Dec8(self.low),
                close: Dec8(self.close),
                volume: Dec8(self.volume),
                quote_volume: Dec16(self.quote_volume),
                trade_count: self.trade_count,
                taker_buy_base: Dec8(self.taker_buy_base),
                taker_buy_quote: Dec16(self.taker_buy_quote),
            },
            emitted: self.emitted,
            changed: self.changed,
            live_due: self.live_due,
            corrected_at: self.corrected_at,
            retracted: self.retracted,
            kept_until: self.kept_until,
            urgent: false,
            id: None,
        }
    }
}

impl Versioned for BarValue {
    const WHAT: &'static str = "bar";
    const VERSION: u8 = 2;

    fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
        match body.version() {
            1 => body.read::<v1::BarValue>().map(BarValue::from),
            2 => body.read(),
            _ => body.unknown(),
        }
    }
}

/// A symbol as stored. Intervals go by their length in minutes, so that a changed configuration
/// still reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SymbolValue {
    /// Bytes of the source in the key; validation bounds names far below 2^16.
    pub source_len: u16,
    pub latest: i64,
    pub swept: i64,
    /// Forming bars: minutes, start, bar.
    pub open: Vec<(u32, i64, BarValue)>,
    /// Closed bars that wait for their correction: minutes, start.
    pub pending: Vec<(u32, i64)>,
}

impl Versioned for SymbolValue {
    const WHAT: &'static str = "symbol";
    const VERSION: u8 = 2;

    fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
        match body.version() {
            1 => body.read::<v1::SymbolValue>().map(SymbolValue::from),
            2 => body.read(),
            _ => body.unknown(),
        }
    }
}

/// Values as they were before corrections came by market.bars.
mod v1 {
    use bincode::Decode;

    #[derive(Decode)]
    pub struct Emitted {
        revision: i32,
        sys_from: i64,
        closed: bool,
    }

    #[derive(Decode)]
    pub struct BarValue {
        first: (i64, i64),
        last: (i64, i64),
        open: i128,
        high: i128,
        low: i128,
        close: i128,
        volume: i128,
        quote_volume: i128,
        trade_count: i64,
        taker_buy_base: i128,
        taker_buy_quote: i128,
        emitted: Option<Emitted>,
        changed: bool,
        live_due: bool,
        corrected_at: i64,
    }

    #[derive(Decode)]
    pub struct SymbolValue {
        source_len: u16,
        latest: i64,
        swept: i64,
        open: Vec<(u32, i64, BarValue)>,
        pending: Vec<(u32, i64)>,
    }

    impl From<BarValue> for super::BarValue {
        fn from(v: BarValue) -> Self {
            Self {
                first: v.first,
                last: v.last,
                open: v.open,
                high: v.high,
                low: v.low,
                close: v.close,
                volume: v.volume,
                quote_volume: v.quote_volume,
                trade_count: v.trade_count,
                taker_buy_base: v.taker_buy_base,
                taker_buy_quote: v.taker_buy_quote,
                emitted: v.emitted.map(|e| super::Emitted {
                    revision: e.revision,
                    sys_from: e.sys_from,
                    closed: e.closed,
                    retracted: false,
                }),
                changed: v.changed,
                live_due: v.live_due,
                corrected_at: v.corrected_at,
                retracted: false,
                kept_until: 0,
            }
        }
    }

    impl From<SymbolValue> for super::SymbolValue {
        fn from(v: SymbolValue) -> Self {
            let open = v.open.into_iter();
            Self {
                source_len: v.source_len,
                latest: v.latest,
                swept: v.swept,
                open: open.map(|(m, start, bar)| (m, start, bar.into())).collect(),
                pending: v.pending,
            }
        }
    }
}

/// Stream time as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct TimeValue(pub i64);

impl Versioned for TimeValue {
    const WHAT: &'static str = "stream time";
    const VERSION: u8 = 1;

    fn decode_body(body: Body<'_>) -> Result<Self, CodecError> {
        match body.version() {
            1 => body.read(),
            _ => body.unknown(),
        }
    }
}

/// First bytes of the store's keys; `CHUNK` is the dedup's, the ledger's one key begins with `l`.
pub(crate) const CHUNK: u8 = b'D';
pub(crate) const SYMBOL: u8 = b'S';
pub(crate) const BAR: u8 = b'B';
pub(crate) const TIME: u8 = b'T';
pub(crate) const KEPT: u8 = b'K';

/// `prefix ‖ name`.
pub(crate) fn name_key(prefix: u8, name: &[u8], key: &mut Vec<u8>) {
    key.clear();
    key.push(prefix);
    key.extend_from_slice(name);
}

/// Key of a closed bar.
pub(crate) fn bar_key(name: &str, minutes: u32, start: i64, key: &mut Vec<u8>) {
    name_key(BAR, name.as_bytes(), key);
    key.push(0);
    key.extend_from_slice(&minutes.to_be_bytes());
    // Starts are not negative: a trade lies in 1970 or later, so byte order is time order.
    key.extend_from_slice(&start.to_be_bytes());
}

/// Key of the note that a 1m bar leaves when its symbol's latest trade has reached `until`.
pub(crate) fn kept_key(name: &str, until: i64, start: i64, key: &mut Vec<u8>) {
    name_key(KEPT, name.as_bytes(), key);
    key.push(0);
    key.extend_from_slice(&until.max(0).to_be_bytes());
    key.extend_from_slice(&start.to_be_bytes());
}

/// Length of an interval in minutes, as in keys and records.
pub(crate) fn minutes(length: i64) -> u32 {
    // At most 9,999 days.
    (length / MINUTE) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell() -> Cell {
        Cell {
            start: 60_000_000,
            content: Ohlcv {
                first: Point { time: 1, id: 2 },
                last: Point { time: 3, id: 400 },
                open: Dec8(5),
                high: Dec8(6),
                low: Dec8(-7),
                close: Dec8(8),
                volume: Dec8(9),
                quote_volume: Dec16(1 << 100),
                trade_count: 11,
                taker_buy_base: Dec8(12),
                taker_buy_quote: Dec16(13),
            },
            emitted: Some(Emitted {
                revision: 2,
                sys_from: 14,
                closed: true,
                retracted: false,
            }),
            changed: true,
            live_due: false,
            corrected_at: 15,
            retracted: false,
            kept_until: 0,
            urgent: false,
            id: None,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
        let pairs = digits.chunks(2);
        pairs.map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
    }

    /// Frozen: stores and changelogs hold these bytes.
    #[test]
    fn fixtures() {
        let bar = BarValue::from(&cell());
        let content = "020406fb20030a0c0d1012fe0000000000000000000000002000000016181a01";
        let v1 = format!("01{content}041c0101001e");
        assert_eq!(BarValue::from_bytes(&bytes(&v1)).unwrap(), bar);
        let v2 = format!("02{content}041c010001001e0000");
        assert_eq!(hex(&bar.to_bytes().unwrap()), v2);
        let corrected = BarValue {
            retracted: true,
            kept_until: 16,
            ..bar.clone()
        };
        let text = format!("02{content}041c010001001e0120");
        assert_eq!(hex(&corrected.to_bytes().unwrap()), text);
        let symbol = SymbolValue {
            source_len: 7,
            latest: 1,
            swept: 2,
            open: vec![(1440, 3, bar.clone())],
            pending: vec![(1, 4)],
        };
        let text = hex(&symbol.to_bytes().unwrap());
        assert_eq!(text, format!("0207020401fba00506{}010108", &v2[2..]));
        let old = format!("0107020401fba00506{}010108", &v1[2..]);
        assert_eq!(SymbolValue::from_bytes(&bytes(&old)).unwrap(), symbol);
        assert_eq!(hex(&TimeValue(-1).to_bytes().unwrap()), "0101");
    }

    #[test]
    fn what_is_written_is_read() {
        let bar = BarValue::from(&cell());
        let read = BarValue::from_bytes(&bar.to_bytes().unwrap()).unwrap();
        assert_eq!(read.into_cell(60_000_000), cell());
        assert!(BarValue::from_bytes(&[2]).is_err());
        assert!(BarValue::from_bytes(&[3]).is_err());
        assert!(SymbolValue::from_bytes(&[]).is_err());
    }

    #[test]
    fn bar_keys_sort_by_time_within_an_interval() {
        let key = |minutes, start| {
            let mut key = Vec::new();
            bar_key("s:a", minutes, start, &mut key);
            key
        };
        assert!(key(1, 0) < key(1, 60_000_000));
        assert!(key(1, i64::MAX) < key(60, 0));
        let mut longer = Vec::new();
        bar_key("s:a1", 1, 0, &mut longer);
        assert!(key(u32::MAX, i64::MAX) < longer);
    }
}
