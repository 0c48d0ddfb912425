//! Manifests of a commit: written once, re-attached while their sources stay.
//!
//! A commit writes at most two: one for hot files, one for all others. Each folds in the
//! manifests whose files it removes (what stays becomes existing, what goes is marked deleted)
//! and, when there are too many, the small ones that hold no hot files. Data files are never
//! touched here.

use std::collections::BTreeSet;
use std::sync::Arc;

use iceberg::io::FileIO;
use iceberg::spec::{DataFile, ManifestFile, ManifestWriterBuilder};

use crate::commit::Change;
use crate::error::{LakeError, Result};
use crate::index::{Base, Kind, LiveEntry};

/// Manifests longer than this are not merged again.
const LARGE_MANIFEST: i64 = 1 << 20;

/// A manifest written for this change, reusable while its sources stay.
#[derive(Debug, Clone)]
pub struct Written {
    sources: BTreeSet<String>,
    /// The manifest; its sequence numbers are assigned with the snapshot.
    pub manifest: ManifestFile,
    entries: Vec<PendingEntry>,
}

/// A live entry of a written manifest; added ones get their sequence number with the snapshot.
#[derive(Debug, Clone)]
enum PendingEntry {
    Added(Arc<DataFile>),
    Existing(LiveEntry),
}

/// Writes manifests against a base.
pub struct Manifests<'a> {
    /// Storage.
    pub file_io: &'a FileIO,
    /// The base committed against.
    pub base: &'a Base,
    /// Merge when there would be more than this many.
    pub limit: usize,
}

impl Written {
    /// Whether it was written for these sources and these very files: as many of the other kind are not the same.
    fn is_of(&self, sources: &BTreeSet<String>, added: &[Arc<DataFile>]) -> bool {
        let mine = self.entries.iter().filter_map(|e| match e {
            PendingEntry::Added(file) => Some(file.file_path()),
            PendingEntry::Existing(_) => None,
        });
        self.sources == *sources && mine.eq(added.iter().map(|f| f.file_path()))
    }

    /// The live entries, once the snapshot and its sequence number are known.
    pub fn entries(&self, snapshot: i64, sequence: i64) -> Vec<LiveEntry> {
        self.entries
            .iter()
            .map(|e| match e {
                PendingEntry::Existing(e) => e.clone(),
                PendingEntry::Added(file) => LiveEntry {
                    file: file.clone(),
                    snapshot_id: snapshot,
                    sequence,
                    file_sequence: Some(sequence),
                },
            })
            .collect()
    }
}

