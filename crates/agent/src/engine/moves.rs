//! What of a move concerns several rows of the host: volumes that change hands with their Machine, moves that this host
//! is to lead, volumes that are not ready to be used. It must not decide what `machine` decides of one.

use godwit_api::config::MachineConfig;
use godwit_api::ids::MachineId;
use godwit_api::migration::PrecopyFact;
use godwit_api::ticket::{SignedTicket, Ticket};
use godwit_api::volume::HydrationFact;
use godwit_machine::record::Record;
use godwit_machine::{Ask, Event, Life, Outcome, Passage, Source, Step, Until, What};

use super::{Engine, Holding, NOBODY, Output, Slot, Work};

impl Engine {
    /// The moves that this host is to lead. What is known already begins nothing.
    pub(super) fn arrivals(&mut self, tickets: Vec<(SignedTicket, Ticket)>, now_ms: u64, out: &mut Output) {
        for (signed, ticket) in tickets {
            let machine = ticket.lead.machine.clone();
            // Judged again by the next pull.
            if self.slots.get(&machine).is_some_and(|slot| !slot.life.is_quiet()) {
                continue;
            }
            // A volume of an earlier move that is still being read from here cannot come back yet.
            let waits = ticket
                .volumes
                .iter()
                .any(|carried| self.slots.get(&carried.placement.machine).is_some_and(|slot| !slot.life.is_quiet()));
            if waits {
                continue;
            }
            if let Some(slot) = self.slots.get_mut(&machine) {
                let known = slot.life.record.moving.as_ref().is_some_and(|moving| moving.migration == ticket.migration);
                slot.precopy = slot.precopy.take().filter(|_| known);
            }
            let what = What::MoveIn { signed, ticket: Box::new(ticket) };
            let ask = Ask { id: NOBODY, what, source: Source::User, until: Until::Accepted };
            self.ask(machine, ask, now_ms, out);
        }
    }

    pub(super) fn pass(&mut self, volume: MachineId, passage: Passage, now_ms: u64, out: &mut Output) {
        if let Passage::Adopt { placement, .. } = &passage {
            let life = Life::unknown((**placement).clone(), now_ms);
            self.slots.insert(volume.clone(), Slot::new(life));
        }
        if !self.slots.contains_key(&volume) {
            // Checked before the handoff; without its row there is nothing to lend.
            tracing::error!(%volume, "a volume that moves is not known here");
            return;
        }
        self.machine(volume, Event::Passage(passage), now_ms, out);
    }

    pub(super) fn work(&self, machine: &MachineId) -> Option<Work> {
        let slot = self.slots.get(machine)?;
        let record = slot.life.record.clone();
        let job = slot.life.job.clone()?;
        let volumes = self.mounted(&job.placement.as_ref().unwrap_or(&record.placement).config);
        Some(Work { machine: machine.clone(), job, record, volumes })
    }

    fn mounted(&self, config: &MachineConfig) -> Vec<Record> {
        let numbers = config.mounts.iter().filter_map(|mount| volume_number(&mount.volume));
        numbers.filter_map(|number| self.slots.get(&number)).map(|slot| slot.life.record.clone()).collect()
    }

    /// For whoever asks; it changes nothing.
    pub fn holding(&self, machine: &MachineId) -> Option<Holding> {
        let life = &self.slots.get(machine)?.life;
        let volumes = self.mounted(&life.record.placement.config);
        Some(Holding { record: life.record.clone(), busy: life.job.is_some(), volumes })
    }

    /// Why the volumes that an event is about cannot be used or given away, if so.
    pub(super) fn missing(&self, machine: &MachineId, event: &Event) -> Option<String> {
        match event {
            Event::Ask(Ask { what: What::Place(placement), .. }) if !placement.destroy => {
                let mounts = placement.config.mounts.iter();
                mounts.filter_map(|mount| self.not_here(&mount.volume)).next()
            }
            Event::Ask(Ask { what: What::MoveOut { ticket, .. } | What::PrepareMove { ticket }, .. }) => {
                self.cannot_leave(machine, ticket)
            }
            Event::Outcome { step: Step::HandOff, outcome: Outcome::Done { .. }, .. } => {
                let moving = self.slots.get(machine)?.life.record.moving.as_ref()?;
                let ticket = moving.signed.read().ok()?;
                self.cannot_leave(machine, &ticket)
            }
            _ => None,
        }
    }

    fn not_here(&self, volume: &str) -> Option<String> {
        let record = volume_number(volume).and_then(|number| self.slots.get(&number)).map(|slot| &slot.life.record);
        match record {
            Some(record) if record.held && record.is_volume() => None,
            Some(record) if record.lent.is_some() => Some(format!("volume {volume} has moved to another host")),
            Some(_) => Some(format!("volume {volume} is not ready on this host")),
            None => Some(format!("volume {volume} is not on this host")),
        }
    }

    /// Volumes go whole, at the epochs that control knew, and all that the Machine mounts.
    fn cannot_leave(&self, machine: &MachineId, ticket: &Ticket) -> Option<String> {
        let lead = &self.slots.get(machine)?.life.record;
        for mount in &lead.placement.config.mounts {
            let carried = ticket.volumes.iter().filter_map(|carried| carried.placement.volume.as_ref());
            if !carried.into_iter().any(|volume| volume.id.as_str() == mount.volume) {
                return Some(format!("volume {} is not part of the move", mount.volume));
            }
        }
        ticket.volumes.iter().find_map(|carried| {
            let number = &carried.placement.machine;
            let Some(slot) = self.slots.get(number) else {
                return Some(format!("volume {number} is not on this host"));
            };
            let record = &slot.life.record;
            // One that moves by itself is the lead, and busy with just that.
            let busy = number != machine && !slot.life.is_quiet();
            match record {
                Record { hydration: Some(_), .. } => Some(format!("volume {number} is still being filled")),
                Record { held: false, .. } => Some(format!("volume {number} is not held by this host")),
                _ if record.epoch() != carried.from_epoch => {
                    Some(format!("volume {number} is held at epoch {}, not {}", record.epoch(), carried.from_epoch))
                }
                _ if busy => Some(format!("volume {number} is busy")),
                _ => None,
            }
        })
    }

    /// How far the copying before a handoff has come.
    pub(super) fn precopy_told(&mut self, machine: &MachineId, fact: PrecopyFact, out: &mut Output) {
        let Some(slot) = self.slots.get_mut(machine) else { return };
        if slot.precopy.replace(fact.clone()) != Some(fact) {
            self.show(machine, false, out);
        }
    }

    /// What can be told again at any time is not journaled.
    pub(super) fn hydration_told(
        &mut self,
        volume: &MachineId,
        fact: HydrationFact,
        allocated_bytes: u64,
        out: &mut Output,
    ) {
        let Some(slot) = self.slots.get_mut(volume) else { return };
        // Said once, by the start of the process.
        let at_running = slot.hydration.as_ref().and_then(|told| told.map_permille_at_running);
        slot.hydration =
            Some(HydrationFact { map_permille_at_running: at_running.or(fact.map_permille_at_running), ..fact });
        slot.allocated_bytes = allocated_bytes;
        self.show(volume, false, out);
    }
}

fn volume_number(volume: &str) -> Option<MachineId> {
    godwit_api::VolumeId::parse(volume).ok().map(|id| id.carrier())
}
