//! Files in memory: the default, gone with the process.
//!
//! A file is one growing buffer; `Core` keeps segments small, so growing it stays cheap.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Result, Storage, StorageError};

/// Files in memory.
#[derive(Debug, Default, Clone)]
pub struct MemoryStorage {
    files: BTreeMap<String, Vec<u8>>,
    durable: bool,
}

impl MemoryStorage {
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Memory that a journal is written to as well, so that a simulator or a test can drop a
    /// `Core` and open another one on a clone of it.
    pub fn journaled() -> MemoryStorage {
        MemoryStorage {
            durable: true,
            ..MemoryStorage::default()
        }
    }
}

impl Storage for MemoryStorage {
    fn durable(&self) -> bool {
        self.durable
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let from = self.files.range(prefix.to_owned()..);
        Ok(from
            .map(|(k, _)| k)
            .take_while(|k| k.starts_with(prefix))
            .cloned()
            .collect())
    }

    fn len(&mut self, name: &str) -> Result<u64> {
        Ok(self.files.get(name).map_or(0, |f| f.len() as u64))
    }

    fn append(&mut self, name: &str, parts: &[&[u8]]) -> Result<()> {
        if !self.files.contains_key(name) {
            self.files.insert(name.to_owned(), Vec::new());
        }
        if let Some(file) = self.files.get_mut(name) {
            for part in parts {
                file.extend_from_slice(part);
            }
        }
        Ok(())
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> Result<Bytes> {
        let from = usize::try_from(pos).map_err(|_| StorageError::missing("read", name))?;
        let range = from..from.saturating_add(len);
        match self.files.get(name).and_then(|f| f.get(range)) {
            Some(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            None => Err(StorageError::missing("read", name)),
        }
    }

    fn truncate(&mut self, name: &str, len: u64) -> Result<()> {
        if let Some(file) = self.files.get_mut(name) {
            file.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.files.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.files.remove(name);
        Ok(())
    }
}
