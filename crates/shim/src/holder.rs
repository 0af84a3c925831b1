//! The loop that holds a Machine: one poll over its output, its words, its death, and those who ask.
//!
//! ```text
//! Starting --builder done, word "executed"--> Running --its first process is reaped--> ended
//!     |                                          ^ kill, signal, exec, wait, state
//!     +--builder fails, word "failed", first process dies--> error: nothing is left, nothing is recorded
//! ```

use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::layout::{Layout, Order};
use godwit_driver::container::monotonic_ns;
use godwit_driver::protocol::{Reply, Request, ShimState};
use godwit_driver::{ExecRequest, Exit, LogStream, SessionRequest};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

use crate::construction::Construction;
use crate::entry::{MAX_WORD_BYTES, Word, explain, reap_one};
use crate::error::ShimError;
use crate::logs::{Lines, LogFiles};
use crate::server::Server;
use crate::state_dir::clean_up;
use crate::{exec, session, sys};

/// Most commands and copies at once.
const MAX_WORKERS: usize = 32;
/// A container that has not begun to run by then never will.
const BUILD_TIMEOUT_MS: u64 = 45_000;
/// How long workers may take to tell the ends of their commands when the Machine has ended.
const WORKERS_TIMEOUT_MS: u64 = 1000;
/// Attempts to put the exit on disk, with a pause between: a full disk may be emptied.
const RECORD_ATTEMPTS: u32 = 20;
const RECORD_PAUSE_MS: u64 = 100;
/// Dead children that nobody has claimed yet (the builder's report and the first process's death may cross). Orphans
/// are never claimed: past this bound they are forgotten.
const MAX_UNCLAIMED: usize = 256;
const READ_BYTES: usize = 64 << 10;

/// One of the Machine's output pipes.
struct Output {
    /// `None` once everybody inside has closed it.
    pipe: Option<OwnedFd>,
    lines: Lines,
}

pub struct Holder {
    order: Order,
    layout: Layout,
    cgroups: Cgroups,
    server: Server,
    logs: LogFiles,
    outputs: [Output; 2],
    /// What the inside says; see `entry`.
    words: OwnedFd,
    deaths: SignalFd,
    construction: Construction,
    /// Children that have ended, with their wait status.
    unclaimed: HashMap<i32, i32>,
    workers: BTreeSet<i32>,
    /// The main process. Pid 1 inside is `construction`'s.
    program: Option<OwnedFd>,
    executing_at_ns: u64,
    executed: bool,
    failed: Option<(i32, String)>,
    running: bool,
    /// How the main process ended, as pid 1 told it.
    program_status: Option<i32>,
    deadline: Instant,
    buffer: Vec<u8>,
}

