//! Machines without processes: for the lab and for tests of roles, with knobs for what goes wrong.
//!
//! It keeps the same promises as the real drivers (idempotent, one copy, found again by folder), and its state lies
//! on disk, so that an agent that was killed finds its fake Machines as it would find real ones. Time is real time.
//! It needs no privileges and touches nothing outside the Machines' folders.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::durable;
use crate::error::{Error, Result};
use crate::handle::{Exit, Found, Handle, Lost, boot_id, start_time_ticks};
use crate::protocol;
use crate::session::{Session, SessionRequest, VolumesSession};
use crate::spec::{ExecReply, ExecRequest, ListenSocket, ProcessStat, Spec, Swept, Usage};
use crate::volume_mount::VolumeMount;
use crate::{BoxFuture, Driver};

/// How often a wait looks at the disk: another process may have ended the Machine there.
const POLL_MS: u64 = 5;
const SIGKILL: i32 = 9;
/// What a session's echo holds.
const PIPE_BYTES: usize = 64 << 10;

/// How the next instance of a Machine behaves. The default starts at once, runs on, and ends at the first signal that
/// would end a real one, with exit code 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Knobs {
    /// The start is refused, as for an image at fault: `(exit code, reason)`.
    pub start_fails: Option<(i32, String)>,
    /// The start is refused for a fault of the host, that may be gone next time.
    pub host_fails: Option<String>,
    pub start_delay_ms: u64,
    /// Signals other than SIGKILL change nothing.
    pub ignores_signals: bool,
    /// It ends by itself.
    pub exits_after_ms: Option<u64>,
    /// With this code; for signals too.
    pub exit_code: i32,
    /// Its own end is one for want of memory (signal 9, oom).
    pub oom: bool,
    /// Whoever asks for it after the driver was made anew is told that it was lost.
    pub lost_on_adopt: bool,
    /// A kill cannot be proven.
    pub unkillable: bool,
    /// What exec answers; by default the arguments, joined, and code 0.
    pub exec_reply: Option<ExecReply>,
    /// Where its process listens.
    #[serde(default)]
    pub listens: Vec<SocketAddr>,
}

/// The whole state of a fake Machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    handle: Handle,
    knobs: Knobs,
    /// Which driver object started it.
    incarnation: String,
    exits_at_ms: Option<u64>,
    exit: Option<Exit>,
    signals: Vec<i32>,
}

#[derive(Default)]
pub struct FakeDriver {
    knobs: Mutex<HashMap<String, Knobs>>,
    /// Starts that really began something, by Machine: what "one copy" is counted by.
    starts: Mutex<HashMap<String, u32>>,
    /// Serialises every change of a record, as a shim's lock does.
    turn: tokio::sync::Mutex<()>,
    incarnation: String,
}

impl FakeDriver {
    pub fn new() -> Self {
        Self { incarnation: format!("{}-{}", std::process::id(), now_ns()), ..Self::default() }
    }

    /// Sets how the next start of this Machine goes.
    pub fn set(&self, machine: &str, knobs: Knobs) {
        self.knobs.lock().unwrap_or_else(|e| e.into_inner()).insert(machine.to_owned(), knobs);
    }

    /// How often this object has begun an instance of the Machine.
    pub fn starts(&self, machine: &str) -> u32 {
        self.starts.lock().unwrap_or_else(|e| e.into_inner()).get(machine).copied().unwrap_or(0)
    }

    /// The signals that the present instance has been sent.
    pub fn signals(&self, dir: &Path) -> Vec<i32> {
        load(dir).ok().flatten().map(|r| r.signals).unwrap_or_default()
    }

    fn knobs(&self, machine: &str) -> Knobs {
        self.knobs.lock().unwrap_or_else(|e| e.into_inner()).get(machine).cloned().unwrap_or_default()
    }

