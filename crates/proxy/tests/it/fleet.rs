//! A fleet of a store, an edge and hosts (an agent and a door each), all in one process and on real sockets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_api::config::{Autostop, Concurrency, Port, Service};
use godwit_api::ids::{AppName, EdgeId, Epoch, HostId, MachineId};
use godwit_api::keys;
use godwit_api::machine::MachineState;
use godwit_api::route::{AppRegions, Readiness, RouteMachine, RouteRow};
use godwit_api::row::PortRow;
use godwit_proxy::door::{BoundDoor, DoorConfig, RawDoorConfig};
use godwit_proxy::edge::{BoundEdge, EdgeConfig, Identity, RawEdgeConfig};
use godwit_store::{Options, SqliteStore, Store, Txn, put_json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::backend::free_port;
use crate::client::Browser;

pub const REGION: &str = "fra";
pub const EDGE_KEY: &str = "gwe_of_the_tests";
/// How long a request may be held.
pub const GATE_DEADLINE_MS: u64 = 20_000;

/// A role that runs until it is stopped.
pub struct Role {
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Role {
    fn spawn<E: std::fmt::Debug>(
        role: impl Future<Output = Result<(), E>> + Send + 'static,
        shutdown: CancellationToken,
    ) -> Self {
        let task = tokio::spawn(async move { role.await.unwrap() });
        Self { shutdown, task }
    }
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

pub struct Host {
    pub id: HostId,
    pub agent: Arc<Agent>,
    pub door_addr: SocketAddr,
    pub door_admin: SocketAddr,
    door: Option<Role>,
    pub folder: TempDir,
}

impl Host {
    pub async fn start(id: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let agent = Agent::new(folder.path());
        agent.admit_edge("edge-1", EDGE_KEY);
        agent.up();
        let any = "127.0.0.1:0".parse().unwrap();
        let mut host =
            Self { id: HostId::parse(id).unwrap(), agent, door_addr: any, door_admin: any, door: None, folder };
        host.door_up().await;
        host
    }

    /// Starts a door, on the same address as the one before.
    pub async fn door_up(&mut self) {
        let raw = RawDoorConfig {
            listen: self.door_addr.to_string(),
            listen_admin: "127.0.0.1:0".into(),
            agent_socket: self.agent.socket.clone(),
            data_dir: self.folder.path().join("door"),
            upgrade_drain_ms: 60_000,
        };
        let door = BoundDoor::bind(DoorConfig::try_from(raw).unwrap()).await.unwrap();
        (self.door_addr, self.door_admin) = (door.addr().unwrap(), door.admin_addr().unwrap());
        let shutdown = CancellationToken::new();
        self.door = Some(Role::spawn(door.serve(shutdown.clone()), shutdown));
    }

    /// What the door has on disk.
    pub fn kept(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("door/door.json")).unwrap_or_default()
    }

    pub async fn door_down(&mut self) {
        if let Some(door) = self.door.take() {
            door.stop().await;
        }
    }

    pub fn epoch(n: u64) -> Epoch {
        Epoch { generation: 1, n }
    }
}

pub struct EdgeHandle {
    pub addr: SocketAddr,
    pub https: SocketAddr,
    /// Holds what the edge serves HTTPS with.
    pub certificates: PathBuf,
    pub admin: SocketAddr,
    pub access_log: PathBuf,
    /// Changes what may change while it serves.
    pub settings: tokio::sync::watch::Sender<godwit_proxy::edge::Live>,
    pub role: Role,
}

pub struct Fleet {
    pub store: Arc<SqliteStore>,
    _folder: TempDir,
    pub edge: EdgeHandle,
    pub app: AppName,
}

/// What a test wants to differ from the usual.
#[derive(Clone)]
pub struct Setup {
    pub gate_deadline_ms: u64,
    pub autostop_interval_ms: u64,
    pub listen_tcp: bool,
    /// Proxies before the edge.
    pub trusted: Vec<&'static str>,
    /// An authority of the operator's own.
    pub mint_from: Option<PathBuf>,
    /// Tries updates aside.
    pub taster: Option<Vec<String>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            gate_deadline_ms: GATE_DEADLINE_MS,
            autostop_interval_ms: 0,
            listen_tcp: false,
            trusted: Vec::new(),
            mint_from: None,
            taster: None,
        }
    }
}

pub fn edge_config(folder: &Path, setup: &Setup) -> EdgeConfig {
    let raw = RawEdgeConfig {
        listen_http: vec!["127.0.0.1:0".into()],
        listen_https: vec!["127.0.0.1:0".into()],
        certificates_dir: Some(folder.join("certificates")),
        mint_from: setup.mint_from.clone(),
        proxy_protocol_from: setup.trusted.iter().map(|one| (*one).to_owned()).collect(),
        listen_admin: "127.0.0.1:0".into(),
        listen_tcp: setup.listen_tcp.then(|| "127.0.0.1".into()),
        tcp_ports: None,
        public_http_port: 80,
        public_https_port: 443,
        redirect_https_port: None,
        control_url: "http://127.0.0.1:1".into(),
        region: REGION.into(),
        name: "edge".into(),
        identity_file: folder.join("identity.json"),
        join_token: None,
        join_token_file: None,
        snapshot_dir: folder.join("routes"),
        suffixes: vec!["localhost".into()],
        names: ["www.example.com", "a", "[::1]"].map(|name| (name.to_owned(), "web".to_owned())).into(),
        access_log: Some(folder.join("access.log")),
        gate_deadline_ms: setup.gate_deadline_ms,
        upgrade_drain_ms: 60_000,
        autostop_interval_ms: setup.autostop_interval_ms,
        autostop_idle_ms: Some(0),
        max_apps: 16,
    };
    EdgeConfig { taster: setup.taster.clone(), ..EdgeConfig::try_from(raw).unwrap() }
}

