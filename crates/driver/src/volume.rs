//! Whether a volume's block device is free of the Machine that had it. It mounts nothing, and must not know what lies
//! behind the device.
//!
//! The file system of an ext4 volume is mounted in its Machine's mount namespace only, so it goes with the Machine's
//! last process, with nobody's help. But the kernel may finish that (the last writes, the closing of the device) a
//! little later than it shows the processes dead: "the Machine is proven dead" does not mean "the volume is whole on
//! its device". Between the two stands [`released`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

use crate::error::{Error, Result};

const POLL_MS: u64 = 5;

/// Waits until nobody has `device` mounted, for at most `bound`. `true`: an exclusive open of it succeeded, so every
/// file system on it is unmounted and written, and the device may be detached, moved or mounted elsewhere; `false`: it
/// is still held, or the kernel gave no answer in time (an unmount that waits for a stalled volume looks like that).
///
/// Ask after the Machine's end (`find` answers `Exited` or `Nothing`, `kill` and `wait` have returned). Nothing keeps
/// somebody else from taking the device afterwards: only the caller knows who may. An open raw device does not count as
/// held, so for `VolumeFs::Raw` the Machine's end is the whole proof. Errors: there is no such device, or it is no block
/// device.
pub async fn released(device: &Path, bound: Duration) -> Result<bool> {
    let deadline = Instant::now() + bound;
    loop {
        let path = device.to_owned();
        // Off the runtime's threads, and left behind at the deadline: to open a device can take as long as its closing.
        let looking = tokio::task::spawn_blocking(move || is_free(&path));
        match timeout_at(deadline, looking).await {
            Err(_) => return Ok(false),
            Ok(Ok(Ok(true))) => return Ok(true),
            Ok(Ok(Ok(false))) => {}
            Ok(Ok(Err(e))) => return Err(cannot_look(device, e)),
            Ok(Err(e)) => return Err(cannot_look(device, io::Error::other(e))),
        }
        let next = Instant::now() + Duration::from_millis(POLL_MS);
        if next >= deadline {
            return Ok(false);
        }
        sleep(next - Instant::now()).await;
    }
}

/// One look, which may block: does nobody hold the device exclusively, as a mounted file system does?
pub fn is_free(device: &Path) -> io::Result<bool> {
    let opening = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    match opening {
        Ok(file) => block_device(&file).map(|()| true),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(e) => Err(e),
    }
}

fn block_device(file: &File) -> io::Result<()> {
    match file.metadata()?.file_type().is_block_device() {
        true => Ok(()),
        // O_EXCL means nothing for other files: they would always seem free.
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device")),
    }
}

fn cannot_look(device: &Path, source: io::Error) -> Error {
    Error::Io { what: format!("cannot look at {}", device.display()), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_device_is_not_called_released() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let bound = Duration::from_secs(10);
        assert!(matches!(released(&file, bound).await, Err(Error::Io { .. })));
        assert!(matches!(released(&folder.path().join("absent"), bound).await, Err(Error::Io { .. })));
    }
}
