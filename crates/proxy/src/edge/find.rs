//! From a request to the Machine that serves it: choose, try, learn from the refusal, hold, wake, try again, until it
//! is served or its time is over.
//!
//! The order of things is the same for HTTP, upgrades and raw TCP; `Attempt` is what differs.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use godwit_api::door::Refusal;
use godwit_api::ids::{Epoch, MachineId};
use godwit_api::route::Readiness;
use tokio::time::Instant;

use super::Edge;
use super::app::{App, word_of};
use super::gate::{Held, Turn, Waking, Woken, woken};
use super::record::Trail;
use super::view::{Entrance, Target, TargetService, View, Word};
use super::wake::wake;
use crate::choose::{Candidate, Choice, choose, distance_of};
use crate::eject::Failure;
use crate::h1;
use crate::replay::Wanted;

/// How long a Machine is passed over after what it did.
pub const AVOID_BUSY_MS: u64 = 20;
pub const AVOID_AWAY_MS: u64 = 100;
pub const AVOID_UNKNOWN_MS: u64 = 200;
pub const AVOID_FULL_MS: u64 = 1_000;
/// The first in line asks again this often, if nothing else calls it.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Lost exchanges that one request may be sent again after.
const MAX_LOST: u32 = 3;
/// The same for a Machine that broke off: a request that kills whoever reads it must not go round.
const MAX_BROKE: u32 = 1;
/// Starts that failed which one request may go through: a broken image must not wake all its siblings.
const MAX_FAILED_STARTS: u32 = 2;

/// The Machine that was chosen.
pub struct Pick<'a> {
    pub app: &'a Arc<App>,
    pub target: &'a Target,
    pub service: &'a TargetService,
}

/// How an attempt ended.
pub enum Tried<T> {
    /// `well`: with no error of its own.
    Served { served: T, well: bool },
    /// The Machine broke off before its answer, or gave one that cannot be passed on, and `why`. `again`: doing it twice
    /// does no harm.
    Broke { again: bool, why: Option<h1::Refusal> },
    /// The door did not admit it; nothing is lost.
    Refused(Refusal, Option<Epoch>, u32),
    /// The door could not be asked; nothing is lost.
    Away,
    /// It may have been acted on. `again`: doing it twice does no harm.
    Lost { again: bool },
}

pub trait Attempt: Send {
    type Served: Send;
    /// `turn` is given up as soon as the door has admitted the request.
    fn attempt(
        &mut self,
        edge: &Edge,
        pick: &Pick<'_>,
        turn: &mut Option<Turn>,
    ) -> impl Future<Output = Tried<Self::Served>> + Send;
}

/// Why no Machine served a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turned {
    /// No Machine of the app has a service there.
    NoService,
    /// None of those that the request asks for is there.
    NoMatch,
    /// Nothing runs and nothing may be started.
    NoMachine,
    /// None of them takes connections, or starts.
    Ejected {
        retry_after_s: u32,
        /// As the host of one of them sees it.
        why: Option<Arc<str>>,
    },
    /// What runs can never be reached as it listens.
    Unreachable(Arc<str>),
    /// Too many requests are held.
    GateFull,
    Deadline,
    StartFailed(Arc<str>),
    Lost,
    /// And what was wrong with its answer, if there was one.
    Broke(Option<h1::Refusal>),
}

impl Turned {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoService => "no_service",
            Self::NoMatch => "no_match",
            Self::NoMachine => "no_machine",
            Self::GateFull => "gate_full",
            Self::Deadline => "deadline",
            Self::StartFailed(_) => "start_failed",
            Self::Lost => "lost",
            Self::Broke(None) => "broke",
            Self::Broke(Some(why)) => why.word(),
            Self::Ejected { .. } => "ejected",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

/// One request's way through the gate.
struct Search<'a> {
    edge: &'a Edge,
    app: &'a Arc<App>,
    wanted: &'a Wanted,
    entrance: Entrance,
    trail: &'a mut Trail,
    deadline: Instant,
    held: Option<Held>,
    turn: Option<Turn>,
    pause: Duration,
    /// Leave out hints: the first in line asks even those that just refused.
    fresh: bool,
    lost: u32,
    broke: u32,
    /// Broke off with this very request: any other is asked first.
    shunned: Option<MachineId>,
    failed_starts: u32,
    /// What the host of a Machine that could not be reached says of it.
    hint: Option<Arc<str>>,
}

