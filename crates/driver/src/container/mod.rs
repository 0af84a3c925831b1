//! Machines in containers, each held by a shim process of its own that outlives this one.
//!
//! This side spawns shims, talks to them, and establishes what is true when one of them is gone. It must not know how
//! a container is made: that is the shim's. What both sides share is in `layout` and `lock`.
//!
//! ```text
//!            no lock, no handle          lock held                lock free, exit record of the handle's instance
//! find  ->   Nothing                     ask the shim             Exited
//!            lock free, handle without an exit record: the shim died first -> kill what it left, record it, Exited
//! ```

mod client;
pub mod layout;
pub mod lock;
mod processes;
mod sockets;
mod volumes;

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::cgroup::Cgroups;
use crate::error::{Error, Result};
use crate::handle::{Exit, Found, Handle, Lost, boot_id};
use crate::protocol::{Reply, Request, ShimState, Started};
use crate::session::{Session, SessionRequest, VolumesSession};
use crate::spec::{ExecReply, ExecRequest, ProcessStat, Spec, Swept, Usage, check_id};
use crate::volume_mount::VolumeMount;
use crate::{BoxFuture, Driver};
use client::{Client, unexpected};
use layout::{Layout, Order};

/// How long a shim may take from its spawning to its Machine's execution.
pub const START_TIMEOUT_MS: u64 = 60_000;
/// How long `find` waits for a start, or an ending, that it ran into.
pub const SETTLE_TIMEOUT_MS: u64 = 60_000;
/// How long a kill may take to be proven.
pub const KILL_TIMEOUT_MS: u64 = 30_000;
/// Added to an exec's own deadline for making and unmaking its process.
pub const EXEC_MARGIN_MS: u64 = 30_000;
const POLL_MS: u64 = 5;
/// A shim's report is one line; whatever is longer is no report.
const MAX_REPORT_BYTES: u64 = 64 << 10;

/// Where this driver finds its shim and keeps what it must.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `godwit-shim` binary.
    pub shim: PathBuf,
    /// Under which all Machines' cgroups live, relative to each hierarchy's root: `godwit`, `godwit-dev-x/host-1`.
    pub cgroup_parent: String,
    /// Folder, best on a tmpfs, for the state that containers need while they live. Made when absent.
    pub run_dir: PathBuf,
}

pub struct ContainerDriver {
    options: Options,
    cgroups: Cgroups,
    /// One verb that changes a Machine at a time, per folder. Shims' own lock guards against other processes.
    turns: StdMutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
}

impl ContainerDriver {
    pub fn new(options: Options) -> Result<Self> {
        let parent = options.cgroup_parent.trim_matches('/');
        let legal = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\n', '\0']);
        if !parent.split('/').all(legal) {
            return Err(Error::invalid("cgroup_parent", format!("{parent:?} is not a plain relative path")));
        }
        std::fs::create_dir_all(&options.run_dir)
            .map_err(Error::io(format!("cannot make {}", options.run_dir.display())))?;
        let run_dir = options.run_dir.canonicalize().map_err(Error::io("cannot resolve the run folder"))?;
        let shim = options.shim.canonicalize();
        let shim = shim.map_err(Error::io(format!("no shim at {}", options.shim.display())))?;
        let cgroups = Cgroups::detect(parent).map_err(Error::io("cannot use cgroups"))?;
        let options = Options { shim, cgroup_parent: parent.to_owned(), run_dir };
        Ok(Self { options, cgroups, turns: StdMutex::default() })
    }

