//! The client's end of a session: a stream of frames to the inside of a Machine, its stdin fed from a queue, its output
//! to our own or to a queue. What a session is for is its caller's business.
//!
//! Whatever ends without an exit frame was cut, and is an error.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::BytesMut;
use godwit_api::endpoints::MACHINE_SESSION;
use godwit_api::error::Status;
use godwit_api::session::{
    Exit as Ended, Failed, Frame, MAX_DATA_BYTES, Open, PROTOCOL, STDIN_WINDOW_BYTES, encode_data,
};
use godwit_api::{ApiError, AppName, MachineId};
use godwit_base::http::client::{CallError, HEAD_TIMEOUT};
use godwit_base::http::upgrade::Stream;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::context::Context;
use super::terminal;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// One piece of stdin; as many wait at once as fit in the window.
const PIECE_BYTES: usize = 32 << 10;
const PIECES_QUEUED: usize = 4;
/// A session that has begun says so by then.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Pieces of a stream between this thread and another; an error in it is the end.
pub type Pieces = mpsc::Receiver<io::Result<Vec<u8>>>;

pub struct Session {
    reader: Reader,
    writer: WriteHalf<Stream>,
}

struct Reader {
    stream: ReadHalf<Stream>,
    buffer: BytesMut,
}

/// Where stdout goes.
pub enum Output {
    Ours,
    To(mpsc::Sender<Vec<u8>>),
}

/// How a session is attended.
pub struct Plan {
    pub stdin: Option<Pieces>,
    pub stdout: Output,
    /// It runs on a terminal, whose size follows ours.
    pub terminal: bool,
    pub timeout: Option<Duration>,
}

impl Session {
    /// Opens one. Refusals of control, host and Machine come back as errors.
    pub async fn open(
        context: &Context,
        app: &AppName,
        machine: &MachineId,
        headers: &HeaderMap,
        open: Open,
    ) -> Result<Self> {
        let path = MACHINE_SESSION.replace("{app_name}", app.as_str()).replace("{machine_id}", machine.as_str());
        let stream = context.client.upgrade(&path, PROTOCOL, headers, HEAD_TIMEOUT).await?;
        let (stream, writer) = tokio::io::split(stream);
        let mut session = Self { reader: Reader { stream, buffer: BytesMut::new() }, writer };
        session.send(&Frame::Open(open)).await?;
        let first = tokio::time::timeout(READY_TIMEOUT, session.reader.next()).await;
        match first.map_err(|_| cut("timeout: the host did not answer"))?? {
            Frame::Ready => Ok(session),
            Frame::Failed(failed) => Err(failure(failed)),
            _ => Err(cut("the host broke the protocol of sessions")),
        }
    }

