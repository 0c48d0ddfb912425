//! Folds trades into the bars of every interval, and decides when a bar becomes a version.
//!
//! A trade costs one look-up and one fold: trades of one symbol and one bucket of the common grid
//! (a minute, as a rule) collect in a *delta* that is merged into the bars of all intervals when
//! the bucket changes, when stream time closes a bar, and at the commit. Since a fold does not
//! depend on order [INV-1], neither does this. All encoding and all output happens at the commit
//! (`emit.rs`).
//!
//! The forming bar of an interval is the bucket that holds stream time, so a symbol has at most one
//! per interval; every older bucket is closed, and a trade for it is a correction.

mod correct;
mod emit;
mod source;
pub(crate) mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use finlake_market::interval::MINUTE;
use finlake_market::{Ohlcv, Trade};
use finlake_schemas::dlq;
use finlake_schemas::keys::iso_instant;
use finlake_topology::state::Versioned;
use finlake_topology::{Context, Failure, Forward, Micros, Processor, SinkId};

use crate::config::Plan;
use crate::ledger::Counts;
use crate::table::{Probe, Table};
use crate::{Market, Msg, Observed};
use emit::Emitter;
use source::Source;
use state::{BarValue, Cell, NO_GRID, Symbol, SymbolValue, TimeValue};

const STORE: usize = 0;

