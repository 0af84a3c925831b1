//! Loop devices over a file, with direct IO: without it the loop goes through the page cache, one request at a time.
//! It owns the ioctls and how a device is recognised: by the device and inode number of the file behind it, checked on
//! the same open descriptor that is then used. Knows nothing of the volume behind the path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Result, VolumeError};

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Between asking for a free one and taking it, another process may have taken it.
const TRIES: usize = 32;
/// Between two looks at a device that is on its way out.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// struct loop_info64 of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    numbers: [u64; 3],
    more_numbers: [u32; 3],
    flags: u32,
    names: [u8; 160],
    init: [u64; 2],
}

const EMPTY: LoopInfo =
    LoopInfo { device: 0, inode: 0, numbers: [0; 3], more_numbers: [0; 3], flags: 0, names: [0; 160], init: [0; 2] };

/// struct loop_config of the same.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// Which file: the numbers of its file system and of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|found| Self { device: found.dev(), inode: found.ino() })
    }
}

/// A loop device and the file that it stood over when it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    pub path: PathBuf,
    pub file: FileId,
    /// The file's name, as the kernel showed it.
    pub name: PathBuf,
}

impl LoopDevice {
    /// A free loop device over the file, which stays until it is let go. Fails if direct IO cannot be had.
    pub fn attach(file: &Path) -> Result<Self> {
        Self::take_free(file, LO_FLAGS_DIRECT_IO).map(|(device, _)| device)
    }

    /// One that goes with its last user, of whom the open device that comes back is the first: what dies without a word
    /// leaves nothing.
    pub fn attach_held(file: &Path) -> Result<(Self, File)> {
        Self::take_free(file, LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR)
    }

    fn take_free(file: &Path, flags: u32) -> Result<(Self, File)> {
        let what = |verb: &str| VolumeError::io(format!("{verb} a loop device over {}", file.display()));
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_DIRECT);
        let backing = options.open(file).map_err(what("opening the file for"))?;
        let facts = backing.metadata().map_err(what("measuring the file for"))?;
        let control = File::options().read(true).write(true).open("/dev/loop-control");
        let control = control.map_err(what("opening /dev/loop-control for"))?;
        for _ in 0..TRIES {
            // SAFETY: takes no argument; the descriptor is ours.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(what("finding")(io::Error::last_os_error()));
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            match configure(&path, &backing, flags) {
                Ok(open) => {
                    let file = FileId { device: facts.dev(), inode: facts.ino() };
                    let name = backing_name(&sys_of(&path)).unwrap_or_default();
                    return Ok((Self { path, file, name }.with_direct_io()?, open));
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(what("configuring")(error)),
            }
        }
        Err(VolumeError::Front { what: "no loop device is free for long enough".to_owned() })
    }

    /// The device that stands over this file already. `named`: the name that the kernel would show for it, for when
    /// the file itself cannot be looked at any more; a device whose shown name differs and cannot be looked at is not
    /// it. Devices that are nothing to us are not even opened: the last close of one writes its cache back, and waits.
    pub fn find(file: FileId, named: &Path) -> Option<Self> {
        let devices = std::fs::read_dir("/sys/block").ok()?;
        devices.flatten().find_map(|entry| {
            let shown = backing_name(&entry.path())?;
            if shown != named && FileId::of(&shown).ok() != Some(file) {
                return None;
            }
            let path = Path::new("/dev").join(entry.file_name());
            let open = File::open(&path).ok()?;
            let device = Self { path, file, name: shown };
            device.is_over_its_file(&open).then_some(device)
        })
    }

    fn with_direct_io(self) -> Result<Self> {
        let state = std::fs::read_to_string(self.sys().join("loop/dio")).unwrap_or_default();
        if state.trim() == "1" {
            return Ok(self);
        }
        self.let_go()?;
        Err(VolumeError::Front { what: format!("{} has no direct IO", self.path.display()) })
    }

    /// Lets the file go, if the device is still over it. A device that is in use goes once its last user has closed it.
    pub fn let_go(&self) -> Result<()> {
        let what = || VolumeError::io(format!("detaching {}", self.path.display()));
        let device = match File::open(&self.path) {
            Ok(device) => device,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => return Ok(()),
            Err(error) => return Err(what()(error)),
        };
        // While it is open here it cannot be given to another file.
        if !self.is_over_its_file(&device) {
            return Ok(());
        }
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

    /// Lets the file go and waits until the device is really gone. False: somebody uses it; it goes with them.
    pub fn detach(&self, at_most: Duration) -> Result<bool> {
        let deadline = Instant::now() + at_most;
        let Some(name) = backing_name(&self.sys()) else { return Ok(true) };
        let device = self.clone();
        // Its last close writes back and waits for requests in flight, which may wait for a source.
        crate::process::within("detaching a loop device", at_most, move || device.let_go())?;
        while backing_name(&self.sys()).as_ref() == Some(&name) {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(true)
    }

    fn is_over_its_file(&self, open: &File) -> bool {
        match status(open) {
            Ok(file) => file == self.file,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => false,
            // A file whose file system is dead cannot be looked at: then its name decides.
            Err(_) => backing_name(&self.sys()).as_ref() == Some(&self.name),
        }
    }

    fn sys(&self) -> PathBuf {
        sys_of(&self.path)
    }
}

fn sys_of(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

/// The name of the file behind a loop device, as the kernel shows it; `None` for anything else.
fn backing_name(sys: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(sys.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(text.trim_end_matches('\n')))
}

/// The file behind an open loop device.
fn status(device: &File) -> io::Result<FileId> {
    let mut info = EMPTY;
    // SAFETY: the kernel writes `size_of::<LoopInfo>()` bytes to `info`, which has that layout and outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) } == 0 {
        Ok(FileId { device: info.device, inode: info.inode })
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The device, open.
fn configure(path: &Path, backing: &File, flags: u32) -> io::Result<File> {
    let device = File::options().read(true).write(true).open(path)?;
    let info = LoopInfo { flags, ..EMPTY };
    let config = LoopConfig { fd: backing.as_raw_fd() as u32, block_size: 512, info, reserved: [0; 8] };
    // SAFETY: the kernel reads `size_of::<LoopConfig>()` bytes from `config`, which has that layout and outlives the
    // call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}
