//! The inner half of a dev host: pid 1 of its pid namespace. It gives the host a boot id and a view of its own files
//! alone, starts agent and door, starts them again when they die, and reaps whatever is orphaned: the shims, which
//! outlive their agent here as they do on a real host. When it ends, the kernel ends everything in the host.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use godwit_volume::traces::unescape;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::host::{HostOptions, watched_signals};
use super::line;
use super::record::{HostRecord, host_dir};
use crate::error::{CliError, Result};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A role that dies at once is started again after this, doubling up to `RESTART_MAX`.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(3);
/// Who lived so long starts with the first wait again.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// At a clean stop: how long agent and door may take, and then the Machines.
const ROLES_STOP_TIMEOUT: Duration = Duration::from_secs(8);
const MACHINES_STOP_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// A log that has grown past this is set aside at the next start of its role; one older copy is kept.
const LOG_LIMIT_BYTES: u64 = 32 << 20;

pub fn run(options: &HostOptions) -> Result<()> {
    let signals = watched_signals()?;
    let folder =
        host_dir(&options.fleet_dir, &HostRecord { name: options.name.clone(), index: 0, region: String::new() });
    furnish(options, &folder).map_err(|error| CliError::failed(format!("cannot furnish {}: {error}", options.name)))?;
    let mut host = Host {
        roles: ["agent", "door"].map(|name| Role::new(name, &folder)),
        program: std::env::current_exe()?,
        line: options.line,
    };
    host.serve(&signals)
}

/// Makes the namespaces a host: its own /proc, boot id, folder and run files, and none of its neighbours'.
fn furnish(options: &HostOptions, folder: &Path) -> io::Result<()> {
    // SAFETY: the number was inherited from our parent for this purpose, and nothing else owns it.
    let line = unsafe { BorrowedFd::borrow_raw(options.line) };
    fcntl(line, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    drop_foreign_namespaces()?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), plain, None::<&str>)?;
    let boot_id = folder.join("boot_id");
    fs::write(&boot_id, format!("{}\n", random_uuid()))?;
    mount(Some(&boot_id), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;

    // The fleet's folder is covered, and of it only our own part shown again, at the same path.
    let own = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let cover = Some("mode=0755,size=64k");
    mount(Some("tmpfs"), &options.fleet_dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, cover)?;
    fs::create_dir_all(folder)?;
    let shown = PathBuf::from(format!("/proc/self/fd/{}", own.as_raw_fd()));
    mount(Some(&shown), folder, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    std::env::set_current_dir(folder)?;

    // A real host's /run is empty after a reboot.
    let run = folder.join("run");
    fs::create_dir_all(&run)?;
    mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0700"))?;
    Ok(())
}

/// Namespace files that were mounted outside came with the copy of the mounts. A host has no use for them, and as long
/// as it holds them they cannot end.
fn drop_foreign_namespaces() -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for line in table.lines() {
        // proc(5): the mount point is the fifth field, the type follows a lone dash.
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        if kind == Some("nsfs")
            && let Some(field) = line.split(' ').nth(4)
        {
            // One that went meanwhile is no loss.
            let _ = umount2(&unescape(field), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
    }
    Ok(())
}

/// RFC 9562 version 4, as the kernel writes boot ids.
fn random_uuid() -> String {
    let mut bytes = godwit_base::secret::random_bytes::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

struct Host {
    roles: [Role; 2],
    program: PathBuf,
    line: RawFd,
}

struct Role {
    name: &'static str,
    config: PathBuf,
    log: PathBuf,
    state: State,
    wait: Duration,
}

enum State {
    Running { pid: Pid, since: Instant },
    Waiting { until: Instant },
}

impl Role {
    fn new(name: &'static str, folder: &Path) -> Self {
        Self {
            name,
            config: folder.join(format!("{name}.toml")),
            log: folder.join(format!("{name}.log")),
            state: State::Waiting { until: Instant::now() },
            wait: RESTART_FIRST,
        }
    }

    fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Waiting { .. } => None,
        }
    }

    fn died(&mut self, since: Instant) {
        if since.elapsed() >= STABLE_AFTER {
            self.wait = RESTART_FIRST;
        }
        self.state = State::Waiting { until: Instant::now() + self.wait };
        self.wait = (self.wait * 2).min(RESTART_MAX);
    }
}

impl Host {
    /// Until told to stop.
    fn serve(&mut self, signals: &SigSet) -> Result<()> {
        loop {
            self.reap();
            self.start_due()?;
            let next = self.roles.iter().filter_map(|role| match role.state {
                State::Waiting { until } => Some(until),
                State::Running { .. } => None,
            });
            let timeout = next.min().map(|until| until.saturating_duration_since(Instant::now()));
            if matches!(wait_signal(signals, timeout)?, Some(Signal::SIGTERM | Signal::SIGINT)) {
                self.stop(signals)?;
                return Ok(());
            }
        }
    }

    fn start_due(&mut self) -> Result<()> {
        for role in &mut self.roles {
            let State::Waiting { until } = role.state else { continue };
            if until > Instant::now() {
                continue;
            }
            let log = open_log(&role.log)?;
            let mut command = Command::new(&self.program);
            command.args(["run", role.name, "--config"]).arg(&role.config);
            command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
            // SAFETY: between fork and exec only setsid(2) and sigprocmask(2) are called, which are async-signal-safe.
            unsafe {
                command.pre_exec(|| {
                    nix::unistd::setsid()?;
                    Ok(SigSet::empty().thread_set_mask()?)
                });
            }
            // Dropping std's handle neither waits nor kills; we reap by pid, orphans and all.
            let pid = Pid::from_raw(command.spawn()?.id() as i32);
            role.state = State::Running { pid, since: Instant::now() };
            // Whoever listened may be gone, and then so are we in a moment.
            let _ = line::tell(self.line, role.name, pid.as_raw());
        }
        Ok(())
    }

    fn reap(&mut self) {
        loop {
            let pid = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                _ => continue,
            };
            for role in &mut self.roles {
                if let State::Running { pid: known, since } = role.state
                    && known == pid
                {
                    role.died(since);
                }
            }
        }
    }

    /// Agent and door end in their own time, then Machines are asked to end, as at the shutdown of a real host.
    fn stop(&mut self, signals: &SigSet) -> Result<()> {
        let deadline = Instant::now() + ROLES_STOP_TIMEOUT;
        for pid in self.roles.iter().filter_map(Role::pid) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        while self.roles.iter().any(|role| role.pid().is_some()) && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            wait_signal(signals, Some(left))?;
            self.reap();
        }
        end_machines();
        Ok(())
    }
}

