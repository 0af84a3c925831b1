//! Moves between two hosts, against a world in which answers are lost and either host dies at any step, before or
//! after its effect. Whatever happens, the Machine runs on one host, its volume's blocks are on a host that holds it,
//! and never two processes live.

use std::collections::BTreeMap;

use super::*;
use crate::converge::tests::placement;
use crate::job::{Fault, table};
use godwit_api::ids::{HostId, MachineId, MigrationId, VolumeId};
use godwit_api::migration::MovePart;
use godwit_api::ticket::{Carried, ExportGrant, Grant};
use godwit_api::volume::{PlacedVolume, VolumeFs};

const SOURCE: usize = 0;
const TARGET: usize = 1;

/// A host: its lives, what it has saved, and what is really there.
#[derive(Default)]
struct Host {
    lives: BTreeMap<MachineId, Life>,
    saved: BTreeMap<MachineId, (Record, Option<Job>)>,
    process: Option<String>,
    /// A volume's blocks are here.
    blocks: bool,
    attached: bool,
    exported: bool,
}

struct World {
    hosts: [Host; 2],
    now_ms: u64,
    drawn: u128,
    ticket: Ticket,
    signed: SignedTicket,
    /// The target cannot attach.
    cannot_attach: bool,
    /// Answers of the source that get lost.
    lose_answers: u32,
    most_at_once: usize,
}

fn volume_id() -> VolumeId {
    VolumeId::from_bits(0xbeef)
}

fn volume_placement(host: &str, epoch: u64) -> Placement {
    let volume = PlacedVolume { id: volume_id(), name: "data".into(), size_bytes: 1 << 30, fstype: VolumeFs::Ext4 };
    Placement {
        machine: volume_id().carrier(),
        host: HostId::parse(host).unwrap(),
        launch: false,
        volume: Some(volume),
        ..placement(1, epoch, 1)
    }
}

fn machine_placement(host: &str, epoch: u64) -> Placement {
    Placement { host: HostId::parse(host).unwrap(), ..placement(1, epoch, 1) }
}

impl World {
    /// A Machine with a volume runs at the source; `alone`: the volume is held by nothing.
    fn new(alone: bool) -> Self {
        let carried = Carried { from_epoch: volume_placement("w1", 1).epoch, placement: volume_placement("w2", 2) };
        let ticket = Ticket {
            migration: MigrationId::from_bits(1),
            source: HostId::parse("w1").unwrap(),
            source_url: "http://[::1]:1".into(),
            target: HostId::parse("w2").unwrap(),
            target_door: "[::1]:2".into(),
            lead: if alone { volume_placement("w2", 2) } else { machine_placement("w2", 2) },
            from_epoch: machine_placement("w1", 1).epoch,
            volumes: vec![carried],
            drain_timeout_ms: 5_000,
            back: Default::default(),
            names_caller: false,
            rate_bytes_per_s: 0,
            precopy: true,
            start_first: false,
            expires_at_ms: u64::MAX,
        };
        let signed = SignedTicket { body: serde_json::to_string(&ticket).unwrap(), ..SignedTicket::default() };
        let mut world = Self {
            hosts: Default::default(),
            now_ms: 1_000,
            drawn: 0,
            ticket,
            signed,
            cannot_attach: false,
            lose_answers: 0,
            most_at_once: 0,
        };
        world.place(SOURCE, volume_placement("w1", 1));
        if !alone {
            world.place(SOURCE, machine_placement("w1", 1));
        }
        world.settle(None);
        world
    }

    fn lead(&self) -> MachineId {
        self.ticket.lead.machine.clone()
    }

    fn place(&mut self, host: usize, row: Placement) {
        let id = row.machine.clone();
        self.hosts[host].lives.entry(id.clone()).or_insert_with(|| Life::unknown(row.clone(), 0));
        self.ask(host, &id, What::Place(Box::new(row)));
    }

    fn ask(&mut self, host: usize, id: &MachineId, what: What) -> Option<Answer> {
        let ask = Ask { id: AskId(1), what, source: Source::User, until: Until::Accepted };
        let answers = self.event(host, id, Event::Ask(ask));
        answers.into_iter().next().map(|(_, answer)| answer)
    }

