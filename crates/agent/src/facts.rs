//! Telling the fleet what is so: the newest fact under each key goes to the store, in batches and at a bounded rate,
//! again and again until it has arrived. While the store is away, newer facts take the place of older ones here and in
//! the journal, and nothing else waits. It must not know what facts say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_base::backoff::Backoff;
use godwit_store::{Compare, Error, Op, Range, Store, Txn};
use tokio::sync::{Notify, mpsc};

/// Facts in one transaction (the store takes 128 operations), and their bytes (the store takes 1.5 MiB).
const MAX_BATCH: usize = 64;
const MAX_BATCH_BYTES: usize = 512 << 10;
/// Between two transactions: facts that come together travel together, and a host that comes back after long does not
/// flood control.
const PAUSE: Duration = Duration::from_millis(5);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// One fact; without a value it is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    pub key: String,
    pub seq: u64,
    pub value: Option<String>,
}

/// The newest sequence and value under each key.
type Pending = BTreeMap<String, (u64, Option<String>)>;

/// Facts on their way. One entry a key, so it is bounded by what the host holds.
#[derive(Clone, Default)]
pub struct Outbox {
    pending: Arc<Mutex<Pending>>,
    more: Arc<Notify>,
}

impl Outbox {
    pub fn put(&self, fact: Fact) {
        let mut pending = self.lock();
        if pending.get(&fact.key).is_none_or(|(seq, _)| *seq < fact.seq) {
            pending.insert(fact.key, (fact.seq, fact.value));
            self.more.notify_one();
        }
    }

    fn waiting(&self) -> usize {
        self.lock().len()
    }

    /// The oldest facts, as many as fit into one transaction.
    fn take(&self) -> Vec<Fact> {
        let pending = self.lock();
        let mut facts: Vec<Fact> = pending
            .iter()
            .map(|(key, (seq, value))| Fact { key: key.clone(), seq: *seq, value: value.clone() })
            .collect();
        facts.sort_by_key(|fact| fact.seq);
        let mut bytes = 0;
        let fitting = facts.iter().take(MAX_BATCH).take_while(|fact| {
            let first = bytes == 0;
            bytes += fact.key.len() + fact.value.as_ref().map_or(0, String::len);
            first || bytes <= MAX_BATCH_BYTES
        });
        let count = fitting.count();
        facts.truncate(count);
        facts
    }

