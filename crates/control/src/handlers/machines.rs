//! Machines as desire: created, shown, updated, destroyed, cordoned.

use axum::http::HeaderMap;
use godwit_api::endpoints::*;
use godwit_api::event::MachineEvent;
use godwit_api::host::PlaceReply;
use godwit_api::machine::{Acknowledged, CreateMachine, Machine, MachineState, MachineVersion};
use godwit_api::row::{MachineRow, Refusals};
use godwit_api::{ApiError, AppName, InstanceId, MachineId, keys};
use godwit_base::{clock, secret};
use godwit_machine::capacity;
use godwit_store::{Compare, Op, Txn};

use super::lease;
use crate::call::Call;
use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_app};
use crate::mounts;
use crate::named_host;
use crate::names;
use crate::place::NoHost;
use crate::placing::{Draft, claim_ports, may_change, no_room, release_ports};
use crate::rows::json;
use crate::subject::{Subject, machine_placement};
use crate::validate::{self, raw_ports};
use crate::versions;
use crate::view;
use crate::world::Known;

/// A Machine's row with its older versions may be as large; the oldest go first.
const ROW_LIMIT_BYTES: usize = 768 << 10;

pub async fn list(call: Call<MachinesList>) -> Result<Vec<Machine>, ApiError> {
    let app = call.app()?;
    let control = &call.control;
    let query = &call.query;
    let metadata: Vec<(&str, &str)> =
        query.rest.iter().filter_map(|(name, value)| Some((name.strip_prefix("metadata.")?, value.as_str()))).collect();
    let states = query.state.as_deref().map(states).transpose()?;
    let regions = validate::regions(query.region.as_deref())?;
    let rows: Vec<Known<MachineRow>> = {
        let world = control.world();
        if !world.apps.contains_key(&app) {
            return Err(no_app(&app));
        }
        world.machines_of(&app).cloned().collect()
    };
    let include_deleted = query.include_deleted.unwrap_or(false);
    let mut machines = Vec::new();
    for row in rows {
        let wanted = (regions.is_empty() || regions.contains(&row.region))
            && metadata.iter().all(|(key, value)| row.config.metadata.get(*key).is_some_and(|has| has == value));
        if !wanted {
            continue;
        }
        let machine = control.view(&row);
        if (include_deleted || machine.state != MachineState::Destroyed)
            && states.as_ref().is_none_or(|states| states.contains(&machine.state))
        {
            machines.push(machine);
        }
    }
    Ok(machines)
}

/// A list of states, separated by commas. States that other fleets know and nothing is in here are left out.
pub(crate) fn states(text: &str) -> Result<Vec<MachineState>, ApiError> {
    let mut states = Vec::new();
    for word in text.split(',').map(str::trim) {
        match MachineState::parse(word) {
            Some(state) => states.push(state),
            None if MachineState::is_never(word) => {}
            None => return Err(ApiError::bad_request(format!("state: {word:?} is not a state"))),
        }
    }
    Ok(states)
}

pub async fn create(call: Call<MachinesCreate>) -> Result<Machine, ApiError> {
    let app = call.app()?;
    let control = &call.control;
    if !control.world().apps.contains_key(&app) {
        return Err(no_app(&app));
    }
    let mut body = call.body;
    mounts::strip(&mut body.config);
    validate::config(&body.config)?;
    canonical(&mut body.config)?;
    let regions = validate::regions(body.region.as_deref())?;
    let named = body.host.as_deref().filter(|host| !host.is_empty());
    let named = named.map(|host| named_host::find(&control.world(), host, &regions).map(|row| row.id.clone()));
    let host = named.transpose()?;
    let name = body.name.filter(|name| !name.is_empty());
    if let Some(name) = &name {
        validate::machine_name(name)?;
    }
    control.may_open(&raw_ports(&body.config))?;
    fits_somewhere(control, &body.config)?;
    let image_ref = control.pin_image(&body.config.image).await?;
    let instance_id = InstanceId::from_parts(clock::unix_ms(), secret::random_u128());
    let lease = match body.lease_ttl.filter(|ttl| *ttl > 0) {
        None => None,
        ttl => Some(lease::of_version(&call.peer, instance_id.clone(), lease::ttl(ttl)?, String::new())),
    };
    let draft = Draft {
        id: MachineId::from_bits(secret::random_u64()),
        instance_id,
        name: name.unwrap_or_else(|| names::draw(secret::random_u64())),
        app,
        regions,
        host,
        image_ref,
        launch: !body.skip_launch,
        skip_service_registration: body.skip_service_registration,
        config: body.config,
        lease,
    };
    // A client that goes away must not leave a Machine half handed over.
    let task = tokio::spawn({
        let control = control.clone();
        async move {
            control.await_mounts(&draft.app, &draft.config.mounts).await;
            control.create(&draft).await.map(|row| (row, draft.lease.map(|lease| lease.nonce)))
        }
    });
    let (row, nonce) = task.await.map_err(|_| ApiError::internal("the creation failed unexpectedly"))??;
    let mut machine = control.view(&row);
    machine.nonce = nonce;
    Ok(machine)
}

