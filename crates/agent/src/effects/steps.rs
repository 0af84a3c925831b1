//! The steps themselves: each calls one organ and turns what it answers into an outcome. Each may run again at any
//! time, after it was cut off at any instant.

use std::time::Duration;

use godwit_api::event::ExitEvent;
use godwit_api::row::Placement;
use godwit_base::clock;
use godwit_base::telemetry::chain;
use godwit_driver::{Error as DriverError, Found, LogLimits};
use godwit_machine::{Fault, Outcome, Step, signal};
use godwit_oci::Blame;

use super::{Effects, exit_event, within};
use crate::engine::Work;
use crate::spec::{Surroundings, build};

/// Beyond the door's own drain time: for its answer to arrive.
const DRAIN_MARGIN: Duration = Duration::from_secs(1);
/// A host's `resolv.conf` beyond this is none.
const RESOLV_CONF_MAX_BYTES: usize = 64 << 10;

impl Effects {
    pub(super) async fn step(&self, work: &Work) -> Outcome {
        match work.job.step {
            Step::FetchImage => self.fetch_image(wanted(work)).await,
            Step::UnpackImage => self.unpack_image(wanted(work)).await,
            Step::EnsureNetwork => self.ensure_network(wanted(work)).await,
            Step::StartProcess => self.start_process(work).await,
            Step::CloseDoor => self.close_door(work).await,
            Step::SignalProcess => self.signal_process(work).await,
            Step::AwaitExit => self.await_exit(work).await,
            Step::KillProcess => self.kill_process(work).await,
            Step::RemoveNetwork => match self.shared.organs.network.remove(work.machine.as_str()).await {
                Ok(()) => Outcome::done(),
                Err(error) => Outcome::Retry { reason: chain(&error) },
            },
            Step::RemoveDriverState => self.remove_driver_state(work).await,
            Step::MakeVolume => self.make_volume(work).await,
            Step::RemoveVolume => self.remove_volume(&work.machine).await,
            Step::AttachVolumes => self.attach_volumes(work).await,
            Step::DetachVolumes => self.detach_volumes(work).await,
            Step::MakeReplicas => self.make_replicas(work).await,
            Step::RemoveReplicas => self.remove_replicas(work).await,
            Step::CopyAhead => self.copy_ahead(work).await,
            Step::StandBy => self.stand_by(work).await,
            Step::StartAhead => self.start_ahead(work).await,
            Step::AskHandoff => self.ask_handoff(work).await,
            Step::HandBack => self.hand_back(work).await,
            Step::PrepareExport => self.prepare_export(work).await,
            Step::ServeExport => self.serve_export(work).await,
            Step::EndExport => self.end_export(work).await,
            Step::AwaitWhole => self.await_whole(work).await,
            Step::ReleaseSource => self.release_source(work).await,
            // The journal's row is the whole effect.
            Step::SwapSpec | Step::AcknowledgeTombstone | Step::HandOff => Outcome::done(),
        }
    }

    async fn fetch_image(&self, placement: &Placement) -> Outcome {
        match self.shared.organs.images.fetch(&placement.image_name, &placement.image_digest).await {
            Ok(()) => Outcome::done(),
            Err(error) => image_outcome(&error),
        }
    }

    async fn unpack_image(&self, placement: &Placement) -> Outcome {
        // Dropping what comes back drops its lease: from here on the Machine's row keeps the image.
        match self.shared.organs.images.ensure(&placement.image_name, &placement.image_digest).await {
            Ok(_) => Outcome::done(),
            Err(error) => image_outcome(&error),
        }
    }

    async fn ensure_network(&self, placement: &Placement) -> Outcome {
        match self.shared.organs.network.ensure(placement.machine.as_str(), placement.private_ip).await {
            Ok(_) => Outcome::done(),
            Err(error) if error.is_callers_fault() => abort(Fault::User, chain(&error)),
            Err(error) => Outcome::Retry { reason: chain(&error) },
        }
    }

