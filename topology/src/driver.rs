//! Runs the production [`Task`] without a broker: records are piped in, the
//! clock moves by hand, a commit always succeeds. What a test sees is what the
//! stream thread would send.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use finlake_state::{StateDb, StoreId, StoreSpec, TaskState};

use crate::Micros;
use crate::builder::Topology;
use crate::error::Error;
use crate::faults::Faults;
use crate::processor::Domain;
use crate::record::{RecordBatch, TopicIdx};
use crate::stats::CommitStats;
use crate::task::{CommitKind, Identity, Task, TaskConfig};

/// A record as it was sent to an output topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRecord {
    /// Topic name.
    pub topic: String,
    /// Record key.
    pub key: Option<Vec<u8>>,
    /// Record value.
    pub value: Option<Vec<u8>>,
    /// Record headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Number of the commit it was part of.
    pub commit: i64,
}

impl OutputRecord {
    /// Value of a header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        let found = all.find(|(n, _)| n == name)?;
        std::str::from_utf8(&found.1).ok()
    }
}

/// Key and value in a store.
pub type StoredEntry = (Vec<u8>, Vec<u8>);

/// A record as it was sent to a changelog: store, key, value.
pub type ChangelogRecord = (String, Vec<u8>, Option<Vec<u8>>);

/// One task with a broker's worth of memory around it.
pub struct TestDriver<D: Domain> {
    topology: Topology<D>,
    config: TaskConfig,
    db: StateDb,
    task: Task<D>,
    number: i32,
    now: Micros,
    batch: RecordBatch,
    ends: Vec<i64>,
    outputs: Vec<OutputRecord>,
    changelog: Vec<ChangelogRecord>,
    changelog_ends: BTreeMap<StoreId, i64>,
    commits: Vec<CommitStats>,
}

impl<D: Domain> TestDriver<D> {
    /// Task 0 of `topology` over stores in memory, clock at 2026-01-01T00:00:00Z.
    pub fn new(topology: &Topology<D>, app_id: &str) -> Result<Self, Error> {
        Self::over(topology, app_id, StateDb::memory(), 0)
    }

    /// Task `number` over `db`, from the positions stored there (else from 0).
    pub fn over(
        topology: &Topology<D>,
        app_id: &str,
        db: StateDb,
        number: i32,
    ) -> Result<Self, Error> {
        let config = TaskConfig::new(app_id);
        let task = open(topology, &config, &db, number)?;
        let mut driver = Self {
            ends: vec![0; topology.inputs().len()],
            topology: topology.clone(),
            config,
            db,
            task,
            number,
            now: 1_767_225_600_000_000,
            batch: RecordBatch::new(),
            outputs: Vec::new(),
            changelog: Vec::new(),
            changelog_ends: BTreeMap::new(),
            commits: Vec::new(),
        };
        driver.catch_up()?;
        driver.ends = driver.task.positions().collect();
        Ok(driver)
    }

    /// Restarts the task with these faults planted.
    pub fn plant(&mut self, faults: Faults) -> Result<(), Error> {
        self.config.faults = faults;
        self.crash().map(drop)
    }

    /// Prepares a commit and sends it, and then the transaction fails: nothing of it is seen.
    pub fn fail_commit(&mut self) -> Result<Vec<i64>, Error> {
        self.task.prepare_commit(self.now, CommitKind::default())?;
        self.abort()
    }

    /// The clock.
    pub fn now_us(&self) -> Micros {
        self.now
    }

    /// Set the clock.
    pub fn set_now(&mut self, now: Micros) {
        self.now = now;
    }

    /// Move the clock forward and punctuate.
    pub fn advance(&mut self, by: Micros) -> Result<(), Error> {
        self.now += by;
        self.punctuate()
    }

    /// Punctuate at the current clock.
    pub fn punctuate(&mut self) -> Result<(), Error> {
        self.task.punctuate(self.now)
    }