/// One spelling of what has several.
fn canonical(config: &mut godwit_api::config::MachineConfig) -> Result<(), ApiError> {
    if let Some(signal) = &mut config.stop_config.signal {
        *signal = validate::signal(signal, "config.stop_config.signal")?;
    }
    Ok(())
}

/// 422 for a size that no host has, however empty.
fn fits_somewhere(control: &Control, config: &godwit_api::config::MachineConfig) -> Result<(), ApiError> {
    let guest = &config.guest;
    if control.world().snapshot.fits_anywhere(capacity::need(config, true), guest.cpus) {
        return Ok(());
    }
    Err(ApiError::new(
        422,
        godwit_api::Status::InsufficientCapacity,
        format!("config.guest: {} cpus and {} MB are larger than any host of the fleet", guest.cpus, guest.memory_mb),
    ))
}

pub async fn show(call: Call<MachinesShow>) -> Result<Machine, ApiError> {
    let row = call.control.machine_row(&call.app()?, &call.machine()?)?;
    Ok(call.control.view(&row))
}

pub async fn update(call: Call<MachinesUpdate>) -> Result<Machine, ApiError> {
    let (app, id) = (call.app()?, call.machine()?);
    let control = &call.control;
    let mut body = call.body;
    mounts::strip(&mut body.config);
    control.living_row(&app, &id)?;
    validate::config(&body.config)?;
    canonical(&mut body.config)?;
    fits_somewhere(control, &body.config)?;
    let image_ref = control.pin_image(&body.config.image).await?;
    control.await_mounts(&app, &body.config.mounts).await;
    for _ in 0..COMMIT_ATTEMPTS {
        let row = control.living_row(&app, &id)?;
        let guard = lease::check(control, &id, &call.headers)?;
        may_change(&Subject::Machine(row.clone()))?;
        if body.current_version.as_deref().is_some_and(|version| version != row.instance_id.as_str()) {
            return Err(ApiError::conflict(format!(
                "current_version is stale: Machine {id} is at version {}",
                row.instance_id
            )));
        }
        let regions = validate::regions(body.region.as_deref())?;
        if !regions.is_empty() && !regions.contains(&row.region) {
            return Err(ApiError::unprocessable(format!("region: Machine {id} stays in region {}", row.region)));
        }
        if body.host.as_deref().is_some_and(|host| !host.is_empty() && host != row.host.as_str()) {
            let text = format!("host: an update leaves Machine {id} on host {}: move it with a migration", row.host);
            return Err(ApiError::unprocessable(text));
        }
        let (txn, new_lease) = update_rows(control, &row, &body, &image_ref, guard, &call.peer)?;
        if !control.commit(txn).await?.succeeded {
            continue;
        }
        let next = control.machine_row(&app, &id)?;
        hand_over_update(control, &row, &next).await?;
        let mut machine = control.view(&next);
        machine.nonce = new_lease;
        return Ok(machine);
    }
    Err(contended())
}

