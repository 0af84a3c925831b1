//! One question and one answer a connection, each a line of JSON, over a unix socket; an answer may carry descriptors.
//! Only this user and root are answered. It must not know what is asked.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt::PeerCredentials,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, VolumeError};

const MAX_LINE_BYTES: u64 = 64 * 1024;
/// Either side waits this long for the other's line.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions that are answered at the same time; the next one waits for one of them.
const MAX_AT_ONCE: usize = 8;
/// Descriptors of one answer.
const MAX_DESCRIPTORS: usize = 4;

/// When it ends, answers that are being given may still go out, for so long.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Answers until dropped.
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    at_once: Arc<AtomicUsize>,
}

/// What goes back: a value, and descriptors that stay open in this process.
pub struct Answer<R> {
    pub value: std::result::Result<R, String>,
    pub descriptors: Vec<RawFd>,
}

/// Listens at `path`, in place of whoever listened there before.
pub fn listen<A, R>(
    path: &Path,
    answer: impl Fn(A) -> std::result::Result<R, String> + Send + Sync + 'static,
) -> Result<Listening>
where
    A: DeserializeOwned,
    R: Serialize,
{
    listen_with_descriptors(path, move |ask| Answer { value: answer(ask), descriptors: Vec::new() })
}

pub fn listen_with_descriptors<A, R>(
    path: &Path,
    answer: impl Fn(A) -> Answer<R> + Send + Sync + 'static,
) -> Result<Listening>
where
    A: DeserializeOwned,
    R: Serialize,
{
    let what = || VolumeError::io(format!("listening at {}", path.display()));
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(what()(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(what())?;
    let accepting = listener.try_clone().map_err(what())?;
    let answer = Arc::new(answer);
    let at_once = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&at_once);
    let body = move || {
        // Ends when the listener is shut.
        while let Ok((stream, _)) = accepting.accept() {
            let (answer, counter) = (Arc::clone(&answer), Arc::clone(&counting));
            let count = counting.fetch_add(1, Ordering::SeqCst);
            let body = move || {
                if let Err(error) = one(&stream, answer.as_ref()) {
                    tracing::debug!(%error, "a question was not answered");
                }
                let _ = stream.shutdown(Shutdown::Both);
                counter.fetch_sub(1, Ordering::SeqCst);
            };
            // One that takes long must not keep the others waiting, unless there are too many.
            if count + 1 >= MAX_AT_ONCE {
                body();
            } else if let Err(error) = std::thread::Builder::new().name("answer".to_owned()).spawn(body) {
                counting.fetch_sub(1, Ordering::SeqCst);
                tracing::warn!(%error, "a question was not answered");
            }
        }
    };
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(body).map_err(what())?;
    Ok(Listening { listener, path: path.to_owned(), thread: Some(thread), at_once })
}

impl Drop for Listening {
    fn drop(&mut self) {
        // SAFETY: a plain system call on a descriptor that we hold; it makes the blocked accept return.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let deadline = Instant::now() + LAST_ANSWERS;
        while self.at_once.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn one<A: DeserializeOwned, R: Serialize>(
    stream: &UnixStream,
    answer: &impl Fn(A) -> Answer<R>,
) -> std::io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?.uid();
    if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut text)?;
    let answer = answer(serde_json::from_str(&text)?);
    send(stream, &answer.value, &answer.descriptors)
}

/// Asks whoever listens at `path`.
pub fn ask<A: Serialize, R: DeserializeOwned>(path: &Path, ask: &A) -> Result<R> {
    ask_within(path, ask, PATIENCE)
}

/// The same, for an answer that may take a time of its own.
pub fn ask_within<A: Serialize, R: DeserializeOwned>(path: &Path, ask: &A, patience: Duration) -> Result<R> {
    ask_for_descriptors(path, ask, patience).map(|(answer, _)| answer)
}

/// The same, and the descriptors that came along.
pub fn ask_for_descriptors<A: Serialize, R: DeserializeOwned>(
    path: &Path,
    ask: &A,
    patience: Duration,
) -> Result<(R, Vec<OwnedFd>)> {
    let what = || VolumeError::io(format!("asking at {}", path.display()));
    let stream = UnixStream::connect(path).map_err(what())?;
    send(&stream, ask, &[]).map_err(what())?;
    stream.set_read_timeout(Some(patience)).map_err(what())?;
    let (text, descriptors) = receive(&stream).map_err(what())?;
    let answer: std::result::Result<R, String> = serde_json::from_slice(&text).map_err(|error| what()(error.into()))?;
    answer.map(|answer| (answer, descriptors)).map_err(|why| what()(std::io::Error::other(why)))
}

/// A line, and the descriptors that came with it.
fn receive(stream: &UnixStream) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = Vec::new();
    let mut descriptors = Vec::new();
    let mut buf = vec![0; 4096];
    while text.last() != Some(&b'\n') && (text.len() as u64) < MAX_LINE_BYTES {
        let mut space = nix::cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut buf)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let count = message.bytes;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.extend(&buf[..count]);
    }
    Ok((text, descriptors))
}

fn send(mut stream: &UnixStream, value: &impl Serialize, descriptors: &[RawFd]) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    let mut sent = 0;
    if !descriptors.is_empty() {
        let rights = [ControlMessage::ScmRights(descriptors)];
        sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&text)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    stream.write_all(&text[sent..])
}
