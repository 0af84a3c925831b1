//! What the other host of a move asks, and control when it calls one off. Control has signed the ticket for this host, and
//! who shows it is named by its bearer (`caller`).

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use godwit_api::ApiError;
use godwit_api::machine::Acknowledged;
use godwit_api::migration::{MigrationFact, MovePart};
use godwit_api::ticket::{
    CancelAnswer, Grant, HandoffAnswer, HandoffAsk, PrepareAnswer, Release, SignedTicket, TakeBackAnswer,
};
use godwit_base::Verb;
use godwit_base::http::Failure;
use godwit_base::telemetry::chain;
use godwit_machine::{Answer, Refusal, Source, Until, What};

use super::HostApi;
use super::caller::Caller;
use crate::owner::words;

/// A question is held open for so long; then the answer is `pending`.
const HELD_OPEN: Duration = Duration::from_secs(20);
const ACCEPT_WAIT: Duration = Duration::from_secs(25);

impl HostApi {
    async fn ask_move(&self, unit: &godwit_api::MachineId, what: What) -> Option<Answer> {
        self.inputs.ask(unit.clone(), what, Source::User, Until::Accepted, ACCEPT_WAIT).await
    }
}

/// Before anything stops: may the target read, and where. Nothing is journaled by it.
pub async fn prepare(
    State(api): State<HostApi>,
    Extension(caller): Extension<Caller>,
    Json(ask): Json<HandoffAsk>,
) -> Result<Json<PrepareAnswer>, Failure> {
    let ticket = api.ticket(&caller, Verb::Move, &ask.ticket)?;
    let unit = ticket.lead.machine.clone();
    match api.ask_move(&unit, What::PrepareMove { ticket: Box::new(ticket.clone()) }).await {
        Some(Answer::Accepted { .. } | Answer::Ended { .. }) => {}
        Some(Answer::Refused(Refusal::Failed(reason))) => return Ok(Json(PrepareAnswer::Refused { reason })),
        Some(Answer::Refused(refusal @ Refusal::Gone)) => {
            return Ok(Json(PrepareAnswer::Refused { reason: words(&refusal) }));
        }
        Some(Answer::Refused(refusal)) => return Err(ApiError::unavailable(words(&refusal), 1).into()),
        None => return Err(ApiError::unavailable("no answer yet", 1).into()),
    }
    match api.effects.prepare(&ticket, &ask.client_certificate).await {
        Ok(exports) => Ok(Json(PrepareAnswer::Prepared { exports })),
        Err(error) => Err(ApiError::unavailable(chain(&error), 1).into()),
    }
}

pub async fn handoff(
    State(api): State<HostApi>,
    Extension(caller): Extension<Caller>,
    Json(ask): Json<HandoffAsk>,
) -> Result<Json<HandoffAnswer>, Failure> {
    let ticket = api.ticket(&caller, Verb::Move, &ask.ticket)?;
    let unit = ticket.lead.machine.clone();
    let what = What::MoveOut {
        signed: ask.ticket,
        ticket: Box::new(ticket.clone()),
        client_certificate: ask.client_certificate,
    };
    match api.ask_move(&unit, what).await {
        Some(Answer::Accepted { .. } | Answer::Ended { .. }) => {}
        Some(Answer::Refused(Refusal::Failed(reason))) => {
            api.effects.end_prepared(&ticket, &api.view).await;
            return Ok(Json(HandoffAnswer::Refused { reason }));
        }
        // Never held here, or no more: nothing can be handed off.
        Some(Answer::Refused(refusal @ Refusal::Gone)) => {
            return Ok(Json(HandoffAnswer::Refused { reason: words(&refusal) }));
        }
        Some(Answer::Refused(refusal)) => return Ok(Json(HandoffAnswer::Pending { step: words(&refusal) })),
        None => return Ok(Json(HandoffAnswer::Pending { step: "another job".into() })),
    }
    let part = |migration: Option<&MigrationFact>| migration.filter(|m| m.id == ticket.migration).cloned();
    let decided = api.view.until(&unit, HELD_OPEN, |fact| {
        let told = part(fact.and_then(|fact| fact.migration.as_ref()))?;
        matches!(told.part, MovePart::HandedOff | MovePart::Refused | MovePart::TakenBack).then_some(told)
    });
    let Some(told) = decided.await else {
        let step = api.view.get(&unit).and_then(|fact| fact.migration).and_then(|told| told.step);
        return Ok(Json(HandoffAnswer::Pending { step: step.unwrap_or_default() }));
    };
    if told.part != MovePart::HandedOff {
        let reason = told.reason.unwrap_or_else(|| "it stays".into());
        return Ok(Json(HandoffAnswer::Refused { reason }));
    }
    let numbers: Vec<_> = ticket.volumes.iter().map(|carried| carried.placement.machine.clone()).collect();
    let Some(exports) = api.effects.exports().all(&numbers, &ticket.migration, HELD_OPEN).await else {
        return Ok(Json(HandoffAnswer::Pending { step: "serve_export".into() }));
    };
    let at = |name: &str| told.at_ms.get(name).copied().unwrap_or_default();
    let grant =
        Grant { running: told.was_running, exports, handed_off_at_ms: at("handed_off"), closed_at_ms: at("closing") };
    Ok(Json(HandoffAnswer::HandedOff { grant: Box::new(grant) }))
}

