//! The compare-and-swap commit of one table.
//!
//! Rules of a try, in order:
//! 1. The base is the one this process wrote last; only after a lost swap is it read again.
//! 2. The table's properties must be trustworthy (`table_moved` otherwise).
//! 3. My partitions' positions must be what the plan saw, every file the change removes must be
//!    live, and the partition spec the one that files were written for; else the caller plans anew
//!    on the reloaded base.
//! 4. Manifests are written once and re-attached on later tries; data is never rewritten here.
//! 5. Positions, snapshot id, expiries and data go into one metadata file, swapped in once.
//! 6. A lost or unknown outcome is decided by looking for my snapshot id in the table.
//! 7. What the next commit builds on is what the answer says is current: my snapshot, with the
//!    manifests in memory, or a later one, whose manifests are read.
//!
//! What this module must never do: decide about rows, or delete anything that a swap of unknown
//! outcome may refer to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use iceberg::TableIdent;
use iceberg::spec::{DataFile, ManifestFile, MetadataLog, Operation, TableMetadata};
use rand::Rng;

use crate::boxed;
use crate::catalog::{Loaded, Swap};
use crate::error::{LakeError, Result};
use crate::faults::{Fault, Plant, Point};
use crate::index::Base;
use crate::lake::Lakehouse;
use crate::maintain::{self, Kept, Trails};
use crate::manifests::{Manifests, Written, with_sequence};
use crate::properties::{self, Position, Watermarks};
use crate::shadow;
use crate::snapshot::{self, NewSnapshot};
use crate::tables::{Table, TableDef};

/// Lost swaps in a row before giving up.
const MAX_TRIES: u32 = 20;

/// A change of one table, ready to be committed.
#[derive(Debug)]
pub struct Change {
    /// New data files.
    pub added: Vec<Arc<DataFile>>,
    /// Paths of live files that go.
    pub removed: BTreeSet<Arc<str>>,
    /// `append` if nothing is removed, `overwrite` if rows change, `replace` if only files do.
    pub operation: Operation,
    /// Positions the plan saw, for the partitions it moves.
    pub expected: BTreeMap<i32, Position>,
    /// Positions after the change.
    pub positions: BTreeMap<i32, Position>,
    /// Additional summary entries.
    pub summary: HashMap<String, String>,
}

/// How a commit ended.
#[derive(Debug)]
pub enum Committed {
    /// The change is in the table.
    Done(Done),
    /// The base changed so that the plan no longer fits; it has been reloaded.
    Replan,
}

/// Figures of a successful commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Snapshot id.
    pub snapshot: i64,
    /// Swaps lost before this one succeeded.
    pub lost: u32,
    /// Snapshots expired with it.
    pub expired: usize,
}

/// The committing half of one table in one process.
#[derive(Debug)]
pub struct Committer {
    lake: Lakehouse,
    table: Table,
    ident: TableIdent,
    def: TableDef,
    base: Base,
    kept: Kept,
    trails: Trails,
    /// Swaps lost and re-attached since the start.
    pub reattached: u64,
}

impl Committer {
    /// Loads the table.
    ///
    /// # Errors
    /// `Catalog` if it does not exist, `TableMoved`, `SchemaDrift`, `Shadow`, `Storage`.
    #[boxed]
    pub async fn open(lake: &Lakehouse, table: Table) -> Result<Committer> {
        let def = lake.def(table);
        let ident = lake.ident(table);
        let loaded = lake.catalog.load(&ident).await?.ok_or_else(|| {
            LakeError::Catalog(format!("{ident} does not exist; call ensure_tables first"))
        })?;
        shadow::check_mark(lake.config(), &ident, loaded.metadata.properties())?;
        def.check(loaded.metadata.current_schema())?;
        let base = Base::read(&lake.file_io, table, &def, loaded, None).await?;
        let committer = Committer {
            lake: lake.clone(),
            table,
            ident,
            def,
            base,
            kept: Kept::default(),
            trails: Trails::default(),
            reattached: 0,
        };
        committer.watermarks()?;
        Ok(committer)
    }

    /// The base as last seen.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The table's definition.
    pub fn def(&self) -> &TableDef {
        &self.def
    }

    /// The lakehouse.
    pub fn lake(&self) -> &Lakehouse {
        &self.lake
    }

    /// Positions of the base, if they may be trusted.
    ///
    /// # Errors
    /// `TableMoved`, `Corrupt`.
    pub fn watermarks(&self) -> Result<Watermarks> {
        let marks = Watermarks::read(self.base.metadata().properties())?;
        properties::check_authority(self.table, self.base.metadata(), &marks)?;
        Ok(marks)
    }

    /// Reads the table again, if it changed.
    ///
    /// # Errors
    /// `Catalog`, `Storage`.
    #[boxed]
    pub async fn reload(&mut self) -> Result<()> {
        let loaded = self.lake.catalog.load(&self.ident).await?.ok_or_else(|| {
            LakeError::Catalog(format!("{} was dropped while being written", self.ident))
        })?;
        if loaded.location != self.base.loaded.location {
            self.rebase(loaded).await?;
        }
        Ok(())
    }

