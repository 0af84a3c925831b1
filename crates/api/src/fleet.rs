//! Joining the fleet, and hosts as operators see them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::EdgeId;
use crate::fact::Resources;

/// `POST /v1/join` with a join token as bearer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Join {
    pub role: JoinRole,
    /// Wanted name; the id adds four hex digits.
    pub name: String,
    pub region: String,
    /// Drawn when the data folder was made; the same incarnation joining again gets the same id and a new key.
    pub incarnation: String,
    #[serde(default)]
    pub agent_url: String,
    #[serde(default)]
    pub door_addr: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JoinRole {
    Host,
    Edge,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Joined {
    pub id: String,
    /// The bearer by which it names itself to control.
    pub key: String,
    /// Hosts: the bearer by which control will name itself.
    #[serde(default)]
    pub control_key: String,
}

/// A host as `GET /v1/hosts` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    pub id: String,
    pub region: String,
    /// `active`, `cordoned` or `unreachable`.
    pub state: String,
    /// What its Machines may have together.
    pub capacity: Resources,
    /// Promised of that: processor and memory to Machines that run, disk to all Machines and volumes.
    #[serde(default)]
    pub reserved: Resources,
    /// In use of the machine, by Machines and by everything else: as last measured, and at most what `machine` has.
    pub used: Resources,
    /// The machine itself, as measured; less than `capacity` where more was stated than there is.
    #[serde(default)]
    pub machine: Resources,
    pub machines: u64,
    pub agent_version: String,
    pub drivers: Vec<String>,
    pub agent_url: String,
    pub door_addr: String,
    /// Milliseconds since control last heard of it; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<u64>,
}

/// What a host holds and no row names: control was put back from an older copy, or lost a create half-way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stray {
    /// Of the Machine or the volume.
    pub id: String,
    pub host_id: String,
    /// `machine` or `volume`.
    pub kind: String,
    /// The app that it belonged to; it may be no more.
    pub app: String,
    /// Of a Machine, as its host tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<crate::machine::MachineState>,
    /// What a volume takes of the host's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// RFC 3339: when its host last saw it change.
    pub updated_at: String,
    /// It was told to end, and its host has not done so yet.
    pub ending: bool,
}

/// `POST /v1/hosts/{host_id}/strays/{stray_id}/adopt`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["app"]))]
pub struct AdoptStray {
    /// The app that it belonged to, which must be there again.
    pub app: String,
    /// For a Machine; the one that it has, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What was a stray and is adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Adopted {
    /// Of the Machine or the volume.
    pub id: String,
    pub host_id: String,
    /// `machine` or `volume`.
    pub kind: String,
    pub app: String,
    pub name: String,
    /// Volumes that the Machine holds and that had no record either.
    pub volumes: Vec<String>,
}

/// What an edge tells of public ports (`POST /v1/edges/ports`). Control keeps it in memory for `EDGE_PORTS_KEPT_MS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EdgePorts {
    /// Those that the edge itself listens on.
    pub own: Vec<u16>,
    /// Raw ports of apps that it could not open.
    pub closed: Vec<ClosedPort>,
    /// Raw ports of apps that it has open.
    #[serde(default)]
    pub open: Vec<u16>,
}

/// A public raw port of an app, as edges reported it in the last `EDGE_PORTS_KEPT_MS`. With neither: no edge has yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RawPort {
    pub port: u16,
    /// Edges that have it open.
    #[serde(default)]
    pub open_at: Vec<EdgeId>,
    /// Edges that could not open it, and why.
    #[serde(default)]
    pub closed_at: Vec<ClosedAt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClosedAt {
    pub edge: EdgeId,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClosedPort {
    pub port: u16,
    pub why: String,
}

pub const EDGE_PORTS_KEPT_MS: u64 = 60_000;

/// An image that control holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// `name:tag`.
    pub name: String,
    pub digest: String,
    pub size_bytes: u64,
    pub layers: u64,
    /// RFC 3339.
    pub created_at: String,
    pub in_use: bool,
}
