//! An upgrade without a lost connection: a new process gets the listening sockets of the old one, and takes over only when
//! it is ready.
//!
//! ```text
//!   new                                old (serves)
//!    │── connects to the socket ────────▶│
//!    │◀─ names, state, descriptors ──────│   both hold the listeners; only the old one accepts
//!    │   loads what it needs             │
//!    │── `R` (ready) ───────────────────▶│   stops accepting
//!    │◀─ `Y` (yours) ────────────────────│   drains what it has; what connects meanwhile waits in the kernel's queue
//!    │   accepts                         │
//! ```
//!
//! A new process that dies, or is never ready, has changed nothing. The stream stays open while the old one drains, for what
//! the two have to tell each other. It knows descriptors and their names; it must not know edges, doors or routes.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_base::TaskGroup;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// The socket's name in a role's data folder.
const FILE: &str = "handover.sock";
const VERSION: u32 = 1;
/// Descriptors in one message; the kernel takes 253.
const BATCH: usize = 64;
const MAX_SOCKETS: usize = 4_096;
const MAX_HEAD_BYTES: usize = 64 << 20;
/// For the part that is spoken without waiting for anybody.
const TALK_TIMEOUT: Duration = Duration::from_secs(10);
/// A new process that is not ready by then has failed.
pub const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// New processes that are being waited for at once.
const MAX_WAITING: usize = 4;
const READY: u8 = b'R';
const YOURS: u8 = b'Y';

/// Before the descriptors.
#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    names: Vec<String>,
    state: String,
}

/// The listening sockets of a process by name, as whoever comes next gets them.
#[derive(Default, Clone)]
pub struct Sockets(Arc<Mutex<BTreeMap<String, OwnedFd>>>);

impl Sockets {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a socket; it stays open until `forget` or `clear`.
    pub fn keep(&self, name: &str, listener: &TcpListener) -> io::Result<()> {
        let copy = listener.as_fd().try_clone_to_owned()?;
        self.lock().insert(name.to_owned(), copy);
        Ok(())
    }

    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let copy = |(name, fd): (&String, &OwnedFd)| Ok((name.clone(), fd.try_clone()?));
        self.lock().iter().take(MAX_SOCKETS).map(copy).collect()
    }
}

/// What an old process gave.
pub struct Given {
    sockets: Mutex<BTreeMap<String, OwnedFd>>,
    pub state: String,
    stream: Mutex<Option<UnixStream>>,
}

impl Given {
    /// The listener of this name, if there was one.
    pub fn take(&self, name: &str) -> Option<TcpListener> {
        let fd = self.sockets.lock().unwrap_or_else(PoisonError::into_inner).remove(name)?;
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true).ok()?;
        TcpListener::from_std(listener).ok()
    }

    /// Closes the listeners that nobody took: their addresses are not served any more.
    pub fn close_rest(&self) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Says that this process can serve; when this returns the old one accepts no more. The stream goes on while it drains; an
    /// old one that is gone meanwhile leaves nothing to wait for.
    pub async fn ready(&self) -> Option<UnixStream> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let talk = async {
            stream.write_all(&[READY]).await?;
            stream.read_u8().await
        };
        match tokio::time::timeout(TALK_TIMEOUT, talk).await {
            Ok(Ok(YOURS)) => Some(stream),
            _ => None,
        }
    }
}

