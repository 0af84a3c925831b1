//! Putting on record again what a host holds and no row names. An operator's word names it, and the host's own journal says
//! what it is: the rows are written anew from that, at an epoch above the one that is held, so that whatever else is known of
//! it anywhere is older. It decides on the picture; its caller commits.

use godwit_api::error::Status;
use godwit_api::fact::MachineFact;
use godwit_api::fleet::Adopted;
use godwit_api::host::Held;
use godwit_api::machine::ImageRef;
use godwit_api::row::{HostRow, MachineRow, Placement, Refusals, VolumeRow};
use godwit_api::volume::GB_BYTES;
use godwit_api::{ApiError, AppName, Epoch, HostId, MachineId, VolumeId, keys};
use godwit_store::{Compare, Txn};

use crate::control::{contended, no_app};
use crate::mounts::hold;
use crate::placing::{claim_ports, generation_unchanged};
use crate::rows::json;
use crate::strays;
use crate::subject::{machine_placement, volume_placement};
use crate::validate::raw_ports;
use crate::view::REGISTRY;
use crate::world::{Known, World};

/// What is adopted, by whose word.
pub struct Wish<'a> {
    pub host: &'a HostId,
    pub app: &'a AppName,
    pub name: Option<&'a str>,
    pub held: &'a Held,
    pub now_ms: u64,
}

/// The rows, and whose placements the host is to hear of.
pub struct Plan {
    pub txn: Txn,
    pub placed: Vec<MachineId>,
    pub adopted: Adopted,
}

/// May it be adopted as this app's? Asked before its host is asked what it is.
pub fn may(world: &World, host: &HostId, app: &AppName, fact: &MachineFact) -> Result<(), ApiError> {
    let what = words(fact);
    if !world.apps.contains_key(&fact.app) {
        let name = &fact.app;
        return Err(ApiError::conflict(format!(
            "{what} is of app {name}, which is not there: create app {name} first"
        )));
    }
    if *app != fact.app {
        return Err(ApiError::unprocessable(format!("app: {what} is of app {}, not of {app}", fact.app)));
    }
    if world.placement(host, &fact.machine).is_some() {
        return Err(ApiError::conflict(format!("{what} was told to end; its data go with it")));
    }
    let others = world.facts.iter().filter(|(other, _)| *other != host);
    let mut others = others.filter(|(_, facts)| facts.get(&fact.machine).is_some_and(|other| other.held));
    if let Some((other, _)) = others.next() {
        let id = strays::shown(world, host, fact).id;
        return Err(ApiError::conflict(format!(
            "{what} is held by host {other} too, and only one can be right; end the other first \
             (`godwit host strays end {other} {id}`)"
        )));
    }
    if fact.volume.as_ref().is_some_and(|volume| volume.hydration.is_some()) {
        return Err(ApiError::conflict(format!(
            "{what} is still being filled from another host; try again when it is whole"
        )));
    }
    Ok(())
}

fn words(fact: &MachineFact) -> String {
    match &fact.volume {
        Some(volume) => format!("volume {}", volume.id),
        None => format!("Machine {}", fact.machine),
    }
}

/// Writes it down. What changed since its host was asked is seen here, or by the transaction's compares.
pub fn plan(world: &World, wish: &Wish<'_>) -> Result<Plan, ApiError> {
    let placement = &wish.held.placement;
    let fact = stray(world, wish.host, &placement.machine, placement)?;
    may(world, wish.host, wish.app, fact)?;
    let app = world.apps.get(wish.app).ok_or_else(|| no_app(wish.app))?;
    let host = world.hosts.get(wish.host).ok_or_else(contended)?;
    let mut plan = Plan {
        txn: Txn::default()
            .when(Compare::unchanged(keys::app(wish.app), app.revision))
            .when(Compare::unchanged(keys::host(wish.host), host.revision))
            .when(generation_unchanged(world)),
        placed: Vec::new(),
        adopted: Adopted {
            id: strays::shown(world, wish.host, fact).id,
            host_id: wish.host.to_string(),
            kind: if placement.volume.is_some() { "volume" } else { "machine" }.to_owned(),
            app: wish.app.to_string(),
            name: wish.name.unwrap_or(&placement.name).to_owned(),
            volumes: Vec::new(),
        },
    };
    plan.txn.then.push(json(keys::app_use(wish.app), &placement.machine)?);
    match &placement.volume {
        Some(_) => volume(world, wish, host, &app.network, placement, None, &mut plan)?,
        None => machine(world, wish, host, &app.network, fact, &mut plan)?,
    }
    Ok(plan)
}

