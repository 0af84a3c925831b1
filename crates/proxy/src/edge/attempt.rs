//! The two kinds of attempt at a chosen Machine: a request on a stream of its own, and a tunnel for an upgrade or a
//! raw connection.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use godwit_api::config::ProxyVersion;
use godwit_api::door::Refusal;
use godwit_api::ids::{Epoch, HostId, MachineId};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::header::EXPECT;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;

use super::Edge;
use super::body::{AnswerBody, InFlight};
use super::find::{Attempt, Pick, Tried};
use super::gate::Turn;
use super::upload::{Progress, Upload};
use crate::h1;
use crate::headers::{is_idempotent, strip_ours};
use crate::interim::Interims;
use crate::link::body::StreamBody;
use crate::link::client::Lost;
use crate::link::header;
use crate::link::peek::Peeked;
use crate::link::send::Broken;
use crate::link::tunnel::Tunnel;
use crate::replay::FLY_REPLAY;

/// A client that goes on sending after its answer is read from for so long.
const LINGER: Duration = Duration::from_secs(2);

/// What a door said, if it was a refusal.
fn refusal_of(headers: &HeaderMap) -> Option<(Refusal, Option<Epoch>, u32)> {
    let reason = headers.get(header::REFUSAL)?.to_str().ok()?;
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text(header::HOST).and_then(|host| HostId::parse(host).ok());
    // A reason of a newer door: it did not admit the request, more need not be known.
    let door_addr = text(header::DOOR).map(str::to_owned);
    let mut refusal = Refusal::from_parts(reason, host, door_addr).unwrap_or(Refusal::Unknown);
    if let Refusal::Unreachable { hint } = &mut refusal {
        *hint = text(header::HINT).map(str::to_owned);
    }
    let epoch = text(header::EPOCH).and_then(|epoch| epoch.parse().ok());
    Some((refusal, epoch, load_of(headers).unwrap_or(0)))
}

fn load_of(headers: &HeaderMap) -> Option<u32> {
    headers.get(header::LOAD)?.to_str().ok()?.parse().ok()
}

/// Names the Machine on a head for its door.
fn address(headers: &mut HeaderMap, pick: &Pick<'_>) {
    headers.insert(header::MACHINE, pick.target.machine_header.clone());
    headers.insert(header::PORT, pick.service.port_header.clone());
    headers.insert(header::EPOCH, pick.target.epoch_header.clone());
}

/// A request with its body. The head is stamped already and has `http://HOST/PATH` as its URI.
pub struct HttpAttempt<'a, B> {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    /// Taken when the answer came before the body's end and a task carries the rest.
    pub upload: Option<Upload<B>>,
    /// Where what the Machine says before its answer is left for the client.
    pub interims: &'a Interims,
    /// Of an answer that sends the request on.
    pub by: Option<ServedBy>,
}

/// The Machine that answered.
pub struct ServedBy {
    pub machine: MachineId,
    pub region: Arc<str>,
}

impl ServedBy {
    fn of(pick: &Pick<'_>) -> Self {
        Self { machine: pick.target.machine.clone(), region: pick.target.region.clone() }
    }
}

/// What came of a stream.
enum Heard {
    Admitted,
    Interim(Response<()>),
    Answer(Result<Response<RecvStream>, h2::Error>),
    ClientGone,
}

