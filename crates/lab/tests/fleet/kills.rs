//! SIGKILL of the agent before each effect, after it, and after its outcome, for every step of every job, with the
//! real driver; and of shims and doors. Each job completes, never two copies run, nothing is left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesDelete, MachinesRestart, MachinesStart, MachinesStop, MachinesUpdate};
use godwit_api::machine::{CreateMachine, DeleteQuery, MachineState, RestartQuery, StopMachine};
use godwit_lab::fleet::{DevHost, Fleet, eventually, kill};
use godwit_machine::job::{JobKind, Step, StopMode, rows};
use serde_json::json;

use crate::support::{PATIENCE, demo_config, demo_machine, fleet, footprint, processes_below, run};

const APP: &str = "kills";
const POINTS: [&str; 3] = ["before", "after", "outcome"];

/// The most copies of a Machine's app that ran at one time, counted in /proc while a test goes on.
pub struct Copies {
    most: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Copies {
    pub fn count(machine: String) -> Self {
        let (most, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, ended) = (most.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                seen.fetch_max(copies_of(&machine), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { most, stop, thread: Some(thread) }
    }

    pub fn most(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.most.load(Ordering::Relaxed)
    }
}

/// Namespaces in which a process carries this Machine's id in its environment: a copy is a pid namespace.
fn copies_of(machine: &str) -> usize {
    let wanted = format!("FLY_MACHINE_ID={machine}");
    let mut namespaces = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            && let Ok(namespace) = std::fs::read_link(entry.path().join("ns/pid"))
        {
            namespaces.insert(namespace);
        }
    }
    namespaces.len()
}

/// How a job is asked for, so that its table has the rows of this mode.
#[derive(Clone, Copy)]
struct Way {
    kind: JobKind,
    stop: StopMode,
    starts: bool,
}

const WAYS: [Way; 8] = [
    Way { kind: JobKind::Create, stop: StopMode::Leave, starts: true },
    Way { kind: JobKind::Start, stop: StopMode::Leave, starts: true },
    Way { kind: JobKind::Stop, stop: StopMode::Graceful, starts: false },
    Way { kind: JobKind::Restart, stop: StopMode::Graceful, starts: true },
    Way { kind: JobKind::Restart, stop: StopMode::Kill, starts: true },
    Way { kind: JobKind::Update, stop: StopMode::Graceful, starts: true },
    Way { kind: JobKind::Destroy, stop: StopMode::Graceful, starts: false },
    Way { kind: JobKind::Destroy, stop: StopMode::Kill, starts: false },
];

/// Two halves, so that they run side by side.
#[test]
fn the_agent_killed_at_every_step_of_what_starts_and_stops_loses_and_doubles_nothing() {
    kill_at_every_step_of(&WAYS[..5]);
}

#[test]
fn the_agent_killed_at_every_step_of_what_changes_and_destroys_loses_and_doubles_nothing() {
    let kinds: BTreeSet<JobKind> = WAYS.iter().map(|way| way.kind).chain(crate::moves::kills::KINDS).collect();
    assert_eq!(kinds, JobKind::ALL.into_iter().collect(), "no kind of job is left out");
    kill_at_every_step_of(&WAYS[5..]);
}

fn kill_at_every_step_of(ways: &[Way]) {
    run(async {
        let fleet = fleet(1, &["--lab"]);
        fleet.create_app(APP).await.expect("the app");
        let baseline = footprint(&fleet);
        let host = fleet.dev().expect("dev.json").hosts.remove(0);
        let mut table = comfy_table::Table::new();
        table.set_header(["job", "step", "before", "after", "outcome"]);
        for way in ways.iter().copied() {
            let name = format!("{}{}", way.kind.as_str(), if way.stop == StopMode::Kill { " (kill)" } else { "" });
            for row in rows(way.kind, way.stop, way.starts) {
                let mut cells = vec![name.clone(), row.step.as_str().to_owned()];
                for point in POINTS {
                    let copies = one(&fleet, &host, way, row.step, point)
                        .await
                        .unwrap_or_else(|error| panic!("{name} {} {point}: {error:#}", row.step.as_str()));
                    assert!(copies <= 1, "{name} {} {point}: {copies} copies at once", row.step.as_str());
                    cells.push(format!("ok, {copies}"));
                }
                table.add_row(cells);
            }
        }
        println!("each cell: the job's end was right; most copies at one time\n{table}");
        eventually("nothing is left", PATIENCE, async || {
            let now = footprint(&fleet);
            anyhow::ensure!(now == baseline, "before {baseline:?}, now {now:?}");
            Ok(Some(()))
        })
        .await
        .expect("no leak");
    });
}

/// One job with one crash: answers the most copies that ran at one time.
async fn one(fleet: &Fleet, host: &DevHost, way: Way, step: Step, point: &str) -> anyhow::Result<usize> {
    let crash_at = host.data_dir.join("crash-at");
    let arm = || {
        std::fs::write(host.data_dir.join("crash-at.tmp"), format!("{}:{}:{point}", way.kind.as_str(), step.as_str()))?;
        std::fs::rename(host.data_dir.join("crash-at.tmp"), &crash_at)
    };
    let api = fleet.api()?;
    let (id, counter);
    if way.kind == JobKind::Create {
        arm()?;
        let machine = fleet.create_machine(APP, json!({ "config": demo_config(json!({})) })).await?;
        id = machine.id.to_string();
        counter = Copies::count(id.clone());
    } else {
        let machine = demo_machine(fleet, APP, json!({}), way.kind != JobKind::Start).await;
        id = machine.id.to_string();
        counter = Copies::count(id.clone());
        arm()?;
        ask(&api, &id, way).await;
    }
    eventually("the agent is killed", PATIENCE, async || Ok((!crash_at.exists()).then_some(()))).await?;
    let wanted: &[MachineState] = match way.kind {
        JobKind::Stop => &[MachineState::Stopped],
        JobKind::Destroy => &[MachineState::Destroyed],
        _ => &[MachineState::Started],
    };
    settled(fleet, &id, wanted).await?;
    if way.kind == JobKind::Update {
        let shown = fleet.machine(APP, &id).await?;
        anyhow::ensure!(shown.config.env.contains_key("ROUND"), "the new configuration is kept");
        let answer = fleet.get(APP, "/env", PATIENCE).await?;
        anyhow::ensure!(answer.json()["ROUND"] == "2", "and runs: {}", answer.text());
    }
    if wanted == [MachineState::Started] {
        let answer = fleet.get(APP, "/", PATIENCE).await?;
        anyhow::ensure!(answer.status == 200, "it serves: {} {}", answer.status, answer.text());
    }
    let most = counter.most();
    if way.kind != JobKind::Destroy {
        fleet.destroy_machine(APP, &id).await?;
        settled(fleet, &id, &[MachineState::Destroyed]).await?;
    }
    Ok(most)
}

/// Asks for the job. The agent dies under the request, so its answer may be an error; the job must be done all the
/// same, since it was journaled before the crash.
async fn ask(api: &godwit_base::http::client::Client, id: &str, way: Way) {
    let at: &[&str] = &[APP, id];
    let answer = match (way.kind, way.stop) {
        (JobKind::Start, _) => api.call::<MachinesStart>(at, &Empty {}, &Empty {}).await.map(|_| ()),
        (JobKind::Stop, _) => api.call::<MachinesStop>(at, &Empty {}, &StopMachine::default()).await.map(|_| ()),
        (JobKind::Restart, mode) => {
            let query = RestartQuery { force_stop: Some(mode == StopMode::Kill), ..Default::default() };
            api.call::<MachinesRestart>(at, &query, &Empty {}).await.map(|_| ())
        }
        (JobKind::Update, _) => {
            let config = serde_json::from_value(demo_config(json!({ "env": { "ROUND": "2" } }))).expect("a config");
            let request = CreateMachine { config, ..Default::default() };
            api.call::<MachinesUpdate>(at, &Empty {}, &request).await.map(|_| ())
        }
        (JobKind::Destroy, mode) => {
            let query = DeleteQuery { force: Some(true), kill: Some(mode == StopMode::Kill) };
            api.call::<MachinesDelete>(at, &query, &Empty {}).await.map(|_| ())
        }
        (kind, _) => unreachable!("{} is not asked of a Machine here", kind.as_str()),
    };
    if let Err(error) = answer {
        println!("{} answered {error} while its agent died", way.kind.as_str());
    }
}

async fn settled(fleet: &Fleet, id: &str, wanted: &[MachineState]) -> anyhow::Result<()> {
    eventually(&format!("{wanted:?}"), PATIENCE, async || match fleet.machine(APP, id).await {
        Ok(machine) if wanted.contains(&machine.state) => Ok(Some(())),
        Ok(machine) => anyhow::bail!("it is {:?}: {:?}", machine.state, machine.events.first()),
        Err(godwit_base::http::client::CallError::Answered(error))
            if error.code == 404 && wanted.contains(&MachineState::Destroyed) =>
        {
            Ok(Some(()))
        }
        Err(error) => Err(error.into()),
    })
    .await
}

/// A shim that dies takes its Machine with it, and the restart policy brings it back: once.
#[test]
fn a_killed_shim_is_an_exit_and_never_two_copies() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app(APP).await.expect("the app");
        let machine = demo_machine(&fleet, APP, json!({ "restart": { "policy": "always" } }), true).await;
        let host = fleet.dev().expect("dev.json").hosts.remove(0);
        for _ in 0..5 {
            let copies = Copies::count(machine.id.to_string());
            let before = fleet.get(APP, "/", PATIENCE).await.expect("an answer").json();
            let shim = processes_below(&host)
                .into_iter()
                .find(|(_, command)| command.contains("godwit-shim"))
                .expect("its shim")
                .0;
            kill(shim, libc::SIGKILL);
            eventually("another process answers", PATIENCE, async || {
                let answer = fleet.get(APP, "/", Duration::from_secs(5)).await?;
                Ok((answer.status == 200 && answer.json()["started_at"] != before["started_at"]).then_some(()))
            })
            .await
            .expect("it is started again");
            assert!(copies.most() <= 1);
        }
    });
}

/// A door that dies is started again; requests wait and none fails.
#[test]
fn a_killed_door_costs_no_request_its_answer() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app(APP).await.expect("the app");
        demo_machine(&fleet, APP, json!({}), true).await;
        assert_eq!(fleet.get(APP, "/", PATIENCE).await.expect("an answer").status, 200);
        for _ in 0..5 {
            let door = fleet.dev().expect("dev.json").hosts.remove(0).door_pid;
            kill(door, libc::SIGKILL);
            let answer = fleet.get(APP, "/", PATIENCE).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text());
            eventually("the door is another process", PATIENCE, async || {
                Ok((fleet.dev()?.hosts.remove(0).door_pid != door).then_some(()))
            })
            .await
            .expect("the supervisor starts it again");
        }
    });
}
