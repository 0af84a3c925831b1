//! Moves: what a source and a target decide, and what becomes of the volumes that come and go with a Machine. It must
//! not know hosts beyond their names, nor how bytes cross.
//!
//! The source's word is one row: `HandedOff` or `Refused`, at the target's epoch. Whatever is asked later at that epoch
//! gets the same answer, so a lost reply costs nothing but another question.

use godwit_api::ids::{Epoch, MachineId};
use godwit_api::machine::MachineState;
use godwit_api::migration::{MovePart, MoveRole};
use godwit_api::ticket::{Grant, SignedTicket, Ticket};

use super::{Answer, AskId, Context, Draft, Effects, Life, Refusal, Sync, Until, reason};
use crate::capacity::{lacking, of_placement, sum};
use crate::job::{JobKind, StopMode};
use crate::record::{Hydration, Job, Lent, Move, Record, Source};

/// What happens to a volume because of the Machine that holds it, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Passage {
    /// It is another host's now, and served to it.
    Lend { epoch: Epoch, lent: Lent },
    /// It came here, and is to be filled.
    Adopt { placement: Box<godwit_api::row::Placement>, hydration: Box<Hydration> },
    /// It is this host's again.
    TakeBack { epoch: Epoch, proof: String },
}

/// A volume's number, and what happens to it.
pub type Passages = Vec<(MachineId, Passage)>;

impl Life {
    /// The target's part begins.
    pub(super) fn move_in(
        &mut self,
        id: AskId,
        signed: SignedTicket,
        ticket: &Ticket,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let previous = self.record.state;
        let lead = &ticket.lead;
        let known = self.record.moving.as_ref().is_some_and(|moving| moving.migration == ticket.migration);
        let was_here = self.record.held || self.record.is_destroyed() || self.record.moving.is_some();
        if known || (was_here && self.record.epoch() >= lead.epoch) {
            return out.answer(id, Answer::Accepted { previous });
        }
        if self.record.held || self.record.lent.is_some() {
            return out.refuse(id, Refusal::Busy);
        }
        let mut record = Record::blank(lead.clone(), cx.now_ms);
        record.moving = Some(Move::new(signed, ticket, MoveRole::Target, cx.now_ms));
        record.refused_handoff = self.record.refused_handoff;
        self.record = record;
        // Until they are here for good, the volumes' room is the leader's.
        let volumes = ticket.volumes.iter().map(|carried| of_placement(&carried.placement, false));
        let wanted = match lead.volume {
            Some(_) => sum(volumes),
            None => sum(volumes.chain([of_placement(lead, lead.launch)])),
        };
        let expired = cx.now_ms > ticket.expires_at_ms;
        let no = lacking(wanted, cx.free).or(expired.then(|| "the move's ticket has expired".to_owned()));
        if let Some(no) = no {
            self.refuse_arrival(no.clone(), MovePart::Refused, cx.now_ms, out);
            return out.refuse(id, Refusal::Placement(no));
        }
        self.record.reserved = wanted;
        out.note("migrate", MachineState::Created, Source::User, reason(format!("arriving from {}", ticket.source)));
        let kind = if lead.volume.is_some() { JobKind::VolumeMoveIn } else { JobKind::MoveIn };
        let draft = Draft { start: lead.launch, placement: Some(lead.clone()), ..Draft::of(kind, Source::User) };
        self.begin(draft, Some((id, Until::Accepted)), cx, out);
    }

