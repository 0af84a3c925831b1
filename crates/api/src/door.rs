//! The door's two conversations: with its own agent over a unix socket, and with edges over HTTP/2.
//!
//! Agent side: the door opens `GET /door/v1/machines`, a stream of JSON lines (`DoorUpdate`): first a whole
//! snapshot, then changes. It asks the agent to start or stop a Machine by POST, and reports a closed gate's drain.
//!
//! Edge side: each request or connection is one HTTP/2 stream whose headers name Machine and port (see `header`).
//! A refusal is an answer with status 503 and `REFUSAL`; anything without that header is the Machine's own answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::config::Service;
use crate::ids::{AppName, Epoch, HostId, MachineId};
use crate::machine::MachineState;

/// Header names between edge and door. Never let through from or to the outside.
pub mod header {
    /// Machine id (request).
    pub const MACHINE: &str = "godwit-machine";
    /// The port inside the Machine (request).
    pub const PORT: &str = "godwit-port";
    /// The epoch that the edge believes (request) or that the door knows (answer).
    pub const EPOCH: &str = "godwit-epoch";
    /// One of `moved`, `moving`, `busy`, `full`, `stopped`, `unknown`, `unreachable` (answer).
    pub const REFUSAL: &str = "godwit-refusal";
    /// Where the Machine went (answer, with `moved` and `moving`).
    pub const HOST: &str = "godwit-host";
    /// That host's door, `[addr]:port` (answer, with `moved` and `moving`, if it is known).
    pub const DOOR: &str = "godwit-door";
    /// Requests or connections in flight at the Machine (every answer).
    pub const LOAD: &str = "godwit-load";
    /// What a tunnel (`CONNECT`) carries: `tcp` or `upgrade`.
    pub const TUNNEL: &str = "godwit-tunnel";
    /// The Machine broke off before its answer, or its answer was read and refused: this answer (502) is the door's own.
    /// The value is a word for what was wrong with the answer; any other says that there was none.
    pub const FAILED: &str = "godwit-failed";
    /// Why a port takes no connection, in words (answer, with `unreachable`, if the host knows).
    pub const HINT: &str = "godwit-hint";
    /// Path and query as the client wrote them, where HTTP/2 cannot carry them so (request).
    pub const TARGET: &str = "godwit-target";
    /// The Upgrade field of a 426, which HTTP/2 cannot carry (answer).
    pub const UPGRADE: &str = "godwit-upgrade";
    pub const ALL: [&str; 12] =
        [MACHINE, PORT, EPOCH, REFUSAL, HOST, DOOR, LOAD, TUNNEL, FAILED, HINT, TARGET, UPGRADE];
}

