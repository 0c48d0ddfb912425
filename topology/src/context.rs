//! What a processor may touch: its stores, its sinks, counters and the clock
//! that was handed in. Everything goes into the task's overlay and outputs;
//! nothing leaves the process before the commit.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;

use finlake_state::{StoreId, TaskState};

use crate::Micros;
use crate::builder::SinkId;
use crate::output::Outputs;
use crate::processor::Failure;
use crate::record::{Record, TopicIdx};
use crate::stats::Counter;

/// Called with each key and value of a scan.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Header names of a dead-lettered record; all values are text.
pub mod dlq_headers {
    /// The rejection's class.
    pub const CLASS: &str = "finlake.error.class";
    /// The rejection's message.
    pub const MESSAGE: &str = "finlake.error.message";
    /// Source topic.
    pub const TOPIC: &str = "finlake.topic";
    /// Source partition.
    pub const PARTITION: &str = "finlake.partition";
    /// Source offset.
    pub const OFFSET: &str = "finlake.offset";
    /// The application that rejected it.
    pub const APP_ID: &str = "finlake.app.id";
}

/// Progress of one input since the last commit.
#[derive(Clone, Debug, Default)]
pub(crate) struct InputTally {
    pub start: i64,
    pub position: i64,
    pub records: i64,
    pub hash: u128,
    pub rejected: i64,
    pub skipped: i64,
}

/// One sink since the last commit.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinkTally {
    pub count: i64,
    pub hash: u128,
    pub counted: bool,
}

/// What of a node's declaration is needed at run time.
#[derive(Clone, Debug)]
pub(crate) struct NodeAccess {
    pub name: String,
    /// Local store number → store of the task.
    pub stores: Box<[StoreId]>,
    /// Bit per sink that may be produced to.
    pub sinks: u64,
}

/// When the numbers of a commit are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Processing,
    Preparing,
    Sealing,
}

/// The part of a task that processors reach through a [`Context`].
pub(crate) struct Core {
    pub task: i32,
    pub app_id: Arc<str>,
    pub topics: Arc<[Arc<str>]>,
    pub now: Micros,
    pub phase: Phase,
    pub stopping: bool,
    pub dirty: bool,
    /// Number of the commit being assembled.
    pub commit: i64,
    /// Of the commit being assembled (`Preparing`, `Sealing`), else of the last.
    pub system_time: Micros,
    pub inputs: Vec<InputTally>,
    pub outputs: Outputs,
    pub sinks: Vec<SinkTally>,
    pub counters: Vec<i64>,
    pub state: TaskState,
    pub access: Arc<[NodeAccess]>,
    pub dlq: Option<SinkId>,
    /// Dead letters by class.
    pub rejected: Vec<(String, i64)>,
    pub scratch: String,
}

impl Core {
    fn push(
        &mut self,
        sink: SinkId,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) {
        let tally = &mut self.sinks[sink.index()];
        let hash = self.outputs.push(sink, key, value, headers, tally.counted);
        if tally.counted {
            tally.count += 1;
            tally.hash = tally.hash.wrapping_add(hash);
        }
    }

    /// Put the source record into the dead-letter sink.
    pub fn dead_letter(
        &mut self,
        record: &Record<'_>,
        class: &str,
        message: &str,
    ) -> Result<(), Failure> {
        let topic = self.topics[record.topic.index()].clone();
        let Some(dlq) = self.dlq else {
            return Err(Failure::fatal(format!(
                "record {topic}/{}@{} is rejected as {class} ({message}), but the topology has no \
                 dead-letter topic; declare one with `TopologyBuilder::dlq`",
                record.partition, record.offset
            )));
        };
        // Two numbers as text, in one reused string.
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", record.partition);
        let split = text.len();
        let _ = write!(text, "{}", record.offset);
        let (partition, offset) = text.split_at(split);
        let app_id = self.app_id.clone();
        let headers: [(&str, &[u8]); 6] = [
            (dlq_headers::CLASS, class.as_bytes()),
            (dlq_headers::MESSAGE, message.as_bytes()),
            (dlq_headers::TOPIC, topic.as_bytes()),
            (dlq_headers::PARTITION, partition.as_bytes()),
            (dlq_headers::OFFSET, offset.as_bytes()),
            (dlq_headers::APP_ID, app_id.as_bytes()),
        ];
        self.push(dlq, record.key, record.value, &headers);
        self.scratch = text;
        match self.rejected.iter_mut().find(|(c, _)| c == class) {
            Some((_, n)) => *n += 1,
            None => self.rejected.push((class.to_owned(), 1)),
        }
        Ok(())
    }
}

/// Handed to every call of a processor.
pub struct Context<'a> {
    core: &'a mut Core,
    record: Option<Record<'a>>,
    node: usize,
}

