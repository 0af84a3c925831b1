//! Who watches what, and what waits for each of them. The writer publishes after each commit; each watcher has a
//! bounded queue of its own, and one that overflows is cut off without holding up the writer or the others.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::error::Error;
use crate::types::{Event, WatchBatch};

/// Bounds of one watcher's queue. At 10,000 writes a second of which it sees all, about six seconds.
pub(super) const WATCH_QUEUE_EVENTS: usize = 65_536;
/// Values are shared between queues, so that this bounds what one slow watcher keeps alive.
pub(super) const WATCH_QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// A batch ends with the transaction that crosses this.
const BATCH_BYTES: usize = 1024 * 1024;
/// What an event costs beside its key and value.
const EVENT_OVERHEAD_BYTES: usize = 64;

#[derive(Default)]
pub(super) struct Hub {
    watchers: Mutex<Watchers>,
    /// Everything up to this revision is in the queues that want it.
    published: AtomicU64,
}

#[derive(Default)]
struct Watchers {
    by_prefix: HashMap<String, Vec<Arc<Queue>>>,
    closed: bool,
}

impl Hub {
    pub(super) fn new(revision: u64) -> Hub {
        Hub { watchers: Mutex::default(), published: AtomicU64::new(revision) }
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// A queue that gets everything under `prefix` above the returned revision.
    pub(super) fn subscribe(self: &Arc<Hub>, prefix: &str) -> (Subscription, u64) {
        let queue = Arc::new(Queue::default());
        let mut watchers = lock(&self.watchers);
        if watchers.closed {
            queue.end(End::Closed);
        } else {
            let same = watchers.by_prefix.entry(prefix.to_owned()).or_default();
            same.push(queue.clone());
        }
        // Under the lock, so that no group is published between the registration and this reading.
        let published = self.published();
        drop(watchers);
        let subscription = Subscription { hub: self.clone(), prefix: prefix.to_owned(), queue };
        (subscription, published)
    }

    /// Hands one commit's transactions to their watchers. `revision` is the commit's last.
    pub(super) fn publish(&self, transactions: &[Vec<Event>], revision: u64) {
        let watchers = lock(&self.watchers);
        if !watchers.by_prefix.is_empty() {
            route(&watchers.by_prefix, transactions);
        }
        self.published.store(revision, Ordering::Release);
    }

    /// Ends every watch, and those that come later too if `for_good`.
    pub(super) fn end_all(&self, for_good: bool) {
        let mut watchers = lock(&self.watchers);
        watchers.closed |= for_good;
        for queue in watchers.by_prefix.drain().flat_map(|(_, queues)| queues) {
            queue.end(End::Closed);
        }
    }
}

/// Splits transactions over the prefixes that are watched. An event's possible prefixes are its own segments, so the
/// cost does not grow with the watchers that it does not concern.
fn route(by_prefix: &HashMap<String, Vec<Arc<Queue>>>, transactions: &[Vec<Event>]) {
    let mut filling: HashMap<&str, Filling> = HashMap::new();
    for events in transactions {
        for event in events {
            for prefix in prefixes(&event.key) {
                if let Some((prefix, queues)) = by_prefix.get_key_value(prefix) {
                    let entry = filling.entry(prefix).or_insert_with(|| Filling {
                        queues,
                        batch: WatchBatch::default(),
                        bytes: 0,
                    });
                    entry.bytes += size(event);
                    entry.batch.revision = event.mod_revision;
                    entry.batch.events.push(event.clone());
                }
            }
        }
        // Only here, between two transactions, may a batch end.
        for entry in filling.values_mut() {
            if entry.bytes >= BATCH_BYTES {
                entry.flush();
            }
        }
    }
    for entry in filling.values_mut() {
        entry.flush();
    }
}

struct Filling<'a> {
    queues: &'a [Arc<Queue>],
    batch: WatchBatch,
    bytes: usize,
}

impl Filling<'_> {
    fn flush(&mut self) {
        if self.batch.events.is_empty() {
            return;
        }
        let batch = Arc::new(std::mem::take(&mut self.batch));
        for queue in self.queues {
            queue.push(&batch, self.bytes);
        }
        self.bytes = 0;
    }
}

/// `a/b/c` → ``, `a/`, `a/b/`.
fn prefixes(key: &str) -> impl Iterator<Item = &str> {
    let segments = key.match_indices('/').map(|(at, _)| &key[..=at]);
    std::iter::once("").chain(segments)
}

fn size(event: &Event) -> usize {
    event.key.len() + event.value.as_ref().map_or(0, |value| value.len()) + EVENT_OVERHEAD_BYTES
}

