//! An agent as control sees one: it joins, serves the host API over HTTP, pulls its placements by a watch, journals
//! (in memory) and publishes facts. It runs nothing. Its knobs make it misbehave.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use godwit_api::endpoints::FleetJoin;
use godwit_api::event::{EventDetail, ExitEvent, MachineEvent};
use godwit_api::fact::{FactStamp, HostFact, MachineFact, Measured, RefusedUpdate, Resources};
use godwit_api::fleet::{Join, JoinRole};
use godwit_api::host::{LogLine, PlaceReply, RunRestart, RunStart, RunStop};
use godwit_api::machine::{
    Acknowledged, CheckStatus, ExecAnswer, ExecMachine, MachineState, ProcessStat, SignalMachine, StartAnswer,
};
use godwit_api::migration::{MigrationFact, MovePart, MoveRole};
use godwit_api::route::ClosedPort;
use godwit_api::row::Placement;
use godwit_api::ticket::{CancelAnswer, SignedTicket, Ticket};
use godwit_api::volume::{HydrationFact, VolumeFact};
use godwit_api::{ApiError, Epoch, HostId, MachineId, keys};
use godwit_base::TaskGroup;
use godwit_base::clock;
use godwit_base::http::client::Client;
use godwit_base::http::server::serve_tcp;
use godwit_base::http::{Failure, bearer};
use godwit_store::{RemoteStore, Store, Txn, Update, follow, put_json};

#[derive(Debug, Clone, Default)]
pub struct Knobs {
    /// Refuses every new placement, with this reason.
    pub refuse: Option<String>,
    /// Journals, and then breaks the connection instead of answering.
    pub lose_answers: bool,
    /// Breaks every connection before anything happens, and neither pulls nor publishes.
    pub away: bool,
    /// Takes each new version of what it holds, and drops it later for this reason.
    pub drop_updates: Option<String>,
    /// Holds what is placed, and tells that it has failed for this reason.
    pub fail: Option<String>,
    /// Never answers a placement that was put, and does nothing with it.
    pub hang: bool,
    /// What a source answers to a cancel; nothing: it breaks the connection.
    pub cancel: Option<CancelAnswer>,
}

/// What its machine has, and what of that is in use.
pub const MEASURED: Measured = Measured {
    whole: Resources { cpu_millis: 4_000, memory_mb: 16_000, disk_mb: 200_000 },
    used: Resources { cpu_millis: 500, memory_mb: 1_500, disk_mb: 70_000 },
};

#[derive(Debug, Clone)]
pub struct Held {
    pub placement: Placement,
    pub state: MachineState,
    pub refused: Option<String>,
    pub checks: Vec<CheckStatus>,
    pub closed_ports: Vec<ClosedPort>,
    pub updated_at_ms: u64,
    /// Told of it in place of the placement's, once a move has changed it.
    pub epoch: Epoch,
    pub held: bool,
    pub migration: Option<MigrationFact>,
    pub hydration: Option<HydrationFact>,
    pub hydrated: Option<HydrationFact>,
    pub lent_to: Option<HostId>,
    pub refused_update: Option<RefusedUpdate>,
    /// Told in place of the one event that its state makes.
    pub events: Vec<MachineEvent>,
}

impl Held {
    fn new(placement: &Placement, state: MachineState, refused: Option<String>) -> Self {
        Self {
            placement: placement.clone(),
            state,
            held: refused.is_none() && state != MachineState::Destroyed,
            refused,
            checks: Vec::new(),
            closed_ports: Vec::new(),
            updated_at_ms: clock::unix_ms(),
            epoch: placement.epoch,
            migration: None,
            hydration: None,
            hydrated: None,
            lent_to: None,
            refused_update: None,
            events: Vec::new(),
        }
    }