impl Holder {
    /// Starts the builder. From here on, an error must be followed by the killing of all that was begun.
    pub fn new(
        order: Order,
        layout: Layout,
        cgroups: Cgroups,
        server: Server,
        logs: LogFiles,
        heap: sys::HeapMark,
    ) -> Result<Self, ShimError> {
        // Nothing but SIGKILL ends the shim: it ends with its Machine.
        let everything = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&everything), None).map_err(ShimError::io("cannot block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let mut watched = SigSet::empty();
        watched.add(Signal::SIGCHLD);
        let deaths = SignalFd::with_flags(&watched, flags).map_err(ShimError::io("cannot watch for deaths"))?;
        let (words, telling) = sys::pipe_of_words().map_err(ShimError::io("cannot make a socket"))?;
        let (stdout, stdout_in) = sys::pipe().map_err(ShimError::io("cannot make a pipe"))?;
        let (stderr, stderr_in) = sys::pipe().map_err(ShimError::io("cannot make a pipe"))?;
        let construction = Construction::begin(&order, &cgroups, [stdout_in, stderr_in], telling, heap)?;
        // Only now: the first move of a process costs a grace period of the kernel's (8 to 20 ms), which the container's
        // own moves share when they come soon after; so it passes while the builder works. What was forked is tracked.
        cgroups.enter_as_shim(&order.spec.machine).map_err(ShimError::io("cannot enter the shim's cgroup"))?;
        for pipe in [&stdout, &stderr] {
            sys::set_nonblocking(pipe).map_err(ShimError::io("cannot set up a pipe"))?;
        }
        let output = |pipe, stream| Output { pipe: Some(pipe), lines: Lines::new(stream) };
        let outputs = [output(stdout, LogStream::Stdout), output(stderr, LogStream::Stderr)];
        let deadline = Instant::now() + Duration::from_millis(BUILD_TIMEOUT_MS);
        Ok(Self {
            order,
            layout,
            cgroups,
            server,
            logs,
            outputs,
            words,
            deaths,
            construction,
            unclaimed: HashMap::new(),
            workers: BTreeSet::new(),
            program: None,
            executing_at_ns: 0,
            executed: false,
            failed: None,
            running: false,
            program_status: None,
            deadline,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Holds the Machine until it has ended and everybody knows. `started` is called once, when its program runs.
    pub fn hold(mut self, started: impl FnOnce()) -> Result<(), ShimError> {
        let mut started = Some(started);
        loop {
            self.turn()?;
            if !self.running && self.is_running()? {
                self.running = true;
                self.note_spans();
                if let Some(started) = started.take() {
                    started();
                }
            }
            if self.running && self.init_status().is_some() {
                return self.end();
            }
        }
    }

    /// Waits for something to happen, and takes it in.
    fn turn(&mut self) -> Result<(), ShimError> {
        let mut fds = vec![sys::watch(&self.deaths, sys::READABLE), sys::watch(&self.words, sys::READABLE)];
        let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
        for output in &self.outputs {
            fds.push(output.pipe.as_ref().map_or(nothing, |pipe| sys::watch(pipe, sys::READABLE)));
        }
        fds.push(self.construction.watch().unwrap_or(nothing));
        let server_at = fds.len();
        self.server.watch(&mut fds);
        sys::poll(&mut fds, self.time_left_ms()?).map_err(ShimError::io("cannot poll"))?;
        if fds[0].revents != 0 {
            self.reap();
        }
        if fds[1].revents != 0 {
            self.listen();
        }
        for index in 0..self.outputs.len() {
            if fds[2 + index].revents != 0 {
                self.read_output(index);
            }
        }
        if fds[4].revents != 0 {
            self.construction.read();
        }
        for (index, request) in self.server.turn(&fds[server_at..]) {
            self.answer(index, request)?;
        }
        self.server.sweep();
        Ok(())
    }

    fn time_left_ms(&self) -> Result<Option<u64>, ShimError> {
        if self.running {
            return Ok(None);
        }
        match self.deadline.checked_duration_since(Instant::now()) {
            Some(left) => Ok(Some(left.as_millis() as u64 + 1)),
            None => Err(ShimError::State(format!("the container did not start within {BUILD_TIMEOUT_MS} ms"))),
        }
    }

    /// Has the start been decided? Errors when it has failed.
    fn is_running(&mut self) -> Result<bool, ShimError> {
        if let Some((errno, path)) = &self.failed {
            let (code, reason) = explain(*errno, &self.order.spec.process.argv[0], path);
            return Err(ShimError::User { exit_code: Some(code), reason });
        }
        if let Some(error) = self.construction.error() {
            return Err(error);
        }
        if self.init_status().is_some() && !self.executed {
            // Its last words may have come after its death was seen.
            self.listen();
            return match self.failed.is_some() || self.executed {
                true => self.is_running(),
                false => Err(ShimError::State("the first process died before its program was executed".into())),
            };
        }
        Ok(self.executed && self.construction.init_pid().is_some())
    }

    fn reap(&mut self) {
        while let Ok(Some(_)) = self.deaths.read_signal() {}
        while let Some((pid, status)) = reap_one() {
            if self.workers.remove(&pid) {
                continue;
            }
            if self.unclaimed.len() >= MAX_UNCLAIMED {
                let init = self.construction.init_pid();
                self.unclaimed.retain(|pid, _| Some(*pid) == init);
            }
            self.unclaimed.insert(pid, status);
        }
    }

    fn init_status(&self) -> Option<i32> {
        self.unclaimed.get(&self.construction.init_pid()?).copied()
    }

    fn listen(&mut self) {
        let mut buffer = [0; MAX_WORD_BYTES];
        while let Ok((length, sender)) = sys::receive_word(&self.words, &mut buffer) {
            match Word::decode(&buffer[..length]) {
                Some(Word::Executing(at)) => {
                    self.executing_at_ns = at;
                    self.program = sender.and_then(|pid| sys::pidfd_open(pid).ok());
                }
                Some(Word::Executed) => self.executed = true,
                Some(Word::Failed(errno, path)) => self.failed = Some((errno, path)),
                Some(Word::Ended(status)) => self.program_status = Some(status),
                // Closed: pid 1 is gone, and its death tells the rest.
                None => break,
            }
        }
    }

    fn read_output(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        let Some(pipe) = &output.pipe else { return };
        let (now, mut text) = (OffsetDateTime::now_utc(), Vec::new());
        let lines = match nix::unistd::read(pipe, &mut self.buffer) {
            Ok(0) => {
                output.pipe = None;
                output.lines.finish(now, &mut text)
            }
            Ok(read) => output.lines.push(&self.buffer[..read], now, &mut text),
            Err(_) => 0,
        };
        self.logs.write(&text, lines);
    }

    fn answer(&mut self, index: usize, request: Request) -> Result<(), ShimError> {
        let state = if self.running { ShimState::Running } else { ShimState::Starting };
        match request {
            Request::Kill if !self.running => return Err(ShimError::State("killed while it was starting".into())),
            Request::Kill => {
                self.kill_everything();
                self.server.subscribe(index);
            }
            Request::Wait => self.server.subscribe(index),
            Request::State | Request::Hello { .. } => self.server.reply(index, &Reply::State { state }),
            Request::Signal { .. } | Request::Exec { .. } | Request::Session { .. } if !self.running => {
                self.server.reply(index, &Reply::State { state });
            }
            Request::Signal { signal } => {
                let reply = self.signal(signal);
                self.server.reply(index, &reply);
            }
            Request::Exec { .. } | Request::Session { .. } if self.workers.len() >= MAX_WORKERS => {
                let reason = format!(
                    "{MAX_WORKERS} commands and copies run in this Machine already, as many as may at once; wait until one \
                     has ended, then try again"
                );
                self.server.reply(index, &Reply::Refused { reason, user_fault: false, busy: true });
            }
            Request::Exec { request } => self.employ(index, &Work::Exec(&request)),
            Request::Session { request } => self.employ(index, &Work::Session(&request)),
        }
        Ok(())
    }

    fn kill_everything(&self) {
        if let Some(pid) = self.construction.init_pid() {
            // Our child, not reaped yet: the pid is its own. With it the kernel kills its whole namespace.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn signal(&self, signal: i32) -> Reply {
        let Some(program) = &self.program else { return Reply::State { state: ShimState::Ending } };
        match sys::pidfd_signal(program, signal) {
            Ok(()) => Reply::Done,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Reply::State { state: ShimState::Ending },
            Err(e) => Reply::Refused { reason: format!("signal {signal}: {e}"), user_fault: true, busy: false },
        }
    }

    /// Hands a connection to a worker process, which answers in our place.
    fn employ(&mut self, index: usize, what: &Work) {
        let Some(init_pid) = self.construction.init_pid() else { return };
        // On failure the connection is closed, which its other end sees.
        let client = match self.server.give_away(index) {
            Ok(client) => client,
            Err(e) => return eprintln!("godwit-shim: cannot hand over a connection: {e}"),
        };
        match sys::fork() {
            Ok(ForkResult::Parent { child }) => {
                self.workers.insert(child.as_raw());
            }
            Ok(ForkResult::Child) => work(&self.order, init_pid, what, client),
            Err(e) => eprintln!("godwit-shim: cannot fork a worker: {e}"),
        }
    }

    /// Everything inside is dead or dying: make sure, record, tell, clean up.
    fn end(mut self) -> Result<(), ShimError> {
        self.listen();
        self.wait_for_workers();
        for index in 0..self.outputs.len() {
            self.drain(index);
        }
        let me = std::process::id() as i32;
        if let Err(pids) = self.cgroups.kill_all(&self.order.spec.machine, me) {
            // No record, no word: whoever looks next finds a dead shim and must prove the same before it goes on.
            return Err(ShimError::State(format!("{pids:?} of the Machine cannot be killed")));
        }
        let exit = self.exit();
        for attempt in 1..=RECORD_ATTEMPTS {
            match self.layout.write_exit(&exit) {
                Ok(()) => break,
                Err(e) => eprintln!("godwit-shim: attempt {attempt} to record the exit: {e}"),
            }
            std::thread::sleep(Duration::from_millis(RECORD_PAUSE_MS));
        }
        eprintln!("ended: {exit:?}");
        self.server.finish(&Reply::Ended { exit });
        clean_up(&self.cgroups, &self.order);
        Ok(())
    }

    fn wait_for_workers(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(WORKERS_TIMEOUT_MS);
        while !self.workers.is_empty() {
            let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
            let mut fds = [sys::watch(&self.deaths, sys::READABLE)];
            if left_ms == 0 || sys::poll(&mut fds, Some(left_ms)).is_err() {
                return;
            }
            self.reap();
        }
    }

    /// What is still in a pipe. Its writers are dead, or (an exec's child, say) about to be killed.
    fn drain(&mut self, index: usize) {
        // A pipe holds no more than this many reads' worth, so a living writer cannot keep us here.
        const MAX_READS: usize = 32;
        for _ in 0..MAX_READS {
            self.read_output(index);
        }
        let (now, mut text) = (OffsetDateTime::now_utc(), Vec::new());
        let lines = self.outputs[index].lines.finish(now, &mut text);
        self.logs.write(&text, lines);
    }

    fn exit(&self) -> Exit {
        // Pid 1 tells how the program ended; when pid 1 itself was killed, all were killed with it.
        let status = self.program_status.or_else(|| self.init_status()).unwrap_or(0);
        let exited_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Exit {
            instance: self.order.spec.instance.clone(),
            exit_code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            oom_killed: self.cgroups.oom_kills(&self.order.spec.machine) > 0,
            exited_at_ms: exited_at.as_millis() as u64,
            lost: None,
        }
    }

    /// One line that says where the time of the start went, in µs since the driver spawned us.
    fn note_spans(&self) {
        let since = |at: u64| at.saturating_sub(self.order.spawned_at_ns) / 1000;
        let steps: Vec<String> =
            self.construction.spans().iter().map(|(n, at)| format!("{n}={}", since(*at))).collect();
        let (executing, known) = (since(self.executing_at_ns), since(monotonic_ns()));
        eprintln!("started_us {} executing={executing} known={known}", steps.join(" "));
    }
}

/// What a worker is for.
enum Work<'a> {
    Exec(&'a ExecRequest),
    Session(&'a SessionRequest),
}

/// The whole life of a worker. It keeps the asking connection and nothing else of the shim's.
fn work(order: &Order, init_pid: i32, what: &Work, client: UnixStream) -> ! {
    let _ = sys::die_with_parent();
    let client = OwnedFd::from(client);
    let [kept] = sys::keep_only([&client]);
    // The holder's objects are not dropped either: the process ends below.
    std::mem::forget(client);
    let client = UnixStream::from(kept);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    match what {
        Work::Exec(request) => exec::serve(order, init_pid, request, client),
        Work::Session(request) => session::serve(order, init_pid, request, client),
    }
    sys::exit_now(0)
}
