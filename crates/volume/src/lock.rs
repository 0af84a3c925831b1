//! Locks between processes: a file with an exclusive flock, which the kernel lets go when its last holder dies. It
//! owns the lock's life; it must not know what it guards. The file stays when the lock goes: removing it would let
//! two processes lock two files of one name.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Result, VolumeError};

/// Between two looks at a lock that somebody else has.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Held until dropped, and by every process that inherited the descriptor.
#[derive(Debug)]
pub struct Lock(File);

/// `control` with an ending of its own: where the lock of whoever listens there lies.
pub fn path_of(control: &Path) -> PathBuf {
    let mut path = control.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

impl Lock {
    /// Takes the lock, or says `Taken` if somebody else still has it after `patience`. A process that was killed a
    /// moment ago may still hold it through a child that has not yet called exec.
    pub fn take(path: &Path, patience: Duration) -> Result<Self> {
        let what = || VolumeError::io(format!("locking {}", path.display()));
        let open = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = open.map_err(what())?;
        let deadline = Instant::now() + patience;
        loop {
            // SAFETY: a plain system call on a descriptor that we hold.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                return Ok(Self(file));
            }
            let error = std::io::Error::last_os_error();
            match error.kind() {
                std::io::ErrorKind::Interrupted => {}
                std::io::ErrorKind::WouldBlock if Instant::now() >= deadline => {
                    return Err(VolumeError::Taken { path: path.to_owned() });
                }
                std::io::ErrorKind::WouldBlock => std::thread::sleep(LOOK_AGAIN),
                _ => return Err(what()(error)),
            }
        }
    }
    /// For a child that is to hold it too.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
