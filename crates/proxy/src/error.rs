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
    #[error(transparent)]
    JoinToken(#[from] godwit_base::join_token::JoinTokenError),
    #[error("control refused to admit this edge; is {token} control's join-token?")]
    Join { token: String, source: godwit_base::http::client::CallError },
    /// Nothing of it was touched.
    #[error(
        "another {role} is running (pid {pid}) with {}; stop it first, or start this one with --take-over to go on in its \
         place without losing a connection",
        folder.display()
    )]
    Running { role: &'static str, pid: i32, folder: PathBuf },
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
