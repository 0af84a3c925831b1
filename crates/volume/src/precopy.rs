//! Pre-copy: fills a clone's file from a source that still runs, before the handoff. What it brings is only a guess:
//! no bit of a map is set, and after the handoff every block of it is compared with the source's hash before a guest
//! sees it (`Phase::Check`). So it needs no tracking of what the source writes meanwhile: a later pass compares by
//! hashes and fetches what differs. It must not be used on a file that a clone serves already.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use godwit_base::backoff::Backoff;
use serde::{Deserialize, Serialize};

use crate::backing::Backing;
use crate::device::lock;
use crate::error::{Result, VolumeError, chain};
use crate::keeper::control;
use crate::lock::{Lock, path_of};
use crate::map::{BLOCK_BYTES, GROUP_BLOCKS, Geometry};
use crate::pace::{Limits, Pace};
use crate::source::{Session, Source, SourceError, SourceResult, hash, holes, is_zero};
use crate::spec::SourceSpec;

/// Sessions with the source, each with a thread.
const WORKERS: usize = 2;
/// Blocks that are looked at in one go: 16 MiB.
const CHUNK_BLOCKS: u64 = 256;
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// A source that does not answer for so long ends the pre-copy: the move does without.
const GIVE_UP: Duration = Duration::from_secs(30);
/// Passes at most: each is as long as what the source wrote during the one before.
const MAX_PASSES: u32 = 8;
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What a pre-copy is told, as one JSON file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecopySpec {
    pub source: SourceSpec,
    /// The file that will be the clone's. Made if it is not there.
    pub local: PathBuf,
    pub size_bytes: u64,
    /// Of these only the cap counts: no guest of ours waits.
    #[serde(default)]
    pub limits: Limits,
    /// 1 to 8; it ends early when a pass finds nothing to fetch.
    pub passes: u32,
    /// Where it listens while it runs.
    pub control: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum PrecopyAsk {
    Status,
    /// Ends it soon; what was copied stays.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrecopyStatus {
    pub pid: u32,
    /// From 1.
    pub pass: u32,
    /// How far this pass has come, and what it fetched.
    pub seen_bytes: u64,
    pub size_bytes: u64,
    pub pass_copied_bytes: u64,
    /// Over all passes.
    pub copied_bytes: u64,
    pub wire_bytes: u64,
    pub done: bool,
    pub last_error: Option<String>,
}

impl PrecopySpec {
    pub fn read(path: &Path) -> Result<Self> {
        let what = |verb: &str| VolumeError::io(format!("{verb} {}", path.display()));
        let text = std::fs::read(path).map_err(what("reading"))?;
        let spec: Self = serde_json::from_slice(&text).map_err(|error| what("understanding")(error.into()))?;
        match spec.passes {
            1..=MAX_PASSES => Ok(spec),
            passes => Err(VolumeError::Process { what: format!("{passes} passes; 1 to {MAX_PASSES} are supported") }),
        }
    }
}

struct Copy {
    geometry: Geometry,
    file: File,
    source: Arc<dyn Source>,
    pace: Mutex<Pace>,
    began: Instant,
    pass: AtomicU64,
    /// The next block that nobody looks at yet.
    cursor: AtomicU64,
    seen_bytes: AtomicU64,
    pass_copied_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    wire_bytes: AtomicU64,
    stopping: AtomicBool,
    done: AtomicBool,
    last_error: Mutex<Option<String>>,
}

/// Removes what `result_of` names.
pub fn forget_result(control: &Path) -> Result<()> {
    match std::fs::remove_file(result_of(control)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(VolumeError::io("removing what an earlier pre-copy told")(error))
        }
        _ => Ok(()),
    }
}

/// Where the last status of whoever listens at `control` lies, once it has ended well.
pub fn result_of(control: &Path) -> PathBuf {
    control.with_extension("result")
}

