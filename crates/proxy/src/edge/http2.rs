//! HTTP/2 from clients: hyper frames the streams; each head is held to the rules of HTTP/1.1, in which the Machine will
//! read it, before anything else sees it.
//!
//! RFC 9113; floods of resets, settings and CONTINUATION are bounded by `h2` itself.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{COOKIE, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Edge;
use super::body::{AnswerBody, AnswerError};
use crate::h1::downgrade;
use crate::h1::io::OnSwitch;

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

pub(super) async fn connection<IO>(edge: &Arc<Edge>, io: IO, client: IpAddr)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let open = watch::Sender::new(0usize);
    let service = service_fn(|request| {
        let (edge, place) = (edge.clone(), Place::take(&open));
        async move {
            let response = answer(&edge, request, client).await;
            Ok::<_, Infallible>(response.map(|body| Counted { body, _place: place }))
        }
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
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
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
            () = idle(open.subscribe()), if !leaving => leaving = true,
        }
        if leaving {
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Ends when nothing was under way for long enough.
async fn idle(mut open: watch::Receiver<usize>) {
    loop {
        if open.wait_for(|count| *count == 0).await.is_err() {
            return std::future::pending().await;
        }
        let until = Instant::now() + IDLE_TIMEOUT;
        match tokio::time::timeout_at(until, open.wait_for(|count| *count > 0)).await {
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// A request of a connection, from its head to its answer's end.
struct Place(watch::Sender<usize>);

impl Place {
    fn take(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|count| *count += 1);
        Self(open.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

struct Counted {
    body: AnswerBody,
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

async fn answer(edge: &Arc<Edge>, request: Request<Incoming>, client: IpAddr) -> Response<AnswerBody> {
    let (mut parts, body) = request.into_parts();
    if let Err(refusal) = downgrade::check(&parts.method, &parts.uri, &parts.headers, &edge.http1.limits) {
        edge.metrics.client_refused(refusal.word());
        return edge.refuse(refusal);
    }
    as_http1(&mut parts);
    edge.serve(Request::from_parts(parts, body), client, &edge.ways.h2, None::<OnSwitch<TcpStream>>).await
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