/// The rows of a new version, at the same epoch: the same life goes on with another configuration.
fn update_rows(
    control: &Control,
    row: &Known<MachineRow>,
    body: &CreateMachine,
    image_ref: &godwit_api::machine::ImageRef,
    guard: Compare,
    peer: &godwit_base::Peer,
) -> Result<(Txn, Option<String>), ApiError> {
    let world = control.world();
    let placement = world.placement(&row.host, &row.id).ok_or_else(contended)?;
    let running = world.fact_of(row).is_some_and(|fact| fact.state == MachineState::Started);
    has_room_to_grow(&world, row, body, running && !body.skip_launch)?;
    let claim = mounts::claim(&world, &row.app, &body.config.mounts, &row.id, None)?;
    if let Some(host) = claim.host.as_ref().filter(|host| **host != row.host) {
        return Err(ApiError::unprocessable(format!(
            "config.mounts: the volumes are on host {host}, Machine {} on {}: migrate one of them first",
            row.id, row.host
        )));
    }
    let mut next = (*row.value).clone();
    versions::remember(&mut next);
    next.refusals = Refusals::default();
    next.config = body.config.clone();
    next.image_ref = image_ref.clone();
    next.instance_id = InstanceId::from_parts(clock::unix_ms(), secret::random_u128());
    next.updated_at_ms = clock::unix_ms();
    // Left out, it changes nothing: only an `uncordon` registers what was created without.
    next.skip_service_registration |= body.skip_service_registration;
    while !next.versions.is_empty() && serde_json::to_vec(&next).map_or(0, |text| text.len()) > ROW_LIMIT_BYTES {
        next.versions.pop();
        next.older.pop();
    }
    let (machine_key, placement_key) = (keys::machine(&row.app, &row.id), keys::placement(&row.host, &row.id));
    let mut txn = Txn::default()
        .when(guard)
        .when(Compare::unchanged(machine_key.clone(), row.revision))
        .when(Compare::unchanged(placement_key.clone(), placement.revision));
    if let Some(name) = body.name.as_deref().filter(|name| !name.is_empty() && *name != row.name) {
        validate::machine_name(name)?;
        if world.names.contains_key(&(row.app.clone(), name.to_owned())) {
            return Err(ApiError::new(409, godwit_api::Status::NameTaken, format!("the name {name:?} is taken")));
        }
        let key = keys::machine_name(&row.app, name);
        txn = txn.when(Compare::absent(key.clone()));
        txn.then.push(json(key, &row.id)?);
        txn.then.push(Op::delete(keys::machine_name(&row.app, &row.name)));
        next.name = name.to_owned();
    }
    let (old_ports, new_ports) = (raw_ports(&row.config), raw_ports(&next.config));
    // What it has it keeps, whatever the operator allows today.
    let added: Vec<u16> = new_ports.iter().filter(|port| !old_ports.contains(port)).copied().collect();
    control.may_open(&added)?;
    claim_ports(&world, &row.app, &new_ports, &mut txn)?;
    let given_back: Vec<u16> = old_ports.into_iter().filter(|port| !new_ports.contains(port)).collect();
    release_ports(&world, row, &given_back, &mut txn);
    claim.write(&row.id, &mut txn)?;
    mounts::release(&world, row, &next.config, &mut txn)?;
    let mut nonce = None;
    if let Some(ttl) = body.lease_ttl.filter(|ttl| *ttl > 0) {
        let lease = lease::new(peer, &next, lease::ttl(Some(ttl))?, String::new());
        nonce = Some(lease.nonce.clone());
        txn.then.push(json(keys::lease(&row.id), &lease)?);
    }
    txn.then.push(world.placement_op(&machine_placement(&next, &placement.network, !body.skip_launch))?);
    txn.then.push(json(machine_key, &next)?);
    Ok((txn, nonce))
}

/// A Machine that grows must find the difference on its own host.
fn has_room_to_grow(
    world: &crate::world::World,
    row: &MachineRow,
    body: &CreateMachine,
    running: bool,
) -> Result<(), ApiError> {
    let (old, new) = (capacity::need(&row.config, running), capacity::need(&body.config, !body.skip_launch));
    let more = capacity::left(new, old);
    if more == Default::default() || world.snapshot.has_room(&row.host, more) {
        return Ok(());
    }
    let why = NoHost { hosts: 1, full: 1, ..NoHost::default() };
    Err(no_room("Machine", &why, None, &[(row.host.clone(), format!("{} MB more do not fit", more.memory_mb))]))
}

/// The host may refuse a new version; then the old one stands again. When its answer is lost, or comes later, the
/// reconciler does the same.
async fn hand_over_update(control: &Control, old: &Known<MachineRow>, new: &Known<MachineRow>) -> Result<(), ApiError> {
    let placement = control.world().placement(&new.host, &new.id).cloned();
    let Some(placement) = placement else { return Ok(()) };
    let Ok(PlaceReply::Refused { reason }) = control.hint(&placement).await else { return Ok(()) };
    control.put_back(new, &old.instance_id).await?;
    Err(ApiError::new(
        422,
        godwit_api::Status::InsufficientCapacity,
        format!("host {} refused the new configuration: {reason}; version {} stands", new.host, old.instance_id),
    ))
}

