//! The writing half of one table in one process: whole task commits in, one snapshot out.
//!
//! `TableSink` owns some Kafka partitions of one table. A batch is planned against the positions
//! it holds, composed into files, and committed by compare-and-swap together with the new
//! positions. If the base moved under it, the batch is planned again on the new base; no row is
//! lost and none is written twice. After an error the table is read again before the next commit,
//! so the same batch may simply be offered again.
//!
//! Must never: know Kafka, skip a commit number, or change its memory before a swap succeeded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use iceberg::spec::{DataFile, Operation};

use crate::batch::{Finished, check_rows, halves, taken};
pub use crate::batch::{Outcome, PartitionBatch, Rows, SinkBatch};
use crate::boxed;
use crate::commit::{Change, Committed, Committer};
use crate::compose::{Composed, Inputs, Job, Planted};
use crate::error::{LakeError, Result};
use crate::faults::{Plant, Point};
use crate::hot::HotPart;
use crate::index::Kind;
use crate::lake::Lakehouse;
use crate::maintain::{MergeScope, merge_groups};
use crate::merge;
use crate::plan::{Offer, Step, plan};
use crate::properties::Position;
use crate::split::Splitter;
use crate::tables::Table;
use crate::writer::{FileWriter, Source};

/// Writer of one table.
pub struct TableSink {
    table: Table,
    committer: Committer,
    files: FileWriter,
    splitter: Splitter,
    positions: BTreeMap<i32, Position>,
    hot: BTreeMap<i32, HotPart>,
    assigned: BTreeSet<i32>,
    /// Memory may differ from the table: read it again first.
    stale: bool,
}

impl std::fmt::Debug for TableSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableSink")
            .field("table", &self.table)
            .field("assigned", &self.assigned)
            .finish_non_exhaustive()
    }
}

impl TableSink {
    /// Opens a table for writing; owns no partition yet.
    ///
    /// # Errors
    /// `TableMoved`, `SchemaDrift`, `Catalog`, `Storage`.
    #[boxed]
    pub async fn open(lake: &Lakehouse, table: Table) -> Result<TableSink> {
        let committer = Committer::open(lake, table).await?;
        let (files, splitter) = layout(&committer)?;
        let positions = committer.watermarks()?.positions;
        Ok(TableSink {
            table,
            committer,
            files,
            splitter,
            positions,
            hot: BTreeMap::new(),
            assigned: BTreeSet::new(),
            stale: false,
        })
    }

    /// Positions of all partitions as last seen; exact for the assigned ones.
    pub fn positions(&self) -> &BTreeMap<i32, Position> {
        &self.positions
    }

    /// Partitions owned.
    pub fn assigned(&self) -> &BTreeSet<i32> {
        &self.assigned
    }

    /// Hot rows in memory, over all assigned partitions.
    pub fn hot_rows(&self) -> usize {
        self.hot.values().map(HotPart::len).sum()
    }

    /// Live data files of the table, as last seen.
    pub fn live_files(&self) -> usize {
        self.committer.base().live_files()
    }

    /// Lost swaps that were re-attached since the start.
    pub fn reattached(&self) -> u64 {
        self.committer.reattached
    }

    /// Takes partitions over: reads the table again and loads their hot rows.
    ///
    /// # Errors
    /// `TableMoved`, `DuplicateOpenRow`, `Catalog`, `Storage`.
    #[boxed]
    pub async fn assign(&mut self, partitions: &[i32]) -> Result<()> {
        self.assigned.extend(partitions);
        self.resync().await
    }

    /// Gives partitions up and forgets their hot rows.
    pub fn revoke(&mut self, partitions: &[i32]) {
        for p in partitions {
            self.assigned.remove(p);
            self.hot.remove(p);
        }
    }

    /// Makes memory equal to the table.
    ///
    /// # Errors
    /// `TableMoved`, `DuplicateOpenRow`, `Catalog`, `Storage`.
    #[boxed]
    pub async fn resync(&mut self) -> Result<()> {
        self.stale = true;
        self.committer.reload().await?;
        (self.files, self.splitter) = layout(&self.committer)?;
        self.positions = self.committer.watermarks()?.positions;
        self.load_hot().await?;
        self.stale = false;
        Ok(())
    }

