//! The audit: the ledger followed all the time, what it finds as metrics, log lines and breaks.
//!
//! Of the instances that have the role one is active, the others stand by (`seat.rs`). Reads the ledger, never the data
//! topics, so it costs a small part of what the pipeline does. Never stops the pipeline: a finding is told, not acted on.
//! Data flows: ledger and table metadata → `finlake_reconcile` → metrics and `quality.breaks` → (the sink) the table.

mod auditor;
mod breaks;
mod lines;
mod publish;
mod role;
mod seat;
mod sunk;
#[cfg(test)]
mod tests;
mod trail;

pub use breaks::Known;
pub use publish::{Breaks, Published, Publisher, TURN};
pub use role::{Audit, AuditControl, Audited, once};
pub use sunk::{BreaksThread, sink_all};
