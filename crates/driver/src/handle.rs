//! How a running instance is named so that anybody on the host can find it again, and how one ended.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Names the process that holds a Machine (its shim), in a way that cannot be mistaken for a later process with the
/// same pid. Safe to keep in a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    pub machine: String,
    pub instance: String,
    /// The Machine's own folder.
    pub dir: PathBuf,
    /// `/proc/sys/kernel/random/boot_id` at the start.
    pub boot_id: String,
    /// Pid of the holder, in the pid namespace of whoever started it.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time_ticks: u64,
    pub socket: PathBuf,
    pub protocol_version: u32,
}

impl Handle {
    /// Does the very process that this handle names still live? It says nothing about the Machine: ask `find`.
    pub fn alive(&self) -> bool {
        boot_id().is_ok_and(|boot| boot == self.boot_id) && start_time_ticks(self.pid) == Some(self.start_time_ticks)
    }
}

/// How an instance ended, truly: nothing here is guessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub instance: String,
    /// The main process's exit code, when it ended by itself.
    pub exit_code: Option<i32>,
    /// The signal that ended it, otherwise.
    pub signal: Option<i32>,
    /// The kernel killed something inside for want of memory under the Machine's own limit.
    pub oom_killed: bool,
    /// Unix time. For a lost instance: when the loss was noticed.
    pub exited_at_ms: u64,
    /// Set when nobody saw the end; then code and signal are both absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Lost>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lost {
    /// The holder died first (killed, or a fault of ours); everything inside was killed then.
    HolderDied,
    /// The host was started again.
    HostRebooted,
}

/// What a Machine's folder tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Never started, or forgotten.
    Nothing,
    Running(Handle),
    Exited(Exit),
}

/// This boot of the kernel.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process started, in clock ticks since boot; `None` when it is gone or a zombie.
pub fn start_time_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The command's name may hold spaces and brackets: fields are counted behind the last ')'.
    let rest = &stat[stat.rfind(')')? + 2..];
    let mut fields = rest.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}
