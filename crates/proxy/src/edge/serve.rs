//! One HTTP request from its head to its answer: which app, which Machine, what the Machine and the client get told.
//!
//! It must not know how the head was framed: `http1` hands in whatever a client sent, already parsed.

use std::sync::Arc;

use bytes::Bytes;
use godwit_api::ids::{AppName, MachineId};
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, UPGRADE};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::Empty;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::Edge;
use super::app::App;
use super::attempt::{HttpAttempt, ServedBy, TunnelAttempt};
use super::body::AnswerBody;
use super::find::{Turned, find};
use super::record::{Metered, Record, Recorded};
use super::redirect;
use super::routes::NoApp;
use super::upload::Upload;
use super::view::Entrance;
use crate::date;
use crate::h1;
use crate::h1::io::{Connection, Failed, OnSwitch, Switched};
use crate::h1::map::RawTarget;
use crate::headers::{self, Client, Stamp, host_of, stamp_answer, stamp_request, strip, strip_ours, without_port};
use crate::interim::Interims;
use crate::link::header;
use crate::link::tunnel::copy;
use crate::replay::{self, FLY_FORCE_INSTANCE_ID, FLY_REPLAY, FLY_REPLAY_SRC, Wanted};
use crate::trace;

/// An answer of the edge itself.
struct Own {
    code: StatusCode,
    reason: &'static str,
    text: String,
    retry_after_s: Option<u32>,
}

impl Own {
    fn new(code: StatusCode, reason: &'static str, text: impl Into<String>) -> Self {
        Self { code, reason, text: text.into(), retry_after_s: None }
    }

    fn of_turned(turned: &Turned, app: &AppName) -> Self {
        let unavailable = |text: String, retry_after_s| Self {
            retry_after_s: Some(retry_after_s),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, turned.reason(), text)
        };
        match turned {
            Turned::NoService => Self::new(
                StatusCode::NOT_FOUND,
                turned.reason(),
                format!("app {app} has no HTTP service: give a Machine one with --port 80:PORT/tcp:http"),
            ),
            Turned::NoMatch => {
                unavailable(format!("app {app} has no Machine that matches what the request asks for"), 5)
            }
            Turned::NoMachine => {
                unavailable(format!("app {app} has no running Machine, and none that a request may start"), 5)
            }
            Turned::Ejected { retry_after_s, why } => {
                let next = format!("retry in {retry_after_s} s");
                let text = match why {
                    Some(why) => format!("app {app} could not be reached or started; {next}. {why}"),
                    None => format!("app {app} could not be reached or started; {next}"),
                };
                unavailable(text, *retry_after_s)
            }
            Turned::Unreachable(why) => unavailable(format!("app {app} cannot be reached. {why}"), 1),
            Turned::Broke(why) => Self::broke(*why, &format!("a Machine of app {app}")),
            Turned::GateFull => unavailable(format!("too many requests are waiting for app {app}; retry"), 1),
            Turned::Deadline => {
                unavailable(format!("timeout: no Machine of app {app} accepted the request in time"), 1)
            }
            Turned::StartFailed(why) => unavailable(format!("a Machine of app {app} did not start: {why}"), 1),
            Turned::Lost => Self::new(
                StatusCode::BAD_GATEWAY,
                turned.reason(),
                format!("the connection to app {app} was lost while it had the request"),
            ),
        }
    }

    /// It closed the connection, or gave an answer that cannot be passed on.
    fn broke(why: Option<h1::Refusal>, who: &str) -> Self {
        match why {
            None => {
                Self::new(StatusCode::BAD_GATEWAY, "broke", format!("{who} closed the connection before its answer"))
            }
            Some(why) => Self::new(
                StatusCode::BAD_GATEWAY,
                why.word(),
                format!("{who} sent an answer that cannot be passed on: {}", why.of_answer()),
            ),
        }
    }

    fn into_response(self) -> Response<AnswerBody> {
        let mut response = Response::new(AnswerBody::Text(Bytes::from(format!("{}\n", self.text))));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Resolves to a client's stream of bytes once its answer says that the protocol is switched; to nothing if it never
/// does.
pub trait Upgrade: Future<Output = Option<Self::Stream>> + Send + Unpin + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Upgrade for OnSwitch<IO> {
    type Stream = Switched<IO>;
}

/// How a client came in: what that adds to its requests, and the public port.
pub struct Way {
    pub protocol: &'static str,
    pub tls: bool,
    pub stamp: Stamp,
    pub port: u16,
}

/// In Via.
const H2: &str = "2 godwit";

/// All ways in.
pub struct Ways {
    pub plain: Way,
    pub secured: Way,
    pub h2: Way,
}

impl Ways {
    pub fn new(region: &str, http_port: u16, https_port: u16) -> Self {
        let way = |proto, via, port| Way {
            protocol: if via == H2 { "h2" } else { "http/1.1" },
            tls: proto == "https",
            stamp: Stamp::new(region, proto, via, port),
            port,
        };
        Self {
            plain: way("http", "1.1 godwit", http_port),
            secured: way("https", "1.1 godwit", https_port),
            h2: way("https", H2, https_port),
        }
    }
}

/// Where a request goes.
struct Destination {
    app: Arc<App>,
    /// As the client wrote it, port and all.
    host: HeaderValue,
}

/// Where a request comes from.
struct From<'a> {
    client: &'a Client,
    way: &'a Way,
    request_id: &'a HeaderValue,
    interims: &'a Interims,
}

