//! The fleet store in memory: every row that control decides upon, typed and indexed, as of one revision. Pure: rows
//! come in through `apply`, and nothing goes out but answers. It must not know where the rows come from, nor act.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use godwit_api::fact::{HostFact, MachineFact, Resources};
use godwit_api::hostname::{Hostname, HostnameRow};
use godwit_api::route::{AppRegions, RouteRow};
use godwit_api::row::{
    AppRow, EdgeRow, GenerationRow, HostRow, LeaseRow, MachineRow, Placement, PortRow, ProofsRow, TokenRow, VolumeRow,
};
use godwit_api::{AppName, EdgeId, HostId, MachineId, MigrationId, VolumeId};
use godwit_base::Prover;
use godwit_machine::capacity;
use godwit_store::Update;
use serde::de::DeserializeOwned;

use crate::place::{HostEntry, Snapshot};

pub mod belief;
mod moves;

pub use moves::Move;
pub(crate) use moves::{needs, parts};

/// A row's value and the revision that wrote it: what a transaction compares.
#[derive(Debug)]
pub struct Known<T> {
    pub value: Arc<T>,
    pub revision: u64,
}

impl<T> Clone for Known<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), revision: self.revision }
    }
}

impl<T> std::ops::Deref for Known<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

type Rows<K, T> = BTreeMap<K, Known<T>>;

/// See the module. Fields are read by everyone and written by `apply` alone.
#[derive(Debug, Default)]
pub struct World {
    pub revision: u64,
    /// The first snapshot has arrived: what is absent does not exist.
    pub complete: bool,
    pub generation: Option<Known<GenerationRow>>,
    pub apps: Rows<AppName, AppRow>,
    /// Revision of an app's use row, 0 if there is none.
    pub app_uses: BTreeMap<AppName, u64>,
    pub machines: BTreeMap<AppName, Rows<MachineId, MachineRow>>,
    pub names: BTreeMap<(AppName, String), MachineId>,
    pub volumes: BTreeMap<AppName, Rows<VolumeId, VolumeRow>>,
    pub migrations: BTreeMap<MigrationId, Move>,
    pub placements: BTreeMap<HostId, Rows<MachineId, Placement>>,
    pub hosts: Rows<HostId, HostRow>,
    pub edges: Rows<EdgeId, EdgeRow>,
    pub tokens: Rows<String, TokenRow>,
    pub leases: Rows<MachineId, LeaseRow>,
    pub ports: Rows<u16, PortRow>,
    /// Without their certificates: the keys stay in the store until an edge or an order asks.
    pub hostnames: Rows<Hostname, HostnameRow>,
    /// Challenges by their revision, to be taken away when they are over.
    pub challenges: BTreeMap<Hostname, (u64, u64)>,
    pub host_facts: Rows<HostId, HostFact>,
    pub facts: BTreeMap<HostId, Rows<MachineId, MachineFact>>,
    pub routes: Rows<(String, AppName), RouteRow>,
    pub app_regions: Rows<AppName, AppRegions>,
    /// What placement reads.
    pub snapshot: Snapshot,
    /// What live moves have been promised of their targets, which do not count it yet.
    arriving: HashMap<(HostId, MachineId), moves::Arrival>,
    /// Who bears a key: by its SHA-256.
    pub keys: HashMap<String, KeyOwner>,
    /// Apps whose routes may differ from what the rows say now.
    pub stale_routes: BTreeSet<AppName>,
    /// Keys that hold what cannot be read; each is told once.
    pub unreadable: BTreeSet<String>,
    /// Makes and judges the proofs of placements.
    pub prover: Prover,
    /// What hosts told that is not believed, until it is counted.
    pub disbelieved: Vec<belief::Disbelieved>,
}

