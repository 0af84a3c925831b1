//! Which volumes a Machine may hold, and the rows that say so. Pure: decided on the picture, carried out by the
//! transaction of the Machine.

use godwit_api::config::{MachineConfig, Mount};
use godwit_api::row::{MachineRow, VolumeRow};
use godwit_api::volume::VolumeFs;
use godwit_api::{ApiError, AppName, HostId, MachineId, VolumeId, keys};
use godwit_store::{Compare, Txn};

use crate::rows::json;
use crate::world::{Known, World};

/// Volumes that a Machine is to hold: all free or its own, and all on one host.
pub(crate) struct Claim {
    /// `None` without mounts: any host will do.
    pub host: Option<HostId>,
    rows: Vec<(Known<VolumeRow>, u64)>,
}

/// Folders of the kernel: nothing is mounted below them.
const RESERVED_FOLDERS: [&str; 3] = ["proc", "sys", "dev"];

/// Checks the mounts of `machine` against the volumes of its app.
pub(crate) fn claim(
    world: &World,
    app: &AppName,
    mounts: &[Mount],
    machine: &MachineId,
    region: Option<&str>,
) -> Result<Claim, ApiError> {
    let mut claim = Claim { host: None, rows: Vec::new() };
    for (number, mount) in mounts.iter().enumerate() {
        let at = format!("config.mounts[{number}]");
        let row = wanted(world, app, mount, &at)?;
        let placement = world.placement(&row.host, &row.id.carrier()).filter(|placement| !placement.destroy);
        let Some(placement) = placement.filter(|_| row.destroyed_at_ms.is_none()) else {
            return Err(ApiError::conflict(format!("{at}: volume {} is destroyed or being destroyed", row.id)));
        };
        if let Some(other) = row.machine.as_ref().filter(|other| *other != machine) {
            return Err(ApiError::conflict(format!("{at}: volume {} is held by Machine {other}", row.id)));
        }
        if let Some(migration) = row.moving.as_ref().filter(|_| row.machine.is_none()) {
            return Err(ApiError::conflict(format!(
                "{at}: volume {} is moving ({migration}); try again when the copy is complete",
                row.id
            )));
        }
        if let Some(region) = region.filter(|region| *region != row.region) {
            return Err(ApiError::unprocessable(format!(
                "{at}: volume {} is in region {}, not in {region}",
                row.id, row.region
            )));
        }
        let host = claim.host.get_or_insert_with(|| row.host.clone());
        if *host != row.host {
            return Err(ApiError::unprocessable(format!(
                "{at}: volume {} is on host {}, another on {host}: move one of them first (`godwit volumes migrate`)",
                row.id, row.host
            )));
        }
        if row.fstype == VolumeFs::Ext4 && is_reserved(&mount.path) {
            return Err(ApiError::unprocessable(format!("{at}.path: nothing is mounted at {:?}", mount.path)));
        }
        if row.fstype == VolumeFs::Raw && !is_device_name(&mount.path) {
            return Err(ApiError::unprocessable(format!(
                "{at}.path: {:?} must be a new name in /dev, for example /dev/data: raw volumes appear there",
                mount.path
            )));
        }
        claim.rows.push((row.clone(), placement.revision));
    }
    Ok(claim)
}

fn wanted<'a>(world: &'a World, app: &AppName, mount: &Mount, at: &str) -> Result<&'a Known<VolumeRow>, ApiError> {
    let id: Result<VolumeId, _> = mount.volume.parse();
    let row = id.ok().and_then(|id| world.volume(app, &id));
    row.ok_or_else(|| ApiError::unprocessable(format!("{at}.volume: app {app} has no volume {:?}", mount.volume)))
}

/// Names that every Machine's /dev has already (as `godwit_driver` makes it).
const TAKEN_IN_DEV: [&str; 16] = [
    "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
    "tty", "urandom", "zero",
];

fn is_device_name(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    parts.next() == Some("dev") && parts.next().is_some_and(|name| !TAKEN_IN_DEV.contains(&name))
}

fn is_reserved(path: &str) -> bool {
    let first = path.split('/').find(|part| !part.is_empty());
    first.is_some_and(|first| RESERVED_FOLDERS.contains(&first))
}

impl Claim {
    /// The rows by which these volumes become the Machine's. Written even if they are already: whoever moves or
    /// deletes one beside us then loses its compare.
    pub fn write(&self, machine: &MachineId, txn: &mut Txn) -> Result<(), ApiError> {
        for (row, placed) in &self.rows {
            hold(row, Some(machine), txn)?;
            txn.compares.push(Compare::unchanged(keys::placement(&row.host, &row.id.carrier()), *placed));
        }
        Ok(())
    }
}

/// Frees the volumes of a Machine that `kept` no longer mounts.
pub(crate) fn release(world: &World, row: &MachineRow, kept: &MachineConfig, txn: &mut Txn) -> Result<(), ApiError> {
    let held = world.volumes_held_by(&row.app, &row.id);
    for volume in held.filter(|volume| !kept.mounts.iter().any(|mount| mount.volume == volume.id.as_str())) {
        hold(volume, None, txn)?;
    }
    Ok(())
}

/// Gives a volume to a Machine, or to nobody.
pub(crate) fn hold(row: &Known<VolumeRow>, machine: Option<&MachineId>, txn: &mut Txn) -> Result<(), ApiError> {
    let key = keys::volume(&row.app, &row.id);
    txn.compares.push(Compare::unchanged(key.clone(), row.revision));
    txn.then.push(json(key, &VolumeRow { machine: machine.cloned(), ..(*row.value).clone() })?);
    Ok(())
}

/// Names and sizes are told, not taken: they are the volumes'.
pub(crate) fn strip(config: &mut MachineConfig) {
    for mount in &mut config.mounts {
        mount.name.clear();
        mount.size_gb = 0;
    }
}

/// As answers tell them, with the volumes' names and sizes.
pub(crate) fn told(world: &World, row: &MachineRow) -> Vec<Mount> {
    let told = row.config.mounts.iter().map(|mount| {
        let volume = mount.volume.parse().ok().and_then(|id| world.volumes.get(&row.app)?.get(&id));
        match volume {
            Some(volume) => Mount { name: volume.name.clone(), size_gb: volume.size_gb, ..mount.clone() },
            None => mount.clone(),
        }
    });
    told.collect()
}