impl Manifests<'_> {
    /// Writes the manifests of the change, or keeps those of the last try that still fit.
    ///
    /// Hot files live in manifests of their own, so that replacing them every commit does not
    /// rewrite entries of settled files.
    pub async fn write(
        &self,
        change: &Change,
        id: i64,
        last: Vec<Written>,
    ) -> Result<Vec<Written>> {
        let is_hot = |path: &str| matches!(Kind::of(path), Kind::Hot(_));
        let mut hot_sources = BTreeSet::new();
        let mut cold_sources = BTreeSet::new();
        for path in &change.removed {
            if let Some(m) = self.base.manifest_of(path) {
                let set = if is_hot(path) {
                    &mut hot_sources
                } else {
                    &mut cold_sources
                };
                set.insert(m.to_string());
            }
        }
        hot_sources.retain(|m| !cold_sources.contains(m));
        if self.base.manifests.len() + 2 > self.limit {
            cold_sources.extend(self.mergeable(&hot_sources));
        }
        let (hot_added, cold_added): (Vec<_>, Vec<_>) = change
            .added
            .iter()
            .cloned()
            .partition(|f| is_hot(f.file_path()));
        let mut out = Vec::new();
        let mut reused = BTreeSet::new();
        for (sources, added) in [(hot_sources, hot_added), (cold_sources, cold_added)] {
            if sources.is_empty() && added.is_empty() {
                continue;
            }
            if let Some(w) = last.iter().find(|w| w.is_of(&sources, &added)) {
                reused.insert(w.manifest.manifest_path.clone());
                out.push(w.clone());
                continue;
            }
            out.push(self.fold(sources, added, change, id).await?);
        }
        let stale: Vec<Written> = last
            .into_iter()
            .filter(|w| !reused.contains(&w.manifest.manifest_path))
            .collect();
        self.discard(&stale).await;
        Ok(out)
    }

    /// Small manifests without hot files: merged when there are too many.
    fn mergeable(&self, hot_sources: &BTreeSet<String>) -> Vec<String> {
        let spec = self.base.metadata().default_partition_spec_id();
        self.base
            .manifests
            .iter()
            .filter(|m| m.manifest_length < LARGE_MANIFEST && m.partition_spec_id == spec)
            .filter(|m| !hot_sources.contains(&m.manifest_path))
            .filter(|m| {
                self.base.cached(&m.manifest_path).is_some_and(|c| {
                    !c.files.is_empty() && !c.files.iter().all(|f| matches!(f.kind, Kind::Hot(_)))
                })
            })
            .map(|m| m.manifest_path.clone())
            .collect()
    }

    /// One manifest out of several: what stays as existing, what goes as deleted, what is new.
    async fn fold(
        &self,
        sources: BTreeSet<String>,
        added: Vec<Arc<DataFile>>,
        change: &Change,
        id: i64,
    ) -> Result<Written> {
        let metadata = self.base.metadata();
        let location = format!(
            "{}/metadata/{}-m0.avro",
            metadata.location(),
            uuid::Uuid::new_v4()
        );
        let spec_id = match self
            .base
            .manifests
            .iter()
            .find(|m| sources.contains(&m.manifest_path))
        {
            Some(m) if added.is_empty() => m.partition_spec_id,
            _ => metadata.default_partition_spec_id(),
        };
        let spec = metadata.partition_spec_by_id(spec_id).ok_or_else(|| {
            LakeError::Internal(format!("partition spec {spec_id} is not in the metadata"))
        })?;
        let mut writer = ManifestWriterBuilder::new(
            self.file_io.new_output(&location)?,
            Some(id),
            metadata.current_schema().clone(),
            (**spec).clone(),
        )
        .build_v2_data();
        let mut entries = Vec::new();
        for manifest in &self.base.manifests {
            if !sources.contains(&manifest.manifest_path) {
                continue;
            }
            if manifest.partition_spec_id != spec_id {
                return Err(LakeError::Internal(
                    "files of different partition specs change in one commit; run \
                     rewrite_data_files after changing the partitioning"
                        .into(),
                ));
            }
            for e in self.base.entries(self.file_io, manifest).await? {
                let file = (*e.file).clone();
                if change.removed.contains(e.file.file_path()) {
                    writer.add_delete_file(file, e.sequence, e.file_sequence)?;
                } else {
                    writer.add_existing_file(file, e.snapshot_id, e.sequence, e.file_sequence)?;
                    entries.push(PendingEntry::Existing(e));
                }
            }
        }
        for file in added {
            writer.add_file((*file).clone(), -1)?;
            entries.push(PendingEntry::Added(file));
        }
        Ok(Written {
            sources,
            manifest: writer.write_manifest_file().await?,
            entries,
        })
    }

    /// New manifests first, then those of the base that stay and hold live files.
    pub fn list(&self, written: &[Written]) -> Vec<ManifestFile> {
        let replaced: BTreeSet<&String> = written.iter().flat_map(|w| &w.sources).collect();
        written
            .iter()
            .map(|w| w.manifest.clone())
            .chain(
                self.base
                    .manifests
                    .iter()
                    .filter(|m| !replaced.contains(&m.manifest_path))
                    .filter(|m| m.has_added_files() || m.has_existing_files())
                    .cloned(),
            )
            .collect()
    }

    /// Deletes manifests that no list refers to.
    pub async fn discard(&self, written: &[Written]) {
        for w in written {
            let _ = self.file_io.delete(&w.manifest.manifest_path).await;
        }
    }
}

/// Fills in what the manifest-list writer assigned to new manifests.
pub fn with_sequence(
    mut manifests: Vec<ManifestFile>,
    id: i64,
    sequence: i64,
) -> Vec<ManifestFile> {
    for m in &mut manifests {
        if m.added_snapshot_id == id {
            if m.sequence_number < 0 {
                m.sequence_number = sequence;
            }
            if m.min_sequence_number < 0 {
                m.min_sequence_number = sequence;
            }
        }
    }
    manifests
}
