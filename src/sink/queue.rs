//! A first-in first-out queue of Kafka records in one arena, for records that wait for their ledger entry.
//!
//! Must never allocate per record: bytes are copied once, the arena is reused when the queue runs empty and
//! compacted when its front half is spent. Data flows from the consumer's batch in, to the row builders out.

use std::collections::VecDeque;

/// A record as it stands in the queue; borrowed from the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queued<'a> {
    pub offset: i64,
    /// Kafka timestamp, milliseconds.
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy)]
struct Meta {
    offset: i64,
    timestamp_ms: i64,
    at: usize,
    key: u32,
    value: u32,
}

/// Length that stands for "no bytes", as different from "zero bytes".
const NONE: u32 = u32::MAX;
/// Spent bytes before the arena is compacted.
const COMPACT_AT: usize = 1 << 20;

/// See the module's text.
#[derive(Debug, Default)]
pub struct RecordQueue {
    arena: Vec<u8>,
    metas: VecDeque<Meta>,
    spent: usize,
}

fn put(arena: &mut Vec<u8>, bytes: Option<&[u8]>) -> u32 {
    match bytes {
        None => NONE,
        Some(b) => {
            arena.extend_from_slice(b);
            b.len() as u32
        }
    }
}

impl RecordQueue {
    /// Appends a record; `offset` must be above all that stand in the queue.
    pub fn push(&mut self, record: Queued<'_>) {
        debug_assert!(self.metas.back().is_none_or(|m| m.offset < record.offset));
        let at = self.arena.len();
        let key = put(&mut self.arena, record.key);
        let value = put(&mut self.arena, record.value);
        self.metas.push_back(Meta {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            at,
            key,
            value,
        });
    }

    fn view(&self, m: &Meta) -> Queued<'_> {
        let key_len = if m.key == NONE { 0 } else { m.key as usize };
        let value_at = m.at + key_len;
        Queued {
            offset: m.offset,
            timestamp_ms: m.timestamp_ms,
            key: (m.key != NONE).then(|| &self.arena[m.at..value_at]),
            value: (m.value != NONE).then(|| &self.arena[value_at..value_at + m.value as usize]),
        }
    }

    /// The record at the front.
    pub fn front(&self) -> Option<Queued<'_>> {
        self.metas.front().map(|m| self.view(m))
    }

    /// The first `n` records, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Queued<'_>> {
        self.metas.iter().map(|m| self.view(m))
    }

    /// Removes the first `n` records.
    pub fn drop_front(&mut self, n: usize) {
        for _ in 0..n {
            let Some(m) = self.metas.pop_front() else {
                break;
            };
            let len = |l: u32| if l == NONE { 0 } else { l as usize };
            self.spent = m.at + len(m.key) + len(m.value);
        }
        if self.metas.is_empty() {
            self.arena.clear();
            self.spent = 0;
        } else if self.spent > COMPACT_AT && self.spent * 2 > self.arena.len() {
            self.arena.drain(..self.spent);
            for m in &mut self.metas {
                m.at -= self.spent;
            }
            self.spent = 0;
        }
    }

    pub fn len(&self) -> usize {
        self.metas.len()
    }

    pub fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// Bytes held, spent ones included.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.metas.len() * std::mem::size_of::<Meta>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rec<'a>(offset: i64, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Queued<'a> {
        Queued {
            offset,
            timestamp_ms: offset * 10,
            key,
            value,
        }
    }

    #[test]
    fn keeps_order_and_tells_empty_from_absent() {
        let mut q = RecordQueue::default();
        q.push(rec(3, Some(b"k"), Some(b"")));
        q.push(rec(5, None, Some(b"vv")));
        q.push(rec(9, Some(b""), None));
        let all: Vec<_> = q.iter().collect();
        assert_eq!(all[0], rec(3, Some(b"k"), Some(b"")));
        assert_eq!(all[1], rec(5, None, Some(b"vv")));
        assert_eq!(all[2], rec(9, Some(b""), None));
        q.drop_front(1);
        assert_eq!(q.front().unwrap().offset, 5);
        assert_eq!(q.len(), 2);
    }

    #[test]
    fn long_use_stays_bounded_and_right() {
        let mut q = RecordQueue::default();
        let value = vec![7u8; 1000];
        let mut next_out = 0i64;
        for i in 0..50_000i64 {
            let mut v = value.clone();
            v[..8].copy_from_slice(&i.to_be_bytes());
            q.push(rec(i, None, Some(&v)));
            if i % 100 == 99 {
                let n = q.len() - 50;
                for r in q.iter().take(n) {
                    assert_eq!(r.value.unwrap()[..8], next_out.to_be_bytes()[..]);
                    next_out += 1;
                }
                q.drop_front(n);
            }
        }
        assert!(q.bytes() < 4 << 20, "{}", q.bytes());
    }
}
