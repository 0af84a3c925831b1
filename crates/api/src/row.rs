//! The rows of the fleet store that control writes (desire), each a whole JSON object under a key of `keys`.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::config::MachineConfig;
use crate::event::MachineEvent;
use crate::ids::{AppName, EdgeId, Epoch, HostId, InstanceId, MachineId, MigrationId, VolumeId};
use crate::machine::ImageRef;
use crate::migration::{MigrationEvent, MigrationPhase, MigrationProgress};
use crate::ticket::SignedTicket;
use crate::volume::{PlacedVolume, VolumeFs};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppRow {
    pub id: String,
    pub name: AppName,
    pub organization: String,
    pub network: String,
    pub created_at_ms: u64,
}

/// A Machine as its owner wants it, and where it is placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRow {
    pub id: MachineId,
    pub app: AppName,
    pub name: String,
    pub region: String,
    pub private_ip: Ipv6Addr,
    pub config: MachineConfig,
    pub image_ref: ImageRef,
    pub instance_id: InstanceId,
    pub host: HostId,
    pub epoch: Epoch,
    pub cordoned: bool,
    pub skip_service_registration: bool,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    /// Older versions, newest first, bounded by `VERSIONS_KEPT`.
    #[serde(default)]
    pub versions: Vec<(InstanceId, MachineConfig)>,
    /// Set when destroyed: the row stays for `include_deleted` until it is compacted away.
    #[serde(default)]
    pub destroyed_at_ms: Option<u64>,
    /// The move that it is in: until the target has it, nothing else may change its place or its configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<MigrationId>,
    /// The highest number of this generation that was ever promised for it: a move promises two, used or not.
    #[serde(default)]
    pub epoch_used: u64,
    /// What stands of each version in `versions` beside its configuration, by which it is put back when its host will
    /// not take a newer one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<OlderVersion>,
    #[serde(default, skip_serializing_if = "Refusals::is_empty")]
    pub refusals: Refusals,
    /// What hosts told that tell no more: those that refused it, and, once it is destroyed, its last. Newest first,
    /// bounded by `EVENTS_PUBLISHED`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<MachineEvent>,
    /// The host that its creation asked for: while it is there, no refusal sends it to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_host: Option<HostId>,
}

pub const VERSIONS_KEPT: usize = 16;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OlderVersion {
    pub instance_id: InstanceId,
    pub name: String,
    pub image_ref: ImageRef,
    pub skip_service_registration: bool,
}

/// Hosts that would not take something since its owner last changed it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    pub count: u32,
    /// Which, and when (Unix milliseconds): newest first, bounded by `REFUSALS_KEPT`.
    pub by: Vec<(HostId, u64)>,
}

pub const REFUSALS_KEPT: usize = 64;

impl Refusals {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn add(&mut self, host: HostId, at_ms: u64) {
        self.count = self.count.saturating_add(1);
        self.by.retain(|(known, _)| *known != host);
        self.by.insert(0, (host, at_ms));
        self.by.truncate(REFUSALS_KEPT);
    }
}

/// What one host is to hold: the row that its agent pulls. `destroy` makes it a tombstone, which stays until the
/// host has acknowledged it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    pub machine: MachineId,
    pub app: AppName,
    pub host: HostId,
    pub epoch: Epoch,
    pub instance_id: InstanceId,
    pub name: String,
    pub region: String,
    pub network: String,
    pub private_ip: Ipv6Addr,
    /// The image by digest: `sha256:…`.
    pub image_digest: String,
    pub image_name: String,
    pub config: MachineConfig,
    /// Start it once it is created or updated.
    pub launch: bool,
    #[serde(default)]
    pub destroy: bool,
    /// Destroy without asking the process to stop.
    #[serde(default)]
    pub force: bool,
    /// By which its host proves that control gave it this epoch (`godwit_base::proof`); empty in what an older control
    /// wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proof: String,
    /// Set in the placement of a volume, which stands under the volume's own number (`VolumeId::carrier`) and has
    /// nothing to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<PlacedVolume>,
}

