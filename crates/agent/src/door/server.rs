//! The unix socket on which the door talks to its agent. Whoever may open the socket is the door: its file belongs to
//! the agent's user alone.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use godwit_api::ApiError;
use godwit_api::door::{AgentStart, AgentStartReply, AgentStopIfIdle, DoorUpdate, Drained, Listening, Refusal};
use godwit_api::ids::{Epoch, MachineId};
use godwit_api::machine::Acknowledged;
use godwit_base::http::Failure;
use godwit_machine::{Answer, Refusal as Declined, Source, Until, What};

use super::{Hub, Listener};
use crate::owner::{Inputs, words};
use crate::pull::PullSoon;
use crate::reach::{BY_SERVICE, Reaches};

/// A door that hears nothing for longer takes its agent for gone.
const TICK: Duration = Duration::from_secs(1);
/// Longest that a start is waited for; its job goes on.
const START_WAIT: Duration = Duration::from_secs(120);
const STOP_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Door {
    hub: Hub,
    inputs: Inputs,
    soon: PullSoon,
    reaches: Reaches,
    stopping: CancellationToken,
}

/// `stopping` ends the endless streams, so that the agent's stop need not wait for them.
pub fn router(hub: Hub, inputs: Inputs, soon: PullSoon, reaches: Reaches, stopping: CancellationToken) -> Router {
    Router::new()
        .route(godwit_api::door::AGENT_MACHINES, get(machines))
        .route("/door/v1/machines/{machine}/start", post(start))
        .route("/door/v1/machines/{machine}/stop-if-idle", post(stop_if_idle))
        .route("/door/v1/machines/{machine}/drained", post(drained))
        .route("/door/v1/machines/{machine}/listening/{port}", get(listening))
        .with_state(Door { hub, inputs, soon, reaches, stopping })
}

fn id(text: &str) -> Result<MachineId, Failure> {
    MachineId::parse(text).map_err(|error| Failure(ApiError::bad_request(error.to_string())))
}

async fn machines(State(door): State<Door>) -> Response {
    // Listening begins before the snapshot is drawn: a change in between is told twice, never lost.
    let listener = door.hub.listen();
    let first = door.hub.snapshot();
    let lines = unfold((listener, Some(first)), |(mut listener, first)| async move {
        let update = match first {
            Some(snapshot) => snapshot,
            None => next(&mut listener).await?,
        };
        Some((Ok::<Bytes, Infallible>(line(&update)), (listener, None)))
    });
    let lines = lines.take_until(door.stopping.clone().cancelled_owned());
    ([("content-type", "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn next(listener: &mut Listener) -> Option<DoorUpdate> {
    match tokio::time::timeout(TICK, listener.updates.recv()).await {
        Err(_) => Some(DoorUpdate::Tick),
        Ok(Ok(update)) => Some(update),
        Ok(Err(RecvError::Lagged(missed))) => {
            tracing::warn!(missed, "the door fell behind and gets a snapshot");
            listener.updates = listener.updates.resubscribe();
            Some(listener.hub.snapshot())
        }
        Ok(Err(RecvError::Closed)) => None,
    }
}

fn line(update: &DoorUpdate) -> Bytes {
    // Plain data with text keys always becomes JSON.
    let mut line = serde_json::to_vec(update).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

/// A port has refused the door: how the Machine listens, seen from there.
async fn listening(
    State(door): State<Door>,
    Path((machine, port)): Path<(String, u16)>,
) -> Result<Json<Listening>, Failure> {
    Ok(Json(door.reaches.ask(&id(&machine)?, port, BY_SERVICE).await))
}

async fn start(
    State(door): State<Door>,
    Path(machine): Path<String>,
    Json(call): Json<AgentStart>,
) -> Result<Json<AgentStartReply>, Failure> {
    let machine = id(&machine)?;
    let refused = |refusal, epoch: Option<Epoch>| Ok(Json(AgentStartReply::Refused { refusal, epoch }));
    let known = door.hub.get(&machine).map(|known| known.epoch);
    match known {
        None => return refused(Refusal::Unknown, None),
        Some(epoch) if epoch < call.epoch => {
            // Control knows more than we have pulled.
            door.soon.hint();
            return refused(Refusal::Unknown, Some(epoch));
        }
        Some(_) => {}
    }
    let answer = door.inputs.ask(machine, What::Start, Source::Proxy, Until::Ended, START_WAIT).await;
    match answer {
        Some(Answer::Ended { .. } | Answer::Accepted { .. }) => Ok(Json(AgentStartReply::Started)),
        Some(Answer::Refused(Declined::Full(_))) => refused(Refusal::Full, known),
        Some(Answer::Refused(Declined::Busy | Declined::Cancelled)) => refused(Refusal::Busy, known),
        Some(Answer::Refused(Declined::Gone | Declined::Stale)) => refused(Refusal::Unknown, known),
        Some(Answer::Refused(other)) => Ok(Json(AgentStartReply::Failed { error: words(&other) })),
        None => {
            let error = format!("it has not started within {} s", START_WAIT.as_secs());
            Ok(Json(AgentStartReply::Failed { error }))
        }
    }
}

async fn stop_if_idle(
    State(door): State<Door>,
    Path(machine): Path<String>,
    Json(call): Json<AgentStopIfIdle>,
) -> Result<Json<Acknowledged>, Failure> {
    let machine = id(&machine)?;
    if door.hub.get(&machine).is_none_or(|known| known.epoch != call.epoch) {
        return Ok(Json(Acknowledged { ok: false }));
    }
    let what = What::Stop { signal: None, timeout_ms: None };
    let answer = door.inputs.ask(machine, what, Source::Proxy, Until::Accepted, STOP_WAIT).await;
    Ok(Json(Acknowledged { ok: matches!(answer, Some(Answer::Accepted { .. })) }))
}

async fn drained(
    State(door): State<Door>,
    Path(machine): Path<String>,
    Json(call): Json<Drained>,
) -> Result<Json<Acknowledged>, Failure> {
    let machine = id(&machine)?;
    if call.cut_off > 0 {
        tracing::info!(%machine, cut_off = call.cut_off, "requests were cut off when the door closed");
    }
    door.hub.report_drained(call.token);
    Ok(Json(Acknowledged { ok: true }))
}
