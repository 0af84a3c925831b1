//! Image → overlayfs lower folders. Each layer gets a folder of its own, shared by all
//! images that have the same layers below and including it (same ChainID).
//!
//! A layer is unpacked into `tmp/` and renamed into `layers/` when whole, so what stands in
//! `layers/` is whole, up to a power failure: files of a layer are not synced one by one
//! (a flush of the whole file system would stall volumes beside us for seconds). Instead a
//! layer carries the boot id it was unpacked under, and `ContentStore::open` drops the
//! layers of an earlier boot; the synced blobs make them again.

mod attributes;
mod member;
mod merged;
mod rehearsal;
mod sys;
mod user;
mod writer;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::user::{User, resolve_user};

use self::writer::LayerWriter;
use crate::decode::{Bounds, Decoded};
use crate::digest::Digest;
use crate::error::{Error, LayerFault};
use crate::limits::Limits;
use crate::progress::{Progress, ProgressSink};
use crate::spec::ImageConfig;
use crate::store::{ContentStore, Lease};
use crate::tarball::TarReader;

pub(crate) use self::member::clean as clean_member_name;
pub(crate) use self::rehearsal::Rehearsal;

/// Hex digits of a layer folder's name: 127 of them must fit into the one page that
/// mount(2) takes. The whole ChainID stands in the folder and is compared.
const SHORT_ID_DIGITS: usize = 16;
/// The folder that an image without layers consists of.
pub(crate) const EMPTY_LAYER: &str = "empty";
/// In each layer folder: what overlayfs gets.
pub(crate) const TREE: &str = "fs";
/// In each layer folder: whose it is.
pub(crate) const NOTE: &str = "layer.json";

/// An image as folders for overlayfs. While it lives nothing of it is collected.
#[derive(Debug)]
pub struct Unpacked {
    /// The folder that [`Unpacked::lowers`] are relative to; make it the working folder
    /// when the mount options would grow past a page.
    pub base: PathBuf,
    /// `lowerdir=`, top-most first, relative to [`Unpacked::base`]. At least one.
    ///
    /// Owner and mode of the merged root come from the *upper* folder, which whoever
    /// mounts has to make like `lowers[0]`.
    pub lowers: Vec<PathBuf>,
    /// How the image wants to be run.
    pub config: ImageConfig,
    /// Keeps the layers and blobs.
    pub lease: Lease,
}

impl Unpacked {
    /// The lower folders as absolute paths, top-most first.
    pub fn lower_paths(&self) -> Vec<PathBuf> {
        self.lowers.iter().map(|lower| self.base.join(lower)).collect()
    }

    /// Who the image's `User` is (see [`resolve_user`]).
    pub fn user(&self) -> Result<User, Error> {
        resolve_user(&self.lower_paths(), &self.config.user)
    }
}

/// The note in a layer folder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LayerNote {
    pub chain_id: Digest,
    pub boot_id: String,
    pub files: u64,
    pub bytes: u64,
}

pub(crate) fn short_id(chain_id: &Digest) -> String {
    chain_id.short(SHORT_ID_DIGITS)
}

/// What a layer is called in errors.
struct LayerName {
    number: usize,
    of: usize,
    digest: Digest,
}

impl LayerName {
    fn fault(&self, path: Option<String>, source: LayerFault) -> Error {
        Error::Layer { number: self.number, of: self.of, digest: self.digest, path, source: Box::new(source) }
    }
}

impl ContentStore {
    /// Unpacks an image that the store holds, layer by layer, skipping layers that are
    /// there. Two calls for images that share layers do each layer once.
    ///
    /// The work runs on a blocking thread and goes on when the future is dropped; its
    /// result is then found by the next call.
    pub async fn unpack(self: &Arc<Self>, manifest: &Digest, progress: ProgressSink) -> Result<Unpacked, Error> {
        let (store, manifest) = (self.clone(), *manifest);
        let work = tokio::task::spawn_blocking(move || store.unpack_blocking(&manifest, &progress));
        work.await.map_err(|_| Error::TaskEnded)?
    }

