//! The database file: how it is opened, its tables, and how revisions are laid out in row ids.
//!
//! `log` holds every change once, `current` points at the newest change of each key that exists. A log row's id is
//! `revision * 128 + position in the transaction`, so the log's order is the revisions' order, and one integer range
//! is one revision. 128 positions suffice because a branch has at most [`MAX_TXN_OPS`] operations.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::error::Error;
use crate::limits::MAX_TXN_OPS;

const APPLICATION_ID: i64 = 0x476f_6477; // "Godw"
const FORMAT_VERSION: i64 = 1;

const POSITION_BITS: u32 = 7;
const _: () = assert!(MAX_TXN_OPS == 1 << POSITION_BITS);

/// The log is moved into the main file once it is so many pages (of 4 KiB) long.
const CHECKPOINT_PAGES: i64 = 4096;
const WRITER_CACHE_KIB: i64 = 64 * 1024;
const READER_CACHE_KIB: i64 = 8 * 1024;
/// Only a backup tool or a shell can hold a lock that the writer waits for.
const LOCK_WAIT_MS: i64 = 2_000;
const CACHED_STATEMENTS: usize = 32;

const TABLES: &str = "
create table meta (
    name  text primary key,
    value text not null
) strict, without rowid;
create table log (
    id              integer primary key,
    key             text not null,
    create_revision integer not null,
    version         integer not null,
    value           blob
) strict;
-- The row id is the tail of every index entry: this orders by (key, id).
create index log_key on log (key);
create table current (
    key             text primary key,
    id              integer not null,
    create_revision integer not null,
    version         integer not null
) strict, without rowid;
";

/// What the writer knows of the file when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub generation: String,
    pub revision: u64,
    pub compacted: u64,
    /// Log rows below this id have been cleaned up for `compacted`.
    pub swept: i64,
}

pub(super) fn first_id(revision: u64) -> i64 {
    (revision as i64) << POSITION_BITS
}

pub(super) fn revision_of(id: i64) -> u64 {
    (id >> POSITION_BITS) as u64
}

/// SQLite has signed integers only; revisions and versions stay far below their top bit.
pub(super) fn unsigned(row: &rusqlite::Row, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|number| number as u64)
}

/// The smallest text above every key under `prefix`.
pub(super) fn prefix_end(prefix: &str) -> String {
    match prefix.strip_suffix('/') {
        // '0' follows '/' in ASCII.
        Some(segments) => format!("{segments}0"),
        // Above '~', the last character that a key may have.
        None => "\u{7f}".to_owned(),
    }
}

/// Opens or creates the file, for its one writer.
pub(super) fn open_writer(path: &Path) -> Result<Connection, Error> {
    let io = |action| {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    };
    // Ours before SQLite's, because fleet state holds specs that only its owner may read.
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(io("create"))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let folder = std::fs::File::open(folder).map_err(io("open the folder of"))?;
        folder.sync_all().map_err(io("sync the folder of"))?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(Error::sqlite("open the database"))?;
    set_up(&conn, WRITER_CACHE_KIB)?;
    set_up_writer(&conn, path)?;
    Ok(conn)
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(Error::sqlite("open the database"))?;
    set_up(&conn, READER_CACHE_KIB)?;
    Ok(conn)
}

fn set_up(conn: &Connection, cache_kib: i64) -> Result<(), Error> {
    conn.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    conn.pragma_update(None, "busy_timeout", LOCK_WAIT_MS)
        .and_then(|()| conn.pragma_update(None, "cache_size", -cache_kib))
        .map_err(Error::sqlite("configure the connection"))
}

