//! Record batches (format v2) as bytes: checked, patched in place and built, never re-encoded.
//!
//! A batch is stored as the producer sent it. Only base offset and leader epoch are patched (both
//! lie outside the checksum); LogAppendTime also sets a bit and the maximum timestamp, and then
//! the checksum is computed anew. Records inside are looked at by `records.rs` only.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;

/// Bytes before the first record.
pub const HEADER: usize = 61;
/// Bytes before and with the length field.
pub const LENGTH_END: usize = 12;

/// A single node has no leader epochs; -1 also keeps clients from asking OffsetForLeaderEpoch.
pub const NO_LEADER_EPOCH: i32 = -1;

const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
const LOG_APPEND_TIME: i16 = 1 << 3;
/// Set by the compactor: the first timestamp is when this batch's tombstones may go.
pub const DELETE_HORIZON: i16 = 1 << 6;
/// Attribute bits that producers may use.
const PRODUCER_BITS: i16 = 0x3f;

/// The fields of a batch header that the broker needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Length of the whole batch in bytes, header included.
    pub len: usize,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    /// Milliseconds since the epoch; -1 if none.
    pub first_timestamp: i64,
    /// Milliseconds since the epoch; -1 if none.
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

impl BatchHeader {
    pub fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    pub fn transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub fn control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    pub fn log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    pub fn compression(&self) -> i16 {
        self.attributes & 7
    }

    /// The sequence number of the last record (they wrap to 0 after `i32::MAX`).
    pub fn last_sequence(&self) -> i32 {
        add_sequence(self.base_sequence, self.last_offset_delta)
    }

    /// Reads a header without checking the checksum. None if the bytes are no whole v2 batch.
    pub fn read(bytes: &[u8]) -> Option<BatchHeader> {
        let header = BatchHeader::peek(bytes)?;
        (bytes.len() >= header.len).then_some(header)
    }

    /// Reads a header; the rest of the batch need not be in `bytes`.
    pub fn peek(bytes: &[u8]) -> Option<BatchHeader> {
        if bytes.len() < HEADER || bytes[MAGIC_AT] != 2 {
            return None;
        }
        let len = usize::try_from(i32_at(bytes, 8)).ok()? + LENGTH_END;
        if len < HEADER {
            return None;
        }
        Some(BatchHeader {
            base_offset: i64_at(bytes, 0),
            len,
            crc: i32_at(bytes, CRC_AT) as u32,
            attributes: i16_at(bytes, ATTRIBUTES_AT),
            last_offset_delta: i32_at(bytes, 23),
            first_timestamp: i64_at(bytes, 27),
            max_timestamp: i64_at(bytes, MAX_TIMESTAMP_AT),
            producer_id: i64_at(bytes, 43),
            producer_epoch: i16_at(bytes, 51),
            base_sequence: i32_at(bytes, 53),
            record_count: i32_at(bytes, 57),
        })
    }

    /// True if the checksum of the whole batch is right.
    pub fn crc_ok(&self, bytes: &[u8]) -> bool {
        bytes
            .get(ATTRIBUTES_AT..self.len)
            .is_some_and(|b| crc32c::crc32c(b) == self.crc)
    }
}

/// Adds to a sequence number as producers do.
pub fn add_sequence(sequence: i32, delta: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(delta);
    (sum % (i64::from(i32::MAX) + 1)) as i32
}

/// Checks what a producer sent for one partition: exactly one sound v2 data batch.
pub fn check_produced(bytes: &[u8]) -> Result<BatchHeader, (ResponseError, &'static str)> {
    if bytes.len() < HEADER {
        return Err((
            ResponseError::CorruptMessage,
            "record batch is shorter than its header",
        ));
    }
    if bytes[MAGIC_AT] != 2 {
        return Err((
            ResponseError::InvalidRecord,
            "only record batches of format v2 are accepted",
        ));
    }
    let header = BatchHeader::read(bytes)
        .ok_or((ResponseError::CorruptMessage, "record batch is truncated"))?;
    if header.len != bytes.len() {
        return Err((
            ResponseError::InvalidRecord,
            "exactly one record batch per partition is accepted",
        ));
    }
    if !header.crc_ok(bytes) {
        return Err((
            ResponseError::CorruptMessage,
            "record batch fails its checksum",
        ));
    }
    if header.control() {
        return Err((
            ResponseError::InvalidRecord,
            "clients may not write control batches",
        ));
    }
    if header.attributes & !PRODUCER_BITS != 0 {
        return Err((ResponseError::InvalidRecord, "unknown batch attributes"));
    }
    if header.record_count <= 0 || header.last_offset_delta != header.record_count - 1 {
        return Err((
            ResponseError::InvalidRecord,
            "record count and last offset delta disagree",
        ));
    }
    if header.compression() > 4 {
        return Err((
            ResponseError::UnsupportedCompressionType,
            "unknown compression type",
        ));
    }
    if header.producer_id >= 0 && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err((
            ResponseError::InvalidRecord,
            "idempotent batch without epoch or sequence",
        ));
    }
    if header.transactional() && header.producer_id < 0 {
        return Err((
            ResponseError::InvalidRecord,
            "transactional batch without producer id",
        ));
    }
    Ok(header)
}

