//! From a source to verified images: which images it holds, whether each of their bytes is
//! what the documents say. Nothing is put into the store's places here.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use super::naming::Naming;
use super::source::{Source, Staged};
use crate::decode::{Bounds, Decoded, Packing};
use crate::digest::Digest;
use crate::error::{Error, LayerFault};
use crate::limits::{Limits, MAX_CONFIG_BYTES, MAX_IMAGES_PER_LOAD, MAX_INDEX_DEPTH, MAX_MANIFEST_BYTES};
use crate::progress::{Progress, ProgressSink};
use crate::spec::{
    ConfigDocument, Descriptor, DockerImage, Index, LayoutMarker, Manifest, Platform, media_type, no_platform,
};
use crate::store::{ContentStore, Lease};
use crate::tarball::TarReader;
use crate::unpack::Rehearsal;

/// Annotations that name an image in an index (annotations.md; the first is containerd's
/// and Docker's, with the whole reference).
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// The tar reader asks for blocks of 512 bytes; hashing likes more.
const READ_BUFFER_BYTES: usize = 128 << 10;
/// The only version of the image layout (image-layout.md).
const LAYOUT_VERSION: &str = "1.0.0";

/// A verified image, ready to be kept.
pub(super) struct Prepared {
    pub descriptor: Descriptor,
    pub manifest: Manifest,
    /// The manifest's own bytes.
    pub document: Vec<u8>,
    /// Blobs that the store lacks, and where they are.
    pub files: Vec<(Digest, PathBuf)>,
    pub names: Vec<(String, String)>,
    /// Keeps the blobs that the store has already.
    _lease: Lease,
}

struct Work<'a> {
    store: &'a ContentStore,
    source: &'a Source,
    what: &'a str,
    progress: &'a ProgressSink,
}

/// All images of the source.
pub(super) fn all(
    store: &ContentStore,
    source: &Source,
    what: &str,
    naming: &Naming,
    progress: &ProgressSink,
) -> Result<Vec<Prepared>, Error> {
    let work = Work { store, source, what, progress };
    // Docker writes both forms into one archive; the layout says more.
    if let Some(bytes) = source.document("index.json", MAX_MANIFEST_BYTES, "MAX_MANIFEST_BYTES")? {
        return work.layout(&bytes, naming);
    }
    if let Some(bytes) = source.document("manifest.json", MAX_MANIFEST_BYTES, "MAX_MANIFEST_BYTES")? {
        return work.docker(&bytes, naming);
    }
    Err(work.not_an_image("it has neither an index.json (OCI layout) nor a manifest.json (docker save)"))
}

