//! The cgroups of a dev host's Machines, removed by their exact name when the host's power was cut: a real reboot
//! leaves none. Their processes are dead by then.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup file systems are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// A cgroup stays busy for a moment after its last process was killed.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Deeper than anything that a host makes.
const DEPTH_MAX: usize = 8;

/// Removes the cgroup `name` and all below it from every hierarchy; none is no error.
pub fn remove(name: &str) -> io::Result<()> {
    let root = Path::new(ROOT);
    let mut hierarchies = vec![root.to_owned()];
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        // On v1 several names (cpu, cpuacct) may be links to one hierarchy.
        if entry.file_type()?.is_dir() {
            hierarchies.push(entry.path());
        }
    }
    for hierarchy in hierarchies {
        let folder = hierarchy.join(name);
        if folder.is_dir() {
            remove_tree(&folder, 0)?;
        }
    }
    Ok(())
}

fn remove_tree(folder: &Path, depth: usize) -> io::Result<()> {
    if depth < DEPTH_MAX {
        let below: Vec<PathBuf> = std::fs::read_dir(folder)?
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        for path in below {
            remove_tree(&path, depth + 1)?;
        }
    }
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match std::fs::remove_dir(folder) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(LOOK_INTERVAL);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("cannot remove the cgroup {}: {error}", folder.display()),
                ));
            }
            Ok(()) => return Ok(()),
        }
    }
}
