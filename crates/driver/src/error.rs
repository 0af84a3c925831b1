//! What a driver can answer instead of doing what it was asked. It knows no HTTP status.

use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The Machine's own image or configuration, or the request.
    User,
    /// This host or this program.
    System,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// As a shell would say it: 127 for a program that does not exist, 126 for one that cannot be executed.
    #[error("the Machine could not start: {reason}")]
    StartFailed { exit_code: Option<i32>, reason: String },
    #[error("the host could not start the Machine: {reason}")]
    Host { reason: String },
    #[error("the Machine is running")]
    Running,
    #[error("the instance is not running")]
    NotRunning,
    #[error("another instance ({found}) of the Machine is here")]
    OtherInstance { found: String },
    #[error("{what} did not happen within {after_ms} ms")]
    Timeout { what: &'static str, after_ms: u64 },
    #[error("could not prove that all processes of {machine} are dead: {pids:?} remain")]
    NotProvenDead { machine: String, pids: Vec<i32> },
    #[error("the holder speaks protocol {theirs}, and this program {oldest} to {newest}")]
    Protocol { theirs: u32, oldest: u32, newest: u32 },
    #[error("{reason}")]
    Refused { reason: String },
    /// As much runs inside as may at once.
    #[error("{reason}")]
    Busy { reason: String },
    /// Of one more command or a copy, not of the Machine's own start.
    #[error("the host could not do it: {reason}")]
    Inside { reason: String },
    #[error("{what}")]
    Io { what: String, source: io::Error },
}

impl Error {
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Error::Invalid { field, reason: reason.into() }
    }

    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    pub fn fault(&self) -> Fault {
        match self {
            Error::Invalid { .. } | Error::StartFailed { .. } | Error::Running | Error::NotRunning => Fault::User,
            Error::Refused { .. } | Error::Busy { .. } => Fault::User,
            _ => Fault::System,
        }
    }

    /// May the same call succeed later, with nothing else changed?
    pub fn may_retry(&self) -> bool {
        matches!(
            self,
            Error::Host { .. }
                | Error::Inside { .. }
                | Error::Busy { .. }
                | Error::Timeout { .. }
                | Error::NotProvenDead { .. }
                | Error::Io { .. }
        )
    }
}
