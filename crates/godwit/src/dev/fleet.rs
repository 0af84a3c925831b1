//! A fleet that runs: its parts started in order, watched, started again when they die, and told of in `dev.json`.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::HostsList;
use godwit_base::TaskGroup;
use godwit_base::http::client::Client;
use godwit_net::{Fabric, FabricOptions, HostLink};
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

use super::config::{self, Addresses};
use super::process::Process;
use super::record::{HostRecord, Record, host_dir};
use super::report::{DevFile, DevHost};
use super::{Options, cgroup, host, inside, line, tls};
use crate::args::Global;
use crate::error::{CliError, Result};

/// A fleet that is not ready by then will never be.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// A part that dies is started again after this, doubling up to `RESTART_MAX`.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(3);
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long a part may take to stop before it is killed; more than a host gives its roles.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const EVENTS_QUEUED: usize = 64;
/// Lines of a part's log that are shown when the fleet does not come up.
const LOG_LINES_SHOWN: usize = 12;

/// The folder belongs to one `godwit dev` at a time; the kernel gives it back when that dies.
pub struct Lock(#[expect(dead_code, reason = "held for the lock on it")] File);

impl Lock {
    pub fn take(dir: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => {
                Err(CliError::failed(format!("another `godwit dev` uses {}", dir.display()))
                    .hint("stop it, or give this one a folder of its own"))
            }
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// A part of the fleet was started.
struct Event {
    /// `control`, `edge`, `host NAME`, `agent NAME`, `door NAME`.
    what: String,
    pid: i32,
}

pub async fn run(options: &Options, global: &Global) -> Result<()> {
    let begin = Instant::now();
    let mut fleet = Fleet::prepare(options).await?;
    let stop = godwit_base::task::terminated();
    tokio::pin!(stop);
    let parts = TaskGroup::new();
    let (sender, mut events) = mpsc::channel(EVENTS_QUEUED);
    let brought_up = tokio::select! {
        brought_up = fleet.bring_up(&parts, &sender, &mut events) => brought_up,
        () = &mut stop => Ok(false),
    };
    match brought_up {
        Ok(true) => {
            let file = fleet.dev_file();
            file.write(&fleet.dir)?;
            if global.json {
                println!("{}", serde_json::to_string(&file)?);
            } else if !global.quiet {
                eprint!("{}", file.greeting(&fleet.dir, begin.elapsed()));
            }
            loop {
                tokio::select! {
                    Some(event) = events.recv() => fleet.note(event, true)?,
                    () = &mut stop => break,
                }
            }
        }
        Ok(false) => {}
        Err(error) => {
            parts.drain(STOP_TIMEOUT).await;
            return Err(error);
        }
    }
    if !global.quiet {
        eprintln!("Stopping the fleet.");
    }
    // Nobody should take a fleet that stops for one that serves.
    DevFile::remove(&fleet.dir)?;
    // The channel must not fill up while parts stop.
    tokio::select! {
        _ = parts.drain(STOP_TIMEOUT + Duration::from_secs(5)) => {}
        () = async { while events.recv().await.is_some() {} std::future::pending().await } => {}
    }
    super::clean::detach_loops(&fleet.dir)?;
    fleet.record.processes.clear();
    fleet.record.write(&fleet.dir)
}

struct Fleet {
    dir: PathBuf,
    record: Record,
    options: Options,
    addresses: Addresses,
    links: BTreeMap<String, HostLink>,
    /// Host name to the id that control gave it.
    ids: BTreeMap<String, String>,
    token: String,
    pids: BTreeMap<String, i32>,
    _lock: Lock,
}

impl Fleet {
    /// The folder, the record, and the network.
    async fn prepare(options: &Options) -> Result<Self> {
        // clap asks for it unless --clean is given, which does not come here.
        let dir = options.data.as_ref().ok_or_else(|| CliError::usage("--data is missing"))?;
        config::shim_path()?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let dir = dir.canonicalize()?;
        let lock = Lock::take(&dir)?;
        DevFile::remove(&dir)?;
        let mut record = Record::read(&dir)?.unwrap_or_else(Record::new);
        for process in &record.processes {
            if !process.kill() {
                return Err(CliError::failed(format!(
                    "{} (pid {}) of the last run does not end",
                    process.what, process.pid
                )));
            }
        }
        record.processes = Process::of(std::process::id() as i32, "dev").into_iter().collect();
        let known = u16::try_from(record.hosts.len()).unwrap_or(super::HOSTS_MAX);
        let count = options.hosts.unwrap_or(if known == 0 { 3 } else { known });
        record.grow(count, &options.region);
        record.write(&dir)?;

        let fabric_options = FabricOptions { fleet: record.fleet.clone(), dir: dir.clone(), egress_v4: true };
        let fabric = Fabric::new(fabric_options).await.map_err(network)?;
        let gateway = fabric.ensure().await.map_err(network)?;
        let mut links = BTreeMap::new();
        for host in &record.hosts[..usize::from(count)] {
            let link = fabric.ensure_host_netns(&host.name, host.index).await.map_err(network)?;
            links.insert(host.name.clone(), link);
        }
        let addresses = Addresses {
            api: with_port(options.api)?,
            http: with_port(options.http)?,
            https: with_port(https(options))?,
            edge_admin: with_port(SocketAddr::from(([127, 0, 0, 1], 0)))?,
            gateway,
        };
        Ok(Self {
            dir,
            record,
            options: options.clone(),
            addresses,
            links,
            ids: BTreeMap::new(),
            token: String::new(),
            pids: BTreeMap::new(),
            _lock: lock,
        })
    }

    /// The hosts of this run: all that the record knows, or the first of them.
    fn hosts(&self) -> Vec<HostRecord> {
        self.record.hosts.iter().filter(|host| self.links.contains_key(&host.name)).cloned().collect()
    }

    /// Starts control, then all the rest side by side, and waits until every part is well.
    async fn bring_up(
        &mut self,
        parts: &TaskGroup,
        sender: &mpsc::Sender<Event>,
        events: &mut mpsc::Receiver<Event>,
    ) -> Result<bool> {
        let deadline = Instant::now() + READY_TIMEOUT;
        config::write(
            &self.dir.join("control/control.toml"),
            &config::control(&self.dir, &self.record, &self.addresses),
        )?;
        self.start_role("control", parts, sender)?;
        let api = self.addresses.api;
        self.until(deadline, "control", events, async || healthy(api).await).await?;
        self.token = read_token(&config::admin_token_file(&self.dir))?;
        let join_token = read_token(&config::join_token_file(&self.dir))?;

        tls::ensure(&self.dir)?;
        let edge = config::edge(&self.dir, &self.record, &self.addresses, &self.options);
        config::write(&self.dir.join("edge/edge.toml"), &edge)?;
        self.start_role("edge", parts, sender)?;
        for host in self.hosts() {
            self.start_host(&host, &join_token, parts, sender)?;
        }
        let edge_admin = self.addresses.edge_admin;
        self.until(deadline, "edge", events, async || healthy(edge_admin).await).await?;
        self.until_hosts_are_active(deadline, events).await?;
        Ok(true)
    }

    fn start_role(&self, role: &'static str, parts: &TaskGroup, sender: &mpsc::Sender<Event>) -> Result<()> {
        let config = self.dir.join(role).join(format!("{role}.toml")).into_os_string();
        let mut arguments = vec!["run".into(), role.into(), "--config".into(), config];
        if role == "edge" {
            // The fleet's edge takes its place back from whoever took it.
            arguments.push("--take-over".into());
        }
        let part = Part {
            what: role.to_owned(),
            arguments,
            log: self.dir.join(role).join(format!("{role}.log")),
            host: None,
            sender: sender.clone(),
        };
        parts.spawn(part.keep(parts.clone()));
        Ok(())
    }

    fn start_host(
        &self,
        host: &HostRecord,
        join_token: &str,
        parts: &TaskGroup,
        sender: &mpsc::Sender<Event>,
    ) -> Result<()> {
        let link = &self.links[&host.name];
        let folder = host_dir(&self.dir, host);
        let (record, addresses) = (&self.record, &self.addresses);
        let agent = config::agent(&self.dir, record, host, link.v6, addresses, &self.options, join_token)?;
        config::write(&folder.join("agent.toml"), &agent)?;
        config::write(&folder.join("door.toml"), &config::door(&self.dir, host, link.v6))?;
        let part = Part {
            what: format!("host {}", host.name),
            arguments: vec![
                "dev-host".into(),
                "--name".into(),
                host.name.clone().into(),
                "--fleet-dir".into(),
                self.dir.clone().into_os_string(),
                "--netns".into(),
                link.netns.clone().into_os_string(),
            ],
            log: folder.join("host.log"),
            host: Some((host.name.clone(), record.cgroup(host))),
            sender: sender.clone(),
        };
        parts.spawn(part.keep(parts.clone()));
        Ok(())
    }

    /// Looks until it holds, and takes in what happens meanwhile.
    async fn until(
        &mut self,
        deadline: Instant,
        what: &str,
        events: &mut mpsc::Receiver<Event>,
        holds: impl AsyncFn() -> Result<(), String>,
    ) -> Result<()> {
        loop {
            while let Ok(event) = events.try_recv() {
                self.note(event, false)?;
            }
            let Err(why) = holds().await else { return Ok(()) };
            if Instant::now() > deadline {
                let log = self.dir.join(what).join(format!("{what}.log"));
                return Err(CliError::failed(format!("{what} is not healthy: {why}\n{}", tail(&log))));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn until_hosts_are_active(&mut self, deadline: Instant, events: &mut mpsc::Receiver<Event>) -> Result<()> {
        let client = Client::tcp(&format!("http://{}", self.addresses.api), Some(self.token.clone()));
        loop {
            while let Ok(event) = events.try_recv() {
                self.note(event, false)?;
            }
            let shown = client.call::<HostsList>(&[], &Empty {}, &Empty {}).await;
            let shown = shown.map_err(|error| godwit_base::telemetry::chain(&error));
            let mut missing = Vec::new();
            for host in self.hosts() {
                // By the id that the host holds now: one whose folder was wiped is another host at the same address.
                let id = config::host_id(&self.dir, &host);
                // Active is what control says of a host before it has heard of it, too; a capacity it has heard.
                let active = shown.iter().flatten().find(|shown| {
                    Some(&shown.id) == id.as_ref() && shown.state == "active" && shown.capacity.cpu_millis > 0
                });
                let told =
                    ["agent", "door"].iter().all(|role| self.pids.contains_key(&format!("{role} {}", host.name)));
                match active {
                    Some(active) if told => drop(self.ids.insert(host.name.clone(), active.id.clone())),
                    _ => missing.push(host),
                }
            }
            let Some(first) = missing.first() else { return Ok(()) };
            if Instant::now() > deadline {
                let folder = host_dir(&self.dir, first);
                let logs: Vec<String> =
                    ["host.log", "agent.log", "door.log"].iter().map(|name| tail(&folder.join(name))).collect();
                let why = shown.err().map(|why| format!(" ({why})")).unwrap_or_default();
                return Err(CliError::failed(format!("host {} did not join{why}\n{}", first.name, logs.join("\n"))));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Remembers a part's new process; with `publish`, tells the world.
    fn note(&mut self, event: Event, publish: bool) -> Result<()> {
        if let Some(process) = Process::of(event.pid, &event.what) {
            self.record.note(process);
            self.record.write(&self.dir)?;
        }
        self.pids.insert(event.what, event.pid);
        if publish { self.dev_file().write(&self.dir) } else { Ok(()) }
    }

    fn dev_file(&self) -> DevFile {
        let pid = |what: String| self.pids.get(&what).copied().unwrap_or(0);
        let hosts = self.hosts().into_iter().map(|host| {
            let link = &self.links[&host.name];
            DevHost {
                id: self.ids.get(&host.name).cloned().unwrap_or_default(),
                addr: link.v6.to_string(),
                netns: link.netns.clone(),
                agent_pid: pid(format!("agent {}", host.name)),
                door_pid: pid(format!("door {}", host.name)),
                data_dir: host_dir(&self.dir, &host),
                region: host.region,
            }
        });
        DevFile {
            api_url: format!("http://{}", self.addresses.api),
            token: self.token.clone(),
            http_addr: self.addresses.http,
            https_addr: self.addresses.https,
            ca_file: tls::ca_file(&self.dir),
            control_pid: pid("control".into()),
            edge_pid: pid("edge".into()),
            hosts: hosts.collect(),
        }
    }
}

/// Beside an address for HTTP that somebody chose no port is anybody's habit.
fn https(options: &Options) -> SocketAddr {
    options.https.unwrap_or_else(|| {
        let port = if options.http.port() == super::HTTP_PORT { super::HTTPS_PORT } else { 0 };
        SocketAddr::new(options.http.ip(), port)
    })
}

/// One process that is kept alive until the group stops.
struct Part {
    what: String,
    arguments: Vec<std::ffi::OsString>,
    log: PathBuf,
    /// A host's name, and its cgroup, of which nothing may be left when it starts.
    host: Option<(String, String)>,
    sender: mpsc::Sender<Event>,
}

impl Part {
    async fn keep(self, group: TaskGroup) {
        let mut wait = RESTART_FIRST;
        while !group.is_stopping() {
            let since = Instant::now();
            match self.live(&group).await {
                Ok(()) => {}
                Err(error) => eprintln!("{}: {error}", self.what),
            }
            if group.is_stopping() {
                return;
            }
            eprintln!("{} ended; it is started again.", self.what);
            if since.elapsed() >= STABLE_AFTER {
                wait = RESTART_FIRST;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = group.stopping() => return,
            }
            wait = (wait * 2).min(RESTART_MAX);
        }
    }

    /// One life of the process.
    async fn live(&self, group: &TaskGroup) -> Result<()> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(&self.arguments).stdin(Stdio::null());
        if let Some(folder) = self.log.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let log = inside::open_log(&self.log)?;
        command.stdout(log.try_clone()?).stderr(log);
        let mut host_line = None;
        if let Some((_, cgroup)) = &self.host {
            let cgroup = cgroup.clone();
            let removed = tokio::task::spawn_blocking(move || cgroup::remove(&cgroup)).await;
            removed.map_err(|error| CliError::failed(error.to_string()))??;
            let (ours, theirs) = line::pair()?;
            command.arg("--line").arg(theirs.as_raw_fd().to_string());
            host_line = Some((ours, theirs));
        }
        let inherited = host_line.as_ref().map(|(_, theirs)| theirs.as_raw_fd());
        // SAFETY: between fork and exec only setsid(2) and fcntl(2) are called, which are async-signal-safe. The
        // descriptor is open: `host_line` lives beyond the spawn.
        unsafe {
            command.pre_exec(move || {
                // A terminal's Ctrl-C is for `godwit dev` alone, which stops its parts in order.
                nix::unistd::setsid()?;
                match inherited {
                    Some(number) if libc::fcntl(number, libc::F_SETFD, 0) < 0 => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        host::die_with_parent(&mut command);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        self.tell(self.what.clone(), pid).await;
        let ours = host_line.map(|(ours, _)| UnixDatagram::from_std(ours)).transpose()?;
        tokio::select! {
            status = child.wait() => {
                let status = status?;
                return if status.success() { Ok(()) } else { Err(CliError::failed(status.to_string())) };
            }
            () = self.follow(ours) => {}
            () = group.stopping() => {}
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
            eprintln!("{} does not stop; it is killed.", self.what);
            child.kill().await?;
        }
        Ok(())
    }

    /// Hands on what a host's pid 1 tells, for ever.
    async fn follow(&self, line: Option<UnixDatagram>) {
        let (Some(line), Some((name, _))) = (line, &self.host) else { return std::future::pending().await };
        loop {
            let next = line.async_io(tokio::io::Interest::READABLE, || line::next(&line)).await;
            match next {
                Ok(started) => self.tell(format!("{} {name}", started.role), started.pid).await,
                Err(error) => {
                    eprintln!("{}: {error}", self.what);
                    return std::future::pending().await;
                }
            }
        }
    }

    async fn tell(&self, what: String, pid: i32) {
        // Nobody listens any more only when the whole fleet is ending.
        let _ = self.sender.send(Event { what, pid }).await;
    }
}

/// A port of our own choice where 0 was asked for.
fn with_port(address: SocketAddr) -> Result<SocketAddr> {
    let bound = TcpListener::bind(address).map_err(|error| {
        CliError::failed(format!("cannot listen on {address}: {error}"))
            .hint("does another fleet run? give this one other --api and --http addresses")
    })?;
    Ok(bound.local_addr()?)
}

async fn healthy(address: SocketAddr) -> Result<(), String> {
    let client = Client::tcp(&format!("http://{address}"), None);
    let request = http::Request::new(godwit_base::http::client::empty());
    let answer = client.send("/healthz", request, Duration::from_secs(2)).await;
    answer.map(|_| ()).map_err(|error| godwit_base::telemetry::chain(&error))
}

fn read_token(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::failed(format!("cannot read {}: {error}", path.display())))?;
    Ok(text.trim().to_owned())
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n  ");
    format!("{}:\n  {shown}", path.display())
}

fn network(error: godwit_net::Error) -> CliError {
    CliError::failed(format!("cannot make the fleet's network: {}", godwit_base::telemetry::chain(&error)))
}
