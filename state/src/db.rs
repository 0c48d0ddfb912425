//! The state of one process: opens the folder (or memory) and hands out tasks.
//!
//! Also keeps the folder's catalogue: its format version, and the one-byte number each store name
//! was given when it was first seen. Numbers are never reused, so a topology may add, drop or
//! reorder stores without reading another store's data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::{Backend, PREFIX, prefix, prefix_end};
use crate::checkpoint::Checkpoint;
use crate::codec::Versioned;
use crate::error::{Result, StateError};
use crate::memory::MemoryTask;
use crate::rocks::Rocks;
use crate::task::{StoreSpec, TaskState};

/// The layout of the folder's keys; raised if it ever changes.
const FORMAT: u8 = 1;
/// The task number under which the catalogue lies.
const CATALOGUE: u32 = u32::MAX;
const CATALOGUE_FORMAT: u8 = 0;
const CATALOGUE_STORES: u8 = 1;
/// Store numbers 0..=254; 255 is the checkpoint's.
const MAX_STORES: usize = 255;

/// Memory the whole process gives to its state, whatever the number of tasks and stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Cache of uncompressed blocks, indexes and filters, in bytes. Default 16 MiB.
    pub block_cache: usize,
    /// All write buffers together, in bytes; at least 3 MiB are sensible. One commit is one batch
    /// and may overshoot it by its own size. Default 16 MiB.
    pub write_buffers: usize,
    /// Table files held open at once; −1 for all. Default 256.
    pub open_files: i32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            block_cache: 16 << 20,
            write_buffers: 16 << 20,
            open_files: 256,
        }
    }
}

/// What a commit survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// A killed process loses nothing. A crashed machine loses some of the last commits, whole ones,
    /// and catches them up from the changelog.
    #[default]
    ProcessCrash,
    /// Every commit is synced to the disk: slower by one fsync, and seldom worth it.
    PowerLoss,
}

/// What the state takes, in bytes; all zero for a memory store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub block_cache: u64,
    pub write_buffers: u64,
    pub table_readers: u64,
    /// Table files on disk (without the write-ahead log).
    pub on_disk: u64,
}

pub(crate) struct Inner {
    store: Store,
    /// Name → number of every store ever seen in this folder.
    catalogue: Mutex<BTreeMap<String, u8>>,
    open_tasks: Mutex<BTreeSet<u32>>,
}

enum Store {
    Rocks(Arc<Rocks>),
    Memory(Mutex<BTreeMap<u32, MemoryTask>>),
}

/// The state of one process. Cheap to clone; the folder is closed when the last clone and the last
/// [`TaskState`] are dropped.
#[derive(Clone)]
pub struct StateDb(Arc<Inner>);

impl StateDb {
    /// Opens the folder, or creates it. A second open of the same folder, by whomever, is
    /// [`StateError::Locked`].
    pub fn open(path: impl AsRef<Path>, budget: Budget) -> Result<Self> {
        Self::open_with(path, budget, Durability::default())
    }

    /// As [`StateDb::open`], with a choice of what a commit survives.
    pub fn open_with(
        path: impl AsRef<Path>,
        budget: Budget,
        durability: Durability,
    ) -> Result<Self> {
        let rocks = Arc::new(Rocks::open(path.as_ref(), &budget, durability)?);
        let catalogue = read_catalogue(&rocks)?;
        Ok(Self::new(Store::Rocks(rocks), catalogue))
    }

    /// A store with the same contract that lives in memory, for tests and benches.
    pub fn memory() -> Self {
        Self::new(Store::Memory(Mutex::default()), BTreeMap::new())
    }

    fn new(store: Store, catalogue: BTreeMap<String, u8>) -> Self {
        Self(Arc::new(Inner {
            store,
            catalogue: Mutex::new(catalogue),
            open_tasks: Mutex::default(),
        }))
    }

    /// Removes a folder's state (which nobody may have open), so that the next open starts empty
    /// and everything is restored from the changelogs. The remedy for
    /// [`StateError::is_rebuildable`]; the caller says so loudly.
    pub fn destroy(path: impl AsRef<Path>) -> Result<()> {
        Rocks::destroy(path.as_ref())
    }

    /// Opens a task's stores; a [`crate::StoreId`] is an index into `stores`. A task can be open
    /// once at a time ([`StateError::TaskInUse`]).
    pub fn task(&self, task: u32, stores: &[StoreSpec]) -> Result<TaskState> {
        if task == CATALOGUE {
            return Err(StateError::TaskOutOfRange { task });
        }
        let mut numbers = Vec::with_capacity(stores.len());
        for (i, spec) in stores.iter().enumerate() {
            if stores[..i].iter().any(|s| s.name == spec.name) {
                let name = spec.name.clone();
                return Err(StateError::DuplicateStore { name });
            }
            numbers.push(self.0.store_number(&spec.name)?);
        }
        let backend = match &self.0.store {
            Store::Rocks(rocks) => Backend::Rocks(rocks.clone()),
            Store::Memory(tasks) => Backend::Memory(tasks.lock().entry(task).or_default().clone()),
        };
        let lease = Lease::take(self.0.clone(), task)?;
        TaskState::open(lease, backend, stores, &numbers)
    }

