//! A FUSE server of one file, `volume.raw`, over a clone device: by hand, because adoption after a crash needs what no
//! crate offers. It owns threads and replies; `wire` owns the kernel's structs. It must not know who mounted it.
//!
//! A few threads read requests. One that cannot be answered yet, because its block is still at the source, is put
//! aside (bounded; the kernel bounds it too) and answered by a thread of its own, so that with the source gone all
//! that is here is still served, however many reads wait.
//!
//! **The queue's end.** Through a loop device that holds up to 128 requests in flight: its one queue has that many tags,
//! fixed when the kernel boots (`loop.hw_queue_depth`), and one that waits for the source keeps its tag. So while 128
//! wait, no further one reaches this server, also not of blocks that are here. No place of ours is ever short: there are
//! twice as many (`MAX_WAITING`). What waits is at most one request of each reader and its readahead, and the writeback
//! of parts of missing blocks. An operator who cannot live with that gives the loop device more tags at boot; an agent
//! that must get out uses poison.

mod wire;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount as mount_at, umount2};

pub use self::wire::MAX_IO_BYTES;
use self::wire::{Operation, Reply, Request};
use super::Frontend;
use super::loop_device::FileId;
use crate::device::{CloneDevice, lock};
use crate::error::{Result, VolumeError};
use crate::process;

/// What the table of mounts shows.
const SOURCE: &str = "godwit-volume";
/// The one file in the root.
pub const FILE_NAME: &str = "volume.raw";
/// Threads that read requests. Two more than may wait for a sync at once is plenty: syncs share commits.
const READERS: usize = 6;
/// Requests that wait for their blocks.
const MAX_WAITING: usize = 256;
/// The waiting thread looks again after this when nothing arrives.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A write to a full disk is tried again after this.
const FULL_AGAIN: Duration = Duration::from_millis(250);

/// Mounts an empty FUSE file system and returns its descriptor. No server is needed yet: requests wait.
pub fn mount(folder: &Path) -> Result<File> {
    let fuse =
        File::options().read(true).write(true).open("/dev/fuse").map_err(VolumeError::io("opening /dev/fuse"))?;
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={MAX_IO_BYTES}", fuse.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at(Some(SOURCE), folder, Some("fuse"), flags, Some(options.as_str()))
        .map_err(|error| VolumeError::io(format!("mounting {}", folder.display()))(error.into()))?;
    Ok(fuse)
}

/// Ends a mount: what waits in it fails at once, and its name goes away. One that is gone already is fine.
pub fn unmount(folder: &Path) -> Result<()> {
    abort(folder);
    match umount2(folder, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(VolumeError::io(format!("unmounting {}", folder.display()))(error.into())),
    }
}

/// Fails what waits in a mount and all that comes, whether or not it is in use. The mount stays.
pub fn abort(folder: &Path) {
    // Busy or not there: either way nothing is served any more.
    let _ = umount2(folder, MntFlags::MNT_FORCE);
}

/// Whether a connection can still be served: not unmounted, not aborted.
pub fn is_alive(fuse: &File) -> bool {
    process::poll(fuse.as_fd(), Some(Duration::ZERO)).is_ok_and(|events| events & libc::POLLERR == 0)
}

/// The topmost of our file systems that is mounted exactly here, alive or dead: the file that it shows. Read from the
/// table of mounts, because a dead one cannot be looked at.
pub fn file_at(folder: &Path) -> Option<FileId> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let folder = canonical(folder)?;
    table.lines().rev().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut words = place.split(' ').skip(2);
        let (device, at) = (words.next()?, words.nth(1)?);
        let mut kind = kind.split(' ');
        if kind.next()? != "fuse" || kind.next()? != SOURCE || Path::new(&unescaped(at)) != folder {
            return None;
        }
        let (major, minor) = device.split_once(':')?;
        let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(FileId { device, inode: wire::FILE })
    })
}

/// The folder's true name, without a look at what is mounted on it.
pub fn canonical(folder: &Path) -> Option<PathBuf> {
    Some(folder.parent()?.canonicalize().ok()?.join(folder.file_name()?))
}

/// As in /proc: a space is `\040`, and so on.
fn unescaped(text: &str) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let octal = more.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &more[3..];
            }
            _ => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// A request that waits: for its blocks, or for room on the host's disk.
struct Waiting {
    unique: u64,
    operation: Operation,
    payload: Vec<u8>,
    /// Not before then: the disk was full.
    again_at: Option<Instant>,
}

/// What became of a request.
#[derive(PartialEq, Eq)]
enum Performed {
    Answered,
    /// The host's disk is full. A guest would take an error for a broken disk, and a pause for a slow one.
    Full,
}

