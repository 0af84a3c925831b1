//! What an edge believes of one app: its route rows, with what doors said since laid over them. Pure.
//!
//! A row may be late. A door's word counts until the row says something new, or for a bounded time; of two epochs the
//! higher one is believed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use godwit_api::config::{Autostop, Port, ProxyVersion, Service};
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
    /// The other end of its move, which may still be taken back.
    pub origin: Option<Origin>,
    pub door_addr: Arc<str>,
    pub epoch: Epoch,
    pub region: Arc<str>,
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
    /// Why its host says that nobody can connect to it.
    pub closed: Option<Closed>,
}

/// What a host sees of a port that takes no connection.
pub struct Closed {
    /// With the Machine's name.
    pub why: Arc<str>,
    /// Nothing is to be expected of waiting.
    pub lasting: bool,
}

impl TargetService {
    /// With which version of the PROXY protocol the raw connections of a public port begin, if they do.
    pub fn announcement(&self, port: u16) -> Option<ProxyVersion> {
        let covers = |one: &&Port| !one.is_http() && one.covers(port);
        self.service.ports.iter().filter(covers).find_map(Port::announcement)
    }
}

/// How a client came in, which decides the service that it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// By a host name, over HTTP; the public port.
    Http(u16),
    /// By a public port whose bytes pass as they are.
    Tcp(u16),
}

/// Where a Machine is believed to be, and how it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub machine: MachineId,
    pub door_addr: Arc<str>,
    pub epoch: Epoch,
    pub readiness: Readiness,
}

impl View {
    /// Whether HTTP that comes in plain by this port is sent to HTTPS.
    pub fn forces_https(&self, port: u16) -> bool {
        let behind = |target: &'_ Target| target.service(Entrance::Http(port));
        let found = self.targets.iter().find_map(|target| Some(&target.services[behind(target)?].service));
        let Some(service) = found else { return false };
        let http = || service.ports.iter().filter(|one| one.is_http());
        let by = http().find(|one| one.covers(port)).or_else(|| http().find(|one| !one.is_tls()));
        by.is_some_and(|one| one.force_https)
    }

    /// The port for HTTPS as its service describes it.
    pub fn https_port(&self, port: u16) -> Option<&Port> {
        let target = self.targets.iter().find(|target| target.service(Entrance::Http(port)).is_some())?;
        let service = &target.services[target.service(Entrance::Http(port))?].service;
        let secured = || service.ports.iter().filter(|one| one.is_http() && one.is_tls());
        secured().find(|one| one.covers(port)).or_else(|| secured().next())
    }

    /// The raw port as its service describes it.
    pub fn raw_port(&self, port: u16) -> Option<&Port> {
        let services = self.targets.iter().flat_map(|target| &target.services);
        services.flat_map(|one| &one.service.ports).find(|one| !one.is_http() && one.covers(port))
    }

    /// Whether a Machine still stands as it did.
    pub fn shows(&self, standing: &Standing) -> bool {
        self.targets.iter().find(|target| target.machine == standing.machine).map(Target::standing).as_ref()
            == Some(standing)
    }
}

impl Target {
    /// Where it is, should its door say that it leaves.
    pub fn as_origin(&self) -> Origin {
        Origin { host: self.host.clone(), door_addr: self.door_addr.clone(), epoch: self.epoch }
    }

    pub fn standing(&self) -> Standing {
        Standing {
            machine: self.machine.clone(),
            door_addr: self.door_addr.clone(),
            epoch: self.epoch,
            readiness: self.readiness,
        }
    }

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
            distance: 0,
            readiness: self.readiness,
            cordoned: self.cordoned,
            waking: self.tallies.is_waking(),
            avoided: !fresh && self.tallies.is_avoided(now_ms),
            standing: self.tallies.standing(now_ms),
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

/// Where a Machine was when its door said that it is moving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub host: HostId,
    pub door_addr: Arc<str>,
    pub epoch: Epoch,
}

/// What a door said of a Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    Running,
    Stopped,
    /// It lives there now.
    Moved {
        host: HostId,
        door_addr: Option<Arc<str>>,
    },
    /// It is on its way there.
    Moving {
        host: HostId,
        door_addr: Arc<str>,
        origin: Origin,
    },
    /// The door that said `Moving` serves it again.
    Stays {
        origin: Origin,
    },
}

/// Whether it runs, when that was said, and what the row said then.
#[derive(Debug, Clone)]
struct Run {
    running: bool,
    epoch: Epoch,
    at_ms: u64,
    row: Option<(Epoch, Readiness)>,
}

/// Where a Machine lives, over what its row says.
#[derive(Debug, Clone)]
struct Home {
    host: HostId,
    door_addr: Option<Arc<str>>,
    epoch: Epoch,
    /// On its way there from here.
    origin: Option<Origin>,
}