    async fn rebase(&mut self, loaded: Loaded) -> Result<()> {
        self.base = Base::read(
            &self.lake.file_io,
            self.table,
            &self.def,
            loaded,
            Some(&self.base),
        )
        .await?;
        Ok(())
    }

    /// Commits a change; see the module's rules.
    ///
    /// # Errors
    /// `Conflict` after 20 lost swaps, `Unknown` if the catalog stays silent, `TableMoved`,
    /// `Catalog`, `Storage`. After an error that `is_transient`, `reload` tells what happened.
    #[boxed]
    pub async fn commit(&mut self, change: &Change) -> Result<Committed> {
        let id = snapshot::fresh_id(self.base.metadata());
        // The files were written for this partition spec.
        let spec = self.base.metadata().default_partition_spec_id();
        let mut written: Vec<Written> = Vec::new();
        for lost in 0..MAX_TRIES {
            let fits = self.base.metadata().default_partition_spec_id() == spec
                && self.still_fits(change)?;
            if !fits && !self.lake.faults.planted(Plant::Rebased, self.table) {
                self.manifests().discard(&written).await;
                return Ok(Committed::Replan);
            }
            written = self.manifests().write(change, id, written).await?;
            let manifests = self.manifests().list(&written);
            let expire = maintain::expired(
                self.base.metadata(),
                &self.base.pinned,
                (self.lake.clock)(),
                &self.lake.config.upkeep,
            );
            let list = format!(
                "{}/metadata/snap-{id}-{lost}-{}.avro",
                self.base.metadata().location(),
                uuid::Uuid::new_v4()
            );
            let base = self.base.metadata();
            snapshot::write_manifest_list(&self.lake.file_io, &list, base, id, &manifests).await?;
            let sequence = base.next_sequence_number();
            let props = properties::updates(&change.positions, id);
            let (proposal, dropped_logs) = snapshot::propose(
                &self.base.loaded,
                NewSnapshot {
                    id,
                    operation: change.operation.clone(),
                    manifest_list: list.clone(),
                    summary: self.summary(change),
                    now_ms: (self.lake.clock)(),
                    properties: props,
                    expire: expire.clone(),
                },
            )?;
            self.lake.faults.crash_at(Point::BeforeMetadata)?;
            let staged = self
                .lake
                .catalog
                .stage(&self.ident, &self.base.loaded, proposal)
                .await?;
            let metadata_file = staged.location.clone();
            self.lake.faults.crash_at(Point::BeforeSwap)?;
            let swap = self
                .lake
                .catalog
                .swap(&self.ident, &self.base.loaded, staged)
                .await?;
            let swap = match self.lake.faults.at(Point::AfterSwap) {
                Fault::None => swap,
                Fault::Crash => return Err(LakeError::Injected("after swap")),
                Fault::LoseReply => Swap::Unknown("reply lost by a test".into()),
            };
            match swap {
                Swap::Done(loaded) => {
                    let manifests = with_sequence(manifests, id, sequence);
                    self.done(
                        loaded,
                        change,
                        manifests,
                        &written,
                        id,
                        sequence,
                        dropped_logs,
                        &expire,
                    )
                    .await?;
                    return Ok(Committed::Done(Done {
                        snapshot: id,
                        lost,
                        expired: expire.len(),
                    }));
                }
                Swap::Lost | Swap::Unknown(_) => {
                    let known_lost = matches!(swap, Swap::Lost);
                    if let Swap::Unknown(detail) = &swap {
                        tracing::warn!(table = %self.table, detail, "outcome of a swap unknown");
                    }
                    self.pause(lost).await;
                    self.reload_after(&swap).await?;
                    if self.base.metadata().snapshot_by_id(id).is_some() {
                        return Ok(Committed::Done(Done {
                            snapshot: id,
                            lost,
                            expired: expire.len(),
                        }));
                    }
                    if known_lost {
                        // Certainly not referred to by anyone.
                        let _ = self.lake.file_io.delete(&list).await;
                        if let Some(m) = metadata_file {
                            let _ = self.lake.file_io.delete(&m).await;
                        }
                    }
                    self.reattached += 1;
                }
            }
        }
        Err(LakeError::Conflict {
            table: self.table,
            tries: MAX_TRIES,
        })
    }

    /// Reloads after a swap that did not answer `Done`. While a catalog is down, an unknown
    /// outcome stays unknown.
    async fn reload_after(&mut self, swap: &Swap) -> Result<()> {
        let mut result = self.reload().await;
        for attempt in 0..3 {
            if result.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
            result = self.reload().await;
        }
        match (result, swap) {
            (Err(e), Swap::Unknown(detail)) => Err(LakeError::Unknown {
                table: self.table,
                detail: format!("{detail}; then {e}"),
            }),
            (r, _) => r,
        }
    }

