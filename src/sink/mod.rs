//! The sink role: ledger in, Iceberg tables out.
//!
//! One synchronous loop: poll → assemble whole commits → every commit interval hand them to the three tables, each
//! of which commits data and positions as one snapshot. The tables are the authority: at every assignment, and after
//! every failure, reading begins at the positions that stand in them. It must never commit rows that the ledger does
//! not account for, and never decide from consumer-group offsets, which are written for lag tools only.

mod assemble;
mod batch;
mod control;
mod pace;
mod queue;
mod run;

pub use assemble::{AssembleError, Assembler, Feed, Held, Ready};
pub use control::{SilentSink, SinkControl, SinkError, SinkObserver, SinkOptions, SinkStatus};
pub use queue::{Queued, RecordQueue};
pub use run::Sink;
