//! A folder of an object store, to which results go.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, PutMode, PutOptions, WriteMultipart};
use shards::Error as StorageError;

use super::connect::{self, Bucket};
use super::{PART, PARTS_AT_ONCE, told, wait};
use crate::error::{Error, Result};

/// Most parts of one upload, as S3 has it.
const MOST_PARTS: u64 = 10_000;

/// `s3://bucket/prefix`, or its like of another store.
#[derive(Debug, Clone)]
pub struct RemoteFolder {
    bucket: Arc<Bucket>,
    prefix: Key,
}

impl RemoteFolder {
    /// Of this URL. Nothing is sent.
    ///
    /// # Errors
    /// [`Error::Store`] for a URL or an environment that leads to no store.
    pub fn open(url: &str) -> Result<RemoteFolder> {
        let (bucket, prefix) = connect::open(url)?;
        let prefix = connect::key(&bucket, &prefix)?;
        Ok(RemoteFolder { bucket, prefix })
    }

    /// The URL of the object `name`, which may hold slashes.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{}", self.bucket.url, self.key(name))
    }

    fn key(&self, name: &str) -> Key {
        name.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    /// Bytes of the object, or `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn length(&self, name: &str) -> Result<Option<u64>> {
        let found = wait(self.bucket.store.head(&self.key(name)));
        self.if_there(name, found.map(|found| found.size))
    }

    /// The names of the objects in the folder `inside`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn names(&self, inside: &str) -> Result<Vec<String>> {
        let listed = wait(self.bucket.store.list_with_delimiter(Some(&self.key(inside))));
        let listed = listed.map_err(|error| told(&self.url(inside), error))?;
        Ok(listed.objects.iter().filter_map(|found| Some(found.location.filename()?.to_owned())).collect())
    }

    /// A small object, or `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let key = self.key(name);
        let found = wait(async { self.bucket.store.get(&key).await?.bytes().await });
        self.if_there(name, found.map(Vec::from))
    }

    /// Stores a small object where there is none of its name. Returns whether there was none, as far as the store
    /// can tell.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool> {
        let key = self.key(name);
        let create = PutOptions::from(PutMode::Create);
        match wait(self.bucket.store.put_opts(&key, bytes.clone().into(), create)) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            // A store without conditional requests.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                self.put(name, bytes).map(|()| true)
            }
            Err(error) => Err(told(&self.url(name), error)),
        }
    }

    /// Stores a small object in the place of any other of its name.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let stored = wait(self.bucket.store.put(&self.key(name), bytes.into()));
        stored.map(drop).map_err(|error| told(&self.url(name), error))
    }

    /// Stores a file, in parts where it is large. The object appears whole or not at all; its length is looked at
    /// afterwards.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Storage`] where the file cannot be read.
    pub fn upload(&self, name: &str, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(StorageError::io("open", path))?;
        let length = file.metadata().map_err(StorageError::io("read", path))?.len();
        let read = |offset: u64, most: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; most.min(length - offset) as usize];
            file.read_exact_at(&mut bytes, offset).map_err(StorageError::io("read", path))?;
            Ok(bytes)
        };
        let told = |error| told(&self.url(name), error);
        let key = self.key(name);
        wait(async {
            if length <= PART {
                self.bucket.store.put(&key, read(0, length)?.into()).await.map_err(told)?;
                return Ok(());
            }
            let part = PART.max(length.div_ceil(MOST_PARTS));
            let upload = self.bucket.store.put_multipart(&key).await.map_err(told)?;
            let mut writer = WriteMultipart::new_with_chunk_size(upload, part as usize);
            for offset in (0..length).step_by(part as usize) {
                let sent = match read(offset, part) {
                    Ok(bytes) => {
                        writer.put(bytes.into());
                        writer.wait_for_capacity(PARTS_AT_ONCE).await.map_err(told)
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = sent {
                    // Parts that stay are the bucket's to clear away, by its rule for incomplete uploads.
                    let _ = writer.abort().await;
                    return Err(error);
                }
            }
            writer.finish().await.map(drop).map_err(told)
        })?;
        match self.length(name)? {
            Some(stored) if stored == length => Ok(()),
            stored => {
                let stored = stored.map_or("nothing".into(), |bytes| format!("{bytes} bytes"));
                let reason = format!("{length} bytes were stored and {stored} is there");
                Err(Error::Store { url: self.url(name), reason, wrong: false })
            }
        }
    }

    /// Brings an object into a file.
    ///
    /// # Errors
    /// [`Error::Store`], also where there is no such object; `path` in [`Error::Storage`] names the file.
    pub fn download(&self, name: &str, mut file: &File, path: &Path) -> Result<()> {
        let told = |error| told(&self.url(name), error);
        let key = self.key(name);
        wait(async {
            let mut arriving = self.bucket.store.get(&key).await.map_err(told)?.into_stream();
            while let Some(bytes) = arriving.try_next().await.map_err(told)? {
                file.write_all(&bytes).map_err(StorageError::io("write", path))?;
            }
            Ok(())
        })
    }

    fn if_there<T>(&self, name: &str, found: object_store::Result<T>) -> Result<Option<T>> {
        match found.map_err(|error| (matches!(error, object_store::Error::NotFound { .. }), error)) {
            Ok(found) => Ok(Some(found)),
            Err((true, error)) => match told(&self.url(name), error) {
                Error::Store { reason, .. } if reason.contains("bucket") => {
                    Err(Error::Store { url: self.url(name), reason, wrong: true })
                }
                _ => Ok(None),
            },
            Err((false, error)) => Err(told(&self.url(name), error)),
        }
    }
}
