//! How a job goes on: what each step's outcome changes, what follows, and how a job ends well or is undone. It must
//! not know what may be asked.

use godwit_api::event::ExitEvent;
use godwit_api::fact::Resources;
use godwit_api::machine::MachineState;
use godwit_api::migration::MovePart;
use godwit_api::ticket::Grant;

use super::{Answer, Context, Draft, Effects, Life, Refusal, Sync, reason};
use crate::capacity::{need, of_placement};
use crate::job::{Fault, JobKind, OnAbort, Outcome, Step, StopMode, retry_after_ms};
use crate::record::{Job, Phase, Source};

impl Life {
    pub(super) fn outcome(&mut self, id: u64, step: Step, outcome: Outcome, cx: &mut Context<'_>, out: &mut Effects) {
        // An effect that was cut off, or one of a former job, has nothing to say any more.
        if self.job.as_ref().is_none_or(|job| job.id != id || job.step != step || job.retry_at_ms.is_some()) {
            return;
        }
        if step == Step::HandOff
            && matches!(outcome, Outcome::Done { .. })
            && let Err(why) = self.may_hand_off().and(cx.missing.take().map_or(Ok(()), Err))
        {
            return self.abort(Fault::Cancelled, why, None, cx, out);
        }
        match outcome {
            Outcome::Done { exit } => self.done(step, exit, None, cx, out),
            Outcome::Granted { grant } => self.done(step, None, Some(*grant), cx, out),
            Outcome::Retry { reason } => self.again(reason, cx, out),
            Outcome::Wait { reason } => self.stand_back(reason, cx, out),
            Outcome::Abort { fault, reason, exit } => self.abort(fault, reason, exit, cx, out),
        }
    }

    fn done(
        &mut self,
        step: Step,
        exit: Option<ExitEvent>,
        grant: Option<Grant>,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let Some(mut job) = self.job.take() else { return };
        self.settle(&mut job, step, exit, cx, out);
        if let Some(grant) = grant {
            self.granted(&mut job, grant, cx.now_ms, out);
        }
        out.save(Sync::Process);
        match (job.next_step(), &job.phase) {
            (Some(next), _) => {
                job.step = next;
                job.attempt = 0;
                // From here on somebody waits for it.
                if job.kind.is_departure()
                    && step == Step::PrepareExport
                    && let Some(moving) = &mut self.record.moving
                {
                    moving.mark("closing", cx.now_ms);
                }
                let arrives = job.kind.is_arrival() && next != Step::StartProcess;
                if matches!(next, Step::EnsureNetwork | Step::AttachVolumes)
                    && !arrives
                    && job.start
                    && self.record.state != MachineState::Starting
                {
                    self.record.state = MachineState::Starting;
                    out.changed = true;
                }
                if next == Step::AskHandoff
                    && let Some(moving) = &mut self.record.moving
                {
                    moving.enter(MovePart::Asked, cx.now_ms);
                    out.save(Sync::Disk);
                    out.changed = true;
                }
                let abortable = job.on_abort() != OnAbort::Never && !job.step.is_decided_elsewhere();
                self.job = Some(job);
                out.perform = true;
                if abortable && self.cancel {
                    self.cancel = false;
                    self.abort(Fault::Cancelled, "a later request came in between".into(), None, cx, out);
                }
            }
            (None, Phase::Forward) => self.finish(job, cx, out),
            (None, Phase::Unwinding { .. }) => self.finish_undone(job, cx, out),
        }
    }