impl<B> Attempt for HttpAttempt<'_, B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    type Served = Response<AnswerBody>;

    async fn attempt(&mut self, edge: &Edge, pick: &Pick<'_>, turn: &mut Option<Turn>) -> Tried<Response<AnswerBody>> {
        // Counted from the choice on: those who choose next must see it, also while the connection is being made.
        let in_flight = InFlight::enter(pick.app, &pick.service.tally);
        let link = edge.hosts.link(&pick.target.door_addr);
        let mut sender = match link.sender().await {
            Ok(sender) => sender,
            Err(away) => {
                tracing::debug!(%away, "a door is away");
                return Tried::Away;
            }
        };
        let Some(upload) = &mut self.upload else { return Tried::Lost { again: false } };
        if !upload.is_whole() {
            return Tried::Lost { again: false };
        }
        // Into the map that stays: there is room in it, and the next attempt replaces them.
        address(&mut self.headers, pick);
        let empty = upload.is_empty();
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if !empty || turn.is_some() {
            request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
        }
        let Ok((mut answer, mut stream)) = sender.send_request(request, empty) else { return Tried::Away };
        drop(sender);
        let mut admitted = false;
        let mut sent = empty;
        let mut progress = Progress::default();
        let answer = loop {
            let heard = poll_fn(|cx| {
                if let Poll::Ready(heard) = poll_heard(&mut answer, admitted, cx) {
                    return Poll::Ready(heard);
                }
                if !sent {
                    match upload.poll_send(&mut progress, &mut stream, admitted, cx) {
                        Poll::Ready(Ok(()) | Err(Broken::Stream)) => sent = true,
                        Poll::Ready(Err(Broken::Body)) => return Poll::Ready(Heard::ClientGone),
                        Poll::Pending => {}
                    }
                }
                Poll::Pending
            });
            match heard.await {
                Heard::Admitted => {
                    admitted = true;
                    *turn = None;
                }
                Heard::Interim(mut interim) => {
                    strip_ours(interim.headers_mut());
                    self.interims.add(interim);
                }
                Heard::Answer(answer) => break answer,
                Heard::ClientGone => {
                    stream.send_reset(Reason::CANCEL);
                    return Tried::Lost { again: false };
                }
            }
        };
        let response = match answer {
            Ok(response) => response,
            Err(error) => return self.lost(&error),
        };
        if let Some((refusal, epoch, load)) = refusal_of(response.headers()) {
            return Tried::Refused(refusal, epoch, load);
        }
        if let Some(word) = response.headers().get(header::FAILED) {
            let why = word.to_str().ok().and_then(h1::Refusal::of_word);
            if !sent {
                stream.send_reset(Reason::CANCEL);
            }
            return Tried::Broke { again: self.is_repeatable(), why };
        }
        let (parts, body) = response.into_parts();
        let body = match Peeked::look(StreamBody::new(body, &parts.headers)).await {
            Ok(body) => body,
            // Not a byte of it went to the client.
            Err(error) => {
                if !sent {
                    stream.send_reset(Reason::CANCEL);
                }
                let broke = Tried::Broke { again: self.is_repeatable(), why: None };
                return if error.is_reset() { broke } else { self.lost(&error) };
            }
        };
        let response = Response::from_parts(parts, body);
        let goes_on = response.headers().contains_key(FLY_REPLAY);
        if goes_on && !sent {
            // Whoever gets the request next gets its body too, if that is still there.
            stream.send_reset(Reason::CANCEL);
        } else if !sent && let Some(upload) = self.upload.take() {
            carry_on(upload, progress, stream);
        }
        self.by = goes_on.then(|| ServedBy::of(pick));
        // What a Machine cannot do is no sign that it is ill.
        let well = !response.status().is_server_error() || response.status() == StatusCode::NOT_IMPLEMENTED;
        Tried::Served { served: self.served(edge, pick, response, in_flight), well }
    }
}

impl<B> HttpAttempt<'_, B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    fn lost(&self, error: &h2::Error) -> Tried<Response<AnswerBody>> {
        match Lost::of(error) {
            Lost::NotSent if self.is_whole() => Tried::Away,
            Lost::NotSent => Tried::Lost { again: false },
            Lost::Unknown => Tried::Lost { again: self.is_repeatable() },
        }
    }

    fn is_whole(&self) -> bool {
        self.upload.as_ref().is_some_and(Upload::is_whole)
    }

    /// Though it may have been acted on.
    fn is_repeatable(&self) -> bool {
        self.is_whole() && is_idempotent(&self.method)
    }

    fn served(
        &self,
        edge: &Edge,
        pick: &Pick<'_>,
        response: Response<Peeked<StreamBody>>,
        in_flight: InFlight,
    ) -> Response<AnswerBody> {
        let (mut parts, body) = response.into_parts();
        if let Some(load) = load_of(&parts.headers) {
            pick.service.tally.heard(load, edge.routes.now_ms());
        }
        let upgrade = parts.headers.remove(header::UPGRADE);
        strip_ours(&mut parts.headers);
        if let Some(protocols) = upgrade.filter(|_| parts.status == StatusCode::UPGRADE_REQUIRED) {
            parts.headers.insert(http::header::UPGRADE, protocols);
        }
        parts.version = http::Version::HTTP_11;
        Response::from_parts(parts, AnswerBody::Stream { body, _in_flight: in_flight })
    }
}

