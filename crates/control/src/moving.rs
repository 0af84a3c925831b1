//! Starting a move: everything that can be wrong with it is found on one picture, then one transaction writes its
//! row, its signed ticket for the target, and the mark on what moves. From there on the hosts act, and
//! `reconcile::migrations` follows what they tell.
//!
//! The transaction compares every row that it was decided upon, and promises two epochs: the target's, and the one at
//! which the source takes back. Neither is used for anything else, whatever becomes of the move.

use godwit_api::machine::MachineState;
use godwit_api::migration::{Migrate, Migration, MigrationEvent, MigrationPhase};
use godwit_api::row::{HostRow, MigrationRow, Placement};
use godwit_api::ticket::{Carried, DRAIN_TIMEOUT_MS, PRECOPY_TICKET_TTL_MS, TICKET_TTL_MS, Ticket};
use godwit_api::{ApiError, AppName, HostId, MachineId, MigrationId, VolumeId, keys};
use godwit_base::{clock, secret, ticket};
use godwit_machine::capacity;
use godwit_store::{Compare, Txn};

use crate::control::{COMMIT_ATTEMPTS, Control, contended};
use crate::hosts::RETRY_AFTER_S;
use crate::migrations::{self, Sight};
use crate::named_host;
use crate::place::{RESERVED, Request};
use crate::placing::{choose, generation_unchanged, may_change, no_room};
use crate::rows::json;
use crate::subject::{Change, Place, Subject};
use crate::view::Reach;
use crate::world::{Known, World, needs};

/// Requests in flight are given no longer than this.
const DRAIN_TIMEOUT_MAX_MS: u64 = 5 * 60 * 1000;

/// What is asked to move.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Machine(MachineId),
    Volume(VolumeId),
}

/// A move that can begin: its rows, decided on one picture.
struct Plan {
    row: MigrationRow,
    ticket: Ticket,
    txn: Txn,
}

/// What moves, with what it takes along, and where from.
struct Load {
    lead: Subject,
    placement: Known<Placement>,
    running: bool,
    volumes: Vec<(Subject, Known<Placement>)>,
    source: Known<HostRow>,
}

impl Control {
    /// Begins a move, or says why not. `guard` is asked anew at each attempt: what it answers is compared as well.
    pub(crate) async fn migrate(
        &self,
        app: &AppName,
        what: &What,
        wish: &Migrate,
        by: &str,
        guard: impl Fn() -> Result<Option<Compare>, ApiError>,
    ) -> Result<Migration, ApiError> {
        for _ in 0..COMMIT_ATTEMPTS {
            let guard = guard()?;
            let plan = {
                let mut world = self.world_mut();
                self.mark_lost(&mut world);
                let mut plan = self.plan(&world, app, what, wish, by)?;
                if wish.dry_run {
                    return Ok(Migration { dry_run: true, ..shown(&plan) });
                }
                plan.txn.compares.extend(guard);
                for (part, need) in needs(&plan.ticket) {
                    world.snapshot.placed(&plan.row.target, &part.machine, app, need, RESERVED);
                }
                plan
            };
            let done = self.commit(plan.txn.clone()).await;
            if !matches!(&done, Ok(reply) if reply.succeeded) {
                let mut world = self.world_mut();
                // Not if it was written after all: an unknown outcome may have been a success.
                if !world.migrations.contains_key(&plan.row.id) {
                    for (part, _) in needs(&plan.ticket) {
                        world.snapshot.unplaced(&plan.row.target, &part.machine);
                    }
                }
            }
            if done?.succeeded {
                tracing::info!(migration = %plan.row.id, app = %app, source = %plan.row.source, target = %plan.row.target, "a move begins");
                self.tell_to_pull(&plan.row.target);
                return self.show_migration(&plan.row.id);
            }
        }
        Err(contended())
    }

