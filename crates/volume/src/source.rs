//! Where a clone's missing blocks come from. The trait and what all sources share; NBD is in `source::remote`, a file
//! in `source::file`, one with fault knobs in `source::faulty`. It must not know the clone.

pub mod faulty;
pub mod file;
pub mod remote;

use std::sync::{Arc, OnceLock};

use crate::map::{BLOCK_BYTES, Geometry};

pub type BlockHash = [u8; 32];

/// Zeros to compare with: `==` on slices is memcmp, which no loop of ours beats in any build.
pub static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// The BLAKE3 of a block. Blocks of zeros are common, and comparing is cheaper than hashing.
pub fn hash(bytes: &[u8]) -> BlockHash {
    if bytes == ZEROS { zero_hash() } else { *blake3::hash(bytes).as_bytes() }
}

/// The hash of a whole block of zeros.
pub fn zero_hash() -> BlockHash {
    static HASH: OnceLock<BlockHash> = OnceLock::new();
    *HASH.get_or_init(|| *blake3::hash(&ZEROS).as_bytes())
}

/// For each block of a run, whether it lies wholly within a hole.
pub fn holes(geometry: &Geometry, first: u64, count: u64, extents: &[Extent]) -> Vec<bool> {
    let mut holes = vec![false; count as usize];
    let mut at = geometry.span(first, count).0;
    for extent in extents.iter().filter(|extent| extent.len > 0) {
        let end = at + extent.len;
        if extent.zero {
            // A short last block counts as data: its hash is not that of a whole one.
            let inside = at.div_ceil(BLOCK_BYTES).max(first)..(end / BLOCK_BYTES).min(first + count);
            inside.for_each(|block| holes[(block - first) as usize] = true);
        }
        at = end;
    }
    holes
}

/// A stretch that is all zeros, or may hold data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    pub zero: bool,
}

/// Why the source did not answer. All of them are tried again: what the source holds exists nowhere else.
#[derive(Debug, thiserror::Error)]
#[error("the source {what}")]
pub struct SourceError {
    pub what: String,
    #[source]
    pub cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl SourceError {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), cause: None }
    }
    pub fn because<E: std::error::Error + Send + Sync + 'static>(what: &str) -> impl FnOnce(E) -> Self {
        let what = what.to_owned();
        move |cause| Self { what, cause: Some(Box::new(cause)) }
    }
}

pub type SourceResult<T> = Result<T, SourceError>;

/// Ends a session's call that hangs in another thread.
#[derive(Clone, Default)]
pub struct Interrupter(Option<Arc<dyn Fn() + Send + Sync>>);

impl Interrupter {
    pub fn new(act: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(act)))
    }
    pub fn interrupt(&self) {
        if let Some(act) = &self.0 {
            act();
        }
    }
}

/// A place to connect to. Each worker has a session of its own, so that a demand never waits behind a copy.
pub trait Source: Send + Sync {
    /// Bounded in time.
    fn connect(&self) -> SourceResult<Box<dyn Session>>;
}

pub trait Session: Send {
    fn size_bytes(&self) -> u64;
    /// Fills `buf` from `offset`, which is the start of a block, and `hashes` with what the source says of each block:
    /// none if it has no manifest. Bounded in time.
    fn fetch(&mut self, offset: u64, buf: &mut [u8], hashes: &mut Vec<BlockHash>) -> SourceResult<()>;
    /// What lies at `offset`; may answer for less than `len`, but for something.
    fn extents(&mut self, offset: u64, len: u64) -> SourceResult<Vec<Extent>>;
    /// The source's hashes of a run of blocks; `None` if it has no manifest.
    fn hashes(&mut self, first: u64, count: u64) -> SourceResult<Option<Vec<BlockHash>>>;
    /// Bytes that crossed the wire towards us so far.
    fn wire_bytes(&self) -> u64 {
        0
    }
    fn interrupter(&self) -> Interrupter {
        Interrupter::default()
    }
}
