//! The job journal of one host: what it holds, what it is about to do, what it has done, and what it has not told the
//! fleet yet, in one SQLite file.
//!
//! Rows are JSON that somebody else understands; this file knows ids, sequence and safety. One [`Batch`] is one
//! transaction: a step's outcome, the Machine's row and its fact stand together or not at all. How safe a batch must
//! be is said by whoever hands it in: [`Durability::Disk`] is on disk when [`Journal::commit`] returns,
//! [`Durability::Process`] survives the death of this process and is synced with the next one that must be.
//!
//! There is one writer. It must not know Machines, steps, or how facts are published.

mod read;
mod schema;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

pub use read::{JobRow, Loaded, MachineRow, OutboxRow};
pub use schema::VERSION;

use crate::error::Error;

/// Entries of a Machine's history that are kept.
pub const EVENTS_KEPT: u32 = 100;
/// Outcomes of a Machine's steps that are kept, for people who ask what happened.
pub const STEPS_KEPT: u32 = 200;

/// What a commit must survive once it has returned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// A SIGKILL of this process.
    #[default]
    Process,
    /// A power cut: acceptance, handoff, attach, destruction.
    Disk,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    Machine {
        id: String,
        row: String,
    },
    /// Also its job, events and steps.
    ForgetMachine {
        id: String,
    },
    /// The one active job of a Machine.
    Job(JobRow),
    EndJob {
        machine: String,
    },
    /// How a step ended.
    Outcome {
        machine: String,
        job: u64,
        kind: String,
        step: String,
        outcome: String,
        at_ms: u64,
    },
    Event {
        machine: String,
        row: String,
    },
    /// The newest fact under a key: replaces an older one that was not published yet. No value: take it back.
    Fact {
        key: String,
        seq: u64,
        value: Option<String>,
    },
    /// The fact was published, unless a newer one took its place.
    Published {
        key: String,
        seq: u64,
    },
    Meta {
        key: String,
        value: String,
    },
}

/// One transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    pub writes: Vec<Write>,
    pub durability: Durability,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
    pub fn push(&mut self, write: Write) {
        self.writes.push(write);
    }
    /// Raises the demand; it never falls.
    pub fn require(&mut self, durability: Durability) {
        self.durability = self.durability.max(durability);
    }
}

/// See the module. Calls block on the disk: keep it on a thread of its own.
pub struct Journal {
    conn: Connection,
    path: PathBuf,
    /// What `synchronous` is set to now.
    durability: Durability,
}

impl Journal {
    /// Opens the file or creates it (mode 0600), and brings an older layout up to this version's. One that a newer
    /// program wrote is refused.
    pub fn open(path: impl AsRef<Path>) -> Result<Journal, Error> {
        let path = path.as_ref();
        let conn = schema::open(path)?;
        Ok(Journal { conn, path: path.to_owned(), durability: Durability::Disk })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything that a start resumes from.
    pub fn load(&self) -> Result<Loaded, Error> {
        read::load(&self.conn)
    }

    /// All of it or nothing. After an error nothing of the batch is there, and the caller's memory is ahead of the
    /// disk: it may hand in the same batch again, and must not go on without it.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        self.set_durability(batch.durability)?;
        let txn = self.conn.transaction().map_err(Error::sqlite("begin a journal entry"))?;
        for write in &batch.writes {
            apply(&txn, write).map_err(Error::sqlite("write the journal"))?;
        }
        txn.commit().map_err(Error::sqlite("commit the journal"))
    }

    fn set_durability(&mut self, durability: Durability) -> Result<(), Error> {
        if self.durability != durability {
            let level = match durability {
                Durability::Process => "NORMAL",
                Durability::Disk => "FULL",
            };
            self.conn.pragma_update(None, "synchronous", level).map_err(Error::sqlite("set the durability"))?;
            self.durability = durability;
        }
        Ok(())
    }
}

/// SQLite's integers are signed; ids and sequences here stay below 2^63.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn apply(conn: &Connection, write: &Write) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| conn.prepare_cached(sql)?.execute(values).map(drop);
    match write {
        Write::Machine { id, row } => run(
            "INSERT INTO machines(id, row) VALUES (?1, ?2) ON CONFLICT(id) DO UPDATE SET row = ?2",
            params![id, row],
        ),
        Write::ForgetMachine { id } => {
            for sql in [
                "DELETE FROM machines WHERE id = ?1",
                "DELETE FROM jobs WHERE machine = ?1",
                "DELETE FROM events WHERE machine = ?1",
                "DELETE FROM steps WHERE machine = ?1",
            ] {
                run(sql, params![id])?;
            }
            Ok(())
        }
        Write::Job(job) => run(
            "INSERT INTO jobs(machine, id, kind, step, attempt, code_version, row, updated_at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT(machine) DO UPDATE SET
                 id = ?2, kind = ?3, step = ?4, attempt = ?5, code_version = ?6, row = ?7, updated_at_ms = ?8",
            params![
                job.machine,
                int(job.id),
                job.kind,
                job.step,
                job.attempt,
                job.code_version,
                job.row,
                int(job.updated_at_ms)
            ],
        ),
        Write::EndJob { machine } => run("DELETE FROM jobs WHERE machine = ?1", params![machine]),
        Write::Outcome { machine, job, kind, step, outcome, at_ms } => {
            run(
                "INSERT INTO steps(machine, job, kind, step, outcome, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![machine, int(*job), kind, step, outcome, int(*at_ms)],
            )?;
            run(
                "DELETE FROM steps WHERE machine = ?1 AND seq <=
                     (SELECT seq FROM steps WHERE machine = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                params![machine, STEPS_KEPT],
            )
        }
        Write::Event { machine, row } => {
            run("INSERT INTO events(machine, row) VALUES (?1, ?2)", params![machine, row])?;
            run(
                "DELETE FROM events WHERE machine = ?1 AND seq <=
                     (SELECT seq FROM events WHERE machine = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                params![machine, EVENTS_KEPT],
            )
        }
        Write::Fact { key, seq, value } => run(
            "INSERT INTO outbox(key, seq, value) VALUES (?1, ?2, ?3)
             ON CONFLICT(key) DO UPDATE SET seq = ?2, value = ?3 WHERE seq < ?2",
            params![key, int(*seq), value],
        ),
        Write::Published { key, seq } => run("DELETE FROM outbox WHERE key = ?1 AND seq = ?2", params![key, int(*seq)]),
        Write::Meta { key, value } => run(
            "INSERT INTO meta(key, value) VALUES (?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2",
            params![key, value],
        ),
    }
}

#[cfg(test)]
mod tests;