    /// Tells of its part in a move.
    pub fn plays(&mut self, ticket: &Ticket, role: MoveRole, part: MovePart, at_ms: &[(&str, u64)]) {
        let mut told = self.migration.take().filter(|told| told.id == ticket.migration);
        let told = told.get_or_insert_with(|| MigrationFact {
            id: ticket.migration.clone(),
            role,
            part,
            step: None,
            reason: None,
            was_running: false,
            at_ms: BTreeMap::new(),
            precopy: None,
        });
        told.part = part;
        told.at_ms.extend(at_ms.iter().map(|(key, ms)| ((*key).to_owned(), *ms)));
        self.migration = Some(told.clone());
        self.updated_at_ms = clock::unix_ms();
    }
}

#[derive(Default)]
pub struct Journal {
    pub held: BTreeMap<MachineId, Held>,
    /// Every epoch that was ever accepted here.
    pub accepted: Vec<(MachineId, Epoch)>,
    /// Placements put by a call, also repeated ones.
    pub puts: u64,
    pub calls: Vec<String>,
    applied_revision: u64,
    seq: u64,
}

struct Shared {
    id: HostId,
    capacity: Resources,
    control_key: String,
    incarnation: String,
    store: RemoteStore,
    knobs: Mutex<Knobs>,
    journal: Mutex<Journal>,
    publish: tokio::sync::Notify,
}

pub struct Agent {
    pub id: String,
    pub key: String,
    pub incarnation: String,
    pub agent_url: String,
    pub door_addr: String,
    shared: Arc<Shared>,
    group: TaskGroup,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.group.token().cancel();
    }
}

impl Agent {
    pub async fn start(control: &str, join_token: &str, name: &str, region: &str, capacity: Resources) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent_url = format!("http://{}", listener.local_addr().unwrap());
        let door_addr = door.local_addr().unwrap().to_string();
        let incarnation = format!("{name}-{}", godwit_base::secret::random_u64());
        let join = Join {
            role: JoinRole::Host,
            name: name.into(),
            region: region.into(),
            incarnation: incarnation.clone(),
            agent_url: agent_url.clone(),
            door_addr: door_addr.clone(),
        };
        let client = Client::tcp(control, Some(join_token.into()));
        let joined = client.call::<FleetJoin>(&[], &Default::default(), &join).await.unwrap();
        let shared = Arc::new(Shared {
            id: joined.id.parse().unwrap(),
            capacity,
            control_key: joined.control_key,
            incarnation: incarnation.clone(),
            store: RemoteStore::new(control, &joined.key),
            knobs: Mutex::default(),
            journal: Mutex::default(),
            publish: tokio::sync::Notify::new(),
        });
        let group = TaskGroup::new();
        group.spawn(serve_tcp(listener, router(shared.clone()), group.clone()));
        group.spawn_cancellable(pull(shared.clone()));
        group.spawn_cancellable(publish(shared.clone()));
        group.spawn_cancellable(async move {
            while let Ok(connection) = door.accept().await {
                drop(connection);
            }
        });
        Self { id: joined.id, key: joined.key, incarnation, agent_url, door_addr, shared, group }
    }

    pub fn turn(&self, edit: impl FnOnce(&mut Knobs)) {
        edit(&mut self.shared.knobs.lock().unwrap());
        self.shared.publish.notify_one();
    }

    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.shared.journal.lock().unwrap()
    }

    /// Changes what it holds of a Machine, and publishes that.
    pub fn becomes(&self, machine: &str, edit: impl FnOnce(&mut Held)) {
        // A volume is held under its number.
        let machine = machine.strip_prefix("vol_").unwrap_or(machine);
        let machine: MachineId = machine.parse().unwrap();
        edit(self.journal().held.get_mut(&machine).expect("the agent holds it"));
        self.shared.publish.notify_one();
    }

    /// What it holds comes to it by a move, not by a placement.
    pub fn receives(&self, placement: &Placement, edit: impl FnOnce(&mut Held)) {
        let mut journal = self.journal();
        journal.hold(placement, MachineState::Created, None);
        let held = journal.held.get_mut(&placement.machine).unwrap();
        held.held = false;
        edit(held);
        drop(journal);
        self.shared.publish.notify_one();
    }

    /// Its fact goes: nothing is left of it.
    pub async fn forgets(&self, machine: &str) {
        let machine: MachineId = machine.parse().unwrap();
        self.journal().held.remove(&machine);
        let key = keys::machine_fact(&self.shared.id, &machine);
        self.shared.store.txn(Txn::of([godwit_store::Op::delete(key)])).await.unwrap();
    }

    /// The tickets for it that stand in the store.
    pub async fn tickets(&self) -> Vec<SignedTicket> {
        use godwit_store::StoreExt;
        let rows = self.shared.store.list(&keys::tickets_of(&self.shared.id)).await.unwrap().rows;
        rows.iter().map(|row| row.json().unwrap().value).collect()
    }

    /// The key by which control names itself here, and by which it signs tickets.
    pub fn control_key(&self) -> &str {
        &self.shared.control_key
    }
}

