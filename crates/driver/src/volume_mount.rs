//! Which volumes a Machine is given, and where it sees them. Pure: the kernel's side is `volume`'s and the shim's.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::bind::{Bind, check_absolute, check_guest_path};
use crate::error::{Error, Result};

/// Most volumes of one Machine.
pub const MAX_VOLUMES: usize = 16;

/// What every Machine has at these places; a file system there would hide it, or be hidden.
const KERNEL_PLACES: [&str; 3] = ["/proc", "/sys", "/dev"];
/// What every Machine has in its `/dev`.
const TAKEN_IN_DEV: [&str; 16] = [
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
    "tty", "urandom", "zero",
];

/// One volume, as one Machine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// A block device of the host, such as `/dev/loop3`, that nobody else holds.
    pub device: PathBuf,
    /// Absolute, inside the Machine. A file system may be anywhere but at `/` and in the kernel's places, and links are
    /// followed inside the root only; a raw device must be in `/dev`.
    pub guest_path: String,
    pub fstype: VolumeFs,
    #[serde(default)]
    pub read_only: bool,
    /// Who owns the root folder of an ext4 volume that holds nothing yet; absent means the owner of the image's folder
    /// of that path, or the Machine's user where the image has none.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Its group, likewise.
    #[serde(default)]
    pub gid: Option<u32>,
}

/// How a volume is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFs {
    /// Mounted: the device holds an ext4 file system already. The device itself stays out of the Machine's reach.
    Ext4,
    /// As a device node that the Machine's user owns.
    Raw,
}

impl VolumeMount {
    /// The path without doubled slashes and dots.
    fn place(&self) -> PathBuf {
        Path::new(&self.guest_path).components().collect()
    }

    fn check(&self) -> Result<()> {
        check_absolute("volumes.device", &self.device)?;
        check_guest_path("volumes.guest_path", &self.guest_path)?;
        let place = self.place();
        let refused = |why: &str| Err(Error::invalid("volumes.guest_path", format!("{:?} {why}", self.guest_path)));
        if place == Path::new("/") {
            return refused("is the Machine's root");
        }
        match (self.fstype, place.strip_prefix("/dev")) {
            (VolumeFs::Ext4, _) if KERNEL_PLACES.iter().any(|taken| place.starts_with(taken)) => {
                refused("belongs to the kernel: no file system can be mounted there")
            }
            (VolumeFs::Raw, Err(_)) => refused("is not in /dev, where raw devices are shown"),
            (VolumeFs::Raw, Ok(name)) if name.as_os_str().is_empty() => refused("names no device"),
            (VolumeFs::Raw, Ok(name)) if TAKEN_IN_DEV.iter().any(|taken| name.starts_with(taken)) => {
                refused("is in every Machine's /dev already")
            }
            _ => Ok(()),
        }
    }
}

/// Refuses what no Machine could be given together.
pub(crate) fn check_volumes(volumes: &[VolumeMount], binds: &[Bind]) -> Result<()> {
    if volumes.len() > MAX_VOLUMES {
        return Err(Error::invalid("volumes", format!("at most {MAX_VOLUMES}")));
    }
    for (index, volume) in volumes.iter().enumerate() {
        volume.check()?;
        let (others, place) = (&volumes[..index], volume.place());
        if others.iter().any(|other| other.device == volume.device) {
            return Err(Error::invalid("volumes.device", format!("{} is given twice", volume.device.display())));
        }
        // A device node has nothing below it.
        let raw = |volume: &VolumeMount| volume.fstype == VolumeFs::Raw;
        let within = |a: &VolumeMount, b: &VolumeMount| raw(b) && a.place().starts_with(b.place());
        if others.iter().any(|o| o.place() == place || within(volume, o) || within(o, volume)) {
            let reason = format!("{:?} is where another volume is", volume.guest_path);
            return Err(Error::invalid("volumes.guest_path", reason));
        }
        if binds.iter().any(|bind| place == Path::new(&bind.guest_path).components().collect::<PathBuf>()) {
            let reason = format!("{:?} is where a folder of the host is shown", volume.guest_path);
            return Err(Error::invalid("volumes.guest_path", reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(n: usize, guest_path: &str, fstype: VolumeFs) -> VolumeMount {
        let device = format!("/dev/loop{n}").into();
        VolumeMount { device, guest_path: guest_path.into(), fstype, read_only: false, uid: None, gid: None }
    }

    fn refusal(volumes: &[VolumeMount]) -> String {
        check_volumes(volumes, &[]).expect_err("accepted").to_string()
    }

    #[test]
    fn a_volume_may_not_stand_where_the_machine_has_something() {
        let check = |path: &str, fstype, part: &str| {
            let told = refusal(&[volume(0, path, fstype)]);
            assert!(told.starts_with("volumes.guest_path") && told.contains(part), "{path}: {told}");
        };
        check("/", VolumeFs::Ext4, "root");
        check("/./", VolumeFs::Ext4, "root");
        check("data", VolumeFs::Ext4, "absolute");
        check("/data/../etc", VolumeFs::Ext4, "absolute");
        check("/proc", VolumeFs::Ext4, "kernel");
        check("//proc/./x", VolumeFs::Ext4, "kernel");
        check("/sys/fs", VolumeFs::Ext4, "kernel");
        check("/dev/shm", VolumeFs::Ext4, "kernel");
        check("/data", VolumeFs::Raw, "not in /dev");
        check("/devices/x", VolumeFs::Raw, "not in /dev");
        check("/dev/", VolumeFs::Raw, "names no device");
        check("/dev/null", VolumeFs::Raw, "already");
        check("/dev/pts/7", VolumeFs::Raw, "already");
        let mut relative = volume(0, "/data", VolumeFs::Ext4);
        relative.device = "loop0".into();
        assert!(refusal(&[relative]).starts_with("volumes.device"));
    }

    #[test]
    fn volumes_do_not_share_a_place_or_a_device() {
        let (ext4, raw) = (VolumeFs::Ext4, VolumeFs::Raw);
        assert!(refusal(&[volume(0, "/data", ext4), volume(1, "//data/", ext4)]).contains("another volume"));
        assert!(refusal(&[volume(0, "/dev/a", raw), volume(1, "/dev/a/b", raw)]).contains("another volume"));
        assert!(refusal(&[volume(0, "/dev/a/b", raw), volume(1, "/dev/a", raw)]).contains("another volume"));
        assert!(refusal(&[volume(0, "/a", ext4), volume(0, "/b", ext4)]).contains("twice"));
        let bind = Bind { source: "/srv".into(), guest_path: "/data/".into(), read_only: true };
        assert!(check_volumes(&[volume(0, "/data", ext4)], &[bind]).is_err());
        let many = |n| (0..n).map(|i| volume(i, &format!("/v{i}"), ext4)).collect::<Vec<_>>();
        check_volumes(&many(MAX_VOLUMES), &[]).unwrap();
        assert!(refusal(&many(MAX_VOLUMES + 1)).contains("at most"));
        let apart = [volume(0, "/data", ext4), volume(1, "/data/deeper", ext4), volume(2, "/dev/data", raw)];
        check_volumes(&apart, &[]).unwrap();
    }
}
