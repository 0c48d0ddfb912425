//! What can go wrong in the lakehouse, named by what the caller does about it.
//!
//! Every message ends with the next step. `LakeError::is_transient` separates what a retry
//! mends (storage, catalog, an unknown outcome) from what must stop the sink (a moved table, a
//! gap, two open rows of one key).

use crate::tables::Table;

/// A snapshot as a person reads it.
fn snapshot(id: Option<i64>) -> String {
    id.map_or("no snapshot".to_owned(), |id| format!("snapshot {id}"))
}

/// Result of everything in this crate that does I/O or decides on tables.
pub type Result<T> = std::result::Result<T, LakeError>;

/// Errors of the lakehouse.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// Another engine rolled the table back or set a snapshot that does not descend from ours;
    /// the positions in the table properties can no longer be trusted.
    #[error(
        "table_moved: {table} is at {}, which does not follow {expected} by `replace` snapshots \
         only; inspect what the other engine did, then run \
         `finlake tables adopt {table}`",
        snapshot(*current)
    )]
    TableMoved {
        /// Table concerned.
        table: Table,
        /// Snapshot that the properties were written with.
        expected: i64,
        /// Snapshot that is current now.
        current: Option<i64>,
    },

    /// The input no longer holds what the table needs next.
    #[error(
        "gap: {table} partition {partition} holds commits up to {stored}, the ledger offers \
         {first}; commits {missing_from}..={missing_to} are lost to the table. Bring the ledger's \
         entries back, or fill the table anew where its topics still begin with commit 1"
    )]
    Gap {
        /// Table concerned.
        table: Table,
        /// Kafka partition.
        partition: i32,
        /// Last commit number in the table.
        stored: i64,
        /// First commit number offered.
        first: i64,
        /// First missing commit.
        missing_from: i64,
        /// Last missing commit.
        missing_to: i64,
    },

    /// Records were offered that begin past what the table holds.
    #[error(
        "offset gap: {table} partition {partition} holds its topic up to {stored}, the records \
         offered begin at {offered}; read on from {stored}, or rebuild the table if the topic no \
         longer reaches back that far"
    )]
    OffsetGap {
        /// Table concerned.
        table: Table,
        /// Kafka partition.
        partition: i32,
        /// Next offset as the table has it.
        stored: i64,
        /// Offset at which the records begin.
        offered: i64,
    },

    /// Commit numbers fit but the input positions do not: not the same stream.
    #[error(
        "position mismatch: {table} partition {partition} ends at input position {stored}, the \
         batch starts at {offered}; the topic was recreated or another application writes this \
         table. Check topic ids and `app_id`, then start with a fresh table or adopt this one"
    )]
    PositionMismatch {
        /// Table concerned.
        table: Table,
        /// Kafka partition.
        partition: i32,
        /// Input position in the table.
        stored: i64,
        /// Input position offered.
        offered: i64,
    },

    /// The stored position moved under this writer: another instance owns the partition now.
    #[error(
        "stale writer: {table} partition {partition} stands at commit {stored}, this instance \
         expected {expected}; another instance writes it. Drop the partition and rejoin"
    )]
    Stale {
        /// Table concerned.
        table: Table,
        /// Kafka partition.
        partition: i32,
        /// Commit number in the table now.
        stored: i64,
        /// Commit number this writer had seen.
        expected: i64,
    },

    /// Two open rows of one key, or a first version where a row is open already (INV-2).
    #[error(
        "duplicate open row: {table} has more than one open row of {key}; run `finlake reconcile` \
         to list the rows: with a `record` break of this key the table was changed and can be put \
         right; without one the topic itself says so: report it"
    )]
    DuplicateOpenRow {
        /// Table concerned.
        table: Table,
        /// Natural key.
        key: String,
    },

    /// A record supersedes a version that is not open in the table (INV-6).
    #[error(
        "missing open row: {table} has no open row of {key} with sys_from = {prev_sys_from}; \
         with a `record` break of this key in `finlake reconcile` the table was changed and can be \
         put right; without one the topic itself says so: report it"
    )]
    MissingOpenRow {
        /// Table concerned.
        table: Table,
        /// Natural key.
        key: String,
        /// System time (µs) of the version to be closed.
        prev_sys_from: i64,
    },

    /// A record breaks the bi-temporal rules (INV-3, INV-4).
    #[error("bi-temporal violation in {key}: {detail}; the record's producer is at fault: {hint}")]
    Violation {
        /// Natural key.
        key: String,
        /// What is wrong.
        detail: String,
        /// What to do.
        hint: &'static str,
    },

    /// Too many lost swaps in a row.
    #[error(
        "conflict: {table} was changed by others {tries} times in a row while committing; commit \
         less often or run fewer sink instances per table"
    )]
    Conflict {
        /// Table concerned.
        table: Table,
        /// Tries made.
        tries: u32,
    },

    /// The table belongs to another Kafka cluster or topic.
    #[error(
        "kafka changed: {table} was filled from {what} {stored}, now it is {found}; a recreated \
         cluster or topic must not continue an old table. Go back to the old one, or begin with \
         another application id, warehouse and state folder"
    )]
    KafkaChanged {
        /// Table concerned.
        table: Table,
        /// `cluster` or `topic <name>`.
        what: String,
        /// Id in the table.
        stored: String,
        /// Id found.
        found: String,
    },

    /// The table in the catalog has other columns than this version of FinLake writes.
    #[error("schema drift: {table}: {detail}; drop the table or migrate it before starting")]
    SchemaDrift {
        /// Table concerned.
        table: Table,
        /// Difference.
        detail: String,
    },

    /// Wrong configuration.
    #[error("configuration: {0}")]
    Config(String),

    /// A replay's shadow stands where none was expected, or something else where one was.
    #[error("shadow: {0}")]
    Shadow(String),

    /// Bytes that this version cannot read (a property, a manifest, a data file).
    #[error("unreadable {what}: {detail}; it was written by a newer FinLake or is damaged")]
    Corrupt {
        /// What was read.
        what: String,
        /// Why it failed.
        detail: String,
    },

    /// Iceberg or the object store failed. Transient as far as anyone can know.
    #[error("storage: {0}; check the warehouse's credentials and free space, then retry")]
    Storage(#[from] iceberg::Error),

    /// The catalog failed or its answer was lost.
    #[error("catalog: {0}; check that the catalog is reachable, then retry")]
    Catalog(String),

    /// The outcome of a swap stayed unknown after reloading.
    #[error(
        "unknown outcome: the catalog did not say whether {table} took the commit ({detail}); \
         reopen the table, its positions tell"
    )]
    Unknown {
        /// Table concerned.
        table: Table,
        /// The catalog's error.
        detail: String,
    },

    /// Parquet could not be written or read.
    #[error("parquet: {0}; if it persists the file is damaged, restore it or rebuild the table")]
    Parquet(#[from] parquet::errors::ParquetError),

    /// Arrow refused an operation (a defect of this crate).
    #[error("arrow: {0}; report this, it is a defect")]
    Arrow(#[from] arrow::error::ArrowError),

    /// A rule of this crate was broken by itself or its caller (a defect).
    #[error("internal: {0}; report this, it is a defect")]
    Internal(String),

    /// A crash point of a test fired.
    #[error("injected fault at {0}; only tests inject faults")]
    Injected(&'static str),
}

impl LakeError {
    /// True if the same call may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            LakeError::Storage(_)
                | LakeError::Catalog(_)
                | LakeError::Unknown { .. }
                | LakeError::Conflict { .. }
        )
    }

    /// True if this writer must give the partition up and rejoin its group.
    pub fn is_stale(&self) -> bool {
        matches!(self, LakeError::Stale { .. })
    }

    pub(crate) fn corrupt(what: impl Into<String>, detail: impl ToString) -> Self {
        LakeError::Corrupt {
            what: what.into(),
            detail: detail.to_string(),
        }
    }

    pub(crate) fn catalog(e: impl std::fmt::Display) -> Self {
        LakeError::Catalog(e.to_string())
    }
}