impl Shared {
    fn knobs(&self) -> Knobs {
        self.knobs.lock().unwrap().clone()
    }

    /// What an agent does with a placement, by call or by pull: once for each epoch and version.
    fn apply(&self, placement: &Placement) -> PlaceReply {
        let refuse = self.knobs().refuse;
        let mut journal = self.journal.lock().unwrap();
        let known = journal.held.get(&placement.machine).cloned();
        // A higher epoch is held, or came and went here: an older row says nothing.
        if known.as_ref().is_some_and(|held| held.epoch > placement.epoch) {
            return PlaceReply::Accepted;
        }
        let known = known.filter(|held| held.placement.epoch >= placement.epoch);
        if placement.destroy {
            let state = MachineState::Destroyed;
            journal.hold(placement, state, None);
            self.publish.notify_one();
            return PlaceReply::Accepted;
        }
        match known {
            Some(held) if held.refused.is_some() && held.placement.epoch == placement.epoch => {
                return PlaceReply::Refused { reason: held.refused.unwrap() };
            }
            Some(held) if held.placement == *placement => return PlaceReply::Accepted,
            Some(held) if held.placement.instance_id == placement.instance_id => return PlaceReply::Accepted,
            Some(held) if held.refused.is_none() && refuse.is_some() => {
                // A new version of what runs here is refused; the old one goes on.
                drop(held);
                return PlaceReply::Refused { reason: refuse.unwrap() };
            }
            _ => {}
        }
        if let Some(reason) = refuse {
            journal.hold(placement, MachineState::Failed, Some(reason.clone()));
            self.publish.notify_one();
            return PlaceReply::Refused { reason };
        }
        if let (Some(reason), Some(_)) = (self.knobs().drop_updates, journal.held.get(&placement.machine)) {
            let instance_id = placement.instance_id.clone();
            if let Some(held) = journal.held.get_mut(&placement.machine) {
                held.refused_update = Some(RefusedUpdate { instance_id, reason });
            }
            self.publish.notify_one();
            return PlaceReply::Accepted;
        }
        journal.accepted.push((placement.machine.clone(), placement.epoch));
        let state = if placement.launch { MachineState::Started } else { MachineState::Stopped };
        journal.hold(placement, state, None);
        if let (Some(reason), Some(held)) = (self.knobs().fail, journal.held.get_mut(&placement.machine)) {
            held.state = MachineState::Failed;
            held.events = vec![event("launch", "failed", &reason, None)];
        }
        self.publish.notify_one();
        PlaceReply::Accepted
    }

