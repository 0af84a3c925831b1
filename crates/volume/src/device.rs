//! The clone device: a volume that is served while it is still being filled. It owns the rules of every read, write,
//! discard and flush over the local file and the map; how blocks arrive is `device::hydrate`'s, when bits become
//! durable `device::persist`'s. It must not know who uses it (a front end, an NBD export) nor what the source is.
//!
//! **Threads, not tasks.** Each caller is a blocking thread of a bounded pool, and so is each worker. A server of a
//! file system must go on when memory is short, when its own pages may be what the kernel wants written back through
//! it: a fixed set of threads with locked memory has no allocation or hand-over on the path of a present block.
//!
//! **Locks.** A group (1 MiB) has a lock, from a fixed set of stripes. Fills of absent blocks hold it exclusively, and
//! only while they touch the local file, never over the network. Writes to present blocks share it. Reads of present
//! blocks take none.

pub mod hydrate;
pub mod persist;
mod range;
mod remembered;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_api::ids::Epoch;

use crate::backing::Backing;
use crate::error::{Result, VolumeError};
use crate::map::{BLOCK_BYTES, GROUP_BLOCKS, Geometry, Head, LiveMap, Slots, Tally};
use crate::map_file::MapStore;
use crate::pace::{Limits, Pace};
use crate::schedule::{Phase, Run, Schedule};
use crate::source::{Extent, Interrupter, Source};

/// Group locks. Two groups that share one wait for each other needlessly, no more.
const STRIPES: usize = 256;
/// A waiter looks again after this even when nobody woke it, for the policy's sake.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What a clone needs to know. Validated by the role that makes it.
#[derive(Debug, Clone)]
pub struct CloneConfig {
    pub epoch: Epoch,
    /// Workers that fetch only what a guest waits for.
    pub demand_workers: usize,
    /// Workers that copy in the background, and fetch for guests first.
    pub copy_workers: usize,
    pub limits: Limits,
    /// A source without hashes is not accepted (its blocks could not be checked before it is released).
    pub manifest_required: bool,
    /// After this long without a source, reads of missing blocks fail; `None`: they wait for ever.
    pub give_up_after: Option<Duration>,
    /// Made ahead of the handoff: the source is connected to, and not read until `release`.
    pub held: bool,
    /// The map is made durable at least once per so many hydrated bytes: what a crash may cost to fetch again.
    pub persist_bytes: u64,
}

impl CloneConfig {
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            demand_workers: 2,
            copy_workers: 2,
            limits: Limits::default(),
            manifest_required: true,
            give_up_after: None,
            held: false,
            persist_bytes: 256 << 20,
        }
    }
}

/// What a clone stands on. Without a source, the map must be full.
pub struct CloneParts {
    pub backing: Arc<dyn Backing>,
    pub map_store: Box<dyn MapStore>,
    pub slots: Slots,
    pub live: LiveMap,
    pub source: Option<Arc<dyn Source>>,
}

/// What operators and migrations watch. Counters since the volume's keeper began, over all its servers.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CloneStatus {
    pub phase: Phase,
    pub blocks: u64,
    pub present_blocks: u64,
    /// Every block is here and durable: the source is needed no more.
    pub complete: bool,
    /// And each that the guest did not write was compared with the source's hash: the source may be released.
    pub verified: bool,
    pub poisoned: bool,
    /// It waits for `release`, and so does every guest.
    pub held: bool,
    /// What the source holds besides holes, once it has said so.
    pub source_data_bytes: Option<u64>,
    pub demand_fetches: u64,
    pub hydrated_bytes: u64,
    /// Bytes that were not fetched because the local file held them already.
    pub found_bytes: u64,
    pub wire_bytes: u64,
    /// Blocks that did not fit the source's hash, on arrival or in the local file, and were fetched again.
    pub mismatches: u64,
    /// How far this server's comparison has come.
    pub verified_blocks: u64,
    /// Sessions with the source that were begun.
    pub connects: u64,
    pub flushes: u64,
    pub map_writes: u64,
    pub no_space: u64,
    pub rate_bytes_per_s: u64,
    /// From the start of the first server to the first read of a guest that was answered.
    pub first_read_ms: Option<u64>,
    /// How long the source has been unreachable, and why.
    pub source_lost_ms: Option<u64>,
    pub source_error: Option<String>,
    /// The last thing that went wrong in this server, over or not.
    pub last_error: Option<String>,
}

