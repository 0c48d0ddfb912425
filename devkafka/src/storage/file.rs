//! Files in a data folder: every append is a write(2) before the request is answered, so all that
//! was acknowledged survives a kill -9 of the process (not a loss of power, unless `sync`).
//!
//! A lock file keeps a second broker off the folder, and a file beside it says where the first one
//! listens. Open handles are bounded; the one used longest ago is closed first. `replace` writes
//! beside and renames.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::{Result, Storage, StorageError};

/// Most file handles kept open.
const MAX_OPEN: usize = 256;

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
    used: u64,
}

/// Files below one folder.
#[derive(Debug)]
pub struct FileStorage {
    root: PathBuf,
    open: BTreeMap<String, Open>,
    clock: u64,
    sync: bool,
    _lock: Option<File>,
}

/// A lock outlives its broker for a moment: a child that any thread forks holds a copy of the file until it becomes its
/// program.
fn patiently(lock: &File) -> bool {
    (0..40).any(|_| {
        let free = lock.try_lock().is_ok();
        if !free {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        free
    })
}

/// The file that names a folder's broker to other processes; what a dead one left is void.
const ADDRESS: &str = "ADDRESS";

/// Says where the broker of a locked folder listens.
pub fn announce(root: &Path, lines: &str) -> Result<()> {
    let (path, new) = (root.join(ADDRESS), root.join("ADDRESS.new"));
    let written = fs::write(&new, lines).and_then(|()| fs::rename(&new, &path));
    written.map_err(|e| StorageError::new("write", &path.display().to_string(), e))
}

/// What the broker that holds the lock of this folder has announced.
pub fn announced(root: &Path) -> Option<String> {
    let lock = File::open(root.join("LOCK")).ok()?;
    // Shared: others who ask at the same time must not be taken for the broker.
    if lock.try_lock_shared().is_ok() {
        return None;
    }
    fs::read_to_string(root.join(ADDRESS)).ok()
}

impl FileStorage {
    /// Opens (and creates) a data folder and locks it. `sync`: fsync after every append.
    pub fn open(root: &Path, sync: bool) -> Result<FileStorage> {
        let name = root.display().to_string();
        let unlocked = FileStorage::unlocked(root)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(root.join("LOCK"))
            .map_err(|e| StorageError::new("open the lock of", &name, e))?;
        if !patiently(&lock) {
            let taken = std::io::Error::new(
                std::io::ErrorKind::WouldBlock,
                "another broker uses this data folder",
            );
            return Err(StorageError::new("lock", &name, taken));
        }
        if let Err(e) = fs::remove_file(root.join(ADDRESS))
            && e.kind() != std::io::ErrorKind::NotFound
        {
            return Err(StorageError::new("remove the address of", &name, e));
        }
        Ok(FileStorage {
            sync,
            _lock: Some(lock),
            ..unlocked
        })
    }

    /// Opens a folder without locking it: a part of one that is locked as a whole.
    pub fn unlocked(root: &Path) -> Result<FileStorage> {
        fs::create_dir_all(root)
            .map_err(|e| StorageError::new("create", &root.display().to_string(), e))?;
        Ok(FileStorage {
            root: root.to_owned(),
            open: BTreeMap::new(),
            clock: 0,
            sync: false,
            _lock: None,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn handle(&mut self, action: &'static str, name: &str, create: bool) -> Result<&mut Open> {
        self.clock += 1;
        let clock = self.clock;
        if !self.open.contains_key(name) {
            let path = self.path(name);
            if create && let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| StorageError::new(action, name, e))?;
            }
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(create)
                .open(&path)
                .map_err(|e| StorageError::new(action, name, e))?;
            let len = file
                .metadata()
                .map_err(|e| StorageError::new(action, name, e))?
                .len();
            if self.open.len() >= MAX_OPEN
                && let Some(oldest) = self
                    .open
                    .iter()
                    .min_by_key(|(_, o)| o.used)
                    .map(|(k, _)| k.clone())
            {
                self.open.remove(&oldest);
            }
            self.open.insert(
                name.to_owned(),
                Open {
                    file,
                    len,
                    used: clock,
                },
            );
        }
        let open = self
            .open
            .get_mut(name)
            .ok_or_else(|| StorageError::missing(action, name))?;
        open.used = clock;
        Ok(open)
    }
}

impl Storage for FileStorage {
    fn durable(&self) -> bool {
        true
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let start = match prefix.rfind('/') {
            Some(at) => self.root.join(&prefix[..at]),
            None => self.root.clone(),
        };
        walk(&self.root, &start, &mut found).map_err(|e| StorageError::new("list", prefix, e))?;
        found.retain(|name| name.starts_with(prefix));
        found.sort();
        Ok(found)
    }

    fn len(&mut self, name: &str) -> Result<u64> {
        if let Some(open) = self.open.get(name) {
            return Ok(open.len);
        }
        match fs::metadata(self.path(name)) {
            Ok(m) => Ok(m.len()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(StorageError::new("stat", name, e)),
        }
    }

    fn append(&mut self, name: &str, parts: &[&[u8]]) -> Result<()> {
        let sync = self.sync;
        let open = self.handle("append to", name, true)?;
        let total: usize = parts.iter().map(|p| p.len()).sum();
        let before = open.len;
        if let Err(e) = write_all(&mut open.file, parts)
            .and_then(|()| if sync { open.file.sync_data() } else { Ok(()) })
        {
            // Leave no half batch behind, so that the next append starts where it should.
            let _ = open.file.set_len(before);
            return Err(StorageError::new("append to", name, e));
        }
        open.len = before + total as u64;
        Ok(())
    }

    fn read(&mut self, name: &str, pos: u64, len: usize) -> Result<Bytes> {
        let open = self.handle("read", name, false)?;
        if pos.saturating_add(len as u64) > open.len {
            return Err(StorageError::missing("read", name));
        }
        let mut bytes = BytesMut::zeroed(len);
        open.file
            .read_exact_at(&mut bytes, pos)
            .map_err(|e| StorageError::new("read", name, e))?;
        Ok(bytes.freeze())
    }

    fn truncate(&mut self, name: &str, len: u64) -> Result<()> {
        if self.len(name)? <= len {
            return Ok(());
        }
        let open = self.handle("truncate", name, false)?;
        open.file
            .set_len(len)
            .map_err(|e| StorageError::new("truncate", name, e))?;
        open.len = len;
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let fail = |e| StorageError::new("replace", name, e);
        self.open.remove(name);
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        let mut beside = path.clone().into_os_string();
        beside.push(".new");
        let mut file = File::create(&beside).map_err(fail)?;
        file.write_all(bytes).map_err(fail)?;
        file.sync_data().map_err(fail)?;
        fs::rename(&beside, &path).map_err(fail)
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        self.open.remove(name);
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StorageError::new("remove", name, e)),
        }
        // Empty folders of deleted partitions and topics go too; a folder in use stays.
        let mut parent = path.parent();
        while let Some(dir) = parent {
            if dir == self.root || fs::remove_dir(dir).is_err() {
                break;
            }
            parent = dir.parent();
        }
        Ok(())
    }
}

fn write_all(file: &mut File, parts: &[&[u8]]) -> std::io::Result<()> {
    let total: usize = parts.iter().map(|p| p.len()).sum();
    let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
    let mut written = file.write_vectored(&slices)?;
    if written == total {
        return Ok(());
    }
    for part in parts {
        let done = written.min(part.len());
        written -= done;
        file.write_all(&part[done..])?;
    }
    Ok(())
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<String>) -> std::io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(root, &path, found)?;
        } else if let Ok(name) = path.strip_prefix(root)
            && path.extension().is_none_or(|e| e != "new")
        {
            found.push(name.display().to_string());
        }
    }
    Ok(())
}
