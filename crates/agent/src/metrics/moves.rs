//! What a host counts of moves, from the facts that it publishes: ends, the time that each part took, the pause of what
//! moved here, bytes, and blocks that did not fit. Series of single volumes live only while they are being filled. It
//! must not decide anything by it.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use godwit_api::fact::MachineFact;
use godwit_api::ids::{MachineId, MigrationId};
use godwit_api::migration::{MigrationFact, MovePart, MoveRole};
use godwit_api::volume::HydrationFact;
use godwit_base::metrics::Metrics;

use crate::engine::Seen;

const BLOCK_BYTES: u64 = 64 << 10;
/// Seconds: a pause of some milliseconds, and a filling of hours.
const BUCKETS: [f64; 16] =
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    role: &'static str,
    outcome: &'static str,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    role: &'static str,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabel {
    volume: String,
}

type Phases = Family<PhaseLabel, Histogram, fn() -> Histogram>;

/// Cheap to clone.
#[derive(Clone)]
pub struct MoveMeters {
    ends: Family<EndLabel, Counter>,
    phases: Phases,
    downtime: Histogram,
    hydrated_bytes: Counter,
    wire_bytes: Counter,
    demand_fetches: Counter,
    mismatches: Counter,
    remaining_bytes: Family<VolumeLabel, Gauge<u64, AtomicU64>>,
    last: Arc<Mutex<Last>>,
}

/// What was counted already; one entry a Machine or volume of the host.
#[derive(Default)]
struct Last {
    parts: HashMap<MachineId, (MigrationId, MovePart)>,
    filling: HashMap<MachineId, HydrationFact>,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for MoveMeters {
    fn default() -> Self {
        Self {
            ends: Family::default(),
            phases: Family::new_with_constructor(histogram as fn() -> Histogram),
            downtime: histogram(),
            hydrated_bytes: Counter::default(),
            wire_bytes: Counter::default(),
            demand_fetches: Counter::default(),
            mismatches: Counter::default(),
            remaining_bytes: Family::default(),
            last: Arc::default(),
        }
    }
}

impl MoveMeters {
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            let mut counter =
                |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
            counter("migration_hydrated_bytes", "Bytes that volumes took from their sources", &this.hydrated_bytes);
            counter("migration_wire_bytes", "Bytes that crossed the wire for them", &this.wire_bytes);
            counter("migration_demand_fetches", "Blocks that a guest waited for", &this.demand_fetches);
            let help = "Blocks that differed from the source's hash and were fetched again";
            counter("migration_checksum_mismatches", help, &this.mismatches);
            registry.register("migrations", "Moves that ended at this host, by its part in them", this.ends.clone());
            let help = "How long each part of a move took";
            registry.register("migration_phase_duration_seconds", help, this.phases.clone());
            let help = "From the closed door at the source to the running process here";
            registry.register("migration_downtime_seconds", help, this.downtime.clone());
            let help = "Bytes that a volume still needs from its source";
            registry.register("migration_remaining_bytes", help, this.remaining_bytes.clone());
        });
        this
    }

    pub fn see(&self, seen: &Seen) {
        match seen {
            Seen::Machine { fact, .. } | Seen::Past { fact } => {
                if let Some(migration) = &fact.migration {
                    self.part(fact, migration);
                }
                self.filling(fact);
            }
            Seen::Gone { machine } => {
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                last.parts.remove(machine);
                self.ended(&mut last, machine);
            }
        }
    }

    fn part(&self, fact: &MachineFact, migration: &MigrationFact) {
        let now = (migration.id.clone(), migration.part);
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let before = last.parts.insert(fact.machine.clone(), now.clone());
            // What an agent finds at its start was counted by the one before it.
            if before.as_ref() == Some(&now) || (before.is_none() && migration.part != MovePart::Preparing) {
                return;
            }
        }
        let role = match migration.role {
            MoveRole::Source => "source",
            MoveRole::Target => "target",
        };
        let at = |name: &str| migration.at_ms.get(name).copied();
        let took = |phase: &'static str, from: &str, to: &str| {
            if let (Some(from), Some(to)) = (at(from), at(to)) {
                let seconds = to.saturating_sub(from) as f64 / 1e3;
                self.phases.get_or_create(&PhaseLabel { role, phase }).observe(seconds);
            }
        };
        match (migration.role, migration.part) {
            (MoveRole::Source, MovePart::HandedOff) => took("closing", "closing", "handed_off"),
            (MoveRole::Target, MovePart::Asked) => took("preparing", "preparing", "asked"),
            (MoveRole::Target, MovePart::HandedOff) => took("asking", "asked", "handed_off"),
            (MoveRole::Target, MovePart::Attached) => took("attaching", "handed_off", "attached"),
            (MoveRole::Target, MovePart::Done) => {
                took("starting", "attached", "running");
                if let (Some(closed), Some(running)) = (at("closing"), at("running")) {
                    self.downtime.observe(running.saturating_sub(closed) as f64 / 1e3);
                }
            }
            _ => {}
        }
        let outcome = match (migration.role, migration.part) {
            (MoveRole::Source, MovePart::HandedOff) => "handed_off",
            (MoveRole::Target, MovePart::Done) => "done",
            (_, MovePart::Refused) => "refused",
            (_, MovePart::TakenBack) => "taken_back",
            _ => return,
        };
        let kind = if fact.volume.is_some() { "volume" } else { "machine" };
        self.ends.get_or_create(&EndLabel { role, outcome, kind }).inc();
    }

    fn filling(&self, fact: &MachineFact) {
        let Some(volume) = &fact.volume else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Told until its source is released, and once more after.
        let Some(told) = volume.hydration.as_ref().or(volume.hydrated.as_ref()) else {
            return self.ended(&mut last, &fact.machine);
        };
        if volume.hydration.is_none() && !last.filling.contains_key(&fact.machine) {
            return;
        }
        let before = last.filling.get(&fact.machine).cloned().unwrap_or_default();
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        self.hydrated_bytes.inc_by(grown(told.hydrated_bytes, before.hydrated_bytes));
        self.wire_bytes.inc_by(grown(told.wire_bytes, before.wire_bytes));
        self.demand_fetches.inc_by(grown(told.demand_fetches, before.demand_fetches));
        self.mismatches.inc_by(grown(told.mismatches, before.mismatches));
        if volume.hydration.is_none() {
            return self.ended(&mut last, &fact.machine);
        }
        let remaining = told.total_blocks.saturating_sub(told.done_blocks) * BLOCK_BYTES;
        let label = VolumeLabel { volume: volume.id.as_str().to_owned() };
        self.remaining_bytes.get_or_create(&label).set(remaining);
        last.filling.insert(fact.machine.clone(), told.clone());
    }

    fn ended(&self, last: &mut Last, machine: &MachineId) {
        if last.filling.remove(machine).is_some() {
            self.remaining_bytes.remove(&VolumeLabel { volume: format!("vol_{machine}") });
        }
    }
}
