//! SIGKILL of the agent before each effect, after it, and right after its outcome was written, for every step of
//! every job. Whatever the instant: the next agent completes the job, no second copy ever starts, nothing is left.

use std::sync::Arc;

use futures_util::StreamExt;
use godwit_agent::crash::{CRASH_FILE, Instant, label};
use godwit_api::config::RestartPolicy;
use godwit_api::machine::MachineState;
use godwit_api::row::Placement;
use godwit_machine::{JobKind, OnAbort, Step, StepRow, When, table};

use crate::control::{Control, count_lines};
use crate::host::Host;

/// Hosts that are tried at the same time.
const PARALLEL: usize = 6;

#[derive(Debug, Clone, Copy)]
struct Case {
    kind: JobKind,
    step: Step,
    when: When,
    instant: Instant,
    /// The step undoes a start whose program cannot be executed.
    undoing: bool,
}

/// Jobs of one host about a Machine. Volumes and moves are killed with the real driver, on a fleet.
const KINDS: [JobKind; 6] =
    [JobKind::Create, JobKind::Start, JobKind::Stop, JobKind::Restart, JobKind::Update, JobKind::Destroy];

/// Every row of every table. A stop never kills at once: that row serves Machines that should not run and do.
fn cases() -> Vec<Case> {
    let rows = KINDS.into_iter().flat_map(|kind| table(kind).iter().map(move |row| (kind, row)));
    let rows = rows.filter(|(kind, row)| !(*kind == JobKind::Stop && row.step == Step::KillProcess));
    let case = |(kind, row): (JobKind, &'static StepRow)| {
        Instant::ALL.map(|instant| Case { kind, step: row.step, when: row.when, instant, undoing: false })
    };
    let forward = rows.flat_map(case);
    let undoing = KINDS.into_iter().flat_map(|kind| {
        let undone = table(kind).iter().filter(|row| row.step == Step::StartProcess);
        undone.flat_map(move |row| {
            let OnAbort::Unwind(steps) = row.on_abort else { panic!("a start that cannot be undone: {kind:?}") };
            let each = steps.iter().flat_map(|step| Instant::ALL.map(|instant| (*step, instant)));
            each.map(move |(step, instant)| Case { kind, step, when: When::Always, instant, undoing: true })
        })
    });
    forward.chain(undoing).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_may_die_at_any_instant_of_any_step_of_any_job() {
    let control = Control::start().await;
    let tries = futures_util::stream::iter(cases()).map(|case| {
        let control = control.clone();
        async move { (case, try_case(&control, case).await) }
    });
    let results: Vec<_> = tries.buffered(PARALLEL).collect().await;
    println!("{:<9} {:<22} {:<8} {:<10} starts", "job", "step", "killed", "ends");
    for (case, (state, starts)) in results {
        let (kind, instant) = (case.kind.as_str(), case.instant.as_str());
        let step = if case.undoing { format!("undo: {}", case.step.as_str()) } else { case.step.as_str().into() };
        println!("{kind:<9} {step:<22} {instant:<8} {:<10} {starts}", state.as_str());
    }
}

async fn try_case(control: &Arc<Control>, case: Case) -> (MachineState, u32) {
    let mut host = Host::new(control).await;
    host.start_child().await;
    host.joined().await;
    let mut first = host.placement(1, 1);
    if case.undoing {
        first.config.restart.policy = RestartPolicy::No;
    }
    let before = prepare(&host, &case, &first).await;
    if case.undoing {
        std::fs::write(host.counts_file().with_extension("fail"), "").unwrap();
    }

    std::fs::write(host.dir.join(CRASH_FILE), label(case.kind, case.step, case.instant)).unwrap();
    let wanted = trigger(&host, &case, &first).await;
    assert_eq!(host.child_ended().await, Some(9), "{case:?}: it dies there\n{}", host.log());

    host.start_child().await;
    let state = expected(&case);
    // What was told before may look like the end: the job itself must be over.
    host.until("the job is over", async || host.journal().jobs.is_empty().then_some(())).await;
    let fact = host.told(&wanted, state).await;
    if state == MachineState::Destroyed {
        host.control.delete_row(&wanted.host, &wanted.machine).await;
    }
    check(&host, &case, before, state, &wanted).await;
    (fact.state, count_lines(&host.counts_file()).get("start").copied().unwrap_or(0))
}

/// The state from which the job starts; how many starts that took.
async fn prepare(host: &Host, case: &Case, first: &Placement) -> u32 {
    if case.kind == JobKind::Create {
        return 0;
    }
    host.launched(first).await;
    if case.kind == JobKind::Start {
        host.call_stop(first).await.unwrap();
        host.told(first, MachineState::Stopped).await;
    }
    1
}

/// Asks for the job; what is asked for.
async fn trigger(host: &Host, case: &Case, first: &Placement) -> Placement {
    // Calls may break off: the agent dies under them.
    let force = case.when == When::Kill;
    match case.kind {
        JobKind::Create => host.control.put(first).await,
        JobKind::Start => drop(host.call_start(first).await),
        JobKind::Stop => drop(host.call_stop(first).await),
        JobKind::Restart => drop(host.call_restart(first, force).await),
        JobKind::Update => {
            let second = Placement { config: first.config.clone(), ..host.placement(1, 2) };
            host.control.put(&second).await;
            // A version that can never be started gives its place back; here the one before cannot be started either.
            return if case.undoing { first.clone() } else { second };
        }
        JobKind::Destroy => {
            let tombstone = Placement { destroy: true, force, ..first.clone() };
            host.control.put(&tombstone).await;
        }
        other => unreachable!("{other:?}"),
    }
    first.clone()
}

fn expected(case: &Case) -> MachineState {
    match case.kind {
        _ if case.undoing => MachineState::Failed,
        JobKind::Create | JobKind::Start | JobKind::Restart | JobKind::Update => MachineState::Started,
        JobKind::Stop => MachineState::Stopped,
        JobKind::Destroy => MachineState::Destroyed,
        other => unreachable!("{other:?}"),
    }
}

async fn check(host: &Host, case: &Case, before: u32, state: MachineState, wanted: &Placement) {
    let counts = count_lines(&host.counts_file());
    assert_eq!(counts.get("second-copy"), None, "{case:?}: a second copy was tried");
    let more = u32::from(state == MachineState::Started);
    assert_eq!(counts.get("start").copied().unwrap_or(0), before + more, "{case:?}: starts\n{}", host.log());
    match state {
        MachineState::Destroyed => {
            host.until("its fact is taken back", async || {
                host.control.fact(&wanted.host, &wanted.machine).await.is_none().then_some(())
            })
            .await;
            assert!(!host.machine_dir(&wanted.machine).exists(), "{case:?}: its folder is gone");
        }
        MachineState::Failed if case.kind == JobKind::Create => {
            assert!(!host.machine_dir(&wanted.machine).join("run").exists(), "{case:?}: nothing was left of the start");
        }
        MachineState::Started | MachineState::Stopped | MachineState::Failed => {
            let text = std::fs::read_to_string(host.machine_dir(&wanted.machine).join("run/fake.json")).unwrap();
            let fake: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(fake["exit"].is_null(), state == MachineState::Started, "{case:?}: what runs is what is told");
        }
        other => panic!("{case:?} ends {other:?}"),
    }
    let journal = host.journal();
    assert_eq!(journal.jobs, [], "{case:?}: no job is left");
    assert_eq!(journal.machines.len(), usize::from(state != MachineState::Destroyed), "{case:?}");
}