pub(crate) struct Bars {
    plan: Arc<Plan>,
    symbols: Table<Symbol>,
    sources: Vec<Source>,
    /// Sources by name; the order of everything that is said about them.
    by_name: BTreeMap<Box<str>, u32>,
    /// The stores have been read since the last reset.
    loaded: bool,
    /// Symbols to look at in this commit.
    visit: Vec<u32>,
    /// When which symbol has a correction due.
    corrections: BTreeSet<(Micros, u32)>,
    /// When whose forming bars may go to `.live` again.
    waiting: BTreeSet<(Micros, u32)>,
    emitter: Emitter,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Bars {
    pub fn new(plan: Arc<Plan>, counts: Counts, silver: SinkId, live: SinkId) -> Self {
        Self {
            emitter: Emitter::new(plan.clone(), counts, silver, live),
            plan,
            symbols: Table::default(),
            sources: Vec::new(),
            by_name: BTreeMap::new(),
            loaded: false,
            visit: Vec::new(),
            corrections: BTreeSet::new(),
            waiting: BTreeSet::new(),
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    /// The common trade: it falls into its symbol's delta.
    #[inline]
    fn trade(&mut self, ctx: &mut Context<'_>, seen: &Observed<'_>) -> Result<(), Failure> {
        if !self.loaded {
            self.load(ctx)?;
        }
        let at = match self.symbols.find(&seen.key) {
            Some(at) => at,
            None => self.add(ctx, &seen.key, seen.source_len)?,
        };
        let t = &seen.trade;
        let symbol = self.symbols.at(at);
        if let Some(delta) = &mut symbol.delta
            && t.at.time >= symbol.grid.0
            && t.at.time < symbol.grid.1
            && t.is_ordinary()
        {
            delta.fold(t).map_err(Failure::fatal)?;
            symbol.latest = symbol.latest.max(t.at.time);
            // No bar ends inside a bucket of the grid, so nothing closes.
            let source = &mut self.sources[symbol.source as usize];
            source.time.advance(t.at.time);
            source.last_input = ctx.now_us();
            return Ok(());
        }
        self.first_in_bucket(ctx, at, t)
    }

    /// Any other trade: it opens a new delta, closes bars, comes late, or is out of the ordinary.
    fn first_in_bucket(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        t: &Trade,
    ) -> Result<(), Failure> {
        if !t.is_ordinary() {
            self.reject_without_room(ctx, at, t)?;
        }
        let time = t.at.time;
        let source = self.symbols.at(at).source as usize;
        if self.sources[source].next <= time {
            // Before the trade goes anywhere: what it closes must not hold it.
            self.close(ctx, source, time)?;
        }
        self.flush(ctx, at)?;
        self.sources[source].time.advance(time);
        self.sources[source].last_input = ctx.now_us();
        self.sources[source].unversioned = true;
        self.visit(at);

        let plan = self.plan.clone();
        let symbol = self.symbols.at(at);
        let latest = symbol.latest;
        let horizon = latest.saturating_sub(plan.config.retention_1m);
        symbol.latest = symbol.latest.max(time);
        if time < horizon || !t.is_ordinary() {
            let one = Ohlcv::of(t);
            for (k, interval) in plan.intervals.list().iter().enumerate() {
                let start = interval.start_of(time);
                let late = interval.length() == MINUTE && start + MINUTE <= horizon;
                if late && !self.is_kept(ctx, at, k, start, latest)? {
                    too_late(ctx, interval.name(), time, horizon)?;
                } else {
                    self.apply(ctx, at, k, &one)?;
                }
            }
            return Ok(());
        }
        let start = time - time.rem_euclid(plan.intervals.grid());
        symbol.delta = Some(Ohlcv::of(t));
        symbol.grid = (start, start + plan.intervals.grid());
        self.sources[source].deltas.push(at);
        Ok(())
    }

    /// Stream time reaches `time` and thereby the end of some bars of this source.
    fn close(&mut self, ctx: &mut Context<'_>, source: usize, time: i64) -> Result<(), Failure> {
        for at in std::mem::take(&mut self.sources[source].deltas) {
            self.flush(ctx, at)?;
        }
        let plan = self.plan.clone();
        for k in 0..plan.intervals.list().len() {
            if self.sources[source].ends[k] > time {
                continue;
            }
            for at in std::mem::take(&mut self.sources[source].open[k]) {
                let symbol = self.symbols.at(at);
                if let Some(cell) = symbol.open[k].take() {
                    symbol.closed.insert((k, cell.start), cell);
                    symbol.dirty = true;
                }
                self.visit(at);
            }
        }
        self.sources[source].pass(time, &plan);
        Ok(())
    }

    /// Merges a symbol's delta into its bars. Stream time must still be what it was when the delta
    /// took its last trade, or lie before the next bar's end.
    fn flush(&mut self, ctx: &mut Context<'_>, at: u32) -> Result<(), Failure> {
        let symbol = self.symbols.at(at);
        symbol.grid = NO_GRID;
        let Some(delta) = symbol.delta.take() else {
            return Ok(());
        };
        for k in 0..self.plan.intervals.list().len() {
            self.apply(ctx, at, k, &delta)?;
        }
        Ok(())
    }

    /// Merges trades of one bucket of the grid into the bar of interval `k`.
    fn apply(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        k: usize,
        trades: &Ohlcv,
    ) -> Result<(), Failure> {
        let interval = &self.plan.intervals.list()[k];
        let start = interval.start_of(trades.first.time);
        let end = start + interval.length();
        let symbol = self.symbols.at(at);
        let source = &mut self.sources[symbol.source as usize];
        symbol.dirty = true;
        if !source.time.closes(end) {
            return match &mut symbol.open[k] {
                Some(cell) => merge(cell, trades),
                slot => {
                    *slot = Some(Cell::new(start, *trades));
                    source.open[k].push(at);
                    Ok(())
                }
            };
        }
        match self.closed(ctx, at, k, start)? {
            Some(cell) => merge(cell, trades),
            None => {
                let cell = Cell::new(start, *trades);
                self.symbols.at(at).closed.insert((k, start), cell);
                Ok(())
            }
        }
    }

    /// A closed bar, from hand or from the store.
    fn closed(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        k: usize,
        start: i64,
    ) -> Result<Option<&mut Cell>, Failure> {
        let symbol = self.symbols.at(at);
        if !symbol.closed.contains_key(&(k, start)) {
            let minutes = state::minutes(self.plan.intervals.list()[k].length());
            state::bar_key(&symbol.name, minutes, start, &mut self.key);
            if !ctx.get_into(STORE, &self.key, &mut self.value)? {
                return Ok(None);
            }
            let bar = BarValue::from_bytes(&self.value).map_err(Failure::fatal)?;
            symbol.closed.insert((k, start), bar.into_cell(start));
        }
        Ok(self.symbols.at(at).closed.get_mut(&(k, start)))
    }

    /// Rejects a trade so large that a bar's sums could leave their columns.
    #[cold]
    fn reject_without_room(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        t: &Trade,
    ) -> Result<(), Failure> {
        let reject = |name: &str| {
            Err(Failure::reject(
                dlq::OVERFLOW,
                format!("with this trade the sums of its {name} bar would not fit decimal(38)"),
            ))
        };
        // Even if nothing comes of it, so that an unused symbol is dropped again.
        self.visit(at);
        self.flush(ctx, at)?;
        let plan = self.plan.clone();
        for (k, interval) in plan.intervals.list().iter().enumerate() {
            let start = interval.start_of(t.at.time);
            let symbol = self.symbols.at(at);
            let open = symbol.open[k].as_ref().filter(|c| c.start == start);
            let room = match open.map(|c| c.content) {
                Some(bar) => bar.has_room(t),
                None => match self.closed(ctx, at, k, start)? {
                    Some(cell) => cell.content.has_room(t),
                    None => t.has_room(),
                },
            };
            if !room {
                return reject(interval.name());
            }
        }
        Ok(())
    }

    /// Marks a symbol to be looked at in this commit.
    #[inline]
    fn visit(&mut self, at: u32) {
        let symbol = self.symbols.at(at);
        if !symbol.visiting {
            symbol.visiting = true;
            self.visit.push(at);
        }
    }

    #[cold]
    fn add(
        &mut self,
        ctx: &mut Context<'_>,
        key: &Probe<'_>,
        source_len: usize,
    ) -> Result<u32, Failure> {
        let name = correct::name_of(key)?;
        state::name_key(state::SYMBOL, key.key(), &mut self.key);
        let stored = match ctx.get_into(STORE, &self.key, &mut self.value)? {
            true => SymbolValue::from_bytes(&self.value).map_err(Failure::fatal)?,
            false => SymbolValue {
                source_len: source_len as u16,
                latest: i64::MIN,
                ..SymbolValue::default()
            },
        };
        self.adopt(ctx, name, stored)
    }

    /// Reads back stream times and every symbol that has something open or waiting.
    #[cold]
    fn load(&mut self, ctx: &mut Context<'_>) -> Result<(), Failure> {
        self.loaded = true;
        for (name, bytes) in scan(ctx, state::TIME)? {
            let time = TimeValue::from_bytes(&bytes).map_err(Failure::fatal)?;
            let source = self.source(&name, ctx.now_us());
            self.sources[source as usize].restore(time.0, &self.plan);
        }
        for (name, bytes) in scan(ctx, state::SYMBOL)? {
            let stored = SymbolValue::from_bytes(&bytes).map_err(Failure::fatal)?;
            if !stored.open.is_empty() || !stored.pending.is_empty() {
                self.adopt(ctx, &name, stored)?;
            }
        }
        Ok(())
    }

    fn source(&mut self, name: &str, now: Micros) -> u32 {
        if let Some(at) = self.by_name.get(name) {
            return *at;
        }
        // A source needs a symbol, and those fit in 32 bits.
        let at = self.sources.len() as u32;
        let intervals = self.plan.intervals.list().len();
        self.sources.push(Source::new(name, intervals, now));
        self.by_name.insert(name.into(), at);
        at
    }

    /// Takes a stored symbol into memory.
    fn adopt(
        &mut self,
        ctx: &mut Context<'_>,
        name: &str,
        stored: SymbolValue,
    ) -> Result<u32, Failure> {
        let plan = self.plan.clone();
        let list = plan.intervals.list();
        let place = |minutes| {
            list.iter()
                .position(|i| state::minutes(i.length()) == minutes)
        };
        let source = self.source(&name[..stored.source_len.into()], ctx.now_us());
        let mut symbol = Symbol::new(name, source, stored.source_len, list.len());
        symbol.latest = stored.latest;
        symbol.swept = stored.swept;
        let mut live_due = false;
        for (minutes, start, bar) in stored.open {
            let Some(k) = place(minutes) else {
                // Its interval is no longer configured; it goes on if that ever comes back.
                state::bar_key(name, minutes, start, &mut self.key);
                ctx.put(STORE, &self.key, &bar.to_bytes().map_err(Failure::fatal)?);
                symbol.dirty = true;
                continue;
            };
            let cell = bar.into_cell(start);
            live_due |= cell.live_due;
            self.sources[source as usize].unversioned |= cell.changed;
            symbol.open[k] = Some(cell);
        }
        symbol.waiting = live_due;
        let at = self.symbols.insert(&Probe::new(name.as_bytes()), symbol);
        for (k, cell) in self.symbols.at(at).open.iter().enumerate() {
            if cell.is_some() {
                self.sources[source as usize].open[k].push(at);
            }
        }
        if live_due {
            self.waiting.insert((0, at));
        }
        for (minutes, start) in stored.pending {
            let Some(k) = place(minutes) else { continue };
            let every = plan.config.correct_every;
            if let Some(cell) = self.closed(ctx, at, k, start)? {
                let due = cell.corrected_at.saturating_add(every);
                self.corrections.insert((due, at));
            }
        }
        Ok(at)
    }
}

#[cold]
fn too_late(ctx: &mut Context<'_>, interval: &str, time: i64, horizon: i64) -> Result<(), Failure> {
    ctx.dead_letter(
        &dlq::too_late(interval),
        &format!(
            "trade_time {}: the {interval} bars that end up to {} have left the store; the other \
             intervals took the trade, `replay` repairs this one",
            iso_instant(time),
            iso_instant(horizon)
        ),
    )
}

fn merge(cell: &mut Cell, trades: &Ohlcv) -> Result<(), Failure> {
    cell.changed = true;
    cell.live_due = true;
    if std::mem::take(&mut cell.retracted) {
        // What held does so no longer: the bar begins anew.
        cell.content = *trades;
        return Ok(());
    }
    cell.content.merge(trades).map_err(Failure::fatal)
}

/// Names and values of the store's records under one prefix.
fn scan(ctx: &Context<'_>, prefix: u8) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut all = Vec::new();
    ctx.scan(STORE, &[prefix], Some(&[prefix + 1]), &mut |key, value| {
        let name = String::from_utf8_lossy(&key[1..]).into_owned();
        all.push((name, value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(all)
}

impl Processor<Market> for Bars {
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        msg: Msg<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        match msg {
            Msg::Trade(seen) => self.trade(ctx, seen),
            Msg::Correction(correction) => self.correct(ctx, correction),
            other => out.forward(ctx, other),
        }
    }

    fn punctuate(
        &mut self,
        ctx: &mut Context<'_>,
        _out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        if !self.loaded {
            self.load(ctx)?;
        }
        let now = ctx.now_us();
        let idle = self.plan.config.idle_checkpoint;
        for source in &mut self.sources {
            if source.unversioned && now.saturating_sub(source.last_input) >= idle {
                source.idle_due = true;
                ctx.mark_dirty();
            }
        }
        let due = |set: &BTreeSet<(Micros, u32)>| set.first().is_some_and(|(at, _)| *at <= now);
        if due(&self.corrections) || due(&self.waiting) {
            ctx.mark_dirty();
        }
        Ok(())
    }

    fn prepare_commit(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        if !self.loaded {
            self.load(ctx)?;
        }
        self.emit(ctx, out)
    }

    fn reset(&mut self) {
        self.symbols.clear();
        self.sources.clear();
        self.by_name.clear();
        self.loaded = false;
        self.visit.clear();
        self.corrections.clear();
        self.waiting.clear();
    }
}
