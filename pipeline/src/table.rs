//! A table by `source:symbol` for the hot path: the hash comes with the key, slots have stable
//! numbers, and nothing ever iterates in hash order.

use std::hash::Hasher;

use hashbrown::HashTable;
use rustc_hash::FxHasher;

/// Hash of a record key, for every [`Table`] on the way of a trade.
#[inline]
pub fn hash_of(key: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(key);
    hasher.finish()
}

struct Slot<T> {
    hash: u64,
    key: Box<[u8]>,
    value: T,
}

/// Values by key, addressed by slot number once found.
pub struct Table<T> {
    index: HashTable<u32>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<u32>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            index: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Table<T> {
    /// Slot of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.index
            .find(hash, |at| match &self.slots[*at as usize] {
                Some(slot) => slot.hash == hash && *slot.key == *key,
                None => false,
            })
            .copied()
    }

    /// Adds a key that is not there; returns its slot.
    pub fn insert(&mut self, hash: u64, key: &[u8], value: T) -> u32 {
        let slot = Some(Slot {
            hash,
            key: key.into(),
            value,
        });
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                // Memory ends long before 2^32 symbols.
                (self.slots.len() - 1) as u32
            }
        };
        let slots = &self.slots;
        self.index.insert_unique(hash, at, |at| {
            slots[*at as usize].as_ref().map_or(0, |slot| slot.hash)
        });
        at
    }

    /// Removes a slot.
    pub fn remove(&mut self, at: u32) {
        if let Some(slot) = self.slots[at as usize].take() {
            if let Ok(entry) = self.index.find_entry(slot.hash, |other| *other == at) {
                entry.remove();
            }
            self.free.push(at);
        }
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

    /// Key of such a slot; empty for a free one.
    pub fn key(&self, at: u32) -> &[u8] {
        match &self.slots[at as usize] {
            Some(slot) => &slot.key,
            None => &[],
        }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.index.len()
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
        fn equals_a_map(steps in prop::collection::vec((0u8..20, any::<bool>()), 0..200)) {
            let mut table = Table::default();
            let mut model = BTreeMap::new();
            for (n, remove) in steps {
                let key = format!("s:{n}").into_bytes();
                // Collisions on purpose.
                let hash = u64::from(n % 3);
                match (table.find(hash, &key), remove) {
                    (Some(at), true) => {
                        table.remove(at);
                        model.remove(&key);
                    }
                    (Some(at), false) => {
                        *table.at(at) += 1;
                        *model.get_mut(&key).unwrap() += 1;
                    }
                    (None, _) => {
                        table.insert(hash, &key, 0u32);
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
    }
}