    async fn load_hot(&mut self) -> Result<()> {
        self.hot.clear();
        if self.table.versioned() {
            for p in &self.assigned {
                let part =
                    HotPart::load(self.committer.base(), *p, self.committer.def(), &self.files)
                        .await?;
                self.hot.insert(*p, part);
            }
        }
        Ok(())
    }

    /// Commits a batch as one snapshot (several, in order, if it would rewrite too many settled
    /// files at once). Offering a batch again is safe: what the table holds is
    /// trimmed or skipped.
    ///
    /// # Errors
    /// Stops: `Gap`, `PositionMismatch`, `TableMoved`, `DuplicateOpenRow`, `MissingOpenRow`,
    /// `Violation`. `Stale` if another instance moved a partition of the batch. Transient ones
    /// (`LakeError::is_transient`): offer the batch again.
    #[boxed]
    pub async fn commit(&mut self, batch: SinkBatch) -> Result<Outcome> {
        if self.stale {
            self.resync().await?;
        }
        for part in &batch.parts {
            if !self.assigned.contains(&part.partition) {
                return Err(LakeError::Internal(format!(
                    "partition {} of {} is not assigned to this sink",
                    part.partition, self.table
                )));
            }
        }
        let mut offers = Vec::with_capacity(batch.parts.len());
        let mut rows = BTreeMap::new();
        for part in batch.parts {
            let finished = match part.rows {
                Rows::None => Finished::None,
                Rows::Bronze(b) if b.is_empty() => Finished::None,
                Rows::Bars(b) if b.is_empty() => Finished::None,
                Rows::Versions(v) if v.is_empty() => Finished::None,
                Rows::Bronze(b) => Finished::Bronze(b.finish(self.committer.def())?),
                Rows::Bars(b) => Finished::Bronze(b.finish()?),
                Rows::Versions(v) => Finished::Versions(v.finish()?),
            };
            rows.insert(part.partition, finished);
            offers.push(Offer {
                partition: part.partition,
                input_start: part.input_start,
                cuts: part.cuts,
                frontier: part.frontier,
            });
        }
        for offer in &offers {
            check_rows(&rows[&offer.partition], offer)?;
        }
        self.stale = true;
        let mut outcome = Outcome::default();
        // Usually one round. A batch that would rewrite too many settled files is halved at
        // commit numbers until it does not, or cannot be halved.
        let mut rounds = vec![offers];
        while let Some(offers) = rounds.pop() {
            let halves = halves(&offers);
            match self.commit_rows(&offers, &rows, halves.is_some()).await? {
                Some(done) => outcome.add(done),
                None => {
                    let [early, late] = halves.unwrap_or_default();
                    rounds.push(late);
                    rounds.push(early);
                }
            }
        }
        self.stale = false;
        Ok(outcome)
    }

