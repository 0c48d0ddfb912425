//! Log compaction: of the closed segments below the last stable offset, each key keeps its newest
//! record; what aborted transactions wrote goes.
//!
//! It must never touch the active segment, an offset at or beyond the last stable one, or a marker
//! whose transaction still has records in the log (a reopened broker would take it for open).
//! Offsets stay: a batch keeps its base and last offset and loses records. Tombstones stay for
//! `delete.retention.ms` from the first cleaning that meets them; that time is written into the
//! batch as Kafka does it (attribute bit 6, base timestamp = horizon).

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::batch::{self, BatchHeader, DELETE_HORIZON};
use super::config::TopicConfig;
use super::log::{Aborted, BatchMeta, Log, MAX_SEGMENT, Segment};
use super::records::{payload, records};
use super::topics::Partition;
use crate::storage::{Result, Storage, StorageError};

const COMPRESSION_BITS: i16 = 7;

/// Cleans a partition if enough of it is dirty.
pub fn compact(
    partition: &mut Partition,
    config: &TopicConfig,
    storage: &mut dyn Storage,
    now: i64,
) -> Result<()> {
    let log = &mut partition.log;
    let count = cleanable(log, config, now);
    let Some(upto) = log
        .segments
        .get(count)
        .map(|s| s.base_offset)
        .filter(|_| count > 0)
    else {
        return Ok(());
    };
    let total: u64 = log.segments[..count].iter().map(|s| s.size).sum();
    let fresh = |s: &&Segment| s.base_offset >= partition.cleaned;
    let dirty: u64 = log.segments[..count]
        .iter()
        .filter(fresh)
        .map(|s| s.size)
        .sum();
    if dirty == 0 || (dirty as f64) < config.min_cleanable_dirty_ratio * total as f64 {
        return Ok(());
    }
    let latest = newest_offsets(log, count, partition.cleaned, storage)?;
    let mut cleaner = Cleaner {
        latest,
        aborted: log.aborted.clone(),
        alive: BTreeSet::new(),
        horizon: now.saturating_add(config.delete_retention_ms.max(0)),
        now,
        marker_before: now.saturating_sub(config.delete_retention_ms.max(0)),
    };
    let limit = config.segment_bytes.min(MAX_SEGMENT);
    let mut rest: Vec<Segment> = log.segments.drain(..).collect();
    let tail = rest.split_off(count);
    let (cleaned, error) = rewrite(rest, &mut cleaner, limit, storage);
    log.segments = cleaned;
    log.segments.extend(tail);
    if let Some(error) = error {
        return Err(error);
    }
    log.aborted.retain(|a| a.last_offset >= upto);
    partition.cleaned = upto;
    Ok(())
}

/// How many segments from the first on may be cleaned.
fn cleanable(log: &Log, config: &TopicConfig, now: i64) -> usize {
    let closed = log.segments.len().saturating_sub(1);
    let stable = log.stable_offset();
    let settled = |i: usize| {
        let end = log
            .segments
            .get(i + 1)
            .map_or(log.end_offset(), |s| s.base_offset);
        let lag_ok = config.min_compaction_lag_ms <= 0
            || log
                .segments
                .get(i)
                .is_some_and(|s| s.max_timestamp() <= now - config.min_compaction_lag_ms);
        end <= stable && lag_ok
    };
    (0..closed).take_while(|i| settled(*i)).count()
}

fn is_aborted(aborted: &[Aborted], header: &BatchHeader) -> bool {
    header.transactional()
        && aborted.iter().any(|a| {
            a.producer_id == header.producer_id
                && a.first_offset <= header.base_offset
                && header.base_offset <= a.last_offset
        })
}

/// The newest offset of every key in the part that was not cleaned before.
fn newest_offsets(
    log: &Log,
    count: usize,
    from: i64,
    storage: &mut dyn Storage,
) -> Result<BTreeMap<Bytes, i64>> {
    let mut latest = BTreeMap::new();
    for segment in log.segments[..count]
        .iter()
        .filter(|s| s.base_offset >= from)
    {
        for meta in &segment.batches {
            let bytes = storage.read(&segment.name, u64::from(meta.pos), meta.len as usize)?;
            let Some(header) = BatchHeader::read(&bytes) else {
                continue;
            };
            if header.control() || is_aborted(&log.aborted, &header) {
                continue;
            }
            let Some(payload) = payload(&bytes, &header) else {
                continue;
            };
            for record in records(&payload, &header) {
                if let Some(key) = record.key {
                    latest.insert(Bytes::copy_from_slice(key), record.offset);
                }
            }
        }
    }
    Ok(latest)
}

