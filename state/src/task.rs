//! One task's stores: overlay above, backend below, and the only two ways down.
//!
//! [`TaskState::commit`] after the Kafka transaction committed, [`TaskState::restore`] and
//! [`TaskState::finish_restore`] with records read back from the changelog. [`TaskState::discard`]
//! is the answer to every abort: it leaves exactly the last commit.

use std::ops::ControlFlow;

use crate::backend::{Backend, Batch, Visit, prefix, prefix_end, with_key};
use crate::checkpoint::Checkpoint;
use crate::codec::Versioned;
use crate::db::{Lease, checkpoint_key, read_checkpoint};
use crate::error::{Result, StateError};
use crate::overlay::{Dirty, Overlay};

/// Index into the stores a task was opened with.
pub type StoreId = usize;

/// Restored records are written in batches of this size, in bytes.
const RESTORE_CHUNK: usize = 1 << 20;

/// A store as the topology declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSpec {
    /// Its changelog topic is `<app>-<name>-changelog`.
    pub name: String,
}

impl StoreSpec {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}

struct Store {
    name: String,
    number: u8,
    overlay: Overlay,
}

/// The stores of one task (one partition). Owned by one thread at a time; all its methods that take
/// a [`StoreId`] panic if it is not an index into the stores the task was opened with.
pub struct TaskState {
    // Fields drop in order: the backend before the lease, so that a task that is given free holds
    // nothing any more.
    backend: Backend,
    stores: Vec<Store>,
    checkpoint: Option<Checkpoint>,
    /// Restored records that are not written yet.
    restoring: Option<Batch>,
    /// Set by the first `restore`, cleared by `finish_restore`.
    in_restore: bool,
    lease: Lease,
}

impl TaskState {
    pub(crate) fn open(
        lease: Lease,
        backend: Backend,
        specs: &[StoreSpec],
        numbers: &[u8],
    ) -> Result<Self> {
        let checkpoint = read_checkpoint(&backend, lease.task)?;
        let stores = specs.iter().zip(numbers).map(|(spec, &number)| Store {
            name: spec.name.clone(),
            number,
            overlay: Overlay::default(),
        });
        Ok(Self {
            stores: stores.collect(),
            backend,
            checkpoint,
            restoring: None,
            in_restore: false,
            lease,
        })
    }

    /// The task's number, which is its partition.
    pub fn task(&self) -> u32 {
        self.lease.task
    }

    /// Name of a store.
    pub fn store_name(&self, store: StoreId) -> &str {
        &self.stores[store].name
    }

