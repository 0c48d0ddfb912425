//! Looks inside a batch: keys, timestamps, offsets of single records. Used off the hot path only
//! (compaction, offsets for times, key check of compacted topics).
//!
//! The bytes come from clients: a valid checksum says nothing about what the records hold. Nothing
//! here trusts a length, and decompression stops at a bound.

use std::io::Read;

use bytes::{BufMut, Bytes, BytesMut};

use super::batch::{BatchHeader, HEADER};

/// Most bytes that one batch may decompress to here.
const MAX_PAYLOAD: usize = 128 << 20;

/// One record as a slice of its batch's (uncompressed) payload.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    attributes: u8,
    /// Everything after the timestamp: offset delta, key, value, headers.
    tail: &'a [u8],
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    /// True if the value is null: a tombstone.
    pub null_value: bool,
}

impl RecordView<'_> {
    /// Writes the record, its timestamp relative to another base. The batch's base offset must be
    /// the one it was read with.
    pub fn write(&self, out: &mut BytesMut, base_timestamp: i64) {
        let mut delta = BytesMut::with_capacity(10);
        put_varlong(&mut delta, self.timestamp.wrapping_sub(base_timestamp));
        put_varlong(out, (1 + delta.len() + self.tail.len()) as i64);
        out.put_u8(self.attributes);
        out.put_slice(&delta);
        out.put_slice(self.tail);
    }
}

fn put_varlong(out: &mut BytesMut, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// The records' bytes, uncompressed. None if they do not decompress, or to more than
/// [`MAX_PAYLOAD`].
pub fn payload(batch: &Bytes, header: &BatchHeader) -> Option<Bytes> {
    let packed = batch
        .get(HEADER..header.len)
        .map(|_| batch.slice(HEADER..header.len))?;
    match header.compression() {
        0 => Some(packed),
        1 => bounded(flate2::read::MultiGzDecoder::new(&packed[..])),
        2 => unsnap(&packed),
        3 => bounded(lz4::Decoder::new(&packed[..]).ok()?),
        4 => bounded(zstd::stream::read::Decoder::with_buffer(&packed[..]).ok()?),
        _ => None,
    }
}

fn bounded(reader: impl Read) -> Option<Bytes> {
    let mut out = Vec::new();
    reader
        .take(MAX_PAYLOAD as u64 + 1)
        .read_to_end(&mut out)
        .ok()?;
    (out.len() <= MAX_PAYLOAD).then(|| Bytes::from(out))
}

/// Snappy comes raw, or in the blocks of snappy-java.
fn unsnap(packed: &[u8]) -> Option<Bytes> {
    const JAVA: &[u8] = b"\x82SNAPPY\x00";
    let mut out = Vec::new();
    let mut block = |bytes: &[u8]| -> Option<()> {
        let len = snap::raw::decompress_len(bytes).ok()?;
        let start = out.len();
        if start + len > MAX_PAYLOAD {
            return None;
        }
        out.resize(start + len, 0);
        snap::raw::Decoder::new()
            .decompress(bytes, &mut out[start..])
            .ok()
            .map(|_| ())
    };
    if packed.starts_with(JAVA) {
        let mut rest = packed.get(16..)?;
        while !rest.is_empty() {
            let (len, after) = rest.split_first_chunk::<4>()?;
            let (bytes, after) = after.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            block(bytes)?;
            rest = after;
        }
    } else {
        block(packed)?;
    }
    Some(Bytes::from(out))
}

/// The records of a payload, until its end or the first that makes no sense.
pub struct Records<'a> {
    rest: &'a [u8],
    header: BatchHeader,
    left: i32,
    /// True once something did not parse.
    pub damaged: bool,
}

pub fn records<'a>(payload: &'a [u8], header: &BatchHeader) -> Records<'a> {
    Records {
        rest: payload,
        header: *header,
        left: header.record_count,
        damaged: false,
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        if self.left <= 0 || self.damaged {
            return None;
        }
        self.left -= 1;
        let record = one(&mut self.rest, &self.header);
        self.damaged = record.is_none();
        record
    }
}

fn one<'a>(rest: &mut &'a [u8], header: &BatchHeader) -> Option<RecordView<'a>> {
    let len = usize::try_from(varlong(rest)?).ok()?;
    let (body, after) = rest.split_at_checked(len)?;
    *rest = after;
    let (&attributes, mut at) = body.split_first()?;
    let timestamp_delta = varlong(&mut at)?;
    let tail = at;
    let offset_delta = varlong(&mut at)?;
    let key = field(&mut at)?;
    let value = field(&mut at)?;
    let timestamp = if header.log_append_time() {
        header.max_timestamp
    } else {
        header.first_timestamp.wrapping_add(timestamp_delta)
    };
    let offset = header.base_offset.checked_add(offset_delta)?;
    Some(RecordView {
        attributes,
        tail,
        offset,
        timestamp,
        key,
        null_value: value.is_none(),
    })
}

/// A nullable byte field; the outer None means damage.
fn field<'a>(at: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match varlong(at)? {
        -1 => Some(None),
        len => {
            let (bytes, after) = at.split_at_checked(usize::try_from(len).ok()?)?;
            *at = after;
            Some(Some(bytes))
        }
    }
}

fn varlong(at: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for i in 0..10 {
        let (&b, rest) = at.split_first()?;
        *at = rest;
        value |= u64::from(b & 0x7f) << (i * 7);
        if b < 0x80 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// True if every record of a produced batch has a key. Damaged records count as keyless.
pub fn all_keyed(batch: &[u8], header: &BatchHeader) -> bool {
    let bytes = Bytes::copy_from_slice(batch);
    let Some(payload) = payload(&bytes, header) else {
        return false;
    };
    let mut all = records(&payload, header);
    let mut count = 0;
    for record in all.by_ref() {
        if record.key.is_none() {
            return false;
        }
        count += 1;
    }
    !all.damaged && count == header.record_count
}

/// Timestamp and offset of the first record at or after a time and an offset.
pub fn first_at_or_after(batch: &Bytes, timestamp: i64, offset: i64) -> Option<(i64, i64)> {
    let header = BatchHeader::read(batch)?;
    if header.control() {
        return (header.max_timestamp >= timestamp)
            .then_some((header.max_timestamp, header.base_offset));
    }
    let payload = payload(batch, &header)?;
    let found = records(&payload, &header).find(|r| r.timestamp >= timestamp && r.offset >= offset);
    found.map(|r| (r.timestamp, r.offset))
}
