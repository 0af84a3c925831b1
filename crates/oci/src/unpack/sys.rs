//! The system calls that unpacking needs and the standard library lacks: paths resolved
//! below a root without following a link, extended attributes by descriptor, whiteouts.
//! Knows nothing of images.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::sys::time::TimeSpec;

/// The attribute that makes a folder of an overlayfs layer opaque (kernel documentation,
/// "overlayfs", whiteouts and opaque directories).
pub(crate) const OPAQUE_XATTR: &CStr = c"trusted.overlay.opaque";

/// Opens `path` below `root`; no part of it may be a symbolic link or lead outside
/// (openat2(2), Linux 5.6). An empty path is the root itself.
pub(crate) fn open_beneath(root: impl AsFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    loop {
        match nix::fcntl::openat2(&root, path, how) {
            // A rename elsewhere raced the walk; the kernel asks to try again.
            Err(Errno::EAGAIN) => continue,
            other => return other,
        }
    }
}

/// Opens a folder below `root`.
pub(crate) fn open_folder(root: impl AsFd, path: &Path) -> nix::Result<OwnedFd> {
    open_beneath(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// Opens a root folder by its ordinary path.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

pub(crate) fn lstat_at(folder: impl AsFd, name: &OsStr) -> nix::Result<Option<FileStat>> {
    match nix::sys::stat::fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// overlayfs hides a name by a character device 0:0.
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

pub(crate) fn make_whiteout(folder: impl AsFd, name: &OsStr) -> nix::Result<()> {
    nix::sys::stat::mknodat(folder, name, SFlag::S_IFCHR, Mode::empty(), 0)
}

pub(crate) fn mtime(stat: &FileStat) -> TimeSpec {
    TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec)
}

/// Sets both times of an open file or folder.
pub(crate) fn set_times(fd: impl AsFd, time: TimeSpec) -> nix::Result<()> {
    nix::sys::stat::futimens(fd, &time, &time)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::ErrorKind::InvalidInput.into())
}

pub(crate) fn set_xattr(fd: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    set_xattr_c(fd, &c_string(name)?, value)
}

pub(crate) fn set_xattr_c(fd: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, the name ends with a NUL,
    // and the kernel only reads `value.len()` bytes of `value`.
    let done = unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// An attribute's value, or `None` if it is not there.
pub(crate) fn get_xattr(fd: impl AsFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    // XATTR_SIZE_MAX of the kernel.
    let mut value = vec![0u8; 64 << 10];
    // SAFETY: the descriptor is open, the name ends with a NUL, and the kernel writes at most
    // `value.len()` bytes into `value`, which we own.
    let got = unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match Errno::result(got) {
        Ok(length) => {
            value.truncate(length as usize); // Not negative: checked by `result`.
            Ok(Some(value))
        }
        Err(Errno::ENODATA | Errno::ENOTSUP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Names of all attributes.
pub(crate) fn list_xattrs(fd: impl AsFd) -> io::Result<Vec<CString>> {
    // XATTR_LIST_MAX of the kernel.
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: as in `get_xattr`.
    let got = unsafe { libc::flistxattr(fd.as_fd().as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    match Errno::result(got) {
        Ok(length) => {
            let list = names[..length as usize].split(|&b| b == 0).filter(|name| !name.is_empty());
            Ok(list.filter_map(|name| CString::new(name).ok()).collect())
        }
        Err(Errno::ENOTSUP) => Ok(Vec::new()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a folder of a layer is opaque.
pub(crate) fn is_opaque(fd: impl AsFd) -> io::Result<bool> {
    Ok(get_xattr(fd, OPAQUE_XATTR)?.as_deref() == Some(b"y"))
}

/// Names in a folder, without `.` and `..`.
pub(crate) fn names_in(folder: impl AsFd) -> nix::Result<Vec<std::ffi::OsString>> {
    let mut dir =
        nix::dir::Dir::openat(folder, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    Ok(names)
}
