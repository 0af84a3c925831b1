//! What becomes of a move, given its row and what its two hosts tell of it; and the move as users see it. Pure: no
//! store, no clock. Whatever it decides is decided again from the same facts if the writing of it fails.
//!
//! ```text
//! preparing ─▶ handing_off ─▶ starting ─▶ hydrating ─▶ completed
//!     └────────────┴─▶ cancelled, failed      (the source has it, at the epoch it had)
//!                              └─▶ failed     (the source took it back, two epochs on)
//! ```
//!
//! The source alone decides whether it hands off. Until its fact (or the target's) says so, the rows stay.

use std::collections::BTreeMap;

use godwit_api::fact::MachineFact;
use godwit_api::machine::MachineState;
use godwit_api::migration::{Migration, MigrationEvent, MigrationFact, MigrationPhase, MigrationProgress, MovePart};
use godwit_api::row::{MIGRATION_EVENTS_KEPT, MigrationRow};
use godwit_api::ticket::Ticket;
use godwit_api::volume::HydrationFact;
use godwit_api::{Epoch, HostId, MachineId};
use godwit_base::clock::rfc3339;

/// Said by an event once the source has answered a cancel so; it is not asked again.
pub const TOO_LATE: &str = "the cancel came too late: it has been handed off";
/// An event of the source, from which the downtime counts.
pub const DOOR_CLOSED: &str = "the door closed";
/// Moments that hosts tell in `MigrationFact::at_ms`.
const CLOSING: &str = "closing";
const RUNNING: &str = "running";

/// A row's place: its host and its epoch there.
pub type At<'a> = Option<(&'a HostId, Epoch)>;

/// What is known of a move at one moment.
pub struct Sight<'a> {
    pub row: &'a MigrationRow,
    pub ticket: &'a Ticket,
    /// Of what leads the move: its row's place, and what the two hosts say of it.
    pub lead: At<'a>,
    pub source: Option<&'a MachineFact>,
    pub target: Option<&'a MachineFact>,
    pub volumes: Vec<VolumeSight<'a>>,
    pub now_ms: u64,
}

/// A volume that it takes along.
pub struct VolumeSight<'a> {
    /// The target's.
    pub epoch: Epoch,
    pub place: At<'a>,
    pub source: Option<&'a MachineFact>,
    pub target: Option<&'a MachineFact>,
}

/// What is to be written, or asked, next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The hosts go on; there is nothing to write.
    Wait,
    Enter {
        phase: MigrationPhase,
        at: HostId,
        detail: String,
    },
    /// It was handed off: the rows follow to the target.
    Follow,
    /// It is at the target for good; only its volumes may be incomplete.
    Settle,
    /// All is whole, and the source has let go.
    Complete,
    /// The source took it back: the rows return, at the epoch after the target's.
    GoBack {
        reason: String,
    },
    /// Nothing has moved, and nothing will.
    End {
        phase: MigrationPhase,
        reason: String,
    },
    /// The source is to be asked to call it off.
    AskCancel,
}

fn part<'a>(fact: Option<&'a MachineFact>, row: &MigrationRow) -> Option<&'a MigrationFact> {
    fact?.migration.as_ref().filter(|migration| migration.id == row.id)
}

fn is_at(place: At, host: &HostId, epoch: Epoch) -> bool {
    place == Some((host, epoch))
}

fn is_held_at(fact: Option<&MachineFact>, epoch: Epoch) -> bool {
    fact.is_some_and(|fact| fact.held && fact.epoch == epoch)
}

pub fn next(sight: &Sight) -> Step {
    let row = sight.row;
    match row.phase {
        phase if phase.is_over() => Step::Wait,
        MigrationPhase::Hydrating => hydrating(sight),
        _ if is_at(sight.lead, &row.source, sight.ticket.from_epoch) => at_source(sight),
        _ if is_at(sight.lead, &row.target, row.epoch) => at_target(sight),
        _ => Step::End {
            phase: MigrationPhase::Failed,
            reason: "another host was found to hold it at a higher epoch".into(),
        },
    }
}

