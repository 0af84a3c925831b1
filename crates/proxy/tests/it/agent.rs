//! The agent's side of the door's unix socket, with Machines that are backends on loopback. It keeps its state over
//! a restart of its server, as a real agent's journal would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Segment, State};
use axum::routing::{get, post};
use godwit_api::config::Service;
use godwit_api::door::{
    AgentStart, AgentStartReply, AgentStopIfIdle, Closing, DoorEdge, DoorMachine, DoorUpdate, Drained, Refusal,
};
use godwit_api::ids::{AppName, EdgeId, Epoch, HostId, MachineId};
use godwit_api::machine::{Acknowledged, MachineState};
use godwit_base::TaskGroup;
use tokio::sync::{broadcast, watch};

use crate::backend::{self, Counts, Process};

pub struct Held {
    pub machine: DoorMachine,
    process: Option<Process>,
    /// The port that the backend listens on.
    port: u16,
    /// `None`: never listens.
    pub listen_delay: Option<Duration>,
    pub counts: Arc<Counts>,
    pub lives: u64,
    drained: watch::Sender<Option<Drained>>,
    /// What a start is answered instead of being done.
    pub refuse: Option<Refusal>,
}

pub struct Agent {
    pub socket: PathBuf,
    inner: Mutex<Inner>,
    told: broadcast::Sender<DoorUpdate>,
    pub starts: AtomicU64,
    tokens: AtomicU64,
    pub changed: watch::Sender<u64>,
    server: Mutex<Option<TaskGroup>>,
}

struct Inner {
    machines: BTreeMap<MachineId, Held>,
    edges: Vec<DoorEdge>,
}

type Shared = State<Arc<Agent>>;

