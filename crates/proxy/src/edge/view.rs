//! What an edge believes of one app: its route rows, with what doors said since laid over them. Pure.
//!
//! A row may be late. A door's word counts until the row says something new, or for a bounded time; of two epochs the
//! higher one is believed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use godwit_api::config::{Autostop, Service};
use godwit_api::ids::{Epoch, HostId, MachineId};
use godwit_api::route::{Readiness, RouteMachine, RouteRow};
use http::HeaderValue;

use super::tally::{Tallies, Tally};
use crate::choose::Candidate;

/// A door's word is believed over an unchanged row for so long.
pub const LESSON_LIFE_MS: u64 = 10_000;

/// One app as of now.
#[derive(Default)]
pub struct View {
    pub targets: Vec<Target>,
}

/// One Machine, with what a request needs to reach it made ready.
pub struct Target {
    pub machine: MachineId,
    pub host: HostId,
    pub door_addr: Arc<str>,
    pub epoch: Epoch,
    pub local: bool,
    pub readiness: Readiness,
    pub cordoned: bool,
    pub services: Vec<TargetService>,
    pub tallies: Arc<Tallies>,
    pub machine_header: HeaderValue,
    pub epoch_header: HeaderValue,
}

pub struct TargetService {
    pub service: Service,
    pub soft: u32,
    pub hard: Option<u32>,
    pub tally: Arc<Tally>,
    pub port_header: HeaderValue,
}

/// How a client came in, which decides the service that it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// By a host name, over HTTP; the public port.
    Http(u16),
    /// By a public port whose bytes pass as they are.
    Tcp(u16),
}

impl Target {
    /// The service behind an entrance. HTTP falls back to any service with an HTTP port: on a dev fleet the edge
    /// listens wherever it may.
    pub fn service(&self, entrance: Entrance) -> Option<usize> {
        let serves = |service: &Service, port: u16, http: bool| {
            service.ports.iter().any(|one| {
                one.is_http() == http && one.range().is_some_and(|(first, last)| (first..=last).contains(&port))
            })
        };
        let find = |port, http| self.services.iter().position(|one| serves(&one.service, port, http));
        match entrance {
            Entrance::Tcp(port) => find(port, false),
            Entrance::Http(port) => find(port, true).or_else(|| {
                let is_http = |one: &TargetService| one.service.ports.iter().any(|port| port.is_http());
                self.services.iter().position(is_http)
            }),
        }
    }

    /// `fresh`: leave out what was believed only because of a refusal a moment ago.
    pub fn candidate(&self, service: usize, now_ms: u64, fresh: bool) -> Candidate {
        let service = &self.services[service];
        Candidate {
            local: self.local,
            readiness: self.readiness,
            cordoned: self.cordoned,
            waking: self.tallies.is_waking(),
            avoided: !fresh && self.tallies.is_avoided(now_ms),
            load: if fresh { service.tally.own() } else { service.tally.load(now_ms) },
            soft: service.soft,
            hard: service.hard,
            autostart: service.service.autostart(),
        }
    }

    /// Whether it may be stopped when idle: all its services must want that.
    pub fn autostops(&self) -> bool {
        !self.services.is_empty() && self.services.iter().all(|one| one.service.autostop() == Autostop::Stop)
    }
}

/// What a door said of a Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Running,
    Stopped,
    Moved { host: HostId },
}

/// Whether it runs, when that was said, and what the row said then.
#[derive(Debug, Clone)]
struct Run {
    running: bool,
    epoch: Epoch,
    at_ms: u64,
    row: Option<(Epoch, Readiness)>,
}

/// What doors said of one Machine: where it lives, and whether it runs there.
#[derive(Debug, Clone, Default)]
pub struct Lesson {
    home: Option<(HostId, Epoch)>,
    run: Option<Run>,
}

/// The doors' words of one app, by Machine.
pub type Lessons = HashMap<MachineId, Lesson>;

impl Lesson {
    /// Takes a door's word in, unless a higher epoch was heard of.
    pub fn hear(&mut self, word: Word, epoch: Epoch, now_ms: u64) {
        if self.home.as_ref().is_some_and(|(_, known)| *known > epoch) {
            return;
        }
        match word {
            Word::Moved { host } => {
                self.home = Some((host, epoch));
                self.run = None;
            }
            Word::Running | Word::Stopped => {
                let newer = self.run.as_ref().is_none_or(|known| known.epoch <= epoch);
                if newer {
                    self.run = Some(Run { running: word == Word::Running, epoch, at_ms: now_ms, row: None });
                }
            }
        }
    }

    /// Drops what no longer holds. False if nothing is left.
    fn keep(&mut self, row: &RouteMachine, now_ms: u64) -> bool {
        // Where a Machine lives is told by its epoch alone, however long the row takes.
        self.home.take_if(|(_, epoch)| *epoch <= row.epoch);
        self.run.take_if(|run| {
            let row_now = (row.epoch, row.readiness);
            let expired = now_ms.saturating_sub(run.at_ms) >= LESSON_LIFE_MS;
            expired || run.epoch < row.epoch || *run.row.get_or_insert(row_now) != row_now
        });
        self.home.is_some() || self.run.is_some()
    }
}

/// Builds the view. `doors` knows the hosts' addresses; lessons that no longer hold are dropped.
pub fn build(
    rows: &BTreeMap<String, RouteRow>,
    own_region: &str,
    lessons: &mut Lessons,
    doors: impl Fn(&HostId) -> Option<Arc<str>>,
    previous: &View,
    now_ms: u64,
) -> View {
    let mut known: HashMap<&MachineId, &Arc<Tallies>> =
        previous.targets.iter().map(|target| (&target.machine, &target.tallies)).collect();
    let mut targets = Vec::new();
    for (region, row) in rows {
        for machine in &row.machines {
            let tallies = known.remove(&machine.machine).cloned().unwrap_or_default();
            targets.push(target(machine, region == own_region, tallies));
            let Some(lesson) = lessons.get_mut(&machine.machine) else { continue };
            if !lesson.keep(machine, now_ms) {
                lessons.remove(&machine.machine);
            } else if let Some(target) = targets.last_mut() {
                lay_over(target, lesson, &doors);
            }
        }
    }
    lessons.retain(|id, _| targets.iter().any(|target| target.machine == *id));
    View { targets }
}

