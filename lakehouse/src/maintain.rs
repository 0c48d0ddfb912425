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

/// Up to this many rows files are decoded and sorted as a whole. Settled files stop there, since
/// they are read whole when an old row closes; the others go on by joining.
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
        // In order: what an older one refers to must not go before it, whatever the clocks of
        // other engines' hosts say.
        .take_while(|s| s.timestamp_ms() <= youngest)
        .map(|s| s.snapshot_id())
        .filter(|id| Some(*id) != metadata.current_snapshot_id() && !pinned.contains(id))
        .collect()
}

/// The line of history that leads to the current snapshot, oldest first, as far as it is kept.
pub(crate) fn lineage(metadata: &TableMetadata) -> Vec<SnapshotRef> {
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

/// What pinned snapshots refer to.
#[derive(Debug, Default)]
pub struct Kept {
    pinned: BTreeSet<i64>,
    manifests: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Kept {
    /// Reads the manifests of the pinned snapshots; nothing is read again while the pins are the
    /// same, since a snapshot never changes.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn follow(
        &mut self,
        file_io: &FileIO,
        metadata: &TableMetadata,
        pinned: &BTreeSet<i64>,
    ) -> Result<()> {
        if self.pinned == *pinned {
            return Ok(());
        }
        let mut kept = Kept::default();
        for id in pinned {
            let Some(s) = metadata.snapshot_by_id(*id) else {
                continue;
            };
            for m in read_manifest_list(file_io, metadata, s).await? {
                for e in crate::index::read_entries(file_io, &m).await? {
                    kept.files.insert(e.file.file_path().to_string());
                }
                kept.manifests.insert(m.manifest_path);
            }
        }
        kept.pinned = pinned.clone();
        *self = kept;
        Ok(())
    }
}

/// What a snapshot holds and what it let go: enough to clean up after it without reading it.
#[derive(Debug, Clone)]
struct Trail {
    manifests: BTreeSet<Arc<str>>,
    removed: Vec<Arc<str>>,
}

/// Trails of this process's own commits, so that expiring them costs no reading. Others' are read.
#[derive(Debug, Default)]
pub struct Trails {
    known: BTreeMap<i64, Trail>,
    last: i64,
}

impl Trails {
    /// Notes a commit: its snapshot, the manifests in its list, the data files it removed.
    pub fn note<'a>(
        &mut self,
        snapshot: i64,
        manifests: impl Iterator<Item = &'a str>,
        removed: impl Iterator<Item = Arc<str>>,
    ) {
        // Most manifests are those of the commit before: their names are shared.
        let before = self.known.get(&self.last);
        let manifests = manifests
            .map(|m| {
                before
                    .and_then(|t| t.manifests.get(m).cloned())
                    .unwrap_or_else(|| m.into())
            })
            .collect();
        let trail = Trail {
            manifests,
            removed: removed.collect(),
        };
        self.known.insert(snapshot, trail);
        self.last = snapshot;
    }

    async fn of(
        &self,
        file_io: &FileIO,
        metadata: &TableMetadata,
        snapshot: &SnapshotRef,
    ) -> Result<Trail> {
        if let Some(trail) = self.known.get(&snapshot.snapshot_id()) {
            return Ok(trail.clone());
        }
        let mut trail = Trail {
            manifests: BTreeSet::new(),
            removed: Vec::new(),
        };
        for m in read_manifest_list(file_io, metadata, snapshot).await? {
            trail.manifests.insert(m.manifest_path.as_str().into());
            if m.added_snapshot_id != snapshot.snapshot_id() || !m.has_deleted_files() {
                continue;
            }
            let bytes = file_io.new_input(&m.manifest_path)?.read().await?;
            for e in Manifest::parse_avro(&bytes)?.entries() {
                if e.status() == ManifestStatus::Deleted {
                    trail.removed.push(e.file_path().into());
                }
            }
        }
        Ok(trail)
    }
}

/// Deletes what only the expired snapshots referred to. `before` is the metadata that still had
/// them; they were expired by the commit that followed it.
///
/// # Errors
/// `Storage` if a manifest cannot be read. Files that are gone already are no error.
pub async fn remove_expired(
    file_io: &FileIO,
    before: &TableMetadata,
    kept: &Kept,
    trails: &mut Trails,
    expired: &[i64],
) -> Result<()> {
    let line = lineage(before);
    let gone: BTreeSet<i64> = expired.iter().copied().collect();
    for pair in line.windows(2) {
        let [old, next] = pair else { continue };
        if !gone.contains(&old.snapshot_id()) {
            continue;
        }
        let theirs = trails.of(file_io, before, next).await?;
        let ours = trails.of(file_io, before, old).await?;
        for path in &theirs.removed {
            if !kept.files.contains(path.as_ref()) {
                let _ = file_io.delete(path).await;
            }
        }
        for path in ours.manifests.difference(&theirs.manifests) {
            if !kept.manifests.contains(path.as_ref()) {
                let _ = file_io.delete(path).await;
            }
        }
        let _ = file_io.delete(old.manifest_list()).await;
    }
    trails.known.retain(|id, _| {
        !gone.contains(id) && (*id == trails.last || before.snapshot_by_id(*id).is_some())
    });
    Ok(())
}