    pub(super) async fn start_process(&self, work: &Work) -> Outcome {
        let placement = wanted(work);
        let Some(run) = &work.job.run else {
            return abort(Fault::System, "the job has no run id".into());
        };
        let organs = &self.shared.organs;
        // After a reboot layers may be gone that were not on disk yet.
        let unpacked = match organs.images.ensure(&placement.image_name, &placement.image_digest).await {
            Ok(unpacked) => unpacked,
            Err(error) => return image_outcome(&error),
        };
        let volumes = match self.mounts(work, placement).await {
            Ok(volumes) => volumes,
            Err(outcome) => return outcome,
        };
        let resolv_conf = read_resolv_conf(&self.shared.config.resolv_conf);
        let around = Surroundings {
            host: &self.shared.host,
            run,
            dir: self.machine_dir(&work.machine),
            netns: organs.network.namespace(work.machine.as_str()),
            lowers_base: unpacked.base.clone(),
            lowers: unpacked.lowers.clone(),
            image: &unpacked.config,
            resolv_conf: &resolv_conf,
            volumes,
            log: LogLimits::keeping(self.shared.config.kept_log_bytes),
        };
        let spec = match build(placement, around) {
            Ok(spec) => spec,
            Err(reason) => return abort(Fault::User, reason),
        };
        if let Err(error) = tokio::fs::create_dir_all(&spec.dir).await {
            return Outcome::Retry { reason: format!("cannot make the Machine's folder: {error}") };
        }
        match organs.driver.start(&spec).await {
            Ok(handle) => {
                self.remember(&work.machine, handle);
                self.look_at_start(work).await;
                Outcome::done()
            }
            Err(error) => start_outcome(&error),
        }
    }

    /// Until the door says that nothing is in flight, or its time is over, or there is no door that could have let
    /// anything in.
    async fn close_door(&self, work: &Work) -> Outcome {
        let leaving = work.record.moving.as_ref().filter(|_| work.job.kind.is_departure());
        let drain = leaving.map_or(self.shared.config.drain_timeout, |m| Duration::from_millis(m.drain_timeout_ms));
        let bound = drain + DRAIN_MARGIN;
        if within(bound, self.shared.hub.drained(work.job.id)).await.is_none() {
            tracing::warn!(machine = %work.machine, "the door did not report its drain in time");
        }
        Outcome::done()
    }

    async fn signal_process(&self, work: &Work) -> Outcome {
        let config = &work.record.placement.config.stop_config;
        let image = self.shared.organs.images.stop_signal(&work.record.placement.image_digest);
        let number = signal::stop_signal(work.job.stop_signal.as_deref(), config, image.as_deref());
        let handle = match self.find(&work.machine).await {
            Ok(Found::Running(handle)) => handle,
            Ok(_) => return Outcome::done(),
            Err(error) => return Outcome::Retry { reason: chain(&error) },
        };
        match self.shared.organs.driver.signal(&handle, number).await {
            Ok(()) | Err(DriverError::NotRunning) => Outcome::done(),
            // What cannot be asked is killed when its time is over.
            Err(error) if !error.may_retry() => {
                tracing::warn!(machine = %work.machine, error = chain(&error), "cannot signal it");
                Outcome::done()
            }
            Err(error) => Outcome::Retry { reason: chain(&error) },
        }
    }

    async fn await_exit(&self, work: &Work) -> Outcome {
        let timeout = signal::stop_timeout_ms(work.job.stop_timeout_ms, &work.record.placement.config.stop_config);
        let deadline_ms = work.job.signalled_at_ms.unwrap_or(work.job.accepted_at_ms).saturating_add(timeout);
        // A clock that was set back must not make it longer than asked.
        let left = Duration::from_millis(deadline_ms.saturating_sub(clock::unix_ms()).min(timeout));
        let handle = match self.find_stalled(work).await {
            Ok(Found::Running(handle)) => handle,
            other => return self.ended(work, other),
        };
        match within(left, self.shared.organs.driver.wait(&handle)).await {
            Some(Ok(_)) => {
                let found = self.find(&work.machine).await;
                self.ended(work, found)
            }
            Some(Err(error)) => Outcome::Retry { reason: chain(&error) },
            None => {
                tracing::info!(machine = %work.machine, timeout_ms = timeout, "it did not stop in time, and is killed");
                self.kill_process(work).await
            }
        }
    }

