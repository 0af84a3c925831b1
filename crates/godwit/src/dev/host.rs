//! The outer half of a dev host: enters the host's network namespace, makes its pid, mount, ipc and uts namespaces, and
//! starts the host's pid 1 in them. It stays only because a process cannot move into a new pid namespace itself.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::inside;
use crate::error::{CliError, Result};

#[derive(clap::Args)]
pub struct HostOptions {
    /// The host's name
    #[arg(long)]
    pub name: String,
    /// The fleet's folder
    #[arg(long)]
    pub fleet_dir: PathBuf,
    /// The host's network namespace
    #[arg(long)]
    pub netns: PathBuf,
    /// Where to tell which processes were started
    #[arg(long)]
    pub line: RawFd,
    /// We are in the namespaces already
    #[arg(long)]
    pub inside: bool,
}

pub fn run(options: &HostOptions) -> Result<()> {
    if options.inside {
        return inside::run(options);
    }
    let signals = watched_signals()?;
    enter(options).map_err(|error| CliError::failed(format!("cannot make host {}: {error}", options.name)))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--inside");
    let mut child = die_with_parent(&mut command).spawn()?;
    let pid = Pid::from_raw(child.id() as i32);
    loop {
        if let Some(status) = child.try_wait()? {
            return ended(status);
        }
        if matches!(signals.wait(), Ok(Signal::SIGTERM | Signal::SIGINT)) {
            // It may be gone, which the next look tells.
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
}

/// SIGCHLD, SIGTERM and SIGINT, blocked, to be waited for. Children start with what std gives them: nothing blocked.
pub(super) fn watched_signals() -> io::Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Makes the kernel kill the child when the thread that starts it ends; call it from a thread that stays.
pub(super) fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl(2), getppid(2) and sigprocmask(2) are called, which are
    // async-signal-safe, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            SigSet::empty().thread_set_mask()?;
            // The parent may have died before prctl; of a parent in an outer pid namespace the kernel shows 0.
            let now = nix::unistd::getppid();
            if now != parent && now.as_raw() != 0 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

fn enter(options: &HostOptions) -> io::Result<()> {
    setns(File::open(&options.netns)?, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID)?;
    // SAFETY: the pointer and the length are those of one living string.
    if unsafe { libc::sethostname(options.name.as_ptr().cast(), options.name.len()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // What is mounted in the host stays in the host, and what is mounted outside later does not come in.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}

fn ended(status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { Err(CliError::failed(format!("the host's pid 1 ended with {status}"))) }
}
