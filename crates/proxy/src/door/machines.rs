//! What the agent told: this host's Machines with their gates, those that went away, and the edges that may call.
//!
//! Each Machine has one lock, held for a few lines and never across an await. It must not know how a Machine is
//! reached or who asks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_api::door::{Closing, DoorEdge, DoorMachine, DoorUpdate, Refusal};
use godwit_api::ids::{EdgeId, Epoch, HostId, MachineId};
use godwit_api::machine::MachineState;
use godwit_base::dial::Addresses;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answers::Answers;
use super::gate::{Admission, Closed, Gate, Kind};
use super::upstream::Pools;

/// Machines that left, remembered to tell edges where to.
const MAX_GONE: usize = 10_000;
/// An agent that said nothing for so long is away; what it told is served on.
pub const AGENT_SILENCE: Duration = Duration::from_secs(3);

/// One Machine of this host.
pub struct Entry {
    pub id: MachineId,
    inner: Mutex<Inner>,
    /// Counts the changes that the agent told.
    changes: watch::Sender<u64>,
    /// One start call to the agent at a time.
    pub starting: tokio::sync::Mutex<()>,
    pub pools: Pools,
    pub answers: Answers,
}

struct Inner {
    machine: DoorMachine,
    /// The agent answered a start before its stream told of it.
    ran_by_reply: bool,
    gate: Gate,
    /// Counts the times that it was told to stop: an end without one is a crash.
    stops: u64,
    /// Fires when what is in flight is cut off.
    cut: CancellationToken,
}

/// A Machine as a start call sees it.
pub struct View {
    pub epoch: Epoch,
    pub state: MachineState,
    pub running: bool,
    pub closed: Option<Closed>,
    pub stops: u64,
    /// It is on its way to another host.
    pub moving: Option<Refused>,
}

/// Requests and tunnels in flight, by Machine and port.
pub type Counts = BTreeMap<String, BTreeMap<u16, (u32, u32)>>;

/// A start call under way: it keeps idle stops away until it is dropped.
pub struct Starting {
    entry: Arc<Entry>,
    base: Instant,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.entry.lock().gate.expected(elapsed_ms(self.base));
    }
}

/// A request or connection that is let in. Dropping it gives its place back.
pub struct Admitted {
    pub entry: Arc<Entry>,
    pub to: Addresses,
    pub port: u16,
    pub load: u32,
    /// The port speaks HTTP/2 without TLS.
    pub speaks_h2: bool,
    pub cut: CancellationToken,
    kind: Kind,
    base: Instant,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let now_ms = elapsed_ms(self.base);
        let mut inner = self.entry.lock();
        inner.gate.leave(self.port, self.kind, now_ms);
        let closed = inner.gate.closed().is_some();
        drop(inner);
        if closed {
            // A closing waits for the last one to leave.
            self.entry.changes.send_modify(|count| *count += 1);
        }
    }
}

/// Why somebody was not let in.
#[derive(Debug, Clone)]
pub struct Refused {
    pub refusal: Refusal,
    pub epoch: Option<Epoch>,
    pub load: u32,
}

impl Refused {
    pub fn of(refusal: Refusal, epoch: Option<Epoch>) -> Self {
        Self { refusal, epoch, load: 0 }
    }
}

/// Work that an update leaves to be done: follow this closing to its end.
pub struct ToClose {
    pub entry: Arc<Entry>,
    pub closing: Closing,
}

struct Gone {
    moved_to: Option<HostId>,
    door_addr: Option<String>,
    epoch: Epoch,
}

pub struct Machines {
    base: Instant,
    /// By id as text, so that a header's value finds it without being copied.
    table: RwLock<HashMap<String, Arc<Entry>>>,
    gone: Mutex<(HashMap<String, Gone>, VecDeque<String>)>,
    edges: RwLock<Arc<Vec<DoorEdge>>>,
    heard: Mutex<Option<Instant>>,
    /// A new process has taken over: nothing more is admitted here.
    handed: AtomicBool,
    /// Counts all changes that should be kept on disk.
    pub revision: watch::Sender<u64>,
}