pub async fn start_edge(folder: &Path, store: Arc<dyn Store>, setup: &Setup) -> EdgeHandle {
    let certificates = folder.join("certificates");
    std::fs::create_dir_all(&certificates).unwrap();
    let edge = BoundEdge::bind(edge_config(folder, setup)).await.unwrap();
    let (addr, admin) = (edge.http_addr().unwrap(), edge.admin_addr().unwrap());
    let https = edge.https_addr().unwrap();
    let identity = Identity { id: EdgeId::parse("edge-1").unwrap(), key: EDGE_KEY.into() };
    let shutdown = CancellationToken::new();
    let (settings, access_log) = (edge.settings(), folder.join("access.log"));
    let role = Role::spawn(edge.serve(identity, store, shutdown.clone()), shutdown);
    EdgeHandle { addr, https, certificates, admin, access_log, settings, role }
}

/// An HTTP service on the usual port.
pub fn http_service(port: u16) -> Service {
    let public = Port { port: Some(80), handlers: vec!["http".into()], ..Port::default() };
    Service {
        internal_port: port,
        autostart: Some(true),
        autostop: Some(Autostop::Stop),
        ports: vec![public],
        concurrency: Some(Concurrency { kind: "requests".into(), soft_limit: 1_000_000, hard_limit: None }),
        ..Service::default()
    }
}

pub fn limited(port: u16, soft: u32, hard: u32) -> Service {
    let limits = Concurrency { kind: "requests".into(), soft_limit: soft, hard_limit: Some(hard) };
    Service { concurrency: Some(limits), ..http_service(port) }
}

impl Fleet {
    pub async fn start(setup: &Setup) -> Self {
        raise_file_limit();
        let folder = TempDir::new().unwrap();
        let store = Arc::new(SqliteStore::open(folder.path().join("store.db"), Options::default()).unwrap());
        let app = AppName::parse("web").unwrap();
        // The directory has the app from the first; its rows are read when it is first asked for.
        let regions = AppRegions { regions: vec![REGION.into()] };
        store.txn(Txn::of([put_json(keys::app_regions(&app), &regions).unwrap()])).await.unwrap();
        let edge = start_edge(folder.path(), store.clone(), setup).await;
        Self { store, _folder: folder, edge, app }
    }

    pub fn browser(&self) -> Browser {
        Browser::new(self.edge.addr, "web.localhost")
    }

    /// Writes the app's route row from what the agents know, as control would.
    pub async fn publish(&self, hosts: &[&Host]) {
        let machines = hosts.iter().flat_map(|host| {
            host.agent.machines().into_iter().map(|machine| RouteMachine {
                machine: machine.machine,
                host: host.id.clone(),
                door_addr: host.door_addr.to_string(),
                epoch: machine.epoch,
                private_ip: machine.private_ip,
                readiness: readiness(machine.state),
                cordoned: false,
                services: machine.services,
                closed_ports: Vec::new(),
            })
        });
        self.write_row(machines.collect()).await;
    }

    pub async fn write_row(&self, machines: Vec<RouteMachine>) {
        let row = RouteRow { app: self.app.clone(), region: REGION.into(), machines };
        let regions = AppRegions { regions: vec![REGION.into()] };
        let ops = [
            put_json(keys::route(REGION, &self.app), &row).unwrap(),
            put_json(keys::app_regions(&self.app), &regions).unwrap(),
        ];
        self.store.txn(Txn::of(ops)).await.unwrap();
    }

    pub async fn serve_port(&self, port: u16) {
        let row = PortRow { app: self.app.clone() };
        self.store.txn(Txn::of([put_json(keys::port(port), &row).unwrap()])).await.unwrap();
    }

    /// Keeps the row in step with the agents until dropped.
    pub fn keep_published(self: &Arc<Self>, hosts: Arc<Vec<Host>>) -> tokio_util::task::AbortOnDropHandle<()> {
        let fleet = self.clone();
        let task = tokio::spawn(async move {
            let mut changes: Vec<_> = hosts.iter().map(|host| host.agent.changed.subscribe()).collect();
            loop {
                fleet.publish(&hosts.iter().collect::<Vec<_>>()).await;
                let next = changes.iter_mut().map(|change| Box::pin(change.changed()));
                let _ = futures_util::future::select_all(next).await;
            }
        });
        tokio_util::task::AbortOnDropHandle::new(task)
    }
}

pub fn readiness(state: MachineState) -> Readiness {
    match state {
        MachineState::Started => Readiness::Running,
        MachineState::Starting | MachineState::Restarting => Readiness::Starting,
        MachineState::Stopped | MachineState::Created => Readiness::Stopped,
        _ => Readiness::Unavailable,
    }
}

/// One app of one Machine on one host; its HTTP port comes first.
pub async fn one_machine(setup: &Setup, services: impl FnOnce(u16) -> Vec<Service>) -> (Fleet, Host, MachineId) {
    let fleet = Fleet::start(setup).await;
    let host = Host::start("w1").await;
    let id = MachineId::from_bits(1);
    let port = free_port();
    host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, services(port));
    fleet.publish(&[&host]).await;
    (fleet, host, id)
}

pub async fn one_running(setup: &Setup, services: impl FnOnce(u16) -> Vec<Service>) -> (Fleet, Host, MachineId) {
    let (fleet, host, id) = one_machine(setup, services).await;
    host.agent.run(&id);
    fleet.publish(&[&host]).await;
    (fleet, host, id)
}

/// A thousand clients, an edge, a door and a backend in one process need their descriptors.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
