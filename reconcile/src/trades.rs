//! Recomputing bars from Bronze: the pipeline's own validation, dedup and fold over one slice of
//! input rows, in offset order, so that every version of a bar can be compared with exactly the
//! trades it reflects.
//!
//! Pure. A slice is all rows of one Kafka partition whose trade time lies in a span that no bar
//! straddles. Each Silver version says how far into the input it looked (`ticks_offset`), so a
//! live stream has no race: the trades before that offset must give its content, whatever came
//! after. Trades of one bucket of the common grid are folded once and merged into every interval
//! and version afterwards, as the task does.
//!
//! Must never: take the first row it meets for the first that arrived, or look at a hash table's
//! order.

mod cells;

use std::collections::{BTreeMap, BTreeSet};

use finlake_market::interval::MINUTE;
use finlake_market::ohlcv::ORDINARY;
use finlake_market::validate::validate_values;
use finlake_market::{Intervals, Limits, Ohlcv, Point, SeenIds, Trade};
use finlake_schemas::{Dec8, Dec16, Tick};
use rustc_hash::FxHashMap;

use cells::{Cells, Late, Room};

/// What the pipeline computes by.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    pub intervals: Intervals,
    pub limits: Limits,
    /// How long 1m bars stay correctable behind their symbol's latest trade, µs.
    pub retention_1m: i64,
}

impl Rules {
    /// Length of the spans into which input is cut, µs: the longest interval, at least a day.
    pub fn span(&self) -> i64 {
        let day = finlake_market::interval::DAY;
        let mut span = day;
        for i in self.intervals.list() {
            // Whole days, or divisors of one.
            span = lcm(span, i.length().max(day));
        }
        span
    }
}

fn lcm(a: i64, b: i64) -> i64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Numbers for (source, symbol), given out in order of first sight.
#[derive(Debug, Clone, Default)]
pub struct Names {
    list: Vec<(String, String)>,
    known: FxHashMap<(String, String), u32>,
}

impl Names {
    /// The number of an instrument.
    pub fn id(&mut self, source: &str, symbol: &str) -> u32 {
        let name = (source.to_owned(), symbol.to_owned());
        if let Some(id) = self.known.get(&name) {
            return *id;
        }
        // Instruments fit 32 bits.
        let id = self.list.len() as u32;
        self.list.push(name.clone());
        self.known.insert(name, id);
        id
    }

    /// Source and symbol of a number.
    pub fn get(&self, id: u32) -> (&str, &str) {
        let (source, symbol) = &self.list[id as usize];
        (source, symbol)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// None yet.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

const VALID: u8 = 1;
const TAKER_BUY: u8 = 2;
const MAKER_KNOWN: u8 = 4;
/// `price` is an index into [`Slice::big`].
const BIG: u8 = 8;
const RANGE_KNOWN: u8 = 16;

/// One input record, 64 bytes: a slice of tens of millions has to fit in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub offset: i64,
    /// Trade time, µs.
    pub time: i64,
    pub id: i64,
    price: i64,
    quantity: i64,
    pub commit: i64,
    pub symbol: u32,
    trades: u32,
    flags: u8,
}

/// A record as Bronze has it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub offset: i64,
    /// Kafka timestamp, ms.
    pub timestamp_ms: i64,
    pub commit: i64,
    /// Its key, source and symbol pass [`finlake_market::validate::names_hold`].
    pub named: bool,
    pub tick: Tick<'a>,
}

/// Input rows of one partition and span, of all its instruments or of some.
#[derive(Debug, Clone, Default)]
pub struct Slice {
    rows: Vec<Row>,
    /// Price and quantity of trades that do not fit 64 bits.
    big: Vec<(i128, i128)>,
}

impl Slice {
    /// Adds a record; `symbol` is its instrument's number.
    #[inline]
    pub fn push(&mut self, symbol: u32, record: &Record<'_>, rules: &Rules) {
        let tick = &record.tick;
        let valid = record
            .named
            .then(|| validate_values(tick, record.timestamp_ms, &rules.limits));
        let mut row = Row {
            offset: record.offset,
            time: tick.trade_time,
            id: tick.trade_id,
            price: 0,
            quantity: 0,
            commit: record.commit,
            symbol,
            trades: 0,
            flags: 0,
        };
        if tick.buyer_maker.is_some() {
            row.flags |= MAKER_KNOWN;
        }
        if tick.first_trade_id.is_some() {
            row.flags |= RANGE_KNOWN;
        }
        if let Some(Ok(trade)) = &valid {
            row.flags |= VALID;
            if trade.taker_buy {
                row.flags |= TAKER_BUY;
            }
            // At most 10^9, as validated.
            row.trades = trade.trades as u32;
        }
        match (i64::try_from(tick.price.0), i64::try_from(tick.quantity.0)) {
            (Ok(price), Ok(quantity)) => (row.price, row.quantity) = (price, quantity),
            _ => {
                row.price = self.big.len() as i64;
                row.flags |= BIG;
                self.big.push((tick.price.0, tick.quantity.0));
            }
        }
        self.rows.push(row);
    }