    fn event(&mut self, host: usize, id: &MachineId, event: Event) -> Vec<(AskId, Answer)> {
        let drawn = &mut self.drawn;
        let mut draw = || {
            *drawn += 1;
            *drawn
        };
        let free = Resources { cpu_millis: 64_000, memory_mb: 4_096, disk_mb: 100_000 };
        let this = &mut self.hosts[host];
        let mut cx = Context { now_ms: self.now_ms, free, missing: None, draw: &mut draw };
        let Some(life) = this.lives.get_mut(id) else { return vec![(AskId(1), Answer::Refused(Refusal::Gone))] };
        let out = life.apply(event, &mut cx);
        if out.save.is_some() {
            this.saved.insert(id.clone(), (life.record.clone(), life.job.clone()));
        }
        for (volume, passage) in out.passages {
            if let Passage::Adopt { placement, .. } = &passage {
                let row = (**placement).clone();
                this.lives.entry(volume.clone()).or_insert_with(|| Life::unknown(row, 0));
            }
            let life = this.lives.get_mut(&volume).expect("the volume is here");
            let mut cx = Context { now_ms: self.now_ms, free, missing: None, draw: &mut draw };
            let out = life.apply(Event::Passage(passage), &mut cx);
            assert!(out.save.is_some() && out.passages.is_empty());
            this.saved.insert(volume.clone(), (life.record.clone(), life.job.clone()));
        }
        out.answers
    }

    /// Kills the agent of a host: what was not saved is forgotten.
    fn crash(&mut self, host: usize) {
        let this = &mut self.hosts[host];
        let saved = this.saved.iter();
        this.lives =
            saved.map(|(id, (record, job))| (id.clone(), Life::resumed(record.clone(), job.clone()))).collect();
        let process = this.process.clone();
        for id in self.hosts[host].saved.keys().cloned().collect::<Vec<_>>() {
            let is_machine = id == machine_placement("w1", 1).machine;
            let found = match &process {
                Some(run) if is_machine => Adopted::Running { run: run.clone() },
                _ => Adopted::Nothing,
            };
            self.event(host, &id, Event::Adopted { found, rebooted: false });
        }
    }

    /// Carries out the step at which a life's job stands. `None`: it goes on until something else ends it.
    fn effect(&mut self, host: usize, id: &MachineId) -> Option<Outcome> {
        let life = &self.hosts[host].lives[id];
        let job = life.job.clone()?;
        let retry = || Some(Outcome::Retry { reason: "not now".into() });
        match job.step {
            Step::StartProcess => {
                // The driver starts each run once.
                let other = self.hosts[host].process.as_ref().filter(|run| job.run.as_ref() != Some(run));
                assert_eq!(other, None, "a second process");
                assert!(self.hosts[host].attached, "without its volume");
                self.hosts[host].process = job.run.clone();
                let all = self.hosts.iter().filter(|host| host.process.is_some()).count();
                self.most_at_once = self.most_at_once.max(all);
            }
            Step::AwaitExit | Step::KillProcess => self.hosts[host].process = None,
            Step::MakeVolume => self.hosts[host].blocks = true,
            Step::AttachVolumes if self.cannot_attach && host == TARGET => {
                return Some(Outcome::Abort { fault: Fault::System, reason: "no device".into(), exit: None });
            }
            Step::AttachVolumes => {
                let readable = self.hosts[host].blocks || self.hosts[SOURCE].exported;
                assert!(readable && !(self.hosts[host].exported), "attached without its blocks");
                self.hosts[host].attached = true;
            }
            Step::DetachVolumes => self.hosts[host].attached = false,
            Step::AskHandoff => {
                let what = What::MoveOut {
                    signed: self.signed.clone(),
                    ticket: Box::new(self.ticket.clone()),
                    client_certificate: String::new(),
                };
                let answer = self.ask(SOURCE, id, what);
                if self.lose_answers > 0 {
                    self.lose_answers -= 1;
                    return retry();
                }
                if let Some(Answer::Refused(Refusal::Failed(reason))) = answer {
                    return Some(Outcome::Abort { fault: Fault::System, reason, exit: None });
                }
                if answer.is_none() {
                    // It waits for a job there, and the target is told nothing.
                    return retry();
                }
                let moving = self.hosts[SOURCE].lives[id].record.moving.clone()?;
                return match moving.part {
                    MovePart::HandedOff if self.hosts[SOURCE].exported => Some(Outcome::Granted {
                        grant: Box::new(Grant {
                            running: moving.was_running,
                            exports: vec![ExportGrant {
                                volume: volume_id(),
                                addr: String::new(),
                                export: String::new(),
                                server_certificate: String::new(),
                            }],
                            ..Grant::default()
                        }),
                    }),
                    MovePart::Refused => Some(Outcome::Abort {
                        fault: Fault::System,
                        reason: moving.reason.unwrap_or_default(),
                        exit: None,
                    }),
                    _ => retry(),
                };
            }
            Step::HandBack => {
                let answer = self.ask(SOURCE, id, What::TakeBack { ticket: Box::new(self.ticket.clone()) });
                if self.lose_answers > 0 {
                    self.lose_answers -= 1;
                    return retry();
                }
                return match answer {
                    Some(Answer::Accepted { .. } | Answer::Refused(Refusal::Gone)) => Some(Outcome::done()),
                    _ => retry(),
                };
            }
            Step::ServeExport => {
                assert!(!self.hosts[host].attached, "exported while somebody writes");
                self.hosts[host].exported = true;
                return None;
            }
            Step::EndExport => self.hosts[host].exported = false,
            Step::AwaitWhole => {
                if !self.hosts[SOURCE].exported {
                    return retry();
                }
                self.hosts[host].blocks = true;
            }
            Step::ReleaseSource => {
                self.ask(SOURCE, id, What::Release { ticket: Box::new(self.ticket.clone()) });
                if self.lose_answers > 0 {
                    self.lose_answers -= 1;
                    return retry();
                }
            }
            Step::RemoveVolume => self.hosts[host].blocks = false,
            _ => {}
        }
        Some(Outcome::done())
    }