    /// What a step's success changes in the Machine's record.
    fn settle(&mut self, job: &mut Job, step: Step, exit: Option<ExitEvent>, cx: &Context<'_>, out: &mut Effects) {
        let record = &mut self.record;
        match step {
            Step::UnpackImage if job.kind == JobKind::Create => record.held = true,
            Step::MakeVolume => record.held = true,
            Step::HandOff => self.handed_off(cx.now_ms, out),
            Step::AttachVolumes if job.kind.is_arrival() && job.is_forward() => self.arrived(job, cx.now_ms, out),
            Step::ReleaseSource => {
                record.hydration = None;
                out.save(Sync::Disk);
                out.changed = true;
            }
            Step::StartProcess => {
                record.running = true;
                record.run = job.run.clone();
                record.started_at_ms = Some(cx.now_ms);
                record.state = MachineState::Started;
                if let Some(moving) = record.moving.as_mut().filter(|_| job.kind.is_arrival()) {
                    moving.mark("running", cx.now_ms);
                }
                out.watch = true;
                out.changed = true;
                out.note("start", MachineState::Started, job.source, None);
            }
            Step::SignalProcess => job.signalled_at_ms = Some(cx.now_ms),
            Step::AwaitExit | Step::KillProcess if job.is_forward() => {
                let ended = record.running;
                record.running = false;
                record.retries = 0;
                self.unheeded_exit = None;
                if let Some(exit) = exit.filter(|_| ended) {
                    let restarting = job.start && !job.kind.is_departure();
                    let exit = ExitEvent { requested_stop: true, restarting, ..exit };
                    record.last_exit = Some(exit.clone());
                    let detail = godwit_api::event::EventDetail { exit_event: Some(exit), ..Default::default() };
                    out.note("exit", MachineState::Stopped, job.source, Some(detail));
                }
            }
            Step::KillProcess if job.kind.is_departure() => {
                record.running = false;
                self.unheeded_exit = None;
            }
            Step::SwapSpec => {
                if let Some(placement) = job.placement.clone() {
                    // Both versions' shares are held to the job's end: the old one may be what runs then.
                    job.former = Some(std::mem::replace(&mut record.placement, placement));
                    record.refused_update = None;
                    record.refused_update_reason = None;
                }
            }
            Step::UnpackImage
            | Step::AwaitExit
            | Step::KillProcess
            | Step::FetchImage
            | Step::EnsureNetwork
            | Step::CloseDoor
            | Step::RemoveNetwork
            | Step::RemoveDriverState
            | Step::AcknowledgeTombstone
            | Step::RemoveVolume
            | Step::AttachVolumes
            | Step::DetachVolumes
            | Step::MakeReplicas
            | Step::RemoveReplicas
            | Step::CopyAhead
            | Step::StandBy
            | Step::StartAhead
            | Step::AskHandoff
            | Step::HandBack
            | Step::ServeExport
            | Step::PrepareExport
            | Step::EndExport
            | Step::AwaitWhole => {}
        }
    }

    /// The step failed and is tried again, unless it has been tried often enough and may be given up.
    fn again(&mut self, why: String, cx: &mut Context<'_>, out: &mut Effects) {
        let Some(job) = &mut self.job else { return };
        job.attempt = job.attempt.saturating_add(1);
        let abortable = job.on_abort() != OnAbort::Never;
        if abortable && self.cancel && !job.step.is_decided_elsewhere() {
            self.cancel = false;
            return self.abort(Fault::Cancelled, "a later request came in between".into(), None, cx, out);
        }
        if abortable && job.step.max_attempts().is_some_and(|most| job.attempt >= most) {
            return self.abort(Fault::System, why, None, cx, out);
        }
        job.retry_at_ms = Some(cx.now_ms.saturating_add(retry_after_ms(job.attempt)));
        // Told once for each step: whoever waits learns at the first failure why it takes long.
        let told = (told_as(job.kind), job.source);
        if let (1, (Some(kind), source)) = (job.attempt, told) {
            out.note(kind, self.record.state, source, reason(format!("{why}; it is tried again")));
            out.changed = true;
        }
        out.save(Sync::Process);
    }

    /// Nothing failed: it counts as no attempt, but the first time is told.
    fn stand_back(&mut self, why: String, cx: &mut Context<'_>, out: &mut Effects) {
        let Some(job) = &mut self.job else { return };
        let first = job.attempt == 0;
        if self.cancel || first {
            return self.again(why, cx, out);
        }
        job.retry_at_ms = Some(cx.now_ms.saturating_add(retry_after_ms(job.attempt)));
        out.save(Sync::Process);
    }

    pub(super) fn abort(
        &mut self,
        fault: Fault,
        why: String,
        exit: Option<ExitEvent>,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        if self.job.as_ref().is_some_and(|job| job.kind.is_departure() && job.is_forward()) {
            self.gives_up_departure(out);
        }
        let Some(job) = &mut self.job else { return };
        match job.on_abort() {
            // A Machine that stays, but whose process does not start again, is left to its restart policy.
            OnAbort::Never if job.kind.is_departure() && job.step == Step::StartProcess && !job.is_forward() => {
                if let Some(job) = self.job.take() {
                    let exit = exit.unwrap_or(ExitEvent { exit_code: -1, ..ExitEvent::default() });
                    self.finish_undone(job, cx, out);
                    self.process_ended(exit, 0, Some((fault, why)), cx, out);
                }
            }
            OnAbort::Never => {
                job.attempt = job.attempt.saturating_add(1);
                job.retry_at_ms = Some(cx.now_ms.saturating_add(retry_after_ms(job.attempt)));
                out.save(Sync::Process);
            }
            OnAbort::Drop => {
                if let Some(job) = self.job.take() {
                    self.drop_job(job, fault, why, cx, out);
                    self.heed_exit(cx, out);
                }
            }
            OnAbort::Unwind(_) => {
                let steps = job.unwinding().unwrap_or_default();
                job.phase = Phase::Unwinding { aborted_at: job.step, fault, reason: why, exit };
                job.attempt = 0;
                job.retry_at_ms = None;
                out.save(Sync::Process);
                match steps.first() {
                    Some(first) => {
                        job.step = *first;
                        out.perform = true;
                    }
                    None => {
                        if let Some(job) = self.job.take() {
                            self.finish_undone(job, cx, out);
                        }
                    }
                }
            }
        }
    }