impl CloneStatus {
    /// How much of the map is full.
    pub fn map_permille(&self) -> u64 {
        self.present_blocks * 1000 / self.blocks.max(1)
    }
}

/// Counters of this process alone; the others stand on the map's board.
#[derive(Default)]
pub(crate) struct Counters {
    pub verified_blocks: AtomicU64,
    pub unsaved_bytes: AtomicU64,
    /// Data that the scan has found so far.
    pub scanned_data_bytes: AtomicU64,
    /// A block was taken without a hash to compare it with.
    pub unchecked: AtomicBool,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What workers and waiters share under one lock.
pub(crate) struct Work {
    pub schedule: Schedule,
    pub pace: Pace,
    pub lost: Option<(Instant, String)>,
    pub last_error: Option<String>,
    pub interrupters: Vec<Interrupter>,
    pub closing: bool,
    /// Grows whenever a block became present, a poisoning or a loss: what waiters outside may wait for.
    pub progress: u64,
}

pub(crate) struct Inner {
    pub config: CloneConfig,
    pub geometry: Geometry,
    pub backing: Arc<dyn Backing>,
    pub map: LiveMap,
    pub map_store: Box<dyn MapStore>,
    pub commits: persist::Commits,
    pub source: Option<Arc<dyn Source>>,
    pub work: Mutex<Work>,
    /// Work for workers.
    pub wake: Condvar,
    /// Blocks for waiters.
    pub arrived: Condvar,
    pub stripes: Vec<RwLock<()>>,
    pub counters: Counters,
    pub sync_failed: AtomicBool,
    pub began: Instant,
    /// A bit for each block whose local bytes this server has compared with the source.
    pub checked: Vec<AtomicU64>,
    pub remembered: remembered::Remembered,
    /// No change is taken any more: the server is about to end.
    pub finished: AtomicBool,
}

pub struct CloneDevice {
    inner: Arc<Inner>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl CloneDevice {
    /// Starts serving, and hydrating if the map is not full.
    pub fn start(config: CloneConfig, parts: CloneParts) -> Result<Self> {
        let geometry = *parts.live.geometry();
        let complete = parts.live.complete();
        if !complete && parts.source.is_none() {
            return Err(VolumeError::SourceGone);
        }
        let holds = parts.backing.extents(0, geometry.size_bytes());
        let prefilled = holds.map_err(VolumeError::io("listing the volume's holes"))?.iter().any(|extent| !extent.zero);
        let was_clean = parts.slots.head().clean && !complete;
        let workers = if complete { 0 } else { config.demand_workers + config.copy_workers.max(1) };
        let work = Work {
            schedule: Schedule::new(geometry.blocks(), complete, prefilled),
            pace: Pace::new(config.limits, 0),
            lost: None,
            last_error: None,
            interrupters: vec![Interrupter::default(); workers],
            closing: false,
            progress: 0,
        };
        let inner = Arc::new(Inner {
            geometry,
            backing: parts.backing,
            map: parts.live,
            map_store: parts.map_store,
            commits: persist::Commits::new(parts.slots),
            source: parts.source,
            work: Mutex::new(work),
            wake: Condvar::new(),
            arrived: Condvar::new(),
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            counters: Counters::default(),
            sync_failed: AtomicBool::new(false),
            checked: (0..if complete { 0 } else { geometry.blocks().div_ceil(64) })
                .map(|_| AtomicU64::new(0))
                .collect(),
            remembered: remembered::Remembered::default(),
            finished: AtomicBool::new(false),
            began: Instant::now(),
            config,
        });
        if was_clean {
            // Before anybody writes: whatever comes now may be cut short.
            persist::save(&inner, Some(Head::default()))?;
        }
        // Kept from the first server on.
        let began = inner.map.tally(Tally::Began);
        let _ = began.compare_exchange(0, host_clock_ms() + 1, Ordering::SeqCst, Ordering::SeqCst);
        let device = Self { inner, workers: Mutex::new(Vec::new()) };
        let mut handles = Vec::new();
        for index in 0..workers {
            let inner = Arc::clone(&device.inner);
            let demand_only = index < device.inner.config.demand_workers;
            let body = move || hydrate::worker(&inner, index, demand_only);
            let thread = std::thread::Builder::new().name(format!("fetch-{index}")).spawn(body);
            handles.push(thread.map_err(VolumeError::io("starting a worker"))?);
        }
        *lock(&device.workers) = handles;
        Ok(device)
    }

    pub fn size_bytes(&self) -> u64 {
        self.inner.geometry.size_bytes()
    }
    pub fn epoch(&self) -> Epoch {
        self.inner.config.epoch
    }
    pub fn is_complete(&self) -> bool {
        self.inner.map.complete()
    }

    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        self.inner.check(offset, len)?;
        self.inner.wait_present(offset, len)?;
        self.inner.backing.read(offset, buf).map_err(VolumeError::io("reading the volume's file"))?;
        let first = self.inner.map.tally(Tally::FirstRead);
        if first.load(Ordering::Relaxed) == 0 {
            let waited =
                (host_clock_ms() + 1).saturating_sub(self.inner.map.tally(Tally::Began).load(Ordering::SeqCst));
            let _ = first.compare_exchange(0, waited + 1, Ordering::SeqCst, Ordering::SeqCst);
        }
        Ok(())
    }

