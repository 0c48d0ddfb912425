//! Which trade ids were seen: an exact set, cheap because an exchange's ids are a sequence.
//!
//! Ids are kept in chunks of 65,536. A chunk is a list of runs, a few bytes where ids came without
//! gaps, and a bitmap of 8 KiB where they are ragged. Nothing is ever forgotten or guessed: the
//! gaps between runs are the feed's missing trades.

use std::collections::BTreeMap;

use thiserror::Error;

/// Ids in a chunk.
pub const CHUNK: i64 = 1 << 16;

/// Runs beyond which a chunk in memory becomes a bitmap of the same size.
const MAX_RUNS: usize = 2048;

/// Size of a bitmap, in bytes.
const BITMAP: usize = 8192;

/// First byte of an encoded chunk.
const VERSION: u8 = 1;
const RUNS: u8 = 0;
const BITS: u8 = 1;

/// The chunk an id (≥ 0) belongs to and its place there.
#[inline]
pub fn place(id: i64) -> (i64, u16) {
    // The mask leaves 16 bits.
    (id >> 16, (id & (CHUNK - 1)) as u16)
}

/// Stored bytes are not a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    #[error("dedup chunk of version {0}, this program reads version {VERSION}: upgrade it")]
    Version(u8),
    #[error("dedup chunk is damaged: rebuild the store from its changelog")]
    Damaged,
}

/// A run of ids, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u16,
    last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Repr {
    /// Ascending, with at least one absent id between two runs.
    Runs(Vec<Run>),
    Bits(Box<[u64; BITMAP / 8]>),
}

/// The seen ids among 65,536 consecutive ones.
#[derive(Clone, Debug)]
pub struct Chunk {
    repr: Repr,
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Chunk {
    fn eq(&self, other: &Self) -> bool {
        self.runs().eq(other.runs())
    }
}

impl Eq for Chunk {}

impl Chunk {
    /// Empty.
    pub fn new() -> Self {
        Self {
            repr: Repr::Runs(Vec::new()),
        }
    }

    /// Whether the id at this place was seen.
    #[inline]
    pub fn contains(&self, at: u16) -> bool {
        match &self.repr {
            Repr::Runs(runs) => match runs.last() {
                None => false,
                Some(run) if at > run.last => false,
                Some(run) if at >= run.first => true,
                Some(_) => {
                    let n = runs.partition_point(|r| r.last < at);
                    runs[n].first <= at
                }
            },
            Repr::Bits(bits) => bits[usize::from(at) / 64] >> (at % 64) & 1 == 1,
        }
    }

    /// Adds the id at this place; false if it was there.
    #[inline]
    pub fn insert(&mut self, at: u16) -> bool {
        match &mut self.repr {
            Repr::Runs(runs) => {
                // The common trade: the one after the last.
                if let Some(run) = runs.last_mut()
                    && run.last.checked_add(1) == Some(at)
                {
                    run.last = at;
                    return true;
                }
                let new = insert_run(runs, at);
                if runs.len() > MAX_RUNS {
                    self.repr = Repr::Bits(bitmap(runs));
                }
                new
            }
            Repr::Bits(bits) => {
                let word = &mut bits[usize::from(at) / 64];
                let bit = 1 << (at % 64);
                let new = *word & bit == 0;
                *word |= bit;
                new
            }
        }
    }

    /// Number of ids seen.
    pub fn len(&self) -> usize {
        self.runs()
            .map(|(first, last)| usize::from(last - first) + 1)
            .sum()
    }

    /// Whether none was seen.
    pub fn is_empty(&self) -> bool {
        self.runs().next().is_none()
    }

    /// Maximal runs of seen ids as (first, last), ascending; between them lie the gaps.
    pub fn runs(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let (runs, bits) = match &self.repr {
            Repr::Runs(runs) => (Some(runs), None),
            Repr::Bits(bits) => (None, Some(bits)),
        };
        let listed = runs.into_iter().flatten().map(|r| (r.first, r.last));
        listed.chain(bits.into_iter().flat_map(|b| BitRuns { bits: b, at: 0 }))
    }

    /// Appends the stored form: a function of the set alone, at most 8,194 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[VERSION, RUNS]);
        let mut next = 0u32;
        for (first, last) in self.runs() {
            varint(u32::from(first) - next, out);
            varint(u32::from(last - first), out);
            next = u32::from(last) + 1;
            if out.len() - start > BITMAP + 2 {
                out.truncate(start);
                out.extend_from_slice(&[VERSION, BITS]);
                match &self.repr {
                    Repr::Bits(bits) => {
                        bits.iter()
                            .for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
                    }
                    Repr::Runs(runs) => {
                        let bits = bitmap(runs);
                        bits.iter()
                            .for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
                    }
                }
                return;
            }
        }
    }