    /// Makes room, so that rows are not moved as their number grows.
    pub fn reserve(&mut self, rows: usize) {
        self.rows.reserve_exact(rows);
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows; in offset order after [`Slice::order`].
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Least offset and the one after the greatest.
    pub fn offsets(&self) -> Option<(i64, i64)> {
        let mut all = self.rows.iter().map(|r| r.offset);
        let first = all.next()?;
        let (lo, hi) = all.fold((first, first), |(lo, hi), o| (lo.min(o), hi.max(o)));
        Some((lo, hi.saturating_add(1)))
    }

    /// Brings the rows into offset order. Rows of one instrument come by time, which is nearly that
    /// order; those of many are nearly dense, and then every row has its place.
    pub fn order(&mut self) {
        if self.rows.is_sorted_by_key(|r| r.offset) {
            return;
        }
        let Some((lo, hi)) = self.offsets() else {
            return;
        };
        let n = self.rows.len();
        // Offsets are those of one partition's log.
        let span = hi.abs_diff(lo);
        // An offset that nobody gave out leaves no room for an end.
        if hi == i64::MAX || span > 4 * n as u64 + 1024 || n > u32::MAX as usize {
            self.sort();
            return;
        }
        let mut place = vec![u32::MAX; span as usize];
        for (at, row) in self.rows.iter().enumerate() {
            let slot = &mut place[(row.offset - lo) as usize];
            if *slot != u32::MAX {
                // An offset that stands twice: the slow way keeps both.
                self.sort();
                return;
            }
            *slot = at as u32;
        }
        let rows = place
            .iter()
            .filter(|at| **at != u32::MAX)
            .map(|at| self.rows[*at as usize]);
        self.rows = rows.collect();
    }

    /// The rows are four times as large as what orders them.
    fn sort(&mut self) {
        let mut order: Vec<(i64, usize)> = self.rows.iter().map(|r| r.offset).zip(0..).collect();
        order.sort_unstable();
        self.rows = order.into_iter().map(|(_, at)| self.rows[at]).collect();
    }

    /// Price and quantity, unscaled.
    pub fn amounts(&self, row: &Row) -> (i128, i128) {
        if row.flags & BIG != 0 {
            self.big[row.price as usize]
        } else {
            (row.price.into(), row.quantity.into())
        }
    }

    /// Whether two rows of one id say the same about the trade. What one of them does not say
    /// (an older schema) is no contradiction.
    pub fn same_content(&self, a: &Row, b: &Row) -> bool {
        let both = a.flags & b.flags;
        a.time == b.time
            && self.amounts(a) == self.amounts(b)
            && (both & MAKER_KNOWN == 0 || a.flags & TAKER_BUY == b.flags & TAKER_BUY)
            && (both & RANGE_KNOWN == 0 || a.trades == b.trades)
    }

    #[inline]
    fn trade(&self, row: &Row) -> Trade {
        let (price, quantity) = self.amounts(row);
        Trade {
            at: Point {
                time: row.time,
                id: row.id,
            },
            price: Dec8(price),
            quantity: Dec8(quantity),
            // Validated: the product fits.
            quote: Dec16(price * quantity),
            taker_buy: row.flags & TAKER_BUY != 0,
            trades: row.trades.into(),
        }
    }
}

impl Row {
    /// So large that it may be refused for want of room in its bars: only such trades are kept
    /// apart in [`Slice::big`] or come near it.
    fn is_extraordinary(&self) -> bool {
        self.flags & BIG != 0 || i128::from(self.price) * i128::from(self.quantity) >= ORDINARY
    }

    /// The pipeline takes it for a trade, if it was not seen before.
    pub fn is_valid(&self) -> bool {
        self.flags & VALID != 0
    }
}

/// Which bar: instrument, interval (its place in [`Rules::intervals`]), start in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarKey {
    pub symbol: u32,
    pub interval: u8,
    pub start: i64,
}

