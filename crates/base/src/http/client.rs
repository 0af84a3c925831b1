//! Calling HTTP: JSON endpoints, raw requests, streamed bodies; over TCP with pooled connections (with TLS for `https://`),
//! or over a unix socket. Every call has a deadline for its head; bodies that stream have none but the caller's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use godwit_api::endpoint::{Empty, Endpoint, path_of};
use godwit_api::error::Status;
use godwit_api::{ApiError, Method};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::tls::{self, TlsError};

/// The body type of every request that leaves.
pub type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Answers read whole are refused beyond this.
pub const ANSWER_LIMIT_BYTES: usize = 64 << 20;
/// Connecting to a dead address gives up by then.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent connection is probed after so long, and given up after twice that.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Waiting for an answer's head, unless the call says otherwise.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call failed. `Answered` holds what the peer said; the others mean that its outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("cannot reach {url}")]
    Connect { url: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("no answer from {url} within {timeout_ms} ms")]
    Timeout { url: String, timeout_ms: u64 },
    #[error("{url} answered what cannot be understood: {why}")]
    Garbled { url: String, why: String },
    #[error("{0}")]
    Answered(ApiError),
}

impl CallError {
    /// The error to hand on to our own caller.
    pub fn into_api(self) -> ApiError {
        match self {
            Self::Answered(error) => error,
            other => ApiError::unavailable(other.to_string(), 1),
        }
    }
    /// Did the peer certainly not act on the request?
    pub fn never_sent(&self) -> bool {
        matches!(self, Self::Connect { .. })
    }
}

pub fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

#[derive(Clone)]
enum Route {
    /// `http://host:port` or `https://host:port`, no trailing slash.
    Tcp(String),
    Unix(PathBuf),
}

/// A client of one peer. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    route: Route,
    bearer: Option<String>,
    pool: Pool,
}

#[derive(Clone)]
enum Pool {
    Plain(legacy::Client<HttpConnector, Body>),
    Tls(legacy::Client<HttpsConnector<HttpConnector>, Body>),
    /// There is nothing to trust a server by: each call says why.
    None(Arc<TlsError>),
}

impl Client {
    /// `base` is `http://host:port`, or `https://host:port` of a server whose certificate comes from an authority that this
    /// system trusts.
    pub fn tcp(base: &str, bearer: Option<String>) -> Self {
        let pool = match base.starts_with("https://") {
            true => tls::trust_system().map_or_else(|error| Pool::None(Arc::new(error)), |config| secured(&config)),
            false => pool(),
        };
        Self { route: Route::Tcp(base.trim_end_matches('/').to_owned()), bearer, pool }
    }

    /// The same, where the certificate must come from an authority of this PEM file and no other.
    pub fn trusting(base: &str, bearer: Option<String>, ca_file: &Path) -> Result<Self, TlsError> {
        let pool = secured(&tls::trust_only(ca_file)?);
        Ok(Self { route: Route::Tcp(base.trim_end_matches('/').to_owned()), bearer, pool })
    }

    pub fn unix(path: &Path) -> Self {
        Self { route: Route::Unix(path.to_owned()), bearer: None, pool: pool() }
    }

    /// Where it calls, for messages.
    pub fn peer(&self) -> String {
        match &self.route {
            Route::Tcp(base) => base.clone(),
            Route::Unix(path) => path.display().to_string(),
        }
    }

    /// Calls an endpoint of the public API.
    pub async fn call<E: Endpoint>(
        &self,
        parameters: &[&str],
        query: &E::Query,
        request: &E::Request,
    ) -> Result<E::Response, CallError> {
        self.call_with::<E>(parameters, query, request, &HeaderMap::new(), HEAD_TIMEOUT).await
    }

    /// The same with headers and a timeout of one's own.
    pub async fn call_with<E: Endpoint>(
        &self,
        parameters: &[&str],
        query: &E::Query,
        request: &E::Request,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<E::Response, CallError> {
        let mut path = path_of::<E>(parameters);
        let query = query_string(query);
        if !query.is_empty() {
            path = format!("{path}?{query}");
        }
        let empty_request = std::any::TypeId::of::<E::Request>() == std::any::TypeId::of::<Empty>();
        let body = if empty_request { None } else { Some(to_json(request)) };
        let response = self.send_json(E::METHOD, &path, body, headers, timeout).await?;
        self.decode(response, &path).await
    }

    /// Sends JSON to any path and reads JSON back.
    pub async fn json<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: Option<&Q>,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let response = self.send_json(method, path, request.map(to_json), &HeaderMap::new(), timeout).await?;
        self.decode(response, path).await
    }

    async fn send_json(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        let mut request = Request::new(match body {
            Some(bytes) => full(bytes),
            None => empty(),
        });
        *request.method_mut() = to_http(method);
        *request.headers_mut() = headers.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        self.send(path, request, timeout).await
    }

