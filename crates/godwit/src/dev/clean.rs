//! `godwit dev --clean DIR`: every trace of a fleet removed, whatever ended it. Everything is named exactly: processes
//! by pid and start time, cgroups, links and tables by the fleet's id, mounts by the folder that they lie in.

use std::path::Path;

use godwit_volume::front::loop_device::{FileId, LoopDevice};
use godwit_volume::traces;

use super::cgroup;
use super::fleet::Lock;
use super::record::Record;
use crate::args::Global;
use crate::error::{CliError, Result};

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
        CliError::failed(format!("{} is not a dev fleet's folder: it holds no fleet.json", dir.display()))
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
    traces::unmount_below(&dir)?;
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

/// Loop devices over files of the folder outlive every process.
pub(super) fn detach_loops(dir: &Path) -> Result<()> {
    for (device, backing) in traces::loops() {
        if backing.starts_with(dir) {
            traces::detach(&device)?;
        } else {
            detach_from_a_host(dir, &backing)?;
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
