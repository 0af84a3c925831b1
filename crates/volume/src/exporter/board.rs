//! What of an export must outlive its server: counters, and who holds its ticket, in shared memory that the keeper
//! holds. It owns the layout; it must not know sockets or processes.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use godwit_api::ids::Epoch;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::map::Board;
use crate::nbd::export::{Export, FileExport, Peer};
use crate::shm::SharedBoard;
use crate::source::{BlockHash, Extent};

/// Counters since the keeper began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub volume: String,
    pub epoch: Epoch,
    /// Connections that are open now.
    pub connections: u64,
    pub connections_total: u64,
    pub read_bytes: u64,
    /// Hashes of the manifest that were given out.
    pub hashes: u64,
    /// Whether a peer has shown the token.
    pub claimed: bool,
}

/// Words of one export.
const WORDS: usize = 16;
const AT_CONNECTIONS: usize = 0;
const AT_CONNECTIONS_TOTAL: usize = 1;
const AT_READ_BYTES: usize = 2;
const AT_HASHES: usize = 3;
/// 0: unclaimed, 1: by a peer without a certificate, 2: by the one whose hash follows.
const AT_CLAIMED: usize = 4;
const AT_HOLDER: usize = 8;

pub(super) struct ExportBoard {
    board: SharedBoard,
    exports: usize,
}

impl ExportBoard {
    pub fn words(exports: usize) -> usize {
        exports * WORDS
    }
    pub fn map(shared: &File, exports: usize) -> Result<Self> {
        Ok(Self { board: SharedBoard::map(shared, Self::words(exports))?, exports })
    }
    fn word(&self, index: usize, at: usize) -> &AtomicU64 {
        &self.board.words()[index * WORDS + at]
    }
    fn get(&self, index: usize, at: usize) -> u64 {
        self.word(index, at).load(Ordering::SeqCst)
    }
    fn add(&self, index: usize, at: usize, by: u64) {
        self.word(index, at).fetch_add(by, Ordering::SeqCst);
    }

    pub fn nobody_is_connected(&self) {
        (0..self.exports).for_each(|index| self.word(index, AT_CONNECTIONS).store(0, Ordering::SeqCst));
    }
    pub fn holder(&self, index: usize) -> Option<Peer> {
        match self.get(index, AT_CLAIMED) {
            0 => None,
            1 => Some(Peer::default()),
            _ => {
                let mut hash = BlockHash::default();
                for (word, bytes) in hash.chunks_exact_mut(8).enumerate() {
                    bytes.copy_from_slice(&self.get(index, AT_HOLDER + word).to_le_bytes());
                }
                Some(Peer { certificate: Some(hash) })
            }
        }
    }
    pub fn claim(&self, index: usize, peer: &Peer) {
        if let Some(hash) = &peer.certificate {
            let (words, _) = hash.as_chunks::<8>();
            for (at, word) in words.iter().enumerate() {
                self.word(index, AT_HOLDER + at).store(u64::from_le_bytes(*word), Ordering::SeqCst);
            }
        }
        // Last: a claim counts once it is whole.
        let claimed = if peer.certificate.is_some() { 2 } else { 1 };
        self.word(index, AT_CLAIMED).store(claimed, Ordering::SeqCst);
    }
    pub fn status(&self, index: usize, volume: &str, epoch: Epoch) -> ExportStatus {
        ExportStatus {
            volume: volume.to_owned(),
            epoch,
            connections: self.get(index, AT_CONNECTIONS),
            connections_total: self.get(index, AT_CONNECTIONS_TOTAL),
            read_bytes: self.get(index, AT_READ_BYTES),
            hashes: self.get(index, AT_HASHES),
            claimed: self.get(index, AT_CLAIMED) != 0,
        }
    }
}

/// A file's export that counts.
pub(super) struct Counted {
    inner: FileExport,
    board: Arc<ExportBoard>,
    index: usize,
}

impl Counted {
    pub fn new(inner: FileExport, board: Arc<ExportBoard>, index: usize) -> Self {
        Self { inner, board, index }
    }
}

impl Export for Counted {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn has_manifest(&self) -> bool {
        self.inner.has_manifest()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read(offset, buf)?;
        self.board.add(self.index, AT_READ_BYTES, buf.len() as u64);
        Ok(())
    }
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> Result<()> {
        self.inner.write_zeroes(offset, len, keep_space)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.inner.extents(offset, len)
    }
    fn hashes(&self, first: u64, count: u64) -> Result<Vec<BlockHash>> {
        let hashes = self.inner.hashes(first, count)?;
        self.board.add(self.index, AT_HASHES, count);
        Ok(hashes)
    }
    fn joined(&self) {
        self.board.add(self.index, AT_CONNECTIONS, 1);
        self.board.add(self.index, AT_CONNECTIONS_TOTAL, 1);
    }
    fn left(&self) {
        self.board.word(self.index, AT_CONNECTIONS).fetch_sub(1, Ordering::SeqCst);
    }
}
