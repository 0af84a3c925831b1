//! Jobs and their step tables: what a host does to a Machine, in which order, and how far it can be taken back.
//! It must not know how a step is carried out.
//!
//! Every step is idempotent: it may run again after a SIGKILL at any instant. A reservation of memory, processor or
//! disk is no step: it is part of the transaction that accepts the job, so there is no moment between the two.
//! What a step's end makes known (running, stopped) is part of that step's outcome for the same reason.

use serde::{Deserialize, Serialize};

use godwit_api::event::ExitEvent;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Create,
    Start,
    Stop,
    Restart,
    Update,
    Destroy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Every blob of the image is here and its digest holds.
    FetchImage,
    /// The image's layers are folders.
    UnpackImage,
    /// Namespace, link, addresses and rules stand.
    EnsureNetwork,
    /// The process runs under the run id that the job drew. Done makes it known.
    StartProcess,
    /// The door admits nothing; what was in flight has ended or met its deadline.
    CloseDoor,
    /// The process was asked to stop.
    SignalProcess,
    /// The process has ended, or was killed at its deadline. Done makes it known.
    AwaitExit,
    /// The process was killed at once and is proven dead.
    KillProcess,
    /// The new configuration is the Machine's own.
    SwapSpec,
    RemoveNetwork,
    /// Writable layer, logs and run files are gone.
    RemoveDriverState,
    /// The host remembers and publishes that the Machine is destroyed at this epoch.
    AcknowledgeTombstone,
}

/// Under which circumstances, fixed when the job is accepted, a row of a table is part of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// The process is asked to stop.
    Graceful,
    /// The process is killed at once.
    Kill,
    /// The job ends with a running process.
    Starting,
}

/// What an abort at a step leads to: here one sees where a job's point of no return lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAbort {
    /// Nothing that the job did is seen by anybody: it is dropped.
    Drop,
    /// These steps undo it. They are never given up.
    Unwind(&'static [Step]),
    /// Past the point of no return: an abort is answered by another attempt.
    Never,
}

/// One row of a job's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepRow {
    pub step: Step,
    pub when: When,
    pub on_abort: OnAbort,
}

/// How a job treats a process that may run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    #[default]
    Leave,
    Graceful,
    Kill,
}

/// Whose fault an abort is: the owner's (image, configuration) or this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    User,
    System,
    /// Nobody's: a later request made the job pointless.
    Cancelled,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// `exit`: how the process ended, of the steps that end one.
    Done { exit: Option<ExitEvent> },
    /// Not now; again after a wait that grows with each attempt.
    Retry { reason: String },
    /// Never, as things stand. `exit`: the process was started and failed at once.
    Abort { fault: Fault, reason: String, exit: Option<ExitEvent> },
}

impl Outcome {
    pub fn done() -> Self {
        Self::Done { exit: None }
    }
}

const fn row(step: Step, when: When, on_abort: OnAbort) -> StepRow {
    StepRow { step, when, on_abort }
}

const UNDO_START: &[Step] = &[Step::KillProcess];