/// The input offsets (exclusive) that the known versions of each bar reflect.
#[derive(Debug, Clone, Default)]
pub struct Cuts {
    /// Sorted by bar, then offset; each once.
    all: Vec<(BarKey, i64)>,
    of: FxHashMap<BarKey, (u32, u32)>,
}

impl Cuts {
    /// From the versions of a table, in any order.
    pub fn new(mut all: Vec<(BarKey, i64)>) -> Cuts {
        all.sort_unstable();
        all.dedup();
        let mut of = FxHashMap::default();
        let mut from = 0;
        for group in all.chunk_by(|a, b| a.0 == b.0) {
            of.insert(group[0].0, (from, from + group.len() as u32));
            from += group.len() as u32;
        }
        Cuts { all, of }
    }

    fn of(&self, key: BarKey) -> &[(BarKey, i64)] {
        match self.of.get(&key) {
            Some((a, b)) => &self.all[*a as usize..*b as usize],
            None => &[],
        }
    }
}

/// What the pipeline must have done with the rows of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub records: i64,
    pub accepted: i64,
    pub duplicates: i64,
    pub rejected: i64,
}

impl Counted {
    /// Adds what another part of the commit's rows came to.
    pub fn add(&mut self, other: Counted) {
        self.records += other.records;
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.rejected += other.rejected;
    }
}

/// What one bar must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub key: BarKey,
    /// Per known version: its input offset and the trades before it. `None`: none yet.
    pub at: Vec<(i64, Option<Ohlcv>)>,
    /// All trades of the slice.
    pub total: Option<Ohlcv>,
    /// The same with trades that came too late for a 1m bar, where there are any: what a replay
    /// makes of it.
    pub replayed: Option<(Vec<Option<Ohlcv>>, Ohlcv)>,
    /// Offset and commit of the last trade that counts.
    pub last_offset: i64,
    pub last_commit: i64,
}

/// An id that two input records bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SameId {
    pub symbol: u32,
    pub id: i64,
    /// Offset of the one that counts.
    pub first: i64,
    pub other: i64,
}

/// The result for one slice.
#[derive(Debug, Clone, Default)]
pub struct Folded {
    /// By key.
    pub bars: Vec<Expected>,
    /// By commit.
    pub counts: BTreeMap<i64, Counted>,
    /// Offsets that stand more than once.
    pub doubled: Vec<i64>,
    /// Ids that two records of different content bear.
    pub two_contents: Vec<SameId>,
    /// Ids that were seen in another slice: which record counts is not known here. Resolve them
    /// and fold again with the losers excluded.
    pub elsewhere: Vec<(u32, i64)>,
    /// Newest accepted trade time per source's instruments, µs.
    pub latest: BTreeMap<u32, i64>,
}

/// Ids of accepted trades in the slices folded so far, per instrument, as runs with both ends
/// included.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    runs: Vec<Vec<(i64, i64)>>,
}

impl Seen {
    /// Maximal runs of the ids of an instrument, ascending. Between them are the feed's gaps.
    pub fn runs(&self, symbol: u32) -> &[(i64, i64)] {
        self.runs.get(symbol as usize).map_or(&[], Vec::as_slice)
    }

    /// Adds the ids of a slice; gives those that were there.
    pub(crate) fn absorb(&mut self, symbol: u32, new: &[(i64, i64)]) -> Vec<i64> {
        let at = symbol as usize;
        if self.runs.len() <= at {
            self.runs.resize_with(at + 1, Vec::new);
        }
        let old = &mut self.runs[at];
        let mut both = Vec::new();
        let (mut i, mut j) = (0, 0);
        while i < old.len() && j < new.len() {
            let (from, to) = (old[i].0.max(new[j].0), old[i].1.min(new[j].1));
            both.extend(from..=to);
            if old[i].1 < new[j].1 {
                i += 1;
            } else {
                j += 1;
            }
        }
        old.extend_from_slice(new);
        old.sort_unstable();
        old.dedup_by(|run, before| {
            let joins = run.0 <= before.1.saturating_add(1);
            if joins {
                before.1 = before.1.max(run.1);
            }
            joins
        });
        both
    }
}

/// Facts from outside the slice.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// Offsets in this slice whose id is borne by an earlier record of another slice.
    pub losers: BTreeSet<i64>,
    /// Ids of those and of their winners: known to stand in several slices.
    pub settled: BTreeSet<(u32, i64)>,
    /// (instrument, trade time, offset) of valid rows so much newer than this slice that they may
    /// make its rows too late.
    pub newer: Vec<(u32, i64, i64)>,
}