    async fn turn(&self, dir: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            // A panic while this lock is held can only come from allocation: the map stays usable.
            let mut turns = self.turns.lock().unwrap_or_else(|e| e.into_inner());
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(dir.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    async fn do_start(&self, spec: &Spec) -> Result<Handle> {
        spec.check()?;
        let _turn = self.turn(&spec.dir).await;
        let layout = Layout::new(&spec.dir);
        match self.do_find(&layout).await? {
            Found::Running(handle) if handle.instance == spec.instance => return Ok(handle),
            Found::Running(handle) => return Err(Error::OtherInstance { found: handle.instance }),
            Found::Exited(exit) if exit.instance == spec.instance => {
                // It ran and is over: starting it once more would be a second run. `wait` tells how it ended.
                return read(&layout, Layout::handle)?.ok_or(Error::NotRunning);
            }
            Found::Exited(_) | Found::Nothing => {}
        }
        match self.spawn(spec, &layout).await? {
            Started::Ok { handle } => Ok(handle),
            Started::Failed { exit_code, reason, user_fault: true } => Err(Error::StartFailed { exit_code, reason }),
            Started::Failed { reason, .. } => Err(Error::Host { reason }),
        }
    }

    async fn spawn(&self, spec: &Spec, layout: &Layout) -> Result<Started> {
        std::fs::create_dir_all(layout.run()).map_err(Error::io("cannot make the Machine's folder"))?;
        let order = Order {
            spec: spec.clone(),
            cgroup_parent: self.options.cgroup_parent.clone(),
            state_dir: self.options.run_dir.join(&spec.machine),
            spawned_at_ns: monotonic_ns(),
        };
        layout.write_order(&order).map_err(Error::io("cannot write the shim's order"))?;
        let log = std::fs::File::create(layout.shim_log()).map_err(Error::io("cannot make the shim's log"))?;
        let spawned = Command::new(&self.options.shim)
            // The folder is handed over as the working folder: pid 1 inside shows our arguments, and those who look
            // from inside shall not learn paths of the host.
            .arg(&spec.machine)
            .env_clear()
            .current_dir(&spec.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        // Dropped without a kill: the runtime reaps the shim whenever it ends, and it ends when it likes.
        let mut child = spawned.map_err(Error::io("cannot spawn the shim"))?;
        let Some(report) = child.stdout.take() else {
            return Err(Error::Host { reason: "the shim has no output".into() });
        };
        let mut line = Vec::new();
        let mut report = report.take(MAX_REPORT_BYTES);
        let reading = tokio::time::timeout(Duration::from_millis(START_TIMEOUT_MS), report.read_to_end(&mut line));
        match reading.await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(Error::Io { what: "cannot read the shim's report".into(), source: e }),
            Err(_) => {
                let _ = child.kill().await;
                self.do_find(layout).await?;
                return Err(Error::Timeout { what: "the start", after_ms: START_TIMEOUT_MS });
            }
        }
        if let Ok(started) = serde_json::from_slice(&line) {
            return Ok(started);
        }
        let status = child.wait().await.map_err(Error::io("cannot wait for the shim"))?;
        self.do_find(layout).await?;
        Err(Error::Host { reason: format!("the shim ended with {status}: {}", tail(&layout.shim_log())) })
    }

    /// What is true about the Machine; on the way, what a dead shim left is killed and recorded.
    async fn do_find(&self, layout: &Layout) -> Result<Found> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(SETTLE_TIMEOUT_MS);
        loop {
            if !layout.run().exists() {
                return Ok(Found::Nothing);
            }
            let held = lock::is_held(&layout.lock()).map_err(Error::io("cannot look at the shim's lock"))?;
            // Held by us while we look, so that no shim of another process can start into what we clean away.
            if !held && let Some(_lock) = lock::try_take(&layout.lock()).map_err(Error::io("cannot take the lock"))? {
                return self.reap(layout).await;
            }
            if let Some(found) = self.ask_state(layout).await? {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::Timeout { what: "the shim's settling", after_ms: SETTLE_TIMEOUT_MS });
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// `None`: the shim is starting or ending; look again.
    async fn ask_state(&self, layout: &Layout) -> Result<Option<Found>> {
        let Some(handle) = read(layout, Layout::handle)? else { return Ok(None) };
        let mut client = match Client::connect(&layout.socket()).await {
            Ok(client) => client,
            // Not listening yet, or no more.
            Err(Error::Io { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
        if client.instance != handle.instance {
            return Ok(None);
        }
        match client.ask(&Request::State).await {
            Ok(Reply::State { state: ShimState::Running }) => Ok(Some(Found::Running(handle))),
            Ok(Reply::State { .. }) | Err(Error::Io { .. }) => Ok(None),
            Ok(other) => Err(unexpected(&other)),
            Err(e) => Err(e),
        }
    }

    /// No shim lives. Makes sure that nothing else does, and tells how the last instance ended.
    async fn reap(&self, layout: &Layout) -> Result<Found> {
        let handle = read(layout, Layout::handle)?;
        let order = read(layout, Layout::order)?;
        let machine = handle.as_ref().map(|h| h.machine.clone()).or(order.map(|o| o.spec.machine));
        let Some(machine) = machine else { return Ok(Found::Nothing) };
        check_id("machine", &machine, false)?;
        self.kill_left(&machine).await?;
        let Some(handle) = handle else { return Ok(Found::Nothing) };
        if let Some(exit) = layout.exit_of(&handle.instance).map_err(Error::io("cannot read the exit record"))? {
            return Ok(Found::Exited(exit));
        }
        let this_boot = boot_id().map_err(Error::io("cannot read the boot id"))?;
        let lost = if this_boot == handle.boot_id { Lost::HolderDied } else { Lost::HostRebooted };
        let exit = Exit {
            oom_killed: self.cgroups.oom_kills(&machine) > 0,
            instance: handle.instance,
            exit_code: None,
            signal: None,
            exited_at_ms: now_ms(),
            lost: Some(lost),
        };
        layout.write_exit(&exit).map_err(Error::io("cannot write the exit record"))?;
        self.cgroups.remove(&machine);
        let _ = std::fs::remove_dir_all(self.options.run_dir.join(&machine));
        Ok(Found::Exited(exit))
    }

    async fn kill_left(&self, machine: &str) -> Result<()> {
        let (cgroups, name) = (self.cgroups.clone(), machine.to_owned());
        let killing = tokio::task::spawn_blocking(move || cgroups.kill_all(&name, std::process::id() as i32));
        match killing.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(pids)) => Err(Error::NotProvenDead { machine: machine.to_owned(), pids }),
            Err(e) => Err(Error::Host { reason: e.to_string() }),
        }
    }

    /// The exit of the handle's instance once no shim holds it any more.
    async fn settled(&self, handle: &Handle) -> Result<Option<Exit>> {
        let _turn = self.turn(&handle.dir).await;
        match self.do_find(&Layout::new(&handle.dir)).await? {
            Found::Exited(exit) if exit.instance == handle.instance => Ok(Some(exit)),
            Found::Running(found) if found.instance == handle.instance => Ok(None),
            Found::Running(found) => Err(Error::OtherInstance { found: found.instance }),
            Found::Exited(exit) => Err(Error::OtherInstance { found: exit.instance }),
            Found::Nothing => Err(Error::NotRunning),
        }
    }

    async fn do_wait(&self, handle: &Handle) -> Result<Exit> {
        loop {
            if let Ok(mut client) = self.connect(handle).await {
                match client.ask_unbounded(&Request::Wait).await {
                    Ok(Reply::Ended { exit }) => return Ok(exit),
                    Ok(other) => return Err(unexpected(&other)),
                    // The shim is gone: what it recorded, or left, tells.
                    Err(Error::Io { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
            if let Some(exit) = self.settled(handle).await? {
                return Ok(exit);
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    async fn do_kill(&self, handle: &Handle) -> Result<Exit> {
        if let Ok(mut client) = self.connect(handle).await {
            match client.ask_within(&Request::Kill, KILL_TIMEOUT_MS).await {
                Ok(Reply::Ended { exit }) => return Ok(exit),
                Ok(other) => return Err(unexpected(&other)),
                Err(Error::Io { .. }) => {}
                // A shim that hangs (stopped, or stuck in the kernel) must not save its Machine.
                Err(Error::Timeout { .. }) => self.kill_shim(handle),
                Err(e) => return Err(e),
            }
        } else if handle.alive() && lock::is_held(&Layout::new(&handle.dir).lock()).unwrap_or(false) {
            self.kill_shim(handle);
        }
        self.settled(handle).await?.ok_or(Error::Timeout { what: "the kill", after_ms: KILL_TIMEOUT_MS })
    }

    fn kill_shim(&self, handle: &Handle) {
        if handle.alive() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(handle.pid), nix::sys::signal::SIGKILL);
        }
    }

    /// A connection to the shim of exactly this instance.
    async fn connect(&self, handle: &Handle) -> Result<Client> {
        let client = Client::connect(&handle.socket).await?;
        if client.instance != handle.instance {
            return Err(Error::OtherInstance { found: client.instance });
        }
        Ok(client)
    }

    /// The same for verbs that need a running Machine.
    async fn connect_running(&self, handle: &Handle) -> Result<Client> {
        match self.connect(handle).await {
            Err(Error::Io { .. }) => Err(Error::NotRunning),
            other => other,
        }
    }

    async fn do_remove(&self, dir: &Path) -> Result<()> {
        let _turn = self.turn(dir).await;
        let layout = Layout::new(dir);
        if !layout.run().exists() {
            return remove_folders(&layout).map_err(Error::io("cannot remove the Machine's folder"));
        }
        if let Found::Running(_) = self.do_find(&layout).await? {
            return Err(Error::Running);
        }
        self.unlocked(&layout).await?;
        if let Some(order) = read(&layout, Layout::order)? {
            check_id("machine", &order.spec.machine, false)?;
            self.kill_left(&order.spec.machine).await?;
            if !self.cgroups.remove(&order.spec.machine) {
                return Err(Error::Host { reason: format!("the cgroups of {} cannot be removed", order.spec.machine) });
            }
            let _ = std::fs::remove_dir_all(self.options.run_dir.join(&order.spec.machine));
        }
        let removing = tokio::task::spawn_blocking(move || remove_folders(&layout));
        let removed = removing.await.map_err(io::Error::other).and_then(|result| result);
        removed.map_err(Error::io("cannot remove the Machine's folder"))
    }

    /// A shim that has told the exit still cleans up for a moment.
    async fn unlocked(&self, layout: &Layout) -> Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(SETTLE_TIMEOUT_MS);
        while lock::is_held(&layout.lock()).map_err(Error::io("cannot look at the shim's lock"))? {
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::Timeout { what: "the shim's end", after_ms: SETTLE_TIMEOUT_MS });
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
        Ok(())
    }

    fn do_sweep(&self, known: &[String]) -> Swept {
        let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
        let mut swept = Swept::default();
        for machine in self.cgroups.machines().into_iter().filter(|m| !known.contains(m.as_str())) {
            if !self.cgroups.processes(&machine, 0).is_empty() {
                swept.strangers.push(machine);
            } else if self.cgroups.remove(&machine) {
                let _ = std::fs::remove_dir_all(self.options.run_dir.join(&machine));
                swept.removed.push(machine);
            }
        }
        if known.is_empty() && swept.strangers.is_empty() {
            self.cgroups.remove_parents();
        }
        swept
    }
}

impl Driver for ContainerDriver {
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Handle>> {
        Box::pin(self.do_start(spec))
    }

    fn find<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<Found>> {
        Box::pin(async move {
            let _turn = self.turn(dir).await;
            self.do_find(&Layout::new(dir)).await
        })
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>> {
        Box::pin(self.do_wait(handle))
    }

    fn signal<'a>(&'a self, handle: &'a Handle, signal: i32) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if !(1..=64).contains(&signal) {
                return Err(Error::invalid("signal", format!("{signal} is not a signal")));
            }
            match self.connect_running(handle).await?.ask(&Request::Signal { signal }).await? {
                Reply::Done => Ok(()),
                Reply::State { .. } => Err(Error::NotRunning),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn kill<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>> {
        Box::pin(self.do_kill(handle))
    }

    fn exec<'a>(&'a self, handle: &'a Handle, request: &'a ExecRequest) -> BoxFuture<'a, Result<ExecReply>> {
        Box::pin(async move {
            request.check()?;
            let mut client = self.connect_running(handle).await?;
            let timeout_ms = request.timeout_ms + EXEC_MARGIN_MS;
            match client.ask_within(&Request::Exec { request: request.clone() }, timeout_ms).await? {
                Reply::Exec { reply } => Ok(reply),
                Reply::State { .. } => Err(Error::NotRunning),
                other => Err(unexpected(&other)),
            }
        })
    }

    fn session<'a>(&'a self, handle: &'a Handle, request: &'a SessionRequest) -> BoxFuture<'a, Result<Session>> {
        Box::pin(async move {
            request.check()?;
            self.connect_running(handle).await?.session(request).await
        })
    }

    fn volumes_session<'a>(
        &'a self,
        volumes: &'a [VolumeMount],
        request: &'a SessionRequest,
    ) -> BoxFuture<'a, Result<VolumesSession>> {
        Box::pin(volumes::session(&self.options, volumes, request))
    }

    fn processes<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<ProcessStat>>> {
        Box::pin(async move {
            self.connect_running(handle).await?;
            let pids = self.cgroups.container_processes(&handle.machine);
            let reading = tokio::task::spawn_blocking(move || {
                let init = pids.iter().copied().find(|pid| processes::is_namespace_init(*pid));
                processes::read(&pids, init)
            });
            reading.await.map_err(|e| Error::Host { reason: e.to_string() })
        })
    }

    fn listening<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let pids = self.cgroups.container_processes(&handle.machine);
            let reading = tokio::task::spawn_blocking(move || sockets::listening(&pids));
            let read = reading.await.map_err(|e| Error::Host { reason: e.to_string() })?;
            read.ok_or(Error::NotRunning)
        })
    }

    fn usage<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Usage>> {
        Box::pin(async move {
            self.connect_running(handle).await?;
            Ok(self.cgroups.usage(&handle.machine))
        })
    }

    fn remove<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.do_remove(dir))
    }

    fn sweep<'a>(&'a self, known: &'a [String]) -> BoxFuture<'a, Result<Swept>> {
        Box::pin(async move { Ok(self.do_sweep(known)) })
    }
}

fn read<T>(layout: &Layout, what: impl Fn(&Layout) -> io::Result<Option<T>>) -> Result<Option<T>> {
    what(layout).map_err(Error::io("cannot read the Machine's records"))
}

/// Removes what the driver owns in the Machine's folder, the records last: a remove that was cut short is found again.
fn remove_folders(layout: &Layout) -> io::Result<()> {
    for folder in [layout.upper(), layout.work(), layout.log(), layout.run()] {
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    match std::fs::remove_dir(&layout.dir) {
        // Somebody else keeps something there (a volume, say): not ours to remove.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        other => other,
    }
}

fn tail(path: &Path) -> String {
    const TAIL_BYTES: u64 = 2048;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(TAIL_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

/// CLOCK_MONOTONIC, which all processes of a host share.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
