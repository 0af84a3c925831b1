//! Which facts are believed. A host tells of itself alone, as the incarnation that joined, and never of an earlier time;
//! what it holds above its row it proves. What is not so changes nothing, and is kept to be counted. Pure.

use godwit_api::fact::{FactStamp, MachineFact};
use godwit_api::row::Placement;
use godwit_api::{HostId, MachineId};
use godwit_store::Op;

use super::World;
use crate::rows::json;

/// Of so many the picture remembers what they were until somebody asks; more are as little believed.
const DISBELIEVED_MAX: usize = 1_024;

/// What a host told that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disbelieved {
    pub host: HostId,
    pub kind: &'static str,
    pub key: String,
}

/// It says that it is of another host, Machine, volume or app than its key or its placement.
pub const FOREIGN: &str = "foreign_fact";
/// Of a data folder that is not the one by which the host joined.
pub const INCARNATION: &str = "foreign_incarnation";
/// Older than what is known.
pub const STALE: &str = "stale_fact";
/// No fact at all.
pub const UNREADABLE: &str = "unreadable_fact";
/// Of another's move.
pub const FOREIGN_MOVE: &str = "foreign_move";
/// Held above its row, without a proof that control gave it.
pub const UNPROVEN: &str = "unproven_epoch";
/// Held above its row, at an epoch whose end is known.
pub const SPENT: &str = "spent_epoch";

impl World {
    /// Whether a fact may take the place of what is known: its members are those of its key, and its stamp is newer.
    pub(super) fn believes(&self, host: &HostId, machine: &MachineId, fact: &MachineFact) -> Result<(), &'static str> {
        let carrier = fact.volume.as_ref().map(|volume| volume.id.carrier());
        let is_own = fact.host == *host && fact.machine == *machine && carrier.is_none_or(|id| id == *machine);
        if !is_own || !self.is_of_its_app(host, machine, fact) {
            return Err(FOREIGN);
        }
        self.believes_stamp(host, &fact.stamp, self.fact(host, machine).map(|known| &known.stamp))
    }

    pub(super) fn believes_stamp(
        &self,
        host: &HostId,
        stamp: &FactStamp,
        known: Option<&FactStamp>,
    ) -> Result<(), &'static str> {
        if self.hosts.get(host).is_some_and(|row| row.incarnation != stamp.incarnation) {
            return Err(INCARNATION);
        }
        // A repetition is no harm: it says the same.
        match known.is_some_and(|known| known.incarnation == stamp.incarnation && known.seq > stamp.seq) {
            true => Err(STALE),
            false => Ok(()),
        }
    }

    fn is_of_its_app(&self, host: &HostId, machine: &MachineId, fact: &MachineFact) -> bool {
        self.placement(host, machine).is_none_or(|placement| placement.app == fact.app)
    }

    /// In a whole picture facts come before the placements that they are measured by.
    pub(super) fn drop_facts_of_other_apps(&mut self) {
        let facts = self.facts.iter().flat_map(|(host, facts)| facts.iter().map(move |(id, fact)| (host, id, fact)));
        let foreign = facts.filter(|(host, id, fact)| !self.is_of_its_app(host, id, fact));
        let foreign: Vec<(HostId, MachineId)> = foreign.map(|(host, id, _)| (host.clone(), id.clone())).collect();
        for (host, id) in foreign {
            self.facts.get_mut(&host).and_then(|facts| facts.remove(&id));
            self.disbelieve(&host, FOREIGN, godwit_api::keys::machine_fact(&host, &id));
        }
    }

    pub(super) fn disbelieve(&mut self, host: &HostId, kind: &'static str, key: String) {
        if self.disbelieved.len() < DISBELIEVED_MAX {
            self.disbelieved.push(Disbelieved { host: host.clone(), kind, key });
        }
    }

    /// Whether control gave its host what a fact says that it holds.
    pub fn is_proven(&self, fact: &MachineFact) -> bool {
        self.prover.believes(&fact.proof, &fact.host, &fact.machine, fact.epoch)
    }

    /// A placement as it is given to its host: with the proof of it.
    pub fn proven(&self, placement: Placement) -> Placement {
        let proof = self.prover.prove(&placement.host, &placement.machine, placement.epoch);
        Placement { proof, ..placement }
    }

    /// By what `source` proves that it took back what `part` gave away.
    pub fn proof(&self, source: &HostId, part: &Placement) -> String {
        self.prover.prove(source, &part.machine, part.epoch.next())
    }

    /// Writes a placement at its host, proven.
    pub(crate) fn placement_op(&self, placement: &Placement) -> Result<Op, godwit_api::ApiError> {
        let key = godwit_api::keys::placement(&placement.host, &placement.machine);
        json(key, &self.proven(placement.clone()))
    }
}