impl Agent {
    pub fn new(folder: &Path) -> Arc<Self> {
        Arc::new(Self {
            socket: folder.join("agent.sock"),
            inner: Mutex::new(Inner { machines: BTreeMap::new(), edges: Vec::new() }),
            told: broadcast::Sender::new(4096),
            starts: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            server: Mutex::new(None),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Begins to serve the socket.
    pub fn up(self: &Arc<Self>) {
        let listener = godwit_base::http::server::bind_unix(&self.socket).unwrap();
        let router = Router::new()
            .route("/door/v1/machines", get(stream))
            .route("/door/v1/machines/{id}/start", post(start))
            .route("/door/v1/machines/{id}/stop-if-idle", post(stop_if_idle))
            .route("/door/v1/machines/{id}/drained", post(drained))
            .with_state(self.clone());
        let group = TaskGroup::new();
        group.spawn_cancellable(godwit_base::http::server::serve_unix(listener, router, group.clone()));
        *self.server.lock().unwrap() = Some(group);
        self.tell_all();
    }

    /// As if killed: the socket's file stays, nobody answers.
    pub async fn down(&self) {
        let group = self.server.lock().unwrap().take();
        if let Some(group) = group {
            // Ends the streams too: they look at `told`, whose next word tells them.
            group.drain(Duration::from_secs(5)).await;
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    pub fn admit_edge(&self, id: &str, key: &str) {
        let edge = DoorEdge { id: EdgeId::parse(id).unwrap(), key_sha256: godwit_base::secret::sha256_hex(key) };
        let edges = {
            let mut inner = self.lock();
            inner.edges.push(edge);
            inner.edges.clone()
        };
        let _ = self.told.send(DoorUpdate::Edges { edges });
    }

    pub fn add(&self, id: MachineId, app: &AppName, epoch: Epoch, port: u16, services: Vec<Service>) {
        let machine = DoorMachine {
            machine: id.clone(),
            app: app.clone(),
            epoch,
            state: MachineState::Stopped,
            private_ip: std::net::Ipv6Addr::LOCALHOST,
            services,
            closing: None,
        };
        let held = Held {
            machine,
            process: None,
            port,
            listen_delay: Some(Duration::ZERO),
            counts: Arc::default(),
            lives: 0,
            drained: watch::Sender::new(None),
            refuse: None,
        };
        self.lock().machines.insert(id.clone(), held);
        self.tell(&id);
    }

    /// Changes a Machine without telling anybody.
    pub fn with<T>(&self, id: &MachineId, f: impl FnOnce(&mut Held) -> T) -> T {
        f(self.lock().machines.get_mut(id).unwrap())
    }

    pub fn machines(&self) -> Vec<DoorMachine> {
        self.lock().machines.values().map(|held| held.machine.clone()).collect()
    }

    fn tell(&self, id: &MachineId) {
        let machine = self.with(id, |held| held.machine.clone());
        let _ = self.told.send(DoorUpdate::Machine { machine });
        self.changed.send_modify(|count| *count += 1);
    }

    fn tell_all(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn set(&self, id: &MachineId, state: MachineState) {
        self.with(id, |held| held.machine.state = state);
        self.tell(id);
    }

    /// Starts the process as an API call would.
    pub fn run(&self, id: &MachineId) {
        self.set(id, MachineState::Starting);
        self.with(id, |held| {
            held.lives += 1;
            held.process = Some(backend::spawn(held.port, held.lives, held.listen_delay, held.counts.clone()));
        });
        self.set(id, MachineState::Started);
    }

    /// Stops as an API call would: the gate closes and drains, then the process ends.
    pub async fn stop(&self, id: &MachineId, drain_timeout_ms: u64) -> Drained {
        let token = self.tokens.fetch_add(1, Ordering::SeqCst) + 1;
        let mut drained = self.with(id, |held| {
            held.machine.closing = Some(Closing { drain_timeout_ms, token });
            held.drained.subscribe()
        });
        self.tell(id);
        let drained = drained.wait_for(|one| one.as_ref().is_some_and(|one| one.token == token)).await;
        let drained = drained.unwrap().clone().unwrap();
        self.set(id, MachineState::Stopping);
        self.kill(id).await;
        self.with(id, |held| held.machine.closing = None);
        self.set(id, MachineState::Stopped);
        drained
    }

    async fn kill(&self, id: &MachineId) {
        if let Some(process) = self.with(id, |held| held.process.take()) {
            process.kill().await;
        }
    }

    /// The process ends by itself.
    pub async fn crash(&self, id: &MachineId) {
        self.kill(id).await;
        self.set(id, MachineState::Stopped);
    }

    /// The Machine went to another host.
    pub async fn hand_over(&self, id: &MachineId, to: &HostId, epoch: Epoch) {
        self.kill(id).await;
        self.lock().machines.remove(id);
        let _ = self.told.send(DoorUpdate::Gone { machine: id.clone(), moved_to: Some(to.clone()), epoch });
        self.changed.send_modify(|count| *count += 1);
    }
}

async fn stream(State(agent): Shared) -> Body {
    let mut told = agent.told.subscribe();
    let snapshot = {
        let inner = agent.lock();
        let machines = inner.machines.values().map(|held| held.machine.clone()).collect();
        DoorUpdate::Snapshot { machines, edges: inner.edges.clone() }
    };
    let stopping = agent.server.lock().unwrap().as_ref().map(TaskGroup::token).unwrap_or_default();
    let (lines, received) = tokio::sync::mpsc::channel::<DoorUpdate>(64);
    tokio::spawn(async move {
        let mut next = Some(snapshot);
        loop {
            let update = match next.take() {
                Some(update) => update,
                None => tokio::select! {
                    update = told.recv() => match update { Ok(update) => update, Err(_) => return },
                    () = tokio::time::sleep(Duration::from_millis(500)) => DoorUpdate::Tick,
                    () = stopping.cancelled() => return,
                },
            };
            if lines.send(update).await.is_err() {
                return;
            }
        }
    });
    Body::from_stream(futures_util::stream::unfold(received, |mut received| async {
        let update = received.recv().await?;
        let mut line = serde_json::to_vec(&update).unwrap();
        line.push(b'\n');
        Some((Ok::<_, std::io::Error>(line), received))
    }))
}

async fn start(
    State(agent): Shared,
    Segment(id): Segment<MachineId>,
    Json(call): Json<AgentStart>,
) -> Json<AgentStartReply> {
    agent.starts.fetch_add(1, Ordering::SeqCst);
    let look = agent.with(&id, |held| (held.machine.state, held.machine.epoch, held.refuse.clone()));
    let refused = |refusal, epoch| Json(AgentStartReply::Refused { refusal, epoch: Some(epoch) });
    match look {
        (_, epoch, Some(refusal)) => refused(refusal, epoch),
        (MachineState::Stopping, epoch, _) => refused(Refusal::Busy, epoch),
        (MachineState::Started, ..) => Json(AgentStartReply::Started),
        (_, epoch, _) => {
            assert!(call.epoch <= epoch);
            agent.run(&id);
            Json(AgentStartReply::Started)
        }
    }
}

async fn stop_if_idle(
    State(agent): Shared,
    Segment(id): Segment<MachineId>,
    Json(call): Json<AgentStopIfIdle>,
) -> Json<Acknowledged> {
    let may = agent.with(&id, |held| held.machine.state == MachineState::Started && held.machine.epoch == call.epoch);
    if may {
        agent.set(&id, MachineState::Stopping);
        // The answer goes out before the process is down, as with a real one.
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            agent.kill(&id).await;
            agent.set(&id, MachineState::Stopped);
        });
    }
    Json(Acknowledged { ok: may })
}

async fn drained(
    State(agent): Shared,
    Segment(id): Segment<MachineId>,
    Json(drained): Json<Drained>,
) -> Json<Acknowledged> {
    agent.with(&id, |held| held.drained.send_replace(Some(drained)));
    Json(Acknowledged { ok: true })
}