/// Works with the host away: the tombstone waits for it.
pub async fn delete(call: Call<MachinesDelete>) -> Result<Acknowledged, ApiError> {
    let control = &call.control;
    let row = control.machine_row(&call.app()?, &call.machine()?)?;
    let guard = lease::check(control, &row.id, &call.headers)?;
    let (force, kill) = (call.query.force.unwrap_or(false), call.query.kill);
    may_change(&Subject::Machine(row.clone()))?;
    may_destroy(control, &row, force || kill == Some(true))?;
    let placement = control.world().placement(&row.host, &row.id).cloned();
    let Some(placement) = placement else { return Ok(Acknowledged { ok: true }) };
    if let Some(tombstone) = control.write_tombstone(&placement, kill.unwrap_or(force), Some(guard)).await? {
        let control = control.clone();
        // The answer does not wait for the host, which may be away.
        tokio::spawn(async move { control.hint(&tombstone).await });
    }
    Ok(Acknowledged { ok: true })
}

/// What runs, or is about to, is destroyed by force only: by mistake, that costs its owner what it was doing.
fn may_destroy(control: &Control, row: &Known<MachineRow>, force: bool) -> Result<(), ApiError> {
    let world = control.world();
    let placement = world.placement(&row.host, &row.id).map(|placement| &**placement);
    let state = view::state(row, placement, world.fact_of(row).map(|fact| &**fact));
    let (id, state) = match state {
        MachineState::Created
        | MachineState::Stopped
        | MachineState::Failed
        | MachineState::Destroying
        | MachineState::Destroyed => return Ok(()),
        _ if force => return Ok(()),
        state => (&row.id, state.as_str()),
    };
    let text = format!("Machine {id} is {state}: stop it first, or use force=true");
    Err(ApiError::new(412, godwit_api::Status::Conflict, text))
}

pub async fn events(call: Call<MachinesEvents>) -> Result<Vec<MachineEvent>, ApiError> {
    let row = call.control.machine_row(&call.app()?, &call.machine()?)?;
    let world = call.control.world();
    let mut events = view::events(&row, world.fact_of(&row).map(|fact| &**fact));
    events.truncate(call.query.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX));
    Ok(events)
}

pub async fn versions(call: Call<MachinesVersions>) -> Result<Vec<MachineVersion>, ApiError> {
    let row = call.control.machine_row(&call.app()?, &call.machine()?)?;
    let present = MachineVersion { version: row.instance_id.clone(), user_config: row.config.clone() };
    let older = row
        .versions
        .iter()
        .map(|(version, config)| MachineVersion { version: version.clone(), user_config: config.clone() });
    Ok(std::iter::once(present).chain(older).collect())
}

pub async fn cordon(call: Call<MachinesCordon>) -> Result<Acknowledged, ApiError> {
    set_cordoned(&call.control, &call.app()?, &call.machine()?, &call.headers, true).await
}

pub async fn uncordon(call: Call<MachinesUncordon>) -> Result<Acknowledged, ApiError> {
    set_cordoned(&call.control, &call.app()?, &call.machine()?, &call.headers, false).await
}

async fn set_cordoned(
    control: &Control,
    app: &AppName,
    machine: &MachineId,
    headers: &HeaderMap,
    cordoned: bool,
) -> Result<Acknowledged, ApiError> {
    change(control, app, machine, headers, |row| {
        row.cordoned = cordoned;
        // One that was created without being registered is registered by this.
        row.skip_service_registration &= cordoned;
        Ok(())
    })
    .await?;
    Ok(Acknowledged { ok: true })
}

/// Changes a Machine's row by compare-and-set, under its lease.
pub(crate) async fn change(
    control: &Control,
    app: &AppName,
    machine: &MachineId,
    headers: &HeaderMap,
    edit: impl Fn(&mut MachineRow) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    for _ in 0..COMMIT_ATTEMPTS {
        let row = control.living_row(app, machine)?;
        let guard = lease::check(control, machine, headers)?;
        let mut next = (*row.value).clone();
        edit(&mut next)?;
        if next == *row.value {
            return Ok(());
        }
        next.updated_at_ms = clock::unix_ms();
        let key = keys::machine(app, machine);
        let txn = Txn::of([json(key.clone(), &next)?]).when(Compare::unchanged(key, row.revision)).when(guard);
        if control.commit(txn).await?.succeeded {
            return Ok(());
        }
    }
    Err(contended())
}
