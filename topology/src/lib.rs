//! The engine: a topology is a graph of processors; a task runs it over one
//! partition; a stream thread moves records between a broker and its tasks and
//! commits outputs, changelogs and input positions as one transaction.
//!
//! Data flows `Broker::poll` → [`RecordBatch`] → [`Task::process`] → overlay of
//! the state stores and [`output::Outputs`] → `Broker` transaction → store.
//! The store is never ahead of Kafka (INV-10).
//!
//! The engine must never interpret a record: bytes come in, a [`Domain`] gives
//! them meaning. Nothing here drops a record in silence: it is processed,
//! dead-lettered, or the thread stops.

pub mod broker;
pub mod builder;
mod catchup;
pub mod context;
mod describe;
pub mod driver;
pub mod error;
pub mod faults;
mod ffi;
pub mod gate;
mod graph;
pub mod inv;
pub mod kafka;
pub mod metrics;
pub mod observer;
pub mod output;
pub mod processor;
pub mod record;
mod start;
pub mod stats;
pub mod task;
pub mod thread;

pub use broker::{Broker, Clock, Event, PollLimits, SystemClock};
pub use builder::{MapMsg, NodeId, SinkId, SinkOptions, Topology, TopologyBuilder, TopologyError};
pub use context::Context;
pub use driver::{OutputRecord, TestDriver};
pub use error::Error;
pub use finlake_state as state;
pub use gate::{Resolution, SchemaGate};
pub use kafka::{AttachedConsumer, KafkaBroker, KafkaConfig};
pub use metrics::Metrics;
pub use observer::Observer;
pub use processor::{Domain, Failure, Forward, Processor};
pub use record::{Record, RecordBatch, TopicIdx};
pub use stats::{CommitStats, Counter, InputStats, OutputStats};
pub use task::{Task, TaskConfig};
pub use thread::{Control, Hooks, StreamThread, ThreadConfig};

/// Microseconds of UTC since 1970, the engine's only unit of time.
pub type Micros = i64;
