//! One partition's instance of the topology: synchronous, without I/O, without
//! a clock. Records go in; outputs, changelog records and positions come out.
//!
//! Life of a task: `new` → (the thread restores its stores) → `resume` →
//! `process` / `punctuate` … → `prepare_commit` → (the thread sends and commits)
//! → `post_commit`. After anything but a certain success: `abort`, catch-up,
//! `resume`. A task never decides whether a transaction has succeeded.

use std::sync::Arc;

use finlake_state::{Checkpoint, StateError, StoreId, TaskState};

use crate::Micros;
use crate::builder::{Decl, Topology};
use crate::context::{Context, Core, InputTally, NodeAccess, Phase, SinkTally};
use crate::error::Error;
use crate::faults::Faults;
use crate::graph::Graph;
use crate::inv::{Inv, check};
use crate::output::Outputs;
use crate::processor::{Domain, Failure};
use crate::record::{RecordBatch, Run, TopicIdx};
use crate::stats::{CommitStats, InputStats, OutputStats};

/// What a task needs to know besides the topology.
#[derive(Clone, Debug)]
pub struct TaskConfig {
    /// Application id: prefix of changelogs, consumer group, header of dead letters.
    pub app_id: Arc<str>,
    /// A commit at least this often, microseconds (10 s).
    pub heartbeat_us: Micros,
    /// For tests of the checks; none.
    pub faults: Faults,
}

impl TaskConfig {
    /// Defaults for an application.
    pub fn new(app_id: &str) -> Self {
        Self {
            app_id: Arc::from(app_id),
            heartbeat_us: 10_000_000,
            faults: Faults::default(),
        }
    }
}

/// Which cluster and topics a store belongs to; part of every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Kafka's cluster id.
    pub cluster_id: String,
    /// Topic ids of inputs and changelogs, sorted by name.
    pub topic_ids: Vec<(String, [u8; 16])>,
}

/// Why a commit is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitKind {
    /// Processors emit what would otherwise wait.
    pub stopping: bool,
    /// The last entry of a graceful stop.
    pub last: bool,
}

/// The engine's record in the store `task`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskRecord {
    /// Last commit; 0 before the first.
    pub commit: i64,
    /// Its system time; `i64::MIN` before the first.
    pub system_time: Micros,
    /// Input positions, by topic.
    pub positions: Vec<(String, i64)>,
}

const TASK_STORE_ID: StoreId = 0;
const TASK_KEY: &[u8] = b"task";
const TASK_RECORD_VERSION: u8 = 1;

/// One partition's instance of the topology.
pub struct Task<D: Domain> {
    core: Core,
    graph: Graph<D>,
    stats: CommitStats,
    config: TaskConfig,
    identity: Identity,
    stores: Arc<[Arc<str>]>,
    /// Set by `resume`, cleared by `abort`.
    running: bool,
    /// Clock of the last commit; `None` asks for a heartbeat at once.
    committed_at: Option<Micros>,
}

impl<D: Domain> Task<D> {
    /// A task over `state`, which holds the topology's stores in their order.
    /// It must be resumed before it processes.
    pub fn new(
        topology: &Topology<D>,
        task: i32,
        state: TaskState,
        config: &TaskConfig,
        identity: Identity,
    ) -> Self {
        let shape = &topology.shape;
        let access = shape.nodes.iter().map(|n| NodeAccess {
            name: n.name.clone(),
            stores: n.stores.clone().into_boxed_slice(),
            sinks: match n.decl {
                Decl::Process(_) => n.sinks.iter().fold(0, |bits, s| bits | 1 << s.0),
                _ => 0,
            },
        });
        let counted = shape.sinks.iter().filter(|s| s.options.ledger);
        Self {
            core: Core {
                task,
                app_id: config.app_id.clone(),
                topics: shape.inputs.clone().into(),
                now: 0,
                phase: Phase::Processing,
                stopping: false,
                dirty: false,
                commit: 1,
                system_time: Micros::MIN,
                inputs: vec![InputTally::default(); shape.inputs.len()],
                outputs: Outputs::default(),
                sinks: shape
                    .sinks
                    .iter()
                    .map(|s| SinkTally {
                        counted: s.options.ledger,
                        ..SinkTally::default()
                    })
                    .collect(),
                counters: vec![0; shape.counters.len()],
                state,
                access: access.collect(),
                dlq: shape.dlq,
                rejected: Vec::new(),
                scratch: String::new(),
            },
            graph: topology.instantiate(),
            stats: CommitStats {
                inputs: shape
                    .inputs
                    .iter()
                    .map(|t| InputStats {
                        topic: t.to_string(),
                        ..InputStats::default()
                    })
                    .collect(),
                outputs: counted
                    .map(|s| OutputStats {
                        topic: s.topic.clone(),
                        ..OutputStats::default()
                    })
                    .collect(),
                counters: vec![0; shape.counters.len()],
                ..CommitStats::default()
            },
            config: config.clone(),
            identity,
            stores: shape.stores.clone().into(),
            running: false,
            committed_at: None,
        }
    }

