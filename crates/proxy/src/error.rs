//! What stops a role of this crate from starting. Failures of single requests are answers, not errors.

use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operator's fault: the named field is wrong.
    #[error("configuration field `{field}`: {why}")]
    Config { field: &'static str, why: String },
    #[error("cannot listen on {addr}")]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error("cannot use {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the identity in {} is damaged", path.display())]
    Identity { path: PathBuf, source: serde_json::Error },
    #[error("control did not admit this edge")]
    Join { source: godwit_base::http::client::CallError },
    /// A new process that did not become able to serve: the old one goes on.
    #[error("not ready to take over: {why}")]
    NotReady { why: &'static str },
    #[error("told to stop before it was ready")]
    Stopped,
}

impl Error {
    pub(crate) fn config(field: &'static str, why: impl Into<String>) -> Self {
        Self::Config { field, why: why.into() }
    }
}