/// What is kept of a challenge: its answer may hold a key.
#[derive(Debug, serde::Deserialize)]
struct ChallengeUntil {
    until_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOwner {
    Token(String),
    Host(HostId),
    Edge(EdgeId),
}

impl World {
    /// Takes in what the store told.
    pub fn apply(&mut self, update: Update) {
        match update {
            Update::Snapshot { rows, revision } => {
                let (unreadable, disbelieved) =
                    (std::mem::take(&mut self.unreadable), std::mem::take(&mut self.disbelieved));
                *self = World { unreadable, disbelieved, ..World::default() };
                // Whose facts are whose is known from the hosts' rows.
                let (hosts, others): (Vec<_>, Vec<_>) =
                    rows.iter().partition(|row| row.key.starts_with(godwit_api::keys::HOSTS));
                for row in hosts.into_iter().chain(others) {
                    self.row(&row.key, Some(&row.value), row.mod_revision);
                }
                self.drop_facts_of_other_apps();
                self.settle_arrivals();
                self.complete = true;
                self.revision = revision;
                self.stale_routes = self.apps.keys().chain(self.machines.keys()).cloned().collect();
                self.stale_routes.extend(self.routes.keys().map(|(_, app)| app.clone()));
            }
            Update::Changes(batch) => {
                for event in batch.events {
                    self.row(&event.key, event.value.as_deref(), event.mod_revision);
                }
                self.revision = batch.revision;
            }
        }
    }

    /// One key as it stands now. Unknown keys are somebody else's and passed over.
    fn row(&mut self, key: &str, value: Option<&[u8]>, revision: u64) {
        let parts: Vec<&str> = key.split('/').collect();
        match parts.as_slice() {
            ["meta", "generation"] => self.generation = self.read(key, value, revision),
            ["meta", "proofs"] => {
                let row: Option<Known<ProofsRow>> = self.read(key, value, revision);
                self.prover = row.map(|row| Prover::new(&row.secret)).unwrap_or_default();
            }
            ["apps", app] => {
                if let Some(app) = self.id::<AppName>(key, app) {
                    let row = self.read(key, value, revision);
                    set(&mut self.apps, app.clone(), row);
                    self.stale_routes.insert(app);
                }
            }
            ["app-uses", app] => {
                if let Some(app) = self.id::<AppName>(key, app) {
                    match value {
                        Some(_) => drop(self.app_uses.insert(app, revision)),
                        None => drop(self.app_uses.remove(&app)),
                    }
                }
            }
            ["machines", app, machine] => self.machine_row(key, app, machine, value, revision),
            ["machine-names", app, name] => {
                if let Some(app) = self.id::<AppName>(key, app) {
                    let machine = value.and_then(|value| serde_json::from_slice(value).ok());
                    match machine {
                        Some(machine) => drop(self.names.insert((app, (*name).to_owned()), machine)),
                        None => drop(self.names.remove(&(app, (*name).to_owned()))),
                    }
                }
            }
            ["volumes", app, volume] => self.volume_row(key, app, volume, value, revision),
            ["migrations", migration] => self.migration_row(key, migration, value, revision),
            ["placements", host, machine] => self.placement_row(key, host, machine, value, revision),
            ["facts", host, "host"] => self.host_fact(key, host, value, revision),
            ["facts", host, "machines", machine] => self.machine_fact(key, host, machine, value, revision),
            ["hosts", host] => self.host_row(key, host, value, revision),
            ["edges", edge] => {
                if let Some(edge) = self.id::<EdgeId>(key, edge) {
                    let row: Option<Known<EdgeRow>> = self.read(key, value, revision);
                    let old = self.edges.get(&edge).map(|row| row.key_sha256.clone());
                    self.key_owner(old, row.as_ref().map(|row| row.key_sha256.clone()), KeyOwner::Edge(edge.clone()));
                    set(&mut self.edges, edge, row);
                }
            }
            ["tokens", name] => {
                let row: Option<Known<TokenRow>> = self.read(key, value, revision);
                let old = self.tokens.get(*name).map(|row| row.sha256.clone());
                self.key_owner(old, row.as_ref().map(|row| row.sha256.clone()), KeyOwner::Token((*name).to_owned()));
                set(&mut self.tokens, (*name).to_owned(), row);
            }
            ["leases", machine] => {
                if let Some(machine) = self.id::<MachineId>(key, machine) {
                    let row = self.read(key, value, revision);
                    set(&mut self.leases, machine, row);
                }
            }
            ["ports", port] => {
                if let Ok(port) = port.parse() {
                    let row = self.read(key, value, revision);
                    set(&mut self.ports, port, row);
                }
            }
            ["hostnames", hostname] => {
                if let Some(hostname) = self.id::<Hostname>(key, hostname) {
                    let row = self.read(key, value, revision);
                    set(&mut self.hostnames, hostname, row);
                }
            }
            ["challenges", hostname] => {
                if let Some(hostname) = self.id::<Hostname>(key, hostname) {
                    match self.read::<ChallengeUntil>(key, value, revision) {
                        Some(row) => drop(self.challenges.insert(hostname, (row.until_ms, revision))),
                        None => drop(self.challenges.remove(&hostname)),
                    }
                }
            }
            ["routes", region, app, "machines"] => {
                if let Some(app) = self.id::<AppName>(key, app) {
                    let row = self.read(key, value, revision);
                    set(&mut self.routes, ((*region).to_owned(), app.clone()), row);
                    self.stale_routes.insert(app);
                }
            }
            ["app-regions", app] => {
                if let Some(app) = self.id::<AppName>(key, app) {
                    let row = self.read(key, value, revision);
                    set(&mut self.app_regions, app.clone(), row);
                    self.stale_routes.insert(app);
                }
            }
            _ => {}
        }
    }

