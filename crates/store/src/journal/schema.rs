//! The journal's layout and how it grew: each version is one script that is run once, in order. A script that has been
//! released is never changed. It must not know what the rows say.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use crate::error::Error;

/// Tells a journal from other SQLite files ("GWJ1").
const APPLICATION_ID: i32 = 0x4757_4a31;
/// What leads from version n to n + 1.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE machines(id TEXT PRIMARY KEY, row TEXT NOT NULL) STRICT, WITHOUT ROWID;
    -- One active job a Machine: the key says so.
    CREATE TABLE jobs(
        machine TEXT PRIMARY KEY,
        id INTEGER NOT NULL,
        kind TEXT NOT NULL,
        step TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        code_version TEXT NOT NULL,
        row TEXT NOT NULL,
        updated_at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE steps(
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        machine TEXT NOT NULL,
        job INTEGER NOT NULL,
        kind TEXT NOT NULL,
        step TEXT NOT NULL,
        outcome TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX steps_of ON steps(machine, seq);
    CREATE TABLE events(
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        machine TEXT NOT NULL,
        row TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of ON events(machine, seq);
    CREATE TABLE outbox(key TEXT PRIMARY KEY, seq INTEGER NOT NULL, value TEXT) STRICT, WITHOUT ROWID;
"];
/// The layout that this program writes.
pub const VERSION: i32 = MIGRATIONS.len() as i32;

const BUSY_WAIT: Duration = Duration::from_secs(5);

pub(super) fn open(path: &Path) -> Result<Connection, Error> {
    let io = |source| Error::Io { action: "create the journal", path: path.to_owned(), source };
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(io)?;
    let mut conn = Connection::open(path).map_err(Error::sqlite("open the journal"))?;
    set_up(&conn).map_err(Error::sqlite("set up the journal"))?;
    migrate(&mut conn, path)?;
    Ok(conn)
}

fn set_up(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_WAIT)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")
}

fn migrate(conn: &mut Connection, path: &Path) -> Result<(), Error> {
    let number = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let id = number("application_id").map_err(Error::sqlite("read the journal's kind"))?;
    let version = number("user_version").map_err(Error::sqlite("read the journal's version"))?;
    let refuse = |reason: String| Err(Error::Format { path: path.to_owned(), reason });
    if id != APPLICATION_ID && (id, version) != (0, 0) {
        return refuse("it is not a journal".into());
    }
    let Some(missing) = usize::try_from(version).ok().and_then(|done| MIGRATIONS.get(done..)) else {
        return refuse(format!("a newer program wrote it (layout {version}, this one knows {VERSION})"));
    };
    if missing.is_empty() {
        return Ok(());
    }
    let mut grow = || -> rusqlite::Result<()> {
        let txn = conn.transaction()?;
        for script in missing {
            txn.execute_batch(script)?;
        }
        txn.pragma_update(None, "application_id", APPLICATION_ID)?;
        txn.pragma_update(None, "user_version", VERSION)?;
        txn.commit()
    };
    grow().map_err(Error::sqlite("bring the journal up to date"))
}
