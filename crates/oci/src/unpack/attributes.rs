//! Owner, mode, times and extended attributes: read from a file, put on a file. Knows
//! neither tar streams nor where in a layer a file stands.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::stat::{FileStat, Mode};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use super::sys;
use crate::error::LayerFault;
use crate::tarball::Member;

/// Mode of a folder that no layer describes.
const IMPLIED_MODE: u32 = 0o755;

type Result<T> = std::result::Result<T, LayerFault>;

/// Owner, mode and the like.
pub(super) struct Attributes<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) time: TimeSpec,
    xattrs: &'a [(String, Vec<u8>)],
}

impl<'a> Attributes<'a> {
    pub(super) fn of(member: &'a Member) -> Self {
        Self {
            uid: member.uid,
            gid: member.gid,
            mode: member.mode,
            time: TimeSpec::new(member.mtime.0, member.mtime.1.into()),
            xattrs: &member.xattrs,
        }
    }

    pub(super) fn copied(stat: &FileStat, xattrs: &'a [(String, Vec<u8>)]) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777, time: sys::mtime(stat), xattrs }
    }

    /// Of a folder that no member describes. A time of zero, not of now: the same layer
    /// gives the same folder every time.
    pub(super) fn implied() -> Attributes<'static> {
        Attributes { uid: 0, gid: 0, mode: IMPLIED_MODE, time: TimeSpec::new(0, 0), xattrs: &[] }
    }

    /// In this order: chown drops setuid and file capabilities, and writing drops times.
    pub(super) fn put_on(&self, fd: &OwnedFd) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        nix::unistd::fchown(fd, Some(uid), Some(gid)).map_err(LayerFault::sys("set the owner"))?;
        let mode = Mode::from_bits_truncate(self.mode);
        nix::sys::stat::fchmod(fd, mode).map_err(LayerFault::sys("set the mode"))?;
        for (name, value) in self.xattrs.iter().filter(|(name, _)| is_wanted_xattr(name)) {
            match sys::set_xattr(fd, name, value) {
                // A file system without them still runs most images.
                Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => {}
                other => other.map_err(LayerFault::io("set an extended attribute"))?,
            }
        }
        sys::set_times(fd, self.time).map_err(LayerFault::sys("set the time"))
    }
}

/// Attributes that belong to an image. Those of overlayfs itself (`trusted.overlay.*`,
/// `user.overlay.*`) would let a layer redirect the mount; labels belong to the host.
fn is_wanted_xattr(name: &str) -> bool {
    match name {
        "security.capability" | "system.posix_acl_access" | "system.posix_acl_default" => true,
        other => other.starts_with("user.") && !other.starts_with("user.overlay."),
    }
}

/// Attributes with the extended ones that they own.
pub(super) struct CopiedAttributes {
    stat: FileStat,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl CopiedAttributes {
    pub(super) fn read(fd: &OwnedFd) -> Result<Self> {
        let read = || -> io::Result<Vec<(String, Vec<u8>)>> {
            let mut xattrs = Vec::new();
            for name in sys::list_xattrs(fd)? {
                let Ok(text) = name.to_str() else { continue };
                if let (true, Some(value)) = (is_wanted_xattr(text), sys::get_xattr(fd, &name)?) {
                    xattrs.push((text.to_owned(), value));
                }
            }
            Ok(xattrs)
        };
        let xattrs = read().map_err(LayerFault::io("read extended attributes"))?;
        let stat = nix::sys::stat::fstat(fd).map_err(LayerFault::sys("read the attributes"))?;
        Ok(Self { stat, xattrs })
    }

    pub(super) fn put_on(&self, fd: &OwnedFd) -> Result<()> {
        Attributes::copied(&self.stat, &self.xattrs).put_on(fd)
    }
}