impl Edge {
    /// Serves one request. `upgrade` is there when the client asks for another protocol, which stands in Upgrade. What the
    /// Machine says before its answer is left in `interims`.
    pub async fn serve<B, U>(
        self: &Arc<Self>,
        request: Request<B>,
        client: &Client,
        way: &Way,
        upgrade: Option<U>,
        interims: &Interims,
    ) -> Response<Recorded>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        U: Upgrade,
    {
        let request_id = self.request_id();
        let head = (request.method(), request.uri(), request.headers());
        let mut record = Record::begin(self, head, &request_id, client, way);
        if let Some(mut response) = self.challenge(&request) {
            record.answered(response.status().as_u16());
            stamp_answer(response.headers_mut(), &request_id, date::now);
            return record.follow(response);
        }
        let from = From { client, way, request_id: &request_id, interims };
        let passed = match self.destination(&request).await {
            Ok(destination) if let Some(response) = self.redirect(&request, &destination, way) => {
                record.is_for(&destination.app);
                Ok(response)
            }
            Ok(destination) if self.is_misdirected(&destination, &from).await => {
                record.is_for(&destination.app);
                let text = "this connection was opened for another host name; open a new one for this name";
                Err(Own::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", text))
            }
            Ok(Destination { app, host }) => {
                record.is_for(&app);
                match self.passing(request, &host, &from, upgrade, &mut record) {
                    Ok(mut passing) => self.to_machine(&mut passing, app, Entrance::Http(way.port), &mut record).await,
                    Err(own) => Err(own),
                }
            }
            Err(own) => Err(own),
        };
        let mut response = passed.unwrap_or_else(|own| {
            self.metrics.turned_away(own.reason);
            record.reason = Some(own.reason);
            own.into_response()
        });
        record.answered(response.status().as_u16());
        stamp_answer(response.headers_mut(), &request_id, date::now);
        record.follow(response)
    }

    /// The answer to a head that is refused.
    pub fn refuse(
        self: &Arc<Self>,
        refusal: h1::Refusal,
        parts: &Parts,
        client: &Client,
        way: &Way,
    ) -> Response<Recorded> {
        let request_id = self.request_id();
        let mut record = Record::begin(self, (&parts.method, &parts.uri, &parts.headers), &request_id, client, way);
        record.reason = Some(refusal.word());
        record.answered(refusal.status());
        let code = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
        let text = code.canonical_reason().unwrap_or("refused");
        let mut response = Own::new(code, "bad_request", text).into_response();
        stamp_answer(response.headers_mut(), &request_id, date::now);
        record.follow(response)
    }

    async fn destination<B>(&self, request: &Request<B>) -> Result<Destination, Own> {
        let bad = |text: &str| Own::new(StatusCode::BAD_REQUEST, "bad_request", text);
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Own::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this method is not supported"));
        }
        let name = host_of(request.headers()).ok_or_else(|| bad("the request needs exactly one Host header"))?;
        // In absolute form the target and Host must agree (RFC 9112 section 3.2.2 lets the target win; we take no side).
        if request.uri().authority().is_some_and(|one| !without_port(one.as_str()).eq_ignore_ascii_case(name)) {
            return Err(bad("the request target and the Host header name different hosts"));
        }
        let host =
            request.headers().get(HOST).cloned().ok_or_else(|| bad("the request needs exactly one Host header"))?;
        let unknown = || Own::new(StatusCode::NOT_FOUND, "unknown_app", "no app is served under this host name");
        // What the operator has configured comes before what apps have been given.
        let named = match self.names.app(name) {
            Some(app) => Some(app),
            None => self.hostnames.app(name).await,
        };
        let name = named.ok_or_else(unknown)?;
        match self.routes.app(&name).await {
            Ok(app) => Ok(Destination { app, host }),
            Err(NoApp::Unknown) => Err(unknown()),
            Err(NoApp::NotYet) => Err(Own {
                retry_after_s: Some(1),
                ..Own::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no_routes",
                    "this edge has just started and has no routes yet; retry",
                )
            }),
        }
    }

    /// Whether an app with `tls_options` of its own is asked for on a connection that was made for another one: that would go
    /// round its options. The client may come again on a connection of its own (RFC 9110 section 15.5.20). An app without
    /// such options is served on any connection whose certificate its client takes for it.
    async fn is_misdirected(&self, to: &Destination, from: &From<'_>) -> bool {
        let Some(shaken) = from.client.server_name().filter(|_| from.way.tls) else { return false };
        if to.host.to_str().is_ok_and(|host| without_port(host).eq_ignore_ascii_case(shaken)) {
            return false;
        }
        if to.app.view().https_port(from.way.port).is_none_or(|port| port.tls_options.is_none()) {
            return false;
        }
        let app = match self.names.app(shaken) {
            Some(app) => Some(app),
            None => self.hostnames.app(shaken).await,
        };
        app.is_none_or(|app| app != to.app.name)
    }

    /// What a certificate authority came for, if that is what it is.
    fn challenge<B>(&self, request: &Request<B>) -> Option<Response<AnswerBody>> {
        let answer = self.hostnames.challenge(|| host_of(request.headers()), request.uri().path())?;
        let mut response = Response::new(AnswerBody::Text(Bytes::from(answer)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Some(response)
    }

    /// The way to HTTPS, for a service that wants no other.
    fn redirect<B>(&self, request: &Request<B>, to: &Destination, way: &Way) -> Option<Response<AnswerBody>> {
        let is_plain = std::ptr::eq(way, &self.ways.plain);
        if !is_plain || !to.app.view().forces_https(way.port) {
            return None;
        }
        let location = redirect::location(to.host.to_str().ok()?, self.https_port, request.uri())?;
        let mut response = Response::new(AnswerBody::Empty);
        *response.status_mut() = redirect::code(request.method());
        response.headers_mut().insert(http::header::LOCATION, location);
        Some(response)
    }

    /// The request as a Machine is to get it.
    fn passing<'a, B, U>(
        &self,
        request: Request<B>,
        host: &HeaderValue,
        from: &From<'a>,
        upgrade: Option<U>,
        record: &mut Record,
    ) -> Result<Passing<'a, B, U>, Own>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (mut parts, body) = request.into_parts();
        let upload = Upload::new(body, record.passed.clone());
        let protocol = parts.headers.get(UPGRADE).cloned();
        strip(&mut parts.headers);
        parts.headers.reserve(headers::ADDED);
        stamp_request(&mut parts.headers, &from.way.stamp, from.client, from.request_id);
        let draw = || (u128::from(self.chance()) << 64 | u128::from(self.chance()), self.chance());
        record.traced(trace::stamp(&mut parts.headers, draw));
        let raw = parts.extensions.remove::<RawTarget>();
        if let (Some(client), Some(protocol)) = (upgrade, protocol) {
            let head = UpgradeHead { method: parts.method, uri: parts.uri, raw, headers: parts.headers, protocol };
            return Ok(Passing::Upgrade(head, Some(client), from.interims));
        }
        parts.headers.remove(HOST);
        let Some(uri) = target(host, &parts.uri) else {
            return Err(Own::new(StatusCode::BAD_REQUEST, "bad_request", "the Host header is not a valid host name"));
        };
        let (method, mut headers) = (parts.method, parts.headers);
        if let Some(RawTarget(raw)) = raw {
            headers.insert(header::TARGET, raw);
        }
        Ok(Passing::Http(HttpAttempt { method, uri, headers, upload: Some(upload), interims: from.interims, by: None }))
    }

    /// Until a Machine answers that does not send the request on to another.
    async fn to_machine<B, U>(
        self: &Arc<Self>,
        passing: &mut Passing<'_, B, U>,
        mut app: Arc<App>,
        entrance: Entrance,
        record: &mut Record,
    ) -> Result<Response<AnswerBody>, Own>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        U: Upgrade,
    {
        let cannot = |reason, text: &str| Own::new(StatusCode::BAD_GATEWAY, reason, text);
        let mut wanted = wanted_by(passing.headers_mut());
        for _ in 0..=replay::MAX_REPLAYS {
            let (mut response, by) = match self.once(passing, &app, &wanted, entrance, record).await {
                Ok(served) => served,
                Err(turned) => {
                    tracing::debug!(app = %app.name, ?turned, "a request was turned away");
                    return Err(Own::of_turned(&turned, &app.name));
                }
            };
            let Some(field) = response.headers_mut().remove(FLY_REPLAY) else { return Ok(response) };
            let (Some(by), Ok(replay)) = (by, replay::parse(field.as_bytes())) else { return Ok(response) };
            drop(response);
            if !passing.is_whole() {
                return Err(cannot("replay_too_large", "a request with so large a body cannot be sent on"));
            }
            if let Some(name) = &replay.app {
                let other = self.routes.app(name).await;
                app = other.map_err(|_| cannot("replay_unknown_app", "it was sent on to an app that is unknown"))?;
            }
            wanted = Wanted::of(&replay, &by.machine);
            let unix_us = godwit_base::clock::unix_ms().saturating_mul(1_000);
            let source = replay::source(&by.machine, &by.region, unix_us, replay.state.as_deref());
            // Ids, regions and states are visible ASCII.
            if let Ok(source) = HeaderValue::from_str(&source) {
                passing.headers_mut().insert(FLY_REPLAY_SRC, source);
            }
            self.metrics.replays.inc();
            record.trail.replays += 1;
        }
        Err(cannot("replay_loop", "it was sent on too often"))
    }

    async fn once<B, U>(
        self: &Arc<Self>,
        passing: &mut Passing<'_, B, U>,
        app: &Arc<App>,
        wanted: &Wanted,
        entrance: Entrance,
        record: &mut Record,
    ) -> Result<(Response<AnswerBody>, Option<ServedBy>), Turned>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        U: Upgrade,
    {
        match passing {
            Passing::Http(attempt) => {
                let response = find(self, app, wanted, entrance, &mut record.trail, attempt).await?;
                Ok((response, attempt.by.take()))
            }
            Passing::Upgrade(head, client, interims) => {
                let mut attempt = TunnelAttempt::upgrade();
                let (tunnel, in_flight) = find(self, app, wanted, entrance, &mut record.trail, &mut attempt).await?;
                // Apart, so that other requests' tasks do not have the size of it.
                let response = Box::pin(self.upgraded(head, tunnel, in_flight, client, interims)).await;
                Ok((response, attempt.by.take()))
            }
        }
    }
}

