//! Owns the links, addresses, routes, rules and namespaces of one host's Machines.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use crate::Error;
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

/// One host's network. All calls are idempotent and may be repeated after a crash.
pub struct HostNet {
    options: Options,
}

impl HostNet {
    /// Needs a tokio runtime. Works in the network namespace of the calling thread.
    pub async fn new(options: Options) -> Result<Self, Error> {
        Ok(Self { options })
    }
    /// Forwarding and rules. Call once at start, before any Machine.
    pub async fn ensure_host(&self) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
    /// Returns the path of the Machine's network namespace file.
    pub async fn ensure_machine(&self, net: &MachineNet) -> Result<PathBuf, Error> {
        Ok(self.netns_path(&net.machine))
    }
    pub async fn remove_machine(&self, _machine: &str) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
    pub async fn list(&self) -> Result<Vec<Found>, Error> {
        Err(Error::WrongNamespace)
    }
    /// Everything of this HostNet: Machines, rules, namespace files.
    pub async fn remove_host(&self) -> Result<(), Error> {
        Err(Error::WrongNamespace)
    }
    /// Where [`HostNet::ensure_machine`] puts a Machine's namespace.
    pub fn netns_path(&self, machine: &str) -> PathBuf {
        Path::new(&self.options.state_dir).join("netns").join(machine)
    }
}
