//! One Machine's life on its host: `(life, event, now) -> (life, effects)`. At most one job at a time; what is asked
//! meanwhile joins it, waits behind it (bounded) or cuts it short.
//!
//! ```text
//!   created --> starting --> started --stop--> stopping --> stopped --start--> …
//!      |                  |            |  exit, policy: again
//!      +-- no launch --> stopped       |
//!                         |            +-------------> restarting --due--> starting
//!                         +-- fails --> stopped | failed | restarting
//!   any --destroy--> destroying --> destroyed        any held --new version--> replacing --> started | stopped
//! ```
//! It must not know time or chance (both come with the event), other Machines (what is free comes too), or how a step
//! is carried out.

mod ask;
mod ending;
#[cfg(test)]
mod fail_tests;
#[cfg(test)]
mod move_tests;
mod moves;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use godwit_api::event::{EventDetail, ExitEvent};
use godwit_api::fact::Resources;
use godwit_api::ids::InstanceId;
use godwit_api::machine::MachineState;
use godwit_api::row::Placement;
use godwit_api::ticket::{SignedTicket, Ticket};

use crate::job::{JobKind, Outcome, Step, StopMode, next};
use crate::record::{Job, Phase, Record, Source};

pub use moves::{Passage, Passages};

/// Requests that wait behind a job; more are answered `Busy`.
pub const MAX_WAITING: usize = 8;
/// Callers that wait for one job's end; more are answered `Busy`.
pub const MAX_WAITERS: usize = 256;

/// Names a request for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// When a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// As soon as the journal holds it.
    Accepted,
    /// When the job has ended.
    Ended,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Place(Box<Placement>),
    Start,
    Stop {
        signal: Option<String>,
        timeout_ms: Option<u64>,
    },
    Restart {
        signal: Option<String>,
        timeout_ms: Option<u64>,
        force: bool,
    },
    /// By its own wish (`auto_destroy`), without a tombstone.
    Destroy,
    /// This host is the target of the move. The ticket is verified, here and in the moves below.
    MoveIn {
        signed: SignedTicket,
        ticket: Box<Ticket>,
    },
    /// The target asks whether it could be handed off now, and may read its volumes before. It changes nothing.
    PrepareMove {
        ticket: Box<Ticket>,
    },
    /// The target asks for it. Answered when accepted; the record tells how it goes on.
    MoveOut {
        signed: SignedTicket,
        ticket: Box<Ticket>,
        client_certificate: String,
    },
    CancelMove {
        ticket: Box<Ticket>,
    },
    /// The target gives it back.
    TakeBack {
        ticket: Box<Ticket>,
    },
    /// Of a volume: the target has all of it.
    Release {
        ticket: Box<Ticket>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub id: AskId,
    pub what: What,
    pub source: Source,
    pub until: Until,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Journaled, or so already. With the state before.
    Accepted {
        previous: MachineState,
    },
    /// The job ended as it should.
    Ended {
        previous: MachineState,
    },
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No memory or processor is free to start it.
    Full(String),
    /// This host will not hold the placement, for good.
    Placement(String),
    /// A higher epoch is held.
    Stale,
    /// Destroyed, or about to be, or never held.
    Gone,
    /// Too much waits already, or it is not in a state for this.
    Busy,
    /// A later request came in between.
    Cancelled,
    /// Its job ended otherwise.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Ask(Ask),
    /// The step of the job has ended so.
    Outcome {
        job: u64,
        step: Step,
        outcome: Outcome,
    },
    /// The process of this run has ended.
    Exited {
        run: String,
        exit: ExitEvent,
    },
    /// After a start of the agent: what the driver found. `rebooted`: the host itself was started anew.
    Adopted {
        found: Adopted,
        rebooted: bool,
    },
    /// Of a volume: what a Machine's move does to it.
    Passage(Passage),
    /// Time has passed.
    Tick,
}

/// What became of a Machine while nobody looked.
#[derive(Debug, Clone, PartialEq)]
pub enum Adopted {
    Nothing,
    Running {
        run: String,
    },
    Exited {
        run: String,
        exit: ExitEvent,
    },
    /// Nobody saw its end.
    Lost {
        run: String,
        exit: ExitEvent,
    },
}

