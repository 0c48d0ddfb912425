//! A group's committed offsets, and those that open transactions will commit.
//!
//! Order matters: a transaction's offsets take effect only if nothing newer than their
//! TxnOffsetCommit was committed meanwhile, so every entry carries the sequence number it came with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::journal::Record;

type Partition = (String, i32);

/// One partition's offset, as committed by a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetEntry {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    #[serde(default)]
    pub leader_epoch: i32,
    #[serde(default)]
    pub metadata: String,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
    sequence: u64,
}

/// All offsets of a group.
#[derive(Debug, Default, Clone)]
pub struct Offsets {
    committed: BTreeMap<Partition, Committed>,
    /// By producer id.
    pending: BTreeMap<i64, BTreeMap<Partition, Committed>>,
}

fn committed(entry: OffsetEntry, sequence: u64) -> (Partition, Committed) {
    let OffsetEntry {
        topic,
        partition,
        offset,
        leader_epoch,
        metadata,
    } = entry;
    (
        (topic, partition),
        Committed {
            offset,
            leader_epoch,
            metadata,
            sequence,
        },
    )
}

impl Offsets {
    pub fn commit(&mut self, entries: Vec<OffsetEntry>, sequence: u64) {
        self.committed
            .extend(entries.into_iter().map(|e| committed(e, sequence)));
    }

    /// Takes offsets in that take effect when the producer's transaction commits.
    pub fn pend(&mut self, producer_id: i64, entries: Vec<OffsetEntry>, sequence: u64) {
        let pending = self.pending.entry(producer_id).or_default();
        pending.extend(entries.into_iter().map(|e| committed(e, sequence)));
    }

    /// Applies or drops what a producer's transaction would commit.
    pub fn end_txn(&mut self, producer_id: i64, commit: bool) {
        let pending = self.pending.remove(&producer_id).unwrap_or_default();
        if !commit {
            return;
        }
        for (partition, offset) in pending {
            if self
                .committed
                .get(&partition)
                .is_none_or(|c| c.sequence < offset.sequence)
            {
                self.committed.insert(partition, offset);
            }
        }
    }

    pub fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.committed.get(&(topic.to_owned(), partition))
    }

    /// True if an open transaction may still change this offset.
    pub fn unstable(&self, topic: &str, partition: i32) -> bool {
        !self.pending.is_empty() && {
            let key = (topic.to_owned(), partition);
            self.pending.values().any(|p| p.contains_key(&key))
        }
    }

    /// Every partition with a committed or pending offset.
    pub fn partitions(&self) -> Vec<Partition> {
        let pending = self.pending.values().flat_map(|p| p.keys());
        let all: std::collections::BTreeSet<&Partition> =
            self.committed.keys().chain(pending).collect();
        all.into_iter().cloned().collect()
    }

    pub fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.committed.remove(partition);
        }
    }

    pub fn forget_topic(&mut self, name: &str) {
        self.committed.retain(|(topic, _), _| topic != name);
        for pending in self.pending.values_mut() {
            pending.retain(|(topic, _), _| topic != name);
        }
        self.pending.retain(|_, p| !p.is_empty());
    }

    /// The journal records that rebuild this, oldest first.
    pub fn records(&self, group: &str) -> Vec<Record> {
        let entry = |(p, c): (&Partition, &Committed)| OffsetEntry {
            topic: p.0.clone(),
            partition: p.1,
            offset: c.offset,
            leader_epoch: c.leader_epoch,
            metadata: c.metadata.clone(),
        };
        let mut out: Vec<(u64, Record)> = Vec::new();
        for one in &self.committed {
            let offsets = vec![entry(one)];
            out.push((
                one.1.sequence,
                Record::Offsets {
                    group: group.to_owned(),
                    offsets,
                },
            ));
        }
        for (producer_id, pending) in &self.pending {
            for one in pending {
                let offsets = vec![entry(one)];
                let record = Record::PendingOffsets {
                    producer_id: *producer_id,
                    group: group.to_owned(),
                    offsets,
                };
                out.push((one.1.sequence, record));
            }
        }
        out.sort_by_key(|(sequence, _)| *sequence);
        out.into_iter().map(|(_, record)| record).collect()
    }
}
