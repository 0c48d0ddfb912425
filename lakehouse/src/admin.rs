//! What operators and reconciliation do to tables: adopt, pin, sweep.
//!
//! Each is one compare-and-swap on the loaded base, tried again when lost. None of them touches
//! rows. Data flows: CLI → here → catalog.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

use crate::boxed;
use crate::catalog::{Loaded, Proposal, Swap};
use crate::error::{LakeError, Result};
use crate::lake::Lakehouse;
use crate::maintain;
use crate::properties::{P_POSITION, Position, S_POSITIONS, Watermarks};
use crate::read::Pinned;
use crate::shadow;
use crate::storage;
use crate::tables::Table;

const TRIES: u32 = 20;

/// How pins of FinLake's own runs begin.
pub const PIN_PREFIX: &str = "finlake-";

/// A tag of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinInfo {
    /// Name.
    pub name: String,
    /// Snapshot it holds.
    pub snapshot: i64,
    /// Time of that snapshot, ms.
    pub time_ms: i64,
}

impl Lakehouse {
    /// Makes a moved table FinLake's again: positions are set to what the current snapshot's line
    /// of history says, so that commits which a rollback took away are taken again from Kafka.
    /// Returns the positions adopted.
    ///
    /// # Errors
    /// `Corrupt` if the history no longer tells the position of a partition (its snapshots
    /// expired); then the table must be rebuilt. `Shadow` for a replay's table.
    #[boxed]
    pub async fn adopt(&self, table: Table) -> Result<BTreeMap<i32, Position>> {
        for _ in 0..TRIES {
            let base = self.existing(table).await?;
            shadow::check_mark(&self.config, &self.ident(table), base.metadata.properties())?;
            let marks = Watermarks::read(base.metadata.properties())?;
            let positions = positions_in_history(&base.metadata, &marks)?;
            let props: HashMap<String, String> = positions
                .iter()
                .map(|(p, at)| (format!("{P_POSITION}{p}"), at.encode()))
                .collect();
            if self.empty_commit(&self.ident(table), &base, props).await? {
                return Ok(positions);
            }
        }
        Err(LakeError::Conflict {
            table,
            tries: TRIES,
        })
    }

    /// Tags the current snapshot, so that neither it nor its files go, and returns the table as it
    /// stands there. A tag of that name moves.
    ///
    /// # Errors
    /// `Catalog` if the table is missing or empty, `Config` for the name of a branch,
    /// `TableMoved`, `Conflict`, `Storage`.
    #[boxed]
    pub async fn pin(&self, table: Table, name: &str) -> Result<Pinned> {
        if name == MAIN_BRANCH {
            return Err(LakeError::Config(format!(
                "{name} is the table's own branch; choose another name for the pin"
            )));
        }
        for _ in 0..TRIES {
            let base = self.existing(table).await?;
            let pinned = Pinned::new(self, table, base.clone(), Some(name.to_string()))?;
            let retention = SnapshotRetention::Tag {
                max_ref_age_ms: None,
            };
            let update = TableUpdate::SetSnapshotRef {
                ref_name: name.to_string(),
                reference: SnapshotReference::new(pinned.snapshot_id(), retention),
            };
            if self.update(table, &base, vec![update]).await? {
                return Ok(pinned);
            }
        }
        Err(LakeError::Conflict {
            table,
            tries: TRIES,
        })
    }

    /// Removes a tag; none of that name is no error.
    ///
    /// # Errors
    /// `Catalog`, `Conflict`, `Storage`.
    #[boxed]
    pub async fn unpin(&self, table: Table, name: &str) -> Result<()> {
        for _ in 0..TRIES {
            let base = self.existing(table).await?;
            if name == MAIN_BRANCH || base.metadata.snapshot_for_ref(name).is_none() {
                return Ok(());
            }
            let update = TableUpdate::RemoveSnapshotRef {
                ref_name: name.to_string(),
            };
            if self.update(table, &base, vec![update]).await? {
                return Ok(());
            }
        }
        Err(LakeError::Conflict {
            table,
            tries: TRIES,
        })
    }

    /// Tags of a table (branches too, the main one aside) with the snapshots they hold and their
    /// times (ms), by name.
    ///
    /// # Errors
    /// `Catalog`, `Storage`, `Corrupt`.
    #[boxed]
    pub async fn pins(&self, table: Table) -> Result<Vec<PinInfo>> {
        let base = self.existing(table).await?;
        let refs = crate::index::refs(&base.metadata)?;
        Ok(refs
            .into_iter()
            .map(|(name, snapshot)| PinInfo {
                name,
                snapshot,
                time_ms: base
                    .metadata
                    .snapshot_by_id(snapshot)
                    .map_or(0, |s| s.timestamp_ms()),
            })
            .collect())
    }