    /// Jitter, so that instances that collide do not collide again.
    async fn pause(&self, lost: u32) {
        let cap = 5u64 << lost.min(6);
        let ms = rand::rng().random_range(0..=cap);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    fn still_fits(&self, change: &Change) -> Result<bool> {
        let marks = self.watermarks()?;
        let positions = change
            .expected
            .iter()
            .all(|(p, at)| marks.positions.get(p).copied().unwrap_or_default() == *at);
        let files = change
            .removed
            .iter()
            .all(|path| self.base.manifest_of(path).is_some());
        Ok(positions && files)
    }

    fn summary(&self, change: &Change) -> HashMap<String, String> {
        let previous = self.base.metadata().current_snapshot();
        let before = |key: &str| -> i64 {
            previous
                .and_then(|s| s.summary().additional_properties.get(key))
                .and_then(|v| v.parse().ok())
                .unwrap_or(0)
        };
        let removed: Vec<_> = change
            .removed
            .iter()
            .filter_map(|p| self.base.manifest_of(p).map(|m| (m, p)))
            .filter_map(|(m, p)| {
                let cached = self.base.cached(m)?;
                cached.files.iter().find(|f| f.path == *p)
            })
            .collect();
        let added_rows: u64 = change.added.iter().map(|f| f.record_count()).sum();
        let added_bytes: u64 = change.added.iter().map(|f| f.file_size_in_bytes()).sum();
        let removed_rows: u64 = removed.iter().map(|f| f.rows).sum();
        let removed_bytes: u64 = removed.iter().map(|f| f.bytes).sum();
        let mut out = change.summary.clone();
        for (added, deleted, total, plus, minus) in [
            (
                "added-data-files",
                "deleted-data-files",
                "total-data-files",
                change.added.len() as u64,
                removed.len() as u64,
            ),
            (
                "added-records",
                "deleted-records",
                "total-records",
                added_rows,
                removed_rows,
            ),
            (
                "added-files-size",
                "removed-files-size",
                "total-files-size",
                added_bytes,
                removed_bytes,
            ),
        ] {
            if plus > 0 {
                out.insert(added.into(), plus.to_string());
            }
            if minus > 0 {
                out.insert(deleted.into(), minus.to_string());
            }
            let now = before(total) + plus as i64 - minus as i64;
            out.insert(total.into(), now.to_string());
        }
        out
    }

    #[allow(clippy::too_many_arguments)]
    async fn done(
        &mut self,
        loaded: Loaded,
        change: &Change,
        manifests: Vec<ManifestFile>,
        written: &[Written],
        id: i64,
        sequence: i64,
        dropped_logs: Vec<MetadataLog>,
        expire: &[i64],
    ) -> Result<()> {
        let entries = written
            .iter()
            .map(|w| (w.manifest.clone(), w.entries(id, sequence)))
            .collect();
        let before = self.base.loaded.metadata.clone();
        self.trails.note(
            id,
            manifests.iter().map(|m| m.manifest_path.as_str()),
            change.removed.iter().cloned(),
        );
        if loaded.metadata.current_snapshot_id() != Some(id) {
            // A REST server answers with the table as it stands when it answers: somebody committed
            // on top of this meanwhile, and what that commit did stands in its manifests only. What
            // expired with this one is left to the orphan sweep.
            let there = loaded.metadata.snapshot_by_id(id).is_some();
            self.rebase(loaded).await?;
            return if there {
                Ok(())
            } else {
                Err(LakeError::Unknown {
                    table: self.table,
                    detail: format!("the catalog accepted snapshot {id} and does not show it"),
                })
            };
        }
        self.base.advance(loaded, manifests, entries);
        if !self.lake.catalog.owns_metadata_files() {
            self.base.repin()?;
        }
        self.lake.faults.crash_at(Point::BeforeCleanup)?;
        if self.lake.catalog.owns_metadata_files() {
            for log in dropped_logs {
                let _ = self.lake.file_io.delete(&log.metadata_file).await;
            }
        }
        if !expire.is_empty()
            && let Err(e) = self.remove_expired(&before, expire).await
        {
            // The commit stands; what is left behind is found by the orphan sweep.
            tracing::warn!(table = %self.table, error = %e, "clean-up after expiry failed");
        }
        Ok(())
    }

    async fn remove_expired(&mut self, before: &TableMetadata, expire: &[i64]) -> Result<()> {
        let io = &self.lake.file_io;
        self.kept.follow(io, before, &self.base.pinned).await?;
        maintain::remove_expired(io, before, &self.kept, &mut self.trails, expire).await
    }

    fn manifests(&self) -> Manifests<'_> {
        Manifests {
            file_io: &self.lake.file_io,
            base: &self.base,
            limit: self.lake.config.upkeep.manifests,
        }
    }
}
