//! What the kernel still holds below a folder when every process is gone: loop devices over its files, mounts in it. For
//! whoever clears a host or a dev fleet away. Everything is found by whole path components: a neighbour whose name begins
//! with ours is not below us.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Mounts on mounts: each pass takes the topmost.
const UNMOUNT_PASSES: usize = 64;
/// linux/loop.h
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;

/// Loop devices that have a file, and the path at which the kernel shows it.
pub fn loops() -> Vec<(PathBuf, PathBuf)> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let devices = devices.flatten().filter_map(|device| {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        // The kernel marks the path of a file that is gone.
        let backing = backing.trim_end_matches('\n').trim_end_matches(" (deleted)").to_owned();
        Some((Path::new("/dev").join(device.file_name()), PathBuf::from(backing)))
    });
    devices.collect()
}

/// Lets go of the device's file; one that is mounted still goes with its mount.
pub fn detach(device: &Path) -> io::Result<()> {
    let file = File::open(device)?;
    // SAFETY: the ioctl takes a descriptor and no memory; this one is a loop device's, and open.
    if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD) } != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ENXIO) {
            return Err(io::Error::new(error.kind(), format!("cannot detach {}: {error}", device.display())));
        }
    }
    Ok(())
}

/// Detaches every loop device over a file in `dir`; how many.
pub fn detach_below(dir: &Path) -> io::Result<usize> {
    let ours: Vec<_> = loops().into_iter().filter(|(_, backing)| backing.starts_with(dir)).collect();
    ours.iter().try_for_each(|(device, _)| detach(device))?;
    Ok(ours.len())
}

/// Unmounts whatever is mounted in `dir`, as this mount namespace sees it; how many.
pub fn unmount_below(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for _ in 0..UNMOUNT_PASSES {
        let points = mount_points_below(dir)?;
        if points.is_empty() {
            return Ok(count);
        }
        for point in points.iter().rev() {
            umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| {
                io::Error::new(io::Error::from(errno).kind(), format!("cannot unmount {}: {errno}", point.display()))
            })?;
            count += 1;
        }
    }
    Err(io::Error::other(format!("something keeps mounting below {}", dir.display())))
}

/// In the order in which they were mounted (proc(5), field 5 of mountinfo).
fn mount_points_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(dir) && point != dir).collect())
}

/// proc(5) writes blank, tab, newline and backslash of a path as three octal digits.
pub fn unescape(field: &str) -> PathBuf {
    let text = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (from, to)| text.replace(from, to));
    PathBuf::from(text)
}