fn poll_heard(answer: &mut ResponseFuture, admitted: bool, cx: &mut Context<'_>) -> Poll<Heard> {
    loop {
        let heard = match ready!(answer.poll_informational(cx)) {
            // The door's one word; the Machine's own is not sent on by it.
            Some(Ok(interim)) if interim.status() == StatusCode::CONTINUE && admitted => continue,
            Some(Ok(interim)) if interim.status() == StatusCode::CONTINUE => Heard::Admitted,
            Some(Ok(interim)) => Heard::Interim(interim),
            Some(Err(error)) => Heard::Answer(Err(error)),
            None => return Pin::new(answer).poll(cx).map(Heard::Answer),
        };
        return Poll::Ready(heard);
    }
}

/// The answer came before the body's end, which is the Machine's good right; the rest goes on beside the answer.
fn carry_on<B>(mut upload: Upload<B>, mut progress: Progress, mut stream: SendStream<Bytes>)
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    tokio::spawn(async move {
        let sent = poll_fn(|cx| {
            if let Poll::Ready(sent) = upload.poll_send(&mut progress, &mut stream, true, cx) {
                return Poll::Ready(sent);
            }
            // The door wants no more of it.
            stream.poll_reset(cx).map(|_| Err(Broken::Stream))
        });
        match sent.await {
            Ok(()) => {}
            Err(Broken::Body) => stream.send_reset(Reason::CANCEL),
            // To close at once would often take the answer from a client that is still writing.
            Err(Broken::Stream) => drop(tokio::time::timeout(LINGER, upload.discard()).await),
        }
    });
}

/// A byte pipe to a port of a Machine.
pub struct TunnelAttempt {
    kind: HeaderValue,
    port: Option<u16>,
    /// The Machine wants to be told of its client, by a PROXY protocol header before all else.
    pub announced: Option<ProxyVersion>,
    pub by: Option<ServedBy>,
}

impl TunnelAttempt {
    pub fn upgrade() -> Self {
        Self { kind: HeaderValue::from_static("upgrade"), port: None, announced: None, by: None }
    }
    pub fn tcp(port: u16) -> Self {
        Self { kind: HeaderValue::from_static("tcp"), port: Some(port), announced: None, by: None }
    }
}

impl Attempt for TunnelAttempt {
    type Served = (Tunnel, InFlight);

    async fn attempt(&mut self, edge: &Edge, pick: &Pick<'_>, turn: &mut Option<Turn>) -> Tried<Self::Served> {
        let in_flight = InFlight::enter(pick.app, &pick.service.tally);
        let link = edge.hosts.link(&pick.target.door_addr);
        let Ok(mut sender) = link.sender().await else { return Tried::Away };
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::from_static("machine:1");
        address(request.headers_mut(), pick);
        request.headers_mut().insert(header::TUNNEL, self.kind.clone());
        let Ok((answer, stream)) = sender.send_request(request, false) else { return Tried::Away };
        drop(sender);
        let response = match answer.await {
            Ok(response) => response,
            // Not a byte was in it yet.
            Err(_) => return Tried::Lost { again: true },
        };
        if let Some((refusal, epoch, load)) = refusal_of(response.headers()) {
            return Tried::Refused(refusal, epoch, load);
        }
        if response.status() != StatusCode::OK {
            return Tried::Lost { again: false };
        }
        *turn = None;
        self.by = Some(ServedBy::of(pick));
        self.announced = self.port.and_then(|port| pick.service.announcement(port));
        if let Some(load) = load_of(response.headers()) {
            pick.service.tally.heard(load, edge.routes.now_ms());
        }
        Tried::Served { served: (Tunnel::new(stream, response.into_body()), in_flight), well: true }
    }
}
