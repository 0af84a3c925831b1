//! Owns the face of a dev fleet's network: what the dev fleet asks for and gets
//! back. Must not know how it is done (`bridge.rs`) or what runs in a host.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::bridge::Bridge;
use crate::detached::to_the_end;

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

/// The bridge of one dev fleet, in the network namespace that [`Fabric::new`] was
/// called in. Every call is idempotent, and goes on to its end when its future is
/// dropped.
pub struct Fabric {
    bridge: Arc<Bridge>,
}

impl Fabric {
    /// Needs a tokio runtime. Changes nothing yet.
    pub async fn new(options: FabricOptions) -> Result<Self, Error> {
        let bridge = Arc::new(Bridge::open(options).await?);
        Ok(Self { bridge })
    }

    /// The bridge with the fleet's `…::1`. Returns that address.
    pub async fn ensure(&self) -> Result<Ipv6Addr, Error> {
        let bridge = Arc::clone(&self.bridge);
        to_the_end(async move { bridge.ensure().await }).await
    }

    /// Joins a host to the bridge. `host` names its namespace file, `index` (1..)
    /// gives its address; both are its own for good. Call [`Fabric::ensure`] first.
    pub async fn ensure_host_netns(&self, host: &str, index: u16) -> Result<HostLink, Error> {
        let (bridge, host) = (Arc::clone(&self.bridge), host.to_owned());
        to_the_end(async move { bridge.ensure_host(&host, index).await }).await
    }

    /// Takes exactly this host off the bridge; nothing there is no error.
    pub async fn remove_host_netns(&self, host: &str) -> Result<(), Error> {
        let (bridge, host) = (Arc::clone(&self.bridge), host.to_owned());
        to_the_end(async move { bridge.remove_host(&host).await }).await
    }

    /// Makes the host's packets vanish on their way, without a sign to either side.
    /// Replaces an earlier partition of the same host.
    pub async fn partition(&self, host: &str, direction: Direction) -> Result<(), Error> {
        let (bridge, host) = (Arc::clone(&self.bridge), host.to_owned());
        to_the_end(async move { bridge.partition(&host, direction).await }).await
    }

    /// Ends a partition; none is no error.
    pub async fn heal(&self, host: &str) -> Result<(), Error> {
        let (bridge, host) = (Arc::clone(&self.bridge), host.to_owned());
        to_the_end(async move { bridge.heal(&host).await }).await
    }

    /// Every trace of the fleet in `dir` and in the calling thread's namespace, also
    /// after SIGKILL, after a reboot, and when the record is lost. Processes that
    /// still run in a host keep their namespace until they end, but without a link.
    pub async fn remove_all(fleet: &str, dir: &Path) -> Result<(), Error> {
        crate::bridge::remove_all(fleet, dir).await
    }
}
