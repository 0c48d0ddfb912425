//! Object stores: whole objects by one put, large ones by multipart upload.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{
    CLIENT_REGION, FileRead, FileWrite, S3_ACCESS_KEY_ID, S3_ALLOW_ANONYMOUS, S3_ENDPOINT,
    S3_PATH_STYLE_ACCESS, S3_REGION, S3_SECRET_ACCESS_KEY, S3_SESSION_TOKEN,
};
use iceberg::{Error, ErrorKind, Result};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use object_store::{Error as StoreError, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};

use super::{Listed, Props, failed, range_len};

/// Larger files go up in parts of this size (S3 wants at least 5 MiB).
const PART: usize = 8 << 20;

/// A client for one bucket.
pub fn s3(props: &Props, bucket: &str, location: &str) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = props.get(S3_ENDPOINT) {
        builder = builder
            .with_endpoint(endpoint)
            .with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = props.get(S3_REGION).or_else(|| props.get(CLIENT_REGION)) {
        builder = builder.with_region(region);
    }
    if let Some(id) = props.get(S3_ACCESS_KEY_ID) {
        builder = builder.with_access_key_id(id);
    }
    if let Some(key) = props.get(S3_SECRET_ACCESS_KEY) {
        builder = builder.with_secret_access_key(key);
    }
    if let Some(token) = props.get(S3_SESSION_TOKEN) {
        builder = builder.with_token(token);
    }
    if let Some(path_style) = props.is_true(S3_PATH_STYLE_ACCESS) {
        builder = builder.with_virtual_hosted_style_request(!path_style);
    }
    if props.is_true(S3_ALLOW_ANONYMOUS) == Some(true) {
        builder = builder.with_skip_signature(true);
    }
    let store = builder.build().map_err(|e| {
        Error::new(
            ErrorKind::DataInvalid,
            format!(
                "{location}: the S3 settings are not usable ({e}); check endpoint, region and keys"
            ),
        )
    })?;
    Ok(Arc::new(store))
}

fn map(what: &'static str, location: &str) -> impl FnOnce(StoreError) -> Error {
    move |e| failed(what, location, matches!(e, StoreError::NotFound { .. }), e)
}

pub async fn exists(store: Arc<dyn ObjectStore>, key: &Key, location: &str) -> Result<bool> {
    match store.head(key).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound { .. }) => Ok(false),
        Err(e) => Err(map("look for", location)(e)),
    }
}

pub async fn size(store: Arc<dyn ObjectStore>, key: &Key, location: &str) -> Result<u64> {
    let meta = store.head(key).await.map_err(map("open", location))?;
    Ok(meta.size)
}

pub async fn read(store: Arc<dyn ObjectStore>, key: &Key, location: &str) -> Result<Bytes> {
    let found = store.get(key).await.map_err(map("read", location))?;
    found.bytes().await.map_err(map("read", location))
}

pub async fn write(
    store: Arc<dyn ObjectStore>,
    key: &Key,
    location: &str,
    bytes: Bytes,
) -> Result<()> {
    if bytes.len() > 4 * PART {
        let mut writer = Writer::new(store, key.clone(), location);
        writer.write(bytes).await?;
        return writer.close().await;
    }
    store
        .put(key, bytes.into())
        .await
        .map(|_| ())
        .map_err(map("write", location))
}

pub async fn delete(store: Arc<dyn ObjectStore>, key: &Key, location: &str) -> Result<()> {
    match store.delete(key).await {
        Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
        Err(e) => Err(map("delete", location)(e)),
    }
}

pub async fn delete_prefix(store: Arc<dyn ObjectStore>, key: &Key, location: &str) -> Result<()> {
    let found = store.list(Some(key)).map_ok(|meta| meta.location).boxed();
    store
        .delete_stream(found)
        .try_for_each(|_| async { Ok(()) })
        .await
        .map_err(map("delete", location))
}

pub async fn list(store: Arc<dyn ObjectStore>, key: &Key, location: &str) -> Result<Vec<Listed>> {
    let prefix = location.trim_end_matches('/');
    let mut found: Vec<Listed> = store
        .list(Some(key))
        .map_ok(|meta| {
            let rest = meta
                .location
                .as_ref()
                .strip_prefix(key.as_ref())
                .unwrap_or_default();
            Listed {
                location: format!("{prefix}/{}", rest.trim_start_matches('/')),
                size: meta.size,
                modified: meta.last_modified.timestamp_micros(),
            }
        })
        .try_collect()
        .await
        .map_err(map("list", location))?;
    found.sort_by(|a, b| a.location.cmp(&b.location));
    Ok(found)
}

/// Ranged reads.
pub struct Reader {
    store: Arc<dyn ObjectStore>,
    key: Key,
    location: String,
}

impl Reader {
    pub fn new(store: Arc<dyn ObjectStore>, key: Key, location: &str) -> Self {
        Self {
            store,
            key,
            location: location.to_owned(),
        }
    }
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let len = range_len(&range, &self.location)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self
            .store
            .get_range(&self.key, range)
            .await
            .map_err(map("read", &self.location))?;
        if bytes.len() != len {
            return Err(Error::new(
                ErrorKind::DataInvalid,
                format!(
                    "{}: {} bytes came where {len} were asked for",
                    self.location,
                    bytes.len()
                ),
            ));
        }
        Ok(bytes)
    }
}

/// One put for a small file, a multipart upload for a large one; the object appears with
/// `close`. A writer that is dropped leaves no object, but the store may keep the parts of a
/// begun upload until a lifecycle rule removes them.
pub struct Writer {
    store: Arc<dyn ObjectStore>,
    key: Key,
    location: String,
    buffer: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
    closed: bool,
}

impl Writer {
    pub fn new(store: Arc<dyn ObjectStore>, key: Key, location: &str) -> Self {
        Self {
            store,
            key,
            location: location.to_owned(),
            buffer: BytesMut::new(),
            upload: None,
            closed: false,
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed {
            return Err(Error::new(
                ErrorKind::DataInvalid,
                format!("{} is closed, or an earlier write failed", self.location),
            ));
        }
        Ok(())
    }

    async fn put_part(&mut self, part: PutPayload) -> std::result::Result<(), StoreError> {
        if self.upload.is_none() {
            self.upload = Some(self.store.put_multipart(&self.key).await?);
        }
        match &mut self.upload {
            Some(upload) => upload.put_part(part).await,
            None => Ok(()),
        }
    }

    /// Gives up after an error, so that the store need not keep the parts.
    async fn give_up(&mut self, what: &'static str, e: StoreError) -> Error {
        self.closed = true;
        if let Some(mut upload) = self.upload.take() {
            // The first error is the one to tell.
            let _ = upload.abort().await;
        }
        map(what, &self.location)(e)
    }
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bs: Bytes) -> Result<()> {
        self.check_open()?;
        self.buffer.extend_from_slice(&bs);
        while self.buffer.len() >= 2 * PART {
            let part = self.buffer.split_to(PART).freeze();
            if let Err(e) = self.put_part(part.into()).await {
                return Err(self.give_up("write", e).await);
            }
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.check_open()?;
        self.closed = true;
        let rest = self.buffer.split().freeze();
        if self.upload.is_none() {
            let put = self.store.put(&self.key, rest.into()).await;
            return put.map(|_| ()).map_err(map("write", &self.location));
        }
        if let Err(e) = self.put_part(rest.into()).await {
            return Err(self.give_up("write", e).await);
        }
        if let Some(mut upload) = self.upload.take() {
            upload
                .complete()
                .await
                .map_err(map("write", &self.location))?;
        }
        Ok(())
    }
}
