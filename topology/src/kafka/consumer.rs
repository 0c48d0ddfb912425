//! A group consumer that subscribes to one topic and has the same partitions of
//! others attached.
//!
//! librdkafka's cooperative-sticky would split two subscribed topics between
//! members; so only the lead topic is subscribed, and whoever owns its partition
//! p also reads partition p of the attached ones.
//!
//! Rebalances are not acted on in the callback: it only notes the event, which
//! `poll` hands to the caller, who answers with `accept_assigned` or `release`
//! in its own time. librdkafka waits for that answer. The answer to an
//! assignment is empty; reading begins with `start`, when positions are known,
//! so that no offset is ever chosen by the client.
//!
//! Records go past `BaseConsumer::poll`: its queue keeps rebalances and errors,
//! partitions are forwarded to a queue of our own that is emptied by the batch
//! (`ffi::RecordQueue`).

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::config::KafkaConfig;
use super::errors;
use super::member::{Closing, Member};
use crate::broker::{Event, PollLimits};
use crate::error::Error;
use crate::ffi::{self, RecordQueue};
use crate::record::{RecordBatch, TopicIdx};

/// Notes rebalances; acts on none, except while the client closes.
struct Group {
    lead: String,
    events: Mutex<VecDeque<Event>>,
    closing: Closing,
}

impl AsRef<Closing> for Group {
    fn as_ref(&self) -> &Closing {
        &self.closing
    }
}

impl ClientContext for Group {}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if self.closing.answers(consumer) {
            return;
        }
        let lead = list.elements_for_topic(&self.lead);
        let partitions = lead.iter().map(|e| e.partition()).collect();
        let event = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Event::Assigned(partitions),
            _ if consumer.assignment_lost() => Event::Lost(partitions),
            _ => Event::Revoked(partitions),
        };
        self.events.lock().push_back(event);
    }
}

/// See the module. Used by stream threads and, without transactions, by sinks.
pub struct AttachedConsumer {
    // Before the client it belongs to.
    records: RecordQueue,
    consumer: Member<Group>,
    id: String,
    /// Lead first.
    topics: Vec<String>,
    /// Partitions given to librdkafka.
    reading: BTreeSet<i32>,
    /// An error found behind records already in the batch.
    pending: Option<Error>,
    /// Partitions whose last message was an error, which librdkafka counts into the
    /// position.
    astray: BTreeSet<(u16, i32)>,
    /// The leaders of all topics were asked for.
    learnt: bool,
    complained: Option<Instant>,
}

/// Records taken from the client at a time; what the limits of a poll are exceeded by
/// at most, in bytes of so many records.
const CHUNK: usize = 1024;
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// OffsetFetch normally takes a millisecond or two; while offsets are pending
/// librdkafka retries it until the time is over, and the thread has other
/// partitions to serve.
const COMMITTED_TIMEOUT: Duration = Duration::from_millis(400);

impl AttachedConsumer {
    /// A member of `group` that will subscribe to `topics[0]`, with the others
    /// attached. Nothing is asked of the cluster yet.
    pub fn new(config: &KafkaConfig, group: &str, topics: &[String]) -> Result<Self, Error> {
        let Some(lead) = topics.first() else {
            return Err(Error::fatal("a consumer needs a topic to subscribe to"));
        };
        let context = Group {
            lead: lead.clone(),
            events: Mutex::default(),
            closing: Closing::default(),
        };
        let consumer = Member::create(&config.group_consumer(group), context)
            .map_err(|e| Error::fatal(format!("Kafka consumer: {e}")))?;
        Ok(Self {
            records: RecordQueue::new(consumer.client()),
            consumer,
            id: config.id(),
            topics: topics.to_vec(),
            reading: BTreeSet::new(),
            pending: None,
            astray: BTreeSet::new(),
            learnt: false,
            complained: None,
        })
    }

    /// Join the group.
    pub fn subscribe(&self) -> Result<(), Error> {
        let lead = [self.topics[0].as_str()];
        let subscribed = self.consumer.subscribe(&lead);
        subscribed.map_err(|e| Error::fatal(format!("subscribe to {}: {e}", self.topics[0])))
    }

