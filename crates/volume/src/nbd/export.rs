//! What an NBD server serves, and under which names: plain ones, or `volume@epoch+token` where the token opens the
//! export for one peer only. It must not know the protocol.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use crate::backing::{Backing, extents_of};
use crate::device::{CloneDevice, lock};
use crate::error::{Result, VolumeError};
use crate::map::{BLOCK_BYTES, Geometry};
use crate::source::{BlockHash, Extent, hash, holes, zero_hash};

/// A block device to serve. All calls block, and may come from many threads.
pub trait Export: Send + Sync {
    fn size_bytes(&self) -> u64;
    fn is_read_only(&self) -> bool;
    /// Whether hashes may be asked for. Of something that changes they are as good as a guess.
    fn has_manifest(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()>;
    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> Result<()>;
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    fn flush(&self) -> Result<()>;
    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>>;
    /// A client's requests come from now on, until `left` is called as often.
    fn joined(&self) {}
    fn left(&self) {}
    /// BLAKE3 of a run of blocks, read anew but for holes.
    fn hashes(&self, first: u64, count: u64) -> Result<Vec<BlockHash>> {
        let geometry = Geometry::new(self.size_bytes())?;
        let (start, end) = geometry.span(first, count);
        let holes = holes(&geometry, first, count, &self.extents(start, end - start)?);
        let mut buf = vec![0; BLOCK_BYTES as usize];
        let mut hashes = Vec::with_capacity(count as usize);
        for (block, hole) in (first..).zip(holes) {
            if hole {
                hashes.push(zero_hash());
                continue;
            }
            let (start, end) = geometry.span(block, 1);
            let buf = &mut buf[..(end - start) as usize];
            self.read(start, buf)?;
            hashes.push(hash(buf));
        }
        Ok(hashes)
    }
}

/// A raw file.
pub struct FileExport {
    file: File,
    size_bytes: u64,
    read_only: bool,
}

impl FileExport {
    pub fn new(file: File, read_only: bool) -> Result<Self> {
        let size_bytes = file.metadata().map_err(VolumeError::io("measuring the export"))?.len();
        Geometry::new(size_bytes)?;
        Ok(Self { file, size_bytes, read_only })
    }
    fn writable(&self) -> Result<&File> {
        if self.read_only { Err(VolumeError::ReadOnly) } else { Ok(&self.file) }
    }
}

impl Export for FileExport {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn has_manifest(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(VolumeError::io("reading the export"))
    }
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.writable()?.write_all_at(buf, offset).map_err(VolumeError::io("writing the export"))
    }
    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> Result<()> {
        let file = self.writable()?;
        let done = if keep_space { file.zero(offset, len) } else { file.punch(offset, len) };
        done.map_err(VolumeError::io("zeroing the export"))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?.punch(offset, len).map_err(VolumeError::io("trimming the export"))
    }
    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(VolumeError::io("syncing the export"))
    }
    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        extents_of(&self.file, offset, len).map_err(VolumeError::io("listing the export's holes"))
    }
}

impl Export for CloneDevice {
    fn size_bytes(&self) -> u64 {
        CloneDevice::size_bytes(self)
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        CloneDevice::read(self, offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        CloneDevice::write(self, offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> Result<()> {
        CloneDevice::write_zeroes(self, offset, len, keep_space)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        CloneDevice::discard(self, offset, len)
    }
    fn flush(&self) -> Result<()> {
        CloneDevice::flush(self)
    }
    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        CloneDevice::extents(self, offset, len)
    }
}

/// Who is at the other end: the BLAKE3 of its certificate, if it showed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    pub certificate: Option<BlockHash>,
}

/// Names and what stands behind them. A name that is not there and one that this peer may not have look the same.
pub trait Exports: Send + Sync {
    fn open(&self, name: &str, peer: &Peer) -> Option<Arc<dyn Export>>;
    /// Names that anybody may know.
    fn list(&self) -> Vec<String>;
}

/// Names in the clear.
#[derive(Default)]
pub struct Named(pub BTreeMap<String, Arc<dyn Export>>);

impl Exports for Named {
    fn open(&self, name: &str, _: &Peer) -> Option<Arc<dyn Export>> {
        self.0.get(name).cloned()
    }
    fn list(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

struct Ticket {
    export: Arc<dyn Export>,
    token: blake3::Hash,
    /// The first peer that showed the token. It may come again, on more connections or after a cut; nobody else may.
    holder: Option<Peer>,
    /// Told once, so that it can be remembered beyond this process.
    claimed: Claimed,
}

/// What is to be done when a ticket finds its holder.
pub type Claimed = Box<dyn Fn(&Peer) + Send>;

/// Exports named `volume@epoch+token`.
#[derive(Default)]
pub struct Tickets(Mutex<BTreeMap<String, Ticket>>);

impl Tickets {
    /// The name without its token, as in `volume@epoch`.
    pub fn add(&self, volume_at_epoch: &str, token: &str, export: Arc<dyn Export>) {
        self.add_claimed(volume_at_epoch, token, export, None, Box::new(|_| {}));
    }
    /// The same, for a ticket whose holder may be known from an earlier life.
    pub fn add_claimed(
        &self,
        volume_at_epoch: &str,
        token: &str,
        export: Arc<dyn Export>,
        holder: Option<Peer>,
        claimed: Claimed,
    ) {
        let ticket = Ticket { export, token: blake3::hash(token.as_bytes()), holder, claimed };
        lock(&self.0).insert(volume_at_epoch.to_owned(), ticket);
    }
    pub fn remove(&self, volume_at_epoch: &str) -> bool {
        lock(&self.0).remove(volume_at_epoch).is_some()
    }
}

impl Exports for Tickets {
    fn open(&self, name: &str, peer: &Peer) -> Option<Arc<dyn Export>> {
        let (name, token) = name.rsplit_once('+')?;
        let mut tickets = lock(&self.0);
        let ticket = tickets.get_mut(name)?;
        // Hashes compare in constant time.
        if ticket.token != blake3::hash(token.as_bytes()) || ticket.holder.is_some_and(|holder| holder != *peer) {
            return None;
        }
        if ticket.holder.is_none() {
            (ticket.claimed)(peer);
            ticket.holder = Some(*peer);
        }
        Some(Arc::clone(&ticket.export))
    }
    fn list(&self) -> Vec<String> {
        Vec::new()
    }
}
