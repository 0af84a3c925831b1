//! What a host remembers of a Machine and of the job that it is about: the two rows that its journal keeps. They are
//! JSON on disk, so a member that is added must have a default. It must not know the journal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use godwit_api::event::ExitEvent;
use godwit_api::fact::Resources;
use godwit_api::ids::{Epoch, HostId, InstanceId, MigrationId};
use godwit_api::machine::MachineState;
use godwit_api::migration::{MovePart, MoveRole};
use godwit_api::row::Placement;
use godwit_api::ticket::{ExportGrant, Grant, SignedTicket, Ticket};

use crate::job::{self, Fault, JobKind, OnAbort, Step, StepRow, StopMode};

/// A Machine as its host holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The configuration that is applied.
    pub placement: Placement,
    pub state: MachineState,
    /// The host has its image and keeps it: false before, and after a refusal.
    pub held: bool,
    /// Its process was started and is not known to have ended.
    pub running: bool,
    /// The last process's own id; the driver starts each id once.
    #[serde(default)]
    pub run: Option<String>,
    #[serde(default)]
    pub started_at_ms: Option<u64>,
    /// Restarts by policy since the owner last started it.
    #[serde(default)]
    pub restart_count: u32,
    /// Restarts in a row: a healthy period sets it back.
    #[serde(default)]
    pub retries: u32,
    /// When the policy will start it again.
    #[serde(default)]
    pub restart_due_ms: Option<u64>,
    #[serde(default)]
    pub last_exit: Option<ExitEvent>,
    /// Taken from the host's capacity.
    pub reserved: Resources,
    /// Why the host will not hold it at this epoch.
    #[serde(default)]
    pub refused: Option<String>,
    /// A configuration that could not be applied: it is not tried again.
    #[serde(default)]
    pub refused_update: Option<(Epoch, InstanceId)>,
    /// Why, in words.
    #[serde(default)]
    pub refused_update_reason: Option<String>,
    /// This host's part in the last move.
    #[serde(default)]
    pub moving: Option<Move>,
    /// No handoff at this epoch or below: said, and kept.
    #[serde(default)]
    pub refused_handoff: Option<Epoch>,
    /// Of a volume: being filled from there. Absent: it is whole.
    #[serde(default)]
    pub hydration: Option<Hydration>,
    /// Of a volume: handed off, and read by that host.
    #[serde(default)]
    pub lent: Option<Lent>,
    pub updated_at_ms: u64,
}

/// A host's part in a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub signed: SignedTicket,
    pub migration: MigrationId,
    pub role: MoveRole,
    pub source: HostId,
    pub source_url: String,
    pub target: HostId,
    pub target_door: String,
    /// The target's.
    pub epoch: Epoch,
    pub drain_timeout_ms: u64,
    pub part: MovePart,
    /// By the part's name, and `closing` and `running` besides.
    pub at_ms: BTreeMap<String, u64>,
    #[serde(default)]
    pub reason: Option<String>,
    /// Target: what the source gave.
    #[serde(default)]
    pub grant: Option<Grant>,
    /// Source: it ran, or was about to be started again.
    #[serde(default)]
    pub was_running: bool,
    /// Source: PEM of whoever reads the volumes.
    #[serde(default)]
    pub client_certificate: String,
}

/// Where a volume is filled from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hydration {
    pub signed: SignedTicket,
    pub migration: MigrationId,
    pub source: HostId,
    pub source_url: String,
    pub rate_bytes_per_s: u64,
    pub export: ExportGrant,
}

impl Hydration {
    /// Of each volume that a move takes along and its source serves: its placement, and where it is filled from.
    pub fn of_move(signed: &SignedTicket, ticket: &Ticket, grant: &Grant) -> Vec<(Placement, Self)> {
        let served = ticket.volumes.iter().filter_map(|carried| {
            let volume = &carried.placement.volume.as_ref()?.id;
            let export = grant.exports.iter().find(|export| export.volume == *volume)?.clone();
            let hydration = Self {
                signed: signed.clone(),
                migration: ticket.migration.clone(),
                source: ticket.source.clone(),
                source_url: ticket.source_url.clone(),
                rate_bytes_per_s: ticket.rate_bytes_per_s,
                export,
            };
            Some((carried.placement.clone(), hydration))
        });
        served.collect()
    }
}

/// To whom a volume was handed off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    pub migration: MigrationId,
    pub to: HostId,
    pub client_certificate: String,
}

impl Move {
    pub fn new(signed: SignedTicket, ticket: &Ticket, role: MoveRole, now_ms: u64) -> Self {
        let mut this = Self {
            signed,
            migration: ticket.migration.clone(),
            role,
            source: ticket.source.clone(),
            source_url: ticket.source_url.clone(),
            target: ticket.target.clone(),
            target_door: ticket.target_door.clone(),
            epoch: ticket.lead.epoch,
            drain_timeout_ms: ticket.drain_timeout_ms,
            part: MovePart::Preparing,
            at_ms: BTreeMap::new(),
            reason: None,
            grant: None,
            was_running: false,
            client_certificate: String::new(),
        };
        this.enter(MovePart::Preparing, now_ms);
        this
    }

