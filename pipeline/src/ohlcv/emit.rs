//! The commit: which bars become versions, which go to `.live`, and what is written to the store.
//!
//! Symbols are taken in order of their keys; of a symbol closed bars come before forming ones,
//! intervals from short to long, bars from old to new. A bar is sent at most once per topic and
//! commit.

use std::ops::ControlFlow;
use std::sync::Arc;

use finlake_market::Interval;
use finlake_market::interval::{HOUR, MINUTE, date_of};
use finlake_schemas::{Bar, Basis, Origin, Stage, keys};
use finlake_topology::state::Versioned;
use finlake_topology::{Context, Failure, Forward, Micros, SinkId};

use super::source::Source;
use super::state::{self, BarValue, Cell, Emitted, Symbol, SymbolValue, TimeValue};
use super::{Bars, STORE};
use crate::config::{Emit, Plan};
use crate::ledger::Counts;
use crate::{BARS, Market, Msg, TICKS};

impl Bars {
    /// Everything that a commit does.
    pub(super) fn emit(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        for source in 0..self.sources.len() {
            for at in std::mem::take(&mut self.sources[source].deltas) {
                self.flush(ctx, at)?;
            }
        }
        self.gather(ctx.now_us(), ctx.stopping());
        let mut visit = std::mem::take(&mut self.visit);
        visit.sort_unstable_by(|a, b| self.symbols.key(*a).cmp(self.symbols.key(*b)));
        for &at in &visit {
            let symbol = self.symbols.at(at);
            symbol.visiting = false;
            let source = &self.sources[symbol.source as usize];
            let due = self.emitter.symbol(ctx, out, symbol, source)?;
            self.corrections.extend(due.correction.map(|t| (t, at)));
            if let Some(t) = due.live {
                symbol.waiting = true;
                self.waiting.insert((t, at));
            }
        }
        if self.symbols.len() > self.plan.config.cached_symbols {
            visit.retain(|at| self.symbols.at(*at).is_idle());
            self.symbols.remove(&visit);
        }
        visit.clear();
        self.visit = visit;
        self.finish_sources(ctx, out)
    }

    /// Adds to the symbols with trades those that the clock or stream time has made due.
    fn gather(&mut self, now: Micros, stopping: bool) {
        for source in 0..self.sources.len() {
            let of = &self.sources[source];
            let all = stopping || of.idle_due;
            for k in 0..of.open.len() {
                let long =
                    self.plan.intervals.list()[k].length() > self.plan.config.checkpoint_every;
                if all || (self.sources[source].checkpoint_due.is_some() && long) {
                    for n in 0..self.sources[source].open[k].len() {
                        self.visit(self.sources[source].open[k][n]);
                    }
                }
            }
        }
        while let Some((due, at)) = self.corrections.first().copied() {
            if due > now && !stopping {
                break;
            }
            self.corrections.pop_first();
            // It may have been sent earlier, and the symbol dropped since.
            if self.symbols.holds(at) {
                self.visit(at);
            }
        }
        while let Some((due, at)) = self.waiting.first().copied() {
            if due > now && !stopping {
                break;
            }
            self.waiting.pop_first();
            self.symbols.at(at).waiting = false;
            self.visit(at);
        }
    }

    /// Stores stream times that moved and tells the ledger all of them.
    fn finish_sources(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
    ) -> Result<(), Failure> {
        let stopping = ctx.stopping();
        for at in self.by_name.values() {
            let source = &mut self.sources[*at as usize];
            if stopping || source.idle_due {
                source.unversioned = false;
            }
            source.checkpoint_due = None;
            source.idle_due = false;
            let Some(time) = source.time.get() else {
                continue;
            };
            if source.stored != source.time {
                source.stored = source.time;
                state::name_key(state::TIME, source.name.as_bytes(), &mut self.key);
                let value = TimeValue(time).to_bytes().map_err(Failure::fatal)?;
                ctx.put(STORE, &self.key, &value);
            }
            out.forward(ctx, Msg::StreamTime(&(&*source.name, time)))?;
        }
        Ok(())
    }
}

