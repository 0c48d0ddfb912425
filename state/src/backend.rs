//! What lies below the overlay: RocksDB, or a map in memory with the same contract.
//!
//! Keys here are whole: `[task: u32 BE][store: u8][the store's key]`. Store byte 0xFF of a task is
//! its checkpoint; task 0xFFFF_FFFF is the folder's own catalogue. Big endian, so that a task's and
//! a store's keys lie together and in order.

use std::ops::ControlFlow;

use crate::error::Result;
use crate::memory::MemoryTask;
use crate::rocks::Rocks;
use std::sync::Arc;

/// Length of a key's prefix.
pub(crate) const PREFIX: usize = 5;
/// The store byte under which a task's checkpoint lies; no store has it.
pub(crate) const CHECKPOINT_STORE: u8 = 0xFF;

/// Called with each key and value of a scan, in order; breaks to stop it.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

pub(crate) fn prefix(task: u32, store: u8) -> [u8; PREFIX] {
    let [a, b, c, d] = task.to_be_bytes();
    [a, b, c, d, store]
}

/// The first key after all keys of `task`'s `store`. Neither the task nor the store byte can be at
/// its maximum for both (see [`CHECKPOINT_STORE`] and the catalogue), so there always is one.
pub(crate) fn prefix_end(task: u32, store: u8) -> [u8; PREFIX] {
    match store.checked_add(1) {
        Some(next) => prefix(task, next),
        None => prefix(task.saturating_add(1), 0),
    }
}

/// Hands `prefix ‖ key` to `f`, without an allocation for the usual short keys.
#[inline]
pub(crate) fn with_key<R>(prefix: [u8; PREFIX], key: &[u8], f: impl FnOnce(&[u8]) -> R) -> R {
    const STACK: usize = 128;
    let len = PREFIX + key.len();
    if len <= STACK {
        let mut buffer = [0u8; STACK];
        buffer[..PREFIX].copy_from_slice(&prefix);
        buffer[PREFIX..len].copy_from_slice(key);
        f(&buffer[..len])
    } else {
        f(&[&prefix, key].concat())
    }
}

/// One task's view of the data below its overlay.
pub(crate) enum Backend {
    Rocks(Arc<Rocks>),
    Memory(MemoryTask),
}

/// Writes that become visible, and durable, all at once.
pub(crate) enum Batch {
    Rocks(rocksdb::WriteBatch),
    Memory(Vec<(Vec<u8>, Option<Vec<u8>>)>),
}

impl Batch {
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        match self {
            Self::Rocks(batch) => batch.put(key, value),
            Self::Memory(writes) => writes.push((key.to_vec(), Some(value.to_vec()))),
        }
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        match self {
            Self::Rocks(batch) => batch.delete(key),
            Self::Memory(writes) => writes.push((key.to_vec(), None)),
        }
    }

    /// Size of the pending writes in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Rocks(batch) => batch.size_in_bytes(),
            Self::Memory(writes) => writes
                .iter()
                .map(|(k, v)| k.len() + v.as_ref().map_or(0, Vec::len))
                .sum(),
        }
    }
}

impl Backend {
    pub(crate) fn batch(&self) -> Batch {
        match self {
            Self::Rocks(_) => Batch::Rocks(rocksdb::WriteBatch::default()),
            Self::Memory(_) => Batch::Memory(Vec::new()),
        }
    }

    /// Applies the batch: after an error nothing of it is visible.
    pub(crate) fn write(&self, batch: Batch) -> Result<()> {
        match (self, batch) {
            (Self::Rocks(rocks), Batch::Rocks(batch)) => rocks.write(batch),
            (Self::Memory(memory), Batch::Memory(writes)) => {
                memory.write(writes);
                Ok(())
            }
            // A batch is only ever given to the backend that made it.
            _ => unreachable!("a batch of another backend"),
        }
    }

    /// Hands the value of a whole key to `f`.
    #[inline]
    pub(crate) fn get<R>(&self, key: &[u8], f: impl FnOnce(Option<&[u8]>) -> R) -> Result<R> {
        match self {
            Self::Rocks(rocks) => rocks.get(key, f),
            Self::Memory(memory) => Ok(memory.get(key, f)),
        }
    }

    /// Visits whole keys in `[from, to)` in order; `f` gets them without their prefix.
    pub(crate) fn scan(&self, from: &[u8], to: &[u8], f: &mut Visit<'_>) -> Result<()> {
        match self {
            Self::Rocks(rocks) => rocks.scan(from, to, f),
            Self::Memory(memory) => {
                memory.scan(from, to, f);
                Ok(())
            }
        }
    }

    /// Removes everything of a task, its checkpoint included, at once.
    pub(crate) fn wipe(&self, task: u32) -> Result<()> {
        match self {
            Self::Rocks(rocks) => rocks.wipe(&prefix(task, 0), &prefix_end(task, CHECKPOINT_STORE)),
            Self::Memory(memory) => {
                memory.wipe();
                Ok(())
            }
        }
    }

    /// Bytes a task takes, roughly. RocksDB counts only what has left its write buffers.
    pub(crate) fn size(&self, task: u32) -> u64 {
        match self {
            Self::Rocks(rocks) => rocks.size(&prefix(task, 0), &prefix_end(task, CHECKPOINT_STORE)),
            Self::Memory(memory) => memory.size(),
        }
    }
}
