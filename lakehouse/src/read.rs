//! Reading a table as it stood at one moment: for reconciliation, replay and `history`.
//!
//! A [`Pinned`] table is one load of the metadata: one snapshot and the positions that were
//! written with it, so rows and watermarks belong together however the live table moves on. With
//! a tag ([`Lakehouse::pin`]) its files stay until [`Lakehouse::unpin`]; without one
//! ([`Lakehouse::snapshot`]) only as long as the snapshot has not expired. Never writes rows.
//!
//! Data flows: catalog → `Pinned` → [`Filter`] (files by bounds, row groups by statistics, then
//! rows exactly) → [`ScanBatch`]es that know their file and row numbers.

mod filter;
mod history;
mod lineage;
mod scan;

pub use filter::Filter;
pub use history::{History, VersionInfo, VersionKey};
pub use lineage::SnapshotChange;
pub use scan::{FileTask, Scan, ScanBatch};

use std::sync::{Arc, OnceLock};

use crate::boxed;
use crate::catalog::Loaded;
use crate::error::{LakeError, Result};
use crate::lake::Lakehouse;
use crate::properties::{self, Position, Watermarks};
use crate::tables::{Table, TableDef};

/// A table at one snapshot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pinned {
    pub(crate) lake: Lakehouse,
    pub(crate) table: Table,
    pub(crate) def: TableDef,
    pub(crate) loaded: Loaded,
    snapshot: i64,
    marks: Watermarks,
    tag: Option<String>,
    /// With its manifests as they were read: planning is asked for again and again.
    read: Arc<OnceLock<iceberg::table::Table>>,
}

impl Pinned {
    /// Takes the current snapshot of loaded metadata.
    pub(crate) fn new(
        lake: &Lakehouse,
        table: Table,
        loaded: Loaded,
        tag: Option<String>,
    ) -> Result<Pinned> {
        let snapshot = loaded.metadata.current_snapshot_id().ok_or_else(|| {
            LakeError::Catalog(format!("{table} has no snapshot yet; start the sink"))
        })?;
        let marks = Watermarks::read(loaded.metadata.properties())?;
        properties::check_authority(table, &loaded.metadata, &marks)?;
        Ok(Pinned {
            lake: lake.clone(),
            table,
            def: lake.def(table),
            loaded,
            snapshot,
            marks,
            tag,
            read: Arc::default(),
        })
    }

    /// Which table.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Its definition under this configuration.
    pub fn def(&self) -> &TableDef {
        &self.def
    }

    /// The snapshot that is read.
    pub fn snapshot_id(&self) -> i64 {
        self.snapshot
    }

    /// The tag that holds it, if any.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Positions, Kafka identities and frontier that belong to the snapshot.
    pub fn watermarks(&self) -> &Watermarks {
        &self.marks
    }

    /// The cut of one Kafka partition: last commit, input position, frontier. Commit 0 if the
    /// table holds nothing of it.
    pub fn position(&self, partition: i32) -> Position {
        self.marks
            .positions
            .get(&partition)
            .copied()
            .unwrap_or_default()
    }

    /// System time (µs) up to which the table is whole over all partitions.
    pub fn frontier(&self) -> Option<i64> {
        self.marks.frontier()
    }

    /// Metadata it was read from: schema, partition spec, snapshots, properties.
    pub fn metadata(&self) -> &iceberg::spec::TableMetadata {
        &self.loaded.metadata
    }

    /// As iceberg's read API takes it. Scan it with `.snapshot_id(self.snapshot_id())`, in the
    /// runtime of the first call.
    ///
    /// # Errors
    /// `Storage` outside a tokio runtime.
    pub fn iceberg(&self) -> Result<&iceberg::table::Table> {
        match self.read.get() {
            Some(table) => Ok(table),
            None => {
                let table = self.lake.as_table(self.table, &self.loaded)?;
                Ok(self.read.get_or_init(|| table))
            }
        }
    }

    /// Removes its tag, if it has one. A handle that is dropped without this leaves the tag
    /// behind, so that a crashed reconciliation does not lose the files it reports on; see
    /// [`Lakehouse::unpin_stale`].
    ///
    /// # Errors
    /// `Catalog`, `Conflict`, `Storage`.
    #[boxed]
    pub async fn unpin(self) -> Result<()> {
        match &self.tag {
            Some(tag) => self.lake.unpin(self.table, tag).await,
            None => Ok(()),
        }
    }
}

impl Lakehouse {
    /// A table at its current snapshot, without a tag: for reads that are short against the
    /// expiry age of snapshots (`upkeep.snapshot_age`).
    ///
    /// # Errors
    /// `Catalog` if the table does not exist, `TableMoved`, `Corrupt`, `Storage`.
    #[boxed]
    pub async fn snapshot(&self, table: Table) -> Result<Pinned> {
        let loaded = self.existing(table).await?;
        Pinned::new(self, table, loaded, None)
    }
}
