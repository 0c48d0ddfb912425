//! Fetch: reads up to the high watermark or the last stable offset, waits for more if asked to.
//!
//! A fetch that finds less than `min_bytes` is parked under its ticket; an append or a transaction's
//! end wakes those that wait on its partition, and they are looked at again as a whole. The answer
//! never holds more than [`MAX_RESPONSE`] bytes of records (but always one whole batch).

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchRequest};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchResponse, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::{BrokerId, ProducerId};

use super::log::Log;
use super::{Core, Outcome, Ticket, code, storage_failed};
use crate::wire::Response;

/// Most bytes of records in one answer, whatever the client allows.
const MAX_RESPONSE: usize = 64 << 20;
/// Waits are cut to this many milliseconds.
const MAX_WAIT: i64 = 10 * 60_000;

/// A fetch that waits.
#[derive(Debug)]
pub struct ParkedFetch {
    request: FetchRequest,
    deadline: i64,
}

/// Where a reader with that isolation has to stop.
fn limit(log: &Log, committed_only: bool) -> i64 {
    if committed_only {
        log.stable_offset()
    } else {
        log.end_offset()
    }
}

fn max_bytes(p: &FetchPartition, remaining: usize) -> usize {
    usize::try_from(p.partition_max_bytes)
        .unwrap_or(0)
        .min(remaining)
}

impl Core {
    pub(super) fn fetch(&mut self, ticket: Ticket, request: FetchRequest, now: i64) -> Outcome {
        if request.session_id != 0 {
            // No sessions are kept; id 0 in every answer tells clients so.
            let response = FetchResponse::default()
                .with_error_code(code(ResponseError::FetchSessionIdNotFound));
            return Outcome::Reply(Response::Fetch(response));
        }
        let wait = i64::from(request.max_wait_ms).clamp(0, MAX_WAIT);
        if wait == 0 || self.satisfied(&request) {
            return Outcome::Reply(Response::Fetch(self.answer(&request)));
        }
        self.park(
            ticket,
            ParkedFetch {
                request,
                deadline: now + wait,
            },
        );
        Outcome::Parked
    }

    /// True if the fetch can be answered now: enough bytes, an error, or nothing to wait for.
    fn satisfied(&self, request: &FetchRequest) -> bool {
        let wanted = usize::try_from(request.min_bytes)
            .unwrap_or(0)
            .min(MAX_RESPONSE);
        let committed_only = request.isolation_level == 1;
        let mut found = 0usize;
        let mut any = false;
        for topic in &request.topics {
            let known = self.topics.get(topic.topic.as_str());
            for p in &topic.partitions {
                any = true;
                let Some(log) = known.and_then(|t| t.partition(p.partition)).map(|p| &p.log) else {
                    return true;
                };
                if p.fetch_offset < log.start_offset() || p.fetch_offset > log.end_offset() {
                    return true;
                }
                found += log.readable(
                    p.fetch_offset,
                    limit(log, committed_only),
                    max_bytes(p, MAX_RESPONSE),
                );
                if found >= wanted {
                    return true;
                }
            }
        }
        !any || wanted == 0
    }

    fn answer(&mut self, request: &FetchRequest) -> FetchResponse {
        let committed_only = request.isolation_level == 1;
        let mut remaining = usize::try_from(request.max_bytes)
            .unwrap_or(0)
            .min(MAX_RESPONSE);
        let mut empty = true;
        let mut response = FetchResponse::default();
        for topic in &request.topics {
            let mut out = FetchableTopicResponse::default().with_topic(topic.topic.clone());
            for p in &topic.partitions {
                let log = self
                    .topics
                    .get(topic.topic.as_str())
                    .and_then(|t| t.partition(p.partition))
                    .map(|p| &p.log);
                let mut data = PartitionData::default()
                    .with_partition_index(p.partition)
                    .with_high_watermark(-1)
                    .with_last_stable_offset(-1)
                    .with_log_start_offset(-1)
                    .with_preferred_read_replica(BrokerId(-1))
                    .with_records(Some(bytes::Bytes::new()));
                data.aborted_transactions = committed_only.then(Vec::new);
                let Some(log) = log else {
                    data.error_code = code(ResponseError::UnknownTopicOrPartition);
                    out.partitions.push(data);
                    continue;
                };
                data.high_watermark = log.end_offset();
                data.last_stable_offset = log.stable_offset();
                data.log_start_offset = log.start_offset();
                if p.fetch_offset < log.start_offset() || p.fetch_offset > log.end_offset() {
                    data.error_code = code(ResponseError::OffsetOutOfRange);
                    out.partitions.push(data);
                    continue;
                }
                let upto = limit(log, committed_only);
                match log.read(
                    self.storage.as_mut(),
                    p.fetch_offset,
                    upto,
                    max_bytes(p, remaining),
                    empty,
                ) {
                    Ok(records) => {
                        remaining = remaining.saturating_sub(records.len());
                        if !records.is_empty() {
                            empty = false;
                            if committed_only {
                                data.aborted_transactions =
                                    Some(aborted(log, p.fetch_offset, upto));
                            }
                        }
                        data.records = Some(records);
                    }
                    Err(error) => data.error_code = code(storage_failed(error)),
                }
                out.partitions.push(data);
            }
            response.responses.push(out);
        }
        response
    }

    fn park(&mut self, ticket: Ticket, fetch: ParkedFetch) {
        let parked = &self.parked;
        for topic in &fetch.request.topics {
            let Some(known) = self.topics.get_mut(topic.topic.as_str()) else {
                continue;
            };
            for p in &topic.partitions {
                if let Some(partition) = known.partition_mut(p.partition) {
                    // Tickets answered meanwhile are swept out once they are many.
                    if partition.waiters.len() >= 32 {
                        partition.waiters.retain(|t| parked.contains_key(t));
                    }
                    partition.waiters.push(ticket);
                }
            }
        }
        self.fetch_deadlines.insert((fetch.deadline, ticket));
        self.parked.insert(ticket, fetch);
    }

    /// Looks again at the fetches whose partitions have changed.
    pub(super) fn wake_fetches(&mut self, now: i64) {
        while let Some(ticket) = self.woken.pop_first() {
            let Some(fetch) = self.parked.remove(&ticket) else {
                continue;
            };
            self.fetch_deadlines.remove(&(fetch.deadline, ticket));
            if fetch.deadline <= now || self.satisfied(&fetch.request) {
                let response = self.answer(&fetch.request);
                self.send(ticket, Response::Fetch(response));
            } else {
                self.park(ticket, fetch);
            }
        }
    }

    /// Answers the fetches whose wait is over.
    pub(super) fn expire_fetches(&mut self, now: i64) {
        while let Some(&(deadline, ticket)) = self.fetch_deadlines.first() {
            if deadline > now {
                break;
            }
            self.fetch_deadlines.pop_first();
            if let Some(fetch) = self.parked.remove(&ticket) {
                let response = self.answer(&fetch.request);
                self.send(ticket, Response::Fetch(response));
            }
        }
    }
}

fn aborted(log: &Log, from: i64, upto: i64) -> Vec<AbortedTransaction> {
    let entry = |a: super::log::Aborted| {
        AbortedTransaction::default()
            .with_producer_id(ProducerId(a.producer_id))
            .with_first_offset(a.first_offset)
    };
    log.aborted_in(from, upto).into_iter().map(entry).collect()
}
