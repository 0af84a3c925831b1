//! The engine fed with events, without a disk, a driver or a clock.

use super::*;
use godwit_api::config::MachineConfig;
use godwit_api::ids::{AppName, Epoch, HostId};
use godwit_api::machine::MachineState;
use godwit_machine::Adopted;
use godwit_store::journal::Loaded;

fn settings() -> Settings {
    Settings {
        host: HostId::parse("w1").unwrap(),
        incarnation: "i1".into(),
        capacity: Resources { cpu_millis: 4_000, memory_mb: 1024, disk_mb: 10_000 },
        boot_id: "boot-1".into(),
        drivers: vec!["fake".into()],
        host_fact_interval_ms: 5_000,
        collect_interval_ms: 600_000,
        drain_timeout_ms: 5_000,
    }
}

fn engine_of(loaded: Loaded) -> load::Resumed {
    let mut drawn = 0;
    let draw = Box::new(move || {
        drawn += 1;
        drawn
    });
    Engine::resume(settings(), loaded, draw, 0).unwrap()
}

fn placement(n: u64, memory_mb: u32) -> Placement {
    let mut config = MachineConfig { image: "demo".into(), ..MachineConfig::default() };
    config.guest.memory_mb = memory_mb;
    Placement {
        machine: MachineId::from_bits(n),
        app: AppName::parse("app").unwrap(),
        host: HostId::parse("w1").unwrap(),
        epoch: Epoch { generation: 1, n: 1 },
        instance_id: InstanceId::from_parts(1, 0),
        name: "m".into(),
        region: "fra".into(),
        network: "default".into(),
        private_ip: "fdaa::1".parse().unwrap(),
        image_digest: "sha256:00".into(),
        image_name: "demo".into(),
        config,
        launch: true,
        destroy: false,
        force: false,
        proof: String::new(),
        volume: None,
    }
}

fn rows(rows: impl IntoIterator<Item = Placement>) -> BTreeMap<MachineId, Placement> {
    rows.into_iter().map(|row| (row.machine.clone(), row)).collect()
}

fn pulled(revision: u64, all: impl IntoIterator<Item = Placement>) -> Input {
    Input::Pulled { generation: "g".into(), revision, rows: rows(all), tickets: Vec::new() }
}

/// Applies, and carries out every step as done, until nothing is left.
fn settle(engine: &mut Engine, input: Input) -> Vec<Output> {
    let mut outputs = vec![engine.apply(input, 1)];
    let mut at = 0;
    while at < outputs.len() {
        let commands = outputs[at].commands.clone();
        for command in commands {
            if let Command::Perform(work) = command {
                let event = Event::Outcome { job: work.job.id, step: work.job.step, outcome: Outcome::done() };
                outputs.push(engine.apply(Input::Machine { machine: work.machine, event }, 1));
            }
        }
        at += 1;
    }
    outputs
}

fn facts_of(outputs: &[Output]) -> Vec<MachineFact> {
    let facts = outputs.iter().flat_map(|out| &out.facts).filter(|fact| fact.key.contains("/machines/"));
    facts.filter_map(|fact| serde_json::from_str(fact.value.as_ref()?).ok()).collect()
}

#[test]
fn a_pulled_row_becomes_a_running_machine_and_its_facts_rise() {
    let mut engine = engine_of(Loaded::default()).engine;
    let outputs = settle(&mut engine, pulled(7, [placement(1, 256)]));
    let facts = facts_of(&outputs);
    assert_eq!(facts.last().unwrap().state, MachineState::Started);
    assert!(facts.windows(2).all(|pair| pair[0].stamp.seq < pair[1].stamp.seq));
    assert_eq!(outputs[0].batch.durability, Durability::Disk, "acceptance is on disk before anything is done");
    assert_eq!(engine.applied_revision, 7);
    let again = settle(&mut engine, pulled(8, [placement(1, 256)]));
    assert_eq!((again.len(), again[0].commands.len()), (1, 0), "the same rows change nothing");
}