/// What comes with each event.
pub struct Context<'a> {
    pub now_ms: u64,
    /// Capacity beside what other Machines have taken.
    pub free: Resources,
    /// Why the volumes that it mounts, or takes along, cannot be used, if so.
    pub missing: Option<String>,
    /// Fresh bits.
    pub draw: &'a mut dyn FnMut() -> u128,
}

impl Context<'_> {
    fn job_id(&mut self) -> u64 {
        // SQLite's integers are signed.
        ((self.draw)() as u64) & (u64::MAX >> 1)
    }
    fn run_id(&mut self) -> String {
        InstanceId::from_parts(self.now_ms, (self.draw)()).as_str().to_owned()
    }
}

/// How safe a commit must be before anything that follows from it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sync {
    /// Survives a SIGKILL of the agent.
    Process,
    /// Survives a power cut: acceptance, refusal, destruction.
    Disk,
}

/// An entry for the Machine's history.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    pub kind: &'static str,
    pub status: MachineState,
    pub source: Source,
    pub detail: Option<EventDetail>,
}

/// What an event leads to. The record and the job are saved, with all notes, in one transaction; nothing of the rest
/// happens before.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    pub save: Option<Sync>,
    pub notes: Vec<Note>,
    /// Door and fleet see something new.
    pub changed: bool,
    /// Carry out the step at which the job stands now.
    pub perform: bool,
    /// Cut off the effect that is under way.
    pub interrupt: bool,
    /// Wait for the end of the run.
    pub watch: bool,
    /// What happens to volumes, in the same transaction.
    pub passages: Passages,
    pub answers: Vec<(AskId, Answer)>,
}

impl Effects {
    fn save(&mut self, sync: Sync) {
        self.save = self.save.max(Some(sync));
    }
    fn note(&mut self, kind: &'static str, status: MachineState, source: Source, detail: Option<EventDetail>) {
        self.notes.push(Note { kind, status, source, detail });
    }
    fn answer(&mut self, id: AskId, answer: Answer) {
        self.answers.push((id, answer));
    }
    fn refuse(&mut self, id: AskId, refusal: Refusal) {
        self.answer(id, Answer::Refused(refusal));
    }
}

fn reason(text: impl Into<String>) -> Option<EventDetail> {
    Some(EventDetail { reason: Some(text.into()), ..EventDetail::default() })
}

/// A Machine and everything that is going on about it.
#[derive(Debug, Clone)]
pub struct Life {
    pub record: Record,
    pub job: Option<Job>,
    waiting: VecDeque<Ask>,
    waiters: Vec<AskId>,
    /// After a start of the agent, until the driver has said what runs.
    adopting: bool,
    /// An end that came while a job was under way which may make it meaningless.
    unheeded_exit: Option<(String, ExitEvent)>,
    /// A later request makes the job pointless: abort it where the table still allows it.
    cancel: bool,
}

impl Life {
    /// A Machine that this host has never held: hand it the placement as an `Ask`.
    pub fn unknown(placement: Placement, now_ms: u64) -> Self {
        Self::of(Record::blank(placement, now_ms), None, false)
    }

    /// As the journal holds it. Nothing happens before `Event::Adopted`.
    pub fn resumed(record: Record, job: Option<Job>) -> Self {
        Self::of(record, job, true)
    }

    fn of(record: Record, job: Option<Job>, adopting: bool) -> Self {
        Self {
            record,
            job,
            waiting: VecDeque::new(),
            waiters: Vec::new(),
            adopting,
            unheeded_exit: None,
            cancel: false,
        }
    }

    pub fn is_adopting(&self) -> bool {
        self.adopting
    }

    /// Nothing is going on and nothing waits.
    pub fn is_quiet(&self) -> bool {
        self.job.is_none() && self.waiting.is_empty() && !self.adopting
    }

    /// When `Event::Tick` will do something.
    pub fn due_ms(&self) -> Option<u64> {
        match &self.job {
            _ if self.adopting => None,
            Some(job) => job.retry_at_ms,
            None => self.record.restart_due_ms,
        }
    }

    /// The token of the closed door, while it is closed.
    pub fn closing(&self) -> Option<u64> {
        self.job.as_ref().filter(|job| job.is_forward() && job.step.closes_door()).map(|job| job.id)
    }

