//! What a partition knows of each producer: epoch, the last five batches, an open transaction.
//!
//! Checks sequence numbers exactly as a Kafka broker does. It never looks at the transaction
//! coordinator; that a batch belongs to a transaction that may write here is checked before.

use std::collections::VecDeque;

use kafka_protocol::error::ResponseError;

use super::batch::{BatchHeader, add_sequence};

/// Batches remembered per producer for duplicate detection, as librdkafka and Java clients have at
/// most five in flight.
const REMEMBERED: usize = 5;

#[derive(Debug, Clone, Copy)]
struct Batch {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
    timestamp: i64,
}

/// One producer on one partition.
#[derive(Debug, Clone)]
pub struct Producer {
    pub epoch: i16,
    batches: VecDeque<Batch>,
    /// First offset of the open transaction.
    pub txn_first: Option<i64>,
    /// When it last wrote, in milliseconds.
    pub last_timestamp: i64,
}

/// The verdict on a batch of an idempotent producer.
#[derive(Debug, PartialEq, Eq)]
pub enum Check {
    /// Append it.
    New,
    /// Seen before: acknowledge with this base offset and append time, append nothing.
    Duplicate { base_offset: i64, timestamp: i64 },
}

impl Producer {
    pub fn new(epoch: i16) -> Producer {
        Producer {
            epoch,
            batches: VecDeque::new(),
            txn_first: None,
            last_timestamp: -1,
        }
    }

    pub fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(-1, |b| b.last_sequence)
    }

    /// Judges a batch against what is known of its producer (`None`: nothing, so anything goes).
    pub fn check(known: Option<&Producer>, batch: &BatchHeader) -> Result<Check, ResponseError> {
        let Some(known) = known else {
            return Ok(Check::New);
        };
        if batch.producer_epoch < known.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        let first = batch.base_sequence;
        if batch.producer_epoch > known.epoch {
            return if first == 0 {
                Ok(Check::New)
            } else {
                Err(ResponseError::OutOfOrderSequenceNumber)
            };
        }
        let same =
            |b: &&Batch| b.first_sequence == first && b.last_sequence == batch.last_sequence();
        if let Some(seen) = known.batches.iter().find(same) {
            return Ok(Check::Duplicate {
                base_offset: seen.base_offset,
                timestamp: seen.timestamp,
            });
        }
        let last = known.last_sequence();
        let expected = if last < 0 { 0 } else { add_sequence(last, 1) };
        if first == expected {
            Ok(Check::New)
        } else {
            Err(ResponseError::OutOfOrderSequenceNumber)
        }
    }

    /// Takes in a batch that was appended at `base_offset`. Returns true if it opened a transaction.
    pub fn appended(&mut self, batch: &BatchHeader, base_offset: i64, timestamp: i64) -> bool {
        if batch.producer_epoch != self.epoch {
            self.epoch = batch.producer_epoch;
            self.batches.clear();
        }
        if self.batches.len() == REMEMBERED {
            self.batches.pop_front();
        }
        self.batches.push_back(Batch {
            first_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base_offset,
            timestamp,
        });
        self.last_timestamp = timestamp;
        if batch.transactional() && self.txn_first.is_none() {
            self.txn_first = Some(base_offset);
            return true;
        }
        false
    }

    /// Takes in a marker. Returns the first offset of the transaction that it ended.
    pub fn ended(&mut self, epoch: i16, timestamp: i64) -> Option<i64> {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
        self.last_timestamp = timestamp;
        self.txn_first.take()
    }
}