/// What doors said of one Machine: where it lives, and whether it runs there.
#[derive(Debug, Clone, Default)]
pub struct Lesson {
    home: Option<Home>,
    run: Option<Run>,
}

/// The doors' words of one app, by Machine.
pub type Lessons = HashMap<MachineId, Lesson>;

impl Lesson {
    /// Takes a door's word in, unless a higher epoch was heard of.
    pub fn hear(&mut self, word: Word, epoch: Epoch, now_ms: u64) {
        if let Word::Stays { origin } = word {
            return self.stays(&origin);
        }
        if self.home.as_ref().is_some_and(|known| known.epoch > epoch) {
            return;
        }
        match word {
            Word::Moved { host, door_addr } => self.go_home(Home { host, door_addr, epoch, origin: None }),
            Word::Moving { host, door_addr, origin } => {
                let known = self.home.as_ref().is_some_and(|known| known.epoch == epoch)
                    || self.run.as_ref().is_some_and(|run| run.epoch >= epoch);
                if !known && origin.epoch < epoch {
                    self.go_home(Home { host, door_addr: Some(door_addr), epoch, origin: Some(origin) });
                }
            }
            Word::Stays { .. } => {}
            Word::Running | Word::Stopped => {
                let newer = self.run.as_ref().is_none_or(|known| known.epoch <= epoch);
                if newer {
                    self.run = Some(Run { running: word == Word::Running, epoch, at_ms: now_ms, row: None });
                }
            }
        }
    }

    fn go_home(&mut self, home: Home) {
        // A move that is over leaves what its new door said in force.
        if self.home.as_ref().is_none_or(|known| known.epoch < home.epoch) {
            self.run = None;
        }
        self.home = Some(home);
    }

    /// The move was taken back: what was believed because of it goes, so that the row or an earlier home counts.
    fn stays(&mut self, origin: &Origin) {
        if let Some(home) = &mut self.home
            && home.origin.as_ref() == Some(origin)
        {
            let Origin { host, door_addr, epoch } = origin.clone();
            *home = Home { host, door_addr: Some(door_addr), epoch, origin: None };
            self.run = None;
        }
    }