    pub fn apply(&mut self, event: Event, cx: &mut Context<'_>) -> Effects {
        let mut out = Effects::default();
        match event {
            Event::Ask(ask) => self.ask(ask, cx, &mut out),
            Event::Outcome { job, step, outcome } => self.outcome(job, step, outcome, cx, &mut out),
            Event::Exited { run, exit } => self.exited(run, exit, cx, &mut out),
            Event::Adopted { found, rebooted } => self.adopted(found, rebooted, cx, &mut out),
            Event::Passage(passage) => self.passage(passage, cx, &mut out),
            Event::Tick => self.tick(cx, &mut out),
        }
        self.take_waiting(cx, &mut out);
        if out.save.is_some() {
            self.record.updated_at_ms = cx.now_ms;
        }
        out
    }

    fn tick(&mut self, cx: &mut Context<'_>, out: &mut Effects) {
        if self.adopting || self.due_ms().is_none_or(|due| due > cx.now_ms) {
            return;
        }
        if let Some(job) = &mut self.job {
            job.retry_at_ms = None;
            out.perform = true;
            return;
        }
        self.record.restart_count = self.record.restart_count.saturating_add(1);
        let detail = EventDetail { restart_count: Some(self.record.restart_count), ..EventDetail::default() };
        out.note("restart", MachineState::Starting, Source::Host, Some(detail));
        let draft = Draft { start: true, ..Draft::of(JobKind::Start, Source::Host) };
        self.begin(draft, None, cx, out);
    }

    /// Accepts a job: from here on it is journaled, and resumed until it ends.
    fn begin(&mut self, draft: Draft, ask: Option<(AskId, Until)>, cx: &mut Context<'_>, out: &mut Effects) {
        let previous = self.record.state;
        // Every table has a row for every way in which its job is drafted.
        let Some(first) = next(draft.kind, draft.stop, draft.start, None) else { return };
        self.record.state = match draft.kind {
            JobKind::Create => MachineState::Created,
            JobKind::Start => MachineState::Starting,
            JobKind::Stop => MachineState::Stopping,
            JobKind::Restart => MachineState::Restarting,
            JobKind::Update => MachineState::Replacing,
            JobKind::Destroy | JobKind::VolumeDestroy => MachineState::Destroying,
            JobKind::MoveIn | JobKind::VolumeMoveIn | JobKind::VolumeCreate => MachineState::Created,
            JobKind::MoveOut if self.record.running => MachineState::Stopping,
            JobKind::TakeBack if draft.start => MachineState::Starting,
            JobKind::MoveOut
            | JobKind::TakeBack
            | JobKind::VolumeMoveOut
            | JobKind::VolumeTakeBack
            | JobKind::Hydrate
            | JobKind::Lend => MachineState::Stopped,
        };
        self.job = Some(Job {
            id: cx.job_id(),
            kind: draft.kind,
            source: draft.source,
            stop: draft.stop,
            start: draft.start,
            step: first.step,
            attempt: 0,
            retry_at_ms: None,
            phase: Phase::Forward,
            placement: draft.placement,
            former: None,
            run: draft.start.then(|| cx.run_id()),
            stop_signal: draft.stop_signal,
            stop_timeout_ms: draft.stop_timeout_ms,
            signalled_at_ms: None,
            prior: previous,
            accepted_at_ms: cx.now_ms,
        });
        self.record.restart_due_ms = None;
        self.cancel = false;
        out.save(Sync::Disk);
        out.changed = true;
        out.perform = true;
        if let Some((id, until)) = ask {
            self.promise(id, until, previous, out);
        }
    }

    fn promise(&mut self, id: AskId, until: Until, previous: MachineState, out: &mut Effects) {
        match until {
            Until::Accepted => out.answer(id, Answer::Accepted { previous }),
            Until::Ended if self.waiters.len() >= MAX_WAITERS => out.refuse(id, Refusal::Busy),
            Until::Ended => self.waiters.push(id),
        }
    }
}

/// A job before its acceptance.
struct Draft {
    kind: JobKind,
    source: Source,
    stop: StopMode,
    start: bool,
    placement: Option<Placement>,
    stop_signal: Option<String>,
    stop_timeout_ms: Option<u64>,
}

impl Draft {
    fn of(kind: JobKind, source: Source) -> Self {
        Self {
            kind,
            source,
            stop: StopMode::Leave,
            start: false,
            placement: None,
            stop_signal: None,
            stop_timeout_ms: None,
        }
    }
}
