//! A table by `source:symbol` for the hot path: the key is packed and hashed once per trade, a
//! look-up compares four words, slots have stable numbers, and nothing ever iterates in hash order.

use std::hash::Hasher;

use rustc_hash::FxHasher;

/// Bytes of a key that a [`Probe`] can hold.
const INLINE: usize = 32;

/// A record key made ready for look-ups in any number of tables.
#[derive(Clone, Copy)]
pub struct Probe<'a> {
    key: &'a [u8],
    words: [u64; 4],
    hash: u64,
}

impl<'a> Probe<'a> {
    /// Packs a key: whole words of eight bytes and, in the last word used, its last eight bytes
    /// (they may overlap), so that keys of one length have the same words only if they are equal.
    #[inline]
    pub fn new(key: &'a [u8]) -> Self {
        let mut words = [0u64; 4];
        let (parts, rest) = key.as_chunks::<8>();
        for (word, part) in words.iter_mut().zip(parts) {
            *word = u64::from_le_bytes(*part);
        }
        if let Some(last) = words.get_mut(parts.len()) {
            *last = match key.last_chunk::<8>() {
                Some(tail) => u64::from_le_bytes(*tail),
                None => rest.iter().fold(0, |word, b| word << 8 | u64::from(*b)),
            };
        }
        let mut hasher = FxHasher::default();
        words.into_iter().for_each(|word| hasher.write_u64(word));
        hasher.write_usize(key.len());
        if key.len() > INLINE {
            hasher.write(&key[INLINE..]);
        }
        Self {
            key,
            words,
            hash: hasher.finish(),
        }
    }

    /// The key itself.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }
}

/// A place of the index: what is compared, and the slot + 1 it leads to; 0 is a free place.
#[derive(Clone, Copy, Default)]
struct Entry {
    words: [u64; 4],
    len: u32,
    slot: u32,
}

struct Slot<T> {
    key: Box<[u8]>,
    value: T,
}

/// Values by key, addressed by slot number once found. An index with linear probing, at most half
/// full, over slots.
pub struct Table<T> {
    index: Vec<Entry>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            index: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Table<T> {
    /// Slot of a key.
    #[inline]
    pub fn find(&self, probe: &Probe<'_>) -> Option<u32> {
        // The length of the index is a power of two, or 0.
        let mask = self.index.len().wrapping_sub(1);
        let mut at = probe.hash as usize & mask;
        while let Some(entry) = self.index.get(at) {
            if entry.slot == 0 {
                return None;
            }
            let [a, b, c, d] = entry.words;
            let [e, f, g, h] = probe.words;
            let differ = (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h);
            if differ == 0
                && entry.len as usize == probe.key.len()
                && (probe.key.len() <= INLINE || self.key(entry.slot - 1) == probe.key)
            {
                return Some(entry.slot - 1);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Adds a key that is not there; returns its slot.
    pub fn insert(&mut self, probe: &Probe<'_>, value: T) -> u32 {
        let new = Some(Slot {
            key: probe.key.into(),
            value,
        });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = new;
                slot
            }
            None => {
                self.slots.push(new);
                // Memory ends long before 2^32 symbols.
                (self.slots.len() - 1) as u32
            }
        };
        if self.len() * 2 > self.index.len() {
            self.rebuild();
        } else {
            self.link(slot);
        }
        slot
    }

    /// Enters a slot into the index, which has room.
    fn link(&mut self, slot: u32) {
        let mask = self.index.len() - 1;
        let probe = Probe::new(self.key(slot));
        let entry = Entry {
            words: probe.words,
            // Kafka keys have 31-bit lengths.
            len: probe.key.len() as u32,
            slot: slot + 1,
        };
        let mut at = probe.hash as usize & mask;
        while self.index[at].slot != 0 {
            at = (at + 1) & mask;
        }
        self.index[at] = entry;
    }

    fn rebuild(&mut self) {
        let size = (self.len() * 4).next_power_of_two().max(64);
        self.index.clear();
        self.index.resize(size, Entry::default());
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].is_some() {
                self.link(slot);
            }
        }
    }

    /// Removes slots; costs as much as the table is large.
    pub fn remove(&mut self, slots: &[u32]) {
        for &slot in slots {
            if self.slots[slot as usize].take().is_some() {
                self.free.push(slot);
            }
        }
        self.rebuild();
    }

    /// The value in a slot that `find` or `insert` gave and nobody removed.
    #[inline]
    pub fn at(&mut self, at: u32) -> &mut T {
        self.entry(at).1
    }

    /// Key and value of such a slot.
    #[inline]
    #[expect(
        clippy::expect_used,
        reason = "slot numbers are only given out for filled slots"
    )]
    pub fn entry(&mut self, at: u32) -> (&[u8], &mut T) {
        let slot = self.slots[at as usize]
            .as_mut()
            .expect("slot numbers are only given out for filled slots");
        (&slot.key, &mut slot.value)
    }

    /// Whether a slot is filled.
    pub fn holds(&self, at: u32) -> bool {
        matches!(self.slots.get(at as usize), Some(Some(_)))
    }

    /// Key of such a slot; empty for a free one.
    pub fn key(&self, at: u32) -> &[u8] {
        match &self.slots[at as usize] {
            Some(slot) => &slot.key,
            None => &[],
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn equals_a_map(steps in prop::collection::vec(
            (0usize..6, 0u8..20, prop::bool::weighted(0.3)), 0..300,
        )) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            for (long, n, remove) in steps {
                // Short, around a word, around what fits, and far beyond.
                let mut key = vec![0; [0, 6, 8, 31, 32, 100][long]];
                key.push(n);
                let probe = Probe::new(&key);
                match (table.find(&probe), remove) {
                    (Some(at), true) => {
                        table.remove(&[at]);
                        model.remove(&key);
                    }
                    (Some(at), false) => {
                        *table.at(at) += 1;
                        *model.get_mut(&key).unwrap() += 1;
                    }
                    (None, _) => {
                        table.insert(&probe, 0u32);
                        prop_assert!(model.insert(key, 0u32).is_none());
                    }
                }
                prop_assert_eq!(table.len(), model.len());
            }
            let slots = table.slots.iter().flatten();
            let mut listed: Vec<(Vec<u8>, u32)> =
                slots.map(|slot| (slot.key.to_vec(), slot.value)).collect();
            listed.sort();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn words_and_length_tell_short_keys_apart(
            a in prop::collection::vec(0u8..3, 0..=INLINE),
            b in prop::collection::vec(0u8..3, 0..=INLINE),
        ) {
            let same = Probe::new(&a).words == Probe::new(&b).words && a.len() == b.len();
            prop_assert_eq!(same, a == b);
        }
    }

    #[test]
    fn keys_that_differ_in_length_alone_differ() {
        let mut table = Table::default();
        for len in [0, 1, 2, 30, 31, 32, 33, 64] {
            let key = vec![0u8; len];
            assert_eq!(table.find(&Probe::new(&key)), None);
            table.insert(&Probe::new(&key), ());
        }
        assert_eq!(table.len(), 8);
    }
}
