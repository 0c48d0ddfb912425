//! What can go wrong with a state folder, named by what the caller does about it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::codec::CodecError;

/// Result of every operation that may touch the disk.
pub type Result<T, E = StateError> = std::result::Result<T, E>;

/// Who holds the lock of a state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockHolder {
    /// This process opened the folder before and has not dropped it.
    ThisProcess,
    /// Another process, most likely another instance started with the same state folder.
    AnotherProcess,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThisProcess => "this process has it open already",
            Self::AnotherProcess => "another process uses this state folder",
        })
    }
}

/// Errors of the state stores. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder is in use. Fatal for the start that ran into it; nothing was changed.
    #[error(
        "cannot open the state folder {}: {holder}; stop that instance, or give this one a state folder of its own",
        path.display()
    )]
    Locked { path: PathBuf, holder: LockHolder },

    /// No space (or quota) left. What was committed before stays intact, but the open store refuses
    /// writes from here on: free space and restart.
    #[error(
        "the disk that holds the state folder {} is full ({detail}); free some space and restart, nothing that was committed is lost",
        path.display()
    )]
    DiskFull { path: PathBuf, detail: String },

    /// Bytes on disk are not what was written. The stores can be rebuilt from the changelogs: see
    /// [`crate::StateDb::destroy`].
    #[error(
        "the state in {} is damaged ({detail}); delete that folder and restart, the stores are then rebuilt from their changelog topics",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },

    /// The folder was written by a version of FinLake this one does not know.
    #[error(
        "the state folder {} has format {found}, this version reads up to {known}; use the newer version, or delete the folder to rebuild it from the changelog topics",
        path.display()
    )]
    Format { path: PathBuf, found: u8, known: u8 },

    /// Any other refusal of the operating system (permissions, missing mount, I/O error).
    #[error(
        "cannot use the state folder {}: {detail}; check that it exists, is writable and on a healthy disk",
        path.display()
    )]
    Io { path: PathBuf, detail: String },

    /// The task is open elsewhere in this process (a stream thread that has not let go yet).
    /// Retry once that one was closed.
    #[error("task {task} is still open in this process; close it before it is opened again")]
    TaskInUse { task: u32 },

    /// The task number is reserved for the store's own records.
    #[error("task number {task} is out of range; partitions are numbered below 4294967295")]
    TaskOutOfRange { task: u32 },

    /// A task names the same store twice.
    #[error("store {name:?} is declared twice; give each store of a topology a name of its own")]
    DuplicateStore { name: String },

    /// More than 255 distinct store names were ever used in this folder.
    #[error(
        "this state folder has seen {limit} store names and cannot take {name:?}; delete the folder to rebuild it from the changelog topics"
    )]
    TooManyStores { name: String, limit: usize },

    /// A restore was begun while uncommitted writes were pending, or a commit was asked for before
    /// the restore had finished. A bug in the caller.
    #[error(
        "{what} of task {task}: {why}; discard the pending writes and catch up from the changelog"
    )]
    OutOfOrder {
        task: u32,
        what: &'static str,
        why: &'static str,
    },

    /// A stored record of this crate (the checkpoint) cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl StateError {
    /// Whether wiping the folder and restoring from the changelogs is the remedy.
    pub fn is_rebuildable(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Codec(_))
    }

    /// Sorts a RocksDB error by its text: the C interface offers nothing else.
    pub(crate) fn from_rocks(path: &Path, message: &str) -> Self {
        let path = path.to_path_buf();
        let detail = message.to_owned();
        let has = |part: &str| message.contains(part);
        if has("No space left") || has("Disk quota exceeded") || has("NoSpace") {
            Self::DiskFull { path, detail }
        } else if has("lock hold by current process") {
            let holder = LockHolder::ThisProcess;
            Self::Locked { path, holder }
        } else if has("While lock file") {
            let holder = LockHolder::AnotherProcess;
            Self::Locked { path, holder }
        } else if message.starts_with("Corruption") {
            Self::Corrupt { path, detail }
        } else {
            Self::Io { path, detail }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rocksdb_texts_become_typed_errors() {
        let path = Path::new("/state");
        let sort = |text| StateError::from_rocks(path, text);
        assert!(matches!(
            sort("IO error: No space left on device: While appending to file: /state/000004.log"),
            StateError::DiskFull { .. }
        ));
        assert!(matches!(
            sort("IO error: While lock file: /state/LOCK: Resource temporarily unavailable"),
            StateError::Locked {
                holder: LockHolder::AnotherProcess,
                ..
            }
        ));
        assert!(matches!(
            sort(
                "IO error: lock hold by current process, acquire time 1 acquiring thread 2: /state/LOCK: No locks available"
            ),
            StateError::Locked {
                holder: LockHolder::ThisProcess,
                ..
            }
        ));
        assert!(matches!(
            sort("Corruption: block checksum mismatch"),
            StateError::Corrupt { .. }
        ));
        assert!(matches!(
            sort("IO error: Permission denied"),
            StateError::Io { .. }
        ));
    }
}
