//! Deleting what nobody uses. Exact digests only: a file or folder whose name is not one
//! that we wrote is left alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use super::{ContentStore, blob_path, list, locked};
use crate::digest::Digest;
use crate::error::Error;
use crate::name::ImageId;
use crate::unpack::{read_note, short_id};

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images forgotten.
    pub images: Vec<ImageId>,
    /// Blobs deleted.
    pub blobs: Vec<Digest>,
    /// ChainIDs of the unpacked layers deleted.
    pub layers: Vec<Digest>,
    /// Bytes of the deleted blobs and layers.
    pub freed_bytes: u64,
}

/// Ends a collection on every way out.
struct Collecting<'a>(&'a ContentStore);

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        self.0.leases.end();
    }
}

impl ContentStore {
    /// Deletes images, blobs, unpacked layers and broken-off downloads that are not used:
    /// not of an image in `in_use` (digests of manifests), not leased, and untouched for
    /// `grace` before `now`. A host passes the images of its Machines; control passes all
    /// that it serves. An image in use whose documents cannot be read stops the collection
    /// before anything is deleted.
    pub fn collect(&self, in_use: &BTreeSet<Digest>, now: SystemTime, grace: Duration) -> Result<Collected, Error> {
        let _one = locked(&self.collecting);
        self.leases.begin();
        let _collecting = Collecting(self);
        let is_old = |path: &Path| {
            let modified = path.symlink_metadata().and_then(|meta| meta.modified());
            // What cannot be dated is kept; what seems to come from the future as well,
            // unless no grace is asked for.
            modified.is_ok_and(|at| grace.is_zero() || now.duration_since(at).is_ok_and(|age| age >= grace))
        };
        let mut done = Collected::default();

        // Before anything is deleted: can all that is in use be read?
        self.reachable(in_use)?;
        for id in self.images().into_iter().map(|image| image.id) {
            if !in_use.contains(&id.digest) && is_old(&blob_path(&self.dir, &id.digest)) {
                let removed = self.leases.unless_held(&id.digest, || self.remove(&id));
                if removed.transpose()?.is_some() {
                    done.images.push(id);
                }
            }
        }
        // After the names are gone: whoever leased an image just before has kept its name,
        // and all that a name leads to stays.
        let named = self.images().into_iter().map(|image| image.id.digest);
        let reachable = self.reachable(&in_use.iter().copied().chain(named).collect())?;

        self.collect_blobs(&reachable, is_old, &mut done)?;
        self.collect_layers(&reachable, is_old, &mut done)?;
        self.collect_partial(is_old)?;
        Ok(done)
    }

    /// Digests and ChainIDs that the images consist of.
    fn reachable(&self, manifests: &BTreeSet<Digest>) -> Result<BTreeSet<Digest>, Error> {
        let mut reachable = manifests.clone();
        // One that is not here yet protects nothing: its puller leases what it brings.
        for digest in manifests.iter().filter(|digest| self.has_blob(digest)) {
            let manifest = self.manifest(digest)?;
            reachable.extend(manifest.blobs().map(|blob| blob.digest));
            if self.has_blob(&manifest.config.digest) {
                reachable.extend(self.image(digest)?.chain_ids());
            }
        }
        Ok(reachable)
    }

    fn collect_blobs(
        &self,
        reachable: &BTreeSet<Digest>,
        is_old: impl Fn(&Path) -> bool,
        done: &mut Collected,
    ) -> Result<(), Error> {
        for entry in list(&self.dir.join("blobs/sha256"))? {
            let Some(digest) = digest_named(&entry.file_name()) else { continue };
            let path = entry.path();
            if reachable.contains(&digest) || !is_old(&path) {
                continue;
            }
            let size = entry.metadata().map_or(0, |meta| meta.len());
            if let Some(removed) = self.leases.unless_held(&digest, || std::fs::remove_file(&path)) {
                removed.map_err(Error::io("remove", &path))?;
                done.blobs.push(digest);
                done.freed_bytes += size;
            }
        }
        Ok(())
    }

    fn collect_layers(
        &self,
        reachable: &BTreeSet<Digest>,
        is_old: impl Fn(&Path) -> bool,
        done: &mut Collected,
    ) -> Result<(), Error> {
        for entry in list(&self.layers_dir())? {
            let path = entry.path();
            let Some(note) = read_note(&path) else { continue };
            let chain_id = note.chain_id;
            let is_its_own = *short_id(&chain_id) == *entry.file_name();
            if !is_its_own || reachable.contains(&chain_id) || !is_old(&path) {
                continue;
            }
            let trash = self.temp_dir()?;
            // Out of the way in one step; whoever comes next unpacks it afresh.
            let moved = self.leases.unless_held(&chain_id, || std::fs::rename(&path, trash.path().join("layer")));
            if let Some(moved) = moved {
                moved.map_err(Error::io("rename", &path))?;
                let place = trash.path().to_owned();
                trash.close().map_err(Error::io("remove", place))?;
                done.layers.push(chain_id);
                done.freed_bytes += note.bytes;
            }
        }
        Ok(())
    }

    fn collect_partial(&self, is_old: impl Fn(&Path) -> bool) -> Result<(), Error> {
        for entry in list(&self.dir.join("partial"))? {
            let Some(digest) = digest_named(&entry.file_name()) else { continue };
            let path = entry.path();
            if is_old(&path) {
                let removed = self.leases.unless_held(&digest, || std::fs::remove_file(&path));
                removed.transpose().map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

fn digest_named(hex: &std::ffi::OsStr) -> Option<Digest> {
    Digest::from_str(&format!("sha256:{}", hex.to_str()?)).ok()
}
