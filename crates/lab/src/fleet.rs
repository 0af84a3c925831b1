//! A dev fleet that one test owns: started from the real binary, reached as any client reaches it, harmed by pid,
//! and removed to the last trace when dropped.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsCreate, MachinesCreate, MachinesDelete, MachinesShow, MachinesStart, MachinesStop};
use godwit_api::machine::{CreateMachine, Machine, MachineState, StopMachine};
use godwit_base::http::client::{CallError, Client};
use serde::Deserialize;

use crate::plain::{self, Answer};

/// A fleet that is not ready by then is broken.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a condition is looked at while it is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What `godwit dev` writes when it is ready.
#[derive(Debug, Clone, Deserialize)]
pub struct DevFile {
    pub api_url: String,
    pub token: String,
    pub http_addr: String,
    pub https_addr: String,
    pub ca_file: PathBuf,
    pub control_pid: i32,
    pub edge_pid: i32,
    pub hosts: Vec<DevHost>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct DevHost {
    pub id: String,
    pub region: String,
    pub addr: String,
    pub netns: String,
    pub agent_pid: i32,
    pub door_pid: i32,
    pub data_dir: PathBuf,
}

pub struct Fleet {
    dir: PathBuf,
    child: Option<Child>,
    /// Removes the folder after everything else is gone.
    _folder: Option<tempfile::TempDir>,
    arguments: Vec<String>,
}

/// The workspace's own build of a binary, beside the running test.
pub fn binary(name: &str) -> Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.pop();
    }
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built: run `make build` first", path.display());
    Ok(path)
}

/// A loopback port for one process after another: below the ports that the kernel gives to connections and to whoever asks
/// for any; and claimed by a UDP socket of the same number at an
/// address that nobody serves on, which another run of tests meets before it.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 12_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static CLAIMS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let start = u16::try_from(std::process::id() % u32::from(PORTS))?;
    for _ in 0..PORTS {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        let address = (Ipv4Addr::LOCALHOST, port);
        if let Ok(claim) = UdpSocket::bind((Ipv4Addr::new(127, 255, 255, 1), port))
            && TcpListener::bind(address).is_ok()
        {
            CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
            return Ok(port);
        }
    }
    bail!("no port between {FIRST} and {} is free", FIRST + PORTS)
}

impl Fleet {
    /// Starts a fleet of `hosts` in a folder of its own and waits until it is ready.
    pub fn start(hosts: usize, more: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("godwit-lab-").tempdir()?;
        let mut arguments: Vec<String> = vec!["--hosts".into(), hosts.to_string()];
        for (flag, port) in [("--api", free_port()?), ("--http", free_port()?)] {
            arguments.extend([flag.to_owned(), format!("127.0.0.1:{port}")]);
        }
        arguments.extend(more.iter().map(|text| (*text).to_owned()));
        let mut fleet = Self { dir: folder.path().to_owned(), child: None, _folder: Some(folder), arguments };
        fleet.up()?;
        Ok(fleet)
    }