    /// Goes on until nothing moves. `crash`: kills that host's agent once, at that step, before or after its effect.
    fn settle(&mut self, crash: Option<(usize, JobKind, Step, bool)>) -> bool {
        let mut crash = crash;
        let mut crashed = false;
        for _ in 0..400 {
            self.now_ms += 40_000;
            let mut moved = false;
            for host in [TARGET, SOURCE] {
                for id in self.hosts[host].lives.keys().cloned().collect::<Vec<_>>() {
                    self.event(host, &id, Event::Tick);
                    let Some(job) = self.hosts[host].lives[&id].job.clone() else { continue };
                    if job.retry_at_ms.is_some() {
                        continue;
                    }
                    let now =
                        matches!(crash, Some((at, kind, step, _)) if (at, kind, step) == (host, job.kind, job.step));
                    let after = crash.is_some_and(|(.., after)| after);
                    if now && !after {
                        (crash, crashed, moved) = (None, true, true);
                        self.crash(host);
                        continue;
                    }
                    let outcome = self.effect(host, &id);
                    if now {
                        (crash, crashed, moved) = (None, true, true);
                        self.crash(host);
                        continue;
                    }
                    let Some(outcome) = outcome else { continue };
                    moved = true;
                    self.event(host, &id, Event::Outcome { job: job.id, step: job.step, outcome });
                }
            }
            if !moved && self.hosts.iter().all(|host| host.lives.values().all(|life| life.job.is_none())) {
                return crashed;
            }
        }
        // A lent volume waits for its release for as long as it takes.
        crashed
    }

    fn begin(&mut self) {
        let lead = self.ticket.lead.clone();
        let id = lead.machine.clone();
        self.hosts[TARGET].lives.entry(id.clone()).or_insert_with(|| Life::unknown(lead, 0));
        let what = What::MoveIn { signed: self.signed.clone(), ticket: Box::new(self.ticket.clone()) };
        self.ask(TARGET, &id, what);
    }

    fn record(&self, host: usize, id: &MachineId) -> &Record {
        &self.hosts[host].lives[id].record
    }

    fn assert_moved(&self, what: &str) {
        let lead = self.lead();
        assert!(self.most_at_once <= 1, "{what}: two at once");
        assert!(self.record(TARGET, &lead).held && !self.record(SOURCE, &lead).held, "{what}: who holds it");
        let volume = volume_id().carrier();
        assert!(self.record(TARGET, &volume).held && self.record(TARGET, &volume).hydration.is_none(), "{what}");
        assert!(self.record(SOURCE, &volume).is_destroyed(), "{what}: the source kept its blocks");
        assert!(self.hosts[TARGET].blocks && !self.hosts[SOURCE].blocks, "{what}: blocks");
        assert!(!self.hosts[SOURCE].exported && !self.hosts[SOURCE].attached, "{what}");
    }

    fn assert_stayed(&self, what: &str) {
        let lead = self.lead();
        assert!(self.most_at_once <= 1, "{what}: two at once");
        let (source, target) = (self.record(SOURCE, &lead), self.record(TARGET, &lead));
        let jobs = self.hosts.each_ref().map(|host| host.lives.get(&lead).and_then(|life| life.job.clone()));
        assert!(source.held && !target.held, "{what}: who holds it\n{source:?}\n{target:?}\n{jobs:?}");
        assert!(self.record(SOURCE, &volume_id().carrier()).held, "{what}");
        assert!(self.hosts[SOURCE].blocks && !self.hosts[SOURCE].exported, "{what}: blocks");
        assert!(self.hosts[TARGET].process.is_none(), "{what}");
    }
}

#[test]
fn a_machine_and_its_volume_move() {
    let mut world = World::new(false);
    assert!(world.hosts[SOURCE].process.is_some());
    world.begin();
    world.settle(None);
    world.assert_moved("plain");
    assert!(world.hosts[TARGET].process.is_some() && world.hosts[SOURCE].process.is_none());
    assert_eq!(world.record(TARGET, &world.lead()).epoch().n, 2);
    assert_eq!(world.record(TARGET, &world.lead()).state, MachineState::Started);
}

