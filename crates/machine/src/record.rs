//! What a host remembers of a Machine and of the job that it is about: the two rows that its journal keeps. They are
//! JSON on disk, so a member that is added must have a default. It must not know the journal.

use serde::{Deserialize, Serialize};

use godwit_api::event::ExitEvent;
use godwit_api::fact::Resources;
use godwit_api::ids::{Epoch, InstanceId};
use godwit_api::machine::MachineState;
use godwit_api::row::Placement;

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
    pub updated_at_ms: u64,
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
            updated_at_ms: now_ms,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.placement.epoch
    }

    pub fn is_destroyed(&self) -> bool {
        self.state == MachineState::Destroyed
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

    pub fn is_forward(&self) -> bool {
        self.phase == Phase::Forward
    }

    /// The step after the present one, in the present direction.
    pub fn next_step(&self) -> Option<Step> {
        match &self.phase {
            Phase::Forward => job::next(self.kind, self.stop, self.start, Some(self.step)).map(|row| row.step),
            Phase::Unwinding { .. } => {
                let OnAbort::Unwind(steps) = self.row()?.on_abort else { return None };
                let at = steps.iter().position(|step| *step == self.step)?;
                steps.get(at + 1).copied()
            }
        }
    }
}