/// The whole life of a pre-copy's process. Ends well also when it was stopped.
pub fn run(spec: &PrecopySpec) -> Result<PrecopyStatus> {
    let _only = Lock::take(&path_of(&spec.control), LOCK_PATIENCE)?;
    // An earlier one's is not this one's.
    forget_result(&spec.control)?;
    let geometry = Geometry::new(spec.size_bytes)?;
    let what = || VolumeError::io(format!("opening {}", spec.local.display()));
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).open(&spec.local).map_err(what())?;
    file.set_len(spec.size_bytes).map_err(what())?;
    let copy = Arc::new(Copy {
        geometry,
        file,
        source: spec.source.open()?,
        pace: Mutex::new(Pace::new(spec.limits, 0)),
        began: Instant::now(),
        pass: AtomicU64::new(0),
        cursor: AtomicU64::new(0),
        seen_bytes: AtomicU64::new(0),
        pass_copied_bytes: AtomicU64::new(0),
        copied_bytes: AtomicU64::new(0),
        wire_bytes: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        done: AtomicBool::new(false),
        last_error: Mutex::new(None),
    });
    let answering = Arc::clone(&copy);
    let listening = control::listen(&spec.control, move |ask: PrecopyAsk| {
        if ask == PrecopyAsk::Stop {
            answering.stopping.store(true, Ordering::SeqCst);
        }
        Ok::<_, String>(answering.status())
    })?;
    for _ in 0..spec.passes {
        copy.one_pass()?;
        if copy.stopping.load(Ordering::SeqCst) || copy.pass_copied_bytes.load(Ordering::SeqCst) == 0 {
            break;
        }
    }
    // So that the handoff's own syncs have little left to write.
    copy.file.sync().map_err(VolumeError::io("syncing what was copied"))?;
    copy.done.store(true, Ordering::SeqCst);
    let status = copy.status();
    // Before it falls silent: who asks in vain finds it. Only telemetry hangs on it, so a disk that is full spoils nothing.
    let text = serde_json::to_vec(&status).unwrap_or_default();
    let _ = std::fs::write(result_of(&spec.control), text);
    drop(listening);
    Ok(status)
}