/// A volume as its owner wants it, and where it is placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeRow {
    pub id: VolumeId,
    pub app: AppName,
    /// Volumes of an app may share one.
    pub name: String,
    pub region: String,
    pub size_gb: u64,
    pub fstype: VolumeFs,
    pub host: HostId,
    pub epoch: Epoch,
    /// One version for its whole life; names its placement together with the epoch.
    pub instance_id: InstanceId,
    /// The Machine that holds it; written in the transaction that creates, updates or destroys that Machine.
    pub machine: Option<MachineId>,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    #[serde(default)]
    pub destroyed_at_ms: Option<u64>,
    /// The move that it is in: until it is whole, it is neither deleted nor moved, nor given to another Machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<MigrationId>,
    /// The highest number of this generation that was ever promised for it: a move promises two, used or not.
    #[serde(default)]
    pub epoch_used: u64,
    #[serde(default, skip_serializing_if = "Refusals::is_empty")]
    pub refusals: Refusals,
}

/// By what control makes its proofs (`keys::PROOFS`). Control alone reads it, and it is drawn once for a store and all
/// its copies.
#[derive(Clone, Serialize, Deserialize)]
pub struct ProofsRow {
    pub secret: String,
}

impl std::fmt::Debug for ProofsRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProofsRow(…)")
    }
}

/// A move as control knows it (`keys::migration`). Rows that have ended are kept for a while, to be shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationRow {
    pub id: MigrationId,
    pub app: AppName,
    /// Of a volume that nothing holds: none.
    pub machine: Option<MachineId>,
    pub volumes: Vec<VolumeId>,
    pub source: HostId,
    pub target: HostId,
    /// What the target holds; the source takes back at the next one. Neither is ever used for anything else.
    pub epoch: Epoch,
    pub ticket: SignedTicket,
    pub requested_by: String,
    pub phase: MigrationPhase,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub cancel_requested_at_ms: Option<u64>,
    pub started_at_ms: u64,
    #[serde(default)]
    pub ended_at_ms: Option<u64>,
    /// Oldest first, bounded by `MIGRATION_EVENTS_KEPT`.
    #[serde(default)]
    pub events: Vec<MigrationEvent>,
    /// As last told by the target; what stays when its fact is gone.
    #[serde(default)]
    pub progress: MigrationProgress,
}

pub const MIGRATION_EVENTS_KEPT: usize = 64;

/// A host as control admitted it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostRow {
    pub id: HostId,
    pub region: String,
    /// `http://[addr]:port` of the agent's host API.
    pub agent_url: String,
    /// `[addr]:port` of the door.
    pub door_addr: String,
    /// SHA-256, hex, of the key by which the host names itself.
    pub key_sha256: String,
    /// The key by which control names itself to this host.
    pub control_key: String,
    /// Drawn by the host when its data folder was made.
    pub incarnation: String,
    pub cordoned: bool,
    pub joined_at_ms: u64,
}

/// An edge as control admitted it. Hosts learn the hash, so that a door can name its callers without control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EdgeRow {
    pub id: EdgeId,
    pub region: String,
    pub key_sha256: String,
    pub joined_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseRow {
    pub nonce: String,
    pub owner: String,
    pub description: String,
    pub expires_at_ms: u64,
    pub version: InstanceId,
}

/// A bearer token of an operator, by its hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRow {
    pub name: String,
    pub sha256: String,
    pub created_at_ms: u64,
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// Which app serves a public port whose bytes pass as raw TCP (`keys::port`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    pub app: AppName,
}

/// The store's generation, the upper half of every epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationRow {
    pub generation: u64,
    /// The identity of the store that it was drawn for: a restored copy has another one.
    #[serde(default)]
    pub store_identity: String,
}