/// What a thread answers with.
struct Out {
    facts: Vec<u8>,
    bytes: Vec<u8>,
}

impl Out {
    fn new() -> Self {
        // Written to, as the buffer for requests is.
        Self { facts: Vec::with_capacity(256), bytes: vec![1; MAX_IO_BYTES] }
    }
}

struct Shared {
    fuse: File,
    device: Arc<CloneDevice>,
    waiting: Mutex<VecDeque<Waiting>>,
    /// Something came to wait, or the end.
    came: Condvar,
    ended: std::sync::atomic::AtomicBool,
}

pub struct FuseFront {
    fuse: Option<File>,
    threads: Vec<JoinHandle<()>>,
}

impl FuseFront {
    /// Over a descriptor of `mount`, new or of a server that died.
    pub fn new(fuse: File) -> Self {
        Self { fuse: Some(fuse), threads: Vec::new() }
    }
}

impl Frontend for FuseFront {
    fn start(&mut self, device: Arc<CloneDevice>) -> Result<()> {
        let fuse = self.fuse.take().ok_or_else(|| VolumeError::Front { what: "it was started before".to_owned() })?;
        // Whatever a predecessor read and did not answer comes again. On a new mount there is nothing to resend.
        if let Err(error) = wire::send_resend(&fuse) {
            tracing::debug!(%error, "nothing to resend");
        }
        let shared = Arc::new(Shared {
            fuse,
            device,
            waiting: Mutex::new(VecDeque::new()),
            came: Condvar::new(),
            ended: std::sync::atomic::AtomicBool::new(false),
        });
        for index in 0..READERS {
            let shared = Arc::clone(&shared);
            self.spawn(format!("fuse-{index}"), move || shared.read_requests())?;
        }
        self.spawn("fuse-wait".to_owned(), move || shared.answer_waiting())
    }

    fn wait(&mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked serves no more, as one that ended.
            let _ = thread.join();
        }
    }
}

impl FuseFront {
    fn spawn(&mut self, name: String, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(body);
        self.threads.push(thread.map_err(VolumeError::io("starting a FUSE thread"))?);
        Ok(())
    }
}

impl Shared {
    /// One reader's life: until the file system is unmounted.
    fn read_requests(&self) {
        // Written to, not merely allocated: if this process is killed while the kernel copies a request into a page that
        // it must fault in first, the kernel fails that request with EIO instead of keeping it for our successor.
        let mut buf = vec![1; MAX_IO_BYTES + wire::MAX_HEAD_BYTES];
        let mut out = Out::new();
        loop {
            match wire::read(&self.fuse, &mut buf) {
                Ok(Some(len)) => {
                    if let Err(error) = self.take(&buf[..len], &mut out) {
                        tracing::warn!(%error, "a FUSE request could not be answered");
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "/dev/fuse cannot be read");
                    break;
                }
            }
        }
        self.ended.store(true, std::sync::atomic::Ordering::SeqCst);
        self.came.notify_all();
    }

    fn take(&self, message: &[u8], out: &mut Out) -> io::Result<()> {
        let Some(request) = Request::decode(message) else {
            return Err(io::Error::other("a request that makes no sense"));
        };
        let again_at = if !self.is_ready(&request.operation) {
            None
        } else if self.perform(request.unique, &request.operation, request.payload, out)? == Performed::Full {
            Some(Instant::now() + FULL_AGAIN)
        } else {
            return Ok(());
        };
        {
            let mut waiting = lock(&self.waiting);
            if waiting.len() < MAX_WAITING {
                let Request { unique, operation, payload } = request;
                waiting.push_back(Waiting { unique, operation, payload: payload.to_vec(), again_at });
                self.came.notify_all();
                return Ok(());
            }
        }
        // When all places are taken, this thread waits itself: the kernel stops sending sooner or later.
        while self.perform(request.unique, &request.operation, request.payload, out)? == Performed::Full {
            std::thread::sleep(FULL_AGAIN);
        }
        Ok(())
    }

    /// Whether it can be done without waiting for the source. If not, its blocks are asked for.
    fn is_ready(&self, operation: &Operation) -> bool {
        match *operation {
            Operation::Read { offset, size } => {
                let end = (offset + u64::from(size)).min(self.device.size_bytes());
                self.device.prefetch(offset, end.saturating_sub(offset))
            }
            Operation::Write { offset, size } => self.device.prefetch_for_write(offset, u64::from(size)),
            Operation::Allocate { offset, len, .. } => self.device.prefetch_for_write(offset, len),
            _ => true,
        }
    }