#[test]
fn either_agent_dies_at_every_step_and_answers_are_lost() {
    let mut seen = 0;
    for alone in [false, true] {
        for cannot_attach in [false, true] {
            for lose_answers in [0, 2] {
                for kind in JobKind::ALL {
                    for row in table(kind) {
                        for (host, after) in [(SOURCE, false), (SOURCE, true), (TARGET, false), (TARGET, true)] {
                            let mut world = World::new(alone);
                            world.most_at_once = 0;
                            world.cannot_attach = cannot_attach;
                            world.lose_answers = lose_answers;
                            world.begin();
                            seen += usize::from(world.settle(Some((host, kind, row.step, after))));
                            let what = format!("{kind:?} {:?} {host} {after} {cannot_attach} {lose_answers}", row.step);
                            let home = if cannot_attach { SOURCE } else { TARGET };
                            match cannot_attach {
                                true => world.assert_stayed(&what),
                                false => world.assert_moved(&what),
                            }
                            assert_eq!(world.hosts[home].process.is_some(), !alone, "{what}: it runs");
                            assert!(world.hosts[1 - home].process.is_none(), "{what}");
                        }
                    }
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} crashes were reached");
}

#[test]
fn a_cancel_at_every_step_either_stops_the_move_or_comes_too_late() {
    let (mut stopped, mut late) = (0, 0);
    for alone in [false, true] {
        for rounds in 0..40 {
            let mut world = World::new(alone);
            world.most_at_once = 0;
            world.begin();
            let lead = world.lead();
            // So many effects, one after the other, then the cancel.
            let mut left = rounds;
            'rounds: while left > 0 {
                for host in [TARGET, SOURCE] {
                    for id in world.hosts[host].lives.keys().cloned().collect::<Vec<_>>() {
                        world.now_ms += 40_000;
                        world.event(host, &id, Event::Tick);
                        let Some(job) = world.hosts[host].lives[&id].job.clone() else { continue };
                        if let Some(outcome) = world.effect(host, &id) {
                            world.event(host, &id, Event::Outcome { job: job.id, step: job.step, outcome });
                        }
                        left -= 1;
                        if left == 0 {
                            break 'rounds;
                        }
                    }
                }
                if world.hosts.iter().all(|host| host.lives.values().all(|life| life.job.is_none())) {
                    break;
                }
            }
            let answer = world.ask(SOURCE, &lead, What::CancelMove { ticket: Box::new(world.ticket.clone()) });
            world.settle(None);
            let what = format!("alone {alone}, cancelled after {rounds}: {answer:?}");
            match answer {
                Some(Answer::Accepted { .. }) => {
                    stopped += 1;
                    world.assert_stayed(&what);
                    assert_eq!(world.hosts[SOURCE].process.is_some(), !alone, "{what}");
                }
                _ => {
                    late += 1;
                    world.assert_moved(&what);
                    assert_eq!(world.hosts[TARGET].process.is_some(), !alone, "{what}");
                }
            }
        }
    }
    assert!(stopped > 5 && late > 5, "stopped {stopped}, too late {late}");
}

#[test]
fn a_stale_epoch_a_second_ask_after_a_no_and_an_expired_ticket_move_nothing() {
    for change in [0, 1, 2] {
        let mut world = World::new(false);
        world.most_at_once = 0;
        match change {
            0 => world.ticket.from_epoch.n = 0,
            1 => world.ticket.expires_at_ms = 5,
            _ => {
                let ticket = Box::new(world.ticket.clone());
                world.ask(SOURCE, &world.lead(), What::CancelMove { ticket });
            }
        }
        world.signed.body = serde_json::to_string(&world.ticket).unwrap();
        world.begin();
        world.settle(None);
        world.assert_stayed(&format!("change {change}"));
        assert!(world.hosts[SOURCE].process.is_some());
        // What was refused once stays refused, also by an ask that arrives late, whatever is in it.
        world.ticket.from_epoch.n = 1;
        world.ticket.expires_at_ms = u64::MAX;
        let what = What::MoveOut {
            signed: world.signed.clone(),
            ticket: Box::new(world.ticket.clone()),
            client_certificate: String::new(),
        };
        if change != 1 {
            let answer = world.ask(SOURCE, &world.lead(), what);
            assert!(matches!(answer, Some(Answer::Refused(Refusal::Failed(_)))), "{change}: {answer:?}");
        }
        world.settle(None);
        world.assert_stayed(&format!("change {change}, asked late"));
    }
}
