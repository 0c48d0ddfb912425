//! Produce: checks a batch against topic, transaction and producer, appends it, wakes readers.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::ProduceRequest;
use kafka_protocol::messages::produce_response::{
    PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};

use super::batch;
use super::log::{AppendError, Appended};
use super::{Core, Outcome, code, records, storage_failed, text};
use crate::wire::Response;

type Refusal = (ResponseError, &'static str);

impl Core {
    pub(super) fn produce(&mut self, request: ProduceRequest, now: i64) -> Outcome {
        let transactional_id = request.transactional_id.as_ref().map(|id| id.0.to_string());
        let silent = request.acks == 0;
        let acks_ok = matches!(request.acks, -1..=1);
        let mut response = ProduceResponse::default();
        for topic in request.topic_data {
            let mut out = TopicProduceResponse::default().with_name(topic.name.clone());
            for data in topic.partition_data {
                let mut part = PartitionProduceResponse::default()
                    .with_index(data.index)
                    .with_base_offset(-1)
                    .with_log_append_time_ms(-1)
                    .with_log_start_offset(-1);
                let bytes = data.records.unwrap_or_default();
                let result = if acks_ok {
                    self.produce_partition(
                        transactional_id.as_deref(),
                        &topic.name,
                        data.index,
                        &bytes,
                        now,
                    )
                } else {
                    Err((
                        ResponseError::InvalidRequiredAcks,
                        "acks must be -1, 0 or 1",
                    ))
                };
                match result {
                    Ok((appended, start)) => {
                        part.base_offset = appended.base_offset;
                        part.log_append_time_ms = appended.log_append_time;
                        part.log_start_offset = start;
                    }
                    Err((error, message)) => {
                        part.error_code = code(error);
                        part.error_message = Some(text(message));
                    }
                }
                out.partition_responses.push(part);
            }
            response.responses.push(out);
        }
        if silent {
            Outcome::Nothing
        } else {
            Outcome::Reply(Response::Produce(response))
        }
    }

    fn produce_partition(
        &mut self,
        transactional_id: Option<&str>,
        name: &str,
        index: i32,
        bytes: &[u8],
        now: i64,
    ) -> Result<(Appended, i64), Refusal> {
        let unknown = (
            ResponseError::UnknownTopicOrPartition,
            "this topic or partition does not exist",
        );
        let topic = self.topics.get_mut(name).ok_or(unknown)?;
        let (rules, config) = (topic.rules(), &topic.config);
        if bytes.len() > config.max_message_bytes {
            return Err((
                ResponseError::MessageTooLarge,
                "record batch exceeds max.message.bytes",
            ));
        }
        let header = batch::check_produced(bytes)?;
        let ahead = header.max_timestamp.saturating_sub(now);
        if !config.log_append_time
            && config.timestamp_after_max_ms >= 0
            && ahead > config.timestamp_after_max_ms
        {
            return Err((
                ResponseError::InvalidTimestamp,
                "timestamp exceeds message.timestamp.after.max.ms",
            ));
        }
        if config.compact && !records::all_keyed(bytes, &header) {
            return Err((
                ResponseError::InvalidRecord,
                "compacted topic cannot accept a record without key",
            ));
        }
        let partition = topic
            .partitions
            .get_mut(usize::try_from(index).unwrap_or(usize::MAX))
            .ok_or(unknown)?;
        if header.transactional() {
            let id = transactional_id.ok_or((
                ResponseError::InvalidTxnState,
                "transactional batch without transactional id",
            ))?;
            // The log first: it knows of a newer epoch even where the coordinator has moved on.
            let fenced = partition
                .log
                .producers
                .get(&header.producer_id)
                .is_some_and(|p| p.epoch > header.producer_epoch);
            if fenced {
                return Err((
                    ResponseError::InvalidProducerEpoch,
                    "producer has been fenced",
                ));
            }
            let txn = self.txns.get(id).ok_or((
                ResponseError::InvalidProducerIdMapping,
                "unknown transactional id",
            ))?;
            txn.may_write(header.producer_id, header.producer_epoch, name, index)
                .map_err(|e| (e, "transaction may not write to this partition"))?;
        } else if partition
            .log
            .producers
            .get(&header.producer_id)
            .is_some_and(|p| p.txn_first.is_some())
        {
            return Err((
                ResponseError::InvalidTxnState,
                "non-transactional batch within a transaction",
            ));
        }
        let appended = match partition
            .log
            .append(self.storage.as_mut(), bytes, &header, rules, now)
        {
            Ok(appended) => appended,
            Err(AppendError::Refused(error)) => return Err((error, "refused by producer state")),
            Err(AppendError::Storage(error)) => {
                return Err((storage_failed(error), "storage failed"));
            }
        };
        self.woken.extend(partition.waiters.drain(..));
        Ok((appended, partition.log.start_offset()))
    }
}
