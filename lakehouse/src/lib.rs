//! The bi-temporal Iceberg lakehouse: tables, planning, files, compare-and-swap commits, queries.
//!
//! Exactly once, because the table is the authority: positions stand in its properties and move
//! in the same metadata file as the data. Must never: know Kafka, change a closed row, or commit
//! through the library's rebasing transaction. Data flows: sink batch → `plan` (against the
//! stored positions) → `bitemporal` and `hot` (which rows close) → `writer` (Parquet) → `commit`
//! (one snapshot, with upkeep by `maintain`).

pub mod catalog;
pub mod commit;
pub mod error;
pub mod faults;
pub mod index;
pub mod lake;
pub mod maintain;
pub mod plan;
pub mod properties;
pub mod rest;
pub mod snapshot;
pub mod storage;
pub mod tables;

pub use error::{LakeError, Result};
pub use lake::{Catalog, HotRule, LakeConfig, Lakehouse, Upkeep};
pub use properties::{KafkaIds, Position, Watermarks};
pub use tables::{OPEN_END, Table};
