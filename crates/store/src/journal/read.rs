//! Reading the whole journal at a start. It must not change it.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row};

use crate::error::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRow {
    pub id: String,
    pub row: String,
    /// Oldest first.
    pub events: Vec<String>,
}

/// The one active job of a Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    pub machine: String,
    pub id: u64,
    pub kind: String,
    pub step: String,
    pub attempt: u32,
    /// Of the program that wrote it.
    pub code_version: String,
    pub row: String,
    pub updated_at_ms: u64,
}

/// A fact that the fleet has not been told yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    pub key: String,
    pub seq: u64,
    pub value: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    pub machines: Vec<MachineRow>,
    pub jobs: Vec<JobRow>,
    /// By rising sequence.
    pub outbox: Vec<OutboxRow>,
    pub meta: BTreeMap<String, String>,
}

pub(super) fn load(conn: &Connection) -> Result<Loaded, Error> {
    let read = || -> rusqlite::Result<Loaded> {
        let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (machine, row) in all(conn, "SELECT machine, row FROM events ORDER BY seq", pair)? {
            events.entry(machine).or_default().push(row);
        }
        let machine = |(id, row): (String, String)| {
            let events = events.remove(&id).unwrap_or_default();
            MachineRow { id, row, events }
        };
        let machines = all(conn, "SELECT id, row FROM machines ORDER BY id", pair)?;
        Ok(Loaded {
            machines: machines.into_iter().map(machine).collect(),
            jobs: all(
                conn,
                "SELECT machine, id, kind, step, attempt, code_version, row, updated_at_ms FROM jobs ORDER BY machine",
                job,
            )?,
            outbox: all(conn, "SELECT key, seq, value FROM outbox ORDER BY seq", |row| {
                Ok(OutboxRow { key: row.get(0)?, seq: unsigned(row, 1)?, value: row.get(2)? })
            })?,
            meta: all(conn, "SELECT key, value FROM meta", pair)?.into_iter().collect(),
        })
    };
    read().map_err(Error::sqlite("read the journal"))
}

fn all<T>(conn: &Connection, sql: &str, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<Vec<T>> {
    conn.prepare(sql)?.query_map([], read)?.collect()
}

fn pair(row: &Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn job(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    Ok(JobRow {
        machine: row.get(0)?,
        id: unsigned(row, 1)?,
        kind: row.get(2)?,
        step: row.get(3)?,
        attempt: row.get(4)?,
        code_version: row.get(5)?,
        row: row.get(6)?,
        updated_at_ms: unsigned(row, 7)?,
    })
}

/// Nothing below zero was ever written.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}