    pub(super) async fn kill_process(&self, work: &Work) -> Outcome {
        let handle = match self.find_stalled(work).await {
            Ok(Found::Running(handle)) => handle,
            other => return self.ended(work, other),
        };
        match self.kill_stalled(work, self.shared.organs.driver.kill(&handle)).await {
            Ok(_) | Err(DriverError::NotRunning) => {
                let found = self.find(&work.machine).await;
                self.ended(work, found)
            }
            Err(error) => Outcome::Retry { reason: chain(&error) },
        }
    }

    /// Without its shim, what is left of a Machine is killed by the looking itself, and may wait for a block.
    async fn find_stalled(&self, work: &Work) -> Result<Found, DriverError> {
        self.kill_stalled(work, self.find(&work.machine)).await
    }

    /// `find` answers `Exited` or `Nothing` only after nothing of the Machine lives.
    fn ended(&self, work: &Work, found: Result<Found, DriverError>) -> Outcome {
        match found {
            Ok(Found::Running(_)) => Outcome::Retry { reason: "it is still running".into() },
            Ok(Found::Exited(exit)) => {
                self.forget(&work.machine);
                let of_this_run = work.record.run.as_ref() == Some(&exit.instance);
                Outcome::Done { exit: of_this_run.then(|| exit_event(&exit)) }
            }
            Ok(Found::Nothing) => {
                self.forget(&work.machine);
                Outcome::done()
            }
            Err(error) => Outcome::Retry { reason: chain(&error) },
        }
    }

    async fn remove_driver_state(&self, work: &Work) -> Outcome {
        let dir = self.machine_dir(&work.machine);
        if let Err(error) = self.shared.organs.driver.remove(&dir).await {
            return Outcome::Retry { reason: chain(&error) };
        }
        // The folder is the agent's own: whatever else lies in it goes too.
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Outcome::Retry { reason: format!("cannot remove the Machine's folder: {error}") }
            }
            _ => Outcome::done(),
        }
    }
}

/// The configuration that the job brings, or the one that is held.
fn wanted(work: &Work) -> &Placement {
    work.job.placement.as_ref().unwrap_or(&work.record.placement)
}

fn abort(fault: Fault, reason: String) -> Outcome {
    Outcome::Abort { fault, reason, exit: None }
}

/// A registry that does not know us today may tomorrow; an image that is not there or is none never becomes one.
fn image_outcome(error: &godwit_oci::Error) -> Outcome {
    let passing = error.may_retry() || matches!(error, godwit_oci::Error::Registry { status: 401 | 403, .. });
    match (passing, error.blame()) {
        (true, _) => Outcome::Retry { reason: chain(error) },
        (false, Blame::Host) => abort(Fault::System, chain(error)),
        (false, _) => abort(Fault::User, chain(error)),
    }
}

fn start_outcome(error: &DriverError) -> Outcome {
    match error {
        DriverError::StartFailed { exit_code, reason } => {
            let exit_code = exit_code.unwrap_or(-1);
            let exited_at = clock::rfc3339(clock::unix_ms());
            let exit = ExitEvent { exit_code, guest_exit_code: exit_code, exited_at, ..ExitEvent::default() };
            Outcome::Abort { fault: Fault::User, reason: reason.clone(), exit: Some(exit) }
        }
        DriverError::Invalid { .. } => abort(Fault::User, chain(error)),
        error if error.may_retry() => Outcome::Retry { reason: chain(error) },
        // Also another instance that lives although nobody knows of it: undoing the start proves it dead.
        error => abort(Fault::System, chain(error)),
    }
}

/// Absent or unreadable means that Machines get no name servers of the host's.
fn read_resolv_conf(path: &std::path::Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    if text.len() > RESOLV_CONF_MAX_BYTES { String::new() } else { text }
}
