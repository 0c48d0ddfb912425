//! Reads changelogs, read_committed, for all tasks of a thread that catch up.
//!
//! It is in no group: it only assigns what it is told to, from explicit offsets.

use std::collections::BTreeSet;
use std::time::Duration;

use finlake_state::StoreId;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::config::KafkaConfig;
use super::consumer::learn_leaders;
use super::errors;
use crate::error::Error;
use crate::record::{RecordBatch, TopicIdx};

pub(crate) struct RestoreConsumer {
    consumer: BaseConsumer,
    id: String,
    changelogs: Vec<String>,
    assigned: BTreeSet<(i32, StoreId)>,
    /// Positions as of the last poll.
    positions: Option<TopicPartitionList>,
    last_store: StoreId,
    /// Changelogs whose leaders the client knows.
    known: BTreeSet<StoreId>,
}

/// Bounds of one poll: about a tenth of a second of restoring.
const RECORDS: usize = 20_000;
const BYTES: usize = 8 << 20;

impl RestoreConsumer {
    pub fn new(config: &KafkaConfig, changelogs: Vec<String>) -> Result<Self, Error> {
        let group = format!("{}-restore", config.app_id);
        let consumer = config
            .consumer("restore", &group)
            .create()
            .map_err(|e| Error::fatal(format!("Kafka restore consumer: {e}")))?;
        Ok(Self {
            consumer,
            id: config.id(),
            changelogs,
            assigned: BTreeSet::new(),
            positions: None,
            last_store: 0,
            known: BTreeSet::new(),
        })
    }

    pub fn start(&mut self, partition: i32, from: &[Option<i64>]) -> Result<(), Error> {
        self.stop(partition);
        let mut list = TopicPartitionList::new();
        for (store, from) in from.iter().enumerate() {
            let Some(from) = from else { continue };
            let topic = &self.changelogs[store];
            if self.known.insert(store) {
                learn_leaders(&self.consumer, topic);
            }
            list.add_partition_offset(topic, partition, Offset::Offset(*from))
                .map_err(|e| Error::fatal(format!("{topic}/{partition}@{from}: {e}")))?;
            self.assigned.insert((partition, store));
        }
        self.positions = None;
        let assigned = self.consumer.incremental_assign(&list);
        assigned
            .map_err(|e| Error::Retry(format!("reading changelogs of task {partition}: {e}")))?;
        Ok(())
    }

    pub fn poll(&mut self, batch: &mut RecordBatch, timeout: Duration) -> Result<(), Error> {
        self.positions = None;
        let mut wait = timeout;
        while batch.len() < RECORDS && batch.bytes() < BYTES {
            match self.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    let name = message.topic();
                    if name != self.changelogs[self.last_store] {
                        match self.changelogs.iter().position(|t| t == name) {
                            Some(at) => self.last_store = at,
                            None => continue,
                        }
                    }
                    batch.push(
                        TopicIdx(self.last_store as u16),
                        message.partition(),
                        message.offset(),
                        message.timestamp().to_millis().unwrap_or(-1),
                        message.key(),
                        message.payload(),
                    );
                    wait = Duration::ZERO;
                }
                Some(Err(error)) => match errors::consumer(&self.id, &error) {
                    Some(error) => return Err(error.context("reading changelogs")),
                    None => {
                        tracing::debug!("restore consumer: {error}");
                        break;
                    }
                },
            }
        }
        Ok(())
    }

    pub fn position(&mut self, partition: i32, store: StoreId) -> Option<i64> {
        if self.positions.is_none() {
            self.positions = self.consumer.position().ok();
        }
        let all = self.positions.as_ref()?;
        let at = all.find_partition(&self.changelogs[store], partition)?;
        match at.offset() {
            Offset::Offset(at) => Some(at),
            _ => None,
        }
    }

    pub fn stop(&mut self, partition: i32) {
        let mut list = TopicPartitionList::new();
        for store in 0..self.changelogs.len() {
            if self.assigned.remove(&(partition, store)) {
                list.add_partition(&self.changelogs[store], partition);
            }
        }
        if list.count() == 0 {
            return;
        }
        self.positions = None;
        if let Err(e) = self.consumer.incremental_unassign(&list) {
            tracing::warn!("restore consumer: unassign task {partition}: {e}");
        }
    }
}

impl Drop for RestoreConsumer {
    /// librdkafka does not end while partitions that were assigned one by one
    /// are still being fetched.
    fn drop(&mut self) {
        let partitions: BTreeSet<i32> = self.assigned.iter().map(|(p, _)| *p).collect();
        for partition in partitions {
            self.stop(partition);
        }
    }
}
