//! A Machine's life against a small world in which processes run, effects fail, and the agent and its host die at
//! any moment.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::converge::tests::placement;
use crate::job::{Fault, OnAbort};

const MEMORY_MB: u64 = 4096;

pub(super) struct World {
    pub(super) life: Life,
    saved: (Record, Option<Job>),
    pub(super) now_ms: u64,
    drawn: u128,
    pub(super) pending: Option<(u64, Step)>,
    /// What really runs, and what ran.
    process: Option<String>,
    ended: BTreeMap<String, ExitEvent>,
    pub(super) starts: u32,
    asked: u64,
    unanswered: BTreeSet<u64>,
    pub(super) answers: BTreeMap<u64, Answer>,
    pub(super) notes: Vec<Note>,
}

impl World {
    pub(super) fn new() -> Self {
        let life = Life::unknown(placement(1, 1, 1), 0);
        Self {
            saved: (life.record.clone(), None),
            life,
            now_ms: 1_000,
            drawn: 0,
            pending: None,
            process: None,
            ended: BTreeMap::new(),
            starts: 0,
            asked: 0,
            unanswered: BTreeSet::new(),
            answers: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn event(&mut self, event: Event) {
        let drawn = &mut self.drawn;
        let mut draw = || {
            *drawn += 1;
            *drawn
        };
        let free = Resources { cpu_millis: 64_000, memory_mb: MEMORY_MB, disk_mb: 100_000 };
        let out = self.life.apply(event, &mut Context { now_ms: self.now_ms, free, missing: None, draw: &mut draw });
        match out.save {
            Some(_) => self.saved = (self.life.record.clone(), self.life.job.clone()),
            None => {
                let ignore_wait = |job: &Option<Job>| job.clone().map(|job| Job { retry_at_ms: None, ..job });
                assert_eq!(self.saved.0, self.life.record, "a change that was not saved");
                assert_eq!(ignore_wait(&self.saved.1), ignore_wait(&self.life.job), "a change that was not saved");
            }
        }
        if out.interrupt {
            self.pending = None;
        }
        if let (true, Some(job)) = (out.perform, &self.life.job) {
            assert_eq!(self.pending, None, "two effects at once");
            self.pending = Some((job.id, job.step));
        }
        for (id, answer) in out.answers {
            if id.0 != 0 {
                assert!(self.unanswered.remove(&id.0), "answered twice: {id:?}");
                self.answers.insert(id.0, answer);
            }
        }
        self.notes.extend(out.notes);
    }

    pub(super) fn ask(&mut self, what: What, until: Until) -> u64 {
        self.ask_as(Source::User, what, until)
    }

    fn ask_as(&mut self, source: Source, what: What, until: Until) -> u64 {
        self.asked += 1;
        let id = self.asked;
        self.unanswered.insert(id);
        self.event(Event::Ask(Ask { id: AskId(id), what, source, until }));
        id
    }

    pub(super) fn place(&mut self, version: u64, destroy: bool) -> u64 {
        let mut row = Placement { destroy, ..placement(1, 1, version) };
        row.config.restart.max_retries = Some(2);
        self.ask(What::Place(Box::new(row)), Until::Accepted)
    }

    /// What the effect does to the world.
    fn carry_out(&mut self, step: Step) -> Outcome {
        match step {
            Step::StartProcess => {
                let run = self.life.job.as_ref().and_then(|job| job.run.clone()).expect("a start has a run id");
                if !self.ended.contains_key(&run) {
                    assert!(self.process.as_ref().is_none_or(|other| *other == run), "two copies at once");
                    self.starts += u32::from(self.process.is_none());
                    self.process = Some(run);
                }
                Outcome::done()
            }
            Step::AwaitExit | Step::KillProcess => {
                let exit = ExitEvent { signal: 15, ..ExitEvent::default() };
                if let Some(run) = self.process.take() {
                    self.ended.insert(run, exit.clone());
                }
                Outcome::Done { exit: Some(exit) }
            }
            Step::RemoveNetwork | Step::RemoveDriverState | Step::AcknowledgeTombstone => {
                assert_eq!(self.process, None, "removed under a running process");
                Outcome::done()
            }
            _ => Outcome::done(),
        }
    }

    pub(super) fn progress(&mut self) {
        if let Some((job, step)) = self.pending.take() {
            let outcome = self.carry_out(step);
            self.event(Event::Outcome { job, step, outcome });
            if step == Step::StartProcess {
                self.report_ends();
            }
        }
    }

    pub(super) fn fail(&mut self, outcome: Outcome) {
        if let Some((job, step)) = self.pending.take() {
            self.event(Event::Outcome { job, step, outcome });
        }
    }

    fn report_ends(&mut self) {
        if let Some(run) = self.life.record.run.clone()
            && let Some(exit) = self.ended.get(&run).cloned()
        {
            self.event(Event::Exited { run, exit });
        }
    }

    pub(super) fn process_exits(&mut self, code: i32) {
        if let Some(run) = self.process.take() {
            let exit = ExitEvent { exit_code: code, ..ExitEvent::default() };
            self.ended.insert(run.clone(), exit.clone());
            self.event(Event::Exited { run, exit });
        }
    }

    /// The agent dies; `after_effect`: what was under way has happened all the same.
    fn crash(&mut self, after_effect: bool, reboot: bool) {
        if after_effect && let Some((_, step)) = self.pending {
            let _ = self.carry_out(step);
        }
        if reboot && let Some(run) = self.process.take() {
            self.ended.insert(run, ExitEvent { exit_code: -1, signal: -1, ..ExitEvent::default() });
        }
        self.pending = None;
        self.unanswered.clear();
        self.life = Life::resumed(self.saved.0.clone(), self.saved.1.clone());
        let last = self.process.clone().or_else(|| self.life.record.run.clone());
        let found = match (&self.process, last) {
            (Some(run), _) => Adopted::Running { run: run.clone() },
            (None, Some(run)) if self.ended.contains_key(&run) => {
                let exit = self.ended[&run].clone();
                if reboot { Adopted::Lost { run, exit } } else { Adopted::Exited { run, exit } }
            }
            (None, _) => Adopted::Nothing,
        };
        self.event(Event::Adopted { found, rebooted: reboot });
    }

    pub(super) fn pass_time(&mut self) {
        self.now_ms += 100_000;
        self.event(Event::Tick);
    }

    /// Until nothing is left to do; bounded, because a Machine that never comes to rest is a defect.
    pub(super) fn settle(&mut self) {
        for _ in 0..200 {
            if self.pending.is_some() {
                self.progress();
            } else if self.life.due_ms().is_some() {
                self.pass_time();
            } else {
                assert!(self.life.is_quiet(), "stuck: {:?}", self.life);
                return;
            }
        }
        panic!("never quiet: {:?}", self.life);
    }

    pub(super) fn check_at_rest(&self) {
        let record = &self.life.record;
        assert_eq!(record.running, self.process.is_some(), "{record:?}");
        assert_eq!(record.state == MachineState::Started, record.running, "{record:?}");
        assert_eq!(record.reserved.memory_mb > 0, record.running, "{record:?}");
        assert!(self.unanswered.is_empty(), "never answered: {:?}", self.unanswered);
        if record.is_destroyed() {
            assert_eq!(record.reserved, Resources::default());
        }
    }
}

pub(super) fn launched() -> World {
    let mut world = World::new();
    world.place(1, false);
    world.settle();
    assert_eq!(world.life.record.state, MachineState::Started);
    world
}

#[test]
fn a_machine_is_created_started_stopped_updated_and_destroyed() {
    let mut world = launched();
    let stop = world.ask(What::Stop { signal: None, timeout_ms: None }, Until::Ended);
    world.settle();
    assert!(matches!(world.answers[&stop], Answer::Ended { .. }));
    assert_eq!(world.life.record.state, MachineState::Stopped);
    world.place(2, false);
    world.settle();
    assert_eq!((world.life.record.state, world.starts), (MachineState::Started, 2));
    world.place(2, true);
    world.settle();
    assert!(world.life.record.is_destroyed());
    world.check_at_rest();
}

#[test]
fn a_crash_loop_with_three_retries_makes_four_starts() {
    let mut world = World::new();
    let mut row = placement(1, 1, 1);
    row.config.restart.max_retries = Some(3);
    world.ask(What::Place(Box::new(row)), Until::Accepted);
    for _ in 0..10 {
        world.settle();
        world.process_exits(1);
    }
    world.settle();
    assert_eq!((world.starts, world.life.record.state), (4, MachineState::Stopped));
    assert_eq!(world.life.record.restart_count, 3);
    let exits = world.notes.iter().filter(|note| note.kind == "exit").count();
    assert_eq!(exits, 4);
}

#[test]
fn requests_do_not_drive_a_crash_loop() {
    let mut world = launched();
    world.process_exits(1);
    let wakes: Vec<u64> = (0..3).map(|_| world.ask_as(Source::Proxy, What::Start, Until::Ended)).collect();
    assert_eq!((world.starts, world.life.record.retries), (1, 1), "they wait for the policy's moment");
    world.settle();
    assert!(wakes.iter().all(|id| matches!(world.answers[id], Answer::Ended { .. })));
    assert_eq!(world.starts, 2);
}

#[test]
fn a_start_while_it_starts_joins_and_while_it_runs_is_fine() {
    let mut world = launched();
    let running = world.ask(What::Start, Until::Ended);
    assert!(matches!(world.answers[&running], Answer::Ended { .. }));
    world.ask(What::Stop { signal: None, timeout_ms: None }, Until::Accepted);
    // Behind a stop it waits, and many starts are one.
    let starts: Vec<u64> = (0..5).map(|_| world.ask(What::Start, Until::Ended)).collect();
    world.settle();
    assert!(starts.iter().all(|id| matches!(world.answers[id], Answer::Ended { .. })));
    assert_eq!(world.starts, 2);
}

#[test]
fn a_stop_cuts_a_failing_start_short() {
    let mut world = launched();
    world.ask(What::Stop { signal: None, timeout_ms: None }, Until::Accepted);
    world.settle();
    let start = world.ask(What::Start, Until::Ended);
    world.fail(Outcome::Retry { reason: "no".into() });
    let stop = world.ask(What::Stop { signal: None, timeout_ms: None }, Until::Ended);
    world.settle();
    assert_eq!(world.answers[&start], Answer::Refused(Refusal::Cancelled));
    assert!(matches!(world.answers[&stop], Answer::Ended { .. }));
    assert_eq!((world.starts, world.life.record.state), (1, MachineState::Stopped));
}

#[test]
fn a_destroy_cuts_an_endless_fetch_short() {
    let mut world = World::new();
    world.place(1, false);
    for _ in 0..20 {
        world.fail(Outcome::Retry { reason: "control is away".into() });
        world.pass_time();
    }
    assert_eq!(world.life.job.as_ref().map(|job| job.step), Some(Step::FetchImage));
    world.place(1, true);
    world.settle();
    assert!(world.life.record.is_destroyed() && world.life.record.refused.is_none());
}

#[test]
fn an_update_without_its_image_leaves_the_old_version_running() {
    let mut world = launched();
    world.place(2, false);
    world.fail(Outcome::Abort { fault: Fault::User, reason: "no such image".into(), exit: None });
    world.settle();
    assert_eq!((world.life.record.state, world.starts), (MachineState::Started, 1));
    assert_eq!(world.life.record.placement.instance_id, placement(1, 1, 1).instance_id);
    assert_eq!(world.life.record.refused_update_reason.as_deref(), Some("no such image"));
    let again = world.place(2, false);
    assert!(matches!(&world.answers[&again], Answer::Refused(Refusal::Placement(why)) if why == "no such image"));
    world.check_at_rest();
}

#[test]
fn a_machine_that_does_not_fit_is_refused_and_one_that_cannot_wake_says_full() {
    let mut world = World::new();
    let mut row = placement(1, 1, 1);
    row.config.guest.memory_mb = MEMORY_MB as u32 + 1;
    let refused = world.ask(What::Place(Box::new(row.clone())), Until::Accepted);
    assert!(matches!(&world.answers[&refused], Answer::Refused(Refusal::Placement(why)) if why.contains("memory")));
    row.launch = false;
    row.epoch.n += 1;
    world.ask(What::Place(Box::new(row)), Until::Accepted);
    assert_eq!(world.life.record.state, MachineState::Created);
    world.settle();
    assert_eq!(world.life.record.state, MachineState::Stopped);
    let start = world.ask(What::Start, Until::Ended);
    assert!(matches!(&world.answers[&start], Answer::Refused(Refusal::Full(_))));
    world.check_at_rest();
}

#[test]
fn what_ran_before_a_reboot_runs_after_it_and_what_stood_still_does_not() {
    let mut world = launched();
    world.crash(false, true);
    world.settle();
    assert_eq!((world.life.record.state, world.starts), (MachineState::Started, 2));
    assert_eq!(world.life.record.retries, 0, "a reboot is no failure of the Machine");
    world.ask(What::Stop { signal: None, timeout_ms: None }, Until::Accepted);
    world.settle();
    world.crash(false, true);
    world.settle();
    assert_eq!((world.life.record.state, world.starts), (MachineState::Stopped, 2));
}

#[test]
fn a_killed_agent_finds_its_machine_and_leaves_it_alone() {
    let mut world = launched();
    let before = world.process.clone();
    world.crash(false, false);
    world.settle();
    assert_eq!((world.process.clone(), world.starts), (before, 1));
    world.process = None;
    world.crash(false, false);
    world.settle();
    assert_eq!(world.starts, 2, "its end was unseen, and counts as a failure that the policy answers");
}

#[test]
fn every_step_of_every_job_survives_a_crash_before_and_after_it() {
    // Moves need two hosts: `move_tests`.
    let alone = [JobKind::Create, JobKind::Start, JobKind::Stop, JobKind::Restart, JobKind::Update, JobKind::Destroy];
    for kind in alone {
        for row in crate::job::table(kind) {
            for (after, reboot) in [(false, false), (true, false), (false, true), (true, true)] {
                let mut world = World::new();
                if kind != JobKind::Create {
                    world = launched();
                }
                let stop = What::Stop { signal: None, timeout_ms: None };
                match kind {
                    JobKind::Create => world.place(1, false),
                    JobKind::Start => {
                        world.ask(stop, Until::Ended);
                        world.settle();
                        world.ask(What::Start, Until::Ended)
                    }
                    JobKind::Stop => world.ask(stop, Until::Ended),
                    JobKind::Restart => {
                        let force = row.step == Step::KillProcess;
                        world.ask(What::Restart { signal: None, timeout_ms: None, force }, Until::Ended)
                    }
                    JobKind::Update => world.place(2, false),
                    JobKind::Destroy => {
                        let force = row.step == Step::KillProcess;
                        let row = Placement { destroy: true, force, ..placement(1, 1, 1) };
                        world.ask(What::Place(Box::new(row)), Until::Accepted)
                    }
                    _ => unreachable!("{kind:?}"),
                };
                while world.pending.is_some_and(|(_, step)| step != row.step) {
                    world.progress();
                }
                if world.pending.is_none() {
                    assert!(row.step == Step::KillProcess && kind == JobKind::Stop, "{kind:?} {:?}", row.step);
                    continue;
                }
                world.crash(after, reboot);
                world.settle();
                world.check_at_rest();
                let wanted = match kind {
                    JobKind::Stop => MachineState::Stopped,
                    JobKind::Destroy => MachineState::Destroyed,
                    _ => MachineState::Started,
                };
                assert_eq!(world.life.record.state, wanted, "{kind:?} {:?} {after} {reboot}", row.step);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Start,
    Wake,
    Stop,
    IdleStop,
    Restart(bool),
    Place(u64),
    Destroy,
    Progress,
    Retry,
    Abort(Fault),
    Exit(i32),
    Crash { after: bool, reboot: bool },
    Time,
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        2 => Just(Move::Start),
        2 => Just(Move::Wake),
        1 => Just(Move::IdleStop),
        2 => Just(Move::Stop),
        1 => any::<bool>().prop_map(Move::Restart),
        1 => (1u64..4).prop_map(Move::Place),
        1 => Just(Move::Destroy),
        8 => Just(Move::Progress),
        2 => Just(Move::Retry),
        1 => prop_oneof![Just(Fault::User), Just(Fault::System)].prop_map(Move::Abort),
        2 => (0i32..2).prop_map(Move::Exit),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(after, reboot)| Move::Crash { after, reboot }),
        3 => Just(Move::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    /// Whatever is asked and whatever breaks, in any order: never two copies, no unsaved change, no unanswered
    /// caller, no share of the host kept by what does not run.
    #[test]
    fn it_comes_to_rest_as_it_says(moves in prop::collection::vec(moves(), 1..80)) {
        let mut world = World::new();
        let stop = || What::Stop { signal: None, timeout_ms: None };
        world.place(1, false);
        for step in moves {
            match step {
                Move::Start => { world.ask(What::Start, Until::Ended); }
                Move::Wake => { world.ask_as(Source::Proxy, What::Start, Until::Ended); }
                Move::IdleStop => { world.ask_as(Source::Proxy, stop(), Until::Accepted); }
                Move::Stop => { world.ask(stop(), Until::Accepted); }
                Move::Restart(force) => {
                    world.ask(What::Restart { signal: None, timeout_ms: None, force }, Until::Ended);
                }
                Move::Place(version) => { world.place(version, false); }
                Move::Destroy => { world.place(1, true); }
                Move::Progress => world.progress(),
                Move::Retry => world.fail(Outcome::Retry { reason: "later".into() }),
                Move::Abort(fault) => {
                    let forward_only = world.life.job.as_ref().is_some_and(|job| job.on_abort() == OnAbort::Never);
                    world.fail(Outcome::Abort { fault, reason: "no".into(), exit: None });
                    prop_assert!(!forward_only || world.life.job.is_some(), "a job was given up past its point of no return");
                }
                Move::Exit(code) => world.process_exits(code),
                Move::Crash { after, reboot } => world.crash(after, reboot),
                Move::Time => world.pass_time(),
            }
        }
        world.settle();
        world.check_at_rest();
    }
}
