//! The last committed fact of each Machine, for reading without asking the engine. It must not be written by anybody
//! but the owner.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use godwit_api::fact::MachineFact;
use godwit_api::ids::MachineId;

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

    pub fn get(&self, machine: &MachineId) -> Option<MachineFact> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).get(machine).cloned()
    }
}
