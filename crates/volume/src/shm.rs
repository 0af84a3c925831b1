//! The board of the live map in a memfd: whoever holds the descriptor keeps the map, whatever happens to the process
//! that uses it. It owns the mapping; it must not know what the words mean.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{Result, VolumeError};
use crate::map::Board;

/// Words in shared memory.
pub struct SharedBoard {
    address: NonNull<c_void>,
    words: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped, has no thread affinity, and is only reached as atomics.
unsafe impl Send for SharedBoard {}
// SAFETY: as above; all access goes through `&[AtomicU64]`.
unsafe impl Sync for SharedBoard {}

impl SharedBoard {
    /// A new, zeroed memfd for that many words, sealed against a change of size (a shrink would be a SIGBUS for us).
    pub fn create(words: usize) -> Result<File> {
        let fd = memfd_create(c"godwit-volume-map", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(|error| VolumeError::io("creating the shared map")(error.into()))?;
        let file = File::from(fd);
        file.set_len((words * 8) as u64).map_err(VolumeError::io("sizing the shared map"))?;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))
            .map_err(|error| VolumeError::io("sealing the shared map")(error.into()))?;
        Ok(file)
    }

    /// Maps a memfd made by `create`, whose size must be as expected.
    pub fn map(file: &File, words: usize) -> Result<Self> {
        let len = file.metadata().map_err(VolumeError::io("looking at the shared map"))?.len();
        if words == 0 || len != (words * 8) as u64 {
            return Err(VolumeError::Process { what: format!("the shared map has {len} bytes, not {}", words * 8) });
        }
        // SAFETY: a fresh shared mapping of a file that was just measured; no existing memory is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED => Ok(Self { address, words }),
            _ => Err(VolumeError::io("mapping the shared map")(std::io::Error::last_os_error())),
        }
    }
}

impl Board for SharedBoard {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `words * 8` long, lives as long as `self`, cannot shrink (sealed), and is
        // only ever used through atomics, in this process and in its successors.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast::<AtomicU64>(), self.words) }
    }
}

impl Drop for SharedBoard {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped, once; no slice of it can outlive `self`.
        unsafe { libc::munmap(self.address.as_ptr(), self.words * 8) };
    }
}
