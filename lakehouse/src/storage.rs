//! Files of the lakehouse behind Iceberg's `Storage` traits: the local file system and S3.
//!
//! A file is there whole or not at all: local files are written beside their place, synced and
//! renamed; an object store puts whole objects. What a snapshot names must survive a power cut,
//! so a write returns only when the file and its directory entry are on the disk. Never decides
//! what to write, never caches content. Secrets live in the factory and are neither shown nor
//! serialised.

mod local;
mod object;

use crate::boxed;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage,
    StorageConfig, StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use object_store::ObjectStore;
use object_store::path::Path as Key;
use serde::{Deserialize, Serialize};

/// Property: `false` leaves syncing to the operating system (tests, throw-away warehouses).
pub const P_SYNC: &str = "finlake.storage.sync";

/// Storage for a warehouse. `props` are Iceberg's names: `s3.endpoint`, `s3.region`,
/// `s3.access-key-id`, `s3.secret-access-key`, `s3.session-token`, `s3.path-style-access`,
/// `s3.allow-anonymous`. What is missing comes from the environment (`AWS_…`) or the machine's
/// identity. Opens nothing yet.
pub fn file_io(props: &BTreeMap<String, String>) -> FileIO {
    // In the factory, not in the builder's config: FileIO shows its config in Debug.
    FileIOBuilder::new(Arc::new(ObjectStorageFactory {
        props: Props(props.clone()),
    }))
    .build()
}

/// A file or object found by [`list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its full location, spelled with the prefix it was listed under.
    pub location: String,
    /// Bytes.
    pub size: u64,
    /// When it was last written, µs since 1970.
    pub modified: i64,
}

/// Everything under a location, temporary files of interrupted writes included; for finding
/// orphans. Nothing there is an empty list.
///
/// # Errors
/// If the store does not answer, or the scheme is not known.
#[boxed]
pub async fn list(props: &BTreeMap<String, String>, location: &str) -> Result<Vec<Listed>> {
    let storage = ObjectStorage::new(Props(props.clone()));
    match storage.place(location)? {
        Place::Local(path) => local::list(path, location.to_owned()).await,
        Place::Object(store, key) => object::list(store, &key, location).await,
    }
}

/// Properties whose secret values are neither shown nor serialised: whoever receives a serialised
/// storage takes them from its own environment.
#[derive(Clone, Default, Deserialize)]
struct Props(BTreeMap<String, String>);

impl Props {
    fn is_secret(name: &str) -> bool {
        ["secret", "token", "password", "sse.key"]
            .iter()
            .any(|part| name.contains(part))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    fn is_true(&self, name: &str) -> Option<bool> {
        self.get(name).map(|v| v.eq_ignore_ascii_case("true"))
    }
}

impl fmt::Debug for Props {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |name: &str| {
            if Props::is_secret(name) {
                "***"
            } else {
                &self.0[name]
            }
        };
        f.debug_map()
            .entries(self.0.keys().map(|name| (name, shown(name))))
            .finish()
    }
}

impl Serialize for Props {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(name, _)| !Props::is_secret(name)))
    }
}

/// Makes [`ObjectStorage`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ObjectStorageFactory {
    props: Props,
}

#[typetag::serde(name = "FinlakeStorageFactory")]
impl StorageFactory for ObjectStorageFactory {
    fn build(&self, config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        let mut props = self.props.clone();
        // A REST catalog hands out its own credentials this way.
        for (name, value) in config.props() {
            props.0.insert(name.clone(), value.clone());
        }
        Ok(Arc::new(ObjectStorage::new(props)))
    }
}

/// Stores by bucket, made when first needed.
type Stores = Arc<Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>>;

/// Storage for `file://` (also `file:/…` and plain absolute paths), `s3://`, `s3a://` and
/// `memory://` (gone with this value; tests).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ObjectStorage {
    props: Props,
    #[serde(skip)]
    stores: Stores,
}

/// Where a location leads.
enum Place {
    Local(PathBuf),
    Object(Arc<dyn ObjectStore>, Key),
}

impl ObjectStorage {
    fn new(props: Props) -> Self {
        Self {
            props,
            stores: Stores::default(),
        }
    }

    fn sync(&self) -> bool {
        self.props.is_true(P_SYNC).unwrap_or(true)
    }