    pub fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.check(offset, buf.len() as u64)?;
        let done = self.inner.change(offset, buf.len() as u64, &|inner, at, len| {
            let from = (at - offset) as usize;
            inner.backing.write(at, &buf[from..from + len as usize])
        });
        if let Err(VolumeError::Io { source, .. }) = &done
            && source.kind() == std::io::ErrorKind::StorageFull
        {
            self.inner.count(Tally::NoSpace, 1);
        }
        done
    }

    /// Zeros in this range from now on. With `keep_space` the file keeps its blocks.
    pub fn write_zeroes(&self, offset: u64, len: u64, keep_space: bool) -> Result<()> {
        self.inner.check(offset, len)?;
        self.inner.change(offset, len, &|inner, at, len| {
            if keep_space { inner.backing.zero(at, len) } else { inner.backing.punch(at, len) }
        })
    }

    /// The guest needs this range no more. Blocks that are missing and only partly covered are left alone: fetching a
    /// block to forget a part of it serves nobody.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.check(offset, len)?;
        let (mut from, mut to) = (offset, offset + len);
        for (at, len) in self.inner.partial_edges(offset, len).into_iter().flatten() {
            let block = at / BLOCK_BYTES;
            if !self.inner.map.present(block) {
                if at == from {
                    from = (at + len).min(to);
                } else {
                    to = at;
                }
            }
        }
        if from < to {
            self.inner.change(from, to - from, &|inner, at, len| inner.backing.punch(at, len))?;
        }
        Ok(())
    }

    /// Everything acknowledged before this call is durable after it: data, and the bits that vouch for it.
    pub fn flush(&self) -> Result<()> {
        self.inner.check(0, 0)?;
        self.inner.count(Tally::Flushes, 1);
        persist::flush(&self.inner)
    }

    /// The same, and what the copier brought.
    pub fn save(&self) -> Result<()> {
        self.inner.check(0, 0)?;
        persist::save(&self.inner, None)
    }

    /// An orderly end: no change is taken any more, and the next start need not doubt what stands in the file.
    pub fn finish(&self) -> Result<()> {
        self.inner.check(0, 0)?;
        self.inner.finished.store(true, Ordering::SeqCst);
        if self.inner.map.complete() {
            return persist::save(&self.inner, None);
        }
        // Changes look at the flag under the lock of their group: after this round none is under way.
        for stripe in &self.inner.stripes {
            drop(stripe.write());
        }
        persist::save(&self.inner, Some(Head { clean: true, ..Head::default() }))
    }
    pub fn is_finished(&self) -> bool {
        self.inner.finished.load(Ordering::SeqCst)
    }

    /// Holes and data. An absent block counts as data: nobody has looked.
    pub fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        self.inner.check(offset, len)?;
        let local = self.inner.backing.extents(offset, len).map_err(VolumeError::io("listing the volume's holes"))?;
        Ok(range::without_absent(&self.inner, offset, local))
    }

    /// Whether this range can be read, or partly written, without waiting. If not, its blocks are asked for.
    pub fn prefetch(&self, offset: u64, len: u64) -> bool {
        if self.inner.check(offset, len).is_err() || self.inner.map.complete() {
            return true;
        }
        if self.inner.all_present(offset, len) {
            return true;
        }
        let mut work = self.inner.lock_work();
        self.inner.demand(&mut work, offset, len);
        false
    }

    /// Like `prefetch` for a write: blocks that it covers whole need no fetch.
    pub fn prefetch_for_write(&self, offset: u64, len: u64) -> bool {
        self.inner.partial_edges(offset, len).into_iter().fold(true, |ready, edge| match edge {
            Some((at, len)) => self.prefetch(at, len) && ready,
            None => ready,
        })
    }

    /// Waits until something arrived since `seen` (a number that this returned before), at most for `at_most`.
    pub fn wait_progress(&self, seen: u64, at_most: Duration) -> u64 {
        let work = self.inner.lock_work();
        let still = |work: &mut Work| work.progress == seen && !work.closing;
        let (work, _) =
            self.inner.arrived.wait_timeout_while(work, at_most, still).unwrap_or_else(|poison| poison.into_inner());
        work.progress
    }

    /// Fails all IO for good, also what waits now, if this device is of `epoch` or an earlier one. Survives a restart
    /// of the server with the shared map.
    pub fn poison(&self, epoch: Epoch) -> bool {
        if self.inner.config.epoch > epoch {
            return false;
        }
        self.inner.map.poison();
        let interrupters = {
            let mut work = self.inner.lock_work();
            work.progress += 1;
            work.interrupters.clone()
        };
        self.inner.wake.notify_all();
        self.inner.arrived.notify_all();
        interrupters.iter().for_each(Interrupter::interrupt);
        true
    }

    /// The handoff is done, and the source's bytes are final: from now on it is read. Survives a restart of the server
    /// with the shared map.
    pub fn release(&self) {
        if self.inner.is_held() {
            self.inner.map.tally(Tally::Began).store(host_clock_ms() + 1, Ordering::SeqCst);
            self.inner.map.release();
        }
        drop(self.inner.lock_work());
        self.inner.wake.notify_all();
    }

    /// Takes the host's space for all that is still to come, asking the source where its data lies. For before the
    /// volume is relied on: a full disk is then a refusal, and later no stall half way.
    pub fn reserve(&self) -> Result<()> {
        hydrate::reserve(&self.inner)
    }

    pub fn set_limits(&self, limits: Limits) {
        self.inner.lock_work().pace.set_limits(limits);
        self.inner.wake.notify_all();
    }

    pub fn status(&self) -> CloneStatus {
        let (phase, lost, last_error, rate) = {
            let work = self.inner.lock_work();
            (work.schedule.phase(), work.lost.clone(), work.last_error.clone(), work.pace.rate_bytes_per_s())
        };
        let map = &self.inner.map;
        let get = |tally| map.tally(tally).load(Ordering::Relaxed);
        CloneStatus {
            phase,
            blocks: self.inner.geometry.blocks(),
            present_blocks: map.count_present(),
            complete: map.complete(),
            verified: map.verified(),
            poisoned: map.poisoned(),
            held: self.inner.is_held(),
            source_data_bytes: get(Tally::SourceData).checked_sub(1),
            demand_fetches: get(Tally::DemandFetches),
            hydrated_bytes: get(Tally::HydratedBytes),
            found_bytes: get(Tally::FoundBytes),
            wire_bytes: get(Tally::WireBytes),
            mismatches: get(Tally::Mismatches),
            verified_blocks: self.inner.counters.verified_blocks.load(Ordering::Relaxed),
            connects: get(Tally::Connects),
            flushes: get(Tally::Flushes),
            map_writes: get(Tally::MapWrites),
            no_space: get(Tally::NoSpace),
            rate_bytes_per_s: rate,
            first_read_ms: get(Tally::FirstRead).checked_sub(1),
            source_lost_ms: lost.as_ref().map(|(since, _)| since.elapsed().as_millis() as u64),
            source_error: lost.map(|(_, error)| error),
            last_error,
        }
    }

    pub fn phase(&self) -> Phase {
        self.inner.lock_work().schedule.phase()
    }

    /// Ends the workers. IO of missing blocks fails from now on; what is present is still served.
    pub fn close(&self) {
        let interrupters = {
            let mut work = self.inner.lock_work();
            work.closing = true;
            work.interrupters.clone()
        };
        self.inner.wake.notify_all();
        self.inner.arrived.notify_all();
        interrupters.iter().for_each(Interrupter::interrupt);
        for worker in std::mem::take(&mut *lock(&self.workers)) {
            // A worker that panicked has nothing left to end.
            let _ = worker.join();
        }
    }
}