/// A request on its way, as often as it takes.
enum Passing<'a, B, U> {
    Http(HttpAttempt<'a, B>),
    Upgrade(UpgradeHead, Option<U>, &'a Interims),
}

impl<B: Body<Data = Bytes> + Unpin, U> Passing<'_, B, U> {
    /// It can be sent from its beginning again.
    fn is_whole(&self) -> bool {
        match self {
            Self::Http(attempt) => attempt.upload.as_ref().is_some_and(Upload::is_whole),
            Self::Upgrade(_, client, _) => client.is_some(),
        }
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Http(attempt) => &mut attempt.headers,
            Self::Upgrade(head, _, _) => &mut head.headers,
        }
    }
}

/// The Machine that the client names, if it does.
fn wanted_by(headers: &HeaderMap) -> Wanted {
    let instance = headers.get(FLY_FORCE_INSTANCE_ID).and_then(|id| MachineId::parse(id.to_str().ok()?).ok());
    Wanted { instance, ..Wanted::default() }
}

/// `http://HOST/PATH?QUERY`, as a door wants it.
fn target(host: &HeaderValue, uri: &Uri) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(host.to_str().ok()?.parse().ok()?);
    parts.path_and_query =
        Some(uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/")));
    Uri::from_parts(parts).ok()
}

