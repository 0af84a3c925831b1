//! Giving a Machine a host: decide on the picture, write all its rows in one transaction, then hand the placement
//! over. A Machine is placed again only after its host has journaled a refusal; an unknown outcome asks the same host
//! again, and in the end the host pulls the row by itself.

use std::time::Duration;

use godwit_api::config::MachineConfig;
use godwit_api::error::Status;
use godwit_api::host::PlaceReply;
use godwit_api::machine::ImageRef;
use godwit_api::row::{LeaseRow, MachineRow, Placement, PortRow};
use godwit_api::{ApiError, AppName, Epoch, HostId, InstanceId, MachineId, keys};
use godwit_base::http::client::CallError;
use godwit_base::{clock, secret};
use godwit_machine::capacity;
use godwit_net::plan;
use godwit_store::{Compare, Op, Txn, put_json};

use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_app, store_error};
use crate::place::{NoHost, RESERVED, Request};
use crate::validate::raw_ports;
use crate::world::{Known, World};

/// A host whose answer was lost is asked so many times while the client waits; after that the host's own pull and
/// the reconciler bring the placement.
const PUT_ATTEMPTS: u32 = 3;
const PUT_PAUSE: Duration = Duration::from_millis(100);
/// Hosts that may refuse one create while its client waits.
const REFUSALS_MAX: usize = 16;
/// When to try again after a fleet was full.
const FULL_RETRY_S: u32 = 5;

/// A Machine that was validated and has no host yet.
pub(crate) struct Draft {
    pub id: MachineId,
    pub instance_id: InstanceId,
    pub app: AppName,
    pub name: String,
    pub region: Option<String>,
    pub config: MachineConfig,
    pub image_ref: ImageRef,
    pub launch: bool,
    pub skip_service_registration: bool,
    pub lease: Option<LeaseRow>,
}

/// What became of a refused placement.
pub(crate) enum Replaced {
    Placed(Known<Placement>),
    /// No other host takes it.
    Nowhere(NoHost),
    /// Somebody else changed it meanwhile; there is nothing to do.
    Overtaken,
}

impl Control {
    /// Writes a new Machine and hands it to its host; `Ok` once it is durable, whether the host has answered or not.
    pub(crate) async fn create(&self, draft: &Draft) -> Result<Known<MachineRow>, ApiError> {
        let mut placement = self.write_new(draft).await?;
        self.counters.placed.inc();
        let mut refusals = Vec::new();
        while let Some(reason) = self.hand_over(&placement).await {
            tracing::info!(machine = %draft.id, host = %placement.host, reason, "a host refused a Machine");
            self.counters.refused.inc();
            refusals.push((placement.host.clone(), reason));
            let hosts: Vec<HostId> = refusals.iter().map(|(host, _)| host.clone()).collect();
            placement = match self.replace_refused(&placement, &hosts).await? {
                Replaced::Placed(next) if refusals.len() < REFUSALS_MAX => next,
                Replaced::Nowhere(why) if self.take_back(&placement).await? => {
                    return Err(no_room(&why, None, &refusals));
                }
                // Written, and no longer ours to hand over: the host pulls it, and the reconciler sees to refusals.
                Replaced::Placed(_) | Replaced::Nowhere(_) | Replaced::Overtaken => break,
            };
        }
        self.machine_row(&draft.app, &draft.id)
    }

