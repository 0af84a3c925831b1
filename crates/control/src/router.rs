//! Control's HTTP face: every route, and what is common to all answers (request id, log line, counters, errors).

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use godwit_api::{ApiError, InstanceId, unbuilt};
use godwit_base::http::{Failure, REQUEST_ID};
use godwit_base::{Verb, clock, metrics, secret};

use crate::control::Control;
use crate::counters::AnswerLabels;
use crate::handlers;

/// The whole of control, ready to be served.
pub fn router(control: Arc<Control>) -> Router {
    let health = control.clone();
    let pull = Router::new()
        .merge(godwit_oci::routes(control.images.clone()))
        .layer(middleware::from_fn_with_state(control.clone(), may_pull));
    let authority = control.clone();
    let store = godwit_store::router(
        control.store.clone(),
        Arc::new(move |parts, verb, key| authority.allow_store(&parts.headers, verb, key)),
    );
    handlers::routes()
        .route("/v1/openapi.json", get(openapi))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .merge(metrics::routes(control.metrics.clone(), move || health.healthy()))
        .with_state(control.clone())
        .merge(pull)
        .merge(store)
        // Each route bounds its own body: images stream, requests are small.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(control, every_answer))
}

/// Gives each request an id, which its answer and our log lines carry.
async fn every_answer(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let id = InstanceId::from_parts(clock::unix_ms(), secret::random_u128()).to_string();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let code = response.status().as_u16();
    control.counters.answers.get_or_create(&AnswerLabels { code: u32::from(code) }).inc();
    match code {
        500.. => tracing::warn!(request = id, %method, path, code, "answered"),
        _ => tracing::debug!(request = id, %method, path, code, "answered"),
    }
    if code == 503 && !response.headers().contains_key(header::RETRY_AFTER) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn may_pull(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let key = control.image_key(request.headers(), request.uri().path()).await;
    match control.allow(request.headers(), Verb::Pull, &key) {
        Ok(_) => next.run(request).await,
        Err(error) => {
            // Clients of registries look for this before they send a token.
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"godwit\"")];
            (challenge, Failure(error)).into_response()
        }
    }
}

async fn openapi() -> Response {
    axum::Json(godwit_api::openapi::document()).into_response()
}

async fn no_route(request: Request) -> Failure {
    let (method, path) = (request.method().as_str(), request.uri().path());
    Failure(match unbuilt::find(method, path) {
        Some(known) => known.error(),
        None => ApiError::not_found(format!("there is nothing at {path}")),
    })
}

async fn no_method(request: Request) -> Failure {
    let (method, path) = (request.method().as_str(), request.uri().path());
    Failure(match unbuilt::find(method, path) {
        Some(known) => known.error(),
        None => ApiError::new(405, godwit_api::Status::InvalidArgument, format!("{path} does not take {method}")),
    })
}