/// Rewrites segments, merging neighbours that have become small. Returns those that now stand, also
/// when storage failed on the way.
fn rewrite(
    segments: Vec<Segment>,
    cleaner: &mut Cleaner,
    limit: u64,
    storage: &mut dyn Storage,
) -> (Vec<Segment>, Option<StorageError>) {
    let mut done = Vec::new();
    let mut rest = segments.into_iter().peekable();
    while let Some(first) = rest.next() {
        let mut group = vec![first];
        let mut out = Cleaned {
            bytes: BytesMut::new(),
            batches: Vec::new(),
        };
        let mut result = cleaner.segment(&group[0], &mut out, storage);
        while result.is_ok()
            && let Some(next) = rest.next_if(|s| out.bytes.len() as u64 + s.size <= limit)
        {
            result = cleaner.segment(&next, &mut out, storage);
            group.push(next);
        }
        match result.and_then(|()| storage.replace(&group[0].name, &out.bytes)) {
            Ok(()) => {
                let mut group = group.into_iter();
                if let Some(mut merged) = group.next() {
                    merged.size = out.bytes.len() as u64;
                    merged.batches = out.batches;
                    done.push(merged);
                }
                // A file that stays behind overlaps the merged one; the next open removes it.
                for emptied in group {
                    if let Err(error) = storage.remove(&emptied.name) {
                        tracing::warn!(%error, "a merged segment was not removed");
                    }
                }
            }
            Err(error) => {
                done.extend(group);
                done.extend(rest);
                return (done, Some(error));
            }
        }
    }
    (done, None)
}

struct Cleaned {
    bytes: BytesMut,
    batches: Vec<BatchMeta>,
}

struct Cleaner {
    latest: BTreeMap<Bytes, i64>,
    aborted: Vec<Aborted>,
    /// Producers with records left in the transaction that is being passed.
    alive: BTreeSet<i64>,
    /// Horizon that newly met tombstones get.
    horizon: i64,
    now: i64,
    /// Markers written before may go, once their records are gone.
    marker_before: i64,
}

impl Cleaner {
    /// Adds what remains of a segment to `out`.
    fn segment(
        &mut self,
        segment: &Segment,
        out: &mut Cleaned,
        storage: &mut dyn Storage,
    ) -> Result<()> {
        for meta in &segment.batches {
            let bytes = storage.read(&segment.name, u64::from(meta.pos), meta.len as usize)?;
            let Some(kept) = self.batch(&bytes) else {
                continue;
            };
            let max_timestamp =
                BatchHeader::read(&kept).map_or(meta.max_timestamp, |h| h.max_timestamp);
            let (pos, len) = (out.bytes.len() as u32, kept.len() as u32);
            out.batches.push(BatchMeta {
                pos,
                len,
                max_timestamp,
                ..*meta
            });
            out.bytes.put_slice(&kept);
        }
        Ok(())
    }

    /// What remains of a batch; None if nothing does.
    fn batch(&mut self, bytes: &Bytes) -> Option<Bytes> {
        let Some(header) = BatchHeader::read(bytes) else {
            return Some(bytes.clone());
        };
        if header.control() {
            let needed = self.alive.remove(&header.producer_id)
                || header.max_timestamp >= self.marker_before;
            return needed.then(|| bytes.clone());
        }
        if is_aborted(&self.aborted, &header) {
            return None;
        }
        let kept = self.data(bytes, &header);
        if kept.is_some() && header.transactional() {
            self.alive.insert(header.producer_id);
        }
        kept
    }

    fn data(&self, bytes: &Bytes, header: &BatchHeader) -> Option<Bytes> {
        let Some(payload) = payload(bytes, header) else {
            return Some(bytes.clone());
        };
        let marked = header.attributes & DELETE_HORIZON != 0;
        let tombstones_go = marked && header.first_timestamp <= self.now;
        let mut all = records(&payload, header);
        let (mut kept, mut dropped, mut tombstones) = (Vec::new(), 0, false);
        for record in all.by_ref() {
            let superseded = match record.key {
                Some(key) => self
                    .latest
                    .get(key)
                    .is_some_and(|newest| *newest > record.offset),
                None => true,
            };
            if superseded || (record.null_value && tombstones_go) {
                dropped += 1;
            } else {
                tombstones |= record.null_value;
                kept.push(record);
            }
        }
        if all.damaged {
            return Some(bytes.clone()); // never throw away what cannot be read
        }
        if kept.is_empty() {
            return None;
        }
        let mark = tombstones && !marked;
        if dropped == 0 && !mark {
            return Some(bytes.clone());
        }
        let base_timestamp = if mark {
            self.horizon
        } else {
            header.first_timestamp
        };
        let mut packed = BytesMut::new();
        let mut max_timestamp = -1;
        for record in &kept {
            max_timestamp = max_timestamp.max(record.timestamp);
            record.write(&mut packed, base_timestamp);
        }
        if header.log_append_time() {
            max_timestamp = header.max_timestamp;
        }
        let attributes =
            (header.attributes & !COMPRESSION_BITS) | if mark { DELETE_HORIZON } else { 0 };
        let producer = (
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
        );
        let times = (base_timestamp, max_timestamp);
        let count = kept.len() as i32;
        Some(batch::build(
            header.base_offset,
            attributes,
            header.last_offset_delta,
            times,
            producer,
            count,
            &packed,
        ))
    }
}
