//! State stores of FinLake's tasks: bytes in, bytes out, exactly as much as Kafka has committed.
//!
//! A [`StateDb`] is one RocksDB per process (or a map in memory with the same contract). Each task
//! gets a [`TaskState`] in it: a handful of named stores under a key prefix of its own. While a
//! task processes records, its writes collect in an *overlay*, a map of what is dirty. Reads see
//! the overlay first. Nothing below the overlay moves until the Kafka transaction that carries the
//! same changes to the changelog topics has committed; then [`TaskState::commit`] writes the
//! overlay and the [`Checkpoint`] (changelog offsets, input positions) as *one* write batch. So the
//! store is never ahead of Kafka (INV-10), data and checkpoint can never disagree, and a crash at
//! any point costs only the tail of the changelog that lies behind the checkpoint.
//!
//! ```text
//! process ──put/delete──► overlay ──dirty()──► changelog records ──► Kafka transaction
//!                            │                                            │ committed
//!                            └───────────── commit(checkpoint) ◄──────────┘
//!                                                 │ one batch
//! changelog tail ──restore()──finish_restore()──► RocksDB
//! ```
//!
//! The write-ahead log is on and not synced at each commit: a killed process loses nothing, a
//! crashed machine loses a tail of whole commits, and both are caught up from the changelog.
//!
//! This crate must never: read a clock, talk to Kafka, know a domain type, or let part of an
//! overlay reach the disk without its checkpoint. It depends on no other crate of the project.
//!
//! Changelog format: the record's key is the store's key and its value the store's value, byte for
//! byte; a delete is a record without a value. Values are led by a version byte, see [`codec`].

mod backend;
mod checkpoint;
pub mod codec;
mod db;
mod error;
mod memory;
mod overlay;
mod rocks;
mod task;

pub use backend::Visit;
pub use checkpoint::Checkpoint;
pub use codec::{CodecError, Versioned};
pub use db::{Budget, Durability, StateDb, Usage};
pub use error::{LockHolder, Result, StateError};
pub use task::{StoreId, StoreSpec, TaskState};