/// Files that one commit merges into one.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeGroup {
    /// Kind of the files and of the merged file.
    pub kind: Kind,
    /// The files, in order of (symbol, time).
    pub files: Vec<Arc<FileMeta>>,
}

impl MergeGroup {
    /// Rows in all files.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|f| f.rows).sum()
    }

    /// Files whose row groups are copied as they are, and files that are decoded: those of few
    /// rows per row group, or all if they hold little together.
    pub fn copied_and_decoded(
        &self,
        upkeep: &Upkeep,
    ) -> (Vec<&Arc<FileMeta>>, Vec<&Arc<FileMeta>>) {
        if self.rows() <= upkeep.small_rows {
            return (Vec::new(), self.files.iter().collect());
        }
        self.files
            .iter()
            .partition(|f| f.rows >= upkeep.copy_rows.saturating_mul(f.groups))
    }

    fn cost(&self, upkeep: &Upkeep) -> Cost {
        let (copied, decoded) = self.copied_and_decoded(upkeep);
        Cost {
            rows: decoded.iter().map(|f| f.rows).sum(),
            bytes: copied.iter().map(|f| f.bytes).sum(),
        }
    }
}

/// What a merge costs: rows decoded, bytes copied.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    rows: u64,
    bytes: u64,
}

/// Who merges, and on which base.
#[derive(Debug, Clone, Copy)]
pub struct MergeScope<'a> {
    /// Kafka partitions this process owns.
    pub owned: &'a BTreeSet<i32>,
    /// Kafka partitions there are.
    pub kafka_partitions: i32,
    /// Files that the same commit replaces: left out.
    pub busy: &'a BTreeSet<Arc<str>>,
    /// Partition spec of new files; files of others are left alone.
    pub spec_id: i32,
    /// Sequence number of the base's current snapshot.
    pub sequence: i64,
}

/// How eagerly files are merged.
#[derive(Debug, Clone, Copy)]
struct Zeal {
    /// Files that make a merge.
    fan_in: usize,
    /// A file joins while it holds at most this many times the rows gathered before it.
    ratio: u64,
}

/// Which small files to merge now: per (kind, partition tuple) files of similar size, so that
/// each row is rewritten a logarithmic number of times; the more files the table has against
/// `upkeep.files`, the fewer make a merge and the less similar they must be. A tuple that no
/// commit has written for `upkeep.idle` snapshots is merged to the end, so that a day that is
/// over keeps one or two files.
///
/// Settled files are merged by the owner of their Kafka partition; Bronze and history files mix
/// partitions, so each tuple is given to the owner of one of the `kafka_partitions` by its text,
/// and two instances do not merge the same files. One commit decodes at most `upkeep.merge_rows`
/// and copies at most `upkeep.copy_bytes`, or makes one single merge that is larger.
pub fn merge_groups<'a>(
    files: impl Iterator<Item = &'a Arc<FileMeta>>,
    scope: MergeScope<'_>,
    upkeep: &Upkeep,
) -> Vec<MergeGroup> {
    let mut live = 0;
    let mut tuples = BTreeSet::new();
    let mut groups: BTreeMap<(Kind, String), Vec<Arc<FileMeta>>> = BTreeMap::new();
    for f in files {
        live += 1;
        // Debug text is a total order on partition tuples; they have no other.
        let tuple = format!("{:?}", f.partition);
        let mine = match f.kind {
            Kind::Ticks | Kind::History => {
                scope.owned.contains(&owner(&tuple, scope.kafka_partitions))
            }
            Kind::Settled(p) => scope.owned.contains(&p),
            Kind::Hot(_) | Kind::Foreign => false,
        };
        let small = f.bytes < upkeep.file_bytes;
        if mine && small && f.spec_id == scope.spec_id && !scope.busy.contains(&f.path) {
            let group = groups.entry((f.kind, tuple.clone())).or_default();
            group.push(f.clone());
        }
        tuples.insert((f.kind, tuple));
    }
    let zeal = zeal(live, tuples.len(), upkeep);
    let mut found: Vec<MergeGroup> = groups
        .into_iter()
        .filter_map(|((kind, _), mut files)| {
            let newest = files.iter().map(|f| f.sequence).max()?;
            let zeal = if newest.saturating_add(upkeep.idle) <= scope.sequence {
                Zeal {
                    fan_in: 2,
                    ratio: u64::MAX,
                }
            } else {
                zeal
            };
            files.sort_by(|a, b| (a.rows, &a.path).cmp(&(b.rows, &b.path)));
            // A lone tiny file must not keep the larger ones from each other: try every start.
            let (start, n) = (0..files.len())
                .map(|start| (start, similar(&files[start..], kind, zeal, upkeep)))
                .find(|(_, n)| *n >= zeal.fan_in)?;
            let mut files: Vec<_> = files.drain(start..start + n).collect();
            files.sort_by(|a, b| {
                let key = |f: &FileMeta| (f.symbol.clone(), f.time);
                key(a).cmp(&key(b)).then_with(|| a.path.cmp(&b.path))
            });
            Some(MergeGroup { kind, files })
        })
        .collect();
    // What removes most files goes first; the sort keeps ties in order.
    found.sort_by_key(|g| std::cmp::Reverse(g.files.len()));
    let mut left = Cost {
        rows: upkeep.merge_rows,
        bytes: upkeep.copy_bytes,
    };
    let mut out: Vec<MergeGroup> = Vec::new();
    for group in found {
        let cost = group.cost(upkeep);
        if cost.rows <= left.rows && cost.bytes <= left.bytes {
            left.rows -= cost.rows;
            left.bytes -= cost.bytes;
            out.push(group);
        } else if out.is_empty() {
            return vec![group];
        }
    }
    out
}

