//! Where each row of the fleet store lives. Every key ends in an exact id; the prefixes below are for reading and
//! watching only, and each ends in `/`, so that `w1` never covers `w10`.

use crate::hostname::{Hostname, Source};
use crate::ids::{AppName, EdgeId, HostId, MachineId, MigrationId, VolumeId};

pub const GENERATION: &str = "meta/generation";
/// The secret by which control proves what it has given to hosts; nobody else reads it.
pub const PROOFS: &str = "meta/proofs";
pub const APPS: &str = "apps/";
pub const MACHINES: &str = "machines/";
pub const HOSTS: &str = "hosts/";
pub const EDGES: &str = "edges/";
pub const TOKENS: &str = "tokens/";
pub const PLACEMENTS: &str = "placements/";
pub const FACTS: &str = "facts/";
pub const ROUTES: &str = "routes/";
pub const APP_REGIONS: &str = "app-regions/";
pub const PORTS: &str = "ports/";
pub const LEASES: &str = "leases/";
pub const VOLUMES: &str = "volumes/";
pub const MIGRATIONS: &str = "migrations/";
pub const TICKETS: &str = "tickets/";
pub const HOSTNAMES: &str = "hostnames/";
pub const CERTIFICATES: &str = "certificates/";
pub const CHALLENGES: &str = "challenges/";
/// Control's account with its certificate authority; nobody else reads it.
pub const ACME_ACCOUNT: &str = "acme/account";

pub fn app(app: &AppName) -> String {
    format!("apps/{app}")
}
/// Written with each Machine of an app, so that deleting an app and creating a Machine in it exclude each other.
pub fn app_use(app: &AppName) -> String {
    format!("app-uses/{app}")
}
pub fn machines_of(app: &AppName) -> String {
    format!("machines/{app}/")
}
pub fn machine(app: &AppName, machine: &MachineId) -> String {
    format!("machines/{app}/{machine}")
}
/// Which Machine a name of an app belongs to: names are unique within an app.
pub fn machine_name(app: &AppName, name: &str) -> String {
    format!("machine-names/{app}/{name}")
}
/// Who holds a private address: addresses are drawn once.
pub fn address(address: &std::net::Ipv6Addr) -> String {
    format!("addresses/{address}")
}
/// Which app serves a public raw port (`row::PortRow`); edges watch them all.
pub fn port(port: u16) -> String {
    format!("ports/{port}")
}
pub fn lease(machine: &MachineId) -> String {
    format!("leases/{machine}")
}
pub fn host(host: &HostId) -> String {
    format!("hosts/{host}")
}
pub fn edge(edge: &EdgeId) -> String {
    format!("edges/{edge}")
}
pub fn token(name: &str) -> String {
    format!("tokens/{name}")
}
pub fn placements_of(host: &HostId) -> String {
    format!("placements/{host}/")
}
pub fn placement(host: &HostId, machine: &MachineId) -> String {
    format!("placements/{host}/{machine}")
}
/// No rows: the images that a host needs, as `may` names them.
pub fn images_of(host: &HostId) -> String {
    format!("images/{host}/")
}
pub fn facts_of(host: &HostId) -> String {
    format!("facts/{host}/")
}
pub fn host_fact(host: &HostId) -> String {
    format!("facts/{host}/host")
}
/// No fact: rewritten with each publication, and compared by it. One that arrives late loses, and changes nothing.
pub fn facts_fence(host: &HostId) -> String {
    format!("facts/{host}/fence")
}
pub fn machine_facts_of(host: &HostId) -> String {
    format!("facts/{host}/machines/")
}
pub fn machine_fact(host: &HostId, machine: &MachineId) -> String {
    format!("facts/{host}/machines/{machine}")
}
/// All apps of a region; edges list it now and then, nobody watches it.
pub fn routes_in(region: &str) -> String {
    format!("routes/{region}/")
}
/// The folder that an edge watches for one app in one region. It holds one row: watches go by whole segments, so
/// the row needs a folder of its own to be watched alone.
pub fn routes_of(region: &str, app: &AppName) -> String {
    format!("routes/{region}/{app}/")
}
pub fn route(region: &str, app: &AppName) -> String {
    format!("routes/{region}/{app}/machines")
}
/// The regions in which an app has Machines.
pub fn app_regions(app: &AppName) -> String {
    format!("app-regions/{app}")
}
pub fn volumes_of(app: &AppName) -> String {
    format!("volumes/{app}/")
}
pub fn volume(app: &AppName, volume: &VolumeId) -> String {
    format!("volumes/{app}/{volume}")
}
pub fn migration(migration: &MigrationId) -> String {
    format!("migrations/{migration}")
}
/// The moves that a host is to lead as their target: what its agent pulls beside its placements.
pub fn tickets_of(host: &HostId) -> String {
    format!("tickets/{host}/")
}
pub fn ticket(target: &HostId, migration: &MigrationId) -> String {
    format!("tickets/{target}/{migration}")
}
/// Which app a host name of its own belongs to, and what may be known of its certificates; edges watch them all.
pub fn hostname(hostname: &Hostname) -> String {
    format!("hostnames/{hostname}")
}
/// A chain with its private key: for control and edges only.
pub fn certificate(hostname: &Hostname, source: Source) -> String {
    format!("certificates/{hostname}/{}", source.as_str())
}
/// What edges answer to a certificate authority.
pub fn challenge(hostname: &Hostname) -> String {
    format!("challenges/{hostname}")
}