/// The pid of the process that serves with this data folder, if there is one: it made the socket that listens there.
pub async fn serves(folder: &Path) -> io::Result<Option<i32>> {
    let path = folder.join(FILE);
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(stream.peer_cred()?.pid().unwrap_or(0))),
        Err(error) if is_nobody(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Nobody serves, or whoever did is gone.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What a new process gets of the one that serves with this data folder. Without `take_over` it gets nothing: one that serves
/// is an error, for it is more likely a mistake than an upgrade.
pub async fn begin(role: &'static str, folder: &Path, take_over: bool) -> Result<Option<Given>, Error> {
    let unusable = |source| Error::File { path: folder.to_owned(), source };
    if take_over {
        return ask(folder).await.map_err(unusable);
    }
    match serves(folder).await.map_err(unusable)? {
        Some(pid) => Err(Error::Running { role, pid, folder: folder.to_owned() }),
        None => Ok(None),
    }
}

/// Asks the process that serves with this data folder, if there is one.
pub async fn ask(folder: &Path) -> io::Result<Option<Given>> {
    let path = folder.join(FILE);
    let received = tokio::task::spawn_blocking(move || {
        let stream = match BlockingStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        receive(stream).map(Some)
    });
    let Some((head, fds, stream)) = received.await.map_err(io::Error::other)?? else { return Ok(None) };
    stream.set_nonblocking(true)?;
    Ok(Some(Given {
        sockets: Mutex::new(head.names.into_iter().zip(fds).collect()),
        state: head.state,
        stream: Mutex::new(Some(UnixStream::from_std(stream)?)),
    }))
}

fn receive(mut stream: BlockingStream) -> io::Result<(Head, Vec<OwnedFd>, BlockingStream)> {
    stream.set_read_timeout(Some(TALK_TIMEOUT))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_HEAD_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    let head: Head = serde_json::from_slice(&bytes)?;
    if head.version != VERSION || head.names.len() > MAX_SOCKETS {
        return Err(io::Error::other(format!("it speaks version {} of the handover", head.version)));
    }
    let mut fds = Vec::with_capacity(head.names.len());
    while fds.len() < head.names.len() {
        let got = receive_batch(&stream)?;
        if got.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        fds.extend(got);
    }
    Ok((head, fds, stream))
}

fn receive_batch(stream: &BlockingStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; BATCH]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(fds)
}

fn give(mut stream: &BlockingStream, sockets: &[(String, OwnedFd)], state: String) -> io::Result<()> {
    stream.set_write_timeout(Some(TALK_TIMEOUT))?;
    let names = sockets.iter().map(|(name, _)| name.clone()).collect();
    let head = serde_json::to_vec(&Head { version: VERSION, names, state })?;
    let length = u32::try_from(head.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&head)?;
    for batch in sockets.chunks(BATCH) {
        let raw: Vec<RawFd> = batch.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"F")], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    Ok(())
}

/// Waits for a successor.
pub struct Giver {
    listener: UnixListener,
    path: PathBuf,
    /// The file at `path` is another process's now.
    handed: bool,
}

/// A successor that is ready, and waits for the word.
pub struct Successor(UnixStream);

impl Successor {
    /// Said when nothing is accepted here any more.
    pub async fn take_over(mut self) -> UnixStream {
        // A successor that is gone by now has the sockets' other copies closed too: nothing can be done for it here.
        let _ = self.0.write_all(&[YOURS]).await;
        self.0
    }
}

/// How long what is in flight may take to end.
#[derive(Debug, Clone, Copy)]
pub struct DrainBounds {
    /// Once the process was told to stop.
    pub told: Duration,
    /// Once another process has taken over: it may take long, for it is in nobody's way.
    pub handed: Duration,
}

impl DrainBounds {
    /// Waits for what is in flight; false: some of it is still there. A process that has handed over may be told to stop as
    /// well.
    pub async fn drain(self, group: &TaskGroup, handed: bool, shutdown: &CancellationToken) -> bool {
        let told = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.told).await;
        };
        let bound = if handed { self.handed } else { self.told };
        tokio::select! {
            drained = group.drain(bound) => drained,
            () = told => false,
        }
    }
}

