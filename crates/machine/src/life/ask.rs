//! What is asked of a Machine: answered at once, begun as a job, joined to the one that runs, or made to wait. It
//! must not know how a job goes on.

use godwit_api::machine::MachineState;
use godwit_api::migration::{MovePart, MoveRole};
use godwit_api::row::Placement;
use godwit_api::ticket::Ticket;

use super::{Answer, Ask, AskId, Context, Draft, Effects, Life, MAX_WAITING, Refusal, Sync, Until, What, reason};
use crate::capacity::{lacking, need, of_placement};
use crate::converge::{Verdict, judge};
use crate::job::{Fault, JobKind, OnAbort, Outcome, Step, StopMode};
use crate::record::{Record, Source};
use godwit_api::fact::Resources;

impl Life {
    pub(super) fn ask(&mut self, ask: Ask, cx: &mut Context<'_>, out: &mut Effects) {
        if self.at_once(&ask, cx, out) {
            return;
        }
        if self.adopting || self.job.is_some() {
            if !self.adopting && self.joins(&ask, out) {
                return;
            }
            self.wait(ask, cx, out);
        } else {
            self.take(ask, cx, out);
        }
    }

    /// Takes what waits, until something is begun.
    pub(super) fn take_waiting(&mut self, cx: &mut Context<'_>, out: &mut Effects) {
        while self.job.is_none() && !self.adopting {
            let Some(ask) = self.waiting.pop_front() else { return };
            self.take(ask, cx, out);
        }
    }

    /// Does the job that runs already lead to what is asked?
    fn joins(&mut self, ask: &Ask, out: &mut Effects) -> bool {
        let Some(job) = &self.job else { return false };
        let (previous, kind) = (job.prior, job.kind);
        if let What::CancelMove { .. } | What::Release { .. } = &ask.what {
            // Neither waits: one is decided by a row, the other ends what it would wait for.
            return false;
        }
        if matches!(kind, JobKind::Destroy | JobKind::VolumeDestroy) {
            match &ask.what {
                What::Place(placement) if placement.destroy => self.promise(ask.id, ask.until, previous, out),
                What::Place(_) => return false,
                _ => out.refuse(ask.id, Refusal::Gone),
            }
            return true;
        }
        let leads_there = match &ask.what {
            What::Start => job.start && job.is_forward() && !self.cancel && !kind.is_departure(),
            What::Stop { .. } => kind == JobKind::Stop,
            What::Place(placement) => job.placement.as_ref() == Some(&**placement),
            What::MoveIn { ticket, .. } => kind.is_arrival() && self.is_about(ticket),
            What::MoveOut { ticket, .. } => kind.is_departure() && self.is_about(ticket) && !self.cancel,
            What::TakeBack { ticket } => {
                matches!(kind, JobKind::TakeBack | JobKind::VolumeTakeBack) && self.is_about(ticket)
            }
            What::Restart { .. }
            | What::Destroy
            | What::PrepareMove { .. }
            | What::CancelMove { .. }
            | What::Release { .. } => false,
        };
        if leads_there && self.waiting.is_empty() {
            self.promise(ask.id, ask.until, previous, out);
            return true;
        }
        false
    }

    fn is_about(&self, ticket: &Ticket) -> bool {
        self.record.moving.as_ref().is_some_and(|moving| moving.migration == ticket.migration)
    }

    /// What need not wait for a job to end.
    fn at_once(&mut self, ask: &Ask, cx: &mut Context<'_>, out: &mut Effects) -> bool {
        match &ask.what {
            What::PrepareMove { ticket } => self.prepare_move(ask.id, ticket, cx, out),
            What::CancelMove { ticket } => self.cancel_move(ask.id, ticket, cx, out),
            What::Release { ticket } => {
                if self.release(ask.id, ticket, out)
                    && let Some(job) = self.job.as_ref().filter(|job| job.step == Step::ServeExport)
                {
                    out.interrupt = job.retry_at_ms.is_none();
                    let (id, step) = (job.id, job.step);
                    if let Some(job) = &mut self.job {
                        job.retry_at_ms = None;
                    }
                    self.outcome(id, step, Outcome::done(), cx, out);
                }
            }
            // What has been decided is told again whatever goes on by now: a volume that moved by itself is lent until
            // the target, which may not have heard of it, has all of it.
            What::MoveOut { signed, ticket, client_certificate } if self.has_decided(ticket) => {
                let proof = (signed.clone(), client_certificate.clone());
                self.move_out(ask.id, proof, ticket, cx, out);
            }
            // A volume that moved by itself: its being lent is what ends.
            What::TakeBack { ticket } if self.is_about(ticket) && self.is_serving() => {
                self.job = None;
                out.interrupt = true;
                self.take_back(ask.id, ticket, cx, out);
            }
            _ => return false,
        }
        true
    }