struct UpgradeHead {
    method: Method,
    uri: Uri,
    raw: Option<RawTarget>,
    headers: HeaderMap,
    protocol: HeaderValue,
}

impl Edge {
    /// Speaks HTTP/1.1 with the Machine through the tunnel; if it switches protocols, so does the client.
    async fn upgraded<U>(
        self: &Arc<Self>,
        head: &UpgradeHead,
        tunnel: crate::link::tunnel::Tunnel,
        in_flight: super::body::InFlight,
        client: &mut Option<U>,
        interims: &Interims,
    ) -> Response<AnswerBody>
    where
        U: Upgrade,
    {
        let broken = |error: Failed| {
            tracing::debug!(%error, "a Machine broke off an upgrade");
            Own::broke(error.refusal(), "the Machine").into_response()
        };
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = head.method.clone();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
        if let Some(raw) = &head.raw {
            request.extensions_mut().insert(raw.clone());
        }
        *request.headers_mut() = head.headers.clone();
        request.headers_mut().insert(UPGRADE, head.protocol.clone());
        let connection = Connection::new(tunnel, h1::Limits::default());
        let mut response = match connection.send(request, &mut |interim| interims.add(interim)).await {
            Ok((response, _)) => response,
            Err(error) => return broken(error),
        };
        strip_ours(response.headers_mut());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return response.map(|body| AnswerBody::Declined { body: Box::new(body), _in_flight: in_flight });
        }
        let (head, body) = response.into_parts();
        let client = client.take();
        let (give, record) = oneshot::channel::<Box<Record>>();
        self.group.spawn(async move {
            let _in_flight = in_flight;
            let (Some(client), Ok(mut record)) = (client, record.await) else { return };
            if let (Some(mut machine), Some(io)) = (body.into_switched(), client.await) {
                record.switched();
                // However it ends, both sides end.
                let _ = copy(&mut Metered { io, passed: record.passed.clone() }, &mut machine).await;
            }
        });
        Response::from_parts(head, AnswerBody::Switching(Some(give)))
    }
}