    /// Pipe a record in at the next offset of `topic`, its timestamp the clock.
    /// Returns its offset.
    pub fn pipe(
        &mut self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<i64, Error> {
        let end = self.ends[self.input(topic)?.index()];
        self.pipe_at(topic, end, self.now / 1000, key, value)?;
        Ok(end)
    }

    /// Pipe a record in with an offset (a gap counts as skipped) and timestamp.
    pub fn pipe_at(
        &mut self,
        topic: &str,
        offset: i64,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        let idx = self.input(topic)?;
        self.batch.clear();
        self.batch
            .push(idx, self.number, offset, timestamp_ms, key, value);
        let end = &mut self.ends[idx.index()];
        *end = (*end).max(offset + 1);
        self.feed()
    }

    /// Pipe a whole batch in, as the thread would; its runs must be of this task.
    pub fn pipe_batch(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        for &run in batch.runs() {
            let end = &mut self.ends[run.topic.index()];
            if run.to > run.from {
                *end = (*end).max(batch.offset(run.to - 1) + 1);
            }
            self.task.process(batch, run, self.now)?;
        }
        Ok(())
    }

    fn feed(&mut self) -> Result<(), Error> {
        for &run in self.batch.runs() {
            self.task.process(&self.batch, run, self.now)?;
        }
        Ok(())
    }

    /// Commit if the task asks for it; whether it did.
    pub fn maybe_commit(&mut self) -> Result<bool, Error> {
        if !self.task.needs_commit(self.now) {
            return Ok(false);
        }
        self.commit()?;
        Ok(true)
    }

    /// Commit, also if there is nothing to commit (a heartbeat).
    pub fn commit(&mut self) -> Result<&CommitStats, Error> {
        self.commit_as(CommitKind::default())
    }

    /// A graceful stop: a commit with `stopping`, then the last heartbeat.
    pub fn stop(&mut self) -> Result<&CommitStats, Error> {
        self.commit_as(CommitKind {
            stopping: true,
            last: false,
        })?;
        self.commit_as(CommitKind {
            stopping: true,
            last: true,
        })
    }

    /// Commit in a given way.
    pub fn commit_as(&mut self, kind: CommitKind) -> Result<&CommitStats, Error> {
        self.task.prepare_commit(self.now, kind)?;
        let commit = self.task.stats().commit;
        for out in self.task.outputs().iter() {
            self.outputs.push(OutputRecord {
                topic: self.topology.sink_topic(out.sink).to_owned(),
                key: out.key.map(<[u8]>::to_vec),
                value: out.value.map(<[u8]>::to_vec),
                headers: out
                    .headers()
                    .map(|(n, v)| (n.to_owned(), v.to_vec()))
                    .collect(),
                commit,
            });
        }
        for (store, key, value) in self.task.changelog() {
            *self.changelog_ends.entry(store).or_default() += 1;
            let name = self.topology.stores()[store].to_string();
            self.changelog
                .push((name, key.to_vec(), value.map(<[u8]>::to_vec)));
        }
        self.commits.push(self.task.stats().clone());
        let ends = &self.changelog_ends;
        self.task
            .post_commit(&|store| ends.get(&store).copied(), self.now)?;
        // Just pushed.
        Ok(&self.commits[self.commits.len() - 1])
    }

    /// An aborted transaction: everything since the last commit is dropped and
    /// the inputs are sought back; returns the positions to pipe again from.
    pub fn abort(&mut self) -> Result<Vec<i64>, Error> {
        self.task.abort();
        self.catch_up()?;
        self.ends = self.task.positions().collect();
        Ok(self.ends.clone())
    }

    /// A crash and a restart over the same store.
    pub fn crash(&mut self) -> Result<Vec<i64>, Error> {
        // A store has one owner at a time: the old task goes before the new comes.
        self.task = open(
            &self.topology,
            &self.config,
            &StateDb::memory(),
            self.number,
        )?;
        self.task = open(&self.topology, &self.config, &self.db, self.number)?;
        self.abort()
    }

    /// The store is lost: a fresh one is restored from the changelog.
    pub fn crash_and_restore(&mut self) -> Result<Vec<i64>, Error> {
        self.task.abort();
        self.db = StateDb::memory();
        let mut task = open(&self.topology, &self.config, &self.db, self.number)?;
        let stores = self.topology.stores();
        for (name, key, value) in &self.changelog {
            let store = stores.iter().position(|s| **s == **name).unwrap_or(0);
            restore(task.state_mut(), store, key, value.as_deref())?;
        }
        let positions = task.stored()?.unwrap_or_default().positions;
        let checkpoint = finlake_state::Checkpoint {
            inputs: positions,
            ..Default::default()
        };
        task.state_mut()
            .finish_restore(&checkpoint)
            .map_err(Error::fatal)?;
        self.task = task;
        self.abort()
    }

    fn catch_up(&mut self) -> Result<(), Error> {
        let stored = self.task.stored()?.unwrap_or_default().positions;
        let positions: Vec<i64> = self
            .topology
            .inputs()
            .iter()
            .map(|t| {
                let mut all = stored.iter();
                all.find(|(s, _)| **s == **t).map_or(0, |(_, at)| *at)
            })
            .collect();
        self.task.resume(&positions)
    }

    /// Everything sent to `topic` so far.
    pub fn outputs(&self, topic: &str) -> Vec<&OutputRecord> {
        self.outputs.iter().filter(|o| o.topic == topic).collect()
    }

    /// Everything sent so far, and forget it.
    pub fn take_outputs(&mut self) -> Vec<OutputRecord> {
        std::mem::take(&mut self.outputs)
    }

    /// Changelog records sent so far, in order.
    pub fn changelog(&self) -> &[ChangelogRecord] {
        &self.changelog
    }

    /// Statistics of every commit so far.
    pub fn commits(&self) -> &[CommitStats] {
        &self.commits
    }

    /// The task itself.
    pub fn task(&self) -> &Task<D> {
        &self.task
    }

    /// Content of a store, overlay included, in key order.
    pub fn store(&self, name: &str) -> Result<Vec<StoredEntry>, Error> {
        let mut stores = self.topology.stores().iter();
        let id = stores
            .position(|s| **s == *name)
            .ok_or_else(|| Error::Fatal(format!("the topology has no store `{name}`")))?;
        let mut all = Vec::new();
        self.task
            .state()
            .scan(id, &[], None, &mut |k, v| {
                all.push((k.to_vec(), v.to_vec()));
                ControlFlow::Continue(())
            })
            .map_err(Error::fatal)?;
        Ok(all)
    }

    fn input(&self, topic: &str) -> Result<TopicIdx, Error> {
        let mut inputs = self.topology.inputs().iter();
        inputs
            .position(|t| **t == *topic)
            .map(|at| TopicIdx(at as u16))
            .ok_or_else(|| Error::Fatal(format!("`{topic}` is no input of the topology")))
    }
}

fn restore(
    state: &mut TaskState,
    store: StoreId,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), Error> {
    state.restore(store, key, value).map_err(Error::fatal)
}

fn open<D: Domain>(
    topology: &Topology<D>,
    config: &TaskConfig,
    db: &StateDb,
    number: i32,
) -> Result<Task<D>, Error> {
    let state = db
        .task(number as u32, &store_specs(topology))
        .map_err(Error::fatal)?;
    Ok(Task::new(
        topology,
        number,
        state,
        config,
        Identity::default(),
    ))
}

/// The stores of a task, in the topology's order.
pub(crate) fn store_specs<D: Domain>(topology: &Topology<D>) -> Vec<StoreSpec> {
    topology
        .stores()
        .iter()
        .map(|s| StoreSpec::new(s.to_string()))
        .collect()
}
