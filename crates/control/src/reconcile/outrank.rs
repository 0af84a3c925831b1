//! A host that holds something at a higher epoch than its row knows is right, and the row follows it: a store that was
//! put back from an older copy learns of moves that it has lost. Never the other way.
//!
//! Only what control itself gave outranks a row: the fact carries the proof of it (`godwit_base::proof`), which came with
//! the placement or the ticket. And only what this history of the store has forgotten: an epoch that it remembers to have
//! promised (`epoch_used`) belongs to a move that is under way, or to one whose end it knows. So a target that never took
//! over cannot claim later what its ticket once promised, nor a source take back what it had handed off for good.

use std::collections::BTreeMap;

use godwit_api::fact::MachineFact;
use godwit_api::row::Placement;
use godwit_api::{ApiError, Epoch, HostId, MachineId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Op, Txn};

use crate::claims::Claim;
use crate::control::Control;
use crate::subject::{Change, Place, Subject};
use crate::world::{Known, World, belief};

/// What is held above its row, by whom.
struct Outranked {
    subject: Subject,
    fact: Known<MachineFact>,
}

pub async fn rows(control: &Control) -> Result<(), ApiError> {
    let (all, claims) = outranked(&control.world());
    control.claims.count(claims, &control.distrust);
    for found in all {
        let txn = following(&control.world(), &found)?;
        let Some(txn) = txn else { continue };
        if control.commit(txn).await?.succeeded {
            let (host, epoch) = (&found.fact.host, found.fact.epoch);
            tracing::warn!(%host, %epoch, from = %found.subject.host(), "{} is held at a higher epoch; its row follows", found.subject.words());
        }
    }
    Ok(())
}

/// What outranks its row, and what only claims to.
fn outranked(world: &World) -> (Vec<Outranked>, Vec<Claim>) {
    let mut highest: BTreeMap<MachineId, Outranked> = BTreeMap::new();
    let mut claims = Vec::new();
    for fact in world.facts.values().flat_map(|facts| facts.values()).filter(|fact| fact.held) {
        // Nearly all are at their rows' epochs: what is looked at so often is not copied.
        if known_epoch(world, fact).is_none_or(|known| fact.epoch <= known) {
            continue;
        }
        let Some(subject) = subject_of(world, fact) else { continue };
        if subject.is_destroyed() || is_expected(world, &subject, fact) {
            continue;
        }
        let no = match () {
            () if !world.is_proven(fact) => Some(belief::UNPROVEN),
            () if is_spent(&subject, fact) => Some(belief::SPENT),
            () => None,
        };
        if let Some(kind) = no {
            claims.push(Claim { kind, host: fact.host.clone(), machine: fact.machine.clone(), epoch: fact.epoch });
            continue;
        }
        let best = highest.entry(fact.machine.clone()).or_insert_with(|| Outranked { subject, fact: fact.clone() });
        if best.fact.epoch < fact.epoch {
            best.fact = fact.clone();
        }
    }
    (highest.into_values().collect(), claims)
}

/// An epoch that this history of the store has promised, and whose end it knows.
fn is_spent(subject: &Subject, fact: &MachineFact) -> bool {
    fact.epoch.generation == subject.epoch().generation && fact.epoch.n <= subject.epoch_used()
}

fn known_epoch(world: &World, fact: &MachineFact) -> Option<Epoch> {
    match &fact.volume {
        Some(volume) => Some(world.volumes.get(&fact.app)?.get(&volume.id)?.epoch),
        None => Some(world.machines.get(&fact.app)?.get(&fact.machine)?.epoch),
    }
}

fn subject_of(world: &World, fact: &MachineFact) -> Option<Subject> {
    match &fact.volume {
        Some(volume) => world.volumes.get(&fact.app)?.get(&volume.id).cloned().map(Subject::Volume),
        None => world.machines.get(&fact.app)?.get(&fact.machine).cloned().map(Subject::Machine),
    }
}

/// The epochs of its own live move are that move's matter.
fn is_expected(world: &World, subject: &Subject, fact: &MachineFact) -> bool {
    let Some(of) = world.live_move(subject.moving()) else { return false };
    let parts = of.ticket.iter().flat_map(|ticket| crate::world::parts(ticket));
    let mut own = parts.filter(|part| part.machine == fact.machine);
    own.any(|part| fact.epoch == part.epoch || fact.epoch == part.epoch.next())
}

fn following(world: &World, found: &Outranked) -> Result<Option<Txn>, ApiError> {
    let Outranked { subject, fact } = found;
    let Some(host) = world.hosts.get(&fact.host) else { return Ok(None) };
    let place = Place { host: fact.host.clone(), region: host.region.clone(), epoch: fact.epoch };
    let old = world.placement(subject.host(), &subject.carrier());
    let stands = world.placement(&fact.host, &fact.machine);
    let network = old.or(stands).map(|placement| placement.network.clone());
    let network = network.or_else(|| world.apps.get(&fact.app).map(|app| app.network.clone())).unwrap_or_default();
    let launch = old.or(stands).is_some_and(|placement| placement.launch);
    // A destruction that was asked for stays asked for, wherever it is.
    let (destroy, force) = old.map_or((false, false), |old| (old.destroy, old.force));
    let placement = Placement { destroy, force, ..subject.placement(&place, &network, launch) };
    let used = if fact.epoch.generation == world.generation_number() { fact.epoch.n } else { 0 };
    let now_ms = clock::unix_ms();
    let change = Change { place: Some(place), epoch_used: used, now_ms, ..Change::default() };
    let key = keys::placement(&fact.host, &fact.machine);
    let mut txn = Txn::of([subject.changed(&change)?, world.placement_op(&placement)?])
        .when(Compare::unchanged(subject.key(), subject.revision()))
        .when(Compare::unchanged(key, stands.map_or(0, |row| row.revision)));
    if let Some(old) = old.filter(|old| old.host != fact.host && !still_holds(world, &old.host, &fact.machine)) {
        let key = keys::placement(&old.host, &old.machine);
        txn.compares.push(Compare::unchanged(key.clone(), old.revision));
        txn.then.push(Op::delete(key));
    }
    Ok(Some(txn))
}

/// A past host that has not let go keeps its row: nothing of it may be forgotten.
fn still_holds(world: &World, host: &HostId, machine: &MachineId) -> bool {
    let fact = world.fact(host, machine);
    fact.is_some_and(|fact| fact.held || fact.volume.as_ref().is_some_and(|volume| volume.lent_to.is_some()))
}
