//! What the end of a process means when nobody asked for it, and what is made of a Machine that was found again after
//! the agent, or its whole host, was started anew. It must not know steps.

use godwit_api::Span;
use godwit_api::config::{Restart, RestartPolicy};
use godwit_api::event::{EventDetail, ExitEvent};
use godwit_api::machine::MachineState;

use super::{Adopted, Ask, AskId, Context, Draft, Effects, Life, Sync, Until, What};
use crate::capacity::need;
use crate::job::{Fault, JobKind, StopMode};
use crate::record::Source;
use crate::restart::{DEFAULT_MAX_RETRIES, Decision, decide, is_failure};

/// Nobody waits for the answer to a Machine's own wish.
const NOBODY: AskId = AskId(0);

impl Life {
    pub(super) fn exited(&mut self, run: String, exit: ExitEvent, cx: &mut Context<'_>, out: &mut Effects) {
        if !self.record.running || self.record.run.as_ref() != Some(&run) {
            return;
        }
        if self.job.is_some() || self.adopting {
            // The job may stop it anyway, and then this was its doing.
            self.unheeded_exit = Some((run, exit));
            return;
        }
        self.ended_by_itself(exit, cx, out);
    }

    /// An end that came during a job and that the job did not bring about.
    pub(super) fn heed_exit(&mut self, cx: &mut Context<'_>, out: &mut Effects) {
        if let Some((run, exit)) = self.unheeded_exit.take()
            && self.record.running
            && self.record.run.as_ref() == Some(&run)
        {
            self.ended_by_itself(exit, cx, out);
        }
    }

    fn ended_by_itself(&mut self, exit: ExitEvent, cx: &mut Context<'_>, out: &mut Effects) {
        let ran_for_ms = cx.now_ms.saturating_sub(self.record.started_at_ms.unwrap_or(cx.now_ms));
        self.process_ended(exit, ran_for_ms, None, cx, out);
    }

    /// Policy decides. `not_started`: it never ran, by whose fault and why; what stays down then is `failed`. What only
    /// its owner can mend (no such program, no such user) is not tried again by itself.
    pub(super) fn process_ended(
        &mut self,
        exit: ExitEvent,
        ran_for_ms: u64,
        not_started: Option<(Fault, String)>,
        cx: &mut Context<'_>,
        out: &mut Effects,
    ) {
        let record = &mut self.record;
        record.running = false;
        let restart = &record.placement.config.restart;
        let decision = match &not_started {
            Some((Fault::User, _)) => Decision::Stay,
            _ => decide(restart, &exit, ran_for_ms, record.retries),
        };
        let gave_up = record.retries > 0 && restart.policy == RestartPolicy::OnFailure && is_failure(&exit);
        let failed = not_started.is_some();
        let what = not_started.map_or_else(|| exit.words(), |(_, why)| why);
        let why = match decision {
            Decision::Restart { after_ms, retries } => {
                format!("restart {} in {}: {what}", counted(restart, retries), Span::from_millis(after_ms))
            }
            Decision::Stay if gave_up => format!("gave up after {}: {what}", times(record.retries)),
            Decision::Stay => what,
        };
        let restarting = matches!(decision, Decision::Restart { .. });
        let exit = ExitEvent { restarting, ..exit };
        record.last_exit = Some(exit.clone());
        match decision {
            Decision::Restart { after_ms, retries } => {
                record.retries = retries;
                record.restart_due_ms = Some(cx.now_ms.saturating_add(after_ms));
                record.state = MachineState::Restarting;
                // Its share is kept, so that the restart cannot be refused for want of it.
                record.reserved = need(&record.placement.config, true);
            }
            Decision::Stay => {
                record.restart_due_ms = None;
                record.state = if failed { MachineState::Failed } else { MachineState::Stopped };
                record.reserved = need(&record.placement.config, false);
            }
        }
        let detail =
            EventDetail { exit_event: Some(exit), restart_count: Some(record.restart_count), reason: Some(why) };
        out.note("exit", record.state, Source::Host, Some(detail));
        out.save(Sync::Process);
        out.changed = true;
        if !restarting && self.record.placement.config.auto_destroy {
            self.waiting.push_front(Ask {
                id: NOBODY,
                what: What::Destroy,
                source: Source::Host,
                until: Until::Accepted,
            });
        }
    }

