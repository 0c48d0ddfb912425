//! ListOffsets: earliest, latest (per isolation), largest timestamp, first record from a time on.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_offsets_request::ListOffsetsRequest;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};

use super::batch::NO_LEADER_EPOCH;
use super::log::Log;
use super::{Core, Outcome, code, records, storage_failed};
use crate::storage::{Storage, StorageError};
use crate::wire::Response;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;

impl Core {
    pub(super) fn list_offsets(&mut self, request: ListOffsetsRequest) -> Outcome {
        let mut response = ListOffsetsResponse::default();
        for topic in request.topics {
            let mut out = ListOffsetsTopicResponse::default().with_name(topic.name.clone());
            let known = self.topics.get(topic.name.as_str());
            for p in topic.partitions {
                let mut part = ListOffsetsPartitionResponse::default()
                    .with_partition_index(p.partition_index)
                    .with_timestamp(-1)
                    .with_offset(-1)
                    .with_leader_epoch(NO_LEADER_EPOCH);
                match known.and_then(|t| t.partition(p.partition_index)) {
                    None => part.error_code = code(ResponseError::UnknownTopicOrPartition),
                    Some(partition) => {
                        let log = &partition.log;
                        match find(
                            log,
                            self.storage.as_mut(),
                            p.timestamp,
                            request.isolation_level == 1,
                        ) {
                            Ok((timestamp, offset)) => {
                                part.timestamp = timestamp;
                                part.offset = offset;
                            }
                            Err(error) => part.error_code = code(storage_failed(error)),
                        }
                    }
                }
                out.partitions.push(part);
            }
            response.topics.push(out);
        }
        Outcome::Reply(Response::ListOffsets(response))
    }
}

/// Timestamp and offset that answer a query; (-1, -1) if there is no such record.
fn find(
    log: &Log,
    storage: &mut dyn Storage,
    query: i64,
    committed_only: bool,
) -> Result<(i64, i64), StorageError> {
    let end = if committed_only {
        log.stable_offset()
    } else {
        log.end_offset()
    };
    match query {
        LATEST => return Ok((-1, end)),
        EARLIEST | EARLIEST_LOCAL => return Ok((-1, log.start_offset())),
        q if q < MAX_TIMESTAMP => return Ok((-1, -1)),
        _ => {}
    }
    let mut from = query;
    if query == MAX_TIMESTAMP {
        let stamps = log
            .batches()
            .filter(|(_, b)| b.last_offset >= log.start_offset() && b.last_offset < end);
        match stamps.map(|(_, b)| b.max_timestamp).max() {
            Some(max) if max >= 0 => from = max,
            _ => return Ok((-1, -1)),
        }
    }
    for (segment, batch) in log.batches() {
        if batch.max_timestamp < from || batch.last_offset < log.start_offset() {
            continue;
        }
        if batch.last_offset >= end {
            break;
        }
        let bytes = storage.read(&segment.name, u64::from(batch.pos), batch.len as usize)?;
        if let Some(found) = records::first_at_or_after(&bytes, from, log.start_offset()) {
            return Ok(found);
        }
    }
    Ok((-1, -1))
}