    /// Nothing of it is here, and nothing will be at this epoch.
    pub(super) fn refuse_arrival(&mut self, why: String, part: MovePart, now_ms: u64, out: &mut Effects) {
        let record = &mut self.record;
        record.held = false;
        record.running = false;
        record.state = MachineState::Failed;
        record.reserved = Default::default();
        record.refused = Some(why.clone());
        if let Some(moving) = &mut record.moving {
            moving.enter(part, now_ms);
            moving.reason = Some(why.clone());
        }
        out.note("migrate", MachineState::Failed, Source::Host, reason(why));
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// The target asks. `volumes_fault`: why a volume cannot go now, as the engine sees it.
    pub(super) fn move_out(
        &mut self,
        id: AskId,
        (signed, client_certificate): (SignedTicket, String),
        ticket: &Ticket,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let previous = self.record.state;
        if let Some(moving) = self.record.moving.as_ref().filter(|moving| moving.migration == ticket.migration) {
            return match moving.part {
                MovePart::Refused | MovePart::TakenBack => {
                    out.refuse(id, Refusal::Failed(moving.reason.clone().unwrap_or_default()))
                }
                _ => out.answer(id, Answer::Accepted { previous }),
            };
        }
        if self.record.epoch() < ticket.from_epoch {
            // The row that says so has not arrived here yet.
            return out.refuse(id, Refusal::Busy);
        }
        if let Some(no) = self.cannot_go(ticket, cx) {
            self.refuse_handoff(ticket.lead.epoch, out);
            return out.refuse(id, Refusal::Failed(no));
        }
        let runs = self.record.running || self.record.restart_due_ms.is_some();
        let mut moving = Move::new(signed, ticket, MoveRole::Source, cx.now_ms);
        moving.was_running = runs;
        moving.client_certificate = client_certificate;
        self.record.moving = Some(moving);
        out.note("migrate", MachineState::Stopping, Source::User, reason(format!("leaving for {}", ticket.target)));
        let kind = if self.record.is_volume() { JobKind::VolumeMoveOut } else { JobKind::MoveOut };
        let stop = if self.record.running { StopMode::Graceful } else { StopMode::Leave };
        let draft = Draft { stop, start: runs, ..Draft::of(kind, Source::User) };
        self.begin(draft, Some((id, Until::Accepted)), cx, out);
    }

    /// Why it cannot be handed off now, if so.
    fn cannot_go(&self, ticket: &Ticket, cx: &Context<'_>) -> Option<String> {
        let record = &self.record;
        if record.refused_handoff.is_some_and(|refused| ticket.lead.epoch <= refused) {
            Some("it was called off".to_owned())
        } else if !record.held || record.is_destroyed() {
            Some("it is not on this host".to_owned())
        } else if record.epoch() != ticket.from_epoch {
            Some(format!("epoch {} is over; {} is held", ticket.from_epoch, record.epoch()))
        } else if cx.now_ms > ticket.expires_at_ms {
            Some("the ticket has expired".to_owned())
        } else {
            cx.missing.clone()
        }
    }

    /// Would it go? Nothing is decided by this: a no is the answer to this question, and another may follow it.
    pub(super) fn prepare_move(&self, id: AskId, ticket: &Ticket, cx: &Context<'_>, out: &mut Effects) {
        if self.record.epoch() < ticket.from_epoch {
            return out.refuse(id, Refusal::Busy);
        }
        match self.cannot_go(ticket, cx) {
            Some(no) => out.refuse(id, Refusal::Failed(no)),
            None => out.answer(id, Answer::Accepted { previous: self.record.state }),
        }
    }

    /// Journaled before anybody hears of it: no handoff at this epoch, ever.
    fn refuse_handoff(&mut self, epoch: Epoch, out: &mut Effects) {
        if self.record.refused_handoff.is_none_or(|refused| refused < epoch) {
            self.record.refused_handoff = Some(epoch);
            out.save(Sync::Disk);
        }
    }

    /// Control calls it off. The row decides: before the handoff it is off, after it, too late.
    pub(super) fn cancel_move(&mut self, id: AskId, ticket: &Ticket, cx: &mut Context<'_>, out: &mut Effects) {
        let previous = self.record.state;
        let part = self.record.moving.as_ref().filter(|m| m.migration == ticket.migration).map(|m| m.part);
        match part {
            Some(MovePart::Refused | MovePart::TakenBack) => return out.answer(id, Answer::Accepted { previous }),
            Some(part) if part >= MovePart::HandedOff => {
                return out.refuse(id, Refusal::Failed("it has been handed off already".into()));
            }
            _ => {}
        }
        self.refuse_handoff(ticket.lead.epoch, out);
        out.answer(id, Answer::Accepted { previous });
        if part.is_some() && self.job.as_ref().is_some_and(|job| job.kind.is_departure()) {
            self.cut_short(cx, out);
        }
    }

    /// May the job's `HandOff` still be committed?
    pub(super) fn may_hand_off(&self) -> Result<(), String> {
        let moving = self.record.moving.as_ref();
        let epoch = moving.map(|moving| moving.epoch);
        if self.record.refused_handoff.is_some_and(|refused| epoch.is_none_or(|epoch| epoch <= refused)) {
            return Err("it was called off".into());
        }
        Ok(())
    }

    /// The point of no return at the source.
    pub(super) fn handed_off(&mut self, now_ms: u64, out: &mut Effects) {
        let is_volume = self.record.is_volume();
        let record = &mut self.record;
        let Some(moving) = &mut record.moving else { return };
        moving.enter(MovePart::HandedOff, now_ms);
        let lent = Lent {
            migration: moving.migration.clone(),
            to: moving.target.clone(),
            client_certificate: moving.client_certificate.clone(),
        };
        record.placement.epoch = moving.epoch;
        record.held = false;
        record.running = false;
        record.restart_due_ms = None;
        record.state = MachineState::Stopped;
        match is_volume {
            true => record.lent = Some(lent),
            false => {
                // A ticket that was accepted can be read.
                let carried = moving.signed.read().map(|ticket| ticket.volumes).unwrap_or_default();
                out.passages = carried
                    .into_iter()
                    .map(|carried| {
                        let epoch = carried.placement.epoch;
                        (carried.placement.machine, Passage::Lend { epoch, lent: lent.clone() })
                    })
                    .collect();
            }
        }
        let target = moving.target.clone();
        out.note("migrate", MachineState::Stopped, Source::User, reason(format!("handed off to {target}")));
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// A departure that was called off or failed has been undone.
    pub(super) fn stays(&mut self, why: String, now_ms: u64, out: &mut Effects) {
        let record = &mut self.record;
        if let Some(moving) = &mut record.moving {
            moving.enter(MovePart::Refused, now_ms);
            moving.reason = Some(why.clone());
        }
        record.state = match record.running {
            true => MachineState::Started,
            false => MachineState::Stopped,
        };
        out.note("migrate", record.state, Source::Host, reason(format!("stays: {why}")));
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// As soon as a departure is given up, and before anything is undone: it is never handed off at this epoch.
    pub(super) fn gives_up_departure(&mut self, out: &mut Effects) {
        if let Some(epoch) = self.record.moving.as_ref().map(|moving| moving.epoch) {
            self.refuse_handoff(epoch, out);
        }
    }

    /// The source has answered: from here on it is ours to start or to hand back.
    pub(super) fn granted(&mut self, job: &mut Job, grant: Grant, now_ms: u64, out: &mut Effects) {
        job.start = grant.running;
        if let Some(moving) = &mut self.record.moving {
            moving.enter(MovePart::HandedOff, now_ms);
            // By the source's clock.
            moving.mark("closing", grant.closed_at_ms);
            moving.grant = Some(grant);
        }
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// Attached read-write: forward only.
    pub(super) fn arrived(&mut self, job: &Job, now_ms: u64, out: &mut Effects) {
        let is_volume = self.record.is_volume();
        let record = &mut self.record;
        record.held = true;
        record.refused = None;
        record.reserved = of_placement(&record.placement, job.start);
        record.state = if job.start { MachineState::Starting } else { MachineState::Stopped };
        let Some(moving) = &mut record.moving else { return };
        moving.enter(MovePart::Attached, now_ms);
        let Ok(ticket) = moving.signed.read() else { return };
        let grant = moving.grant.clone().unwrap_or_default();
        let mut hydrations = Hydration::of_move(&moving.signed, &ticket, &grant).into_iter();
        if is_volume {
            record.hydration = hydrations.next().map(|(_, hydration)| hydration);
        } else {
            out.passages = hydrations
                .map(|(placement, hydration)| {
                    let machine = placement.machine.clone();
                    (machine, Passage::Adopt { placement: Box::new(placement), hydration: Box::new(hydration) })
                })
                .collect();
        }
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// The target says that it cannot.
    pub(super) fn take_back(&mut self, id: AskId, ticket: &Ticket, cx: &mut Context<'_>, out: &mut Effects) {
        let previous = self.record.state;
        let part = self.record.moving.as_ref().filter(|m| m.migration == ticket.migration).map(|m| m.part);
        if part != Some(MovePart::HandedOff) || !self.record.is_handed_off() {
            // Never handed off: and from now on it never will be, so the target may forget it.
            if part.is_none_or(|part| part < MovePart::HandedOff) {
                self.refuse_handoff(ticket.lead.epoch, out);
            }
            return match part {
                Some(MovePart::TakenBack) => out.answer(id, Answer::Accepted { previous }),
                _ => out.refuse(id, Refusal::Gone),
            };
        }
        let is_volume = self.record.is_volume();
        let record = &mut self.record;
        let proof = |machine: &MachineId| ticket.back.get(machine).cloned().unwrap_or_default();
        record.placement.epoch = ticket.lead.epoch.next();
        record.placement.proof = proof(&ticket.lead.machine);
        record.held = true;
        record.lent = None;
        let Some(moving) = &mut record.moving else { return };
        moving.enter(MovePart::TakenBack, cx.now_ms);
        moving.reason = Some(format!("{} could not take it", moving.target));
        let runs = moving.was_running;
        if !is_volume {
            out.passages = ticket
                .volumes
                .iter()
                .map(|carried| {
                    let epoch = carried.placement.epoch.next();
                    let machine = carried.placement.machine.clone();
                    (machine.clone(), Passage::TakeBack { epoch, proof: proof(&machine) })
                })
                .collect();
        }
        out.note("migrate", MachineState::Starting, Source::Host, reason(format!("taken back from {}", ticket.target)));
        let kind = if is_volume { JobKind::VolumeTakeBack } else { JobKind::TakeBack };
        let draft = Draft { start: runs && !is_volume, ..Draft::of(kind, Source::Host) };
        self.begin(draft, Some((id, Until::Accepted)), cx, out);
    }

    /// The target has every block.
    pub(super) fn release(&mut self, id: AskId, ticket: &Ticket, out: &mut Effects) -> bool {
        let previous = self.record.state;
        let ours = self.record.lent.as_ref().is_some_and(|lent| lent.migration == ticket.migration);
        out.answer(id, Answer::Accepted { previous });
        ours
    }

    pub(super) fn passage(&mut self, passage: Passage, cx: &mut Context<'_>, out: &mut Effects) {
        match passage {
            Passage::Lend { epoch, lent } => {
                self.record.placement.epoch = epoch;
                self.record.held = false;
                self.record.lent = Some(lent);
                self.begin(Draft::of(JobKind::Lend, Source::Host), None, cx, out);
            }
            Passage::Adopt { placement, hydration } => {
                self.record = Record::blank(*placement, cx.now_ms);
                self.record.held = true;
                self.record.state = MachineState::Stopped;
                self.record.hydration = Some(*hydration);
                self.record.reserved = of_placement(&self.record.placement, false);
                self.begin(Draft::of(JobKind::Hydrate, Source::Host), None, cx, out);
            }
            Passage::TakeBack { epoch, proof } => {
                self.record.placement.epoch = epoch;
                self.record.placement.proof = proof;
                self.record.held = true;
                self.record.lent = None;
                if self.job.take().is_some() {
                    out.interrupt = true;
                }
                self.begin(Draft::of(JobKind::VolumeTakeBack, Source::Host), None, cx, out);
            }
        }
        out.save(Sync::Disk);
    }
}
