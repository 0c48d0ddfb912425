//! InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, EndTxn: the requests to the coordinator.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse, EndTxnRequest, EndTxnResponse, InitProducerIdRequest,
    InitProducerIdResponse, ProducerId,
};

use super::journal::Record;
use super::txn::{Txn, TxnState, as_epoch_error};
use super::{Core, Outcome, code, result_code, storage_failed};
use crate::wire::Response;

/// `transaction.max.timeout.ms`, as Kafka's default.
const MAX_TIMEOUT_MS: i32 = 15 * 60_000;

impl Core {
    pub(super) fn init_producer_id(&mut self, request: InitProducerIdRequest, now: i64) -> Outcome {
        let mut response = InitProducerIdResponse::default()
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let result = match &request.transactional_id {
            None => self
                .new_producer_id()
                .map(|id| (id, 0))
                .map_err(storage_failed),
            Some(id) => self.init_transactional(id.as_str(), &request, now),
        };
        match result {
            Ok((id, epoch)) => {
                response.producer_id = ProducerId(id);
                response.producer_epoch = epoch;
            }
            Err(error) => response.error_code = code(error),
        }
        Outcome::Reply(Response::InitProducerId(response))
    }

    fn init_transactional(
        &mut self,
        id: &str,
        request: &InitProducerIdRequest,
        now: i64,
    ) -> Result<(i64, i16), ResponseError> {
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        let timeout = request.transaction_timeout_ms;
        if timeout <= 0 || timeout > MAX_TIMEOUT_MS {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let Some(known) = self.txns.get(id) else {
            let producer_id = self.new_producer_id().map_err(storage_failed)?;
            let txn = Txn::new(producer_id, timeout, now);
            self.record(Record::Txn {
                id: id.to_owned(),
                txn,
            })
            .map_err(storage_failed)?;
            return Ok((producer_id, 0));
        };
        let claimed = (request.producer_id.0, request.producer_epoch);
        if claimed.0 >= 0 && (claimed.0 != known.producer_id || claimed.1 != known.epoch) {
            let repeated = claimed.0 == known.producer_id
                && claimed.1 == known.last_epoch
                && known.state == TxnState::Empty;
            return if repeated {
                Ok((known.producer_id, known.epoch))
            } else {
                Err(ResponseError::ProducerFenced)
            };
        }
        match known.state {
            TxnState::PrepareCommit | TxnState::PrepareAbort => {
                return Err(ResponseError::ConcurrentTransactions);
            }
            TxnState::Ongoing => {
                // Fence first: the markers carry the bumped epoch, so the old producer is out everywhere.
                let fenced = known.epoch.saturating_add(1);
                self.finish_txn(id, false, fenced, now)
                    .map_err(storage_failed)?;
            }
            TxnState::Empty | TxnState::CompleteCommit | TxnState::CompleteAbort => {}
        }
        let Some(mut txn) = self.txns.get(id).cloned() else {
            return Err(ResponseError::InvalidProducerIdMapping);
        };
        if txn.epoch >= i16::MAX - 1 {
            txn.producer_id = self.new_producer_id().map_err(storage_failed)?;
            txn.epoch = 0;
            txn.last_epoch = -1;
        } else {
            txn.last_epoch = txn.epoch;
            txn.epoch += 1;
        }
        txn.state = TxnState::Empty;
        txn.timeout_ms = timeout;
        txn.updated = now;
        let granted = (txn.producer_id, txn.epoch);
        self.record(Record::Txn {
            id: id.to_owned(),
            txn,
        })
        .map_err(storage_failed)?;
        Ok(granted)
    }

    /// The transaction that a request may add to, as a copy to change.
    fn open_txn(&self, id: &str, producer_id: i64, epoch: i16) -> Result<Txn, ResponseError> {
        let txn = self
            .txns
            .get(id)
            .ok_or(ResponseError::InvalidProducerIdMapping)?;
        txn.owned_by(producer_id, epoch)?;
        match txn.state {
            TxnState::PrepareCommit | TxnState::PrepareAbort => {
                Err(ResponseError::ConcurrentTransactions)
            }
            _ => Ok(txn.clone()),
        }
    }

    pub(super) fn add_partitions_to_txn(
        &mut self,
        request: AddPartitionsToTxnRequest,
        version: i16,
        now: i64,
    ) -> Outcome {
        let id = request.v3_and_below_transactional_id.0.to_string();
        let (producer_id, epoch) = (
            request.v3_and_below_producer_id.0,
            request.v3_and_below_producer_epoch,
        );
        let mut errors: BTreeMap<(String, i32), i16> = BTreeMap::new();
        let mut asked = Vec::new();
        for topic in &request.v3_and_below_topics {
            for &partition in &topic.partitions {
                let key = (topic.name.to_string(), partition);
                if !self.partition_exists(&key.0, partition) {
                    errors.insert(key.clone(), code(ResponseError::UnknownTopicOrPartition));
                }
                asked.push(key);
            }
        }
        let mut others = code(ResponseError::OperationNotAttempted);
        if errors.is_empty() {
            let result = self.open_txn(&id, producer_id, epoch).and_then(|mut txn| {
                let held = txn.state == TxnState::Ongoing
                    && asked.iter().all(|p| txn.partitions.contains(p));
                if held {
                    return Ok(());
                }
                txn.begin(now);
                txn.partitions.extend(asked);
                self.record(Record::Txn { id, txn }).map_err(storage_failed)
            });
            others = result_code(&for_version(result, version));
        }
        let mut response = AddPartitionsToTxnResponse::default();
        for topic in request.v3_and_below_topics {
            let one = |partition| {
                let error = errors
                    .get(&(topic.name.to_string(), partition))
                    .copied()
                    .unwrap_or(others);
                AddPartitionsToTxnPartitionResult::default()
                    .with_partition_index(partition)
                    .with_partition_error_code(error)
            };
            let results = topic.partitions.iter().map(|p| one(*p)).collect();
            let out = AddPartitionsToTxnTopicResult::default()
                .with_name(topic.name.clone())
                .with_results_by_partition(results);
            response.results_by_topic_v3_and_below.push(out);
        }
        Outcome::Reply(Response::AddPartitionsToTxn(response))
    }

    pub(super) fn add_offsets_to_txn(
        &mut self,
        request: AddOffsetsToTxnRequest,
        version: i16,
        now: i64,
    ) -> Outcome {
        let id = request.transactional_id.0.to_string();
        let group = request.group_id.0.to_string();
        let result = self
            .open_txn(&id, request.producer_id.0, request.producer_epoch)
            .and_then(|mut txn| {
                if txn.state == TxnState::Ongoing && txn.groups.contains(&group) {
                    return Ok(());
                }
                txn.begin(now);
                txn.groups.insert(group);
                self.record(Record::Txn { id, txn }).map_err(storage_failed)
            });
        let response = AddOffsetsToTxnResponse::default()
            .with_error_code(result_code(&for_version(result, version)));
        Outcome::Reply(Response::AddOffsetsToTxn(response))
    }

    pub(super) fn end_txn(&mut self, request: EndTxnRequest, version: i16, now: i64) -> Outcome {
        let id = request.transactional_id.0.to_string();
        let result = self.end(
            &id,
            request.producer_id.0,
            request.producer_epoch,
            request.committed,
            now,
        );
        let response =
            EndTxnResponse::default().with_error_code(result_code(&for_version(result, version)));
        Outcome::Reply(Response::EndTxn(response))
    }

    fn end(
        &mut self,
        id: &str,
        producer_id: i64,
        epoch: i16,
        commit: bool,
        now: i64,
    ) -> Result<(), ResponseError> {
        let txn = self
            .txns
            .get(id)
            .ok_or(ResponseError::InvalidProducerIdMapping)?;
        txn.owned_by(producer_id, epoch)?;
        match (txn.state, commit) {
            (TxnState::Ongoing, _) => self
                .finish_txn(id, commit, epoch, now)
                .map_err(storage_failed),
            // The client repeats a request whose answer it has not seen.
            (TxnState::CompleteCommit, true) | (TxnState::CompleteAbort, false) => Ok(()),
            (TxnState::PrepareCommit, true) | (TxnState::PrepareAbort, false) => {
                Err(ResponseError::ConcurrentTransactions)
            }
            _ => Err(ResponseError::InvalidTxnState),
        }
    }
}

/// Clients older than version 2 know fencing as INVALID_PRODUCER_EPOCH only.
fn for_version(result: Result<(), ResponseError>, version: i16) -> Result<(), ResponseError> {
    if version < 2 {
        result.map_err(as_epoch_error)
    } else {
        result
    }
}
