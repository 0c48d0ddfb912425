//! The transaction coordinator's state and decisions: one [`Txn`] per transactional id.
//!
//! Ending a transaction takes three steps, each durable before the next: the decision (Prepare…)
//! goes into the journal, the markers go into every partition, and the completion, which also
//! applies or drops the offsets, goes into the journal. A broker that is killed in between repeats
//! the last two at open; a marker that is already there is not written again.

use std::collections::BTreeSet;

use kafka_protocol::error::ResponseError;
use serde::{Deserialize, Serialize};

use super::batch::Marker;
use super::journal::Record;
use super::{Core, StorageError};

/// Where a transaction stands. Names as Kafka shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnState {
    Empty,
    Ongoing,
    PrepareCommit,
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
}

impl TxnState {
    pub fn name(self) -> &'static str {
        match self {
            TxnState::Empty => "Empty",
            TxnState::Ongoing => "Ongoing",
            TxnState::PrepareCommit => "PrepareCommit",
            TxnState::PrepareAbort => "PrepareAbort",
            TxnState::CompleteCommit => "CompleteCommit",
            TxnState::CompleteAbort => "CompleteAbort",
        }
    }
}

/// A transactional id: its producer and its present or last transaction. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    pub producer_id: i64,
    pub epoch: i16,
    /// The epoch before the last bump that its own producer asked for; -1 after a fencing.
    pub last_epoch: i16,
    pub timeout_ms: i32,
    pub state: TxnState,
    pub partitions: BTreeSet<(String, i32)>,
    pub groups: BTreeSet<String>,
    pub started: i64,
    pub updated: i64,
}

impl Txn {
    pub fn new(producer_id: i64, timeout_ms: i32, now: i64) -> Txn {
        Txn {
            producer_id,
            epoch: 0,
            last_epoch: -1,
            timeout_ms,
            state: TxnState::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            started: -1,
            updated: now,
        }
    }

    /// Checks that a request comes from the present producer.
    pub fn owned_by(&self, producer_id: i64, epoch: i16) -> Result<(), ResponseError> {
        if self.producer_id != producer_id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if self.epoch != epoch {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(())
    }

    /// Checks that a batch may be written to a partition.
    pub fn may_write(
        &self,
        producer_id: i64,
        epoch: i16,
        topic: &str,
        partition: i32,
    ) -> Result<(), ResponseError> {
        self.owned_by(producer_id, epoch).map_err(as_epoch_error)?;
        let added = self.state == TxnState::Ongoing
            && self
                .partitions
                .iter()
                .any(|(t, p)| *p == partition && t == topic);
        if added {
            Ok(())
        } else {
            Err(ResponseError::InvalidTxnState)
        }
    }

    /// Checks that offsets of a group may be sent to the transaction.
    pub fn may_commit_offsets(
        &self,
        producer_id: i64,
        epoch: i16,
        group: &str,
    ) -> Result<(), ResponseError> {
        self.owned_by(producer_id, epoch).map_err(as_epoch_error)?;
        let added = self.state == TxnState::Ongoing && self.groups.contains(group);
        if added {
            Ok(())
        } else {
            Err(ResponseError::InvalidTxnState)
        }
    }

    /// Opens a transaction unless one is open.
    pub fn begin(&mut self, now: i64) {
        if self.state != TxnState::Ongoing {
            self.state = TxnState::Ongoing;
            self.partitions.clear();
            self.groups.clear();
            self.started = now;
        }
        self.updated = now;
    }
}

/// Partition leaders and group coordinators speak of the epoch where the coordinator speaks of fencing.
pub fn as_epoch_error(error: ResponseError) -> ResponseError {
    match error {
        ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
        other => other,
    }
}

impl Core {
    /// Ends the open transaction of an id. `epoch`: what the markers carry, and the producer's
    /// epoch from then on (bumped when the producer is being fenced).
    pub(super) fn finish_txn(
        &mut self,
        id: &str,
        commit: bool,
        epoch: i16,
        now: i64,
    ) -> Result<(), StorageError> {
        let Some(mut txn) = self.txns.get(id).cloned() else {
            return Ok(());
        };
        txn.state = if commit {
            TxnState::PrepareCommit
        } else {
            TxnState::PrepareAbort
        };
        if txn.epoch != epoch {
            txn.epoch = epoch;
            txn.last_epoch = -1;
        }
        txn.updated = now;
        self.record(Record::Txn {
            id: id.to_owned(),
            txn,
        })?;
        self.complete_txn(id, now)
    }

    /// Carries a decided end out; repeatable.
    pub(super) fn complete_txn(&mut self, id: &str, now: i64) -> Result<(), StorageError> {
        let Some(mut txn) = self.txns.get(id).cloned() else {
            return Ok(());
        };
        let commit = match txn.state {
            TxnState::PrepareCommit => true,
            TxnState::PrepareAbort => false,
            _ => return Ok(()),
        };
        let marker = if commit {
            Marker::Commit
        } else {
            Marker::Abort
        };
        for (name, index) in &txn.partitions {
            let Some(topic) = self.topics.get_mut(name) else {
                continue;
            };
            let rules = topic.rules();
            let Some(partition) = topic.partition_mut(*index) else {
                continue;
            };
            partition.log.append_marker(
                self.storage.as_mut(),
                txn.producer_id,
                txn.epoch,
                marker,
                rules,
                now,
            )?;
            self.woken.extend(partition.waiters.drain(..));
        }
        let groups: Vec<String> = std::mem::take(&mut txn.groups).into_iter().collect();
        txn.partitions.clear();
        txn.state = if commit {
            TxnState::CompleteCommit
        } else {
            TxnState::CompleteAbort
        };
        txn.updated = now;
        let ended_producer_id = txn.producer_id;
        self.record(Record::TxnEnded {
            id: id.to_owned(),
            txn,
            ended_producer_id,
            groups,
            commit,
        })
    }

    /// Aborts what has been open for longer than its timeout, and fences its producer.
    pub(super) fn abort_timed_out(&mut self, now: i64) {
        let late =
            |t: &Txn| t.state == TxnState::Ongoing && now - t.started > i64::from(t.timeout_ms);
        let stuck = |t: &Txn| matches!(t.state, TxnState::PrepareCommit | TxnState::PrepareAbort);
        let due: Vec<(String, Txn)> = self
            .txns
            .iter()
            .filter(|(_, t)| late(t) || stuck(t))
            .map(|(id, t)| (id.clone(), t.clone()))
            .collect();
        for (id, txn) in due {
            let result = if stuck(&txn) {
                self.complete_txn(&id, now)
            } else {
                tracing::info!(%id, "transaction timed out");
                self.finish_txn(&id, false, txn.epoch.saturating_add(1), now)
            };
            if let Err(error) = result {
                tracing::error!(%error, %id, "transaction could not be ended; it is tried again");
            }
        }
    }
}
