//! The host's one decider. `apply` takes what happened and says what follows, for all Machines of the host: journal
//! writes, effects to begin, answers, what door and fleet are to see. It is synchronous, waits for nothing and touches
//! nothing outside itself; `owner` commits what it wrote before anything else of it happens.
//!
//! Each Machine's own life is decided in `godwit_machine`; what concerns several (capacity, placements, sequence of
//! facts) is decided here. It must not know organs, sockets or the disk.

mod load;
mod moves;
mod past;
mod publish;
mod reach;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use godwit_api::config::Check;
use godwit_api::door::{DoorEdge, DoorMachine};
use godwit_api::event::MachineEvent;
use godwit_api::fact::{MachineFact, Measured, Resources};
use godwit_api::ids::{InstanceId, MachineId};
use godwit_api::machine::CheckStatus;
use godwit_api::migration::PrecopyFact;
use godwit_api::row::Placement;
use godwit_api::ticket::{SignedTicket, Ticket};
use godwit_api::volume::HydrationFact;
use godwit_machine::record::Record;
use godwit_machine::{
    Answer, Ask, AskId, Context, Event, JobKind, Life, Outcome, Refusal, Source, Step, Sync, Until, What, capacity,
    converge,
};
use godwit_store::journal::{Batch, Durability, JobRow, Write};

use crate::facts::Fact;

pub use load::{Resumed, Settings};
pub use reach::Told;

/// Machines on one host, running or not.
pub const MAX_MACHINES: usize = 4096;
/// Sequence numbers of facts are set aside in the journal so many at a time.
const SEQ_BLOCK: u64 = 10_000;
/// A change of what is in use is told after so long, together with those that come right after it.
const HOST_FACT_PAUSE_MS: u64 = 100;
/// Nobody waits for the answer to what a pull asks.
const NOBODY: AskId = AskId(0);

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    Ask {
        machine: MachineId,
        ask: Ask,
    },
    /// Of one Machine: an outcome, an exit, what was found.
    Machine {
        machine: MachineId,
        event: Event,
    },
    /// All rows for this host, at one revision of one generation of the store, and the moves that it is to lead.
    Pulled {
        generation: String,
        revision: u64,
        rows: BTreeMap<MachineId, Placement>,
        /// Verified.
        tickets: Vec<(SignedTicket, Ticket)>,
    },
    /// How far a volume has been filled.
    Hydration {
        volume: MachineId,
        fact: HydrationFact,
        allocated_bytes: u64,
    },
    /// How far the copying before a Machine's handoff has come.
    Precopy {
        machine: MachineId,
        fact: PrecopyFact,
    },
    /// Facts that have arrived.
    Published(Vec<(String, u64)>),
    Edges(Vec<DoorEdge>),
    Check {
        machine: MachineId,
        run: String,
        status: CheckStatus,
    },
    /// How a run's process listens.
    Reach {
        machine: MachineId,
        run: String,
        told: Told,
    },
    /// What is in use of this machine.
    Measured(Measured),
    /// Time has passed.
    Tick,
}

/// What follows, in this order, once the batch is committed.
#[derive(Debug, Default)]
pub struct Output {
    pub batch: Batch,
    /// Steps whose outcome the batch holds.
    pub outcomes: Vec<(JobKind, Step)>,
    /// What door, host API and fleet see from now on.
    pub seen: Vec<Seen>,
    pub edges: Option<Vec<DoorEdge>>,
    pub facts: Vec<Fact>,
    pub commands: Vec<Command>,
    pub answers: Vec<(AskId, Answer)>,
    /// What a pull found that no row asks for.
    pub unplaced: Option<Vec<MachineId>>,
}

/// One Machine as others see it.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Machine {
        door: Box<DoorMachine>,
        fact: Box<MachineFact>,
    },
    /// Destroyed or refused: the door forgets it, the fact stays until the row is gone.
    Past {
        fact: Box<MachineFact>,
    },
    Gone {
        machine: MachineId,
    },
}

