//! Crash points for the lab: the agent kills itself at a named instant of a named step. Without `lab = true` in the
//! configuration nothing here ever does anything.
//!
//! `DATA/crash-at` holds `JOB:STEP:INSTANT`, such as `create:start_process:after`. The file is removed, synced, before
//! the agent dies, so that the next one lives.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use godwit_machine::{JobKind, Step};

/// Name of the file.
pub const CRASH_FILE: &str = "crash-at";

/// Where in a step's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instant {
    /// Its row is committed, its effect has not begun.
    Before,
    /// The effect is done, its outcome is not committed.
    After,
    /// The outcome is committed, nothing that follows from it has begun.
    Outcome,
}

impl Instant {
    pub const ALL: [Instant; 3] = [Self::Before, Self::After, Self::Outcome];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Outcome => "outcome",
        }
    }
}

/// What the file must hold for the agent to die there.
pub fn label(kind: JobKind, step: Step, instant: Instant) -> String {
    format!("{}:{}:{}", kind.as_str(), step.as_str(), instant.as_str())
}

/// Disarmed outside the lab.
#[derive(Debug, Clone, Default)]
pub struct CrashPoints {
    armed: Option<PathBuf>,
}

impl CrashPoints {
    pub fn new(data_dir: &Path, lab: bool) -> Self {
        Self { armed: lab.then(|| data_dir.join(CRASH_FILE)) }
    }

    /// Dies if this is the instant.
    pub fn pass(&self, kind: JobKind, step: Step, instant: Instant) {
        let Some(path) = &self.armed else { return };
        let wanted = fs::read_to_string(path).unwrap_or_default();
        if wanted.trim() != label(kind, step, instant) {
            return;
        }
        let removed = fs::remove_file(path).and_then(|()| match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        });
        if let Err(error) = removed {
            tracing::error!(%error, "cannot disarm the crash point, so it is passed over");
            return;
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
        // The signal is fatal, but another thread's instruction may still run: this one must not go on.
        loop {
            std::thread::park();
        }
    }
}
