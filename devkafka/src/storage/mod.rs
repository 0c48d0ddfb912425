//! What `Core` asks of whatever keeps its bytes: named append-only files, read by position.
//!
//! Two kinds exist: [`MemoryStorage`] and [`FileStorage`]. A simulator may hand in its own with
//! torn writes and errors. Data flows in by `append` (visible to `read` at once; after a process
//! crash a file may have lost bytes at its end, never elsewhere) and out by `read`. An
//! implementation must never change bytes once appended, except through `truncate`, `replace`
//! and `remove`. Names are relative paths of `/`-separated parts chosen by `Core`.

mod file;
mod memory;

pub use file::{FileStorage, announce, announced};
pub use memory::MemoryStorage;

use bytes::Bytes;

/// A failed storage operation; the request that caused it is answered with KAFKA_STORAGE_ERROR.
#[derive(Debug, thiserror::Error)]
#[error("storage: {action} {name}: {source}")]
pub struct StorageError {
    pub action: &'static str,
    pub name: String,
    #[source]
    pub source: std::io::Error,
}

impl StorageError {
    pub fn new(action: &'static str, name: &str, source: std::io::Error) -> StorageError {
        StorageError {
            action,
            name: name.to_owned(),
            source,
        }
    }

    /// An operation on a file that does not exist or is too short.
    pub fn missing(action: &'static str, name: &str) -> StorageError {
        StorageError::new(
            action,
            name,
            std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
        )
    }
}

pub type Result<T> = std::result::Result<T, StorageError>;

/// Named append-only files. Positions and lengths are bytes.
pub trait Storage: Send {
    /// False if nothing outlives the process, so that no journal need be written.
    fn durable(&self) -> bool;
    /// All names that start with `prefix`, sorted.
    fn list(&self, prefix: &str) -> Result<Vec<String>>;
    /// The length of a file; 0 if there is none.
    fn len(&mut self, name: &str) -> Result<u64>;
    /// Appends the parts, one after another, and creates the file if need be.
    fn append(&mut self, name: &str, parts: &[&[u8]]) -> Result<()>;
    /// Exactly `len` bytes from `pos`.
    fn read(&mut self, name: &str, pos: u64, len: usize) -> Result<Bytes>;
    /// Cuts a file to `len` bytes.
    fn truncate(&mut self, name: &str, len: u64) -> Result<()>;
    /// Puts `bytes` in place of the whole file, all or nothing.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> Result<()>;
    /// Removes a file; it need not exist.
    fn remove(&mut self, name: &str) -> Result<()>;
}
