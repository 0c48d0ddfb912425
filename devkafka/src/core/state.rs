//! Replay, snapshot and the one place where journal records change state.
//!
//! [`Core::apply`] is used live and at replay alike, so a reopened broker cannot know anything else
//! than the one that wrote the journal. Logs are opened once the replay is over.

use super::group::Group;
use super::journal::Record;
use super::topics::Topic;
use super::txn::TxnState;
use super::{Core, StorageError};

/// How many producer ids are reserved in the journal at a time.
const PRODUCER_ID_BLOCK: i64 = 1_000;

/// SplitMix64: ids need to be distinct and reproducible, not secret.
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn uuid(&mut self) -> uuid::Uuid {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }
}

impl Core {
    pub(super) fn recover(&mut self, records: Vec<Record>, now: i64) -> Result<(), StorageError> {
        for record in records {
            self.apply(record);
        }
        self.next_producer_id = self.reserved_producer_ids;
        for topic in self.topics.values_mut() {
            topic.open_logs(self.storage.as_mut(), now)?;
        }
        if self.cluster_id.is_empty() {
            let id = self.rng.uuid();
            self.record(Record::Cluster {
                id: id.simple().to_string()[..22].to_owned(),
            })?;
        }
        for group in self.groups.values_mut() {
            group.recovered(now);
        }
        // A transaction whose end was decided is brought to that end.
        let decided: Vec<(String, TxnState)> = self
            .txns
            .iter()
            .map(|(id, t)| (id.clone(), t.state))
            .collect();
        for (id, state) in decided {
            if matches!(state, TxnState::PrepareCommit | TxnState::PrepareAbort) {
                self.complete_txn(&id, now)?;
            }
        }
        self.refresh_group_deadline();
        Ok(())
    }

    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Cluster { id } => self.cluster_id = id,
            Record::Topic {
                name,
                id,
                partitions,
                configs,
            } => {
                let fresh = || Topic::new(&name, id);
                let topic = self.topics.entry(name.clone()).or_insert_with(fresh);
                topic.set(partitions, configs);
            }
            Record::TopicDeleted { name } => {
                self.topics.remove(&name);
                for group in self.groups.values_mut() {
                    group.offsets.forget_topic(&name);
                }
                for txn in self.txns.values_mut() {
                    txn.partitions.retain(|(topic, _)| *topic != name);
                }
            }
            Record::LogStart {
                topic,
                partition,
                offset,
            } => {
                if let Some(topic) = self.topics.get_mut(&topic) {
                    topic.starts.insert(partition, offset);
                }
            }
            Record::ProducerIds { next } => self.reserved_producer_ids = next,
            Record::Txn { id, txn } => {
                self.txns.insert(id, txn);
            }
            Record::PendingOffsets {
                producer_id,
                group,
                offsets,
            } => {
                self.offset_sequence += 1;
                let sequence = self.offset_sequence;
                self.group_mut(&group)
                    .offsets
                    .pend(producer_id, offsets, sequence);
            }
            Record::TxnEnded {
                id,
                txn,
                ended_producer_id,
                groups,
                commit,
            } => {
                for group in &groups {
                    if let Some(group) = self.groups.get_mut(group) {
                        group.offsets.end_txn(ended_producer_id, commit);
                    }
                }
                self.txns.insert(id, txn);
            }
            Record::TxnForgotten { id } => {
                self.txns.remove(&id);
            }
            Record::Offsets { group, offsets } => {
                self.offset_sequence += 1;
                let sequence = self.offset_sequence;
                self.group_mut(&group).offsets.commit(offsets, sequence);
            }
            Record::OffsetsDeleted { group, partitions } => {
                if let Some(group) = self.groups.get_mut(&group) {
                    group.offsets.forget(&partitions);
                }
            }
            Record::Group { id, group } => self.group_mut(&id).restore(group),
            Record::GroupDeleted { id } => {
                self.groups.remove(&id);
            }
        }
    }

    /// The records that rebuild the present state.
    pub(super) fn snapshot(&self) -> Vec<Record> {
        let mut out = vec![
            Record::Cluster {
                id: self.cluster_id.clone(),
            },
            Record::ProducerIds {
                next: self.reserved_producer_ids,
            },
        ];
        for (name, topic) in &self.topics {
            out.push(topic.record(name));
            for (partition, offset) in &topic.starts {
                out.push(Record::LogStart {
                    topic: name.clone(),
                    partition: *partition,
                    offset: *offset,
                });
            }
        }
        for (id, txn) in &self.txns {
            out.push(Record::Txn {
                id: id.clone(),
                txn: txn.clone(),
            });
        }
        for (id, group) in &self.groups {
            out.push(Record::Group {
                id: id.clone(),
                group: group.snapshot(),
            });
            // Commit order of committed and pending offsets decides what a commit overwrites.
            out.extend(group.offsets.records(id));
        }
        out
    }

    /// The group of that id, created if it is missing.
    pub(super) fn group_mut(&mut self, id: &str) -> &mut Group {
        self.groups.entry(id.to_owned()).or_insert_with(Group::new)
    }

    /// Gives out a producer id that no one has had.
    pub(super) fn new_producer_id(&mut self) -> Result<i64, StorageError> {
        if self.next_producer_id >= self.reserved_producer_ids {
            self.record(Record::ProducerIds {
                next: self.next_producer_id + PRODUCER_ID_BLOCK,
            })?;
        }
        let id = self.next_producer_id;
        self.next_producer_id += 1;
        Ok(id)
    }
}
