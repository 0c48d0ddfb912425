//! Input records, copied once from the client into an arena that is reused.
//!
//! A batch owns its bytes, so no lifetime of the client library reaches a
//! processor, and a record costs two `memcpy`s and no allocation.

/// An input of the topology: its place in the order of `TopologyBuilder::source`
/// calls. 0 is the subscribed (lead) topic, the others are attached to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicIdx(pub u16);

impl TopicIdx {
    /// As an index into per-input tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// One input record, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Which input it came from.
    pub topic: TopicIdx,
    /// Kafka partition, equal to the task's number.
    pub partition: i32,
    /// Kafka offset.
    pub offset: i64,
    /// Kafka record timestamp, milliseconds of UTC; −1 if the record has none.
    pub timestamp_ms: i64,
    /// Record key; `None` is Kafka's null.
    pub key: Option<&'a [u8]>,
    /// Record value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// key ‖ value, contiguous: what the ledger's hash is taken over.
    pub(crate) bytes: &'a [u8],
}

impl Record<'_> {
    /// xxh3_128 over key ‖ value, as the ledger sums it.
    pub fn hash(&self) -> u128 {
        xxhash_rust::xxh3::xxh3_128(self.bytes)
    }
}

#[derive(Clone, Copy, Debug)]
struct Meta {
    offset: i64,
    timestamp_ms: i64,
    start: u32,
    /// −1 for null.
    key_len: i32,
    /// −1 for null.
    value_len: i32,
}

/// Consecutive records of one (topic, partition).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which input.
    pub topic: TopicIdx,
    /// Kafka partition.
    pub partition: i32,
    /// First record of the run, an index into the batch.
    pub from: usize,
    /// One past the last record of the run.
    pub to: usize,
}

/// Records as polled, in order of arrival, in one reused arena.
#[derive(Debug, Default)]
pub struct RecordBatch {
    arena: Vec<u8>,
    metas: Vec<Meta>,
    runs: Vec<Run>,
}

/// Bytes a batch may hold: offsets into the arena are 32 bits wide.
const MAX_ARENA: usize = u32::MAX as usize;

impl RecordBatch {
    /// An empty batch; its memory grows with use and is kept by [`clear`](Self::clear).
    pub fn new() -> Self {
        Self::default()
    }

    /// Forget the records, keep the memory.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.metas.clear();
        self.runs.clear();
    }

    /// Copy one record in. Returns `false`, leaving the batch as it was, if the
    /// arena cannot address it (4 GiB); the caller bounds batches far below.
    pub fn push(
        &mut self,
        topic: TopicIdx,
        partition: i32,
        offset: i64,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> bool {
        let k = key.unwrap_or_default();
        let v = value.unwrap_or_default();
        let start = self.arena.len();
        if start + k.len() + v.len() > MAX_ARENA {
            return false;
        }
        self.arena.extend_from_slice(k);
        self.arena.extend_from_slice(v);
        let at = self.metas.len();
        // The casts are bounded by MAX_ARENA above and by Kafka's i32 lengths.
        self.metas.push(Meta {
            offset,
            timestamp_ms,
            start: start as u32,
            key_len: key.map_or(-1, |k| k.len() as i32),
            value_len: value.map_or(-1, |v| v.len() as i32),
        });
        match self.runs.last_mut() {
            Some(run) if run.topic == topic && run.partition == partition => run.to = at + 1,
            _ => self.runs.push(Run {
                topic,
                partition,
                from: at,
                to: at + 1,
            }),
        }
        true
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.metas.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// Bytes of keys and values held.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    /// Runs of one (topic, partition), in order of arrival.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The records of `run`, in offset order.
    pub fn records(&self, run: Run) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.metas[run.from..run.to]
            .iter()
            .map(move |m| self.view(run.topic, run.partition, m))
    }

    /// The offset of the record at `index`, which a run of this batch names.
    pub fn offset(&self, index: usize) -> i64 {
        self.metas[index].offset
    }

    fn view(&self, topic: TopicIdx, partition: i32, m: &Meta) -> Record<'_> {
        let start = m.start as usize;
        let split = start + m.key_len.max(0) as usize;
        let end = split + m.value_len.max(0) as usize;
        Record {
            topic,
            partition,
            offset: m.offset,
            timestamp_ms: m.timestamp_ms,
            key: (m.key_len >= 0).then(|| &self.arena[start..split]),
            value: (m.value_len >= 0).then(|| &self.arena[split..end]),
            bytes: &self.arena[start..end],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_nulls() {
        let mut b = RecordBatch::new();
        let t = TopicIdx(0);
        assert!(b.push(t, 1, 5, 9, Some(b"k"), Some(b"v")));
        assert!(b.push(t, 1, 6, 9, None, Some(b"")));
        assert!(b.push(t, 2, 7, 9, Some(b""), None));
        assert_eq!(b.runs().len(), 2);
        let first: Vec<_> = b.records(b.runs()[0]).collect();
        assert_eq!(first[0].key, Some(&b"k"[..]));
        assert_eq!(first[0].bytes, b"kv");
        assert_eq!(first[1].key, None);
        assert_eq!(first[1].value, Some(&b""[..]));
        let second: Vec<_> = b.records(b.runs()[1]).collect();
        assert_eq!((second[0].key, second[0].value), (Some(&b""[..]), None));
        b.clear();
        assert!(b.is_empty() && b.runs().is_empty());
    }
}
