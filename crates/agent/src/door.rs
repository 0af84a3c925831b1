//! The agent's end of the conversation with its door: what the door knows (a snapshot, then changes, and a tick each
//! second), which doors listen, and which closings have drained. It must not decide what is told.

pub mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, broadcast};

use godwit_api::door::{DoorEdge, DoorMachine, DoorUpdate};
use godwit_api::ids::{EdgeId, MachineId};

use crate::engine::Seen;
use crate::organs::Ipv4s;

/// Changes that wait for a slow door; one that falls further behind gets a snapshot.
const UPDATES_QUEUED: usize = 1024;
/// Reported drains that nobody has asked for yet.
const MAX_DRAINED: usize = 4096;
/// A door that was connected to the agent before has so long to come back after the agent's start.
const DOOR_RETURNS_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);

/// Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    ipv4s: Ipv4s,
    state: Mutex<State>,
    updates: broadcast::Sender<DoorUpdate>,
    stirred: Notify,
    since: Instant,
}

#[derive(Default)]
struct State {
    machines: BTreeMap<MachineId, DoorMachine>,
    edges: Vec<DoorEdge>,
    doors: usize,
    /// One has listened since the agent's start.
    had_door: bool,
    drained: BTreeSet<u64>,
}

impl Hub {
    /// `ipv4s`: what the engine does not know of a Machine and its door must.
    pub fn new(edges: Vec<DoorEdge>, ipv4s: Ipv4s) -> Self {
        let state = Mutex::new(State { edges, ..State::default() });
        let updates = broadcast::Sender::new(UPDATES_QUEUED);
        Self { shared: Arc::new(Shared { ipv4s, state, updates, stirred: Notify::new(), since: Instant::now() }) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change under the lock leaves whole entries: a panic cannot leave one half-done.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the doors what the engine has committed.
    pub fn see(&self, seen: &Seen) {
        let mut state = self.lock();
        let update = match seen {
            Seen::Machine { door, .. } => {
                let mut machine = (**door).clone();
                machine.private_ip4 = self.shared.ipv4s.get(machine.machine.as_str());
                let before = state.machines.insert(machine.machine.clone(), machine.clone());
                if before.as_ref() == Some(&machine) {
                    return;
                }
                DoorUpdate::Machine { machine }
            }
            Seen::Past { fact } => {
                if state.machines.remove(&fact.machine).is_none() {
                    return;
                }
                DoorUpdate::Gone { machine: fact.machine.clone(), moved_to: None, door_addr: None, epoch: fact.epoch }
            }
            Seen::Gone { machine } => match state.machines.remove(machine) {
                None => return,
                Some(door) => {
                    let (moved_to, door_addr) = door.moving.map(|moving| (moving.host, moving.door_addr)).unzip();
                    DoorUpdate::Gone { machine: door.machine, moved_to, door_addr, epoch: door.epoch }
                }
            },
        };
        // Sent under the lock, so that a snapshot and the changes after it fit together. Without doors nobody hears.
        let _ = self.shared.updates.send(update);
    }

    pub fn edges(&self, edges: Vec<DoorEdge>) {
        let mut state = self.lock();
        state.edges = edges.clone();
        let _ = self.shared.updates.send(DoorUpdate::Edges { edges });
    }

    /// Which edge has a key, by its SHA-256.
    pub fn edge(&self, key_sha256: &str) -> Option<EdgeId> {
        let state = self.lock();
        let edge = state.edges.iter().find(|edge| godwit_base::secret::equal(&edge.key_sha256, key_sha256));
        edge.map(|edge| edge.id.clone())
    }

    pub fn get(&self, machine: &MachineId) -> Option<DoorMachine> {
        self.lock().machines.get(machine).cloned()
    }

    /// A door begins to listen; it counts until what comes back is dropped.
    fn listen(&self) -> Listener {
        let mut state = self.lock();
        state.doors += 1;
        state.had_door = true;
        Listener { hub: self.clone(), updates: self.shared.updates.subscribe() }
    }

    fn snapshot(&self) -> DoorUpdate {
        let state = self.lock();
        DoorUpdate::Snapshot { machines: state.machines.values().cloned().collect(), edges: state.edges.clone() }
    }

    fn report_drained(&self, token: u64) {
        let mut state = self.lock();
        state.drained.insert(token);
        while state.drained.len() > MAX_DRAINED {
            state.drained.pop_first();
        }
        drop(state);
        self.shared.stirred.notify_waiters();
    }

    /// Resolves when the closing with this token has drained, or no door listens that could have let anything in. The
    /// caller bounds it.
    pub async fn drained(&self, token: u64) {
        loop {
            let stirred = self.shared.stirred.notified();
            {
                let mut state = self.lock();
                let may_return = !state.had_door && self.shared.since.elapsed() < DOOR_RETURNS_WITHIN;
                if state.drained.remove(&token) || (state.doors == 0 && !may_return) {
                    return;
                }
            }
            // A report between the look and the wait is seen at the next round.
            let _ = tokio::time::timeout(POLL, stirred).await;
        }
    }
}

struct Listener {
    hub: Hub,
    updates: broadcast::Receiver<DoorUpdate>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.lock().doors -= 1;
        self.hub.shared.stirred.notify_waiters();
    }
}
