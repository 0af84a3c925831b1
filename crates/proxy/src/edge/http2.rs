//! HTTP/2 from clients: `h2` frames the streams; each head is held to the rules of HTTP/1.1, in which the Machine will
//! read it, before anything else sees it.
//!
//! `h2` is used directly, since interim answers (100, 103) must pass. RFC 9113; floods of resets, settings and CONTINUATION
//! are bounded by `h2` itself.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::Edge;
use super::record::Recorded;
use super::serve::Upgrade;
use super::stall::Steady;
use crate::h1::{Refusal, downgrade};
use crate::headers::Client;
use crate::interim::Interims;
use crate::link::batch::Batch;
use crate::link::body::StreamBody;
use crate::link::probe::probe_every;
use crate::link::send::send_body_visibly;
use crate::link::tunnel::Tunnel;

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
/// Streams that a client made us reset; one more ends the connection.
const MAX_LOCAL_RESETS: usize = 1_024;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not speak HTTP/2 by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection without requests is closed after so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_LOOKS: u32 = 4;

pub(super) async fn connection<IO>(edge: &Arc<Edge>, io: IO, client: &Client)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .enable_connect_protocol();
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(io));
    let mut connection = tokio::select! {
        shaken = handshake => match shaken {
            Ok(Ok(connection)) => connection,
            ended => return tracing::debug!(ended = ?ended.err(), "a client spoke no HTTP/2"),
        },
        () = edge.group.stopping() => return,
    };
    let open = Arc::<Open>::default();
    let mut idle = pin!(idle(open.clone(), IDLE_TIMEOUT));
    let mut dead = pin!(probe_every(PING_INTERVAL, PING_TIMEOUT, connection.ping_pong(), |_| ()));
    let mut leaving = false;
    let mut batch = Batch::default();
    loop {
        let accepted = tokio::select! {
            accepted = poll_fn(|cx| batch.poll(cx, |cx| connection.poll_accept(cx))) => accepted,
            () = &mut dead => return,
            // Streams under way are answered, no others.
            () = edge.group.stopping(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
                continue;
            }
            () = &mut idle, if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                let (edge, client, place) = (edge.clone(), client.clone(), Place::take(&open));
                tokio::spawn(async move {
                    if let Err(error) = stream(&edge, request, respond, &client).await {
                        tracing::debug!(%error, "a client's stream broke");
                    }
                    drop(place);
                });
            }
            Some(Err(error)) => return tracing::debug!(%error, "a client's connection ended"),
            None => return,
        }
    }
}

/// One request, from its head to its answer's end.
async fn stream(
    edge: &Arc<Edge>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    client: &Client,
) -> Result<(), h2::Error> {
    let is_head = request.method() == Method::HEAD;
    let (response, websocket) = match take(edge, request) {
        Ok(Taken { request, asks, websocket, on_websocket }) => {
            let interims = Interims::default();
            let mut serving = pin!(edge.serve(request, client, &edge.ways.h2, on_websocket, &interims));
            let answered = poll_fn(|cx| {
                let polled = serving.as_mut().poll(cx);
                if asks.as_ref().is_some_and(|asked| asked.swap(false, Ordering::Relaxed)) {
                    respond.send_informational(head(StatusCode::CONTINUE))?;
                }
                for interim in interims.take() {
                    respond.send_informational(interim)?;
                }
                match polled {
                    Poll::Ready(response) => Poll::Ready(Ok(Some(response))),
                    // The client gave up.
                    Poll::Pending => respond.poll_reset(cx).map_ok(|_| None),
                }
            });
            let Some(response) = answered.await? else { return Ok(()) };
            (response, websocket)
        }
        Err((refusal, parts)) => {
            edge.metrics.client_refused(refusal.word());
            (edge.refuse(refusal, &parts, client, &edge.ways.h2), None)
        }
    };
    answer(response, respond, websocket, is_head).await
}