fn at_source(sight: &Sight) -> Step {
    if let Some(step) = taken_back(sight) {
        return step;
    }
    let row = sight.row;
    let (source, target) = (part(sight.source, row), part(sight.target, row));
    let source_part = source.map(|source| source.part);
    let target_part = target.map(|target| target.part);
    if source_part == Some(MovePart::HandedOff) {
        return Step::Follow;
    }
    // The source may be out of control's reach, and not out of the target's.
    let gave_up = matches!(target_part, Some(MovePart::Refused | MovePart::TakenBack));
    let was_told_so = target_part.is_some_and(|part| part >= MovePart::HandedOff);
    if (is_held_at(sight.target, row.epoch) || was_told_so) && !gave_up {
        return Step::Follow;
    }
    // A target that took back has asked the source, whose word is the one that counts.
    let refusal = [source, target].into_iter().flatten().find(|told| told.part == MovePart::Refused);
    if let Some(refusal) = refusal {
        let reason = refusal.reason.clone().unwrap_or_else(|| "refused without a reason".into());
        let phase = match row.cancel_requested_at_ms {
            Some(_) => MigrationPhase::Cancelled,
            None => MigrationPhase::Failed,
        };
        return Step::End { phase, reason };
    }
    if row.phase == MigrationPhase::Preparing {
        if source_part == Some(MovePart::Preparing) {
            return entered(MigrationPhase::HandingOff, &row.source, source, "it drains and stops here");
        }
        if target_part.is_some_and(|part| part >= MovePart::Asked && !gave_up) {
            return entered(MigrationPhase::HandingOff, &row.target, target, "the source has been asked");
        }
    }
    if (row.cancel_requested_at_ms.is_some() || is_expired(sight)) && !was_too_late(row) {
        return Step::AskCancel;
    }
    Step::Wait
}

/// Nobody has used its ticket in time. Only the source can say that nobody will: it is asked to cancel.
pub fn is_expired(sight: &Sight) -> bool {
    sight.now_ms > sight.ticket.expires_at_ms
}

fn was_too_late(row: &MigrationRow) -> bool {
    row.events.iter().any(|event| event.detail == TOO_LATE)
}

fn entered(phase: MigrationPhase, at: &HostId, told: Option<&MigrationFact>, detail: &str) -> Step {
    let step = told.and_then(|told| told.step.as_deref()).map(|step| format!(" ({step})")).unwrap_or_default();
    Step::Enter { phase, at: at.clone(), detail: format!("{detail}{step}") }
}

fn at_target(sight: &Sight) -> Step {
    if let Some(step) = taken_back(sight) {
        return step;
    }
    if sight.target.is_some_and(|fact| is_settled(fact, sight.row)) {
        return Step::Settle;
    }
    Step::Wait
}

/// Did the source take back what it had handed off? A target says so a moment before or after it.
fn taken_back(sight: &Sight) -> Option<Step> {
    let row = sight.row;
    let (source, target) = (part(sight.source, row), part(sight.target, row));
    let source_has_it = is_held_at(sight.source, row.epoch.next());
    let source_says = source.is_some_and(|source| source.part == MovePart::TakenBack);
    // While the source was not heard to hand off, it may be that it never did: then its own word is waited for.
    let was_handed_off =
        source.is_some_and(|source| source.part == MovePart::HandedOff) || is_at(sight.lead, &row.target, row.epoch);
    let target_says = target.is_some_and(|target| target.part == MovePart::TakenBack) && was_handed_off;
    if !(source_has_it || source_says || target_says) {
        return None;
    }
    let reason = [target, source].into_iter().flatten().find_map(|told| told.reason.clone());
    Some(Step::GoBack { reason: reason.unwrap_or_else(|| "the target handed it back".into()) })
}

/// Beyond the point of no return, and started as far as it will be.
fn is_settled(fact: &MachineFact, row: &MigrationRow) -> bool {
    match part(Some(fact), row).map(|told| told.part) {
        Some(MovePart::Done) => true,
        Some(MovePart::Attached) => matches!(
            fact.state,
            MachineState::Started | MachineState::Stopped | MachineState::Failed | MachineState::Destroyed
        ),
        _ => false,
    }
}

