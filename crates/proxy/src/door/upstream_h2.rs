//! Machines that speak HTTP/2 without TLS on their port (`h2_backend`; RFC 9113 section 3.3): one connection a port carries
//! all that comes, each request on a stream of its own.
//!
//! This file must not know limits of Machines, or edges.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use godwit_base::dial::Addresses;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::header::TE;
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, Uri};
use http_body::Body;

use super::machines::Entry;
use super::upstream::dial;
use crate::link::body::StreamBody;
use crate::link::send::{Broken, send_body};
use crate::link::{
    CONNECTION_WINDOW_BYTES, MAX_FRAME_BYTES, MAX_HEAD_BYTES, MAX_RESETS, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES,
};

/// A port that does not speak HTTP/2 by then is not reached.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("no connection to the port")]
    Dial(#[source] io::Error),
    #[error("no answer to the request")]
    Exchange(#[source] h2::Error),
    #[error("the body of the request broke off")]
    Body,
}

/// A stream may be begun on it. Many who ask for a first connection at once may each make one; the last one stays.
pub async fn sender(entry: &Entry, to: Addresses, port: u16) -> Result<SendRequest<Bytes>, Failed> {
    let (life, standing) = entry.pools.multiplexed(port);
    // One that takes no more streams is replaced; what it carries ends by itself.
    if let Some(sender) = standing
        && let Ok(sender) = sender.ready().await
    {
        return Ok(sender);
    }
    let socket = dial(entry, to, port).await.map_err(Failed::Dial)?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_concurrent_reset_streams(MAX_RESETS)
        .enable_push(false);
    let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(socket)).await;
    let shaken = shaken.map_err(|_| Failed::Dial(io::ErrorKind::TimedOut.into()))?;
    let (sender, connection) = shaken.map_err(|error| Failed::Dial(io::Error::other(error)))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a Machine's connection ended");
        }
    });
    let sender = sender.ready().await.map_err(|error| Failed::Dial(io::Error::other(error)))?;
    entry.pools.set_multiplexed(life, port, sender.clone());
    Ok(sender)
}

/// Sends the request and waits for the answer's head; the rest of the request goes on beside it. `tell` gets the interim
/// answers.
pub async fn exchange(
    mut sender: SendRequest<Bytes>,
    request: Request<StreamBody>,
    tell: &mut (dyn FnMut(Response<()>) + Send),
) -> Result<Response<RecvStream>, Failed> {
    let (mut parts, body) = request.into_parts();
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(Scheme::HTTP);
    parts.uri = Uri::from_parts(uri).unwrap_or_else(|_| Uri::from_static("http://machine/"));
    parts.version = http::Version::HTTP_2;
    // Trailers are carried on; gRPC refuses who does not say so.
    parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    let empty = body.is_end_stream();
    let (mut answer, mut stream) =
        sender.send_request(Request::from_parts(parts, ()), empty).map_err(Failed::Exchange)?;
    let mut answer = std::future::poll_fn(|cx| poll_answer(&mut answer, tell, cx));
    if empty {
        return answer.await.map_err(Failed::Exchange);
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    let sending = tokio::spawn(async move {
        if let Err(Broken::Body) = send_body(&mut stream, body).await {
            // Nobody listens once the answer has begun.
            let _ = tell.send(());
        }
    });
    // Dropped with the exchange: the rest of a request is nobody's once its answer is given up.
    let sending = tokio_util::task::AbortOnDropHandle::new(sending);
    let mut told = std::pin::pin!(told);
    let mut is_sent = false;
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer.map_err(Failed::Exchange)?,
            broken = told.as_mut(), if !is_sent => match broken {
                Ok(()) => return Err(Failed::Body),
                Err(_) => is_sent = true,
            },
        }
    };
    sending.detach();
    Ok(answer)
}

/// The next that comes of a stream. (Its answer is not asked for while interim ones may come: that would drop them.)
fn poll_answer(
    answer: &mut ResponseFuture,
    tell: &mut (dyn FnMut(Response<()>) + Send),
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, h2::Error>> {
    loop {
        match ready!(answer.poll_informational(cx)) {
            Some(Ok(interim)) => tell(interim),
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => return Pin::new(answer).poll(cx),
        }
    }
}

/// Whether the Machine certainly did nothing with the request.
pub fn was_refused(failed: &Failed) -> bool {
    matches!(failed, Failed::Dial(_))
        || matches!(failed, Failed::Exchange(error) if error.reason() == Some(Reason::REFUSED_STREAM))
}