    /// The task's number: its partition.
    pub fn id(&self) -> i32 {
        self.core.task
    }

    /// Whether it has been resumed and not aborted since.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// The task's stores, for restore.
    pub fn state_mut(&mut self) -> &mut TaskState {
        &mut self.core.state
    }

    /// The task's stores.
    pub fn state(&self) -> &TaskState {
        &self.core.state
    }

    /// Cluster and topic ids that checkpoints carry.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The engine's own record as the store has it; `None` in a fresh store.
    pub fn stored(&self) -> Result<Option<TaskRecord>, Error> {
        let bytes = self
            .core
            .state
            .get(TASK_STORE_ID, TASK_KEY)
            .map_err(Error::fatal)?;
        bytes.map(|b| decode_task_record(&b)).transpose()
    }

    /// Start or start again from what the store holds, at `positions` (one per
    /// input). A heartbeat is due at once.
    pub fn resume(&mut self, positions: &[i64]) -> Result<(), Error> {
        self.forget();
        let stored = self.stored()?;
        let (commit, system_time) = stored.map_or((0, Micros::MIN), |r| (r.commit, r.system_time));
        self.core.commit = commit + 1;
        self.core.system_time = system_time;
        for (input, &position) in self.core.inputs.iter_mut().zip(positions) {
            *input = InputTally {
                start: position,
                position,
                ..InputTally::default()
            };
        }
        self.committed_at = None;
        self.running = true;
        Ok(())
    }

    /// Feed one run of a batch. Rejected records are dead-lettered; an error
    /// means that nothing of the open commit may be committed.
    pub fn process(&mut self, batch: &RecordBatch, run: Run, now: Micros) -> Result<(), Error> {
        self.ensure_running()?;
        self.core.now = now;
        let topic = run.topic.index();
        for record in batch.records(run) {
            let input = &mut self.core.inputs[topic];
            if record.offset < input.position {
                // Fetched before a seek and processed already.
                tracing::debug!(
                    task = self.core.task,
                    offset = record.offset,
                    position = input.position,
                    "a record before the position"
                );
                continue;
            }
            input.skipped += record.offset - input.position;
            input.position = record.offset + 1;
            input.records += 1;
            input.hash = input.hash.wrapping_add(record.hash());
            let mut ctx = Context::new(&mut self.core, Some(record));
            match self.graph.process(topic, &mut ctx, D::source(record)) {
                Ok(()) => {}
                Err(Failure::Reject { class, message }) => {
                    self.core.inputs[topic].rejected += 1;
                    self.core
                        .dead_letter(&record, &class, &message)
                        .map_err(|f| self.failed(f))?;
                }
                Err(failure) => return Err(self.failed(failure)),
            }
        }
        Ok(())
    }

    /// The consumer's position of an input has moved to `position`, over
    /// offsets that hold no record.
    pub fn advance(&mut self, topic: TopicIdx, position: i64) {
        let input = &mut self.core.inputs[topic.index()];
        if position > input.position {
            tracing::debug!(
                task = self.core.task,
                topic = topic.0,
                from = input.position,
                to = position,
                "the position moved over offsets without a record"
            );
            input.skipped += position - input.position;
            input.position = position;
        }
    }