/// Path of the edge's start call at a door: `POST /.godwit/machines/{id}/start` with `StartCall`, answered with
/// `StartReply` once the port accepts or it is clear that it will not.
pub fn start_path(machine: &MachineId) -> String {
    format!("/.godwit/machines/{machine}/start")
}
/// `POST`, `StopIfIdle` → `StopReply`.
pub fn stop_if_idle_path(machine: &MachineId) -> String {
    format!("/.godwit/machines/{machine}/stop-if-idle")
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCall {
    pub epoch: Epoch,
    pub port: u16,
    /// How long the caller will wait for the port.
    pub timeout_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum StartReply {
    /// The port accepts.
    Ready {
        epoch: Epoch,
    },
    Refused {
        refusal: Refusal,
        epoch: Option<Epoch>,
    },
    /// Started, but the port did not accept within the time, or the process ended.
    Failed {
        error: String,
        /// It runs, and as it listens its port will never accept: there is nothing to wait for.
        #[serde(default)]
        unreachable: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopIfIdle {
    pub epoch: Epoch,
    /// Stop only if nothing was in flight for this long.
    pub idle_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReply {
    pub stopped: bool,
    /// In flight when it was decided.
    pub load: u32,
    /// It is on its way to another host, and counts as running nowhere until it is there.
    #[serde(default)]
    pub moving: bool,
}

/// Why a door does not serve a request. The edge believes the higher epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Refusal {
    /// The Machine lives on another host now. The epoch beside it is the one it has there.
    Moved {
        host: HostId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        door_addr: Option<String>,
    },
    /// On its way there, at the epoch beside this; hold the request. The move may still be taken back.
    Moving {
        host: HostId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        door_addr: Option<String>,
    },
    /// At its hard limit, or its gate is closed while it stops.
    Busy,
    /// The host has no memory to start it.
    Full,
    /// Not running: ask for a start first.
    Stopped,
    /// Running, but its port refused or timed out.
    Unreachable {
        /// Why, as far as the host sees it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// This door has never heard of it.
    Unknown,
}

impl Refusal {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Moved { .. } => "moved",
            Self::Moving { .. } => "moving",
            Self::Busy => "busy",
            Self::Full => "full",
            Self::Stopped => "stopped",
            Self::Unreachable { .. } => "unreachable",
            Self::Unknown => "unknown",
        }
    }
    /// Rebuilds a refusal from its headers.
    pub fn from_parts(reason: &str, host: Option<HostId>, door_addr: Option<String>) -> Option<Self> {
        Some(match (reason, host) {
            ("moved", Some(host)) => Self::Moved { host, door_addr },
            ("moving", Some(host)) => Self::Moving { host, door_addr },
            ("busy", _) => Self::Busy,
            ("full", _) => Self::Full,
            ("stopped", _) => Self::Stopped,
            ("unreachable", _) => Self::Unreachable { hint: None },
            ("unknown", _) => Self::Unknown,
            _ => return None,
        })
    }
}

/// A Machine as the agent tells the door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DoorMachine {
    pub machine: MachineId,
    pub app: AppName,
    pub epoch: Epoch,
    pub state: MachineState,
    pub private_ip: Ipv6Addr,
    /// Of this host's pool: another one after a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_ip4: Option<Ipv4Addr>,
    pub services: Vec<Service>,
    /// The agent is about to stop it: admit nothing, let what is in flight end, then POST `drained`.
    #[serde(default)]
    pub closing: Option<Closing>,
    /// Its move to another host has begun: whoever comes is sent there. Told together with `closing`, and kept after
    /// the handoff until the Machine leaves this host, or the move is taken back.
    #[serde(default)]
    pub moving: Option<MovingTo>,
}

/// Where a Machine is on its way to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingTo {
    pub host: HostId,
    /// `[addr]:port` of that host's door.
    pub door_addr: String,
    /// The epoch that it will have there.
    pub epoch: Epoch,
}

/// A closed gate and how long requests in flight may go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    pub drain_timeout_ms: u64,
    /// Tells this closing from an earlier one; echoed in `Drained`.
    pub token: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DoorUpdate {
    /// The whole truth; replaces what the door knew.
    Snapshot {
        machines: Vec<DoorMachine>,
        edges: Vec<DoorEdge>,
    },
    Machine {
        machine: DoorMachine,
    },
    Gone {
        machine: MachineId,
        moved_to: Option<HostId>,
        /// The door of `moved_to`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        door_addr: Option<String>,
        /// Its epoch now.
        epoch: Epoch,
    },
    Edges {
        edges: Vec<DoorEdge>,
    },
    /// Sent at least every second, so that silence is noticed.
    Tick,
}

/// An edge that may call, by the hash of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorEdge {
    pub id: crate::ids::EdgeId,
    pub key_sha256: String,
}

/// `POST /door/v1/machines/{id}/start` at the agent → `AgentStartReply` once the process runs (or will not).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStart {
    pub epoch: Epoch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum AgentStartReply {
    Started,
    Refused { refusal: Refusal, epoch: Option<Epoch> },
    Failed { error: String },
}

/// `GET` at the agent → `Listening`: what is known of a port that takes no connection.
pub fn listening_path(machine: &MachineId, port: u16) -> String {
    format!("{AGENT_MACHINES}/{machine}/listening/{port}")
}

/// How the Machine's process listens, seen from a port that is wanted of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Why the port takes no connection. None when it should, or when it cannot be seen.
    #[serde(default)]
    pub hint: Option<String>,
    /// It has been so for long enough that nothing is to be expected of waiting.
    #[serde(default)]
    pub lasting: bool,
}

/// `POST /door/v1/machines/{id}/drained`: the gate is closed and nothing is in flight (or the time is over).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    pub token: u64,
    pub cut_off: u32,
}

/// `POST /door/v1/machines/{id}/stop-if-idle`: the door has closed the gate with nothing in flight and asks for a
/// stop. Answered with `{"ok": bool}` when the agent has journaled the stop, or refused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStopIfIdle {
    pub epoch: Epoch,
}

pub const AGENT_MACHINES: &str = "/door/v1/machines";
