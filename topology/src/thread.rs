//! The stream thread: the one loop that moves records from the broker through
//! the tasks and commits. All I/O of the engine happens on it, through
//! [`Broker`]; everything it decides, it decides here and in `catchup`.
//!
//! What it must never do: complete a rebalance with uncommitted work of a
//! revoked partition behind it, write to a store what Kafka has not certainly
//! committed (INV-10), or take an error for a success.

mod assign;
mod commit;
mod end;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use finlake_state::StateDb;

use crate::Micros;
use crate::broker::{Broker, Clock, Event, PollLimits, SystemClock};
use crate::builder::Topology;
use crate::catchup::CatchUp;
use crate::error::Error;
use crate::gate::{Resolution, SchemaGate};
use crate::observer::{Observer, Silent};
use crate::processor::Domain;
use crate::record::{RecordBatch, Run};
use crate::start::check_cluster;
use crate::task::{CommitKind, Identity, Task, TaskConfig};

/// How to end a thread, from outside.
#[derive(Debug, Default)]
pub struct Control {
    /// Stop gracefully: commit, a last heartbeat, return.
    pub stop: AtomicBool,
    /// Stop gracefully once every input is read to its end.
    pub drain: AtomicBool,
    /// On a stop leave the group as well (scale-down); without it a restart
    /// within the session takes up its partitions where they are.
    pub leave: AtomicBool,
}

/// A thread's settings; times in microseconds.
#[derive(Clone, Debug)]
pub struct ThreadConfig {
    /// Application id and heartbeat interval.
    pub task: TaskConfig,
    /// Between commits, when there is something to commit (100 ms).
    pub commit_interval_us: Micros,
    /// Between punctuations (10 ms).
    pub punctuate_us: Micros,
    /// Bounds of one batch.
    pub poll: PollLimits,
    /// Commit early when overlay and outputs hold this many bytes (32 MiB).
    pub commit_bytes: usize,
    /// Age beyond which a store is rebuilt: half of the changelogs'
    /// delete.retention.ms (3.5 days).
    pub max_store_age_ms: i64,
    /// Wait after being fenced before fencing back: longer than the group takes
    /// to tell an impostor (4 s; the consumer's heartbeat interval is 2 s).
    pub fence_wait_us: Micros,
    /// A graceful stop gives up after this long (20 s).
    pub stop_timeout_us: Micros,
}

impl ThreadConfig {
    /// Defaults for an application.
    pub fn new(app_id: &str) -> Self {
        Self {
            task: TaskConfig::new(app_id),
            commit_interval_us: 100_000,
            punctuate_us: 10_000,
            poll: PollLimits::default(),
            commit_bytes: 32 << 20,
            max_store_age_ms: 7 * 24 * 3_600_000 / 2,
            fence_wait_us: 4_000_000,
            stop_timeout_us: 20_000_000,
        }
    }
}

/// What the thread is given besides broker and stores.
pub struct Hooks {
    /// Time.
    pub clock: Box<dyn Clock>,
    /// Schema resolution, if the domain needs it.
    pub gate: Option<Box<dyn SchemaGate>>,
    /// Metrics and progress.
    pub observer: Box<dyn Observer>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            clock: Box::new(SystemClock),
            gate: None,
            observer: Box::new(Silent),
        }
    }
}

/// One owned partition.
pub(crate) struct Slot<D: Domain> {
    /// `None` until the store could be opened.
    task: Option<Task<D>>,
    /// `None` when the task runs.
    catch_up: Option<CatchUp>,
    /// Per input: held back by the schema gate until this instant.
    gated: Vec<Option<Micros>>,
}

impl<D: Domain> Slot<D> {
    fn running(&mut self) -> Option<&mut Task<D>> {
        match self.catch_up {
            None => self.task.as_mut(),
            Some(_) => None,
        }
    }
}

/// Whether transactions can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Producer {
    Ready,
    /// To be renewed at this instant.
    Gone(Micros),
}

