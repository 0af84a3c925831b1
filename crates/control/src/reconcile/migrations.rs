//! Follows live moves by what their hosts tell: `migrations` decides, and each decision is one transaction that
//! compares all it was decided upon. A control that died between two of them decides the same again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use godwit_api::migration::{MigrationEvent, MigrationPhase};
use godwit_api::row::{MigrationRow, Placement};
use godwit_api::ticket::{CancelAnswer, Ticket};
use godwit_api::{ApiError, MigrationId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Op, Txn};

use super::outrank;
use crate::control::Control;
use crate::counters::{MigrationLabels, PhaseLabels};
use crate::migrations::{self, Step, TOO_LATE, note, note_door};
use crate::rows::json;
use crate::subject::{Change, Place, Subject};
use crate::world::{Known, World, parts};

/// A source that does not answer a cancel is asked again after so long.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// A target that has told nothing of its ticket is told to pull again after so long.
const PULL_INTERVAL: Duration = Duration::from_secs(2);
const EXPIRED: &str = "its ticket expired before the source handed off";

pub async fn moves(control: Arc<Control>) -> Result<(), ApiError> {
    outrank::rows(&control).await?;
    let live: HashSet<MigrationId> = {
        let world = control.world();
        let live = world.migrations.values().filter(|of| !of.row.phase.is_over());
        live.map(|of| of.row.id.clone()).collect()
    };
    control.stalls.keep(&live);
    for id in &live {
        look(&control, id).await?;
    }
    Ok(())
}

/// What a move is told to become, with what is needed to write it.
struct Decided {
    row: Known<MigrationRow>,
    ticket: Arc<Ticket>,
    step: Step,
    is_expired: bool,
    is_untold: bool,
}

fn decide(control: &Control, id: &MigrationId) -> Option<Decided> {
    let world = control.world();
    let of = world.migrations.get(id)?;
    let ticket = of.ticket.clone()?;
    let sight = world.sight(&of.row, &ticket, clock::unix_ms());
    let progress = migrations::progress(&sight, &of.hydration);
    control.stalls.look(id, migrations::signature(&sight, &progress));
    let is_untold = sight.target.is_none_or(|fact| fact.migration.as_ref().is_none_or(|told| told.id != *id));
    let (step, is_expired) = (migrations::next(&sight), migrations::is_expired(&sight));
    let row = of.row.clone();
    drop(sight);
    Some(Decided { row, ticket, step, is_expired, is_untold })
}

async fn look(control: &Arc<Control>, id: &MigrationId) -> Result<(), ApiError> {
    let Some(Decided { row, ticket, step, is_expired, is_untold }) = decide(control, id) else {
        return Ok(());
    };
    let txn = match step {
        Step::Wait => {
            let is_new = row.phase == MigrationPhase::Preparing;
            if is_new && is_untold && control.liveness.may_hint(&row.target, PULL_INTERVAL) {
                control.tell_to_pull(&row.target);
            }
            return Ok(());
        }
        Step::AskCancel => {
            if control.stalls.may_ask(id, ASK_INTERVAL) {
                let control = control.clone();
                // Beside the looks: a source that does not answer must hold up no other move.
                tokio::spawn(async move {
                    if let Err(error) = ask_cancel(&control, &row, &ticket, is_expired).await {
                        tracing::warn!(migration = %row.id, %error, "a cancel's answer was not written; it is asked again");
                    }
                });
            }
            return Ok(());
        }
        Step::Enter { phase, at, detail } => entering(control, &row, &ticket, phase, at.as_str(), &detail)?,
        Step::Follow => following(control, &row, &ticket)?,
        Step::Settle if ticket.volumes.is_empty() => completing(control, &row, &ticket)?,
        Step::Settle => settling(control, &row, &ticket)?,
        Step::Complete => completing(control, &row, &ticket)?,
        Step::GoBack { reason } => going_back(control, &row, &ticket, &reason)?,
        Step::End { phase, reason } => ending(control, &row, &ticket, phase, &reason)?,
    };
    write(control, &row, txn).await
}

/// A row as it will stand, and the transaction that writes it with all that goes with it.
struct Writing {
    next: MigrationRow,
    txn: Txn,
}

async fn write(control: &Control, row: &MigrationRow, writing: Writing) -> Result<(), ApiError> {
    let Writing { next, mut txn } = writing;
    txn.then.push(json(keys::migration(&row.id), &next)?);
    if !control.commit(txn).await?.succeeded {
        // Something changed beside us: the next look decides anew.
        return Ok(());
    }
    let now_ms = clock::unix_ms();
    if next.phase != row.phase {
        tracing::info!(migration = %row.id, phase = next.phase.as_str(), reason = next.reason, "a move has come on");
        if let Some(entered_ms) = migrations::entered_ms(row, row.phase) {
            let phase = control.counters.migration_phases.get_or_create(&PhaseLabels { phase: row.phase.as_str() });
            phase.observe(now_ms.saturating_sub(entered_ms) as f64 / 1000.0);
        }
    }
    if next.phase.is_over() {
        let labels = MigrationLabels { outcome: next.phase.as_str(), kind: kind(row) };
        control.counters.migrations.get_or_create(&labels).inc();
        if let Some(downtime_ms) = next.progress.downtime_ms.filter(|_| next.phase == MigrationPhase::Completed) {
            control.counters.migration_downtime.observe(downtime_ms as f64 / 1000.0);
        }
    }
    Ok(())
}

