//! The content store: blobs by digest, names for images, folders for unpacked layers.
//!
//! ```text
//! DIR/oci-layout              so that DIR/blobs can be read as an OCI image layout
//!     blobs/sha256/HEX        written elsewhere, verified, synced, renamed here
//!     names/NAME.json         one per image name (`/` as `+`): tags, manifests
//!     partial/HEX             downloads to be resumed
//!     layers/ID/{fs,layer.json}
//!     tmp/                    emptied at open
//!     lock                    one process at a time
//! ```
//!
//! Knows neither where images come from nor what runs them.

mod collect;
mod lease;
mod names;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

pub use self::collect::Collected;
pub use self::lease::Lease;
pub use self::names::ImageInfo;

use self::lease::Leases;
use self::names::{ImageRecord, Names};
use crate::digest::Digest;
use crate::error::Error;
use crate::limits::{Limits, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::name::{ImageId, Reference, ReferenceError};
use crate::spec::{ConfigDocument, Descriptor, ImageConfig, Manifest};
use crate::unpack::{EMPTY_LAYER, TREE, boot_id, read_note};

/// Images on disk. Share it in an [`Arc`]; all methods may be called at the same time.
///
/// Methods that are not `async` do file-system work: call them from
/// `tokio::task::spawn_blocking` where that matters.
#[derive(Debug)]
pub struct ContentStore {
    dir: PathBuf,
    limits: Limits,
    names: Names,
    leases: Arc<Leases>,
    /// One collection at a time.
    collecting: Mutex<()>,
    /// Who unpacks the layer of a ChainID.
    turns: Mutex<HashMap<Digest, Weak<Mutex<()>>>>,
    /// Who downloads a blob.
    downloads: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    _lock: Flock<File>,
}

/// An open blob.
#[derive(Debug)]
pub struct Blob {
    /// The bytes.
    pub file: File,
    /// How many.
    pub size: u64,
}

/// An image's documents, read and checked.
#[derive(Debug)]
pub(crate) struct Image {
    pub manifest: Manifest,
    pub diff_ids: Vec<Digest>,
    pub config: ImageConfig,
}

impl Image {
    /// Bottom first.
    pub(crate) fn chain_ids(&self) -> Vec<Digest> {
        let mut parent = None;
        let chain = self.diff_ids.iter().map(|diff_id| *parent.insert(Digest::chain(parent.as_ref(), diff_id)));
        chain.collect()
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.manifest.blobs().map(|blob| blob.digest)
    }
}

impl ContentStore {
    /// Opens or makes the store in `dir`, clearing away what an earlier process left half
    /// done. Fails with [`Error::StoreInUse`] while another process has it open.
    pub fn open(dir: impl Into<PathBuf>, limits: Limits) -> Result<Self, Error> {
        let dir = dir.into();
        for sub in ["", "blobs/sha256", "names", "partial", "layers", "tmp"] {
            let path = dir.join(sub);
            // Images hold setuid files and secrets of their makers: for root only.
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(Error::io("create", path))?;
        }
        let lock = lock(&dir)?;
        empty(&dir.join("tmp"))?;
        drop_stale_layers(&dir.join("layers"))?;
        let empty_tree = dir.join("layers").join(EMPTY_LAYER).join(TREE);
        std::fs::create_dir_all(&empty_tree).map_err(Error::io("create", empty_tree))?;
        let store = Self {
            names: Names::open(dir.join("names"), |digest| blob_path(&dir, digest).is_file())?,
            dir,
            limits,
            leases: Arc::default(),
            collecting: Mutex::default(),
            turns: Mutex::default(),
            downloads: Mutex::default(),
            _lock: lock,
        };
        store.write_atomically(&store.dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(store)
    }

    /// The bounds that the store was opened with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    // ---- images ------------------------------------------------------------------------

    /// All images, by name and digest.
    pub fn images(&self) -> Vec<ImageInfo> {
        self.names.images()
    }

    /// The image that `name[:tag][@digest]` means, if the store holds it. A digest decides
    /// alone; without tag and digest the tag `latest` is meant.
    pub fn resolve(&self, reference: &str) -> Result<Option<ImageId>, ReferenceError> {
        let reference = Reference::from_str(reference)?;
        let digest = match reference.digest {
            Some(digest) => self.names.has(&reference.name, &digest).then_some(digest),
            None => self.names.tag(&reference.name, reference.tag_or_default()),
        };
        Ok(digest.map(|digest| ImageId { name: reference.name, digest }))
    }

    /// Tags of a name, sorted; `None` if there is no such name.
    pub fn tags(&self, name: &str) -> Option<Vec<String>> {
        self.names.tags(name)
    }

    /// Points a tag at an image that the store holds under that name.
    pub fn tag(&self, image: &ImageId, tag: &str) -> Result<(), Error> {
        let reference = Reference::from_str(&format!("{}:{tag}", image.name))?;
        self.names.change(&reference.name, |record| match record.images.contains_key(&image.digest) {
            true => {
                record.tags.insert(tag.to_owned(), image.digest);
                Ok(())
            }
            false => Err(Error::NoImage(image.to_string())),
        })
    }

    /// Forgets an image and the tags that point at it. Its bytes go with the next
    /// [`ContentStore::collect`] that finds them unused. Returns whether it was there.
    pub fn remove(&self, image: &ImageId) -> Result<bool, Error> {
        self.names.change(&image.name, |record| {
            record.tags.retain(|_, digest| *digest != image.digest);
            Ok(record.images.remove(&image.digest).is_some())
        })
    }

    /// Takes a tag away, of `name[:tag]`; the image itself stays until a [`ContentStore::collect`] finds it unused.
    /// Returns the image that it pointed at.
    pub fn untag(&self, name: &str, tag: &str) -> Result<Option<ImageId>, Error> {
        let digest = match self.names.tag(name, tag) {
            None => return Ok(None),
            Some(_) => self.names.change(name, |record| Ok(record.tags.remove(tag)))?,
        };
        Ok(digest.map(|digest| ImageId { name: name.to_owned(), digest }))
    }

    /// How the image wants to be run.
    pub fn config(&self, manifest: &Digest) -> Result<ImageConfig, Error> {
        Ok(self.image(manifest)?.config)
    }

    /// The image's manifest.
    pub fn manifest(&self, manifest: &Digest) -> Result<Manifest, Error> {
        let role = "manifest";
        let bytes = self.read_blob(manifest, MAX_MANIFEST_BYTES, "MAX_MANIFEST_BYTES", role)?;
        serde_json::from_slice(&bytes).map_err(Error::document(format!("manifest {manifest}")))
    }

    pub(crate) fn image(&self, manifest: &Digest) -> Result<Image, Error> {
        let manifest = self.manifest(manifest)?;
        let config = &manifest.config.digest;
        let bytes = self.read_blob(config, MAX_CONFIG_BYTES, "MAX_CONFIG_BYTES", "configuration")?;
        let document: ConfigDocument =
            serde_json::from_slice(&bytes).map_err(Error::document(format!("configuration {config}")))?;
        document.check(manifest.layers.len(), &format!("configuration {config}"))?;
        let diff_ids = document.rootfs.diff_ids;
        Ok(Image { manifest, diff_ids, config: document.config })
    }

    /// Records a complete image. Its blobs must be there and leased.
    pub(crate) fn record(
        &self,
        name: &str,
        tag: Option<&str>,
        descriptor: &Descriptor,
        manifest: &Manifest,
    ) -> Result<ImageId, Error> {
        let image = ImageRecord {
            media_type: descriptor.media_type.clone(),
            manifest_bytes: descriptor.size,
            blobs: manifest.blobs().map(|blob| blob.digest).collect(),
            size_bytes: manifest.blobs().map(|blob| blob.size).fold(descriptor.size, u64::saturating_add),
        };
        self.touch(&descriptor.digest);
        self.names.change(name, |record| {
            record.images.insert(descriptor.digest, image);
            if let Some(tag) = tag {
                record.tags.insert(tag.to_owned(), descriptor.digest);
            }
            Ok(())
        })?;
        Ok(ImageId { name: name.to_owned(), digest: descriptor.digest })
    }

    /// Media type and size of an image's manifest, under that name.
    pub(crate) fn manifest_record(&self, name: &str, digest: &Digest) -> Option<(String, u64)> {
        self.names.record(name, digest).map(|image| (image.media_type, image.manifest_bytes))
    }

    /// Whether an image of that name has the blob: what a name does not have is not
    /// served under it.
    pub(crate) fn name_has_blob(&self, name: &str, blob: &Digest) -> bool {
        self.names.has_blob(name, blob)
    }

    /// Whether an image, named by its manifest, has the blob; the manifest is one of its own.
    pub fn image_has_blob(&self, manifest: &Digest, blob: &Digest) -> bool {
        self.names.image_has_blob(manifest, blob)
    }

    // ---- blobs -------------------------------------------------------------------------

    /// Keeps blobs, images and layers from being collected while the lease lives.
    pub fn lease(&self, digests: impl IntoIterator<Item = Digest>) -> Lease {
        self.leases.take(digests)
    }

    /// Opens a blob; `None` if it is not there.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>, Error> {
        let path = blob_path(&self.dir, digest);
        match File::open(&path) {
            Ok(file) => {
                let size = file.metadata().map_err(Error::io("read", path))?.len();
                Ok(Some(Blob { file, size }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", path)(error)),
        }
    }

    /// Whether the blob is there, whole.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        blob_path(&self.dir, digest).is_file()
    }

    /// A small blob's bytes. The digest is checked again: documents decide what is run.
    pub(crate) fn read_blob(
        &self,
        digest: &Digest,
        max_bytes: u64,
        limit: &'static str,
        role: &str,
    ) -> Result<Vec<u8>, Error> {
        let blob = self.open_blob(digest)?;
        let mut blob = blob.ok_or_else(|| Error::MissingBlob { role: role.to_owned(), digest: *digest })?;
        if blob.size > max_bytes {
            return Err(Error::Limit { what: format!("{role} {digest}"), limit, bound: max_bytes });
        }
        let mut bytes = Vec::with_capacity(blob.size as usize);
        io::Read::read_to_end(&mut blob.file, &mut bytes).map_err(Error::io("read", blob_path(&self.dir, digest)))?;
        match Digest::of(&bytes) {
            found if found == *digest => Ok(bytes),
            found => Err(Error::WrongDigest { role: role.to_owned(), expected: *digest, found }),
        }
    }

    /// Makes a file of ours, whose digest the caller has verified, the blob `digest`.
    /// Durable when it returns.
    pub(crate) fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), Error> {
        let opened = File::open(file).map_err(Error::io("open", file))?;
        opened.sync_all().map_err(Error::io("sync", file))?;
        let target = blob_path(&self.dir, digest);
        std::fs::rename(file, &target).map_err(Error::io("rename to", &target))?;
        sync_dir(&self.dir.join("blobs/sha256"))
    }

    /// Stores a document.
    pub(crate) fn put_document(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.has_blob(&digest) {
            let mut temp = self.temp_file()?;
            temp.write_all(bytes).map_err(Error::io("write", temp.path()))?;
            let path = temp.into_temp_path();
            self.adopt(&path, &digest)?;
            // Renamed: the guard would find nothing.
            let _ = path.keep();
        }
        Ok(digest)
    }

    /// Marks a manifest as just used, for the collector's grace.
    pub(crate) fn touch(&self, digest: &Digest) {
        let opened = File::options().append(true).open(blob_path(&self.dir, digest));
        // Only a hint for the collector, and never the only thing that keeps a blob.
        let _ = opened.and_then(|file| file.set_modified(SystemTime::now()));
    }

    // ---- places ------------------------------------------------------------------------

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.dir.join("layers")
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("partial").join(digest.hex())
    }

    pub(crate) fn temp_dir(&self) -> Result<tempfile::TempDir, Error> {
        let tmp = self.dir.join("tmp");
        tempfile::TempDir::new_in(&tmp).map_err(Error::io("create a folder in", tmp))
    }

    pub(crate) fn temp_file(&self) -> Result<tempfile::NamedTempFile, Error> {
        let tmp = self.dir.join("tmp");
        tempfile::NamedTempFile::new_in(&tmp).map_err(Error::io("create a file in", tmp))
    }

    /// The lock of whoever unpacks that layer.
    pub(crate) fn turn(&self, chain_id: &Digest) -> Arc<Mutex<()>> {
        shared(&mut locked(&self.turns), chain_id)
    }

    /// The lock of whoever downloads that blob.
    pub(crate) fn download(&self, blob: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        shared(&mut locked(&self.downloads), blob)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        write_atomically(&self.dir.join("tmp"), path, bytes)
    }
}

/// One shared lock per digest, forgotten when nobody holds it.
fn shared<L: Default>(locks: &mut HashMap<Digest, Weak<L>>, digest: &Digest) -> Arc<L> {
    if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
        return lock;
    }
    locks.retain(|_, lock| lock.strong_count() > 0);
    let lock = Arc::new(L::default());
    locks.insert(*digest, Arc::downgrade(&lock));
    lock
}

