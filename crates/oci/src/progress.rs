//! What load, pull and unpack tell about their progress. Pure: who draws it is not here.

use std::sync::Arc;

use crate::digest::Digest;

/// One step forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of a blob that have arrived.
    Blob {
        /// The blob; `None` while an archive's member is read whose digest is not known yet.
        digest: Option<Digest>,
        /// Bytes so far.
        done_bytes: u64,
        /// Bytes in all, where known.
        total_bytes: Option<u64>,
    },
    /// A layer was checked or unpacked.
    Layer {
        /// 1-based number of the layer, bottom first.
        number: usize,
        /// Layers of the image.
        of: usize,
    },
}

/// Where progress goes. Called often and from any thread: it must be quick.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// A sink that ignores everything.
pub fn no_progress() -> ProgressSink {
    Arc::new(|_| {})
}