async fn answer(
    response: Response<Recorded>,
    mut respond: SendResponse<Bytes>,
    websocket: Option<Websocket>,
    is_head: bool,
) -> Result<(), h2::Error> {
    let (mut parts, mut body) = response.into_parts();
    parts.version = http::Version::HTTP_2;
    // It concerns a connection of HTTP/1.1.
    parts.headers.remove(UPGRADE);
    if let Some(websocket) = websocket.filter(|_| parts.status == StatusCode::SWITCHING_PROTOCOLS) {
        // Here a stream begins by success, and its fields for HTTP/1.1 mean nothing.
        parts.status = StatusCode::OK;
        parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
        let stream = respond.send_response(Response::from_parts(parts, ()), false)?;
        // Whoever served it waits for this; if nobody does, the stream ends here.
        let _ = websocket.opened.send(Tunnel::new(stream, websocket.received));
        return Ok(());
    }
    let length = body.size_hint().exact().filter(|_| !body.is_end_stream());
    if let (Some(length), None) = (length, parts.headers.get(CONTENT_LENGTH)) {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let end = is_head || body.is_end_stream();
    let mut stream = respond.send_response(Response::from_parts(parts, ()), end)?;
    if !end {
        // What broke on one side has reset the other.
        let _ = send_body_visibly(&mut stream, &mut body).await;
    }
    Ok(())
}

/// A head without a field.
fn head(code: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = code;
    response
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

/// A request as it is served, and what it wants to be.
struct Taken {
    request: Request<Steady<Sent>>,
    /// Set once the body is wanted of a client that waits to be asked for it.
    asks: Option<Arc<AtomicBool>>,
    websocket: Option<Websocket>,
    on_websocket: Option<OnWebsocket>,
}

/// Holds a head to the rules.
fn take(edge: &Edge, mut request: Request<RecvStream>) -> Result<Taken, (Refusal, Box<Parts>)> {
    let is_websocket = begin_websocket(&mut request);
    let (mut parts, received) = request.into_parts();
    if let Err(refusal) = downgrade::check(&parts.method, &parts.uri, &parts.headers, &edge.http1.limits) {
        return Err((refusal, Box::new(parts)));
    }
    as_http1(&mut parts);
    let (body, asks, websocket, on_websocket) = if is_websocket {
        parts.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let (opened, on_open) = oneshot::channel();
        (Sent { body: None, asks: None }, None, Some(Websocket { opened, received }), Some(OnWebsocket(on_open)))
    } else {
        let asks = parts.headers.contains_key(EXPECT).then(Arc::<AtomicBool>::default);
        let body = StreamBody::new(received, &parts.headers);
        (Sent { body: Some(body), asks: asks.clone() }, asks, None, None)
    };
    let body = Steady::new(body, edge.http1.stall_timeout);
    Ok(Taken { request: Request::from_parts(parts, body), asks, websocket, on_websocket })
}

/// What a client sends behind its head; nothing, if the stream is to carry a WebSocket.
struct Sent {
    body: Option<StreamBody>,
    /// Its client waits for a 100 (RFC 9110 section 10.1.1): set, once, when the body is wanted and not there.
    asks: Option<Arc<AtomicBool>>,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        // Who sends is not asked any more.
        if let Some(asks) = self.asks.take()
            && polled.is_pending()
        {
            asks.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A stream that is to carry a WebSocket, with whoever waits for it.
struct Websocket {
    received: RecvStream,
    opened: oneshot::Sender<Tunnel>,
}

struct OnWebsocket(oneshot::Receiver<Tunnel>);

impl Future for OnWebsocket {
    type Output = Option<Tunnel>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}

impl Upgrade for OnWebsocket {
    type Stream = Tunnel;
}

/// Turns an extended CONNECT (RFC 8441 section 5) into the request of HTTP/1.1 that asks a Machine for a WebSocket: true.
/// Other protocols are left as they are: then the CONNECT is refused.
fn begin_websocket(request: &mut Request<RecvStream>) -> bool {
    let protocol = request.extensions().get::<h2::ext::Protocol>();
    if request.method() != Method::CONNECT || protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return false;
    }
    // The Machine needs it, and nobody looks at its answer: a stream is no cache's.
    let key = base64(&godwit_base::secret::random_u128().to_be_bytes());
    let Ok(key) = HeaderValue::from_str(&key) else { return false };
    *request.method_mut() = Method::GET;
    request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
    true
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
