//! The host API: what control asks of an agent. Every call only hastens what the agent would pull by itself, or
//! changes run state, which is the host's own. Bodies are JSON; errors are `ApiError`.
//!
//! | call | body → answer |
//! |---|---|
//! | `PUT /host/v1/placements/{machine}` | `Placement` → `PlaceReply`, after the job is journaled |
//! | `POST /host/v1/machines/{machine}/start` | `RunStart` → `StartAnswer`, after the job is journaled |
//! | `POST …/stop` | `RunStop` → `Acknowledged` |
//! | `POST …/restart` | `RunRestart` → `Acknowledged`, when it has been restarted |
//! | `POST …/signal` | `SignalMachine` → `Acknowledged` |
//! | `POST …/exec` | `ExecMachine` → `ExecAnswer` |
//! | `GET …/ps` | → `Vec<ProcessStat>` |
//! | `GET …/logs?follow=bool&tail=n` | → stream of `LogLine`, one JSON object a line |
//! | `GET /host/v1/machines/{machine}` | → `MachineFact` |
//! | `GET …/held` | → `Held`: what a row would say of it |
//! | `POST /host/v1/pull` | → `Acknowledged`: pull placements now |

use serde::{Deserialize, Serialize};

use crate::duration::Span;
use crate::ids::Epoch;
use crate::row::Placement;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum PlaceReply {
    /// Journaled: the host will carry it out.
    Accepted,
    /// Journaled as refused at this epoch; control may place it elsewhere.
    Refused { reason: String },
}

/// What a host has of a Machine or a volume, in the words in which control once gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    pub placement: Placement,
    /// A job is being carried out: it may be other in a moment.
    pub busy: bool,
    /// The placements of the volumes that the Machine mounts, as far as they are here.
    #[serde(default)]
    pub volumes: Vec<Placement>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStart {
    pub epoch: Epoch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStop {
    pub epoch: Epoch,
    #[serde(default)]
    pub signal: Option<String>,
    #[serde(default)]
    pub timeout: Option<Span>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRestart {
    pub epoch: Epoch,
    #[serde(default)]
    pub signal: Option<String>,
    #[serde(default)]
    pub timeout: Option<Span>,
    #[serde(default)]
    pub force: bool,
}

/// The stream of the platform's own remarks.
pub const PLATFORM_STREAM: &str = "platform";

/// One line of a Machine's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LogLine {
    /// RFC 3339 with milliseconds or finer.
    pub timestamp: String,
    /// `stdout`, `stderr`, or `platform` for what the platform remarks of the Machine.
    pub stream: String,
    pub message: String,
    /// Set when the line was longer than the bound and goes on in the next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default)]
pub struct LogQuery {
    pub follow: Option<bool>,
    /// Lines from the end; 100 if absent.
    pub tail: Option<u64>,
    /// Of these, begin with the first that has this stamp (as lines tell it) or a higher one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// Which port of a Machine a connection goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ConnectQuery {
    pub port: u16,
}