    /// Leave it; the revocation comes through `poll`.
    pub fn unsubscribe(&self) {
        self.consumer.unsubscribe();
    }

    /// Append records to `batch` until it is full or `timeout` is over. An event is
    /// younger than every record in the batch.
    pub fn poll(
        &mut self,
        batch: &mut RecordBatch,
        limits: PollLimits,
        timeout: Duration,
    ) -> Result<Option<Event>, Error> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let mut wait = timeout;
        while batch.len() < limits.records && batch.bytes() < limits.bytes {
            let most = (limits.records - batch.len()).min(CHUNK);
            let taken = self.take(batch, most, wait);
            if taken < most || self.pending.is_some() {
                break;
            }
            wait = Duration::ZERO;
        }
        // Everything else: rebalances (noted by the context), errors of the client.
        match self.consumer.poll(Duration::ZERO) {
            None => {}
            Some(Ok(_)) => {
                let why = "a record came by the wrong queue; its partition is sought again";
                self.pending = Some(Error::Retry(why.to_owned()));
            }
            Some(Err(error)) => match errors::consumer(&self.id, &error) {
                Some(error) => self.pending = Some(error),
                None => complain(&mut self.complained, &self.id, &error),
            },
        }
        if batch.is_empty()
            && let Some(error) = self.pending.take()
        {
            return Err(error);
        }
        Ok(self.consumer.context().events.lock().pop_front())
    }

    /// One batch from the client.
    fn take(&mut self, batch: &mut RecordBatch, most: usize, wait: Duration) -> usize {
        let (topics, id) = (&self.topics, &self.id);
        let (astray, pending) = (&mut self.astray, &mut self.pending);
        let mut topic = 0;
        self.records.take(most, wait, |m| {
            if m.topic != topics[topic] {
                match topics.iter().position(|t| t == m.topic) {
                    Some(at) => topic = at,
                    None => return,
                }
            }
            let at = (topic as u16, m.partition);
            if let Some(code) = m.error {
                astray.insert(at);
                let error = KafkaError::MessageConsumption(code);
                let sorted = errors::consumer(id, &error).unwrap_or_else(|| {
                    Error::Retry(format!(
                        "{}/{}@{}: {error}; reading goes on from the last commit",
                        m.topic, m.partition, m.offset
                    ))
                });
                pending.get_or_insert(sorted);
                return;
            }
            if !astray.is_empty() && astray.contains(&at) {
                return; // what follows an error is read again
            }
            batch.push(
                TopicIdx(at.0),
                m.partition,
                m.offset,
                m.timestamp_ms,
                m.key,
                m.value,
            );
        })
    }

    /// Complete an [`Event::Assigned`].
    pub fn accept_assigned(&mut self) -> Result<(), Error> {
        let nothing = TopicPartitionList::new();
        let accepted = self.consumer.incremental_assign(&nothing);
        accepted.map_err(|e| Error::Retry(format!("accepting an assignment: {e}")))
    }

    /// Read all topics of `partition` from `positions`. Whatever was fetched
    /// before is thrown away.
    pub fn start(&mut self, partition: i32, positions: &[i64]) -> Result<(), Error> {
        let list = self.offset_list(&[(partition, positions.to_vec())])?;
        self.astray.retain(|(_, p)| *p != partition);
        if self.reading.contains(&partition) {
            self.seek(list)?;
        } else {
            if !std::mem::replace(&mut self.learnt, true) {
                for topic in &self.topics {
                    learn_leaders(&self.consumer, topic);
                }
            }
            for topic in &self.topics {
                self.records
                    .capture(self.consumer.client(), topic, partition)?;
            }
            let assigned = self.consumer.incremental_assign(&list);
            assigned.map_err(|e| Error::Retry(format!("assigning partition {partition}: {e}")))?;
            self.reading.insert(partition);
        }
        // A pause may have outlived an earlier assignment.
        let list = self.list(&[partition]);
        let resumed = self.consumer.resume(&list);
        resumed.map_err(|e| Error::Retry(format!("resuming partition {partition}: {e}")))
    }

    /// As `start`, for one topic of a partition that is being read.
    pub fn start_input(&mut self, topic: TopicIdx, partition: i32, at: i64) -> Result<(), Error> {
        let name = &self.topics[topic.index()];
        let mut list = TopicPartitionList::new();
        let added = list.add_partition_offset(name, partition, Offset::Offset(at));
        added.map_err(|e| Error::fatal(format!("{name}/{partition}@{at}: {e}")))?;
        self.seek(list)?;
        self.astray.remove(&(topic.0, partition));
        let mut list = TopicPartitionList::new();
        list.add_partition(name, partition);
        let resumed = self.consumer.resume(&list);
        resumed.map_err(|e| Error::Retry(format!("resuming {name}/{partition}: {e}")))
    }

    fn seek(&self, mut list: TopicPartitionList) -> Result<(), Error> {
        let by = Instant::now() + ADMIN_TIMEOUT;
        loop {
            let what = describe(&list);
            list = self
                .consumer
                .seek_partitions(list, ADMIN_TIMEOUT)
                .map_err(|e| Error::Retry(format!("seek {what}: {e}")))?;
            let Some(error) = list.elements().iter().find_map(|e| e.error().err()) else {
                return Ok(());
            };
            // A partition assigned a moment ago cannot be sought yet.
            if Instant::now() >= by {
                return Err(Error::Retry(format!("seek {what}: {error}")));
            }
            std::thread::sleep(Duration::from_millis(10));
            let mut again = TopicPartitionList::new();
            for e in list.elements() {
                let added = again.add_partition_offset(e.topic(), e.partition(), e.offset());
                added.map_err(|e| Error::fatal(format!("seek {what}: {e}")))?;
            }
            list = again;
        }
    }

    /// Stop reading `partition` until the next `start`.
    pub fn hold(&mut self, partition: i32) -> Result<(), Error> {
        if !self.reading.contains(&partition) {
            return Ok(());
        }
        let held = self.consumer.pause(&self.list(&[partition]));
        held.map_err(|e| Error::Retry(format!("pausing partition {partition}: {e}")))
    }

    /// As `hold`, for one topic.
    pub fn hold_input(&mut self, topic: TopicIdx, partition: i32) -> Result<(), Error> {
        let name = &self.topics[topic.index()];
        let mut list = TopicPartitionList::new();
        list.add_partition(name, partition);
        let held = self.consumer.pause(&list);
        held.map_err(|e| Error::Retry(format!("pausing {name}/{partition}: {e}")))
    }

    /// Complete an [`Event::Revoked`] or [`Event::Lost`].
    pub fn release(&mut self, partitions: &[i32]) -> Result<(), Error> {
        // Only what librdkafka was given may be taken back.
        let given: Vec<i32> = partitions
            .iter()
            .copied()
            .filter(|p| self.reading.remove(p))
            .collect();
        let released = self.consumer.incremental_unassign(&self.list(&given));
        released.map_err(|e| {
            Error::Fatal(format!(
                "releasing partitions {partitions:?}: {e}; the group cannot go on. Restart"
            ))
        })
    }

    /// Positions past markers, of what `poll` has returned.
    pub fn positions(&self, partition: i32, out: &mut Vec<Option<i64>>) -> Result<(), Error> {
        out.clear();
        let all = self.consumer.position();
        let all = all.map_err(|e| Error::Retry(format!("consumer positions: {e}")))?;
        out.extend(self.topics.iter().zip(0u16..).map(|(topic, n)| {
            if self.astray.contains(&(n, partition)) {
                return None;
            }
            let at = all.find_partition(topic, partition)?.offset();
            match at {
                Offset::Offset(at) => Some(at),
                _ => None,
            }
        }));
        Ok(())
    }

    /// The group's committed offsets of `partition`, lead first; only stable
    /// ones (`Error::Retry` while a transaction holds some pending).
    pub fn committed(&self, partition: i32) -> Result<Vec<Option<i64>>, Error> {
        let list = self.list(&[partition]);
        let waiting = |e: KafkaError| {
            Error::Retry(format!(
                "partition {partition}: the group's offsets cannot be read yet ({e}): a \
                 transaction of a previous owner may be pending"
            ))
        };
        let committed = self.consumer.committed_offsets(list, COMMITTED_TIMEOUT);
        let committed = committed.map_err(waiting)?;
        let mut out = Vec::with_capacity(self.topics.len());
        for topic in &self.topics {
            let found = committed.find_partition(topic, partition);
            out.push(match found {
                Some(e) => {
                    e.error().map_err(waiting)?;
                    match e.offset() {
                        Offset::Offset(at) => Some(at),
                        _ => None,
                    }
                }
                None => None,
            });
        }
        Ok(out)
    }

    /// Commit positions outside of any transaction, without waiting: for lag
    /// tools only, nothing of ours reads them.
    pub fn commit_for_tools(&self, positions: &[(i32, Vec<i64>)]) -> Result<(), Error> {
        use rdkafka::consumer::CommitMode;
        let list = self.offset_list(positions)?;
        let committed = self.consumer.commit(&list, CommitMode::Async);
        committed.map_err(|e| Error::Retry(format!("commit offsets: {e}")))
    }

    /// High watermark of a topic as last fetched.
    pub fn known_end(&self, topic: TopicIdx, partition: i32) -> Option<i64> {
        let name = &self.topics[topic.index()];
        ffi::known_high_watermark(self.consumer.client(), name, partition)
    }

    /// Fatal errors are found even when nothing is polled.
    pub(crate) fn check_fatal(&self) -> Result<(), Error> {
        match self.consumer.client().fatal_error() {
            Some((code, why)) => {
                let error = KafkaError::MessageConsumptionFatal(code);
                let sorted = errors::consumer(&self.id, &error);
                Err(sorted.unwrap_or_else(|| Error::fatal(why)))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn group_metadata(&self) -> Result<ConsumerGroupMetadata, Error> {
        let none = || Error::Rejoin("the consumer is not a member of its group".to_owned());
        self.consumer.group_metadata().ok_or_else(none)
    }

    pub(crate) fn offset_list(
        &self,
        positions: &[(i32, Vec<i64>)],
    ) -> Result<TopicPartitionList, Error> {
        let mut list = TopicPartitionList::with_capacity(positions.len() * self.topics.len());
        for (partition, positions) in positions {
            for (topic, at) in self.topics.iter().zip(positions) {
                list.add_partition_offset(topic, *partition, Offset::Offset(*at))
                    .map_err(|e| Error::fatal(format!("{topic}/{partition}@{at}: {e}")))?;
            }
        }
        Ok(list)
    }

    /// All topics of some partitions.
    fn list(&self, partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for topic in &self.topics {
            for partition in partitions {
                list.add_partition(topic, *partition);
            }
        }
        list
    }
}

impl Drop for AttachedConsumer {
    /// An event that was noted, or handed on, and never answered (its thread failed first) would
    /// block the close, and the client may have no more to ask. One of these is the answer; where
    /// there is no question, both change nothing.
    fn drop(&mut self) {
        let nothing = TopicPartitionList::new();
        let answered = self.consumer.incremental_unassign(&nothing);
        let answered = answered.and_then(|()| self.consumer.incremental_assign(&nothing));
        if let Err(e) = answered {
            tracing::debug!("answer before close: {e}");
        }
    }
}

/// Ask for a topic's leaders before it is assigned: librdkafka itself would only
/// notice at its next look at the topics, up to a second later, that it has to.
/// (Once it fetches, the question would wait behind the fetch.)
pub(super) fn learn_leaders<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str) {
    if let Err(e) = consumer.fetch_metadata(Some(topic), Duration::from_secs(2)) {
        tracing::debug!("metadata of {topic}: {e}");
    }
}

fn describe(list: &TopicPartitionList) -> String {
    let all = list.elements();
    let all = all.iter();
    all.map(|e| format!("{}/{}@{:?}", e.topic(), e.partition(), e.offset()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Say that something is wrong with the connection, but not a thousand times.
fn complain(last: &mut Option<Instant>, id: &str, error: &KafkaError) {
    if last.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
        *last = Some(Instant::now());
        tracing::warn!("consumer `{id}`: {error}; the client retries by itself");
    }
}