/// One consumer, one producer, the tasks of the partitions it owns.
pub struct StreamThread<D: Domain, B: Broker> {
    topology: Topology<D>,
    broker: B,
    db: StateDb,
    config: ThreadConfig,
    hooks: Hooks,
    identity: Identity,
    slots: BTreeMap<i32, Slot<D>>,
    batch: RecordBatch,
    restore_batch: RecordBatch,
    positions: Vec<Option<i64>>,
    /// A rebalance that was polled and not yet acted on.
    event: Option<Event>,
    producer: Producer,
    /// Failures since the last committed transaction.
    failures: u32,
    assigned_once: bool,
    /// When the last commit began and ended.
    committed_at: (Micros, Micros),
    /// The last poll filled its batch: there is more where it came from.
    behind: bool,
    punctuated_at: Micros,
    reported_at: Micros,
    stop_by: Option<Micros>,
}

impl<D: Domain, B: Broker> StreamThread<D, B> {
    /// A thread that has not begun; see [`run`](Self::run).
    pub fn new(
        topology: &Topology<D>,
        broker: B,
        db: StateDb,
        config: ThreadConfig,
        hooks: Hooks,
    ) -> Self {
        Self {
            topology: topology.clone(),
            broker,
            db,
            config,
            hooks,
            identity: Identity::default(),
            slots: BTreeMap::new(),
            batch: RecordBatch::new(),
            restore_batch: RecordBatch::new(),
            positions: Vec::new(),
            event: None,
            producer: Producer::Gone(0),
            failures: 0,
            assigned_once: false,
            committed_at: (0, 0),
            behind: false,
            punctuated_at: 0,
            reported_at: 0,
            stop_by: None,
        }
    }

    /// Run until stopped or drained (`Ok`), or until a human is needed.
    pub fn run(&mut self, control: &Control) -> Result<(), Error> {
        self.start()?;
        while !self.turn_or_recover(control)? {}
        Ok(())
    }

    /// One turn of the loop and, if it failed, the recovery from it. True ends
    /// the thread, an error needs a human. Public for simulators, which call
    /// `start` first.
    pub fn turn_or_recover(&mut self, control: &Control) -> Result<bool, Error> {
        match self.turn(control) {
            Ok(done) => Ok(done),
            Err(error) => self.recover(error).map(|()| false),
        }
    }

    /// Checks, the producer (it fences a dead predecessor), then the group.
    pub fn start(&mut self) -> Result<(), Error> {
        let facts = self.broker.facts()?;
        self.identity = check_cluster(&self.topology, &self.config.task.app_id, &facts)?;
        self.broker.renew_producer()?;
        self.producer = Producer::Ready;
        self.broker.subscribe()
    }

    // One turn of the loop:
    //
    // 1. Poll a bounded batch; while anything is due soon, wait only that long.
    // 2. Hand each run of records to its task. Records of partitions that are not
    //    owned or not running are thrown away: they will be read again.
    // 3. Only then act on a rebalance: what was polled before it is processed, so
    //    the commit before a release covers it.
    // 4. Advance catch-ups, each as far as it goes without waiting.
    // 5. Let processors act on the clock.
    // 6. When the interval is over and there is something to commit, or too much
    //    is uncommitted: one transaction for all tasks.
    // 7. If an end was asked for and is possible now: finish.
    //
    // Any error leaves the turn; `recover` drops what is uncommitted, and every
    // task catches up before it runs again. True ends the thread.
    fn turn(&mut self, control: &Control) -> Result<bool, Error> {
        self.batch.clear();
        if self.event.is_none() {
            let timeout = self.poll_timeout();
            let limits = self.config.poll;
            self.event = self.broker.poll(&mut self.batch, limits, timeout)?;
            self.behind = self.batch.len() >= limits.records || self.batch.bytes() >= limits.bytes;
        }
        let idle = self.batch.is_empty() && self.event.is_none();
        self.process()?;
        if let Some(event) = self.event.take() {
            self.rebalance(event)?;
        }
        self.ensure_producer()?;
        self.catch_up()?;
        self.reopen_gates()?;
        self.punctuate()?;
        if self.commit_due() {
            self.commit(CommitKind::default(), false)?;
        }
        self.report();
        self.end(control, idle)
    }

    fn now(&mut self) -> Micros {
        self.hooks.clock.now_us()
    }

