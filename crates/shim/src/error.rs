//! What can go wrong in a shim, and whose fault it is.

use std::io;

/// Why the shim itself ended.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("{0}")]
    State(String),
    /// The image or the configuration is at fault.
    #[error("{reason}")]
    User { exit_code: Option<i32>, reason: String },
}

impl ShimError {
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |e| ShimError::Io { what, source: e.into() }
    }
}

/// Why a start failed, and whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{0}")]
    User(String),
    #[error("{what}: {reason}")]
    Host { what: &'static str, reason: String },
}

impl BuildError {
    pub fn host<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |e| BuildError::Host { what, reason: chain(&e) }
    }
}

/// An error with all its causes: libcontainer's own texts say little.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
