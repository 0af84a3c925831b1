//! Giving a Machine or a volume a host: decide on the picture, write all its rows in one transaction, then hand the placement
//! over. It is placed again only after its host has journaled a refusal; an unknown outcome asks the same host
//! again, and in the end the host pulls the row by itself.

use std::time::Duration;

use godwit_api::config::MachineConfig;
use godwit_api::error::Status;
use godwit_api::fact::Resources;
use godwit_api::host::PlaceReply;
use godwit_api::machine::ImageRef;
use godwit_api::migration::MigrationPhase;
use godwit_api::row::{LeaseRow, MachineRow, Placement, PortRow, Refusals, VolumeRow};
use godwit_api::{ApiError, AppName, Epoch, HostId, InstanceId, MachineId, keys};
use godwit_base::http::client::CallError;
use godwit_base::{clock, secret};
use godwit_machine::capacity;
use godwit_net::plan;
use godwit_store::{Compare, Op, Txn};

use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_app};
use crate::mounts::{self, Claim};
use crate::named_host;
use crate::place::{NoHost, RESERVED, Request};
use crate::rows::json;
use crate::subject::{Change, Place, Refused, Subject, machine_placement};
use crate::validate::raw_ports;
use crate::view;
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
    /// Those that are asked for, in order; none: any.
    pub regions: Vec<String>,
    /// The one host that it may go to, if one is asked for.
    pub host: Option<HostId>,
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
        let need = capacity::need(&draft.config, draft.launch);
        let written = self.write_placed(&draft.app, &draft.id, need, |world| {
            let app = &draft.app;
            let running = capacity::need(&draft.config, true);
            // One that was named is looked at again: it may have been cordoned meanwhile.
            let named = draft.host.as_ref().map(|host| named_host::find(world, host.as_str(), &draft.regions));
            let named = named.transpose()?.map(|row| row.id.clone());
            let regions = if named.is_some() { &[] } else { draft.regions.as_slice() };
            let (host, claim) = in_regions(regions, |region| {
                let claim = mounts::claim(world, app, &draft.config.mounts, &draft.id, region)?;
                if let (Some(named), Some(volumes)) = (&named, &claim.host)
                    && named != volumes
                {
                    let text =
                        format!("host: the volumes are on host {volumes}, not on {named}: name that, or move them");
                    return Err(ApiError::unprocessable(text));
                }
                let only = named.as_ref().or(claim.host.as_ref()).map(std::slice::from_ref);
                let cpus = draft.config.guest.cpus;
                let ask = Request { app, region, need, running, cpus, only, refused: &[], tie: 0 };
                let host = choose(world, ask).map_err(|why| match &named {
                    Some(host) => named_host::cannot_take(host, "Machine", &why),
                    None => no_room_for_mounts(&why, region, &claim),
                })?;
                Ok((host, claim))
            })?;
            let txn = self.new_rows(world, draft, &host, &claim)?;
            Ok((host, txn))
        });
        let placement = written.await?;
        self.find_taker(placement).await?;
        self.machine_row(&draft.app, &draft.id)
    }

    /// Commits what `decide` finds: a host, and the rows by which it gets what takes `need` there. Decided and
    /// reserved under one lock, so that requests side by side see each other.
    pub(crate) async fn write_placed(
        &self,
        app: &AppName,
        carrier: &MachineId,
        need: Resources,
        decide: impl Fn(&World) -> Result<(HostId, Txn), ApiError>,
    ) -> Result<Known<Placement>, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let (host, txn) = {
                let mut world = self.world_mut();
                self.mark_lost(&mut world);
                let (host, txn) = decide(&world)?;
                world.snapshot.placed(&host, carrier, app, need, RESERVED);
                (host, txn)
            };
            let done = self.commit(txn).await;
            if !matches!(&done, Ok(reply) if reply.succeeded) {
                let mut world = self.world_mut();
                // Not if it was written after all: an unknown outcome may have been a success.
                if world.placement(&host, carrier).is_none() {
                    world.snapshot.unplaced(&host, carrier);
                }
            }
            if done?.succeeded {
                self.counters.placed.inc();
                let world = self.world();
                return world.placement(&host, carrier).cloned().ok_or_else(contended);
            }
        }
        Err(contended())
    }

    /// Hands a new placement over, and to another host after each refusal. An error when none takes it: then nothing
    /// of it stays.
    pub(crate) async fn find_taker(&self, mut placement: Known<Placement>) -> Result<(), ApiError> {
        let what = if placement.volume.is_some() { "volume" } else { "Machine" };
        let mut refusals = Vec::new();
        while let Some(reason) = self.hand_over(&placement).await {
            tracing::info!(machine = %placement.machine, host = %placement.host, reason, "a host refused a {what}");
            self.counters.refused.inc();
            refusals.push((placement.host.clone(), reason));
            let hosts: Vec<HostId> = refusals.iter().map(|(host, _)| host.clone()).collect();
            placement = match self.replace_refused(&placement, &hosts).await? {
                Replaced::Placed(next) if refusals.len() < REFUSALS_MAX => next,
                Replaced::Nowhere(why) if self.take_back(&placement).await? => {
                    return Err(no_room(what, &why, None, &refusals));
                }
                // Written, and no longer ours to hand over: the host pulls it, and the reconciler sees to refusals.
                Replaced::Placed(_) | Replaced::Nowhere(_) | Replaced::Overtaken => break,
            };
        }
        Ok(())
    }

    fn new_rows(&self, world: &World, draft: &Draft, host: &HostId, claim: &Claim) -> Result<Txn, ApiError> {
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
            epoch: first_epoch(world),
            cordoned: false,
            skip_service_registration: draft.skip_service_registration,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            versions: Vec::new(),
            destroyed_at_ms: None,
            moving: None,
            epoch_used: 1,
            older: Vec::new(),
            refusals: Refusals::default(),
            events: Vec::new(),
            asked_host: draft.host.clone(),
        };
        let placement = machine_placement(&row, &app.network, draft.launch);
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
        txn.then.push(world.placement_op(&placement)?);
        if let Some(lease) = &draft.lease {
            txn.then.push(json(keys::lease(&row.id), lease)?);
        }
        claim_ports(world, &row.app, &raw_ports(&row.config), &mut txn)?;
        claim.write(&row.id, &mut txn)?;
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

    /// Gives what its host has refused to another host, at a new epoch. `tried` have refused it. A Machine with volumes
    /// keeps to their host, and a volume that is held keeps to its Machine's.
    pub(crate) async fn replace_refused(&self, refused: &Placement, tried: &[HostId]) -> Result<Replaced, ApiError> {
        let (app, id) = (&refused.app, &refused.machine);
        for _ in 0..COMMIT_ATTEMPTS {
            let (host, txn) = {
                let mut world = self.world_mut();
                self.mark_lost(&mut world);
                let Some(subject) = Subject::of(&world, refused) else { return Ok(Replaced::Overtaken) };
                let Some(old) = world.placement(&refused.host, id).cloned() else { return Ok(Replaced::Overtaken) };
                let is_same = old.epoch == refused.epoch && old.instance_id == refused.instance_id;
                if subject.epoch() != refused.epoch || !is_same || old.destroy || subject.moving().is_some() {
                    return Ok(Replaced::Overtaken);
                }
                let need = subject.need(old.launch);
                let ask = Request {
                    app,
                    region: Some(subject.region()),
                    need,
                    running: subject.need(true),
                    cpus: subject.cpus(),
                    only: subject.is_bound().then_some(std::slice::from_ref(subject.host())),
                    refused: tried,
                    tie: 0,
                };
                let host = match choose(&world, ask) {
                    Ok(host) => host,
                    Err(why) => return Ok(Replaced::Nowhere(why)),
                };
                let now_ms = clock::unix_ms();
                let told = world.fact(&old.host, id).filter(|fact| fact.epoch == old.epoch);
                let refused = Refused {
                    host: old.host.clone(),
                    at_ms: now_ms,
                    events: told.map(|fact| fact.events.clone()).unwrap_or_default(),
                };
                let txn = replacing(&world, &subject, &old, &host, refused)?;
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

    /// Takes back what no host took. Nothing runs: its last placement was refused. False when somebody has changed it
    /// since, so that a host may hold it after all.
    async fn take_back(&self, refused: &Placement) -> Result<bool, ApiError> {
        let subject = Subject::of(&self.world(), refused);
        let is_same = |subject: &Subject| {
            let same = subject.epoch() == refused.epoch && *subject.instance_id() == refused.instance_id;
            // A volume that a Machine has taken meanwhile is that Machine's matter.
            same && (matches!(subject, Subject::Machine(_)) || !subject.is_bound())
        };
        match subject.filter(is_same) {
            Some(subject) => self.erase(&subject, None).await,
            None => Ok(false),
        }
    }

    /// Marks something for destruction on its host. Done already is done. What is moving is not destroyed: its host is
    /// about to change. A volume that is there already and is only being filled goes at both ends: its source may never
    /// come back, and must not keep for ever what nobody will ask it for.
    pub(crate) async fn write_tombstone(
        &self,
        marked: &Placement,
        force: bool,
        lease: Option<Compare>,
    ) -> Result<Option<Placement>, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let (subject, placement) = {
                let world = self.world();
                let subject = Subject::of(&world, marked);
                let placement = subject.as_ref().and_then(|of| world.placement(of.host(), &marked.machine).cloned());
                (subject, placement)
            };
            let (Some(subject), Some(placement)) = (subject, placement) else { return Ok(None) };
            if placement.destroy && (placement.force || !force) {
                return Ok(Some((*placement.value).clone()));
            }
            let filling = {
                let world = self.world();
                let of = world.live_move(subject.moving()).filter(|of| of.row.phase == MigrationPhase::Hydrating);
                of.filter(|_| matches!(subject, Subject::Volume(_))).map(|of| of.row.source.clone())
            };
            if filling.is_none() {
                may_change(&subject)?;
            }
            if let Subject::Volume(row) = &subject
                && let Some(machine) = &row.machine
            {
                return Err(held_by(row, machine));
            }
            let tombstone = Placement { destroy: true, force: force || placement.force, ..(*placement.value).clone() };
            let key = keys::placement(&placement.host, &marked.machine);
            let mut txn = Txn::of([json(key.clone(), &tombstone)?])
                .when(Compare::unchanged(key, placement.revision))
                .when(Compare::unchanged(subject.key(), subject.revision()));
            txn.compares.extend(lease.clone());
            if let Some(source) = filling {
                let free = Change { moving: Some(None), now_ms: clock::unix_ms(), ..Change::default() };
                txn.then.push(subject.changed(&free)?);
                let past = Placement { host: source.clone(), ..tombstone.clone() };
                txn.then.push(json(keys::placement(&source, &marked.machine), &past)?);
            }
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

    /// Deletes what a Machine or a volume held once nothing of it is left on its host. With `destroyed_at_ms` the row
    /// stays to be shown; without, nothing stays. False when somebody changed it meanwhile.
    pub(crate) async fn erase(&self, subject: &Subject, destroyed_at_ms: Option<u64>) -> Result<bool, ApiError> {
        let txn = {
            let world = self.world();
            let placement_key = keys::placement(subject.host(), &subject.carrier());
            let revision =
                world.placement(subject.host(), &subject.carrier()).map_or(0, |placement| placement.revision);
            let mut txn = Txn::of([Op::delete(placement_key.clone())])
                .when(Compare::unchanged(subject.key(), subject.revision()))
                .when(Compare::unchanged(placement_key, revision));
            let told = world.fact(subject.host(), &subject.carrier()).map(|fact| fact.events.clone());
            txn.then.push(match (destroyed_at_ms, subject) {
                (None, _) => Op::delete(subject.key()),
                (at, Subject::Machine(row)) => {
                    // What its host told goes with its fact: the exit code of a job is asked for after its end.
                    let events = view::merged(told.as_deref().unwrap_or_default(), &row.events);
                    let (versions, older) = (Vec::new(), Vec::new());
                    let last = MachineRow { destroyed_at_ms: at, events, versions, older, ..(*row.value).clone() };
                    json(subject.key(), &last)?
                }
                (at, Subject::Volume(row)) => {
                    json(subject.key(), &VolumeRow { destroyed_at_ms: at, ..(*row.value).clone() })?
                }
            });
            if let Subject::Machine(row) = subject {
                txn.then.push(Op::delete(keys::machine_name(&row.app, &row.name)));
                txn.then.push(Op::delete(keys::address(&row.private_ip)));
                txn.then.push(Op::delete(keys::lease(&row.id)));
                release_ports(&world, row, &raw_ports(&row.config), &mut txn);
                mounts::release(&world, row, &MachineConfig::default(), &mut txn)?;
            }
            txn
        };
        Ok(self.commit(txn).await?.succeeded)
    }

    /// Tells a host of a placement without waiting long for its answer.
    pub(crate) async fn hint(&self, placement: &Placement) -> Result<PlaceReply, CallError> {
        self.put_placement(placement).await
    }
}

/// 409 for what is on its way to another host.
pub(crate) fn may_change(subject: &Subject) -> Result<(), ApiError> {
    match subject.moving() {
        None => Ok(()),
        Some(migration) => Err(ApiError::conflict(format!(
            "{} is moving to another host ({migration}): wait for the move, or cancel it",
            subject.words()
        ))),
    }
}

pub(crate) fn held_by(row: &VolumeRow, machine: &MachineId) -> ApiError {
    let text = format!("volume {} is used by Machine {machine}: destroy the Machine, or detach the volume", row.id);
    ApiError::new(412, Status::Conflict, text)
}

/// The rows by which what was refused goes to another host.
fn replacing(
    world: &World,
    subject: &Subject,
    old: &Known<Placement>,
    host: &HostId,
    refused: Refused,
) -> Result<Txn, ApiError> {
    let host_row = world.hosts.get(host).ok_or_else(contended)?;
    let epoch = subject.next_epoch(world.generation_number());
    let place = Place { host: host.clone(), region: host_row.region.clone(), epoch };
    let placement = subject.placement(&place, &old.network, old.launch);
    let now_ms = refused.at_ms;
    let change = Change { place: Some(place), moving: None, refused: Some(refused), epoch_used: epoch.n, now_ms };
    let old_key = keys::placement(&old.host, &old.machine);
    let mut txn = Txn::of([subject.changed(&change)?])
        .when(Compare::unchanged(subject.key(), subject.revision()))
        .when(Compare::unchanged(old_key.clone(), old.revision))
        .when(Compare::unchanged(keys::host(host), host_row.revision))
        .when(generation_unchanged(world));
    let new_key = keys::placement(host, &old.machine);
    txn.then.push(world.placement_op(&placement)?);
    if *host != old.host {
        // The refusal is journaled: that host holds nothing, and needs no tombstone.
        txn.then.push(Op::delete(old_key));
        txn = txn.when(Compare::absent(new_key));
    }
    Ok(txn)
}

/// The first of the regions in which it succeeds; without any, one attempt that names none. Of several failures the one
/// is told that waiting may mend.
pub(crate) fn in_regions<T>(
    regions: &[String],
    attempt: impl Fn(Option<&str>) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let mut told: Option<ApiError> = None;
    for region in regions {
        match attempt(Some(region)) {
            Ok(found) => return Ok(found),
            Err(error) if told.as_ref().is_none_or(|told| !told.is_retryable() && error.is_retryable()) => {
                told = Some(error);
            }
            Err(_) => {}
        }
    }
    told.map_or_else(|| attempt(None), Err)
}

/// Chooses a host; ties are broken by chance.
pub(crate) fn choose(world: &World, ask: Request) -> Result<HostId, NoHost> {
    world.snapshot.place(&Request { tie: secret::random_u64(), ..ask })
}

/// A Machine whose volumes' host cannot take it is told which host that is.
fn no_room_for_mounts(why: &NoHost, region: Option<&str>, claim: &Claim) -> ApiError {
    let mut error = no_room("Machine", why, region, &[]);
    if let Some(host) = &claim.host {
        error.error.push_str(&format!("; its volumes are on host {host}"));
    }
    error
}

/// The answer when no host takes a `what`: 422 when waiting does not help, 503 when it may.
pub(crate) fn no_room(what: &str, why: &NoHost, region: Option<&str>, refusals: &[(HostId, String)]) -> ApiError {
    if why.no_region() {
        return ApiError::unprocessable(format!("there is no host in region {:?}", region.unwrap_or_default()));
    }
    if why.never_fits() {
        return ApiError::new(
            422,
            Status::InsufficientCapacity,
            match what {
                "volume" => "size_gb: the volume is larger than any host of the fleet (of its region)",
                _ => "config.guest: the Machine is larger than any host of the fleet (of its region)",
            },
        );
    }
    let mut text = match why.hosts {
        0 if !refusals.is_empty() => format!("no host can take the {what}"),
        _ => why.told(what),
    };
    for (host, reason) in refusals {
        text.push_str(&format!("; host {host} refused: {reason}"));
    }
    ApiError { status: Status::InsufficientCapacity, ..ApiError::unavailable(text, FULL_RETRY_S) }
}

/// Of what is new.
pub(crate) fn first_epoch(world: &World) -> Epoch {
    Epoch { generation: world.generation_number(), n: 1 }
}

pub(crate) fn generation_unchanged(world: &World) -> Compare {
    Compare::unchanged(keys::GENERATION, world.generation.as_ref().map_or(0, |row| row.revision))
}

/// Public raw ports belong to one app. Each is written even if the app has it already: a release that runs beside us
/// then loses its compare.
pub(crate) fn claim_ports(world: &World, app: &AppName, ports: &[u16], txn: &mut Txn) -> Result<(), ApiError> {
    for port in ports {
        let stands = world.ports.get(port);
        if let Some(row) = stands.filter(|row| row.app != *app) {
            return Err(ApiError::conflict(format!("port {port} is already used by app {}", row.app)));
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
