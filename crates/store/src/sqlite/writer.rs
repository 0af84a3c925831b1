//! The one thread that writes. It takes what waits, up to a bound, as one group: one commit, one sync, then watchers
//! and callers are told. Between groups it cleans up behind compaction, one small step at a time.
//!
//! Invariant: nothing is published or acknowledged before its commit has returned; and after a commit whose outcome
//! the disk left open, nothing is written again by this process.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::apply::{Applied, apply};
use super::hub::Hub;
use super::schema::{Head, draw_generation, set_meta};
use super::sweep;
use crate::error::{Error, is_passing};
use crate::types::{Event, Txn, TxnReply};

/// Commands that wait for the writer; behind them callers wait to hand theirs in.
pub(super) const WRITER_QUEUE: usize = 4096;
/// A commit carries at most so many transactions, and ends with the one that crosses the bytes.
const GROUP_TXNS: usize = 256;
const GROUP_BYTES: usize = 4 * 1024 * 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(super) enum Command {
    Txn(Pending),
    Compact {
        revision: u64,
        reply: Reply<()>,
    },
    /// Draws a new generation and ends every watch of the old one.
    BumpGeneration {
        reply: Reply<()>,
    },
    /// Ends the thread, with the file closed and unlocked.
    Close {
        reply: oneshot::Sender<()>,
    },
}

pub(super) struct Pending {
    pub txn: Txn,
    pub bytes: usize,
    pub reply: Reply<TxnReply>,
}

/// What the writer shares with the store's handles.
pub(super) struct Shared {
    pub hub: Arc<Hub>,
    pub generation: Mutex<Arc<str>>,
    pub counters: Counters,
}

impl Shared {
    pub(super) fn generation(&self) -> Arc<str> {
        let generation = self.generation.lock();
        generation.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub transactions: AtomicU64,
    pub commits: AtomicU64,
    pub sweep_steps: AtomicU64,
}

pub(super) struct Writer {
    pub conn: Connection,
    pub head: Head,
    pub shared: Arc<Shared>,
    pub commands: mpsc::Receiver<Command>,
    /// History is kept for so many revisions, and compacted when it is twice as long.
    pub keep_revisions: u64,
    /// Held as long as the thread lives: one store, one writer.
    pub lock: File,
    /// Set when the disk failed under a commit.
    pub broken: Option<String>,
    pub sweeping: bool,
}

impl Writer {
    pub(super) fn run(mut self) {
        let watches = EndsWatches(self.shared.hub.clone());
        let closing = loop {
            let Some(command) = self.next_command() else {
                break None;
            };
            match command {
                Next::Sweep => self.sweep(),
                Next::Command(Command::Txn(first)) => {
                    let then = self.run_group(first);
                    if self.sweeping {
                        self.sweep();
                    }
                    match then {
                        Some(Command::Close { reply }) => break Some(reply),
                        Some(other) => self.control(other),
                        None => {}
                    }
                }
                Next::Command(Command::Close { reply }) => break Some(reply),
                Next::Command(other) => self.control(other),
            }
        };
        drop(watches);
        self.commands.close();
        drop(self.conn);
        drop(self.lock);
        if let Some(reply) = closing {
            // Nobody may be waiting any more.
            let _ = reply.send(());
        }
    }

