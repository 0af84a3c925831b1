//! A prefix kept in memory: what `follow` tells, applied. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::typed::Versioned;
use crate::types::{Row, WatchBatch};

/// What a follower is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Replaces everything told before.
    Snapshot { rows: Vec<Row>, revision: u64 },
    /// Follows without a gap on the update before; without events it only confirms that `revision` is reached.
    Changes(WatchBatch),
}

/// The rows of a prefix at `revision`. Starts empty, and is complete after the first snapshot.
#[derive(Debug, Clone, Default)]
pub struct Mirror {
    rows: BTreeMap<String, Versioned<Bytes>>,
    revision: u64,
    complete: bool,
}

impl Mirror {
    pub fn new() -> Mirror {
        Mirror::default()
    }

    /// Returns the keys whose value or revision changed, appeared or went, in order: after a new snapshot also those
    /// that vanished unseen.
    pub fn apply(&mut self, update: Update) -> Vec<String> {
        match update {
            Update::Snapshot { rows, revision } => {
                let rows = rows.into_iter().map(|row| (row.key, Versioned::new(row.value, row.mod_revision))).collect();
                self.complete = true;
                self.replace(rows, revision)
            }
            Update::Changes(batch) => {
                let mut changed = BTreeSet::new();
                for event in batch.events {
                    match event.value {
                        Some(value) => self.rows.insert(event.key.clone(), Versioned::new(value, event.mod_revision)),
                        None => self.rows.remove(&event.key),
                    };
                    changed.insert(event.key);
                }
                self.revision = batch.revision;
                changed.into_iter().collect()
            }
        }
    }

    fn replace(&mut self, rows: BTreeMap<String, Versioned<Bytes>>, revision: u64) -> Vec<String> {
        let old = std::mem::replace(&mut self.rows, rows);
        self.revision = revision;
        let gone = old.keys().filter(|key| !self.rows.contains_key(*key));
        let mut changed: Vec<String> = gone.cloned().collect();
        for (key, row) in &self.rows {
            if old.get(key) != Some(row) {
                changed.push(key.clone());
            }
        }
        changed.sort_unstable();
        changed
    }

    pub fn get(&self, key: &str) -> Option<&Versioned<Bytes>> {
        self.rows.get(key)
    }

    pub fn rows(&self) -> impl Iterator<Item = (&str, &Versioned<Bytes>)> {
        self.rows.iter().map(|(key, row)| (key.as_str(), row))
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The first snapshot has arrived: what is absent here does not exist.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Event;

    fn row(key: &str, value: &'static str, revision: u64) -> Row {
        Row { key: key.into(), value: value.into(), create_revision: revision, mod_revision: revision, version: 1 }
    }

    #[test]
    fn a_second_snapshot_reports_what_vanished_unseen() {
        let mut mirror = Mirror::new();
        let first = vec![row("a", "1", 1), row("b", "1", 2)];
        let told = mirror.apply(Update::Snapshot { rows: first, revision: 2 });
        assert_eq!(told, ["a", "b"]);
        let second = vec![row("b", "1", 2), row("c", "1", 9)];
        let told = mirror.apply(Update::Snapshot { rows: second, revision: 9 });
        assert_eq!(told, ["a", "c"]);
        assert_eq!(mirror.revision(), 9);
    }

    #[test]
    fn changes_put_and_delete() {
        let mut mirror = Mirror::new();
        let event = |key: &str, value: Option<&'static str>, mod_revision| Event {
            key: key.into(),
            value: value.map(Bytes::from),
            mod_revision,
        };
        let events = vec![event("a", Some("1"), 3), event("b", Some("1"), 3)];
        mirror.apply(Update::Changes(WatchBatch { revision: 3, events }));
        let told = mirror.apply(Update::Changes(WatchBatch { revision: 4, events: vec![event("a", None, 4)] }));
        assert_eq!(told, ["a"]);
        let left: Vec<_> = mirror.rows().map(|(key, _)| key).collect();
        assert_eq!(left, ["b"]);
    }
}
