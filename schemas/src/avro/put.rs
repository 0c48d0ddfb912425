//! Appends Avro's primitives to a buffer.

use crate::decimal::to_be_bytes;

#[inline]
pub(crate) fn long(value: i64, out: &mut Vec<u8>) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    let mut bytes = [0u8; 10];
    let mut length = 0;
    while rest >= 0x80 {
        bytes[length] = rest as u8 | 0x80;
        rest >>= 7;
        length += 1;
    }
    bytes[length] = rest as u8;
    // A copy of constant size and a cut are cheaper than a copy of variable size.
    let end = out.len() + length + 1;
    out.extend_from_slice(&bytes);
    out.truncate(end);
}

#[inline]
pub(crate) fn bytes(value: &[u8], out: &mut Vec<u8>) {
    // What is in memory is shorter than i64::MAX.
    long(value.len() as i64, out);
    out.extend_from_slice(value);
}

/// The shortest big-endian two's complement.
#[inline]
pub(crate) fn decimal(unscaled: i128, out: &mut Vec<u8>) {
    let (bytes, start) = to_be_bytes(unscaled);
    let length = bytes.len() - start;
    out.push((length as u8) << 1);
    let end = out.len() + length;
    out.extend_from_slice(&(unscaled << (8 * start)).to_be_bytes());
    out.truncate(end);
}
