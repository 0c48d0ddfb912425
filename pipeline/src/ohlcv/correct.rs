//! Corrections that come by `market.bars`: does one still fit the bar it speaks of, and what then.
//!
//! A correction names the version it means to replace. It is taken only if that is the newest one
//! and the bar has not moved on since; what holds already is nothing new. A bar that has left the
//! store comes back with the revision and system time that the correction names: its sender has
//! read them from the table, which is the only place that still knows them.

use finlake_market::Correction;
use finlake_market::interval::MINUTE;
use finlake_schemas::dlq;
use finlake_schemas::keys::iso_instant;
use finlake_topology::{Context, Failure};

use super::Bars;
use super::state::{Cell, Emitted};
use crate::{Corrected, Probe};

impl Bars {
    /// Takes a correction in, finds that it holds already, or rejects it as stale, by the bar's name.
    #[cold]
    pub(super) fn correct(
        &mut self,
        ctx: &mut Context<'_>,
        corrected: &Corrected<'_>,
    ) -> Result<(), Failure> {
        self.take_correction(ctx, corrected).map_err(|e| match e {
            // The dead letter's key says source and symbol only.
            Failure::Reject { class, message } => {
                let c = &corrected.correction;
                let interval = self.plan.intervals.list()[c.interval].name();
                Failure::reject(
                    class,
                    format!("{interval} bar of {}: {message}", iso_instant(c.start)),
                )
            }
            fatal => fatal,
        })
    }

    fn take_correction(
        &mut self,
        ctx: &mut Context<'_>,
        corrected: &Corrected<'_>,
    ) -> Result<(), Failure> {
        if !self.loaded {
            self.load(ctx)?;
        }
        let c = &corrected.correction;
        let plan = self.plan.clone();
        let interval = &plan.intervals.list()[c.interval];
        let end = c.start + interval.length();
        // A source that is new here has no bars: nothing must be made for it.
        let name = name_of(&corrected.key)?;
        let source = self.by_name.get(&name[..corrected.source_len]).copied();
        let Some(source) = source else {
            return stale("this task has no trades of its source".to_owned());
        };
        let at = match self.symbols.find(&corrected.key) {
            Some(at) => at,
            None => self.add(ctx, &corrected.key, corrected.source_len)?,
        };
        // Even if nothing comes of it, so that an unused symbol is dropped again.
        self.visit(at);
        // What the task holds is compared whole.
        self.flush(ctx, at)?;
        let changed = if self.sources[source as usize].time.closes(end) {
            self.correct_closed(ctx, at, c, end)?
        } else {
            let cell = self.symbols.at(at).open[c.interval].as_mut();
            match cell.filter(|cell| cell.start == c.start && !c.retracted) {
                Some(cell) => replace(cell, c)?,
                None => {
                    return stale(
                        "the bar is still forming: correct it when it is closed".to_owned(),
                    );
                }
            }
        };
        self.symbols.at(at).dirty |= changed;
        let counts = self.emitter.counts();
        ctx.count(
            if changed {
                counts.asserted
            } else {
                counts.held
            },
            1,
        );
        Ok(())
    }

    fn correct_closed(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        c: &Correction,
        end: i64,
    ) -> Result<bool, Failure> {
        if let Some(cell) = self.closed(ctx, at, c.interval, c.start)? {
            return replace(cell, c);
        }
        let minute = self.plan.intervals.list()[c.interval].length() == MINUTE;
        let retention = self.plan.config.retention_1m;
        let symbol = self.symbols.at(at);
        let evicted = minute && end <= symbol.latest.saturating_sub(retention);
        if c.expected.is_some() && !evicted {
            return stale("the task has no version of this bar".to_owned());
        }
        let mut cell = Cell::new(c.start, c.content);
        cell.retracted = c.retracted;
        cell.urgent = true;
        cell.emitted = c.expected.map(|(sys_from, revision)| Emitted {
            revision,
            sys_from,
            // It was, long before it left the store.
            closed: true,
            retracted: false,
        });
        if evicted {
            cell.kept_until = symbol.latest.saturating_add(retention);
        }
        symbol.closed.insert((c.interval, c.start), cell);
        Ok(true)
    }
}

/// Puts a correction in the place of what a cell holds; false if it holds that already.
fn replace(cell: &mut Cell, c: &Correction) -> Result<bool, Failure> {
    if cell.content == c.content && cell.retracted == c.retracted {
        return Ok(false);
    }
    let newest = cell.open_version().map(|e| (e.sys_from, e.revision));
    if newest != c.expected {
        return stale(format!(
            "it expects {}, the newest version has {}",
            version(c.expected),
            version(newest)
        ));
    }
    if cell.changed {
        return stale(
            "the bar has changed since that version: trades or a correction came".to_owned(),
        );
    }
    cell.content = c.content;
    cell.retracted = c.retracted;
    cell.changed = true;
    cell.live_due = true;
    cell.urgent = true;
    Ok(true)
}

fn version(of: Option<(i64, i32)>) -> String {
    match of {
        Some((sys_from, revision)) => {
            format!("revision {revision} of sys_from {}", iso_instant(sys_from))
        }
        None => "no open version".to_owned(),
    }
}

#[cold]
fn stale<T>(why: String) -> Result<T, Failure> {
    Err(Failure::reject(
        dlq::STALE_ASSERTION,
        format!("{why}; compare with the table again and assert what is still wrong"),
    ))
}

impl Bars {
    /// Whether a 1m bar beyond the retention came back by a correction and is still here.
    #[cold]
    pub(super) fn is_kept(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        k: usize,
        start: i64,
        latest: i64,
    ) -> Result<bool, Failure> {
        let cell = self.closed(ctx, at, k, start)?;
        Ok(cell.is_some_and(|cell| cell.kept_until > latest))
    }
}

/// The key of a probe that was made from text.
pub(super) fn name_of<'a>(key: &Probe<'a>) -> Result<&'a str, Failure> {
    std::str::from_utf8(key.key()).map_err(Failure::fatal)
}
