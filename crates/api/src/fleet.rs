//! Joining the fleet, and hosts as operators see them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    pub capacity: Resources,
    pub used: Resources,
    pub machines: u64,
    pub agent_version: String,
    pub drivers: Vec<String>,
    pub agent_url: String,
    pub door_addr: String,
    /// Milliseconds since control last heard of it; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<u64>,
}

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