    /// Starts `godwit dev` on the fleet's folder, again if it was stopped, and waits for its file.
    pub fn up(&mut self) -> Result<()> {
        let dev_file = self.dir.join("dev.json");
        let _ = std::fs::remove_file(&dev_file);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("dev.log"))?;
        let child = Command::new(binary("godwit")?)
            .arg("dev")
            .arg("--data")
            .arg(&self.dir)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        let deadline = Instant::now() + READY_TIMEOUT;
        while !dev_file.exists() {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("godwit dev ended with {status}:\n{}", self.log_tail());
            }
            ensure!(Instant::now() < deadline, "godwit dev is not ready:\n{}", self.log_tail());
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// SIGTERM to `godwit dev`, and its end.
    pub fn down(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        kill(i32::try_from(child.id())?, libc::SIGTERM);
        let deadline = Instant::now() + READY_TIMEOUT;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("godwit dev did not stop in time:\n{}", self.log_tail());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    /// SIGKILL to `godwit dev`: the power cord of the whole fleet.
    pub fn cut_power(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// `godwit dev --clean` on the folder.
    pub fn clean(&self) -> Result<()> {
        let output = Command::new(binary("godwit")?).args(["dev", "--clean"]).arg(&self.dir).output()?;
        ensure!(output.status.success(), "dev --clean: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn dev(&self) -> Result<DevFile> {
        let text = std::fs::read(self.dir.join("dev.json"))?;
        serde_json::from_slice(&text).context("dev.json")
    }

    pub fn host(&self, id: &str) -> Result<DevHost> {
        self.dev()?.hosts.into_iter().find(|host| host.id == id).with_context(|| format!("no host {id}"))
    }

    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("dev.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    pub fn api(&self) -> Result<Client> {
        let dev = self.dev()?;
        Ok(Client::tcp(&dev.api_url, Some(dev.token)))
    }

    /// Runs the command line against this fleet.
    pub fn cli(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let dev = self.dev()?;
        Ok(Command::new(binary("godwit")?)
            .args(arguments)
            .env("GODWIT_API_URL", dev.api_url)
            .env("GODWIT_TOKEN", dev.token)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()?)
    }

    /// The same, where anything but success is an error; answers standard output.
    pub fn cli_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cli(arguments)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "godwit {}: {} {stderr}", arguments.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    pub async fn create_app(&self, name: &str) -> Result<()> {
        let request = godwit_api::app::CreateApp { app_name: Some(name.into()), ..Default::default() };
        self.api()?.call::<AppsCreate>(&[], &Empty {}, &request).await?;
        Ok(())
    }

    pub async fn create_machine(&self, app: &str, request: serde_json::Value) -> Result<Machine> {
        let request: CreateMachine = serde_json::from_value(request)?;
        Ok(self.api()?.call::<MachinesCreate>(&[app], &Empty {}, &request).await?)
    }

    pub async fn machine(&self, app: &str, id: &str) -> Result<Machine, CallError> {
        let api = self.api().map_err(|error| CallError::Garbled { url: "dev.json".into(), why: error.to_string() })?;
        api.call::<MachinesShow>(&[app, id], &Empty {}, &Empty {}).await
    }

    pub async fn start_machine(&self, app: &str, id: &str) -> Result<(), CallError> {
        let api = self.api().map_err(|error| CallError::Garbled { url: "dev.json".into(), why: error.to_string() })?;
        api.call::<MachinesStart>(&[app, id], &Empty {}, &Empty {}).await.map(|_| ())
    }

    pub async fn stop_machine(&self, app: &str, id: &str) -> Result<(), CallError> {
        let api = self.api().map_err(|error| CallError::Garbled { url: "dev.json".into(), why: error.to_string() })?;
        api.call::<MachinesStop>(&[app, id], &Empty {}, &StopMachine::default()).await.map(|_| ())
    }

    pub async fn destroy_machine(&self, app: &str, id: &str) -> Result<(), CallError> {
        let api = self.api().map_err(|error| CallError::Garbled { url: "dev.json".into(), why: error.to_string() })?;
        let query = godwit_api::machine::DeleteQuery { force: Some(true), kill: None };
        api.call::<MachinesDelete>(&[app, id], &query, &Empty {}).await.map(|_| ())
    }

    /// Waits until the Machine is in one of `states`; names the state it is in when the time is over.
    pub async fn wait_state(&self, app: &str, id: &str, states: &[MachineState], timeout: Duration) -> Result<Machine> {
        let deadline = Instant::now() + timeout;
        loop {
            let last = match self.machine(app, id).await {
                Ok(machine) if states.contains(&machine.state) => return Ok(machine),
                Ok(machine) => format!("{} {:?}", machine.state.as_str(), machine.events.first()),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                bail!("{app}/{id} never became {states:?}: {last}\n{}", self.log_tail());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// `GET` through the edge.
    pub async fn get(&self, app: &str, path: &str, timeout: Duration) -> Result<Answer> {
        let addr = self.dev()?.http_addr;
        Ok(plain::get(&addr, &format!("{app}.localhost"), path, timeout).await?)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the fleet's log ---\n{}", self.log_tail());
        }
        if let Err(error) = self.down() {
            eprintln!("{error:#}");
        }
        if let Err(error) = self.clean() {
            eprintln!("{error:#}");
        }
    }
}

/// Sends a signal to a process that the fleet started.
pub fn kill(pid: i32, signal: i32) {
    assert!(pid > 1, "{pid} is not a process of a fleet");
    // SAFETY: kill(2) takes two numbers and touches no memory of ours; pid > 1 keeps it from a whole group or init.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// Looks at a condition until it holds.
pub async fn eventually<F, R>(what: &str, timeout: Duration, mut holds: F) -> Result<R>
where
    F: AsyncFnMut() -> Result<Option<R>>,
{
    let deadline = Instant::now() + timeout;
    loop {
        let last = match holds().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if Instant::now() > deadline {
            bail!("{what} did not come to hold within {timeout:?}{last}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