fn lay_over(target: &mut Target, lesson: &Lesson, doors: &impl Fn(&HostId) -> Option<Arc<str>>) {
    let mut reachable = true;
    if let Some((host, epoch)) = &lesson.home {
        target.host = host.clone();
        target.epoch = *epoch;
        target.epoch_header = text(&epoch.to_string());
        match doors(host) {
            Some(addr) => {
                target.door_addr = addr;
                // The row speaks of another place; its new host says if it does not run there.
                target.readiness = Readiness::Running;
            }
            // The row will name the door; until then requests are held.
            None => {
                target.readiness = Readiness::Unavailable;
                reachable = false;
            }
        }
    }
    if let Some(run) = lesson.run.as_ref().filter(|_| reachable) {
        target.readiness = if run.running { Readiness::Running } else { Readiness::Stopped };
    }
}

fn target(machine: &RouteMachine, local: bool, tallies: Arc<Tallies>) -> Target {
    let services = machine.services.iter().map(|service| {
        let limits = service.concurrency();
        TargetService {
            soft: limits.soft_limit,
            hard: limits.hard_limit,
            tally: tallies.of(service.internal_port),
            port_header: HeaderValue::from(service.internal_port),
            service: service.clone(),
        }
    });
    Target {
        machine: machine.machine.clone(),
        host: machine.host.clone(),
        door_addr: machine.door_addr.as_str().into(),
        epoch: machine.epoch,
        local,
        readiness: machine.readiness,
        cordoned: machine.cordoned,
        services: services.collect(),
        tallies,
        machine_header: text(machine.machine.as_str()),
        epoch_header: text(&machine.epoch.to_string()),
    }
}

/// Ids and epochs are ASCII without blanks, which a header takes.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(n: u64) -> Epoch {
        Epoch { generation: 1, n }
    }
    fn host(name: &str) -> HostId {
        HostId::parse(name).unwrap()
    }
    fn rows(epoch_n: u64, readiness: Readiness) -> BTreeMap<String, RouteRow> {
        let machine = RouteMachine {
            machine: MachineId::from_bits(1),
            host: host("w1"),
            door_addr: "[::1]:1".into(),
            epoch: epoch(epoch_n),
            private_ip: "::1".parse().unwrap(),
            readiness,
            cordoned: false,
            services: vec![Service { internal_port: 80, ..Service::default() }],
        };
        let app = godwit_api::AppName::parse("a").unwrap();
        BTreeMap::from([("fra".into(), RouteRow { app, region: "fra".into(), machines: vec![machine] })])
    }
    fn see(rows: &BTreeMap<String, RouteRow>, lessons: &mut Lessons, now_ms: u64) -> Target {
        let doors = |id: &HostId| (id.as_str() == "w2").then(|| Arc::from("[::1]:2"));
        build(rows, "fra", lessons, doors, &View::default(), now_ms).targets.remove(0)
    }
    fn lessons(word: Word, epoch_n: u64) -> Lessons {
        let mut lesson = Lesson::default();
        lesson.hear(word, epoch(epoch_n), 0);
        HashMap::from([(MachineId::from_bits(1), lesson)])
    }

    #[test]
    fn a_doors_word_counts_until_the_row_says_something_new() {
        let mut known = lessons(Word::Running, 1);
        assert_eq!(see(&rows(1, Readiness::Stopped), &mut known, 5).readiness, Readiness::Running);
        assert_eq!(see(&rows(1, Readiness::Starting), &mut known, 6).readiness, Readiness::Starting);
        assert!(known.is_empty());
        let mut known = lessons(Word::Running, 1);
        assert_eq!(see(&rows(1, Readiness::Stopped), &mut known, LESSON_LIFE_MS).readiness, Readiness::Stopped);
    }

    #[test]
    fn the_higher_epoch_says_where_a_machine_lives() {
        let mut known = lessons(Word::Moved { host: host("w2") }, 2);
        let moved = see(&rows(1, Readiness::Running), &mut known, 999_999);
        assert_eq!((&*moved.door_addr, moved.epoch), ("[::1]:2", epoch(2)));
        let told = see(&rows(2, Readiness::Running), &mut known, 999_999);
        assert_eq!(&*told.door_addr, "[::1]:1");
        assert!(known.is_empty());
        let mut known = lessons(Word::Moved { host: host("w3") }, 2);
        assert_eq!(see(&rows(1, Readiness::Running), &mut known, 0).readiness, Readiness::Unavailable);
    }

    #[test]
    fn what_the_new_door_says_leaves_the_move_in_force() {
        let mut known = lessons(Word::Moved { host: host("w2") }, 2);
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(Word::Stopped, epoch(2), 0);
        // The old door's late word about the old epoch changes nothing.
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(Word::Running, epoch(1), 0);
        let moved = see(&rows(1, Readiness::Running), &mut known, 1);
        assert_eq!((&*moved.door_addr, moved.readiness), ("[::1]:2", Readiness::Stopped));
    }

    #[test]
    fn an_older_word_never_overrules_a_newer_row() {
        let mut known = lessons(Word::Stopped, 1);
        assert_eq!(see(&rows(2, Readiness::Running), &mut known, 0).readiness, Readiness::Running);
    }
}