    /// Removes tags beginning with `prefix` that are older than `age`: what crashed runs left
    /// behind. How old one is says the first number in its name (ms since 1970, as reconciliation
    /// gives), for a table that stands still has an old snapshot under a fresh tag; of others, the
    /// snapshot's time. Returns the names removed.
    ///
    /// # Errors
    /// `Catalog`, `Conflict`, `Storage`.
    #[boxed]
    pub async fn unpin_stale(
        &self,
        table: Table,
        prefix: &str,
        age: Duration,
    ) -> Result<Vec<String>> {
        let youngest = (self.clock)() - i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let mut gone = Vec::new();
        for pin in self.pins(table).await? {
            let Some(rest) = pin.name.strip_prefix(prefix) else {
                continue;
            };
            let named = rest.split('-').find_map(|part| part.parse::<i64>().ok());
            if named.unwrap_or(0).max(pin.time_ms) < youngest {
                self.unpin(table, &pin.name).await?;
                gone.push(pin.name);
            }
        }
        Ok(gone)
    }

    /// What a process that writes a table does once, at its start: lets go of pins that crashed
    /// runs left behind for a day, and of files that nothing refers to. Returns how many files
    /// went.
    ///
    /// # Errors
    /// `Catalog`, `Conflict`, `Storage`.
    #[boxed]
    pub async fn tidy(&self, table: Table) -> Result<usize> {
        self.unpin_stale(table, PIN_PREFIX, Duration::from_secs(24 * 3600))
            .await?;
        self.sweep(table).await
    }

    /// Deletes files under the table's location that no kept snapshot refers to and that are
    /// older than `upkeep.orphan_age`. Returns how many.
    ///
    /// # Errors
    /// `Catalog`, `Storage`.
    #[boxed]
    pub async fn sweep(&self, table: Table) -> Result<usize> {
        // Listed first: what is written afterwards is not judged by references read earlier.
        let location = self.existing(table).await?.metadata.location().to_string();
        let listed: Vec<(String, i64)> = storage::list(&self.config.storage, &location)
            .await?
            .into_iter()
            .map(|l| (l.location, l.modified / 1_000))
            .collect();
        let now = self.existing(table).await?;
        let referenced = maintain::referenced(&self.file_io, &now.metadata).await?;
        let orphans = maintain::orphans(
            &listed,
            &referenced,
            &now.location,
            (self.clock)(),
            &self.config.upkeep,
        );
        for path in &orphans {
            self.file_io.delete(path).await?;
        }
        Ok(orphans.len())
    }

    pub(crate) async fn existing(&self, table: Table) -> Result<Loaded> {
        self.load(table).await?.ok_or_else(|| {
            LakeError::Catalog(format!(
                "{} does not exist; start the sink once to create it",
                self.ident(table)
            ))
        })
    }

    /// Changes of metadata without a snapshot; false if someone else changed the table first.
    pub(crate) async fn update(
        &self,
        table: Table,
        base: &Loaded,
        updates: Vec<TableUpdate>,
    ) -> Result<bool> {
        let mut builder = (*base.metadata)
            .clone()
            .into_builder(Some(base.location.clone()));
        for update in updates {
            builder = update.apply(builder)?;
        }
        let built = builder.build()?;
        let proposal = Proposal {
            metadata: built.metadata,
            updates: built.changes,
            requirements: vec![
                TableRequirement::UuidMatch {
                    uuid: base.metadata.uuid(),
                },
                TableRequirement::RefSnapshotIdMatch {
                    r#ref: MAIN_BRANCH.to_string(),
                    snapshot_id: base.metadata.current_snapshot_id(),
                },
            ],
        };
        let ident = self.ident(table);
        let staged = self.catalog.stage(&ident, base, proposal).await?;
        match self.catalog.swap(&ident, base, staged).await? {
            Swap::Done(_) => Ok(true),
            Swap::Lost => Ok(false),
            Swap::Unknown(detail) => Err(LakeError::Unknown { table, detail }),
        }
    }
}

/// The positions that the snapshots on the current line of history took, newest first; partitions
/// that no snapshot of the whole line moved are at 0.
fn positions_in_history(
    metadata: &TableMetadata,
    marks: &Watermarks,
) -> Result<BTreeMap<i32, Position>> {
    let mut found: BTreeMap<i32, Position> = BTreeMap::new();
    let mut at = metadata.current_snapshot();
    let mut whole = false;
    while let Some(s) = at {
        if let Some(text) = s.summary().additional_properties.get(S_POSITIONS) {
            for (p, position) in parse(text)? {
                found.entry(p).or_insert(position);
            }
        }
        whole = s.parent_snapshot_id().is_none();
        at = s
            .parent_snapshot_id()
            .and_then(|id| metadata.snapshot_by_id(id));
    }
    for p in marks.positions.keys() {
        if !found.contains_key(p) {
            if !whole {
                return Err(LakeError::corrupt(
                    format!("history of partition {p}"),
                    "its snapshots expired, so nothing tells how far it is; rebuild the table",
                ));
            }
            found.insert(*p, Position::default());
        }
    }
    Ok(found)
}

/// `0:12/345/1700;1:…` = partition:position.
pub(crate) fn parse(text: &str) -> Result<Vec<(i32, Position)>> {
    text.split(';')
        .map(|part| {
            let (p, rest) = part.split_once(':')?;
            Some((p.parse().ok()?, Position::from_summary(rest)?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| LakeError::corrupt(format!("summary {S_POSITIONS}"), text))
}
