//! The organs that a host's agent uses, set up from its configuration: driver, network, images. It must not decide
//! anything about a Machine.

pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use godwit_driver::Driver;
use godwit_driver::container::{ContainerDriver, Options as ContainerOptions};
use godwit_driver::fake::FakeDriver;
use godwit_net::plan::Prefix4;
use godwit_net::{HostNet, MachineNet, Options as NetOptions};
use godwit_oci::{ContentStore, Digest, Limits, Puller, Unpacked, no_progress};

use crate::config::{Config, DriverChoice, NetworkChoice};
use crate::error::Error;
use crate::join::Identity;
use volumes::Volumes;

/// What carries out the steps.
pub struct Organs {
    pub driver: Arc<dyn Driver>,
    pub network: Network,
    pub images: Images,
    pub volumes: Volumes,
}

impl Organs {
    pub async fn new(config: &Config, identity: &Identity) -> Result<Self, Error> {
        let driver: Arc<dyn Driver> = match &config.driver {
            DriverChoice::Container { shim, cgroup_parent, run_dir } => {
                Arc::new(ContainerDriver::new(ContainerOptions {
                    shim: shim.clone(),
                    cgroup_parent: cgroup_parent.clone(),
                    run_dir: run_dir.clone(),
                })?)
            }
            DriverChoice::Fake => Arc::new(FakeDriver::new()),
        };
        Self::with_driver(config, identity, driver).await
    }

    /// With a driver of one's own: for tests that count what it is asked.
    pub async fn with_driver(config: &Config, identity: &Identity, driver: Arc<dyn Driver>) -> Result<Self, Error> {
        let (network, images) = (Network::new(config).await?, Images::new(config, identity)?);
        Ok(Self { driver, network, images, volumes: Volumes::new(config) })
    }
}

/// Host-local addresses of Machines, by id. They mean nothing elsewhere and need no journal: the kernel knows them. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct Ipv4s {
    taken: Arc<Mutex<BTreeMap<String, Ipv4Addr>>>,
    /// Of all others: where there is no network of Machines they share the host's, and its loopback.
    shared: Option<Ipv4Addr>,
}

impl Ipv4s {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Ipv4Addr>> {
        // Every change is one call on a map: a panic cannot leave it half-done.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, machine: &str) -> Option<Ipv4Addr> {
        self.lock().get(machine).copied().or(self.shared)
    }
}

/// The host's network, or none.
pub enum Network {
    Host { net: HostNet, pool: Prefix4, taken: Ipv4s },
    None,
}

impl Network {
    async fn new(config: &Config) -> Result<Self, Error> {
        let NetworkChoice::Host { name, pool_v4, denied } = &config.network else { return Ok(Self::None) };
        let mut options = NetOptions::new(config.data_dir.join("net"), name);
        options.pool_v4 = *pool_v4;
        options.denied = denied.clone();
        let net = HostNet::new(options).await?;
        net.ensure_host().await?;
        let found = net.list().await?.into_iter().filter_map(|found| Some((found.machine?, found.v4?)));
        let taken = Ipv4s { taken: Arc::new(Mutex::new(found.collect())), shared: None };
        Ok(Self::Host { taken, net, pool: *pool_v4 })
    }

    /// Makes or mends a Machine's network; its namespace.
    pub async fn ensure(&self, machine: &str, v6: Ipv6Addr) -> Result<Option<PathBuf>, NetworkFault> {
        let Self::Host { net, pool, taken } = self else { return Ok(None) };
        let v4 = {
            let mut taken = taken.lock();
            match taken.get(machine) {
                Some(v4) => *v4,
                None => {
                    let free = pool.first_free(taken.values().copied()).and_then(|index| pool.at(index));
                    let v4 = free.ok_or(NetworkFault::PoolFull)?;
                    taken.insert(machine.to_owned(), v4);
                    v4
                }
            }
        };
        let path = net.ensure_machine(&MachineNet { machine: machine.to_owned(), v6, v4 }).await?;
        Ok(Some(path))
    }

