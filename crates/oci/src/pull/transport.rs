//! Requests to a registry: one authorised GET and its answer, each wait bounded. Knows
//! nothing of images.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use crate::error::Error;

/// Until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the head of an answer, and between two pieces of its body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections that are kept.
const MAX_IDLE_CONNECTIONS: usize = 8;
/// Bytes of an error's body that are read.
const MAX_ERROR_BYTES: u64 = 16 << 10;
/// Characters of a registry's words that are passed on.
const MAX_MESSAGE_CHARS: usize = 300;

type Source = Box<dyn std::error::Error + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Source>> + Send>>;

/// Sends requests to one registry.
#[derive(Clone)]
pub(super) struct Transport {
    base_url: String,
    bearer: Option<HeaderValue>,
    send: Arc<dyn Fn(Request<Empty<Bytes>>) -> Answer + Send + Sync>,
}

impl Transport {
    pub(super) fn plain(base_url: &str, bearer: Option<String>) -> Result<Self, Error> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        Self::over(base_url, bearer, connector)
    }

    pub(super) fn over<C>(base_url: &str, bearer: Option<String>, connector: C) -> Result<Self, Error>
    where
        C: Connect + Clone + Send + Sync + 'static,
    {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let invalid =
            |source: Source| Error::Transport { action: "cannot use the address", url: base_url.clone(), source };
        let uri: Uri = base_url.parse().map_err(|error: http::uri::InvalidUri| invalid(error.into()))?;
        if uri.scheme().is_none() || uri.query().is_some() {
            return Err(invalid("it is not of the form http://host[:port][/path]".into()));
        }
        let bearer = bearer.map(|token| HeaderValue::try_from(format!("Bearer {token}"))).transpose();
        let mut bearer = bearer.map_err(|_| invalid("the token cannot be sent".into()))?;
        if let Some(value) = &mut bearer {
            value.set_sensitive(true);
        }
        let client: Client<C, Empty<Bytes>> = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let send = Arc::new(move |request| -> Answer {
            let answer = client.request(request);
            Box::pin(async move { answer.await.map_err(Source::from) })
        });
        Ok(Self { base_url, bearer, send })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// A GET that is answered with 200, 206 or 416; all else is an error.
    pub(super) async fn get(&self, path: &str, headers: HeaderMap) -> Result<Response<Incoming>, Error> {
        let url = self.url(path);
        let failed = |source: Source| Error::Transport { action: "no answer", url: url.clone(), source };
        let mut request = Request::get(&url).body(Empty::new()).map_err(|error| failed(error.into()))?;
        *request.headers_mut() = headers;
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        let answer = timeout(IDLE_TIMEOUT, (self.send)(request)).await.map_err(|late| failed(late.into()))?;
        let answer = answer.map_err(failed)?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(answer),
            status => {
                let message = message(answer.into_body()).await;
                Err(Error::Registry { url, status: status.as_u16(), message })
            }
        }
    }
}

/// The next piece of a body, or `None` at its end.
pub(super) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, Source> {
    loop {
        match timeout(IDLE_TIMEOUT, body.frame()).await? {
            None => return Ok(None),
            Some(frame) => {
                // Trailers carry nothing for us.
                if let Ok(data) = frame?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A whole body of at most `max_bytes`; `Ok(None)` if it is longer.
pub(super) async fn whole(mut body: Incoming, max_bytes: u64) -> Result<Option<Vec<u8>>, Source> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next_chunk(&mut body).await? {
        if (bytes.len() + chunk.len()) as u64 > max_bytes {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

/// What an error's body says (distribution-spec, "Error Codes"), or nothing.
async fn message(body: Incoming) -> String {
    let Ok(Some(bytes)) = whole(body, MAX_ERROR_BYTES).await else { return String::new() };
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let first = parsed.as_ref().and_then(|value| value["errors"].get(0));
    let Some(first) = first else { return String::new() };
    let text = |key: &str| first[key].as_str().unwrap_or_default();
    let words = format!("{} {}", text("code"), text("message"));
    words.trim().chars().take(MAX_MESSAGE_CHARS).collect()
}
