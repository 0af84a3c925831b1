//! The keeper of one volume, and the server that it starts. The keeper is small and does nothing that can fail often:
//! it holds the /dev/fuse descriptor, the shared map and the loop device, and starts the server again whenever it
//! dies; guests see a pause. The server holds everything else. Neither knows a Machine.
//!
//! ```text
//!            keeper dies                     another keeper starts
//! keeper ──────────────► server serves on ──────────────────────────► it is handed the descriptors by the server
//!            server dies                     the keeper starts another
//! server ──────────────► requests wait ─────────────────────────────► they are sent again
//!            both die
//! both ────────────────► the kernel fails all IO ───────────────────► the next keeper clears what is left and starts
//!                        (closed, never stale)                        afresh from the durable map
//! ```
//!
//! One keeper at a time, and one server: each holds a lock that the kernel lets go when it dies.

pub mod control;
mod remains;
mod server;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use godwit_base::backoff::Backoff;
use serde::{Deserialize, Serialize};

pub use self::remains::stop_without_keeper;
use self::remains::{DETACH_PATIENCE, FLUSH_PATIENCE, Found};
pub use self::server::{ServerAsk, serve};
use crate::device::lock;
use crate::error::{Result, VolumeError};
use crate::front::fuse;
use crate::front::loop_device::LoopDevice;
use crate::lock::{Lock, path_of};
use crate::map::LiveMap;
use crate::process::{self, Watched};
use crate::shm::SharedBoard;
use crate::spec::VolumeSpec;

const RESTART_FIRST: Duration = Duration::from_millis(10);
const RESTART_MAX: Duration = Duration::from_millis(500);
/// A server that lived this long starts the waits anew.
const LIVED_WELL: Duration = Duration::from_secs(5);
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeeperAsk {
    Status,
    /// Fails all IO of the volume for good, whatever state the server is in.
    Poison,
    /// Detaches the loop device, makes everything durable, ends the server, unmounts, and then ends the keeper.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    pub pid: u32,
    /// 0 while none runs.
    pub server_pid: u32,
    /// Servers that this keeper started.
    pub server_starts: u64,
    /// Whether it found a server at its start.
    pub adopted: bool,
    pub loop_device: Option<PathBuf>,
    /// Why there is no loop device.
    pub attach_error: Option<String>,
    pub poisoned: bool,
    /// What keeper and server were granted for times without memory.
    pub prepared: process::Prepared,
}

struct Keeper {
    spec: VolumeSpec,
    prepared: process::Prepared,
    fuse: File,
    shared: File,
    adopted: bool,
    live: Mutex<Option<LiveMap>>,
    loop_device: Mutex<Option<std::result::Result<LoopDevice, String>>>,
    /// The same, open: it goes with us if nobody else uses it.
    held: Mutex<Option<File>>,
    server: Mutex<Option<Arc<Watched>>>,
    server_starts: AtomicU64,
    stopping: AtomicBool,
    /// Guards nothing: for waits that a stop ends.
    waits: Mutex<()>,
    stop: Condvar,
}

