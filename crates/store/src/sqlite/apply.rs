//! One transaction against an open SQLite transaction. It decides before it writes: a failed compare has changed
//! nothing, so a whole group of transactions shares one commit without savepoints.

use rusqlite::{Connection, OptionalExtension, params};

use super::schema::{first_id, revision_of, unsigned};
use crate::types::{Compare, Event, Op, Relation, Row, Txn, TxnReply};

pub(super) struct Applied {
    pub reply: TxnReply,
    /// Empty: nothing changed, and no revision was used.
    pub events: Vec<Event>,
}

/// A key that exists.
struct Standing {
    id: i64,
    create_revision: u64,
    version: u64,
}

/// Applies `txn` to a store that is at `revision`; what it changes becomes `revision + 1`.
pub(super) fn apply(conn: &Connection, txn: Txn, revision: u64) -> rusqlite::Result<Applied> {
    let mut succeeded = true;
    for compare in &txn.compares {
        if !holds(conn, compare)? {
            succeeded = false;
            break;
        }
    }
    let branch = if succeeded { txn.then } else { txn.otherwise };

    // A branch names a key once, so its reads see the state before it wherever they stand in it.
    let mut gets = Vec::new();
    let mut events = Vec::new();
    for op in branch {
        match op {
            Op::Get { key } => gets.push(get(conn, key)?),
            Op::Put { key, value } => {
                let id = first_id(revision + 1) + events.len() as i64;
                put(conn, &key, &value, id)?;
                events.push(Event { key, value: Some(value), mod_revision: revision + 1 });
            }
            Op::Delete { key } => {
                let id = first_id(revision + 1) + events.len() as i64;
                if delete(conn, &key, id)? {
                    events.push(Event { key, value: None, mod_revision: revision + 1 });
                }
            }
        }
    }
    let revision = revision + u64::from(!events.is_empty());
    let reply = TxnReply { succeeded, revision, gets };
    Ok(Applied { reply, events })
}

fn holds(conn: &Connection, compare: &Compare) -> rusqlite::Result<bool> {
    let standing = standing(conn, compare.key())?;
    let mod_revision = standing.as_ref().map_or(0, |row| revision_of(row.id));
    Ok(match compare {
        Compare::Absent { .. } => Relation::Equal.holds(mod_revision, 0),
        Compare::ModRevision { relation, revision, .. } => relation.holds(mod_revision, *revision),
        Compare::Version { equals, .. } => standing.map_or(0, |row| row.version) == *equals,
        Compare::Value { equals, .. } => match standing {
            Some(row) => value(conn, row.id)? == *equals,
            None => false,
        },
    })
}

fn standing(conn: &Connection, key: &str) -> rusqlite::Result<Option<Standing>> {
    conn.prepare_cached("select id, create_revision, version from current where key = ?1")?
        .query_row([key], |row| {
            Ok(Standing { id: row.get(0)?, create_revision: unsigned(row, 1)?, version: unsigned(row, 2)? })
        })
        .optional()
}

fn value(conn: &Connection, id: i64) -> rusqlite::Result<Vec<u8>> {
    conn.prepare_cached("select value from log where id = ?1")?.query_row([id], |row| row.get(0))
}

fn get(conn: &Connection, key: String) -> rusqlite::Result<Option<Row>> {
    let Some(standing) = standing(conn, &key)? else {
        return Ok(None);
    };
    Ok(Some(Row {
        value: value(conn, standing.id)?.into(),
        key,
        create_revision: standing.create_revision,
        mod_revision: revision_of(standing.id),
        version: standing.version,
    }))
}

fn put(conn: &Connection, key: &str, value: &[u8], id: i64) -> rusqlite::Result<()> {
    let (create_revision, version) = match standing(conn, key)? {
        Some(row) => (row.create_revision, row.version + 1),
        None => (revision_of(id), 1),
    };
    append(conn, id, key, create_revision, version, Some(value))?;
    conn.prepare_cached(
        "insert into current (key, id, create_revision, version) values (?1, ?2, ?3, ?4) \
         on conflict (key) do update set id = excluded.id, \
         create_revision = excluded.create_revision, version = excluded.version",
    )?
    .execute(params![key, id, create_revision as i64, version as i64])?;
    Ok(())
}

/// False if there was nothing to delete.
fn delete(conn: &Connection, key: &str, id: i64) -> rusqlite::Result<bool> {
    let removed = conn.prepare_cached("delete from current where key = ?1")?.execute([key])?;
    if removed == 0 {
        return Ok(false);
    }
    append(conn, id, key, 0, 0, None)?;
    Ok(true)
}

fn append(
    conn: &Connection,
    id: i64,
    key: &str,
    create_revision: u64,
    version: u64,
    value: Option<&[u8]>,
) -> rusqlite::Result<()> {
    conn.prepare_cached("insert into log (id, key, create_revision, version, value) values (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![id, key, create_revision as i64, version as i64, value])?;
    Ok(())
}