    pub fn enter(&mut self, part: MovePart, now_ms: u64) {
        self.part = part;
        self.mark(part_name(part), now_ms);
    }

    pub fn mark(&mut self, name: &str, now_ms: u64) {
        self.at_ms.entry(name.to_owned()).or_insert(now_ms);
    }
}

fn part_name(part: MovePart) -> &'static str {
    match part {
        MovePart::Preparing => "preparing",
        MovePart::Asked => "asked",
        MovePart::HandedOff => "handed_off",
        MovePart::Attached => "attached",
        MovePart::Done => "done",
        MovePart::Refused => "refused",
        MovePart::TakenBack => "taken_back",
    }
}

/// On whose behalf something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    User,
    /// The host's own doing: restart policy, reboot, auto-destroy.
    Host,
    /// A request at the door.
    Proxy,
}

impl Source {
    /// As events name it; `flyd` is what clients of the platform know the host's own doing by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Host => "flyd",
            Self::Proxy => "proxy",
        }
    }
}

/// A journaled run of a step table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Never drawn twice; also the token by which the door knows a closing.
    pub id: u64,
    pub kind: JobKind,
    pub source: Source,
    pub stop: StopMode,
    pub start: bool,
    /// Where it stands: this step has begun or will at once.
    pub step: Step,
    /// Failed attempts of the step.
    #[serde(default)]
    pub attempt: u32,
    #[serde(default)]
    pub retry_at_ms: Option<u64>,
    pub phase: Phase,
    /// Of Create and Update: the configuration to hold.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// Of Update, once it has swapped them: the configuration that was held before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Placement>,
    /// Of jobs that start: the new process's id, drawn once so that no repetition starts a second one.
    #[serde(default)]
    pub run: Option<String>,
    #[serde(default)]
    pub stop_signal: Option<String>,
    #[serde(default)]
    pub stop_timeout_ms: Option<u64>,
    /// When the process was asked to stop: its deadline survives a restart of the agent.
    #[serde(default)]
    pub signalled_at_ms: Option<u64>,
    /// The state to come back to when the job is dropped.
    pub prior: MachineState,
    pub accepted_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Forward,
    /// Undoing, by the steps of the row at which it was aborted.
    Unwinding {
        aborted_at: Step,
        fault: Fault,
        reason: String,
        exit: Option<ExitEvent>,
    },
}

impl Record {
    /// Of a Machine that was never here.
    pub fn blank(placement: Placement, now_ms: u64) -> Self {
        Self {
            placement,
            state: MachineState::Created,
            held: false,
            running: false,
            run: None,
            started_at_ms: None,
            restart_count: 0,
            retries: 0,
            restart_due_ms: None,
            last_exit: None,
            reserved: Resources::default(),
            refused: None,
            refused_update: None,
            refused_update_reason: None,
            moving: None,
            refused_handoff: None,
            hydration: None,
            lent: None,
            updated_at_ms: now_ms,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.placement.epoch
    }

    pub fn is_destroyed(&self) -> bool {
        self.state == MachineState::Destroyed
    }

    pub fn is_volume(&self) -> bool {
        self.placement.volume.is_some()
    }

    /// Given to another host, by this one's own word.
    pub fn is_handed_off(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| {
            moving.role == MoveRole::Source && moving.part == MovePart::HandedOff && moving.epoch == self.epoch()
        })
    }

    /// On its way here; nothing of it runs yet, nor may anything else begin about it.
    pub fn is_arriving(&self) -> bool {
        !self.held
            && self.moving.as_ref().is_some_and(|moving| {
                moving.role == MoveRole::Target && moving.part < MovePart::Attached && moving.epoch == self.epoch()
            })
    }
}

impl Job {
    /// The row of the table that the job stands at; while unwinding, the one at which it was aborted.
    pub fn row(&self) -> Option<&'static StepRow> {
        let at = match &self.phase {
            Phase::Forward => self.step,
            Phase::Unwinding { aborted_at, .. } => *aborted_at,
        };
        job::table(self.kind).iter().find(|row| row.step == at)
    }

    /// What an abort would lead to now.
    pub fn on_abort(&self) -> OnAbort {
        match self.phase {
            Phase::Forward => self.row().map_or(OnAbort::Never, |row| row.on_abort),
            Phase::Unwinding { .. } => OnAbort::Never,
        }
    }

    /// The steps that undo it from where it stands or was aborted. What did not run is not started to undo anything.
    pub fn unwinding(&self) -> Option<&'static [Step]> {
        match self.row()?.on_abort {
            OnAbort::Unwind(_) if self.kind.is_departure() && !self.start => Some(&[Step::EndExport]),
            OnAbort::Unwind(steps) => Some(steps),
            OnAbort::Drop | OnAbort::Never => None,
        }
    }

    pub fn is_forward(&self) -> bool {
        self.phase == Phase::Forward
    }

    /// The step after the present one, in the present direction.
    pub fn next_step(&self) -> Option<Step> {
        match &self.phase {
            Phase::Forward => job::next(self.kind, self.stop, self.start, Some(self.step)).map(|row| row.step),
            Phase::Unwinding { .. } => {
                let steps = self.unwinding()?;
                let at = steps.iter().position(|step| *step == self.step)?;
                steps.get(at + 1).copied()
            }
        }
    }
}
