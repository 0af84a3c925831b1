//! One start of one Machine, however many wait for it: the call to its door, and what the answer teaches.
//!
//! A Machine that is on its way to another host is awaited at both ends. The door there answers when the port accepts;
//! the door here is asked again and again whether the move was taken back, for only the source decides that, and a
//! belief in the move must not outlive a source that serves.

use std::sync::Arc;
use std::time::Duration;

use godwit_api::door::{Refusal, StartCall, StartReply};
use godwit_api::ids::MachineId;
use godwit_base::backoff::Backoff;
use tokio::time::Instant;

use super::Edge;
use super::app::{App, word_of};
use super::call::{self, CallError};
use super::find::{AVOID_AWAY_MS, AVOID_BUSY_MS, AVOID_FULL_MS, AVOID_UNKNOWN_MS};
use super::gate::{Waking, Woken};
use super::tally::Tallies;
use super::view::{Origin, Target, Word};
use crate::eject::Failure;
use crate::link::client::Link;

/// Between two questions to an end of a move.
const ASK_WAIT_FIRST: Duration = Duration::from_millis(10);
const ASK_WAIT_MAX: Duration = Duration::from_millis(200);
/// For a door's answer to arrive.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);

/// Starts a Machine, or joins the start that is on its way.
pub fn wake(edge: &Edge, app: &Arc<App>, target: &Target, service: usize) -> Waking {
    app.gate.wake(&target.machine, || {
        edge.metrics.wakes.inc();
        let waking = WakingFlag::set(target);
        let port = target.services[service].service.internal_port;
        let start = Start {
            machine: target.machine.clone(),
            port,
            at: End::new(edge, target.as_origin()),
            origin: target.origin.clone().map(|origin| End::new(edge, origin)),
            deadline: Instant::now() + edge.gate_deadline(),
        };
        let (app, asked, tallies) = (app.clone(), target.standing(), target.tallies.clone());
        let (routes, metrics) = (edge.routes.clone(), edge.metrics.clone());
        async move {
            let heard = start.run().await;
            let now_ms = routes.now_ms();
            if let (Some(origin), true) = (&start.origin, heard.stays) {
                let word = Word::Stays { origin: origin.place.clone() };
                app.learn(&start.machine, word, origin.place.epoch, now_ms);
            }
            let ended = match heard.reply {
                Ok(StartReply::Ready { epoch }) => {
                    if tallies.started(now_ms) {
                        tracing::info!(machine = %start.machine, "a Machine is served again");
                    }
                    app.learn(&start.machine, Word::Running, epoch, now_ms);
                    Woken::Ready
                }
                Ok(StartReply::Refused { refusal, epoch }) => {
                    metrics.refused(refusal.as_str());
                    if let Some(word) = word_of(&refusal, &heard.from) {
                        app.learn(&start.machine, word, epoch.unwrap_or(heard.from.epoch), now_ms);
                    }
                    if app.view().shows(&asked) {
                        tallies.avoid(now_ms + avoid_ms(&refusal));
                        Woken::Refused
                    } else {
                        Woken::News
                    }
                }
                Ok(StartReply::Failed { error, unreachable: true }) => {
                    // It is no fault that passes: nothing is gained by leaving it alone for longer and longer.
                    metrics.wakes_failed.inc();
                    tallies.avoid(now_ms + AVOID_FULL_MS);
                    Woken::Unreachable(named(&start.machine, &error))
                }
                Ok(StartReply::Failed { error, .. }) => {
                    let error = named(&start.machine, &error);
                    tallies.say(Some(error.clone()));
                    metrics.ejected(&start.machine, Failure::Start, tallies.failed(Failure::Start, now_ms));
                    metrics.wakes_failed.inc();
                    Woken::Failed(error)
                }
                Err(error) => {
                    tracing::debug!(machine = %start.machine, %error, "a door could not be asked for a start");
                    tallies.avoid(now_ms + AVOID_AWAY_MS);
                    Woken::Away
                }
            };
            drop(waking);
            ended
        }
    })
}

/// Which Machine it was, with what its door said of it.
fn named(machine: &MachineId, error: &str) -> Arc<str> {
    format!("Machine {machine}: {error}").into()
}

