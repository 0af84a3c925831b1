//! A loop device over the FUSE file, with direct IO: without it the loop goes through the page cache, one request at a
//! time. Knows nothing of the volume behind the path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Result, VolumeError};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Between asking for a free one and taking it, another process may have taken it.
const TRIES: usize = 32;

/// struct loop_config of linux/loop.h, as far as we set it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// struct loop_info64: 52 bytes of numbers, the flags, then names and keys.
    info_numbers: [u32; 13],
    info_flags: u32,
    info_names: [u8; 176],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    pub path: PathBuf,
}

impl LoopDevice {
    /// A free loop device over the file. Fails if direct IO cannot be had.
    pub fn attach(file: &Path) -> Result<Self> {
        let what = |verb: &str| VolumeError::io(format!("{verb} a loop device over {}", file.display()));
        let backing = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(file)
            .map_err(what("opening the file for"))?;
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(what("opening /dev/loop-control for"))?;
        for _ in 0..TRIES {
            // SAFETY: takes no argument; the descriptor is ours.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(what("finding")(io::Error::last_os_error()));
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            match configure(&path, &backing) {
                Ok(()) => {
                    let device = Self { path };
                    return device.with_direct_io();
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(what("configuring")(error)),
            }
        }
        Err(VolumeError::Front { what: "no loop device is free for long enough".to_owned() })
    }

    fn with_direct_io(self) -> Result<Self> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let state = std::fs::read_to_string(format!("/sys/block/{name}/loop/dio")).unwrap_or_default();
        if state.trim() == "1" {
            return Ok(self);
        }
        self.detach()?;
        Err(VolumeError::Front { what: format!("{name} has no direct IO") })
    }

    /// Lets the file go. A device that is in use goes once its last user has closed it.
    pub fn detach(&self) -> Result<()> {
        let what = || VolumeError::io(format!("detaching {}", self.path.display()));
        let device = File::open(&self.path).map_err(what())?;
        // SAFETY: takes no argument; the descriptor is ours.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // Nothing is attached to it.
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            error => Err(what()(error)),
        }
    }
}

fn configure(path: &Path, backing: &File) -> io::Result<()> {
    let device = File::options().read(true).write(true).open(path)?;
    let config = LoopConfig {
        fd: backing.as_raw_fd() as u32,
        block_size: 512,
        info_numbers: [0; 13],
        info_flags: LO_FLAGS_DIRECT_IO,
        info_names: [0; 176],
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads `size_of::<LoopConfig>()` bytes from `config`, which has that layout and outlives the
    // call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
