//! The store over HTTP: five routes over any [`Store`].
//!
//! Who a caller is and what it may do is decided by the closure that the role hands in; this file only makes sure that
//! it is asked about every key before anything happens.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Store;
use crate::error::Error;
use crate::types::{Op, Range, Txn, Verb};
use crate::watch::Watch;
use crate::wire::{
    COMPACT_PATH, CompactRequest, Fault, FaultBody, GENERATION_HEADER, IDENTITY_PATH, MAX_REQUEST_BYTES, RANGE_PATH,
    TXN_PATH, WATCH_PATH, WatchLine, WatchRequest, line,
};

/// Watches that one router serves at once.
const MAX_WATCHES: usize = 20_000;
/// A request whose body has not come by then is given up.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// The authoriser's no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The caller is nobody we know.
    Unauthenticated,
    /// We know the caller, who may not do this.
    Forbidden { reason: String },
}

/// Asked with the request's head (its bearer token, its extensions), a verb, and an exact key, or a prefix that is
/// empty or ends in `/`.
pub type Authorize = Arc<dyn Fn(&Parts, Verb, &str) -> Result<(), Refused> + Send + Sync>;

/// `POST /store/v1/{range,txn,watch,compact}` and `GET /store/v1/identity`.
///
/// Compaction concerns everything, and asks for `Write` on the empty prefix. The identity is told to every caller that
/// the authoriser knows.
pub fn router(store: Arc<dyn Store>, authorize: Authorize) -> Router {
    let gateway = Gateway { store, authorize, watches: Arc::new(Semaphore::new(MAX_WATCHES)) };
    Router::new()
        .route(RANGE_PATH, post(range))
        .route(TXN_PATH, post(txn))
        .route(WATCH_PATH, post(watch))
        .route(COMPACT_PATH, post(compact))
        .route(IDENTITY_PATH, get(identity))
        .with_state(gateway)
}

#[derive(Clone)]
struct Gateway {
    store: Arc<dyn Store>,
    authorize: Authorize,
    watches: Arc<Semaphore>,
}

async fn range(State(gateway): State<Gateway>, request: Request) -> Response {
    reply(async {
        let (parts, range) = parse::<Range>(request).await?;
        gateway.allow(&parts, Verb::Read, range.key.as_str())?;
        gateway.store.range(range).await
    })
    .await
}

async fn txn(State(gateway): State<Gateway>, request: Request) -> Response {
    reply(async {
        let (parts, txn) = parse::<Txn>(request).await?;
        // Every key that is named, also in the branch that will not run: which one runs tells of the compares' keys.
        for compare in &txn.compares {
            gateway.allow(&parts, Verb::Read, compare.key())?;
        }
        for op in txn.then.iter().chain(&txn.otherwise) {
            gateway.allow(&parts, verb(op), op.key())?;
        }
        gateway.store.txn(txn).await
    })
    .await
}

fn verb(op: &Op) -> Verb {
    if op.writes() { Verb::Write } else { Verb::Read }
}

async fn compact(State(gateway): State<Gateway>, request: Request) -> Response {
    reply(async {
        let (parts, request) = parse::<CompactRequest>(request).await?;
        gateway.allow(&parts, Verb::Write, "")?;
        gateway.store.compact(request.revision).await
    })
    .await
}

async fn identity(State(gateway): State<Gateway>, request: Request) -> Response {
    reply(async {
        let (parts, _) = request.into_parts();
        gateway.allow(&parts, Verb::Identify, "")?;
        gateway.store.identity().await
    })
    .await
}

async fn watch(State(gateway): State<Gateway>, request: Request) -> Response {
    match open_watch(gateway, request).await {
        Ok(response) => response,
        Err(error) => refuse(error),
    }
}

async fn open_watch(gateway: Gateway, request: Request) -> Result<Response, Error> {
    let (parts, request) = parse::<WatchRequest>(request).await?;
    gateway.allow(&parts, Verb::Watch, &request.prefix)?;
    let permit = gateway.watches.try_acquire_owned();
    let permit = permit.map_err(|_| Error::Busy { reason: format!("{MAX_WATCHES} watches are open") })?;
    let watch = gateway.store.watch(request.prefix, request.from_revision).await?;
    let generation = watch.generation().to_owned();
    let headers = [
        (CONTENT_TYPE.as_str().to_owned(), "application/x-ndjson".to_owned()),
        (GENERATION_HEADER.to_owned(), generation),
    ];
    let headers = axum::response::AppendHeaders(headers);
    Ok((headers, Body::from_stream(lines(watch, permit))).into_response())
}

/// The watch as lines. It is read only as fast as the peer takes them; a peer that stops reading lets the store's own
/// bound cut it off.
fn lines(
    watch: Watch,
    permit: OwnedSemaphorePermit,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    unfold(Some((watch, permit)), |open| async move {
        let (mut watch, permit) = open?;
        let (told, open) = match watch.next().await {
            Ok(Some(batch)) => (WatchLine::Batch(batch), Some((watch, permit))),
            Ok(None) => return None,
            Err(error) => (WatchLine::Error(error.into()), None),
        };
        // Plain data with text keys always serialises; if it did not, the watch would end.
        let line = line(&told).ok()?;
        Some((Ok(line), open))
    })
}

impl Gateway {
    fn allow(&self, parts: &Parts, verb: Verb, key: &str) -> Result<(), Error> {
        (self.authorize)(parts, verb, key).map_err(|refused| match refused {
            Refused::Unauthenticated => Error::Unauthenticated,
            Refused::Forbidden { reason } => Error::Forbidden { reason },
        })
    }
}

async fn parse<T: DeserializeOwned>(request: Request) -> Result<(Parts, T), Error> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, MAX_REQUEST_BYTES).collect();
    let body = tokio::time::timeout(BODY_WAIT, body)
        .await
        .map_err(|_| Error::invalid("the request's body did not arrive in time"))?
        .map_err(|source| {
            if source.is::<LengthLimitError>() {
                Error::TooLarge {
                    what: "the request in bytes".to_owned(),
                    size: MAX_REQUEST_BYTES as u64 + 1,
                    limit: MAX_REQUEST_BYTES as u64,
                }
            } else {
                Error::invalid("the request's body broke off")
            }
        })?
        .to_bytes();
    let value =
        serde_json::from_slice(&body).map_err(|error| Error::invalid(format!("the request's body: {error}")))?;
    Ok((parts, value))
}

async fn reply<T: Serialize>(work: impl Future<Output = Result<T, Error>>) -> Response {
    match work.await {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => refuse(error),
    }
}

fn refuse(error: Error) -> Response {
    if !error.is_callers_fault() && !error.is_retryable() {
        tracing::error!(error = &error as &dyn std::error::Error, "a store request failed");
    }
    let fault = Fault::from(error);
    (fault.status(), axum::Json(FaultBody { error: fault })).into_response()
}
