//! Owns the bridge that joins the hosts of one dev fleet, the hosts' namespaces
//! on it, and partitions between them. Must not know what runs in a host.
//!
//! Everything it makes is named after the fleet's tag (8 hex digits of a hash of
//! its id), so fleets live side by side, and each name can be derived again when
//! the record is lost. The record is written before each effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::namespace::{self, io_error};
use crate::netlink::{Link, Netlink, Pair};
use crate::plan::{self, FLEET_HOSTS_MAX, Mac, Prefix4};
use crate::{Direction, Error, FabricOptions, HostLink, nft, rules, sysctl};

/// Other fleets of one machine that may hold a /24 that ours hashes to.
const PREFIX_ATTEMPTS: u16 = 64;
/// Name of a host's interface towards the bridge, inside the host.
const UPLINK: &str = "eth0";
/// The partition's table inside the host's namespace.
const PARTITION_TABLE: &str = "godwit_partition";

/// The kernel objects of one fleet, and the handles to change them with.
pub(crate) struct Bridge {
    options: FabricOptions,
    namespace: File,
    netlink: Netlink,
    /// One change at a time; the record is read and written under it.
    record: Mutex<Record>,
}

/// `dir/fabric.json`: what may exist because of this fleet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    fleet: String,
    /// Host name to its number.
    hosts: BTreeMap<String, u16>,
    prefix_v4: Option<Prefix4>,
    /// This fleet turned IPv4 forwarding on, and turns it off when it goes.
    enabled_forwarding: bool,
}

impl Bridge {
    /// Needs a tokio runtime. Changes nothing yet.
    pub(crate) async fn open(options: FabricOptions) -> Result<Self, Error> {
        plan::check_id(&options.fleet)?;
        let namespace = namespace::own()?;
        let mut record = Record::read(&options.dir)?.unwrap_or_default();
        record.fleet.clone_from(&options.fleet);
        Ok(Self { netlink: Netlink::open(&namespace).await?, namespace, record: Mutex::new(record), options })
    }

    /// The bridge with the fleet's `…::1`. Returns that address.
    pub(crate) async fn ensure(&self) -> Result<Ipv6Addr, Error> {
        let mut record = self.record.lock().await;
        let bridge = self.ensure_bridge().await?;
        let gateway = plan::fleet_gateway(&self.options.fleet);
        self.netlink.address(bridge, gateway.into(), 64).await?;
        if self.options.egress_v4 {
            self.ensure_egress(&mut record, bridge).await?;
        } else {
            record.write(&self.options.dir)?;
        }
        Ok(gateway)
    }

    /// Joins a host to the bridge. `host` names its namespace file, `index` (1..)
    /// gives its address; both are its own for good. Call [`Bridge::ensure`] first.
    pub(crate) async fn ensure_host(&self, host: &str, index: u16) -> Result<HostLink, Error> {
        plan::check_id(host)?;
        let mut record = self.record.lock().await;
        let link = self.host_link(host, index, record.prefix_v4)?;
        let taken = |(name, number): (&String, &u16)| (name == host) != (*number == index);
        if record.hosts.iter().any(taken) {
            return Err(Error::AddressTaken { address: link.v6.into() });
        }
        record.hosts.insert(host.to_owned(), index);
        record.write(&self.options.dir)?;
        let bridge = self.ensure_bridge().await?;
        namespace::ensure_private_dir(&netns_dir(&self.options.dir))?;
        let inside_ns = namespace::ensure(&link.netns).await?;
        let inside = Netlink::open(&inside_ns).await?;
        let (port, uplink) = self.ensure_pair(&link.port, &inside, &inside_ns).await?;
        self.netlink.prepare(port, None, Some(bridge)).await?;
        self.netlink.up(port).await?;
        inside.loopback_up().await?;
        inside.prepare(uplink, None, None).await?;
        inside.up(uplink).await?;
        inside.address(uplink, link.v6.into(), 64).await?;
        if let (Some(v4), Some(prefix)) = (link.v4, record.prefix_v4) {
            inside.address(uplink, v4.into(), prefix.len).await?;
            if let Some(gateway) = prefix.at(0) {
                inside.default_route(uplink, gateway.into()).await?;
            }
        }
        Ok(link)
    }

    /// Takes exactly this host off the bridge; nothing there is no error.
    pub(crate) async fn remove_host(&self, host: &str) -> Result<(), Error> {
        plan::check_id(host)?;
        let mut record = self.record.lock().await;
        let fleet = &self.options.fleet;
        if let Some(index) = record.hosts.get(host) {
            let script = rules::delete_table("netdev", &cut_table(fleet, *index));
            nft::apply(&self.namespace, "delete a partition", script).await?;
            if let Some(port) = self.netlink.link(&port_name(fleet, *index)).await? {
                self.netlink.delete(&port).await?;
            }
        }
        namespace::remove(netns_dir(&self.options.dir).join(host)).await?;
        // Last: as long as something may be left, the record says so.
        if record.hosts.remove(host).is_some() {
            record.write(&self.options.dir)?;
        }
        Ok(())
    }

