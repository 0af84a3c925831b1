//! From the journal's rows to an engine, after a start of the agent. It must not know how the rows were read.

use std::collections::VecDeque;

use serde::de::DeserializeOwned;

use godwit_api::door::DoorEdge;
use godwit_api::event::MachineEvent;
use godwit_api::fact::{EVENTS_PUBLISHED, Resources};
use godwit_api::ids::{HostId, MachineId};
use godwit_machine::{Job, Life, Record};
use godwit_store::journal::Loaded;

use super::past::Past;
use super::{Engine, Slot};
use crate::error::Error;
use crate::facts::Fact;

pub(super) const EDGES: &str = "edges";
pub(super) const BOOT_ID: &str = "boot_id";
pub(super) const GENERATION: &str = "store_generation";
pub(super) const APPLIED_REVISION: &str = "applied_revision";
pub(super) const SEQ_RESERVED: &str = "seq_reserved";

/// What an engine is told about its host.
#[derive(Debug, Clone)]
pub struct Settings {
    pub host: HostId,
    pub incarnation: String,
    pub capacity: Resources,
    /// Of this start of the host.
    pub boot_id: String,
    pub drivers: Vec<String>,
    pub host_fact_interval_ms: u64,
    pub collect_interval_ms: u64,
    pub drain_timeout_ms: u64,
}

fn read<T: DeserializeOwned>(what: impl FnOnce() -> String, row: &str) -> Result<T, Error> {
    serde_json::from_str(row).map_err(|source| Error::Row { what: what(), source })
}

/// What a start finds besides the engine.
pub struct Resumed {
    pub engine: Engine,
    /// Of every one of them it must be found out what became of it: `Event::Adopted`.
    pub machines: Vec<MachineId>,
    pub edges: Vec<DoorEdge>,
    /// Facts that have not arrived yet.
    pub facts: Vec<Fact>,
}

impl Engine {
    /// `draw` gives fresh bits.
    pub fn resume(
        settings: Settings,
        loaded: Loaded,
        draw: Box<dyn FnMut() -> u128 + Send>,
        now_ms: u64,
    ) -> Result<Resumed, Error> {
        let meta = |key: &str| loaded.meta.get(key).cloned();
        let number = |key: &str| meta(key).and_then(|text| text.parse().ok()).unwrap_or(0u64);
        // Never below the time: a journal that was lost, or put back from an older copy, must not tell what control takes
        // for old (`FactStamp`).
        let seq = number(SEQ_RESERVED).max(now_ms);
        let mut engine = Self {
            slots: Default::default(),
            past: Past::load(&loaded.meta)
                .map_err(|source| Error::Row { what: "what was here once".into(), source })?,
            seq,
            seq_reserved: seq,
            applied_revision: number(APPLIED_REVISION),
            generation: meta(GENERATION).unwrap_or_default(),
            rebooted: meta(BOOT_ID).as_ref() != Some(&settings.boot_id),
            adopting: 0,
            host_fact_due_ms: now_ms,
            measured: None,
            told_used: Resources::default(),
            collect_due_ms: now_ms.saturating_add(settings.collect_interval_ms),
            draw,
            settings,
        };
        for machine in &loaded.machines {
            let id = MachineId::parse(&machine.id).map_err(|error| Error::Config(error.to_string()))?;
            let record: Record = read(|| format!("Machine {id}"), &machine.row)?;
            let job = loaded.jobs.iter().find(|job| job.machine == machine.id);
            let job: Option<Job> = job.map(|job| read(|| format!("the job of Machine {id}"), &job.row)).transpose()?;
            let events = machine.events.iter().rev().take(EVENTS_PUBLISHED);
            let events = events.map(|row| read(|| format!("an event of Machine {id}"), row));
            let events: VecDeque<MachineEvent> = events.collect::<Result<_, _>>()?;
            engine.slots.insert(id, Slot { events, ..Slot::new(Life::resumed(record, job)) });
        }
        engine.adopting = engine.slots.len();
        let edges = meta(EDGES).map(|row| read(|| "the edges".into(), &row)).transpose()?.unwrap_or_default();
        let facts = loaded.outbox.into_iter();
        let facts = facts.map(|row| Fact { key: row.key, seq: row.seq, value: row.value }).collect();
        Ok(Resumed { machines: engine.slots.keys().cloned().collect(), engine, edges, facts })
    }

    /// Whether the host was started anew: to be told with what is found of each Machine.
    pub fn is_rebooted(&self) -> bool {
        self.rebooted
    }

    /// A first start has nothing to find again, but its boot is known from then on.
    pub fn start(&mut self, out: &mut super::Output) {
        self.finish_adoption(out);
        self.show_all(out);
    }
}
