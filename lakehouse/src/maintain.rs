//! Upkeep that rides on commits: which snapshots expire, which files are merged, what may be
//! deleted afterwards.
//!
//! The decisions (`expired`, `merge_groups`) are pure; `remove_expired` and `sweep` delete files.
//! Nothing is deleted that a snapshot still in the table refers to: while snapshots expire oldest
//! first along the current line of history, exactly the files that the next snapshot marks as
//! deleted become free. Everything off that line is left to the sweep, which is slow and sure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iceberg::io::FileIO;
use iceberg::spec::{Manifest, ManifestStatus, SnapshotRef, TableMetadata};

use crate::error::Result;
use crate::index::{FileMeta, Kind, read_manifest_list};
use crate::lake::Upkeep;

/// Up to this many rows a merged file is decoded and sorted as a whole; version tables stop there,
/// since their files are read whole when an old row closes. Bronze goes on by joining.
pub const SORT_ROWS: u64 = 120_000;

/// Snapshots expired in one commit at most, so that one commit after a pause stays short.
const EXPIRE_PER_COMMIT: usize = 20;

/// Snapshots to expire together with the next commit, oldest first.
pub fn expired(
    metadata: &TableMetadata,
    pinned: &BTreeSet<i64>,
    now_ms: i64,
    upkeep: &Upkeep,
) -> Vec<i64> {
    // The commit adds one, so there will be len + 1.
    let excess = (metadata.snapshots().len() + 1).saturating_sub(upkeep.snapshots.max(1));
    if excess == 0 {
        return Vec::new();
    }
    let youngest = now_ms - upkeep.snapshot_age.as_millis() as i64;
    let mut all: Vec<_> = metadata.snapshots().collect();
    all.sort_by_key(|s| s.sequence_number()); // the array is not ordered
    all.iter()
        .take(excess.min(EXPIRE_PER_COMMIT))
        .filter(|s| s.timestamp_ms() <= youngest)
        .map(|s| s.snapshot_id())
        .filter(|id| Some(*id) != metadata.current_snapshot_id() && !pinned.contains(id))
        .collect()
}

/// The line of history that leads to the current snapshot, oldest first, as far as it is kept.
fn lineage(metadata: &TableMetadata) -> Vec<SnapshotRef> {
    let mut out = Vec::new();
    let mut at = metadata.current_snapshot().cloned();
    while let Some(s) = at {
        at = s
            .parent_snapshot_id()
            .and_then(|id| metadata.snapshot_by_id(id))
            .cloned();
        out.push(s);
    }
    out.reverse();
    out
}

/// Deletes what only the expired snapshots referred to. `before` is the metadata that still had
/// them; they were expired by the commit that followed it.
///
/// # Errors
/// `Storage` if a manifest cannot be read. Files that are gone already are no error.
pub async fn remove_expired(
    file_io: &FileIO,
    before: &TableMetadata,
    pinned: &BTreeSet<i64>,
    expired: &[i64],
) -> Result<()> {
    let line = lineage(before);
    let gone: BTreeSet<i64> = expired.iter().copied().collect();
    let mut keep_manifests = BTreeSet::new();
    let mut keep_files = BTreeSet::new();
    for id in pinned {
        let Some(s) = before.snapshot_by_id(*id) else {
            continue;
        };
        for m in read_manifest_list(file_io, before, s).await? {
            for e in crate::index::read_entries(file_io, &m).await? {
                keep_files.insert(e.file.file_path().to_string());
            }
            keep_manifests.insert(m.manifest_path);
        }
    }
    for pair in line.windows(2) {
        let [old, next] = pair else { continue };
        if !gone.contains(&old.snapshot_id()) {
            continue;
        }
        let theirs = read_manifest_list(file_io, before, next).await?;
        let stays: BTreeSet<&str> = theirs.iter().map(|m| m.manifest_path.as_str()).collect();
        for m in &theirs {
            if m.added_snapshot_id != next.snapshot_id() || !m.has_deleted_files() {
                continue;
            }
            let bytes = file_io.new_input(&m.manifest_path)?.read().await?;
            for e in Manifest::parse_avro(&bytes)?.entries() {
                if e.status() == ManifestStatus::Deleted && !keep_files.contains(e.file_path()) {
                    let _ = file_io.delete(e.file_path()).await;
                }
            }
        }
        for m in read_manifest_list(file_io, before, old).await? {
            let path = m.manifest_path.as_str();
            if !stays.contains(path) && !keep_manifests.contains(path) {
                let _ = file_io.delete(path).await;
            }
        }
        let _ = file_io.delete(old.manifest_list()).await;
    }
    Ok(())
}

