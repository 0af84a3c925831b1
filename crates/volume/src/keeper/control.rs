//! One question and one answer a connection, each a line of JSON, over a unix socket. It must not know what is asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, VolumeError};

const MAX_LINE_BYTES: u64 = 64 * 1024;
/// Either side waits this long for the other's line.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers until dropped.
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

/// Listens at `path`, in place of whoever listened there before.
pub fn listen<A, R>(
    path: &Path,
    answer: impl Fn(A) -> std::result::Result<R, String> + Send + 'static,
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
    let body = move || {
        // One at a time: a caller's wait is bounded by the others' patience. Ends when the listener is shut.
        while let Ok((stream, _)) = accepting.accept() {
            if let Err(error) = one(&stream, &answer) {
                tracing::debug!(%error, "a question was not answered");
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
    };
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(body).map_err(what())?;
    Ok(Listening { listener, path: path.to_owned(), thread: Some(thread) })
}

impl Drop for Listening {
    fn drop(&mut self) {
        // SAFETY: a plain system call on a descriptor that we hold; it makes the blocked accept return.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn one<A: DeserializeOwned, R: Serialize>(
    stream: &UnixStream,
    answer: &impl Fn(A) -> std::result::Result<R, String>,
) -> std::io::Result<()> {
    let ask: A = serde_json::from_str(&line(stream)?)?;
    send(stream, &answer(ask))
}

/// Asks whoever listens at `path`.
pub fn ask<A: Serialize, R: DeserializeOwned>(path: &Path, ask: &A) -> Result<R> {
    let what = || VolumeError::io(format!("asking at {}", path.display()));
    let stream = UnixStream::connect(path).map_err(what())?;
    send(&stream, ask).map_err(what())?;
    let text = line(&stream).map_err(what())?;
    let answer: std::result::Result<R, String> = serde_json::from_str(&text).map_err(|error| what()(error.into()))?;
    answer.map_err(|why| what()(std::io::Error::other(why)))
}

fn line(stream: &UnixStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut text)?;
    Ok(text)
}

fn send(mut stream: &UnixStream, value: &impl Serialize) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    stream.write_all(&text)
}
