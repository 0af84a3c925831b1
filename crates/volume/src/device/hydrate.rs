//! How blocks arrive: the workers, their sessions with the source, the check of every block against the source's hash,
//! and what happens when the source is gone (waiting, never zeros). It owns the jobs of `schedule`; it must not know
//! what guests do beyond the bits of the map.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use godwit_base::backoff::Backoff;

use super::remembered::questions;
use super::{Inner, count, persist};
use crate::error::{VolumeError, chain};
use crate::map::{BLOCK_BYTES, GROUP_BLOCKS, Head, Tally};
use crate::schedule::{Duty, Job, Phase, Run};
use crate::source::{BlockHash, Session, SourceError, ZEROS, hash, holes, is_zero, zero_hash};

const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// An idle worker looks again after this; it is woken for anything that matters.
const IDLE: Duration = Duration::from_secs(1);
/// Fetches of a block whose bytes do not fit the source's hash, before the session is given up as broken.
const MISMATCH_TRIES: u32 = 3;

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the local file")]
    Local(#[from] std::io::Error),
    #[error("the map")]
    Map(#[from] VolumeError),
    #[error("poisoned")]
    Poisoned,
}

/// A worker's own things: one session, one buffer.
struct Worker<'a> {
    inner: &'a Inner,
    index: usize,
    session: Option<Box<dyn Session>>,
    /// What of the session's wire bytes is already in the counter.
    counted_bytes: u64,
    buf: Vec<u8>,
    hashes: Vec<BlockHash>,
}

/// The body of a worker's thread; ends when the device closes, is poisoned or is complete.
pub(super) fn worker(inner: &Inner, index: usize, demand_only: bool) {
    let buf = vec![0; (GROUP_BLOCKS * BLOCK_BYTES) as usize];
    let mut worker = Worker { inner, index, session: None, counted_bytes: 0, buf, hashes: Vec::new() };
    let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
    worker.wait_for_release();
    while let Some(job) = next_job(inner, demand_only) {
        let result = worker.run(job);
        worker.count_wire();
        {
            let mut work = inner.lock_work();
            work.schedule.finished(job, result.is_ok());
            work.progress += 1;
            if work.schedule.phase() > Phase::Scan {
                let found = inner.counters.scanned_data_bytes.load(Ordering::SeqCst);
                inner.map.tally(Tally::SourceData).store(found + 1, Ordering::SeqCst);
            }
            if result.is_ok() {
                work.lost = None;
            }
        }
        inner.arrived.notify_all();
        inner.wake.notify_all();
        match result {
            Ok(()) => backoff.reset(),
            Err(JobError::Poisoned) => return,
            Err(error) => worker.failed(&error, backoff.next_wait()),
        }
    }
}

/// Waits for something to do.
fn next_job(inner: &Inner, demand_only: bool) -> Option<Job> {
    let mut work = inner.lock_work();
    loop {
        if work.closing || inner.map.poisoned() || inner.map.complete() {
            return None;
        }
        let (duty, wait) = if demand_only {
            (Duty::Demand, IDLE)
        } else {
            match work.pace.ready(inner.now_us()) {
                Ok(()) => (Duty::Any { background: true }, IDLE),
                Err(wait_us) => (Duty::Any { background: false }, Duration::from_micros(wait_us)),
            }
        };
        if let Some(job) = work.schedule.next(duty, &inner.map) {
            if let Job::Fetch { run, .. } = job {
                work.pace.spent(run.count * BLOCK_BYTES);
            }
            return Some(job);
        }
        work = inner.wake.wait_timeout(work, wait).unwrap_or_else(|poison| poison.into_inner()).0;
    }
}