    fn fact(&self, held: &Held, seq: u64) -> MachineFact {
        MachineFact {
            machine: held.placement.machine.clone(),
            app: held.placement.app.clone(),
            host: self.id.clone(),
            stamp: FactStamp { incarnation: self.incarnation.clone(), seq },
            epoch: held.epoch,
            instance_id: held.placement.instance_id.clone(),
            state: held.state,
            updated_at_ms: held.updated_at_ms,
            started_at_ms: None,
            restart_count: 0,
            last_exit: None,
            events: match held.events.is_empty() {
                false => held.events.clone(),
                true => vec![MachineEvent {
                    id: format!("{}-{}", held.state.as_str(), held.updated_at_ms),
                    kind: "start".into(),
                    status: held.state.as_str().into(),
                    source: "flyd".into(),
                    timestamp: held.updated_at_ms,
                    request: None,
                }],
            },
            checks: held.checks.clone(),
            unreachable: Vec::new(),
            closed_ports: held.closed_ports.clone(),
            refused: held.refused.clone(),
            refused_update: held.refused_update.clone(),
            held: held.held,
            proof: held.placement.proof.clone(),
            migration: held.migration.clone(),
            volume: held.placement.volume.as_ref().map(|volume| VolumeFact {
                id: volume.id.clone(),
                size_bytes: volume.size_bytes,
                allocated_bytes: 8192,
                hydration: held.hydration.clone(),
                hydrated: held.hydrated.clone(),
                lent_to: held.lent_to.clone(),
            }),
        }
    }
}

/// An event of a Machine, as hosts tell it.
pub fn event(kind: &str, status: &str, reason: &str, exit_event: Option<ExitEvent>) -> MachineEvent {
    MachineEvent {
        id: format!("e{}", godwit_base::secret::random_u64()),
        kind: kind.into(),
        status: status.into(),
        source: "flyd".into(),
        timestamp: clock::unix_ms(),
        request: Some(EventDetail { exit_event, reason: Some(reason.into()), ..EventDetail::default() }),
    }
}

impl Journal {
    fn hold(&mut self, placement: &Placement, state: MachineState, refused: Option<String>) {
        let held = Held::new(placement, state, refused);
        self.held.insert(placement.machine.clone(), held);
    }
}

