//! The backend for tests and benches: one ordered map per task, kept as long as the `StateDb`.
//!
//! Same contract as RocksDB: a write batch is applied whole, a task that is closed and opened again
//! finds what it committed. Nothing survives the process.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::backend::{PREFIX, Visit};

/// One task's data.
#[derive(Clone, Default)]
pub(crate) struct MemoryTask(Arc<RwLock<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl MemoryTask {
    pub(crate) fn write(&self, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let mut map = self.0.write();
        for (key, value) in writes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
    }

    // Reads lock recursively: a visitor may read the same task again.
    pub(crate) fn get<R>(&self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> R {
        f(self.0.read_recursive().get(key).map(Vec::as_slice))
    }

    pub(crate) fn scan(&self, from: &[u8], to: &[u8], f: &mut Visit<'_>) {
        if from >= to {
            return;
        }
        let map = self.0.read_recursive();
        for (key, value) in map.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if let ControlFlow::Break(()) = f(&key[PREFIX..], value) {
                return;
            }
        }
    }

    pub(crate) fn wipe(&self) {
        self.0.write().clear();
    }

    pub(crate) fn size(&self) -> u64 {
        let map = self.0.read_recursive();
        map.iter().map(|(k, v)| (k.len() + v.len()) as u64).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.read_recursive().is_empty()
    }
}