impl<'a> Context<'a> {
    pub(crate) fn new(core: &'a mut Core, record: Option<Record<'a>>) -> Self {
        Self {
            core,
            record,
            node: 0,
        }
    }

    /// Make `node` the current one; returns the one before.
    #[inline]
    pub(crate) fn enter(&mut self, node: usize) -> usize {
        std::mem::replace(&mut self.node, node)
    }

    /// The clock, microseconds of UTC; moves between batches, not within one.
    pub fn now_us(&self) -> Micros {
        self.core.now
    }

    /// The commit being prepared is of a graceful stop or a drain: emit what
    /// would otherwise wait.
    pub fn stopping(&self) -> bool {
        self.core.stopping
    }

    /// The task's number: its partition.
    pub fn task(&self) -> i32 {
        self.core.task
    }

    /// The number that the next commit bears (1, 2, 3, …).
    pub fn commit(&self) -> i64 {
        self.core.commit
    }

    /// System time of the commit. Valid in `prepare_commit` and `seal`;
    /// elsewhere it is the last commit's.
    pub fn system_time(&self) -> Micros {
        self.core.system_time
    }

    /// Position of an input, exclusive: the offset after the record in hand.
    pub fn position(&self, topic: TopicIdx) -> i64 {
        self.core.inputs[topic.index()].position
    }

    /// The source record in hand; `None` outside of `process`.
    pub fn record(&self) -> Option<&Record<'a>> {
        self.record.as_ref()
    }

    /// Name of an input topic.
    pub fn topic(&self, topic: TopicIdx) -> &str {
        &self.core.topics[topic.index()]
    }

    /// Ask for a commit even if no input was read.
    pub fn mark_dirty(&mut self) {
        self.core.dirty = true;
    }

    /// Add `n` to a counter of the current commit.
    #[inline]
    pub fn count(&mut self, counter: Counter, n: i64) {
        self.core.counters[usize::from(counter.0)] += n;
    }

    /// Produce to a sink that this node declared. The record is sent with the
    /// commit, to the task's own partition.
    pub fn produce(
        &mut self,
        sink: SinkId,
        key: &[u8],
        value: &[u8],
        headers: &[(&str, &[u8])],
    ) -> Result<(), Failure> {
        let access = &self.core.access[self.node];
        if access.sinks & (1 << sink.0) == 0 {
            return Err(Failure::fatal(format!(
                "processor `{}` produces to a sink it has not declared; add it with `.sinks(…)`",
                access.name
            )));
        }
        if self.core.phase == Phase::Sealing && self.core.sinks[sink.index()].counted {
            return Err(Failure::fatal(format!(
                "processor `{}` produces to a counted sink while the commit is being sealed",
                access.name
            )));
        }
        self.core.push(sink, Some(key), Some(value), headers);
        Ok(())
    }

    /// Copy the source record to the dead-letter topic and go on with it: for a
    /// record that is accepted, yet not by everyone. (To refuse it altogether,
    /// return [`Failure::reject`].)
    pub fn dead_letter(&mut self, class: &str, message: &str) -> Result<(), Failure> {
        match self.record {
            Some(record) => self.core.dead_letter(&record, class, message),
            None => Err(Failure::fatal(format!(
                "dead letter `{class}` without a source record: {message}"
            ))),
        }
    }

    /// Value of `key` in the node's `store` (its place in `.stores(…)`).
    ///
    /// # Panics
    /// Here and below, if the node has not declared that many stores.
    pub fn get(&self, store: usize, key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        let id = self.store(store);
        self.core.state.get(id, key).map_err(Failure::fatal)
    }

    /// As [`get`](Self::get), into a buffer that is reused; `false` if absent.
    pub fn get_into(&self, store: usize, key: &[u8], value: &mut Vec<u8>) -> Result<bool, Failure> {
        let id = self.store(store);
        self.core
            .state
            .get_into(id, key, value)
            .map_err(Failure::fatal)
    }

    /// Write to the overlay; goes to the changelog and the store with the commit.
    pub fn put(&mut self, store: usize, key: &[u8], value: &[u8]) {
        let id = self.store(store);
        self.core.state.put(id, key, value);
    }

    /// Delete from the overlay; a tombstone in the changelog with the commit.
    pub fn delete(&mut self, store: usize, key: &[u8]) {
        let id = self.store(store);
        self.core.state.delete(id, key);
    }

    /// Visit [from, to) in key order, overlay merged, until `f` breaks.
    pub fn scan(
        &self,
        store: usize,
        from: &[u8],
        to: Option<&[u8]>,
        f: &mut Visitor<'_>,
    ) -> Result<(), Failure> {
        let id = self.store(store);
        self.core
            .state
            .scan(id, from, to, f)
            .map_err(Failure::fatal)
    }

    #[inline]
    fn store(&self, local: usize) -> StoreId {
        self.core.access[self.node].stores[local]
    }
}
