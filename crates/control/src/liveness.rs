//! Which hosts are there, by when they were last heard of or reached. In memory only: liveness is no durable write.
//! Just after its own start control has heard of nobody, and says `unknown`, not `unreachable`.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_api::HostId;

use crate::view::Reach;

/// A host that spoke within this is not asked whether it is there.
pub const PROBE_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    agent: Option<Instant>,
    door: Option<Instant>,
    hinted: Option<Instant>,
}

#[derive(Debug)]
pub struct Liveness {
    lost_after: Duration,
    since: Instant,
    seen: Mutex<HashMap<HostId, Seen>>,
    /// Hosts at whose address another has joined since: whoever answers there is not they.
    displaced: Mutex<HashSet<HostId>>,
}

impl Liveness {
    pub fn new(lost_after: Duration) -> Self {
        Self { lost_after, since: Instant::now(), seen: Mutex::default(), displaced: Mutex::default() }
    }

    /// The host's agent spoke to us, or answered.
    pub fn agent(&self, host: &HostId) {
        self.lock().entry(host.clone()).or_default().agent = Some(Instant::now());
    }

    /// The host's door took a connection.
    pub fn door(&self, host: &HostId) {
        self.lock().entry(host.clone()).or_default().door = Some(Instant::now());
    }

    /// These hosts' addresses belong to others now, and those of no other hosts.
    pub fn displace(&self, hosts: HashSet<HostId>) {
        *self.displaced.lock().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    fn is_displaced(&self, host: &HostId) -> bool {
        self.displaced.lock().unwrap_or_else(PoisonError::into_inner).contains(host)
    }

    /// Of the agent: can control command the host?
    pub fn reach(&self, host: &HostId) -> Reach {
        if self.is_displaced(host) {
            return Reach::Unreachable;
        }
        self.judge(self.seen(host).agent)
    }

    /// Neither agent nor door is reached: edges will not get through either.
    pub fn is_lost(&self, host: &HostId) -> bool {
        if self.is_displaced(host) {
            return true;
        }
        let seen = self.seen(host);
        self.judge(seen.agent) == Reach::Unreachable && self.judge(seen.door) == Reach::Unreachable
    }

    pub fn wants_probe(&self, host: &HostId) -> bool {
        if self.is_displaced(host) {
            return false;
        }
        self.seen(host).agent.is_none_or(|at| at.elapsed() >= PROBE_AFTER.min(self.lost_after / 3))
    }

    /// May the host be told something again? At most once an `interval`; a hint that is lost changes nothing.
    pub fn may_hint(&self, host: &HostId, interval: Duration) -> bool {
        let mut seen = self.lock();
        let hinted = &mut seen.entry(host.clone()).or_default().hinted;
        let may = hinted.is_none_or(|at| at.elapsed() >= interval);
        if may {
            *hinted = Some(Instant::now());
        }
        may
    }

    pub fn last_seen_ms(&self, host: &HostId) -> Option<u64> {
        let age = self.seen(host).agent?.elapsed();
        Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    fn judge(&self, at: Option<Instant>) -> Reach {
        match at {
            Some(at) if at.elapsed() < self.lost_after => Reach::Ok,
            // Nobody is lost before control has listened for the whole bound.
            _ if self.since.elapsed() < self.lost_after => Reach::Unknown,
            _ => Reach::Unreachable,
        }
    }

    fn seen(&self, host: &HostId) -> Seen {
        self.lock().get(host).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<HostId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