fn zeal(live: usize, tuples: usize, upkeep: &Upkeep) -> Zeal {
    // Two files a tuple are no excess, however many tuples there are.
    let wanted = upkeep.files.max(2 * tuples);
    let fan_in = upkeep.fan_in.max(2);
    match live * 4 / wanted.max(1) {
        0..2 => Zeal { fan_in, ratio: 2 },
        2 => Zeal {
            fan_in: fan_in.div_ceil(2).max(2),
            ratio: 2,
        },
        3 => Zeal {
            fan_in: fan_in.min(3),
            ratio: 4,
        },
        _ => Zeal {
            fan_in: 2,
            ratio: 16,
        },
    }
}

/// Length of the longest run of files of similar size, smallest first, that may be merged into
/// one.
fn similar(files: &[Arc<FileMeta>], kind: Kind, zeal: Zeal, upkeep: &Upkeep) -> usize {
    let (mut n, mut rows, mut bytes, mut decoded) = (0, 0u64, 0u64, 0u64);
    for f in files {
        if n > 0 && f.rows > rows.saturating_mul(zeal.ratio).max(1_000) {
            break;
        }
        let tiny = f.rows < upkeep.copy_rows.saturating_mul(f.groups);
        decoded += if tiny { f.rows } else { 0 };
        rows += f.rows;
        bytes += f.bytes;
        let bounded = match kind {
            Kind::Ticks | Kind::History => bytes <= upkeep.file_bytes,
            _ => rows <= SORT_ROWS && bytes <= upkeep.file_bytes,
        };
        if !bounded || decoded > SORT_ROWS {
            break;
        }
        n += 1;
    }
    n
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

    fn file(kind: Kind, name: &str, rows: u64, groups: u64, sequence: i64) -> Arc<FileMeta> {
        Arc::new(FileMeta {
            path: name.into(),
            kind,
            spec_id: 0,
            partition: Struct::empty(),
            rows,
            bytes: rows * 50,
            groups,
            sequence,
            symbol: None,
            time: None,
        })
    }

    fn groups(
        files: &[Arc<FileMeta>],
        owned: &[i32],
        busy: &[&str],
        sequence: i64,
        upkeep: &Upkeep,
    ) -> Vec<MergeGroup> {
        let owned = owned.iter().copied().collect();
        let busy = busy.iter().map(|b| Arc::from(*b)).collect();
        let scope = MergeScope {
            owned: &owned,
            kafka_partitions: 1,
            busy: &busy,
            spec_id: 0,
            sequence,
        };
        merge_groups(files.iter(), scope, upkeep)
    }

    #[test]
    fn merges_similar_sizes_of_my_partitions_only() {
        let upkeep = Upkeep {
            fan_in: 3,
            ..Upkeep::default()
        };
        let mut files = vec![];
        for i in 0..3 {
            files.push(file(Kind::Settled(1), &format!("s1-{i}"), 500, 1, 9));
            files.push(file(Kind::Settled(2), &format!("s2-{i}"), 500, 1, 9));
            files.push(file(Kind::Hot(1), &format!("h-{i}"), 5, 1, 9));
        }
        files.push(file(Kind::Settled(1), "big", 100_000, 1, 9));
        let found = groups(&files, &[1], &[], 9, &upkeep);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, Kind::Settled(1));
        assert_eq!(found[0].files.len(), 3);
        assert!(groups(&files, &[1], &["s1-0"], 9, &upkeep).is_empty());
    }

    #[test]
    fn an_idle_tuple_is_merged_to_the_end() {
        let upkeep = Upkeep::default();
        let files: Vec<_> = [20, 900, 40_000]
            .into_iter()
            .zip(["a", "b", "c"])
            .map(|(rows, name)| file(Kind::Ticks, name, rows, 1, 5))
            .collect();
        assert!(groups(&files, &[0], &[], 5 + upkeep.idle - 1, &upkeep).is_empty());
        let found = groups(&files, &[0], &[], 5 + upkeep.idle, &upkeep);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].files.len(), 3);
        // The tiny ones are decoded, the large one is copied.
        let (copied, decoded) = found[0].copied_and_decoded(&upkeep);
        assert_eq!((copied.len(), decoded.len()), (1, 2));
    }

    #[test]
    fn the_work_of_a_commit_is_bounded() {
        let upkeep = Upkeep {
            fan_in: 2,
            merge_rows: 10_000,
            copy_bytes: 1_000_000,
            ..Upkeep::default()
        };
        let mut files = vec![];
        for p in 0..50 {
            for i in 0..4 {
                files.push(file(Kind::Settled(p), &format!("s{p}-{i}"), 500, 1, 9));
                files.push(file(
                    Kind::Settled(p + 50),
                    &format!("l{p}-{i}"),
                    5_000,
                    1,
                    9,
                ));
            }
        }
        let owned: Vec<i32> = (0..100).collect();
        let found = groups(&files, &owned, &[], 9, &upkeep);
        let cost = |g: &MergeGroup| g.cost(&upkeep);
        assert_eq!(found.iter().map(|g| cost(g).rows).sum::<u64>(), 10_000);
        assert_eq!(found.iter().map(|g| cost(g).bytes).sum::<u64>(), 1_000_000);
        // What is larger than the bound is merged alone rather than never.
        let small = Upkeep {
            merge_rows: 10,
            copy_bytes: 10,
            ..upkeep
        };
        assert_eq!(groups(&files, &owned, &[], 9, &small).len(), 1);
    }

    proptest! {
        /// However files arrive, repeated merging leaves few of them, rewrites each row O(log n)
        /// times, and decodes it less often than that.
        #[test]
        fn merging_converges(sizes in prop::collection::vec(1u64..5_000, 1..300)) {
            let upkeep = Upkeep { fan_in: 4, ..Upkeep::default() };
            let mut files: Vec<Arc<FileMeta>> = vec![];
            let (mut written, mut decoded, mut total) = (0u64, 0u64, 0u64);
            let mut step = |files: &mut Vec<Arc<FileMeta>>, name: &str, sequence: i64| {
                let found = groups(files, &[0], &[], sequence, &upkeep);
                for g in &found {
                    let (copied, tiny) = g.copied_and_decoded(&upkeep);
                    decoded += tiny.iter().map(|f| f.rows).sum::<u64>();
                    written += g.rows();
                    let row_groups = copied.iter().map(|f| f.groups).sum::<u64>()
                        + u64::from(!tiny.is_empty());
                    files.retain(|f| !g.files.contains(f));
                    files.push(file(Kind::Ticks, name, g.rows(), row_groups, sequence));
                }
                !found.is_empty()
            };
            for (i, n) in sizes.iter().enumerate() {
                let sequence = i as i64;
                files.push(file(Kind::Ticks, &format!("f{i}"), *n, 1, sequence));
                total += n;
                step(&mut files, &format!("m{i}"), sequence);
            }
            prop_assert_eq!(files.iter().map(|f| f.rows).sum::<u64>(), total);
            prop_assert!(files.len() <= 24, "{} files left", files.len());
            // Then nothing comes any more: the tuple ends with a file or two.
            let mut sequence = sizes.len() as i64;
            for i in 0..8 {
                sequence += upkeep.idle;
                step(&mut files, &format!("i{i}"), sequence);
            }
            prop_assert_eq!(files.iter().map(|f| f.rows).sum::<u64>(), total);
            prop_assert!(files.len() <= 2, "{} files left at rest", files.len());
            prop_assert!(written <= total * 12, "{written} rows written for {total}");
            prop_assert!(decoded <= total * 4, "{decoded} rows decoded for {total}");
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