fn kind(row: &MigrationRow) -> &'static str {
    match (&row.machine, row.volumes.is_empty()) {
        (None, _) => "volume",
        (Some(_), true) => "machine",
        (Some(_), false) => "machine_with_volumes",
    }
}

/// Enters a phase: notes it, with what is known of the progress by then.
fn begin(
    world: &World,
    row: &Known<MigrationRow>,
    ticket: &Ticket,
    phase: MigrationPhase,
    at: &str,
    detail: &str,
) -> Writing {
    let now_ms = clock::unix_ms();
    let mut next = (*row.value).clone();
    if let Some(of) = world.migrations.get(&row.id) {
        note_door(&mut next, world.sight(row, ticket, now_ms).source);
        // Judged as of before the phase ends, but with the door's time.
        let noted = next.clone();
        next.progress = migrations::progress(&world.sight(&noted, ticket, now_ms), &of.hydration);
    }
    next.phase = phase;
    note(&mut next, MigrationEvent { timestamp: now_ms, phase, at: at.to_owned(), detail: detail.to_owned() });
    if phase.is_over() {
        next.ended_at_ms = Some(now_ms);
        next.progress.stalled = None;
        next.progress.eta_s = None;
    }
    Writing { next, txn: Txn::default().when(Compare::unchanged(keys::migration(&row.id), row.revision)) }
}

fn entering(
    control: &Control,
    row: &Known<MigrationRow>,
    ticket: &Ticket,
    phase: MigrationPhase,
    at: &str,
    detail: &str,
) -> Result<Writing, ApiError> {
    Ok(begin(&control.world(), row, ticket, phase, at, detail))
}

/// What the move has in its hands: rows that are marked with it.
fn marked<'a>(
    world: &'a World,
    row: &'a MigrationRow,
    ticket: &'a Ticket,
) -> impl Iterator<Item = (Subject, &'a Placement)> {
    let subjects = parts(ticket).filter_map(|part| Some((Subject::of(world, part)?, part)));
    subjects.filter(|(subject, _)| subject.moving() == Some(&row.id))
}

/// Rewrites the row of a subject.
fn change(subject: &Subject, change: &Change, txn: &mut Txn) -> Result<(), ApiError> {
    txn.compares.push(Compare::unchanged(subject.key(), subject.revision()));
    txn.then.push(subject.changed(change)?);
    Ok(())
}

/// Puts a placement at its host, whatever stands there.
fn put(world: &World, placement: &Placement, txn: &mut Txn) -> Result<(), ApiError> {
    let key = keys::placement(&placement.host, &placement.machine);
    let stands = world.placement(&placement.host, &placement.machine).map_or(0, |row| row.revision);
    txn.compares.push(Compare::unchanged(key.clone(), stands));
    txn.then.push(world.placement_op(placement)?);
    Ok(())
}

/// The rows go to the target, exactly as the ticket says. The source's placements stay: it holds a higher epoch, and
/// they keep it from forgetting what it still has to lend.
fn following(control: &Control, row: &Known<MigrationRow>, ticket: &Ticket) -> Result<Writing, ApiError> {
    let world = control.world();
    let detail = format!("handed off: {} has it", row.target);
    let ran = migrations::ran_at_source(&world.sight(row, ticket, clock::unix_ms()));
    let mut writing = begin(&world, row, ticket, MigrationPhase::Starting, row.source.as_str(), &detail);
    for (subject, part) in marked(&world, row, ticket) {
        let place = Place { host: part.host.clone(), region: part.region.clone(), epoch: part.epoch };
        let moved = Change { place: Some(place), now_ms: clock::unix_ms(), ..Change::default() };
        change(&subject, &moved, &mut writing.txn)?;
        // No part of what is held; edges learn by it whether it is about to run there.
        let launch = part.volume.is_none() && ran.unwrap_or(part.launch);
        put(&world, &Placement { launch, ..part.clone() }, &mut writing.txn)?;
    }
    Ok(writing)
}

/// The Machine is free again, and its old host may forget it. The volumes stay marked until they are whole.
fn settling(control: &Control, row: &Known<MigrationRow>, ticket: &Ticket) -> Result<Writing, ApiError> {
    let world = control.world();
    let detail = "it is there; its volumes are being filled";
    let mut writing = begin(&world, row, ticket, MigrationPhase::Hydrating, row.target.as_str(), detail);
    free_machine(&world, row, ticket, &mut writing.txn)?;
    Ok(writing)
}

