//! What happened to a Machine, as its agent wrote it down.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One entry of a Machine's history, newest first in lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineEvent {
    pub id: String,
    /// `launch`, `start`, `exit`, `stop`, `restart`, `update`, `destroy`, `check`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The state that the Machine entered.
    pub status: String,
    /// `user`, `flyd` (the host's own doing) or `proxy`.
    pub source: String,
    /// Unix milliseconds.
    pub timestamp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<EventDetail>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EventDetail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_event: Option<ExitEvent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_count: Option<u32>,
    /// Why, in words (refusals, failed steps).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a Machine's process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExitEvent {
    pub exit_code: i32,
    pub guest_exit_code: i32,
    /// The signal that ended it; 0 for none, -1 when unknown.
    pub signal: i32,
    pub guest_signal: i32,
    pub oom_killed: bool,
    pub requested_stop: bool,
    pub restarting: bool,
    /// RFC 3339.
    pub exited_at: String,
}
