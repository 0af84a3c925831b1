//! Owns the face of a host's network: what a role hands in and gets back.
//! Must not know how it is done (`host.rs`) or why a Machine comes and goes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::Error;
use crate::detached::to_the_end;
use crate::host::Host;
use crate::plan::{Prefix, Prefix4};

/// What a host's network is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace files live in `state_dir/netns/<machine id>`.
    pub state_dir: PathBuf,
    /// Names this host's table (`godwit_<name>`) and interfaces; two HostNets with
    /// different names can share one kernel namespace.
    pub name: String,
    /// Where the Machines' host-local IPv4 addresses come from.
    pub pool_v4: Prefix4,
    /// What Machines may not reach through this host (the hosts' own network).
    pub denied: Vec<Prefix>,
}

impl Options {
    pub fn new(state_dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            state_dir: state_dir.into(),
            name: name.into(),
            pool_v4: Prefix4::new(Ipv4Addr::new(172, 20, 0, 0), 14),
            denied: Vec::new(),
        }
    }
}

/// The network of one Machine on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineNet {
    pub machine: String,
    /// Drawn once by control; the same on every host.
    pub v6: Ipv6Addr,
    /// Of this host's pool ([`Prefix4::at`]); means nothing elsewhere.
    pub v4: Ipv4Addr,
}

/// What exists in the kernel for one Machine, whole or in part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `None` when only an interface or a rule is left and nothing says whose it was.
    pub machine: Option<String>,
    pub interface: String,
    pub namespace: bool,
    pub link: bool,
    /// Rule elements (three for a whole Machine).
    pub elements: usize,
    pub v6: Option<Ipv6Addr>,
    pub v4: Option<Ipv4Addr>,
}

/// One host's network. Every call is idempotent, may be repeated after a crash,
/// and works in the network namespace that [`HostNet::new`] was called in,
/// whatever thread it runs on. A call goes on to its end when its future is
/// dropped, and the next call for the same Machine waits for it.
pub struct HostNet {
    host: Arc<Host>,
}

impl HostNet {
    /// Needs a tokio runtime. Changes nothing yet.
    pub async fn new(options: Options) -> Result<Self, Error> {
        let host = Arc::new(Host::open(options).await?);
        Ok(Self { host })
    }

    /// Forwarding and rules. Call once at start, before any Machine; a call later
    /// renews the rules without touching a connection.
    pub async fn ensure_host(&self) -> Result<(), Error> {
        let host = Arc::clone(&self.host);
        to_the_end(async move { host.ensure().await }).await
    }

    /// Makes or mends everything of one Machine. Returns the path of its network
    /// namespace file.
    pub async fn ensure_machine(&self, net: &MachineNet) -> Result<PathBuf, Error> {
        let net = net.clone();
        let host = Arc::clone(&self.host);
        to_the_end(async move { host.ensure_machine(&net).await }).await
    }

    /// Removes everything of exactly this Machine; nothing there is no error.
    pub async fn remove_machine(&self, machine: &str) -> Result<(), Error> {
        let machine = machine.to_owned();
        let host = Arc::clone(&self.host);
        to_the_end(async move { host.remove_machine(&machine).await }).await
    }

    /// What exists, whole or in part, sorted by Machine.
    pub async fn list(&self) -> Result<Vec<Found>, Error> {
        self.host.list().await
    }

    /// Everything of this HostNet: Machines, rules, namespace files. Forwarding
    /// stays on, for others may rely on it by now.
    pub async fn remove_host(&self) -> Result<(), Error> {
        let host = Arc::clone(&self.host);
        to_the_end(async move { host.remove().await }).await
    }

    /// Where [`HostNet::ensure_machine`] puts a Machine's namespace.
    pub fn netns_path(&self, machine: &str) -> PathBuf {
        self.host.netns_path(machine)
    }
}
