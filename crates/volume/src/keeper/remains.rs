//! What an earlier keeper left behind: a server that lives, which is adopted; or a dead mount and a dead loop device,
//! which are cleared. Also how a volume without a keeper is stopped. It must not start anything.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::control;
use super::server::{Adoption, ServerAsk};
use crate::device::CloneStatus;
use crate::error::{Result, VolumeError};
use crate::front::fuse;
use crate::front::loop_device::LoopDevice;
use crate::lock::{Lock, path_of};
use crate::process::Watched;
use crate::spec::VolumeSpec;

/// At a stop: for the loop device to go while the server still answers what it asks, and for the last sync.
pub(super) const DETACH_PATIENCE: Duration = Duration::from_secs(2);
pub(super) const FLUSH_PATIENCE: Duration = Duration::from_secs(20);
/// A server that lives but was just started answers within this.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Mounts upon one another; more than one only after a keeper died while it mounted.
const MAX_MOUNTS: usize = 8;

/// A living server, and what it holds.
pub(super) struct Found {
    pub fuse: File,
    pub shared: File,
    pub server: Watched,
    /// A stop had begun, and serves nobody.
    pub finished: bool,
}

/// The server of this volume that an earlier keeper started, if it lives.
pub(super) fn find(spec: &VolumeSpec) -> Result<Option<Found>> {
    let deadline = Instant::now() + ANSWER_PATIENCE;
    loop {
        let error = match adopt(spec) {
            Ok(found) => return Ok(Some(found)),
            Err(error) => error,
        };
        match Lock::take(&path_of(&spec.server_control()), Duration::ZERO) {
            Ok(_nobody) => return Ok(None),
            Err(VolumeError::Taken { .. }) if Instant::now() < deadline => std::thread::sleep(ASK_AGAIN),
            // It lives and does not answer. Whoever kills it takes the volume's IO with it: not ours to decide.
            Err(VolumeError::Taken { .. }) => return Err(error),
            Err(other) => return Err(other),
        }
    }
}

fn adopt(spec: &VolumeSpec) -> Result<Found> {
    let answer = control::ask_for_descriptors(&spec.server_control(), &ServerAsk::Adopt, ANSWER_PATIENCE)?;
    let (adoption, fds): (Adoption, Vec<OwnedFd>) = answer;
    if adoption.volume != spec.volume || adoption.epoch != spec.epoch || adoption.size_bytes != spec.size_bytes {
        let what = format!("the server there is of {} at {}", adoption.volume, adoption.epoch);
        return Err(VolumeError::Process { what });
    }
    let fds: [OwnedFd; 3] = fds
        .try_into()
        .map_err(|_| VolumeError::Process { what: "the server did not hand over its descriptors".to_owned() })?;
    let [fuse, shared, process] = fds;
    let server = Watched::received(adoption.pid, process);
    Ok(Found { fuse: fuse.into(), shared: shared.into(), server, finished: adoption.finished })
}

/// The loop device over the file that is mounted there, alive or dead.
pub(super) fn loop_device(mountpoint: &Path) -> Option<LoopDevice> {
    let name = fuse::canonical(mountpoint)?.join(fuse::FILE_NAME);
    LoopDevice::find(fuse::file_at(mountpoint)?, &name)
}

/// Takes away what keeper and server left when both died. The loop device goes first: its name can only be found while
/// the mount is there, so that a clearing which is cut short can be done again.
pub(super) fn clear(spec: &VolumeSpec) -> Result<()> {
    for _ in 0..MAX_MOUNTS {
        if fuse::file_at(&spec.mountpoint).is_none() {
            return Ok(());
        }
        fuse::abort(&spec.mountpoint);
        if let Some(device) = loop_device(&spec.mountpoint) {
            // In use: by a file system that is dead as well, and goes with it.
            let gone = device.detach(DETACH_PATIENCE);
            tracing::warn!(device = %device.path.display(), ?gone, "a dead loop device was let go");
        }
        fuse::unmount(&spec.mountpoint)?;
    }
    Err(VolumeError::Front { what: format!("{} cannot be unmounted", spec.mountpoint.display()) })
}

/// Everything that was acknowledged, and every bit of the map, made durable by the server, and nothing more is taken.
pub(super) fn finish(spec: &VolumeSpec, patience: Duration) -> Result<CloneStatus> {
    control::ask_within(&spec.server_control(), &ServerAsk::Finish, patience)
}

/// Stops a volume whose keeper is gone, or ends within `patience`, as the keeper would have. `Taken`: it lives on.
pub fn stop_without_keeper(spec: &VolumeSpec, patience: Duration) -> Result<()> {
    let _only = Lock::take(&path_of(&spec.control), patience)?;
    if let Some(found) = find(spec)? {
        if fuse::is_alive(&found.fuse) {
            if let Some(device) = loop_device(&spec.mountpoint) {
                let gone = device.detach(DETACH_PATIENCE);
                tracing::info!(?gone, "the loop device of a volume without keeper");
            }
            if let Err(error) = finish(spec, FLUSH_PATIENCE) {
                tracing::warn!(error = %crate::error::chain(&error), "the last flush failed");
            }
        }
        end(spec, &found)?;
    }
    clear(spec)
}

/// Ends a server that nobody is to use any more.
pub(super) fn end(spec: &VolumeSpec, found: &Found) -> Result<()> {
    fuse::abort(&spec.mountpoint);
    found.server.kill();
    found.server.ended(Some(DETACH_PATIENCE)).map_err(VolumeError::io("waiting for the server"))?;
    Ok(())
}