/// Where a decision points: indices of target and service.
type Place = (usize, usize);

pub async fn find<A: Attempt>(
    edge: &Edge,
    app: &Arc<App>,
    wanted: &Wanted,
    entrance: Entrance,
    trail: &mut Trail,
    attempt: &mut A,
) -> Result<A::Served, Turned> {
    let mut search = Search {
        edge,
        app,
        wanted,
        entrance,
        trail,
        deadline: Instant::now() + edge.gate_deadline(),
        held: None,
        turn: None,
        pause: PAUSE_FIRST,
        fresh: false,
        lost: 0,
        broke: 0,
        shunned: None,
        failed_starts: 0,
        hint: None,
    };
    loop {
        if let Some(served) = search.step(attempt).await? {
            return Ok(served);
        }
        if Instant::now() >= search.deadline {
            return Err(search.late());
        }
    }
}

impl Search<'_> {
    async fn step<A: Attempt>(&mut self, attempt: &mut A) -> Result<Option<A::Served>, Turned> {
        let view = self.app.view();
        let fresh = std::mem::take(&mut self.fresh);
        let (places, choice) = self.decide(&view, fresh)?;
        match choice {
            Choice::Serve(_) | Choice::ServeAndStart { .. } | Choice::Last(_)
                if self.turn.is_none() && self.app.gate.has_line() =>
            {
                self.stand_in_line().await?;
                Ok(None)
            }
            Choice::Serve(serve) => self.serve(attempt, &view, places[serve], false).await,
            Choice::Last(last) => self.serve(attempt, &view, places[last], true).await,
            Choice::ServeAndStart { serve, .. } => {
                // Nobody waits for the start here: what runs serves meanwhile.
                self.begin_start(fresh)?;
                self.serve(attempt, &view, places[serve], false).await
            }
            Choice::Start(_) => {
                self.hold()?;
                // All who wait for a start wait together, and go together when it is done.
                self.turn = None;
                if let Some(waking) = self.begin_start(fresh)? {
                    self.await_start(waking).await?;
                }
                Ok(None)
            }
            Choice::Wait => {
                self.look_for_closed(&view, &places)?;
                self.wait().await?;
                Ok(None)
            }
            Choice::Ejected { until_ms } => {
                let left_ms = until_ms.saturating_sub(self.edge.routes.now_ms());
                let retry_after_s = u32::try_from(left_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
                let reasons = places.iter().map(|(target, _)| view.targets[*target].tallies.reason());
                Err(Turned::Ejected { retry_after_s, why: reasons.flatten().next() })
            }
            Choice::Nothing => Err(Turned::NoMachine),
        }
    }

    fn decide(&self, view: &View, fresh: bool) -> Result<(Vec<Place>, Choice), Turned> {
        let now_ms = self.edge.routes.now_ms();
        let mut places: Vec<Place> = Vec::with_capacity(view.targets.len());
        let mut candidates: Vec<Candidate> = Vec::with_capacity(view.targets.len());
        let mut others = false;
        for (index, target) in view.targets.iter().enumerate() {
            if !self.wanted.fits(&target.machine, &target.region) {
                others = true;
            } else if let Some(service) = target.service(self.entrance) {
                places.push((index, service));
                let mut candidate = target.candidate(service, now_ms, fresh);
                candidate.avoided |= self.shunned.as_ref() == Some(&target.machine);
                candidates.push(candidate);
            }
        }
        if places.is_empty() && others {
            return Err(Turned::NoMatch);
        }
        if places.is_empty() && !view.targets.is_empty() {
            return Err(Turned::NoService);
        }
        if candidates.len() > 1 {
            self.measure(view, &places, &mut candidates);
        }
        let mut choice = choose(&candidates, self.edge.chance());
        let served = matches!(choice, Choice::Serve(_) | Choice::ServeAndStart { .. } | Choice::Last(_));
        if let Some(shunned) = self.shunned.as_ref().filter(|_| !served) {
            // There is no other that runs.
            for (candidate, (target, service)) in candidates.iter_mut().zip(&places) {
                if view.targets[*target].machine == *shunned {
                    let distance = candidate.distance;
                    *candidate = Candidate { distance, ..view.targets[*target].candidate(*service, now_ms, fresh) };
                }
            }
            choice = choose(&candidates, self.edge.chance());
        }
        Ok((places, choice))
    }

    /// How far each one's host is from here.
    fn measure(&self, view: &View, places: &[Place], candidates: &mut [Candidate]) {
        let doors = places.iter().map(|(target, _)| &view.targets[*target].door_addr);
        for (candidate, round_trip) in candidates.iter_mut().zip(self.edge.hosts.round_trips(doors)) {
            candidate.distance = distance_of(round_trip);
        }
    }

    async fn serve<A: Attempt>(
        &mut self,
        attempt: &mut A,
        view: &View,
        (target, service): Place,
        last: bool,
    ) -> Result<Option<A::Served>, Turned> {
        let target = &view.targets[target];
        let pick = Pick { app: self.app, target, service: &target.services[service] };
        let now_ms = self.edge.routes.now_ms();
        if !target.tallies.send(last, now_ms) {
            return Ok(None);
        }
        self.trail.at = Some((target.machine.clone(), target.host.clone()));
        let begun = Instant::now();
        match attempt.attempt(self.edge, &pick, &mut self.turn).await {
            Tried::Served { served, well } => {
                self.trail.first_byte = Some(begun.elapsed());
                let now_ms = self.edge.routes.now_ms();
                if target.tallies.answered(well, now_ms) {
                    tracing::info!(machine = %target.machine, "a Machine is served again");
                }
                if !well {
                    self.failed(target, Failure::Answer);
                }
                return Ok(Some(served));
            }
            Tried::Broke { again, why } => {
                self.failed(target, Failure::Broke);
                self.broke += 1;
                self.shunned = Some(target.machine.clone());
                if !again || self.broke > MAX_BROKE {
                    return Err(Turned::Broke(why));
                }
                self.edge.metrics.retries.inc();
                self.trail.retries += 1;
            }
            Tried::Refused(refusal, epoch, load) => {
                target.tallies.learned_nothing();
                self.edge.metrics.refused(refusal.as_str());
                let at_hard = pick.service.hard.is_some_and(|hard| load >= hard);
                if refusal == Refusal::Busy && at_hard {
                    pick.service.tally.heard(load, now_ms);
                } else {
                    self.refused(target, service, refusal, epoch).await;
                }
            }
            Tried::Away => {
                target.tallies.learned_nothing();
                target.tallies.avoid(now_ms + AVOID_AWAY_MS);
            }
            Tried::Lost { again } => {
                target.tallies.learned_nothing();
                self.lost += 1;
                if !again || self.lost > MAX_LOST {
                    return Err(Turned::Lost);
                }
                self.edge.metrics.retries.inc();
                self.trail.retries += 1;
            }
        }
        Ok(None)
    }

    /// Nobody is asked for what is out, such as a Machine whose check fails: what its host has told of its port counts. It is
    /// said at the deadline; or at once, if it is so of all of them and lasts.
    fn look_for_closed(&mut self, view: &View, places: &[Place]) -> Result<(), Turned> {
        let closed = places.iter().map(|(target, service)| {
            let target = &view.targets[*target];
            target.services[*service].closed.as_ref().filter(|_| target.readiness == Readiness::Unavailable)
        });
        let Some(first) = closed.clone().flatten().next() else { return Ok(()) };
        self.hint = Some(first.why.clone());
        if closed.into_iter().all(|one| one.is_some_and(|closed| closed.lasting)) {
            return Err(Turned::Unreachable(first.why.clone()));
        }
        Ok(())
    }

    /// The time is over: if a host knows why, that is said.
    fn late(&self) -> Turned {
        self.hint.clone().map_or(Turned::Deadline, Turned::Unreachable)
    }

    fn failed(&self, target: &Target, why: Failure) {
        let ejected = target.tallies.failed(why, self.edge.routes.now_ms());
        self.edge.metrics.ejected(&target.machine, why, ejected);
    }

    async fn refused(&mut self, target: &Target, service: usize, refusal: Refusal, epoch: Option<Epoch>) {
        let now_ms = self.edge.routes.now_ms();
        if let Some(word) = word_of(&refusal, &target.as_origin()) {
            self.app.learn(&target.machine, word, epoch.unwrap_or(target.epoch), now_ms);
            if self.app.view().shows(&target.standing()) {
                // Not believed: something newer is known, which this door has yet to hear.
                target.tallies.avoid(now_ms + AVOID_BUSY_MS);
            }
            return;
        }
        if refusal == Refusal::Unknown && target.origin.is_some() {
            // It was on its way there, and was taken back or has yet to come: a start call asks both ends.
            self.app.learn(&target.machine, Word::Stopped, target.epoch, now_ms);
            if !self.app.view().shows(&target.standing()) {
                return;
            }
        }
        let avoid_ms = match refusal {
            Refusal::Busy => AVOID_BUSY_MS,
            Refusal::Full => AVOID_FULL_MS,
            Refusal::Unreachable { hint } => {
                // It runs and does not listen yet: a start call waits for its port.
                if target.services[service].service.autostart() {
                    self.app.learn(&target.machine, Word::Stopped, epoch.unwrap_or(target.epoch), now_ms);
                    return;
                }
                let why = hint.map(|hint| Arc::from(format!("Machine {}: {hint}", target.machine)));
                self.hint = why.clone().or(self.hint.take());
                target.tallies.say(why);
                self.failed(target, Failure::Connect);
                AVOID_UNKNOWN_MS
            }
            _ => AVOID_UNKNOWN_MS,
        };
        target.tallies.avoid(now_ms + avoid_ms);
    }

    /// A place among the held; taken once, kept to the end.
    fn hold(&mut self) -> Result<(), Turned> {
        if self.held.is_none() {
            self.held = Some(self.app.gate.hold().ok_or(Turned::GateFull)?);
        }
        Ok(())
    }

    /// Decides once more, alone, and starts a Machine or joins its start if that is still what to do. `None`: it has changed
    /// meanwhile, and who asks must look again.
    fn begin_start(&self, fresh: bool) -> Result<Option<Waking>, Turned> {
        let _alone = self.app.gate.choosing();
        let view = self.app.view();
        let (places, choice) = self.decide(&view, fresh)?;
        let (Choice::Start(start) | Choice::ServeAndStart { start, .. }) = choice else { return Ok(None) };
        // A start that ends shows what it taught before it stops to show itself: with another view it may just have ended.
        if !Arc::ptr_eq(&view, &self.app.view()) {
            return Ok(None);
        }
        let (target, service) = places[start];
        Ok(Some(wake(self.edge, self.app, &view.targets[target], service)))
    }

    async fn await_start(&mut self, waking: Waking) -> Result<(), Turned> {
        let begun = Instant::now();
        let ended = tokio::time::timeout_at(self.deadline, woken(waking)).await;
        self.trail.wake += begun.elapsed();
        let Ok(ended) = ended else { return Err(self.late()) };
        let turned = match ended {
            Woken::Ready | Woken::News => return Ok(()),
            Woken::Refused | Woken::Away => {
                self.wait_briefly().await;
                return Ok(());
            }
            Woken::Failed(why) => Turned::StartFailed(why),
            Woken::Unreachable(why) => Turned::Unreachable(why),
        };
        self.failed_starts += 1;
        let (_, choice) = self.decide(&self.app.view(), false)?;
        let hope = matches!(choice, Choice::Serve(_) | Choice::ServeAndStart { .. } | Choice::Start(_));
        if self.failed_starts >= MAX_FAILED_STARTS || !hope { Err(turned) } else { Ok(()) }
    }

    async fn stand_in_line(&mut self) -> Result<(), Turned> {
        self.hold()?;
        let begun = Instant::now();
        let turn = tokio::time::timeout_at(self.deadline, self.app.gate.turn()).await;
        self.trail.queue += begun.elapsed();
        self.turn = Some(turn.map_err(|_| self.late())?);
        Ok(())
    }

    /// Nothing can serve now. The first in line asks again when something changes; the others stand behind it.
    async fn wait(&mut self) -> Result<(), Turned> {
        if self.turn.is_none() {
            return self.stand_in_line().await;
        }
        self.wait_briefly().await;
        self.fresh = true;
        Ok(())
    }

    async fn wait_briefly(&mut self) {
        let until = (Instant::now() + self.pause).min(self.deadline);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        let mut changes = self.app.changes();
        let begun = Instant::now();
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            _ = changes.changed() => {}
            () = self.app.gate.freed() => self.pause = PAUSE_FIRST,
        }
        self.trail.queue += begun.elapsed();
    }
}
