//! Reads of one snapshot: ranges now and in the past, and history for watches. Each runs on a reader connection
//! inside a read transaction, and sees no half of a commit.

use rusqlite::{Connection, params};

use super::schema::{first_id, load_revisions, prefix_end, revision_of, unsigned};
use crate::error::Error;
use crate::limits::{MAX_RANGE_BYTES, MAX_RANGE_ROWS};
use crate::types::{Event, KeyRange, Range, RangeReply, Row, WatchBatch};

/// One step through history: so many revisions are looked at before others get the connection.
const HISTORY_STEP_REVISIONS: u64 = 1024;
/// A step also ends with the transaction that crosses this.
const HISTORY_STEP_BYTES: usize = 1024 * 1024;

/// A piece of history. `batch.revision` is how far it reaches.
pub(super) struct History {
    pub batch: WatchBatch,
    /// The store's revision in the snapshot that was read.
    pub store_revision: u64,
}

pub(super) fn range(conn: &Connection, range: &Range) -> Result<RangeReply, Error> {
    let failed = || Error::sqlite("read a range");
    let snapshot = conn.unchecked_transaction().map_err(failed())?;
    let (compacted, current) = load_revisions(&snapshot).map_err(failed())?;
    let at = range.at_revision.unwrap_or(current);
    if at > current {
        return Err(Error::FutureRevision { asked: at, current });
    }
    if at < compacted {
        return Err(Error::Compacted { at: compacted });
    }
    let bounds = Bounds::of(range);
    let mut page = Page::new(range.limit);
    if at == current {
        read_current(&snapshot, &bounds, &mut page)
    } else {
        read_past(&snapshot, &bounds, first_id(at + 1), &mut page)
    }
    .map_err(failed())?;
    Ok(RangeReply { revision: at, rows: page.rows, more: page.more })
}

/// Keys above `above` (or equal, if it is itself meant) and below `below`.
struct Bounds {
    from: String,
    from_included: bool,
    below: String,
}

impl Bounds {
    fn of(range: &Range) -> Bounds {
        match &range.key {
            // The smallest text above a key is that key and a NUL, which no key contains.
            KeyRange::Exact(key) => Bounds { from: key.clone(), from_included: true, below: format!("{key}\0") },
            KeyRange::Prefix(prefix) => Bounds {
                from: range.after.clone().unwrap_or_else(|| prefix.clone()),
                from_included: range.after.is_none(),
                below: prefix_end(prefix),
            },
        }
    }
}

/// Rows up to the limits.
struct Page {
    rows: Vec<Row>,
    more: bool,
    limit: usize,
    bytes: usize,
}

impl Page {
    fn new(limit: u32) -> Page {
        let limit = match limit {
            0 => MAX_RANGE_ROWS,
            limit => limit.min(MAX_RANGE_ROWS),
        };
        Page { rows: Vec::new(), more: false, limit: limit as usize, bytes: 0 }
    }

    /// False when the page is full and `row` is not on it.
    fn push(&mut self, row: Row) -> bool {
        if self.rows.len() >= self.limit || self.bytes >= MAX_RANGE_BYTES {
            self.more = true;
            return false;
        }
        self.bytes += row.key.len() + row.value.len();
        self.rows.push(row);
        true
    }
}

fn read_current(conn: &Connection, bounds: &Bounds, page: &mut Page) -> rusqlite::Result<()> {
    let mut statement = conn.prepare_cached(
        "select c.key, c.id, c.create_revision, c.version, l.value \
         from current c cross join log l on l.id = c.id \
         where c.key >= ?1 and c.key < ?2 and (?3 or c.key > ?1) order by c.key",
    )?;
    let mut rows = statement.query(params![bounds.from, bounds.below, bounds.from_included])?;
    while let Some(row) = rows.next()? {
        if !page.push(decode(row)?) {
            break;
        }
    }
    Ok(())
}

/// The newest change of each key before log row `before`, unless that was a deletion.
fn read_past(conn: &Connection, bounds: &Bounds, before: i64, page: &mut Page) -> rusqlite::Result<()> {
    let mut newest = conn.prepare_cached(
        "select max(id) from log indexed by log_key \
         where key >= ?1 and key < ?2 and (?3 or key > ?1) and id < ?4 group by key order by key",
    )?;
    let mut log_row = conn.prepare_cached(
        "select key, id, create_revision, version, value from log where id = ?1 and value is not null",
    )?;
    let params = params![bounds.from, bounds.below, bounds.from_included, before];
    let mut ids = newest.query(params)?;
    while let Some(id) = ids.next()? {
        let mut rows = log_row.query([id.get::<_, i64>(0)?])?;
        if let Some(row) = rows.next()?
            && !page.push(decode(row)?)
        {
            break;
        }
    }
    Ok(())
}

fn decode(row: &rusqlite::Row) -> rusqlite::Result<Row> {
    Ok(Row {
        key: row.get(0)?,
        mod_revision: revision_of(row.get(1)?),
        create_revision: unsigned(row, 2)?,
        version: unsigned(row, 3)?,
        value: row.get::<_, Vec<u8>>(4)?.into(),
    })
}

/// The next piece of history under `prefix`, from `from_revision` on.
pub(super) fn history(conn: &Connection, prefix: &str, from_revision: u64) -> Result<History, Error> {
    let failed = || Error::sqlite("read history");
    let snapshot = conn.unchecked_transaction().map_err(failed())?;
    let (compacted, current) = load_revisions(&snapshot).map_err(failed())?;
    // Compaction may have dropped a deletion of its own revision, so that one is no longer complete either.
    if from_revision <= compacted {
        return Err(Error::Compacted { at: compacted });
    }
    if from_revision > current + 1 {
        return Err(Error::FutureRevision { asked: from_revision, current });
    }
    let until = current.min(from_revision + HISTORY_STEP_REVISIONS - 1);
    let batch = read_log(&snapshot, prefix, from_revision, until).map_err(failed())?;
    Ok(History { batch, store_revision: current })
}

fn read_log(conn: &Connection, prefix: &str, from_revision: u64, until: u64) -> rusqlite::Result<WatchBatch> {
    // `not indexed`: walk the log in its own order, whatever the prefix.
    let mut statement = conn.prepare_cached(
        "select id, key, value from log not indexed \
         where id >= ?1 and id < ?2 and key >= ?3 and key < ?4 order by id",
    )?;
    let mut rows =
        statement.query(params![first_id(from_revision), first_id(until + 1), prefix, prefix_end(prefix)])?;
    let mut batch = WatchBatch { revision: until, events: Vec::new() };
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let mod_revision = revision_of(row.get(0)?);
        if let Some(last) = batch.events.last()
            && bytes >= HISTORY_STEP_BYTES
            && last.mod_revision < mod_revision
        {
            batch.revision = last.mod_revision;
            break;
        }
        let key: String = row.get(1)?;
        let value: Option<Vec<u8>> = row.get(2)?;
        bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        batch.events.push(Event { key, value: value.map(Into::into), mod_revision });
    }
    Ok(batch)
}
