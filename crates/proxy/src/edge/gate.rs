//! The gate of one app: requests that cannot be served yet are held here, in order, within bounds; a Machine is
//! started once, however many of them wait for it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_api::ids::MachineId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Requests of one app that are held at once; one more is answered 503.
pub const MAX_HELD: usize = 10_000;

/// How a start ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Woken {
    /// The port accepts.
    Ready,
    /// Its door said something of it that is believed: look again.
    News,
    Refused,
    /// It ran but did not listen, or ended.
    Failed(Arc<str>),
    /// It runs, and as it listens its port never will accept.
    Unreachable(Arc<str>),
    /// Its door could not be asked.
    Away,
}

/// A start on its way. `None` until it ended.
pub type Waking = watch::Receiver<Option<Woken>>;

pub struct Gate {
    /// Held by whoever decides which Machine to start, until its start shows.
    choosing: Mutex<()>,
    starts: Mutex<HashMap<MachineId, Waking>>,
    held: AtomicUsize,
    max_held: usize,
    /// Whoever holds the turn is the first in line, and alone asks again; the others stand behind it, in order.
    turn: Arc<Semaphore>,
    in_line: AtomicUsize,
    /// Something that was in flight ended.
    freed: Notify,
}

/// A held request. Dropping it gives its place back.
pub struct Held(Arc<Gate>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first place in line. Dropping it lets the next one try.
pub struct Turn {
    gate: Arc<Gate>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.gate.in_line.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    pub fn new(max_held: usize) -> Arc<Self> {
        Arc::new(Self {
            choosing: Mutex::default(),
            starts: Mutex::default(),
            held: AtomicUsize::new(0),
            max_held,
            turn: Arc::new(Semaphore::new(1)),
            in_line: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// A place among the held, if there is one.
    pub fn hold(self: &Arc<Self>) -> Option<Held> {
        let before = self.held.fetch_add(1, Ordering::Relaxed);
        let held = Held(self.clone());
        (before < self.max_held).then_some(held)
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether others stand in line: who comes now must stand behind them.
    pub fn has_line(&self) -> bool {
        self.in_line.load(Ordering::Relaxed) > 0
    }

    /// Waits to be the first in line.
    pub async fn turn(self: &Arc<Self>) -> Turn {
        self.in_line.fetch_add(1, Ordering::Relaxed);
        let mut turn = Turn { gate: self.clone(), _permit: None };
        // The semaphore is never closed, so this cannot fail.
        turn._permit = self.turn.clone().acquire_owned().await.ok();
        turn
    }

    /// A request or connection of this app ended: there may be room.
    pub fn free(&self) {
        if self.has_line() {
            self.freed.notify_one();
        }
    }

    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Two requests that decide at the same moment must not start two Machines: who may start one decides alone.
    pub fn choosing(&self) -> MutexGuard<'_, ()> {
        self.choosing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the start of a Machine, or begins it with `start`, which runs to its end even if nobody waits any more.
    pub fn wake<F>(self: &Arc<Self>, machine: &MachineId, start: impl FnOnce() -> F) -> Waking
    where
        F: Future<Output = Woken> + Send + 'static,
    {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waking) = starts.get(machine) {
            return waking.clone();
        }
        let (tell, waking) = watch::channel(None);
        starts.insert(machine.clone(), waking.clone());
        let start = start();
        let (gate, machine) = (self.clone(), machine.clone());
        tokio::spawn(async move {
            // If the start panics its entry must not stay, or the Machine would never be asked again.
            let ended = tokio::spawn(start).await.unwrap_or(Woken::Away);
            gate.starts.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
            tell.send_replace(Some(ended));
        });
        waking
    }
}

/// The end of a start.
pub async fn woken(mut waking: Waking) -> Woken {
    match waking.wait_for(Option::is_some).await {
        Ok(ended) => ended.clone().unwrap_or(Woken::Away),
        Err(_) => Woken::Away,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thousand_who_wait_make_one_start() {
        let gate = Gate::new(MAX_HELD);
        let starts = Arc::new(AtomicUsize::new(0));
        let (open, opened) = watch::channel(false);
        let machine = MachineId::from_bits(7);
        let wait = || {
            let (starts, mut opened) = (starts.clone(), opened.clone());
            woken(gate.wake(&machine, move || async move {
                starts.fetch_add(1, Ordering::SeqCst);
                let _ = opened.wait_for(|open| *open).await;
                Woken::Ready
            }))
        };
        let waiting: Vec<_> = (0..1000).map(|_| tokio::spawn(wait())).collect();
        open.send_replace(true);
        for one in waiting {
            assert_eq!(one.await.unwrap(), Woken::Ready);
        }
        assert_eq!(starts.load(Ordering::SeqCst), 1);
        // Afterwards it may be started anew.
        assert_eq!(wait().await, Woken::Ready);
        assert_eq!(starts.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn the_line_is_bounded_and_in_order() {
        let gate = Gate::new(2);
        let (one, two) = (gate.hold(), gate.hold());
        assert!(one.is_some() && two.is_some() && gate.hold().is_none());
        drop(one);
        assert!(gate.hold().is_some());

        let first = gate.turn().await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut behind = Vec::new();
        for name in 0..5 {
            let (gate, of) = (gate.clone(), order.clone());
            let standing = gate.in_line.load(Ordering::Relaxed);
            behind.push(tokio::spawn({
                let gate = gate.clone();
                async move {
                    let _turn = gate.turn().await;
                    of.lock().unwrap().push(name);
                }
            }));
            while gate.in_line.load(Ordering::Relaxed) == standing {
                tokio::task::yield_now().await;
            }
        }
        assert!(gate.has_line());
        drop(first);
        for one in behind {
            one.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert!(!gate.has_line());
    }
}