impl Default for Machines {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            table: RwLock::default(),
            gone: Mutex::default(),
            edges: RwLock::default(),
            heard: Mutex::new(None),
            handed: AtomicBool::new(false),
            revision: watch::Sender::new(0),
        }
    }
}

fn elapsed_ms(base: Instant) -> u64 {
    u64::try_from(base.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What whoever comes for a Machine that is on its way to another host is told.
fn moving(machine: &DoorMachine) -> Option<Refused> {
    let to = machine.moving.as_ref()?;
    let refusal = Refusal::Moving { host: to.host.clone(), door_addr: Some(to.door_addr.clone()) };
    Some(Refused::of(refusal, Some(to.epoch)))
}

fn addresses(machine: &DoorMachine) -> Addresses {
    Addresses { v6: machine.private_ip, v4: machine.private_ip4 }
}

fn is_running(state: MachineState) -> bool {
    state == MachineState::Started
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counters and plain values: a panic in between leaves nothing half-written that matters.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn view(&self) -> View {
        let inner = self.lock();
        View {
            epoch: inner.machine.epoch,
            state: inner.machine.state,
            running: is_running(inner.machine.state) || inner.ran_by_reply,
            closed: inner.gate.closed(),
            stops: inner.stops,
            moving: moving(&inner.machine),
        }
    }

    /// The Machine is on its way to another host.
    pub fn moving(&self) -> Option<Refused> {
        moving(&self.lock().machine)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn addresses(&self) -> Addresses {
        addresses(&self.lock().machine)
    }

    pub fn total(&self) -> u32 {
        self.lock().gate.total()
    }

    /// What a drain waits for. Before a stop that is all that is in flight. Before a move it is the requests alone:
    /// a WebSocket would hold up everybody else for the whole drain, and is closed at its end all the same.
    pub fn awaited(&self) -> u32 {
        let inner = self.lock();
        if inner.machine.moving.is_some() { inner.gate.requests() } else { inner.gate.total() }
    }

    pub fn closed(&self) -> Option<Closed> {
        self.lock().gate.closed()
    }

    pub fn machine(&self) -> DoorMachine {
        self.lock().machine.clone()
    }

    /// Cuts off what is in flight and answers how much that was.
    pub fn cut_off(&self) -> u32 {
        let mut inner = self.lock();
        inner.cut.cancel();
        inner.cut = CancellationToken::new();
        inner.gate.total()
    }

    /// The agent refused, or never saw, an idle stop.
    pub fn reopen_idle(&self) {
        self.lock().gate.reopen_idle();
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Machines {
    /// From now on a new process admits; whoever comes here is told to come again, and finds that one.
    pub fn hand_over(&self) {
        self.handed.store(true, Ordering::Relaxed);
    }

    /// What is in flight here, by Machine and port.
    pub fn counts(&self) -> Counts {
        let counts = self.all().into_iter().map(|entry| (entry.id.to_string(), entry.lock().gate.counts()));
        counts.filter(|(_, ports)| !ports.is_empty()).collect()
    }

    /// What the process before this one has in flight now.
    pub fn set_before(&self, counts: &Counts) {
        let now_ms = elapsed_ms(self.base);
        for entry in self.all() {
            let before = counts.get(entry.id.as_str()).cloned().unwrap_or_default();
            entry.lock().gate.set_before(before, now_ms);
            entry.changes.send_modify(|count| *count += 1);
        }
    }

    /// All that the agent told, as one update.
    pub fn snapshot(&self, with_closings: bool) -> DoorUpdate {
        let machines = self.all().into_iter().map(|entry| {
            let mut machine = entry.machine();
            machine.closing = machine.closing.filter(|_| with_closings);
            machine
        });
        DoorUpdate::Snapshot { machines: machines.collect(), edges: self.edges().as_ref().clone() }
    }

    pub fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn edges(&self) -> Arc<Vec<DoorEdge>> {
        self.edges.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who holds the key with this hash.
    pub fn edge(&self, key_sha256: &str) -> Option<EdgeId> {
        let edges = self.edges();
        let known = edges.iter().find(|edge| godwit_base::secret::equal(&edge.key_sha256, key_sha256));
        known.map(|edge| edge.id.clone())
    }

    pub fn is_known(&self, edge: &EdgeId) -> bool {
        self.edges().iter().any(|known| known.id == *edge)
    }

    pub fn age(&self) -> Option<Duration> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).map(|heard| heard.elapsed())
    }

    /// A door serves without its agent, and says so.
    pub fn health(&self) -> Result<(), String> {
        match self.age() {
            Some(age) if age <= AGENT_SILENCE => Ok(()),
            Some(age) => Err(format!("the agent has been silent for {} s", age.as_secs())),
            None => Err("no report from the agent yet".to_owned()),
        }
    }

    /// Why the Machine is not here.
    pub fn absent(&self, id: &str) -> Refused {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        match gone.0.get(id) {
            Some(Gone { moved_to: Some(host), door_addr, epoch }) => {
                let refusal = Refusal::Moved { host: host.clone(), door_addr: door_addr.clone() };
                Refused::of(refusal, Some(*epoch))
            }
            Some(Gone { moved_to: None, epoch, .. }) => Refused::of(Refusal::Unknown, Some(*epoch)),
            None => Refused::of(Refusal::Unknown, None),
        }
    }

    /// The one decision about a request or connection.
    pub fn admit(&self, id: &str, port: u16, kind: Kind) -> Result<Admitted, Refused> {
        let Some(entry) = self.get(id) else { return Err(self.absent(id)) };
        let mut inner = entry.lock();
        if self.handed.load(Ordering::Relaxed) {
            return Err(Refused { refusal: Refusal::Busy, epoch: Some(inner.machine.epoch), load: 0 });
        }
        if let Some(refused) = moving(&inner.machine) {
            return Err(refused);
        }
        let epoch = Some(inner.machine.epoch);
        if !is_running(inner.machine.state) && !inner.ran_by_reply {
            return Err(Refused::of(Refusal::Stopped, epoch));
        }
        let Some(service) = inner.machine.services.iter().find(|service| service.internal_port == port) else {
            let hint = Some(format!("it has no service on port {port}"));
            return Err(Refused::of(Refusal::Unreachable { hint }, epoch));
        };
        let speaks_h2 = service.ports.iter().any(godwit_api::config::Port::is_h2_backend);
        let hard = service.concurrency.as_ref().and_then(|limits| limits.hard_limit);
        match inner.gate.admit(port, hard, kind) {
            Admission::Busy { load } => Err(Refused { refusal: Refusal::Busy, epoch, load }),
            Admission::In { load } => {
                let cut = inner.cut.clone();
                let to = addresses(&inner.machine);
                drop(inner);
                Ok(Admitted { entry, to, port, load, speaks_h2, cut, kind, base: self.base })
            }
        }
    }

    pub fn starting(&self, entry: &Arc<Entry>) -> Starting {
        entry.lock().gate.expect();
        Starting { entry: entry.clone(), base: self.base }
    }

    /// Closes the Machine's gate if nothing was in flight for long enough. Answers the load, as an error if it stays.
    pub fn close_if_idle(&self, entry: &Entry, epoch: Epoch, idle_ms: u64) -> Result<(), u32> {
        let mut inner = entry.lock();
        // After a take-over the new process alone knows what is in flight.
        let stays = inner.machine.moving.is_none() && !self.handed.load(Ordering::Relaxed);
        let running = is_running(inner.machine.state) || inner.ran_by_reply;
        if running && stays && inner.machine.epoch == epoch && inner.gate.close_if_idle(idle_ms, elapsed_ms(self.base))
        {
            inner.stops += 1;
            entry.pools.clear();
            return Ok(());
        }
        Err(inner.gate.total())
    }

    /// The agent said that the Machine runs; its stream may tell so later.
    pub fn ran(&self, entry: &Entry) {
        let mut inner = entry.lock();
        if !is_running(inner.machine.state) && !inner.ran_by_reply {
            inner.ran_by_reply = true;
            inner.gate.ran(elapsed_ms(self.base));
        }
        drop(inner);
        entry.changes.send_modify(|count| *count += 1);
    }

    /// Something came from the agent.
    pub fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub fn apply(&self, update: DoorUpdate) -> Vec<ToClose> {
        let mut work = Vec::new();
        match update {
            DoorUpdate::Tick => return work,
            DoorUpdate::Snapshot { machines, edges } => {
                let told: BTreeMap<&str, ()> = machines.iter().map(|one| (one.machine.as_str(), ())).collect();
                let vanished = |id: &String| !told.contains_key(id.as_str());
                let vanished: Vec<String> = {
                    let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
                    table.keys().filter(|id| vanished(id)).cloned().collect()
                };
                for id in vanished {
                    self.remove(&id);
                }
                work.extend(machines.into_iter().filter_map(|machine| self.upsert(machine, true)));
                *self.edges.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(edges);
            }
            DoorUpdate::Machine { machine } => work.extend(self.upsert(machine, false)),
            DoorUpdate::Gone { machine, moved_to, door_addr, epoch } => {
                // In this order: whoever sees it gone finds where to.
                self.remember(machine.as_str().to_owned(), Gone { moved_to, door_addr, epoch });
                self.remove(machine.as_str());
            }
            DoorUpdate::Edges { edges } => {
                *self.edges.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(edges);
            }
        }
        self.revision.send_modify(|revision| *revision += 1);
        work
    }

    fn remove(&self, id: &str) {
        let removed = self.table.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(entry) = removed {
            entry.pools.clear();
            let mut inner = entry.lock();
            inner.machine.state = MachineState::Destroyed;
            inner.ran_by_reply = false;
            // Nobody waits for its drain any more.
            inner.gate.reopen_by_agent();
            drop(inner);
            entry.changes.send_modify(|count| *count += 1);
        }
    }

    fn remember(&self, id: String, gone: Gone) {
        let mut memory = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        let (by_id, order) = &mut *memory;
        if by_id.insert(id.clone(), gone).is_none() {
            order.push_back(id);
            if order.len() > MAX_GONE
                && let Some(oldest) = order.pop_front()
            {
                by_id.remove(&oldest);
            }
        }
    }

    fn forget_gone(&self, id: &str) {
        let mut memory = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.0.remove(id).is_some() {
            memory.1.retain(|other| other != id);
        }
    }

    fn upsert(&self, machine: DoorMachine, whole: bool) -> Option<ToClose> {
        self.forget_gone(machine.machine.as_str());
        let entry = self.get(machine.machine.as_str());
        let entry = entry.unwrap_or_else(|| {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Arc::new(new_entry(machine.clone(), elapsed_ms(self.base)));
            table.entry(machine.machine.as_str().to_owned()).or_insert_with(fresh).clone()
        });
        let closing = machine.closing.clone();
        let mut inner = entry.lock();
        let was = is_running(inner.machine.state) || inner.ran_by_reply;
        let runs = is_running(machine.state);
        if runs && !was {
            entry.pools.clear();
            inner.gate.ran(elapsed_ms(self.base));
        }
        if whole && runs {
            // A new stream that shows it running: an idle stop whose answer was lost did not happen.
            inner.gate.reopen_idle();
        }
        if !matches!(machine.state, MachineState::Starting | MachineState::Started) {
            inner.ran_by_reply = false;
            entry.pools.clear();
        }
        if machine.state == MachineState::Stopping && inner.machine.state != MachineState::Stopping {
            inner.stops += 1;
        }
        inner.machine = machine;
        let new_closing = match &closing {
            Some(closing) => inner.gate.close(closing.token),
            None => {
                inner.gate.reopen_by_agent();
                false
            }
        };
        inner.stops += u64::from(new_closing);
        drop(inner);
        entry.changes.send_modify(|count| *count += 1);
        let closing = closing.filter(|_| new_closing)?;
        entry.pools.clear();
        Some(ToClose { entry, closing })
    }
}

fn new_entry(machine: DoorMachine, now_ms: u64) -> Entry {
    let mut gate = Gate::default();
    gate.ran(now_ms);
    Entry {
        id: machine.machine.clone(),
        inner: Mutex::new(Inner { machine, ran_by_reply: false, gate, stops: 0, cut: CancellationToken::new() }),
        changes: watch::Sender::new(0),
        starting: tokio::sync::Mutex::new(()),
        pools: Pools::default(),
        answers: Answers::default(),
    }
}
