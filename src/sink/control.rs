//! What goes into the sink from outside and comes out of it: options, control, status, observer, errors.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use finlake_lakehouse::{LakeError, Outcome, Position, Table};
use finlake_topology::Error as KafkaError;
use parking_lot::Mutex;

use super::assemble::{AssembleError, FEEDS};
use super::batch::TakeError;

/// How the sink behaves.
#[derive(Debug, Clone)]
pub struct SinkOptions {
    /// Between table commits.
    pub commit_interval: Duration,
    /// Between commits without rows, which only move the frontier.
    pub frontier_interval: Duration,
    /// Rows that make a commit at once.
    pub max_rows: usize,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(10),
            frontier_interval: Duration::from_secs(60),
            max_rows: 200_000,
        }
    }
}

/// Why the sink stopped.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Books(#[from] AssembleError),
    #[error(
        "{topic} partition {partition} begins at offset {low}, but {table} holds input only up to {held}: \
         offsets {held}..{low} are gone from the topic (retention or DeleteRecords). Bronze cannot have them any more. \
         To go on without them, begin anew beside the tables that are there: `finlake reset --outputs` and another \
         lake.namespace_prefix; and give the topic a longer retention.ms"
    )]
    Lost {
        topic: &'static str,
        table: Table,
        partition: i32,
        held: i64,
        low: i64,
    },
}

impl From<TakeError> for SinkError {
    fn from(e: TakeError) -> Self {
        match e {
            TakeError::Assemble(e) => SinkError::Books(e),
            TakeError::Lake(e) => SinkError::Lake(e),
        }
    }
}

/// How to end the sink from outside.
#[derive(Debug, Default)]
pub struct SinkControl {
    /// Commit what is whole, then return.
    pub stop: AtomicBool,
    /// Return once every owned partition has reached this offset of the ledger and all of it is in the tables.
    pub drain_to: Mutex<Option<BTreeMap<i32, i64>>>,
    /// On a stop leave the group (scale-down).
    pub leave: AtomicBool,
}

/// What the sink has reached, for waiting, readiness and metrics.
#[derive(Debug, Default)]
pub struct SinkStatus {
    /// Positions per partition, of ticks, ohlcv, metrics and bars.
    pub positions: BTreeMap<i32, [Position; FEEDS]>,
    /// Snapshots made, per table in that order.
    pub snapshots: [u64; FEEDS],
    /// Swaps lost to other writers.
    pub lost_swaps: u64,
    /// The group has answered at least once.
    pub joined: bool,
}

/// What the sink tells the outside.
pub trait SinkObserver: Send {
    /// A table commit is done.
    fn committed(&mut self, table: Table, outcome: &Outcome, took: Duration) {
        let _ = (table, outcome, took);
    }
    /// Kafka timestamps (ms) of oldest and newest input record now in the tables, and how many.
    fn whole(&mut self, oldest_ms: i64, newest_ms: i64, rows: usize) {
        let _ = (oldest_ms, newest_ms, rows);
    }
    /// Live data files and hot rows of a table.
    fn shape(&mut self, table: Table, files: usize, hot_rows: usize) {
        let _ = (table, files, hot_rows);
    }
    /// System time (µs) up to which all owned partitions of all tables are whole, 0 without partitions.
    fn frontier(&mut self, at: i64) {
        let _ = at;
    }
    /// A failure that is retried.
    fn retried(&mut self, why: &str) {
        let _ = why;
    }
}

/// Nobody listens.
#[derive(Debug, Default)]
pub struct SilentSink;
impl SinkObserver for SilentSink {}
