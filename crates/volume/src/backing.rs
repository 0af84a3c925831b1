//! The local file under a volume: reads, writes, holes and syncs. It owns the system calls; it must not know the map.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::source::{Extent, ZEROS};

/// The file, or a recorder of the power-cut test around it.
pub trait Backing: Send + Sync {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Zeros from now on; the space goes back to the host.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Zeros from now on; the space stays ours.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Space for later writes; what reads see does not change.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Everything that ended before this call is durable after it.
    fn sync(&self) -> io::Result<()>;
    fn extents(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>>;
}

impl Backing for File {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        allocate(self, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        match allocate(self, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                // tmpfs and others: by hand.
                let mut at = 0;
                while at < len {
                    let step = (len - at).min(ZEROS.len() as u64);
                    self.write_all_at(&ZEROS[..step as usize], offset + at)?;
                    at += step;
                }
                Ok(())
            }
            result => result,
        }
    }
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        allocate(self, libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
    fn extents(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        extents_of(self, offset, len)
    }
}

fn allocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: a plain system call on a descriptor that we hold.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Extents that one call lists at most; a caller asks again for the rest.
const MAX_EXTENTS: usize = 4096;

/// Data and holes of a file by SEEK_DATA and SEEK_HOLE, in order, for all of `[offset, offset + len)` or for as much
/// as fits into `MAX_EXTENTS`.
pub fn extents_of(file: &File, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
    let end = offset + len;
    let mut at = offset;
    let mut found = Vec::new();
    while at < end && found.len() < MAX_EXTENTS {
        let data = seek(file, at, libc::SEEK_DATA)?.unwrap_or(end).min(end);
        if data > at {
            found.push(Extent { len: data - at, zero: true });
            at = data;
            continue;
        }
        let hole = seek(file, at, libc::SEEK_HOLE)?.unwrap_or(end).min(end);
        // The file may change beneath us; then "data" is the careful answer for what was asked.
        let hole = if hole > at { hole } else { end };
        found.push(Extent { len: hole - at, zero: false });
        at = hole;
    }
    Ok(found)
}

/// `None`: nothing of that kind up to the file's end.
fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: a plain system call. It moves the file's position, which nobody here uses (all IO is positioned).
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}