    /// One snapshot, or `None` if the batch should be halved first.
    async fn commit_rows(
        &mut self,
        offers: &[Offer],
        rows: &BTreeMap<i32, Finished>,
        may_halve: bool,
    ) -> Result<Option<Outcome>> {
        const PLANS: u32 = 5;
        for attempt in 0..PLANS {
            let steps = plan(self.table, &self.positions, offers)?;
            let mut expected = BTreeMap::new();
            let mut positions = BTreeMap::new();
            for (p, step) in &steps {
                if let Step::Append { to, .. } = step {
                    expected.insert(*p, self.positions.get(p).copied().unwrap_or_default());
                    positions.insert(*p, *to);
                }
            }
            if positions.is_empty() {
                return Ok(Some(Outcome::default()));
            }
            let faults = self.committer.lake().faults.clone();
            faults.crash_at(Point::BeforeData)?;
            self.follow_spec()?;
            self.follow_foreign_changes().await?;
            let mut composed = self.compose(&steps, offers, rows, may_halve).await?;
            if composed.too_many {
                for f in &composed.added {
                    self.files.discard(f.file_path()).await;
                }
                return Ok(None);
            }
            let fresh = composed.added.len();
            let mut merged = 0;
            // Merging is optional: not while others interfere.
            if attempt == 0 {
                merged = self.merge(&mut composed).await?;
            }
            faults.crash_at(Point::AfterData)?;
            let change = Change {
                added: composed.added.clone(),
                removed: composed.removed.clone(),
                operation: if composed.removed.is_empty() {
                    Operation::Append
                } else {
                    Operation::Overwrite
                },
                summary: summary(&positions),
                expected: expected.clone(),
                positions: positions.clone(),
            };
            match self.committer.commit(&change).await? {
                Committed::Done(done) => {
                    self.positions.extend(positions);
                    self.settle(composed.hot)?;
                    if faults.planted(Plant::CommitTwice, self.table) {
                        self.commit_again(&change.added[..fresh], &change).await?;
                    }
                    return Ok(Some(Outcome {
                        snapshot: Some(done.snapshot),
                        opened: composed.opened,
                        closed: composed.closed,
                        files_added: change.added.len(),
                        files_removed: change.removed.len(),
                        files_merged: merged,
                        lost_swaps: done.lost,
                        expired: done.expired,
                    }));
                }
                Committed::Replan => {
                    for f in &change.added {
                        self.files.discard(f.file_path()).await;
                    }
                    self.replan(&expected).await?;
                }
            }
        }
        Err(LakeError::Conflict {
            table: self.table,
            tries: PLANS,
        })
    }

    /// Another engine may have changed how the table is partitioned.
    fn follow_spec(&mut self) -> Result<()> {
        let metadata = self.committer.base().metadata();
        if metadata.default_partition_spec_id() != self.files.spec_id() {
            (self.files, self.splitter) = layout(&self.committer)?;
        }
        Ok(())
    }

    /// Another engine may have compacted hot files away without touching what this process
    /// committed since: their rows then count as settled.
    async fn follow_foreign_changes(&mut self) -> Result<()> {
        let base = self.committer.base();
        let all_live = self
            .hot
            .values()
            .flat_map(|part| part.files.keys())
            .all(|path| base.manifest_of(path).is_some());
        if all_live {
            Ok(())
        } else {
            self.load_hot().await
        }
    }

    /// The base moved so that the plan does not fit: either another owner wrote my partitions
    /// (stop), or files I wanted to replace are gone (plan anew on what is there now).
    async fn replan(&mut self, expected: &BTreeMap<i32, Position>) -> Result<()> {
        let marks = self.committer.watermarks()?;
        for (p, at) in expected {
            let stored = marks.positions.get(p).copied().unwrap_or_default();
            if stored != *at {
                return Err(LakeError::Stale {
                    table: self.table,
                    partition: *p,
                    stored: stored.commit,
                    expected: at.commit,
                });
            }
        }
        self.positions = marks.positions;
        self.load_hot().await
    }

    /// Writes the data files of a plan.
    async fn compose(
        &self,
        steps: &BTreeMap<i32, Step>,
        offers: &[Offer],
        rows: &BTreeMap<i32, Finished>,
        may_halve: bool,
    ) -> Result<Composed> {
        let io = Inputs {
            def: self.committer.def(),
            base: self.committer.base(),
            files: &self.files,
            splitter: &self.splitter,
            rule: &self.committer.lake().config().hot,
            may_halve,
            planted: self.planted(),
        };
        let mut out = Composed::default();
        let mut bronze: BTreeMap<String, (iceberg::spec::Struct, Vec<RecordBatch>)> =
            BTreeMap::new();
        for offer in offers {
            let p = offer.partition;
            let Some(Step::Append { commits, to }) = steps.get(&p) else {
                continue;
            };
            match rows.get(&p) {
                None | Some(Finished::None) => {}
                Some(Finished::Bronze(batch)) => {
                    let rows = taken(&rows[&p].commits()?, *commits);
                    let batch = batch.slice(rows.start, rows.len());
                    out.opened += batch.num_rows() as u64;
                    for part in self.splitter.split(&batch, true)? {
                        bronze
                            .entry(part.dir)
                            .or_insert_with(|| (part.partition, Vec::new()))
                            .1
                            .push(part.batch);
                    }
                }
                Some(Finished::Versions(versions)) => {
                    let taken = taken(&rows[&p].commits()?, *commits);
                    let hot = self.hot.get(&p).ok_or_else(|| {
                        LakeError::Internal(format!("hot rows of partition {p} are not loaded"))
                    })?;
                    out.versions(&io, p, hot, versions, taken, to.frontier)
                        .await?;
                    if out.too_many {
                        return Ok(out);
                    }
                }
            }
        }
        for (dir, (partition, batches)) in bronze {
            out.push(Job {
                kind: Kind::Ticks,
                batches,
                partition,
                dir,
            });
        }
        out.finish(&io).await?;
        Ok(out)
    }

