//! The embedded store: one SQLite file in WAL mode with `synchronous=FULL`, one writer thread, a few readers.
//!
//! `schema` lays out the file, `writer` commits, `apply` is one transaction, `read` one snapshot, `hub` and `feed` are
//! the watches, `sweep` cleans up behind compaction.

mod apply;
mod feed;
mod hub;
mod read;
mod readers;
mod schema;
mod sweep;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::limits;
use crate::types::{Identity, Range, RangeReply, Txn, TxnReply};
use crate::watch::Watch;
use crate::{BoxFuture, Store};
use readers::Readers;
use writer::{Command, Counters, Pending, Reply, Shared, WRITER_QUEUE, Writer};

/// A call that the writer does not take, or does not answer, within this ends in an error.
const WRITER_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct Options {
    /// Reads that run at once.
    pub reader_connections: usize,
    /// History of so many revisions is kept for watchers that come back; at twice as many the older half is compacted.
    pub keep_revisions: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { reader_connections: 4, keep_revisions: 100_000 }
    }
}

/// Counted since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub transactions: u64,
    /// Commits that changed something: each is at least one sync of the disk.
    pub commits: u64,
    pub sweep_steps: u64,
}

/// See the module. Dropping every handle ends the writer thread; [`SqliteStore::close`] also waits for it.
pub struct SqliteStore {
    commands: mpsc::Sender<Command>,
    readers: Arc<Readers>,
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Opens the file, or creates it (mode 0600). Blocks for some disk reads. A file beside it, `PATH.lock`, keeps a
    /// second opener out.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<SqliteStore, Error> {
        let path = path.as_ref();
        let lock = lock(path)?;
        let conn = schema::open_writer(path)?;
        let head = schema::load_head(&conn).map_err(Error::sqlite("read the head"))?;
        let readers = Arc::new(Readers::open(path, options.reader_connections)?);
        let shared = Arc::new(Shared {
            hub: Arc::new(hub::Hub::new(head.revision)),
            generation: Mutex::new(head.generation.as_str().into()),
            counters: Counters::default(),
        });
        let (commands, receiver) = mpsc::channel(WRITER_QUEUE);
        let writer = Writer {
            conn,
            sweeping: head.swept < schema::first_id(head.compacted + 1),
            head,
            shared: shared.clone(),
            commands: receiver,
            keep_revisions: options.keep_revisions.max(1),
            lock,
            broken: None,
        };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| Error::Io { action: "start the writer of", path: path.to_owned(), source })?;
        Ok(SqliteStore { commands, readers, shared })
    }

    /// For a copy restored from a backup: it must not pass for the store that it was taken from. Watches end.
    pub async fn bump_generation(&self) -> Result<(), Error> {
        self.ask(|reply| Command::BumpGeneration { reply }).await
    }

    /// Commits what was handed in, ends every watch and gives the file free. Later calls end in [`Error::Closed`].
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        // Either fails only if the writer has ended already.
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            let _ = closed.await;
        }
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            transactions: counters.transactions.load(Ordering::Relaxed),
            commits: counters.commits.load(Ordering::Relaxed),
            sweep_steps: counters.sweep_steps.load(Ordering::Relaxed),
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let permit = tokio::time::timeout(WRITER_WAIT, self.commands.reserve())
            .await
            .map_err(|_| Error::Busy { reason: "the writer's queue is full".to_owned() })?
            .map_err(|_| Error::Closed)?;
        permit.send(command(reply));
        match tokio::time::timeout(WRITER_WAIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::Timeout { waited_ms: WRITER_WAIT.as_millis() as u64 }),
        }
    }
}

impl Store for SqliteStore {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeReply, Error>> {
        Box::pin(async move {
            limits::check_range(&range)?;
            self.readers.run(move |conn| read::range(conn, &range)).await
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        Box::pin(async move {
            let bytes = limits::check_txn(&txn)?;
            self.ask(|reply| Command::Txn(Pending { txn, bytes, reply })).await
        })
    }

    fn watch(&self, prefix: String, from_revision: u64) -> BoxFuture<'_, Result<Watch, Error>> {
        Box::pin(async move {
            limits::check_prefix(&prefix)?;
            // Before the first reading: a generation drawn in between ends the watch, and it never claims the new one.
            let generation = self.shared.generation();
            let hub = self.shared.hub.clone();
            let batches = feed::open(hub, self.readers.clone(), prefix, from_revision).await?;
            Ok(Watch::new(generation, batches))
        })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.ask(move |reply| Command::Compact { revision, reply }))
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, Error>> {
        let generation = self.shared.generation().to_string();
        Box::pin(async move { Ok(Identity { generation }) })
    }
}

/// The kernel gives the lock free with the process, however it ends.
fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let io = |action, source| Error::Io { action, path: name.clone(), source };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&name).map_err(|source| io("create the lock", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io("lock", source)),
    }
}