/// Something to begin.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Perform(Box<Work>),
    /// Cut off what is being performed for this Machine.
    Interrupt {
        machine: MachineId,
    },
    /// Wait for the end of the run, and tell it.
    Watch {
        machine: MachineId,
        run: String,
    },
    /// Look after the run's health and sockets, instead of what was looked after before. `opened`: ports that were open
    /// before, in this version.
    Check {
        machine: MachineId,
        watched: Box<Watched>,
        opened: BTreeSet<u16>,
    },
    EndChecks {
        machine: MachineId,
    },
    /// All images but these may be collected.
    CollectImages {
        in_use: BTreeSet<String>,
    },
}

/// What this host holds of a Machine or a volume, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Holding {
    pub record: Record,
    /// A job is being carried out.
    pub busy: bool,
    /// Of the volumes that it mounts, in the order of its mounts, as far as they are here.
    pub volumes: Vec<Record>,
}

/// A step to carry out, and all that it may know.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    pub machine: MachineId,
    pub job: godwit_machine::Job,
    pub record: Record,
    /// Of the volumes that it mounts, in the order of its mounts, as far as they are here.
    pub volumes: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct NamedCheck {
    pub name: String,
    pub check: Check,
}

/// What is looked after of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    pub run: String,
    pub private_ip: std::net::Ipv6Addr,
    pub checks: Vec<NamedCheck>,
    /// TCP ports that services forward to.
    pub ports: BTreeSet<u16>,
}

struct Slot {
    life: Life,
    /// Newest first.
    events: VecDeque<MachineEvent>,
    checks: BTreeMap<String, CheckStatus>,
    /// The run that is being looked after, and by what.
    checked: Option<Watched>,
    reach: reach::Reach,
    /// Of a volume: what was last told of its filling, and of the disk that it takes.
    hydration: Option<HydrationFact>,
    /// Of the last move hither.
    precopy: Option<PrecopyFact>,
    allocated_bytes: u64,
}

impl Slot {
    fn new(life: Life) -> Self {
        Self {
            life,
            events: VecDeque::new(),
            checks: BTreeMap::new(),
            checked: None,
            reach: reach::Reach::default(),
            hydration: None,
            precopy: None,
            allocated_bytes: 0,
        }
    }
}

/// See the module.
pub struct Engine {
    settings: Settings,
    slots: BTreeMap<MachineId, Slot>,
    /// What is no more in `slots`.
    past: past::Past,
    /// The last sequence number given out, and the last that the journal has set aside.
    seq: u64,
    seq_reserved: u64,
    applied_revision: u64,
    generation: String,
    /// Until all Machines are found again: the host was started anew.
    rebooted: bool,
    adopting: usize,
    host_fact_due_ms: u64,
    /// As last told.
    measured: Option<Measured>,
    told_used: Resources,
    collect_due_ms: u64,
    draw: Box<dyn FnMut() -> u128 + Send>,
}

impl Engine {
    /// When `Input::Tick` will do something.
    pub fn due_ms(&self) -> u64 {
        let lives = self.slots.values().filter_map(|slot| slot.life.due_ms());
        lives.fold(self.host_fact_due_ms.min(self.collect_due_ms), u64::min)
    }