#[test]
fn an_outcome_its_row_and_its_fact_are_one_batch() {
    let mut engine = engine_of(Loaded::default()).engine;
    let outputs = settle(&mut engine, pulled(7, [placement(1, 256)]));
    let started = outputs.iter().find(|out| out.outcomes == [(JobKind::Create, Step::StartProcess)]).unwrap();
    let kinds: Vec<&str> = started
        .batch
        .writes
        .iter()
        .map(|write| match write {
            Write::Outcome { .. } => "outcome",
            Write::Machine { .. } => "machine",
            Write::EndJob { .. } => "job",
            Write::Fact { .. } => "fact",
            _ => "other",
        })
        .collect();
    for kind in ["outcome", "machine", "job", "fact"] {
        assert!(kinds.contains(&kind), "{kind} is missing in {kinds:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_stopped_gives_its_memory_free() {
    let mut engine = engine_of(Loaded::default()).engine;
    settle(&mut engine, pulled(1, [placement(1, 700)]));
    let outputs = settle(&mut engine, pulled(2, [placement(1, 700), placement(2, 700)]));
    let refused = facts_of(&outputs).pop().unwrap();
    assert!(refused.refused.unwrap().contains("memory"), "the second is refused");
    let stop = Ask {
        id: AskId(5),
        what: What::Stop { signal: None, timeout_ms: None },
        source: Source::User,
        until: Until::Accepted,
    };
    settle(&mut engine, Input::Ask { machine: MachineId::from_bits(1), ask: stop });
    assert_eq!(engine.used().memory_mb, 0);
    let again = Placement { epoch: Epoch { generation: 1, n: 2 }, ..placement(2, 700) };
    let outputs = settle(&mut engine, pulled(3, [placement(1, 700), again]));
    assert_eq!(facts_of(&outputs).pop().unwrap().state, MachineState::Started);
}

#[test]
fn a_missing_row_is_reported_and_a_tombstone_is_acknowledged_then_forgotten() {
    let mut engine = engine_of(Loaded::default()).engine;
    settle(&mut engine, pulled(1, [placement(1, 256)]));
    let outputs = settle(&mut engine, pulled(2, []));
    assert_eq!(outputs[0].unplaced.as_deref(), Some(&[MachineId::from_bits(1)][..]));
    assert!(outputs[0].commands.is_empty(), "nothing is changed");
    let tombstone = Placement { destroy: true, ..placement(1, 256) };
    let outputs = settle(&mut engine, pulled(3, [tombstone]));
    assert_eq!(facts_of(&outputs).pop().unwrap().state, MachineState::Destroyed);
    let outputs = settle(&mut engine, pulled(4, []));
    assert_eq!(outputs[0].facts[0].value, None, "the fact is taken back");
    assert!(engine.slots.is_empty());
}

#[test]
fn a_tombstone_for_a_machine_that_was_never_here_is_acknowledged_too() {
    let mut engine = engine_of(Loaded::default()).engine;
    let outputs = settle(&mut engine, pulled(1, [Placement { destroy: true, ..placement(1, 256) }]));
    assert_eq!(facts_of(&outputs).pop().unwrap().state, MachineState::Destroyed);
    let started = outputs.iter().flat_map(|out| &out.outcomes).any(|(_, step)| *step == Step::StartProcess);
    assert!(!started);
}

#[test]
fn another_store_is_told_everything() {
    let mut engine = engine_of(Loaded::default()).engine;
    settle(&mut engine, pulled(9, [placement(1, 256)]));
    let restored =
        Input::Pulled { generation: "h".into(), revision: 2, rows: rows([placement(1, 256)]), tickets: Vec::new() };
    let outputs = settle(&mut engine, restored);
    assert_eq!(facts_of(&outputs).len(), 1);
    assert_eq!(engine.applied_revision, 2, "revisions of another store do not compare");
}

/// A journal in memory: what a restarted agent would read.
fn journal(outputs: &[Output]) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = godwit_store::journal::Journal::open(folder.path().join("j")).unwrap();
    outputs.iter().for_each(|out| journal.commit(&out.batch).unwrap());
    journal.load().unwrap()
}

#[test]
fn a_restarted_engine_goes_on_where_the_journal_ends() {
    let mut engine = engine_of(Loaded::default()).engine;
    let mut first = Output::default();
    engine.start(&mut first);
    let mut outputs = vec![first];
    outputs.extend(settle(&mut engine, pulled(7, [placement(1, 256)])));
    let last_seq = facts_of(&outputs).last().unwrap().stamp.seq;
    let run = engine.slots.values().next().unwrap().life.record.run.clone().unwrap();

    let mut resumed = engine_of(journal(&outputs));
    assert!(!resumed.engine.is_rebooted());
    assert_eq!(resumed.machines, [MachineId::from_bits(1)]);
    assert_eq!(resumed.facts.len(), 1, "the newest fact has not arrived yet");
    let early = resumed.engine.apply(pulled(8, []), 1);
    assert!(early.unplaced.is_none(), "before all are found again nothing is judged");
    let event = Event::Adopted { found: Adopted::Running { run: run.clone() }, rebooted: false };
    let outputs = settle(&mut resumed.engine, Input::Machine { machine: MachineId::from_bits(1), event });
    assert_eq!(outputs[0].commands, [Command::Watch { machine: MachineId::from_bits(1), run }]);
    let mut told = Output::default();
    resumed.engine.start(&mut told);
    assert!(facts_of(&[told])[0].stamp.seq > last_seq, "a sequence never falls");
}

/// A store from before a move or a destruction still places it here.
#[test]
fn what_was_here_once_is_not_made_again_by_an_older_row() {
    let mut engine = engine_of(Loaded::default()).engine;
    let here = placement(1, 64);
    let tombstone = Placement { destroy: true, ..here.clone() };
    engine.apply(pulled(1, [tombstone]), 0);
    // As if all that was to be done about it were done.
    for _ in 0..20 {
        let Some(job) = engine.slots.get(&here.machine).and_then(|slot| slot.life.job.clone()) else { break };
        let event = Event::Outcome { job: job.id, step: job.step, outcome: Outcome::done() };
        engine.apply(Input::Machine { machine: here.machine.clone(), event }, 0);
    }
    engine.apply(pulled(2, []), 0);
    assert!(engine.slots.is_empty(), "it is forgotten");
    let out = engine.apply(pulled(3, [here.clone()]), 0);
    assert!(engine.slots.is_empty() && out.commands.is_empty(), "{:?}", out.commands);
    // A new epoch is another matter.
    engine.apply(pulled(4, [Placement { epoch: here.epoch.next(), ..here }]), 0);
    assert_eq!(engine.slots.len(), 1);
}
