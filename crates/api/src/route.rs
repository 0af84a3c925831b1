//! What an edge knows of an app in one region: one whole row, written by control from Machines and facts.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::config::Service;
use crate::ids::{AppName, Epoch, HostId, MachineId};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteRow {
    pub app: AppName,
    pub region: String,
    pub machines: Vec<RouteMachine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteMachine {
    pub machine: MachineId,
    pub host: HostId,
    /// `[addr]:port` of the host's door.
    pub door_addr: String,
    pub epoch: Epoch,
    pub private_ip: Ipv6Addr,
    pub readiness: Readiness,
    pub cordoned: bool,
    pub services: Vec<Service>,
    /// Of its services' internal ports, those that its process does not listen on for anybody outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_ports: Vec<ClosedPort>,
}

/// A port that takes no connection as its Machine's process listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedPort {
    pub port: u16,
    /// In words, with what to do.
    pub why: String,
    /// It has been so for long enough that nothing is to be expected of waiting.
    pub lasting: bool,
}

/// What an edge may do with a Machine. A hint: the door decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// Takes requests.
    Running,
    /// On its way to running.
    Starting,
    /// Stopped, created, or about to have stopped: a request may start it.
    Stopped,
    /// Failed, on its way out, with a critical check, or on a host that nobody reaches.
    Unavailable,
}

/// The regions in which an app has Machines (`keys::app_regions`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRegions {
    pub regions: Vec<String>,
}
