//! Machines on the wire: requests, answers, and the states that users know.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::MachineConfig;
use crate::event::MachineEvent;
use crate::ids::{InstanceId, MachineId};
use crate::signal;

/// Where a Machine is in its life, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// Known to control, not yet to its host's journal, or created without a launch.
    Created,
    Starting,
    Started,
    Stopping,
    Stopped,
    Restarting,
    Replacing,
    Failed,
    Destroying,
    Destroyed,
}

impl MachineState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Started => "started",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Restarting => "restarting",
            Self::Replacing => "replacing",
            Self::Failed => "failed",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
        }
    }
    pub fn parse(text: &str) -> Option<Self> {
        const ALL: [MachineState; 10] = [
            MachineState::Created,
            MachineState::Starting,
            MachineState::Started,
            MachineState::Stopping,
            MachineState::Stopped,
            MachineState::Restarting,
            MachineState::Replacing,
            MachineState::Failed,
            MachineState::Destroying,
            MachineState::Destroyed,
        ];
        ALL.into_iter().find(|state| state.as_str() == text)
    }
    /// A state of the platform whose clients we serve in which no Machine is here: to be asked for, and never met.
    pub fn is_never(text: &str) -> bool {
        const NEVER: [&str; 7] =
            ["suspended", "suspending", "launch_failed", "updating", "migrated", "migrating", "replaced"];
        NEVER.contains(&text)
    }
}

/// `POST …/machines` and, with `current_version`, `POST …/machines/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["config"]))]
pub struct CreateMachine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Godwit's own: the id of the host that it must be placed on. In an update only its present host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    pub config: MachineConfig,
    /// Seconds; a lease is taken with the creation and its nonce answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl: Option<u64>,
    /// Create and leave stopped. In an update, a stopped Machine stays stopped; one that runs is restarted with its new
    /// configuration all the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_launch: bool,
    /// Leave the Machine out of its app's routes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_service_registration: bool,
    /// Update only: refused unless it is the Machine's present `instance_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageRef {
    pub registry: String,
    pub repository: String,
    pub tag: String,
    pub digest: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckStatus {
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    pub output: String,
    /// RFC 3339.
    pub updated_at: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    pub id: MachineId,
    pub name: String,
    pub state: MachineState,
    pub region: String,
    pub image_ref: ImageRef,
    pub instance_id: InstanceId,
    pub private_ip: String,
    /// RFC 3339.
    pub created_at: String,
    pub updated_at: String,
    pub config: MachineConfig,
    pub events: Vec<MachineEvent>,
    pub checks: Vec<CheckStatus>,
    /// Godwit's own: it was created without being registered in its app's routes, and no `uncordon` has changed that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_service_registration: bool,
    /// Why its services cannot be reached as its process listens; absent when nothing is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreachable: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// `ok`, `unknown` or `unreachable`.
    pub host_status: String,
    /// The host it is placed on.
    pub host_id: String,
    pub cordoned: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListMachines {
    pub region: Option<String>,
    pub include_deleted: Option<bool>,
    pub state: Option<String>,
    /// `metadata.K=V`, flattened into the query.
    #[serde(flatten)]
    pub rest: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StartAnswer {
    pub previous_state: String,
    pub migrated: bool,
    pub new_host: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StopMachine {
    /// `SIGTERM`, `TERM`, `15`; unset, that of the Machine's configuration.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "signal::optional")]
    #[schemars(schema_with = "signal::schema")]
    pub signal: Option<String>,
    /// How long the process has until it is killed: `"10s"`, `"10"` (seconds) or nanoseconds as a number. Zero means not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<crate::duration::Span>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RestartQuery {
    pub timeout: Option<String>,
    pub signal: Option<String>,
    pub force_stop: Option<bool>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DeleteQuery {
    /// Needed for what is not stopped. Its processes are killed at once, unless `kill=false` lets them stop first.
    pub force: Option<bool>,
    /// `true`: the same as `force`.
    pub kill: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SignalMachine {
    /// `SIGTERM`, `TERM`, or its number, 1 to 64.
    #[serde(deserialize_with = "signal::required")]
    #[schemars(schema_with = "signal::schema")]
    pub signal: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WaitQuery {
    /// One or several separated by commas; `started` if absent.
    #[schemars(regex(pattern = "^[a-z_]+(,[a-z_]+)*$"))]
    pub state: Option<String>,
    /// Seconds, at most 60; 60 if absent.
    pub timeout: Option<u64>,
    pub instance_id: Option<String>,
    pub version: Option<String>,
    /// A state also counts that has passed since this event of the Machine, though it is in another now. Events are known
    /// as long as `GET …/events` tells them.
    pub from_event_id: Option<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExecMachine {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ExecAnswer {
    pub exit_code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// The command wrote more than this answer may hold: stdout or stderr ends early. The session endpoint has no such
    /// bound.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The bytes in base64 (RFC 4648), where they are not UTF-8 (in `stdout`, U+FFFD stands for such bytes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListenSocket {
    pub proto: String,
    pub address: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProcessStat {
    pub pid: i32,
    /// Processor time in kernel mode and the time since start, in clock ticks.
    pub stime: u64,
    pub rtime: u64,
    pub command: String,
    pub directory: String,
    /// Percent of one processor over the process's life.
    pub cpu: u64,
    /// Resident bytes.
    pub rss: u64,
    pub listen_sockets: Vec<ListenSocket>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MachineVersion {
    pub version: InstanceId,
    pub user_config: MachineConfig,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MetadataValue {
    pub value: String,
}

/// `{"ok": true}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Acknowledged {
    pub ok: bool,
}
