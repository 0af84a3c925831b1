//! Moves in the picture: their rows with the tickets read, the room that they have been promised at their targets,
//! and how far the volumes were last told to be. Pure, as the rest of the picture.

use std::collections::BTreeMap;
use std::sync::Arc;

use godwit_api::fact::{MachineFact, Resources};
use godwit_api::row::{MigrationRow, Placement};
use godwit_api::ticket::Ticket;
use godwit_api::volume::HydrationFact;
use godwit_api::{AppName, Epoch, HostId, MachineId, MigrationId};
use godwit_machine::capacity;

use super::{Known, World};
use crate::migrations::{At, Sight, VolumeSight};
use crate::place::RESERVED;

/// A move, and what its ticket says.
#[derive(Debug, Clone)]
pub struct Move {
    pub row: Known<MigrationRow>,
    /// `None` only for a row that a later version wrote: it is shown, and left alone.
    pub ticket: Option<Arc<Ticket>>,
    /// By carrier, as last told by the target. A fact loses its hydration at the moment when it is whole.
    pub hydration: BTreeMap<MachineId, HydrationFact>,
}

/// Something on its way to a host.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    migration: MigrationId,
    app: AppName,
    need: Resources,
    epoch: Epoch,
    /// What leads the move, and its epoch: once the target tells of that, it counts all parts itself.
    lead: (MachineId, Epoch),
}

/// What a ticket takes along: its lead, and the volumes unless the lead is one itself.
pub(crate) fn parts(ticket: &Ticket) -> impl Iterator<Item = &Placement> {
    let carried = ticket.volumes.iter().map(|carried| &carried.placement);
    std::iter::once(&ticket.lead).chain(carried.filter(|placement| placement.machine != ticket.lead.machine))
}

/// What each part takes of the target. A Machine that runs will run there.
pub(crate) fn needs(ticket: &Ticket) -> impl Iterator<Item = (&Placement, Resources)> {
    parts(ticket).map(|placement| (placement, capacity::of_placement(placement, placement.launch)))
}

impl World {
    pub(super) fn migration_row(&mut self, key: &str, id: &str, value: Option<&[u8]>, revision: u64) {
        let Some(id) = self.id::<MigrationId>(key, id) else { return };
        let row: Option<Known<MigrationRow>> = self.read(key, value, revision);
        let before = self.migrations.remove(&id);
        self.forget_arrivals(&id);
        let Some(row) = row else { return };
        let ticket: Option<Arc<Ticket>> = serde_json::from_str(&row.ticket.body).ok().map(Arc::new);
        if row.phase.is_over() {
            self.migrations.insert(id, Move { row, ticket, hydration: BTreeMap::new() });
            return;
        }
        let hydration = before.map(|before| before.hydration).unwrap_or_default();
        self.migrations.insert(id.clone(), Move { row, ticket: ticket.clone(), hydration });
        let Some(ticket) = ticket else { return };
        for (placement, need) in needs(&ticket) {
            let lead = (ticket.lead.machine.clone(), ticket.lead.epoch);
            let (app, epoch) = (placement.app.clone(), placement.epoch);
            let arrival = Arrival { migration: id.clone(), app, need, epoch, lead };
            self.arriving.insert((ticket.target.clone(), placement.machine.clone()), arrival);
            self.settle_arrival(&ticket.target, &placement.machine);
            if let Some(fact) = self.fact(&ticket.target, &placement.machine).cloned() {
                self.note_hydration(&fact);
            }
        }
    }

    fn forget_arrivals(&mut self, id: &MigrationId) {
        let of_move = self.arriving.iter().filter(|(_, arrival)| arrival.migration == *id);
        let left: Vec<(HostId, MachineId)> = of_move.map(|(at, _)| at.clone()).collect();
        for (host, machine) in left {
            if self.placement(&host, &machine).is_none() {
                self.snapshot.unplaced(&host, &machine);
            }
            self.arriving.remove(&(host, machine));
        }
    }

