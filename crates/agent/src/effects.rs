//! Carrying out steps. Each runs on a task of its own and tells its outcome as an event; whatever went wrong becomes
//! one of the outcomes that `machine` knows. It must not decide what comes next.

mod ahead;
mod steps;
mod volumes;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle as Runtime;
use tokio_util::sync::CancellationToken;

use godwit_api::event::ExitEvent;
use godwit_api::ids::{HostId, MachineId};
use godwit_base::backoff::Backoff;
use godwit_base::dial::Addresses;
use godwit_base::{TaskGroup, clock};
use godwit_driver::{Exit, Found, Handle};
use godwit_machine::{Event, Outcome};

use crate::checks;
use crate::config::Config;
use crate::crash::{CrashPoints, Instant};
use crate::door::Hub;
use crate::engine::{Command, Input, Watched, Work};
use crate::exports::Exports;
use crate::organs::Organs;
use crate::owner::Inputs;
use crate::reach::{Reaches, Wanted};

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What effects use. Cheap to clone.
#[derive(Clone)]
pub struct Effects {
    shared: Arc<Shared>,
}

struct Shared {
    organs: Arc<Organs>,
    hub: Hub,
    config: Arc<Config>,
    host: HostId,
    crash: CrashPoints,
    inputs: Inputs,
    /// Where effects run: their owner's thread has a runtime of its own.
    runtime: Runtime,
    /// Ends them with the agent. Being cut off is what every one of them must bear anyway.
    group: TaskGroup,
    /// The step under way, by Machine.
    steps: Mutex<HashMap<MachineId, CancellationToken>>,
    checks: Mutex<HashMap<MachineId, CancellationToken>>,
    reaches: Reaches,
    exports: Exports,
    /// Handles of running Machines, so that they need not be looked for; a wrong or absent one is looked for.
    handles: Mutex<HashMap<MachineId, Handle>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Every change under these locks is one call on a map: a panic cannot leave it half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Effects {
    /// Must be called within the runtime on which effects are to run.
    pub fn new(
        organs: Arc<Organs>,
        hub: Hub,
        config: Arc<Config>,
        host: HostId,
        inputs: Inputs,
        group: TaskGroup,
    ) -> Self {
        let crash = CrashPoints::new(&config.data_dir, config.lab);
        let shared = Shared {
            organs,
            hub,
            config,
            host,
            crash,
            inputs,
            runtime: Runtime::current(),
            group,
            steps: Mutex::default(),
            checks: Mutex::default(),
            reaches: Reaches::default(),
            exports: Exports::default(),
            handles: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn crash(&self) -> &CrashPoints {
        &self.shared.crash
    }

    pub fn organs(&self) -> &Arc<Organs> {
        &self.shared.organs
    }

    pub fn reaches(&self) -> &Reaches {
        &self.shared.reaches
    }

    pub fn exports(&self) -> &Exports {
        &self.shared.exports
    }

    pub fn machine_dir(&self, machine: &MachineId) -> PathBuf {
        self.shared.config.machine_dir(machine.as_str())
    }

    /// Begins a command and returns at once.
    pub fn begin(&self, command: Command) {
        let this = self.clone();
        match command {
            Command::Perform(work) => {
                let machine = work.machine.clone();
                let token = self.spawn(async move { this.perform(*work).await });
                lock(&self.shared.steps).insert(machine, token);
            }
            Command::Interrupt { machine } => {
                if let Some(token) = lock(&self.shared.steps).remove(&machine) {
                    token.cancel();
                }
            }
            Command::Watch { machine, run } => {
                self.spawn(async move { this.watch(machine, run).await });
            }
            Command::Check { machine, watched, opened } => {
                let looking = (machine.clone(), *watched);
                let token = self.spawn(async move { this.look_after(looking.0, looking.1, opened).await });
                if let Some(before) = lock(&self.shared.checks).insert(machine, token) {
                    before.cancel();
                }
            }
            Command::EndChecks { machine } => {
                if let Some(before) = lock(&self.shared.checks).remove(&machine) {
                    before.cancel();
                }
            }
            Command::CollectImages { in_use } => {
                self.shared.runtime.spawn_blocking(move || this.collect_images(&in_use));
            }
        }
    }

    /// Runs until it ends, is cut off, or the agent ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> CancellationToken {
        let token = self.shared.group.token().child_token();
        let cut_off = token.clone();
        let _runtime = self.shared.runtime.enter();
        self.shared.group.spawn(async move {
            tokio::select! {
                () = cut_off.cancelled() => {}
                () = task => {}
            }
        });
        token
    }

    /// Checks a run and looks at its sockets, until it is cut off.
    async fn look_after(&self, machine: MachineId, watched: Watched, opened: BTreeSet<u16>) {
        let Watched { run, private_ip, checks, ports } = watched;
        let own = self.addresses(&machine, private_ip);
        let mut all = ports.clone();
        all.extend(checks.iter().filter_map(|named| named.check.port));
        let wanted = Wanted { machine: machine.clone(), own, ports, all, opened };
        let (inputs, reaches) = (&self.shared.inputs, &self.shared.reaches);
        let looking = || self.sockets(&machine, &run);
        let telling = |told| inputs.send(Input::Reach { machine: machine.clone(), run: run.clone(), told });
        let sockets = reaches.watch(wanted, looking, telling);
        let checking = checks::look_after(inputs.clone(), reaches.clone(), machine.clone(), run.clone(), checks, own);
        tokio::join!(sockets, checking);
    }

    /// Where a Machine is dialed on this host.
    fn addresses(&self, machine: &MachineId, v6: Ipv6Addr) -> Addresses {
        Addresses { v6, v4: self.shared.organs.network.ipv4s().get(machine.as_str()) }
    }

    /// Where this run listens; nothing once it is another one.
    async fn sockets(&self, machine: &MachineId, run: &str) -> Option<Vec<SocketAddr>> {
        let handle = self.handle(machine).await.ok().flatten().filter(|handle| handle.instance == run)?;
        self.shared.organs.driver.listening(&handle).await.ok()
    }

    fn collect_images(&self, in_use: &BTreeSet<String>) {
        match self.shared.organs.images.collect(in_use) {
            Ok(done) if done.freed_bytes > 0 => {
                tracing::info!(images = done.images.len(), freed_bytes = done.freed_bytes, "images collected");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = godwit_base::telemetry::chain(&error), "no images collected"),
        }
    }

    async fn perform(&self, work: Work) {
        let (machine, job, step) = (work.machine.clone(), work.job.id, work.job.step);
        let kind = work.job.kind;
        self.shared.crash.pass(kind, step, Instant::Before);
        tracing::debug!(%machine, kind = kind.as_str(), step = step.as_str(), attempt = work.job.attempt, "step");
        let outcome = AssertUnwindSafe(self.step(&work)).catch_unwind().await;
        // A defect of ours must not leave a job without an outcome for ever.
        let outcome = outcome.unwrap_or_else(|_| Outcome::Retry { reason: "the step's program panicked".into() });
        self.shared.crash.pass(kind, step, Instant::After);
        match &outcome {
            Outcome::Done { .. } | Outcome::Granted { .. } => {}
            // Said in its event; it is no failure.
            Outcome::Wait { reason } => {
                tracing::info!(%machine, kind = kind.as_str(), step = step.as_str(), reason, "step waits")
            }
            Outcome::Retry { reason } | Outcome::Abort { reason, .. } => {
                tracing::warn!(%machine, kind = kind.as_str(), step = step.as_str(), reason, "step failed");
            }
        }
        self.shared.inputs.send(Input::Machine { machine, event: Event::Outcome { job, step, outcome } }).await;
    }

    /// The handle of a running Machine; `None` when it does not run.
    pub async fn handle(&self, machine: &MachineId) -> Result<Option<Handle>, godwit_driver::Error> {
        if let Some(handle) = lock(&self.shared.handles).get(machine).filter(|handle| handle.alive()).cloned() {
            return Ok(Some(handle));
        }
        match self.find(machine).await? {
            Found::Running(handle) => {
                lock(&self.shared.handles).insert(machine.clone(), handle.clone());
                Ok(Some(handle))
            }
            Found::Exited(_) | Found::Nothing => Ok(None),
        }
    }

    pub async fn find(&self, machine: &MachineId) -> Result<Found, godwit_driver::Error> {
        self.shared.organs.driver.find(&self.machine_dir(machine)).await
    }

    fn remember(&self, machine: &MachineId, handle: Handle) {
        lock(&self.shared.handles).insert(machine.clone(), handle);
    }

    fn forget(&self, machine: &MachineId) {
        lock(&self.shared.handles).remove(machine);
    }

    /// Tells the end of a run, whenever it comes.
    async fn watch(&self, machine: MachineId, run: String) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let exit = loop {
            let known = lock(&self.shared.handles).get(&machine).filter(|handle| handle.instance == run).cloned();
            let ended = match known {
                Some(handle) => self.shared.organs.driver.wait(&handle).await.map(Some),
                None => match self.find(&machine).await {
                    Ok(Found::Running(handle)) if handle.instance == run => {
                        self.remember(&machine, handle);
                        continue;
                    }
                    Ok(Found::Exited(exit)) if exit.instance == run => Ok(Some(exit)),
                    Ok(_) => Ok(None),
                    Err(error) => Err(error),
                },
            };
            match ended {
                Ok(exit) => break exit,
                Err(error) => {
                    tracing::warn!(%machine, error = godwit_base::telemetry::chain(&error), "cannot wait for its end");
                    self.forget(&machine);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        };
        let exit = exit.map_or_else(unknown_exit, |exit| exit_event(&exit));
        self.shared.inputs.send(Input::Machine { machine, event: Event::Exited { run, exit } }).await;
    }
}

/// A driver's exit as events tell it. As a shell counts, a signal's exit code is 128 and its number.
pub fn exit_event(exit: &Exit) -> ExitEvent {
    let signal = if exit.lost.is_some() { -1 } else { exit.signal.unwrap_or(0) };
    let exit_code = exit.exit_code.unwrap_or(if signal > 0 { 128 + signal } else { -1 });
    ExitEvent {
        exit_code,
        guest_exit_code: exit.exit_code.unwrap_or(0),
        signal,
        guest_signal: signal,
        oom_killed: exit.oom_killed,
        requested_stop: false,
        restarting: false,
        exited_at: clock::rfc3339(exit.exited_at_ms),
    }
}

fn unknown_exit() -> ExitEvent {
    ExitEvent { exit_code: -1, signal: -1, exited_at: clock::rfc3339(clock::unix_ms()), ..ExitEvent::default() }
}

/// Waits at most so long.
async fn within<T>(bound: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(bound, future).await.ok()
}
