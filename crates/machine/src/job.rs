//! Jobs and their step tables: what a host does to a Machine, in which order, and how far it can be taken back.
//! It must not know how a step is carried out.
//!
//! Every step is idempotent: it may run again after a SIGKILL at any instant. A reservation of memory, processor or
//! disk is no step: it is part of the transaction that accepts the job, so there is no moment between the two.
//! What a step's end makes known (running, stopped) is part of that step's outcome for the same reason.

use serde::{Deserialize, Serialize};

use godwit_api::event::ExitEvent;
use godwit_api::ticket::Grant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Create,
    Start,
    Stop,
    Restart,
    Update,
    Destroy,
    /// At the target, which leads: everything that can be made before the source is asked, then the rest.
    MoveIn,
    /// At the source, which alone decides.
    MoveOut,
    /// At the source: the target could not take what was handed off.
    TakeBack,
    VolumeCreate,
    VolumeDestroy,
    /// A volume that nothing holds moves as a Machine does.
    VolumeMoveIn,
    VolumeMoveOut,
    VolumeTakeBack,
    /// At the target: until every block is here, and the source may forget its own.
    Hydrate,
    /// At the source: until the target has every block.
    Lend,
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
    /// The volume's file is there, with its file system.
    MakeVolume,
    RemoveVolume,
    /// Each volume has a device that a process can use. Of a move, its Done is the point of no return.
    AttachVolumes,
    /// No device of the volumes is left, and what was written to them is on disk.
    DetachVolumes,
    /// At the target: empty files, maps and keys for the volumes that come.
    MakeReplicas,
    RemoveReplicas,
    /// At the target: what the volumes held while their Machine still ran is here, if that was asked for. A guess, which
    /// costs the move nothing when it fails.
    CopyAhead,
    /// At the target: whatever will show the volumes has started, and waits for the handoff.
    StandBy,
    /// At the target, if that was asked for: the process runs before the source's is stopped, and serves nobody yet. What
    /// StartProcess finds later is this one.
    StartAhead,
    /// The source was asked, and has answered.
    AskHandoff,
    /// At the source: whatever serves the volumes after the handoff waits for it.
    PrepareExport,
    /// The source's decision. Done is the row that says so.
    HandOff,
    /// The source has it again.
    HandBack,
    /// The volume's blocks are served to the target until it says that it has them all.
    ServeExport,
    EndExport,
    /// Every block is here, and equal to the source's.
    AwaitWhole,
    /// The source knows that it may forget its blocks.
    ReleaseSource,
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
    /// The source has handed off (`AskHandoff` alone ends so).
    Granted { grant: Box<Grant> },
    /// Not now; again after a wait that grows with each attempt.
    Retry { reason: String },
    /// Not before somebody else is done, who needs bounded time: looked at again, and never given up for that.
    Wait { reason: String },
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
    row(Step::AttachVolumes, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::EnsureNetwork, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

// The network stays while a Machine is stopped, so that a wake finds it; after a reboot it is made again here.
const START: &[StepRow] = &[
    row(Step::AttachVolumes, When::Always, OnAbort::Unwind(UNDO_START)),
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
    row(Step::AttachVolumes, When::Starting, OnAbort::Unwind(UNDO_START)),
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
    row(Step::AttachVolumes, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::EnsureNetwork, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

// The address goes only when nobody can speak from it any more. Nothing here is ever given up.
const DESTROY: &[StepRow] = &[
    row(Step::CloseDoor, When::Graceful, OnAbort::Never),
    row(Step::SignalProcess, When::Graceful, OnAbort::Never),
    row(Step::AwaitExit, When::Graceful, OnAbort::Never),
    row(Step::KillProcess, When::Kill, OnAbort::Never),
    row(Step::DetachVolumes, When::Always, OnAbort::Never),
    row(Step::RemoveNetwork, When::Always, OnAbort::Never),
    row(Step::RemoveDriverState, When::Always, OnAbort::Never),
    row(Step::AcknowledgeTombstone, When::Always, OnAbort::Never),
];

// A process that was started ahead ends first: before its address goes, and before the source may run it again.
const UNDO_ARRIVAL: &[Step] = &[Step::KillProcess, Step::RemoveNetwork, Step::RemoveDriverState, Step::RemoveReplicas];
const HAND_BACK: &[Step] = &[
    Step::KillProcess,
    Step::HandBack,
    Step::DetachVolumes,
    Step::RemoveNetwork,
    Step::RemoveDriverState,
    Step::RemoveReplicas,
];

// Whatever takes long comes before the source is asked. `AskHandoff` is given up only by the source's own no: an answer
// that was lost is asked for again.
const MOVE_IN: &[StepRow] = &[
    row(Step::FetchImage, When::Always, OnAbort::Drop),
    row(Step::UnpackImage, When::Always, OnAbort::Drop),
    row(Step::MakeReplicas, When::Always, OnAbort::Unwind(UNDO_ARRIVAL)),
    row(Step::EnsureNetwork, When::Always, OnAbort::Unwind(UNDO_ARRIVAL)),
    row(Step::CopyAhead, When::Always, OnAbort::Unwind(UNDO_ARRIVAL)),
    row(Step::StandBy, When::Always, OnAbort::Unwind(UNDO_ARRIVAL)),
    row(Step::StartAhead, When::Starting, OnAbort::Unwind(UNDO_ARRIVAL)),
    row(Step::AskHandoff, When::Always, OnAbort::Unwind(UNDO_ARRIVAL)),
    row(Step::AttachVolumes, When::Always, OnAbort::Unwind(HAND_BACK)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

/// Runs again as if nothing had been asked; nothing, if it did not run. What was signalled may still live.
const RESUME: &[Step] =
    &[Step::EndExport, Step::KillProcess, Step::AttachVolumes, Step::EnsureNetwork, Step::StartProcess];

// Until `HandOff` is committed it is the source's and can be taken up again; after that nothing here ever runs it.
const MOVE_OUT: &[StepRow] = &[
    row(Step::PrepareExport, When::Always, OnAbort::Unwind(&[Step::EndExport])),
    row(Step::CloseDoor, When::Graceful, OnAbort::Unwind(&[Step::EndExport])),
    row(Step::SignalProcess, When::Graceful, OnAbort::Unwind(RESUME)),
    row(Step::AwaitExit, When::Graceful, OnAbort::Unwind(RESUME)),
    row(Step::DetachVolumes, When::Always, OnAbort::Unwind(RESUME)),
    row(Step::HandOff, When::Always, OnAbort::Unwind(RESUME)),
    row(Step::RemoveNetwork, When::Always, OnAbort::Never),
    row(Step::RemoveDriverState, When::Always, OnAbort::Never),
];

const TAKE_BACK: &[StepRow] = &[
    row(Step::EndExport, When::Always, OnAbort::Never),
    row(Step::AttachVolumes, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::EnsureNetwork, When::Starting, OnAbort::Unwind(UNDO_START)),
    row(Step::StartProcess, When::Starting, OnAbort::Unwind(UNDO_START)),
];

const VOLUME_CREATE: &[StepRow] = &[row(Step::MakeVolume, When::Always, OnAbort::Drop)];

const VOLUME_DESTROY: &[StepRow] = &[
    row(Step::DetachVolumes, When::Always, OnAbort::Never),
    row(Step::EndExport, When::Always, OnAbort::Never),
    row(Step::RemoveVolume, When::Always, OnAbort::Never),
    row(Step::AcknowledgeTombstone, When::Always, OnAbort::Never),
];

const VOLUME_MOVE_IN: &[StepRow] = &[
    row(Step::MakeReplicas, When::Always, OnAbort::Unwind(&[Step::RemoveReplicas])),
    row(Step::CopyAhead, When::Always, OnAbort::Unwind(&[Step::RemoveReplicas])),
    row(Step::AskHandoff, When::Always, OnAbort::Unwind(&[Step::RemoveReplicas])),
    row(
        Step::AttachVolumes,
        When::Always,
        OnAbort::Unwind(&[Step::HandBack, Step::DetachVolumes, Step::RemoveReplicas]),
    ),
];

const VOLUME_MOVE_OUT: &[StepRow] = &[
    row(Step::PrepareExport, When::Always, OnAbort::Unwind(&[Step::EndExport])),
    row(Step::DetachVolumes, When::Always, OnAbort::Unwind(&[Step::EndExport])),
    row(Step::HandOff, When::Always, OnAbort::Unwind(&[Step::EndExport])),
];

const VOLUME_TAKE_BACK: &[StepRow] = &[row(Step::EndExport, When::Always, OnAbort::Never)];

// A volume whose source is gone can still be destroyed.
const HYDRATE: &[StepRow] =
    &[row(Step::AwaitWhole, When::Always, OnAbort::Drop), row(Step::ReleaseSource, When::Always, OnAbort::Drop)];

const LEND: &[StepRow] = &[
    row(Step::ServeExport, When::Always, OnAbort::Drop),
    row(Step::EndExport, When::Always, OnAbort::Never),
    row(Step::RemoveVolume, When::Always, OnAbort::Never),
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
        JobKind::MoveIn => MOVE_IN,
        JobKind::MoveOut => MOVE_OUT,
        JobKind::TakeBack => TAKE_BACK,
        JobKind::VolumeCreate => VOLUME_CREATE,
        JobKind::VolumeDestroy => VOLUME_DESTROY,
        JobKind::VolumeMoveIn => VOLUME_MOVE_IN,
        JobKind::VolumeMoveOut => VOLUME_MOVE_OUT,
        JobKind::VolumeTakeBack => VOLUME_TAKE_BACK,
        JobKind::Hydrate => HYDRATE,
        JobKind::Lend => LEND,
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
    pub const ALL: [JobKind; 16] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Update,
        Self::Destroy,
        Self::MoveIn,
        Self::MoveOut,
        Self::TakeBack,
        Self::VolumeCreate,
        Self::VolumeDestroy,
        Self::VolumeMoveIn,
        Self::VolumeMoveOut,
        Self::VolumeTakeBack,
        Self::Hydrate,
        Self::Lend,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Update => "update",
            Self::Destroy => "destroy",
            Self::MoveIn => "move_in",
            Self::MoveOut => "move_out",
            Self::TakeBack => "take_back",
            Self::VolumeCreate => "volume_create",
            Self::VolumeDestroy => "volume_destroy",
            Self::VolumeMoveIn => "volume_move_in",
            Self::VolumeMoveOut => "volume_move_out",
            Self::VolumeTakeBack => "volume_take_back",
            Self::Hydrate => "hydrate",
            Self::Lend => "lend",
        }
    }

    /// Brings something here from another host.
    pub fn is_arrival(self) -> bool {
        matches!(self, Self::MoveIn | Self::VolumeMoveIn)
    }

    /// Gives something to another host.
    pub fn is_departure(self) -> bool {
        matches!(self, Self::MoveOut | Self::VolumeMoveOut)
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
            Self::MakeVolume => "make_volume",
            Self::RemoveVolume => "remove_volume",
            Self::AttachVolumes => "attach_volumes",
            Self::DetachVolumes => "detach_volumes",
            Self::MakeReplicas => "make_replicas",
            Self::RemoveReplicas => "remove_replicas",
            Self::CopyAhead => "copy_ahead",
            Self::StandBy => "stand_by",
            Self::StartAhead => "start_ahead",
            Self::AskHandoff => "ask_handoff",
            Self::PrepareExport => "prepare_export",
            Self::HandOff => "hand_off",
            Self::HandBack => "hand_back",
            Self::ServeExport => "serve_export",
            Self::EndExport => "end_export",
            Self::AwaitWhole => "await_whole",
            Self::ReleaseSource => "release_source",
        }
    }

    /// After so many attempts a failure of this host counts as an abort, where the table allows one. `None`: an image
    /// is fetched again for as long as its source is away, and what must end is tried until it does.
    pub fn max_attempts(self) -> Option<u32> {
        match self {
            Self::UnpackImage | Self::EnsureNetwork | Self::StartProcess => Some(5),
            Self::MakeVolume | Self::MakeReplicas | Self::AttachVolumes | Self::PrepareExport => Some(5),
            _ => None,
        }
    }

    /// May its effect be cut off at any instant?
    pub fn is_interruptible(self) -> bool {
        matches!(self, Self::FetchImage | Self::CopyAhead | Self::CloseDoor | Self::ServeExport | Self::AwaitWhole)
    }

    /// Somebody else decides how it ends: a later wish of ours must not end it in between.
    pub fn is_decided_elsewhere(self) -> bool {
        matches!(self, Self::AskHandoff)
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
        for kind in [JobKind::Stop, JobKind::Destroy, JobKind::VolumeDestroy, JobKind::VolumeTakeBack] {
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
    fn the_source_can_go_back_until_it_has_handed_off_and_never_after() {
        for kind in [JobKind::MoveOut, JobKind::VolumeMoveOut] {
            let rows = table(kind);
            let point = rows.iter().position(|row| row.step == Step::HandOff).unwrap();
            assert!(rows[..=point].iter().all(|row| matches!(row.on_abort, OnAbort::Unwind(_))), "{kind:?}");
            assert!(rows[point + 1..].iter().all(|row| row.on_abort == OnAbort::Never), "{kind:?}");
        }
    }

    #[test]
    fn the_target_hands_back_what_it_cannot_attach() {
        for kind in [JobKind::MoveIn, JobKind::VolumeMoveIn] {
            let attach = table(kind).iter().find(|row| row.step == Step::AttachVolumes).unwrap();
            // A copy that was started ahead must be dead before the source may start its own.
            let hands_back = match attach.on_abort {
                OnAbort::Unwind([Step::KillProcess, Step::HandBack, ..]) => kind == JobKind::MoveIn,
                OnAbort::Unwind([Step::HandBack, ..]) => kind == JobKind::VolumeMoveIn,
                _ => false,
            };
            assert!(hands_back, "{kind:?}");
        }
    }

    #[test]
    fn waits_grow_to_their_bound() {
        assert_eq!((retry_after_ms(1), retry_after_ms(2), retry_after_ms(90)), (200, 400, RETRY_MAX_MS));
    }
}