/// When a symbol must be looked at again.
struct Due {
    correction: Option<Micros>,
    live: Option<Micros>,
}

/// Sends and stores the bars of one symbol after the other.
pub(super) struct Emitter {
    plan: Arc<Plan>,
    counts: Counts,
    silver: SinkId,
    live: SinkId,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Emitter {
    pub fn new(plan: Arc<Plan>, counts: Counts, silver: SinkId, live: SinkId) -> Self {
        Self {
            plan,
            counts,
            silver,
            live,
            key: Vec::new(),
            value: Vec::new(),
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn symbol(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
        symbol: &mut Symbol,
        source: &Source,
    ) -> Result<Due, Failure> {
        let due = Due {
            correction: self.closed(ctx, out, symbol)?,
            live: self.forming(ctx, out, symbol, source)?,
        };
        self.sweep(ctx, symbol)?;
        if std::mem::take(&mut symbol.dirty) {
            self.store(ctx, symbol)?;
        }
        Ok(due)
    }

    /// Checkpoints and live states. Returns when those that must wait may go.
    fn forming(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
        symbol: &mut Symbol,
        source: &Source,
    ) -> Result<Option<Micros>, Failure> {
        let plan = self.plan.clone();
        let config = &plan.config;
        let now = ctx.now_us();
        let all = ctx.stopping() || source.idle_due;
        let turn = match config.emit {
            Emit::Commit => Micros::MIN,
            Emit::Every(every) => symbol.live_at.saturating_add(every),
        };
        let (mut sent, mut waits) = (false, false);
        let name = Name::of(symbol.source_len, &symbol.name);
        for (interval, cell) in plan.intervals.list().iter().zip(&mut symbol.open) {
            let Some(cell) = cell else { continue };
            let long = interval.length() > config.checkpoint_every;
            // One that began with this very multiple has nothing to show yet.
            let due = source
                .checkpoint_due
                .is_some_and(|at| long && cell.start < at);
            if cell.changed && (all || due || cell.urgent) {
                self.version(ctx, out, name, interval, cell, Stage::Checkpoint)?;
                symbol.dirty = true;
                sent = true;
            } else if cell.live_due && (all || now >= turn) {
                let stage = Stage::Forming;
                self.live(ctx, name, interval, cell, stage)?;
                sent = true;
            } else {
                waits |= cell.live_due;
            }
        }
        if sent {
            symbol.live_at = now;
        }
        Ok((waits && !symbol.waiting).then_some(turn))
    }

    /// Closes and corrects. Returns when the next correction is due.
    fn closed(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
        symbol: &mut Symbol,
    ) -> Result<Option<Micros>, Failure> {
        if symbol.closed.is_empty() {
            return Ok(None);
        }
        let plan = self.plan.clone();
        let config = &plan.config;
        let (now, stopping) = (ctx.now_us(), ctx.stopping());
        let horizon = symbol.latest.saturating_sub(config.retention_1m);
        let name = Name::of(symbol.source_len, &symbol.name);
        let mut next = None;
        for ((k, start), mut cell) in std::mem::take(&mut symbol.closed) {
            let interval = &plan.intervals.list()[k];
            // Set by every trade and cleared below: the store has an older state.
            let mut write = cell.live_due;
            let mut keep = false;
            if !cell.was_closed() {
                self.version(ctx, out, name, interval, &mut cell, Stage::Closed)?;
                write = true;
            } else if cell.changed {
                let due = cell.corrected_at.saturating_add(config.correct_every);
                let leaving = interval.length() == MINUTE && start + MINUTE <= horizon;
                if stopping || leaving || cell.urgent || now >= due {
                    cell.corrected_at = ctx.system_time();
                    self.version(ctx, out, name, interval, &mut cell, Stage::Closed)?;
                    ctx.count(self.counts.corrections, 1);
                    write = true;
                } else {
                    if cell.live_due {
                        self.live(ctx, name, interval, &mut cell, Stage::Closed)?;
                    }
                    next = Some(next.map_or(due, |n: Micros| n.min(due)));
                    keep = true;
                }
            }
            if write {
                let minutes = state::minutes(interval.length());
                state::bar_key(&symbol.name, minutes, start, &mut self.key);
                self.value.clear();
                let bar = BarValue::from(&cell);
                bar.encode_to(&mut self.value).map_err(Failure::fatal)?;
                ctx.put(STORE, &self.key, &self.value);
                if cell.kept_until > 0 {
                    state::kept_key(&symbol.name, cell.kept_until, start, &mut self.key);
                    ctx.put(STORE, &self.key, &[]);
                }
                symbol.dirty = true;
            }
            if keep {
                symbol.closed.insert((k, start), cell);
            }
        }
        Ok(next)
    }

    /// Deletes 1m bars that have left the retention, an hour of them at a time.
    fn sweep(&mut self, ctx: &mut Context<'_>, symbol: &mut Symbol) -> Result<(), Failure> {
        let horizon = symbol.latest.saturating_sub(self.plan.config.retention_1m);
        let bound = horizon.saturating_sub(horizon.rem_euclid(MINUTE));
        if bound < symbol.swept.saturating_add(HOUR) {
            return Ok(());
        }
        state::bar_key(&symbol.name, 1, symbol.swept, &mut self.key);
        state::bar_key(&symbol.name, 1, bound, &mut self.value);
        let mut gone: Vec<Vec<u8>> = Vec::new();
        let mut damaged = None;
        ctx.scan(STORE, &self.key, Some(&self.value), &mut |key, value| {
            match BarValue::from_bytes(value) {
                // One that came back by a correction has its own time.
                Ok(bar) if bar.kept_until() > symbol.latest => {}
                Ok(_) => gone.push(key.to_vec()),
                Err(e) => damaged = Some(Failure::fatal(e)),
            }
            ControlFlow::Continue(())
        })?;
        if let Some(failure) = damaged {
            return Err(failure);
        }
        gone.extend(self.expired(ctx, symbol)?);
        for key in gone {
            ctx.delete(STORE, &key);
        }
        symbol.swept = bound;
        symbol.dirty = true;
        Ok(())
    }

    /// Keys of 1m bars that came back by a correction and whose time is over, with their notes.
    fn expired(&mut self, ctx: &Context<'_>, symbol: &Symbol) -> Result<Vec<Vec<u8>>, Failure> {
        state::kept_key(&symbol.name, 0, 0, &mut self.key);
        let until = symbol.latest.saturating_add(1);
        state::kept_key(&symbol.name, until, 0, &mut self.value);
        let mut notes: Vec<(Vec<u8>, i64)> = Vec::new();
        ctx.scan(STORE, &self.key, Some(&self.value), &mut |key, _| {
            if let Some(start) = key.last_chunk::<8>() {
                notes.push((key.to_vec(), i64::from_be_bytes(*start)));
            }
            ControlFlow::Continue(())
        })?;
        let mut gone = Vec::new();
        for (note, start) in notes {
            state::bar_key(&symbol.name, 1, start, &mut self.key);
            gone.extend([note, self.key.clone()]);
        }
        Ok(gone)
    }

    /// Writes the symbol's record.
    fn store(&mut self, ctx: &mut Context<'_>, symbol: &Symbol) -> Result<(), Failure> {
        let list = self.plan.intervals.list();
        let minutes = |k: usize| state::minutes(list[k].length());
        let open = symbol.open.iter().enumerate();
        let record = SymbolValue {
            source_len: symbol.source_len,
            latest: symbol.latest,
            swept: symbol.swept,
            open: open
                .filter_map(|(k, cell)| cell.as_ref().map(|c| (k, c)))
                .map(|(k, cell)| (minutes(k), cell.start, BarValue::from(cell)))
                .collect(),
            pending: symbol
                .closed
                .keys()
                .map(|(k, start)| (minutes(*k), *start))
                .collect(),
        };
        state::name_key(state::SYMBOL, symbol.name.as_bytes(), &mut self.key);
        self.value.clear();
        record.encode_to(&mut self.value).map_err(Failure::fatal)?;
        ctx.put(STORE, &self.key, &self.value);
        Ok(())
    }

    /// Sends a bar as the next version of its row.
    fn version(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<Market>,
        name: Name<'_>,
        interval: &Interval,
        cell: &mut Cell,
        stage: Stage,
    ) -> Result<(), Failure> {
        let before = cell.open_version();
        cell.emitted = Some(Emitted {
            revision: cell.emitted.map_or(0, |b| b.revision.saturating_add(1)),
            sys_from: ctx.system_time(),
            closed: stage == Stage::Closed,
            retracted: cell.retracted,
        });
        let bar = bar(ctx, name, interval, cell, stage, before);
        self.encode(name, interval, &bar)?;
        ctx.produce(self.silver, &self.key, &self.value, &[])?;
        ctx.produce(self.live, &self.key, &self.value, &[])?;
        ctx.count(self.counts.bars_retracted, i64::from(cell.retracted));
        cell.changed = false;
        cell.live_due = false;
        cell.urgent = false;
        out.forward(ctx, Msg::Version(&bar))
    }

    /// Sends the state of a bar to `.live` alone. It bears the revision of the version it builds
    /// on.
    fn live(
        &mut self,
        ctx: &mut Context<'_>,
        name: Name<'_>,
        interval: &Interval,
        cell: &mut Cell,
        stage: Stage,
    ) -> Result<(), Failure> {
        let before = cell.open_version();
        let bar = bar(ctx, name, interval, cell, stage, before);
        self.encode(name, interval, &bar)?;
        ctx.produce(self.live, &self.key, &self.value, &[])?;
        cell.live_due = false;
        Ok(())
    }

    fn encode(&mut self, name: Name<'_>, of: &Interval, bar: &Bar<'_>) -> Result<(), Failure> {
        self.key.clear();
        keys::bar(
            name.source,
            name.symbol,
            of.name(),
            bar.bar_start,
            &mut self.key,
        );
        self.value.clear();
        let codec = &self.plan.codec;
        codec
            .encode_bar(bar, &mut self.value)
            .map_err(Failure::fatal)
    }
}

/// Source and symbol.
#[derive(Clone, Copy)]
struct Name<'a> {
    source: &'a str,
    symbol: &'a str,
}

impl<'a> Name<'a> {
    fn of(source_len: u16, name: &'a str) -> Self {
        let source_len = usize::from(source_len);
        Self {
            source: &name[..source_len],
            symbol: &name[source_len + 1..],
        }
    }
}

/// The record of a bar; `before` is the version that it replaces or builds on.
fn bar<'a>(
    ctx: &Context<'_>,
    name: Name<'a>,
    interval: &'a Interval,
    cell: &mut Cell,
    stage: Stage,
    before: Option<Emitted>,
) -> Bar<'a> {
    let Name { source, symbol } = name;
    let start = cell.start;
    let id = cell.id;
    let tick_id = id.unwrap_or_else(|| keys::bar_id(source, symbol, interval.name(), start));
    cell.id = Some(tick_id);
    let content = &cell.content;
    Bar {
        source,
        symbol,
        bar_interval: interval.name(),
        bar_start: start,
        bar_end: start + interval.length(),
        trade_date: date_of(start),
        tick_id,
        open: content.open,
        high: content.high,
        low: content.low,
        close: content.close,
        volume: content.volume,
        quote_volume: content.quote_volume,
        trade_count: content.trade_count,
        taker_buy_base: content.taker_buy_base,
        taker_buy_quote: content.taker_buy_quote,
        vwap: content.vwap(),
        first_trade_time: content.first.time,
        first_trade_id: content.first.id,
        last_trade_time: content.last.time,
        last_trade_id: content.last.id,
        stage,
        revision: cell.emitted.map_or(0, |e| e.revision),
        origin: Origin::Trades,
        basis: Basis::AsQuoted,
        basis_at: None,
        retracted: cell.retracted,
        commit: ctx.commit(),
        ticks_offset: ctx.position(TICKS),
        bars_offset: ctx.position(BARS),
        sys_from: ctx.system_time(),
        prev_sys_from: before.map(|b| b.sys_from),
    }
}