impl Work<'_> {
    fn not_an_image(&self, reason: impl Into<String>) -> Error {
        Error::NotAnImage { what: self.what.to_owned(), reason: reason.into() }
    }

    fn check_count(&self, images: usize) -> Result<(), Error> {
        match images {
            0 => Err(self.not_an_image("it holds no image")),
            n if n > MAX_IMAGES_PER_LOAD => Err(Error::Limit {
                what: format!("{}: {n} images", self.what),
                limit: "MAX_IMAGES_PER_LOAD",
                bound: MAX_IMAGES_PER_LOAD as u64,
            }),
            _ => Ok(()),
        }
    }

    // ---- OCI ---------------------------------------------------------------------------

    fn layout(&self, index: &[u8], naming: &Naming) -> Result<Vec<Prepared>, Error> {
        let marker = self.source.document("oci-layout", MAX_CONFIG_BYTES, "MAX_CONFIG_BYTES")?;
        let marker = marker.ok_or_else(|| self.not_an_image("it has an index.json but no oci-layout file"))?;
        let marker: LayoutMarker = serde_json::from_slice(&marker).map_err(Error::document("oci-layout"))?;
        if marker.image_layout_version != LAYOUT_VERSION {
            return Err(self.not_an_image(format!("its layout version is {}", marker.image_layout_version)));
        }
        let index: Index = serde_json::from_slice(index).map_err(Error::document("index.json"))?;
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(Platform::is_ours);
        let entries: Vec<&Descriptor> = index.manifests.iter().filter(fits).collect();
        if entries.is_empty() && !index.manifests.is_empty() {
            return Err(no_platform(&index.manifests));
        }
        self.check_count(entries.len())?;
        // One image may stand there under several names: then it is one, with all of them.
        let mut images: Vec<(Descriptor, Vec<String>)> = Vec::new();
        for entry in entries {
            let own = NAME_ANNOTATIONS.iter().filter_map(|key| entry.annotations.get(*key)).take(1).cloned();
            let descriptor = self.choose(entry, MAX_INDEX_DEPTH)?;
            match images.iter_mut().find(|(known, _)| known.digest == descriptor.digest) {
                Some((_, names)) => names.extend(own),
                None => images.push((descriptor, own.collect())),
            }
        }
        let among = images.len();
        let image = |(descriptor, own): (Descriptor, Vec<String>)| {
            let names = naming.names(self.what, &own, among)?;
            self.oci_image(descriptor, names)
        };
        images.into_iter().map(image).collect()
    }

    /// The image for this machine that a descriptor leads to.
    fn choose(&self, entry: &Descriptor, depth: usize) -> Result<Descriptor, Error> {
        if !media_type::is_index(&entry.media_type) {
            return Ok(entry.clone());
        }
        if depth == 0 {
            return Err(self.not_an_image(format!("its indexes nest deeper than {MAX_INDEX_DEPTH}")));
        }
        let bytes = self.verified_document(entry, "index")?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(Error::document(format!("index {}", entry.digest)))?;
        self.choose(index.for_this_machine()?, depth - 1)
    }

    fn verified_document(&self, descriptor: &Descriptor, role: &str) -> Result<Vec<u8>, Error> {
        let digest = descriptor.digest;
        let path = blob_name(&digest);
        let bytes = self.source.document(&path, MAX_MANIFEST_BYTES, "MAX_MANIFEST_BYTES")?;
        let bytes = bytes.ok_or_else(|| Error::MissingBlob { role: role.to_owned(), digest })?;
        check_blob(role, descriptor, &Digest::of(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    fn oci_image(&self, descriptor: Descriptor, names: Vec<(String, String)>) -> Result<Prepared, Error> {
        if !media_type::is_manifest(&descriptor.media_type) {
            return Err(self.not_an_image(format!("{} has media type `{}`", descriptor.digest, descriptor.media_type)));
        }
        let document = self.verified_document(&descriptor, "manifest")?;
        let manifest: Manifest =
            serde_json::from_slice(&document).map_err(Error::document(format!("manifest {}", descriptor.digest)))?;
        manifest.check(self.what, self.store.limits())?;
        let blobs = manifest.blobs().map(|blob| blob.digest);
        let lease = self.store.lease(blobs.chain([descriptor.digest]));
        let mut files = Vec::new();
        for (index, blob) in manifest.blobs().enumerate() {
            let role = match index {
                0 => "configuration".to_owned(),
                n => format!("layer {n} of {}", manifest.layers.len()),
            };
            files.extend(self.blob(&role, blob)?.map(|staged| (blob.digest, staged.path)));
        }
        let descriptor = Descriptor { annotations: Default::default(), platform: None, ..descriptor };
        let prepared = Prepared { descriptor, manifest, document, files, names, _lease: lease };
        self.verify(&prepared)?;
        Ok(prepared)
    }

    /// Stages a blob unless the store has it.
    fn blob(&self, role: &str, blob: &Descriptor) -> Result<Option<Staged>, Error> {
        if let Some(there) = self.store.open_blob(&blob.digest)? {
            check_blob(role, blob, &blob.digest, there.size)?;
            return Ok(None);
        }
        let staged = self.source.stage(&blob_name(&blob.digest), self.progress)?;
        let staged = staged.ok_or_else(|| Error::MissingBlob { role: role.to_owned(), digest: blob.digest })?;
        check_blob(role, blob, &staged.digest, staged.size)?;
        Ok(Some(staged))
    }

    // ---- docker save -------------------------------------------------------------------

    fn docker(&self, bytes: &[u8], naming: &Naming) -> Result<Vec<Prepared>, Error> {
        let images: Vec<DockerImage> = serde_json::from_slice(bytes).map_err(Error::document("manifest.json"))?;
        self.check_count(images.len())?;
        let image = |image: &DockerImage| {
            let names = naming.names(self.what, &image.repo_tags, images.len())?;
            self.docker_image(image, names)
        };
        images.iter().map(image).collect()
    }

    /// Writes the OCI manifest that a `docker save` archive lacks.
    fn docker_image(&self, image: &DockerImage, names: Vec<(String, String)>) -> Result<Prepared, Error> {
        let staged = |path: &str| {
            let staged = self.source.stage(path, self.progress)?;
            staged.ok_or_else(|| self.not_an_image(format!("its manifest.json names `{path}`, which is missing")))
        };
        let mut files = Vec::new();
        let mut described = |staged: Staged, media_type: &str| {
            let descriptor = descriptor(media_type, staged.digest, staged.size);
            files.push((staged.digest, staged.path));
            descriptor
        };
        let config = described(staged(&image.config)?, media_type::CONFIG);
        let mut layers = Vec::new();
        for path in &image.layers {
            let layer = staged(path)?;
            let packing = packing(&layer, self.store.limits())
                .map_err(|source| Error::Archive { path: Some(path.clone()), source: Box::new(source) })?;
            layers.push(described(layer, packing.layer_media_type()));
        }
        let manifest = Manifest { schema_version: 2, media_type: media_type::MANIFEST.into(), config, layers };
        let document = serde_json::to_vec(&manifest).map_err(Error::document("the new manifest"))?;
        manifest.check(self.what, self.store.limits())?;
        let descriptor = descriptor(media_type::MANIFEST, Digest::of(&document), document.len() as u64);
        let lease = self.store.lease(manifest.blobs().map(|blob| blob.digest).chain([descriptor.digest]));
        let prepared = Prepared { descriptor, manifest, document, files, names, _lease: lease };
        self.verify(&prepared)?;
        Ok(prepared)
    }

    // ---- both --------------------------------------------------------------------------

    /// Platform and DiffIDs, and that every member of the layers can be unpacked: the bytes are read anyway, and
    /// told here it is told to who made the image, not to every host that is asked to start it.
    fn verify(&self, image: &Prepared) -> Result<(), Error> {
        let config = &image.manifest.config;
        let mut bytes = Vec::new();
        let file = self.open(image, &config.digest, "configuration")?;
        if config.size > MAX_CONFIG_BYTES {
            let what = format!("configuration {}", config.digest);
            return Err(Error::Limit { what, limit: "MAX_CONFIG_BYTES", bound: MAX_CONFIG_BYTES });
        }
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_CONFIG_BYTES), &mut bytes)
            .map_err(Error::io("read", config.digest.hex()))?;
        let document: ConfigDocument =
            serde_json::from_slice(&bytes).map_err(Error::document(format!("configuration {}", config.digest)))?;
        let layers = &image.manifest.layers;
        document.check(layers.len(), self.what)?;
        let diff_ids = &document.rootfs.diff_ids;
        let of = layers.len();
        let mut rehearsal = Rehearsal::new(self.store.limits());
        for (index, (layer, diff_id)) in layers.iter().zip(diff_ids).enumerate() {
            let number = index + 1;
            let file = self.open(image, &layer.digest, &format!("layer {number} of {of}"))?;
            let fault =
                |(path, source)| Error::Layer { number, of, digest: layer.digest, path, source: Box::new(source) };
            let found = rehearse(file, &mut rehearsal, self.store.limits()).map_err(fault)?;
            if found != *diff_id {
                return Err(fault((None, LayerFault::WrongDiffId { expected: *diff_id, found })));
            }
            (self.progress)(Progress::Layer { number, of });
        }
        Ok(())
    }

    /// A blob of the image, staged or stored.
    fn open(&self, image: &Prepared, digest: &Digest, role: &str) -> Result<File, Error> {
        if let Some((_, path)) = image.files.iter().find(|(staged, _)| staged == digest) {
            return File::open(path).map_err(Error::io("open", path));
        }
        let stored = self.store.open_blob(digest)?;
        let stored = stored.ok_or_else(|| Error::MissingBlob { role: role.to_owned(), digest: *digest })?;
        Ok(stored.file)
    }
}