/// The keeper's whole life. `server` makes the command of a server of this spec.
pub fn run(spec: VolumeSpec, server: impl Fn() -> Command) -> Result<()> {
    let prepared = process::prepare_to_serve();
    let _only = Lock::take(&path_of(&spec.control), LOCK_PATIENCE)?;
    let found = match remains::find(&spec)? {
        Some(found) if found.finished => {
            remains::end(&spec, &found)?;
            None
        }
        found => found,
    };
    let (fuse, shared, running) = match found {
        Some(Found { fuse, shared, server, .. }) => (fuse, shared, Some(Arc::new(server))),
        None => {
            remains::clear(&spec)?;
            std::fs::create_dir_all(&spec.mountpoint).map_err(VolumeError::io("making the mountpoint"))?;
            (fuse::mount(&spec.mountpoint)?, SharedBoard::create(LiveMap::board_words(&spec.geometry()?))?, None)
        }
    };
    let keeper = Arc::new(Keeper {
        spec,
        prepared,
        fuse,
        shared,
        adopted: running.is_some(),
        live: Mutex::new(None),
        loop_device: Mutex::new(None),
        held: Mutex::new(None),
        server: Mutex::new(running.clone()),
        server_starts: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        waits: Mutex::new(()),
        stop: Condvar::new(),
    });
    let answering = Arc::clone(&keeper);
    let listening = control::listen(&keeper.spec.control, move |ask| answering.answer(&ask))?;
    let attaching = Arc::clone(&keeper);
    // Opening the file needs a server that answers, so it happens beside the loop that starts one.
    let attached = std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || attaching.attach())
        .map_err(VolumeError::io("starting a thread"))?;
    let kept = keeper.keep(running, &server);
    fuse::abort(&keeper.spec.mountpoint);
    // Its call ends now, one way or the other; only then is it known what there is to detach. Before the unmount: a
    // device over a file without a name is hard to recognise.
    let _ = attached.join();
    drop(lock(&keeper.held).take());
    let device = lock(&keeper.loop_device).take();
    if let Some(Ok(device)) = device {
        let gone = device.detach(DETACH_PATIENCE);
        tracing::info!(device = %device.path.display(), ?gone, "the loop device was let go");
    }
    fuse::unmount(&keeper.spec.mountpoint)?;
    // Last: while it listens, a stop is under way.
    drop(listening);
    kept
}

impl Keeper {
    /// The loop device that an earlier keeper left over this mount, or a new one.
    fn attach(&self) {
        let file = self.spec.mountpoint.join(fuse::FILE_NAME);
        let found = remains::loop_device(&self.spec.mountpoint).and_then(|device| {
            let held = File::open(&device.path).ok()?;
            Some((device, held))
        });
        let found = found.map_or_else(|| LoopDevice::attach_held(&file), Ok);
        let kept = found.map(|(device, held)| {
            *lock(&self.held) = Some(held);
            device
        });
        let kept = kept.map_err(|error| {
            tracing::error!(error = %crate::error::chain(&error), "the loop device could not be attached");
            crate::error::chain(&error)
        });
        *lock(&self.loop_device) = Some(kept);
    }

