//! Trades by bucket of the common grid, and the two rules of the task that need to know what came before: too late, no room.

use super::*;

/// Which trades came after their 1m bar had left the store.
pub(super) struct Late {
    /// Per instrument: (trade time descending, least offset of this and all newer ones).
    newer: BTreeMap<u32, Vec<(i64, i64)>>,
    retention: i64,
}

impl Late {
    pub(super) fn new(newer: &[(u32, i64, i64)], rules: &Rules) -> Late {
        let mut sorted = newer.to_vec();
        sorted.sort_unstable_by(|a, b| (a.0, b.1, a.2).cmp(&(b.0, a.1, b.2)));
        let mut by_symbol: BTreeMap<u32, Vec<(i64, i64)>> = BTreeMap::new();
        for (symbol, time, offset) in sorted {
            let list = by_symbol.entry(symbol).or_default();
            let least = list.last().map_or(offset, |l| l.1.min(offset));
            list.push((time, least));
        }
        Late {
            newer: by_symbol,
            retention: rules.retention_1m,
        }
    }

    /// The task's rule: the 1m bar's end lies at or before the latest accepted trade minus the
    /// retention, at the moment the trade arrived.
    #[inline]
    pub(super) fn is_too_late(&self, row: &Row) -> bool {
        if self.newer.is_empty() {
            return false;
        }
        let end = row.time - row.time.rem_euclid(MINUTE) + MINUTE;
        let needed = end.saturating_add(self.retention);
        self.newer.get(&row.symbol).is_some_and(|list| {
            let n = list.partition_point(|(time, _)| *time >= needed);
            n > 0 && list[n - 1].1 < row.offset
        })
    }
}

/// The task's check of trades so large that sums could leave their columns. Bars are kept here
/// only once such a trade has been met: what ordinary ones before it add up to is too small to matter
/// beside half a column.
#[derive(Default)]
pub(super) struct Room {
    bars: BTreeMap<BarKey, Ohlcv>,
    watched: bool,
}

impl Room {
    /// Whether an extraordinary trade is accepted.
    #[cold]
    pub(super) fn take(&mut self, rules: &Rules, symbol: u32, trade: &Trade) -> bool {
        self.watched = true;
        rules.intervals.list().iter().enumerate().all(|(k, i)| {
            let key = BarKey {
                symbol,
                interval: k as u8,
                start: i.start_of(trade.at.time),
            };
            match self.bars.get(&key) {
                Some(bar) => bar.has_room(trade),
                None => trade.has_room(),
            }
        })
    }

    #[inline]
    pub(super) fn note(&mut self, rules: &Rules, symbol: u32, trade: &Trade) {
        if self.watched {
            self.follow(rules, symbol, trade);
        }
    }

    #[cold]
    pub(super) fn follow(&mut self, rules: &Rules, symbol: u32, trade: &Trade) {
        for (k, i) in rules.intervals.list().iter().enumerate() {
            let key = BarKey {
                symbol,
                interval: k as u8,
                start: i.start_of(trade.at.time),
            };
            match self.bars.get_mut(&key) {
                Some(bar) => {
                    // An overflow shows in the cells.
                    let _ = bar.fold(trade);
                }
                None => {
                    self.bars.insert(key, Ohlcv::of(trade));
                }
            }
        }
    }
}

/// Trades by bucket of the grid, split where a known version's offset falls between them.
pub(super) struct Cells<'a> {
    rules: &'a Rules,
    cuts: &'a Cuts,
    grid: i64,
    list: Vec<Cell>,
    /// First cell of each (instrument, bucket); the others follow by `next`.
    first: FxHashMap<(u32, i64), u32>,
    /// Per instrument: the cell of its last trade.
    last: Vec<u32>,
}