pub async fn take_back(
    State(api): State<HostApi>,
    Extension(caller): Extension<Caller>,
    Json(signed): Json<SignedTicket>,
) -> Result<Json<TakeBackAnswer>, Failure> {
    let ticket = api.ticket(&caller, Verb::Move, &signed)?;
    let unit = ticket.lead.machine.clone();
    match api.ask_move(&unit, What::TakeBack { ticket: Box::new(ticket) }).await {
        Some(Answer::Accepted { .. } | Answer::Ended { .. }) => Ok(Json(TakeBackAnswer::TakenBack)),
        Some(Answer::Refused(Refusal::Gone)) => Ok(Json(TakeBackAnswer::Never)),
        Some(Answer::Refused(refusal)) => Err(ApiError::unavailable(words(&refusal), 1).into()),
        None => Err(ApiError::unavailable("another job is still running", 1).into()),
    }
}

pub async fn cancel(
    State(api): State<HostApi>,
    Extension(caller): Extension<Caller>,
    Json(signed): Json<SignedTicket>,
) -> Result<Json<CancelAnswer>, Failure> {
    let ticket = api.ticket(&caller, Verb::CallOff, &signed)?;
    let unit = ticket.lead.machine.clone();
    match api.ask_move(&unit, What::CancelMove { ticket: Box::new(ticket.clone()) }).await {
        // One that is not here was never handed off from here, nor will be.
        Some(Answer::Accepted { .. } | Answer::Ended { .. } | Answer::Refused(Refusal::Gone)) => {
            api.effects.end_prepared(&ticket, &api.view).await;
            Ok(Json(CancelAnswer::Cancelled))
        }
        Some(Answer::Refused(Refusal::Failed(_))) => Ok(Json(CancelAnswer::TooLate)),
        Some(Answer::Refused(refusal)) => Err(ApiError::unavailable(words(&refusal), 1).into()),
        None => Err(ApiError::unavailable("no answer yet", 1).into()),
    }
}

pub async fn release(
    State(api): State<HostApi>,
    Extension(caller): Extension<Caller>,
    Json(release): Json<Release>,
) -> Result<Json<Acknowledged>, Failure> {
    let ticket = api.ticket(&caller, Verb::Move, &release.ticket)?;
    let ours = ticket.volumes.iter().any(|carried| carried.placement.machine == release.volume.carrier());
    if !ours {
        return Err(ApiError::bad_request(format!("volume {} is not part of the move", release.volume)).into());
    }
    match api.ask_move(&release.volume.carrier(), What::Release { ticket: Box::new(ticket) }).await {
        Some(Answer::Accepted { .. } | Answer::Ended { .. } | Answer::Refused(Refusal::Gone)) => {
            Ok(Json(Acknowledged { ok: true }))
        }
        Some(Answer::Refused(refusal)) => Err(ApiError::unavailable(words(&refusal), 1).into()),
        None => Err(ApiError::unavailable("no answer yet", 1).into()),
    }
}
