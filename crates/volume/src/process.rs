//! What a process must do to itself before it may serve a file system: memory that cannot be paged out through it,
//! and the kernel's promise not to make it wait for its own writeback (called before any thread is started, because
//! threads inherit it); and how descriptors pass to a child. Knows nothing of volumes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

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

/// Does something that the kernel may hold up, on a thread of its own, and says `Late` when it takes longer than that.
/// The thread then ends when the kernel lets it.
pub fn within<T: Send + 'static>(
    what: &str,
    bound: Duration,
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, wait) = std::sync::mpsc::sync_channel(1);
    let body = move || {
        // Nobody may wait any more.
        let _ = done.send(act());
    };
    std::thread::Builder::new().name("bounded".to_owned()).spawn(body).map_err(VolumeError::io("starting a thread"))?;
    match wait.recv_timeout(bound) {
        Ok(result) => result,
        Err(_) => Err(VolumeError::Late { what: what.to_owned(), bound_ms: bound.as_millis() as u64 }),
    }
}

/// Waits until a descriptor can be read or is in error, at most for so long (`None`: for ever). Says what it found of
/// `libc::POLLIN` and the rest; 0 if nothing.
pub fn poll(fd: BorrowedFd<'_>, at_most: Option<Duration>) -> std::io::Result<libc::c_short> {
    let deadline = at_most.map(|at_most| Instant::now() + at_most);
    loop {
        let left = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last wait is not a spin.
            left.as_micros().div_ceil(1000).try_into().unwrap_or(libc::c_int::MAX)
        });
        let mut ask = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: reads and writes one pollfd, which lives through the call.
        match unsafe { libc::poll(&raw mut ask, 1, left) } {
            0.. => return Ok(ask.revents),
            _ => match std::io::Error::last_os_error() {
                error if error.kind() == std::io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// A process that may be no child of ours, by a descriptor that never means another one.
#[derive(Debug)]
pub struct Watched {
    pid: u32,
    fd: OwnedFd,
}

impl Watched {
    /// A process that cannot have been reaped yet: this one, or a child that nobody has waited for.
    pub fn of(pid: u32) -> std::io::Result<Self> {
        // SAFETY: a plain system call that makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: made just now, and nobody else knows it.
        Ok(Self { pid, fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) } })
    }
    /// From another process, which says whose it is.
    pub fn received(pid: u32, fd: OwnedFd) -> Self {
        Self { pid, fd }
    }
    pub fn pid(&self) -> u32 {
        self.pid
    }
    /// Whether it ended within that time (`None`: for ever).
    pub fn ended(&self, at_most: Option<Duration>) -> std::io::Result<bool> {
        Ok(poll(self.fd.as_fd(), at_most)? != 0)
    }
    /// SIGKILL; dead already is as good.
    pub fn kill(&self) {
        let (none, flags) = (std::ptr::null::<libc::siginfo_t>(), 0);
        // SAFETY: a plain system call on a descriptor that we hold; no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), libc::SIGKILL, none, flags) };
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