impl Copy {
    fn status(&self) -> PrecopyStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        PrecopyStatus {
            pid: std::process::id(),
            pass: get(&self.pass) as u32,
            seen_bytes: get(&self.seen_bytes),
            size_bytes: self.geometry.size_bytes(),
            pass_copied_bytes: get(&self.pass_copied_bytes),
            copied_bytes: get(&self.copied_bytes),
            wire_bytes: get(&self.wire_bytes),
            done: self.done.load(Ordering::SeqCst),
            last_error: lock(&self.last_error).clone(),
        }
    }

    fn one_pass(&self) -> Result<()> {
        self.pass.fetch_add(1, Ordering::SeqCst);
        for counter in [&self.cursor, &self.seen_bytes, &self.pass_copied_bytes] {
            counter.store(0, Ordering::SeqCst);
        }
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| self.work())).collect();
            let ends: Vec<Result<()>> = workers.into_iter().map(|worker| joined(worker.join())).collect();
            ends.into_iter().collect()
        })
    }

    /// One worker's part of a pass.
    fn work(&self) -> Result<()> {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
        let mut session: Option<Box<dyn Session>> = None;
        let mut failing: Option<Instant> = None;
        let mut buf = vec![0; (GROUP_BLOCKS * BLOCK_BYTES) as usize];
        while !self.stopping.load(Ordering::SeqCst) {
            let first = self.cursor.fetch_add(CHUNK_BLOCKS, Ordering::SeqCst);
            if first >= self.geometry.blocks() {
                break;
            }
            let count = CHUNK_BLOCKS.min(self.geometry.blocks() - first);
            while !self.stopping.load(Ordering::SeqCst) {
                match self.chunk(&mut session, first, count, &mut buf) {
                    Ok(()) => {
                        (failing, _) = (None, backoff.reset());
                        break;
                    }
                    Err(error @ VolumeError::Source(_)) => {
                        session = None;
                        *lock(&self.last_error) = Some(chain(&error));
                        if failing.get_or_insert_with(Instant::now).elapsed() >= GIVE_UP {
                            return Err(error);
                        }
                        std::thread::sleep(backoff.next_wait());
                    }
                    Err(error) => return Err(error),
                }
            }
            let (start, end) = self.geometry.span(first, count);
            self.seen_bytes.fetch_add(end - start, Ordering::SeqCst);
        }
        Ok(())
    }

    fn chunk(&self, slot: &mut Option<Box<dyn Session>>, first: u64, count: u64, buf: &mut [u8]) -> Result<()> {
        let session = match slot {
            Some(session) => session,
            None => slot.insert(self.connect()?),
        };
        let before = session.wire_bytes();
        let result = self.compare_and_fetch(session.as_mut(), first, count, buf);
        self.wire_bytes.fetch_add(session.wire_bytes() - before, Ordering::SeqCst);
        result
    }

    fn connect(&self) -> SourceResult<Box<dyn Session>> {
        let session = self.source.connect()?;
        if session.size_bytes() == self.geometry.size_bytes() {
            return Ok(session);
        }
        Err(SourceError::new(format!("has {} bytes, not {}", session.size_bytes(), self.geometry.size_bytes())))
    }

    fn compare_and_fetch(&self, session: &mut dyn Session, first: u64, count: u64, buf: &mut [u8]) -> Result<()> {
        let (start, end) = self.geometry.span(first, count);
        let there = holes(&self.geometry, first, count, &extents(session, start, end)?);
        let here = self.file.extents(start, end - start).map_err(VolumeError::io("listing the local holes"))?;
        let here = holes(&self.geometry, first, count, &here);
        let mut wanted = vec![false; count as usize];
        let mut unsure = false;
        for ((wanted, there), here) in wanted.iter_mut().zip(&there).zip(&here) {
            *wanted = !there;
            unsure |= !there && !here;
        }
        for (block, _) in (first..).zip(there.iter().zip(&here)).filter(|(_, (there, here))| **there && !**here) {
            let (start, end) = self.geometry.span(block, 1);
            self.file.punch(start, end - start).map_err(VolumeError::io("clearing a local block"))?;
        }
        // With nothing here there is nothing to compare.
        if unsure && let Some(hashes) = session.hashes(first, count)? {
            for (at, expected) in hashes.iter().enumerate().filter(|(at, _)| !there[*at] && !here[*at]) {
                wanted[at] = self.local_hash(first + at as u64, buf)? != *expected;
            }
        }
        let mut at = 0;
        while at < count {
            let run =
                wanted[at as usize..].iter().take(GROUP_BLOCKS as usize).take_while(|wanted| **wanted).count() as u64;
            if run > 0 {
                self.fetch(session, first + at, run, buf)?;
            }
            at += run.max(1);
        }
        Ok(())
    }

    fn local_hash(&self, block: u64, buf: &mut [u8]) -> Result<crate::source::BlockHash> {
        let (start, end) = self.geometry.span(block, 1);
        let buf = &mut buf[..(end - start) as usize];
        self.file.read(start, buf).map_err(VolumeError::io("reading a local block"))?;
        Ok(hash(buf))
    }

    fn fetch(&self, session: &mut dyn Session, first: u64, count: u64, buf: &mut [u8]) -> Result<()> {
        let (start, end) = self.geometry.span(first, count);
        let len = end - start;
        loop {
            let wait_us = {
                let mut pace = lock(&self.pace);
                match pace.ready(self.began.elapsed().as_micros() as u64) {
                    Ok(()) => {
                        pace.spent(len);
                        break;
                    }
                    Err(wait_us) => wait_us,
                }
            };
            if self.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(wait_us));
        }
        let bytes = &mut buf[..len as usize];
        // The source writes meanwhile, so bytes and hashes may differ: that is found after the handoff.
        session.fetch(start, bytes, &mut Vec::new())?;
        let done = if is_zero(bytes) { self.file.punch(start, len) } else { self.file.write(start, bytes) };
        done.map_err(VolumeError::io("writing a local block"))?;
        self.copied_bytes.fetch_add(len, Ordering::SeqCst);
        self.pass_copied_bytes.fetch_add(len, Ordering::SeqCst);
        Ok(())
    }
}

/// All extents of a stretch; a source may answer in parts.
fn extents(session: &mut dyn Session, start: u64, end: u64) -> SourceResult<Vec<crate::source::Extent>> {
    let (mut at, mut found) = (start, Vec::new());
    while at < end {
        let part = session.extents(at, end - at)?;
        let len: u64 = part.iter().map(|extent| extent.len).sum();
        if len == 0 {
            return Err(SourceError::new("answers nothing about its holes"));
        }
        at += len;
        found.extend(part);
    }
    Ok(found)
}

fn joined(end: std::thread::Result<Result<()>>) -> Result<()> {
    end.unwrap_or_else(|_| Err(VolumeError::Process { what: "a pre-copy's worker panicked".to_owned() }))
}