    /// As the source of this move.
    fn has_decided(&self, ticket: &Ticket) -> bool {
        let moving = self.record.moving.as_ref();
        self.is_about(ticket)
            && moving.is_some_and(|moving| moving.role == MoveRole::Source && moving.part >= MovePart::HandedOff)
    }

    fn is_serving(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.kind == JobKind::Lend && job.step == Step::ServeExport)
    }

    fn wait(&mut self, ask: Ask, cx: &mut Context<'_>, out: &mut Effects) {
        if ask.source == Source::Proxy && matches!(ask.what, What::Stop { .. }) {
            // An idle stop that must wait is none: by then the Machine may be busy.
            return out.refuse(ask.id, Refusal::Busy);
        }
        if let What::Place(newer) = &ask.what {
            // Only the newest wish counts.
            let older =
                |other: &Ask| matches!(&other.what, What::Place(old) if old.epoch <= newer.epoch && !old.destroy);
            let superseded: Vec<AskId> = self.waiting.iter().filter(|a| older(a)).map(|a| a.id).collect();
            self.waiting.retain(|other| !superseded.contains(&other.id));
            superseded.into_iter().for_each(|id| out.refuse(id, Refusal::Cancelled));
        }
        if self.waiting.len() >= MAX_WAITING {
            return out.refuse(ask.id, Refusal::Busy);
        }
        // A stop ends a start; only a destruction ends what is about the image, or it would be asked again at once.
        let moves = self.job.as_ref().is_some_and(|job| job.kind.is_arrival() || job.kind.is_departure());
        let pointless = match (&ask.what, self.job.as_ref().map(|job| job.on_abort())) {
            (_, None | Some(OnAbort::Never)) => false,
            // A move is called off at its source, and by nothing else.
            _ if moves => false,
            (What::Stop { .. }, Some(on_abort)) => on_abort != OnAbort::Drop,
            (What::Place(placement), _) => placement.destroy,
            (What::Destroy, _) => true,
            (_, _) => false,
        };
        self.waiting.push_back(ask);
        if pointless && !self.adopting {
            self.cut_short(cx, out);
        }
    }

    /// The job has become pointless. Where its table allows, it is aborted: now if nothing is under way that must
    /// be waited for, else when that has ended.
    pub(super) fn cut_short(&mut self, cx: &mut Context<'_>, out: &mut Effects) {
        let Some(job) = &self.job else { return };
        self.cancel = true;
        if job.step.is_decided_elsewhere() || job.on_abort() == OnAbort::Never {
            return;
        }
        let waits = job.retry_at_ms.is_some();
        if waits || job.step.is_interruptible() {
            out.interrupt = !waits;
            self.abort(Fault::Cancelled, "a later request came in between".into(), None, cx, out);
        }
    }

    fn take(&mut self, ask: Ask, cx: &mut Context<'_>, out: &mut Effects) {
        let Ask { id, what, source, until } = ask;
        match what {
            What::Place(placement) => self.place(id, *placement, source, until, cx, out),
            What::Start => self.start(id, source, until, cx, out),
            What::Stop { signal, timeout_ms } => self.stop(id, (signal, timeout_ms), source, until, cx, out),
            What::Restart { signal, timeout_ms, force } => {
                if !self.record.running {
                    return self.start(id, source, until, cx, out);
                }
                out.note("restart", MachineState::Restarting, source, None);
                let stop = if force { StopMode::Kill } else { StopMode::Graceful };
                let draft = Draft {
                    stop,
                    start: true,
                    stop_signal: signal,
                    stop_timeout_ms: timeout_ms,
                    ..Draft::of(JobKind::Restart, source)
                };
                self.owner_acts(source);
                self.begin(draft, Some((id, until)), cx, out);
            }
            What::Destroy => self.destroy(Some((id, until)), source, true, cx, out),
            What::MoveIn { signed, ticket } => self.move_in(id, signed, &ticket, cx, out),
            What::MoveOut { signed, ticket, client_certificate } => {
                self.move_out(id, (signed, client_certificate), &ticket, cx, out)
            }
            What::PrepareMove { ticket } => self.prepare_move(id, &ticket, cx, out),
            What::TakeBack { ticket } => self.take_back(id, &ticket, cx, out),
            What::CancelMove { ticket } => self.cancel_move(id, &ticket, cx, out),
            What::Release { ticket } => drop(self.release(id, &ticket, out)),
        }
    }

    /// The owner's word starts the policy's count anew; a request at the door does not.
    fn owner_acts(&mut self, source: Source) {
        if source == Source::User {
            self.record.retries = 0;
            self.record.restart_count = 0;
        }
    }

    fn start(&mut self, id: AskId, source: Source, until: Until, cx: &mut Context<'_>, out: &mut Effects) {
        let record = &mut self.record;
        let previous = record.state;
        if record.is_handed_off() {
            return out.refuse(id, Refusal::Stale);
        }
        if record.is_destroyed() || !record.held || record.is_volume() {
            return out.refuse(id, Refusal::Gone);
        }
        if record.running {
            let answer = match until {
                Until::Accepted => Answer::Accepted { previous },
                Until::Ended => Answer::Ended { previous },
            };
            return out.answer(id, answer);
        }
        let services = &record.placement.config.services;
        if source == Source::Proxy && !services.is_empty() && !services.iter().any(|service| service.autostart()) {
            // An edge waits for whatever is on its way to another host, and this one came here stopped.
            return out.refuse(id, Refusal::Failed("it is stopped, and no request may start it".into()));
        }
        let wanted = need(&record.placement.config, true);
        if source == Source::Proxy && record.restart_due_ms.is_some() {
            // Requests do not drive a crash loop: they wait for the restart that the policy has set.
            return self.promise(id, until, previous, out);
        }
        if let Some(lacking) = lacking(wanted, cx.free) {
            return out.refuse(id, Refusal::Full(lacking));
        }
        record.reserved = wanted;
        self.owner_acts(source);
        out.note("start", MachineState::Starting, source, None);
        let draft = Draft { start: true, ..Draft::of(JobKind::Start, source) };
        self.begin(draft, Some((id, until)), cx, out);
    }

    fn stop(
        &mut self,
        id: AskId,
        (stop_signal, stop_timeout_ms): (Option<String>, Option<u64>),
        source: Source,
        until: Until,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let previous = self.record.state;
        if self.record.is_handed_off() {
            return out.refuse(id, Refusal::Stale);
        }
        if self.record.is_destroyed() || self.record.is_volume() {
            return out.refuse(id, Refusal::Gone);
        }
        if self.record.running {
            out.note("stop", MachineState::Stopping, source, None);
            let draft =
                Draft { stop: StopMode::Graceful, stop_signal, stop_timeout_ms, ..Draft::of(JobKind::Stop, source) };
            return self.begin(draft, Some((id, until)), cx, out);
        }
        if source == Source::Proxy {
            return out.refuse(id, Refusal::Busy);
        }
        if self.record.restart_due_ms.take().is_some() {
            self.record.state = MachineState::Stopped;
            self.record.reserved = need(&self.record.placement.config, false);
            for waiter in std::mem::take(&mut self.waiters) {
                out.refuse(waiter, Refusal::Cancelled);
            }
            out.note("stop", MachineState::Stopped, source, None);
            out.save(Sync::Disk);
            out.changed = true;
        }
        let answer = match until {
            Until::Accepted => Answer::Accepted { previous },
            Until::Ended => Answer::Ended { previous },
        };
        out.answer(id, answer);
    }

    fn place(
        &mut self,
        id: AskId,
        placement: Placement,
        source: Source,
        until: Until,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let previous = self.record.state;
        match judge(Some(&self.record), &placement) {
            Verdict::Same => out.answer(id, Answer::Accepted { previous }),
            Verdict::Stale => out.refuse(id, Refusal::Stale),
            Verdict::Refused { reason } => out.refuse(id, Refusal::Placement(reason)),
            Verdict::Adjust => {
                let Record { placement: held, .. } = &mut self.record;
                *held = Placement { launch: held.launch, force: held.force, ..placement };
                out.save(Sync::Disk);
                out.changed = true;
                out.answer(id, Answer::Accepted { previous });
            }
            Verdict::Create => self.create(id, placement, source, until, cx, out),
            Verdict::Update => self.update(id, placement, source, until, cx, out),
            Verdict::Destroy => {
                let force = placement.force;
                self.record.placement.epoch = placement.epoch;
                self.record.placement.proof = placement.proof;
                self.record.placement.destroy = true;
                self.destroy(Some((id, until)), source, force, cx, out);
            }
        }
    }

    fn create(
        &mut self,
        id: AskId,
        placement: Placement,
        source: Source,
        until: Until,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let wanted = of_placement(&placement, placement.launch);
        let refused_handoff = self.record.refused_handoff;
        self.record = Record { refused_handoff, ..Record::blank(placement.clone(), cx.now_ms) };
        if let Some(no) = lacking(wanted, cx.free).or(cx.missing.take()) {
            self.refuse_placement(no.clone(), source, out);
            return out.refuse(id, Refusal::Placement(no));
        }
        self.record.reserved = wanted;
        out.note("launch", MachineState::Created, source, None);
        let kind = if placement.volume.is_some() { JobKind::VolumeCreate } else { JobKind::Create };
        let start = placement.launch && placement.volume.is_none();
        let draft = Draft { start, placement: Some(placement), ..Draft::of(kind, source) };
        self.begin(draft, Some((id, until)), cx, out);
    }

    /// The journaled no, by which alone control may place the Machine elsewhere.
    pub(super) fn refuse_placement(&mut self, why: String, source: Source, out: &mut Effects) {
        self.record.state = MachineState::Failed;
        self.record.held = false;
        self.record.reserved = Resources::default();
        self.record.refused = Some(why.clone());
        out.note("launch", MachineState::Failed, source, reason(why));
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// What its owner gave cannot be run, here or anywhere: it is held, and nothing is tried again by itself.
    pub(super) fn fail_here(&mut self, why: String, source: Source, out: &mut Effects) {
        self.record.state = MachineState::Failed;
        self.record.held = true;
        self.record.reserved = need(&self.record.placement.config, false);
        out.note("launch", MachineState::Failed, source, reason(why));
        out.save(Sync::Disk);
        out.changed = true;
    }

    fn update(
        &mut self,
        id: AskId,
        placement: Placement,
        source: Source,
        until: Until,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let record = &mut self.record;
        let start = record.running || record.restart_due_ms.is_some() || placement.launch;
        let wanted = need(&placement.config, start);
        if let Some(lacking) = lacking(wanted, cx.free).or(cx.missing.take()) {
            record.refused_update = Some((placement.epoch, placement.instance_id));
            record.refused_update_reason = Some(lacking.clone());
            out.note("update", record.state, source, reason(lacking.clone()));
            out.save(Sync::Disk);
            out.changed = true;
            return out.refuse(id, Refusal::Placement(lacking));
        }
        // Both versions' shares are held until it is clear which one stays.
        record.reserved = Resources {
            cpu_millis: wanted.cpu_millis.max(record.reserved.cpu_millis),
            memory_mb: wanted.memory_mb.max(record.reserved.memory_mb),
            disk_mb: wanted.disk_mb.max(record.reserved.disk_mb),
        };
        let stop = if record.running { StopMode::Graceful } else { StopMode::Leave };
        out.note("update", MachineState::Replacing, source, None);
        let draft = Draft { stop, start, placement: Some(placement), ..Draft::of(JobKind::Update, source) };
        // A restart that was due comes back should the update be dropped.
        let due = self.record.restart_due_ms;
        self.begin(draft, Some((id, until)), cx, out);
        self.record.restart_due_ms = due;
    }

    /// Also of a Machine that was never here: then it proves that nothing is left, and says so.
    pub(super) fn destroy(
        &mut self,
        ask: Option<(AskId, Until)>,
        source: Source,
        force: bool,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        for waiter in std::mem::take(&mut self.waiters) {
            out.refuse(waiter, Refusal::Gone);
        }
        for other in std::mem::take(&mut self.waiting) {
            match other.what {
                What::Place(_) => self.waiting.push_back(other),
                _ => out.refuse(other.id, Refusal::Gone),
            }
        }
        let stop = if self.record.running && !force { StopMode::Graceful } else { StopMode::Kill };
        out.note("destroy", MachineState::Destroying, source, None);
        let draft = match self.record.is_volume() {
            true => Draft::of(JobKind::VolumeDestroy, source),
            false => Draft { stop, ..Draft::of(JobKind::Destroy, source) },
        };
        self.begin(draft, ask, cx, out);
    }
}
