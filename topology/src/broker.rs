//! What a stream thread asks of Kafka, as one trait, so that the protocol can
//! be tested against a scripted broker and run against librdkafka.
//!
//! Rebalances are data: `poll` reports an [`Event`], the thread acts, then tells
//! the broker that it has (`accept_assigned`, `release`). Errors say what to do
//! next, see [`Error`].

use std::time::Duration;

use finlake_state::StoreId;

use crate::Micros;
use crate::error::Error;
use crate::output::Output;
use crate::record::{RecordBatch, TopicIdx};

/// A change of the group's assignment, in partitions of the lead topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// These are now ours (perhaps none: we are a member, without work).
    Assigned(Vec<i32>),
    /// These will go to another member once they are released; until then
    /// commits are still good.
    Revoked(Vec<i32>),
    /// These may have gone to another member already: nothing can be committed.
    Lost(Vec<i32>),
}

/// Bounds of one poll.
#[derive(Clone, Copy, Debug)]
pub struct PollLimits {
    /// Records.
    pub records: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl Default for PollLimits {
    fn default() -> Self {
        Self {
            records: 4096,
            bytes: 4 << 20,
        }
    }
}

/// First and next offset of a partition, through a read_uncommitted client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Log start.
    pub low: i64,
    /// High watermark.
    pub high: i64,
}

/// A topic as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// Topic name.
    pub name: String,
    /// Topic id, never zero.
    pub id: [u8; 16],
    /// Partition count; 0 if the topic does not exist.
    pub partitions: i32,
}

/// The cluster at start: all inputs, sinks and changelogs of the topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFacts {
    /// Kafka's cluster id.
    pub cluster_id: String,
    /// Inputs, then sinks, then changelogs, in the topology's order.
    pub topics: Vec<TopicFacts>,
}

/// Kafka, as a stream thread sees it. Positions are always one per input, in
/// source order; changelog offsets one per store.
pub trait Broker: Send {
    // --- start and end ---------------------------------------------------

    /// Cluster id, topic ids, partition counts.
    fn facts(&mut self) -> Result<ClusterFacts, Error>;
    /// Destroy the producer, if there is one, make a new one under the same
    /// transactional id and initialise it: fences predecessors and settles
    /// their open transaction.
    fn renew_producer(&mut self) -> Result<(), Error>;
    /// Join the group on the lead topic.
    fn subscribe(&mut self) -> Result<(), Error>;
    /// Leave it; poll until the partitions are revoked.
    fn unsubscribe(&mut self) -> Result<(), Error>;

    // --- group and records -----------------------------------------------

    /// Append records to `batch`; report a rebalance. What is in the batch was
    /// polled before the event.
    fn poll(
        &mut self,
        batch: &mut RecordBatch,
        limits: PollLimits,
        timeout: Duration,
    ) -> Result<Option<Event>, Error>;
    /// Complete an [`Event::Assigned`]; reading begins with [`start`](Self::start).
    fn accept_assigned(&mut self) -> Result<(), Error>;
    /// Read all inputs of `partition` from `positions`, whether or not they were
    /// read before: what was fetched earlier is thrown away.
    fn start(&mut self, partition: i32, positions: &[i64]) -> Result<(), Error>;
    /// Stop reading `partition` until the next `start`, without giving it up.
    fn hold(&mut self, partition: i32) -> Result<(), Error>;
    /// As `hold`, for one input.
    fn hold_input(&mut self, topic: TopicIdx, partition: i32) -> Result<(), Error>;
    /// As `start`, for one input.
    fn start_input(&mut self, topic: TopicIdx, partition: i32, at: i64) -> Result<(), Error>;
    /// Complete an [`Event::Revoked`] or [`Event::Lost`].
    fn release(&mut self, partitions: &[i32]) -> Result<(), Error>;
    /// Consumer positions, past markers, of what `poll` has returned; `None`
    /// where nothing was consumed since `start`.
    fn positions(&mut self, partition: i32, out: &mut Vec<Option<i64>>) -> Result<(), Error>;
    /// Bounds of all inputs of `partition`.
    fn input_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error>;
    /// High watermark of an input as last heard, if the client knows one for
    /// free; for the lag metric only.
    fn known_end(&mut self, topic: TopicIdx, partition: i32) -> Option<i64> {
        let _ = (topic, partition);
        None
    }

    // --- catch-up --------------------------------------------------------

    /// The group's committed offsets of all inputs of one partition; only
    /// stable ones: `Error::Retry` while a transaction holds offsets pending.
    fn committed(&mut self, partition: i32) -> Result<Vec<Option<i64>>, Error>;
    /// Bounds of every changelog's `partition`.
    fn changelog_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error>;
    /// Begin to read changelogs, read_committed, from the offsets given.
    fn restore_start(&mut self, partition: i32, from: &[Option<i64>]) -> Result<(), Error>;
    /// Append changelog records of all partitions being restored to `batch`;
    /// their `TopicIdx` is the store.
    fn restore_poll(&mut self, batch: &mut RecordBatch, timeout: Duration) -> Result<(), Error>;
    /// Position of a changelog being restored, past markers; `None` if nothing
    /// was consumed yet.
    fn restore_position(&mut self, partition: i32, store: StoreId) -> Result<Option<i64>, Error>;
    /// Stop reading the changelogs of `partition`; no error if none is read.
    fn restore_stop(&mut self, partition: i32);

    // --- transaction -----------------------------------------------------

    /// Begin a transaction.
    fn begin(&mut self) -> Result<(), Error>;
    /// Enqueue an output to `partition` of its sink's topic.
    fn send_output(&mut self, partition: i32, output: &Output<'_>) -> Result<(), Error>;
    /// Enqueue a changelog record.
    fn send_changelog(
        &mut self,
        partition: i32,
        store: StoreId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Error>;
    /// Wait until everything enqueued is acknowledged.
    fn flush(&mut self) -> Result<(), Error>;
    /// The offset after the last acknowledged changelog record of the open or
    /// just committed transaction; `None` if it had none.
    fn delivered(&self, partition: i32, store: StoreId) -> Option<i64>;
    /// Add input positions of several partitions to the transaction, under the
    /// group's current metadata.
    fn send_offsets(&mut self, positions: &[(i32, Vec<i64>)]) -> Result<(), Error>;
    /// Commit. `Error::Renew` if the outcome is unknown; `Error::Retry` or
    /// `Rejoin` only if it certainly has not committed.
    fn commit(&mut self) -> Result<(), Error>;
    /// Abort the open transaction; no error if none is open.
    fn abort(&mut self) -> Result<(), Error>;
}

/// Time, handed in.
pub trait Clock: Send {
    /// Microseconds of UTC.
    fn now_us(&mut self) -> Micros;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_us(&mut self) -> Micros {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Before 1970 or after the year 294,000 the machine has other problems.
        since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
    }
}
