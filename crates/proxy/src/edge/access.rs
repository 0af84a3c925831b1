//! Writes the access log. Requests lay their lines on a desk of bounded size and never wait: with a slow disk lines are dropped
//! and counted. One thread takes all that lies there every 20 ms, writes it, and opens the file anew when it is told to.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;

use crate::Error;
use crate::access::Line;

/// Lines that wait to be written.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// Memory that is kept from one round to the next.
const KEPT_BYTES: usize = 1 << 20;
/// A line may be written so much later; `MAX_WAITING_BYTES` may come meanwhile.
const GATHER: Duration = Duration::from_millis(20);
/// What waits when the edge stops gets so long to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The name of standard output.
const STDOUT: &str = "-";

enum Order {
    Open(Option<PathBuf>, oneshot::Sender<io::Result<()>>),
    Close(oneshot::Sender<()>),
}

/// What the writer has yet to do: lines first, then orders.
#[derive(Default)]
struct Pending {
    text: Vec<u8>,
    lines: u64,
    orders: Vec<Order>,
    /// The log is gone.
    over: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.lines == 0 && self.orders.is_empty() && !self.over
    }
}

#[derive(Default)]
struct Desk {
    pending: Mutex<Pending>,
    /// Something lies there that the writer does not know of.
    filled: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `put` adds is taken by the writer, which is woken if it sleeps.
    fn add(&self, put: impl FnOnce(&mut Pending)) {
        let mut pending = self.lock();
        let slept = pending.is_empty();
        put(&mut pending);
        drop(pending);
        if slept {
            self.filled.notify_one();
        }
    }
}

pub struct AccessLog {
    on: AtomicBool,
    desk: Arc<Desk>,
    written: Counter,
    dropped: Counter,
}

thread_local! {
    /// Where a thread makes its lines, so that the desk is locked for a copy only.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl AccessLog {
    /// Switched off until `open`.
    pub fn new(written: Counter, dropped: Counter) -> Result<Arc<Self>, Error> {
        let desk = Arc::<Desk>::default();
        let writer =
            Writer { out: None, path: None, failed: false, written: written.clone(), dropped: dropped.clone() };
        let of_writer = desk.clone();
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.run(&of_writer))
            .map_err(|source| Error::File { path: "access log".into(), source })?;
        Ok(Arc::new(Self { on: AtomicBool::new(false), desk, written, dropped }))
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Writes to `path` from now on (`-`: standard output), or not at all. A file that is there is opened anew, so that it
    /// may be moved away before; its folder is made. One that cannot be opened leaves all as it was.
    pub async fn open(&self, path: Option<&Path>) -> Result<(), Error> {
        let (tell, told) = oneshot::channel();
        let order = Order::Open(path.map(Path::to_owned), tell);
        self.desk.add(|pending| pending.orders.push(order));
        let opened = told.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        opened.map_err(|source| Error::File { path: path.unwrap_or(Path::new(STDOUT)).to_owned(), source })?;
        self.on.store(path.is_some(), Ordering::Relaxed);
        Ok(())
    }

    pub fn write(&self, line: &Line<'_>) {
        LINE.with_borrow_mut(|text| {
            text.clear();
            line.write(text);
            self.desk.add(|pending| {
                if pending.text.len() + text.len() > MAX_WAITING_BYTES {
                    self.dropped.inc();
                } else {
                    pending.text.extend_from_slice(text);
                    pending.lines += 1;
                }
            });
        });
    }

    /// Waits for what was handed in until now, within a bound.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        self.desk.add(|pending| pending.orders.push(Order::Close(tell)));
        if tokio::time::timeout(CLOSE_TIMEOUT, told).await.is_err() {
            tracing::warn!(written = self.written.get(), "lines of the access log were lost");
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.desk.add(|pending| pending.over = true);
    }
}

struct Writer {
    out: Option<Box<dyn Write + Send>>,
    path: Option<PathBuf>,
    /// Said once for each file.
    failed: bool,
    written: Counter,
    dropped: Counter,
}

impl Writer {
    fn run(mut self, desk: &Desk) {
        let mut work = Pending::default();
        while !work.over {
            let wait = desk.filled.wait_while(desk.lock(), |pending| pending.is_empty());
            let gathers = {
                let pending = wait.unwrap_or_else(PoisonError::into_inner);
                pending.orders.is_empty() && !pending.over
            };
            if gathers {
                // Nobody needs to wake this thread for the lines that come meanwhile, and they are written at once.
                std::thread::sleep(GATHER);
            }
            std::mem::swap(&mut *desk.lock(), &mut work);
            self.put(&work.text, work.lines);
            for order in work.orders.drain(..) {
                self.obey(order);
            }
            work.text.clear();
            work.text.shrink_to(KEPT_BYTES);
            work.lines = 0;
        }
    }

    fn put(&mut self, text: &[u8], lines: u64) {
        // It may have been switched off while they were on their way.
        let Some(out) = self.out.as_mut().filter(|_| lines > 0) else { return };
        match out.write_all(text).and_then(|()| out.flush()) {
            Ok(()) => drop(self.written.inc_by(lines)),
            Err(error) => {
                self.dropped.inc_by(lines);
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(path = ?self.path, %error, "the access log cannot be written");
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Open(path, tell) => {
                let opened = open(path.as_deref()).map(|out| {
                    self.out = out;
                    (self.path, self.failed) = (path, false);
                });
                let _ = tell.send(opened);
            }
            Order::Close(tell) => drop(tell.send(())),
        }
    }
}

fn open(path: Option<&Path>) -> io::Result<Option<Box<dyn Write + Send>>> {
    Ok(match path {
        None => None,
        Some(path) if path == Path::new(STDOUT) => Some(Box::new(io::stdout())),
        Some(path) => {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder)?;
            }
            Some(Box::new(OpenOptions::new().append(true).create(true).open(path)?))
        }
    })
}
