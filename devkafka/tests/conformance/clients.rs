//! Clients with the settings that FinLake uses, and short ways to do the usual things.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use super::member::{Closing, Member};

/// Answers rebalances as rdkafka does by itself.
#[derive(Default)]
pub struct Usual(Closing);

impl AsRef<Closing> for Usual {
    fn as_ref(&self) -> &Closing {
        &self.0
    }
}

impl ClientContext for Usual {}

impl ConsumerContext for Usual {
    fn rebalance(&self, of: &BaseConsumer, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.0.rebalance(of, err, list).unwrap();
    }
}

pub type BaseConsumer<C = Usual> = rdkafka::consumer::BaseConsumer<C>;

pub fn create(config: &ClientConfig) -> Member<Usual> {
    Member::create(config, Usual::default()).unwrap()
}

pub const WAIT: Duration = Duration::from_secs(30);

/// A name that no other run or test has used.
pub fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!(
        "{name}-{}-{nanos:x}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

pub fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .unwrap()
}

/// Creates a topic of a unique name and waits until its partitions can be used.
pub async fn topic(bootstrap: &str, name: &str, partitions: i32) -> String {
    topic_with(bootstrap, name, partitions, &[]).await
}

pub async fn topic_with(
    bootstrap: &str,
    name: &str,
    partitions: i32,
    configs: &[(&str, &str)],
) -> String {
    let name = unique(name);
    let admin = admin(bootstrap);
    let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (k, v) in configs {
        topic = topic.set(k, v);
    }
    for result in admin
        .create_topics(&[topic], &AdminOptions::new())
        .await
        .unwrap()
    {
        result.unwrap();
    }
    let begin = Instant::now();
    loop {
        let metadata = admin.inner().fetch_metadata(Some(&name), WAIT).unwrap();
        if metadata.topics().iter().any(|t| {
            t.partitions().len() as i32 == partitions
                && t.partitions().iter().all(|p| p.leader() >= 0)
        }) {
            return name;
        }
        assert!(begin.elapsed() < WAIT, "topic {name} did not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn plain_producer(bootstrap: &str) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "0")
        .create()
        .unwrap()
}

/// A transactional producer that has not called `init_transactions` yet.
pub fn txn_producer(bootstrap: &str, id: &str, timeout_ms: u32) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", id)
        .set("transaction.timeout.ms", timeout_ms.to_string())
        .set("message.timeout.ms", timeout_ms.to_string())
        .set("socket.timeout.ms", timeout_ms.to_string())
        .set("linger.ms", "0")
        .create()
        .unwrap()
}

/// A transactional producer that is ready.
pub fn ready_producer(bootstrap: &str, id: &str, timeout_ms: u32) -> FutureProducer {
    let producer = txn_producer(bootstrap, id, timeout_ms);
    producer.init_transactions(WAIT).unwrap();
    producer
}

pub async fn send(
    producer: &FutureProducer,
    topic: &str,
    partition: i32,
    key: &str,
    value: &str,
) -> i64 {
    let record = FutureRecord::to(topic)
        .partition(partition)
        .key(key)
        .payload(value);
    producer
        .send(record, WAIT)
        .await
        .map_err(|(e, _)| e)
        .unwrap()
        .offset
}

pub fn consumer(bootstrap: &str, group: &str, isolation: &str) -> Member<Usual> {
    create(&consumer_config(bootstrap, group, isolation))
}

pub fn consumer_config(bootstrap: &str, group: &str, isolation: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "false")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "50");
    config
}

pub fn assign_from(consumer: &BaseConsumer, topic: &str, partition: i32, offset: Offset) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, offset).unwrap();
    consumer.assign(&list).unwrap();
}

pub fn value(m: &BorrowedMessage<'_>) -> String {
    String::from_utf8(m.payload().unwrap_or_default().to_vec()).unwrap()
}

/// Reads a partition from its start until `count` records are there or, once its end was reached, `quiet` has passed
/// without one.
pub fn read(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    isolation: &str,
    count: usize,
    quiet: Duration,
) -> Vec<(i64, String)> {
    let mut config = consumer_config(bootstrap, &unique("reader"), isolation);
    let consumer = create(config.set("enable.partition.eof", "true"));
    assign_from(&consumer, topic, partition, Offset::Beginning);
    let mut found = Vec::new();
    let (mut last, mut patience) = (Instant::now(), WAIT);
    while found.len() < count && last.elapsed() < patience {
        match consumer.poll(Duration::from_millis(50)) {
            Some(Ok(message)) => found.push((message.offset(), value(&message))),
            Some(Err(KafkaError::PartitionEOF(_))) => patience = quiet,
            Some(Err(e)) => panic!("{e}"),
            None => continue,
        }
        last = Instant::now();
    }
    found
}

pub fn poll_values<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    count: usize,
    quiet: Duration,
) -> Vec<(i64, String)> {
    let mut found = Vec::new();
    let mut last = Instant::now();
    while found.len() < count && last.elapsed() < quiet {
        if let Some(message) = consumer.poll(Duration::from_millis(50)) {
            let message = message.unwrap();
            found.push((message.offset(), value(&message)));
            last = Instant::now();
        }
    }
    found
}

pub fn values(found: &[(i64, String)]) -> Vec<&str> {
    found.iter().map(|(_, v)| v.as_str()).collect()
}

/// The group's committed offset of a partition; None if there is none.
pub fn committed(consumer: &BaseConsumer, topic: &str, partition: i32) -> Option<i64> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let offsets = consumer.committed_offsets(list, WAIT).unwrap();
    match offsets.elements()[0].offset() {
        Offset::Offset(o) => Some(o),
        _ => None,
    }
}

/// Subscribes and polls until the consumer has `count` partitions, or the time is up.
pub fn poll_until_assigned<C: ConsumerContext>(consumer: &BaseConsumer<C>, count: usize) {
    let begin = Instant::now();
    while consumer.assignment().unwrap().count() != count {
        assert!(
            begin.elapsed() < WAIT,
            "assigned {} of {count}",
            consumer.assignment().unwrap().count()
        );
        if let Some(message) = consumer.poll(Duration::from_millis(20)) {
            message.unwrap();
        }
    }
}

pub fn offsets(topic: &str, list: &[(i32, i64)]) -> TopicPartitionList {
    let mut out = TopicPartitionList::new();
    for (partition, offset) in list {
        out.add_partition_offset(topic, *partition, Offset::Offset(*offset))
            .unwrap();
    }
    out
}

/// Counts how often each value occurs.
pub fn tally<'a>(values: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    for v in values {
        *counts.entry(v).or_default() += 1;
    }
    counts
}
