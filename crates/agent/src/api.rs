//! The host API: what control asks of this host. Every call is checked by `may`, and none of them does anything that
//! the host would not do by itself, or on its own Machines' behalf.

mod caller;
mod inside;
mod logs;
mod moves;
mod remarks;
mod session;
mod stopped;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post, put};
use axum::{Json, Router};

use tokio_util::sync::CancellationToken;

use godwit_api::ApiError;
use godwit_api::error::Status;
use godwit_api::fact::MachineFact;
use godwit_api::host::{Held, PlaceReply, RunRestart, RunStart, RunStop};
use godwit_api::ids::{Epoch, MachineId};
use godwit_api::machine::{Acknowledged, StartAnswer};
use godwit_api::row::Placement;
use godwit_base::Distrust;
use godwit_base::http::Failure;
use godwit_machine::{Answer, Refusal, Source, Until, What};

use crate::door::Hub;
use crate::effects::Effects;
use crate::join::Identity;
use crate::owner::{Inputs, words};
use crate::pull::PullSoon;
use crate::view::View;

/// Until the journal holds it. Behind another job it may take longer; then the caller asks again.
const ACCEPT_WAIT: Duration = Duration::from_secs(25);
/// A restart is answered when it is done.
const RESTART_WAIT: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct HostApi {
    pub identity: Arc<Identity>,
    pub inputs: Inputs,
    pub view: View,
    pub effects: Effects,
    pub soon: PullSoon,
    /// Knows the edges.
    pub hub: Hub,
    pub distrust: Distrust,
    /// Ends what is followed without an end.
    pub stopping: CancellationToken,
}

pub fn router(api: HostApi) -> Router {
    // These ask `may` when the ticket has been read.
    let moves = Router::new()
        .route("/host/v1/moves/prepare", post(moves::prepare))
        .route("/host/v1/moves/handoff", post(moves::handoff))
        .route("/host/v1/moves/take-back", post(moves::take_back))
        .route("/host/v1/moves/cancel", post(moves::cancel))
        .route("/host/v1/moves/release", post(moves::release))
        .layer(DefaultBodyLimit::max(godwit_base::ticket::BODY_MAX_BYTES * 2))
        .layer(from_fn_with_state(api.clone(), caller::name))
        .with_state(api.clone());
    Router::new()
        .route("/host/v1/placements/{machine}", put(place))
        .route("/host/v1/machines/{machine}", get(show))
        .route("/host/v1/machines/{machine}/held", get(held))
        .route("/host/v1/machines/{machine}/start", post(start))
        .route("/host/v1/machines/{machine}/stop", post(stop))
        .route("/host/v1/machines/{machine}/restart", post(restart))
        .route("/host/v1/machines/{machine}/signal", post(inside::signal))
        .route("/host/v1/machines/{machine}/exec", post(inside::exec))
        .route("/host/v1/machines/{machine}/session", get(session::session))
        .route("/host/v1/machines/{machine}/connect", get(session::connect))
        .route("/host/v1/machines/{machine}/ps", get(inside::ps))
        .route("/host/v1/machines/{machine}/logs", get(logs::logs))
        .route("/host/v1/pull", post(pull))
        .layer(from_fn_with_state(api.clone(), caller::command))
        .with_state(api)
        .merge(moves)
}

/// A Machine's id in the path.
pub struct Id(pub MachineId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::bad_request(rejection.to_string()))?;
        let id = MachineId::parse(&text).map_err(|error| ApiError::bad_request(error.to_string()))?;
        Ok(Self(id))
    }
}

impl HostApi {
    /// The Machine's fact, if it is here.
    fn held(&self, machine: &MachineId) -> Result<MachineFact, ApiError> {
        self.view.get(machine).ok_or_else(|| ApiError::not_found(format!("Machine {machine} is not on this host")))
    }

    /// Control must speak of the epoch that is held. One that knows more makes us pull.
    fn at_epoch(&self, machine: &MachineId, epoch: Epoch) -> Result<(), ApiError> {
        let held = self.held(machine)?.epoch;
        if epoch == held {
            return Ok(());
        }
        if epoch > held {
            self.soon.hint();
            let text = format!("epoch {epoch} of Machine {machine} has not arrived here yet; {held} is held");
            return Err(ApiError::unavailable(text, 1));
        }
        Err(ApiError::conflict(format!("epoch {epoch} of Machine {machine} is over; {held} is held")))
    }

    async fn ask(
        &self,
        machine: &MachineId,
        what: What,
        until: Until,
        bound: Duration,
    ) -> Result<godwit_api::machine::MachineState, ApiError> {
        match self.inputs.ask(machine.clone(), what, Source::User, until, bound).await {
            Some(Answer::Accepted { previous } | Answer::Ended { previous }) => Ok(previous),
            Some(Answer::Refused(refusal)) => Err(declined(machine, &refusal)),
            None => {
                let text = format!("Machine {machine}: another job is still running; its outcome is not known yet");
                Err(ApiError::unavailable(text, 1))
            }
        }
    }
}

