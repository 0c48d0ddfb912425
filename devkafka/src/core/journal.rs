//! The journal: everything that is not a record batch and must outlive the process.
//!
//! One file of frames (length, checksum, JSON), appended to before a change takes effect, replayed
//! in order at open; a torn frame at the end is cut off. When it has grown well beyond what the
//! state needs, it is replaced by a snapshot. JSON, so that a person can read what a broker knew.
//! Without durable storage nothing is written at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::group::GroupSnapshot;
use super::offsets::OffsetEntry;
use super::txn::Txn;
use crate::storage::{Result, Storage, StorageError};

const NAME: &str = "meta.journal";
/// A journal below this size is never rewritten.
const SMALL: u64 = 4 << 20;

/// One change of state. Applying the same ones in the same order gives the same state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Record {
    Cluster {
        id: String,
    },
    /// A topic as it now is: created, configured or given more partitions.
    Topic {
        name: String,
        id: uuid::Uuid,
        partitions: i32,
        configs: BTreeMap<String, String>,
    },
    TopicDeleted {
        name: String,
    },
    LogStart {
        topic: String,
        partition: i32,
        offset: i64,
    },
    /// No producer id from `next` on has been given out.
    ProducerIds {
        next: i64,
    },
    Txn {
        id: String,
        txn: Txn,
    },
    /// Offsets that a producer's open transaction will commit.
    PendingOffsets {
        producer_id: i64,
        group: String,
        offsets: Vec<OffsetEntry>,
    },
    /// A transaction is over: its pending offsets are applied or dropped, in one step with its state.
    TxnEnded {
        id: String,
        txn: Txn,
        ended_producer_id: i64,
        groups: Vec<String>,
        commit: bool,
    },
    TxnForgotten {
        id: String,
    },
    Offsets {
        group: String,
        offsets: Vec<OffsetEntry>,
    },
    OffsetsDeleted {
        group: String,
        partitions: Vec<(String, i32)>,
    },
    Group {
        id: String,
        group: GroupSnapshot,
    },
    GroupDeleted {
        id: String,
    },
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    len: u64,
    snapshot_len: u64,
    enabled: bool,
}

impl Journal {
    /// Reads all records back and cuts off a torn end.
    pub fn open(storage: &mut dyn Storage) -> Result<(Journal, Vec<Record>)> {
        let mut records = Vec::new();
        let mut journal = Journal {
            len: 0,
            snapshot_len: 0,
            enabled: storage.durable(),
        };
        if !journal.enabled {
            return Ok((journal, records));
        }
        let size = storage.len(NAME)?;
        if size > 0 {
            let bytes = storage.read(NAME, 0, usize::try_from(size).unwrap_or(usize::MAX))?;
            let mut rest = &bytes[..];
            while let Some((payload, after)) = next_frame(rest) {
                let record = serde_json::from_slice(payload)
                    .map_err(|e| StorageError::new("replay", NAME, std::io::Error::other(e)))?;
                records.push(record);
                rest = after;
            }
            journal.len = size - rest.len() as u64;
            if !rest.is_empty() {
                tracing::warn!(cut = rest.len(), "cut off a torn journal entry");
                storage.truncate(NAME, journal.len)?;
            }
        }
        journal.snapshot_len = journal.len;
        Ok((journal, records))
    }

    /// Writes a record. It must be applied only after this has succeeded.
    pub fn write(&mut self, storage: &mut dyn Storage, record: &Record) -> Result<()> {
        if !self.enabled {
            return Ok(());
        }
        let frame = frame(record)?;
        storage.append(NAME, &[&frame])?;
        self.len += frame.len() as u64;
        Ok(())
    }

    /// True if a snapshot would make the journal much shorter.
    pub fn wants_snapshot(&self) -> bool {
        self.enabled && self.len > SMALL && self.len > 4 * self.snapshot_len
    }

    /// Replaces the journal by the records that rebuild the present state.
    pub fn snapshot(&mut self, storage: &mut dyn Storage, records: &[Record]) -> Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend_from_slice(&frame(record)?);
        }
        storage.replace(NAME, &bytes)?;
        self.len = bytes.len() as u64;
        self.snapshot_len = self.len;
        Ok(())
    }
}

/// One frame around `value` as JSON.
pub fn frame(value: &impl Serialize) -> Result<Vec<u8>> {
    let payload = serde_json::to_vec(value)
        .map_err(|e| StorageError::new("encode", NAME, std::io::Error::other(e)))?;
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(&crc32c::crc32c(&payload).to_be_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Splits the first sound frame off; None at the end or at a torn or damaged frame.
pub fn next_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    (crc32c::crc32c(payload) == u32::from_be_bytes(*crc)).then_some((payload, rest))
}
