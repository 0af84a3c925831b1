//! Takes off a host all that is the platform's: Machines, volumes and their processes, networks, packet rules, mounts, loop
//! devices, cgroups, the data folder. What is to go is read from this host's own folders, each by its exact name: another
//! agent of the same machine, and whatever else runs here, is not touched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use godwit_api::ids::MachineId;
use godwit_driver::container::{ContainerDriver, Options as ContainerOptions};
use godwit_driver::{Driver, Found};
use godwit_net::{HostNet, Options as NetOptions};
use godwit_volume::traces;

use crate::config::{Config, DriverChoice, NetworkChoice};
use crate::error::Error;
use crate::organs::volumes::Volumes;

/// What would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    pub machines: BTreeSet<MachineId>,
    pub volumes: BTreeSet<MachineId>,
    /// What the volumes use of the disk.
    pub volumes_bytes: u64,
    pub data_dir: PathBuf,
}

impl Survey {
    /// Nothing of the platform was ever here.
    pub fn is_empty(&self) -> bool {
        !self.data_dir.exists()
    }
}

/// Looks, and changes nothing. An agent that runs is an error: it would make anew what is removed.
pub async fn survey(config: &Config) -> Result<Survey, Error> {
    if tokio::net::UnixStream::connect(&config.door_socket).await.is_ok() {
        return Err(Error::StillRuns { socket: config.door_socket.clone() });
    }
    let volumes = ids_below(&config.data_dir.join("volumes"))?;
    let mut volumes_bytes = 0;
    let organ = Volumes::new(config);
    for volume in &volumes {
        volumes_bytes += organ.allocated_bytes(volume).await;
    }
    // A Machine may have left only its run folder, or only its own.
    let mut machines = ids_below(&config.data_dir.join("machines"))?;
    if let DriverChoice::Container { run_dir, .. } = &config.driver {
        machines.extend(ids_below(run_dir)?);
    }
    Ok(Survey { machines, volumes, volumes_bytes, data_dir: config.data_dir.clone() })
}

/// Removes what the survey found, in the order in which nothing is used any more: processes, volumes, networks, files. It may
/// be repeated after any failure.
pub async fn clean(config: &Config, survey: &Survey) -> Result<(), Error> {
    let volumes = Volumes::new(config);
    for volume in &survey.volumes {
        // Whoever waits for a block of a source that is away would never die.
        if let Err(error) = volumes.poison(volume).await {
            tracing::debug!(%volume, error = godwit_base::telemetry::chain(&error), "nothing to poison");
        }
    }
    if let DriverChoice::Container { shim, cgroup_parent, run_dir } = &config.driver {
        let options =
            ContainerOptions { shim: shim.clone(), cgroup_parent: cgroup_parent.clone(), run_dir: run_dir.clone() };
        let driver = ContainerDriver::new(options)?;
        for machine in &survey.machines {
            end(&driver, &config.machine_dir(machine.as_str())).await?;
        }
        let left = driver.sweep(&[]).await?;
        for machine in left.strangers {
            tracing::warn!(
                machine,
                cgroup_parent,
                "runs here, but is not of this agent's data folder; it is left alone"
            );
        }
        remove_folder(run_dir)?;
    }
    for volume in &survey.volumes {
        volumes.end_export(volume).await.map_err(|source| Error::CleanVolume { volume: volume.clone(), source })?;
        volumes.remove(volume).await.map_err(|source| Error::CleanVolume { volume: volume.clone(), source })?;
    }
    if let NetworkChoice::Host { name, .. } = &config.network {
        HostNet::new(NetOptions::new(config.data_dir.join("net"), name)).await?.remove_host().await?;
    }
    remove_folder(&config.data_dir)?;
    match std::fs::remove_file(&config.door_socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &config.door_socket)(error))
        }
        _ => Ok(()),
    }
}

/// Ends the Machine, whatever it does, and forgets it.
async fn end(driver: &ContainerDriver, dir: &Path) -> Result<(), Error> {
    if let Found::Running(handle) = driver.find(dir).await? {
        driver.kill(&handle).await?;
    }
    Ok(driver.remove(dir).await?)
}

/// The folder with all that the kernel holds of it.
fn remove_folder(dir: &Path) -> Result<(), Error> {
    traces::unmount_below(dir).map_err(Error::io("unmount what lies below", dir))?;
    traces::detach_below(dir).map_err(Error::io("detach the loop devices of", dir))?;
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Entries that are named by an id; anything else is somebody else's.
fn ids_below(dir: &Path) -> Result<BTreeSet<MachineId>, Error> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(Error::io("list", dir)(error)),
        Ok(entries) => {
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            Ok(names.filter_map(|name| MachineId::parse(&name).ok()).collect())
        }
    }
}