fn free_machine(world: &World, row: &MigrationRow, ticket: &Ticket, txn: &mut Txn) -> Result<(), ApiError> {
    for (subject, part) in marked(world, row, ticket).filter(|(_, part)| part.volume.is_none()) {
        change(&subject, &Change { moving: Some(None), ..Change::default() }, txn)?;
        txn.then.push(Op::delete(keys::placement(&row.source, &part.machine)));
    }
    Ok(())
}

/// Why a move is over although not all of it is whole.
const DESTROYED: &str = "it is there; a volume was destroyed before it was whole";

fn completing(control: &Control, row: &Known<MigrationRow>, ticket: &Ticket) -> Result<Writing, ApiError> {
    let world = control.world();
    // Those that were destroyed while they were being filled are in no move any more.
    let is_whole =
        marked(&world, row, ticket).filter(|(_, part)| part.volume.is_some()).count() == ticket.volumes.len();
    let detail = match (ticket.volumes.is_empty(), is_whole) {
        (true, _) => "it is there",
        (false, true) => "whole, and the source has let go",
        (false, false) => DESTROYED,
    };
    let mut writing = begin(&world, row, ticket, MigrationPhase::Completed, row.target.as_str(), detail);
    if !is_whole {
        writing.next.reason = Some(DESTROYED.to_owned());
    } else if !ticket.volumes.is_empty() {
        // The last of it may have been told together with its end.
        let progress = &mut writing.next.progress;
        (progress.done_blocks, progress.hydrated_bytes) = (progress.total_blocks, progress.data_bytes);
        (progress.verified, progress.rate_bytes_per_s) = (true, 0);
    }
    free_machine(&world, row, ticket, &mut writing.txn)?;
    for (subject, part) in marked(&world, row, ticket).filter(|(_, part)| part.volume.is_some()) {
        change(&subject, &Change { moving: Some(None), ..Change::default() }, &mut writing.txn)?;
        writing.txn.then.push(Op::delete(keys::placement(&row.source, &part.machine)));
    }
    writing.txn.then.push(Op::delete(keys::ticket(&row.target, &row.id)));
    Ok(writing)
}

/// The rows return to the source, at the epoch at which it took back.
fn going_back(
    control: &Control,
    row: &Known<MigrationRow>,
    ticket: &Ticket,
    reason: &str,
) -> Result<Writing, ApiError> {
    let world = control.world();
    let detail = format!("taken back: {reason}");
    let mut writing = begin(&world, row, ticket, MigrationPhase::Failed, row.source.as_str(), &detail);
    writing.next.reason = Some(reason.to_owned());
    let region = world.hosts.get(&row.source).map(|host| host.region.clone());
    for (subject, part) in marked(&world, row, ticket) {
        let region = region.clone().unwrap_or_else(|| subject.region().to_owned());
        let place = Place { host: row.source.clone(), region, epoch: part.epoch.next() };
        let (host, region, epoch) = (place.host.clone(), place.region.clone(), place.epoch);
        let back = Change {
            place: Some(place),
            moving: Some(None),
            epoch_used: epoch.n,
            now_ms: clock::unix_ms(),
            ..Change::default()
        };
        change(&subject, &back, &mut writing.txn)?;
        put(&world, &Placement { host, region, epoch, ..part.clone() }, &mut writing.txn)?;
        writing.txn.then.push(Op::delete(keys::placement(&row.target, &part.machine)));
    }
    writing.txn.then.push(Op::delete(keys::ticket(&row.target, &row.id)));
    Ok(writing)
}

fn ending(
    control: &Control,
    row: &Known<MigrationRow>,
    ticket: &Ticket,
    phase: MigrationPhase,
    reason: &str,
) -> Result<Writing, ApiError> {
    let world = control.world();
    let mut writing = begin(&world, row, ticket, phase, "control", reason);
    writing.next.reason = Some(reason.to_owned());
    for (subject, _) in marked(&world, row, ticket) {
        change(&subject, &Change { moving: Some(None), ..Change::default() }, &mut writing.txn)?;
    }
    writing.txn.then.push(Op::delete(keys::ticket(&row.target, &row.id)));
    Ok(writing)
}

async fn ask_cancel(
    control: &Control,
    row: &Known<MigrationRow>,
    ticket: &Ticket,
    is_expired: bool,
) -> Result<(), ApiError> {
    let writing = match control.ask_cancel(&row.source, &row.ticket).await {
        Ok(CancelAnswer::Cancelled) if row.cancel_requested_at_ms.is_some() => {
            ending(control, row, ticket, MigrationPhase::Cancelled, "cancelled before it was handed off")?
        }
        Ok(CancelAnswer::Cancelled) => ending(control, row, ticket, MigrationPhase::Failed, EXPIRED)?,
        Ok(CancelAnswer::TooLate) => entering(control, row, ticket, row.phase, row.source.as_str(), TOO_LATE)?,
        Err(error) => {
            let error = godwit_base::telemetry::chain(&error);
            tracing::warn!(migration = %row.id, source = %row.source, is_expired, error, "a source did not answer a cancel");
            return Ok(());
        }
    };
    write(control, row, writing).await
}
