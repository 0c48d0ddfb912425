//! The question that stands before the tasks: is a record's schema known?
//!
//! Tasks do no I/O, so an unknown schema id is resolved here, by the thread. An
//! unreachable registry holds the partition back; it never dead-letters.

use crate::record::{Record, RecordBatch, Run};

/// What became of an unknown schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The task can decode it now.
    Known,
    /// The registry has no such schema: the task will reject the record.
    Poison,
    /// Nobody can say for now, for this reason.
    Unreachable(String),
}

/// Resolves schemas ahead of the tasks.
pub trait SchemaGate: Send {
    /// Whether the task can judge this record by itself: its schema is known,
    /// or settled as poison, or it bears none.
    fn known(&self, record: &Record<'_>) -> bool;

    /// Ask the registry; may block for a bounded time.
    fn resolve(&mut self, record: &Record<'_>) -> Resolution;

    /// The first record of `run`, at or after index `from` of the batch, that is
    /// not known. (A provided method, so that the loop is compiled into the
    /// implementation and costs one virtual call per run.)
    fn first_unknown(&self, batch: &RecordBatch, run: Run, from: usize) -> Option<usize> {
        let rest = Run { from, ..run };
        let mut records = batch.records(rest);
        records.position(|r| !self.known(&r)).map(|at| from + at)
    }
}
