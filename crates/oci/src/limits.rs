//! Every bound of this crate that an operator may move, and the fixed ones beside their
//! users. Pure.

use crate::error::LayerFault;

/// Bounds on images. An image past one of them is refused with the bound's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Layers of one image. overlayfs takes at most 500 lower folders; Docker stops at 127.
    pub max_layers: usize,
    /// Bytes of one blob as it is stored (compressed).
    pub max_blob_bytes: u64,
    /// Bytes of one archive given to `load_*`, after its own compression is undone.
    pub max_archive_bytes: u64,
    /// Members of one archive given to `load_*`.
    pub max_archive_members: u64,
    /// Uncompressed bytes of one layer: both of its tar stream and of the files it makes
    /// (a sparse file counts with its full size).
    pub max_layer_bytes: u64,
    /// Members of one layer.
    pub max_layer_files: u64,
    /// Uncompressed bytes ÷ compressed bytes of one layer.
    pub max_ratio: u64,
    /// The ratio is judged only past so many uncompressed bytes: a small layer of zeros is
    /// harmless, however well it was packed.
    pub ratio_free_bytes: u64,
}

/// What a layer had so far, held to its bounds. Whoever unpacks a layer and whoever only judges it count the same.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct LayerCount {
    pub files: u64,
    pub bytes: u64,
}

impl LayerCount {
    /// One more member, of so many bytes.
    pub fn member(&mut self, bytes: u64, limits: &Limits) -> Result<(), LayerFault> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.files > limits.max_layer_files {
            return Err(LayerFault::Limit { limit: "max_layer_files", bound: limits.max_layer_files });
        }
        if self.bytes > limits.max_layer_bytes {
            return Err(LayerFault::Limit { limit: "max_layer_bytes", bound: limits.max_layer_bytes });
        }
        Ok(())
    }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layers: 127,
            max_blob_bytes: 32 * GIB,
            max_archive_bytes: 64 * GIB,
            max_archive_members: 10_000,
            max_layer_bytes: 64 * GIB,
            max_layer_files: 2_000_000,
            max_ratio: 250,
            ratio_free_bytes: 512 * MIB,
        }
    }
}

/// Bytes of one manifest or index (distribution-spec, "Pushing manifests": registries
/// accept at least 4 MiB).
pub const MAX_MANIFEST_BYTES: u64 = 4 * MIB;
/// Bytes of one image configuration.
pub const MAX_CONFIG_BYTES: u64 = 4 * MIB;
/// How deep indexes may nest.
pub(crate) const MAX_INDEX_DEPTH: usize = 4;
/// Images in one layout or archive.
pub(crate) const MAX_IMAGES_PER_LOAD: usize = 64;