    /// Reads what [`Chunk::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ChunkError> {
        let (kind, mut body) = match bytes {
            [VERSION, kind, body @ ..] => (*kind, body),
            [version, _, ..] => return Err(ChunkError::Version(*version)),
            _ => return Err(ChunkError::Damaged),
        };
        if kind == BITS {
            let body: &[u8; BITMAP] = body.try_into().map_err(|_| ChunkError::Damaged)?;
            let mut bits = Box::new([0u64; BITMAP / 8]);
            for (word, part) in bits.iter_mut().zip(body.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*part);
            }
            return Ok(Self {
                repr: Repr::Bits(bits),
            });
        }
        if kind != RUNS {
            return Err(ChunkError::Damaged);
        }
        let mut runs = Vec::new();
        let mut next = 0u32;
        while !body.is_empty() {
            let first = next + take_varint(&mut body).ok_or(ChunkError::Damaged)?;
            let last = first + take_varint(&mut body).ok_or(ChunkError::Damaged)?;
            if last >= CHUNK as u32 || (next > 0 && first == next) {
                return Err(ChunkError::Damaged);
            }
            // Both are below 65,536, checked above.
            runs.push(Run {
                first: first as u16,
                last: last as u16,
            });
            next = last + 1;
        }
        let repr = if runs.len() > MAX_RUNS {
            Repr::Bits(bitmap(&runs))
        } else {
            Repr::Runs(runs)
        };
        Ok(Self { repr })
    }
}

#[cold]
fn insert_run(runs: &mut Vec<Run>, at: u16) -> bool {
    // The first run that ends at or after the id.
    let n = runs.partition_point(|r| r.last < at);
    if runs.get(n).is_some_and(|r| r.first <= at) {
        return false;
    }
    let joins_left = n > 0 && runs[n - 1].last.checked_add(1) == Some(at);
    let joins_right = runs
        .get(n)
        .is_some_and(|r| at.checked_add(1) == Some(r.first));
    match (joins_left, joins_right) {
        (true, true) => {
            runs[n - 1].last = runs[n].last;
            runs.remove(n);
        }
        (true, false) => runs[n - 1].last = at,
        (false, true) => runs[n].first = at,
        (false, false) => runs.insert(
            n,
            Run {
                first: at,
                last: at,
            },
        ),
    }
    true
}

fn bitmap(runs: &[Run]) -> Box<[u64; BITMAP / 8]> {
    let mut bits = Box::new([0u64; BITMAP / 8]);
    for run in runs {
        for at in run.first..=run.last {
            bits[usize::from(at) / 64] |= 1 << (at % 64);
        }
    }
    bits
}

/// Walks the runs of a bitmap.
struct BitRuns<'a> {
    bits: &'a [u64; BITMAP / 8],
    /// Next place to look at, up to 65,536.
    at: usize,
}

impl BitRuns<'_> {
    /// First place from `at` on whose bit is `set`, or 65,536.
    fn next_place(&self, at: usize, set: bool) -> usize {
        let mut at = at;
        while at < BITMAP * 8 {
            let word = if set {
                self.bits[at / 64]
            } else {
                !self.bits[at / 64]
            };
            let rest = word >> (at % 64);
            if rest != 0 {
                return at + rest.trailing_zeros() as usize;
            }
            at = (at / 64 + 1) * 64;
        }
        BITMAP * 8
    }
}

impl Iterator for BitRuns<'_> {
    type Item = (u16, u16);

    fn next(&mut self) -> Option<(u16, u16)> {
        let first = self.next_place(self.at, true);
        if first >= BITMAP * 8 {
            return None;
        }
        let end = self.next_place(first, false);
        self.at = end;
        // first < end ≤ 65,536.
        Some((first as u16, (end - 1) as u16))
    }
}

