//! The last committed fact of each Machine, for reading without asking the engine. It must not be written by anybody
//! but the owner.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use godwit_api::fact::MachineFact;
use godwit_api::ids::MachineId;
use godwit_api::migration::{MigrationFact, MovePart, MoveRole};

use crate::engine::Seen;

/// Cheap to clone; bounded by the Machines of the host.
#[derive(Clone, Default)]
pub struct View {
    facts: Arc<RwLock<BTreeMap<MachineId, MachineFact>>>,
    stirred: Arc<Notify>,
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
        drop(facts);
        self.stirred.notify_waiters();
    }

    /// Until `seen` finds what it looks for in the Machine's fact, or the bound is over.
    pub async fn until<T>(
        &self,
        machine: &MachineId,
        bound: Duration,
        mut seen: impl FnMut(Option<&MachineFact>) -> Option<T>,
    ) -> Option<T> {
        let look = async {
            loop {
                let stirred = self.stirred.notified();
                tokio::pin!(stirred);
                // Enabled before the look, so that nothing falls between the two.
                stirred.as_mut().enable();
                if let Some(found) = seen(self.get(machine).as_ref()) {
                    return found;
                }
                stirred.await;
            }
        };
        tokio::time::timeout(bound, look).await.ok()
    }

    /// Is this volume on its way to another host by that move, or read by it?
    pub fn is_leaving(&self, volume: &MachineId, migration: &str) -> bool {
        let facts = self.facts.read().unwrap_or_else(PoisonError::into_inner);
        let lent = facts.get(volume).and_then(|fact| fact.volume.as_ref()).is_some_and(|of| of.lent_to.is_some());
        let leaves = |told: &MigrationFact| {
            told.id.as_str() == migration
                && told.role == MoveRole::Source
                && matches!(told.part, MovePart::Preparing | MovePart::HandedOff)
        };
        lent || facts.values().filter_map(|fact| fact.migration.as_ref()).any(leaves)
    }

    pub fn get(&self, machine: &MachineId) -> Option<MachineFact> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).get(machine).cloned()
    }
}