impl Worker<'_> {
    fn run(&mut self, job: Job) -> Result<(), JobError> {
        if self.inner.map.poisoned() {
            return Err(JobError::Poisoned);
        }
        match job {
            Job::Fetch { run, demand } => {
                self.fetch(run)?;
                self.inner.count(Tally::DemandFetches, u64::from(demand));
                self.save_now_and_then(run)
            }
            Job::Scan(run) => self.scan(run),
            Job::Check(run) => self.check(run),
            Job::Verify(run) => self.verify(run),
            Job::Finish => {
                let verified = !self.inner.counters.unchecked.load(Ordering::SeqCst);
                persist::save(self.inner, Some(Head { complete: true, verified, clean: false }))?;
                self.inner.map.set_complete(verified);
                Ok(())
            }
        }
    }

    /// Connects already, so that the first read after the handoff costs no handshake; a source that is not there yet is
    /// no loss.
    fn wait_for_release(&mut self) {
        let inner = self.inner;
        while inner.is_held() {
            if let Err(error) = self.session() {
                tracing::debug!(error = %chain(&error), "the source is not there yet");
            }
            let work = inner.lock_work();
            if work.closing || inner.map.poisoned() {
                return;
            }
            if inner.is_held() {
                drop(inner.wake.wait_timeout(work, IDLE));
            }
        }
    }

    /// Drops the session, says that the source is lost, and waits; a closing device does not wait.
    fn failed(&mut self, error: &JobError, wait: Duration) {
        self.session = None;
        self.counted_bytes = 0;
        let local = matches!(error, JobError::Local(_) | JobError::Map(_));
        if let JobError::Local(cause) = error
            && cause.kind() == std::io::ErrorKind::StorageFull
        {
            self.inner.count(Tally::NoSpace, 1);
        }
        tracing::warn!(error = %chain(error), "a fetch failed and is tried again");
        let until = Instant::now() + wait;
        let mut work = self.inner.lock_work();
        work.interrupters[self.index] = Default::default();
        work.last_error = Some(chain(error));
        if !local {
            let since = work.lost.as_ref().map_or_else(Instant::now, |(since, _)| *since);
            work.lost = Some((since, chain(error)));
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || work.closing || self.inner.map.poisoned() {
                return;
            }
            work = self.inner.wake.wait_timeout(work, left).unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    fn session(&mut self) -> Result<&mut Box<dyn Session>, JobError> {
        if self.session.is_none() {
            // A device without a source has no workers.
            let source = self.inner.source.as_ref().ok_or_else(|| SourceError::new("is not there"))?;
            let session = source.connect()?;
            if session.size_bytes() != self.inner.geometry.size_bytes() {
                let what = format!("has {} bytes, not {}", session.size_bytes(), self.inner.geometry.size_bytes());
                return Err(SourceError::new(what).into());
            }
            self.inner.count(Tally::Connects, 1);
            self.inner.lock_work().interrupters[self.index] = session.interrupter();
            self.session = Some(session);
        }
        self.session.as_mut().ok_or_else(|| SourceError::new("is not there").into())
    }

    fn count_wire(&mut self) {
        if let Some(session) = &self.session {
            let now = session.wire_bytes();
            self.inner.count(Tally::WireBytes, now - self.counted_bytes);
            self.counted_bytes = now;
        }
    }

    fn fetch(&mut self, run: Run) -> Result<(), JobError> {
        let (start, end) = self.inner.geometry.span(run.first, run.count);
        let len = (end - start) as usize;
        for _ in 0..MISMATCH_TRIES {
            let mut buf = std::mem::take(&mut self.buf);
            let mut hashes = std::mem::take(&mut self.hashes);
            let result = self.session().and_then(|session| Ok(session.fetch(start, &mut buf[..len], &mut hashes)?));
            (self.buf, self.hashes) = (buf, hashes);
            result?;
            let wrong = self.wrong_blocks(run, len)?;
            if wrong == 0 {
                self.commit(run, start, len)?;
                self.inner.remembered.keep(run.first, &self.hashes);
                return Ok(());
            }
            self.inner.count(Tally::Mismatches, wrong);
            tracing::warn!(
                first_block = run.first,
                wrong,
                "blocks that do not fit the source's hash are fetched again"
            );
        }
        Err(SourceError::new("keeps sending bytes that do not fit its hashes").into())
    }

    /// How many blocks of the buffer are not what the source's manifest says.
    fn wrong_blocks(&self, run: Run, len: usize) -> Result<u64, JobError> {
        if self.hashes.is_empty() && !self.inner.config.manifest_required {
            return Ok(0);
        }
        if self.hashes.len() as u64 != run.count {
            return Err(SourceError::new("offers no hashes for its blocks").into());
        }
        let blocks = self.buf[..len].chunks(BLOCK_BYTES as usize).zip(&self.hashes);
        Ok(blocks.filter(|(bytes, expected)| hash(bytes) != **expected).count() as u64)
    }

    /// Puts what arrived into the file, but for blocks that became present meanwhile: those are the guest's.
    fn commit(&mut self, run: Run, start: u64, len: usize) -> Result<(), JobError> {
        let inner = self.inner;
        let _alone = inner.stripe(run.first).write().unwrap_or_else(|poison| poison.into_inner());
        if inner.map.poisoned() {
            return Err(JobError::Poisoned);
        }
        let chunk = |block: u64| {
            let (from, to) = inner.geometry.span(block, 1);
            (from - start) as usize..(to - start) as usize
        };
        let absent = |block: u64| block < run.first + run.count && !inner.map.present(block);
        let zero = |block: u64| is_zero(&self.buf[..len][chunk(block)]);
        let mut block = run.first;
        while block < run.first + run.count {
            if !absent(block) {
                block += 1;
                continue;
            }
            let is_hole = zero(block);
            let first = block;
            while absent(block) && zero(block) == is_hole {
                block += 1;
            }
            let bytes = chunk(first).start..chunk(block - 1).end;
            let at = start + bytes.start as u64;
            if is_hole {
                clear(inner, at, bytes.len() as u64)?;
            } else {
                inner.backing.write(at, &self.buf[bytes.clone()])?;
                inner.count(Tally::HydratedBytes, bytes.len() as u64);
            }
            (first..block).for_each(|block| inner.map.fetched(block));
        }
        Ok(())
    }

    fn save_now_and_then(&self, run: Run) -> Result<(), JobError> {
        let bytes = run.count * BLOCK_BYTES;
        let unsaved = self.inner.counters.unsaved_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unsaved >= self.inner.config.persist_bytes {
            persist::save(self.inner, None)?;
        }
        Ok(())
    }

    /// The source's holes become present: they are never fetched.
    fn scan(&mut self, run: Run) -> Result<(), JobError> {
        let inner = self.inner;
        let (mut at, end) = inner.geometry.span(run.first, run.count);
        let mut data = 0;
        while at < end {
            let extents = self.session()?.extents(at, end - at)?;
            if extents.iter().all(|extent| extent.len == 0) {
                return Err(SourceError::new("answers nothing about its holes").into());
            }
            for extent in extents {
                let stop = (at + extent.len).min(end);
                if extent.zero {
                    self.zero_blocks(at, stop)?;
                } else {
                    data += stop - at;
                }
                at = stop;
            }
        }
        // Once, when all of the run is known: a run that fails is scanned again from its start.
        count(&inner.counters.scanned_data_bytes, data);
        Ok(())
    }

    /// Whole blocks within `[from, to)` are zeros at the source.
    fn zero_blocks(&self, from: u64, to: u64) -> Result<(), JobError> {
        let inner = self.inner;
        let last = if to == inner.geometry.size_bytes() { inner.geometry.blocks() } else { to / BLOCK_BYTES };
        let mut block = from.div_ceil(BLOCK_BYTES);
        if block >= last {
            return Ok(());
        }
        // Asked once for all: an absent block that is a hole now can only be filled under the lock, becoming present.
        let (start, end) = inner.geometry.span(block, last - block);
        let dirty = inner.backing.extents(start, end - start)?.iter().any(|extent| !extent.zero);
        while block < last {
            let stop = ((block / GROUP_BLOCKS + 1) * GROUP_BLOCKS).min(last);
            let _alone = inner.stripe(block).write().unwrap_or_else(|poison| poison.into_inner());
            for block in (block..stop).filter(|block| !inner.map.present(*block)) {
                let (start, end) = inner.geometry.span(block, 1);
                if dirty {
                    clear(inner, start, end - start)?;
                }
                inner.map.fetched(block);
            }
            block = stop;
        }
        Ok(())
    }

    /// Absent blocks whose bytes stand in the local file already, from before the move or before a crash, become present
    /// if the source's hashes say so.
    fn check(&mut self, run: Run) -> Result<(), JobError> {
        let inner = self.inner;
        let (start, end) = inner.geometry.span(run.first, run.count);
        let holes = holes(&inner.geometry, run.first, run.count, &inner.backing.extents(start, end - start)?);
        let candidates: Vec<u64> = (run.first..)
            .zip(holes)
            .filter_map(|(block, hole)| (!hole && !inner.map.present(block)).then_some(block))
            .collect();
        let (Some(first), Some(last)) = (candidates.first().copied(), candidates.last().copied()) else {
            return Ok(());
        };
        // Without a manifest nothing is known of them: the copier fetches them.
        let Some(expected) = self.session()?.hashes(first, last - first + 1)? else { return Ok(()) };
        if expected.len() as u64 != last - first + 1 {
            return Err(SourceError::new("sent too few hashes").into());
        }
        let mut local = vec![0; BLOCK_BYTES as usize];
        let mut found = 0;
        for block in candidates {
            let (start, end) = inner.geometry.span(block, 1);
            let local = &mut local[..(end - start) as usize];
            inner.backing.read(start, local)?;
            if hash(local) != expected[(block - first) as usize] {
                continue;
            }
            let _alone = inner.stripe(block).write().unwrap_or_else(|poison| poison.into_inner());
            if inner.map.poisoned() {
                return Err(JobError::Poisoned);
            }
            // Whatever changes an absent block's bytes makes it present, under this lock: these are still the ones.
            if !inner.map.present(block) {
                inner.map.fetched(block);
                inner.checked(block);
                found += end - start;
            }
        }
        inner.count(Tally::FoundBytes, found);
        Ok(())
    }

    /// Compares what stands in the local file with the source, block by block, but for what the guest wrote.
    fn verify(&mut self, run: Run) -> Result<(), JobError> {
        let inner = self.inner;
        if (run.first..run.first + run.count).all(|block| inner.map.written(block) || inner.is_checked(block)) {
            count(&inner.counters.verified_blocks, run.count);
            return Ok(());
        }
        let expected = self.expected(run)?;
        let mut local = vec![0; BLOCK_BYTES as usize];
        let (start, end) = inner.geometry.span(run.first, run.count);
        let holes = holes(&inner.geometry, run.first, run.count, &inner.backing.extents(start, end - start)?);
        for ((block, expected), hole) in (run.first..).zip(&expected).zip(holes) {
            // Written or compared already, or there is nothing to compare with.
            let Some(expected) = expected else {
                count(&inner.counters.verified_blocks, 1);
                continue;
            };
            if hole && *expected == zero_hash() {
                count(&inner.counters.verified_blocks, 1);
                continue;
            }
            let (start, end) = inner.geometry.span(block, 1);
            let local = &mut local[..(end - start) as usize];
            inner.backing.read(start, local)?;
            // Read before the bit: a guest's byte in `local` means that its bit is set by now.
            if hash(local) != *expected && !inner.map.written(block) {
                self.refetch(block)?;
            }
            count(&inner.counters.verified_blocks, 1);
        }
        Ok(())
    }

    /// What the source says of each block of a run that is to be compared: remembered from its arrival, or asked for.
    fn expected(&mut self, run: Run) -> Result<Vec<Option<BlockHash>>, JobError> {
        let inner = self.inner;
        let mut expected = inner.remembered.take(run);
        let mut wanted = vec![false; run.count as usize];
        for (block, (expected, wanted)) in (run.first..).zip(expected.iter_mut().zip(&mut wanted)) {
            if inner.map.written(block) || inner.is_checked(block) {
                *expected = None;
            } else {
                *wanted = expected.is_none();
            }
        }
        for ask in questions(run.first, &wanted) {
            let Some(hashes) = self.session()?.hashes(ask.first, ask.count)? else {
                if inner.config.manifest_required {
                    return Err(SourceError::new("offers no hashes for its blocks").into());
                }
                inner.counters.unchecked.store(true, Ordering::SeqCst);
                return Ok(vec![None; run.count as usize]);
            };
            if hashes.len() as u64 != ask.count {
                return Err(SourceError::new("sent too few hashes").into());
            }
            for (block, hash) in (ask.first..).zip(hashes) {
                let at = (block - run.first) as usize;
                if wanted[at] {
                    expected[at] = Some(hash);
                }
            }
        }
        Ok(expected)
    }

    /// The local bytes of this block are wrong. Under the lock no guest writes to it; if one did before, it is theirs.
    fn refetch(&mut self, block: u64) -> Result<(), JobError> {
        {
            let _alone = self.inner.stripe(block).write().unwrap_or_else(|poison| poison.into_inner());
            if self.inner.map.written(block) {
                return Ok(());
            }
            self.inner.map.distrust(block);
        }
        self.inner.count(Tally::Mismatches, 1);
        tracing::warn!(block, "the local file differs from the source; the block is fetched again");
        self.fetch(Run { first: block, count: 1 })
    }
}

/// Space in the local file for every stretch of data at the source. What stands there already is not touched.
pub(super) fn reserve(inner: &Inner) -> crate::Result<()> {
    let Some(source) = inner.source.as_ref().filter(|_| !inner.map.complete()) else {
        return Ok(());
    };
    let size = inner.geometry.size_bytes();
    let mut session = source.connect()?;
    let mut at = 0;
    while at < size {
        let extents = session.extents(at, (size - at).min(1 << 30))?;
        if extents.iter().all(|extent| extent.len == 0) {
            return Err(SourceError::new("answers nothing about its holes").into());
        }
        for extent in extents {
            let len = extent.len.min(size - at);
            if !extent.zero {
                inner.backing.reserve(at, len).map_err(VolumeError::io("reserving space for the volume"))?;
            }
            at += len;
        }
    }
    Ok(())
}

/// Zeros where something may stand, from before a crash; a hole is left as it is.
fn clear(inner: &Inner, start: u64, len: u64) -> std::io::Result<()> {
    debug_assert!(len <= GROUP_BLOCKS * ZEROS.len() as u64);
    if inner.backing.extents(start, len)?.iter().any(|extent| !extent.zero) {
        inner.backing.punch(start, len)?;
    }
    Ok(())
}
