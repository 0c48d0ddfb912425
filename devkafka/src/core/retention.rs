//! Upkeep: retention by time and size, compaction, forgetting of idle producers and transactions.

use kafka_protocol::error::ResponseError;

use super::config::TopicConfig;
use super::journal::Record;
use super::log::Log;
use super::txn::TxnState;
use super::{Core, compact};

/// Idle producers are forgotten after this many milliseconds (`producer.id.expiration.ms`).
const PRODUCER_EXPIRY_MS: i64 = 24 * 3_600_000;
/// Idle transactional ids are forgotten after this many milliseconds (`transactional.id.expiration.ms`).
const TXN_EXPIRY_MS: i64 = 7 * 24 * 3_600_000;

impl Core {
    /// One round of upkeep over everything.
    pub(super) fn maintain(&mut self, now: i64) {
        let names: Vec<(String, usize)> = self
            .topics
            .iter()
            .map(|(n, t)| (n.clone(), t.partitions.len()))
            .collect();
        for (name, count) in names {
            for index in 0..count as i32 {
                if let Err(error) = self.maintain_partition(&name, index, now) {
                    tracing::error!(%error, topic = %name, partition = index, "upkeep failed");
                }
            }
        }
        let idle =
            |t: &super::txn::Txn| t.state != TxnState::Ongoing && now - t.updated > TXN_EXPIRY_MS;
        let idle: Vec<String> = self
            .txns
            .iter()
            .filter(|(_, t)| idle(t))
            .map(|(id, _)| id.clone())
            .collect();
        for id in idle {
            if let Err(error) = self.record(Record::TxnForgotten { id }) {
                tracing::error!(%error, "an idle transactional id was not forgotten");
            }
        }
    }

    fn maintain_partition(
        &mut self,
        name: &str,
        index: i32,
        now: i64,
    ) -> Result<(), ResponseError> {
        let Some(topic) = self.topics.get_mut(name) else {
            return Ok(());
        };
        let config = topic.config.clone();
        let rules = topic.rules();
        let Some(partition) = topic.partition_mut(index) else {
            return Ok(());
        };
        let log = &mut partition.log;
        log.expire_producers(now - PRODUCER_EXPIRY_MS);
        // A segment past its age is closed even if nothing more is written, so that upkeep reaches it.
        let aged = log
            .segments
            .last()
            .is_some_and(|s| !s.batches.is_empty() && now - s.created >= rules.segment_ms);
        if aged {
            log.roll(self.storage.as_mut(), now)
                .map_err(super::storage_failed)?;
        }
        if config.compact {
            compact::compact(partition, &config, self.storage.as_mut(), now)
                .map_err(super::storage_failed)?;
        }
        let keep_from = if config.delete {
            retained(&partition.log, &config, now)
        } else {
            0
        };
        if keep_from > partition.log.start_offset() {
            self.delete_before(name, index, keep_from, now)?;
        }
        Ok(())
    }
}

/// The offset from which on records must stay. Only closed segments go, as in Kafka; the active one
/// is closed first if all of it has expired.
fn retained(log: &Log, config: &TopicConfig, now: i64) -> i64 {
    let mut from = log.start_offset();
    let mut excess = if config.retention_bytes >= 0 {
        log.size().saturating_sub(config.retention_bytes as u64)
    } else {
        0
    };
    let count = log.segments.len();
    for (i, segment) in log.segments.iter().enumerate() {
        let last = i + 1 == count;
        let next = log
            .segments
            .get(i + 1)
            .map_or(log.end_offset(), |s| s.base_offset);
        let stamp = match segment.max_timestamp() {
            -1 => segment.created,
            t => t,
        };
        let expired = config.retention_ms >= 0
            && !segment.batches.is_empty()
            && now - stamp > config.retention_ms;
        let too_big = !last && excess >= segment.size && segment.size > 0;
        let empty = !last && segment.batches.is_empty();
        if !(expired || too_big || empty) || next > log.stable_offset() {
            break;
        }
        excess = excess.saturating_sub(segment.size);
        from = next;
    }
    from
}
