//! What an edge counts of each Machine while it works: its own requests in flight, what doors said of the rest, and
//! whom to leave alone for a moment. Atomics only, shared by all views of an app; moments are milliseconds.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::eject::{Failure, Health, Standing};

/// What a door said of other edges' load is believed for so long.
const OTHERS_LIFE_MS: u64 = 1_000;

/// One port of one Machine.
#[derive(Debug, Default)]
pub struct Tally {
    own: AtomicU32,
    others: AtomicU32,
    others_at_ms: AtomicU64,
}

impl Tally {
    pub fn enter(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
    }

    pub fn leave(&self) {
        self.own.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn own(&self) -> u32 {
        self.own.load(Ordering::Relaxed)
    }

    /// A door said how much is in flight in all.
    pub fn heard(&self, load: u32, now_ms: u64) {
        self.others.store(load.saturating_sub(self.own()), Ordering::Relaxed);
        self.others_at_ms.store(now_ms, Ordering::Relaxed);
    }

    /// The best guess of what is in flight in all.
    pub fn load(&self, now_ms: u64) -> u32 {
        let age = now_ms.saturating_sub(self.others_at_ms.load(Ordering::Relaxed));
        let others = if age < OTHERS_LIFE_MS { self.others.load(Ordering::Relaxed) } else { 0 };
        self.own().saturating_add(others)
    }
}

/// One Machine.
#[derive(Debug, Default)]
pub struct Tallies {
    waking: AtomicBool,
    avoid_until_ms: AtomicU64,
    /// Whether `health` has anything to say: nearly never, and then no request takes the lock.
    troubled: AtomicBool,
    health: Mutex<Health>,
    /// Why it could last not be reached or started.
    reason: Mutex<Option<Arc<str>>>,
    ports: Mutex<Vec<(u16, Arc<Tally>)>>,
}

impl Tallies {
    pub fn of(&self, port: u16) -> Arc<Tally> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tally)) = ports.iter().find(|(known, _)| *known == port) {
            return tally.clone();
        }
        let tally = Arc::new(Tally::default());
        ports.push((port, tally.clone()));
        tally
    }

    pub fn is_waking(&self) -> bool {
        self.waking.load(Ordering::Acquire)
    }

    pub fn set_waking(&self, waking: bool) {
        // What a start taught is seen by whoever sees its end.
        self.waking.store(waking, Ordering::Release);
    }

    pub fn avoid(&self, until_ms: u64) {
        self.avoid_until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }

    pub fn welcome(&self) {
        self.avoid_until_ms.store(0, Ordering::Relaxed);
    }

    /// It is another one now: elsewhere, or made anew.
    pub fn renew(&self) {
        self.welcome();
        self.say(None);
        self.health(|health| *health = Health::default());
    }

    pub fn standing(&self, now_ms: u64) -> Standing {
        if self.troubled.load(Ordering::Relaxed) {
            self.health(|health| health.standing(now_ms))
        } else {
            Standing::Healthy
        }
    }

    /// A request is about to be sent there: false if another was faster. `last`: there is nowhere else.
    pub fn send(&self, last: bool, now_ms: u64) -> bool {
        !self.troubled.load(Ordering::Relaxed) || self.health(|health| health.send(last, now_ms))
    }

    /// True if it was left alone and is back.
    pub fn answered(&self, well: bool, now_ms: u64) -> bool {
        self.troubled.load(Ordering::Relaxed) && self.health(|health| health.answered(well, now_ms))
    }

    /// The port of a fresh start accepts.
    pub fn started(&self, now_ms: u64) -> bool {
        self.welcome();
        self.troubled.load(Ordering::Relaxed) && self.health(|health| health.started(now_ms))
    }

    /// Why it could not be reached or started, as far as its host knows.
    pub fn say(&self, reason: Option<Arc<str>>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    pub fn reason(&self) -> Option<Arc<str>> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn learned_nothing(&self) {
        if self.troubled.load(Ordering::Relaxed) {
            self.health(Health::learned_nothing);
        }
    }

    /// True if it is left alone from now on.
    pub fn failed(&self, why: Failure, now_ms: u64) -> bool {
        self.health(|health| health.failed(why, now_ms))
    }

    fn health<T>(&self, f: impl FnOnce(&mut Health) -> T) -> T {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let told = f(&mut health);
        self.troubled.store(!health.is_clear(), Ordering::Relaxed);
        told
    }

    pub fn is_avoided(&self, now_ms: u64) -> bool {
        now_ms < self.avoid_until_ms.load(Ordering::Relaxed)
    }
}