    async fn send(&mut self, frame: &Frame) -> Result<()> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        };
        written.await.map_err(|error| cut(&error.to_string()))
    }

    /// Carries bytes both ways until the exit comes.
    pub async fn attend(mut self, plan: Plan) -> Result<Ended> {
        let Plan { mut stdin, stdout, terminal, timeout } = plan;
        let mut window = STDIN_WINDOW_BYTES;
        let (mut ours, mut errors) = (raw(io::stdout())?, raw(io::stderr())?);
        let mut signals = Signals::new()?;
        let mut interrupts = 0;
        let deadline = async move {
            match timeout {
                Some(timeout) => tokio::time::sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        loop {
            let feed = stdin.is_some() && window >= PIECE_BYTES;
            tokio::select! {
                frame = self.reader.next() => match frame? {
                    Frame::Stdout(bytes) => match &stdout {
                        Output::Ours => ours.write_all(&bytes).map_err(|e| unwritten("standard output", &e))?,
                        // Its reader has failed and tells why.
                        Output::To(queue) => if queue.send(bytes).await.is_err() {
                            return Err(cut("what came could not be used"));
                        },
                    },
                    Frame::Stderr(bytes) => errors.write_all(&bytes).map_err(|e| unwritten("standard error", &e))?,
                    Frame::Taken(bytes) => window = (window + bytes as usize).min(STDIN_WINDOW_BYTES),
                    Frame::Exit(ended) => return Ok(ended),
                    Frame::Failed(failed) => return Err(failure(failed)),
                    Frame::Ready => {}
                    _ => return Err(cut("the host broke the protocol of sessions")),
                },
                piece = next_piece(&mut stdin), if feed => match piece {
                    Some(piece) => {
                        let piece = piece.map_err(|e| CliError::failed(format!("cannot read the input: {e}")))?;
                        window -= piece.len().min(window);
                        let mut bytes = Vec::new();
                        encode_data(Frame::Stdin, &piece, &mut bytes);
                        self.write(&bytes).await?;
                    }
                    None => {
                        stdin = None;
                        self.send(&Frame::StdinEnd).await?;
                    }
                },
                number = signals.next() => match number {
                    libc::SIGWINCH if terminal => self.send(&Frame::Resize(terminal::size())).await?,
                    libc::SIGWINCH => {}
                    // The second is meant for us.
                    libc::SIGINT if interrupts == 0 => {
                        interrupts += 1;
                        self.send(&Frame::Signal(libc::SIGINT)).await?;
                    }
                    libc::SIGINT => return Err(CliError::new(Exit::Interrupted, "interrupted; the command was ended")),
                    other => {
                        // Leaving hangs up, and that ends the command.
                        let text = format!("ended by signal {other}; the command was ended too");
                        return Err(CliError::new(Exit::Interrupted, text));
                    }
                },
                () = &mut deadline => {
                    let seconds = timeout.unwrap_or_default().as_secs();
                    return Err(CliError::failed(format!("the command did not end within {seconds} s, and was ended"))
                        .hint("use a longer --timeout; without it there is no limit"));
                }
            }
        }
    }
}

async fn next_piece(stdin: &mut Option<Pieces>) -> Option<io::Result<Vec<u8>>> {
    match stdin {
        Some(pieces) => pieces.recv().await,
        None => None,
    }
}

impl Reader {
    /// The next frame. May be dropped and called again: what was read stays.
    async fn next(&mut self) -> Result<Frame> {
        loop {
            match Frame::decode(&self.buffer) {
                Ok(Some((frame, taken))) => {
                    let _ = self.buffer.split_to(taken);
                    return Ok(frame);
                }
                Ok(None) => {}
                Err(error) => return Err(cut(&error.to_string())),
            }
            self.buffer.reserve(MAX_DATA_BYTES);
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(cut("the connection to the Machine ended")),
                Ok(_) => {}
                Err(error) => return Err(cut(&error.to_string())),
            }
        }
    }
}

struct Signals {
    resized: Signal,
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            resized: signal(SignalKind::window_change())?,
            interrupted: signal(SignalKind::interrupt())?,
            terminated: signal(SignalKind::terminate())?,
            hung_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.resized.recv() => libc::SIGWINCH,
            _ = self.interrupted.recv() => libc::SIGINT,
            _ = self.terminated.recv() => libc::SIGTERM,
            _ = self.hung_up.recv() => libc::SIGHUP,
        }
    }
}

/// Our standard input, read by a thread of its own: one that waits for a key must not hold up the end.
pub fn our_stdin() -> Pieces {
    let (sender, receiver) = mpsc::channel(PIECES_QUEUED);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let sent = match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => {
                    piece.truncate(read);
                    sender.blocking_send(Ok(piece))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => sender.blocking_send(Err(error)),
            };
            if sent.is_err() {
                return;
            }
        }
    });
    receiver
}

/// An input that has ended.
pub fn no_stdin() -> Pieces {
    mpsc::channel(1).1
}

/// What `write` writes, as a session's stdin; it runs in a thread of its own, and its error is the stream's.
pub fn written_by(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Pieces {
    let (sender, receiver) = mpsc::channel(PIECES_QUEUED);
    std::thread::spawn(move || {
        let mut queue = io::BufWriter::with_capacity(PIECE_BYTES, Queue(sender.clone()));
        if let Err(error) = write(&mut queue).and_then(|()| queue.flush()) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

struct Queue(mpsc::Sender<io::Result<Vec<u8>>>);

impl Write for Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES)];
        self.0.blocking_send(Ok(piece.to_vec())).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(piece.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Without the buffer that the library keeps: bytes are on their way when a write is done, and a full disk is seen.
fn raw(stream: impl AsFd) -> Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

fn unwritten(what: &str, error: &io::Error) -> CliError {
    CliError::failed(format!("{what} cannot be written, the output is incomplete: {error}"))
}

fn cut(why: &str) -> CliError {
    CliError::new(Exit::Unreachable, format!("the session was cut: {why}"))
        .hint("the output is incomplete, and the command was stopped; try again")
}

fn failure(failed: Failed) -> CliError {
    let code = match failed.status {
        Status::NotFound => 404,
        Status::Conflict => 409,
        Status::Unavailable => 503,
        _ => 422,
    };
    CallError::Answered(ApiError::new(code, failed.status, failed.error)).into()
}
