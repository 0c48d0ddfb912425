//! Catch-up: how a task's store becomes equal to what Kafka has committed.
//!
//! The rule, before every start and assignment and after every abort, unknown
//! outcome or failed store commit:
//!
//! 1. the group's committed offsets, stable ones, of this partition alone: while
//!    a transaction is pending, nothing below could be trusted;
//! 2. the changelogs' high watermarks through a read_uncommitted client (a
//!    read_committed one would answer with the last stable offset, and a commit
//!    would be missed);
//! 3. the changelogs, read_committed, until the consumer's position has reached
//!    them; if the checkpoint is there already, nothing is read;
//! 4. the offsets of 1 must equal the positions in the store; then the inputs
//!    are read from there.
//!
//! So a crash costs a tail. A store is wiped only for the reasons in [`plan`].

use finlake_state::{Checkpoint, StateError, StoreId};

use crate::Micros;
use crate::broker::{Bounds, Broker};
use crate::builder::changelog_topic;
use crate::error::Error;
use crate::processor::Domain;
use crate::record::{RecordBatch, Run};
use crate::task::{Identity, Task, TaskRecord};

/// Where a task's catch-up stands.
#[derive(Debug)]
pub(crate) struct CatchUp {
    step: Step,
    /// Do nothing before this instant (backoff).
    pub not_before: Micros,
    pub attempts: u32,
    started: Micros,
    committed: Vec<Option<i64>>,
    replayed: u64,
    since_checkpoint: u64,
    /// Offset a store's replay began at.
    from: Vec<Option<i64>>,
}

#[derive(Debug)]
enum Step {
    /// 1 and 2.
    Ask,
    /// 3: per store the offset to reach, `None` when it is reached.
    Read {
        targets: Vec<Option<i64>>,
        reached: Vec<i64>,
    },
}

/// What one task's restore needs to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Wipe the store first, for this reason.
    pub wipe: Option<String>,
    /// Per store: offset to read from, `None` if nothing is to be read.
    pub from: Vec<Option<i64>>,
}

/// Decide what to replay. `max_age_ms`: beyond it a deleted key's tombstone may
/// be gone from the changelog (half of delete.retention.ms).
pub(crate) fn plan(
    stores: &[impl AsRef<str>],
    checkpoint: Option<&Checkpoint>,
    bounds: &[Bounds],
    identity: &Identity,
    app_id: &str,
    now_ms: i64,
    max_age_ms: i64,
) -> Result<Plan, Error> {
    let all = || {
        let bounds = bounds.iter();
        bounds.map(|b| (b.low < b.high).then_some(b.low)).collect()
    };
    let Some(cp) = checkpoint else {
        return Ok(Plan {
            wipe: None,
            from: all(),
        });
    };
    if cp.cluster_id != identity.cluster_id {
        return Err(Error::Fatal(format!(
            "the state folder belongs to Kafka cluster `{}`, but this is `{}`; connect to the \
             right cluster, or, if it was recreated, start a new application id",
            cp.cluster_id, identity.cluster_id
        )));
    }
    let age_ms = now_ms - cp.written_at_ms;
    let mut wipe = (age_ms > max_age_ms).then(|| {
        format!(
            "the store was last written {} h ago, more than half of the changelog's \
             delete.retention.ms",
            age_ms / 3_600_000
        )
    });
    let mut from = Vec::with_capacity(stores.len());
    for (store, bounds) in stores.iter().zip(bounds) {
        let store = store.as_ref();
        let topic = changelog_topic(app_id, store);
        let known = cp.topic_ids.iter().find(|(t, _)| *t == topic);
        let current = identity.topic_ids.iter().find(|(t, _)| *t == topic);
        if let (Some(known), Some(current)) = (known, current)
            && known != current
        {
            wipe.get_or_insert(format!("changelog `{topic}` was recreated"));
        }
        let at = cp.changelog.iter().find(|(s, _)| s == store);
        from.push(match at {
            Some((_, at)) if *at > bounds.high => {
                wipe.get_or_insert(format!(
                    "the store stands at {topic}@{at}, beyond the changelog's end {}",
                    bounds.high
                ));
                None
            }
            Some((_, at)) if *at < bounds.low => {
                wipe.get_or_insert(format!(
                    "the store stands at {topic}@{at}, before the changelog's start {}",
                    bounds.low
                ));
                None
            }
            Some((_, at)) => (*at < bounds.high).then_some(*at),
            None => (bounds.low < bounds.high).then_some(bounds.low),
        });
    }
    for (topic, id) in &cp.topic_ids {
        let current = identity.topic_ids.iter().find(|(t, _)| t == topic);
        let mut changelogs = stores.iter();
        let input = !changelogs.any(|s| *topic == changelog_topic(app_id, s.as_ref()));
        if input && current.is_some_and(|(_, c)| c != id) {
            return Err(Error::Fatal(format!(
                "input topic `{topic}` was recreated since the store was written: its offsets mean \
                 other records now; start a new application id"
            )));
        }
    }
    let from = if wipe.is_some() { all() } else { from };
    Ok(Plan { wipe, from })
}