    /// Watches the server and starts another whenever it dies, until asked to stop.
    fn keep(&self, mut running: Option<Arc<Watched>>, server: &impl Fn() -> Command) -> Result<()> {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MAX);
        while !self.stopping.load(Ordering::SeqCst) {
            let began = Instant::now();
            match running.take() {
                // No child of ours, or no longer: there is nothing to reap.
                Some(server) => {
                    server.ended(None).map_err(VolumeError::io("watching the server"))?;
                }
                None => match self.spawn(server()) {
                    Ok(mut child) => {
                        let status = child.wait().map_err(VolumeError::io("waiting for the server"))?;
                        tracing::info!(%status, "the volume's server ended");
                    }
                    // The host is short of something; guests wait meanwhile.
                    Err(error) => tracing::error!(error = %crate::error::chain(&error), "no server could be started"),
                },
            }
            *lock(&self.server) = None;
            if !fuse::is_alive(&self.fuse) {
                // Unmounted, by poison or by hand: nothing is left to serve, only to be asked to stop.
                self.wait_for_stop(None);
                break;
            }
            if began.elapsed() > LIVED_WELL {
                backoff.reset();
            }
            self.wait_for_stop(Some(backoff.next_wait()));
        }
        Ok(())
    }

    fn wait_for_stop(&self, at_most: Option<Duration>) {
        let waits = lock(&self.waits);
        let still = |_: &mut ()| !self.stopping.load(Ordering::SeqCst);
        match at_most {
            Some(at_most) => drop(self.stop.wait_timeout_while(waits, at_most, still)),
            None => drop(self.stop.wait_while(waits, still)),
        }
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        // Held by the server alone from its birth: while it is held, a server lives, whether or not it answers yet.
        let only = Lock::take(&path_of(&self.spec.server_control()), LOCK_PATIENCE)?;
        let fds = [
            (self.fuse.as_raw_fd(), server::FUSE_FD),
            (self.shared.as_raw_fd(), server::MAP_FD),
            (only.fd(), server::LOCK_FD),
        ];
        process::hand_over(&mut command, fds);
        let mut child = command.spawn().map_err(VolumeError::io("starting the server"))?;
        match Watched::of(child.id()) {
            Ok(watched) => *lock(&self.server) = Some(Arc::new(watched)),
            Err(error) => {
                // One that cannot be watched cannot be stopped either.
                let _ = child.kill();
                let _ = child.wait();
                return Err(VolumeError::io("watching the server")(error));
            }
        }
        self.server_starts.fetch_add(1, Ordering::SeqCst);
        if self.stopping.load(Ordering::SeqCst) {
            // `stop` came before it could see this one.
            let _ = child.kill();
        }
        Ok(child)
    }

    fn answer(&self, ask: &KeeperAsk) -> std::result::Result<KeeperStatus, String> {
        match ask {
            KeeperAsk::Status => {}
            KeeperAsk::Poison => self.poison().map_err(|error| error.to_string())?,
            KeeperAsk::Stop => self.wind_down(),
        }
        let device = lock(&self.loop_device).clone();
        let (loop_device, attach_error) = match device {
            Some(Ok(device)) => (Some(device.path), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        Ok(KeeperStatus {
            pid: std::process::id(),
            server_pid: lock(&self.server).as_ref().map_or(0, |server| server.pid()),
            server_starts: self.server_starts.load(Ordering::SeqCst),
            adopted: self.adopted,
            loop_device,
            attach_error,
            poisoned: lock(&self.live).as_ref().is_some_and(LiveMap::poisoned),
            prepared: self.prepared,
        })
    }

    /// The flag in the shared map for this server and those to come, and the kernel's connection for requests that no
    /// server may ever read.
    fn poison(&self) -> Result<()> {
        let geometry = self.spec.geometry()?;
        let mut live = lock(&self.live);
        if live.is_none() {
            let board = SharedBoard::map(&self.shared, LiveMap::board_words(&geometry))?;
            *live = LiveMap::adopt(Box::new(board), geometry, self.spec.epoch).ok();
        }
        // No server ever filled the map: then none served, and the abort below is all there is to do.
        if let Some(live) = live.as_ref() {
            live.poison();
        }
        fuse::abort(&self.spec.mountpoint);
        Ok(())
    }

    /// In this order: nobody can write any more, what was written is durable, nothing is served. Each step is bounded,
    /// and the last one holds whatever came of the others, so a source that is away holds up no stop.
    fn wind_down(&self) {
        let (device, server) = (lock(&self.loop_device).clone(), lock(&self.server).clone());
        let held = lock(&self.held).take();
        // The last close waits for what is in flight, which may wait for the source: the abort below ends that.
        let closed = process::within("closing the loop device", DETACH_PATIENCE, move || {
            drop(held);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "requests are still in flight");
        }
        if fuse::is_alive(&self.fuse) {
            if let Some(Ok(device)) = device {
                match device.detach(DETACH_PATIENCE) {
                    Ok(true) => {}
                    Ok(false) => tracing::warn!("the loop device is still in use"),
                    Err(error) => tracing::warn!(%error, "the loop device is not let go yet"),
                }
            }
            if let Err(error) = remains::finish(&self.spec, FLUSH_PATIENCE) {
                tracing::warn!(error = %crate::error::chain(&error), "the last flush failed");
            }
        }
        {
            let _waits = lock(&self.waits);
            self.stopping.store(true, Ordering::SeqCst);
        }
        self.stop.notify_all();
        fuse::abort(&self.spec.mountpoint);
        // One that was started since sees that we are stopping.
        server.or_else(|| lock(&self.server).clone()).inspect(|server| server.kill());
    }
}