/// As its host tells it, which must be what the host answered.
fn stray<'a>(
    world: &'a World,
    host: &HostId,
    id: &MachineId,
    placement: &Placement,
) -> Result<&'a Known<MachineFact>, ApiError> {
    let fact = world.fact(host, id).filter(|fact| strays::is_stray(world, host, fact));
    let fact = fact.ok_or_else(|| ApiError::not_found(format!("host {host} holds no stray {id}")))?;
    let same = fact.epoch == placement.epoch && fact.instance_id == placement.instance_id && fact.app == placement.app;
    if !same {
        return Err(ApiError::unavailable(format!("what host {host} holds as {id} is changing; try again"), 1));
    }
    Ok(fact)
}

/// Above what is held, whatever became of the store's count of generations.
fn above(world: &World, held: Epoch) -> Epoch {
    let fresh = Epoch { generation: world.generation_number(), n: 1 };
    if fresh > held { fresh } else { held.next() }
}

/// How much of this generation is promised with an epoch.
fn used(world: &World, epoch: Epoch) -> u64 {
    if epoch.generation == world.generation_number() { epoch.n } else { 0 }
}

fn machine(
    world: &World,
    wish: &Wish<'_>,
    host: &Known<HostRow>,
    network: &str,
    fact: &Known<MachineFact>,
    plan: &mut Plan,
) -> Result<(), ApiError> {
    let held = &wish.held.placement;
    let name = wish.name.unwrap_or(&held.name);
    if let Some(other) = world.names.get(&(wish.app.clone(), name.to_owned())).filter(|other| **other != held.machine) {
        let text = format!("the name {name:?} is taken by Machine {other} of app {}; give another", wish.app);
        return Err(ApiError::new(409, Status::NameTaken, text));
    }
    let epoch = above(world, held.epoch);
    let row = MachineRow {
        id: held.machine.clone(),
        app: wish.app.clone(),
        name: name.to_owned(),
        region: host.region.clone(),
        private_ip: held.private_ip,
        config: held.config.clone(),
        image_ref: ImageRef {
            registry: REGISTRY.into(),
            repository: held.image_name.clone(),
            // Which name it had is not known to its host.
            tag: String::new(),
            digest: held.image_digest.clone(),
            labels: Default::default(),
        },
        instance_id: held.instance_id.clone(),
        host: wish.host.clone(),
        epoch,
        cordoned: false,
        skip_service_registration: false,
        asked_host: None,
        created_at_ms: wish.now_ms,
        updated_at_ms: wish.now_ms,
        versions: Vec::new(),
        destroyed_at_ms: None,
        moving: None,
        epoch_used: used(world, epoch),
        older: Vec::new(),
        refusals: Refusals::default(),
        events: Vec::new(),
    };
    for (number, mount) in row.config.mounts.iter().enumerate() {
        let at = format!("config.mounts[{number}]");
        let id: VolumeId = mount.volume.parse().map_err(|_| {
            ApiError::conflict(format!("{at}: {:?} of Machine {} is not a volume", mount.volume, row.id))
        })?;
        mounted(world, wish, host, network, &id, plan)
            .map_err(|error| ApiError { error: format!("{at}: {}", error.error), ..error })?;
    }
    claim_ports(world, wish.app, &raw_ports(&row.config), &mut plan.txn)?;
    let placement = machine_placement(&row, network, held.launch);
    let (machine_key, name_key) = (keys::machine(wish.app, &row.id), keys::machine_name(wish.app, &row.name));
    let (address_key, placement_key) = (keys::address(&row.private_ip), keys::placement(wish.host, &row.id));
    plan.txn.compares.push(Compare::unchanged(machine_key.clone(), strays::row_revision(world, fact)));
    plan.txn.compares.push(Compare::absent(name_key.clone()));
    plan.txn.compares.push(Compare::absent(address_key.clone()));
    plan.txn.compares.push(Compare::absent(placement_key));
    plan.txn.then.push(json(machine_key, &row)?);
    plan.txn.then.push(json(name_key, &row.id)?);
    plan.txn.then.push(json(address_key, &row.id)?);
    plan.txn.then.push(world.placement_op(&placement)?);
    plan.placed.push(placement.machine);
    Ok(())
}

