//! `follow`: list a prefix, watch it from there, and go on through lag, compaction, restarts and restored stores.
//!
//! It must not know what the rows mean; [`crate::Mirror`] applies what it tells.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::Store;
use crate::backoff::backoff;
use crate::error::Error;
use crate::mirror::Update;
use crate::typed::{Listing, StoreExt};
use crate::watch::Watch;

/// Updates that wait for a slow reader. Behind them the watch itself is bounded, lags, and is taken up again.
const UPDATES_QUEUED: usize = 16;

/// A followed prefix. Dropping it stops the following.
pub struct Follow {
    updates: mpsc::Receiver<Result<Update, Error>>,
    heard: Heard,
    _task: AbortOnDropHandle<()>,
}

/// How fresh a followed prefix is; can be kept and asked beside the reader.
#[derive(Debug, Clone)]
pub struct Heard(Arc<Mutex<Option<Instant>>>);

impl Heard {
    /// Since when nothing was heard from the store; `None` before the first snapshot. Above some seconds the store is
    /// away, and what is held is stale.
    pub fn age(&self) -> Option<Duration> {
        self.lock().map(|at| at.elapsed())
    }

    fn now(&self) {
        *self.lock() = Some(Instant::now());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // A plain value cannot be left half-written by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts to follow on a task of the current tokio runtime.
pub fn follow(store: Arc<dyn Store>, prefix: impl Into<String>) -> Follow {
    let (sender, updates) = mpsc::channel(UPDATES_QUEUED);
    let heard = Heard(Arc::default());
    let follower = Follower { store, prefix: prefix.into(), sender, heard: heard.clone(), failures: 0 };
    Follow { updates, heard, _task: AbortOnDropHandle::new(tokio::spawn(follower.run())) }
}

impl Follow {
    /// The next update. What passes (a store away, a lag) is waited out inside and never returned; an error here needs
    /// somebody to act (not allowed, bad prefix), and is tried again all the same. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Update, Error> {
        self.updates.recv().await.unwrap_or(Err(Error::Closed))
    }

    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }
}

struct Follower {
    store: Arc<dyn Store>,
    prefix: String,
    sender: mpsc::Sender<Result<Update, Error>>,
    heard: Heard,
    failures: u32,
}

/// The reader is gone.
struct Gone;

/// Why a watch was left.
enum Left {
    /// Watch again from the next revision.
    Interrupted,
    /// Only a listing helps.
    Outdated,
}

impl Follower {
    async fn run(mut self) {
        while let Ok(()) = self.list_then_watch().await {}
    }

    /// One listing, and the watches that go on from it.
    async fn list_then_watch(&mut self) -> Result<(), Gone> {
        let listed = async {
            // Before the listing: if the store is replaced in between, the watch's generation differs, and we list again.
            let identity = self.store.identity().await?;
            let listing = self.store.list(&self.prefix).await?;
            Ok((identity.generation, listing))
        };
        let (generation, Listing { rows, revision }) = match listed.await {
            Ok(listed) => listed,
            Err(error) => return self.failed(error).await,
        };
        self.heard.now();
        self.tell(Ok(Update::Snapshot { rows, revision })).await?;

        let mut from_revision = revision + 1;
        loop {
            let watch = self.store.watch(self.prefix.clone(), from_revision).await;
            match watch {
                Ok(watch) if watch.generation() != generation => return self.pause().await,
                Ok(watch) => match self.read(watch, &mut from_revision).await? {
                    Left::Interrupted => {}
                    Left::Outdated => return self.pause().await,
                },
                Err(error) if error.needs_listing() => return self.pause().await,
                Err(error) => self.failed(error).await?,
            }
        }
    }

    async fn read(&mut self, mut watch: Watch, from_revision: &mut u64) -> Result<Left, Gone> {
        loop {
            match watch.next().await {
                Ok(Some(batch)) => {
                    *from_revision = batch.revision + 1;
                    self.heard.now();
                    self.failures = 0;
                    self.tell(Ok(Update::Changes(batch))).await?;
                }
                Ok(None) => return Ok(Left::Interrupted),
                Err(error) if error.needs_listing() => return Ok(Left::Outdated),
                Err(error) => {
                    self.failed(error).await?;
                    return Ok(Left::Interrupted);
                }
            }
        }
    }

    /// Waits out a failure; tells it if waiting alone does not mend it.
    async fn failed(&mut self, error: Error) -> Result<(), Gone> {
        tracing::debug!(prefix = self.prefix, failures = self.failures, %error, "following was interrupted");
        if !error.is_retryable() && !error.needs_listing() {
            self.tell(Err(error)).await?;
        }
        self.pause().await
    }

    /// Each round without a batch in between waits longer: also two stores behind one address, each with a generation
    /// of its own, must not be listed in a hot loop.
    async fn pause(&mut self) -> Result<(), Gone> {
        self.failures = self.failures.saturating_add(1);
        let wait = backoff(self.failures, random());
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.sender.closed() => Err(Gone),
        }
    }

    async fn tell(&self, update: Result<Update, Error>) -> Result<(), Gone> {
        self.sender.send(update).await.map_err(|_| Gone)
    }
}

fn random() -> u64 {
    // Without entropy the jitter is lost, not the bound.
    getrandom::u64().unwrap_or(0)
}