    fn finish(&mut self, job: Job, cx: &mut Context<'_>, out: &mut Effects) {
        self.cancel = false;
        let record = &mut self.record;
        record.restart_due_ms = None;
        record.state = match job.kind {
            JobKind::Destroy | JobKind::VolumeDestroy | JobKind::Lend => MachineState::Destroyed,
            JobKind::MoveOut | JobKind::VolumeMoveOut => MachineState::Stopped,
            _ if job.start => MachineState::Started,
            // `created` is on its way here; what is ready to be started is stopped.
            _ => MachineState::Stopped,
        };
        record.reserved = match job.kind {
            JobKind::Destroy | JobKind::VolumeDestroy | JobKind::Lend => Resources::default(),
            // Kept until nobody can hand it back any more.
            JobKind::MoveOut | JobKind::VolumeMoveOut => record.reserved,
            _ => of_placement(&record.placement, record.running),
        };
        if record.state == MachineState::Destroyed {
            record.held = false;
            record.refused = None;
            record.lent = None;
            out.save(Sync::Disk);
        }
        let status = record.state;
        match job.kind {
            JobKind::Stop => out.note("stop", status, job.source, None),
            JobKind::Update => out.note("update", status, job.source, None),
            JobKind::Destroy => out.note("destroy", status, job.source, None),
            JobKind::Create if !job.start => out.note("prepare", status, job.source, None),
            JobKind::VolumeDestroy | JobKind::Lend => out.note("destroy", status, job.source, None),
            JobKind::VolumeCreate => out.note("prepare", status, job.source, None),
            JobKind::Hydrate => out.note("hydrate", status, job.source, None),
            JobKind::MoveIn | JobKind::VolumeMoveIn => {
                if let Some(moving) = &mut self.record.moving {
                    moving.enter(MovePart::Done, cx.now_ms);
                }
                out.note("migrate", status, job.source, None);
            }
            JobKind::Create
            | JobKind::Start
            | JobKind::Restart
            | JobKind::MoveOut
            | JobKind::VolumeMoveOut
            | JobKind::TakeBack
            | JobKind::VolumeTakeBack => {}
        }
        out.save(Sync::Process);
        out.changed = true;
        for id in std::mem::take(&mut self.waiters) {
            out.answer(id, Answer::Ended { previous: job.prior });
        }
        match job.kind {
            // What a Machine's volumes do in a transaction of theirs, a volume that moves by itself does here.
            JobKind::VolumeMoveOut => self.begin(Draft::of(JobKind::Lend, Source::Host), None, cx, out),
            JobKind::VolumeMoveIn if self.record.hydration.is_some() => {
                self.begin(Draft::of(JobKind::Hydrate, Source::Host), None, cx, out)
            }
            _ => self.heed_exit(cx, out),
        }
    }

    /// Nothing of the job was seen by anybody.
    fn drop_job(&mut self, job: Job, fault: Fault, why: String, cx: &Context<'_>, out: &mut Effects) {
        self.cancel = false;
        let refusal = match fault {
            Fault::Cancelled => Refusal::Cancelled,
            _ => Refusal::Placement(why.clone()),
        };
        match (job.kind, fault) {
            (JobKind::MoveIn | JobKind::VolumeMoveIn, _) => self.refuse_arrival(why, MovePart::Refused, cx.now_ms, out),
            // The one that is destroyed in the midst of it.
            (JobKind::Hydrate | JobKind::Lend, _) => out.save(Sync::Disk),
            (JobKind::Create | JobKind::VolumeCreate, Fault::Cancelled) => {
                self.record.reserved = Resources::default();
                self.record.state = MachineState::Failed;
                out.save(Sync::Disk);
                out.changed = true;
            }
            // No other host could do better: it stays here, to be looked at, updated or destroyed.
            (JobKind::Create, Fault::User) => self.fail_here(why, job.source, out),
            (JobKind::Create | JobKind::VolumeCreate, _) => self.refuse_placement(why, job.source, out),
            _ => self.drop_update(&job, fault, why, out),
        }
        for id in std::mem::take(&mut self.waiters) {
            out.refuse(id, refusal.clone());
        }
    }