fn set_up_writer(conn: &Connection, path: &Path) -> Result<(), Error> {
    let pragma = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let header = || -> rusqlite::Result<(i64, i64, bool)> {
        let tables = "select exists (select 1 from sqlite_schema)";
        let used = conn.query_row(tables, [], |row| row.get(0))?;
        Ok((pragma("application_id")?, pragma("user_version")?, used))
    };
    let header = header().map_err(Error::sqlite("read the database header"))?;
    let format = |reason: String| Error::Format { path: path.to_owned(), reason };
    let is_new = match header {
        (0, 0, false) => true,
        (APPLICATION_ID, FORMAT_VERSION, _) => false,
        (APPLICATION_ID, version, _) => return Err(format(format!("its format is {version}"))),
        _ => return Err(format("it belongs to another application".to_owned())),
    };
    let mode: String = conn
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(Error::sqlite("switch to a write-ahead log"))?;
    if mode != "wal" {
        return Err(format(format!("its journal mode stays {mode}")));
    }
    conn.pragma_update(None, "synchronous", "full")
        .and_then(|()| conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES))
        .map_err(Error::sqlite("configure the writer"))?;
    if is_new {
        create(conn).map_err(Error::sqlite("create the tables"))?;
    }
    Ok(())
}

/// In one transaction with the header, so that a half-made store is an empty file and is made again.
fn create(conn: &Connection) -> rusqlite::Result<()> {
    let txn = conn.unchecked_transaction()?;
    txn.execute_batch(TABLES)?;
    set_meta(&txn, "generation", &draw_generation())?;
    txn.pragma_update(None, "application_id", APPLICATION_ID)?;
    txn.pragma_update(None, "user_version", FORMAT_VERSION)?;
    txn.commit()
}

/// 64 random bits as text.
pub(super) fn draw_generation() -> String {
    let bits = getrandom::u64().unwrap_or_else(|_| {
        // A kernel without entropy (early boot): two stores made in the same nanosecond are no case.
        let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since_epoch.map_or(1, |elapsed| elapsed.as_nanos() as u64)
    });
    format!("{bits:016x}")
}

pub(super) fn load_head(conn: &Connection) -> rusqlite::Result<Head> {
    let (compacted, revision) = load_revisions(conn)?;
    Ok(Head {
        generation: meta(conn, "generation")?.unwrap_or_default(),
        revision,
        compacted,
        swept: meta_number(conn, "swept")? as i64,
    })
}

/// `(compacted, revision)` as the connection's snapshot has them.
pub(super) fn load_revisions(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    let compacted = meta_number(conn, "compacted")?;
    let last: Option<i64> = conn.prepare_cached("select max(id) from log")?.query_row([], |row| row.get(0))?;
    // The newest log row may be a deletion that compaction took away.
    Ok((compacted, last.map_or(0, revision_of).max(compacted)))
}

fn meta_number(conn: &Connection, name: &str) -> rusqlite::Result<u64> {
    Ok(meta(conn, name)?.and_then(|text| text.parse().ok()).unwrap_or(0))
}

fn meta(conn: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached("select value from meta where name = ?1")?.query_row([name], |row| row.get(0)).optional()
}

pub(super) fn set_meta(conn: &Connection, name: &str, value: &str) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "insert into meta (name, value) values (?1, ?2) \
         on conflict (name) do update set value = excluded.value",
    )?
    .execute(params![name, value])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a killed process cannot show and a power cut would: each commit is synced.
    #[test]
    fn the_writer_syncs_each_commit() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let conn = open_writer(&dir.path().join("store.db")).expect("opens");
        let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        const FULL: i64 = 2;
        assert_eq!(pragma("synchronous"), Ok(FULL));
        let mode = conn.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        assert_eq!(mode.as_deref(), Ok("wal"));
    }

    #[test]
    fn only_its_owner_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("store.db");
        let conn = open_writer(&path).expect("opens");
        conn.execute("delete from meta where name = 'none'", []).expect("runs");
        for name in ["store.db", "store.db-wal", "store.db-shm"] {
            let mode = dir.path().join(name).metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_prefix_ends_where_its_segments_end() {
        let inside = |prefix: &str, key: &str| key >= prefix && key < prefix_end(prefix).as_str();
        assert!(inside("a/", "a/b") && inside("a/", "a/~~") && inside("", "~~"));
        assert!(!inside("a/", "a0") && !inside("a/", "a") && !inside("a/", "a.b"));
        assert_eq!(revision_of(first_id(7) + MAX_TXN_OPS as i64 - 1), 7);
    }
}
