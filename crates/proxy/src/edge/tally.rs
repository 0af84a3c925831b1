//! What an edge counts of each Machine while it works: its own requests in flight, what doors said of the rest, and
//! whom to leave alone for a moment. Atomics only, shared by all views of an app; moments are milliseconds.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
        self.waking.load(Ordering::Relaxed)
    }

    pub fn set_waking(&self, waking: bool) {
        self.waking.store(waking, Ordering::Relaxed);
    }

    pub fn avoid(&self, until_ms: u64) {
        self.avoid_until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }

    pub fn welcome(&self) {
        self.avoid_until_ms.store(0, Ordering::Relaxed);
    }

    pub fn is_avoided(&self, now_ms: u64) -> bool {
        now_ms < self.avoid_until_ms.load(Ordering::Relaxed)
    }
}