/// A registered queue; dropping it unregisters.
pub(super) struct Subscription {
    hub: Arc<Hub>,
    prefix: String,
    queue: Arc<Queue>,
}

impl Subscription {
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn pop(&self) -> Result<Option<Arc<WatchBatch>>, Error> {
        self.queue.pop()
    }

    /// Resolves after something was pushed or the queue ended since the last `pop`.
    pub(super) async fn changed(&self) {
        self.queue.changed.notified().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watchers = lock(&self.hub.watchers);
        if let Some(queues) = watchers.by_prefix.get_mut(&self.prefix) {
            queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
            if queues.is_empty() {
                watchers.by_prefix.remove(&self.prefix);
            }
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<(Arc<WatchBatch>, usize)>,
    events: usize,
    bytes: usize,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Lagged { at: u64 },
    Closed,
}

impl Queue {
    fn push(&self, batch: &Arc<WatchBatch>, bytes: usize) {
        let mut waiting = lock(&self.waiting);
        if waiting.end.is_some() {
            return;
        }
        let events = waiting.events + batch.events.len();
        let total = waiting.bytes + bytes;
        let fits = events <= WATCH_QUEUE_EVENTS && total <= WATCH_QUEUE_BYTES;
        // An empty queue takes any batch: one that alone is over the bound would otherwise never pass.
        if !fits && !waiting.batches.is_empty() {
            let at = batch.revision;
            drop(waiting);
            return self.end(End::Lagged { at });
        }
        waiting.events = events;
        waiting.bytes = total;
        waiting.batches.push_back((batch.clone(), bytes));
        drop(waiting);
        self.changed.notify_one();
    }

    /// What waited is dropped at once: the watcher reads it from the log when it watches again.
    fn end(&self, end: End) {
        let mut waiting = lock(&self.waiting);
        waiting.end.get_or_insert(end);
        waiting.batches = VecDeque::new();
        drop(waiting);
        self.changed.notify_one();
    }

    fn pop(&self) -> Result<Option<Arc<WatchBatch>>, Error> {
        let mut waiting = lock(&self.waiting);
        match waiting.end {
            Some(End::Lagged { at }) => return Err(Error::Lagged { at }),
            Some(End::Closed) => return Err(Error::Closed),
            None => {}
        }
        let Some((batch, bytes)) = waiting.batches.pop_front() else {
            return Ok(None);
        };
        waiting.events -= batch.events.len();
        waiting.bytes -= bytes;
        Ok(Some(batch))
    }
}

/// Nothing in here panics while it holds a lock, so a poisoned one is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(key: &str, mod_revision: u64) -> Event {
        Event { key: key.into(), value: Some("v".into()), mod_revision }
    }

    #[test]
    fn each_watcher_gets_its_segments_only() {
        let hub = Arc::new(Hub::new(0));
        let (one, _) = hub.subscribe("hosts/w1/");
        let (ten, _) = hub.subscribe("hosts/w10/");
        let (all, _) = hub.subscribe("");
        hub.publish(&[vec![event("hosts/w1/a", 1), event("hosts/w10/a", 1)]], 1);
        let keys = |from: &Subscription| -> Vec<String> {
            let batch = from.pop().expect("open").expect("a batch");
            batch.events.iter().map(|event| event.key.clone()).collect()
        };
        assert_eq!(keys(&one), ["hosts/w1/a"]);
        assert_eq!(keys(&ten), ["hosts/w10/a"]);
        assert_eq!(keys(&all), ["hosts/w1/a", "hosts/w10/a"]);
        assert!(one.pop().expect("open").is_none());
    }

    #[test]
    fn an_overflowing_queue_ends_without_disturbing_its_neighbour() {
        let hub = Arc::new(Hub::new(0));
        let (slow, _) = hub.subscribe("");
        let (quick, _) = hub.subscribe("a/");
        for revision in 1..=WATCH_QUEUE_EVENTS as u64 + 1 {
            hub.publish(&[vec![event("a/b", revision)]], revision);
            let batch = quick.pop().expect("open").expect("a batch");
            assert_eq!(batch.revision, revision);
        }
        assert!(matches!(slow.pop(), Err(Error::Lagged { .. })));
        assert!(matches!(slow.pop(), Err(Error::Lagged { .. })));
    }

    #[test]
    fn a_dropped_watcher_leaves_nothing_behind() {
        let hub = Arc::new(Hub::new(0));
        drop(hub.subscribe("a/"));
        assert!(lock(&hub.watchers).by_prefix.is_empty());
    }
}
