//! A terminal of the Machine's own: made in the devpts that is mounted inside, so that `tty` and whatever looks up
//! `/dev/pts/N` find it.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::{FsType, fstatfs};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use crate::sys;

/// DEVPTS_SUPER_MAGIC of linux/magic.h.
const DEVPTS: FsType = FsType(0x1cd1);

/// Both ends of a new terminal of the container whose first process this is: ours, and the command's.
pub fn open(init_pid: i32, rows: u16, columns: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    let root = File::open(format!("/proc/{init_pid}/root"))?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let ours = openat2(&root, "dev/pts/ptmx", OpenHow::new().flags(flags).resolve(resolve))?;
    if fstatfs(&ours)?.filesystem_type() != DEVPTS {
        return Err(io::Error::other("/dev/pts of the Machine is not a devpts"));
    }
    let theirs = sys::terminal_end(&ours)?;
    sys::resize_terminal(&ours, rows, columns)?;
    Ok((ours, theirs))
}