/// The patched header of a batch that goes into the log; the records follow it unchanged.
pub fn patched_header(bytes: &[u8], base_offset: i64, append_time: Option<i64>) -> [u8; HEADER] {
    let mut head = [0u8; HEADER];
    head.copy_from_slice(&bytes[..HEADER]);
    head[..8].copy_from_slice(&base_offset.to_be_bytes());
    head[12..16].copy_from_slice(&NO_LEADER_EPOCH.to_be_bytes());
    let attributes = i16_at(&head, ATTRIBUTES_AT);
    let wanted = match append_time {
        Some(_) => attributes | LOG_APPEND_TIME,
        None => attributes & !LOG_APPEND_TIME,
    };
    if wanted != attributes || append_time.is_some() {
        head[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&wanted.to_be_bytes());
        if let Some(now) = append_time {
            head[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&now.to_be_bytes());
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[ATTRIBUTES_AT..]), &bytes[HEADER..]);
        head[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    }
    head
}

/// How a transaction ended, as its marker says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    Abort,
    Commit,
}

/// Builds the control batch that ends a transaction on a partition.
pub fn marker_batch(
    base_offset: i64,
    producer_id: i64,
    epoch: i16,
    marker: Marker,
    now: i64,
) -> Bytes {
    let mut record = BytesMut::new();
    record.put_u8(0); // attributes
    record.put_u8(0); // timestamp delta
    record.put_u8(0); // offset delta
    record.put_u8(8); // key length 4, zigzag
    record.put_i16(0); // key version
    record.put_i16(if marker == Marker::Commit { 1 } else { 0 });
    record.put_u8(12); // value length 6, zigzag
    record.put_i16(0); // value version
    record.put_i32(0); // coordinator epoch
    record.put_u8(0); // headers
    let mut records = BytesMut::new();
    records.put_u8((record.len() as u8) << 1);
    records.put_slice(&record);
    build(
        base_offset,
        TRANSACTIONAL | CONTROL,
        0,
        (now, now),
        (producer_id, epoch, -1),
        1,
        &records,
    )
}

/// The marker that a control batch holds; None if it is of another kind or damaged.
pub fn read_marker(batch: &[u8]) -> Option<Marker> {
    // One record: length, attributes, timestamp delta, offset delta, key length, each one byte.
    let kind = batch.get(HEADER + 7..HEADER + 9)?;
    match i16::from_be_bytes([kind[0], kind[1]]) {
        0 => Some(Marker::Abort),
        1 => Some(Marker::Commit),
        _ => None,
    }
}

/// Puts a whole batch together. `times` = first and maximum timestamp, `producer` = id, epoch and
/// base sequence.
pub fn build(
    base_offset: i64,
    attributes: i16,
    last_offset_delta: i32,
    times: (i64, i64),
    producer: (i64, i16, i32),
    record_count: i32,
    records: &[u8],
) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + records.len());
    out.put_i64(base_offset);
    out.put_i32((HEADER - LENGTH_END + records.len()) as i32);
    out.put_i32(NO_LEADER_EPOCH);
    out.put_u8(2);
    out.put_u32(0); // checksum, below
    out.put_i16(attributes);
    out.put_i32(last_offset_delta);
    out.put_i64(times.0);
    out.put_i64(times.1);
    out.put_i64(producer.0);
    out.put_i16(producer.1);
    out.put_i32(producer.2);
    out.put_i32(record_count);
    out.put_slice(records);
    let crc = crc32c::crc32c(&out[ATTRIBUTES_AT..]);
    out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

fn i16_at(b: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([b[at], b[at + 1]])
}

fn i32_at(b: &[u8], at: usize) -> i32 {
    i32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn i64_at(b: &[u8], at: usize) -> i64 {
    i64::from_be_bytes([
        b[at],
        b[at + 1],
        b[at + 2],
        b[at + 3],
        b[at + 4],
        b[at + 5],
        b[at + 6],
        b[at + 7],
    ])
}