/// Asks every program in the host to end, and gives it a bounded time. Shims are halted first: they must not write
/// down that a Machine ended by itself, for it is to run again when the host is back.
fn end_machines() {
    let (shims, programs): (Vec<i32>, Vec<i32>) = others().into_iter().partition(|pid| is_shim(*pid));
    let tell = |pids: &[i32], signal| {
        for pid in pids {
            // Who is gone already has ended.
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    };
    tell(&shims, Signal::SIGSTOP);
    tell(&programs, Signal::SIGTERM);
    let deadline = Instant::now() + MACHINES_STOP_TIMEOUT;
    while programs.iter().any(|pid| runs(*pid)) && Instant::now() < deadline {
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// All processes of the host but ourselves.
fn others() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| *pid > 1).collect()
}

/// By its name as the kernel keeps it; what a shim leaves inside its Machine bears another.
fn is_shim(pid: i32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == "godwit-shim"
}

/// A zombie does not: its parent is halted and cannot reap it.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Waits for one of the blocked signals, at most `timeout`.
fn wait_signal(signals: &SigSet, timeout: Option<Duration>) -> Result<Option<Signal>> {
    let Some(timeout) = timeout else {
        return match signals.wait() {
            Ok(signal) => Ok(Some(signal)),
            Err(errno) => Err(io::Error::from(errno).into()),
        };
    };
    let time = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos().into() };
    // SAFETY: both pointers are to values that live over the call; no siginfo is asked for.
    let number = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &time) };
    if number > 0 {
        return Ok(Signal::try_from(number).ok());
    }
    match Errno::last() {
        Errno::EAGAIN | Errno::EINTR => Ok(None),
        errno => Err(io::Error::from(errno).into()),
    }
}

/// Opens a log for appending; a large one is set aside first.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|found| found.len() > LOG_LIMIT_BYTES) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}