    async fn do_start(&self, spec: &Spec) -> Result<Handle> {
        spec.check()?;
        let knobs = self.knobs(&spec.machine);
        let _turn = self.turn.lock().await;
        match self.look(&spec.dir)? {
            Some(record) if record.handle.instance == spec.instance => return Ok(record.handle),
            Some(record) if record.exit.is_none() => {
                return Err(Error::OtherInstance { found: record.handle.instance });
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(knobs.start_delay_ms)).await;
        if let Some((code, reason)) = &knobs.start_fails {
            return Err(Error::StartFailed { exit_code: Some(*code), reason: reason.clone() });
        }
        if let Some(reason) = &knobs.host_fails {
            return Err(Error::Host { reason: reason.clone() });
        }
        let pid = std::process::id() as i32;
        let handle = Handle {
            machine: spec.machine.clone(),
            instance: spec.instance.clone(),
            dir: spec.dir.clone(),
            boot_id: boot_id().map_err(Error::io("cannot read the boot id"))?,
            pid,
            start_time_ticks: start_time_ticks(pid).unwrap_or(0),
            socket: spec.dir.join("run/fake.sock"),
            protocol_version: protocol::VERSION,
        };
        let exits_at_ms = knobs.exits_after_ms.map(|after| now_ms() + after);
        let incarnation = self.incarnation.clone();
        let record = Record { handle, knobs, incarnation, exits_at_ms, exit: None, signals: Vec::new() };
        save(&spec.dir, &record)?;
        *self.starts.lock().unwrap_or_else(|e| e.into_inner()).entry(spec.machine.clone()).or_default() += 1;
        Ok(record.handle)
    }

    /// The record, brought up to now.
    fn look(&self, dir: &Path) -> Result<Option<Record>> {
        let Some(mut record) = load(dir)? else { return Ok(None) };
        if record.exit.is_some() {
            return Ok(Some(record));
        }
        if record.knobs.lost_on_adopt && record.incarnation != self.incarnation {
            end(&mut record, None, None, Some(Lost::HolderDied));
        } else if record.exits_at_ms.is_some_and(|at| at <= now_ms()) {
            match record.knobs.oom {
                true => end(&mut record, None, Some(SIGKILL), None),
                false => {
                    let code = record.knobs.exit_code;
                    end(&mut record, Some(code), None, None);
                }
            }
        }
        if record.exit.is_some() {
            save(dir, &record)?;
        }
        Ok(Some(record))
    }

    /// The record of exactly this instance.
    fn of(&self, handle: &Handle) -> Result<Record> {
        let record = self.look(&handle.dir)?.ok_or(Error::NotRunning)?;
        match record.handle.instance == handle.instance {
            true => Ok(record),
            false => Err(Error::OtherInstance { found: record.handle.instance }),
        }
    }

    fn running(&self, handle: &Handle) -> Result<Record> {
        let record = self.of(handle)?;
        if record.exit.is_some() { Err(Error::NotRunning) } else { Ok(record) }
    }

    async fn do_signal(&self, handle: &Handle, signal: i32) -> Result<()> {
        let _turn = self.turn.lock().await;
        let mut record = self.running(handle)?;
        record.signals.push(signal);
        if signal == SIGKILL {
            end(&mut record, None, Some(SIGKILL), None);
        } else if !record.knobs.ignores_signals {
            let code = record.knobs.exit_code;
            end(&mut record, Some(code), None, None);
        }
        save(&handle.dir, &record)
    }

    async fn do_kill(&self, handle: &Handle) -> Result<Exit> {
        let _turn = self.turn.lock().await;
        let mut record = self.of(handle)?;
        if record.knobs.unkillable && record.exit.is_none() {
            let machine = handle.machine.clone();
            return Err(Error::NotProvenDead { machine, pids: vec![handle.pid] });
        }
        end(&mut record, None, Some(SIGKILL), None);
        save(&handle.dir, &record)?;
        record.exit.ok_or(Error::NotRunning)
    }

    async fn do_wait(&self, handle: &Handle) -> Result<Exit> {
        loop {
            {
                let _turn = self.turn.lock().await;
                if let Some(exit) = self.of(handle)?.exit {
                    return Ok(exit);
                }
            }
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    async fn do_find(&self, dir: &Path) -> Result<Found> {
        let _turn = self.turn.lock().await;
        Ok(match self.look(dir)? {
            None => Found::Nothing,
            Some(Record { exit: Some(exit), .. }) => Found::Exited(exit),
            Some(record) => Found::Running(record.handle),
        })
    }

    async fn do_remove(&self, dir: &Path) -> Result<()> {
        let _turn = self.turn.lock().await;
        if self.look(dir)?.is_some_and(|record| record.exit.is_none()) {
            return Err(Error::Running);
        }
        match std::fs::remove_dir_all(dir.join("run")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Io { what: "cannot remove the fake Machine".into(), source: e });
            }
            _ => {}
        }
        // Only when nothing else lies in it.
        let _ = std::fs::remove_dir(dir);
        Ok(())
    }
}

/// Ends the instance once: a later cause changes nothing.
fn end(record: &mut Record, exit_code: Option<i32>, signal: Option<i32>, lost: Option<Lost>) {
    let instance = record.handle.instance.clone();
    let oom_killed = record.knobs.oom && lost.is_none();
    let exit = Exit { instance, exit_code, signal, oom_killed, exited_at_ms: now_ms(), lost };
    record.exit.get_or_insert(exit);
}

fn file(dir: &Path) -> PathBuf {
    dir.join("run").join("fake.json")
}

fn load(dir: &Path) -> Result<Option<Record>> {
    durable::read(&file(dir)).map_err(Error::io("cannot read the fake Machine"))
}

fn save(dir: &Path, record: &Record) -> Result<()> {
    let saving = std::fs::create_dir_all(dir.join("run")).and_then(|()| durable::write(&file(dir), record));
    saving.map_err(Error::io("cannot write the fake Machine"))
}

fn now_ns() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

fn now_ms() -> u64 {
    (now_ns() / 1_000_000) as u64
}

impl Driver for FakeDriver {
    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Handle>> {
        Box::pin(self.do_start(spec))
    }