/// Plays a layer through the unpacker's rules; answers the digest of its bytes.
fn rehearse(
    file: File,
    rehearsal: &mut Rehearsal<'_>,
    limits: &Limits,
) -> Result<Digest, (Option<String>, LayerFault)> {
    let whole = |fault| (None, fault);
    let decoded = Decoded::new(file, Bounds::layer(limits)).map_err(whole)?;
    let mut tar = TarReader::new(BufReader::with_capacity(READ_BUFFER_BYTES, decoded));
    rehearsal.begin_layer();
    while let Some(member) = tar.next().map_err(|fault| (tar.last_label(), fault))? {
        rehearsal.apply(&member).map_err(|fault| (Some(member.label()), fault))?;
    }
    tar.into_inner().into_inner().finish().map_err(whole)
}

fn packing(layer: &Staged, limits: &Limits) -> Result<Packing, LayerFault> {
    let file = File::open(&layer.path).map_err(LayerFault::io("open the layer"))?;
    Ok(Decoded::new(file, Bounds::layer(limits))?.packing())
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, annotations: Default::default(), platform: None }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn check_blob(role: &str, wanted: &Descriptor, found: &Digest, size: u64) -> Result<(), Error> {
    let role = || role.to_owned();
    // The size first: of a truncated blob it says more.
    if size != wanted.size {
        return Err(Error::WrongSize { role: role(), digest: wanted.digest, expected: wanted.size, found: size });
    }
    match *found == wanted.digest {
        true => Ok(()),
        false => Err(Error::WrongDigest { role: role(), expected: wanted.digest, found: *found }),
    }
}