struct Cell {
    symbol: u32,
    bucket: i64,
    /// Offsets for which no known version of any bar makes a difference.
    lo: i64,
    hi: i64,
    late: bool,
    content: Ohlcv,
    last_offset: i64,
    last_commit: i64,
    next: u32,
}

const NONE: u32 = u32::MAX;

/// Folds a slice. The rows are brought into offset order.
///
/// # Errors
/// The name of a sum that left its column; validated trades cannot do that.
pub fn fold(
    slice: &mut Slice,
    rules: &Rules,
    cuts: &Cuts,
    seen: &mut Seen,
    outside: &Outside,
) -> Result<Folded, finlake_market::Overflow> {
    slice.order();
    let slice = &*slice;
    let mut out = Folded::default();
    let late = Late::new(&outside.newer, rules);
    let mut room = Room::default();
    let mut cells = Cells::new(rules, cuts);
    let mut here: Vec<SeenIds> = Vec::new();
    let mut duplicates: Vec<u32> = Vec::new();
    let mut current: (i64, Counted) = (i64::MIN, Counted::default());
    let mut before = i64::MIN;
    for (at, row) in slice.rows.iter().enumerate() {
        if row.offset == before {
            if out.doubled.last() != Some(&row.offset) {
                out.doubled.push(row.offset);
            }
            continue;
        }
        before = row.offset;
        if row.commit != current.0 {
            tally(&mut out.counts, current);
            current = (row.commit, Counted::default());
        }
        let counted = &mut current.1;
        counted.records += 1;
        if !row.is_valid() {
            counted.rejected += 1;
            continue;
        }
        let symbol = row.symbol as usize;
        if here.len() <= symbol {
            here.resize_with(symbol + 1, SeenIds::new);
        }
        if !outside.losers.is_empty() && outside.losers.contains(&row.offset)
            || (row.is_extraordinary() && here[symbol].contains(row.id))
            || (!row.is_extraordinary() && !here[symbol].insert(row.id))
        {
            counted.duplicates += 1;
            duplicates.push(at as u32);
            continue;
        }
        let trade = slice.trade(row);
        if !trade.is_ordinary() && !room.take(rules, row.symbol, &trade) {
            counted.rejected += 1;
            continue;
        }
        if row.is_extraordinary() {
            // An id counts as seen only if its trade was taken.
            here[symbol].insert(row.id);
        }
        room.note(rules, row.symbol, &trade);
        counted.accepted += 1;
        let newest = out.latest.entry(row.symbol).or_insert(i64::MIN);
        *newest = (*newest).max(row.time);
        cells.add(row, &trade, late.is_too_late(row))?;
    }
    tally(&mut out.counts, current);
    for (symbol, ids) in here.iter().enumerate().filter(|(_, ids)| !ids.is_empty()) {
        // Instruments are numbered with 32 bits.
        let symbol = symbol as u32;
        let again = seen.absorb(symbol, &ids.runs());
        let unknown = again.into_iter().map(|id| (symbol, id));
        out.elsewhere
            .extend(unknown.filter(|id| !outside.settled.contains(id)));
    }
    out.two_contents = two_contents(slice, &duplicates);
    out.bars = cells.bars()?;
    Ok(out)
}

fn tally(counts: &mut BTreeMap<i64, Counted>, (commit, n): (i64, Counted)) {
    if n.records > 0 {
        counts.entry(commit).or_default().add(n);
    }
}

/// Looks at the first record of every id that came again. Only slices with duplicates pay for it.
fn two_contents(slice: &Slice, duplicates: &[u32]) -> Vec<SameId> {
    if duplicates.is_empty() {
        return Vec::new();
    }
    let mut firsts: FxHashMap<(u32, i64), Option<u32>> = FxHashMap::default();
    for at in duplicates {
        let row = &slice.rows[*at as usize];
        firsts.insert((row.symbol, row.id), None);
    }
    for (at, row) in slice.rows.iter().enumerate() {
        if row.is_valid()
            && let Some(first @ None) = firsts.get_mut(&(row.symbol, row.id))
        {
            *first = Some(at as u32);
        }
    }
    let mut out = Vec::new();
    for at in duplicates {
        let row = &slice.rows[*at as usize];
        let Some(Some(first)) = firsts.get(&(row.symbol, row.id)) else {
            continue;
        };
        let first = &slice.rows[*first as usize];
        if first.offset != row.offset && !slice.same_content(first, row) {
            out.push(SameId {
                symbol: row.symbol,
                id: row.id,
                first: first.offset,
                other: row.offset,
            });
        }
    }
    out
}

#[cfg(test)]
mod tests;
