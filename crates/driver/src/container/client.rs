//! The driver's end of a shim's socket: one connection per request. It knows the protocol, not what a container is.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::error::{Error, Result};
use crate::protocol::{self, Reply, Request, VolumesOrder};
use crate::session::{Session, SessionRequest};

/// How long a shim may take to answer anything that it answers at once.
pub const ANSWER_TIMEOUT_MS: u64 = 10_000;

/// A connection past the hello.
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    pub instance: String,
    /// What both sides speak.
    version: u32,
}

impl Client {
    /// Connects and agrees on a version. An IO error means that no shim listens.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connecting = tokio::task::spawn_blocking(move || connect_long(&path));
        let stream = connecting.await.map_err(io::Error::other).and_then(|result| result);
        let stream = stream.and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        let stream = stream.map_err(Error::io("cannot connect to the shim"))?;
        let mut client = Self { stream, buffer: Vec::new(), instance: String::new(), version: 0 };
        match client.ask(&Request::Hello { newest: protocol::VERSION }).await? {
            Reply::Welcome { version, instance, .. } => {
                if protocol::negotiate(protocol::VERSION, version).is_none() {
                    return Err(Error::Protocol { theirs: version, oldest: oldest(), newest: protocol::VERSION });
                }
                client.instance = instance;
                client.version = version;
                Ok(client)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// One request that the shim answers at once.
    pub async fn ask(&mut self, request: &Request) -> Result<Reply> {
        self.ask_within(request, ANSWER_TIMEOUT_MS).await
    }

    pub async fn ask_within(&mut self, request: &Request, timeout_ms: u64) -> Result<Reply> {
        match tokio::time::timeout(Duration::from_millis(timeout_ms), self.ask_unbounded(request)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { what: "the shim's answer", after_ms: timeout_ms }),
        }
    }

    /// Opens a session; the connection is its stream from then on.
    pub async fn session(mut self, request: &SessionRequest) -> Result<Session> {
        if self.version < protocol::SESSION_VERSION {
            let reason = "an older release of Godwit started this Machine, and its holder cannot stream; restart the \
                          Machine, then try again";
            return Err(Error::Refused { reason: reason.to_owned() });
        }
        match self.ask(&Request::Session { request: request.clone() }).await? {
            Reply::Done => Ok(Session { first: self.buffer, stream: Box::new(self.stream) }),
            Reply::State { .. } => Err(Error::NotRunning),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a copy at a shim that holds no Machine: it and we are of one release, and it was given this stream.
    pub async fn copy_of_volumes(stream: UnixStream, order: &VolumesOrder, within: Duration) -> Result<Session> {
        let mut client = Self { stream, buffer: Vec::new(), instance: String::new(), version: protocol::VERSION };
        match tokio::time::timeout(within, client.exchange(order)).await {
            Ok(Ok(Reply::Done)) => Ok(Session { first: client.buffer, stream: Box::new(client.stream) }),
            Ok(Ok(other)) => Err(unexpected(&other)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout { what: "the copy's beginning", after_ms: within.as_millis() as u64 }),
        }
    }

    /// One request whose answer may take as long as the Machine lives.
    pub async fn ask_unbounded(&mut self, request: &Request) -> Result<Reply> {
        self.exchange(request).await
    }

    async fn exchange<T: Serialize>(&mut self, request: &T) -> Result<Reply> {
        let asking = async {
            let frame = protocol::encode(request)?;
            self.stream.write_all(&frame).await?;
            loop {
                if let Some(reply) = protocol::decode(&mut self.buffer)? {
                    return Ok(reply);
                }
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        match asking.await.map_err(Error::io("the shim hung up"))? {
            Reply::Refused { reason, busy: true, .. } => Err(Error::Busy { reason }),
            Reply::Refused { reason, user_fault: true, .. } => Err(Error::Refused { reason }),
            Reply::Refused { reason, user_fault: false, .. } => Err(Error::Inside { reason }),
            reply => Ok(reply),
        }
    }
}

fn oldest() -> u32 {
    protocol::VERSION.saturating_sub(protocol::VERSIONS_BACK).max(1)
}

pub fn unexpected(reply: &Reply) -> Error {
    Error::Host { reason: format!("the shim gave an answer that does not fit: {reply:?}") }
}

/// Socket addresses end at 108 bytes, Machines' folders do not: the folder is opened and named by its descriptor.
fn connect_long(path: &Path) -> io::Result<StdUnixStream> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = std::fs::File::open(folder)?;
    StdUnixStream::connect(Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}
