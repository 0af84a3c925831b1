//! What this host has had and forgotten: the highest epoch of each, so that an older row is never taken for something
//! new. A store that was put back from an older copy still places here what has moved away or was destroyed since, and
//! a second copy of it, with an empty volume, would be the answer. Pure; its rows are journaled by the engine.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use godwit_api::ids::{Epoch, MachineId};
use godwit_api::row::Placement;

/// So many are remembered; the next one takes the place of the one that was forgotten first.
const REMEMBERED_MAX: u64 = 16_384;
const PREFIX: &str = "past/";

/// A row of the journal's `meta`, under `past/` and its number in the ring.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    number: u64,
    machine: MachineId,
    epoch: Epoch,
}

#[derive(Debug, Default)]
pub(super) struct Past {
    /// By their place in the ring.
    ring: BTreeMap<u64, Entry>,
    epochs: HashMap<MachineId, Epoch>,
    next: u64,
}

impl Past {
    /// Of the journal's `meta`.
    pub fn load(meta: &BTreeMap<String, String>) -> Result<Self, serde_json::Error> {
        let rows = meta.iter().filter(|(key, _)| key.starts_with(PREFIX));
        let mut entries: Vec<Entry> =
            rows.map(|(_, row)| serde_json::from_str(row)).collect::<Result<_, serde_json::Error>>()?;
        entries.sort_by_key(|entry| entry.number);
        let mut past = Self::default();
        for entry in entries {
            past.next = entry.number;
            past.insert(entry);
        }
        Ok(past)
    }

    fn insert(&mut self, entry: Entry) {
        self.next += 1;
        self.epochs.insert(entry.machine.clone(), entry.epoch);
        let place = entry.number % REMEMBERED_MAX;
        let Some(before) = self.ring.insert(place, entry) else { return };
        // It may stand further on in the ring as well.
        if !self.ring.values().any(|entry| entry.machine == before.machine) {
            self.epochs.remove(&before.machine);
        }
    }

    /// Key and value of the row that keeps it.
    pub fn remember(&mut self, machine: MachineId, epoch: Epoch) -> (String, String) {
        let epoch = self.epochs.get(&machine).map_or(epoch, |known| epoch.max(*known));
        let entry = Entry { number: self.next, machine, epoch };
        let key = format!("{PREFIX}{}", entry.number % REMEMBERED_MAX);
        let row = super::rows::json(&entry);
        self.insert(entry);
        (key, row)
    }

    /// Is it something that was here at this epoch or a later one, and is no more?
    pub fn outranks(&self, placement: &Placement) -> bool {
        !placement.destroy && self.epochs.get(&placement.machine).is_some_and(|epoch| *epoch >= placement.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch { generation: 1, n }
    }

    #[test]
    fn the_ring_is_bounded_and_survives_a_restart() {
        let mut past = Past::default();
        let mut meta = BTreeMap::new();
        let again = MachineId::from_bits(1);
        for n in 0..REMEMBERED_MAX + 10 {
            meta.extend([past.remember(MachineId::from_bits(n + 1), epoch(n))]);
        }
        meta.extend([past.remember(again.clone(), epoch(3))]);
        assert_eq!(meta.len() as u64, REMEMBERED_MAX);
        let read = Past::load(&meta).unwrap();
        for past in [&past, &read] {
            assert_eq!(past.epochs.len() as u64, REMEMBERED_MAX);
            assert_eq!(past.epochs.get(&again), Some(&epoch(3)));
            assert_eq!(past.epochs.get(&MachineId::from_bits(5)), None, "the oldest went");
        }
        assert_eq!(read.next, past.next);
    }
}
