//! Writes the access log. Requests hand their lines to a bounded queue and never wait: with a slow disk lines are dropped
//! and counted. One thread writes, gathers what has come meanwhile, and opens the file anew when it is told to.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// Lines that wait to be written; a line has at most a few KiB.
const MAX_WAITING: usize = 8_192;
const BUFFER_BYTES: usize = 64 << 10;
/// A line may be written so much later; `MAX_WAITING` lines may come meanwhile.
const GATHER: Duration = Duration::from_millis(20);
/// What waits when the edge stops gets so long to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The name of standard output.
const STDOUT: &str = "-";

enum Message {
    Line(Vec<u8>),
    Open(Option<PathBuf>, oneshot::Sender<io::Result<()>>),
    Close(oneshot::Sender<()>),
}

pub struct AccessLog {
    on: AtomicBool,
    queue: mpsc::Sender<Message>,
    written: Counter,
    dropped: Counter,
}

impl AccessLog {
    /// Switched off until `open`.
    pub fn new(written: Counter, dropped: Counter) -> Result<Arc<Self>, Error> {
        let (queue, lines) = mpsc::channel(MAX_WAITING);
        let writer =
            Writer { out: None, path: None, failed: false, written: written.clone(), dropped: dropped.clone() };
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.run(lines))
            .map_err(|source| Error::File { path: "access log".into(), source })?;
        Ok(Arc::new(Self { on: AtomicBool::new(false), queue, written, dropped }))
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Writes to `path` from now on (`-`: standard output), or not at all. A file that is there is opened anew, so that it
    /// may be moved away before. One that cannot be opened leaves all as it was.
    pub async fn open(&self, path: Option<&Path>) -> Result<(), Error> {
        let (tell, told) = oneshot::channel();
        let message = Message::Open(path.map(Path::to_owned), tell);
        let opened = match self.queue.send(message).await {
            Ok(()) => told.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        };
        opened.map_err(|source| Error::File { path: path.unwrap_or(Path::new(STDOUT)).to_owned(), source })?;
        self.on.store(path.is_some(), Ordering::Relaxed);
        Ok(())
    }

    pub fn write(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.inc();
        }
    }

    /// Waits for what was handed in until now, within a bound.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        let closed = async {
            if self.queue.send(Message::Close(tell)).await.is_ok() {
                let _ = told.await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            tracing::warn!(written = self.written.get(), "lines of the access log were lost");
        }
    }
}

struct Writer {
    out: Option<BufWriter<Box<dyn Write + Send>>>,
    path: Option<PathBuf>,
    /// Said once for each file.
    failed: bool,
    written: Counter,
    dropped: Counter,
}

impl Writer {
    fn run(mut self, mut lines: mpsc::Receiver<Message>) {
        while let Some(first) = lines.blocking_recv() {
            let is_line = matches!(first, Message::Line(_));
            self.take(first);
            if is_line {
                // Nobody needs to be woken for the lines that come meanwhile, and they are written at once.
                std::thread::sleep(GATHER);
            }
            while let Ok(more) = lines.try_recv() {
                self.take(more);
            }
            self.flush();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(line) => match self.out.as_mut().map(|out| out.write_all(&line)) {
                Some(Ok(())) => drop(self.written.inc()),
                // It was switched off while the line was on its way.
                None => {}
                Some(Err(error)) => {
                    self.dropped.inc();
                    self.complain(&error);
                }
            },
            Message::Open(path, tell) => {
                self.flush();
                let opened = open(path.as_deref()).map(|out| {
                    self.out = out.map(|out| BufWriter::with_capacity(BUFFER_BYTES, out));
                    (self.path, self.failed) = (path, false);
                });
                let _ = tell.send(opened);
            }
            Message::Close(tell) => {
                self.flush();
                let _ = tell.send(());
            }
        }
    }

    fn flush(&mut self) {
        if let Some(Err(error)) = self.out.as_mut().map(Write::flush) {
            self.complain(&error);
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!(path = ?self.path, %error, "the access log cannot be written");
        }
    }
}

fn open(path: Option<&Path>) -> io::Result<Option<Box<dyn Write + Send>>> {
    Ok(match path {
        None => None,
        Some(path) if path == Path::new(STDOUT) => Some(Box::new(io::stdout())),
        Some(path) => Some(Box::new(OpenOptions::new().append(true).create(true).open(path)?)),
    })
}