    pub fn apply(&mut self, input: Input, now_ms: u64) -> Output {
        let mut out = Output::default();
        match input {
            Input::Ask { machine, ask } => self.ask(machine, ask, now_ms, &mut out),
            Input::Machine { machine, event } => self.machine(machine, event, now_ms, &mut out),
            Input::Pulled { generation, revision, rows, tickets } => {
                self.pulled(generation, revision, rows, tickets, now_ms, &mut out)
            }
            Input::Precopy { machine, fact } => self.precopy_told(&machine, fact, &mut out),
            Input::Hydration { volume, fact, allocated_bytes } => {
                self.hydration_told(&volume, fact, allocated_bytes, &mut out)
            }
            Input::Measured(measured) => self.measured = Some(measured),
            Input::Published(facts) => {
                for (key, seq) in facts {
                    out.batch.push(Write::Published { key, seq });
                }
            }
            Input::Edges(edges) => {
                // Edges are plain data; kept so that the door knows its callers also while the store is away.
                let value = serde_json::to_string(&edges).unwrap_or_default();
                out.batch.push(Write::Meta { key: load::EDGES.into(), value });
                out.edges = Some(edges);
            }
            Input::Check { machine, run, status } => self.checked(&machine, &run, status, &mut out),
            Input::Reach { machine, run, told } => self.reach_told(&machine, &run, told, now_ms, &mut out),
            Input::Tick => self.tick(now_ms, &mut out),
        }
        let used = self.used();
        if used != self.told_used {
            self.told_used = used;
            self.host_fact_due_ms = self.host_fact_due_ms.min(now_ms.saturating_add(HOST_FACT_PAUSE_MS));
        }
        self.save_sequence(&mut out);
        out
    }

    fn ask(&mut self, machine: MachineId, ask: Ask, now_ms: u64, out: &mut Output) {
        if !self.slots.contains_key(&machine) {
            let placement = match &ask.what {
                What::Place(placement) if self.past.outranks(placement) => {
                    tracing::warn!(%machine, epoch = %placement.epoch, "an old placement of what was here once is ignored");
                    self.tell_gone(&machine, out);
                    return out.answers.push((ask.id, Answer::Refused(Refusal::Stale)));
                }
                // Also a move's ticket that stands for a moment longer than what it brought here.
                What::MoveIn { ticket, .. } if self.past.outranks(&ticket.lead) => {
                    return out.answers.push((ask.id, Answer::Refused(Refusal::Stale)));
                }
                What::Place(placement) => (**placement).clone(),
                What::MoveIn { ticket, .. } => ticket.lead.clone(),
                _ => return out.answers.push((ask.id, Answer::Refused(Refusal::Gone))),
            };
            if self.slots.len() >= MAX_MACHINES {
                return out.answers.push((ask.id, Answer::Refused(Refusal::Busy)));
            }
            let life = Life::unknown(placement, now_ms);
            self.slots.insert(machine.clone(), Slot::new(life));
        }
        self.machine(machine, Event::Ask(ask), now_ms, out);
    }

    fn machine(&mut self, machine: MachineId, event: Event, now_ms: u64, out: &mut Output) {
        let adopted = matches!(event, Event::Adopted { .. });
        // What concerns a Machine that was forgotten meanwhile is over.
        if let Some(outcome) = self.note_outcome(&machine, &event, now_ms) {
            let (kind, step, write) = outcome;
            out.outcomes.push((kind, step));
            out.batch.push(write);
        }
        let free = self.free_beside(&machine);
        let missing = self.missing(&machine, &event);
        let Some(slot) = self.slots.get_mut(&machine) else { return };
        let mut cx = Context { now_ms, free, missing, draw: &mut self.draw };
        let effects = slot.life.apply(event, &mut cx);
        self.follow(&machine, effects, now_ms, out);
        if adopted {
            self.adopting = self.adopting.saturating_sub(1);
            self.finish_adoption(out);
        }
    }

    /// The row that keeps how a step ended, if it is the step that the Machine's job stands at.
    fn note_outcome(&self, machine: &MachineId, event: &Event, now_ms: u64) -> Option<(JobKind, Step, Write)> {
        let Event::Outcome { job: id, step, outcome } = event else { return None };
        let job = self.slots.get(machine)?.life.job.as_ref().filter(|job| job.id == *id && job.step == *step)?;
        let outcome = match outcome {
            Outcome::Done { .. } | Outcome::Granted { .. } => "done".to_owned(),
            Outcome::Retry { reason } => format!("retry: {reason}"),
            Outcome::Wait { reason } => format!("wait: {reason}"),
            Outcome::Abort { reason, .. } => format!("abort: {reason}"),
        };
        let write = Write::Outcome {
            machine: machine.as_str().to_owned(),
            job: *id,
            kind: job.kind.as_str().to_owned(),
            step: step.as_str().to_owned(),
            outcome,
            at_ms: now_ms,
        };
        Some((job.kind, *step, write))
    }