    fn poll_timeout(&mut self) -> Duration {
        let now = self.now();
        if self.slots.values().any(|s| s.catch_up.is_some()) {
            return Duration::from_millis(1);
        }
        let working = self
            .slots
            .values()
            .filter_map(|s| s.task.as_ref())
            .any(Task::has_work);
        let due = if working {
            self.commit_at()
        } else {
            now + 50_000
        };
        let due = due.min(self.punctuated_at + self.config.punctuate_us.max(1_000));
        Duration::from_micros((due - now).clamp(0, 50_000) as u64)
    }

    fn process(&mut self) -> Result<(), Error> {
        let now = self.hooks.clock.now_us();
        for &run in self.batch.runs() {
            let Some(slot) = self.slots.get_mut(&run.partition) else {
                continue;
            };
            let gated = slot.gated[run.topic.index()].is_some();
            if slot.catch_up.is_some() || gated {
                continue;
            }
            let Some(task) = &mut slot.task else { continue };
            let (run, held) = match &mut self.hooks.gate {
                Some(gate) => admit(gate.as_mut(), &self.batch, run),
                None => (run, None),
            };
            task.process(&self.batch, run, now)?;
            if let Some(why) = held {
                let topic = &self.topology.inputs()[run.topic.index()];
                tracing::warn!(
                    task = run.partition,
                    topic = &**topic,
                    "{topic}/{} is held back: {why}; trying again in a second",
                    run.partition
                );
                self.hooks.observer.held(run.partition, topic, &why);
                self.broker.hold_input(run.topic, run.partition)?;
                slot.gated[run.topic.index()] = Some(now + 1_000_000);
            }
        }
        Ok(())
    }

    fn punctuate(&mut self) -> Result<(), Error> {
        let now = self.now();
        if now - self.punctuated_at < self.config.punctuate_us {
            return Ok(());
        }
        self.punctuated_at = now;
        for slot in self.slots.values_mut() {
            if let Some(task) = slot.running() {
                task.punctuate(now)?;
            }
        }
        Ok(())
    }

    /// When the next commit is due: an interval after the last one began, so that its
    /// length is not added to what readers wait; but half an interval is left for work.
    /// While there is a backlog nobody waits for its newest record, and a whole interval
    /// of work goes between two commits.
    fn commit_at(&self) -> Micros {
        let (began, ended) = self.committed_at;
        let interval = self.config.commit_interval_us;
        match self.behind {
            true => ended + interval,
            false => (began + interval).max(ended + interval / 2),
        }
    }

    fn commit_due(&mut self) -> bool {
        if self.producer != Producer::Ready {
            return false;
        }
        let now = self.now();
        let interval = now >= self.commit_at();
        let tasks = self.slots.values_mut().filter_map(Slot::running);
        let (mut bytes, mut wanted) = (0, false);
        for task in tasks {
            wanted |= task.needs_commit(now);
            bytes += task.uncommitted_bytes();
        }
        wanted && (interval || bytes > self.config.commit_bytes)
    }

    /// The tasks that run, by partition.
    pub fn running(&self) -> impl Iterator<Item = (i32, &Task<D>)> {
        self.slots
            .iter()
            .filter(|(_, s)| s.catch_up.is_none())
            .filter_map(|(&p, s)| s.task.as_ref().map(|t| (p, t)))
    }

    /// The broker, for tests.
    pub fn broker_mut(&mut self) -> &mut B {
        &mut self.broker
    }

    /// The topology it runs.
    pub fn topology(&self) -> &Topology<D> {
        &self.topology
    }

    /// The observer, when the thread has ended.
    pub fn into_parts(self) -> (B, Hooks) {
        (self.broker, self.hooks)
    }
}

/// Resolve the unknown schemas of a run. Gives the part that the task may have,
/// and why the rest may not, if there is a rest.
fn admit(gate: &mut dyn SchemaGate, batch: &RecordBatch, run: Run) -> (Run, Option<String>) {
    let mut from = run.from;
    while let Some(at) = gate.first_unknown(batch, run, from) {
        let one = Run {
            from: at,
            to: at + 1,
            ..run
        };
        let Some(record) = batch.records(one).next() else {
            break;
        };
        match gate.resolve(&record) {
            Resolution::Known | Resolution::Poison => from = at + 1,
            Resolution::Unreachable(why) => return (Run { to: at, ..run }, Some(why)),
        }
    }
    (run, None)
}

/// Stop flag shared by the threads of a process.
pub type SharedControl = Arc<Control>;
