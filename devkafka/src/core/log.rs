//! One partition's log: segments of raw batches, the producers writing to it, the index of aborted
//! transactions.
//!
//! Batches flow in through [`Log::append`] and [`Log::append_marker`] and out through
//! [`Log::read`], a contiguous piece of one segment at a time. Everything but the bytes is kept in
//! memory and rebuilt by [`Log::open`] from a scan of the batch headers; a torn batch at the very
//! end is cut off there. The log must never hand out an offset before its bytes are in storage.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use super::batch::{self, BatchHeader, Marker};
use super::producer::{Check, Producer};
use crate::storage::{Result, Storage, StorageError};

/// Segments never grow beyond this, whatever `segment.bytes` says: memory segments are one buffer.
pub const MAX_SEGMENT: u64 = 64 << 20;
/// Bytes read at a time when a segment is scanned.
const SCAN_WINDOW: usize = 1 << 20;

/// Where one batch lies.
#[derive(Debug, Clone, Copy)]
pub struct BatchMeta {
    pub base_offset: i64,
    pub last_offset: i64,
    pub max_timestamp: i64,
    pub pos: u32,
    pub len: u32,
}

/// One file of the log.
#[derive(Debug)]
pub struct Segment {
    pub base_offset: i64,
    pub name: String,
    pub size: u64,
    pub batches: Vec<BatchMeta>,
    /// When its first batch was appended; the time of opening for a recovered one.
    pub created: i64,
}

impl Segment {
    pub fn max_timestamp(&self) -> i64 {
        self.batches
            .iter()
            .map(|b| b.max_timestamp)
            .max()
            .unwrap_or(-1)
    }
}

/// An aborted transaction, as Fetch reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aborted {
    pub producer_id: i64,
    pub first_offset: i64,
    /// Offset of the abort marker.
    pub last_offset: i64,
    /// The last stable offset once this transaction had ended.
    pub stable_after: i64,
}

/// The limits of a log that its topic's configuration sets.
#[derive(Debug, Clone, Copy)]
pub struct AppendRules {
    pub log_append_time: bool,
    pub segment_bytes: u64,
    pub segment_ms: i64,
}

/// The result of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: i64,
    /// The append time if the topic uses it, else -1.
    pub log_append_time: i64,
    /// True if nothing was appended, since the batch is there already.
    pub duplicate: bool,
}