    /// Turns what a Machine's life wants into writes and commands.
    fn follow(&mut self, machine: &MachineId, effects: godwit_machine::Effects, now_ms: u64, out: &mut Output) {
        let Some(slot) = self.slots.get_mut(machine) else { return };
        for note in effects.notes {
            let event = MachineEvent {
                id: InstanceId::from_parts(now_ms, (self.draw)()).as_str().to_owned(),
                kind: note.kind.to_owned(),
                status: note.status.as_str().to_owned(),
                source: note.source.as_str().to_owned(),
                timestamp: now_ms,
                request: note.detail,
            };
            out.batch.push(Write::Event { machine: machine.as_str().to_owned(), row: rows::json(&event) });
            slot.events.push_front(event);
            slot.events.truncate(godwit_api::fact::EVENTS_PUBLISHED);
        }
        if let Some(sync) = effects.save {
            save(machine, slot, now_ms, out);
            out.batch.require(match sync {
                Sync::Process => Durability::Process,
                Sync::Disk => Durability::Disk,
            });
        }
        if effects.interrupt {
            out.commands.push(Command::Interrupt { machine: machine.clone() });
        }
        let run = slot.life.record.run.clone();
        // What is carried out next must find the volumes as they are after this.
        for (volume, passage) in effects.passages {
            self.pass(volume, passage, now_ms, out);
        }
        if effects.perform
            && let Some(work) = self.work(machine)
        {
            out.commands.push(Command::Perform(Box::new(work)));
        }
        if let (true, Some(run)) = (effects.watch, run) {
            out.commands.push(Command::Watch { machine: machine.clone(), run });
        }
        out.answers.extend(effects.answers);
        self.look_after(machine, out);
        let closes = self.slots.get(machine).is_some_and(|slot| slot.life.closing().is_some());
        if effects.changed {
            self.show(machine, true, out);
        } else if effects.perform && closes {
            self.show(machine, false, out);
        }
    }

    /// Resources that other Machines have not taken.
    fn free_beside(&self, machine: &MachineId) -> Resources {
        let others = self.slots.iter().filter(|(id, _)| *id != machine);
        capacity::left(self.settings.capacity, capacity::sum(others.map(|(_, slot)| slot.life.record.reserved)))
    }

    fn used(&self) -> Resources {
        capacity::sum(self.slots.values().map(|slot| slot.life.record.reserved))
    }

    fn pulled(
        &mut self,
        generation: String,
        revision: u64,
        rows: BTreeMap<MachineId, Placement>,
        tickets: Vec<(SignedTicket, Ticket)>,
        now_ms: u64,
        out: &mut Output,
    ) {
        if self.adopting > 0 {
            // The next pull comes soon; what is held is not known yet.
            return;
        }
        let another_store = generation != self.generation;
        if another_store {
            out.batch.push(Write::Meta { key: load::GENERATION.into(), value: generation.clone() });
            self.generation = generation;
        }
        let records = self.slots.iter().map(|(id, slot)| (id.clone(), slot.life.record.clone())).collect();
        let busy = self.slots.iter().filter(|(_, slot)| !slot.life.is_quiet()).map(|(id, _)| id.clone()).collect();
        let plan = converge::plan(&rows, &records, &busy);
        for placement in plan.place {
            let machine = placement.machine.clone();
            let what = What::Place(Box::new(placement));
            self.ask(machine, Ask { id: NOBODY, what, source: Source::User, until: Until::Accepted }, now_ms, out);
        }
        self.arrivals(tickets, now_ms, out);
        for machine in plan.forget {
            self.forget(machine, out);
        }
        if another_store {
            // A restored store is seeded from what its hosts know.
            self.show_all(out);
        }
        if another_store || revision > self.applied_revision {
            self.applied_revision = revision;
            out.batch.push(Write::Meta { key: load::APPLIED_REVISION.into(), value: revision.to_string() });
            self.host_fact_due_ms = now_ms;
        }
        out.unplaced = Some(plan.unplaced);
    }