    /// `None`: every handle is gone.
    fn next_command(&mut self) -> Option<Next> {
        if !self.sweeping {
            return self.commands.blocking_recv().map(Next::Command);
        }
        match self.commands.try_recv() {
            Ok(command) => Some(Next::Command(command)),
            Err(TryRecvError::Empty) => Some(Next::Sweep),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Commits `first` and what waits behind it. Returns a command that is no transaction and ended the group.
    fn run_group(&mut self, first: Pending) -> Option<Command> {
        let mut bytes = first.bytes;
        let mut group = vec![first];
        let mut then = None;
        while group.len() < GROUP_TXNS && bytes < GROUP_BYTES {
            match self.commands.try_recv() {
                Ok(Command::Txn(pending)) => {
                    bytes += pending.bytes;
                    group.push(pending);
                }
                Ok(other) => {
                    then = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        if let Some(reason) = &self.broken {
            for pending in group {
                let reason = reason.clone();
                let _ = pending.reply.send(Err(Error::Broken { reason }));
            }
            return then;
        }
        let (txns, replies): (Vec<Txn>, Vec<Reply<TxnReply>>) =
            group.into_iter().map(|pending| (pending.txn, pending.reply)).unzip();
        match self.commit(txns) {
            Ok(applied) => self.announce(applied, replies),
            Err(error) => self.refuse(error, replies),
        }
        then
    }

    /// All transactions of the group in one commit.
    fn commit(&mut self, txns: Vec<Txn>) -> rusqlite::Result<Vec<Applied>> {
        let group = self.conn.unchecked_transaction()?;
        let mut revision = self.head.revision;
        let mut applied = Vec::with_capacity(txns.len());
        for txn in txns {
            let one = apply(&group, txn, revision)?;
            revision = revision.max(one.reply.revision);
            applied.push(one);
        }
        group.commit()?;
        let counters = &self.shared.counters;
        let count = applied.len() as u64;
        counters.transactions.fetch_add(count, Ordering::Relaxed);
        if revision > self.head.revision {
            counters.commits.fetch_add(1, Ordering::Relaxed);
        }
        self.head.revision = revision;
        Ok(applied)
    }

    fn announce(&mut self, applied: Vec<Applied>, replies: Vec<Reply<TxnReply>>) {
        let mut changed: Vec<Vec<Event>> = Vec::with_capacity(applied.len());
        for (one, reply) in applied.into_iter().zip(replies) {
            // A caller that gave up does not undo its transaction.
            let _ = reply.send(Ok(one.reply));
            if !one.events.is_empty() {
                changed.push(one.events);
            }
        }
        if !changed.is_empty() {
            self.shared.hub.publish(&changed, self.head.revision);
        }
        let history = self.head.revision - self.head.compacted;
        if history >= self.keep_revisions.saturating_mul(2) {
            let until = self.head.revision - self.keep_revisions;
            if let Err(error) = self.compact(until) {
                tracing::warn!(%error, "history could not be compacted");
            }
        }
    }

    /// Nothing of the group was applied, or nobody can say so.
    fn refuse(&mut self, source: rusqlite::Error, replies: Vec<Reply<TxnReply>>) {
        let reason = source.to_string();
        self.judge(&source);
        for reply in replies {
            let error = match &self.broken {
                Some(reason) => Error::Broken { reason: reason.clone() },
                None => Error::Busy { reason: reason.clone() },
            };
            let _ = reply.send(Err(error));
        }
    }

    /// After a failed sync nobody knows what the disk holds, and a later sync that succeeds would hide it.
    fn judge(&mut self, source: &rusqlite::Error) {
        if !is_passing(source) {
            tracing::error!(error = %source, "the store stops writing");
            self.broken = Some(source.to_string());
            self.sweeping = false;
        }
    }

    fn control(&mut self, command: Command) {
        match command {
            Command::Txn(pending) => {
                self.run_group(pending);
            }
            Command::Compact { revision, reply } => {
                let _ = reply.send(self.compact(revision));
            }
            Command::BumpGeneration { reply } => {
                let _ = reply.send(self.bump_generation());
            }
            // Handled by `run`, which it ends.
            Command::Close { .. } => {}
        }
    }

    /// Marks the history as gone first, in a commit of its own: from then on no read looks where `sweep` deletes.
    fn compact(&mut self, revision: u64) -> Result<(), Error> {
        if revision > self.head.revision {
            return Err(Error::FutureRevision { asked: revision, current: self.head.revision });
        }
        if revision <= self.head.compacted {
            return Ok(());
        }
        self.write_meta("compacted", &revision.to_string())?;
        self.head.compacted = revision;
        self.sweeping = true;
        Ok(())
    }

    fn sweep(&mut self) {
        match sweep::step(&self.conn, self.head.swept, self.head.compacted) {
            Ok(Some(next)) => self.head.swept = next,
            Ok(None) => {
                self.head.swept = super::schema::first_id(self.head.compacted + 1);
                self.sweeping = false;
            }
            Err(error) => {
                // It goes on with the next compaction or start; until then only space is lost.
                tracing::warn!(%error, "a clean-up step failed");
                self.sweeping = false;
                self.judge(&error);
            }
        }
        let steps = &self.shared.counters.sweep_steps;
        steps.fetch_add(1, Ordering::Relaxed);
    }

    fn write_meta(&mut self, name: &str, value: &str) -> Result<(), Error> {
        if let Some(reason) = &self.broken {
            let reason = reason.clone();
            return Err(Error::Broken { reason });
        }
        set_meta(&self.conn, name, value).map_err(|source| {
            self.judge(&source);
            Error::Sqlite { action: "write the metadata", source }
        })
    }

    fn bump_generation(&mut self) -> Result<(), Error> {
        let generation = draw_generation();
        self.write_meta("generation", &generation)?;
        {
            let mut shared = self.shared.generation.lock().unwrap_or_else(PoisonError::into_inner);
            *shared = generation.as_str().into();
        }
        self.head.generation = generation;
        self.shared.hub.end_all(false);
        Ok(())
    }
}

/// However the thread ends, also by a panic: no watcher must go on hearing that all is quiet.
struct EndsWatches(Arc<Hub>);

impl Drop for EndsWatches {
    fn drop(&mut self) {
        self.0.end_all(true);
    }
}

enum Next {
    Command(Command),
    Sweep,
}
