//! The index of names: one JSON file per image name, written whole and renamed, mirrored
//! in memory. Knows blobs only as digests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};

use serde::{Deserialize, Serialize};

use super::{list, locked, sync_dir, write_atomically};
use crate::digest::Digest;
use crate::error::Error;
use crate::name::{ImageId, is_name};

const SUFFIX: &str = ".json";

/// An image in a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Name and digest.
    pub id: ImageId,
    /// Tags that point at it, sorted.
    pub tags: Vec<String>,
    /// Bytes of its manifest and blobs as stored; what it shares with others counts fully.
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub name: String,
    pub tags: BTreeMap<String, Digest>,
    pub images: BTreeMap<Digest, ImageRecord>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub media_type: String,
    pub manifest_bytes: u64,
    /// Configuration and layers.
    pub blobs: BTreeSet<Digest>,
    pub size_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Names {
    dir: PathBuf,
    /// One writer at a time, so that readers never wait for the disk.
    writing: Mutex<()>,
    records: RwLock<BTreeMap<String, NameRecord>>,
}

impl Names {
    /// Reads the index. An image that lacks a blob is forgotten: it could neither be run
    /// nor served, and pulling or loading it again makes it whole.
    pub(crate) fn open(dir: PathBuf, has_blob: impl Fn(&Digest) -> bool) -> Result<Self, Error> {
        let mut records = BTreeMap::new();
        for entry in list(&dir)? {
            let path = entry.path();
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            let record: NameRecord =
                serde_json::from_slice(&bytes).map_err(Error::document(path.display().to_string()))?;
            if file_name(&record.name) != entry.file_name().to_string_lossy() || !is_name(&record.name) {
                return Err(Error::NotAnImage {
                    what: path.display().to_string(),
                    reason: "it belongs to another name".into(),
                });
            }
            records.insert(record.name.clone(), record);
        }
        let names = Self { dir, writing: Mutex::default(), records: RwLock::new(records) };
        for ImageInfo { id, .. } in names.images() {
            let record = names.record(&id.name, &id.digest);
            let missing = record.iter().flat_map(|image| &image.blobs).chain([&id.digest]).find(|blob| !has_blob(blob));
            if let Some(missing) = missing {
                tracing::warn!(image = %id, %missing, "forgetting an image that lacks a blob");
                names.change(&id.name, |record| {
                    record.tags.retain(|_, digest| *digest != id.digest);
                    record.images.remove(&id.digest);
                    Ok(())
                })?;
            }
        }
        Ok(names)
    }

    /// Changes one name's record, on disk first. A record without images is removed.
    pub(crate) fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut NameRecord) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _writing = locked(&self.writing);
        let mut record = self.read(|records| records.get(name).cloned()).unwrap_or_default();
        record.name = name.to_owned();
        let outcome = change(&mut record)?;
        let path = self.dir.join(file_name(name));
        if record.images.is_empty() {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => sync_dir(&self.dir)?,
            }
            self.write(|records| records.remove(name));
        } else {
            let bytes = serde_json::to_vec_pretty(&record).map_err(Error::document(name))?;
            write_atomically(&temp_beside(&self.dir), &path, &bytes)?;
            self.write(|records| records.insert(name.to_owned(), record));
        }
        Ok(outcome)
    }

    pub(crate) fn images(&self) -> Vec<ImageInfo> {
        self.read(|records| {
            let all = records.values().flat_map(|record| record.images.iter().map(move |image| (record, image)));
            all.map(|(record, (digest, image))| ImageInfo {
                id: ImageId { name: record.name.clone(), digest: *digest },
                tags: record.tags.iter().filter(|(_, d)| *d == digest).map(|(tag, _)| tag.clone()).collect(),
                size_bytes: image.size_bytes,
            })
            .collect()
        })
    }

    pub(crate) fn record(&self, name: &str, digest: &Digest) -> Option<ImageRecord> {
        self.read(|records| records.get(name)?.images.get(digest).cloned())
    }

    pub(crate) fn has(&self, name: &str, digest: &Digest) -> bool {
        self.read(|records| records.get(name).is_some_and(|record| record.images.contains_key(digest)))
    }

    pub(crate) fn tag(&self, name: &str, tag: &str) -> Option<Digest> {
        self.read(|records| records.get(name)?.tags.get(tag).copied())
    }

    pub(crate) fn tags(&self, name: &str) -> Option<Vec<String>> {
        self.read(|records| Some(records.get(name)?.tags.keys().cloned().collect()))
    }

    pub(crate) fn has_blob(&self, name: &str, blob: &Digest) -> bool {
        self.read(|records| {
            let record = records.get(name);
            record.is_some_and(|record| record.images.iter().any(|(d, image)| d == blob || image.blobs.contains(blob)))
        })
    }

    /// Whether an image, under whichever name, has the blob; its own manifest is one.
    pub(crate) fn image_has_blob(&self, manifest: &Digest, blob: &Digest) -> bool {
        self.read(|records| {
            let images = records.values().filter_map(|record| record.images.get(manifest));
            images.into_iter().any(|image| manifest == blob || image.blobs.contains(blob))
        })
    }

    fn read<T>(&self, read: impl FnOnce(&BTreeMap<String, NameRecord>) -> T) -> T {
        read(&self.records.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn write<T>(&self, write: impl FnOnce(&mut BTreeMap<String, NameRecord>) -> T) -> T {
        write(&mut self.records.write().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

/// `/` is the one character of a name that a file name cannot hold; `+` is in no name, so
/// two names never share a file.
fn file_name(name: &str) -> String {
    name.replace('/', "+") + SUFFIX
}

/// The store's folder for half-written files, which stands beside ours.
fn temp_beside(names: &Path) -> PathBuf {
    names.with_file_name("tmp")
}
