//! What is live in a table: manifests and files of one base, kept from commit to commit.
//!
//! A manifest never changes, so what was read (or written by this process) is cached by its
//! path; following another base reads only manifests that are new. That keeps a commit's cost
//! independent of the table's age. Never writes. Small manifests keep their full entries, large
//! ones only what lookups and merging need.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use iceberg::io::FileIO;
use iceberg::spec::{
    DataFile, Datum, ManifestContentType, ManifestFile, ManifestList, PrimitiveLiteral, Schema,
    SnapshotRef, Struct, TableMetadata,
};

use crate::catalog::Loaded;
use crate::error::{LakeError, Result};
use crate::tables::{Table, TableDef};

/// Manifests with at most this many live files keep their entries in memory.
const FULL_ENTRIES: usize = 128;

/// What a data file's name says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Input records (Bronze).
    Ticks,
    /// Current rows of a Kafka partition that are likely to be superseded.
    Hot(i32),
    /// Current rows of a Kafka partition that nobody expects to change.
    Settled(i32),
    /// Closed rows.
    History,
    /// Written by another engine; counts as settled where its rows are current.
    Foreign,
}

impl Kind {
    /// Reads the kind off a file's path.
    pub fn of(path: &str) -> Kind {
        let name = path.rsplit('/').next().unwrap_or(path);
        let partition = |rest: &str| rest.split('-').next().and_then(|p| p.parse().ok());
        if name.starts_with("ticks-") {
            Kind::Ticks
        } else if name.starts_with("history-") {
            Kind::History
        } else if let Some(p) = name.strip_prefix("hot-p").and_then(partition) {
            Kind::Hot(p)
        } else if let Some(p) = name.strip_prefix("settled-p").and_then(partition) {
            Kind::Settled(p)
        } else {
            Kind::Foreign
        }
    }

    /// The beginning of a file name of this kind.
    pub fn prefix(self) -> String {
        match self {
            Kind::Ticks => "ticks-".into(),
            Kind::Hot(p) => format!("hot-p{p}-"),
            Kind::Settled(p) => format!("settled-p{p}-"),
            Kind::History => "history-".into(),
            Kind::Foreign => "open-".into(),
        }
    }
}

/// A live data file, as much of it as lookups and merging need.
#[derive(Debug, Clone, PartialEq)]
pub struct FileMeta {
    /// Path as in the manifest.
    pub path: Arc<str>,
    /// Kind by name.
    pub kind: Kind,
    /// Partition spec it was written with.
    pub spec_id: i32,
    /// Partition tuple.
    pub partition: Struct,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Row groups; 1 if not known.
    pub groups: u64,
    /// Sequence number of the commit that wrote it.
    pub sequence: i64,
    /// Bounds of `symbol`, if known.
    pub symbol: Option<(Box<str>, Box<str>)>,
    /// Bounds of the table's time column (µs, or days for a date), if known.
    pub time: Option<(i64, i64)>,
}

impl FileMeta {
    /// Whether a row with this symbol and time may be in the file.
    pub fn may_hold(&self, symbol: &str, time: i64) -> bool {
        let s = self
            .symbol
            .as_ref()
            .is_none_or(|(lo, hi)| lo.as_ref() <= symbol && symbol <= hi.as_ref());
        s && self.time.is_none_or(|(lo, hi)| lo <= time && time <= hi)
    }
}

/// A live manifest entry.
#[derive(Debug, Clone)]
pub struct LiveEntry {
    /// The file.
    pub file: Arc<DataFile>,
    /// Snapshot that added it.
    pub snapshot_id: i64,
    /// Data sequence number.
    pub sequence: i64,
    /// File sequence number.
    pub file_sequence: Option<i64>,
}

/// A manifest whose live files are known.
#[derive(Debug)]
pub struct CachedManifest {
    /// Live files.
    pub files: Vec<Arc<FileMeta>>,
    /// Full entries if there are few.
    pub full: Option<Vec<LiveEntry>>,
}

/// Field ids the index reads bounds by.
#[derive(Debug, Clone, Copy)]
pub struct BoundIds {
    symbol: i32,
    time: i32,
}

impl BoundIds {
    /// Looks the ids up in a table's own schema.
    ///
    /// # Errors
    /// `SchemaDrift` if a column is missing.
    pub fn new(table: Table, def: &TableDef, schema: &Schema) -> Result<BoundIds> {
        let id = |name: &str| {
            schema
                .field_id_by_name(name)
                .ok_or_else(|| LakeError::SchemaDrift {
                    table,
                    detail: format!("column {name} is missing"),
                })
        };
        Ok(BoundIds {
            symbol: id("symbol")?,
            time: id(def.time)?,
        })
    }