// The image comes first: a host that cannot get it has touched nothing, and refuses.
const CREATE: &[StepRow] = &[
    row(Step::FetchImage, When::Always, OnAbort::Drop),
    row(Step::UnpackImage, When::Always, OnAbort::Drop),
    row(Step::EnsureNetwork, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

// The network stays while a Machine is stopped, so that a wake finds it; after a reboot it is made again here.
const START: &[StepRow] = &[
    row(Step::EnsureNetwork, When::Always, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Always, OnAbort::Unwind(UNDO_START)),
];

// The door closes before the signal, so that no request meets a dying process.
const STOP: &[StepRow] = &[
    row(Step::CloseDoor, When::Graceful, OnAbort::Never),
    row(Step::SignalProcess, When::Graceful, OnAbort::Never),
    row(Step::AwaitExit, When::Graceful, OnAbort::Never),
    row(Step::KillProcess, When::Kill, OnAbort::Never),
];

const RESTART: &[StepRow] = &[
    row(Step::CloseDoor, When::Graceful, OnAbort::Never),
    row(Step::SignalProcess, When::Graceful, OnAbort::Never),
    row(Step::AwaitExit, When::Graceful, OnAbort::Never),
    row(Step::KillProcess, When::Kill, OnAbort::Never),
    row(Step::EnsureNetwork, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

// The new image is here before the old process is stopped: without it the old version runs on as if nothing had been
// asked, and with it the pause is as short as that of a restart.
const UPDATE: &[StepRow] = &[
    row(Step::FetchImage, When::Always, OnAbort::Drop),
    row(Step::UnpackImage, When::Always, OnAbort::Drop),
    row(Step::CloseDoor, When::Graceful, OnAbort::Never),
    row(Step::SignalProcess, When::Graceful, OnAbort::Never),
    row(Step::AwaitExit, When::Graceful, OnAbort::Never),
    row(Step::SwapSpec, When::Always, OnAbort::Never),
    row(Step::EnsureNetwork, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

// The address goes only when nobody can speak from it any more. Nothing here is ever given up.
const DESTROY: &[StepRow] = &[
    row(Step::CloseDoor, When::Graceful, OnAbort::Never),
    row(Step::SignalProcess, When::Graceful, OnAbort::Never),
    row(Step::AwaitExit, When::Graceful, OnAbort::Never),
    row(Step::KillProcess, When::Kill, OnAbort::Never),
    row(Step::RemoveNetwork, When::Always, OnAbort::Never),
    row(Step::RemoveDriverState, When::Always, OnAbort::Never),
    row(Step::AcknowledgeTombstone, When::Always, OnAbort::Never),
];

/// The table of a kind of job.
pub const fn table(kind: JobKind) -> &'static [StepRow] {
    match kind {
        JobKind::Create => CREATE,
        JobKind::Start => START,
        JobKind::Stop => STOP,
        JobKind::Restart => RESTART,
        JobKind::Update => UPDATE,
        JobKind::Destroy => DESTROY,
    }
}

impl StepRow {
    fn applies(&self, stop: StopMode, start: bool) -> bool {
        match self.when {
            When::Always => true,
            When::Graceful => stop == StopMode::Graceful,
            When::Kill => stop == StopMode::Kill,
            When::Starting => start,
        }
    }
}

/// The rows that a job consists of.
pub fn rows(kind: JobKind, stop: StopMode, start: bool) -> impl Iterator<Item = &'static StepRow> {
    table(kind).iter().filter(move |row| row.applies(stop, start))
}

/// The row after `step`, or the first one.
pub fn next(kind: JobKind, stop: StopMode, start: bool, step: Option<Step>) -> Option<&'static StepRow> {
    let mut rows = rows(kind, stop, start);
    if let Some(step) = step {
        rows.by_ref().find(|row| row.step == step)?;
    }
    rows.next()
}

impl JobKind {
    pub const ALL: [JobKind; 6] = [Self::Create, Self::Start, Self::Stop, Self::Restart, Self::Update, Self::Destroy];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Update => "update",
            Self::Destroy => "destroy",
        }
    }
}

impl Step {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FetchImage => "fetch_image",
            Self::UnpackImage => "unpack_image",
            Self::EnsureNetwork => "ensure_network",
            Self::StartProcess => "start_process",
            Self::CloseDoor => "close_door",
            Self::SignalProcess => "signal_process",
            Self::AwaitExit => "await_exit",
            Self::KillProcess => "kill_process",
            Self::SwapSpec => "swap_spec",
            Self::RemoveNetwork => "remove_network",
            Self::RemoveDriverState => "remove_driver_state",
            Self::AcknowledgeTombstone => "acknowledge_tombstone",
        }
    }

    /// After so many attempts a failure of this host counts as an abort, where the table allows one. `None`: an image
    /// is fetched again for as long as its source is away, and what must end is tried until it does.
    pub fn max_attempts(self) -> Option<u32> {
        match self {
            Self::UnpackImage | Self::EnsureNetwork | Self::StartProcess => Some(5),
            _ => None,
        }
    }

    /// May its effect be cut off at any instant?
    pub fn is_interruptible(self) -> bool {
        matches!(self, Self::FetchImage)
    }

    /// Is the door shut to the Machine while a job stands at this step?
    pub fn closes_door(self) -> bool {
        matches!(self, Self::CloseDoor | Self::SignalProcess | Self::AwaitExit | Self::KillProcess)
    }
}

/// Wait before the second attempt of a step; it doubles up to the bound.
pub const RETRY_FIRST_MS: u64 = 200;
pub const RETRY_MAX_MS: u64 = 30_000;

/// The wait after attempt `attempt` (from 1).
pub fn retry_after_ms(attempt: u32) -> u64 {
    RETRY_FIRST_MS.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(RETRY_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_reached_and_no_step_stands_twice_in_a_job() {
        for kind in JobKind::ALL {
            for stop in [StopMode::Leave, StopMode::Graceful, StopMode::Kill] {
                for start in [false, true] {
                    let mut seen = Vec::new();
                    let mut at = None;
                    while let Some(row) = next(kind, stop, start, at) {
                        assert!(!seen.contains(&row.step), "{kind:?} {:?}", row.step);
                        seen.push(row.step);
                        at = Some(row.step);
                    }
                    assert_eq!(seen, rows(kind, stop, start).map(|row| row.step).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn a_stop_and_a_destroy_only_go_forward() {
        for kind in [JobKind::Stop, JobKind::Destroy] {
            assert!(table(kind).iter().all(|row| row.on_abort == OnAbort::Never), "{kind:?}");
        }
    }

    #[test]
    fn whatever_starts_a_process_is_undone_by_its_proven_death() {
        for kind in JobKind::ALL {
            for row in table(kind).iter().filter(|row| row.step == Step::StartProcess) {
                assert_eq!(row.on_abort, OnAbort::Unwind(&[Step::KillProcess]), "{kind:?}");
            }
        }
    }

    #[test]
    fn waits_grow_to_their_bound() {
        assert_eq!((retry_after_ms(1), retry_after_ms(2), retry_after_ms(90)), (200, 400, RETRY_MAX_MS));
    }
}
