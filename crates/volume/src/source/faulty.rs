//! A source with fault knobs around a real one: down, slow to answer (held until let go), or with bytes flipped on
//! their way. For tests and the lab. It must not change what the inner source says of its hashes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{BlockHash, Extent, Session, Source, SourceError, SourceResult};

/// The knobs, shared by all sessions of one source.
#[derive(Debug, Default)]
pub struct Knobs {
    down: AtomicBool,
    /// Flip one byte in each of the next so many fetches.
    pub flips: AtomicU64,
    pub fetches: AtomicU64,
    pub fetched_bytes: AtomicU64,
    held: Mutex<bool>,
    changed: Condvar,
    /// Offsets in the order in which they were fetched.
    pub order: Mutex<Vec<u64>>,
}

/// A held call gives up after this, as a socket's timeout would.
const HELD_AT_MOST: Duration = Duration::from_secs(30);

impl Knobs {
    /// Gone: every call fails, every connect too.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }
    /// Fetches wait until they are let go.
    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap_or_else(|poison| poison.into_inner()) = held;
        self.changed.notify_all();
    }
    fn pass(&self) -> SourceResult<()> {
        let held = self.held.lock().unwrap_or_else(|poison| poison.into_inner());
        let waited = self.changed.wait_timeout_while(held, HELD_AT_MOST, |held| *held);
        drop(waited);
        if self.down.load(Ordering::SeqCst) { Err(SourceError::new("is down")) } else { Ok(()) }
    }
}

pub struct FaultySource<S> {
    inner: S,
    knobs: Arc<Knobs>,
}

impl<S: Source> FaultySource<S> {
    pub fn new(inner: S) -> (Self, Arc<Knobs>) {
        let knobs = Arc::new(Knobs::default());
        (Self { inner, knobs: Arc::clone(&knobs) }, knobs)
    }
}

impl<S: Source> Source for FaultySource<S> {
    fn connect(&self) -> SourceResult<Box<dyn Session>> {
        if self.knobs.down.load(Ordering::SeqCst) {
            return Err(SourceError::new("is down"));
        }
        Ok(Box::new(FaultySession { inner: self.inner.connect()?, knobs: Arc::clone(&self.knobs) }))
    }
}

struct FaultySession {
    inner: Box<dyn Session>,
    knobs: Arc<Knobs>,
}

impl Session for FaultySession {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn fetch(&mut self, offset: u64, buf: &mut [u8], hashes: &mut Vec<BlockHash>) -> SourceResult<()> {
        self.knobs.order.lock().unwrap_or_else(|poison| poison.into_inner()).push(offset);
        self.knobs.pass()?;
        self.inner.fetch(offset, buf, hashes)?;
        self.knobs.fetches.fetch_add(1, Ordering::SeqCst);
        self.knobs.fetched_bytes.fetch_add(buf.len() as u64, Ordering::SeqCst);
        let flip = |left: u64| left.checked_sub(1);
        if self.knobs.flips.fetch_update(Ordering::SeqCst, Ordering::SeqCst, flip).is_ok() {
            let middle = buf.len() / 2;
            buf[middle] ^= 0x40;
        }
        Ok(())
    }
    fn extents(&mut self, offset: u64, len: u64) -> SourceResult<Vec<Extent>> {
        self.knobs.pass()?;
        self.inner.extents(offset, len)
    }
    fn hashes(&mut self, first: u64, count: u64) -> SourceResult<Option<Vec<BlockHash>>> {
        self.knobs.pass()?;
        self.inner.hashes(first, count)
    }
    fn wire_bytes(&self) -> u64 {
        self.inner.wire_bytes()
    }
}
