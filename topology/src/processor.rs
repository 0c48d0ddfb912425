//! What a topology's author writes: a message family and processors over it.
//!
//! A processor is synchronous and does no I/O: it reads its message and its
//! stores, forwards messages, produces bytes to sinks. Time is handed in.

use std::borrow::Cow;

use crate::context::Context;
use crate::record::Record;
use crate::stats::CommitStats;

/// The family of messages that the nodes of one topology hand on: borrowed and
/// typed, so that nothing is copied or re-encoded between nodes.
pub trait Domain: 'static {
    /// A message; an enum of references and small values, hence `Copy`.
    type Msg<'a>: Copy;

    /// What a source node forwards for an input record.
    fn source(record: Record<'_>) -> Self::Msg<'_>;
}

/// The children of a node.
pub trait Forward<D: Domain> {
    /// Run every child with `msg`, in declaration order, before returning. A
    /// child's failure is the caller's to hand on with `?`.
    fn forward(&mut self, ctx: &mut Context<'_>, msg: D::Msg<'_>) -> Result<(), Failure>;
}

/// One node of the topology, one instance per task.
///
/// Everything a processor remembers beyond its stores is a cache: [`reset`]
/// forgets it, after which the stores alone give the same behaviour.
///
/// [`reset`]: Processor::reset
pub trait Processor<D: Domain>: Send {
    /// Handle one message.
    fn process(
        &mut self,
        ctx: &mut Context<'_>,
        msg: D::Msg<'_>,
        out: &mut dyn Forward<D>,
    ) -> Result<(), Failure>;

    /// Called between batches, also without input; the clock is `ctx.now_us()`.
    /// Ask for a commit with `ctx.mark_dirty()` if there is something to emit.
    fn punctuate(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<D>,
    ) -> Result<(), Failure> {
        let _ = (ctx, out);
        Ok(())
    }

    /// A commit begins: write caches to the stores, emit versions. Called in
    /// topological order. `ctx.commit()` and `ctx.system_time()` hold from here
    /// to the end of the commit.
    fn prepare_commit(
        &mut self,
        ctx: &mut Context<'_>,
        out: &mut dyn Forward<D>,
    ) -> Result<(), Failure> {
        let _ = (ctx, out);
        Ok(())
    }

    /// Every `prepare_commit` is done, so counts and hashes of the commit are
    /// final for all counted sinks: a ledger writes its entry here. Producing
    /// to a counted sink from here is an error.
    fn seal(&mut self, ctx: &mut Context<'_>, stats: &CommitStats) -> Result<(), Failure> {
        let _ = (ctx, stats);
        Ok(())
    }

    /// Forget every cached value: the stores have moved (start, abort, lost
    /// partition, catch-up). Called once before the first message as well.
    fn reset(&mut self);
}

/// Why a processor could not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The source record is at fault: it goes to the dead-letter topic with
    /// this reason, and the task goes on. From `punctuate`, `prepare_commit`
    /// or `seal`, where there is no source record, it stops the task. What the
    /// record has put into stores before stays: reject before changing state.
    #[error("{class}: {message}")]
    Reject {
        /// Stable, for counting and for redrive: `malformed`, `future`, …
        class: Cow<'static, str>,
        /// For a human.
        message: Cow<'static, str>,
    },
    /// The task cannot go on: nothing is committed, the thread stops.
    #[error("{0}")]
    Fatal(String),
}

impl Failure {
    /// A rejection of the current source record.
    pub fn reject(
        class: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Failure::Reject {
            class: class.into(),
            message: message.into(),
        }
    }

    /// A failure that stops the task.
    pub fn fatal(why: impl std::fmt::Display) -> Self {
        Failure::Fatal(why.to_string())
    }
}