    async fn write_new(&self, draft: &Draft) -> Result<Known<Placement>, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            // Decided and reserved under one lock, so that creates side by side see each other.
            let (host, txn) = {
                let mut world = self.world_mut();
                self.mark_lost(&mut world);
                let host = choose(&world, &draft.app, draft.region.as_deref(), &draft.config, draft.launch, &[])
                    .map_err(|why| no_room(&why, draft.region.as_deref(), &[]))?;
                let txn = self.new_rows(&world, draft, &host)?;
                let need = capacity::need(&draft.config, draft.launch);
                world.snapshot.placed(&host, &draft.id, &draft.app, need, RESERVED);
                (host, txn)
            };
            let done = self.commit(txn).await;
            if !matches!(&done, Ok(reply) if reply.succeeded) {
                let mut world = self.world_mut();
                // Not if it was written after all: an unknown outcome may have been a success.
                if world.placement(&host, &draft.id).is_none() {
                    world.snapshot.unplaced(&host, &draft.id);
                }
            }
            if done?.succeeded {
                let world = self.world();
                return world.placement(&host, &draft.id).cloned().ok_or_else(contended);
            }
        }
        Err(contended())
    }

    fn new_rows(&self, world: &World, draft: &Draft, host: &HostId) -> Result<Txn, ApiError> {
        let app = world.apps.get(&draft.app).ok_or_else(|| no_app(&draft.app))?;
        if let Some(other) = world.names.get(&(draft.app.clone(), draft.name.clone())) {
            return Err(ApiError::new(
                409,
                Status::NameTaken,
                format!("the name {:?} is taken by Machine {other} of app {}", draft.name, draft.app),
            ));
        }
        let host_row = world.hosts.get(host).ok_or_else(contended)?;
        let network = plan::network_prefix(&self.config.fleet, &app.network);
        let private_ip = plan::machine_address(network, secret::random_u64());
        let now_ms = clock::unix_ms();
        let row = MachineRow {
            id: draft.id.clone(),
            app: draft.app.clone(),
            name: draft.name.clone(),
            region: host_row.region.clone(),
            private_ip,
            config: draft.config.clone(),
            image_ref: draft.image_ref.clone(),
            instance_id: draft.instance_id.clone(),
            host: host.clone(),
            epoch: Epoch { generation: world.generation_number(), n: 1 },
            cordoned: false,
            skip_service_registration: draft.skip_service_registration,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            versions: Vec::new(),
            destroyed_at_ms: None,
        };
        let placement = placement_of(&row, &app.network, draft.launch);
        let (machine_key, name_key) = (keys::machine(&row.app, &row.id), keys::machine_name(&row.app, &row.name));
        let address_key = keys::address(&private_ip);
        let mut txn = Txn::default()
            .when(Compare::exists(keys::app(&row.app)))
            .when(Compare::absent(machine_key.clone()))
            .when(Compare::absent(name_key.clone()))
            .when(Compare::absent(address_key.clone()))
            .when(Compare::unchanged(keys::host(host), host_row.revision))
            .when(generation_unchanged(world));
        txn.then.push(json(machine_key, &row)?);
        txn.then.push(json(name_key, &row.id)?);
        txn.then.push(json(address_key, &row.id)?);
        txn.then.push(json(keys::app_use(&row.app), &row.id)?);
        txn.then.push(json(keys::placement(host, &row.id), &placement)?);
        if let Some(lease) = &draft.lease {
            txn.then.push(json(keys::lease(&row.id), lease)?);
        }
        claim_ports(world, &row.app, &raw_ports(&row.config), &mut txn)?;
        Ok(txn)
    }

    /// Hands a placement to its host. `Some` is the host's journaled refusal; `None` means accepted, or not known,
    /// in which case the same host will be asked again and nobody else.
    async fn hand_over(&self, placement: &Placement) -> Option<String> {
        for attempt in 1..=PUT_ATTEMPTS {
            match self.put_placement(placement).await {
                Ok(PlaceReply::Accepted) => return None,
                Ok(PlaceReply::Refused { reason }) => return Some(reason),
                Err(error) => {
                    let error = godwit_base::telemetry::chain(&error);
                    tracing::warn!(machine = %placement.machine, host = %placement.host, attempt, error, "a placement's outcome is unknown");
                }
            }
            tokio::time::sleep(PUT_PAUSE).await;
        }
        None
    }

    /// Moves a placement that its host has refused to another host, at a new epoch. `tried` have refused it.
    pub(crate) async fn replace_refused(&self, refused: &Placement, tried: &[HostId]) -> Result<Replaced, ApiError> {
        let (app, id) = (&refused.app, &refused.machine);
        for _ in 0..COMMIT_ATTEMPTS {
            let (host, txn) = {
                let mut world = self.world_mut();
                self.mark_lost(&mut world);
                let Some(row) = world.machines.get(app).and_then(|rows| rows.get(id)).cloned() else {
                    return Ok(Replaced::Overtaken);
                };
                let Some(old) = world.placement(&refused.host, id).cloned() else { return Ok(Replaced::Overtaken) };
                let is_same = old.epoch == refused.epoch && old.instance_id == refused.instance_id;
                if row.epoch != refused.epoch || !is_same || old.destroy {
                    return Ok(Replaced::Overtaken);
                }
                let host = match choose(&world, app, Some(&row.region), &row.config, old.launch, tried) {
                    Ok(host) => host,
                    Err(why) => return Ok(Replaced::Nowhere(why)),
                };
                let host_revision = world.hosts.get(&host).map_or(0, |row| row.revision);
                let next = MachineRow {
                    host: host.clone(),
                    epoch: next_epoch(row.epoch, world.generation_number()),
                    updated_at_ms: clock::unix_ms(),
                    ..(*row.value).clone()
                };
                let placement = placement_of(&next, &old.network, old.launch);
                let mut txn = Txn::of([json(keys::machine(app, id), &next)?])
                    .when(Compare::unchanged(keys::machine(app, id), row.revision))
                    .when(Compare::unchanged(keys::placement(&old.host, id), old.revision))
                    .when(Compare::unchanged(keys::host(&host), host_revision))
                    .when(generation_unchanged(&world));
                txn.then.push(json(keys::placement(&host, id), &placement)?);
                if host != old.host {
                    // The refusal is journaled: that host holds nothing, and needs no tombstone.
                    txn.then.push(Op::delete(keys::placement(&old.host, id)));
                    txn = txn.when(Compare::absent(keys::placement(&host, id)));
                }
                let need = capacity::need(&next.config, old.launch);
                world.snapshot.placed(&host, id, app, need, RESERVED);
                (host, txn)
            };
            let done = self.commit(txn).await;
            let world_placement = self.world().placement(&host, id).cloned();
            match (done, world_placement) {
                (Ok(reply), Some(placement)) if reply.succeeded => return Ok(Replaced::Placed(placement)),
                (done, placement) => {
                    if placement.is_none() {
                        self.world_mut().snapshot.unplaced(&host, id);
                    }
                    done?;
                }
            }
        }
        Err(contended())
    }

    /// Takes back a Machine that no host took. Nothing runs: its last placement was refused. False when somebody has
    /// changed it since, so that a host may hold it after all.
    async fn take_back(&self, refused: &Placement) -> Result<bool, ApiError> {
        let row = self.world().machines.get(&refused.app).and_then(|rows| rows.get(&refused.machine)).cloned();
        let row = row.filter(|row| row.epoch == refused.epoch && row.instance_id == refused.instance_id);
        match row {
            Some(row) => self.erase(&row, None).await,
            None => Ok(false),
        }
    }

    /// Marks a Machine for destruction on its host. Done already is done.
    pub(crate) async fn write_tombstone(
        &self,
        row: &MachineRow,
        force: bool,
        lease: Option<Compare>,
    ) -> Result<Option<Placement>, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let placement = {
                let world = self.world();
                let host = world.machines.get(&row.app).and_then(|rows| rows.get(&row.id)).map(|row| row.host.clone());
                host.and_then(|host| world.placement(&host, &row.id).cloned())
            };
            let Some(placement) = placement else { return Ok(None) };
            if placement.destroy && (placement.force || !force) {
                return Ok(Some((*placement.value).clone()));
            }
            let tombstone = Placement { destroy: true, force: force || placement.force, ..(*placement.value).clone() };
            let key = keys::placement(&placement.host, &row.id);
            let mut txn = Txn::of([json(key.clone(), &tombstone)?]).when(Compare::unchanged(key, placement.revision));
            txn.compares.extend(lease.clone());
            if self.commit(txn).await?.succeeded {
                return Ok(Some(tombstone));
            }
            if lease.is_some() {
                // The lease may be what changed: let the caller look again.
                return Err(contended());
            }
        }
        Err(contended())
    }

    /// Deletes what a Machine held once nothing of it is left on its host. With `destroyed_at_ms` the row stays to be
    /// shown; without, nothing stays. False when somebody changed it meanwhile.
    pub(crate) async fn erase(&self, row: &Known<MachineRow>, destroyed_at_ms: Option<u64>) -> Result<bool, ApiError> {
        let txn = {
            let world = self.world();
            let machine_key = keys::machine(&row.app, &row.id);
            let placement_key = keys::placement(&row.host, &row.id);
            let revision = world.placement(&row.host, &row.id).map_or(0, |placement| placement.revision);
            let mut txn = Txn::of([
                Op::delete(placement_key.clone()),
                Op::delete(keys::machine_name(&row.app, &row.name)),
                Op::delete(keys::address(&row.private_ip)),
                Op::delete(keys::lease(&row.id)),
            ])
            .when(Compare::unchanged(machine_key.clone(), row.revision))
            .when(Compare::unchanged(placement_key, revision));
            txn.then.push(match destroyed_at_ms {
                None => Op::delete(machine_key),
                Some(at) => json(machine_key, &MachineRow { destroyed_at_ms: Some(at), ..(*row.value).clone() })?,
            });
            release_ports(&world, row, &raw_ports(&row.config), &mut txn);
            txn
        };
        Ok(self.commit(txn).await?.succeeded)
    }

    /// Tells a host of a placement without waiting long for its answer.
    pub(crate) async fn hint(&self, placement: &Placement) -> Result<PlaceReply, CallError> {
        self.put_placement(placement).await
    }
}

