//! The platform's own remarks in a Machine's log: started, exited with code 3, killed for want of memory, stopped idle.
//! They are its events, in words, at their place among the lines that it wrote. It must not read files.

use std::collections::BTreeSet;
use std::time::Duration;

use godwit_api::event::MachineEvent;
use godwit_api::host::{LogLine, PLATFORM_STREAM};
use godwit_api::ids::MachineId;
use godwit_base::clock;

use crate::view::View;

/// One look at what a view tells; the next follows at once.
const LOOK: Duration = Duration::from_secs(3600);

/// What of a Machine's events has been told to one reader.
pub struct Remarks {
    view: View,
    machine: MachineId,
    told: BTreeSet<String>,
}

impl Remarks {
    pub fn of(view: View, machine: MachineId) -> Self {
        Self { view, machine, told: BTreeSet::new() }
    }

    /// What has not been told yet, oldest first.
    pub fn new_ones(&mut self) -> Vec<MachineEvent> {
        let events = self.view.get(&self.machine).map(|fact| fact.events).unwrap_or_default();
        let new: Vec<_> = events.iter().rev().filter(|event| !self.told.contains(&event.id)).cloned().collect();
        // Bounded by what a fact tells: what it has forgotten does not come again.
        self.told = events.into_iter().map(|event| event.id).collect();
        new
    }

    /// Waits until there are some.
    pub async fn more(&mut self) -> Vec<MachineEvent> {
        loop {
            let told = self.told.clone();
            let has_new = |events: &[MachineEvent]| events.iter().any(|event| !told.contains(&event.id)).then_some(());
            let seen = self.view.until(&self.machine, LOOK, |fact| has_new(&fact?.events));
            if seen.await.is_some() {
                return self.new_ones();
            }
        }
    }
}

/// As a line of the log.
pub fn line(event: &MachineEvent) -> LogLine {
    LogLine {
        timestamp: clock::rfc3339(event.timestamp),
        stream: PLATFORM_STREAM.into(),
        message: event.remark(),
        partial: false,
    }
}
