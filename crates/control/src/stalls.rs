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

#[derive(Debug, Default)]
pub struct Stalls {
    seen: Mutex<HashMap<MigrationId, Seen>>,
}

impl Stalls {
    /// Notes what a move looks like now; is it stalled?
    pub fn look(&self, id: &MigrationId, signature: String) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen.entry(id.clone()).or_insert_with(|| Seen::new(signature.clone()));
        if entry.signature != signature {
            (entry.signature, entry.since) = (signature, Instant::now());
        }
        entry.since.elapsed() >= STALLED_AFTER
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