/// Files that one commit merges into one.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeGroup {
    /// Kind of the files and of the merged file.
    pub kind: Kind,
    /// The files, in order of time.
    pub files: Vec<Arc<FileMeta>>,
}

/// Which small files to merge now: per (kind, partition tuple) files of similar size, so that
/// each row is rewritten a logarithmic number of times. Settled files are merged by the owner of
/// their Kafka partition; Bronze and history files mix partitions, so each tuple is given to the
/// owner of one of the `kafka_partitions` by its text, and two instances do not merge the same
/// files. `busy` files are left out (the same commit replaces them).
pub fn merge_groups<'a>(
    files: impl Iterator<Item = &'a Arc<FileMeta>>,
    owned: &BTreeSet<i32>,
    kafka_partitions: i32,
    busy: &BTreeSet<Arc<str>>,
    spec_id: i32,
    upkeep: &Upkeep,
) -> Vec<MergeGroup> {
    let mut groups: BTreeMap<(Kind, String), Vec<Arc<FileMeta>>> = BTreeMap::new();
    for f in files {
        if f.spec_id != spec_id || f.bytes >= upkeep.file_bytes || busy.contains(&f.path) {
            continue;
        }
        // Debug text is a total order on partition tuples; they have no other.
        let tuple = format!("{:?}", f.partition);
        let mine = match f.kind {
            Kind::Ticks | Kind::History => owned.contains(&owner(&tuple, kafka_partitions)),
            Kind::Settled(p) => owned.contains(&p),
            Kind::Hot(_) | Kind::Foreign => false,
        };
        if mine {
            groups.entry((f.kind, tuple)).or_default().push(f.clone());
        }
    }
    let mut budget = upkeep.merge_rows;
    let mut out = Vec::new();
    for ((kind, _), mut files) in groups {
        files.sort_by(|a, b| (a.rows, &a.path).cmp(&(b.rows, &b.path)));
        // A lone tiny file must not keep the larger ones from each other: try every start.
        let run = (0..files.len())
            .map(|start| similar(&files[start..], kind, budget, upkeep))
            .enumerate()
            .find(|(_, run)| run.files >= upkeep.fan_in.max(2));
        if let Some((start, run)) = run {
            if run.rows <= SORT_ROWS {
                budget = budget.saturating_sub(run.rows);
            }
            let mut files: Vec<_> = files.drain(start..start + run.files).collect();
            files.sort_by(|a, b| {
                let key = |f: &FileMeta| (f.symbol.clone(), f.time);
                key(a).cmp(&key(b)).then_with(|| a.path.cmp(&b.path))
            });
            out.push(MergeGroup { kind, files });
        }
    }
    out
}

struct Run {
    files: usize,
    rows: u64,
}

/// The longest run of files of similar size, smallest first, that may be merged into one.
fn similar(files: &[Arc<FileMeta>], kind: Kind, budget: u64, upkeep: &Upkeep) -> Run {
    let mut run = Run { files: 0, rows: 0 };
    let mut bytes = 0;
    for f in files {
        // A file joins while it is not much larger than what is gathered so far.
        if run.files > 0 && f.rows > run.rows.saturating_mul(2).max(1_000) {
            break;
        }
        let sorts = run.rows + f.rows <= SORT_ROWS.min(budget);
        let joins = kind == Kind::Ticks && bytes + f.bytes <= upkeep.file_bytes;
        if !sorts && !joins {
            break;
        }
        run.rows += f.rows;
        bytes += f.bytes;
        run.files += 1;
    }
    run
}

/// The Kafka partition whose owner merges a tuple's shared files (FNV-1a of its text).
fn owner(tuple: &str, kafka_partitions: i32) -> i32 {
    let hash = tuple.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    (hash % kafka_partitions.max(1) as u64) as i32
}

/// Every file that the table's metadata refers to, in any kept snapshot.
///
/// # Errors
/// `Storage`.
pub async fn referenced(file_io: &FileIO, metadata: &TableMetadata) -> Result<BTreeSet<String>> {
    let mut out = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for log in metadata.metadata_log() {
        out.insert(log.metadata_file.clone());
    }
    for s in metadata.snapshots() {
        out.insert(s.manifest_list().to_string());
        for m in read_manifest_list(file_io, metadata, s).await? {
            if !seen.insert(m.manifest_path.clone()) {
                continue;
            }
            let bytes = file_io.new_input(&m.manifest_path)?.read().await?;
            // A deleted entry tells of a file that the snapshot no longer holds.
            for e in Manifest::parse_avro(&bytes)?.entries() {
                if e.is_alive() {
                    out.insert(e.file_path().to_string());
                }
            }
            out.insert(m.manifest_path);
        }
    }
    for s in metadata.statistics_iter() {
        out.insert(s.statistics_path.clone());
    }
    for s in metadata.partition_statistics_iter() {
        out.insert(s.statistics_path.clone());
    }
    Ok(out)
}