    fn arrived(&self, facts: &[Fact]) {
        let mut pending = self.lock();
        for fact in facts {
            if pending.get(&fact.key).is_some_and(|(seq, _)| *seq == fact.seq) {
                pending.remove(&fact.key);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        // Every change of the map is one call: a panic cannot leave it half-done.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs for ever. `published` hears of every fact that has arrived. `fence` is a row of this host's own: each transaction
/// rewrites it and compares it, so that one whose answer was lost, and that arrives after its successor, changes nothing.
pub async fn publish(
    outbox: Outbox,
    store: Arc<dyn Store>,
    fence: String,
    published: mpsc::Sender<Vec<(String, u64)>>,
) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    // The revision of the fence as it was last seen.
    let mut stands: Option<u64> = None;
    loop {
        let facts = outbox.take();
        if facts.is_empty() {
            outbox.more.notified().await;
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        match send(&*store, &facts, &fence, stands).await {
            Ok(Some(revision)) => {
                stands = Some(revision);
                backoff.reset();
                outbox.arrived(&facts);
                let told = facts.into_iter().map(|fact| (fact.key, fact.seq)).collect();
                if published.send(told).await.is_err() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
            // An earlier one has arrived after all, or the store is another copy: what stands is read again.
            Ok(None) => {
                stands = None;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                stands = None;
                let wait = backoff.next_wait();
                let chain = godwit_base::telemetry::chain(&error);
                match error.is_retryable() {
                    true => tracing::debug!(error = chain, waiting = outbox.waiting(), "facts wait for the store"),
                    false => tracing::warn!(error = chain, waiting = outbox.waiting(), "the store refuses facts"),
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// The fence's new revision; `None` when it did not stand as was thought.
async fn send(store: &dyn Store, facts: &[Fact], fence: &str, stands: Option<u64>) -> Result<Option<u64>, Error> {
    let stands = match stands {
        Some(revision) => revision,
        None => store.range(Range::exact(fence)).await?.rows.first().map_or(0, |row| row.mod_revision),
    };
    let ops = facts.iter().map(|fact| match &fact.value {
        Some(value) => Op::put(&fact.key, value.clone()),
        None => Op::delete(&fact.key),
    });
    // No other writer has these keys: only another transaction of our own can have moved the fence.
    let txn = Txn::of(ops.chain([Op::put(fence, "")])).when(Compare::unchanged(fence, stands));
    let reply = store.txn(txn).await?;
    Ok(reply.succeeded.then_some(reply.revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_store::{BoxFuture, Identity, Options, RangeReply, SqliteStore, TxnReply, Watch};

    fn fact(key: &str, seq: u64, bytes: usize) -> Fact {
        Fact { key: key.into(), seq, value: Some("x".repeat(bytes)) }
    }

    #[test]
    fn the_newest_fact_under_a_key_is_the_one_that_travels() {
        let outbox = Outbox::default();
        outbox.put(fact("a", 2, 2));
        outbox.put(fact("a", 1, 1));
        let taken = outbox.take();
        assert_eq!(taken, [fact("a", 2, 2)]);
        outbox.put(fact("a", 3, 3));
        outbox.arrived(&taken);
        assert_eq!(outbox.take(), [fact("a", 3, 3)], "a newer one is not lost with the older's arrival");
    }

    /// Takes the first transaction away and says that it was lost; it is delivered later.
    struct Stuck {
        store: SqliteStore,
        held: Mutex<Option<Txn>>,
        is_first: std::sync::atomic::AtomicBool,
    }

    impl Store for Stuck {
        fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeReply, Error>> {
            self.store.range(range)
        }
        fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
            if self.is_first.swap(false, std::sync::atomic::Ordering::SeqCst) {
                *self.held.lock().unwrap() = Some(txn);
                return Box::pin(async { Err(Error::Closed) });
            }
            self.store.txn(txn)
        }
        fn watch(&self, prefix: String, from_revision: u64) -> BoxFuture<'_, Result<Watch, Error>> {
            self.store.watch(prefix, from_revision)
        }
        fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>> {
            self.store.compact(revision)
        }
        fn identity(&self) -> BoxFuture<'_, Result<Identity, Error>> {
            self.store.identity()
        }
    }

    #[tokio::test]
    async fn a_publication_that_arrives_after_its_successor_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path().join("store.db"), Options::default()).unwrap();
        let stuck = Arc::new(Stuck { store, held: Mutex::default(), is_first: true.into() });
        let outbox = Outbox::default();
        let (sender, mut arrived) = mpsc::channel(8);
        let fact = |seq, value: Option<&str>| Fact { key: "facts/w1/x".into(), seq, value: value.map(Into::into) };
        outbox.put(fact(1, Some("older")));
        let task = tokio::spawn(publish(outbox.clone(), stuck.clone(), "facts/w1/fence".into(), sender));
        while stuck.held.lock().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        outbox.put(fact(2, Some("newer")));
        assert_eq!(arrived.recv().await.unwrap(), [("facts/w1/x".to_owned(), 2)]);
        let late = stuck.held.lock().unwrap().take().unwrap();
        assert!(!stuck.store.txn(late).await.unwrap().succeeded);
        let stands = stuck.range(Range::exact("facts/w1/x")).await.unwrap().rows;
        assert_eq!(stands[0].value.as_ref(), b"newer");
        // And what comes after it arrives all the same, also that there is no fact any more.
        outbox.put(fact(3, None));
        assert_eq!(arrived.recv().await.unwrap(), [("facts/w1/x".to_owned(), 3)]);
        assert!(stuck.range(Range::exact("facts/w1/x")).await.unwrap().rows.is_empty());
        task.abort();
    }

    #[test]
    fn a_batch_is_bounded_in_facts_and_bytes_and_never_empty() {
        let outbox = Outbox::default();
        (0..100).for_each(|n| outbox.put(fact(&format!("k{n}"), n, 1)));
        assert_eq!(outbox.take().len(), MAX_BATCH);
        let large = Outbox::default();
        (0..3).for_each(|n| large.put(fact(&format!("k{n}"), n, MAX_BATCH_BYTES)));
        assert_eq!(large.take().len(), 1);
    }
}