/// The row that the host pulls.
pub(crate) fn placement_of(row: &MachineRow, network: &str, launch: bool) -> Placement {
    Placement {
        machine: row.id.clone(),
        app: row.app.clone(),
        host: row.host.clone(),
        epoch: row.epoch,
        instance_id: row.instance_id.clone(),
        name: row.name.clone(),
        region: row.region.clone(),
        network: network.to_owned(),
        private_ip: row.private_ip,
        image_digest: row.image_ref.digest.clone(),
        image_name: row.image_ref.repository.clone(),
        config: row.config.clone(),
        launch,
        destroy: false,
        force: false,
        volume: None,
    }
}

fn choose(
    world: &World,
    app: &AppName,
    region: Option<&str>,
    config: &MachineConfig,
    launch: bool,
    refused: &[HostId],
) -> Result<HostId, NoHost> {
    world.snapshot.place(&Request {
        app,
        region,
        need: capacity::need(config, launch),
        running: capacity::need(config, true),
        cpus: config.guest.cpus,
        refused,
        tie: secret::random_u64(),
    })
}

/// The answer when no host takes a Machine: 422 when waiting does not help, 503 when it may.
pub(crate) fn no_room(why: &NoHost, region: Option<&str>, refusals: &[(HostId, String)]) -> ApiError {
    if why.no_region() {
        return ApiError::unprocessable(format!("there is no host in region {:?}", region.unwrap_or_default()));
    }
    if why.never_fits() {
        return ApiError::new(
            422,
            Status::InsufficientCapacity,
            "config.guest: the Machine is larger than every host of the fleet (of its region)",
        );
    }
    let mut text = match why.hosts {
        0 if !refusals.is_empty() => "no host can take the Machine".to_owned(),
        _ => why.to_string(),
    };
    for (host, reason) in refusals {
        text.push_str(&format!("; host {host} refused: {reason}"));
    }
    ApiError { status: Status::InsufficientCapacity, ..ApiError::unavailable(text, FULL_RETRY_S) }
}