/// A poisoned lock guards plain maps whose every change is a single call: still good.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(Error::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => Error::StoreInUse(dir.to_owned()),
        errno => Error::io("lock", path)(errno.into()),
    })
}

/// Writes a file so that a reader, now or after a crash, sees the old or the new one.
pub(crate) fn write_atomically(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut temp = tempfile::NamedTempFile::new_in(tmp).map_err(Error::io("create a file in", tmp))?;
    temp.write_all(bytes).map_err(Error::io("write", path))?;
    temp.as_file().sync_all().map_err(Error::io("sync", path))?;
    temp.persist(path).map_err(|error| Error::io("rename to", path)(error.error))?;
    sync_dir(path.parent().unwrap_or(path))
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    let opened = File::open(dir).map_err(Error::io("open", dir))?;
    opened.sync_all().map_err(Error::io("sync", dir))
}

pub(crate) fn list(dir: &Path) -> Result<Vec<std::fs::DirEntry>, Error> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    entries.collect::<Result<_, _>>().map_err(Error::io("list", dir))
}

fn empty(dir: &Path) -> Result<(), Error> {
    for entry in list(dir)? {
        remove_any(&entry.path())?;
    }
    Ok(())
}

fn remove_any(path: &Path) -> Result<(), Error> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.map_err(Error::io("remove", path))
}

/// Removes layer folders without a note, and those of an earlier boot (see
/// [`crate::unpack`]).
fn drop_stale_layers(layers: &Path) -> Result<(), Error> {
    let boot_id = boot_id();
    for entry in list(layers)? {
        if entry.file_name() == EMPTY_LAYER {
            continue;
        }
        let fresh = read_note(&entry.path()).is_some_and(|note| !boot_id.is_empty() && note.boot_id == boot_id);
        if !fresh {
            remove_any(&entry.path())?;
        }
    }
    Ok(())
}
