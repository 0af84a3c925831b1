//! The edges' side: connections, who is calling, and each stream from its head to its end.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use godwit_api::door::{Refusal, StartCall, StopIfIdle};
use godwit_api::ids::{EdgeId, MachineId};
use godwit_base::{Peer, Verb, may};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, EXPECT, HOST, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::net::{TcpListener, TcpStream};

use super::gate::Kind;
use super::machines::{Admitted, Refused};
use super::upstream::{Connection, Failed, RequestBody};
use super::{Door, closing, hint, start, tunnel, upstream_h2};
use crate::h1;
use crate::h1::map::RawTarget;
use crate::headers::{never_again, strip, strip_ours};
use crate::interim::MAX_PASSED;
use crate::link::batch::Batch;
use crate::link::body::StreamBody;
use crate::link::header;
use crate::link::peek::Peeked;
use crate::link::probe::probe;
use crate::link::send::{send_body, send_data};
use crate::link::{
    CONNECTION_WINDOW_BYTES, HELLO_PATH, MAX_FRAME_BYTES, MAX_HEAD_BYTES, MAX_RESETS, MAX_STREAMS, SEND_BUFFER_BYTES,
    STREAM_WINDOW_BYTES,
};

/// An edge that does not speak HTTP/2 by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bodies of the edge's own calls.
const MAX_CALL_BYTES: usize = 16 << 10;
const CALL_PREFIX: &str = "/.godwit/machines/";

pub(super) async fn accept(door: Arc<Door>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = door.group.stopping() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                let _ = socket.set_nodelay(true);
                let of = door.clone();
                door.group.spawn(async move { connection(of, socket).await });
            }
            Err(error) => {
                // Out of descriptors is the usual reason: going on at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Who is at the other end, once it has said so. With mTLS the handshake will tell.
type Named = Arc<OnceLock<EdgeId>>;

async fn connection(door: Arc<Door>, socket: TcpStream) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_header_list_size(MAX_HEAD_BYTES)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_RESETS));
    let Ok(Ok(mut connection)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(socket)).await
    else {
        return;
    };
    let named = Named::default();
    let ping = connection.ping_pong();
    let dead = probe(ping, |_| {});
    let stopping = door.group.token();
    tokio::pin!(dead);
    let mut leaving = false;
    let mut batch = Batch::default();
    loop {
        let accepted = tokio::select! {
            accepted = poll_fn(|cx| batch.poll(cx, |cx| connection.poll_accept(cx))) => accepted,
            () = &mut dead => return,
            () = stopping.cancelled(), if !leaving => {
                leaving = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                let (door, named) = (door.clone(), named.clone());
                tokio::spawn(async move {
                    if let Err(error) = stream(&door, &named, request, respond).await {
                        tracing::debug!(%error, "a stream broke");
                    }
                });
            }
            Some(Err(_)) | None => return,
        }
    }
}

async fn stream(
    door: &Arc<Door>,
    named: &Named,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let Some(edge) = named.get() else {
        let code = hello(door, named, &request);
        respond.send_response(plain(code), true)?;
        return Ok(());
    };
    // An edge that was expelled meanwhile is refused on its standing connection too.
    if !door.machines.is_known(edge) {
        return refuse(door, &Refused::of(Refusal::Unknown, None), &mut respond);
    }
    if request.headers().contains_key(header::MACHINE) {
        return traffic(door, edge, request, respond).await;
    }
    call(door, edge, request, respond).await
}

fn hello(door: &Door, named: &Named, request: &Request<RecvStream>) -> StatusCode {
    if request.uri().path() != HELLO_PATH {
        return StatusCode::UNAUTHORIZED;
    }
    let edge = godwit_base::http::bearer(request.headers())
        .and_then(|bearer| door.machines.edge(&godwit_base::secret::sha256_hex(bearer)));
    match edge {
        Some(edge) => {
            let _ = named.set(edge);
            StatusCode::NO_CONTENT
        }
        None => {
            door.metrics.distrust.note(None, "unnamed_call", HELLO_PATH);
            StatusCode::UNAUTHORIZED
        }
    }
}

/// One who may not is counted.
fn is_allowed(door: &Door, edge: &EdgeId, verb: Verb, machine: &str) -> bool {
    let peer = Peer::Edge(edge.clone());
    let answer = may(&peer, verb, machine);
    if let Err(forbidden) = &answer {
        door.metrics.distrust.note(Some(&peer), "forbidden_call", &forbidden.to_string());
    }
    answer.is_ok()
}