/// Step 4: where to read the inputs from. `bounds` are those of the inputs.
pub(crate) fn positions(
    task: i32,
    inputs: &[impl AsRef<str>],
    committed: &[Option<i64>],
    stored: Option<&TaskRecord>,
    bounds: &[Bounds],
) -> Result<Vec<i64>, Error> {
    let mut out = Vec::with_capacity(inputs.len());
    for ((topic, committed), bounds) in inputs.iter().zip(committed).zip(bounds) {
        let topic = topic.as_ref();
        let kept = stored.and_then(|r| r.positions.iter().find(|(t, _)| t == topic));
        let at = match (committed, kept.map(|(_, at)| *at)) {
            (None, None) => bounds.low,
            (None, Some(kept)) => kept,
            (Some(committed), Some(kept)) if *committed == kept => kept,
            (Some(committed), kept) => {
                let kept = kept.map_or("nothing".to_owned(), |k| k.to_string());
                return Err(Error::Fatal(format!(
                    "{topic}/{task}: the group has committed offset {committed}, but the task's \
                     changelog says {kept}; one of them was changed from outside. Restore the \
                     group's offset or the changelog, or start a new application id"
                )));
            }
        };
        if at < bounds.low {
            return Err(Error::Fatal(format!(
                "{topic}/{task}: the next record to process is {at}, but the log begins at {}: \
                 {} records were deleted before they were processed. Raise the topic's retention; \
                 to go on without them start a new application id",
                bounds.low,
                bounds.low - at
            )));
        }
        if at > bounds.high {
            return Err(Error::Fatal(format!(
                "{topic}/{task}: the next record to process is {at}, but the log ends at {}: the \
                 topic was truncated or recreated; start a new application id",
                bounds.high
            )));
        }
        out.push(at);
    }
    Ok(out)
}

/// Restored records between interim checkpoints, so that a crash in a long
/// restore resumes.
const INTERIM: u64 = 500_000;

/// What a turn of a catch-up needs to know.
pub(crate) struct Scene<'a> {
    pub stores: &'a [std::sync::Arc<str>],
    pub inputs: &'a [std::sync::Arc<str>],
    pub app_id: &'a str,
    pub max_age_ms: i64,
    pub now: Micros,
}

impl CatchUp {
    pub fn new(now: Micros) -> Self {
        Self {
            step: Step::Ask,
            not_before: now,
            attempts: 0,
            started: now,
            committed: Vec::new(),
            replayed: 0,
            since_checkpoint: 0,
            from: Vec::new(),
        }
    }

    /// Changelog records are being read.
    pub fn is_reading(&self) -> bool {
        matches!(self.step, Step::Read { .. })
    }

    /// Changelog records replayed.
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// When it began.
    pub fn started(&self) -> Micros {
        self.started
    }

    /// Begin again at step 1, after a pause that grows.
    pub fn again(&mut self, now: Micros) {
        self.attempts += 1;
        self.step = Step::Ask;
        self.not_before = now + (100_000i64 << self.attempts.min(4));
    }

    /// Go on as far as possible without waiting. Gives the input positions once
    /// the store has caught up.
    pub fn step<B: Broker, D: Domain>(
        &mut self,
        scene: &Scene<'_>,
        broker: &mut B,
        task: &mut Task<D>,
    ) -> Result<Option<Vec<i64>>, Error> {
        if matches!(self.step, Step::Ask) {
            self.ask(scene, broker, task)?;
        }
        let Step::Read { targets, reached } = &mut self.step else {
            return Ok(None);
        };
        for (store, target) in targets.iter_mut().enumerate() {
            let Some(end) = *target else { continue };
            if let Some(at) = broker.restore_position(task.id(), store)? {
                reached[store] = reached[store].max(at);
            }
            if reached[store] >= end {
                *target = None;
            }
        }
        if targets.iter().any(Option::is_some) {
            if self.since_checkpoint >= INTERIM {
                self.since_checkpoint = 0;
                let reached = reached.clone();
                checkpoint(scene, task, &reached)?;
                tracing::info!(
                    task = task.id(),
                    replayed = self.replayed,
                    "restoring task {}: {} changelog records so far",
                    task.id(),
                    self.replayed
                );
            }
            return Ok(None);
        }
        let reached = std::mem::take(reached);
        self.finish(scene, broker, task, &reached).map(Some)
    }