fn avoid_ms(refusal: &Refusal) -> u64 {
    match refusal {
        Refusal::Full => AVOID_FULL_MS,
        Refusal::Moved { .. } | Refusal::Moving { .. } | Refusal::Stopped => AVOID_BUSY_MS,
        Refusal::Busy | Refusal::Unreachable { .. } | Refusal::Unknown => AVOID_UNKNOWN_MS,
    }
}

/// One end of a move, or where a Machine is that does not move.
struct End {
    place: Origin,
    link: Arc<Link>,
}

impl End {
    fn new(edge: &Edge, place: Origin) -> Self {
        let link = edge.hosts.link(&place.door_addr);
        Self { place, link }
    }
}

/// What is to be started, and who may know of it.
struct Start {
    machine: MachineId,
    port: u16,
    at: End,
    /// Where it comes from, while its move may still be taken back.
    origin: Option<End>,
    deadline: Instant,
}

/// How it ended.
struct Heard {
    from: Origin,
    reply: Result<StartReply, CallError>,
    /// The source has it again.
    stays: bool,
}

impl Start {
    async fn run(&self) -> Heard {
        let Some(origin) = &self.origin else {
            return Heard { from: self.at.place.clone(), reply: self.ask(&self.at).await, stays: false };
        };
        tokio::select! {
            reply = self.at_target() => Heard { from: self.at.place.clone(), reply, stays: false },
            (reply, stays) = self.at_source(origin) => Heard { from: origin.place.clone(), reply: Ok(reply), stays },
        }
    }

    async fn ask(&self, end: &End) -> Result<StartReply, CallError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // The door's answer, which says why, must be here before the time is over.
        let there = left.saturating_sub(ANSWER_MARGIN.min(left / 10));
        let timeout_ms = u64::try_from(there.as_millis()).unwrap_or(u64::MAX);
        let call = StartCall { epoch: end.place.epoch, port: self.port, timeout_ms };
        call::start(&end.link, &self.machine, &call, left).await
    }

    /// Asks the host that it moves to, until that host has heard of it.
    async fn at_target(&self) -> Result<StartReply, CallError> {
        let mut backoff = Backoff::new(ASK_WAIT_FIRST, ASK_WAIT_MAX);
        loop {
            let reply = self.ask(&self.at).await;
            let unheard = matches!(reply, Err(_) | Ok(StartReply::Refused { refusal: Refusal::Unknown, .. }));
            let wait = backoff.next_wait();
            if !unheard || Instant::now() + wait >= self.deadline {
                return reply;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks the host that it leaves, until that host says something other than that it leaves. True: it stays.
    async fn at_source(&self, origin: &End) -> (StartReply, bool) {
        let mut backoff = Backoff::new(ASK_WAIT_FIRST, ASK_WAIT_MAX);
        loop {
            tokio::time::sleep(backoff.next_wait()).await;
            let Ok(reply) = self.ask(origin).await else { continue };
            let StartReply::Refused { refusal, epoch } = &reply else { return (reply, true) };
            let as_known = epoch.is_none_or(|epoch| epoch == self.at.place.epoch);
            match refusal {
                // The source may have forgotten it after the move, or not have heard of its own agent yet.
                Refusal::Unknown => {}
                Refusal::Moving { .. } if as_known => {}
                // The move is done, and only its new host can tell more.
                Refusal::Moved { .. } if as_known => std::future::pending().await,
                Refusal::Moving { .. } | Refusal::Moved { .. } => return (reply, false),
                Refusal::Busy | Refusal::Full | Refusal::Stopped | Refusal::Unreachable { .. } => {
                    return (reply, true);
                }
            }
        }
    }
}

/// Shows others that a start is on its way, until it ends, however it ends.
struct WakingFlag(Arc<Tallies>);

impl WakingFlag {
    fn set(target: &Target) -> Self {
        target.tallies.set_waking(true);
        Self(target.tallies.clone())
    }
}

impl Drop for WakingFlag {
    fn drop(&mut self) {
        self.0.set_waking(false);
    }
}