    fn plan(&self, world: &World, app: &AppName, what: &What, wish: &Migrate, by: &str) -> Result<Plan, ApiError> {
        let load = self.load(world, app, what)?;
        let drain_timeout_ms = wish.drain_timeout_ms.unwrap_or(DRAIN_TIMEOUT_MS);
        if drain_timeout_ms > DRAIN_TIMEOUT_MAX_MS {
            return Err(ApiError::unprocessable(format!("drain_timeout_ms: at most {DRAIN_TIMEOUT_MAX_MS}")));
        }
        if wish.start_first && !load.volumes.is_empty() {
            let text = format!(
                "start_first: {} has volumes, and those are written by one copy of it alone",
                load.lead.words()
            );
            return Err(ApiError::unprocessable(text));
        }
        if wish.start_first && matches!(load.lead, Subject::Volume(_)) {
            return Err(ApiError::unprocessable("start_first: a volume does not run"));
        }
        let host = self.target(world, &load, wish)?;
        let target = world.hosts.get(&host).ok_or_else(contended)?;
        let now_ms = clock::unix_ms();
        let generation = world.generation_number();
        let moved = |subject: &Subject, old: &Placement, launch| {
            let epoch = subject.next_epoch(generation);
            let place = Place { host: host.clone(), region: target.region.clone(), epoch };
            world.proven(subject.placement(&place, &old.network, launch))
        };
        let carried = |(subject, old): &(Subject, Known<Placement>)| Carried {
            from_epoch: subject.epoch(),
            placement: moved(subject, old, false),
        };
        let lead = moved(&load.lead, &load.placement, load.running);
        let mut volumes: Vec<Carried> = load.volumes.iter().map(carried).collect();
        if let Subject::Volume(_) = &load.lead {
            volumes.push(Carried { from_epoch: load.lead.epoch(), placement: lead.clone() });
        }
        // What it takes back, the source will have at the epoch after the target's.
        let parts = volumes.iter().map(|carried| &carried.placement).chain([&lead]);
        let back = parts.map(|part| (part.machine.clone(), world.proof(&load.source.id, part))).collect();
        let ticket = Ticket {
            migration: MigrationId::from_bits(secret::random_u64()),
            source: load.source.id.clone(),
            source_url: load.source.agent_url.clone(),
            target: host.clone(),
            target_door: target.door_addr.clone(),
            lead,
            from_epoch: load.lead.epoch(),
            volumes,
            drain_timeout_ms,
            back,
            names_caller: true,
            rate_bytes_per_s: wish.rate_bytes_per_s.unwrap_or(0),
            precopy: wish.precopy,
            start_first: wish.start_first,
            expires_at_ms: now_ms + if wish.precopy { PRECOPY_TICKET_TTL_MS } else { TICKET_TTL_MS },
        };
        let signed = ticket::sign(&ticket, &load.source.control_key, &target.control_key)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let id = ticket.migration.clone();
        let row = MigrationRow {
            id: id.clone(),
            app: app.clone(),
            machine: match &load.lead {
                Subject::Machine(row) => Some(row.id.clone()),
                Subject::Volume(_) => None,
            },
            volumes: ticket
                .volumes
                .iter()
                .filter_map(|of| of.placement.volume.as_ref().map(|of| of.id.clone()))
                .collect(),
            source: ticket.source.clone(),
            target: host.clone(),
            epoch: ticket.lead.epoch,
            ticket: signed,
            requested_by: by.to_owned(),
            phase: MigrationPhase::Preparing,
            reason: None,
            cancel_requested_at_ms: None,
            started_at_ms: now_ms,
            ended_at_ms: None,
            events: vec![MigrationEvent {
                timestamp: now_ms,
                phase: MigrationPhase::Preparing,
                at: "control".into(),
                detail: format!("asked for by {by}: from {} to {host}", ticket.source),
            }],
            progress: Default::default(),
        };
        let txn = first_rows(world, &load, &row, target)?;
        Ok(Plan { row, ticket, txn })
    }