    fn find<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<Found>> {
        Box::pin(self.do_find(dir))
    }

    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>> {
        Box::pin(self.do_wait(handle))
    }

    fn signal<'a>(&'a self, handle: &'a Handle, signal: i32) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.do_signal(handle, signal))
    }

    fn kill<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Exit>> {
        Box::pin(self.do_kill(handle))
    }

    fn exec<'a>(&'a self, handle: &'a Handle, request: &'a ExecRequest) -> BoxFuture<'a, Result<ExecReply>> {
        Box::pin(async move {
            request.check()?;
            let record = self.running(handle)?;
            let (stdout, stderr) = (request.argv.join(" ").into_bytes(), Vec::new());
            let plain =
                ExecReply { exit_code: Some(0), signal: None, stdout, stderr, truncated: false, timed_out: false };
            Ok(record.knobs.exec_reply.unwrap_or(plain))
        })
    }

    /// What goes in comes out again.
    fn session<'a>(&'a self, handle: &'a Handle, request: &'a SessionRequest) -> BoxFuture<'a, Result<Session>> {
        Box::pin(async move {
            request.check()?;
            self.running(handle)?;
            let (session, _) = echo();
            Ok(session)
        })
    }

    /// The same: a fake has no volumes to look into.
    fn volumes_session<'a>(
        &'a self,
        _: &'a [VolumeMount],
        request: &'a SessionRequest,
    ) -> BoxFuture<'a, Result<VolumesSession>> {
        Box::pin(async move {
            request.check()?;
            let (session, ended) = echo();
            let released = Box::pin(async move {
                // Whoever waits is told when the caller has hung up.
                let _ = ended.await;
            });
            Ok(VolumesSession { session, released })
        })
    }

    fn processes<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<ProcessStat>>> {
        Box::pin(async move {
            self.running(handle)?;
            let listen_sockets = vec![ListenSocket { proto: "tcp".into(), address: "0.0.0.0:8080".into() }];
            let command = "fake".to_owned();
            let directory = "/".to_owned();
            let (stime_ms, rtime_ms, cpu_ms, rss_bytes) = (0, 0, 0, 0);
            Ok(vec![ProcessStat { pid: 2, stime_ms, rtime_ms, command, directory, cpu_ms, rss_bytes, listen_sockets }])
        })
    }

    fn listening<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(self.running(handle)?.knobs.listens) })
    }

    fn usage<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Usage>> {
        Box::pin(async move { self.running(handle).map(|_| Usage::default()) })
    }

    fn remove<'a>(&'a self, dir: &'a Path) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.do_remove(dir))
    }

    fn sweep<'a>(&'a self, _known: &'a [String]) -> BoxFuture<'a, Result<Swept>> {
        Box::pin(async { Ok(Swept::default()) })
    }
}

/// What goes in comes out again; the task ends with the caller's hang-up.
fn echo() -> (Session, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let ended = tokio::spawn(async move {
        let (mut input, mut output) = tokio::io::split(ours);
        // Its end is the caller's hang-up.
        let _ = tokio::io::copy(&mut input, &mut output).await;
    });
    (Session { first: Vec::new(), stream: Box::new(theirs) }, ended)
}
