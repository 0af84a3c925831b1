//! What is seen of a run's sockets: kept with its Machine, told the fleet, and written into its history once. It must not
//! judge them.

use std::collections::BTreeSet;

use godwit_api::event::{EventDetail, MachineEvent};
use godwit_api::ids::{InstanceId, MachineId};
use godwit_api::route::ClosedPort;
use godwit_machine::Source;
use godwit_store::journal::Write;

use super::{Engine, Output, Slot, rows};

/// What is told of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Faults that have stood for a while.
    pub closed: Vec<ClosedPort>,
    /// Ports that were open at some time in this version.
    pub opened: BTreeSet<u16>,
}

/// What a host knows of how a Machine listens.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Faults of the present run.
    pub closed: Vec<ClosedPort>,
    /// Ports that were open in some run of this version.
    version: Option<InstanceId>,
    opened: BTreeSet<u16>,
}

impl Reach {
    /// Open before, in this version.
    pub fn opened(&self, version: &InstanceId) -> BTreeSet<u16> {
        if self.version.as_ref() == Some(version) { self.opened.clone() } else { BTreeSet::new() }
    }
}

impl Engine {
    pub(super) fn reach_told(&mut self, machine: &MachineId, run: &str, told: Told, now_ms: u64, out: &mut Output) {
        let Some(slot) = self.slots.get_mut(machine) else { return };
        if slot.checked.as_ref().is_none_or(|watched| watched.run != run) {
            return;
        }
        slot.reach.version = Some(slot.life.record.placement.instance_id.clone());
        slot.reach.opened = told.opened;
        if slot.reach.closed == told.closed {
            return;
        }
        let before = std::mem::replace(&mut slot.reach.closed, told.closed.clone());
        for fault in told.closed.iter().filter(|fault| before.iter().all(|known| known.why != fault.why)) {
            let id = InstanceId::from_parts(now_ms, (self.draw)());
            unreachable(slot, id, &fault.why, now_ms, out);
        }
        self.show(machine, true, out);
    }
}

/// Writes a fault into the Machine's history.
fn unreachable(slot: &mut Slot, id: InstanceId, fault: &str, now_ms: u64, out: &mut Output) {
    let event = MachineEvent {
        id: id.as_str().to_owned(),
        kind: "unreachable".into(),
        status: slot.life.record.state.as_str().to_owned(),
        source: Source::Host.as_str().to_owned(),
        timestamp: now_ms,
        request: Some(EventDetail { reason: Some(fault.to_owned()), ..EventDetail::default() }),
    };
    let machine = slot.life.record.placement.machine.as_str().to_owned();
    out.batch.push(Write::Event { machine, row: rows::json(&event) });
    slot.events.push_front(event);
    slot.events.truncate(godwit_api::fact::EVENTS_PUBLISHED);
}
