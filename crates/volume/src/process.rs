//! What a process must do to itself before it may serve a file system: memory that cannot be paged out through it,
//! and the kernel's promise not to make it wait for its own writeback (called before any thread is started, because
//! threads inherit it); and how descriptors pass to a child. Knows nothing of volumes.

use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::{Result, VolumeError};

/// From linux/prctl.h, since 5.6; libc does not carry it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// What could be had. A host without either still serves, but may stand still when memory runs out: the agent says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    pub is_io_flusher: bool,
    pub memory_is_locked: bool,
}

/// Needs CAP_SYS_RESOURCE for the one and CAP_IPC_LOCK for the other; a lack of either is told, not fatal.
pub fn prepare_to_serve() -> Prepared {
    // SAFETY: sets a flag of this thread and of those that it will start; no memory is involved.
    let is_io_flusher = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } == 0;
    if !is_io_flusher {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "not an IO flusher: CAP_SYS_RESOURCE is missing");
    }
    // On fault: what was never touched (the depths of stacks) takes no memory.
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: pins this process's pages; nothing is mapped or unmapped.
    let memory_is_locked = unsafe { libc::mlockall(flags) } == 0;
    if !memory_is_locked {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "memory is not locked: CAP_IPC_LOCK is missing");
    }
    Prepared { is_io_flusher, memory_is_locked }
}

/// This process is to die with its parent.
pub fn die_with_parent(parent: u32) -> Result<()> {
    // SAFETY: sets an attribute of this thread's process; no memory is involved.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(VolumeError::io("asking to die with the keeper")(std::io::Error::last_os_error()));
    }
    // It may have died before we asked.
    if std::os::unix::process::parent_id() == parent {
        Ok(())
    } else {
        Err(VolumeError::Process { what: "the keeper is gone".to_owned() })
    }
}

/// Above every number that a child is told to find something at.
const HIGH: RawFd = 16;

/// The child is to find each first descriptor under the second number (3 and up, below 16). The caller keeps the first
/// ones open until the child is spawned.
pub fn hand_over<const N: usize>(command: &mut Command, fds: [(RawFd, RawFd); N]) {
    // SAFETY: between fork and exec only fcntl, dup2 and array reads happen, which are safe there. High copies first,
    // so that no source is overwritten by another's target.
    unsafe {
        command.pre_exec(move || {
            let mut high = [0; N];
            for (slot, (from, _)) in high.iter_mut().zip(fds) {
                *slot = libc::fcntl(from, libc::F_DUPFD_CLOEXEC, HIGH);
                if *slot < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            for (from, (_, to)) in high.into_iter().zip(fds) {
                if libc::dup2(from, to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}
