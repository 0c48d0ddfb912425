//! What the tables hold, for people: positions, snapshots, files. Reads only, one load of a
//! table's metadata per call; never trusts positions of a table that another engine moved, and
//! says so.

use std::collections::BTreeMap;

use crate::boxed;
use crate::catalog::Loaded;
use crate::error::{LakeError, Result};
use crate::index::{Kind, read_entries, read_manifest_list};
use crate::lake::Lakehouse;
use crate::properties::{self, Watermarks};
use crate::tables::Table;

/// One table in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    pub table: Table,
    /// `false`: not created yet; everything else is empty then.
    pub exists: bool,
    pub location: String,
    pub rows: u64,
    pub files: u64,
    pub bytes: u64,
    pub snapshots: usize,
    /// Time of the newest snapshot, µs.
    pub newest: Option<i64>,
    /// System time (µs) up to which all partitions are whole; `None`: not known.
    pub frontier: Option<i64>,
    /// Another engine moved the table: its positions hold no longer.
    pub moved: bool,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub table: Table,
    pub id: i64,
    pub parent: Option<i64>,
    pub sequence: i64,
    /// µs.
    pub time: i64,
    pub operation: String,
    pub is_current: bool,
    pub added_rows: u64,
    pub removed_rows: u64,
    pub added_files: u64,
    pub removed_files: u64,
    pub total_rows: u64,
    pub total_files: u64,
}

/// How far a table is, for one Kafka partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetInfo {
    pub table: Table,
    pub partition: i32,
    /// Last task commit that is whole in the table.
    pub commit: i64,
    /// Input position after it, exclusive.
    pub input_end: i64,
    /// System time (µs) up to which the table is whole for this partition.
    pub frontier: i64,
    /// Another engine moved the table: this holds no longer.
    pub moved: bool,
}

/// Live files of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesInfo {
    pub table: Table,
    /// `ticks`, `hot`, `settled`, `history` or `foreign`.
    pub kind: &'static str,
    pub files: u64,
    pub rows: u64,
    pub bytes: u64,
    /// The largest file.
    pub largest: u64,
}

/// One line per table, those that do not exist yet too.
///
/// # Errors
/// `Catalog`, `Storage`.
#[boxed]
pub async fn tables(lake: &Lakehouse) -> Result<Vec<TableInfo>> {
    let mut infos = Vec::new();
    for table in Table::ALL {
        infos.push(match lake.load(table).await? {
            Some(loaded) => table_info(table, &loaded),
            None => TableInfo {
                table,
                exists: false,
                location: String::new(),
                rows: 0,
                files: 0,
                bytes: 0,
                snapshots: 0,
                newest: None,
                frontier: None,
                moved: false,
            },
        });
    }
    Ok(infos)
}

fn table_info(table: Table, loaded: &Loaded) -> TableInfo {
    let metadata = &loaded.metadata;
    let current = metadata.current_snapshot();
    let total =
        |name: &str| current.map_or(0, |s| number(&s.summary().additional_properties, name));
    let marks = Watermarks::read(metadata.properties());
    let moved = !is_authority(table, loaded);
    TableInfo {
        table,
        exists: true,
        location: metadata.location().to_owned(),
        rows: total("total-records"),
        files: total("total-data-files"),
        bytes: total("total-files-size"),
        snapshots: metadata.snapshots().count(),
        newest: current.map(|s| s.timestamp_ms() * 1000),
        frontier: marks.ok().filter(|_| !moved).and_then(|m| m.frontier()),
        moved,
    }
}

fn is_authority(table: Table, loaded: &Loaded) -> bool {
    Watermarks::read(loaded.metadata.properties())
        .and_then(|marks| properties::check_authority(table, &loaded.metadata, &marks))
        .is_ok()
}

fn number(properties: &std::collections::HashMap<String, String>, name: &str) -> u64 {
    properties
        .get(name)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// A table's metadata; one that does not exist says how it comes to be.
async fn load(lake: &Lakehouse, table: Table) -> Result<Loaded> {
    lake.load(table).await?.ok_or_else(|| {
        LakeError::Config(format!(
            "{table} does not exist yet; it is made when the sink starts for the first time \
             (`finlake run` or `finlake demo`)"
        ))
    })
}

/// Snapshots, newest first, at most `limit`.
///
/// # Errors
/// `Config` if the table does not exist, `Catalog`, `Storage`.
#[boxed]
pub async fn snapshots(lake: &Lakehouse, table: Table, limit: usize) -> Result<Vec<SnapshotInfo>> {
    let loaded = load(lake, table).await?;
    let current = loaded.metadata.current_snapshot_id();
    let mut infos: Vec<SnapshotInfo> = loaded
        .metadata
        .snapshots()
        .map(|s| {
            let summary = &s.summary().additional_properties;
            SnapshotInfo {
                table,
                id: s.snapshot_id(),
                parent: s.parent_snapshot_id(),
                sequence: s.sequence_number(),
                time: s.timestamp_ms() * 1000,
                operation: s.summary().operation.as_str().to_owned(),
                is_current: Some(s.snapshot_id()) == current,
                added_rows: number(summary, "added-records"),
                removed_rows: number(summary, "deleted-records"),
                added_files: number(summary, "added-data-files"),
                removed_files: number(summary, "deleted-data-files"),
                total_rows: number(summary, "total-records"),
                total_files: number(summary, "total-data-files"),
            }
        })
        .collect();
    // The metadata's list is in no order.
    infos.sort_by_key(|s| std::cmp::Reverse(s.sequence));
    infos.truncate(limit);
    Ok(infos)
}

/// Positions per Kafka partition.
///
/// # Errors
/// `Config` if the table does not exist, `Corrupt`, `Catalog`, `Storage`.
#[boxed]
pub async fn offsets(lake: &Lakehouse, table: Table) -> Result<Vec<OffsetInfo>> {
    let loaded = load(lake, table).await?;
    let marks = Watermarks::read(loaded.metadata.properties())?;
    let moved = !is_authority(table, &loaded);
    Ok(marks
        .positions
        .iter()
        .map(|(partition, position)| OffsetInfo {
            table,
            partition: *partition,
            commit: position.commit,
            input_end: position.input_end,
            frontier: position.frontier,
            moved,
        })
        .collect())
}

/// Live files by kind. Reads every manifest of the current snapshot.
///
/// # Errors
/// `Config` if the table does not exist, `Catalog`, `Storage`.
#[boxed]
pub async fn files(lake: &Lakehouse, table: Table) -> Result<Vec<FilesInfo>> {
    let loaded = load(lake, table).await?;
    let mut kinds: BTreeMap<&'static str, FilesInfo> = BTreeMap::new();
    if let Some(snapshot) = loaded.metadata.current_snapshot() {
        for manifest in read_manifest_list(lake.file_io(), &loaded.metadata, snapshot).await? {
            for entry in read_entries(lake.file_io(), &manifest).await? {
                let file = &entry.file;
                let kind = kind_name(Kind::of(file.file_path()));
                let info = kinds.entry(kind).or_insert(FilesInfo {
                    table,
                    kind,
                    files: 0,
                    rows: 0,
                    bytes: 0,
                    largest: 0,
                });
                info.files += 1;
                info.rows += file.record_count();
                info.bytes += file.file_size_in_bytes();
                info.largest = info.largest.max(file.file_size_in_bytes());
            }
        }
    }
    Ok(kinds.into_values().collect())
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Ticks => "ticks",
        Kind::Hot(_) => "hot",
        Kind::Settled(_) => "settled",
        Kind::History => "history",
        Kind::Foreign => "foreign",
    }
}