    /// The compact form of a data file.
    pub fn meta(&self, spec_id: i32, sequence: i64, file: &DataFile) -> FileMeta {
        let bounds = |id| Some((file.lower_bounds().get(&id)?, file.upper_bounds().get(&id)?));
        let text = |d: &Datum| match d.literal() {
            PrimitiveLiteral::String(s) => Some(Box::<str>::from(s.as_str())),
            _ => None,
        };
        let number = |d: &Datum| match d.literal() {
            PrimitiveLiteral::Long(v) => Some(*v),
            PrimitiveLiteral::Int(v) => Some(i64::from(*v)),
            _ => None,
        };
        FileMeta {
            path: file.file_path().into(),
            kind: Kind::of(file.file_path()),
            spec_id,
            partition: file.partition().clone(),
            rows: file.record_count(),
            bytes: file.file_size_in_bytes(),
            groups: file.split_offsets().map_or(1, |o| o.len().max(1) as u64),
            sequence,
            symbol: bounds(self.symbol).and_then(|(lo, hi)| Some((text(lo)?, text(hi)?))),
            time: bounds(self.time).and_then(|(lo, hi)| Some((number(lo)?, number(hi)?))),
        }
    }
}

/// Reads a snapshot's manifest list.
///
/// # Errors
/// `Storage`.
pub async fn read_manifest_list(
    file_io: &FileIO,
    metadata: &TableMetadata,
    snapshot: &SnapshotRef,
) -> Result<Vec<ManifestFile>> {
    let bytes = file_io.new_input(snapshot.manifest_list())?.read().await?;
    let list = ManifestList::parse_with_version(&bytes, metadata.format_version())?;
    Ok(list.consume_entries().into_iter().collect())
}

/// Reads the live entries of a manifest.
///
/// # Errors
/// `Storage`.
pub async fn read_entries(file_io: &FileIO, manifest: &ManifestFile) -> Result<Vec<LiveEntry>> {
    let loaded = manifest.load_manifest(file_io).await?;
    let (entries, _) = loaded.into_parts();
    Ok(entries
        .into_iter()
        .filter(|e| e.is_alive())
        .map(|e| LiveEntry {
            file: Arc::new(e.data_file().clone()),
            snapshot_id: e.snapshot_id().unwrap_or(manifest.added_snapshot_id),
            sequence: e.sequence_number().unwrap_or(manifest.sequence_number),
            file_sequence: e.file_sequence_number.or(Some(manifest.sequence_number)),
        })
        .collect())
}

/// A base of commits with everything known about it.
#[derive(Debug)]
pub struct Base {
    /// Metadata and its location.
    pub loaded: Loaded,
    /// Manifests of the current snapshot, in list order.
    pub manifests: Vec<ManifestFile>,
    /// Snapshots that a branch or tag names: they never expire.
    pub pinned: BTreeSet<i64>,
    cache: BTreeMap<String, Arc<CachedManifest>>,
    /// Path of every live data file → its manifest's path.
    live: HashMap<Arc<str>, Arc<str>>,
    ids: BoundIds,
}

impl Base {
    /// Reads a base, keeping what `previous` already knew.
    ///
    /// # Errors
    /// `Storage`; `SchemaDrift` if the columns changed.
    pub async fn read(
        file_io: &FileIO,
        table: Table,
        def: &TableDef,
        loaded: Loaded,
        previous: Option<&Base>,
    ) -> Result<Base> {
        let ids = BoundIds::new(table, def, loaded.metadata.current_schema())?;
        let manifests = match loaded.metadata.current_snapshot() {
            Some(s) => read_manifest_list(file_io, &loaded.metadata, s).await?,
            None => Vec::new(),
        };
        let pinned = pinned(&loaded.metadata)?;
        let mut cache = BTreeMap::new();
        for manifest in &manifests {
            if manifest.content != ManifestContentType::Data {
                return Err(LakeError::SchemaDrift {
                    table,
                    detail: "another engine wrote delete files; compact the table \
                             (rewrite_data_files with delete-file-threshold 1)"
                        .into(),
                });
            }
            let known = previous.and_then(|p| p.cache.get(&manifest.manifest_path));
            let cached = match known {
                Some(c) => c.clone(),
                None => {
                    let entries = read_entries(file_io, manifest).await?;
                    Arc::new(cache_of(&ids, manifest.partition_spec_id, entries))
                }
            };
            cache.insert(manifest.manifest_path.clone(), cached);
        }
        let mut base = Base {
            loaded,
            manifests,
            pinned,
            cache,
            live: HashMap::new(),
            ids,
        };
        base.relive();
        Ok(base)
    }

    /// Moves on to the metadata this process just committed. `written` are the live entries of
    /// the manifests it added.
    pub fn advance(
        &mut self,
        loaded: Loaded,
        manifests: Vec<ManifestFile>,
        written: Vec<(ManifestFile, Vec<LiveEntry>)>,
    ) {
        let mut gone: BTreeMap<String, Arc<CachedManifest>> = std::mem::take(&mut self.cache);
        for m in &manifests {
            if let Some(c) = gone.remove(&m.manifest_path) {
                self.cache.insert(m.manifest_path.clone(), c);
            }
        }
        for cached in gone.values() {
            for f in &cached.files {
                self.live.remove(&f.path);
            }
        }
        for (manifest, entries) in written {
            let cached = Arc::new(cache_of(&self.ids, manifest.partition_spec_id, entries));
            let path: Arc<str> = manifest.manifest_path.as_str().into();
            for f in &cached.files {
                self.live.insert(f.path.clone(), path.clone());
            }
            self.cache.insert(manifest.manifest_path, cached);
        }
        self.loaded = loaded;
        self.manifests = manifests;
    }