/// Why an append was refused.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("{0}")]
    Refused(ResponseError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// One partition's log.
#[derive(Debug)]
pub struct Log {
    dir: String,
    pub(super) segments: Vec<Segment>,
    start_offset: i64,
    end_offset: i64,
    pub(super) producers: BTreeMap<i64, Producer>,
    /// First offset → producer id of every open transaction.
    open_txns: BTreeMap<i64, i64>,
    pub(super) aborted: Vec<Aborted>,
}

impl Log {
    /// Opens the log in `dir` (which may hold nothing yet). `start_offset`: from DeleteRecords or
    /// retention; older records are not shown even if their segment is still there.
    pub fn open(
        storage: &mut dyn Storage,
        dir: String,
        start_offset: i64,
        now: i64,
    ) -> Result<Log> {
        let mut log = Log {
            segments: Vec::new(),
            start_offset,
            end_offset: 0,
            producers: BTreeMap::new(),
            open_txns: BTreeMap::new(),
            aborted: Vec::new(),
            dir,
        };
        let names = storage.list(&format!("{}/", log.dir))?;
        let last = names.len().saturating_sub(1);
        for (i, name) in names.into_iter().enumerate() {
            let base = name
                .rsplit('/')
                .next()
                .and_then(|n| n.strip_suffix(".log"))
                .and_then(|n| n.parse().ok());
            let Some(base) = base else { continue };
            if base < log.end_offset && !log.segments.is_empty() {
                // Compaction had merged it into the segment before, and was killed before this.
                storage.remove(&name)?;
                continue;
            }
            log.scan(storage, name, base, i == last, now)?;
        }
        if log.segments.is_empty() {
            log.end_offset = start_offset;
            log.roll(storage, now)?;
        }
        log.start_offset = log
            .start_offset
            .max(log.segments.first().map_or(0, |s| s.base_offset))
            .min(log.end_offset);
        Ok(log)
    }

    fn scan(
        &mut self,
        storage: &mut dyn Storage,
        name: String,
        base: i64,
        last: bool,
        now: i64,
    ) -> Result<()> {
        let size = storage.len(&name)?;
        self.end_offset = self.end_offset.max(base);
        self.segments.push(Segment {
            base_offset: base,
            name: name.clone(),
            size: 0,
            batches: Vec::new(),
            created: now,
        });
        let mut pos = 0u64;
        let mut window = Bytes::new();
        let mut window_at = 0u64;
        while pos < size {
            let held = |w: &Bytes, at: u64| w.len().saturating_sub((pos - at) as usize);
            if held(&window, window_at) < batch::HEADER {
                window_at = pos;
                window = storage.read(&name, pos, SCAN_WINDOW.min((size - pos) as usize))?;
            }
            let Some(header) = BatchHeader::peek(&window[(pos - window_at) as usize..]) else {
                break;
            };
            let end = pos + header.len as u64;
            if end > size || header.base_offset < self.end_offset {
                break;
            }
            if held(&window, window_at) < header.len && (last || header.control()) {
                window_at = pos;
                window = storage.read(
                    &name,
                    pos,
                    SCAN_WINDOW.max(header.len).min((size - pos) as usize),
                )?;
            }
            let at = (pos - window_at) as usize;
            let bytes = window.get(at..).unwrap_or_default();
            if last && !header.crc_ok(bytes) {
                break;
            }
            self.absorb(
                &header,
                header.base_offset,
                batch::read_marker(bytes),
                header.max_timestamp,
                pos,
            );
            pos = end;
        }
        if pos < size {
            if !last {
                let broken = std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!("damaged at byte {pos}"),
                );
                return Err(StorageError::new("scan", &name, broken));
            }
            tracing::warn!(%name, kept = pos, cut = size - pos, "cut off a torn batch");
            storage.truncate(&name, pos)?;
        }
        Ok(())
    }

    /// First offset that is still there.
    pub fn start_offset(&self) -> i64 {
        self.start_offset
    }

    /// The next offset to be given out; on a single node also the high watermark.
    pub fn end_offset(&self) -> i64 {
        self.end_offset
    }

    /// First offset of the oldest open transaction, else the end.
    pub fn stable_offset(&self) -> i64 {
        self.open_txns
            .keys()
            .next()
            .copied()
            .unwrap_or(self.end_offset)
    }

    /// Bytes in all segments.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|s| s.size).sum()
    }

    /// Appends one checked batch of a producer.
    pub fn append(
        &mut self,
        storage: &mut dyn Storage,
        bytes: &[u8],
        header: &BatchHeader,
        rules: AppendRules,
        now: i64,
    ) -> std::result::Result<Appended, AppendError> {
        let append_time = rules.log_append_time.then_some(now);
        if header.producer_id >= 0 {
            let known = self.producers.get(&header.producer_id);
            match Producer::check(known, header).map_err(AppendError::Refused)? {
                Check::New => {}
                Check::Duplicate {
                    base_offset,
                    timestamp,
                } => {
                    let log_append_time = append_time.map_or(-1, |_| timestamp);
                    return Ok(Appended {
                        base_offset,
                        log_append_time,
                        duplicate: true,
                    });
                }
            }
        }
        let base_offset = self.end_offset;
        let head = batch::patched_header(bytes, base_offset, append_time);
        let timestamp = append_time.unwrap_or(header.max_timestamp);
        let pos = self.write(storage, &[&head, &bytes[batch::HEADER..]], rules, now)?;
        let stored = BatchHeader {
            base_offset,
            max_timestamp: timestamp,
            ..*header
        };
        self.absorb(&stored, base_offset, None, append_time.unwrap_or(now), pos);
        Ok(Appended {
            base_offset,
            log_append_time: append_time.unwrap_or(-1),
            duplicate: false,
        })
    }

    /// Ends a producer's transaction on this partition; does nothing if it has none open here and
    /// `epoch` is not news.
    pub fn append_marker(
        &mut self,
        storage: &mut dyn Storage,
        producer_id: i64,
        epoch: i16,
        marker: Marker,
        rules: AppendRules,
        now: i64,
    ) -> Result<()> {
        let idle = self
            .producers
            .get(&producer_id)
            .is_none_or(|p| p.txn_first.is_none() && p.epoch >= epoch);
        if idle {
            return Ok(());
        }
        let bytes = batch::marker_batch(self.end_offset, producer_id, epoch, marker, now);
        let pos = self.write(storage, &[&bytes], rules, now)?;
        if let Some(header) = BatchHeader::read(&bytes) {
            self.absorb(&header, header.base_offset, Some(marker), now, pos);
        }
        Ok(())
    }

    fn write(
        &mut self,
        storage: &mut dyn Storage,
        parts: &[&[u8]],
        rules: AppendRules,
        now: i64,
    ) -> Result<u64> {
        let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
        let limit = rules.segment_bytes.min(MAX_SEGMENT);
        let full = self.segments.last().is_none_or(|s| {
            !s.batches.is_empty()
                && (s.size + len > limit || now.saturating_sub(s.created) >= rules.segment_ms)
        });
        if full {
            self.roll(storage, now)?;
        }
        let Some(active) = self.segments.last_mut() else {
            return Err(StorageError::missing("append to", &self.dir));
        };
        if active.batches.is_empty() {
            active.created = now;
        }
        storage.append(&active.name, parts)?;
        Ok(active.size)
    }

    /// Starts a new active segment at the end.
    pub fn roll(&mut self, storage: &mut dyn Storage, now: i64) -> Result<()> {
        if self
            .segments
            .last()
            .is_some_and(|s| s.base_offset == self.end_offset)
        {
            return Ok(());
        }
        let name = format!("{}/{:020}.log", self.dir, self.end_offset);
        storage.append(&name, &[])?;
        let batches = Vec::new();
        self.segments.push(Segment {
            base_offset: self.end_offset,
            name,
            size: 0,
            batches,
            created: now,
        });
        Ok(())
    }

    /// Takes a batch that is in storage into the index and the producers' state.
    fn absorb(
        &mut self,
        header: &BatchHeader,
        base_offset: i64,
        marker: Option<Marker>,
        time: i64,
        pos: u64,
    ) {
        let last_offset = header.last_offset();
        if let Some(active) = self.segments.last_mut() {
            active.batches.push(BatchMeta {
                base_offset,
                last_offset,
                max_timestamp: header.max_timestamp,
                pos: pos as u32,
                len: header.len as u32,
            });
            active.size = pos + header.len as u64;
        }
        self.end_offset = last_offset + 1;
        if header.producer_id < 0 {
            return;
        }
        let id = header.producer_id;
        let producer = self
            .producers
            .entry(id)
            .or_insert_with(|| Producer::new(header.producer_epoch));
        if header.control() {
            if let Some(first_offset) = producer.ended(header.producer_epoch, time) {
                self.open_txns.remove(&first_offset);
                if marker == Some(Marker::Abort) {
                    let stable_after = self.stable_offset();
                    self.aborted.push(Aborted {
                        producer_id: id,
                        first_offset,
                        last_offset,
                        stable_after,
                    });
                }
            }
        } else if producer.appended(header, base_offset, time) {
            self.open_txns.insert(base_offset, id);
        }
    }

    /// Reads whole batches from `from` on that end before `limit` (an offset), about `max_bytes` of
    /// them. The first batch is returned even if it is larger, when `at_least_one`.
    pub fn read(
        &self,
        storage: &mut dyn Storage,
        from: i64,
        limit: i64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Result<Bytes> {
        match self.locate(from, limit, max_bytes, at_least_one) {
            Some((name, pos, len)) => storage.read(name, pos, len),
            None => Ok(Bytes::new()),
        }
    }

    /// How many bytes [`Log::read`] would return.
    pub fn readable(&self, from: i64, limit: i64, max_bytes: usize) -> usize {
        self.locate(from, limit, max_bytes, true)
            .map_or(0, |(_, _, len)| len)
    }

    fn locate(
        &self,
        from: i64,
        limit: i64,
        max_bytes: usize,
        at_least_one: bool,
    ) -> Option<(&str, u64, usize)> {
        if from >= limit {
            return None;
        }
        let mut at = self
            .segments
            .partition_point(|s| s.base_offset <= from)
            .saturating_sub(1);
        loop {
            let segment = self.segments.get(at)?;
            let first = segment.batches.partition_point(|b| b.last_offset < from);
            if let Some(start) = segment.batches.get(first) {
                let mut len = 0usize;
                for b in &segment.batches[first..] {
                    let fits = len + b.len as usize <= max_bytes || (len == 0 && at_least_one);
                    if b.last_offset >= limit || !fits {
                        break;
                    }
                    len += b.len as usize;
                }
                return (len > 0).then_some((segment.name.as_str(), u64::from(start.pos), len));
            }
            at += 1;
        }
    }

    /// The aborted transactions that a reader of [from, upto) must know.
    pub fn aborted_in(&self, from: i64, upto: i64) -> Vec<Aborted> {
        let mut found = Vec::new();
        for aborted in &self.aborted[self.aborted.partition_point(|a| a.last_offset < from)..] {
            if aborted.first_offset < upto {
                found.push(*aborted);
            }
            if aborted.stable_after >= upto {
                break;
            }
        }
        found
    }

    /// Batches in order, with the name of the file they lie in.
    pub fn batches(&self) -> impl Iterator<Item = (&Segment, &BatchMeta)> {
        self.segments
            .iter()
            .flat_map(|s| s.batches.iter().map(move |b| (s, b)))
    }

    /// Moves the start offset up; segments wholly below it are removed.
    pub fn delete_before(
        &mut self,
        storage: &mut dyn Storage,
        offset: i64,
        now: i64,
    ) -> Result<()> {
        self.start_offset = self.start_offset.max(offset.min(self.end_offset));
        if self.start_offset >= self.end_offset {
            self.roll(storage, now)?;
        }
        while self.segments.len() > 1 && self.segments[1].base_offset <= self.start_offset {
            let gone = self.segments.remove(0);
            storage.remove(&gone.name)?;
        }
        let start = self.start_offset;
        self.aborted.retain(|a| a.last_offset >= start);
        Ok(())
    }

    /// Forgets producers that have been silent since `before` and have no open transaction.
    pub fn expire_producers(&mut self, before: i64) {
        self.producers
            .retain(|_, p| p.txn_first.is_some() || p.last_timestamp >= before);
    }

    /// Removes all files of the log.
    pub fn remove(&mut self, storage: &mut dyn Storage) -> Result<()> {
        for segment in self.segments.drain(..) {
            storage.remove(&segment.name)?;
        }
        Ok(())
    }
}