    /// Let processors act on the clock.
    pub fn punctuate(&mut self, now: Micros) -> Result<(), Error> {
        self.ensure_running()?;
        self.core.now = now;
        let mut ctx = Context::new(&mut self.core, None);
        self.graph.punctuate(&mut ctx).map_err(|f| self.failed(f))
    }

    /// Whether there is something to commit: input read, a processor's wish, a
    /// heartbeat due.
    pub fn needs_commit(&self, now: Micros) -> bool {
        self.running
            && (self.core.dirty
                || self.core.inputs.iter().any(|i| i.records > 0)
                || self
                    .committed_at
                    .is_none_or(|at| now - at >= self.config.heartbeat_us))
    }

    /// Whether records were read or a processor asked since the last commit.
    pub fn has_work(&self) -> bool {
        self.running && (self.core.dirty || self.core.inputs.iter().any(|i| i.records > 0))
    }

    /// Assemble the commit: afterwards [`outputs`](Self::outputs),
    /// [`changelog`](Self::changelog), [`positions`](Self::positions) and
    /// [`stats`](Self::stats) are what belongs into the transaction.
    pub fn prepare_commit(&mut self, now: Micros, kind: CommitKind) -> Result<(), Error> {
        self.ensure_running()?;
        let core = &mut self.core;
        core.now = now;
        core.stopping = kind.stopping || kind.last;
        core.system_time = now.max(core.system_time.saturating_add(1));
        core.phase = Phase::Preparing;
        let mut ctx = Context::new(&mut self.core, None);
        self.graph
            .prepare_commit(&mut ctx)
            .map_err(|f| self.failed(f))?;
        self.tally(kind.last);
        self.core.phase = Phase::Sealing;
        let mut ctx = Context::new(&mut self.core, None);
        self.graph
            .seal(&mut ctx, &self.stats)
            .map_err(|f| self.failed(f))?;
        let record = TaskRecord {
            commit: self.core.commit,
            system_time: self.core.system_time,
            positions: self
                .named_positions()
                .map(|(t, p)| (t.to_owned(), p))
                .collect(),
        };
        self.core
            .state
            .put(TASK_STORE_ID, TASK_KEY, &encode_task_record(&record));
        if self.config.faults.store_before_transaction {
            self.write_overlay(0)?;
        }
        Ok(())
    }

    /// Fill `stats` from the tallies.
    fn tally(&mut self, last: bool) {
        let stats = &mut self.stats;
        stats.commit = self.core.commit;
        stats.system_time = self.core.system_time;
        stats.last = last;
        for (out, input) in stats.inputs.iter_mut().zip(&self.core.inputs) {
            out.start = input.start;
            out.end = input.position;
            out.records = input.records;
            out.hash = input.hash;
            out.rejected = input.rejected;
            out.skipped = input.skipped;
            check(
                Inv::Contiguous,
                input.position - input.start == input.records + input.skipped,
                || format!("task {}: {input:?}", self.core.task),
            );
        }
        let counted = self.core.sinks.iter().filter(|s| s.counted);
        for (out, sink) in stats.outputs.iter_mut().zip(counted) {
            out.count = sink.count;
            out.hash = sink.hash;
        }
        stats.counters.copy_from_slice(&self.core.counters);
        stats.heartbeat = stats.inputs.iter().all(|i| i.records == 0)
            && stats.outputs.iter().all(|o| o.count == 0);
    }

    /// Records for sinks, in production order.
    pub fn outputs(&self) -> &Outputs {
        &self.core.outputs
    }

    /// Records for changelogs: store, key, value (`None` is a tombstone).
    pub fn changelog(&self) -> impl Iterator<Item = (StoreId, &[u8], Option<&[u8]>)> {
        self.core.state.dirty()
    }

    /// Position of every input, in source order: goes to the group with every
    /// commit, heartbeats included.
    pub fn positions(&self) -> impl ExactSizeIterator<Item = i64> {
        self.core.inputs.iter().map(|i| i.position)
    }