    /// [`ContentStore::unpack`] on the calling thread.
    pub fn unpack_blocking(&self, manifest: &Digest, progress: &ProgressSink) -> Result<Unpacked, Error> {
        // The manifest first: with it leased the collector keeps all that it names.
        let first = self.lease([*manifest]);
        let image = self.image(manifest)?;
        let chain_ids = image.chain_ids();
        let lease = self.lease(image.blobs().chain(chain_ids.iter().copied()).chain([*manifest]));
        drop(first);
        // An image that nobody had leased may have been going while we read it. From here on
        // nothing of it goes, so this one look tells.
        for blob in image.blobs().chain([*manifest]) {
            if !self.has_blob(&blob) {
                return Err(Error::MissingBlob { role: "blob".into(), digest: blob });
            }
        }
        self.touch(manifest);

        let base = self.layers_dir();
        let of = chain_ids.len();
        let mut trees: Vec<PathBuf> = Vec::with_capacity(of);
        let layers = image.manifest.layers.iter().zip(&image.diff_ids).zip(&chain_ids);
        for (index, ((layer, diff_id), chain_id)) in layers.enumerate() {
            let name = LayerName { number: index + 1, of, digest: layer.digest };
            // Below it, top-most first.
            let below: Vec<PathBuf> = trees.iter().rev().map(|tree| base.join(tree)).collect();
            self.unpack_layer(&name, chain_id, diff_id, &below)?;
            trees.push(Path::new(&short_id(chain_id)).join(TREE));
            progress(Progress::Layer { number: name.number, of });
        }
        let lowers = lowers(&base, trees)?;
        Ok(Unpacked { base, lowers, config: image.config, lease })
    }

    fn unpack_layer(
        &self,
        name: &LayerName,
        chain_id: &Digest,
        diff_id: &Digest,
        below: &[PathBuf],
    ) -> Result<(), Error> {
        let turn = self.turn(chain_id);
        let _turn = turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let target = self.layers_dir().join(short_id(chain_id));
        if let Some(note) = read_note(&target) {
            return match note.chain_id == *chain_id {
                true => Ok(()),
                false => Err(Error::ShortIdTaken(short_id(chain_id))),
            };
        }
        let role = || format!("layer {} of {}", name.number, name.of);
        let blob =
            self.open_blob(&name.digest)?.ok_or_else(|| Error::MissingBlob { role: role(), digest: name.digest })?;
        let temp = self.temp_dir()?;
        let tree = temp.path().join(TREE);
        std::fs::create_dir(&tree).map_err(Error::io("create", &tree))?;
        let (files, bytes) = write_layer(blob.file, &tree, below, diff_id, self.limits())
            .map_err(|(path, fault)| name.fault(path, fault))?;
        let note = LayerNote { chain_id: *chain_id, boot_id: boot_id(), files, bytes };
        let note_path = temp.path().join(NOTE);
        let text = serde_json::to_vec(&note).map_err(Error::document(NOTE))?;
        std::fs::write(&note_path, text).map_err(Error::io("write", &note_path))?;
        std::fs::rename(temp.path(), &target).map_err(Error::io("rename to", &target))?;
        // The folder has moved: nothing is left for the guard to remove.
        let _ = temp.keep();
        Ok(())
    }
}

/// Lower folders, top-most first, without those that an opaque root hides: overlayfs looks
/// at the attribute everywhere but at the root.
fn lowers(base: &Path, trees: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let mut lowers = Vec::with_capacity(trees.len());
    for tree in trees.into_iter().rev() {
        let path = base.join(&tree);
        let root = sys::open_root(&path).map_err(Error::io("open", &path))?;
        lowers.push(tree);
        if sys::is_opaque(&root).map_err(Error::io("read an attribute of", &path))? {
            break;
        }
    }
    if lowers.is_empty() {
        lowers.push(Path::new(EMPTY_LAYER).join(TREE));
    }
    Ok(lowers)
}

type MemberFault = (Option<String>, LayerFault);

fn write_layer(
    blob: impl Read,
    tree: &Path,
    below: &[PathBuf],
    diff_id: &Digest,
    limits: &Limits,
) -> Result<(u64, u64), MemberFault> {
    let whole = |fault| (None, fault);
    let decoded = Decoded::new(blob, Bounds::layer(limits)).map_err(whole)?;
    // The tar reader asks for blocks of 512 bytes; hashing likes more.
    let mut tar = TarReader::new(std::io::BufReader::with_capacity(128 << 10, decoded));
    let mut writer = LayerWriter::new(tree, below, limits).map_err(whole)?;
    while let Some(member) = tar.next().map_err(|fault| (tar.last_label(), fault))? {
        writer.apply(&member, &mut tar).map_err(|fault| (Some(member.label()), fault))?;
    }
    let counts = writer.finish().map_err(whole)?;
    let found = tar.into_inner().into_inner().finish().map_err(whole)?;
    match found == *diff_id {
        true => Ok(counts),
        false => Err(whole(LayerFault::WrongDiffId { expected: *diff_id, found })),
    }
}

/// The note of a finished layer folder.
pub(crate) fn read_note(layer: &Path) -> Option<LayerNote> {
    serde_json::from_slice(&std::fs::read(layer.join(NOTE)).ok()?).ok()
}

/// Names this boot of the kernel; empty where there is none, which matches nothing.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map(|text| text.trim().to_owned()).unwrap_or_default()
}