    /// Tasks that have anything stored here, in order, with their checkpoints; for "what does this
    /// folder hold" and for dropping tasks that live elsewhere now.
    pub fn tasks(&self) -> Result<Vec<(u32, Option<Checkpoint>)>> {
        let mut found = Vec::new();
        match &self.0.store {
            Store::Rocks(rocks) => {
                let mut from = prefix(0, 0);
                while let Some(key) = rocks.first_key(&from)? {
                    let Some(task) = task_of(&key).filter(|t| *t != CATALOGUE) else {
                        break;
                    };
                    let backend = Backend::Rocks(rocks.clone());
                    found.push((task, read_checkpoint(&backend, task)?));
                    from = prefix(task + 1, 0);
                }
            }
            Store::Memory(tasks) => {
                for (task, memory) in tasks.lock().iter().filter(|(_, m)| !m.is_empty()) {
                    let backend = Backend::Memory(memory.clone());
                    found.push((*task, read_checkpoint(&backend, *task)?));
                }
            }
        }
        Ok(found)
    }

    /// The folder; `None` for a memory store.
    pub fn path(&self) -> Option<&Path> {
        match &self.0.store {
            Store::Rocks(rocks) => Some(rocks.path()),
            Store::Memory(_) => None,
        }
    }

    /// Memory and disk in use.
    pub fn usage(&self) -> Usage {
        match &self.0.store {
            Store::Rocks(rocks) => rocks.usage(),
            Store::Memory(_) => Usage::default(),
        }
    }

    /// Writes the write buffers out as tables and syncs them. Never needed for correctness; makes
    /// the next open quicker and [`TaskState::size_estimate`] exact.
    pub fn flush(&self) -> Result<()> {
        match &self.0.store {
            Store::Rocks(rocks) => rocks.flush(),
            Store::Memory(_) => Ok(()),
        }
    }
}

impl Inner {
    /// The number of a store name, given out and written down at its first use.
    fn store_number(&self, name: &str) -> Result<u8> {
        let mut catalogue = self.catalogue.lock();
        if let Some(number) = catalogue.get(name) {
            return Ok(*number);
        }
        let number = u8::try_from(catalogue.len())
            .ok()
            .filter(|n| usize::from(*n) < MAX_STORES)
            .ok_or_else(|| StateError::TooManyStores {
                name: name.to_owned(),
                limit: MAX_STORES,
            })?;
        if let Store::Rocks(rocks) = &self.store {
            let mut batch = rocksdb::WriteBatch::default();
            let key = [&prefix(CATALOGUE, CATALOGUE_STORES), name.as_bytes()].concat();
            batch.put(key, [number]);
            rocks.write(batch)?;
        }
        catalogue.insert(name.to_owned(), number);
        Ok(number)
    }
}

/// A task's place in the set of open tasks; given back on drop.
pub(crate) struct Lease {
    inner: Arc<Inner>,
    pub(crate) task: u32,
}

impl Lease {
    fn take(inner: Arc<Inner>, task: u32) -> Result<Self> {
        if !inner.open_tasks.lock().insert(task) {
            return Err(StateError::TaskInUse { task });
        }
        Ok(Self { inner, task })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.open_tasks.lock().remove(&self.task);
    }
}

pub(crate) fn checkpoint_key(task: u32) -> [u8; PREFIX] {
    prefix(task, crate::backend::CHECKPOINT_STORE)
}

pub(crate) fn read_checkpoint(backend: &Backend, task: u32) -> Result<Option<Checkpoint>> {
    let bytes = backend.get(&checkpoint_key(task), |v| v.map(<[u8]>::to_vec))?;
    Ok(bytes.map(|b| Checkpoint::from_bytes(&b)).transpose()?)
}

fn task_of(key: &[u8]) -> Option<u32> {
    let bytes = key.get(..4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}

/// Checks the folder's format (writing it to a new folder) and reads its store numbers.
fn read_catalogue(rocks: &Rocks) -> Result<BTreeMap<String, u8>> {
    let format_key = prefix(CATALOGUE, CATALOGUE_FORMAT);
    match rocks.get(&format_key, |v| v.and_then(|v| v.first().copied()))? {
        Some(FORMAT) => {}
        Some(found) => {
            return Err(StateError::Format {
                path: rocks.path().to_path_buf(),
                found,
                known: FORMAT,
            });
        }
        None => {
            let mut batch = rocksdb::WriteBatch::default();
            batch.put(format_key, [FORMAT]);
            rocks.write(batch)?;
        }
    }
    let mut catalogue = BTreeMap::new();
    let mut damaged = None;
    let (from, to) = (
        prefix(CATALOGUE, CATALOGUE_STORES),
        prefix_end(CATALOGUE, CATALOGUE_STORES),
    );
    rocks.scan(&from, &to, &mut |name, number| {
        match (std::str::from_utf8(name), number) {
            (Ok(name), [number]) => {
                catalogue.insert(name.to_owned(), *number);
            }
            _ => damaged = Some(format!("store catalogue entry {name:?}")),
        }
        std::ops::ControlFlow::Continue(())
    })?;
    match damaged {
        None => Ok(catalogue),
        Some(detail) => Err(StateError::Corrupt {
            path: rocks.path().to_path_buf(),
            detail,
        }),
    }
}