    /// Drops what no longer holds. False if nothing is left.
    fn keep(&mut self, row: &RouteMachine, now_ms: u64) -> bool {
        // Where a Machine lives is told by its epoch alone, however long the row takes.
        self.home.take_if(|home| home.epoch <= row.epoch);
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
    let mut known: HashMap<&MachineId, &Target> =
        previous.targets.iter().map(|target| (&target.machine, target)).collect();
    let mut targets = Vec::new();
    for (region, row) in rows {
        let name: Arc<str> = region.as_str().into();
        for machine in &row.machines {
            let before = known.remove(&machine.machine);
            let tallies = before.map(|target| target.tallies.clone()).unwrap_or_default();
            let mut target = target(machine, name.clone(), region == own_region, tallies);
            if let Some(lesson) = lessons.get_mut(&machine.machine) {
                if lesson.keep(machine, now_ms) {
                    lay_over(&mut target, lesson, &doors);
                } else {
                    lessons.remove(&machine.machine);
                }
            }
            if before.is_some_and(|before| before.door_addr != target.door_addr || before.epoch < target.epoch) {
                // What it did elsewhere, or before it was made anew, is no reason to pass it over here.
                target.tallies.renew();
            }
            targets.push(target);
        }
    }
    lessons.retain(|id, _| targets.iter().any(|target| target.machine == *id));
    View { targets }
}

fn lay_over(target: &mut Target, lesson: &Lesson, doors: &impl Fn(&HostId) -> Option<Arc<str>>) {
    let mut reachable = true;
    if let Some(home) = &lesson.home {
        target.host = home.host.clone();
        target.epoch = home.epoch;
        target.epoch_header = text(&home.epoch.to_string());
        target.origin = home.origin.clone();
        match home.door_addr.clone().or_else(|| doors(&home.host)) {
            // It comes up there, whoever starts it: one call waits for its port.
            Some(addr) if home.origin.is_some() => {
                target.door_addr = addr;
                target.readiness = Readiness::Starting;
            }
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
        target.readiness = match (run.running, &target.origin) {
            (true, _) => Readiness::Running,
            // Also one that no request may start is on its way to running.
            (false, Some(_)) => Readiness::Starting,
            (false, None) => Readiness::Stopped,
        };
    }
}

fn target(machine: &RouteMachine, region: Arc<str>, local: bool, tallies: Arc<Tallies>) -> Target {
    let services = machine.services.iter().map(|service| {
        let limits = service.concurrency();
        TargetService {
            soft: limits.soft_limit,
            hard: limits.hard_limit,
            tally: tallies.of(service.internal_port),
            port_header: HeaderValue::from(service.internal_port),
            closed: machine.closed_ports.iter().find(|one| one.port == service.internal_port).map(|one| Closed {
                why: format!("Machine {}: {}", machine.machine, one.why).into(),
                lasting: one.lasting,
            }),
            service: service.clone(),
        }
    });
    Target {
        machine: machine.machine.clone(),
        host: machine.host.clone(),
        origin: None,
        door_addr: machine.door_addr.as_str().into(),
        epoch: machine.epoch,
        region,
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
            closed_ports: Vec::new(),
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
        let mut known = lessons(Word::Moved { host: host("w2"), door_addr: None }, 2);
        let moved = see(&rows(1, Readiness::Running), &mut known, 999_999);
        assert_eq!((&*moved.door_addr, moved.epoch), ("[::1]:2", epoch(2)));
        let told = see(&rows(2, Readiness::Running), &mut known, 999_999);
        assert_eq!(&*told.door_addr, "[::1]:1");
        assert!(known.is_empty());
        let mut known = lessons(Word::Moved { host: host("w3"), door_addr: None }, 2);
        assert_eq!(see(&rows(1, Readiness::Running), &mut known, 0).readiness, Readiness::Unavailable);
    }

    #[test]
    fn what_the_new_door_says_leaves_the_move_in_force() {
        let mut known = lessons(Word::Moved { host: host("w2"), door_addr: None }, 2);
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(Word::Stopped, epoch(2), 0);
        // The old door's late word about the old epoch changes nothing.
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(Word::Running, epoch(1), 0);
        let moved = see(&rows(1, Readiness::Running), &mut known, 1);
        assert_eq!((&*moved.door_addr, moved.readiness), ("[::1]:2", Readiness::Stopped));
    }

    fn moving(from_n: u64) -> Word {
        let origin = Origin { host: host("w1"), door_addr: "[::1]:1".into(), epoch: epoch(from_n) };
        Word::Moving { host: host("w9"), door_addr: "[::1]:9".into(), origin }
    }

    #[test]
    fn a_machine_on_its_way_is_awaited_where_it_goes_until_it_runs_there() {
        let mut known = lessons(moving(1), 2);
        // Its services need not allow a start: it is coming anyway.
        let coming = see(&rows(1, Readiness::Running), &mut known, 0);
        assert_eq!((&*coming.door_addr, coming.epoch, coming.readiness), ("[::1]:9", epoch(2), Readiness::Starting));
        assert_eq!(coming.origin.unwrap().epoch, epoch(1));
        let lesson = known.get_mut(&MachineId::from_bits(1)).unwrap();
        lesson.hear(Word::Stopped, epoch(2), 0);
        assert_eq!(see(&rows(1, Readiness::Running), &mut known, 0).readiness, Readiness::Starting);
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(Word::Running, epoch(2), 0);
        // What an edge heard late of the source changes nothing.
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(moving(1), epoch(2), 1);
        let there = see(&rows(1, Readiness::Unavailable), &mut known, 1);
        assert_eq!((&*there.door_addr, there.readiness), ("[::1]:9", Readiness::Running));
        assert_eq!(&*see(&rows(2, Readiness::Running), &mut known, 2).door_addr, "[::1]:1", "the row knows better");
        assert!(known.is_empty());
    }

    #[test]
    fn a_move_that_is_taken_back_is_forgotten_and_its_late_word_is_not_believed() {
        let origin = Origin { host: host("w1"), door_addr: "[::1]:1".into(), epoch: epoch(1) };
        let mut known = lessons(moving(1), 2);
        let lesson = known.get_mut(&MachineId::from_bits(1)).unwrap();
        lesson.hear(Word::Stays { origin: Origin { epoch: epoch(0), ..origin.clone() } }, epoch(0), 0);
        assert!(lesson.home.as_ref().unwrap().origin.is_some(), "said of another move");
        lesson.hear(Word::Stays { origin }, epoch(1), 0);
        lesson.hear(Word::Running, epoch(3), 0);
        lesson.hear(moving(1), epoch(2), 0);
        let back = see(&rows(1, Readiness::Stopped), &mut known, 0);
        assert_eq!((&*back.door_addr, back.readiness), ("[::1]:1", Readiness::Running));
        // The next move is another matter.
        known.get_mut(&MachineId::from_bits(1)).unwrap().hear(moving(3), epoch(4), 0);
        assert_eq!(see(&rows(1, Readiness::Running), &mut known, 0).epoch, epoch(4));
    }

    #[test]
    fn an_older_word_never_overrules_a_newer_row() {
        let mut known = lessons(Word::Stopped, 1);
        assert_eq!(see(&rows(2, Readiness::Running), &mut known, 0).readiness, Readiness::Running);
    }
}
