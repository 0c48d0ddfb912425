//! Which of the instances that have the role audits: the one that owns partition 0 of the ledger in the audit's group.
//! The others are members as well, own what they are given, and read nothing.
//!
//! The group chooses; it does not spread the work: row totals are sums over all partitions, so whoever compares them has
//! to read them all, and all of it costs little.
//!
//! 1. A rebalance is answered where librdkafka asks, with nothing to read; what it was is only noted.
//! 2. Who got partition 0 reads the states that the group keeps, and assigns itself all partitions at their offsets. To
//!    the group that is its own affair: a member may read what it likes.
//! 3. It keeps the offsets and states of all partitions: a broker takes them from any member of the group's present
//!    generation, whatever it owns. From one that was given up meanwhile (a zombie) it does not.
//!
//! By the eager protocol everybody has stopped reading before somebody is active again, but for zombies; what those still
//! find is the same break by its id. Must never keep a state whose findings were not told. Data flows: rebalances →
//! `Turn` → `role`; the group's offsets → `Auditor` → the group's offsets.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use finlake_reconcile::TaskAudit;
use finlake_schemas::topics;
use finlake_topology::kafka::{Closing, Member};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::auditor::Auditor;
use crate::config::Config;
use crate::kafka;

/// Whose owner is active.
const FIRST: i32 = 0;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a rebalance came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// This instance audits, from the kept states on.
    Active,
    /// Another one does.
    StandBy,
    /// The group chooses anew.
    Over,
}

/// Answers rebalances and notes the newest.
#[derive(Default)]
pub(super) struct Turns {
    newest: Mutex<Option<Turn>>,
    closing: Closing,
}

impl Turns {
    /// The newest rebalance since it was last asked.
    pub fn take(&self) -> Option<Turn> {
        self.newest.lock().take()
    }
}

impl AsRef<Closing> for Turns {
    fn as_ref(&self) -> &Closing {
        &self.closing
    }
}

impl ClientContext for Turns {}

impl ConsumerContext for Turns {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if self.closing.answers(consumer) {
            return;
        }
        let (turn, answered) = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let turn = match list.find_partition(topics::LEDGER, FIRST) {
                    Some(_) => Turn::Active,
                    None => Turn::StandBy,
                };
                (turn, consumer.assign(&TopicPartitionList::new()))
            }
            _ => (Turn::Over, consumer.unassign()),
        };
        if let Err(e) = answered {
            tracing::warn!("audit: answering a rebalance: {e}");
        }
        *self.newest.lock() = Some(turn);
    }
}

/// The audit's consumer group.
pub(super) fn group(config: &Config) -> String {
    format!("{}-audit", config.kafka.application_id)
}

/// Becomes a member. Nobody waits for what the audit reads: records come in batches, at most two seconds late, since an
/// answer for each would cost more than the work on it.
///
/// # Errors
/// Impossible client settings.
pub(super) fn join(config: &Config) -> Result<Member<Turns>> {
    let session = config.stream.session_timeout.as_millis();
    let mut client = kafka::client(config);
    client
        .set("group.id", group(config))
        .set("partition.assignment.strategy", "range")
        .set("session.timeout.ms", session.to_string())
        .set("max.poll.interval.ms", session.max(300_000).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.min.bytes", "1048576")
        .set("fetch.wait.max.ms", "2000")
        .set("auto.offset.reset", "earliest");
    let consumer = Member::create(&client, Turns::default())?;
    consumer.subscribe(&[topics::LEDGER])?;
    Ok(consumer)
}

/// Hands the kept states to the auditor and reads all partitions from there on.
///
/// # Errors
/// Kafka does not answer; nothing is read then.
pub(super) fn take_over(consumer: &BaseConsumer<Turns>, auditor: &mut Auditor) -> Result<()> {
    let bounds = kafka::bounds(consumer, topics::LEDGER)?;
    if bounds.is_empty() {
        bail!(
            "there is no topic {}; `finlake topics create` makes it",
            topics::LEDGER
        );
    }
    auditor.forget();
    let mut list = TopicPartitionList::new();
    for (p, from) in begin(consumer, &bounds, auditor)? {
        list.add_partition_offset(topics::LEDGER, p, Offset::Offset(from))?;
    }
    consumer.assign(&list).context("reading the ledger")
}

/// Hands the states that the group keeps to the auditor; gives where to read on, by partition.
///
/// # Errors
/// Kafka does not answer.
pub(super) fn begin<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    bounds: &BTreeMap<i32, (i64, i64)>,
    auditor: &mut Auditor,
) -> Result<BTreeMap<i32, i64>> {
    let mut list = TopicPartitionList::new();
    for p in bounds.keys() {
        list.add_partition(topics::LEDGER, *p);
    }
    let committed = consumer
        .committed_offsets(list, TIMEOUT)
        .context("states of the audit")?;
    let mut from = BTreeMap::new();
    for (&p, &(low, high)) in bounds {
        let element = committed.find_partition(topics::LEDGER, p);
        let kept = element.and_then(|element| {
            let Offset::Offset(next) = element.offset() else {
                return None;
            };
            // A state from before the ledger's first record that is left is of no use.
            if !(low..=high).contains(&next) {
                tracing::warn!("audit: partition {p}: its state is of offset {next}, the ledger holds {low} to {high}; it begins anew");
                return None;
            }
            let state = TaskAudit::decode(element.metadata());
            let state = state.map_err(|e| tracing::warn!("audit: partition {p}: {e}"));
            Some((next, state.ok()?))
        });
        from.insert(p, kept.as_ref().map_or(low, |(next, _)| *next));
        auditor.begin(p, kept, low);
    }
    Ok(from)
}

/// Keeps what may be kept. A group that is choosing anew, or has given this member up, refuses it, which costs reading
/// that part again.
pub(super) fn keep<C: ConsumerContext>(consumer: &BaseConsumer<C>, auditor: &Auditor) {
    let list = auditor.marks();
    if list.count() > 0
        && let Err(e) = consumer.commit(&list, CommitMode::Sync)
    {
        tracing::debug!("audit: offsets: {e}");
    }
}
