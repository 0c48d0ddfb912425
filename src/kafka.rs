//! What every Kafka client of the application has in common, beside the topology's own: where the servers are, how a
//! topic is read without joining a group, which errors pass by themselves, which partitions came and went.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use finlake_topology::kafka::{Closing, Member, RecordQueue, Taken};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

use crate::config::Config;

/// Longest wait for the next record before the read is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers and security, nothing else. Holds secrets: hand it to a client only.
pub fn client(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    for (key, value) in &config.kafka.client_properties().0 {
        client.set(key, value);
    }
    client
}

/// A consumer of committed records that moves no offset by itself; it is told where a partition ends.
pub fn reader(config: &Config, group: &str) -> ClientConfig {
    let mut client = client(config);
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("fetch.queue.backoff.ms", "2")
        // Behind the marker that ends a transaction the end of a partition is told by an empty answer only.
        .set("fetch.wait.max.ms", "20")
        .set("auto.offset.reset", "error");
    client
}

/// Whether Kafka answers at all, within a few seconds.
pub fn reachable(config: &Config) -> bool {
    let Ok(consumer) = client(config).create::<BaseConsumer>() else {
        return false;
    };
    consumer
        .fetch_metadata(None, Duration::from_secs(4))
        .is_ok_and(|m| !m.brokers().is_empty())
}

/// Notes which partitions of a subscription came (`true`) and went, in order.
#[derive(Default)]
pub struct Moves {
    pub noted: Mutex<Vec<(bool, Vec<i32>)>>,
    closing: Closing,
}

impl AsRef<Closing> for Moves {
    fn as_ref(&self) -> &Closing {
        &self.closing
    }
}

impl ClientContext for Moves {}

impl ConsumerContext for Moves {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        err: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        match self.closing.rebalance(consumer, err, list) {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => tracing::warn!("answering a rebalance: {e}"),
        }
        let came = err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let partitions = list.elements().iter().map(|e| e.partition()).collect();
        self.noted.lock().push((came, partitions));
    }
}

/// A member of a group of its own, subscribed to one topic. Nobody waits for what it reads: records come in batches, at
/// most two seconds late, since an answer for each would cost more than the work on it.
///
/// # Errors
/// Impossible client settings.
pub fn member(config: &Config, group: &str, topic: &str) -> Result<Member<Moves>> {
    let mut client = client(config);
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.min.bytes", "1048576")
        .set("fetch.wait.max.ms", "2000")
        .set("auto.offset.reset", "earliest");
    let consumer = Member::create(&client, Moves::default())?;
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

/// First and next offset of each partition of a topic; empty if there is no such topic.
///
/// # Errors
/// Kafka does not answer, or does not describe the topic.
pub fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    name: &str,
) -> Result<BTreeMap<i32, (i64, i64)>> {
    let metadata = consumer
        .fetch_metadata(Some(name), PATIENCE)
        .with_context(|| format!("Kafka does not answer about {name}"))?;
    let mut partitions = Vec::new();
    for topic in metadata.topics().iter().filter(|t| t.name() == name) {
        match topic.error() {
            None => partitions.extend(topic.partitions().iter().map(|p| p.id())),
            // Only this says that there is none.
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => {}
            Some(error) => {
                let code = RDKafkaErrorCode::from(error);
                bail!("topic {name} cannot be described: {code}");
            }
        }
    }
    let mut bounds = BTreeMap::new();
    for p in partitions {
        bounds.insert(p, consumer.fetch_watermarks(name, p, PATIENCE)?);
    }
    Ok(bounds)
}

/// Reads what a topic holds, from here to there, in each partition's order: committed records only, joining no group,
/// moving nothing.
pub struct Topic {
    /// Asked for offsets only.
    consumer: BaseConsumer,
    /// Of the one that reads.
    settings: ClientConfig,
    name: &'static str,
}

/// Records taken from the client at a time.
const BATCH: usize = 1024;