    fn answer_waiting(&self) {
        let mut out = Out::new();
        let mut seen = 0;
        loop {
            let mut held = lock(&self.waiting);
            while held.is_empty() {
                if self.ended.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                held = self.came.wait_timeout(held, LOOK_AGAIN).unwrap_or_else(|poison| poison.into_inner()).0;
            }
            let all = std::mem::take(&mut *held);
            drop(held);
            let now = Instant::now();
            let (ready, mut rest): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(|waiting| {
                waiting.again_at.is_none_or(|again_at| again_at <= now) && self.is_ready(&waiting.operation)
            });
            let idle = ready.is_empty();
            for waiting in ready {
                match self.perform(waiting.unique, &waiting.operation, &waiting.payload, &mut out) {
                    Ok(Performed::Answered) => {}
                    Ok(Performed::Full) => {
                        rest.push_back(Waiting { again_at: Some(Instant::now() + FULL_AGAIN), ..waiting });
                    }
                    Err(error) => tracing::warn!(%error, "a FUSE request could not be answered"),
                }
            }
            {
                let mut held = lock(&self.waiting);
                // What came meanwhile is younger.
                rest.into_iter().rev().for_each(|waiting| held.push_front(waiting));
            }
            if idle && !self.ended.load(std::sync::atomic::Ordering::SeqCst) {
                seen = self.device.wait_progress(seen, LOOK_AGAIN);
            }
        }
    }

    fn perform(&self, unique: u64, operation: &Operation, payload: &[u8], out: &mut Out) -> io::Result<Performed> {
        let data = &mut out.facts;
        data.clear();
        let size = self.device.size_bytes();
        let done = match *operation {
            Operation::Init { minor, flags } => {
                wire::init(minor, flags, data);
                Reply::Data
            }
            Operation::Lookup => {
                if payload.strip_suffix(&[0]) == Some(FILE_NAME.as_bytes()) {
                    wire::entry(size, data);
                    Reply::Data
                } else {
                    Reply::Error(libc::ENOENT)
                }
            }
            Operation::Attributes { node } => {
                wire::attributes(node, size, data);
                Reply::Data
            }
            // A size of its own is not for guests to choose.
            Operation::SetAttributes { node, size: wanted } if wanted.is_none_or(|wanted| wanted == size) => {
                wire::attributes(node, size, data);
                Reply::Data
            }
            Operation::SetAttributes { .. } => Reply::Error(libc::EPERM),
            Operation::Open { folder } => {
                wire::opened(folder, data);
                Reply::Data
            }
            Operation::Read { offset, size: wanted } => {
                let wanted = u64::from(wanted).min(size.saturating_sub(offset)) as usize;
                let bytes = &mut out.bytes[..wanted.min(MAX_IO_BYTES)];
                let done = told(self.device.read(offset, bytes));
                return wire::reply(&self.fuse, unique, done, bytes).map(|()| Performed::Answered);
            }
            Operation::Write { offset, size } => {
                wire::written(size, data);
                match payload.get(..size as usize) {
                    Some(payload) => told(self.device.write(offset, payload)),
                    None => Reply::Error(libc::EINVAL),
                }
            }
            Operation::Sync => told(self.device.flush()),
            Operation::Allocate { offset, len, mode } => self.allocate(offset, len, mode),
            Operation::Statistics => {
                wire::statistics(size, data);
                Reply::Data
            }
            Operation::Nothing => Reply::Data,
            Operation::Silent => return Ok(Performed::Answered),
            Operation::Unknown => Reply::Error(libc::ENOSYS),
        };
        let changes = matches!(operation, Operation::Write { .. } | Operation::Allocate { .. });
        if changes && matches!(done, Reply::Error(libc::ENOSPC)) {
            return Ok(Performed::Full);
        }
        wire::reply(&self.fuse, unique, done, data).map(|()| Performed::Answered)
    }

    /// The loop device turns discards and zeroings into these.
    fn allocate(&self, offset: u64, len: u64, mode: u32) -> Reply {
        const PUNCH: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
        const ZERO: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
        const ZERO_KEEP: u32 = (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE) as u32;
        match mode {
            PUNCH => told(self.device.write_zeroes(offset, len, false)),
            ZERO | ZERO_KEEP => told(self.device.write_zeroes(offset, len, true)),
            _ => Reply::Error(libc::EOPNOTSUPP),
        }
    }
}

fn told(result: Result<()>) -> Reply {
    match result {
        Ok(()) => Reply::Data,
        Err(error) => Reply::Error(error.errno()),
    }
}
