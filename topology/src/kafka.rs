//! The rdkafka binding of [`Broker`].
//!
//! Five clients of librdkafka hide behind it, each with its own reason: the
//! group's consumer (read_committed), the transactional producer (destroyed and
//! made anew whenever an outcome is unknown), a watermark client
//! (read_uncommitted: on a read_committed client the high watermark is the last
//! stable offset), and a restore consumer that only assigns. Nothing is decided
//! here: errors are sorted (`errors.rs`), the thread acts.

mod config;
mod consumer;
mod errors;
mod member;
mod producer;
mod restore;

use std::time::Duration;

use finlake_state::StoreId;
use rdkafka::consumer::{BaseConsumer, Consumer};

pub use config::KafkaConfig;
pub use consumer::AttachedConsumer;
pub use member::{Closing, Member};

pub use crate::ffi::{RecordQueue, Taken};

use crate::broker::{Bounds, Broker, ClusterFacts, Event, PollLimits, TopicFacts};
use crate::builder::Topology;
use crate::error::Error;
use crate::ffi;
use crate::output::Output;
use crate::processor::Domain;
use crate::record::{RecordBatch, TopicIdx};
use producer::TxnProducer;
use restore::RestoreConsumer;

/// Kafka, for one stream thread of one topology.
pub struct KafkaBroker {
    config: KafkaConfig,
    inputs: Vec<String>,
    sinks: Vec<String>,
    changelogs: Vec<String>,
    consumer: AttachedConsumer,
    watermarks: Watermarks,
    restore: RestoreConsumer,
    producer: Option<TxnProducer>,
}

impl KafkaBroker {
    /// Make the clients; nothing is asked of the cluster yet.
    pub fn new<D: Domain>(topology: &Topology<D>, config: KafkaConfig) -> Result<Self, Error> {
        config.check()?;
        let inputs: Vec<String> = topology.inputs().iter().map(|t| t.to_string()).collect();
        Ok(Self {
            consumer: AttachedConsumer::new(&config, &config.app_id, &inputs)?,
            watermarks: Watermarks::new(&config)?,
            restore: RestoreConsumer::new(&config, topology.changelogs(&config.app_id))?,
            sinks: topology.outputs().map(|(t, _)| t.to_owned()).collect(),
            changelogs: topology.changelogs(&config.app_id),
            inputs,
            producer: None,
            config,
        })
    }

    fn producer(&mut self) -> Result<&mut TxnProducer, Error> {
        let gone = || Error::Renew("there is no producer".to_owned());
        self.producer.as_mut().ok_or_else(gone)
    }
}

impl Broker for KafkaBroker {
    fn facts(&mut self) -> Result<ClusterFacts, Error> {
        let names = self.inputs.iter().chain(&self.sinks);
        let names: Vec<&str> = names.chain(&self.changelogs).map(String::as_str).collect();
        self.watermarks.facts(&names)
    }

    fn renew_producer(&mut self) -> Result<(), Error> {
        // Fencing back would be wrong if another process bears this id.
        self.consumer.check_fatal()?;
        // The old one first: two with one id would fence each other.
        self.producer = None;
        self.producer = Some(TxnProducer::new(&self.config)?);
        Ok(())
    }

    fn subscribe(&mut self) -> Result<(), Error> {
        self.consumer.subscribe()
    }

    fn unsubscribe(&mut self) -> Result<(), Error> {
        self.consumer.unsubscribe();
        Ok(())
    }

    fn poll(
        &mut self,
        batch: &mut RecordBatch,
        limits: PollLimits,
        timeout: Duration,
    ) -> Result<Option<Event>, Error> {
        self.consumer.poll(batch, limits, timeout)
    }

    fn accept_assigned(&mut self) -> Result<(), Error> {
        self.consumer.accept_assigned()
    }

    fn start(&mut self, partition: i32, positions: &[i64]) -> Result<(), Error> {
        self.consumer.start(partition, positions)
    }

    fn hold(&mut self, partition: i32) -> Result<(), Error> {
        self.consumer.hold(partition)
    }

    fn hold_input(&mut self, topic: TopicIdx, partition: i32) -> Result<(), Error> {
        self.consumer.hold_input(topic, partition)
    }

    fn start_input(&mut self, topic: TopicIdx, partition: i32, at: i64) -> Result<(), Error> {
        self.consumer.start_input(topic, partition, at)
    }

    fn release(&mut self, partitions: &[i32]) -> Result<(), Error> {
        self.consumer.release(partitions)
    }

    fn positions(&mut self, partition: i32, out: &mut Vec<Option<i64>>) -> Result<(), Error> {
        self.consumer.positions(partition, out)
    }

