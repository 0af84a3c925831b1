//! What an agent publishes: whole objects, under its incarnation and a rising sequence, about its own host only.

use serde::{Deserialize, Serialize};

use crate::event::{ExitEvent, MachineEvent};
use crate::ids::{AppName, Epoch, HostId, InstanceId, MachineId};
use crate::machine::{CheckStatus, MachineState};
use crate::migration::MigrationFact;
use crate::route::ClosedPort;
use crate::volume::VolumeFact;

/// The order of facts of one host. A fact of a lower sequence never takes the place of one of a higher.
///
/// The incarnation is that of the host's data folder, by which it joined. A host keeps it for life, and a folder that was
/// wiped joins as another host under another id: a fact of an incarnation that its host's row does not name is nobody's,
/// and changes nothing. Within one incarnation the sequence never falls, also when the journal was lost: an agent begins
/// at no less than the time in Unix milliseconds, which no host's facts outrun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactStamp {
    pub incarnation: String,
    pub seq: u64,
}

/// What a host has, what is in use, and how far it has applied control's placements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostFact {
    pub host: HostId,
    pub stamp: FactStamp,
    pub boot_id: String,
    pub agent_version: String,
    pub capacity: Resources,
    /// Reserved for running Machines (processor, memory) and for all Machines and volumes (disk).
    pub used: Resources,
    /// What the machine has and what of it is in use, by whomever.
    #[serde(default)]
    pub measured: Option<Measured>,
    /// The store revision of the last placements that were applied: placement subtracts newer rows.
    pub applied_revision: u64,
    pub machines: u64,
    pub drivers: Vec<String>,
    /// Unix milliseconds.
    pub published_at_ms: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    pub memory_mb: u64,
    pub disk_mb: u64,
}

/// A host's machine as it was last measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    pub whole: Resources,
    pub used: Resources,
}

/// A Machine as its host knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineFact {
    pub machine: MachineId,
    pub app: AppName,
    pub host: HostId,
    pub stamp: FactStamp,
    pub epoch: Epoch,
    pub instance_id: InstanceId,
    pub state: MachineState,
    pub updated_at_ms: u64,
    #[serde(default)]
    pub started_at_ms: Option<u64>,
    #[serde(default)]
    pub restart_count: u32,
    #[serde(default)]
    pub last_exit: Option<ExitEvent>,
    /// Newest first, bounded by `EVENTS_PUBLISHED`.
    #[serde(default)]
    pub events: Vec<MachineEvent>,
    #[serde(default)]
    pub checks: Vec<CheckStatus>,
    /// Why its services cannot be reached as its process listens, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<String>,
    /// The same by port, for edges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_ports: Vec<ClosedPort>,
    /// Set when the host refused the placement for good (journaled): control may place again elsewhere.
    #[serde(default)]
    pub refused: Option<String>,
    /// A version that the host could not take: it keeps the one that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_update: Option<RefusedUpdate>,
    /// The host has it and keeps it: false before, after a refusal, and after a handoff.
    #[serde(default)]
    pub held: bool,
    /// Of its placement: that control gave this host this epoch. Without it, what is told above its row changes nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proof: String,
    /// The host's part in the last move of it.
    #[serde(default)]
    pub migration: Option<MigrationFact>,
    /// Of a volume.
    #[serde(default)]
    pub volume: Option<VolumeFact>,
}

/// An update that was dropped, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedUpdate {
    pub instance_id: InstanceId,
    pub reason: String,
}

pub const EVENTS_PUBLISHED: usize = 20;
