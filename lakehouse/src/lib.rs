//! The bi-temporal Iceberg lakehouse: tables, planning, files, compare-and-swap commits, queries.
//!
//! Exactly once, because the table is the authority: positions stand in its properties and move
//! in the same metadata file as the data. Must never: know Kafka, change a closed row, or commit
//! through the library's rebasing transaction. Data flows: sink batch → `plan` (against the
//! stored positions) → `bitemporal` and `hot` (which rows close) → `writer` (Parquet) → `commit`
//! (one snapshot, with upkeep by `maintain`).

// Whoever awaits an `async fn` compiles it, with all that it awaits, once for each of its codegen
// units. What other crates or many places of this one await is boxed: it is compiled here, once.
pub(crate) use async_recursion::async_recursion as boxed;

pub mod admin;
pub mod batch;
pub mod bitemporal;
pub mod breaks;
pub mod catalog;
pub mod commit;
pub mod compose;
pub mod error;
pub mod faults;
pub mod hot;
pub mod index;
pub mod inspect;
pub mod lake;
pub mod maintain;
mod manifests;
pub mod merge;
pub mod plan;
pub mod properties;
pub mod query;
pub mod read;
pub mod rest;
pub mod rows;
pub mod shadow;
pub mod sink;
pub mod snapshot;
pub mod split;
pub mod storage;
pub mod tables;
pub mod writer;

pub use batch::{Outcome, PartitionBatch, Rows, SinkBatch};
pub use breaks::{BreakBatch, BreaksSink, follows};
pub use error::{LakeError, Result};
pub use lake::{Catalog, HotRule, LakeConfig, Lakehouse, Upkeep};
pub use plan::Cut;
pub use properties::{KafkaIds, Position, Watermarks};
pub use read::{
    FileTask, Filter, History, Pinned, Scan, ScanBatch, SnapshotChange, VersionInfo, VersionKey,
};
pub use rows::{BarsRows, BronzeRows, RecordAt, VersionRows};
pub use sink::TableSink;
pub use tables::{LAST_DAY, OPEN_END, Table};