    /// What moves, if all of it can.
    fn load(&self, world: &World, app: &AppName, what: &What) -> Result<Load, ApiError> {
        let lead = match what {
            What::Machine(id) => world.machine(app, id).cloned().map(Subject::Machine),
            What::Volume(id) => world.volume(app, id).cloned().map(Subject::Volume),
        };
        let lead = lead.ok_or_else(|| match what {
            What::Machine(id) => ApiError::not_found(format!("app {app} has no Machine {id}")),
            What::Volume(id) => ApiError::not_found(format!("app {app} has no volume {id}")),
        })?;
        let volumes: Vec<Subject> = match &lead {
            Subject::Machine(row) => world.volumes_held_by(app, &row.id).cloned().map(Subject::Volume).collect(),
            Subject::Volume(row) => match &row.machine {
                Some(machine) => {
                    return Err(ApiError::conflict(format!(
                        "volume {} is held by Machine {machine}, and moves with it: migrate that",
                        row.id
                    )));
                }
                None => Vec::new(),
            },
        };
        let placement = placed(world, &lead)?;
        let with_placements = volumes.into_iter().map(|volume| Ok((placed(world, &volume)?, volume)));
        let volumes: Vec<(Known<Placement>, Subject)> = with_placements.collect::<Result<_, ApiError>>()?;
        let fact = world.fact(lead.host(), &lead.carrier());
        let running = matches!(lead, Subject::Machine(_))
            && fact.is_none_or(|fact| !matches!(fact.state, MachineState::Stopped | MachineState::Failed));
        let source = world.hosts.get(lead.host()).cloned().ok_or_else(contended)?;
        if self.liveness.reach(&source.id) == Reach::Unreachable {
            let text =
                format!("host {}, which holds {}, is not reached: it alone can hand it off", source.id, lead.words());
            return Err(ApiError::unavailable(text, RETRY_AFTER_S));
        }
        let volumes = volumes.into_iter().map(|(placement, volume)| (volume, placement)).collect();
        Ok(Load { lead, placement, running, volumes, source })
    }

    /// Where it goes: the host that was named, or the best one of the region.
    fn target(&self, world: &World, load: &Load, wish: &Migrate) -> Result<HostId, ApiError> {
        let source = &load.source.id;
        let named = wish.host.as_deref().filter(|host| !host.is_empty());
        let region = wish.region.as_deref().filter(|region| !region.is_empty());
        let hosts: Vec<HostId> = match named {
            Some(name) => {
                if name == source.as_str() {
                    return Err(ApiError::conflict(format!("{} is on host {source} already", load.lead.words())));
                }
                let regions: Vec<String> = region.map(str::to_owned).into_iter().collect();
                vec![named_host::find(world, name, &regions)?.id.clone()]
            }
            None => {
                let region = region.unwrap_or(&load.source.region);
                let of_region = world.hosts.values().filter(|row| row.region == region && row.id != *source);
                of_region.map(|row| row.id.clone()).collect()
            }
        };
        if hosts.is_empty() {
            let region = region.unwrap_or(&load.source.region);
            return Err(ApiError::unprocessable(format!(
                "there is no other host in region {region}: name a host or a region to move it elsewhere"
            )));
        }
        let with_volumes = |running| {
            let volumes = load.volumes.iter().map(|(volume, _)| volume.need(running));
            capacity::sum(volumes.chain([load.lead.need(running)]))
        };
        let ask = Request {
            app: load.lead.app(),
            region: None,
            need: with_volumes(load.running),
            running: with_volumes(true),
            cpus: load.lead.cpus(),
            only: Some(&hosts),
            refused: &[],
            tie: 0,
        };
        choose(world, ask).map_err(|why| {
            if named.is_some() {
                return named_host::cannot_take(&hosts[0], load.lead.noun(), &why);
            }
            let mut error = no_room(load.lead.noun(), &why, None, &[]);
            error.error.push_str("; only hosts of its region were considered");
            error
        })
    }

    pub(crate) fn show_migration(&self, id: &MigrationId) -> Result<Migration, ApiError> {
        let world = self.world();
        let of = world.migrations.get(id).ok_or_else(|| ApiError::not_found(format!("there is no migration {id}")))?;
        Ok(self.view_migration(&world, of))
    }