    fn planted(&self) -> Planted {
        let faults = &self.committer.lake().faults;
        Planted {
            lost: faults.planted(Plant::ClosedRowLost, self.table),
            skipped: faults.planted(Plant::ClosingSkipped, self.table),
        }
    }

    /// A defect for tests: the same rows once more, in files that nobody keeps track of.
    async fn commit_again(&mut self, files: &[Arc<DataFile>], done: &Change) -> Result<()> {
        let mut added = Vec::new();
        for f in files {
            let kind = match Kind::of(f.file_path()) {
                Kind::Hot(p) => Kind::Settled(p),
                kind => kind,
            };
            let dir = self.splitter.dir(f.partition());
            let source = [Source::Path(f.file_path())];
            let copy = self
                .files
                .join(kind, f.partition().clone(), &dir, &source)
                .await?;
            added.extend(copy.map(Arc::new));
        }
        let change = Change {
            added,
            removed: BTreeSet::new(),
            operation: Operation::Append,
            summary: done.summary.clone(),
            expected: done.positions.clone(),
            positions: done.positions.clone(),
        };
        self.committer.commit(&change).await?;
        Ok(())
    }

    /// Merges small files within the same commit. Returns how many were merged.
    async fn merge(&self, composed: &mut Composed) -> Result<usize> {
        let upkeep = &self.committer.lake().config().upkeep;
        let base = self.committer.base();
        let scope = MergeScope {
            owned: &self.assigned,
            kafka_partitions: self.committer.lake().config().kafka_partitions,
            busy: &composed.removed,
            spec_id: base.metadata().default_partition_spec_id(),
            sequence: base.metadata().last_sequence_number(),
        };
        let groups = merge_groups(base.files(), scope, upkeep);
        let mut merged = 0;
        for group in groups {
            let files: Vec<DataFile> = merge::merge(
                &self.files,
                &self.splitter,
                self.committer.def(),
                &group,
                upkeep,
            )
            .await?;
            composed.added.extend(files.into_iter().map(Arc::new));
            merged += group.files.len();
            composed
                .removed
                .extend(group.files.iter().map(|f| f.path.clone()));
        }
        Ok(merged)
    }

    /// Brings the hot store to what the table now holds.
    fn settle(&mut self, updates: BTreeMap<i32, crate::compose::HotUpdate>) -> Result<()> {
        for (p, update) in updates {
            let part = self.hot.entry(p).or_default();
            for path in &update.removed {
                part.remove(self.committer.def(), path)?;
            }
            for (path, batch) in update.inserted {
                part.insert(self.committer.def(), path, batch)?;
            }
            part.stream = update.stream;
        }
        Ok(())
    }
}

/// What writes rows into the table as it is now: partitioned so, with these columns.
fn layout(committer: &Committer) -> Result<(FileWriter, Splitter)> {
    let metadata = committer.base().metadata();
    let files = FileWriter::new(committer.lake(), committer.def(), metadata)?;
    Ok((files, Splitter::new(committer.def(), metadata)?))
}

/// What the commit took, for people and for `tables adopt`: the position of each partition it
/// moved.
fn summary(positions: &BTreeMap<i32, Position>) -> HashMap<String, String> {
    let text = positions
        .iter()
        .map(|(p, at)| format!("{p}:{}", at.summary()))
        .collect::<Vec<_>>()
        .join(";");
    HashMap::from([(crate::properties::S_POSITIONS.to_string(), text)])
}