    fn input_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error> {
        self.watermarks.bounds(&self.inputs, partition)
    }

    fn known_end(&mut self, topic: TopicIdx, partition: i32) -> Option<i64> {
        self.consumer.known_end(topic, partition)
    }

    fn committed(&mut self, partition: i32) -> Result<Vec<Option<i64>>, Error> {
        self.consumer.committed(partition)
    }

    fn changelog_bounds(&mut self, partition: i32) -> Result<Vec<Bounds>, Error> {
        self.watermarks.bounds(&self.changelogs, partition)
    }

    fn restore_start(&mut self, partition: i32, from: &[Option<i64>]) -> Result<(), Error> {
        self.restore.start(partition, from)
    }

    fn restore_poll(&mut self, batch: &mut RecordBatch, timeout: Duration) -> Result<(), Error> {
        self.restore.poll(batch, timeout)
    }

    fn restore_position(&mut self, partition: i32, store: StoreId) -> Result<Option<i64>, Error> {
        Ok(self.restore.position(partition, store))
    }

    fn restore_stop(&mut self, partition: i32) {
        self.restore.stop(partition);
    }

    fn begin(&mut self) -> Result<(), Error> {
        self.producer()?.begin()
    }

    fn send_output(&mut self, partition: i32, output: &Output<'_>) -> Result<(), Error> {
        let gone = || Error::Renew("there is no producer".to_owned());
        let topic = &self.sinks[output.sink.index()];
        let producer = self.producer.as_mut().ok_or_else(gone)?;
        let headers = output.headers();
        producer.send(topic, partition, output.key, output.value, headers, None)
    }

    fn send_changelog(
        &mut self,
        partition: i32,
        store: StoreId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), Error> {
        let gone = || Error::Renew("there is no producer".to_owned());
        let topic = &self.changelogs[store];
        let producer = self.producer.as_mut().ok_or_else(gone)?;
        let none = std::iter::empty();
        producer.send(topic, partition, Some(key), value, none, Some(store))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.producer()?.flush()
    }

    fn delivered(&self, partition: i32, store: StoreId) -> Option<i64> {
        self.producer.as_ref()?.delivered(partition, store)
    }

    fn send_offsets(&mut self, positions: &[(i32, Vec<i64>)]) -> Result<(), Error> {
        let offsets = self.consumer.offset_list(positions)?;
        let metadata = self.consumer.group_metadata()?;
        self.producer()?.send_offsets(&offsets, &metadata)
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.producer()?.commit()
    }

    fn abort(&mut self) -> Result<(), Error> {
        match &mut self.producer {
            Some(producer) => producer.abort(),
            None => Ok(()),
        }
    }
}

/// Cluster id, topic ids and partition counts of some topics, for those who run no topology.
///
/// # Errors
/// The cluster does not answer.
pub fn cluster_facts(config: &KafkaConfig, names: &[&str]) -> Result<ClusterFacts, Error> {
    Watermarks::new(config)?.facts(names)
}

/// Metadata and bounds, through a client that reads uncommitted.
pub(crate) struct Watermarks {
    client: BaseConsumer,
    timeout: Duration,
}

impl Watermarks {
    pub fn new(config: &KafkaConfig) -> Result<Self, Error> {
        let client = config
            .base("watermarks")
            .set("isolation.level", "read_uncommitted")
            .create()
            .map_err(|e| Error::fatal(format!("Kafka client: {e}")))?;
        let timeout = Duration::from_secs(5);
        Ok(Self { client, timeout })
    }

    pub fn facts(&self, names: &[&str]) -> Result<ClusterFacts, Error> {
        let timeout = Duration::from_secs(30);
        let cluster_id = self.client.client().fetch_cluster_id(timeout);
        let topics = ffi::describe_topics(self.client.client(), names, timeout)?;
        let topics = names.iter().map(|name| {
            let known = topics.iter().find(|t| t.name == *name);
            TopicFacts {
                name: (*name).to_owned(),
                id: known.map_or([0; 16], |t| t.id),
                partitions: known.map_or(0, |t| t.partitions),
            }
        });
        Ok(ClusterFacts {
            cluster_id: cluster_id.unwrap_or_default(),
            topics: topics.collect(),
        })
    }

    pub fn bounds(&self, topics: &[String], partition: i32) -> Result<Vec<Bounds>, Error> {
        let bounds = topics.iter().map(|topic| {
            let marks = self.client.fetch_watermarks(topic, partition, self.timeout);
            let (low, high) =
                marks.map_err(|e| Error::Retry(format!("ends of {topic}/{partition}: {e}")))?;
            Ok(Bounds { low, high })
        });
        bounds.collect()
    }
}