/// Which of the listed files (location, last change in ms) are orphans: not referred to, and old
/// enough that no commit in flight may still attach them.
pub fn orphans(
    listed: &[(String, i64)],
    referenced: &BTreeSet<String>,
    current_metadata: &str,
    now_ms: i64,
    upkeep: &Upkeep,
) -> Vec<String> {
    let newest = now_ms - upkeep.orphan_age.as_millis() as i64;
    // `file:/x` and `file:///x` are one file.
    let plain = |s: &str| -> String {
        s.strip_prefix("file:").map_or_else(
            || s.to_string(),
            |p| format!("/{}", p.trim_start_matches('/')),
        )
    };
    let known: BTreeSet<String> = referenced
        .iter()
        .map(String::as_str)
        .chain([current_metadata])
        .map(plain)
        .collect();
    listed
        .iter()
        .filter(|(path, at)| *at <= newest && !known.contains(&plain(path)))
        .map(|(path, _)| path.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iceberg::spec::Struct;
    use proptest::prelude::*;

    fn file(kind: Kind, name: &str, rows: u64) -> Arc<FileMeta> {
        Arc::new(FileMeta {
            path: name.into(),
            kind,
            spec_id: 0,
            partition: Struct::empty(),
            rows,
            bytes: rows * 50,
            symbol: None,
            time: None,
        })
    }

    #[test]
    fn merges_similar_sizes_of_my_partitions_only() {
        let upkeep = Upkeep {
            fan_in: 3,
            ..Upkeep::default()
        };
        let mut files = vec![];
        for i in 0..3 {
            files.push(file(Kind::Settled(1), &format!("s1-{i}"), 500));
            files.push(file(Kind::Settled(2), &format!("s2-{i}"), 500));
            files.push(file(Kind::Hot(1), &format!("h-{i}"), 5));
        }
        files.push(file(Kind::Settled(1), "big", 100_000));
        let owned = BTreeSet::from([1]);
        let groups = merge_groups(files.iter(), &owned, 1, &BTreeSet::new(), 0, &upkeep);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].kind, Kind::Settled(1));
        assert_eq!(groups[0].files.len(), 3);
        let busy = BTreeSet::from(["s1-0".into()]);
        assert!(merge_groups(files.iter(), &owned, 1, &busy, 0, &upkeep).is_empty());
    }

    proptest! {
        /// However files arrive, repeated merging leaves few of them and rewrites each row
        /// O(log n) times.
        #[test]
        fn merging_converges(sizes in prop::collection::vec(1u64..5_000, 1..300)) {
            let upkeep = Upkeep { fan_in: 4, merge_rows: u64::MAX, ..Upkeep::default() };
            let mut files: Vec<Arc<FileMeta>> = vec![];
            let (mut written, mut total) = (0u64, 0u64);
            for (i, n) in sizes.iter().enumerate() {
                files.push(file(Kind::Ticks, &format!("f{i}"), *n));
                total += n;
                for g in merge_groups(files.iter(), &BTreeSet::from([0]), 1, &BTreeSet::new(), 0, &upkeep) {
                    let sum: u64 = g.files.iter().map(|f| f.rows).sum();
                    written += sum;
                    files.retain(|f| !g.files.contains(f));
                    files.push(file(Kind::Ticks, &format!("m{i}"), sum));
                }
            }
            prop_assert_eq!(files.iter().map(|f| f.rows).sum::<u64>(), total);
            prop_assert!(files.len() <= 24, "{} files left", files.len());
            prop_assert!(written <= total * 12, "{written} rows written for {total}");
        }
    }

    #[test]
    fn orphans_are_old_and_unknown() {
        let upkeep = Upkeep::default();
        let age = upkeep.orphan_age.as_millis() as i64;
        let listed = vec![
            ("file:///w/a".to_string(), 0),
            ("file:///w/b".to_string(), 0),
            ("file:///w/c".to_string(), 50),
            ("file:///w/m.json".to_string(), 0),
        ];
        let known = BTreeSet::from(["file:/w/a".to_string()]);
        assert_eq!(
            orphans(&listed, &known, "file:///w/m.json", age + 10, &upkeep),
            ["file:///w/b"]
        );
    }
}
