//! HTTP/2 from clients: hyper frames the streams; each head is held to the rules of HTTP/1.1, in which the Machine will
//! read it, before anything else sees it.
//!
//! RFC 9113; floods of resets, settings and CONTINUATION are bounded by `h2` itself.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Edge;
use super::body::AnswerError;
use super::record::Recorded;
use super::serve::Upgrade;
use super::stall::Steady;
use crate::h1::{Refusal, downgrade};
use crate::headers::Client;

/// Requests of one connection at once.
const MAX_STREAMS: u32 = 250;
const MAX_HEAD_BYTES: u32 = 64 << 10;
/// Bytes that a client may be ahead of one request's reader, and of all of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Written but unsent bytes of one stream.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Streams that their client reset before they were looked at; one more ends the connection (rapid reset).
const MAX_PENDING_RESETS: usize = 20;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without requests is closed after so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_LOOKS: u32 = 4;

pub(super) async fn connection<IO>(edge: &Arc<Edge>, io: IO, client: &Client)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let open = Arc::<Open>::default();
    let service = service_fn(|request| {
        let (edge, client, place) = (edge.clone(), client.clone(), Place::take(&open));
        let taken = take(&edge, request);
        // In a box from the start: what carries it is moved from hand to hand before it runs.
        Box::pin(async move {
            let response = match taken {
                Ok((request, websocket)) => answer(&edge, request, websocket, &client).await,
                Err((refusal, parts)) => {
                    edge.metrics.client_refused(refusal.word());
                    edge.refuse(refusal, &parts, &client, &edge.ways.h2)
                }
            };
            Ok::<_, Infallible>(response.map(|body| Counted { body, _place: place }))
        })
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let idle = idle(open.clone(), IDLE_TIMEOUT);
    tokio::pin!(idle);
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client's connection ended");
                }
                return;
            }
            // Streams under way are answered, no others.
            () = edge.group.stopping(), if !leaving => leaving = true,
            () = &mut idle, if !leaving => leaving = true,
        }
        if leaving {
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// The requests of one connection.
#[derive(Default)]
struct Open {
    now: AtomicUsize,
    /// Since the connection stands.
    ever: AtomicUsize,
}

/// Ends when nothing was under way for long enough, or up to a quarter longer: looked at now and then, so that requests
/// come and go without telling anybody.
async fn idle(open: Arc<Open>, timeout: Duration) {
    let mut quiet = 0;
    let mut before = open.ever.load(Ordering::Relaxed);
    while quiet < IDLE_LOOKS {
        tokio::time::sleep(timeout / IDLE_LOOKS).await;
        let ever = open.ever.load(Ordering::Relaxed);
        let was_quiet = open.now.load(Ordering::Relaxed) == 0 && ever == before;
        quiet = if was_quiet { quiet + 1 } else { 0 };
        before = ever;
    }
}

/// A request of a connection, from its head to its answer's end.
struct Place(Arc<Open>);

impl Place {
    fn take(open: &Arc<Open>) -> Self {
        open.now.fetch_add(1, Ordering::Relaxed);
        open.ever.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Counted {
    body: Recorded,
    _place: Place,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request as it is served, and what it wants to be.
type Taken = (Request<Steady<Incoming>>, Option<OnWebsocket>);

/// Holds a head to the rules.
fn take(edge: &Edge, mut request: Request<Incoming>) -> Result<Taken, (Refusal, Box<Parts>)> {
    let websocket = begin_websocket(&mut request);
    let (mut parts, body) = request.into_parts();
    if let Err(refusal) = downgrade::check(&parts.method, &parts.uri, &parts.headers, &edge.http1.limits) {
        return Err((refusal, Box::new(parts)));
    }
    as_http1(&mut parts);
    if websocket.is_some() {
        parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    let body = Steady::new(body, edge.http1.stall_timeout);
    Ok((Request::from_parts(parts, body), websocket))
}

async fn answer(
    edge: &Arc<Edge>,
    request: Request<Steady<Incoming>>,
    websocket: Option<OnWebsocket>,
    client: &Client,
) -> Response<Recorded> {
    let is_websocket = websocket.is_some();
    let mut response = edge.serve(request, client, &edge.ways.h2, websocket).await;
    if is_websocket && response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // Here a stream begins by success, and its fields for HTTP/1.1 mean nothing.
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(UPGRADE);
        response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
    }
    response
}

/// A stream that is to carry a WebSocket.
struct OnWebsocket(OnUpgrade);

impl Future for OnWebsocket {
    type Output = Option<TokioIo<Upgraded>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|upgraded| upgraded.ok().map(TokioIo::new))
    }
}

impl Upgrade for OnWebsocket {
    type Stream = TokioIo<Upgraded>;
}

/// Turns an extended CONNECT (RFC 8441 section 5) into the request of HTTP/1.1 that asks a Machine for a WebSocket.
/// Other protocols are left as they are: then the CONNECT is refused.
fn begin_websocket(request: &mut Request<Incoming>) -> Option<OnWebsocket> {
    let protocol = request.extensions().get::<hyper::ext::Protocol>()?;
    if request.method() != Method::CONNECT || protocol.as_str() != "websocket" {
        return None;
    }
    let upgrade = hyper::upgrade::on(&mut *request);
    *request.method_mut() = Method::GET;
    // The Machine needs it, and nobody looks at its answer: a stream is no cache's.
    let key = base64(&godwit_base::secret::random_u128().to_be_bytes());
    request.headers_mut().insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).ok()?);
    Some(OnWebsocket(upgrade))
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut bits = 0u32;
        for at in 0..3 {
            bits = bits << 8 | u32::from(three.get(at).copied().unwrap_or(0));
        }
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= three.len() { letter as char } else { '=' });
        }
    }
    text
}

/// The head as HTTP/1.1 has it: the authority in Host, the target without it, and cookies in one field, which HTTP/2
/// lets a client cut in pieces (RFC 9113 sections 8.2.3 and 8.3.1).
fn as_http1(parts: &mut Parts) {
    let authority = parts.uri.authority().and_then(|one| HeaderValue::from_str(one.as_str()).ok());
    if let Some(authority) = authority {
        parts.headers.insert(HOST, authority);
    }
    parts.uri = parts.uri.path_and_query().cloned().map(Uri::from).unwrap_or_else(|| Uri::from_static("/"));
    let mut cookies = parts.headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for part in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(part.as_bytes());
    }
    // Valid values joined by valid bytes.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        parts.headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_after_its_last_request_and_not_within_one() {
        let open = Arc::<Open>::default();
        let place = Place::take(&open);
        let idle = tokio::spawn(idle(open.clone(), Duration::from_millis(40)));
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!idle.is_finished());
        drop(place);
        // Requests that come and go between two looks are seen too.
        for _ in 0..12 {
            drop(Place::take(&open));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!idle.is_finished());
        tokio::time::timeout(Duration::from_secs(5), idle).await.unwrap().unwrap();
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(super::base64(text.as_bytes()), expected);
        }
    }
}
