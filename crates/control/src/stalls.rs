//! Since when each live move has stood still. In memory: after a start of control it counts anew.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_api::MigrationId;

/// A move counts as stalled when nothing of it has changed for so long.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);

/// What was last seen of a move, since when, and when its source was last asked to cancel.
#[derive(Debug)]
struct Seen {
    signature: String,
    since: Instant,
    asked: Option<Instant>,
}

#[derive(Debug)]
pub struct Stalls {
    after: Duration,
    seen: Mutex<HashMap<MigrationId, Seen>>,
}

impl Stalls {
    pub fn new(after: Duration) -> Self {
        Self { after, seen: Mutex::default() }
    }

    /// Notes what a move looks like now; is it stalled?
    pub fn look(&self, id: &MigrationId, signature: String) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(id.clone()).or_insert_with(|| Seen::new(signature.clone()));
        if entry.signature != signature {
            (entry.signature, entry.since) = (signature, Instant::now());
        }
        entry.since.elapsed() >= self.after
    }

    /// May the source be asked again? At most once an `interval`.
    pub fn may_ask(&self, id: &MigrationId, interval: Duration) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(id.clone()).or_insert_with(|| Seen::new(String::new()));
        let may = entry.asked.is_none_or(|at| at.elapsed() >= interval);
        if may {
            entry.asked = Some(Instant::now());
        }
        may
    }

    /// Forgets all but the live ones.
    pub fn keep(&self, live: &HashSet<MigrationId>) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| live.contains(id));
    }
}

impl Seen {
    fn new(signature: String) -> Self {
        Self { signature, since: Instant::now(), asked: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_stalls_only_by_standing_still() {
        let id: MigrationId = "mig_00000000000001".parse().unwrap();
        let never = Stalls::new(Duration::MAX);
        assert!(!never.look(&id, "preparing".into()) && !never.look(&id, "preparing".into()));
        let stalls = Stalls::new(Duration::ZERO);
        assert!(stalls.look(&id, "preparing".into()));
        let patient = Stalls { after: Duration::from_secs(3600), ..stalls };
        assert!(!patient.look(&id, "starting".into()));
        assert!(patient.may_ask(&id, Duration::MAX) && !patient.may_ask(&id, Duration::MAX));
        patient.keep(&HashSet::new());
        assert!(patient.may_ask(&id, Duration::MAX), "what has ended is forgotten");
    }
}