impl<'a> Cells<'a> {
    pub(super) fn new(rules: &'a Rules, cuts: &'a Cuts) -> Cells<'a> {
        Cells {
            rules,
            cuts,
            grid: rules.intervals.grid(),
            list: Vec::new(),
            first: FxHashMap::default(),
            last: Vec::new(),
        }
    }

    #[inline]
    pub(super) fn add(
        &mut self,
        row: &Row,
        trade: &Trade,
        late: bool,
    ) -> Result<(), finlake_market::Overflow> {
        let symbol = row.symbol as usize;
        if self.last.len() <= symbol {
            self.last.resize(symbol + 1, NONE);
        }
        let at = self.last[symbol];
        if at != NONE {
            let cell = &mut self.list[at as usize];
            if row.time >= cell.bucket
                && row.time < cell.bucket + self.grid
                && row.offset < cell.hi
                && row.offset >= cell.lo
                && cell.late == late
            {
                cell.last_offset = row.offset;
                cell.last_commit = row.commit;
                return cell.content.fold(trade);
            }
        }
        self.elsewhere(row, trade, late)
    }

    pub(super) fn elsewhere(
        &mut self,
        row: &Row,
        trade: &Trade,
        late: bool,
    ) -> Result<(), finlake_market::Overflow> {
        let bucket = row.time - row.time.rem_euclid(self.grid);
        let slot = (row.symbol, bucket);
        let mut at = self.first.get(&slot).copied().unwrap_or(NONE);
        while at != NONE {
            let cell = &mut self.list[at as usize];
            if cell.late == late && (cell.lo..cell.hi).contains(&row.offset) {
                self.last[row.symbol as usize] = at;
                cell.last_offset = row.offset;
                cell.last_commit = row.commit;
                return cell.content.fold(trade);
            }
            at = cell.next;
        }
        let (lo, hi) = self.bounds(row, bucket);
        let new = self.list.len() as u32;
        let next = self.first.insert(slot, new).unwrap_or(NONE);
        self.list.push(Cell {
            symbol: row.symbol,
            bucket,
            lo,
            hi,
            late,
            content: Ohlcv::of(trade),
            last_offset: row.offset,
            last_commit: row.commit,
            next,
        });
        self.last[row.symbol as usize] = new;
        Ok(())
    }

    /// The offsets around the row's between which no version of any of its bars cuts.
    pub(super) fn bounds(&self, row: &Row, bucket: i64) -> (i64, i64) {
        let (mut lo, mut hi) = (i64::MIN, i64::MAX);
        for (k, i) in self.rules.intervals.list().iter().enumerate() {
            let of = self.cuts.of(BarKey {
                symbol: row.symbol,
                interval: k as u8,
                start: i.start_of(bucket),
            });
            let n = of.partition_point(|(_, cut)| *cut <= row.offset);
            if n > 0 {
                lo = lo.max(of[n - 1].1);
            }
            if let Some((_, cut)) = of.get(n) {
                hi = hi.min(*cut);
            }
        }
        (lo, hi)
    }

    /// Merges the cells into the bars of every interval, version by version.
    pub(super) fn bars(&self) -> Result<Vec<Expected>, finlake_market::Overflow> {
        let mut parts: Vec<(BarKey, u32)> = Vec::new();
        for (k, i) in self.rules.intervals.list().iter().enumerate() {
            for (at, cell) in self.list.iter().enumerate() {
                let key = BarKey {
                    symbol: cell.symbol,
                    interval: k as u8,
                    start: i.start_of(cell.bucket),
                };
                parts.push((key, at as u32));
            }
        }
        // By bar; within one the order of cells is that of their making, and does not matter.
        parts.sort_unstable();
        let mut bars = Vec::new();
        for group in parts.chunk_by(|a, b| a.0 == b.0) {
            bars.push(self.bar(group)?);
        }
        Ok(bars)
    }

    pub(super) fn bar(
        &self,
        group: &[(BarKey, u32)],
    ) -> Result<Expected, finlake_market::Overflow> {
        let key = group[0].0;
        let cuts = self.cuts.of(key);
        let minute = self.rules.intervals.list()[usize::from(key.interval)].length() == MINUTE;
        // Per version: trades since the version before; one more for those after the last.
        let mut since: Vec<Option<Ohlcv>> = vec![None; cuts.len() + 1];
        let mut late: Vec<Option<Ohlcv>> = Vec::new();
        let (mut last_offset, mut last_commit) = (i64::MIN, i64::MIN);
        for (_, at) in group {
            let cell = &self.list[*at as usize];
            let n = cuts.partition_point(|(_, cut)| *cut <= cell.last_offset);
            if minute && cell.late {
                late.resize(cuts.len() + 1, None);
                merge(&mut late[n], &cell.content)?;
                continue;
            }
            merge(&mut since[n], &cell.content)?;
            if cell.last_offset > last_offset {
                (last_offset, last_commit) = (cell.last_offset, cell.last_commit);
            }
        }
        let mut replayed = None;
        if !late.is_empty() {
            let mut all = since.clone();
            for (slot, content) in all.iter_mut().zip(&late) {
                if let Some(content) = content {
                    merge(slot, content)?;
                }
            }
            let (at, total) = prefixes(&all)?;
            replayed = total.map(|total| (at, total));
        }
        let (at, total) = prefixes(&since)?;
        Ok(Expected {
            key,
            at: cuts.iter().map(|(_, cut)| *cut).zip(at).collect(),
            total,
            replayed,
            last_offset,
            last_commit,
        })
    }
}

pub(super) fn merge(
    slot: &mut Option<Ohlcv>,
    content: &Ohlcv,
) -> Result<(), finlake_market::Overflow> {
    match slot {
        Some(bar) => bar.merge(content),
        None => {
            *slot = Some(*content);
            Ok(())
        }
    }
}

type Prefixes = (Vec<Option<Ohlcv>>, Option<Ohlcv>);

/// Running merges; the last one apart.
pub(super) fn prefixes(parts: &[Option<Ohlcv>]) -> Result<Prefixes, finlake_market::Overflow> {
    let mut sum: Option<Ohlcv> = None;
    let mut out = Vec::with_capacity(parts.len());
    for part in parts {
        if let Some(part) = part {
            merge(&mut sum, part)?;
        }
        out.push(sum);
    }
    let total = out.pop().flatten();
    Ok((out, total))
}