    fn named_positions(&self) -> impl Iterator<Item = (&str, i64)> {
        let topics = self.core.topics.iter().map(|t| &**t);
        topics.zip(self.core.inputs.iter().map(|i| i.position))
    }

    /// Bytes of overlay and outputs that wait for the commit.
    pub fn uncommitted_bytes(&self) -> usize {
        self.core.outputs.bytes() + self.core.state.dirty_bytes()
    }

    /// Dead letters since the last commit, by class; forgets them.
    pub fn take_rejected(&mut self) -> Vec<(String, i64)> {
        std::mem::take(&mut self.core.rejected)
    }

    /// Numbers of the commit last prepared.
    pub fn stats(&self) -> &CommitStats {
        &self.stats
    }

    /// The transaction has certainly committed. `delivered` gives, per store,
    /// the offset after its last changelog record of this commit, if any.
    /// An error leaves the store behind Kafka: abort, catch up.
    pub fn post_commit(
        &mut self,
        delivered: &dyn Fn(StoreId) -> Option<i64>,
        now: Micros,
    ) -> Result<(), Error> {
        let before = self.core.state.checkpoint();
        let changelog = self.stores.iter().enumerate().filter_map(|(id, store)| {
            let known = before.and_then(|cp| {
                let mut all = cp.changelog.iter();
                all.find(|(s, _)| **s == **store).map(|(_, at)| *at)
            });
            let new = delivered(id);
            check(Inv::StoreNotAhead, new >= known || new.is_none(), || {
                format!(
                    "task {}: `{store}` from {known:?} to {new:?}",
                    self.core.task
                )
            });
            new.or(known).map(|at| (store.to_string(), at))
        });
        let checkpoint = Checkpoint {
            changelog: changelog.collect(),
            inputs: self
                .named_positions()
                .map(|(t, p)| (t.to_owned(), p))
                .collect(),
            cluster_id: self.identity.cluster_id.clone(),
            topic_ids: self.identity.topic_ids.clone(),
            written_at_ms: now / 1000,
        };
        self.core
            .state
            .commit(&checkpoint)
            .map_err(|e| self.store_failed(&e))?;
        let twice = self.config.faults.range_twice == Some(self.core.commit);
        let kept = twice.then(|| (self.core.inputs.clone(), self.core.counters.clone()));
        self.core.commit += 1;
        self.clear_tallies();
        if let Some((inputs, counters)) = kept {
            (self.core.inputs, self.core.counters) = (inputs, counters);
        }
        self.committed_at = Some(now);
        Ok(())
    }

    /// A planted fault: what the stores from `first` on have uncommitted goes down under the
    /// checkpoint that is there, and stands in the overlay all the same.
    fn write_overlay(&mut self, first: StoreId) -> Result<(), Error> {
        let state = &mut self.core.state;
        let dirty = state.dirty().filter(|(store, ..)| *store >= first);
        let dirty: Vec<(StoreId, Vec<u8>, Option<Vec<u8>>)> = dirty
            .map(|(store, key, value)| (store, key.to_vec(), value.map(<[u8]>::to_vec)))
            .collect();
        let put = |state: &mut TaskState| {
            for (store, key, value) in &dirty {
                match value {
                    Some(value) => state.put(*store, key, value),
                    None => state.delete(*store, key),
                }
            }
        };
        state.discard();
        put(state);
        let checkpoint = state.checkpoint().cloned().unwrap_or_default();
        state.commit(&checkpoint).map_err(Error::fatal)?;
        put(state);
        Ok(())
    }

    /// Drop everything since the last commit. The task stands still until its
    /// next `resume`.
    pub fn abort(&mut self) {
        if self.config.faults.overlay_after_abort && self.running {
            // Not the engine's own record: its positions would give the fault away at once.
            if let Err(e) = self.write_overlay(TASK_STORE_ID + 1) {
                tracing::error!("planting a fault failed: {e}");
            }
        }
        self.forget();
        self.running = false;
    }

    fn forget(&mut self) {
        self.core.state.discard();
        self.clear_tallies();
        self.graph.reset();
    }