    /// Makes the host's packets vanish on their way, without a sign to either side.
    /// Replaces an earlier partition of the same host.
    pub(crate) async fn partition(&self, host: &str, direction: Direction) -> Result<(), Error> {
        let (inside, port, table) = self.cut_points(host).await?;
        let outwards = rules::cut(&table, &port);
        let inwards = rules::cut(PARTITION_TABLE, UPLINK);
        let (out_script, in_script) = match direction {
            Direction::Both => (outwards, inwards),
            Direction::Out => (outwards, rules::delete_table("netdev", PARTITION_TABLE)),
            Direction::In => (rules::delete_table("netdev", &table), inwards),
        };
        nft::apply(&self.namespace, "cut a host off", out_script).await?;
        nft::apply(&inside, "cut a host off", in_script).await
    }

    /// Ends a partition; none is no error.
    pub(crate) async fn heal(&self, host: &str) -> Result<(), Error> {
        let (inside, _, table) = self.cut_points(host).await?;
        let script = rules::delete_table("netdev", &table);
        nft::apply(&self.namespace, "heal a partition", script).await?;
        let script = rules::delete_table("netdev", PARTITION_TABLE);
        nft::apply(&inside, "heal a partition", script).await
    }

    async fn ensure_bridge(&self) -> Result<u32, Error> {
        let name = bridge_name(&self.options.fleet);
        let alias = format!("godwit fleet {}", self.options.fleet);
        let bridge = match self.netlink.link(&name).await? {
            Some(bridge) => bridge,
            None => {
                self.netlink.add_bridge(&name, bridge_mac(&self.options.fleet)).await?;
                self.netlink.link(&name).await?.ok_or_else(|| gone(&name))?
            }
        };
        if let Some(holder) = bridge.alias.as_ref().filter(|a| **a != alias) {
            return Err(Error::InterfaceTaken { interface: name, holder: holder.clone(), machine: alias });
        }
        self.netlink.prepare(bridge.index, Some(&alias), None).await?;
        self.netlink.up(bridge.index).await?;
        Ok(bridge.index)
    }

    async fn ensure_egress(&self, record: &mut Record, bridge: u32) -> Result<(), Error> {
        let fleet = &self.options.fleet;
        let prefix = match record.prefix_v4 {
            Some(prefix) => prefix,
            None => self.free_prefix_v4(bridge).await?,
        };
        record.prefix_v4 = Some(prefix);
        record.write(&self.options.dir)?;
        if let Some(gateway) = prefix.at(0) {
            self.netlink.address(bridge, gateway.into(), prefix.len).await?;
        }
        let script = rules::fleet_egress(&fleet_table(fleet), &bridge_name(fleet), prefix);
        nft::apply(&self.namespace, "set up the fleet's egress", script).await?;
        if !sysctl::forwards_v4(&self.namespace).await? {
            record.enabled_forwarding = true;
            record.write(&self.options.dir)?;
        }
        sysctl::enable_forwarding(&self.namespace, sysctl::Families::V4).await
    }

    async fn free_prefix_v4(&self, bridge: u32) -> Result<Prefix4, Error> {
        let held: Vec<Ipv4Addr> = self
            .netlink
            .addresses()
            .await?
            .into_iter()
            .filter(|(index, _)| *index != bridge)
            .filter_map(|(_, address)| match address {
                IpAddr::V4(a) => Some(a),
                IpAddr::V6(_) => None,
            })
            .collect();
        (0..PREFIX_ATTEMPTS)
            .map(|attempt| plan::fleet_prefix_v4(&self.options.fleet, attempt))
            .find(|prefix| !held.iter().any(|a| prefix.contains(*a)))
            .ok_or(Error::NoFleetPrefix { attempts: PREFIX_ATTEMPTS })
    }

    async fn ensure_pair(&self, port: &str, inside: &Netlink, inside_ns: &File) -> Result<(u32, u32), Error> {
        let outer = self.netlink.link(port).await?;
        let inner = inside.link(UPLINK).await?;
        if let (Some(o), Some(i)) = (&outer, &inner)
            && o.peer == Some(i.index)
            && i.peer == Some(o.index)
        {
            return Ok((o.index, i.index));
        }
        if let Some(outer) = outer {
            self.netlink.delete(&outer).await?;
        }
        if let Some(orphan) = inside.link(UPLINK).await? {
            inside.delete(&orphan).await?;
        }
        let pair =
            Pair { name: port, mac: None, group: 0, peer_name: UPLINK, peer_mac: None, peer_namespace: inside_ns };
        self.netlink.add_pair(&pair).await?;
        let outer: Link = self.netlink.link(port).await?.ok_or_else(|| gone(port))?;
        let inner: Link = inside.link(UPLINK).await?.ok_or_else(|| gone(UPLINK))?;
        Ok((outer.index, inner.index))
    }