    fn place(&self, location: &str) -> Result<Place> {
        let unknown = || {
            Error::new(
                ErrorKind::FeatureUnsupported,
                format!(
                    "{location}: unknown kind of location; use file:///folder or s3://bucket/path"
                ),
            )
        };
        if let Some((scheme, rest)) = location.split_once("://") {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            return match scheme {
                "file" if rest.starts_with('/') => Ok(Place::Local(PathBuf::from(rest))),
                "s3" | "s3a" | "s3n" | "memory" => {
                    let store = self.store(scheme, bucket, location)?;
                    Ok(Place::Object(store, parse_key(key, location)?))
                }
                _ => Err(unknown()),
            };
        }
        let path = location.strip_prefix("file:").unwrap_or(location);
        if path.starts_with('/') {
            return Ok(Place::Local(PathBuf::from(path)));
        }
        Err(unknown())
    }

    fn store(&self, scheme: &str, bucket: &str, location: &str) -> Result<Arc<dyn ObjectStore>> {
        let id = if scheme == "memory" { "memory" } else { bucket };
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(id) {
            return Ok(store.clone());
        }
        let store = if scheme == "memory" {
            Arc::new(object_store::memory::InMemory::new())
        } else {
            object::s3(&self.props, bucket, location)?
        };
        stores.insert(id.to_owned(), store.clone());
        Ok(store)
    }
}

fn parse_key(key: &str, location: &str) -> Result<Key> {
    Key::parse(key).map_err(|e| {
        Error::new(
            ErrorKind::DataInvalid,
            format!("{location}: not an object's name"),
        )
        .with_source(e)
    })
}

/// The error of an operation on a location, with its cause in the text: the cause alone
/// (`NotFound`) says too little, the location alone does not say why.
fn failed(what: &str, location: &str, missing: bool, cause: impl fmt::Display) -> Error {
    let kind = if missing {
        ErrorKind::DataInvalid
    } else {
        ErrorKind::Unexpected
    };
    Error::new(kind, format!("cannot {what} {location}: {cause}"))
}

#[async_trait]
#[typetag::serde(name = "FinlakeStorage")]
impl Storage for ObjectStorage {
    async fn exists(&self, path: &str) -> Result<bool> {
        match self.place(path)? {
            Place::Local(file) => local::exists(file, path).await,
            Place::Object(store, key) => object::exists(store, &key, path).await,
        }
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let size = match self.place(path)? {
            Place::Local(file) => local::size(file, path).await?,
            Place::Object(store, key) => object::size(store, &key, path).await?,
        };
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        match self.place(path)? {
            Place::Local(file) => local::read(file, path).await,
            Place::Object(store, key) => object::read(store, &key, path).await,
        }
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        Ok(match self.place(path)? {
            Place::Local(file) => Box::new(local::Reader::open(file, path).await?),
            Place::Object(store, key) => Box::new(object::Reader::new(store, key, path)),
        })
    }

    async fn write(&self, path: &str, bs: Bytes) -> Result<()> {
        match self.place(path)? {
            Place::Local(file) => local::write(file, path, bs, self.sync()).await,
            Place::Object(store, key) => object::write(store, &key, path, bs).await,
        }
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        Ok(match self.place(path)? {
            Place::Local(file) => Box::new(local::Writer::create(file, path, self.sync()).await?),
            Place::Object(store, key) => Box::new(object::Writer::new(store, key, path)),
        })
    }

    async fn delete(&self, path: &str) -> Result<()> {
        match self.place(path)? {
            Place::Local(file) => local::delete(file, path).await,
            Place::Object(store, key) => object::delete(store, &key, path).await,
        }
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        match self.place(path)? {
            Place::Local(dir) => local::delete_dir(dir, path).await,
            Place::Object(store, key) => object::delete_prefix(store, &key, path).await,
        }
    }

    async fn delete_stream(&self, paths: BoxStream<'static, String>) -> Result<()> {
        // A few at a time: expiry of many files must not starve the commit that follows.
        let mut results = paths
            .map(|path| {
                let storage = self.clone();
                async move { storage.delete(&path).await }
            })
            .buffer_unordered(8);
        while let Some(result) = results.next().await {
            result?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

/// The length of a range, refused if it ends before it begins.
fn range_len(range: &Range<u64>, location: &str) -> Result<usize> {
    range
        .end
        .checked_sub(range.start)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Unexpected,
                format!("{location}: impossible range {range:?}"),
            )
        })
}

#[cfg(test)]
mod tests;
