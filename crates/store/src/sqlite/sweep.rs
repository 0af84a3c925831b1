//! Compaction's clean-up, in steps small enough to stand between two commits.
//!
//! Invariant: a step removes only log rows that no read at the compaction revision or later can see. It walks the rows
//! between the last compaction and this one, and for each removes the key's older rows: the cost follows the changes,
//! not the size of the store.

use rusqlite::{Connection, params};

use super::schema::{first_id, set_meta};

/// Log rows walked in one step.
const SWEEP_STEP_ROWS: i64 = 128;

/// Sweeps rows from id `swept` on, for a store compacted at `compacted`; returns where the next step begins, or
/// `None` when all is swept.
pub(super) fn step(conn: &Connection, swept: i64, compacted: u64) -> rusqlite::Result<Option<i64>> {
    let end = first_id(compacted + 1);
    let txn = conn.unchecked_transaction()?;
    let walked = walk(&txn, swept, end)?;
    for row in &walked {
        txn.prepare_cached("delete from log where key = ?1 and id < ?2")?.execute(params![row.key, row.id])?;
        if row.is_deletion {
            txn.prepare_cached("delete from log where id = ?1")?.execute([row.id])?;
        }
    }
    let next = match walked.last() {
        Some(last) if walked.len() as i64 == SWEEP_STEP_ROWS => last.id + 1,
        _ => end,
    };
    set_meta(&txn, "swept", &next.to_string())?;
    txn.commit()?;
    Ok((next < end).then_some(next))
}

struct Walked {
    id: i64,
    key: String,
    is_deletion: bool,
}

fn walk(conn: &Connection, from: i64, end: i64) -> rusqlite::Result<Vec<Walked>> {
    conn.prepare_cached(
        "select id, key, value is null from log not indexed \
         where id >= ?1 and id < ?2 order by id limit ?3",
    )?
    .query_map(params![from, end, SWEEP_STEP_ROWS], |row| {
        Ok(Walked { id: row.get(0)?, key: row.get(1)?, is_deletion: row.get(2)? })
    })?
    .collect()
}