fn declined(machine: &MachineId, refusal: &Refusal) -> ApiError {
    let text = format!("Machine {machine}: {}", words(refusal));
    match refusal {
        Refusal::Full(_) => {
            let full = ApiError::new(503, Status::InsufficientCapacity, text);
            ApiError { retry_after_s: Some(5), ..full }
        }
        Refusal::Gone => ApiError::not_found(text),
        Refusal::Placement(_) => ApiError::unprocessable(text),
        Refusal::Busy => ApiError { retry_after_s: Some(1), ..ApiError::conflict(text) },
        Refusal::Stale | Refusal::Cancelled => ApiError::conflict(text),
        Refusal::Failed(_) => ApiError::internal(text),
    }
}

async fn place(
    State(api): State<HostApi>,
    Id(machine): Id,
    Json(placement): Json<Placement>,
) -> Result<Json<PlaceReply>, Failure> {
    if placement.machine != machine || placement.host != api.identity.host {
        let text = format!("the placement is of Machine {} on host {}", placement.machine, placement.host);
        return Err(ApiError::bad_request(text).into());
    }
    let what = What::Place(Box::new(placement));
    match api.inputs.ask(machine.clone(), what, Source::User, Until::Accepted, ACCEPT_WAIT).await {
        Some(Answer::Accepted { .. } | Answer::Ended { .. }) => Ok(Json(PlaceReply::Accepted)),
        Some(Answer::Refused(Refusal::Placement(reason))) => Ok(Json(PlaceReply::Refused { reason })),
        Some(Answer::Refused(refusal)) => Err(declined(&machine, &refusal).into()),
        None => Err(ApiError::unavailable(format!("Machine {machine}: another job is still running"), 1).into()),
    }
}

async fn show(State(api): State<HostApi>, Id(machine): Id) -> Result<Json<MachineFact>, Failure> {
    Ok(Json(api.held(&machine)?))
}

async fn held(State(api): State<HostApi>, Id(machine): Id) -> Result<Json<Held>, Failure> {
    let holding = api.inputs.look(&machine).await.filter(|holding| holding.record.held);
    let holding = holding.ok_or_else(|| ApiError::not_found(format!("Machine {machine} is not on this host")))?;
    let volumes = holding.volumes.into_iter().map(|record| record.placement).collect();
    Ok(Json(Held { placement: holding.record.placement, busy: holding.busy, volumes }))
}

async fn start(
    State(api): State<HostApi>,
    Id(machine): Id,
    Json(call): Json<RunStart>,
) -> Result<Json<StartAnswer>, Failure> {
    api.at_epoch(&machine, call.epoch)?;
    let previous = api.ask(&machine, What::Start, Until::Accepted, ACCEPT_WAIT).await?;
    Ok(Json(StartAnswer { previous_state: previous.as_str().to_owned(), ..StartAnswer::default() }))
}

async fn stop(
    State(api): State<HostApi>,
    Id(machine): Id,
    Json(call): Json<RunStop>,
) -> Result<Json<Acknowledged>, Failure> {
    api.at_epoch(&machine, call.epoch)?;
    known_signal(call.signal.as_deref())?;
    let what = What::Stop { signal: call.signal, timeout_ms: call.timeout.map(|timeout| timeout.as_millis()) };
    api.ask(&machine, what, Until::Accepted, ACCEPT_WAIT).await?;
    Ok(Json(Acknowledged { ok: true }))
}

async fn restart(
    State(api): State<HostApi>,
    Id(machine): Id,
    Json(call): Json<RunRestart>,
) -> Result<Json<Acknowledged>, Failure> {
    api.at_epoch(&machine, call.epoch)?;
    known_signal(call.signal.as_deref())?;
    let timeout_ms = call.timeout.map(|timeout| timeout.as_millis());
    let what = What::Restart { signal: call.signal, timeout_ms, force: call.force };
    api.ask(&machine, what, Until::Ended, RESTART_WAIT).await?;
    Ok(Json(Acknowledged { ok: true }))
}

fn known_signal(signal: Option<&str>) -> Result<i32, ApiError> {
    let Some(text) = signal else { return Ok(0) };
    godwit_machine::signal::parse(text).ok_or_else(|| ApiError::bad_request(format!("{text:?} is not a signal")))
}

async fn pull(State(api): State<HostApi>) -> Json<Acknowledged> {
    api.soon.hint();
    Json(Acknowledged { ok: true })
}
