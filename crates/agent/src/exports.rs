//! Which volumes this host serves to others, and under which names: what a source's answer to a handoff is made of. It
//! must not know how they are served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_api::ids::{MachineId, MigrationId};
use godwit_api::ticket::ExportGrant;
use tokio::sync::Notify;

/// Cheap to clone; bounded by the volumes of the host.
#[derive(Clone, Default)]
pub struct Exports {
    served: Arc<Mutex<HashMap<MachineId, (MigrationId, ExportGrant)>>>,
    stirred: Arc<Notify>,
    /// Served ahead of a handoff that may never come: the migration's id, and until when.
    leases: Arc<Mutex<HashMap<MachineId, (String, Instant)>>>,
}

impl Exports {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, (MigrationId, ExportGrant)>> {
        // Every change is one call on the map.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, volume: &MachineId, migration: MigrationId, grant: ExportGrant) {
        let before = self.lock().insert(volume.clone(), (migration, grant));
        if before.is_none() {
            self.stirred.notify_waiters();
        }
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, HashMap<MachineId, (String, Instant)>> {
        // Every change is one call on the map.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lease(&self, volume: &MachineId, migration: &str, until: Instant) {
        self.leases().insert(volume.clone(), (migration.to_owned(), until));
    }

    /// Those that nobody has asked for in time.
    pub fn leased_until(&self, now: Instant) -> Vec<MachineId> {
        self.leases().iter().filter(|(_, (_, until))| *until <= now).map(|(volume, _)| volume.clone()).collect()
    }

    /// Was it for this migration?
    pub fn drop_lease(&self, volume: &MachineId, migration: &str) -> bool {
        let mut leases = self.leases();
        let found = leases.get(volume).is_some_and(|(of, _)| of == migration);
        found && leases.remove(volume).is_some()
    }

    /// For whom it was, if its time is over still.
    pub fn end_lease(&self, volume: &MachineId, now: Instant) -> Option<String> {
        let mut leases = self.leases();
        leases.get(volume).filter(|(_, until)| *until <= now)?;
        leases.remove(volume).map(|(migration, _)| migration)
    }

    pub fn end(&self, volume: &MachineId) {
        self.lock().remove(volume);
    }

    /// The grants of all these volumes, as soon as each is served for the migration; `None` when the bound is over.
    pub async fn all(
        &self,
        volumes: &[MachineId],
        migration: &MigrationId,
        bound: Duration,
    ) -> Option<Vec<ExportGrant>> {
        let look = async {
            loop {
                let stirred = self.stirred.notified();
                tokio::pin!(stirred);
                // Enabled before the look, so that nothing falls between the two.
                stirred.as_mut().enable();
                let found: Option<Vec<ExportGrant>> = {
                    let served = self.lock();
                    let of = |volume: &MachineId| {
                        served.get(volume).filter(|(of, _)| of == migration).map(|(_, grant)| grant.clone())
                    };
                    volumes.iter().map(of).collect()
                };
                if let Some(found) = found {
                    return found;
                }
                stirred.await;
            }
        };
        tokio::time::timeout(bound, look).await.ok()
    }
}