    fn machine_row(&mut self, key: &str, app: &str, machine: &str, value: Option<&[u8]>, revision: u64) {
        let (Some(app), Some(machine)) = (self.id::<AppName>(key, app), self.id::<MachineId>(key, machine)) else {
            return;
        };
        let row = self.read(key, value, revision);
        let of_app = self.machines.entry(app.clone()).or_default();
        set(of_app, machine, row);
        if of_app.is_empty() {
            self.machines.remove(&app);
        }
        self.stale_routes.insert(app);
    }

    fn volume_row(&mut self, key: &str, app: &str, volume: &str, value: Option<&[u8]>, revision: u64) {
        let (Some(app), Some(volume)) = (self.id::<AppName>(key, app), self.id::<VolumeId>(key, volume)) else {
            return;
        };
        let row = self.read(key, value, revision);
        let of_app = self.volumes.entry(app.clone()).or_default();
        set(of_app, volume, row);
        if of_app.is_empty() {
            self.volumes.remove(&app);
        }
    }

    fn placement_row(&mut self, key: &str, host: &str, machine: &str, value: Option<&[u8]>, revision: u64) {
        let (Some(host), Some(machine)) = (self.id::<HostId>(key, host), self.id::<MachineId>(key, machine)) else {
            return;
        };
        let row: Option<Known<Placement>> = self.read(key, value, revision);
        match row.as_ref().filter(|row| !row.destroy) {
            Some(row) => {
                let is_counted = self.is_counted(&host, &machine);
                let need = if is_counted { Resources::default() } else { capacity::of_placement(row, row.launch) };
                self.snapshot.placed(&host, &machine, &row.app, need, revision);
            }
            None => self.snapshot.unplaced(&host, &machine),
        }
        if let Some(app) = row.as_ref().map(|row| row.app.clone()) {
            self.stale_routes.insert(app);
        }
        let gone = row.is_none();
        set(self.placements.entry(host.clone()).or_default(), machine.clone(), row);
        if gone {
            self.settle_arrival(&host, &machine);
        }
    }

    /// Hosts at whose address another has joined since: a wiped host is a new one, and the old one is not there.
    pub fn displaced(&self) -> HashSet<HostId> {
        let mut latest: HashMap<&str, &HostRow> = HashMap::new();
        let mut displaced = HashSet::new();
        for row in self.hosts.values() {
            let before = latest.insert(&row.agent_url, row);
            let Some(before) = before else { continue };
            let row: &HostRow = row;
            let (older, newer) = if before.joined_at_ms <= row.joined_at_ms { (before, row) } else { (row, before) };
            latest.insert(&newer.agent_url, newer);
            displaced.insert(older.id.clone());
        }
        displaced
    }

    fn host_row(&mut self, key: &str, host: &str, value: Option<&[u8]>, revision: u64) {
        let Some(host) = self.id::<HostId>(key, host) else { return };
        let row: Option<Known<HostRow>> = self.read(key, value, revision);
        let old = self.hosts.get(&host).map(|row| row.key_sha256.clone());
        self.key_owner(old, row.as_ref().map(|row| row.key_sha256.clone()), KeyOwner::Host(host.clone()));
        match &row {
            Some(row) => {
                self.snapshot.host(&host, &HostEntry { region: row.region.clone(), cordoned: row.cordoned });
            }
            None => self.snapshot.host_gone(&host),
        }
        set(&mut self.hosts, host.clone(), row);
        self.host_changed(&host);
    }

