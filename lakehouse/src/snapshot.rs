//! Builds the metadata that follows a base: one snapshot, its properties, expiries, all in one
//! change.
//!
//! Computes only; writes nothing and decides nothing. `commit.rs` hands in the manifest list it
//! wrote and swaps what comes out.

use std::collections::HashMap;

use iceberg::io::FileIO;
use iceberg::spec::{
    MAIN_BRANCH, ManifestFile, ManifestListWriter, MetadataLog, Operation, Snapshot,
    SnapshotReference, SnapshotRetention, Summary, TableMetadata,
};
use iceberg::{TableRequirement, TableUpdate};
use rand::Rng;

use crate::catalog::{Loaded, Proposal};
use crate::error::Result;

/// Everything of a new snapshot but its base.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Snapshot id; kept over tries, so that written manifests stay valid.
    pub id: i64,
    /// `append`, `overwrite` or `replace`.
    pub operation: Operation,
    /// Location of its manifest list.
    pub manifest_list: String,
    /// Summary entries.
    pub summary: HashMap<String, String>,
    /// Wall clock now, ms. The snapshot gets the table's last time if that is later.
    pub now_ms: i64,
    /// Properties to set with it.
    pub properties: HashMap<String, String>,
    /// Snapshots to expire with it.
    pub expire: Vec<i64>,
}

/// A fresh snapshot id: positive, random, not in use.
pub fn fresh_id(metadata: &TableMetadata) -> i64 {
    loop {
        let id = rand::rng().random_range(1..i64::MAX);
        if metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

/// Writes a manifest list.
///
/// # Errors
/// `Storage`.
pub async fn write_manifest_list(
    file_io: &FileIO,
    location: &str,
    base: &TableMetadata,
    snapshot_id: i64,
    manifests: &[ManifestFile],
) -> Result<()> {
    let writer = file_io.new_output(location)?.writer().await?;
    let mut list = ManifestListWriter::v2(
        writer,
        snapshot_id,
        base.current_snapshot_id(),
        base.next_sequence_number(),
    );
    list.add_manifests(manifests.iter().cloned())?;
    list.close().await?;
    Ok(())
}

/// The change that puts `new` on top of `base`, and the metadata-log entries it drops.
///
/// # Errors
/// `Storage` if the metadata builder refuses it.
pub fn propose(base: &Loaded, new: NewSnapshot) -> Result<(Proposal, Vec<MetadataLog>)> {
    let metadata = &base.metadata;
    // `add_snapshot` refuses times more than a minute behind the table's; clocks of several
    // instances differ, so time never moves back here.
    let last = metadata
        .current_snapshot()
        .map_or(0, |s| s.timestamp_ms())
        .max(metadata.last_updated_ms());
    let snapshot = Snapshot::builder()
        .with_snapshot_id(new.id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(metadata.next_sequence_number())
        .with_timestamp_ms(new.now_ms.max(last))
        .with_manifest_list(new.manifest_list)
        .with_schema_id(metadata.current_schema_id())
        .with_summary(Summary {
            operation: new.operation,
            additional_properties: new.summary,
        })
        .build();
    let requirements = vec![
        TableRequirement::UuidMatch {
            uuid: metadata.uuid(),
        },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_string(),
            snapshot_id: metadata.current_snapshot_id(),
        },
    ];
    let mut updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef {
            ref_name: MAIN_BRANCH.to_string(),
            reference: SnapshotReference::new(new.id, SnapshotRetention::branch(None, None, None)),
        },
    ];
    if !new.properties.is_empty() {
        updates.push(TableUpdate::SetProperties {
            updates: new.properties,
        });
    }
    if !new.expire.is_empty() {
        updates.push(TableUpdate::RemoveSnapshots {
            snapshot_ids: new.expire,
        });
    }
    let mut builder = (**metadata)
        .clone()
        .into_builder(Some(base.location.clone()));
    for update in updates {
        builder = update.apply(builder)?;
    }
    let built = builder.build()?;
    Ok((
        Proposal {
            metadata: built.metadata,
            updates: built.changes,
            requirements,
        },
        built.expired_metadata_logs,
    ))
}