    /// The old version stays as if nothing had been asked.
    fn drop_update(&mut self, job: &Job, fault: Fault, why: String, out: &mut Effects) {
        let record = &mut self.record;
        let lives = record.running || record.restart_due_ms.is_some();
        record.state = match (record.running, lives) {
            (true, _) => MachineState::Started,
            (false, true) => MachineState::Restarting,
            (false, false) => job.prior,
        };
        record.reserved = need(&record.placement.config, lives);
        if fault != Fault::Cancelled {
            record.refused_update = job.placement.as_ref().map(|p| (p.epoch, p.instance_id.clone()));
            record.refused_update_reason = Some(why.clone());
        }
        out.note("update", record.state, job.source, reason(why));
        out.save(Sync::Disk);
        out.changed = true;
    }

    /// The new version can never be started as it is (its program is missing, its user is unknown): the one before takes
    /// its place again, and runs again if it ran.
    fn go_back(&mut self, job: Job, why: String, cx: &mut Context<'_>, out: &mut Effects) {
        let Some(former) = job.former else { return };
        let record = &mut self.record;
        let refused = std::mem::replace(&mut record.placement, former);
        record.refused_update = Some((refused.epoch, refused.instance_id));
        record.refused_update_reason = Some(why.clone());
        let lives = job.stop != StopMode::Leave || record.restart_due_ms.is_some();
        record.state = if lives { MachineState::Stopped } else { job.prior };
        record.reserved = need(&record.placement.config, lives);
        out.note("update", record.state, job.source, reason(format!("{why}; the version before it stands")));
        out.save(Sync::Disk);
        out.changed = true;
        for id in std::mem::take(&mut self.waiters) {
            out.refuse(id, Refusal::Placement(why.clone()));
        }
        if lives {
            out.note("start", MachineState::Starting, Source::Host, None);
            self.begin(Draft { start: true, ..Draft::of(JobKind::Start, Source::Host) }, None, cx, out);
        }
    }

    /// The start was taken back: its process is proven dead.
    fn finish_undone(&mut self, job: Job, cx: &mut Context<'_>, out: &mut Effects) {
        let Phase::Unwinding { fault, reason: why, exit, aborted_at } = job.phase.clone() else { return };
        self.cancel = false;
        if job.kind.is_departure() {
            self.stays(why, cx.now_ms, out);
            let kept = std::mem::take(&mut self.waiters);
            kept.into_iter().for_each(|id| out.refuse(id, Refusal::Cancelled));
            return self.heed_exit(cx, out);
        }
        if job.kind.is_arrival() && aborted_at != Step::StartProcess {
            let back = aborted_at == Step::AttachVolumes;
            let part = if back { MovePart::TakenBack } else { MovePart::Refused };
            self.refuse_arrival(why.clone(), part, cx.now_ms, out);
            let waiters = std::mem::take(&mut self.waiters);
            return waiters.into_iter().for_each(|id| out.refuse(id, Refusal::Failed(why.clone())));
        }
        if let Some(moving) = self.record.moving.as_mut().filter(|_| job.kind.is_arrival()) {
            moving.enter(MovePart::Done, cx.now_ms);
        }
        self.record.running = false;
        if fault == Fault::User && job.former.is_some() {
            return self.go_back(job, why, cx, out);
        }
        out.changed = true;
        out.save(Sync::Process);
        let waiters = std::mem::take(&mut self.waiters);
        if fault == Fault::Cancelled {
            self.record.state = MachineState::Stopped;
            self.record.reserved = need(&self.record.placement.config, false);
            waiters.into_iter().for_each(|id| out.refuse(id, Refusal::Cancelled));
            return;
        }
        let exit = exit.unwrap_or(ExitEvent { exit_code: -1, ..ExitEvent::default() });
        self.process_ended(exit, 0, Some((fault, why.clone())), cx, out);
        waiters.into_iter().for_each(|id| out.refuse(id, Refusal::Failed(why.clone())));
    }
}

/// The kind of event by which owners know a job; of what is told otherwise: none.
fn told_as(kind: JobKind) -> Option<&'static str> {
    match kind {
        JobKind::Create | JobKind::VolumeCreate => Some("launch"),
        JobKind::Start => Some("start"),
        JobKind::Restart => Some("restart"),
        JobKind::Update => Some("update"),
        _ => None,
    }
}
