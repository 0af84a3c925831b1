//! Owns the bridge that joins the hosts of one dev fleet.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::Error;

/// What a dev fleet's network is made from.
#[derive(Clone, Debug)]
pub struct FabricOptions {
    /// Any id; interface and table names carry its tag (8 hex digits).
    pub fleet: String,
    /// The fleet's own folder: `dir/fabric.json` and `dir/netns/<host>` are kept in it.
    pub dir: PathBuf,
    /// Also give hosts IPv4 and masquerade it to the world of this namespace.
    pub egress_v4: bool,
}

/// A host's place on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLink {
    /// Path of the host's network namespace (setns, `nsenter --net=`).
    pub netns: PathBuf,
    pub v6: Ipv6Addr,
    pub v4: Option<Ipv4Addr>,
    /// Name of the bridge's end of its link.
    pub port: String,
}

/// Which packets of a host a partition drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Both,
    /// Those that come to the host.
    In,
    /// Those that leave it.
    Out,
}

/// The bridge of one dev fleet, in the network namespace of the calling thread.
pub struct Fabric {
    options: FabricOptions,
}

impl Fabric {
    pub async fn new(options: FabricOptions) -> Result<Self, Error> {
        Ok(Self { options })
    }
    /// The bridge with the fleet's `…::1`. Returns that address.
    pub async fn ensure(&self) -> Result<Ipv6Addr, Error> {
        Ok(crate::plan::fleet_gateway(&self.options.fleet))
    }
    /// `host` names the namespace file; `index` (1..) its address.
    pub async fn ensure_host_netns(&self, _host: &str, _index: u16) -> Result<HostLink, Error> {
        Err(Error::WrongNamespace)
    }
    pub async fn remove_host_netns(&self, _host: &str, _index: u16) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
    /// Silently drops the host's packets on its way to and from the bridge.
    pub async fn partition(&self, _host: &str, _direction: Direction) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
    pub async fn heal(&self, _host: &str) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
    /// Every trace of the fleet in `dir`, also after SIGKILL or a reboot.
    pub async fn remove_all(_fleet: &str, _dir: &Path) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
}
