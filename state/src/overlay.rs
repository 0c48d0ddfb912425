//! The dirty map: what a task has written since its last commit, one per store.
//!
//! Pure memory. Lookups happen for every record, so: a hash map on the bare key, values overwritten
//! in place, and the buffers of a commit reused by the next. Iteration is always sorted by key; the
//! map's own order never shows.

use rustc_hash::FxHashMap;

/// Buffers kept for reuse, at most, and the largest one kept (bytes): bounds what a burst leaves
/// behind at 8 MiB a store.
const SPARE: usize = 2_048;
const SPARE_BYTES: usize = 4 << 10;

struct Slot {
    value: Vec<u8>,
    /// `false`: deleted, and `value` is empty.
    live: bool,
}

impl Slot {
    #[inline]
    fn get(&self) -> Option<&[u8]> {
        self.live.then_some(self.value.as_slice())
    }
}

/// Uncommitted writes of one store.
#[derive(Default)]
pub(crate) struct Overlay {
    map: FxHashMap<Vec<u8>, Slot>,
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

/// What the overlay says of a key.
pub(crate) enum Dirty<'a> {
    /// Nothing: ask below.
    Clean,
    Deleted,
    Value(&'a [u8]),
}

impl Overlay {
    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Dirty<'_> {
        match self.map.get(key) {
            None => Dirty::Clean,
            Some(slot) => slot.get().map_or(Dirty::Deleted, Dirty::Value),
        }
    }

    #[inline]
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, Some(value));
    }

    #[inline]
    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.write(key, None);
    }

    /// One lookup and no allocation if the key is dirty already.
    #[inline]
    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        let bytes = value.unwrap_or_default();
        if let Some(slot) = self.map.get_mut(key) {
            self.bytes = self.bytes + bytes.len() - slot.value.len();
            slot.value.clear();
            slot.value.extend_from_slice(bytes);
            slot.live = value.is_some();
            return;
        }
        self.bytes += key.len() + bytes.len();
        let mut owned = self.spare.pop().unwrap_or_default();
        owned.extend_from_slice(key);
        let mut slot = Slot {
            value: self.spare.pop().unwrap_or_default(),
            live: value.is_some(),
        };
        slot.value.extend_from_slice(bytes);
        self.map.insert(owned, slot);
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries in the order of their keys; `None` is a delete.
    pub(crate) fn sorted(&self) -> Vec<(&[u8], Option<&[u8]>)> {
        self.sorted_in(&[], None)
    }

    /// As [`Overlay::sorted`], keys in `[from, to)`.
    pub(crate) fn sorted_in(&self, from: &[u8], to: Option<&[u8]>) -> Vec<(&[u8], Option<&[u8]>)> {
        let mut entries: Vec<_> = self
            .map
            .iter()
            .map(|(key, slot)| (key.as_slice(), slot.get()))
            .filter(|(key, _)| *key >= from && to.is_none_or(|to| *key < to))
            .collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries
    }

    /// Forgets everything, keeps the buffers.
    pub(crate) fn clear(&mut self) {
        let spare = &mut self.spare;
        let mut keep = |mut buffer: Vec<u8>| {
            if spare.len() < SPARE && (1..=SPARE_BYTES).contains(&buffer.capacity()) {
                buffer.clear();
                spare.push(buffer);
            }
        };
        for (key, slot) in self.map.drain() {
            keep(key);
            keep(slot.value);
        }
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwriting_a_dirty_key_reuses_its_buffer() {
        let mut overlay = Overlay::default();
        overlay.put(b"k", b"0123456789");
        let before = match overlay.get(b"k") {
            Dirty::Value(v) => v.as_ptr(),
            _ => panic!(),
        };
        overlay.put(b"k", b"9876");
        overlay.delete(b"k");
        overlay.put(b"k", b"abcdefghij");
        match overlay.get(b"k") {
            Dirty::Value(v) => assert_eq!((v, v.as_ptr()), (b"abcdefghij".as_slice(), before)),
            _ => panic!(),
        }
    }

    #[test]
    fn cleared_buffers_come_back_empty() {
        let mut overlay = Overlay::default();
        for round in 0..3u8 {
            overlay.put(&[round, 1], b"value");
            overlay.delete(&[round, 0]);
            assert_eq!(overlay.bytes(), 9);
            assert_eq!(
                overlay.sorted(),
                vec![
                    ([round, 0].as_slice(), None),
                    ([round, 1].as_slice(), Some(b"value".as_slice())),
                ]
            );
            overlay.clear();
            assert_eq!((overlay.len(), overlay.bytes()), (0, 0));
            assert!(matches!(overlay.get(&[round, 1]), Dirty::Clean));
        }
        assert!(!overlay.spare.is_empty());
    }

    #[test]
    fn big_buffers_are_given_back() {
        let mut overlay = Overlay::default();
        overlay.put(b"k", &vec![0; SPARE_BYTES + 1]);
        overlay.clear();
        assert!(overlay.spare.iter().all(|b| b.capacity() <= SPARE_BYTES));
    }
}