impl Giver {
    /// Takes the place of whoever served before.
    pub fn bind(folder: &Path) -> io::Result<Self> {
        let path = folder.join(FILE);
        let fresh = folder.join(format!(".{FILE}.{:016x}", godwit_base::secret::random_u64()));
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, &path)?;
        Ok(Self { listener, path, handed: false })
    }

    /// Gives the sockets and `state` to whoever asks, until one of them is ready.
    pub async fn successor(&mut self, sockets: &Sockets, state: impl Fn() -> String) -> Successor {
        let mut waiting: JoinSet<Option<UnixStream>> = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if waiting.len() < MAX_WAITING => match accepted {
                    Ok((stream, _)) => match sockets.copies() {
                        Ok(copies) => drop(waiting.spawn(offer(stream, copies, state()))),
                        Err(error) => tracing::warn!(%error, "cannot offer the listening sockets"),
                    },
                    Err(error) => godwit_base::http::server::pause_after_accept_error(&error).await,
                },
                Some(ended) = waiting.join_next(), if !waiting.is_empty() => match ended {
                    Ok(Some(stream)) => {
                        self.handed = true;
                        return Successor(stream);
                    }
                    _ => tracing::warn!("a new process did not become ready; this one serves on"),
                },
            }
        }
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        if !self.handed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Gives all to one who asks. Some: it is ready.
async fn offer(stream: UnixStream, sockets: Vec<(String, OwnedFd)>, state: String) -> Option<UnixStream> {
    let blocking = stream.into_std().ok()?;
    let given = tokio::task::spawn_blocking(move || {
        blocking.set_nonblocking(false)?;
        if !is_ours(&blocking) {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        give(&blocking, &sockets, state)?;
        blocking.set_nonblocking(true)?;
        io::Result::Ok(blocking)
    });
    let mut stream = match given.await {
        Ok(Ok(stream)) => UnixStream::from_std(stream).ok()?,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot give the listening sockets to a new process");
            return None;
        }
        Err(_) => return None,
    };
    match tokio::time::timeout(READY_TIMEOUT, stream.read_u8()).await {
        Ok(Ok(READY)) => Some(stream),
        _ => None,
    }
}

/// Who asks must be who this process is, or root.
fn is_ours(stream: &BlockingStream) -> bool {
    let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
    peer.is_ok_and(|peer: UnixCredentials| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_and_state_pass_and_who_dies_before_it_is_ready_changes_nothing() {
        let folder = tempfile::TempDir::new().unwrap();
        assert!(ask(folder.path()).await.unwrap().is_none(), "nobody is there");
        assert!(begin("edge", folder.path(), false).await.unwrap().is_none());
        let mut giver = Giver::bind(folder.path()).unwrap();
        let refused = begin("edge", folder.path(), false).await.err().unwrap();
        assert!(matches!(refused, Error::Running { pid, .. } if pid == i32::try_from(std::process::id()).unwrap()));
        let sockets = Sockets::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        for n in 0..150 {
            sockets.keep(&format!("tcp {n}"), &listener).unwrap();
        }
        sockets.forget("tcp 149");
        let serves = tokio::spawn({
            let sockets = sockets.clone();
            async move {
                let successor = giver.successor(&sockets, || "known".into()).await;
                // As a role does: its own copies go before the word.
                sockets.clear();
                drop(listener);
                (giver, successor.take_over().await)
            }
        });
        for _ in 0..3 {
            let never = ask(folder.path()).await.unwrap().unwrap();
            assert!(never.take("tcp 0").is_some());
        }
        let _hangs = ask(folder.path()).await.unwrap().unwrap();
        let given = ask(folder.path()).await.unwrap().unwrap();
        assert_eq!(given.state, "known");
        assert!(given.take("tcp 149").is_none() && given.take("tcp 148").is_some());
        let taken = given.take("tcp 7").unwrap();
        assert!(given.take("tcp 7").is_none());
        given.close_rest();
        assert!(given.ready().await.is_some());
        let (_giver, _stream) = serves.await.unwrap();
        // Whoever connects now is accepted by the new one.
        let client = tokio::net::TcpStream::connect(addr).await.unwrap();
        let (_, from) = taken.accept().await.unwrap();
        assert_eq!(from, client.local_addr().unwrap());
    }
}