    /// Steps 1 and 2, then begin 3.
    fn ask<B: Broker, D: Domain>(
        &mut self,
        scene: &Scene<'_>,
        broker: &mut B,
        task: &mut Task<D>,
    ) -> Result<(), Error> {
        let id = task.id();
        broker.restore_stop(id);
        self.committed = broker.committed(id)?;
        let bounds = broker.changelog_bounds(id)?;
        let plan = plan(
            scene.stores,
            task.state().checkpoint(),
            &bounds,
            task.identity(),
            scene.app_id,
            scene.now / 1000,
            scene.max_age_ms,
        )
        .map_err(|e| e.context(format!("task {id}")))?;
        if let Some(why) = &plan.wipe {
            tracing::warn!(
                task = id,
                "task {id}: {why}; the store is wiped and rebuilt from its changelog"
            );
            task.state_mut().wipe().map_err(|e| store_error(id, e))?;
        }
        // What an earlier attempt has read so far is in the store's restore
        // buffer; reading it again from the checkpoint does no harm.
        let reached = bounds.iter().zip(&plan.from).zip(scene.stores);
        let reached = reached.map(|((b, from), store)| {
            let cp = task.state().checkpoint();
            let at = cp.and_then(|cp| cp.changelog.iter().find(|(s, _)| **s == **store));
            from.unwrap_or(at.map_or(b.high, |(_, at)| *at))
        });
        let reached: Vec<i64> = reached.collect();
        let targets = plan.from.iter().zip(&bounds);
        let targets: Vec<_> = targets.map(|(from, b)| from.map(|_| b.high)).collect();
        if targets.iter().any(Option::is_some) {
            broker.restore_start(id, &plan.from)?;
        }
        self.from = plan.from;
        self.step = Step::Read { targets, reached };
        Ok(())
    }

    /// Take changelog records of this task.
    pub fn apply<D: Domain>(
        &mut self,
        task: &mut Task<D>,
        batch: &RecordBatch,
        run: Run,
    ) -> Result<(), Error> {
        let store: StoreId = run.topic.index();
        let Step::Read { targets, reached } = &mut self.step else {
            return Ok(());
        };
        if targets.get(store).copied().flatten().is_none() {
            return Ok(());
        }
        let id = task.id();
        for record in batch.records(run) {
            // A changelog record always has a key.
            let key = record.key.unwrap_or_default();
            task.state_mut()
                .restore(store, key, record.value)
                .map_err(|e| store_error(id, e))?;
            reached[store] = reached[store].max(record.offset + 1);
            self.replayed += 1;
            self.since_checkpoint += 1;
        }
        Ok(())
    }

    fn finish<B: Broker, D: Domain>(
        &mut self,
        scene: &Scene<'_>,
        broker: &mut B,
        task: &mut Task<D>,
        reached: &[i64],
    ) -> Result<Vec<i64>, Error> {
        let id = task.id();
        broker.restore_stop(id);
        if self.from.iter().any(Option::is_some) || task.state().checkpoint().is_none() {
            checkpoint(scene, task, reached)?;
        }
        let stored = task.stored()?;
        let bounds = broker.input_bounds(id)?;
        let positions = positions(id, scene.inputs, &self.committed, stored.as_ref(), &bounds)?;
        let spans = self.from.iter().enumerate();
        let spans: Vec<String> = spans
            .filter_map(|(s, from)| {
                from.map(|from| format!("{} {from}..{}", scene.stores[s], reached[s]))
            })
            .collect();
        tracing::info!(
            task = id,
            replayed = self.replayed,
            "restored task {id}: {} changelog records replayed ({}), last commit {}, inputs at {positions:?}",
            self.replayed,
            if spans.is_empty() {
                "the store was up to date".to_owned()
            } else {
                spans.join(", ")
            },
            stored.map_or(0, |r| r.commit),
        );
        Ok(positions)
    }
}

/// Write the restored records with a checkpoint at `reached`.
fn checkpoint<D: Domain>(
    scene: &Scene<'_>,
    task: &mut Task<D>,
    reached: &[i64],
) -> Result<(), Error> {
    let id = task.id();
    let names = scene.stores.iter().map(|s| s.to_string());
    let mut checkpoint = Checkpoint {
        changelog: names.zip(reached.iter().copied()).collect(),
        inputs: Vec::new(),
        cluster_id: task.identity().cluster_id.clone(),
        topic_ids: task.identity().topic_ids.clone(),
        written_at_ms: scene.now / 1000,
    };
    task.state_mut()
        .finish_restore(&checkpoint)
        .map_err(|e| store_error(id, e))?;
    // The positions are among the restored records, so they can be read only
    // now; the checkpoint repeats them for whoever looks at the store alone.
    if let Some(record) = task.stored()? {
        checkpoint.inputs = record.positions;
        task.state_mut()
            .finish_restore(&checkpoint)
            .map_err(|e| store_error(id, e))?;
    }
    Ok(())
}

/// What a store's failure means for its task.
pub(crate) fn store_error(task: i32, e: StateError) -> Error {
    if e.is_rebuildable() {
        Error::Rebuild(format!("task {task}: {e}"))
    } else {
        Error::Fatal(format!("task {task}: {e}"))
    }
}
