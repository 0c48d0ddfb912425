//! Local files: positioned reads on an open file, writes that appear whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind as Io, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use iceberg::io::{FileRead, FileWrite};
use iceberg::{Error, ErrorKind, Result};

use super::{Listed, failed, range_len};

/// Ends the names of files that are being written.
const TEMPORARY: &str = ".finlake-tmp";

/// A writer hands this many bytes at a time to the operating system.
const CHUNK: usize = 1 << 20;

/// Runs file system work where it may block; without a runtime, here.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    location: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let result = match tokio::runtime::Handle::try_current() {
        Ok(handle) => match handle.spawn_blocking(work).await {
            Ok(result) => result,
            Err(e) => Err(io::Error::other(e)),
        },
        Err(_) => work(),
    };
    result.map_err(|e| failed(what, location, e.kind() == Io::NotFound, e))
}

pub async fn exists(file: PathBuf, location: &str) -> Result<bool> {
    blocking("look for", location, move || file.try_exists()).await
}

pub async fn size(file: PathBuf, location: &str) -> Result<u64> {
    blocking("open", location, move || {
        fs::metadata(file).map(|m| m.len())
    })
    .await
}

pub async fn read(file: PathBuf, location: &str) -> Result<Bytes> {
    blocking("read", location, move || fs::read(file).map(Bytes::from)).await
}

pub async fn delete(file: PathBuf, location: &str) -> Result<()> {
    blocking("delete", location, move || {
        absent_is_fine(fs::remove_file(file))
    })
    .await
}

pub async fn delete_dir(dir: PathBuf, location: &str) -> Result<()> {
    blocking("delete", location, move || {
        if dir.is_dir() {
            absent_is_fine(fs::remove_dir_all(dir))
        } else {
            Ok(())
        }
    })
    .await
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == Io::NotFound => Ok(()),
        other => other,
    }
}

pub async fn write(file: PathBuf, location: &str, bytes: Bytes, sync: bool) -> Result<()> {
    blocking("write", location, move || {
        let mut pending = Pending::create(&file)?;
        pending.append(&bytes)?;
        pending.publish(sync)
    })
    .await
}

pub async fn list(dir: PathBuf, location: String) -> Result<Vec<Listed>> {
    let prefix = location.trim_end_matches('/').to_owned();
    blocking("list", &location, move || {
        let mut found = Vec::new();
        walk(&dir, &prefix, &mut found)?;
        found.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    })
    .await
}

fn walk(dir: &Path, prefix: &str, found: &mut Vec<Listed>) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == Io::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let location = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        // Files come and go while the sink commits: what has gone is not there.
        let metadata = match entry.metadata() {
            Err(e) if e.kind() == Io::NotFound => continue,
            other => other?,
        };
        if metadata.is_dir() {
            walk(&entry.path(), &location, found)?;
        } else {
            let modified = metadata
                .modified()?
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            found.push(Listed {
                location,
                size: metadata.len(),
                modified: i64::try_from(modified.as_micros()).unwrap_or(i64::MAX),
            });
        }
    }
    Ok(())
}

/// A file under a temporary name beside its place; dropped without [`Pending::publish`], it goes.
#[derive(Debug)]
struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Pending {
    fn create(target: &Path) -> io::Result<Self> {
        // Unique among the processes that share the folder, too.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let temporary =
            target.with_file_name(format!(".{name}.{}-{n}{TEMPORARY}", std::process::id()));
        let file = match File::create(&temporary) {
            Err(e) if e.kind() == Io::NotFound => {
                if let Some(parent) = target.parent() {
                    fs::create_dir_all(parent)?;
                }
                File::create(&temporary)?
            }
            other => other?,
        };
        Ok(Self {
            file,
            temporary,
            target: target.to_owned(),
            published: false,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn publish(mut self, sync: bool) -> io::Result<()> {
        if sync {
            self.file.sync_all()?;
        }
        fs::rename(&self.temporary, &self.target)?;
        self.published = true;
        if sync && let Some(parent) = self.target.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about a failure here; the orphan search finds the file.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Positioned reads; many at a time may be under way.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    location: Arc<str>,
}

impl Reader {
    pub async fn open(file: PathBuf, location: &str) -> Result<Self> {
        let file = blocking("open", location, move || File::open(file)).await?;
        Ok(Self {
            file: Arc::new(file),
            location: location.into(),
        })
    }
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let len = range_len(&range, &self.location)?;
        let file = self.file.clone();
        blocking("read", &self.location, move || {
            let mut buffer = BytesMut::zeroed(len);
            file.read_exact_at(&mut buffer, range.start)?;
            Ok(buffer.freeze())
        })
        .await
    }
}

/// Gathers what is written into large pieces; the file appears with `close`.
#[derive(Debug)]
pub struct Writer {
    pending: Option<Pending>,
    buffer: BytesMut,
    location: String,
    sync: bool,
}

impl Writer {
    pub async fn create(file: PathBuf, location: &str, sync: bool) -> Result<Self> {
        let pending = blocking("create", location, move || Pending::create(&file)).await?;
        Ok(Self {
            pending: Some(pending),
            buffer: BytesMut::new(),
            location: location.to_owned(),
            sync,
        })
    }

    fn take(&mut self) -> Result<Pending> {
        self.pending.take().ok_or_else(|| {
            Error::new(
                ErrorKind::DataInvalid,
                format!("{} is closed, or an earlier write failed", self.location),
            )
        })
    }
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bs: Bytes) -> Result<()> {
        self.buffer.extend_from_slice(&bs);
        if self.buffer.len() < CHUNK {
            return Ok(());
        }
        let mut pending = self.take()?;
        let chunk = self.buffer.split();
        let pending = blocking("write", &self.location, move || {
            pending.append(&chunk)?;
            Ok(pending)
        })
        .await?;
        self.pending = Some(pending);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let mut pending = self.take()?;
        let rest = self.buffer.split();
        let sync = self.sync;
        blocking("write", &self.location, move || {
            pending.append(&rest)?;
            pending.publish(sync)
        })
        .await
    }
}