impl Drop for CloneDevice {
    fn drop(&mut self) {
        self.close();
    }
}

/// A lock whose holder panicked still guards consistent state here: all state changes under it are single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// The host's monotonic clock: the same in all its processes, unlike an `Instant` that is passed on.
fn host_clock_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which lives through the call. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

impl Inner {
    pub fn checked(&self, block: u64) {
        self.checked[(block / 64) as usize].fetch_or(1 << (block % 64), Ordering::SeqCst);
    }
    pub fn is_checked(&self, block: u64) -> bool {
        self.checked[(block / 64) as usize].load(Ordering::SeqCst) & (1 << (block % 64)) != 0
    }
    pub fn is_held(&self) -> bool {
        self.config.held && !self.map.released()
    }
    fn open_for_changes(&self) -> Result<()> {
        match (self.map.poisoned(), self.finished.load(Ordering::SeqCst)) {
            (true, _) => Err(VolumeError::Poisoned(self.config.epoch)),
            (_, true) => Err(VolumeError::Finished),
            _ => Ok(()),
        }
    }
    pub fn count(&self, tally: Tally, by: u64) {
        count(self.map.tally(tally), by);
    }
    pub fn lock_work(&self) -> MutexGuard<'_, Work> {
        lock(&self.work)
    }
    pub fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
    pub fn stripe(&self, block: u64) -> &RwLock<()> {
        &self.stripes[(block / GROUP_BLOCKS) as usize % STRIPES]
    }
    fn check(&self, offset: u64, len: u64) -> Result<()> {
        if self.map.poisoned() {
            return Err(VolumeError::Poisoned(self.config.epoch));
        }
        let size = self.geometry.size_bytes();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            end => Err(VolumeError::OutOfRange { offset, end: end.unwrap_or(u64::MAX), size }),
        }
    }
    fn all_present(&self, offset: u64, len: u64) -> bool {
        self.geometry.touched(offset, len).all(|block| self.map.present(block))
    }
    fn demand(&self, work: &mut Work, offset: u64, len: u64) {
        let blocks = self.geometry.touched(offset, len);
        if work.schedule.demand(Run { first: blocks.start, count: blocks.end - blocks.start }, &self.map) {
            self.wake.notify_all();
        }
    }

    /// Waits until every block of the range is in the local file. Never answers with a hole where the source has data.
    fn wait_present(&self, offset: u64, len: u64) -> Result<()> {
        if self.map.complete() || self.all_present(offset, len) {
            return Ok(());
        }
        let began = Instant::now();
        let mut work = self.lock_work();
        loop {
            // Asked for in each round: a block may have been distrusted meanwhile, or its fetch have failed.
            self.demand(&mut work, offset, len);
            if self.all_present(offset, len) {
                work.pace.guest_waited(began.elapsed().as_micros() as u64);
                return Ok(());
            }
            if self.map.poisoned() {
                return Err(VolumeError::Poisoned(self.config.epoch));
            }
            let gone = match (&work.lost, self.config.give_up_after) {
                (Some((since, _)), Some(limit)) => since.elapsed() >= limit,
                _ => false,
            };
            if gone || work.closing {
                return Err(VolumeError::SourceGone);
            }
            let waited = self.arrived.wait_timeout(work, LOOK_AGAIN);
            work = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }
}