/// A new generation starts counting anew; within one, no number comes twice.
fn next_epoch(last: Epoch, generation: u64) -> Epoch {
    match last.generation == generation {
        true => Epoch { generation, n: last.n + 1 },
        false => Epoch { generation, n: 1 },
    }
}

fn generation_unchanged(world: &World) -> Compare {
    Compare::unchanged(keys::GENERATION, world.generation.as_ref().map_or(0, |row| row.revision))
}

/// Public raw ports belong to one app. Each is written even if the app has it already: a release that runs beside us
/// then loses its compare.
pub(crate) fn claim_ports(world: &World, app: &AppName, ports: &[u16], txn: &mut Txn) -> Result<(), ApiError> {
    for port in ports {
        let stands = world.ports.get(port);
        if let Some(row) = stands.filter(|row| row.app != *app) {
            return Err(ApiError::conflict(format!("port {port} is served by app {} already", row.app)));
        }
        txn.compares.push(Compare::unchanged(keys::port(*port), stands.map_or(0, |row| row.revision)));
        txn.then.push(json(keys::port(*port), &PortRow { app: app.clone() })?);
    }
    Ok(())
}

/// Gives back the ports that no other Machine of the app serves.
pub(crate) fn release_ports(world: &World, row: &MachineRow, ports: &[u16], txn: &mut Txn) {
    if ports.is_empty() {
        return;
    }
    let others = world.machines.get(&row.app).into_iter().flat_map(|rows| rows.values());
    let others = others.filter(|other| other.id != row.id && other.destroyed_at_ms.is_none());
    let kept: Vec<u16> = others.flat_map(|other| raw_ports(&other.config)).collect();
    for port in ports.iter().filter(|port| !kept.contains(port)) {
        let Some(stands) = world.ports.get(port).filter(|stands| stands.app == row.app) else { continue };
        txn.compares.push(Compare::unchanged(keys::port(*port), stands.revision));
        txn.then.push(Op::delete(keys::port(*port)));
    }
}

pub(crate) fn json<T: serde::Serialize + ?Sized>(key: String, value: &T) -> Result<Op, ApiError> {
    put_json(key, value).map_err(store_error)
}