    /// Sends any request; its URI is replaced by `path`. Answers of 400 and more become `CallError::Answered`.
    pub async fn send(
        &self,
        path: &str,
        request: Request<Body>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        let response = self.send_raw(path, request, timeout).await?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let retry_after_s = header_number(response.headers(), header::RETRY_AFTER.as_str());
        let bytes = self.collect(response, path).await?;
        let mut error = serde_json::from_slice::<ApiError>(&bytes).unwrap_or_else(|_| {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(300).collect();
            ApiError::new(code, Status::Unknown, if text.is_empty() { format!("HTTP {code}") } else { text })
        });
        error.code = code;
        error.retry_after_s = retry_after_s;
        Err(CallError::Answered(error))
    }

    /// Sends any request and answers whatever comes.
    pub async fn send_raw(
        &self,
        path: &str,
        mut request: Request<Body>,
        timeout: Duration,
    ) -> Result<Response<Incoming>, CallError> {
        if let Some(bearer) = &self.bearer
            && let Ok(value) = header::HeaderValue::from_str(&format!("Bearer {bearer}"))
        {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let url = match &self.route {
            Route::Tcp(base) => format!("{base}{path}"),
            Route::Unix(_) => format!("http://unix{path}"),
        };
        *request.uri_mut() =
            url.parse().map_err(|error| CallError::Garbled { url: url.clone(), why: format!("bad URL: {error}") })?;
        let answer = async {
            match &self.route {
                Route::Tcp(_) => match &self.pool {
                    Pool::Plain(pool) => pool.request(request).await.map_err(|error| sort(&url, error)),
                    Pool::Tls(pool) => pool.request(request).await.map_err(|error| sort(&url, error)),
                    Pool::None(error) => Err(CallError::Connect { url: url.clone(), source: error.to_string().into() }),
                },
                Route::Unix(socket) => over_unix(socket, &url, request).await,
            }
        };
        match tokio::time::timeout(timeout, answer).await {
            Ok(answer) => answer,
            Err(_) => {
                Err(CallError::Timeout { url, timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) })
            }
        }
    }

    async fn collect(&self, response: Response<Incoming>, path: &str) -> Result<Bytes, CallError> {
        let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES);
        match tokio::time::timeout(HEAD_TIMEOUT, body.collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) => Err(CallError::Garbled { url: self.at(path), why: error.to_string() }),
            Err(_) => Err(CallError::Timeout { url: self.at(path), timeout_ms: HEAD_TIMEOUT.as_millis() as u64 }),
        }
    }

    async fn decode<A: DeserializeOwned>(&self, response: Response<Incoming>, path: &str) -> Result<A, CallError> {
        let no_content = response.status() == StatusCode::NO_CONTENT;
        let bytes = self.collect(response, path).await?;
        let text: &[u8] = if no_content || bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map_err(|error| CallError::Garbled { url: self.at(path), why: error.to_string() })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.peer())
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    // A stream that is silent for long (a terminal, say) must learn that its peer is gone.
    connector.set_keepalive(Some(KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(KEEPALIVE_IDLE / 3));
    connector.set_keepalive_retries(Some(3));
    connector
}

fn builder() -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(Duration::from_secs(20)).pool_max_idle_per_host(16);
    builder
}

fn pool() -> Pool {
    Pool::Plain(builder().build(connector()))
}

fn secured(config: &rustls::ClientConfig) -> Pool {
    let mut connector = connector();
    // The scheme is looked at by whoever wraps it.
    connector.enforce_http(false);
    let wrapped = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config.clone()).https_or_http();
    Pool::Tls(builder().build(wrapped.enable_http1().wrap_connector(connector)))
}

fn sort(url: &str, error: legacy::Error) -> CallError {
    if error.is_connect() {
        return CallError::Connect { url: url.to_owned(), source: Box::new(error) };
    }
    CallError::Garbled { url: url.to_owned(), why: crate::telemetry::chain(&error) }
}

async fn over_unix(socket: &Path, url: &str, request: Request<Body>) -> Result<Response<Incoming>, CallError> {
    let unreachable =
        |source: Box<dyn std::error::Error + Send + Sync>| CallError::Connect { url: url.to_owned(), source };
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| unreachable(Box::new(error)))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(Box::new(error)))?;
    tokio::spawn(async move {
        // Its end is seen by whoever reads the body.
        let _ = connection.with_upgrades().await;
    });
    sender
        .send_request(request)
        .await
        .map_err(|error| CallError::Garbled { url: url.to_owned(), why: crate::telemetry::chain(&error) })
}

fn to_http(method: Method) -> http::Method {
    match method {
        Method::Get => http::Method::GET,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Delete => http::Method::DELETE,
    }
}

/// Our own types always turn into JSON: no map has keys that are not text.
fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn header_number(headers: &HeaderMap, name: &str) -> Option<u32> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// A flat struct as `a=1&b=x`; members that are null are left out.
pub fn query_string<T: Serialize>(query: &T) -> String {
    let Ok(serde_json::Value::Object(members)) = serde_json::to_value(query) else { return String::new() };
    let mut text = String::new();
    for (name, value) in members {
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        if !text.is_empty() {
            text.push('&');
        }
        godwit_api::endpoint::percent_encode(&name, &mut text);
        text.push('=');
        godwit_api::endpoint::percent_encode(&value, &mut text);
    }
    text
}
