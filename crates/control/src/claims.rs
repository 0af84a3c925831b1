//! Claims on Machines that were refused: counted once each, in memory. A claim stands in its host's fact and is met at
//! every look.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use godwit_api::{Epoch, HostId, MachineId};
use godwit_base::{Distrust, Peer};

/// So many are remembered; when there are more, all are counted anew.
const REMEMBERED_MAX: usize = 4_096;

/// That a host says to hold, above its row, what it cannot have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    pub kind: &'static str,
    pub host: HostId,
    pub machine: MachineId,
    pub epoch: Epoch,
}

#[derive(Default)]
pub struct Claims(Mutex<HashSet<Claim>>);

impl Claims {
    pub fn count(&self, claims: Vec<Claim>, distrust: &Distrust) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for claim in claims {
            if known.contains(&claim) {
                continue;
            }
            if known.len() >= REMEMBERED_MAX {
                known.clear();
            }
            let what = format!("Machine {} at epoch {}", claim.machine, claim.epoch);
            distrust.note(Some(&Peer::Host(claim.host.clone())), claim.kind, &what);
            known.insert(claim);
        }
    }
}