fn hydrating(sight: &Sight) -> Step {
    let is_here = |volume: &&VolumeSight| is_at(volume.place, &sight.row.target, volume.epoch);
    match sight.volumes.iter().filter(is_here).all(is_whole) {
        true => Step::Complete,
        false => Step::Wait,
    }
}

fn is_whole(volume: &VolumeSight) -> bool {
    let filled = volume.target.filter(|fact| fact.held && fact.epoch == volume.epoch).is_some_and(|fact| {
        let hydration = fact.volume.as_ref().and_then(|volume| volume.hydration.as_ref());
        hydration.is_none_or(|hydration| hydration.verified && hydration.done_blocks >= hydration.total_blocks)
    });
    let released = volume.source.is_none_or(|fact| {
        let lends = fact.volume.as_ref().is_some_and(|volume| volume.lent_to.is_some());
        fact.state == MachineState::Destroyed || (!fact.held && !lends)
    });
    filled && released
}

/// Did it run when the source let go of it? As that says, if it says anything.
pub fn ran_at_source(sight: &Sight) -> Option<bool> {
    let source = part(sight.source, sight.row).filter(|told| told.part == MovePart::HandedOff);
    source.map(|told| told.was_running)
}

/// Appends to the journal of a move; the oldest go first, but for the one that began it.
pub fn note(row: &mut MigrationRow, event: MigrationEvent) {
    while row.events.len() >= MIGRATION_EVENTS_KEPT {
        row.events.remove(1);
    }
    row.events.push(event);
}

/// Notes when the source's door closed, if that was told and not noted yet: the fact goes with the source's row.
pub fn note_door(row: &mut MigrationRow, source: Option<&MachineFact>) {
    let told = part(source, row).and_then(|told| told.at_ms.get(CLOSING)).copied();
    if let Some(timestamp) = told.filter(|_| door_closed_ms(row).is_none()) {
        let (phase, at) = (MigrationPhase::HandingOff, row.source.to_string());
        note(row, MigrationEvent { timestamp, phase, at, detail: DOOR_CLOSED.into() });
    }
}

fn door_closed_ms(row: &MigrationRow) -> Option<u64> {
    row.events.iter().find(|event| event.detail == DOOR_CLOSED).map(|event| event.timestamp)
}

/// When a phase was entered.
pub fn entered_ms(row: &MigrationRow, phase: MigrationPhase) -> Option<u64> {
    row.events.iter().find(|event| event.phase == phase && event.detail != DOOR_CLOSED).map(|event| event.timestamp)
}

/// How far it is, from what the hosts tell now; what they told before stays where they tell nothing more.
pub fn progress(sight: &Sight, hydration: &BTreeMap<MachineId, HydrationFact>) -> MigrationProgress {
    let row = sight.row;
    if row.phase.is_over() {
        return row.progress.clone();
    }
    let mut sum = row.progress.clone();
    if !hydration.is_empty() {
        let add = |of: fn(&HydrationFact) -> u64| hydration.values().map(of).fold(0, u64::saturating_add);
        sum = MigrationProgress {
            data_bytes: add(|of| of.data_bytes),
            hydrated_bytes: add(|of| of.hydrated_bytes),
            wire_bytes: add(|of| of.wire_bytes),
            total_blocks: add(|of| of.total_blocks),
            done_blocks: add(|of| of.done_blocks),
            demand_fetches: add(|of| of.demand_fetches),
            mismatches: add(|of| of.mismatches),
            rate_bytes_per_s: add(|of| of.rate_bytes_per_s),
            map_permille_at_running: hydration.values().filter_map(|of| of.map_permille_at_running).max(),
            first_read_ms: hydration.values().filter_map(|of| of.first_read_ms).reduce(f64::max),
            verified: hydration.len() == sight.volumes.len() && hydration.values().all(|of| of.verified),
            stalled: hydration.values().find_map(|of| of.stalled.clone()),
            ..MigrationProgress::default()
        };
        let left = sum.data_bytes.saturating_sub(sum.hydrated_bytes);
        sum.eta_s = (sum.rate_bytes_per_s > 0).then(|| left.div_ceil(sum.rate_bytes_per_s));
    }
    sum.downtime_ms = downtime_ms(sight);
    let precopy = part(sight.target, row).and_then(|told| told.precopy.clone());
    sum.precopy = precopy.or_else(|| row.progress.precopy.clone());
    sum
}