impl Topic {
    /// Makes the client; asks nothing yet.
    ///
    /// # Errors
    /// Impossible client settings.
    pub fn open(config: &Config, name: &'static str) -> Result<Topic> {
        let group = format!("{}-reader", config.kafka.application_id);
        let settings = reader(config, &group);
        Ok(Topic {
            consumer: settings.create()?,
            settings,
            name,
        })
    }

    /// First and next offset of each partition; empty if there is no such topic.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub fn bounds(&self) -> Result<BTreeMap<i32, (i64, i64)>> {
        bounds(&self.consumer, self.name)
    }

    /// The same, once no transaction is open in the topic: all that was ever sent is committed or aborted, and what is
    /// committed lies below the next offset. A reader's own view ends where the first open transaction begins, and a
    /// commit is acknowledged before its records are readable.
    ///
    /// # Errors
    /// Kafka does not answer; a transaction stays open.
    pub fn settled(&self, config: &Config) -> Result<BTreeMap<i32, (i64, i64)>> {
        let mut plain = client(config);
        plain.set("isolation.level", "read_uncommitted");
        let plain: BaseConsumer = plain.create()?;
        let by = Instant::now() + PATIENCE;
        let mut bounds = self.bounds()?;
        for (&p, (low, next)) in &mut bounds {
            let (_, high) = plain.fetch_watermarks(self.name, p, PATIENCE)?;
            while *next < high {
                if Instant::now() > by {
                    bail!(
                        "a transaction has been open in {}/{p} for {} s; Kafka ends it if its writer does not: try again",
                        self.name,
                        PATIENCE.as_secs()
                    );
                }
                std::thread::sleep(Duration::from_millis(5));
                (*low, *next) = self.consumer.fetch_watermarks(self.name, p, PATIENCE)?;
            }
        }
        Ok(bounds)
    }

    /// Hands every committed record of these ranges (first, next offset) to `each`; `false` ends the reading.
    ///
    /// Each time by a client of its own: librdkafka undoes the forwarding of a partition's queue some time after its
    /// `unassign` returned, so that of the next reading may be undone.
    ///
    /// # Errors
    /// Kafka is silent, a range is no longer there, or what `each` gives.
    pub fn read(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        mut each: impl FnMut(&Taken<'_>) -> Result<bool>,
    ) -> Result<()> {
        let mut open = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        let wanted: Vec<_> = ranges.iter().filter(|(_, r)| r.0 < r.1).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        // The queue is dropped before the client that it belongs to.
        let consumer: BaseConsumer = self.settings.create()?;
        let mut records = RecordQueue::new(consumer.client());
        for (&p, &(from, to)) in wanted {
            list.add_partition_offset(self.name, p, Offset::Offset(from))?;
            records.capture(consumer.client(), self.name, p)?;
            open.insert(p, to);
        }
        consumer.assign(&list)?;
        self.drain(&consumer, &mut records, &mut open, &mut each)
    }

    fn drain(
        &self,
        consumer: &BaseConsumer,
        records: &mut RecordQueue,
        open: &mut BTreeMap<i32, i64>,
        each: &mut impl FnMut(&Taken<'_>) -> Result<bool>,
    ) -> Result<()> {
        let mut heard = Instant::now();
        while !open.is_empty() {
            let mut more = Ok(true);
            let mut take = |m: Taken<'_>| {
                let end = match open.get(&m.partition) {
                    Some(&end) if matches!(more, Ok(true)) => end,
                    _ => return,
                };
                match m.error {
                    None => {
                        if m.offset < end {
                            more = each(&m);
                        }
                        if m.offset + 1 >= end {
                            open.remove(&m.partition);
                        }
                    }
                    // Markers and aborted records at the end of a range show only here.
                    Some(RDKafkaErrorCode::PartitionEOF) => {
                        open.remove(&m.partition);
                    }
                    Some(code) => more = self.failed(KafkaError::MessageConsumption(code)),
                }
            };
            // What is there; else the first to come, without waiting for its fellows.
            let mut heard_of = records.take(BATCH, Duration::ZERO, &mut take);
            if heard_of == 0 {
                heard_of = records.take(1, Duration::from_millis(100), &mut take);
            }
            if !more? {
                return Ok(());
            }
            // What is of no partition comes by the client's own queue.
            if let Some(Err(e)) = consumer.poll(Duration::ZERO) {
                self.failed(e)?;
            }
            if heard_of > 0 {
                heard = Instant::now();
            } else if heard.elapsed() > PATIENCE {
                bail!(
                    "Kafka has sent nothing of {} for {} s; try again",
                    self.name,
                    PATIENCE.as_secs()
                );
            }
        }
        Ok(())
    }

    fn failed(&self, e: KafkaError) -> Result<bool> {
        if is_passing(&e) {
            return Ok(true);
        }
        Err(e).with_context(|| format!("reading {}", self.name))
    }
}