    pub(super) fn adopted(&mut self, found: Adopted, rebooted: bool, cx: &mut Context<'_>, out: &mut Effects) {
        self.adopting = false;
        if self.job.is_some() {
            self.resume(found, rebooted, cx, out);
        } else if self.record.running {
            self.find_again(found, rebooted, cx, out);
        } else if matches!(found, Adopted::Running { .. }) {
            // The journal has proof of its end, so this is nobody's Machine any more.
            let draft = Draft { stop: StopMode::Kill, ..Draft::of(JobKind::Stop, Source::Host) };
            self.begin(draft, None, cx, out);
        } else if rebooted && self.record.restart_due_ms.is_some() {
            // Moments of before the reboot mean nothing.
            self.record.restart_due_ms = Some(cx.now_ms);
            out.save(Sync::Process);
        }
    }

    fn find_again(&mut self, found: Adopted, rebooted: bool, cx: &mut Context<'_>, out: &mut Effects) {
        let run = self.record.run.clone();
        match found {
            Adopted::Running { run: found } if Some(&found) == run.as_ref() => out.watch = true,
            Adopted::Running { .. } => {
                let draft = Draft { stop: StopMode::Kill, start: true, ..Draft::of(JobKind::Restart, Source::Host) };
                self.begin(draft, None, cx, out);
            }
            Adopted::Nothing | Adopted::Lost { .. } if rebooted => {
                self.record.running = false;
                out.note("start", MachineState::Starting, Source::Host, super::reason("the host was started anew"));
                let draft = Draft { start: true, ..Draft::of(JobKind::Start, Source::Host) };
                self.begin(draft, None, cx, out);
            }
            Adopted::Exited { exit, .. } | Adopted::Lost { exit, .. } => self.ended_by_itself(exit, cx, out),
            Adopted::Nothing => self.ended_by_itself(unseen(), cx, out),
        }
    }

    fn resume(&mut self, found: Adopted, rebooted: bool, cx: &mut Context<'_>, out: &mut Effects) {
        let Some(job) = &mut self.job else { return };
        let alive = match &found {
            Adopted::Running { run } => job.run.as_ref() == Some(run) || self.record.run.as_ref() == Some(run),
            _ => false,
        };
        // An agent that died again after it had begun to start things anew finds them alive: that is no reboot to them.
        if rebooted && !alive {
            // What the old id names may have run and died with the host: a new start needs a new one.
            if job.run.is_some() && job.is_forward() {
                job.run = Some(cx.run_id());
            }
            if self.record.running {
                self.record.running = false;
                if job.kind == JobKind::Update {
                    self.record.restart_due_ms = Some(cx.now_ms);
                }
            }
            job.retry_at_ms = None;
            out.save(Sync::Process);
        } else if self.record.running {
            let run = self.record.run.clone().unwrap_or_default();
            match found {
                Adopted::Running { run: found } if found == run => out.watch = true,
                Adopted::Exited { run: found, exit } | Adopted::Lost { run: found, exit } if found == run => {
                    self.unheeded_exit = Some((run, exit));
                }
                Adopted::Nothing => self.unheeded_exit = Some((run, unseen())),
                _ => {}
            }
        }
        let waits = self.job.as_ref().is_some_and(|job| job.retry_at_ms.is_some());
        out.perform = !waits;
    }
}

/// `2 of 10`, or `2` where the policy sets no bound.
fn counted(restart: &Restart, retries: u32) -> String {
    match restart.policy {
        RestartPolicy::OnFailure => format!("{retries} of {}", restart.max_retries.unwrap_or(DEFAULT_MAX_RETRIES)),
        RestartPolicy::No | RestartPolicy::Always => retries.to_string(),
    }
}

fn times(retries: u32) -> String {
    if retries == 1 { "1 restart".to_owned() } else { format!("{retries} restarts") }
}

/// An end that nobody saw and of which nothing is left.
fn unseen() -> ExitEvent {
    ExitEvent { exit_code: -1, signal: -1, ..ExitEvent::default() }
}