/// Pull-and-converge: the row is the truth, a call only hastens it.
async fn pull(shared: Arc<Shared>) {
    let store: Arc<dyn Store> = Arc::new(shared.store.clone());
    let mut following = follow(store, keys::placements_of(&shared.id));
    let mut rows: BTreeMap<String, Placement> = BTreeMap::new();
    loop {
        let Ok(update) = following.next().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let revision = match update {
            Update::Snapshot { rows: all, revision } => {
                rows = all.iter().map(|row| (row.key.clone(), row.json().unwrap().value)).collect();
                revision
            }
            Update::Changes(batch) => {
                for event in &batch.events {
                    match event.json().unwrap() {
                        Some(placement) => drop(rows.insert(event.key.clone(), placement)),
                        None => drop(rows.remove(&event.key)),
                    }
                }
                batch.revision
            }
        };
        while shared.knobs().away || shared.knobs().hang {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for placement in rows.values() {
            shared.apply(placement);
        }
        let behind = {
            let mut journal = shared.journal.lock().unwrap();
            std::mem::replace(&mut journal.applied_revision, revision) < revision
        };
        if behind {
            shared.publish.notify_one();
        }
    }
}

async fn publish(shared: Arc<Shared>) {
    loop {
        let txn = {
            let mut journal = shared.journal.lock().unwrap();
            journal.seq += 1;
            let seq = journal.seq;
            let running = journal.held.values().filter(|held| held.state == MachineState::Started);
            let memory_mb = running.map(|held| u64::from(held.placement.config.guest.memory_mb)).sum();
            let standing = journal.held.values().filter(|held| {
                held.refused.is_none() && held.state != MachineState::Destroyed && (held.held || held.lent_to.is_some())
            });
            let volumes = standing.filter_map(|held| held.placement.volume.as_ref());
            let disk_mb = volumes.map(|volume| volume.size_bytes >> 20).sum();
            let host = HostFact {
                host: shared.id.clone(),
                stamp: FactStamp { incarnation: shared.incarnation.clone(), seq },
                boot_id: "boot".into(),
                agent_version: "test".into(),
                capacity: shared.capacity,
                used: Resources { memory_mb, disk_mb, ..Resources::default() },
                measured: Some(MEASURED),
                applied_revision: journal.applied_revision,
                machines: journal.held.len() as u64,
                drivers: vec!["none".into()],
                published_at_ms: clock::unix_ms(),
            };
            let mut txn = Txn::of([put_json(keys::host_fact(&shared.id), &host).unwrap()]);
            for held in journal.held.values() {
                let key = keys::machine_fact(&shared.id, &held.placement.machine);
                txn.then.push(put_json(key, &shared.fact(held, seq)).unwrap());
            }
            txn
        };
        while shared.knobs().away {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match shared.store.txn(txn).await {
            Ok(_) => shared.publish.notified().await,
            // Control is away: facts wait.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/host/v1/placements/{machine}", put(place))
        .route("/host/v1/machines/{machine}/held", get(held))
        .route("/host/v1/machines/{machine}/start", post(start))
        .route("/host/v1/machines/{machine}/stop", post(stop))
        .route("/host/v1/machines/{machine}/restart", post(restart))
        .route("/host/v1/machines/{machine}/signal", post(signal))
        .route("/host/v1/machines/{machine}/exec", post(exec))
        .route("/host/v1/machines/{machine}/ps", get(ps))
        .route("/host/v1/machines/{machine}/logs", get(logs))
        .route("/host/v1/pull", post(hint))
        .route("/host/v1/moves/cancel", post(cancel))
        .with_state(shared)
}

/// Ends the connection without an answer. It does not go through the panic hook, so nothing is printed.
fn break_off() -> ! {
    std::panic::resume_unwind(Box::new("the agent breaks off"))
}

fn entry(shared: &Shared, headers: &axum::http::HeaderMap, call: &str) {
    if shared.knobs().away {
        break_off();
    }
    assert_eq!(bearer(headers), Some(shared.control_key.as_str()), "control names itself by its own key");
    shared.journal.lock().unwrap().calls.push(call.to_owned());
}

async fn healthz(State(shared): State<Arc<Shared>>) -> &'static str {
    if shared.knobs().away {
        break_off();
    }
    "ok\n"
}

async fn hint(State(shared): State<Arc<Shared>>, headers: axum::http::HeaderMap) -> Json<Acknowledged> {
    entry(&shared, &headers, "pull");
    Json(Acknowledged { ok: true })
}

async fn cancel(
    State(shared): State<Arc<Shared>>,
    headers: axum::http::HeaderMap,
    Json(signed): Json<SignedTicket>,
) -> Json<CancelAnswer> {
    entry(&shared, &headers, "cancel");
    let ticket = godwit_base::ticket::open_as_source(&signed, &shared.id, &shared.control_key).unwrap();
    let Some(answer) = shared.knobs().cancel else { break_off() };
    if answer == CancelAnswer::Cancelled {
        let mut journal = shared.journal.lock().unwrap();
        let held = journal.held.get_mut(&ticket.lead.machine).unwrap();
        held.plays(&ticket, MoveRole::Source, MovePart::Refused, &[]);
        shared.publish.notify_one();
    }
    Json(answer)
}

async fn place(
    State(shared): State<Arc<Shared>>,
    headers: axum::http::HeaderMap,
    Json(placement): Json<Placement>,
) -> Json<PlaceReply> {
    entry(&shared, &headers, "place");
    if shared.knobs().hang {
        std::future::pending::<()>().await;
    }
    shared.journal.lock().unwrap().puts += 1;
    let reply = shared.apply(&placement);
    if shared.knobs().lose_answers {
        break_off();
    }
    Json(reply)
}

/// Changes the state of a Machine that is held at this epoch; the answer is the one before.
fn to_state(shared: &Shared, machine: &str, epoch: Epoch, state: MachineState) -> Result<MachineState, ApiError> {
    let mut journal = shared.journal.lock().unwrap();
    let held = machine.parse().ok().and_then(|machine: MachineId| journal.held.get_mut(&machine));
    let held = held.ok_or_else(|| ApiError::not_found("no such Machine here"))?;
    if held.placement.epoch != epoch {
        return Err(ApiError::conflict(format!("the Machine is at epoch {}", held.placement.epoch)));
    }
    shared.publish.notify_one();
    held.updated_at_ms = clock::unix_ms();
    Ok(std::mem::replace(&mut held.state, state))
}

async fn start(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
    headers: axum::http::HeaderMap,
    Json(run): Json<RunStart>,
) -> Result<Json<StartAnswer>, Failure> {
    entry(&shared, &headers, "start");
    let before = to_state(&shared, &machine, run.epoch, MachineState::Started)?;
    Ok(Json(StartAnswer { previous_state: before.as_str().into(), migrated: false, new_host: String::new() }))
}

async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
    headers: axum::http::HeaderMap,
    Json(run): Json<RunStop>,
) -> Result<Json<Acknowledged>, Failure> {
    entry(&shared, &headers, &format!("stop {:?} {:?}", run.signal, run.timeout.map(|timeout| timeout.as_millis())));
    to_state(&shared, &machine, run.epoch, MachineState::Stopped)?;
    Ok(Json(Acknowledged { ok: true }))
}

async fn restart(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<String>,
    headers: axum::http::HeaderMap,
    Json(run): Json<RunRestart>,
) -> Result<Json<Acknowledged>, Failure> {
    entry(&shared, &headers, "restart");
    to_state(&shared, &machine, run.epoch, MachineState::Started)?;
    Ok(Json(Acknowledged { ok: true }))
}

async fn signal(
    State(shared): State<Arc<Shared>>,
    headers: axum::http::HeaderMap,
    Json(run): Json<SignalMachine>,
) -> Json<Acknowledged> {
    entry(&shared, &headers, &format!("signal {}", run.signal));
    Json(Acknowledged { ok: true })
}

async fn exec(
    State(shared): State<Arc<Shared>>,
    headers: axum::http::HeaderMap,
    Json(run): Json<ExecMachine>,
) -> Json<ExecAnswer> {
    entry(&shared, &headers, "exec");
    let said = run.cmd.unwrap_or_else(|| run.command.join(" "));
    Json(ExecAnswer { exit_code: 3, exit_signal: None, stdout: said, ..ExecAnswer::default() })
}

/// What it holds, in the words of the placement that it was given, and the volumes that the Machine mounts.
async fn held(
    State(shared): State<Arc<Shared>>,
    Path(machine): Path<MachineId>,
) -> Result<Json<godwit_api::host::Held>, Failure> {
    let journal = shared.journal.lock().unwrap();
    let found = journal.held.get(&machine).filter(|held| held.held);
    let found = found.ok_or_else(|| ApiError::not_found(format!("Machine {machine} is not on this host")))?;
    let told = |held: &Held| Placement { epoch: held.epoch, ..held.placement.clone() };
    let mounts = found.placement.config.mounts.iter();
    let volumes = mounts.filter_map(|mount| {
        let id: godwit_api::VolumeId = mount.volume.parse().ok()?;
        journal.held.get(&id.carrier()).map(told)
    });
    Ok(Json(godwit_api::host::Held { placement: told(found), busy: false, volumes: volumes.collect() }))
}

async fn ps(State(shared): State<Arc<Shared>>, headers: axum::http::HeaderMap) -> Json<Vec<ProcessStat>> {
    entry(&shared, &headers, "ps");
    let process = |pid, rss| ProcessStat { pid, rss, command: format!("p{pid}"), ..ProcessStat::default() };
    Json(vec![process(1, 20), process(2, 10)])
}

async fn logs(State(shared): State<Arc<Shared>>, headers: axum::http::HeaderMap) -> Response {
    entry(&shared, &headers, "logs");
    let line = |number: u64| LogLine {
        timestamp: clock::rfc3339(number),
        stream: "stdout".into(),
        message: format!("line {number}"),
        partial: false,
    };
    let text: String = (0..3).map(|number| serde_json::to_string(&line(number)).unwrap() + "\n").collect();
    text.into_response()
}
