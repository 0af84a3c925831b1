//! Waiting for a Machine to run, with open eyes: each restart is told with its reason and the lines that the process
//! wrote last, a start that cannot succeed ends the wait, and one that dies at once is not called started.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MACHINE_LOGS, MachinesPs, SortQuery};
use godwit_api::event::{ExitEvent, MachineEvent};
use godwit_api::host::{LogLine, LogQuery, PLATFORM_STREAM};
use godwit_api::machine::{Machine, MachineState};
use godwit_api::{AppName, InstanceId};
use godwit_base::http::client::{HEAD_TIMEOUT, empty, query_string};
use http_body_util::{BodyExt, Limited};

use super::duration;
use crate::cli::context::{Context, LOOK_INTERVAL, ON_THE_WAY_UP};
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Restarts in a row that end alike: what follows will not end otherwise.
const ALIKE_MAX: usize = 3;
/// Lines that are shown of what the process wrote before its end.
const LINES_SHOWN: usize = 10;
/// Among the platform's remarks.
const LINES_READ: u64 = 40;
/// They and what surrounds them.
const LOG_BYTES_MAX: usize = 1 << 20;
/// How often it is asked whether a port accepts, while nothing else says that the Machine is well.
const PS_INTERVAL: Duration = Duration::from_millis(300);

/// For commands that start a Machine.
#[derive(clap::Args)]
pub struct SmokeOption {
    /// How long the Machine must run after its start to count as started. A check that
    /// passes, or a port that accepts, ends the watch sooner; 0 leaves it out
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    smoke_time: Duration,
}

impl SmokeOption {
    pub fn time(&self) -> Duration {
        self.smoke_time
    }
}

/// What is waited for.
pub struct Goal<'a> {
    /// The Machine before the command; what it told then is not told again.
    pub before: Option<&'a Machine>,
    /// Of an update: no other version counts.
    pub version: Option<&'a InstanceId>,
    /// It may also come to rest stopped.
    pub or_stopped: bool,
    pub timeout: Duration,
    pub smoke: Duration,
}

/// How a look at the Machine ends.
enum Look {
    Wait,
    /// It is as wanted.
    There,
    /// It ran, and ended as programs do that have done their work.
    Done,
    Failed(String),
}

struct Follower<'a> {
    context: &'a Context,
    app: &'a AppName,
    id: &'a str,
    goal: Goal<'a>,
    told: BTreeSet<String>,
    /// The ends since the command, oldest first.
    ends: Vec<ExitEvent>,
    /// The time of the last line that was shown.
    shown: Option<String>,
    /// Since when the present start has been watched.
    started: Option<(Instant, String)>,
    asked_ports: Option<Instant>,
}

impl Context {
    /// Waits until a Machine runs and seems well, and tells what happens meanwhile.
    pub async fn follow_start(&self, app: &AppName, machine: &Machine, goal: Goal<'_>) -> Result<Machine> {
        let told = goal.before.map(|before| before.events.iter().map(|event| event.id.clone()).collect());
        let follower = Follower {
            context: self,
            app,
            id: machine.id.as_str(),
            told: told.unwrap_or_default(),
            ends: Vec::new(),
            shown: None,
            started: None,
            asked_ports: None,
            goal,
        };
        let what = format!("waiting until Machine {} runs", machine.id);
        let progress = self.output.progress(what);
        let ended = tokio::select! {
            ended = follower.run(machine) => ended,
            _ = tokio::signal::ctrl_c() => {
                let why = format!("stopped waiting; the operation on Machine {} continues", machine.id);
                Err(CliError::new(Exit::Interrupted, why))
            }
        };
        drop(progress);
        ended
    }
}

