//! The two ways in which a gate closes: the agent is about to stop a Machine, or an edge asked for a stop because
//! nothing is in flight.

use std::sync::Arc;
use std::time::Duration;

use godwit_api::door::{AgentStopIfIdle, Drained, StopIfIdle, StopReply};
use godwit_base::backoff::Backoff;
use tokio::time::Instant;

use super::Door;
use super::gate::Closed;
use super::machines::{Entry, ToClose};

/// After this bound an idle stop whose answer was lost counts as not done: the agent is away, and its Machines serve.
const LOST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that were cut off end at once; this bounds the wait for them.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits until nothing is in flight or the time is over, cuts off the rest, and reports.
pub(super) async fn follow(door: Arc<Door>, work: ToClose) {
    let ToClose { entry, closing } = work;
    let closed = Some(Closed::ByAgent { token: closing.token });
    let deadline = Instant::now() + Duration::from_millis(closing.drain_timeout_ms);
    let mut cut_off = 0;
    quiet_by(&entry, closed, deadline, Entry::awaited).await;
    if entry.total() > 0 && entry.closed() == closed {
        cut_off = entry.cut_off();
        door.cut_before(&entry.id);
        door.metrics.cut_off.inc_by(u64::from(cut_off));
        quiet_by(&entry, closed, Instant::now() + CUT_TIMEOUT, Entry::total).await;
    }
    let drained = Drained { token: closing.token, cut_off };
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
    // Until it is told, or the agent closes anew or opens: then nobody waits for this report.
    while entry.closed() == closed {
        match door.agent.drained(&entry.id, &drained).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(machine = %entry.id, %error, "cannot report a drained gate");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Waits until `count` is at zero, this closing is over, or the time is.
async fn quiet_by(entry: &Entry, closed: Option<Closed>, deadline: Instant, count: fn(&Entry) -> u32) {
    let mut changes = entry.changes();
    loop {
        changes.mark_unchanged();
        if count(entry) == 0 || entry.closed() != closed {
            return;
        }
        if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Closes the gate if the Machine is idle, and lets the agent stop it.
pub(super) async fn stop_if_idle(door: &Arc<Door>, entry: &Arc<Entry>, call: &StopIfIdle) -> StopReply {
    if let Err(load) = door.machines.close_if_idle(entry, call.epoch, call.idle_ms) {
        return StopReply { stopped: false, load, moving: entry.moving().is_some() };
    }
    let request = AgentStopIfIdle { epoch: call.epoch };
    let stopped = match door.agent.stop_if_idle(&entry.id, &request).await {
        Ok(stopped) => stopped,
        Err(error) if error.never_sent() => false,
        Err(error) => {
            tracing::debug!(machine = %entry.id, %error, "no answer to an idle stop");
            let (door, entry) = (door.clone(), entry.clone());
            let group = door.group.clone();
            group.spawn_cancellable(async move { wait_for_news(&entry).await });
            return StopReply { stopped: false, load: 0, moving: false };
        }
    };
    if stopped {
        door.metrics.idle_stops.inc();
    } else {
        entry.reopen_idle();
    }
    StopReply { stopped, load: 0, moving: false }
}

/// The agent may have journaled the stop. Its stream will tell; without it the gate opens again.
async fn wait_for_news(entry: &Entry) {
    let deadline = Instant::now() + LOST_ANSWER_TIMEOUT;
    let mut changes = entry.changes();
    while entry.closed() == Some(Closed::Idle) && entry.view().running {
        if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
            entry.reopen_idle();
            return;
        }
    }
}
