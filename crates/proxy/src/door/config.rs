//! A door's configuration: as written, and as checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::Error;

/// As it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawDoorConfig {
    /// Where edges connect, `[addr]:port`.
    pub listen: String,
    /// `/healthz` and `/metrics`.
    pub listen_admin: String,
    /// The unix socket of this host's agent.
    pub agent_socket: PathBuf,
    /// Holds what the agent last told, so that a door that starts without its agent serves all the same.
    pub data_dir: PathBuf,
    /// How long streams may go on after a new process took over.
    #[serde(default = "crate::edge::config::default_upgrade_drain_ms")]
    pub upgrade_drain_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoorConfig {
    pub listen: SocketAddr,
    pub listen_admin: SocketAddr,
    pub agent_socket: PathBuf,
    pub data_dir: PathBuf,
    pub upgrade_drain: Duration,
    /// Goes on in the place of a door that serves with this `data_dir`; else such a one is an error.
    pub take_over: bool,
}

impl TryFrom<RawDoorConfig> for DoorConfig {
    type Error = Error;

    fn try_from(raw: RawDoorConfig) -> Result<Self, Error> {
        let bounds = crate::edge::config::UPGRADE_DRAIN_MS;
        if !bounds.contains(&raw.upgrade_drain_ms) {
            return Err(Error::config("upgrade_drain_ms", format!("it must lie in {bounds:?}")));
        }
        Ok(Self {
            listen: crate::edge::config::address("listen", &raw.listen)?,
            listen_admin: crate::edge::config::address("listen_admin", &raw.listen_admin)?,
            agent_socket: raw.agent_socket,
            data_dir: raw.data_dir,
            upgrade_drain: Duration::from_millis(raw.upgrade_drain_ms),
            take_over: false,
        })
    }
}
