//! `godwit dev --clean DIR`: every trace of a fleet removed, whatever ended it. Everything is named exactly: processes
//! by pid and start time, cgroups, links and tables by the fleet's id, mounts by the folder that they lie in.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use godwit_volume::front::loop_device::{FileId, LoopDevice};
use nix::mount::{MntFlags, umount2};

use super::cgroup;
use super::fleet::Lock;
use super::record::Record;
use crate::args::Global;
use crate::error::{CliError, Result};

/// Mounts on mounts: each pass takes the topmost.
const UNMOUNT_PASSES: usize = 64;

pub async fn run(dir: &Path, global: &Global) -> Result<()> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !global.quiet {
                eprintln!("{} does not exist: there is nothing to remove.", dir.display());
            }
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let record = Record::read(&dir)?.ok_or_else(|| {
        CliError::failed(format!("{} is no dev fleet's folder: it holds no fleet.json", dir.display()))
            .hint("nothing was touched")
    })?;
    for process in &record.processes {
        if !process.kill() {
            return Err(CliError::failed(format!("{} (pid {}) does not end", process.what, process.pid)));
        }
    }
    // Once `godwit dev` is gone, nobody holds the folder.
    let lock = Lock::take(&dir)?;
    remove_traces(&record, &dir).await?;
    unmount_below(&dir)?;
    detach_loops(&dir)?;
    std::fs::remove_dir_all(&dir)
        .map_err(|error| CliError::failed(format!("cannot remove {}: {error}", dir.display())))?;
    drop(lock);
    if !global.quiet {
        eprintln!("Fleet {} is removed, and so is {}.", record.fleet, dir.display());
    }
    Ok(())
}

/// What the kernel holds for a fleet whose processes have ended.
async fn remove_traces(record: &Record, dir: &Path) -> Result<()> {
    for host in &record.hosts {
        cgroup::remove(&record.cgroup(host))?;
    }
    godwit_net::Fabric::remove_all(&record.fleet, dir)
        .await
        .map_err(|error| CliError::failed(godwit_base::telemetry::chain(&error)))
}

/// Loop devices over files of the folder outlive every process. One that is still mounted somewhere goes with its mount.
pub(super) fn detach_loops(dir: &Path) -> Result<()> {
    let Ok(devices) = std::fs::read_dir("/sys/block") else { return Ok(()) };
    for device in devices.flatten() {
        let name = device.file_name();
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        // The kernel marks the path of a file that is gone.
        let backing = backing.trim_end_matches('\n').trim_end_matches(" (deleted)");
        // By whole path components: a neighbour whose name begins with ours is not below us.
        if !Path::new(backing).starts_with(dir) {
            detach_from_a_host(dir, Path::new(backing))?;
            continue;
        }
        let file = std::fs::File::open(Path::new("/dev").join(&name))?;
        // SAFETY: the ioctl takes a descriptor and no memory; this one is a loop device's, and open.
        if unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD) } != 0 {
            let error = std::io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENXIO) {
                return Err(CliError::failed(format!("cannot detach {}: {error}", name.display())));
            }
        }
    }
    Ok(())
}

/// Once a host's mount namespace is gone, the kernel shows a file of it from the host's folder on. That path leads
/// astray here, so it is looked for in each host's folder, and the file itself decides.
fn detach_from_a_host(dir: &Path, shown: &Path) -> Result<()> {
    let Ok(inside) = shown.strip_prefix("/") else { return Ok(()) };
    for host in std::fs::read_dir(dir.join("hosts")).into_iter().flatten().flatten() {
        let Ok(file) = FileId::of(&host.path().join(inside)) else { continue };
        if let Some(device) = LoopDevice::find(file, shown) {
            device.let_go().map_err(|error| CliError::failed(godwit_base::telemetry::chain(&error)))?;
        }
    }
    Ok(())
}

/// linux/loop.h
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;

/// Unmounts whatever is mounted in the folder, as this mount namespace sees it.
fn unmount_below(dir: &Path) -> Result<()> {
    for _ in 0..UNMOUNT_PASSES {
        let points = mount_points_below(dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .map_err(|errno| CliError::failed(format!("cannot unmount {}: {errno}", point.display())))?;
        }
    }
    Err(CliError::failed(format!("something keeps mounting below {}", dir.display())))
}

/// In the order in which they were mounted (proc(5), field 5 of mountinfo).
fn mount_points_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    // By whole path components: a neighbour whose name begins with ours is not below us.
    Ok(points.filter(|point| point.starts_with(dir) && point != dir).collect())
}

/// proc(5) writes blank, tab, newline and backslash of a path as three octal digits.
pub(super) fn unescape(field: &str) -> PathBuf {
    let text = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (from, to)| text.replace(from, to));
    PathBuf::from(text)
}
