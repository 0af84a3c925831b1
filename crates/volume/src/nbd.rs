//! The Network Block Device protocol, both sides (github.com/NetworkBlockDevice/nbd, doc/proto.md): fixed newstyle,
//! structured replies, block status, STARTTLS. `wire` is the pure form; `negotiate` and `transmit` are the server's
//! two phases over any stream; `server` owns sockets and threads; `client` is the other side. It must not know clones:
//! what it serves is an `Export`.

pub mod client;
pub mod export;
pub mod negotiate;
pub mod server;
pub mod stream;
pub mod tls;
pub mod transmit;
pub mod wire;

#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error("the NBD connection broke")]
    Io(#[from] std::io::Error),
    #[error("the peer broke the NBD protocol: {0}")]
    Protocol(&'static str),
    #[error("the server refused {option}: {reply}")]
    Refused { option: &'static str, reply: String },
    #[error("the server answered with error {0}")]
    Failed(u32),
    #[error("TLS cannot be used: {0}")]
    Tls(String),
}

impl NbdError {
    /// Whether a new connection may fare better.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Failed(_))
    }
}

pub type NbdResult<T> = Result<T, NbdError>;
