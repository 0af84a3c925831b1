//! The roles' configuration files, as `godwit dev` writes them: the same files that a person writes for real servers.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Options;
use super::record::{HostRecord, Record, host_dir};
use crate::error::{CliError, Result};

/// Inside each host, where nobody else's ports are.
const AGENT_PORT: u16 = 4281;
const DOOR_PORT: u16 = 4282;
const DOOR_ADMIN_PORT: u16 = 4283;
/// Below `hosts/NAME`: what is gone after a reboot.
const RUN: &str = "run";

/// Where the parts of a fleet are reached.
pub struct Addresses {
    pub api: SocketAddr,
    pub http: SocketAddr,
    pub https: SocketAddr,
    pub edge_admin: SocketAddr,
    /// The fleet's own address of this machine, by which hosts reach control.
    pub gateway: Ipv6Addr,
}

impl Addresses {
    /// How hosts call control.
    pub fn control_for_hosts(&self) -> SocketAddr {
        SocketAddr::from((self.gateway, self.api.port()))
    }
}

pub fn agent_url(host: Ipv6Addr) -> String {
    format!("http://{}", SocketAddr::from((host, AGENT_PORT)))
}

pub fn join_token_file(dir: &Path) -> PathBuf {
    dir.join("control/join-token")
}

pub fn admin_token_file(dir: &Path) -> PathBuf {
    dir.join("control/admin-token")
}

pub fn write<T: Serialize>(path: &Path, config: &T) -> Result<()> {
    let text = toml::to_string(config).map_err(|error| CliError::failed(error.to_string()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok(godwit_base::durable::write(path, text.as_bytes(), 0o600)?)
}

#[derive(Serialize)]
pub struct Control {
    data_dir: PathBuf,
    listen: String,
    listen_also: Vec<String>,
    admin_token_file: PathBuf,
    join_token_file: PathBuf,
    fleet: String,
    app_urls: Vec<String>,
}

pub fn control(dir: &Path, record: &Record, addresses: &Addresses) -> Control {
    Control {
        data_dir: dir.join("control/data"),
        listen: addresses.api.to_string(),
        listen_also: vec![addresses.control_for_hosts().to_string()],
        admin_token_file: admin_token_file(dir),
        join_token_file: join_token_file(dir),
        fleet: record.fleet.clone(),
        app_urls: vec![
            format!("http://{{app}}.localhost:{}", addresses.http.port()),
            format!("https://{{app}}.localhost:{}", addresses.https.port()),
        ],
    }
}

#[derive(Serialize)]
pub struct Edge {
    listen_http: Vec<String>,
    listen_https: Vec<String>,
    mint_from: PathBuf,
    redirect_https_port: u16,
    listen_admin: String,
    listen_tcp: String,
    public_http_port: u16,
    control_url: String,
    region: String,
    name: String,
    identity_file: PathBuf,
    join_token_file: PathBuf,
    snapshot_dir: PathBuf,
    suffixes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gate_deadline_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    autostop_interval_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    autostop_idle_ms: Option<u64>,
}

pub fn edge(dir: &Path, record: &Record, addresses: &Addresses, options: &Options) -> Edge {
    Edge {
        listen_http: vec![addresses.http.to_string()],
        listen_https: vec![addresses.https.to_string()],
        mint_from: super::tls::authority(dir),
        redirect_https_port: addresses.https.port(),
        listen_admin: addresses.edge_admin.to_string(),
        listen_tcp: addresses.http.ip().to_string(),
        public_http_port: 80,
        control_url: format!("http://{}", addresses.api),
        region: record.hosts.first().map_or_else(|| "local".to_owned(), |host| host.region.clone()),
        name: "edge".into(),
        identity_file: dir.join("edge/identity.json"),
        join_token_file: join_token_file(dir),
        snapshot_dir: dir.join("edge/snapshots"),
        suffixes: vec!["localhost".into()],
        gate_deadline_ms: options.gate_deadline_ms,
        autostop_interval_ms: options.autostop_interval_ms,
        autostop_idle_ms: options.autostop_idle_ms,
    }
}

#[derive(Serialize)]
pub struct Door {
    listen: String,
    listen_admin: String,
    agent_socket: PathBuf,
    data_dir: PathBuf,
}

pub fn door(dir: &Path, host: &HostRecord, address: Ipv6Addr) -> Door {
    let folder = host_dir(dir, host);
    Door {
        listen: SocketAddr::from((address, DOOR_PORT)).to_string(),
        listen_admin: SocketAddr::from((address, DOOR_ADMIN_PORT)).to_string(),
        agent_socket: folder.join(RUN).join("agent.sock"),
        data_dir: folder.join("door"),
    }
}

#[derive(Serialize)]
pub struct Agent {
    data_dir: PathBuf,
    listen: String,
    advertise_url: String,
    door_socket: PathBuf,
    door_addr: String,
    control_url: String,
    join_token: String,
    name: String,
    region: String,
    lab: bool,
    capacity: AgentCapacity,
    driver: AgentDriver,
    network: AgentNetwork,
}

#[derive(Serialize)]
struct AgentCapacity {
    cpus: u32,
    memory_mb: u64,
    disk_mb: u64,
}

#[derive(Serialize)]
struct AgentDriver {
    shim: PathBuf,
    cgroup_parent: String,
    run_dir: PathBuf,
}

#[derive(Serialize)]
struct AgentNetwork {
    denied: Vec<String>,
}

/// The join token is handed over by value: a host sees no file outside its own folder.
pub fn agent(
    dir: &Path,
    record: &Record,
    host: &HostRecord,
    address: Ipv6Addr,
    addresses: &Addresses,
    options: &Options,
    join_token: &str,
) -> Result<Agent> {
    let folder = host_dir(dir, host);
    Ok(Agent {
        data_dir: folder.clone(),
        listen: SocketAddr::from((address, AGENT_PORT)).to_string(),
        advertise_url: agent_url(address),
        door_socket: folder.join(RUN).join("agent.sock"),
        door_addr: SocketAddr::from((address, DOOR_PORT)).to_string(),
        control_url: format!("http://{}", addresses.control_for_hosts()),
        join_token: join_token.to_owned(),
        name: host.name.clone(),
        region: host.region.clone(),
        lab: options.lab,
        capacity: AgentCapacity {
            cpus: options.capacity.cpus,
            memory_mb: options.capacity.memory_mb,
            disk_mb: options.capacity.disk_mb,
        },
        driver: AgentDriver {
            shim: shim_path()?,
            cgroup_parent: record.cgroup(host),
            run_dir: folder.join(RUN).join("containers"),
        },
        // Machines have no business with hosts, doors and control.
        network: AgentNetwork { denied: vec![format!("{}/64", addresses.gateway)] },
    })
}

/// Who the host is, as its agent wrote it down when it was admitted; `None` before.
pub fn host_id(dir: &Path, host: &HostRecord) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Identity {
        host: String,
    }
    let bytes = std::fs::read(host_dir(dir, host).join("identity.json")).ok()?;
    Some(serde_json::from_slice::<Identity>(&bytes).ok()?.host)
}

/// The shim stands beside this program.
pub fn shim_path() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("godwit-shim");
    if path.is_file() {
        return Ok(path);
    }
    Err(CliError::failed(format!("{} does not exist", path.display()))
        .hint("the shim must be next to godwit: `make build` builds both"))
}
