//! One app as its requests find it: the present view, the gate, and what doors said.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use godwit_api::door::Refusal;
use godwit_api::ids::{AppName, Epoch, HostId, MachineId};
use godwit_api::route::RouteRow;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, MAX_HELD};
use super::hosts::Hosts;
use super::metrics::AppMetrics;
use super::view::{Lessons, Origin, View, Word, build};

pub struct App {
    pub name: AppName,
    pub gate: Arc<Gate>,
    pub metrics: AppMetrics,
    region: String,
    hosts: Arc<Hosts>,
    view: RwLock<Arc<View>>,
    known: Mutex<Known>,
    changes: watch::Sender<u64>,
    /// Whether its rows came from the store since it is watched.
    live: watch::Sender<bool>,
    last_used_ms: AtomicU64,
    /// Ends its watches.
    pub token: CancellationToken,
}

#[derive(Default)]
struct Known {
    rows: BTreeMap<String, RouteRow>,
    lessons: Lessons,
}

impl App {
    pub fn new(name: AppName, region: &str, hosts: Arc<Hosts>, metrics: AppMetrics, token: CancellationToken) -> Self {
        Self {
            name,
            gate: Gate::new(MAX_HELD),
            metrics,
            region: region.to_owned(),
            hosts,
            view: RwLock::default(),
            known: Mutex::default(),
            changes: watch::Sender::new(0),
            live: watch::Sender::new(false),
            last_used_ms: AtomicU64::new(0),
            token,
        }
    }

    pub fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn touch(&self, now_ms: u64) {
        self.last_used_ms.store(now_ms, Ordering::Relaxed);
    }

    pub fn last_used_ms(&self) -> u64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    pub fn live(&self) -> watch::Receiver<bool> {
        self.live.subscribe()
    }

    pub fn set_live(&self) {
        self.live.send_if_modified(|live| !std::mem::replace(live, true));
    }

    pub fn rows(&self) -> BTreeMap<String, RouteRow> {
        self.known().rows.clone()
    }

    pub fn has_rows(&self) -> bool {
        !self.known().rows.is_empty()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows kept on disk; the store's own never come after them.
    pub fn set_rows(&self, rows: BTreeMap<String, RouteRow>, now_ms: u64) {
        for row in rows.values() {
            self.hosts.learn(row);
        }
        let mut known = self.known();
        known.rows = rows;
        self.rebuild(&mut known, now_ms);
    }

    /// What one region's row says now; `None`: nothing runs there.
    pub fn set_row(&self, region: &str, row: Option<RouteRow>, now_ms: u64) {
        if let Some(row) = &row {
            self.hosts.learn(row);
        }
        let mut known = self.known();
        match row {
            Some(row) => known.rows.insert(region.to_owned(), row),
            None => known.rows.remove(region),
        };
        self.rebuild(&mut known, now_ms);
    }

    /// A door's word about a Machine.
    pub fn learn(&self, machine: &MachineId, word: Word, epoch: Epoch, now_ms: u64) {
        let mut known = self.known();
        known.lessons.entry(machine.clone()).or_default().hear(word, epoch, now_ms);
        self.rebuild(&mut known, now_ms);
    }

    fn rebuild(&self, known: &mut Known, now_ms: u64) {
        let previous = self.view();
        let doors = |host: &HostId| self.hosts.door(host);
        let view = build(&known.rows, &self.region, &mut known.lessons, doors, &previous, now_ms);
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        self.changes.send_modify(|count| *count += 1);
    }
}

/// What a refusal by a Machine's door teaches that outlasts the request: where the Machine is, or that it does not run.
pub fn word_of(refusal: &Refusal, asked: &Origin) -> Option<Word> {
    match refusal {
        Refusal::Moved { host, door_addr } => {
            Some(Word::Moved { host: host.clone(), door_addr: door_addr.as_deref().map(Arc::from) })
        }
        Refusal::Moving { host, door_addr: Some(door_addr) } => {
            Some(Word::Moving { host: host.clone(), door_addr: door_addr.as_str().into(), origin: asked.clone() })
        }
        Refusal::Stopped => Some(Word::Stopped),
        Refusal::Moving { door_addr: None, .. }
        | Refusal::Busy
        | Refusal::Full
        | Refusal::Unreachable { .. }
        | Refusal::Unknown => None,
    }
}
