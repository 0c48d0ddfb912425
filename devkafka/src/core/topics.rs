//! Topics: name, id, settings and the logs of their partitions.
//!
//! Logs exist only here. A topic's metadata changes through journal records alone; logs are opened
//! right after the record that adds them.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::config::TopicConfig;
use super::journal::Record;
use super::log::{AppendRules, Log};
use super::{Core, StorageError, Ticket};
use crate::storage::Storage;

/// Most partitions of one topic; each costs a file and some memory.
pub const MAX_PARTITIONS: i32 = 10_000;

/// A partition: its log and the fetches that wait for more of it.
#[derive(Debug)]
pub struct Partition {
    pub log: Log,
    pub waiters: Vec<Ticket>,
    /// The end offset up to which the compactor has cleaned.
    pub cleaned: i64,
}

/// A topic.
#[derive(Debug)]
pub struct Topic {
    pub id: Uuid,
    dir: String,
    count: i32,
    pub configs: BTreeMap<String, String>,
    pub config: TopicConfig,
    /// Start offsets set by DeleteRecords or retention, by partition.
    pub starts: BTreeMap<i32, i64>,
    pub partitions: Vec<Partition>,
}

impl Topic {
    pub fn new(name: &str, id: Uuid) -> Topic {
        Topic {
            id,
            dir: format!("topics/{name}.{}", id.simple()),
            count: 0,
            configs: BTreeMap::new(),
            config: TopicConfig::parse(&BTreeMap::new()),
            starts: BTreeMap::new(),
            partitions: Vec::new(),
        }
    }

    pub fn set(&mut self, partitions: i32, configs: BTreeMap<String, String>) {
        self.count = partitions;
        self.config = TopicConfig::parse(&configs);
        self.configs = configs;
    }

    pub fn record(&self, name: &str) -> Record {
        Record::Topic {
            name: name.to_owned(),
            id: self.id,
            partitions: self.count,
            configs: self.configs.clone(),
        }
    }

    /// Opens the logs of partitions that have none yet.
    pub fn open_logs(&mut self, storage: &mut dyn Storage, now: i64) -> Result<(), StorageError> {
        for index in self.partitions.len() as i32..self.count {
            let start = self.starts.get(&index).copied().unwrap_or(0);
            let log = Log::open(storage, format!("{}/{index}", self.dir), start, now)?;
            self.partitions.push(Partition {
                log,
                waiters: Vec::new(),
                cleaned: 0,
            });
        }
        Ok(())
    }

    pub fn partition(&self, index: i32) -> Option<&Partition> {
        self.partitions.get(usize::try_from(index).ok()?)
    }

    pub fn partition_mut(&mut self, index: i32) -> Option<&mut Partition> {
        self.partitions.get_mut(usize::try_from(index).ok()?)
    }

    pub fn rules(&self) -> AppendRules {
        AppendRules {
            log_append_time: self.config.log_append_time,
            segment_bytes: self.config.segment_bytes,
            segment_ms: self.config.segment_ms,
        }
    }
}

/// True if Kafka would accept the name.
pub fn valid_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 249 && name != "." && name != ".." && name.chars().all(legal)
}

impl Core {
    /// Adds a topic; name, count and settings have been checked.
    pub(super) fn add_topic(
        &mut self,
        name: &str,
        partitions: i32,
        configs: BTreeMap<String, String>,
        now: i64,
    ) -> Result<Uuid, StorageError> {
        let id = self.rng.uuid();
        self.record(Record::Topic {
            name: name.to_owned(),
            id,
            partitions,
            configs,
        })?;
        self.open_topic(name, now)?;
        Ok(id)
    }

    /// Opens the logs of a topic's new partitions.
    pub(super) fn open_topic(&mut self, name: &str, now: i64) -> Result<(), StorageError> {
        match self.topics.get_mut(name) {
            Some(topic) => topic.open_logs(self.storage.as_mut(), now),
            None => Ok(()),
        }
    }

    pub(super) fn topic_name(&self, id: Uuid) -> Option<String> {
        self.topics
            .iter()
            .find(|(_, t)| t.id == id)
            .map(|(n, _)| n.clone())
    }

    pub(super) fn partition_exists(&self, topic: &str, partition: i32) -> bool {
        self.topics
            .get(topic)
            .is_some_and(|t| t.partition(partition).is_some())
    }
}
