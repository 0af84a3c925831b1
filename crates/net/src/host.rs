//! Owns one host's Machines on the network: for each a namespace file, a link
//! with its addresses and routes, and the rule elements that let it speak.
//! Must not know drivers or why a Machine comes and goes.
//!
//! ```text
//!   host's namespace                        Machine's namespace
//!   gw<hash>  fe80::1, 169.254.1.1  <=====>  eth0  fdaa:…/128, 172.20.…/32
//!   routes fdaa:…/128, 172.20.…/32           default via fe80::1, 169.254.1.1
//!   table godwit_<name>: own6 own4 peers
//! ```
//! There is no shared segment: both ends hold permanent neighbour entries, so
//! nothing is discovered and nobody can answer for another.
//!
//! Order: rule elements come last and go first. A link without them passes
//! nothing, so a crash in between never leaves a Machine that may spoof.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::elements::{ByInterface, Elements, Outcome};
use crate::namespace::{self, io_error};
use crate::netlink::{Link, Netlink, Pair};
use crate::plan::{self, GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, MACHINE_INTERFACE};
use crate::rules::{self, Element};
use crate::{Error, Found, MachineNet, Options, sysctl};

/// Calls for one Machine wait for each other; others seldom share a lock with it.
const LOCKS: usize = 64;

/// The kernel objects of one host, and the handles to change them with.
pub(crate) struct Host {
    options: Options,
    namespace: File,
    netlink: Netlink,
    group: u32,
    elements: Elements,
    locks: [Mutex<()>; LOCKS],
}

impl Host {
    /// Needs a tokio runtime. Changes nothing yet.
    pub(crate) async fn open(options: Options) -> Result<Self, Error> {
        plan::check_id(&options.name)?;
        let namespace = namespace::own()?;
        let table = rules::host_table_name(&options.name);
        let copy = namespace.try_clone();
        let copy = copy.map_err(|source| io_error("copy the handle of", Path::new("the namespace"), source))?;
        Ok(Self {
            netlink: Netlink::open(&namespace).await?,
            elements: Elements::open(copy, table).await?,
            namespace,
            group: plan::interface_group(&options.name),
            locks: [const { Mutex::const_new(()) }; LOCKS],
            options,
        })
    }

    /// Forwarding and rules. Call once at start, before any Machine; a call later
    /// renews the rules without touching a connection.
    pub(crate) async fn ensure(&self) -> Result<(), Error> {
        self.netns_dir()?;
        sysctl::enable_forwarding(&self.namespace, sysctl::Families::Both).await?;
        let script = self.whole_table().await?;
        self.elements.replace("set up the host's rules", script).await
    }

    /// Makes or mends everything of one Machine. Returns the path of its network
    /// namespace file.
    pub(crate) async fn ensure_machine(&self, net: &MachineNet) -> Result<PathBuf, Error> {
        self.check(net)?;
        let _one_at_a_time = self.lock(&net.machine).await;
        self.netns_dir()?;
        let path = self.netns_path(&net.machine);
        let inside_ns = namespace::ensure(&path).await?;
        let inside = Netlink::open(&inside_ns).await?;
        let (outer, inner) = self.ensure_link(net, &inside, &inside_ns).await?;
        self.configure_outside(net, outer).await?;
        configure_inside(net, &inside, inner).await?;
        let interface = self.interface(&net.machine);
        self.set_elements(&interface, &elements_of(net)).await?;
        Ok(path)
    }

    /// Removes everything of exactly this Machine; nothing there is no error.
    pub(crate) async fn remove_machine(&self, machine: &str) -> Result<(), Error> {
        plan::check_id(machine)?;
        let _one_at_a_time = self.lock(machine).await;
        let interface = self.interface(machine);
        self.remove_interface(&interface, Some(machine)).await?;
        namespace::remove(self.netns_path(machine)).await
    }

    /// What exists, whole or in part, sorted by Machine.
    pub(crate) async fn list(&self) -> Result<Vec<Found>, Error> {
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for machine in self.namespace_files()? {
            let entry = found.entry(self.interface(&machine)).or_default();
            entry.namespace = namespace::is_mounted(&self.netns_path(&machine))?;
            entry.machine = Some(machine);
        }
        for link in self.machine_links().await? {
            let entry = found.entry(link.name.clone()).or_default();
            entry.link = true;
            if let Some(net) = link.alias.as_deref().and_then(parse_alias) {
                entry.v6 = Some(net.v6);
                entry.v4 = Some(net.v4);
                entry.machine = Some(net.machine);
            }
        }
        for (interface, elements) in self.elements.list().await? {
            let entry = found.entry(interface).or_default();
            entry.elements = elements.len();
            for element in elements {
                match element {
                    Element::Own6(a) => entry.v6 = Some(a),
                    Element::Own4(a) => entry.v4 = Some(a),
                    Element::Peers(..) => {}
                }
            }
        }
        let mut found: Vec<Found> = found.into_iter().map(|(interface, found)| Found { interface, ..found }).collect();
        found.sort_by(|a, b| (&a.machine, &a.interface).cmp(&(&b.machine, &b.interface)));
        Ok(found)
    }