/// From the closed door to the running process; until now while it is down. What did not run was never down.
fn downtime_ms(sight: &Sight) -> Option<u64> {
    let row = sight.row;
    if !ran_at_source(sight).unwrap_or(sight.ticket.lead.launch) {
        return None;
    }
    let told = |fact, key: &str| part(fact, row).and_then(|told| told.at_ms.get(key)).copied();
    let closed_ms = door_closed_ms(row).or_else(|| told(sight.source, CLOSING))?;
    match (told(sight.target, RUNNING), row.phase) {
        (Some(running_ms), _) => Some(running_ms.saturating_sub(closed_ms)),
        (None, MigrationPhase::HandingOff | MigrationPhase::Starting) => Some(sight.now_ms.saturating_sub(closed_ms)),
        (None, _) => row.progress.downtime_ms,
    }
}

/// What changes whenever a move comes on: as long as it stays the same, nothing has.
pub fn signature(sight: &Sight, progress: &MigrationProgress) -> String {
    let told = |fact| part(fact, sight.row).map(|told| (told.part, told.step.clone()));
    let (phase, source, target) = (sight.row.phase, told(sight.source), told(sight.target));
    let ahead = progress.precopy.as_ref().map(|ahead| (ahead.pass, ahead.seen_bytes));
    format!("{phase:?} {source:?} {target:?} {ahead:?} {} {}", progress.done_blocks, progress.hydrated_bytes)
}

/// Why a move that stands still may stand still: who is waited for.
pub fn waits_for(sight: &Sight) -> String {
    let row = sight.row;
    let words = |fact: Option<&MachineFact>| match part(fact, row) {
        None => "has not reported on it".to_owned(),
        Some(MigrationFact { step: Some(step), .. }) => format!("is at {step}"),
        Some(told) => format!("is at {:?}", told.part).to_lowercase(),
    };
    format!("target {} {}; source {} {}", row.target, words(sight.target), row.source, words(sight.source))
}

/// A move whose ticket cannot be read.
pub fn view_unreadable(row: &MigrationRow, now_ms: u64) -> Migration {
    plain_view(row, row.progress.clone(), now_ms, false)
}

/// As the API shows it. `still`: why nothing moves, if nothing does.
pub fn view(sight: &Sight, hydration: &BTreeMap<MachineId, HydrationFact>, still: Option<String>) -> Migration {
    let row = sight.row;
    let mut progress = progress(sight, hydration);
    let is_stalled = still.is_some();
    progress.stalled = progress.stalled.filter(|_| !row.phase.is_over()).or(still);
    plain_view(row, progress, sight.now_ms, is_stalled)
}

fn plain_view(row: &MigrationRow, progress: MigrationProgress, now_ms: u64, is_stalled: bool) -> Migration {
    let end_ms = row.ended_at_ms.unwrap_or(now_ms);
    Migration {
        id: row.id.clone(),
        app: row.app.clone(),
        machine: row.machine.clone(),
        volumes: row.volumes.clone(),
        source: row.source.clone(),
        target: row.target.clone(),
        phase: row.phase,
        reason: row.reason.clone(),
        requested_by: row.requested_by.clone(),
        started_at: rfc3339(row.started_at_ms),
        ended_at: row.ended_at_ms.map(rfc3339),
        seconds: end_ms.saturating_sub(row.started_at_ms) as f64 / 1000.0,
        cancel_requested: row.cancel_requested_at_ms.is_some(),
        is_stalled,
        dry_run: false,
        progress,
        events: row.events.clone(),
    }
}

#[cfg(test)]
mod tests;