    fn host_fact(&mut self, key: &str, host: &str, value: Option<&[u8]>, revision: u64) {
        let Some(host) = self.id::<HostId>(key, host) else { return };
        let row: Option<Known<HostFact>> = self.read(key, value, revision);
        if let Some(fact) = &row {
            let known = self.host_facts.get(&host).map(|known| &known.stamp);
            let is_own = if fact.host == host { Ok(()) } else { Err(belief::FOREIGN) };
            if let Err(kind) = is_own.and_then(|()| self.believes_stamp(&host, &fact.stamp, known)) {
                return self.disbelieve(&host, kind, key.to_owned());
            }
        } else if value.is_some() {
            return self.disbelieve(&host, belief::UNREADABLE, key.to_owned());
        }
        if let Some(fact) = &row {
            self.snapshot.report(&host, fact.capacity, fact.used, fact.applied_revision);
        }
        set(&mut self.host_facts, host, row);
    }

    fn machine_fact(&mut self, key: &str, host: &str, machine: &str, value: Option<&[u8]>, revision: u64) {
        let (Some(host), Some(machine)) = (self.id::<HostId>(key, host), self.id::<MachineId>(key, machine)) else {
            return;
        };
        let row: Option<Known<MachineFact>> = self.read(key, value, revision);
        match &row {
            Some(fact) => {
                if let Err(kind) = self.believes(&host, &machine, fact) {
                    return self.disbelieve(&host, kind, key.to_owned());
                }
                if !self.note_hydration(fact) {
                    self.disbelieve(&host, belief::FOREIGN_MOVE, key.to_owned());
                }
            }
            None if value.is_some() => return self.disbelieve(&host, belief::UNREADABLE, key.to_owned()),
            None => {}
        }
        let of_host = self.facts.entry(host.clone()).or_default();
        let told = |fact: Option<&Known<MachineFact>>| {
            let fact = fact?;
            let critical = fact.checks.iter().filter(|check| check.status == "critical").count();
            Some((fact.app.clone(), fact.epoch, fact.state, critical, fact.closed_ports.clone()))
        };
        let (old, new) = (told(of_host.get(&machine)), told(row.as_ref()));
        set(of_host, machine.clone(), row);
        self.settle_arrivals_with(&host, &machine);
        // Events and check outputs come often and change no route.
        if old != new {
            self.stale_routes.extend(old.or(new).map(|(app, ..)| app));
        }
    }

    fn key_owner(&mut self, old: Option<String>, new: Option<String>, owner: KeyOwner) {
        if let Some(old) = old.filter(|old| self.keys.get(old) == Some(&owner)) {
            self.keys.remove(&old);
        }
        if let Some(new) = new {
            self.keys.insert(new, owner);
        }
    }

    /// The routes of all apps that a host serves may have changed.
    pub fn host_changed(&mut self, host: &HostId) {
        let placed = self.placements.get(host).into_iter().flat_map(|rows| rows.values());
        self.stale_routes.extend(placed.map(|row| row.app.clone()));
    }

    fn id<T: std::str::FromStr>(&mut self, key: &str, text: &str) -> Option<T> {
        let id = text.parse().ok();
        if id.is_none() {
            self.unreadable.insert(key.to_owned());
        }
        id
    }

    fn read<T: DeserializeOwned>(&mut self, key: &str, value: Option<&[u8]>, revision: u64) -> Option<Known<T>> {
        let value = value?;
        match serde_json::from_slice(value) {
            Ok(value) => Some(Known { value: Arc::new(value), revision }),
            Err(_) => {
                self.unreadable.insert(key.to_owned());
                None
            }
        }
    }

    // ---- answers -----------------------------------------------------------------------