    /// Everything of this HostNet: Machines, rules, namespace files. Forwarding
    /// stays on, for others may rely on it by now.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        for found in self.list().await? {
            match &found.machine {
                Some(machine) => self.remove_machine(machine).await?,
                None => self.remove_interface(&found.interface, None).await?,
            }
        }
        let table = rules::host_table_name(&self.options.name);
        let script = rules::delete_table("inet", &table);
        self.elements.replace("delete the host's rules", script).await?;
        namespace::remove_private_dir(&self.options.state_dir.join("netns"))
    }

    /// Where [`Host::ensure_machine`] puts a Machine's namespace.
    pub(crate) fn netns_path(&self, machine: &str) -> PathBuf {
        self.options.state_dir.join("netns").join(machine)
    }

    fn interface(&self, machine: &str) -> String {
        plan::interface_name(&self.options.name, machine)
    }

    fn netns_dir(&self) -> Result<PathBuf, Error> {
        namespace::ensure_private_dir(&self.options.state_dir.join("netns"))
    }

    async fn lock(&self, machine: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        machine.hash(&mut hasher);
        self.locks[(hasher.finish() % LOCKS as u64) as usize].lock().await
    }

    fn check(&self, net: &MachineNet) -> Result<(), Error> {
        plan::check_id(&net.machine)?;
        let foreign = |address: IpAddr, expected: String| Err(Error::ForeignAddress { address, expected });
        if !plan::MACHINE_SPACE.contains(net.v6) {
            return foreign(net.v6.into(), plan::MACHINE_SPACE.to_string());
        }
        if !self.options.pool_v4.contains(net.v4) {
            return foreign(net.v4.into(), self.options.pool_v4.to_string());
        }
        Ok(())
    }

    /// The pair between host and Machine, as the indices of its two ends. A pair
    /// that is half there, or that was made for other addresses, is made anew:
    /// mending it in place would have to find every leftover of its past.
    async fn ensure_link(&self, net: &MachineNet, inside: &Netlink, inside_ns: &File) -> Result<(u32, u32), Error> {
        let name = self.interface(&net.machine);
        let outer = self.netlink.link(&name).await?;
        let inner = inside.link(MACHINE_INTERFACE).await?;
        if let (Some(o), Some(i)) = (&outer, &inner) {
            let joined = o.peer == Some(i.index) && i.peer == Some(o.index);
            if joined && o.group == self.group && o.alias.as_deref() == Some(&*alias(net)) {
                return Ok((o.index, i.index));
            }
        }
        if let Some(outer) = outer {
            belongs_to(&outer, &net.machine)?;
            self.netlink.delete(&outer).await?;
        }
        if let Some(orphan) = inside.link(MACHINE_INTERFACE).await? {
            inside.delete(&orphan).await?;
        }
        let pair = Pair {
            name: &name,
            mac: Some(GATEWAY_MAC),
            group: self.group,
            peer_name: MACHINE_INTERFACE,
            peer_mac: Some(plan::machine_mac(&net.machine)),
            peer_namespace: inside_ns,
        };
        self.netlink.add_pair(&pair).await?;
        let outer = self.netlink.link(&name).await?;
        let inner = inside.link(MACHINE_INTERFACE).await?;
        match (outer, inner) {
            (Some(outer), Some(inner)) => Ok((outer.index, inner.index)),
            // Somebody deleted it under our hands; the next call makes it again.
            _ => Err(io_error(
                "find the new interface of",
                &self.netns_path(&net.machine),
                io::ErrorKind::NotFound.into(),
            )),
        }
    }

    async fn configure_outside(&self, net: &MachineNet, index: u32) -> Result<(), Error> {
        let link = &self.netlink;
        let mac = plan::machine_mac(&net.machine);
        link.prepare(index, Some(&alias(net)), None).await?;
        link.up(index).await?;
        link.address(index, GATEWAY_V6.into(), 64).await?;
        link.address(index, GATEWAY_V4.into(), 32).await?;
        for address in [IpAddr::V6(net.v6), IpAddr::V4(net.v4)] {
            link.neighbour(index, address, mac).await?;
            link.host_route(index, address).await?;
        }
        Ok(())
    }

    /// Elements first, then the link. `owner` guards against another Machine's link.
    async fn remove_interface(&self, interface: &str, owner: Option<&str>) -> Result<(), Error> {
        let link = self.netlink.link(interface).await?;
        if let (Some(link), Some(owner)) = (&link, owner) {
            belongs_to(link, owner)?;
        }
        self.set_elements(interface, &BTreeSet::new()).await?;
        match link {
            Some(link) => self.netlink.delete(&link).await,
            None => Ok(()),
        }
    }

    async fn set_elements(&self, interface: &str, wanted: &BTreeSet<Element>) -> Result<(), Error> {
        if self.elements.set(interface, wanted).await? == Outcome::NoTable {
            let script = self.whole_table().await?;
            self.elements.replace("rebuild the host's rules", script).await?;
            if self.elements.set(interface, wanted).await? == Outcome::NoTable {
                let table = rules::host_table_name(&self.options.name);
                return Err(io_error("find the table", Path::new(&table), io::ErrorKind::NotFound.into()));
            }
        }
        Ok(())
    }

    /// The table with the elements of every link that is there: after somebody
    /// flushed all rules, running Machines get theirs back.
    async fn whole_table(&self) -> Result<String, Error> {
        let table = rules::host_table_name(&self.options.name);
        let mut script = rules::host_table(&table, self.group, self.options.pool_v4, &self.options.denied);
        let wanted: ByInterface = self
            .machine_links()
            .await?
            .into_iter()
            .filter_map(|link| Some((link.name, elements_of(&parse_alias(&link.alias?)?))))
            .collect();
        for (interface, elements) in wanted {
            let none = BTreeSet::new();
            script += &rules::change_elements(&table, &interface, &none, &elements);
        }
        Ok(script)
    }

    async fn machine_links(&self) -> Result<Vec<Link>, Error> {
        let mut links = self.netlink.links().await?;
        links.retain(|link| link.group == self.group);
        Ok(links)
    }

    fn namespace_files(&self) -> Result<Vec<String>, Error> {
        let dir = self.options.state_dir.join("netns");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("list", &dir, source)),
        };
        entries
            .map(|entry| entry.map_err(|source| io_error("list", &dir, source)))
            .filter_map(|entry| match entry {
                Ok(entry) => {
                    let name = entry.file_name().into_string().ok()?;
                    plan::check_id(&name).is_ok().then_some(Ok(name))
                }
                Err(error) => Some(Err(error)),
            })
            .collect()
    }
}

