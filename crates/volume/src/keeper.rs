//! The keeper of one volume, and the server that it starts. The keeper is small and does nothing that can fail often:
//! it holds the /dev/fuse descriptor, the shared map and the loop device, and starts the server again whenever it
//! dies; guests see a pause. The server holds everything else. Neither knows a Machine.
//!
//! If the keeper dies, the server dies with it and the kernel fails the volume's IO: closed, never stale.

pub mod control;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use godwit_base::backoff::Backoff;
use serde::{Deserialize, Serialize};

use crate::device::{CloneDevice, lock};
use crate::error::{Result, VolumeError};
use crate::front::Frontend;
use crate::front::fuse::{self, FuseFront};
use crate::front::loop_device::LoopDevice;
use crate::map::LiveMap;
use crate::pace::Limits;
use crate::process;
use crate::shm::SharedBoard;
use crate::spec::VolumeSpec;

/// Where a server finds what its keeper holds.
const FUSE_FD: RawFd = 3;
const MAP_FD: RawFd = 4;
const RESTART_FIRST: Duration = Duration::from_millis(10);
const RESTART_MAX: Duration = Duration::from_millis(500);
/// A server that lived this long starts the waits anew.
const LIVED_WELL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeeperAsk {
    Status,
    /// Fails all IO of the volume for good, whatever state the server is in.
    Poison,
    /// Ends server, loop device and mount, and then the keeper.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    pub pid: u32,
    pub server_pid: u32,
    pub server_starts: u64,
    pub loop_device: Option<std::path::PathBuf>,
    pub poisoned: bool,
    /// What keeper and server were granted for times without memory.
    pub prepared: process::Prepared,
}

struct Keeper {
    spec: VolumeSpec,
    prepared: process::Prepared,
    fuse: File,
    shared: File,
    live: Mutex<Option<LiveMap>>,
    loop_device: Mutex<Option<LoopDevice>>,
    server_pid: AtomicU32,
    server_starts: AtomicU64,
    stopping: AtomicBool,
    /// The same, for a keeper that waits for nothing else.
    ended: Mutex<bool>,
    stop: Condvar,
}

/// The keeper's whole life. `server` makes the command of a server of this spec.
pub fn run(spec: VolumeSpec, server: impl Fn() -> Command) -> Result<()> {
    let prepared = process::prepare_to_serve();
    let words = LiveMap::board_words(&spec.geometry()?);
    let shared = SharedBoard::create(words)?;
    let fuse = fuse::mount(&spec.mountpoint)?;
    let keeper = Arc::new(Keeper {
        spec,
        prepared,
        fuse,
        shared,
        live: Mutex::new(None),
        loop_device: Mutex::new(None),
        server_pid: AtomicU32::new(0),
        server_starts: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        ended: Mutex::new(false),
        stop: Condvar::new(),
    });
    let answering = Arc::clone(&keeper);
    let listening = control::listen(&keeper.spec.control, move |ask| answering.answer(ask))?;
    let attaching = Arc::clone(&keeper);
    // Opening the file needs a server that answers, so it happens beside the loop that starts one.
    let attached = std::thread::Builder::new()
        .name("attach".to_owned())
        .spawn(move || attaching.attach())
        .map_err(VolumeError::io("starting a thread"))?;
    keeper.keep(&server)?;
    drop(listening);
    fuse::unmount(&keeper.spec.mountpoint)?;
    // With the mount gone its call ends, one way or the other; only now is it known what there is to detach.
    let _ = attached.join();
    match lock(&keeper.loop_device).take() {
        Some(device) => device.detach(),
        None => Ok(()),
    }
}

impl Keeper {
    fn attach(&self) {
        match LoopDevice::attach(&self.spec.mountpoint.join(fuse::FILE_NAME)) {
            Ok(device) => *lock(&self.loop_device) = Some(device),
            Err(error) => tracing::error!(%error, "the loop device could not be attached"),
        }
    }

    /// Starts the server again and again, until asked to stop.
    fn keep(&self, server: &impl Fn() -> Command) -> Result<()> {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_MAX);
        while !self.stopping.load(Ordering::SeqCst) {
            let began = Instant::now();
            let mut child = self.spawn(server())?;
            self.server_pid.store(child.id(), Ordering::SeqCst);
            self.server_starts.fetch_add(1, Ordering::SeqCst);
            if self.stopping.load(Ordering::SeqCst) {
                // `stop` came before it could see this one.
                let _ = child.kill();
            }
            let status = child.wait().map_err(VolumeError::io("waiting for the server"))?;
            self.server_pid.store(0, Ordering::SeqCst);
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            if status.success() {
                // Unmounted, by poison or by hand: nothing is left to serve, only to be asked to stop.
                let ended = lock(&self.ended);
                drop(self.stop.wait_while(ended, |ended| !*ended).unwrap_or_else(|poison| poison.into_inner()));
                break;
            }
            tracing::warn!(%status, "the volume's server ended; it is started again");
            if began.elapsed() > LIVED_WELL {
                backoff.reset();
            }
            std::thread::sleep(backoff.next_wait());
        }
        Ok(())
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        process::hand_over(&mut command, [(self.fuse.as_raw_fd(), FUSE_FD), (self.shared.as_raw_fd(), MAP_FD)]);
        command.spawn().map_err(VolumeError::io("starting the server"))
    }

    fn answer(&self, ask: KeeperAsk) -> std::result::Result<KeeperStatus, String> {
        match ask {
            KeeperAsk::Status => {}
            KeeperAsk::Poison => self.poison().map_err(|error| error.to_string())?,
            KeeperAsk::Stop => {
                self.stopping.store(true, Ordering::SeqCst);
                *lock(&self.ended) = true;
                self.stop.notify_all();
                self.kill_server();
            }
        }
        Ok(KeeperStatus {
            pid: std::process::id(),
            server_pid: self.server_pid.load(Ordering::SeqCst),
            server_starts: self.server_starts.load(Ordering::SeqCst),
            loop_device: lock(&self.loop_device).as_ref().map(|device| device.path.clone()),
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
        fuse::unmount(&self.spec.mountpoint)
    }

    fn kill_server(&self) {
        let pid = self.server_pid.load(Ordering::SeqCst);
        if pid != 0 {
            // SAFETY: a plain system call. The pid is of our own child, which `keep` has not waited for yet or is just
            // waiting for; in the worst case it is a zombie.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum ServerAsk {
    Status,
    Flush,
    Limits { limits: Limits },
}

/// The server's whole life, started by a keeper. Ends when the file system is unmounted.
pub fn serve(spec: &VolumeSpec, keeper_pid: u32) -> Result<()> {
    process::die_with_parent(keeper_pid)?;
    process::prepare_to_serve();
    // SAFETY: the keeper put these two descriptors here for us, and nothing else in this process knows them.
    let (fuse, shared) = unsafe { (File::from_raw_fd(FUSE_FD), File::from_raw_fd(MAP_FD)) };
    let device = Arc::new(spec.open(&shared)?);
    let answering = Arc::clone(&device);
    let listening = control::listen(&spec.server_control(), move |ask| answer(&answering, ask))?;
    let mut front = FuseFront::new(fuse);
    front.start(Arc::clone(&device))?;
    front.wait();
    drop(listening);
    Ok(())
}

fn answer(device: &CloneDevice, ask: ServerAsk) -> std::result::Result<crate::CloneStatus, String> {
    match ask {
        ServerAsk::Status => {}
        ServerAsk::Flush => device.flush().map_err(|error| error.to_string())?,
        ServerAsk::Limits { limits } => device.set_limits(limits),
    }
    Ok(device.status())
}