    /// Reads the references again: a server may have taken a tag between two commits of ours
    /// without either noticing.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn repin(&mut self) -> Result<()> {
        self.pinned = pinned(&self.loaded.metadata)?;
        Ok(())
    }

    fn relive(&mut self) {
        self.live.clear();
        for (path, cached) in &self.cache {
            let path: Arc<str> = path.as_str().into();
            for f in &cached.files {
                self.live.insert(f.path.clone(), path.clone());
            }
        }
    }

    /// Table metadata.
    pub fn metadata(&self) -> &TableMetadata {
        &self.loaded.metadata
    }

    /// All live files, in manifest-path order.
    pub fn files(&self) -> impl Iterator<Item = &Arc<FileMeta>> {
        self.cache.values().flat_map(|c| c.files.iter())
    }

    /// The manifest that holds a live file.
    pub fn manifest_of(&self, path: &str) -> Option<&Arc<str>> {
        self.live.get(path)
    }

    /// Number of live files.
    pub fn live_files(&self) -> usize {
        self.live.len()
    }

    /// Files of a manifest.
    pub fn cached(&self, manifest: &str) -> Option<&Arc<CachedManifest>> {
        self.cache.get(manifest)
    }

    /// Full live entries of a manifest: from memory, or read again.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn entries(
        &self,
        file_io: &FileIO,
        manifest: &ManifestFile,
    ) -> Result<Vec<LiveEntry>> {
        if let Some(full) = self
            .cache
            .get(&manifest.manifest_path)
            .and_then(|c| c.full.as_ref())
        {
            return Ok(full.clone());
        }
        read_entries(file_io, manifest).await
    }
}

/// Branches and tags but the main one, by name. The metadata type does not list its references,
/// its JSON form does; commits of our own never change them, so this runs on foreign changes only.
pub(crate) fn refs(metadata: &TableMetadata) -> Result<BTreeMap<String, i64>> {
    #[derive(serde::Deserialize)]
    struct Refs {
        #[serde(default)]
        refs: HashMap<String, Ref>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Ref {
        snapshot_id: i64,
    }
    let corrupt = |e: serde_json::Error| LakeError::corrupt("table metadata", e);
    let json = serde_json::to_vec(metadata).map_err(corrupt)?;
    let refs: Refs = serde_json::from_slice(&json).map_err(corrupt)?;
    Ok(refs
        .refs
        .into_iter()
        .filter(|(name, _)| name != iceberg::spec::MAIN_BRANCH)
        .map(|(name, r)| (name, r.snapshot_id))
        .collect())
}

fn pinned(metadata: &TableMetadata) -> Result<BTreeSet<i64>> {
    Ok(refs(metadata)?.into_values().collect())
}

fn cache_of(ids: &BoundIds, spec_id: i32, entries: Vec<LiveEntry>) -> CachedManifest {
    CachedManifest {
        files: entries
            .iter()
            .map(|e| Arc::new(ids.meta(spec_id, e.sequence, &e.file)))
            .collect(),
        full: (entries.len() <= FULL_ENTRIES).then_some(entries),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_name() {
        for (kind, path) in [
            (Kind::Hot(3), "file:///w/data/x=1/hot-p3-abc.parquet"),
            (Kind::Settled(12), "settled-p12-abc.parquet"),
            (Kind::History, "s3://b/history-1.parquet"),
            (Kind::Ticks, "a/ticks-1.parquet"),
            (Kind::Foreign, "a/00000-0-abc.parquet"),
            (Kind::Foreign, "a/hot-px-abc.parquet"),
        ] {
            assert_eq!(Kind::of(path), kind, "{path}");
            assert_eq!(Kind::of(&format!("{}x", kind.prefix())), kind);
        }
    }

    #[test]
    fn bounds_exclude_only_what_cannot_be_there() {
        let mut f = FileMeta {
            path: "p".into(),
            kind: Kind::Settled(0),
            spec_id: 0,
            partition: Struct::empty(),
            rows: 1,
            bytes: 1,
            groups: 1,
            sequence: 1,
            symbol: Some(("B".into(), "D".into())),
            time: Some((10, 20)),
        };
        assert!(f.may_hold("C", 10) && f.may_hold("B", 20));
        assert!(!f.may_hold("A", 10) && !f.may_hold("C", 21));
        f.symbol = None;
        f.time = None;
        assert!(f.may_hold("Z", 0));
    }
}