    /// Nothing is left of it here and no row names it: its fact is taken back.
    fn forget(&mut self, machine: MachineId, out: &mut Output) {
        let Some(slot) = self.slots.remove(&machine) else { return };
        let record = &slot.life.record;
        // What was only ever refused was never here: it may be asked again.
        if record.is_destroyed() || record.is_handed_off() {
            let (key, value) = self.past.remember(machine.clone(), record.epoch());
            out.batch.push(Write::Meta { key, value });
        }
        out.batch.push(Write::ForgetMachine { id: machine.as_str().to_owned() });
        out.batch.require(Durability::Disk);
        self.tell_gone(&machine, out);
        out.seen.push(Seen::Gone { machine });
    }

    /// Whatever was told of it before is taken back.
    fn tell_gone(&mut self, machine: &MachineId, out: &mut Output) {
        let key = godwit_api::keys::machine_fact(&self.settings.host, machine);
        let seq = self.next_seq();
        out.batch.push(Write::Fact { key: key.clone(), seq, value: None });
        out.facts.push(Fact { key, seq, value: None });
    }

    fn tick(&mut self, now_ms: u64, out: &mut Output) {
        let due = |slot: &Slot| slot.life.due_ms().is_some_and(|due| due <= now_ms);
        let machines: Vec<MachineId> =
            self.slots.iter().filter(|(_, slot)| due(slot)).map(|(id, _)| id.clone()).collect();
        for machine in machines {
            self.machine(machine, Event::Tick, now_ms, out);
        }
        if now_ms >= self.host_fact_due_ms {
            self.host_fact_due_ms = now_ms.saturating_add(self.settings.host_fact_interval_ms);
            self.tell_host(now_ms, out);
        }
        if now_ms >= self.collect_due_ms && self.adopting == 0 {
            self.collect_due_ms = now_ms.saturating_add(self.settings.collect_interval_ms);
            out.commands.push(Command::CollectImages { in_use: self.images_in_use() });
        }
    }

    fn images_in_use(&self) -> BTreeSet<String> {
        let digest = |placement: &Placement| placement.image_digest.clone();
        let held = self.slots.values().filter(|slot| !slot.life.record.is_destroyed());
        let held = held.map(|slot| digest(&slot.life.record.placement));
        let wanted = self.slots.values().filter_map(|slot| slot.life.job.as_ref()?.placement.as_ref().map(digest));
        held.chain(wanted).collect()
    }

    fn finish_adoption(&mut self, out: &mut Output) {
        if self.adopting == 0 && self.rebooted {
            self.rebooted = false;
            let value = self.settings.boot_id.clone();
            out.batch.push(Write::Meta { key: load::BOOT_ID.into(), value });
            out.batch.require(Durability::Disk);
        }
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Also facts that are not journaled take numbers: none is ever given out twice, over all restarts.
    fn save_sequence(&mut self, out: &mut Output) {
        if self.seq > self.seq_reserved {
            self.seq_reserved = self.seq + SEQ_BLOCK;
            let value = self.seq_reserved.to_string();
            out.batch.push(Write::Meta { key: load::SEQ_RESERVED.into(), value });
        }
    }
}

fn save(machine: &MachineId, slot: &Slot, now_ms: u64, out: &mut Output) {
    let id = machine.as_str().to_owned();
    out.batch.push(Write::Machine { id: id.clone(), row: rows::json(&slot.life.record) });
    out.batch.push(match &slot.life.job {
        None => Write::EndJob { machine: id },
        Some(job) => Write::Job(JobRow {
            machine: id,
            id: job.id,
            kind: job.kind.as_str().to_owned(),
            step: job.step.as_str().to_owned(),
            attempt: job.attempt,
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            row: rows::json(job),
            updated_at_ms: now_ms,
        }),
    });
}
