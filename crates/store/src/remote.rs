//! The store through another process: the same contract over plain HTTP/1.1.
//!
//! It must not retry a transaction by itself: only the caller knows whether its compares make that safe.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::try_unfold;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::Error;
use crate::limits;
use crate::types::{Identity, Range, RangeReply, Txn, TxnReply, WatchBatch};
use crate::watch::Watch;
use crate::wire::{
    COMPACT_PATH, CompactRequest, FaultBody, GENERATION_HEADER, IDENTITY_PATH, Lines, MAX_REPLY_BYTES, RANGE_PATH,
    TXN_PATH, WATCH_PATH, WatchLine, WatchRequest,
};
use crate::{BoxFuture, Store};

const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Longer than the far writer's own bound, so that its answer arrives when there is one.
const REQUEST_WAIT: Duration = Duration::from_secs(12);
/// A watch tells something every second; a peer silent for so long is gone.
const WATCH_SILENCE: Duration = Duration::from_millis(2_500);
/// Requests on the way at once; more wait here. Watches have connections of their own.
const MAX_REQUESTS: usize = 128;
const IDLE_WAIT: Duration = Duration::from_secs(30);

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// A store behind [`crate::router`]. Clones share their connections.
#[derive(Clone)]
pub struct RemoteStore {
    // The seam for TLS is this client's connector.
    client: HttpClient,
    base_url: Arc<str>,
    authorization: Option<HeaderValue>,
    requests: Arc<Semaphore>,
}

impl RemoteStore {
    /// `base_url` is `http://HOST:PORT`, without the path; nothing is connected yet.
    pub fn new(base_url: impl Into<String>, bearer: impl AsRef<str>) -> RemoteStore {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_WAIT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_WAIT)
            .pool_max_idle_per_host(MAX_REQUESTS)
            .build(connector);
        let authorization = HeaderValue::from_str(&format!("Bearer {}", bearer.as_ref()));
        RemoteStore {
            client,
            base_url: base_url.into().trim_end_matches('/').into(),
            // A token that cannot stand in a header is refused by the far side like any other wrong one.
            authorization: authorization.ok().map(|mut value| {
                value.set_sensitive(true);
                value
            }),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, Error> {
        let exchange = async {
            let _permit = self.requests.acquire().await.map_err(|_| Error::Closed)?;
            let response = self.send(method, path, body).await?;
            let failed = !response.status().is_success();
            let body = self.read(response).await?;
            if failed {
                return Err(fault(&body));
            }
            serde_json::from_slice(&body).map_err(|error| Error::Protocol { reason: format!("the reply: {error}") })
        };
        timeout(REQUEST_WAIT, exchange)
            .await
            .unwrap_or(Err(Error::Timeout { waited_ms: REQUEST_WAIT.as_millis() as u64 }))
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Error> {
        self.call(Method::POST, path, encode(body)?).await
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base_url))
            .header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request =
            request.body(Full::from(body)).map_err(|error| Error::invalid(format!("the store's address: {error}")))?;
        let answer = self.client.request(request).await;
        answer.map_err(|source| self.unavailable("the request failed", Some(source.into())))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        let body = Limited::new(response.into_body(), MAX_REPLY_BYTES);
        match body.collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(source) => Err(self.unavailable("the reply broke off", Some(source))),
        }
    }

    fn unavailable(&self, reason: &str, source: Option<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Unavailable { url: self.base_url.to_string(), reason: reason.to_owned(), source }
    }

    async fn open_watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        let body = encode(&request)?;
        let silent = || self.unavailable("the peer is silent", None);
        let response =
            timeout(WATCH_SILENCE, self.send(Method::POST, WATCH_PATH, body)).await.map_err(|_| silent())??;
        if !response.status().is_success() {
            let body = timeout(WATCH_SILENCE, self.read(response)).await;
            return Err(fault(&body.map_err(|_| silent())??));
        }
        let generation = response.headers().get(GENERATION_HEADER);
        let generation = generation.and_then(|value| value.to_str().ok());
        let generation = generation.unwrap_or_default().to_owned();
        let incoming = WatchBody { store: self.clone(), body: Box::pin(response.into_body()), lines: Lines::default() };
        let batches = try_unfold(incoming, |mut incoming| async move {
            let batch = incoming.next().await?;
            Ok(Some((batch, incoming)))
        });
        Ok(Watch::new(generation, batches))
    }
}

/// The answer of a watch, read line by line.
struct WatchBody {
    store: RemoteStore,
    body: Pin<Box<Incoming>>,
    lines: Lines,
}

impl WatchBody {
    async fn next(&mut self) -> Result<WatchBatch, Error> {
        loop {
            if let Some(line) = self.lines.next()? {
                return match serde_json::from_slice(&line) {
                    Ok(WatchLine::Batch(batch)) => Ok(batch),
                    Ok(WatchLine::Error(fault)) => Err(fault.into()),
                    Err(error) => Err(Error::Protocol { reason: format!("a line of a watch: {error}") }),
                };
            }
            let frame = timeout(WATCH_SILENCE, self.body.frame())
                .await
                .map_err(|_| self.store.unavailable("the peer is silent", None))?;
            match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.lines.push(data);
                    }
                }
                Some(Err(source)) => {
                    let source = Some(source.into());
                    return Err(self.store.unavailable("the watch broke off", source));
                }
                None => return Err(self.store.unavailable("the peer ended the watch", None)),
            }
        }
    }
}

fn encode<B: Serialize>(body: &B) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|error| Error::invalid(format!("the request: {error}")))
}

fn fault(body: &[u8]) -> Error {
    match serde_json::from_slice::<FaultBody>(body) {
        Ok(body) => body.error.into(),
        Err(_) => Error::Protocol { reason: "an error that is not of the store's protocol".to_owned() },
    }
}

impl Store for RemoteStore {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeReply, Error>> {
        Box::pin(async move {
            limits::check_range(&range)?;
            self.post(RANGE_PATH, &range).await
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        Box::pin(async move {
            limits::check_txn(&txn)?;
            self.post(TXN_PATH, &txn).await
        })
    }

    fn watch(&self, prefix: String, from_revision: u64) -> BoxFuture<'_, Result<Watch, Error>> {
        Box::pin(async move {
            limits::check_prefix(&prefix)?;
            self.open_watch(WatchRequest { prefix, from_revision }).await
        })
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.post(COMPACT_PATH, &CompactRequest { revision }).await })
    }

    fn identity(&self) -> BoxFuture<'_, Result<Identity, Error>> {
        Box::pin(self.call(Method::GET, IDENTITY_PATH, Vec::new()))
    }
}