/// A request or a tunnel for a Machine.
async fn traffic(
    door: &Arc<Door>,
    edge: &EdgeId,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let headers = request.headers();
    let id = headers.get(header::MACHINE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let port = headers.get(header::PORT).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let Some(port) = port else {
        respond.send_response(plain(StatusCode::BAD_REQUEST), true)?;
        return Ok(());
    };
    if !is_allowed(door, edge, Verb::Traffic, id) {
        respond.send_response(plain(StatusCode::FORBIDDEN), true)?;
        return Ok(());
    }
    let kind = if request.method() == Method::CONNECT { Kind::Tunnel } else { Kind::Request };
    let admitted = match door.machines.admit(id, port, kind) {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(door, &refused, &mut respond),
    };
    if kind == Kind::Tunnel {
        return tunnel::serve(door, admitted, request.into_body(), respond).await;
    }
    let cut = admitted.cut.clone();
    tokio::select! {
        done = exchange(door, admitted, request, &mut respond) => done,
        () = cut.cancelled() => {
            // The stop's deadline passed. If the head is out already, a reset is all that can be said.
            if respond.send_response(plain(StatusCode::BAD_GATEWAY), true).is_err() {
                respond.send_reset(Reason::CANCEL);
            }
            Ok(())
        }
    }
}

async fn exchange(
    door: &Arc<Door>,
    admitted: Admitted,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let entry = admitted.entry.clone();
    let (port, to) = (admitted.port, admitted.to);
    if admitted.speaks_h2 {
        return exchange_h2(door, &admitted, request, respond).await;
    }
    let connection = match Connection::open(&entry, to, port, request.method()).await {
        Ok(connection) => connection,
        Err(failed) => return unreachable_machine(door, &admitted, &failed, respond).await,
    };
    if request.headers().contains_key(EXPECT) {
        // Only now may the edge give the body out of its hands.
        respond.send_informational(plain(StatusCode::CONTINUE))?;
    }
    let request = to_machine(request);
    let edge = Mutex::new(&mut *respond);
    let mut tell = |interim| pass_on(&edge, interim);
    let exchanged = tokio::select! {
        exchanged = connection.exchange(&entry, to, request, &mut tell) => exchanged,
        // The edge gave up: so does the connection to the Machine, by being dropped.
        _ = poll_fn(|cx| lock(&edge).poll_reset(cx)) => return Ok(()),
    };
    let (response, settling) = match exchanged {
        Ok(begun) => begun.split(),
        Err(failed @ Failed::Dial(_)) => return unreachable_machine(door, &admitted, &failed, respond).await,
        Err(Failed::Exchange(error)) => {
            return broke(door, &entry.id, &error, error.refusal(), respond);
        }
    };
    let (head, body) = to_edge(response, admitted.load);
    let body = match Peeked::look(body).await {
        Ok(body) => body,
        Err(error) => return broke(door, &entry.id, &error, None, respond),
    };
    door.metrics.answered(head.status().as_u16());
    let end = http_body::Body::is_end_stream(&body);
    let mut stream = respond.send_response(head, end)?;
    if end || send_body(&mut stream, body).await.is_ok() {
        settling.settle(&entry);
    }
    Ok(())
}

/// The same with a Machine that speaks HTTP/2.
async fn exchange_h2(
    door: &Door,
    admitted: &Admitted,
    mut request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let sender = match upstream_h2::sender(&admitted.entry, admitted.to, admitted.port).await {
        Ok(sender) => sender,
        Err(failed) => return unreachable_machine(door, admitted, &failed, respond).await,
    };
    strip_ours(request.headers_mut());
    let waits = request.headers_mut().remove(EXPECT).is_some();
    if waits {
        // Only now may the edge give the body out of its hands.
        respond.send_informational(plain(StatusCode::CONTINUE))?;
    }
    let (parts, body) = request.into_parts();
    let body = StreamBody::new(body, &parts.headers);
    let edge = Mutex::new(&mut *respond);
    let mut told = 0;
    let mut tell = |mut interim: Response<()>| {
        // It answers nobody here (RFC 9110 section 15.2), and 101 means nothing in HTTP/2.
        let is_hint = !matches!(interim.status(), StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS);
        if is_hint && told < MAX_PASSED {
            told += 1;
            strip(interim.headers_mut());
            pass_on(&edge, interim);
        }
    };
    let exchanged = tokio::select! {
        exchanged = upstream_h2::exchange(sender, Request::from_parts(parts, body), &mut tell) => exchanged,
        // The edge gave up: so does the stream to the Machine, by being dropped.
        _ = poll_fn(|cx| lock(&edge).poll_reset(cx)) => return Ok(()),
    };
    let response = match exchanged {
        Ok(response) => response,
        // The Machine did nothing with it, and the edge still has all of it.
        Err(failed) if upstream_h2::was_refused(&failed) && !waits => {
            return unreachable_machine(door, admitted, &failed, respond).await;
        }
        Err(failed) => {
            return broke(door, &admitted.entry.id, &failed, None, respond);
        }
    };
    let (parts, body) = response.into_parts();
    let body = StreamBody::new(body, &parts.headers);
    let (head, body) = to_edge(Response::from_parts(parts, body), admitted.load);
    let body = match Peeked::look(body).await {
        Ok(body) => body,
        Err(error) => return broke(door, &admitted.entry.id, &error, None, respond),
    };
    door.metrics.answered(head.status().as_u16());
    let end = http_body::Body::is_end_stream(&body);
    let mut stream = respond.send_response(head, end)?;
    if !end {
        // What broke on one side has reset the other.
        let _ = send_body(&mut stream, body).await;
    }
    Ok(())
}

/// The Machine broke off before a byte was sent on, or its answer was read and `refused`: the edge is told which.
fn broke(
    door: &Door,
    machine: &MachineId,
    error: &(dyn std::error::Error + 'static),
    refused: Option<h1::Refusal>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let error = godwit_base::telemetry::chain(error);
    tracing::debug!(%machine, error, "a Machine broke off");
    door.metrics.answered(502);
    let mut answer = plain(StatusCode::BAD_GATEWAY);
    let word = refused.map_or("broke", h1::Refusal::word);
    answer.headers_mut().insert(header::FAILED, HeaderValue::from_static(word));
    respond.send_response(answer, true)?;
    Ok(())
}

/// The stream's other half while an exchange runs: what the Machine says early goes there, and the edge may give up there.
/// One task uses it, so nobody ever waits.
type Edgeward<'a> = Mutex<&'a mut SendResponse<Bytes>>;

fn lock<'a, 'b>(edge: &'a Edgeward<'b>) -> MutexGuard<'a, &'b mut SendResponse<Bytes>> {
    edge.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends an interim answer on. (100 is none: between door and edge it says that a request is admitted.)
fn pass_on(edge: &Edgeward<'_>, mut interim: Response<()>) {
    interim.headers_mut().remove(CONTENT_LENGTH);
    // A stream that is gone ends the exchange by itself.
    let _ = lock(edge).send_informational(interim);
}

async fn unreachable_machine(
    door: &Door,
    admitted: &Admitted,
    failed: &(dyn std::error::Error + Send + Sync + 'static),
    respond: &mut SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let error = godwit_base::telemetry::chain(failed);
    tracing::debug!(machine = %admitted.entry.id, error, "cannot reach a port");
    let epoch = Some(admitted.entry.view().epoch);
    let hint = hint::for_refusal(door, &admitted.entry, admitted.port).await;
    refuse(door, &Refused { refusal: Refusal::Unreachable { hint }, epoch, load: admitted.load }, respond)
}

/// The request as the Machine gets it: our own headers gone, Host in the place of `:authority`.
fn to_machine(request: Request<RecvStream>) -> Request<RequestBody> {
    let (mut parts, body) = request.into_parts();
    if let Some(raw) = parts.headers.remove(header::TARGET) {
        parts.extensions.insert(RawTarget(raw));
    }
    strip_ours(&mut parts.headers);
    parts.headers.remove(EXPECT);
    let host = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        parts.headers.insert(HOST, host);
    }
    parts.uri = parts.uri.path_and_query().cloned().map(Uri::from).unwrap_or_else(|| Uri::from_static("/"));
    parts.version = http::Version::HTTP_11;
    let body = StreamBody::new(body, &parts.headers);
    let body = if http_body::Body::is_end_stream(&body) { RequestBody::Empty } else { RequestBody::Stream(body) };
    Request::from_parts(parts, body)
}

fn to_edge<B>(response: Response<B>, load: u32) -> (Response<()>, B) {
    let (mut parts, body) = response.into_parts();
    let upgrade = parts.headers.remove(UPGRADE).filter(|_| parts.status == StatusCode::UPGRADE_REQUIRED);
    strip(&mut parts.headers);
    if let Some(protocols) = upgrade {
        parts.headers.insert(header::UPGRADE, protocols);
    }
    parts.headers.insert(header::LOAD, never_again(HeaderValue::from(load)));
    parts.version = http::Version::HTTP_2;
    (Response::from_parts(parts, ()), body)
}

/// A head without a body, for answers of the door itself.
fn plain(code: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = code;
    response
}

/// A tunnel is open.
pub(super) fn accepted(load: u32) -> Response<()> {
    let mut response = plain(StatusCode::OK);
    response.headers_mut().insert(header::LOAD, never_again(HeaderValue::from(load)));
    response
}

pub(super) fn refuse(door: &Door, refused: &Refused, respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
    let reason = refused.refusal.as_str();
    door.metrics.refused(reason);
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE);
    let headers = response.headers_mut();
    headers.insert(header::REFUSAL, HeaderValue::from_static(reason));
    headers.insert(header::LOAD, HeaderValue::from(refused.load));
    if let Some(epoch) = refused.epoch {
        insert(headers, header::EPOCH, &epoch.to_string());
    }
    if let Refusal::Unreachable { hint: Some(hint) } = &refused.refusal {
        insert(headers, header::HINT, hint);
    }
    if let Refusal::Moved { host, door_addr } | Refusal::Moving { host, door_addr } = &refused.refusal {
        insert(headers, header::HOST, host.as_str());
        if let Some(door_addr) = door_addr {
            insert(headers, header::DOOR, door_addr);
        }
    }
    respond.send_response(response, true)?;
    Ok(())
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // Epochs, host ids, addresses and hints are visible ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A call of the edge itself: start, or stop-if-idle.
async fn call(
    door: &Arc<Door>,
    edge: &EdgeId,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (parts, body) = request.into_parts();
    let Some((id, verb)) = parts.uri.path().strip_prefix(CALL_PREFIX).and_then(|rest| rest.split_once('/')) else {
        respond.send_response(plain(StatusCode::NOT_FOUND), true)?;
        return Ok(());
    };
    let body = Limited::new(StreamBody::new(body, &parts.headers), MAX_CALL_BYTES).collect().await;
    let Ok(body) = body.map(|body| body.to_bytes()) else {
        respond.send_response(plain(StatusCode::BAD_REQUEST), true)?;
        return Ok(());
    };
    let asked = match verb {
        "start" => Some(Verb::Start),
        "stop-if-idle" => Some(Verb::StopIfIdle),
        _ => None,
    };
    if let Some(asked) = asked
        && !is_allowed(door, edge, asked, id)
    {
        respond.send_response(plain(StatusCode::FORBIDDEN), true)?;
        return Ok(());
    }
    let answer = match verb {
        "start" => match serde_json::from_slice::<StartCall>(&body) {
            Ok(call) => {
                // An edge that gave up need not be waited for, but a start that is on its way goes on at the agent.
                tokio::select! {
                    reply = start::start(door, id, &call) => serde_json::to_vec(&reply).ok(),
                    _ = poll_fn(|cx| respond.poll_reset(cx)) => return Ok(()),
                }
            }
            Err(_) => None,
        },
        "stop-if-idle" => match serde_json::from_slice::<StopIfIdle>(&body) {
            Ok(call) => {
                let reply = match door.machines.get(id) {
                    Some(entry) => closing::stop_if_idle(door, &entry, &call).await,
                    None => godwit_api::door::StopReply { stopped: false, load: 0, moving: false },
                };
                serde_json::to_vec(&reply).ok()
            }
            Err(_) => None,
        },
        _ => None,
    };
    let Some(answer) = answer else {
        respond.send_response(plain(StatusCode::BAD_REQUEST), true)?;
        return Ok(());
    };
    let mut stream = respond.send_response(plain(StatusCode::OK), false)?;
    // If the edge is gone by now, nobody misses the answer.
    let _ = send_data(&mut stream, Bytes::from(answer), true).await;
    Ok(())
}