/// Errors that librdkafka gets over by itself.
pub fn is_passing(e: &KafkaError) -> bool {
    matches!(
        e.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

#[cfg(test)]
mod tests {
    use finlake_devkafka::{Config as BrokerConfig, DevKafka, Fault};
    use finlake_schemas::topics;

    use super::*;
    use crate::config::Inputs;

    fn config_of(broker: &DevKafka) -> Config {
        let server = ("kafka.bootstrap_servers", broker.bootstrap(), "--set");
        let inputs = Inputs {
            overrides: vec![(server.0.to_owned(), server.1, server.2.to_owned())],
            ..Inputs::default()
        };
        Config::load(&inputs).unwrap()
    }

    /// What is compared with a topic reads ranges of it again, at once.
    #[test]
    fn a_topic_is_read_again_and_again() {
        let broker = DevKafka::start(BrokerConfig::default()).unwrap();
        let config = config_of(&broker);
        broker
            .create_topic(topics::TICKS, 1, topics::config(topics::TICKS))
            .unwrap();
        let producer: rdkafka::producer::BaseProducer = client(&config).create().unwrap();
        for i in 0..100u8 {
            let record = rdkafka::producer::BaseRecord::<(), _>::to(topics::TICKS);
            let value = [i];
            producer.send(record.payload(&value)).unwrap();
        }
        rdkafka::producer::Producer::flush(&producer, PATIENCE).unwrap();
        let topic = Topic::open(&config, topics::TICKS).unwrap();
        for from in 0..60 {
            let mut found = Vec::new();
            let range = BTreeMap::from([(0, (from, 100))]);
            topic
                .read(&range, |m| {
                    found.push(m.offset);
                    Ok(true)
                })
                .unwrap();
            assert_eq!(found, (from..100).collect::<Vec<_>>());
        }
    }

    /// A check over an empty topic finds nothing wrong; over one that cannot be read it has to say so.
    #[test]
    fn a_topic_that_cannot_be_read_is_not_an_empty_one() {
        const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
        let broker = DevKafka::start(BrokerConfig {
            auto_create_topics: false,
            ..BrokerConfig::default()
        })
        .unwrap();
        let config = config_of(&broker);
        let topic = Topic::open(&config, topics::LEDGER).unwrap();
        assert_eq!(topic.bounds().unwrap(), BTreeMap::new(), "there is none");
        let settings = topics::config(topics::LEDGER);
        broker.create_topic(topics::LEDGER, 2, settings).unwrap();
        assert_eq!(topic.bounds().unwrap(), [(0, (0, 0)), (1, (0, 0))].into());
        let refused = Fault::Error(TOPIC_AUTHORIZATION_FAILED);
        assert!(broker.faults().inject("Metadata", refused, 1_000));
        let said = format!("{:#}", topic.bounds().unwrap_err());
        assert!(
            said.contains("finlake.ledger cannot be described") && said.contains("Authorization"),
            "{said}"
        );
        broker.faults().clear();
        assert_eq!(topic.bounds().unwrap().len(), 2);
    }
}
