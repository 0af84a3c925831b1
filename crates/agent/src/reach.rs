//! Whether a Machine's ports can be reached as its process listens: a task for each run looks at its sockets, seldom once all
//! is well, and anew whenever somebody asks because a port refused. `judge` decides what is wrong. It must not know what is
//! made of it.

pub mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use godwit_api::door::Listening;
use godwit_api::ids::MachineId;
use godwit_api::route::ClosedPort;
use godwit_base::dial::Addresses;

use judge::{Stand, Verdict, judge};

use crate::engine::Told;

/// Who asks for a port that a service forwards to.
pub const BY_SERVICE: &str = "the service's internal port";
/// Who asks for a port that a check dials.
pub const BY_CHECK: &str = "the check's port";
/// Longest that whoever asks waits for a fresh look.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// Between the start, or the last look, and the next, while a port is not open: by the time since the start. Each look reads
/// two small tables of the kernel.
fn pause(elapsed: Duration) -> Duration {
    match elapsed.as_millis() {
        0..1_000 => Duration::from_millis(250),
        1_000..15_000 => Duration::from_secs(1),
        15_000..60_000 => Duration::from_secs(5),
        _ => Duration::from_secs(30),
    }
}

/// The runs that are looked at. Cheap to clone; bounded by the Machines of the host.
#[derive(Clone, Default)]
pub struct Reaches {
    live: Arc<Mutex<BTreeMap<MachineId, Live>>>,
}

/// A run, and what is wanted of it.
pub struct Wanted {
    pub machine: MachineId,
    pub own: Addresses,
    /// Ports that services forward to.
    pub ports: BTreeSet<u16>,
    /// All ports that are asked for, those of checks too.
    pub all: BTreeSet<u16>,
    /// Open before, in this version of the Machine.
    pub opened: BTreeSet<u16>,
}

struct Live {
    wanted: Wanted,
    begun: Instant,
    sockets: Vec<SocketAddr>,
    stands: BTreeMap<u16, Stand>,
    /// Counts the looks.
    looks: watch::Sender<u64>,
    asked: Arc<Notify>,
}

impl Live {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn saw(&mut self, sockets: Vec<SocketAddr>) -> Told {
        let now_ms = self.now_ms();
        for port in &self.wanted.ports {
            let verdict = judge(&sockets, *port, &self.wanted.all, self.wanted.own);
            if verdict == Verdict::Open {
                self.wanted.opened.insert(*port);
            }
            let before = self.stands.remove(port);
            self.stands.insert(*port, Stand::next(before, verdict, now_ms));
        }
        self.sockets = sockets;
        self.looks.send_modify(|looks| *looks += 1);
        let settled = self.stands.iter().filter(|(_, stand)| stand.is_settled(now_ms));
        let closed = settled.filter_map(|(port, stand)| {
            let lasting = stand.is_lasting(self.wanted.opened.contains(port), self.wanted.own, now_ms);
            Some(ClosedPort { port: *port, why: stand.verdict.words(*port, BY_SERVICE)?, lasting })
        });
        Told { closed: closed.collect(), opened: self.wanted.opened.clone() }
    }

    fn is_well(&self) -> bool {
        self.stands.len() == self.wanted.ports.len() && self.stands.values().all(|one| one.verdict == Verdict::Open)
    }

    fn listening(&self, port: u16, wanted_by: &str) -> Listening {
        if *self.looks.borrow() == 0 {
            return Listening::default();
        }
        let now_ms = self.now_ms();
        let stand = self.stands.get(&port);
        let opened = self.wanted.opened.contains(&port);
        let lasting = stand.is_some_and(|stand| stand.is_lasting(opened, self.wanted.own, now_ms));
        let hint = judge(&self.sockets, port, &self.wanted.all, self.wanted.own).words(port, wanted_by);
        Listening { lasting: lasting && hint.is_some(), hint }
    }
}

impl Reaches {
    fn with<T>(&self, machine: &MachineId, f: impl FnOnce(&mut Live) -> T) -> Option<T> {
        // Every change under the lock leaves whole entries: a panic cannot leave one half-done.
        self.live.lock().unwrap_or_else(PoisonError::into_inner).get_mut(machine).map(f)
    }

    /// Looks anew, and says how a port of a running Machine stands. Nothing, if it does not run or cannot be seen.
    pub async fn ask(&self, machine: &MachineId, port: u16, wanted_by: &str) -> Listening {
        let Some((asked, mut looks)) = self.with(machine, |live| (live.asked.clone(), live.looks.subscribe())) else {
            return Listening::default();
        };
        asked.notify_one();
        // What was seen last is told if the look takes longer.
        let _ = tokio::time::timeout(ASK_TIMEOUT, looks.changed()).await;
        self.with(machine, |live| live.listening(port, wanted_by)).unwrap_or_default()
    }

    /// Looks after one run until it is cut off. `look` answers nothing when the sockets cannot be read; `tell` gets what is
    /// new.
    pub async fn watch<L, T>(&self, wanted: Wanted, look: impl Fn() -> L, tell: impl Fn(Told) -> T)
    where
        L: Future<Output = Option<Vec<SocketAddr>>>,
        T: Future<Output = ()>,
    {
        let machine = wanted.machine.clone();
        let (begun, asked) = (Instant::now(), Arc::new(Notify::new()));
        let _entered = Entered::new(self, wanted, begun, asked.clone());
        let mut last = Told::default();
        loop {
            let is_well = self.with(&machine, |live| live.is_well()).unwrap_or_default();
            tokio::select! {
                () = asked.notified() => {}
                () = tokio::time::sleep(pause(begun.elapsed())), if !is_well => {}
            }
            let Some(sockets) = look().await else { continue };
            let Some(told) = self.with(&machine, |live| live.saw(sockets)) else { return };
            if told != last {
                last = told.clone();
                tell(told).await;
            }
        }
    }
}

/// A run among those that are looked at, until its task is dropped.
struct Entered<'a> {
    reaches: &'a Reaches,
    machine: MachineId,
    asked: Arc<Notify>,
}

impl<'a> Entered<'a> {
    fn new(reaches: &'a Reaches, wanted: Wanted, begun: Instant, asked: Arc<Notify>) -> Self {
        let machine = wanted.machine.clone();
        let live = Live {
            wanted,
            begun,
            sockets: Vec::new(),
            stands: BTreeMap::new(),
            looks: watch::Sender::new(0),
            asked: asked.clone(),
        };
        reaches.live.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.clone(), live);
        Self { reaches, machine, asked }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut live = self.reaches.live.lock().unwrap_or_else(PoisonError::into_inner);
        // The next run may have entered already.
        if live.get(&self.machine).is_some_and(|entered| Arc::ptr_eq(&entered.asked, &self.asked)) {
            live.remove(&self.machine);
        }
    }
}
