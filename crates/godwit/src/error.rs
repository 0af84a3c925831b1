//! What a person reads when a command fails: what is wrong, why, what to do next; and the exit code for a script.

use std::fmt;

use godwit_api::error::Status;
use godwit_base::http::client::CallError;

use crate::exit::Exit;

#[derive(Debug)]
pub struct CliError {
    pub exit: Exit,
    pub message: String,
    pub hint: Option<String>,
}

pub type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Exit::NotFound, message)
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As `--json` tells it: `{"error": …, "hint": …, "code": 3, "kind": "not found"}`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": self.message, "hint": self.hint, "code": self.exit.code(), "kind": self.exit.name(),
        })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Connect { .. } if is_distrust(&error) => {
                Self::new(Exit::Unreachable, godwit_base::telemetry::chain(&error)).hint(
                    "the server's certificate is not trusted; give its certificate authority (PEM) with --ca-file, GODWIT_CA_FILE or \
                     `godwit config set ca-file FILE`",
                )
            }
            CallError::Connect { url, .. } => Self::new(
                Exit::Unreachable,
                format!("cannot reach Godwit's API: {}", godwit_base::telemetry::chain(&error)),
            )
            .hint(format!(
                "is it running? `godwit dev --data DIR` starts one; `godwit config show` shows where {} comes from",
                origin(url)
            )),
            CallError::Timeout { .. } => Self::new(Exit::Unreachable, error.to_string())
                .hint("it may have been done: check before you retry"),
            CallError::Garbled { .. } => Self::new(Exit::Unreachable, error.to_string())
                .hint("is this the address of a Godwit API? see `godwit config show`"),
            CallError::Answered(answer) => {
                let exit = match (answer.status, answer.code) {
                    (Status::NotFound, _) | (_, 404) => Exit::NotFound,
                    (Status::Unauthenticated | Status::Forbidden, _) | (_, 401 | 403) => Exit::Auth,
                    (Status::Conflict | Status::LeaseHeld | Status::NameTaken, _) | (_, 409 | 412 | 423) => {
                        Exit::Conflict
                    }
                    (Status::Timeout, _) | (_, 408 | 504) => Exit::TimedOut,
                    (Status::InsufficientCapacity, _) => Exit::Failed,
                    (Status::Unavailable, _) | (_, 502 | 503) => Exit::Unreachable,
                    _ => Exit::Failed,
                };
                let made = Self::new(exit, answer.error.clone());
                match exit {
                    Exit::Auth => made.hint("which token is used? `godwit config show`; set one with --token, GODWIT_TOKEN or `godwit config set token`"),
                    Exit::Unreachable => match answer.retry_after_s {
                        Some(seconds) => made.hint(format!("try again in {seconds} s")),
                        None => made,
                    },
                    _ => made,
                }
            }
        }
    }
}

/// rustls says "invalid peer certificate", with the reason behind it.
fn is_distrust(error: &CallError) -> bool {
    godwit_base::telemetry::chain(error).contains("invalid peer certificate")
}

/// `http://host:port` of a URL.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    &url[..end]
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        Self::failed(format!("bad JSON: {error}"))
    }
}