    fn host_link(&self, host: &str, index: u16, prefix_v4: Option<Prefix4>) -> Result<HostLink, Error> {
        if !(1..=FLEET_HOSTS_MAX).contains(&index) {
            let max = FLEET_HOSTS_MAX;
            return Err(Error::BadHostIndex { index, max });
        }
        Ok(HostLink {
            netns: netns_dir(&self.options.dir).join(host),
            v6: plan::fleet_host_address(&self.options.fleet, index),
            v4: prefix_v4.and_then(|prefix| prefix.at(u32::from(index))),
            port: port_name(&self.options.fleet, index),
        })
    }

    /// The host's namespace, and the port and table that stand for it out here.
    async fn cut_points(&self, host: &str) -> Result<(File, String, String), Error> {
        plan::check_id(host)?;
        let path = netns_dir(&self.options.dir).join(host);
        let index = self.record.lock().await.hosts.get(host).copied();
        let index = index.ok_or_else(|| io_error("find", &path, io::ErrorKind::NotFound.into()))?;
        let inside = File::open(&path).map_err(|source| io_error("open", &path, source))?;
        let fleet = &self.options.fleet;
        Ok((inside, port_name(fleet, index), cut_table(fleet, index)))
    }
}

/// Every trace of the fleet in `dir` and in the calling thread's namespace, also
/// after SIGKILL, after a reboot, and when the record is lost. Processes that
/// still run in a host keep their namespace until they end, but without a link.
pub(crate) async fn remove_all(fleet: &str, dir: &Path) -> Result<(), Error> {
    plan::check_id(fleet)?;
    let namespace = namespace::own()?;
    let netlink = Netlink::open(&namespace).await?;
    let record = Record::read(dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "going by derived names alone");
        None
    });
    delete_tables(fleet, &namespace).await?;
    let mut ours: BTreeSet<String> = (1..=FLEET_HOSTS_MAX).map(|index| port_name(fleet, index)).collect();
    ours.insert(bridge_name(fleet));
    for link in netlink.links().await? {
        if ours.contains(&link.name) {
            netlink.delete(&link).await?;
        }
    }
    let netns = netns_dir(dir);
    for host in host_files(&netns)? {
        namespace::remove(netns.join(host)).await?;
    }
    namespace::remove_private_dir(&netns)?;
    if record.is_some_and(|r| r.enabled_forwarding) {
        sysctl::disable_forwarding_v4(&namespace).await?;
    }
    let file = record_file(dir);
    match fs::remove_file(&file) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("delete", &file, source)),
        _ => Ok(()),
    }
}

impl Record {
    fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = record_file(dir);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Record { path, source }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &path, source)),
        }
    }

    /// Whole or not at all: a half-written record would strand what it names.
    fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = record_file(dir);
        let fresh = path.with_extension("json.new");
        let write = || {
            fs::create_dir_all(dir)?;
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| io_error("write", &path, source))
    }
}

async fn delete_tables(fleet: &str, namespace: &File) -> Result<(), Error> {
    let mut ours: BTreeSet<(String, String)> =
        (1..=FLEET_HOSTS_MAX).map(|index| ("netdev".to_owned(), cut_table(fleet, index))).collect();
    ours.insert(("inet".to_owned(), fleet_table(fleet)));
    for (family, table) in nft::list_tables(namespace).await? {
        if ours.contains(&(family.clone(), table.clone())) {
            let script = rules::delete_table(&family, &table);
            nft::apply(namespace, "delete the fleet's rules", script).await?;
        }
    }
    Ok(())
}

fn host_files(netns: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(netns) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(io_error("list", netns, source)),
    };
    let mut hosts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| io_error("list", netns, source))?;
        hosts.extend(entry.file_name().into_string());
    }
    Ok(hosts)
}

fn record_file(dir: &Path) -> PathBuf {
    dir.join("fabric.json")
}

fn netns_dir(dir: &Path) -> PathBuf {
    dir.join("netns")
}

fn bridge_name(fleet: &str) -> String {
    format!("gwb{}", plan::fleet_tag(fleet))
}

fn port_name(fleet: &str, index: u16) -> String {
    format!("gwf{}{index}", plan::fleet_tag(fleet))
}

fn fleet_table(fleet: &str) -> String {
    format!("godwit_fleet_{}", plan::fleet_tag(fleet))
}

fn cut_table(fleet: &str, index: u16) -> String {
    format!("godwit_cut_{}_{index}", plan::fleet_tag(fleet))
}

/// Fixed, for a bridge without one takes the lowest of its ports' and changes.
fn bridge_mac(fleet: &str) -> Mac {
    plan::machine_mac(&bridge_name(fleet))
}

fn gone(name: &str) -> Error {
    io_error("find the new interface", Path::new(name), io::ErrorKind::NotFound.into())
}