    /// A target that tells of the arrival counts it itself; until then it is reserved here.
    pub(super) fn settle_arrival(&mut self, host: &HostId, machine: &MachineId) {
        let Some(arrival) = self.arriving.get(&(host.clone(), machine.clone())) else { return };
        if self.placement(host, machine).is_some() {
            return;
        }
        match self.is_counted(host, machine) {
            true => self.snapshot.unplaced(host, machine),
            false => self.snapshot.placed(host, machine, &arrival.app, arrival.need, RESERVED),
        }
    }

    /// Is it on its way to a host that counts it already?
    pub(super) fn is_counted(&self, host: &HostId, machine: &MachineId) -> bool {
        let arrival = self.arriving.get(&(host.clone(), machine.clone()));
        arrival.is_some_and(|arrival| {
            let (lead, epoch) = &arrival.lead;
            self.fact(host, lead).is_some_and(|fact| fact.epoch >= *epoch)
        })
    }

    /// The same for all that comes with `lead`.
    pub(super) fn settle_arrivals_with(&mut self, host: &HostId, lead: &MachineId) {
        let with = self.arriving.iter().filter(|((to, _), arrival)| to == host && arrival.lead.0 == *lead);
        let with: Vec<MachineId> = with.map(|((_, machine), _)| machine.clone()).collect();
        for machine in with {
            self.settle_arrival(host, &machine);
        }
    }

    pub(super) fn settle_arrivals(&mut self) {
        let all: Vec<(HostId, MachineId)> = self.arriving.keys().cloned().collect();
        for (host, machine) in all {
            self.settle_arrival(&host, &machine);
        }
    }

    /// How far a volume is, or how its filling ended. The end need not name the move: it is the one by which it came.
    /// False when it names a move that does not bring that volume to that host.
    pub(super) fn note_hydration(&mut self, fact: &MachineFact) -> bool {
        let Some(volume) = &fact.volume else { return true };
        let Some(told) = volume.hydration.as_ref().or(volume.hydrated.as_ref()) else { return true };
        let arrival = self.arriving.get(&(fact.host.clone(), fact.machine.clone()));
        let by_arrival = arrival.filter(|arrival| fact.epoch == arrival.epoch);
        let id = told.migration.clone().or(by_arrival.map(|arrival| arrival.migration.clone()));
        let of = id.and_then(|id| self.migrations.get_mut(&id)).filter(|of| !of.row.phase.is_over());
        let Some(of) = of else { return true };
        let is_part = |ticket: &Arc<Ticket>| parts(ticket).any(|part| part.machine == fact.machine);
        let is_own = of.row.target == fact.host && of.ticket.as_ref().is_some_and(is_part);
        if is_own {
            of.hydration.insert(fact.machine.clone(), told.clone());
        }
        is_own
    }

    /// All that is known of a move now.
    pub(crate) fn sight<'a>(&'a self, row: &'a MigrationRow, ticket: &'a Ticket, now_ms: u64) -> Sight<'a> {
        let fact = |host, machine| self.fact(host, machine).map(|fact| &**fact);
        let volumes = ticket.volumes.iter().map(|carried| {
            let (placement, id) = (&carried.placement, &carried.placement.machine);
            VolumeSight {
                epoch: placement.epoch,
                place: self.place_of(placement),
                source: fact(&row.source, id),
                target: fact(&row.target, id),
            }
        });
        Sight {
            row,
            ticket,
            lead: self.place_of(&ticket.lead),
            source: fact(&row.source, &ticket.lead.machine),
            target: fact(&row.target, &ticket.lead.machine),
            volumes: volumes.collect(),
            now_ms,
        }
    }

    /// Where the row of what is placed says that it is.
    fn place_of(&self, placement: &Placement) -> At<'_> {
        match &placement.volume {
            Some(volume) => {
                let row = self.volumes.get(&placement.app)?.get(&volume.id)?;
                row.destroyed_at_ms.is_none().then_some((&row.host, row.epoch))
            }
            None => {
                let row = self.machines.get(&placement.app)?.get(&placement.machine)?;
                row.destroyed_at_ms.is_none().then_some((&row.host, row.epoch))
            }
        }
    }

    /// The move that something is in, if it has not ended.
    pub fn live_move(&self, moving: Option<&MigrationId>) -> Option<&Move> {
        self.migrations.get(moving?).filter(|of| !of.row.phase.is_over())
    }
}