    /// The images that a host needs, by their manifests: those of its placements, and of what is on its way to it.
    pub fn images_of<'a>(&'a self, host: &HostId) -> impl Iterator<Item = &'a str> {
        let placed = self.placements.get(host).into_iter().flat_map(|rows| rows.values());
        let placed = placed.map(|row| row.image_digest.as_str());
        let (to, moves) = (host.clone(), self.migrations.values());
        let live = moves.filter(move |of| of.row.target == to && !of.row.phase.is_over());
        placed.chain(live.filter_map(|of| Some(of.ticket.as_ref()?.lead.image_digest.as_str())))
    }

    /// The Machines that belong to an app as it is now: not those of an earlier app of the same name.
    pub fn machines_of(&self, app: &AppName) -> impl Iterator<Item = &Known<MachineRow>> {
        let since = self.apps.get(app).map_or(u64::MAX, |app| app.created_at_ms);
        let rows = self.machines.get(app).into_iter().flat_map(|rows| rows.values());
        rows.filter(move |row| row.created_at_ms >= since)
    }

    pub fn machine(&self, app: &AppName, machine: &MachineId) -> Option<&Known<MachineRow>> {
        let since = self.apps.get(app)?.created_at_ms;
        self.machines.get(app)?.get(machine).filter(|row| row.created_at_ms >= since)
    }

    pub fn placement(&self, host: &HostId, machine: &MachineId) -> Option<&Known<Placement>> {
        self.placements.get(host)?.get(machine)
    }

    /// The volumes that belong to an app as it is now, also destroyed ones.
    pub fn volumes_of(&self, app: &AppName) -> impl Iterator<Item = &Known<VolumeRow>> {
        let since = self.apps.get(app).map_or(u64::MAX, |app| app.created_at_ms);
        let rows = self.volumes.get(app).into_iter().flat_map(|rows| rows.values());
        rows.filter(move |row| row.created_at_ms >= since)
    }

    pub fn volume(&self, app: &AppName, volume: &VolumeId) -> Option<&Known<VolumeRow>> {
        let since = self.apps.get(app)?.created_at_ms;
        self.volumes.get(app)?.get(volume).filter(|row| row.created_at_ms >= since)
    }

    /// The volumes that a Machine holds.
    pub fn volumes_held_by(&self, app: &AppName, machine: &MachineId) -> impl Iterator<Item = &Known<VolumeRow>> {
        let rows = self.volumes.get(app).into_iter().flat_map(|rows| rows.values());
        rows.filter(move |row| row.machine.as_ref() == Some(machine))
    }

    /// What the volume's present host says of its present epoch.
    pub fn volume_fact(&self, row: &VolumeRow) -> Option<&Known<MachineFact>> {
        self.facts.get(&row.host)?.get(&row.id.carrier()).filter(|fact| fact.epoch == row.epoch && fact.app == row.app)
    }

    /// The host names that belong to an app as it is now.
    pub fn hostnames_of(&self, app: &AppName) -> impl Iterator<Item = &Known<HostnameRow>> {
        let since = self.apps.get(app).map_or(u64::MAX, |app| app.created_at_ms);
        self.hostnames.values().filter(move |row| row.app == *app && row.created_at_ms >= since)
    }

    /// Whether the app that the row names is there no more, or is another one of the same name.
    pub fn is_hostname_orphan(&self, row: &HostnameRow) -> bool {
        self.apps.get(&row.app).is_none_or(|app| app.created_at_ms > row.created_at_ms)
    }

    pub fn fact(&self, host: &HostId, machine: &MachineId) -> Option<&Known<MachineFact>> {
        self.facts.get(host)?.get(machine)
    }

    /// What the Machine's present host says of its present epoch.
    pub fn fact_of(&self, row: &MachineRow) -> Option<&Known<MachineFact>> {
        self.facts.get(&row.host)?.get(&row.id).filter(|fact| fact.epoch == row.epoch && fact.app == row.app)
    }

    /// The generation of new epochs; 0 only before the first start has written one.
    pub fn generation_number(&self) -> u64 {
        self.generation.as_ref().map_or(0, |row| row.generation)
    }
}

fn set<K: Ord, T>(rows: &mut Rows<K, T>, key: K, row: Option<Known<T>>) {
    match row {
        Some(row) => drop(rows.insert(key, row)),
        None => drop(rows.remove(&key)),
    }
}