async fn configure_inside(net: &MachineNet, inside: &Netlink, index: u32) -> Result<(), Error> {
    inside.loopback_up().await?;
    inside.prepare(index, None, None).await?;
    inside.up(index).await?;
    inside.address(index, net.v6.into(), 128).await?;
    inside.address(index, net.v4.into(), 32).await?;
    for gateway in [IpAddr::V6(GATEWAY_V6), IpAddr::V4(GATEWAY_V4)] {
        inside.neighbour(index, gateway, GATEWAY_MAC).await?;
        inside.default_route(index, gateway).await?;
    }
    Ok(())
}

fn elements_of(net: &MachineNet) -> BTreeSet<Element> {
    BTreeSet::from([Element::Own6(net.v6), Element::Own4(net.v4), Element::peers(plan::network_of(net.v6))])
}

/// A link carries what it was made for, so that it can be read back from the kernel.
fn alias(net: &MachineNet) -> String {
    format!("godwit {} {} {}", net.machine, net.v6, net.v4)
}

fn parse_alias(alias: &str) -> Option<MachineNet> {
    let ["godwit", machine, v6, v4] = *alias.split(' ').collect::<Vec<_>>() else {
        return None;
    };
    Some(MachineNet { machine: machine.to_owned(), v6: v6.parse().ok()?, v4: v4.parse().ok()? })
}

/// Names are hashes; should two ids ever share one, the second is refused rather
/// than cut off the first.
fn belongs_to(link: &Link, machine: &str) -> Result<(), Error> {
    match link.alias.as_deref().and_then(parse_alias) {
        Some(net) if net.machine != machine => Err(Error::InterfaceTaken {
            interface: link.name.clone(),
            holder: net.machine,
            machine: machine.to_owned(),
        }),
        _ => Ok(()),
    }
}
