//! A start on request: ask the agent once, then dial until the port accepts, the Machine ends, its agent sees
//! that the port never will, or the time is over.

use std::sync::Arc;
use std::time::Duration;

use godwit_api::door::{AgentStart, AgentStartReply, Refusal, StartCall, StartReply};
use godwit_api::machine::MachineState;
use tokio::time::Instant;

use super::Door;
use super::hint::Doubt;
use super::machines::{Entry, Refused, View};
use super::upstream;

/// Between two looks at a port: a Machine that is just about to listen should not wait for us.
const DIAL_WAIT_FIRST: Duration = Duration::from_millis(1);
const DIAL_WAIT_MAX: Duration = Duration::from_millis(25);
/// A caller's wait is cut to this.
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// While a Machine stops, or its agent is away, the start is tried again this often.
const RETRY_WAIT: Duration = Duration::from_millis(100);

fn failed(error: String) -> StartReply {
    StartReply::Failed { error, unreachable: false }
}

/// Where a start stands, decided from one look.
enum Next {
    Dial,
    Ask,
    /// It is on its way down; what the agent tells next decides.
    Wait,
    Ended,
}

/// The answer for a Machine that is on its way to another host.
fn away(moving: Refused) -> StartReply {
    StartReply::Refused { refusal: moving.refusal, epoch: moving.epoch }
}

/// `ours`: the agent started it for us, and its stream has told so since.
fn next(view: &View, ours: bool) -> Next {
    if view.running {
        // Closed for a stop: it will not run for long.
        return if view.closed.is_some() { Next::Wait } else { Next::Dial };
    }
    match view.state {
        MachineState::Stopping | MachineState::Destroying => Next::Wait,
        _ if ours => Next::Ended,
        MachineState::Destroyed => Next::Ended,
        _ => Next::Ask,
    }
}

pub(super) async fn start(door: &Arc<Door>, id: &str, call: &StartCall) -> StartReply {
    let Some(entry) = door.machines.get(id) else {
        let absent = door.machines.absent(id);
        return StartReply::Refused { refusal: absent.refusal, epoch: absent.epoch };
    };
    if let Some(moving) = entry.moving() {
        return away(moving);
    }
    door.metrics.starts.inc();
    let timeout = Duration::from_millis(call.timeout_ms).min(MAX_TIMEOUT);
    let _starting = door.machines.starting(&entry);
    let reply = start_entry(door, &entry, call.port, Instant::now() + timeout).await;
    if let StartReply::Failed { error, .. } = &reply {
        door.metrics.starts_failed.inc();
        tracing::info!(machine = %entry.id, error, "a start on request failed");
    }
    reply
}

async fn start_entry(door: &Arc<Door>, entry: &Arc<Entry>, port: u16, deadline: Instant) -> StartReply {
    let mut changes = entry.changes();
    // When the agent started it for us: how often it had been told to stop by then.
    let mut asked: Option<u64> = None;
    let mut seen_running = false;
    let mut wait = DIAL_WAIT_FIRST;
    let mut doubt = Doubt::new(door, entry, port);
    loop {
        changes.mark_unchanged();
        let view = entry.view();
        if let Some(moving) = view.moving {
            return away(moving);
        }
        let pause = match next(&view, seen_running && asked == Some(view.stops)) {
            Next::Ended if view.state == MachineState::Destroyed => {
                // It left this host meanwhile; where to is known by now.
                let absent = door.machines.absent(entry.id.as_str());
                return StartReply::Refused { refusal: absent.refusal, epoch: absent.epoch };
            }
            Next::Ended => {
                return failed("the Machine ended before its port accepted".to_owned());
            }
            Next::Wait => RETRY_WAIT,
            Next::Ask => match ask(door, entry, deadline).await {
                Ok(()) => {
                    (asked, seen_running) = (Some(entry.view().stops), false);
                    doubt.begin_anew();
                    continue;
                }
                Err(Some(reply)) => return reply,
                Err(None) => RETRY_WAIT,
            },
            Next::Dial => {
                // Only what the stream told counts as seen: lines from before the start may still be on their way.
                seen_running |= view.state == MachineState::Started;
                match upstream::try_dial(entry, port, deadline).await {
                    Ok(()) => return StartReply::Ready { epoch: view.epoch },
                    Err(_) => {
                        doubt.refused();
                        let now = wait;
                        wait = (wait * 2).min(DIAL_WAIT_MAX);
                        now
                    }
                }
            }
        };
        if Instant::now() >= deadline {
            return failed(doubt.in_the_end());
        }
        tokio::select! {
            () = tokio::time::sleep_until((Instant::now() + pause).min(deadline)) => {}
            _ = changes.changed() => {}
            error = doubt.lasting() => return StartReply::Failed { error, unreachable: true },
        }
    }
}

/// Asks the agent, one call of this door at a time. `Err(None)`: it is worth asking again.
async fn ask(door: &Arc<Door>, entry: &Arc<Entry>, deadline: Instant) -> Result<(), Option<StartReply>> {
    let Ok(_turn) = tokio::time::timeout_at(deadline, entry.starting.lock()).await else { return Err(None) };
    let view = entry.view();
    if view.running {
        // Whoever had the turn before started it.
        return Ok(());
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(None);
    }
    let call = AgentStart { epoch: view.epoch };
    let answer = tokio::select! {
        answer = door.agent.start(&entry.id, &call, left) => answer,
        // The agent tells of that by its stream at once, while the call may be held until a job ends.
        () = leaves(entry) => return Ok(()),
    };
    match answer {
        Ok(AgentStartReply::Started) => {
            door.metrics.agent_starts.inc();
            door.machines.ran(entry);
            Ok(())
        }
        // It is stopping, or another job holds it: the caller's time is better spent here than on a way back.
        Ok(AgentStartReply::Refused { refusal: Refusal::Busy, .. }) => Err(None),
        Ok(AgentStartReply::Refused { refusal, epoch }) => Err(Some(StartReply::Refused { refusal, epoch })),
        Ok(AgentStartReply::Failed { error }) => Err(Some(failed(error))),
        Err(error) => {
            tracing::debug!(machine = %entry.id, error = godwit_base::telemetry::chain(&error), "no start from the agent");
            Err(None)
        }
    }
}

/// Ends when the Machine is on its way to another host, or has left.
async fn leaves(entry: &Entry) {
    let mut changes = entry.changes();
    loop {
        let view = entry.view();
        if view.moving.is_some() || view.state == MachineState::Destroyed || changes.changed().await.is_err() {
            return;
        }
    }
}
