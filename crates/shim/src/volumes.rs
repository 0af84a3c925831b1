//! Gives a Machine its volumes: mounts the file systems into its root, and finds out what its raw devices are.
//!
//! Runs in the builder, in a mount namespace that nobody else is in: the Machine's own namespace is a copy of it, and
//! the builder's ends with the builder. So a file system is held by this Machine alone, and goes with its last process.
//! Not left to libcontainer, which mounts from within the Machine's cgroup: to mount a device there, the cgroup must
//! allow it, and then root inside could open it beneath the mounted file system. Nothing here knows what lies behind a
//! device.

use godwit_driver::{VolumeFs, VolumeMount, volume};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::BuildError;
use crate::oci::RawDevice;
use crate::root::Root;

/// How long the start waits, in all, for devices that are still held: a former instance's unmount may be under way.
const FREE_TIMEOUT_MS: u64 = 5000;
const FREE_POLL_MS: u64 = 5;
/// What a file system says about itself is its user's word: one that asks for a panic at an error must not get it.
const EXT4_OPTIONS: &str = "errors=remount-ro";
/// The number of every ext4 file system's root folder.
const EXT4_ROOT_INODE: u64 = 2;

/// What the root folder of a volume that holds nothing yet becomes.
struct Wish {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// Mode of a folder that the image does not have.
const NEW_FOLDER_MODE: u32 = 0o755;
/// What mke2fs makes.
const LOST_AND_FOUND: &str = "lost+found";

/// Mounts the file systems, with `flags` besides those that all are mounted with, and answers the raw devices. `user` owns
/// what the image has no folder for.
pub fn attach(
    root: &Root,
    volumes: &[VolumeMount],
    user: (u32, u32),
    flags: MsFlags,
) -> Result<Vec<RawDevice>, BuildError> {
    let deadline = Instant::now() + Duration::from_millis(FREE_TIMEOUT_MS);
    let mut ordered: Vec<&VolumeMount> = volumes.iter().collect();
    // One that lies in another comes after it, or it would be hidden.
    ordered.sort_by_key(|volume| Path::new(&volume.guest_path).components().count());
    // Before anything is mounted: what the image itself has there.
    let ordered: Vec<_> = ordered.into_iter().map(|volume| (volume, wish(root, volume, user))).collect();
    let (mut mounted, mut raw) = (Vec::new(), Vec::new());
    for (volume, wish) in ordered {
        let device = claim(volume, deadline).map_err(|e| refused(volume, &e))?;
        let id = fstat(&*device).map_err(|e| refused(volume, &e.into()))?.st_rdev;
        match volume.fstype {
            VolumeFs::Raw => raw.push(RawDevice {
                guest_path: PathBuf::from(&volume.guest_path),
                major: major(id),
                minor: minor(id),
                read_only: volume.read_only,
            }),
            VolumeFs::Ext4 => {
                let place = mount_point(root, volume, &mounted)?;
                mount_ext4(volume, &place, flags).map_err(|e| refused(volume, &e))?;
                mounted.push(id);
                if !volume.read_only {
                    settle(root, volume, &wish).map_err(|e| refused(volume, &e))?;
                }
            }
        }
    }
    Ok(raw)
}

fn wish(root: &Root, volume: &VolumeMount, user: (u32, u32)) -> Wish {
    let found = root.folder(Path::new(&volume.guest_path)).and_then(fstat);
    let wish = match found {
        Ok(found) => Wish { uid: found.st_uid, gid: found.st_gid, mode: found.st_mode & 0o7777 },
        Err(_) => Wish { uid: user.0, gid: user.1, mode: NEW_FOLDER_MODE },
    };
    Wish { uid: volume.uid.unwrap_or(wish.uid), gid: volume.gid.unwrap_or(wish.gid), ..wish }
}

/// Gives a volume that is as it was made the owner and mode that its Machine's programs expect, as Docker does for an
/// empty one. One that holds anything, or whose root was changed, is its owner's affair. What the image has in that
/// folder is not copied: a volume begins empty.
fn settle(root: &Root, volume: &VolumeMount, wish: &Wish) -> io::Result<()> {
    let folder = root.folder(Path::new(&volume.guest_path))?;
    let found = fstat(&folder)?;
    let untouched = (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, 0, NEW_FOLDER_MODE);
    if !untouched || found.st_ino != EXT4_ROOT_INODE || !holds_nothing(&folder)? {
        return Ok(());
    }
    nix::unistd::fchown(&folder, Some(wish.uid.into()), Some(wish.gid.into()))?;
    nix::sys::stat::fchmod(&folder, Mode::from_bits_truncate(wish.mode))?;
    Ok(())
}

fn holds_nothing(folder: &OwnedFd) -> io::Result<bool> {
    // By its descriptor, as in `mount_ext4`.
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
        if entry?.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

fn refused(volume: &VolumeMount, error: &io::Error) -> BuildError {
    BuildError::Host { what: "cannot give the Machine its volume", reason: format!("{}: {error}", volume.guest_path) }
}

/// The device, open and locked, once nobody holds it. The lock keeps two starts from finding it free both: the kernel
/// itself would let them share one mounted file system.
fn claim(volume: &VolumeMount, deadline: Instant) -> io::Result<Flock<File>> {
    let path = &volume.device;
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut file = File::open(path).map_err(named)?;
    let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFBLK {
        return Err(io::Error::other(format!("{} is not a block device", path.display())));
    }
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) if volume::is_free(path).map_err(named)? => return Ok(locked),
            Ok(locked) => locked.unlock().map_err(|(_, e)| e)?,
            Err((file, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) => file,
            Err((_, e)) => return Err(named(e.into())),
        };
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("{} is in use by somebody else", path.display())));
        }
        std::thread::sleep(Duration::from_millis(FREE_POLL_MS));
    }
}

/// The folder to mount on, made when it is absent. Where an image's links lead to is the image's fault.
fn mount_point(root: &Root, volume: &VolumeMount, mounted: &[u64]) -> Result<OwnedFd, BuildError> {
    let fault = |why: &str| BuildError::User(format!("the volume's folder {}: {why}", volume.guest_path));
    let place = root.make_folder(Path::new(&volume.guest_path)).map_err(|e| fault(&e.to_string()))?;
    let found = fstat(&place).map_err(|e| refused(volume, &e.into()))?;
    if root.is(&found).map_err(|e| refused(volume, &e))? {
        return Err(fault("a link in the image leads from there to /"));
    }
    if found.st_ino == EXT4_ROOT_INODE && mounted.contains(&found.st_dev) {
        return Err(fault("a link leads from there to where another volume is"));
    }
    Ok(place)
}

fn mount_ext4(volume: &VolumeMount, place: &OwnedFd, flags: MsFlags) -> io::Result<()> {
    let mut flags = flags | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, volume.read_only);
    // By its descriptor: the path could lead elsewhere than it did when it was resolved inside the root.
    let place = format!("/proc/self/fd/{}", place.as_raw_fd());
    let mounting = mount(Some(&volume.device), place.as_str(), Some("ext4"), flags, Some(EXT4_OPTIONS));
    mounting.map_err(|e| match e {
        nix::Error::EINVAL => io::Error::other(format!("{} holds no ext4 file system", volume.device.display())),
        e => io::Error::other(format!("{} cannot be mounted: {e}", volume.device.display())),
    })
}