/// A volume that the Machine mounts: one on record becomes the Machine's again, and a stray one is adopted with it.
fn mounted(
    world: &World,
    wish: &Wish<'_>,
    host: &Known<HostRow>,
    network: &str,
    id: &VolumeId,
    plan: &mut Plan,
) -> Result<(), ApiError> {
    let machine = &wish.held.placement.machine;
    let known = world.volumes.get(wish.app).and_then(|rows| rows.get(id)).filter(|row| row.destroyed_at_ms.is_none());
    if let Some(row) = known {
        if row.host != *wish.host || row.moving.is_some() {
            return Err(ApiError::conflict(format!("volume {id} is on host {} by its record, or is moving", row.host)));
        }
        if let Some(other) = row.machine.as_ref().filter(|other| *other != machine) {
            return Err(ApiError::conflict(format!("volume {id} is held by Machine {other}")));
        }
        return hold(row, Some(machine), &mut plan.txn);
    }
    let held = wish.held.volumes.iter().find(|of| of.volume.as_ref().is_some_and(|placed| placed.id == *id));
    let held = held.ok_or_else(|| ApiError::conflict(format!("volume {id} is not on host {}", wish.host)))?;
    let fact = stray(world, wish.host, &held.machine, held)?;
    may(world, wish.host, wish.app, fact)?;
    plan.adopted.volumes.push(id.to_string());
    volume(world, wish, host, network, held, Some(machine.clone()), plan)
}

fn volume(
    world: &World,
    wish: &Wish<'_>,
    host: &Known<HostRow>,
    network: &str,
    held: &Placement,
    machine: Option<MachineId>,
    plan: &mut Plan,
) -> Result<(), ApiError> {
    let placed = held.volume.as_ref().ok_or_else(contended)?;
    let fact = stray(world, wish.host, &held.machine, held)?;
    let epoch = above(world, held.epoch);
    let row = VolumeRow {
        id: placed.id.clone(),
        app: wish.app.clone(),
        name: placed.name.clone(),
        region: host.region.clone(),
        size_gb: placed.size_bytes / GB_BYTES,
        fstype: placed.fstype,
        host: wish.host.clone(),
        epoch,
        instance_id: held.instance_id.clone(),
        machine,
        created_at_ms: wish.now_ms,
        updated_at_ms: wish.now_ms,
        destroyed_at_ms: None,
        moving: None,
        epoch_used: used(world, epoch),
        refusals: Refusals::default(),
    };
    let placement = volume_placement(&row, network);
    let (key, placement_key) = (keys::volume(wish.app, &row.id), keys::placement(wish.host, &held.machine));
    plan.txn.compares.push(Compare::unchanged(key.clone(), strays::row_revision(world, fact)));
    plan.txn.compares.push(Compare::absent(placement_key));
    plan.txn.then.push(json(key, &row)?);
    plan.txn.then.push(world.placement_op(&placement)?);
    plan.placed.push(placement.machine);
    Ok(())
}
