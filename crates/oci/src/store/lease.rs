//! What the collector must leave alone for now: digests that somebody of this process is
//! writing, pulling, unpacking or using. In memory only: nothing of it outlives us.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use super::locked;
use crate::digest::Digest;

/// Keeps its digests from being collected until it is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<Leases>,
    digests: Vec<Digest>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.give_back(&self.digests);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Leases {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Digest, usize>,
    /// While a collection runs: what was given back since it began. The image that a lease
    /// was for may have been recorded after the collector had looked at the names.
    since: Option<BTreeSet<Digest>>,
}

impl Leases {
    pub(crate) fn take(self: &Arc<Self>, digests: impl IntoIterator<Item = Digest>) -> Lease {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut state = locked(&self.state);
        for digest in &digests {
            *state.held.entry(*digest).or_default() += 1;
        }
        Lease { leases: self.clone(), digests }
    }

    fn give_back(&self, digests: &[Digest]) {
        let mut state = locked(&self.state);
        for digest in digests {
            if let Some(count) = state.held.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(digest);
                }
            }
        }
        if let Some(since) = &mut state.since {
            since.extend(digests);
        }
    }

    /// Opens a collection; until [`Leases::end`] leases given back still count.
    pub(crate) fn begin(&self) {
        locked(&self.state).since = Some(BTreeSet::new());
    }

    pub(crate) fn end(&self) {
        locked(&self.state).since = None;
    }

    /// Does `act` unless the digest is leased. Nobody can lease it in between, and whoever
    /// leases it afterwards finds it gone.
    pub(crate) fn unless_held<T>(&self, digest: &Digest, act: impl FnOnce() -> T) -> Option<T> {
        let state = locked(&self.state);
        let kept = state.held.contains_key(digest) || state.since.as_ref().is_some_and(|s| s.contains(digest));
        (!kept).then(act)
    }

    #[cfg(test)]
    fn is_held(&self, digest: &Digest) -> bool {
        self.unless_held(digest, || ()).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_and_ends() {
        let leases: Arc<Leases> = Arc::default();
        let digest = Digest::of(b"x");
        let (one, two) = (leases.take([digest]), leases.take([digest, digest]));
        drop(one);
        assert!(leases.is_held(&digest));
        drop(two);
        assert!(!leases.is_held(&digest));
    }

    #[test]
    fn what_is_given_back_during_a_collection_is_still_kept_by_it() {
        let leases: Arc<Leases> = Arc::default();
        let digest = Digest::of(b"x");
        let lease = leases.take([digest]);
        leases.begin();
        drop(lease);
        assert!(leases.is_held(&digest));
        leases.end();
        assert!(!leases.is_held(&digest));
    }
}
