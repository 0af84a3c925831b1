//! When bits become durable: group commit for flushes, and the copier's now and then. The order is `map`'s; this owns
//! who waits for whom. A commit that failed is never papered over: after a failed fsync the kernel may have dropped
//! the pages, so every later flush fails too.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Inner, lock};
use crate::error::{Result, VolumeError};
use crate::map::{Head, Slots, Tally};
use crate::map_file;

pub(crate) struct Commits {
    slots: Mutex<Slots>,
    /// Commits that have begun.
    begun: AtomicU64,
    /// The number of the last one that ended well.
    ended: AtomicU64,
}

impl Commits {
    pub fn new(slots: Slots) -> Self {
        Self { slots: Mutex::new(slots), begun: AtomicU64::new(0), ended: AtomicU64::new(0) }
    }
}

/// For a guest's flush: data, and the bits that guests changed.
pub(crate) fn flush(inner: &Inner) -> Result<()> {
    if inner.sync_failed.load(Ordering::Acquire) {
        return Err(VolumeError::SyncFailed);
    }
    if inner.map.complete() {
        return inner
            .backing
            .sync()
            .map_err(|error| failed(inner, VolumeError::io("syncing the volume's file")(error)));
    }
    commit(inner, false, None, true)
}

/// For the copier: everything that changed.
pub(crate) fn save(inner: &Inner, head: Option<Head>) -> Result<()> {
    inner.counters.unsaved_bytes.store(0, Ordering::Relaxed);
    commit(inner, true, head, false)
}

fn commit(inner: &Inner, all: bool, head: Option<Head>, may_share: bool) -> Result<()> {
    let arrival = inner.commits.begun.load(Ordering::SeqCst);
    let mut slots = lock(&inner.commits.slots);
    if inner.sync_failed.load(Ordering::Acquire) {
        return Err(VolumeError::SyncFailed);
    }
    // One that began after we came has done our work as well.
    if may_share && inner.commits.ended.load(Ordering::SeqCst) > arrival {
        return Ok(());
    }
    let number = inner.commits.begun.fetch_add(1, Ordering::SeqCst) + 1;
    let snapshot = inner.map.snapshot(&slots, all, head);
    match map_file::commit(inner.map_store.as_ref(), &mut slots, snapshot, || inner.backing.sync()) {
        Ok(wrote) => {
            inner.count(Tally::MapWrites, u64::from(wrote));
            inner.commits.ended.store(number, Ordering::SeqCst);
            Ok(())
        }
        Err(error) => Err(failed(inner, error)),
    }
}

fn failed(inner: &Inner, error: VolumeError) -> VolumeError {
    inner.sync_failed.store(true, Ordering::Release);
    tracing::error!(error = %error, "a sync failed; the volume's flushes fail from now on");
    error
}
