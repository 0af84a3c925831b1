//! The dev fleet that the demo owns: started, asked and removed through the command line, and removed whatever happens.

use std::io::{BufRead, BufReader, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_lab::fleet::{DevFile, DevHost, binary, free_port};
use serde_json::Value;

use super::LOOK_INTERVAL;
use super::story::{Ran, Story};
use crate::load::Report as Load;

const READY_TIMEOUT: Duration = Duration::from_secs(90);
const STOP_TIMEOUT: Duration = Duration::from_secs(45);
const LOG_LINES_SHOWN: usize = 30;

pub struct DemoFleet {
    dir: PathBuf,
    child: Option<Child>,
}

impl DemoFleet {
    /// An earlier demo's fleet in the same folder is removed first.
    pub fn start(dir: &Path, hosts: usize) -> Result<Self> {
        if dir.join("fleet.json").exists() {
            clean(dir)?;
        }
        std::fs::create_dir_all(dir)?;
        let log_path = dir.join("dev.log");
        let log = std::fs::File::create(&log_path)?;
        let mut command = Command::new(binary("godwit")?);
        command.arg("dev").arg("--data").arg(dir).args(["--hosts", &hosts.to_string()]);
        for flag in ["--api", "--http"] {
            command.args([flag.to_owned(), format!("127.0.0.1:{}", free_port()?)]);
        }
        // A Ctrl-C is for the demo, which then removes the fleet in order.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot start godwit dev")?;
        let mut fleet = Self { dir: dir.canonicalize()?, child: Some(child) };
        let deadline = Instant::now() + READY_TIMEOUT;
        while !fleet.dir.join("dev.json").exists() {
            let ended = fleet.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("godwit dev ended with {status}:\n{}", tail(&log_path));
            }
            ensure!(Instant::now() < deadline, "godwit dev is not ready:\n{}", tail(&log_path));
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(fleet)
    }

    pub fn dev(&self) -> Result<Dev> {
        let bytes = std::fs::read(self.dir.join("dev.json"))?;
        Ok(Dev(serde_json::from_slice(&bytes).context("dev.json")?))
    }

    /// Runs the command line against this fleet; anything but success is an error.
    pub fn cli(&self, arguments: &[&str]) -> Result<Ran> {
        let dev = self.dev()?;
        let output = Command::new(binary("godwit")?)
            .args(arguments)
            .env("GODWIT_API_URL", &dev.0.api_url)
            .env("GODWIT_TOKEN", &dev.0.token)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()?;
        let shown = format!("godwit {}", arguments.join(" "));
        ensure!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Ran { shown, stdout: String::from_utf8(output.stdout)? })
    }

    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let ran = self.cli(&[arguments, &["--json"]].concat())?;
        Ok(serde_json::from_str(&ran.stdout)?)
    }

    /// Runs a command that takes its time, and shows what it tells meanwhile: its own bar on a terminal, else its lines.
    pub fn json_told(&self, story: &Story, arguments: &[&str]) -> Result<Value> {
        let dev = self.dev()?;
        let shown = format!("godwit {}", arguments.join(" "));
        story.command(&shown);
        let watched = std::io::stderr().is_terminal();
        let mut child = Command::new(binary("godwit")?)
            .args(arguments)
            .arg("--json")
            .env("GODWIT_API_URL", &dev.0.api_url)
            .env("GODWIT_TOKEN", &dev.0.token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if watched { Stdio::inherit() } else { Stdio::piped() })
            .spawn()?;
        // The answer is one short document after all the lines, so that neither pipe can fill up behind the other.
        for line in child.stderr.take().into_iter().flat_map(|lines| BufReader::new(lines).lines()) {
            story.line(format!("  {}", line?));
        }
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{shown}: {}\n{stdout}", output.status);
        Ok(serde_json::from_str(&stdout)?)
    }

    /// Until the Machine's host has it ready to be started.
    pub fn wait_until_placed(&self, app: &str, machine: &str) -> Result<()> {
        self.wait_for("a Machine is created", READY_TIMEOUT, || {
            let shown = self.json(&["machine", "status", machine, "-a", app])?;
            Ok((shown["state"] == "stopped").then_some(()))
        })
    }

    pub fn wait_for<T>(&self, what: &str, timeout: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let why = match look() {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => String::new(),
                Err(error) => format!(": {error:#}"),
            };
            ensure!(Instant::now() < deadline, "waited too long until {what}{why}");
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Starts the load process.
    pub fn load(&self, host: &str, requests: u64, rate: u64, status_only: bool) -> Result<Loading> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["load", "--addr", &self.dev()?.0.http_addr, "--host", host]);
        command.args(["--requests", &requests.to_string(), "--rate", &rate.to_string()]);
        if status_only {
            command.arg("--status-only");
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        Ok(Loading(child))
    }

    /// Stops the fleet and removes every trace.
    pub fn remove(mut self) -> Result<()> {
        self.stop()?;
        clean(&self.dir)
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        godwit_lab::fleet::kill(i32::try_from(child.id())?, libc::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("godwit dev did not stop in time");
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for DemoFleet {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Something went wrong before: what the fleet says about it comes first.
            eprintln!("--- the fleet's log ---\n{}", tail(&self.dir.join("dev.log")));
            for error in [self.stop(), clean(&self.dir)].into_iter().filter_map(Result::err) {
                eprintln!("{error:#}");
            }
        }
    }
}

pub struct Dev(DevFile);

impl std::ops::Deref for Dev {
    type Target = DevFile;
    fn deref(&self) -> &DevFile {
        &self.0
    }
}

impl Dev {
    pub fn host(&self, id: &str) -> Result<&DevHost> {
        self.0.hosts.iter().find(|host| host.id == id).with_context(|| format!("dev.json knows no host {id}"))
    }
}

pub struct Loading(Child);

impl Loading {
    /// The load's own report; that requests failed is in it and no error here.
    pub fn finish(self) -> Result<Load> {
        let output = self.0.wait_with_output()?;
        serde_json::from_slice(&output.stdout).context("the load process gave no report")
    }
}

pub fn kill(pid: i32) -> Result<()> {
    ensure!(lives(pid), "process {pid} is gone already");
    godwit_lab::fleet::kill(pid, libc::SIGKILL);
    Ok(())
}

pub fn lives(pid: i32) -> bool {
    pid > 1 && Path::new(&format!("/proc/{pid}")).exists()
}

fn clean(dir: &Path) -> Result<()> {
    let output = Command::new(binary("godwit")?).args(["dev", "--clean"]).arg(dir).output()?;
    ensure!(output.status.success(), "godwit dev --clean: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(!dir.exists(), "{} is still there after --clean", dir.display());
    Ok(())
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}
