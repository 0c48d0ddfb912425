//! Records a task has produced since its last commit, in one reused arena.
//!
//! Nothing here is sent before the commit: a transaction is one wave.

use crate::builder::SinkId;

#[derive(Clone, Copy, Debug)]
struct Meta {
    sink: SinkId,
    start: usize,
    key_end: usize,
    value_end: usize,
    null_key: bool,
    null_value: bool,
    headers: (u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct HeaderMeta {
    start: usize,
    name_end: usize,
    value_end: usize,
}

/// Output records in the order they were produced.
#[derive(Debug, Default)]
pub struct Outputs {
    arena: Vec<u8>,
    metas: Vec<Meta>,
    headers: Vec<HeaderMeta>,
}

/// One output record, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Where it goes.
    pub sink: SinkId,
    /// Record key; null only where a dead-lettered record had none.
    pub key: Option<&'a [u8]>,
    /// Record value; null likewise.
    pub value: Option<&'a [u8]>,
    owner: &'a Outputs,
    headers: (u32, u32),
}

impl<'a> Output<'a> {
    /// Record headers: name and value.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let owner = self.owner;
        owner.headers[self.headers.0 as usize..self.headers.1 as usize]
            .iter()
            .map(move |h| {
                // Written from a &str in `push`, so it is UTF-8.
                let name = std::str::from_utf8(&owner.arena[h.start..h.name_end]).unwrap_or("?");
                (name, &owner.arena[h.name_end..h.value_end])
            })
    }
}

impl Outputs {
    /// Append a record; returns the hash of key ‖ value when `hashed`.
    pub(crate) fn push(
        &mut self,
        sink: SinkId,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
        hashed: bool,
    ) -> u128 {
        let start = self.arena.len();
        self.arena.extend_from_slice(key.unwrap_or_default());
        let key_end = self.arena.len();
        self.arena.extend_from_slice(value.unwrap_or_default());
        let value_end = self.arena.len();
        let hash = if hashed {
            xxhash_rust::xxh3::xxh3_128(&self.arena[start..value_end])
        } else {
            0
        };
        let first = self.headers.len() as u32;
        for (name, value) in headers {
            let start = self.arena.len();
            self.arena.extend_from_slice(name.as_bytes());
            let name_end = self.arena.len();
            self.arena.extend_from_slice(value);
            self.headers.push(HeaderMeta {
                start,
                name_end,
                value_end: self.arena.len(),
            });
        }
        self.metas.push(Meta {
            sink,
            start,
            key_end,
            value_end,
            null_key: key.is_none(),
            null_value: value.is_none(),
            headers: (first, self.headers.len() as u32),
        });
        hash
    }

    /// The records, in production order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Output<'_>> {
        self.metas.iter().map(move |m| Output {
            sink: m.sink,
            key: (!m.null_key).then(|| &self.arena[m.start..m.key_end]),
            value: (!m.null_value).then(|| &self.arena[m.key_end..m.value_end]),
            owner: self,
            headers: m.headers,
        })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.metas.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.arena.len()
    }

    pub(crate) fn clear(&mut self) {
        self.arena.clear();
        self.metas.clear();
        self.headers.clear();
    }
}