impl Follower<'_> {
    async fn run(mut self, machine: &Machine) -> Result<Machine> {
        let deadline = Instant::now() + self.goal.timeout;
        loop {
            let state = match self.context.show(self.app, &machine.id).await {
                Ok(now) => match self.look(&now).await {
                    Look::There => return Ok(now),
                    Look::Done => {
                        self.context.output.say("It ran and exited with code 0.");
                        return Ok(now);
                    }
                    Look::Failed(why) => return Err(self.failed(&now, &why).await),
                    Look::Wait => now.state.as_str(),
                },
                Err(error) if error.exit == Exit::Unreachable => "unknown: control does not answer",
                Err(error) => return Err(error),
            };
            if Instant::now() > deadline {
                let after = self.goal.timeout.as_secs();
                let why = format!("Machine {} is {state}, not started, after {after} s", machine.id);
                let hint = format!("it continues: `godwit machine wait {} -a {}` waits again", machine.id, self.app);
                return Err(CliError::new(Exit::TimedOut, why).hint(hint));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn look(&mut self, now: &Machine) -> Look {
        let new: Vec<&MachineEvent> = now.events.iter().rev().filter(|event| !self.told.contains(&event.id)).collect();
        for event in new {
            self.told.insert(event.id.clone());
            self.tell(event).await;
        }
        if self.goal.version.is_some_and(|version| *version != now.instance_id) {
            let stands = format!("was not updated, and version {} stands", now.instance_id);
            return Look::Failed(with_reason(&stands, now));
        }
        if let Some(last) = self.ends.last().filter(|last| last.restarting)
            && self.ends.len() >= ALIKE_MAX
            && self.ends.iter().rev().take(ALIKE_MAX).all(|end| is_alike(end, last))
        {
            let how = last.words();
            return Look::Failed(format!("does not stay up: {ALIKE_MAX} starts in a row ended alike ({how})"));
        }
        match now.state {
            MachineState::Started => self.is_well(now).await,
            MachineState::Stopped if self.goal.or_stopped => Look::There,
            MachineState::Stopped | MachineState::Destroying | MachineState::Destroyed => match self.ends.last() {
                Some(end) if end.exit_code == 0 && end.signal == 0 => Look::Done,
                // Right after the call its old state may still be shown.
                _ if self.is_as_before(now) => Look::Wait,
                _ if self.ends.is_empty() => Look::Failed(with_reason(&format!("is {}", now.state.as_str()), now)),
                _ => Look::Failed(with_reason("started, and ended", now)),
            },
            state if ON_THE_WAY_UP.contains(&state) || self.is_as_before(now) => Look::Wait,
            state => Look::Failed(with_reason(state.as_str(), now)),
        }
    }

    /// Nothing has been heard of it since the command.
    fn is_as_before(&self, now: &Machine) -> bool {
        self.goal.before.is_some_and(|before| before.state == now.state && before.events == now.events)
    }

    async fn tell(&mut self, event: &MachineEvent) {
        let Some(detail) = &event.request else { return };
        let end = detail.exit_event.as_ref().filter(|end| !end.requested_stop);
        if let Some(end) = end {
            self.started = None;
            self.ends.push(end.clone());
        }
        let Some(reason) = &detail.reason else { return };
        // A last and good end, and what was asked for, is no news.
        if detail.exit_event.is_some() && end.is_none_or(|end| end.exit_code == 0 && !end.restarting) {
            return;
        }
        if end.is_some() {
            self.tell_lines().await;
        }
        match event.kind.as_str() {
            "exit" => self.context.output.say(format!("  {reason}")),
            kind => self.context.output.say(format!("  {kind}: {reason}")),
        }
    }

    /// What the process wrote since the last time.
    async fn tell_lines(&mut self) {
        // Lines that were written at once have one time: all of them are new, or none.
        let shown = self.shown.clone();
        for line in self.lines().await {
            if shown.as_ref().is_none_or(|shown| line.timestamp > *shown) {
                self.context.output.say(format!("  | {}", line.message));
                self.shown = Some(line.timestamp);
            }
        }
    }

    /// The last lines of its log; none when they cannot be had, which the wait is not about.
    async fn lines(&self) -> Vec<LogLine> {
        let path = MACHINE_LOGS.replace("{app_name}", self.app.as_str()).replace("{machine_id}", self.id);
        let query = LogQuery { follow: Some(false), tail: Some(LINES_READ), since: None };
        let path = format!("{path}?{}", query_string(&query));
        let Ok(response) = self.context.client.send(&path, http::Request::new(empty()), HEAD_TIMEOUT).await else {
            return Vec::new();
        };
        let body = Limited::new(response.into_body(), LOG_BYTES_MAX).collect();
        let Ok(Ok(body)) = tokio::time::timeout(HEAD_TIMEOUT, body).await else { return Vec::new() };
        let bytes = body.to_bytes();
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let written: Vec<LogLine> = lines.filter(|line: &LogLine| line.stream != PLATFORM_STREAM).collect();
        written.into_iter().rev().take(LINES_SHOWN).rev().collect()
    }

    /// A Machine that has just started: has it done so for good?
    async fn is_well(&mut self, now: &Machine) -> Look {
        let run = now.events.iter().find(|event| event.kind == "start").map(|event| event.id.clone());
        let run = run.unwrap_or_default();
        if self.goal.version.is_none() && self.is_as_before(now) {
            // It ran already.
            return Look::There;
        }
        let since = match &self.started {
            Some((since, of)) if *of == run => *since,
            _ => {
                let since = Instant::now();
                self.started = Some((since, run));
                since
            }
        };
        if now.checks.iter().any(|check| check.status == "passing") {
            return Look::There;
        }
        let is_over = since.elapsed() >= self.goal.smoke;
        let ports: BTreeSet<u16> = now.config.services.iter().map(|service| service.internal_port).collect();
        let is_due = self.asked_ports.is_none_or(|at| at.elapsed() >= PS_INTERVAL);
        if !ports.is_empty() && (is_due || is_over) {
            self.asked_ports = Some(Instant::now());
            let open = self.sockets().await.into_iter().filter(|socket| ports.contains(&socket.port()));
            let (alone, reached): (Vec<_>, Vec<_>) = open.partition(|socket| socket.ip().is_loopback());
            if !reached.is_empty() {
                return Look::There;
            }
            if let (true, Some(socket)) = (is_over, alone.first()) {
                self.context.output.warn(format!(
                    "it listens on {socket}, where no request can reach it; make it listen on 0.0.0.0 or [::]"
                ));
            }
        }
        if is_over { Look::There } else { Look::Wait }
    }

    /// Where its processes listen; nothing when that cannot be had.
    async fn sockets(&self) -> Vec<SocketAddr> {
        let (path, client) = ([self.app.as_str(), self.id], &self.context.client);
        let Ok(processes) = client.call::<MachinesPs>(&path, &SortQuery::default(), &Empty {}).await else {
            return Vec::new();
        };
        let sockets = processes.iter().flat_map(|process| &process.listen_sockets);
        sockets.filter_map(|socket| socket.address.parse().ok()).collect()
    }

    /// The whole story in one message: what is so, why, what it wrote last, what to do next.
    async fn failed(&mut self, now: &Machine, what: &str) -> CliError {
        self.tell_lines().await;
        let (id, app) = (&now.id, self.app);
        let exit = if self.goal.version.is_some_and(|version| *version != now.instance_id) {
            "change the configuration and update again".to_owned()
        } else {
            format!(
                "`godwit logs -a {app} --machine {id}` shows its output; fix it with `godwit machine update {id} -a {app}`, or remove it with `godwit machine destroy {id} -a {app}`"
            )
        };
        CliError::failed(format!("Machine {id} {what}")).hint(exit)
    }
}

/// What happened, and the newest reason that was told.
fn with_reason(what: &str, now: &Machine) -> String {
    let reason = now.events.iter().find_map(|event| event.request.as_ref()?.reason.clone());
    reason.map_or_else(|| what.to_owned(), |reason| format!("{what}: {reason}"))
}

fn is_alike(one: &ExitEvent, other: &ExitEvent) -> bool {
    let key = |end: &ExitEvent| (end.exit_code, end.signal, end.oom_killed);
    key(one) == key(other)
}