    pub(crate) fn view_migration(&self, world: &World, of: &crate::world::Move) -> Migration {
        let Some(ticket) = &of.ticket else {
            return migrations::view_unreadable(&of.row, clock::unix_ms());
        };
        let sight = world.sight(&of.row, ticket, clock::unix_ms());
        let progress = migrations::progress(&sight, &of.hydration);
        let is_still =
            !of.row.phase.is_over() && self.stalls.look(&of.row.id, migrations::signature(&sight, &progress));
        let still = is_still.then(|| progress.stalled.clone().unwrap_or_else(|| migrations::waits_for(&sight)));
        migrations::view(&sight, &of.hydration, still)
    }
}

/// The placement of what can move: it stands, its host has it, and nothing else is about to happen to it.
fn placed(world: &World, subject: &Subject) -> Result<Known<Placement>, ApiError> {
    let words = subject.words();
    let placement = world.placement(subject.host(), &subject.carrier()).filter(|placement| !placement.destroy);
    let Some(placement) = placement.filter(|_| !subject.is_destroyed()) else {
        return Err(ApiError::conflict(format!("{words} is destroyed or being destroyed")));
    };
    if let (Subject::Volume(_), Some(migration)) = (subject, subject.moving()) {
        return Err(ApiError::conflict(format!(
            "{words} is still being copied by an earlier move ({migration}): wait until that has completed"
        )));
    }
    may_change(subject)?;
    let fact = world.fact(subject.host(), &subject.carrier()).filter(|fact| fact.epoch == subject.epoch());
    let Some(fact) = fact else {
        let text = format!("host {} has not created {words} yet; try again", subject.host());
        return Err(ApiError::unavailable(text, RETRY_AFTER_S));
    };
    if let Some(reason) = &fact.refused {
        return Err(ApiError::conflict(format!("{words} is on no host: {} refused it: {reason}", subject.host())));
    }
    if fact.volume.as_ref().is_some_and(|volume| volume.hydration.is_some()) {
        return Err(ApiError::conflict(format!("{words} is still being copied: wait until the copy is complete")));
    }
    if matches!(fact.state, MachineState::Destroying | MachineState::Destroyed) {
        return Err(ApiError::conflict(format!("{words} is destroyed or being destroyed")));
    }
    if matches!(subject, Subject::Volume(_)) && fact.state != MachineState::Stopped {
        let text = format!("{words} is {} on host {}; try again", fact.state.as_str(), subject.host());
        return Err(ApiError::conflict(text));
    }
    Ok(placement.clone())
}

fn first_rows(world: &World, load: &Load, row: &MigrationRow, target: &Known<HostRow>) -> Result<Txn, ApiError> {
    let (key, ticket_key) = (keys::migration(&row.id), keys::ticket(&row.target, &row.id));
    let mut txn = Txn::default()
        .when(Compare::absent(key.clone()))
        .when(Compare::unchanged(keys::host(&row.source), load.source.revision))
        .when(Compare::unchanged(keys::host(&row.target), target.revision))
        .when(generation_unchanged(world));
    txn.then.push(json(key, row)?);
    txn.then.push(json(ticket_key, &row.ticket)?);
    let all = load.volumes.iter().map(|(subject, placement)| (subject, placement));
    for (subject, placement) in all.chain([(&load.lead, &load.placement)]) {
        let taken_back_at = subject.next_epoch(world.generation_number()).next();
        let change = Change { moving: Some(Some(row.id.clone())), epoch_used: taken_back_at.n, ..Change::default() };
        txn.then.push(subject.changed(&change)?);
        txn.compares.push(Compare::unchanged(subject.key(), subject.revision()));
        txn.compares.push(Compare::unchanged(keys::placement(subject.host(), &subject.carrier()), placement.revision));
    }
    Ok(txn)
}

/// A plan that was not carried out.
fn shown(plan: &Plan) -> Migration {
    let sight = Sight {
        row: &plan.row,
        ticket: &plan.ticket,
        lead: None,
        source: None,
        target: None,
        volumes: Vec::new(),
        now_ms: plan.row.started_at_ms,
    };
    migrations::view(&sight, &Default::default(), None)
}