    /// Names of the stores; a store's position is its [`StoreId`].
    pub fn store_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.stores.iter().map(|s| s.name.as_str())
    }

    // --- reading: overlay first -----------------------------------------------------------------

    /// Hands the value of `key` to `f` without copying it.
    #[inline]
    pub fn get_with<R>(
        &self,
        store: StoreId,
        key: &[u8],
        f: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R> {
        let s = &self.stores[store];
        match s.overlay.get(key) {
            Dirty::Value(value) => Ok(f(Some(value))),
            Dirty::Deleted => Ok(f(None)),
            Dirty::Clean => with_key(prefix(self.lease.task, s.number), key, |key| {
                self.backend.get(key, f)
            }),
        }
    }

    /// The value of `key`.
    pub fn get(&self, store: StoreId, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_with(store, key, |value| value.map(<[u8]>::to_vec))
    }

    /// Replaces `out` with the value of `key` and says whether there is one; without one `out` is
    /// empty.
    #[inline]
    pub fn get_into(&self, store: StoreId, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        self.get_with(store, key, |value| {
            out.extend_from_slice(value.unwrap_or_default());
            value.is_some()
        })
    }

    /// Visits keys in `[from, to)` (to the store's end without `to`) in byte order, the overlay
    /// merged in, until `f` breaks. Sorts the dirty keys in the range first: not for the path of
    /// every record.
    pub fn scan(
        &self,
        store: StoreId,
        from: &[u8],
        to: Option<&[u8]>,
        f: &mut Visit<'_>,
    ) -> Result<()> {
        let s = &self.stores[store];
        let task = self.lease.task;
        let dirty = s.overlay.sorted_in(from, to);
        let mut dirty = dirty.into_iter().peekable();
        let mut stopped = false;
        let mut visit = |key: &[u8], value: &[u8]| {
            let flow = f(key, value);
            stopped = flow.is_break();
            flow
        };
        let prefix = prefix(task, s.number);
        let lower = [&prefix, from].concat();
        let upper = match to {
            Some(to) => [&prefix, to].concat(),
            None => prefix_end(task, s.number).to_vec(),
        };
        self.backend.scan(&lower, &upper, &mut |key, value| {
            while let Some((dirty_key, dirty_value)) = dirty.next_if(|(k, _)| *k < key) {
                if let Some(dirty_value) = dirty_value {
                    visit(dirty_key, dirty_value)?;
                }
            }
            match dirty.next_if(|(k, _)| *k == key) {
                None => visit(key, value),
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(newer))) => visit(key, newer),
            }
        })?;
        if stopped {
            return Ok(());
        }
        for (key, value) in dirty {
            if let Some(value) = value
                && f(key, value).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    // --- writing: overlay only ------------------------------------------------------------------

    /// Sets `key` in the overlay.
    #[inline]
    pub fn put(&mut self, store: StoreId, key: &[u8], value: &[u8]) {
        self.stores[store].overlay.put(key, value);
    }

    /// Deletes `key` in the overlay; a tombstone is written whether or not the key exists.
    #[inline]
    pub fn delete(&mut self, store: StoreId, key: &[u8]) {
        self.stores[store].overlay.delete(key);
    }

    /// Everything written since the last commit, by store and key; a value of `None` is a delete.
    /// This is what goes to the changelogs.
    pub fn dirty(&self) -> impl Iterator<Item = (StoreId, &[u8], Option<&[u8]>)> {
        self.stores.iter().enumerate().flat_map(|(id, store)| {
            let entries = store.overlay.sorted().into_iter();
            entries.map(move |(key, value)| (id, key, value))
        })
    }

    /// Number of dirty keys.
    pub fn dirty_len(&self) -> usize {
        self.stores.iter().map(|s| s.overlay.len()).sum()
    }

    /// Bytes of dirty keys and values: what an early commit would free.
    pub fn dirty_bytes(&self) -> usize {
        self.stores.iter().map(|s| s.overlay.bytes()).sum()
    }

    /// Writes the overlay and `checkpoint` as one batch, then clears the overlay. Only to be called
    /// once the Kafka transaction that holds the same changes has committed. After an error nothing
    /// was written, the overlay still stands, and the caller discards it and catches up.
    pub fn commit(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if self.in_restore {
            return Err(self.out_of_order("commit", "its restore has not finished"));
        }
        let mut batch = self.backend.batch();
        for (store, key, value) in self.dirty() {
            let prefix = prefix(self.lease.task, self.stores[store].number);
            with_key(prefix, key, |key| match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            });
        }
        self.write_with_checkpoint(batch, checkpoint)?;
        self.clear_overlays();
        Ok(())
    }

    /// Drops the overlay: the state is that of the last commit again.
    pub fn discard(&mut self) {
        self.clear_overlays();
    }

    // --- catching up ----------------------------------------------------------------------------

    /// Applies one changelog record (`None`: deleted). Records are collected and written in chunks;
    /// reads may or may not see them before [`TaskState::finish_restore`]. Chunks that reach the
    /// disk before a crash do no harm: the same records are applied again, in order.
    pub fn restore(&mut self, store: StoreId, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if !self.in_restore {
            if self.dirty_len() > 0 {
                return Err(self.out_of_order("restore", "there are uncommitted writes"));
            }
            self.in_restore = true;
        }
        let backend = &self.backend;
        let batch = self.restoring.get_or_insert_with(|| backend.batch());
        let prefix = prefix(self.lease.task, self.stores[store].number);
        with_key(prefix, key, |key| match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        });
        if batch.bytes() >= RESTORE_CHUNK
            && let Some(full) = self.restoring.take()
        {
            self.backend.write(full)?;
        }
        Ok(())
    }

    /// Writes what is left of the restored records together with `checkpoint`. Also good in the
    /// middle of a long restore, with the offsets reached so far: a crash then resumes from there.
    pub fn finish_restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if self.dirty_len() > 0 {
            return Err(self.out_of_order("restore", "there are uncommitted writes"));
        }
        let batch = self.restoring.take();
        let batch = batch.unwrap_or_else(|| self.backend.batch());
        self.write_with_checkpoint(batch, checkpoint)?;
        self.in_restore = false;
        Ok(())
    }

    /// Removes everything of this task, checkpoint and overlay included, so that it can be restored
    /// from the start of its changelogs.
    pub fn wipe(&mut self) -> Result<()> {
        self.clear_overlays();
        self.restoring = None;
        self.in_restore = false;
        self.backend.wipe(self.lease.task)?;
        self.checkpoint = None;
        Ok(())
    }

    /// The checkpoint of the last commit or restore.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Bytes this task takes on disk, roughly; write buffers not yet written out are not counted.
    pub fn size_estimate(&self) -> u64 {
        self.backend.size(self.lease.task)
    }

    fn write_with_checkpoint(&mut self, mut batch: Batch, checkpoint: &Checkpoint) -> Result<()> {
        batch.put(&checkpoint_key(self.lease.task), &checkpoint.to_bytes()?);
        self.backend.write(batch)?;
        self.checkpoint = Some(checkpoint.clone());
        Ok(())
    }

    fn clear_overlays(&mut self) {
        for store in &mut self.stores {
            store.overlay.clear();
        }
    }

    fn out_of_order(&self, what: &'static str, why: &'static str) -> StateError {
        let task = self.lease.task;
        StateError::OutOfOrder { task, what, why }
    }
}
