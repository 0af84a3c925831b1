//! The last committed fact of each Machine, for reading without asking the engine. It must not be written by anybody
//! but the owner.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use godwit_api::fact::MachineFact;
use godwit_api::ids::MachineId;

use crate::engine::Seen;

/// Cheap to clone; bounded by the Machines of the host.
#[derive(Clone, Default)]
pub struct View {
    facts: Arc<RwLock<BTreeMap<MachineId, MachineFact>>>,
}

impl View {
    pub fn see(&self, seen: Seen) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        match seen {
            Seen::Machine { fact, .. } | Seen::Past { fact } => {
                facts.insert(fact.machine.clone(), *fact);
            }
            Seen::Gone { machine } => {
                facts.remove(&machine);
            }
        }
    }

    pub fn get(&self, machine: &MachineId) -> Option<MachineFact> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).get(machine).cloned()
    }
}
