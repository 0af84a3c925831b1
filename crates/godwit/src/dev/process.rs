//! Processes by an identity that no later process can have: pid and start time.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long a killed process may take to vanish.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time_ticks: u64,
    /// What it is, for people.
    pub what: String,
}

impl Process {
    /// The process that has this pid now; `None` when there is none.
    pub fn of(pid: i32, what: &str) -> Option<Self> {
        Some(Self { pid, start_time_ticks: start_time_ticks(pid)?, what: what.to_owned() })
    }

    /// Whether exactly this process still runs; a zombie does not.
    pub fn lives(&self) -> bool {
        start_time_ticks(self.pid) == Some(self.start_time_ticks)
    }

    /// Kills exactly this process and waits until it is gone. False if it would not go.
    pub fn kill(&self) -> bool {
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while self.lives() {
            // Between the look and the signal the pid could only be reused if its parent had reaped it meanwhile and
            // the whole pid space had gone round.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        true
    }
}

fn start_time_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (field 2) may hold blanks and brackets; what follows its last bracket does not.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_process_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32, "sleep").unwrap();
        let namesake = Process { start_time_ticks: process.start_time_ticks + 1, ..process.clone() };
        assert!(!namesake.lives() && namesake.kill());
        assert!(process.lives());
        // Its parent is this test, so it stays a zombie, which counts as gone.
        assert!(process.kill() && !process.lives());
        child.wait().unwrap();
    }
}
