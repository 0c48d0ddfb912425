//! A single-node Kafka-protocol broker and a Confluent-compatible schema registry inside the
//! process, for development and tests. Production is Apache Kafka.
//!
//! [`Core`] is the broker as a pure state machine. [`DevKafka`] puts it behind a TCP port, on a
//! thread and runtime of its own, so that a synchronous program can start one with one call.
//!
//! ```text
//! TCP frames ─ wire ─► server ─► Core (log, groups, transactions) ─► storage (memory | folder)
//! HTTP ──────────────► registry (subjects, versions, compatibility) ─► the same storage folder
//! ```

pub mod core;
mod faults;
pub mod registry;
mod server;
pub mod storage;
pub mod wire;

pub use crate::core::{Client, Core, CoreConfig, Reply, Ticket};
pub use faults::{Fault, Faults};
pub use server::{Config, DevKafka, Error, Storage};