    fn clear_tallies(&mut self) {
        let core = &mut self.core;
        core.outputs.clear();
        core.dirty = false;
        core.stopping = false;
        core.phase = Phase::Processing;
        core.counters.fill(0);
        core.rejected.clear();
        for sink in &mut core.sinks {
            (sink.count, sink.hash) = (0, 0);
        }
        for input in &mut core.inputs {
            *input = InputTally {
                start: input.position,
                position: input.position,
                ..InputTally::default()
            };
        }
    }

    /// A store that refused a commit: Kafka has it, so catching up gives it to
    /// the store, unless the store needs a human or a rebuild.
    fn store_failed(&self, e: &StateError) -> Error {
        let why = format!("task {}: {e}", self.core.task);
        match e {
            e if e.is_rebuildable() => Error::Rebuild(why),
            StateError::DiskFull { .. } | StateError::Format { .. } => Error::Fatal(why),
            _ => Error::Retry(why),
        }
    }

    fn ensure_running(&self) -> Result<(), Error> {
        if self.running {
            return Ok(());
        }
        Err(Error::Fatal(format!(
            "task {} was used before its catch-up; this is a defect of the engine",
            self.core.task
        )))
    }

    fn failed(&self, failure: Failure) -> Error {
        Error::Fatal(match failure {
            Failure::Reject { class, message } => format!(
                "task {}: a processor rejected outside of a record ({class}: {message}); only \
                 `process` may reject",
                self.core.task
            ),
            Failure::Fatal(why) => format!("task {}: {why}", self.core.task),
        })
    }
}

/// version, commit, system time, count, then (length, topic, position) each;
/// all big-endian.
fn encode_task_record(r: &TaskRecord) -> Vec<u8> {
    let mut out = vec![TASK_RECORD_VERSION];
    out.extend(r.commit.to_be_bytes());
    out.extend(r.system_time.to_be_bytes());
    // Topic names are at most 249 bytes and inputs a handful.
    out.extend((r.positions.len() as u16).to_be_bytes());
    for (topic, position) in &r.positions {
        out.extend((topic.len() as u16).to_be_bytes());
        out.extend(topic.as_bytes());
        out.extend(position.to_be_bytes());
    }
    out
}

fn decode_task_record(bytes: &[u8]) -> Result<TaskRecord, Error> {
    fn take<'b, const N: usize>(b: &mut &'b [u8]) -> Option<&'b [u8; N]> {
        let (head, tail) = b.split_first_chunk::<N>()?;
        *b = tail;
        Some(head)
    }
    fn parse(mut b: &[u8]) -> Option<TaskRecord> {
        let b = &mut b;
        if take::<1>(b)?[0] != TASK_RECORD_VERSION {
            return None;
        }
        let commit = i64::from_be_bytes(*take(b)?);
        let system_time = i64::from_be_bytes(*take(b)?);
        let count = u16::from_be_bytes(*take(b)?);
        let mut positions = Vec::with_capacity(count.into());
        for _ in 0..count {
            let len = u16::from_be_bytes(*take(b)?);
            let (topic, tail) = b.split_at_checked(len.into())?;
            *b = tail;
            let topic = std::str::from_utf8(topic).ok()?.to_owned();
            positions.push((topic, i64::from_be_bytes(*take(b)?)));
        }
        b.is_empty().then_some(TaskRecord {
            commit,
            system_time,
            positions,
        })
    }
    parse(bytes).ok_or_else(|| {
        Error::Rebuild("the store's task record is unreadable or of a newer version".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_record_fixture() {
        let record = TaskRecord {
            commit: 7,
            system_time: 1_700_000_000_000_001,
            positions: vec![("market.ticks".into(), 42), ("market.bars".into(), -1)],
        };
        let v1 = b"\x01\0\0\0\0\0\0\0\x07\0\x06\x0a\x24\x18\x1e\x40\x01\0\x02\0\x0cmarket.ticks\0\0\0\0\0\0\0\x2a\0\x0bmarket.bars\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(encode_task_record(&record), v1);
        assert_eq!(decode_task_record(v1).as_ref(), Ok(&record));
        assert!(decode_task_record(&v1[..20]).is_err());
        assert!(decode_task_record(b"\x02").is_err());
    }
}