fn varint(mut value: u32, out: &mut Vec<u8>) {
    while value >= 0x80 {
        // The mask leaves seven bits.
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// At most three bytes, so that sums of two stay far from overflow.
fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in [0, 7, 14] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// All chunks of one (source, symbol) in memory: for reconciliation and tests. The stream task
/// keeps its chunks in a store and only the current ones decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenIds {
    chunks: BTreeMap<i64, Chunk>,
}

impl SeenIds {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an id ≥ 0; false if it was seen before.
    pub fn insert(&mut self, id: i64) -> bool {
        let (chunk, at) = place(id);
        self.chunks.entry(chunk).or_default().insert(at)
    }

    /// None was seen.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether an id was seen.
    pub fn contains(&self, id: i64) -> bool {
        let (chunk, at) = place(id);
        self.chunks.get(&chunk).is_some_and(|c| c.contains(at))
    }

    /// Maximal runs of seen ids, ascending, across chunks.
    pub fn runs(&self) -> Vec<(i64, i64)> {
        let mut runs: Vec<(i64, i64)> = Vec::new();
        for (chunk, ids) in &self.chunks {
            for (first, last) in ids.runs() {
                let (first, last) = (
                    chunk * CHUNK + i64::from(first),
                    chunk * CHUNK + i64::from(last),
                );
                match runs.last_mut() {
                    Some(run) if run.1 + 1 == first => run.1 = last,
                    _ => runs.push((first, last)),
                }
            }
        }
        runs
    }

    /// Missing ids between the first and the last seen one, as ranges with both ends included.
    pub fn gaps(&self) -> Vec<(i64, i64)> {
        let runs = self.runs();
        runs.windows(2)
            .map(|pair| (pair[0].1 + 1, pair[1].0 - 1))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn bytes(chunk: &Chunk) -> Vec<u8> {
        let mut out = Vec::new();
        chunk.encode(&mut out);
        out
    }

    fn chunk(ids: impl IntoIterator<Item = u16>) -> Chunk {
        let mut c = Chunk::new();
        for id in ids {
            c.insert(id);
        }
        c
    }

    /// Every version of the encoding that was ever written stays readable.
    #[test]
    fn fixtures() {
        let fixtures: &[(&[u8], Chunk)] = &[
            (&[1, 0], Chunk::new()),
            (&[1, 0, 0, 0], chunk([0])),
            (&[1, 0, 0, 0xff, 0xff, 3], chunk(0..=u16::MAX)),
            (&[1, 0, 5, 2, 1, 0], chunk([5, 6, 7, 9])),
        ];
        for (stored, set) in fixtures {
            assert_eq!(&bytes(set), stored);
            assert_eq!(&Chunk::decode(stored).unwrap(), set);
        }
        let ragged = chunk((0..=u16::MAX).step_by(2));
        let stored = bytes(&ragged);
        assert_eq!(
            (stored.len(), &stored[..4]),
            (BITMAP + 2, &[1, 1, 0x55, 0x55][..])
        );
        assert_eq!(Chunk::decode(&stored).unwrap(), ragged);
    }

    #[test]
    fn a_dense_feed_costs_a_few_bytes() {
        let mut c = chunk(1000..60_000);
        assert_eq!(bytes(&c).len(), 7);
        c.insert(62_000);
        assert!(bytes(&c).len() <= 10);
        assert_eq!(c.len(), 59_001);
    }

    #[test]
    fn damage_is_found() {
        assert_eq!(Chunk::decode(&[2, 0]), Err(ChunkError::Version(2)));
        for bad in [
            &[][..],
            &[1],
            &[1, 2],
            &[1, 1, 0],
            &[1, 0, 1],
            &[1, 0, 0xff, 0xff, 3, 1],
            &[1, 0, 0xff, 0xff, 0xff, 3],
            &[1, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Chunk::decode(bad), Err(ChunkError::Damaged), "{bad:?}");
        }
    }

    #[test]
    fn gaps_are_the_missing_trades() {
        let mut seen = SeenIds::new();
        for id in [65_530, 65_535, 65_536, 65_537, 3, 65_540] {
            assert!(seen.insert(id));
        }
        assert!(!seen.insert(65_536));
        let last = (65_538, 65_539);
        assert_eq!(seen.gaps(), [(4, 65_529), (65_531, 65_534), last]);
    }

    fn ids() -> impl Strategy<Value = Vec<u16>> {
        let dense = (0u16..100, 0u16..400).prop_map(|(a, n)| (a..a + n).collect::<Vec<u16>>());
        let ragged = prop::collection::vec(any::<u16>(), 0..6000);
        let near = prop::collection::vec(0u16..200, 0..300);
        let mix =
            (ragged.clone(), near.clone()).prop_map(|(a, b)| a.into_iter().chain(b).collect());
        prop_oneof![dense, ragged, near, mix]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_a_set(ids in ids(), probe in prop::collection::vec(any::<u16>(), 50)) {
            let mut model = BTreeSet::new();
            let mut c = Chunk::new();
            for id in &ids {
                prop_assert_eq!(c.insert(*id), model.insert(*id));
            }
            prop_assert_eq!(c.len(), model.len());
            for id in probe.iter().chain(&ids) {
                prop_assert_eq!(c.contains(*id), model.contains(id));
            }
            let listed: Vec<u16> = c.runs().flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(&listed, &model.iter().copied().collect::<Vec<_>>());

            let stored = bytes(&c);
            prop_assert!(stored.len() <= BITMAP + 2);
            let mut read = Chunk::decode(&stored).unwrap();
            prop_assert_eq!(&read, &c);
            // The stored form is a function of the set, not of how it came about.
            prop_assert_eq!(&bytes(&read), &stored);
            let sorted = chunk(model.iter().copied());
            prop_assert_eq!(&bytes(&sorted), &stored);
            prop_assert!(ids.iter().all(|id| !read.insert(*id)));
        }

        #[test]
        fn any_bytes_decode_or_fail(stored in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Chunk::decode(&stored);
        }

        #[test]
        fn seen_ids_equal_a_set(ids in prop::collection::vec(0i64..200_000, 0..500)) {
            let (mut model, mut seen) = (BTreeSet::new(), SeenIds::new());
            for id in &ids {
                prop_assert_eq!(seen.insert(*id), model.insert(*id));
            }
            let listed: Vec<i64> = seen.runs().into_iter().flat_map(|(a, b)| a..=b).collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }
}