    pub fn ipv4s(&self) -> Ipv4s {
        match self {
            Self::Host { taken, .. } => taken.clone(),
            Self::None => Ipv4s { shared: Some(Ipv4Addr::LOCALHOST), ..Ipv4s::default() },
        }
    }

    /// Where `ensure` puts the namespace.
    pub fn namespace(&self, machine: &str) -> Option<PathBuf> {
        match self {
            Self::Host { net, .. } => Some(net.netns_path(machine)),
            Self::None => None,
        }
    }

    pub async fn remove(&self, machine: &str) -> Result<(), NetworkFault> {
        let Self::Host { net, taken, .. } = self else { return Ok(()) };
        net.remove_machine(machine).await?;
        taken.lock().remove(machine);
        Ok(())
    }

    /// Removes what crashes left of Machines that nobody knows. Exact ids only.
    pub async fn sweep(&self, known: &BTreeSet<String>) -> Result<Vec<String>, NetworkFault> {
        let Self::Host { net, .. } = self else { return Ok(Vec::new()) };
        let mut removed = Vec::new();
        for machine in net.list().await?.into_iter().filter_map(|found| found.machine) {
            if !known.contains(&machine) {
                self.remove(&machine).await?;
                removed.push(machine);
            }
        }
        Ok(removed)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkFault {
    #[error("the host has no free IPv4 address for another Machine")]
    PoolFull,
    #[error(transparent)]
    Net(#[from] godwit_net::Error),
}

impl NetworkFault {
    pub fn is_callers_fault(&self) -> bool {
        matches!(self, Self::Net(error) if error.is_callers_fault())
    }
}

/// Images of this host, pulled from control.
pub struct Images {
    store: Arc<ContentStore>,
    puller: Puller,
    grace: Duration,
}

impl Images {
    fn new(config: &Config, identity: &Identity) -> Result<Self, Error> {
        let store = Arc::new(ContentStore::open(config.data_dir.join("images"), Limits::default())?);
        let puller = Puller::new(&config.control_url, Some(identity.key.clone()))?;
        Ok(Self { store, puller, grace: config.collect_grace })
    }

    /// Brings it here, whole and verified.
    pub async fn fetch(&self, name: &str, digest: &str) -> Result<(), godwit_oci::Error> {
        let digest = Digest::from_str(digest)?;
        self.puller.pull(&self.store, name, &digest, no_progress()).await.map(drop)
    }

    pub async fn unpack(&self, digest: &str) -> Result<Unpacked, godwit_oci::Error> {
        let digest = Digest::from_str(digest)?;
        self.store.unpack(&digest, no_progress()).await
    }

    /// Unpacked; fetched again first if something of it is gone.
    pub async fn ensure(&self, name: &str, digest: &str) -> Result<Unpacked, godwit_oci::Error> {
        match self.unpack(digest).await {
            Err(godwit_oci::Error::MissingBlob { .. } | godwit_oci::Error::NoImage(_)) => {
                self.fetch(name, digest).await?;
                self.unpack(digest).await
            }
            other => other,
        }
    }

    /// The signal by which the image wants to be stopped, if it is here and says so.
    pub fn stop_signal(&self, digest: &str) -> Option<String> {
        let config = self.store.config(&Digest::from_str(digest).ok()?).ok()?;
        (!config.stop_signal.is_empty()).then_some(config.stop_signal)
    }

    /// Deletes what is not in use. Blocks on the disk.
    pub fn collect(&self, in_use: &BTreeSet<String>) -> Result<godwit_oci::Collected, godwit_oci::Error> {
        let in_use = in_use.iter().filter_map(|digest| Digest::from_str(digest).ok()).collect();
        self.store.collect(&in_use, SystemTime::now(), self.grace)
    }
}
