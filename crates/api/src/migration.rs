//! Moves as users see them and as hosts report them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AppName, HostId, MachineId, MigrationId, VolumeId};

/// `POST …/migrate`. Without host and region, any other host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Migrate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How long requests in flight may go on; 5,000 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout_ms: Option<u64>,
    /// Bound on the background copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_s: Option<u64>,
    /// Copy what the volumes hold before the Machine is stopped, and afterwards only what changed meanwhile. The source
    /// goes on serving; the move takes longer, and the target waits for fewer blocks.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub precopy: bool,
    /// Start it at the target before it is stopped at the source. For Machines without volumes whose program bears two
    /// copies of itself for a while.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub start_first: bool,
    /// Say what would be done, and do nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// Disk, image, address at the target; the source goes on as before.
    #[default]
    Preparing,
    /// The source drains and stops it.
    HandingOff,
    /// The target attaches the volumes and starts it.
    Starting,
    /// It runs (or is stopped) at the target; its volumes are being filled.
    Hydrating,
    Completed,
    Cancelled,
    /// The source has it.
    Failed,
}

impl MigrationPhase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::HandingOff => "handing_off",
            Self::Starting => "starting",
            Self::Hydrating => "hydrating",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Failed)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationEvent {
    /// Unix milliseconds.
    pub timestamp: u64,
    pub phase: MigrationPhase,
    /// Who it happened at: a host's id or `control`.
    pub at: String,
    pub detail: String,
}

/// How far a move has come. Sums over its volumes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MigrationProgress {
    /// From the closed door at the source to the running process at the target, or until now.
    pub downtime_ms: Option<u64>,
    /// What was copied before the handoff, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precopy: Option<PrecopyFact>,
    pub data_bytes: u64,
    pub hydrated_bytes: u64,
    pub wire_bytes: u64,
    pub total_blocks: u64,
    pub done_blocks: u64,
    pub demand_fetches: u64,
    pub mismatches: u64,
    /// Thousandths of the source's data that had been copied when the Machine's process had started. Holes do not count:
    /// all of them are known at once.
    pub map_permille_at_running: Option<u64>,
    pub first_read_ms: Option<f64>,
    pub rate_bytes_per_s: u64,
    /// Seconds until the volumes are filled, at the present rate.
    pub eta_s: Option<u64>,
    pub verified: bool,
    /// Why nothing moves, if nothing does.
    pub stalled: Option<String>,
}

/// How far the copying before the handoff has come. Sums over the volumes; the pass is the latest of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PrecopyFact {
    /// From 1. Each looks at all of a volume, and brings what differs.
    pub pass: u64,
    /// How much of the volumes this pass has looked at, of how much.
    pub seen_bytes: u64,
    pub size_bytes: u64,
    /// Over all passes.
    pub copied_bytes: u64,
    pub wire_bytes: u64,
}

/// A move as `GET /v1/migrations` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Migration {
    pub id: MigrationId,
    pub app: AppName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    pub volumes: Vec<VolumeId>,
    pub source: HostId,
    pub target: HostId,
    pub phase: MigrationPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub requested_by: String,
    /// RFC 3339.
    pub started_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    pub seconds: f64,
    pub cancel_requested: bool,
    /// No step ended and no byte moved for a while.
    pub is_stalled: bool,
    /// It was only asked what would be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    pub progress: MigrationProgress,
    pub events: Vec<MigrationEvent>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListMigrations {
    /// Also those that have ended.
    pub all: Option<bool>,
    pub app: Option<String>,
    pub machine: Option<String>,
}

/// A host's part in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveRole {
    Source,
    Target,
}

/// How far a host's part has come. In this order, but for the endings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MovePart {
    /// Target: image, disk, network. Source: closing, draining, stopping.
    Preparing,
    /// Target: the source has been asked.
    Asked,
    /// Source: it is no longer here. Target: the source said so.
    HandedOff,
    /// Target: attached read-write. From here on there is no way back.
    Attached,
    /// Target: it runs, or stays stopped as it was. Volumes may still be filling.
    Done,
    /// Source: not at this epoch. Target: given up, nothing is left.
    Refused,
    /// Source: it is here again. Target: handed back.
    TakenBack,
}

/// What a host tells of its part in the last move of a Machine or volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationFact {
    pub id: MigrationId,
    pub role: MoveRole,
    pub part: MovePart,
    /// The step of its job, for people.
    #[serde(default)]
    pub step: Option<String>,
    #[serde(default)]
    pub reason: Option<String>,
    /// Source: it ran, or was about to be started again.
    #[serde(default)]
    pub was_running: bool,
    /// Unix milliseconds of the entry into each part so far, of the door's closing (`closing`) and of the process's
    /// start (`running`).
    #[serde(default)]
    pub at_ms: std::collections::BTreeMap<String, u64>,
    /// Target: what it copied before the handoff.
    #[serde(default)]
    pub precopy: Option<PrecopyFact>,
}
