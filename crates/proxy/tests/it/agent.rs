//! The agent's side of the door's unix socket, with Machines that are backends on loopback. It keeps its state over
//! a restart of its server, as a real agent's journal would.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
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
    AgentStart, AgentStartReply, AgentStopIfIdle, Closing, DoorEdge, DoorMachine, DoorUpdate, Drained, Listening,
    MovingTo, Refusal,
};
use godwit_api::ids::{AppName, EdgeId, Epoch, HostId, MachineId};
use godwit_api::machine::{Acknowledged, MachineState};
use godwit_base::TaskGroup;
use tokio::sync::{broadcast, watch};

use crate::backend::{self, Counts, Process};

pub struct Held {
    pub machine: DoorMachine,
    process: Option<Process>,
    /// Where the backend listens.
    pub ip: IpAddr,
    pub port: u16,
    /// What the agent says of a port that refused.
    pub listening: Listening,
    /// How often it was asked that.
    pub asked: u64,
    /// `None`: never listens.
    pub listen_delay: Option<Duration>,
    pub counts: Arc<Counts>,
    pub lives: u64,
    drained: watch::Sender<Option<Drained>>,
    /// What a start is answered instead of being done.
    pub refuse: Option<Refusal>,
    /// It is on its way to this host: starts wait until that job has ended. What they are refused with, if with
    /// anything, stands there then.
    arrival: watch::Sender<Arrival>,
    pub idle_stops: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    Over,
    UnderWay,
    TakenBack(Refusal, Epoch),
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
            .route("/door/v1/machines/{id}/listening/{port}", get(listening))
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
        self.insert(id.clone(), app, epoch, port, services);
        self.tell(&id);
    }

    fn insert(&self, id: MachineId, app: &AppName, epoch: Epoch, port: u16, services: Vec<Service>) {
        let machine = DoorMachine {
            machine: id.clone(),
            app: app.clone(),
            epoch,
            state: MachineState::Stopped,
            private_ip: std::net::Ipv6Addr::LOCALHOST,
            private_ip4: None,
            services,
            closing: None,
            moving: None,
        };
        let held = Held {
            machine,
            process: None,
            ip: std::net::Ipv6Addr::LOCALHOST.into(),
            port,
            listening: Listening::default(),
            asked: 0,
            listen_delay: Some(Duration::ZERO),
            counts: Arc::default(),
            lives: 0,
            drained: watch::Sender::new(None),
            refuse: None,
            arrival: watch::Sender::new(Arrival::Over),
            idle_stops: 0,
        };
        self.lock().machines.insert(id, held);
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
            held.process = Some(backend::spawn(
                SocketAddr::new(held.ip, held.port),
                held.lives,
                held.listen_delay,
                held.counts.clone(),
            ));
        });
        self.set(id, MachineState::Started);
    }

    /// Stops as an API call would: the gate closes and drains, then the process ends.
    pub async fn stop(&self, id: &MachineId, drain_timeout_ms: u64) -> Drained {
        let drained = self.close(id, drain_timeout_ms, None).await;
        self.set(id, MachineState::Stopping);
        self.kill(id).await;
        self.with(id, |held| held.machine.closing = None);
        self.set(id, MachineState::Stopped);
        drained
    }

    async fn close(&self, id: &MachineId, drain_timeout_ms: u64, moving: Option<MovingTo>) -> Drained {
        let token = self.tokens.fetch_add(1, Ordering::SeqCst) + 1;
        let mut drained = self.with(id, |held| {
            held.machine.closing = Some(Closing { drain_timeout_ms, token });
            held.machine.moving = moving;
            held.drained.subscribe()
        });
        self.tell(id);
        let drained = drained.wait_for(|one| one.as_ref().is_some_and(|one| one.token == token)).await;
        drained.unwrap().clone().unwrap()
    }

    /// The source's part of a move up to the handoff: the gate closes, what is in flight ends, the process too.
    pub async fn move_out(&self, id: &MachineId, to: MovingTo, drain_timeout_ms: u64) -> Drained {
        let drained = self.close(id, drain_timeout_ms, Some(to)).await;
        self.kill(id).await;
        self.with(id, |held| held.machine.closing = None);
        self.set(id, MachineState::Stopped);
        drained
    }

    /// The source takes its move back, and runs the Machine again at `epoch`.
    pub fn take_back(&self, id: &MachineId, epoch: Epoch) {
        self.with(id, |held| {
            held.machine.moving = None;
            held.machine.closing = None;
            held.machine.epoch = epoch;
        });
        let runs = self.with(id, |held| held.process.is_some());
        if runs {
            self.tell(id);
        } else {
            self.run(id);
        }
    }

    /// The target has accepted a move and says so at its door.
    pub fn accept(&self, machine: &DoorMachine, epoch: Epoch) {
        let port = machine.services[0].internal_port;
        self.insert(machine.machine.clone(), &machine.app, epoch, port, machine.services.clone());
        self.with(&machine.machine, |held| {
            held.machine.state = MachineState::Created;
            held.arrival.send_replace(Arrival::UnderWay);
            held.lives = 100;
        });
        self.tell(&machine.machine);
    }

    /// Tells of a Machine as it is held.
    pub fn change(&self, id: &MachineId, f: impl FnOnce(&mut Held)) {
        self.with(id, f);
        self.tell(id);
    }

    /// The move's job has ended with a running process.
    pub fn arrived(&self, id: &MachineId) {
        self.run(id);
        self.with(id, |held| drop(held.arrival.send_replace(Arrival::Over)));
    }

    /// The move was taken back, and the target forgets the Machine.
    pub fn not_arriving(&self, id: &MachineId, refusal: Refusal, epoch: Epoch) {
        let held = self.lock().machines.remove(id).unwrap();
        held.arrival.send_replace(Arrival::TakenBack(refusal, epoch));
        let gone = DoorUpdate::Gone { machine: id.clone(), moved_to: None, door_addr: None, epoch };
        let _ = self.told.send(gone);
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
    pub async fn hand_over(&self, id: &MachineId, to: &HostId, door_addr: Option<String>, epoch: Epoch) {
        self.kill(id).await;
        self.lock().machines.remove(id);
        let moved_to = Some(to.clone());
        let _ = self.told.send(DoorUpdate::Gone { machine: id.clone(), moved_to, door_addr, epoch });
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
    let held = agent.lock().machines.get(&id).map(|held| held.arrival.subscribe());
    let Some(mut arrival) = held else {
        return Json(AgentStartReply::Refused { refusal: Refusal::Unknown, epoch: None });
    };
    let arrived = arrival.wait_for(|arrival| *arrival != Arrival::UnderWay).await.unwrap().clone();
    if let Arrival::TakenBack(refusal, epoch) = arrived {
        return Json(AgentStartReply::Refused { refusal, epoch: Some(epoch) });
    }
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
    let may = agent.with(&id, |held| {
        held.idle_stops += 1;
        held.machine.state == MachineState::Started && held.machine.epoch == call.epoch
    });
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

async fn listening(State(agent): Shared, Segment((id, _)): Segment<(MachineId, u16)>) -> Json<Listening> {
    Json(agent.with(&id, |held| {
        held.asked += 1;
        held.listening.clone()
    }))
}

async fn drained(
    State(agent): Shared,
    Segment(id): Segment<MachineId>,
    Json(drained): Json<Drained>,
) -> Json<Acknowledged> {
    agent.with(&id, |held| held.drained.send_replace(Some(drained)));
    Json(Acknowledged { ok: true })
}
