//! What is told of each request: a line of the access log, its app's counts and durations. A record is made with the
//! request's head and tells all when it is dropped, however the request ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_api::ids::{HostId, MachineId};
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Edge;
use super::app::App;
use super::body::{AnswerBody, AnswerError};
use super::serve::Way;
use crate::access::Line;
use crate::h1::Refusal;
use crate::headers::Client;
use crate::trace::Trace;

/// Its client did not wait for the answer.
const CLIENT_GONE: u16 = 499;

/// How a request got to its Machine.
#[derive(Debug, Default)]
pub struct Trail {
    pub queue: Duration,
    pub wake: Duration,
    pub first_byte: Option<Duration>,
    pub retries: u32,
    pub replays: u32,
    /// Who was asked last.
    pub at: Option<(MachineId, HostId)>,
}

/// Bytes of bodies, or of a connection that has switched.
#[derive(Debug, Default)]
pub struct Passed {
    pub inward: AtomicU64,
    pub outward: AtomicU64,
}

/// What only the log wants to know.
struct Asked {
    unix_ms: u64,
    request_id: HeaderValue,
    trace: Option<Trace>,
    method: Option<Method>,
    path: Option<PathAndQuery>,
    http_host: Option<HeaderValue>,
    client: Client,
    protocol: &'static str,
    tls: bool,
}

pub struct Record {
    edge: Arc<Edge>,
    asked: Option<Asked>,
    app: Option<Arc<App>>,
    started: Instant,
    status: Option<u16>,
    is_head: bool,
    pub reason: Option<&'static str>,
    pub trail: Trail,
    pub passed: Arc<Passed>,
    /// When a connection was switched: what counts as its duration.
    switched: Option<Duration>,
}

impl Record {
    pub fn begin(
        edge: &Arc<Edge>,
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
        request_id: &HeaderValue,
        client: &Client,
        way: &Way,
    ) -> Box<Self> {
        let asked = edge.access.is_on().then(|| Asked {
            unix_ms: godwit_base::clock::unix_ms(),
            request_id: request_id.clone(),
            trace: None,
            method: Some(method.clone()),
            path: uri.path_and_query().cloned(),
            http_host: headers.get(HOST).cloned(),
            client: client.clone(),
            protocol: way.protocol,
            tls: way.tls,
        });
        let mut record = Self::empty(edge, asked);
        record.is_head = method == Method::HEAD;
        record
    }

    fn empty(edge: &Arc<Edge>, asked: Option<Asked>) -> Box<Self> {
        Box::new(Self {
            edge: edge.clone(),
            asked,
            app: None,
            started: Instant::now(),
            status: None,
            is_head: false,
            reason: None,
            trail: Trail::default(),
            passed: Arc::default(),
            switched: None,
        })
    }

    /// What a client sent before its connection was closed for it.
    pub fn refused(edge: &Arc<Edge>, refusal: Refusal, client: &Client, way: &Way) {
        if !edge.access.is_on() {
            return;
        }
        let asked = Asked {
            unix_ms: godwit_base::clock::unix_ms(),
            request_id: edge.request_id(),
            trace: None,
            method: None,
            path: None,
            http_host: None,
            client: client.clone(),
            protocol: way.protocol,
            tls: way.tls,
        };
        let mut record = Self::empty(edge, Some(asked));
        record.status = Some(refusal.status());
        record.reason = Some(refusal.word());
    }

    pub fn is_for(&mut self, app: &Arc<App>) {
        app.metrics.begun();
        self.app = Some(app.clone());
    }

    pub fn traced(&mut self, trace: Trace) {
        if let Some(asked) = &mut self.asked {
            asked.trace = Some(trace);
        }
    }

    pub fn answered(&mut self, status: u16) {
        self.status = Some(status);
        if let Some(app) = &self.app {
            app.metrics.answered(status);
        }
    }

    /// The rest of it is a connection of another protocol.
    pub fn switched(&mut self) {
        self.switched = Some(self.started.elapsed());
    }

    /// Goes with the answer to its end.
    pub fn follow(self: Box<Self>, response: Response<AnswerBody>) -> Response<Recorded> {
        let (head, body) = response.into_parts();
        let recorded = match body {
            // Whoever carries the connection has it from here; if nobody does, it ends here.
            AnswerBody::Switching(mut carrier) => {
                if let Some(carrier) = carrier.take() {
                    let _ = carrier.send(self);
                }
                Recorded { body: AnswerBody::Empty, record: None, ended: true, failed: false }
            }
            body => Recorded { body, record: Some(self), ended: false, failed: false },
        };
        Response::from_parts(head, recorded)
    }

    fn log(&self, asked: &Asked) {
        let time = godwit_base::clock::rfc3339(asked.unix_ms);
        let http_host = asked.http_host.as_ref().map(|host| String::from_utf8_lossy(host.as_bytes()));
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.edge.access.write(&Line {
            time: &time,
            request_id: asked.request_id.to_str().unwrap_or(""),
            trace_id: asked.trace.as_ref().map(Trace::trace_id),
            parent_id: asked.trace.as_ref().map(Trace::parent_id),
            app: self.app.as_ref().map(|app| app.name.as_str()),
            machine: self.trail.at.as_ref().map(|(machine, _)| machine.as_str()),
            host: self.trail.at.as_ref().map(|(_, host)| host.as_str()),
            region: &self.edge.region,
            client: Some(asked.client.as_str()),
            protocol: asked.protocol,
            tls: asked.tls,
            method: asked.method.as_ref().map(Method::as_str),
            http_host: http_host.as_deref(),
            path: asked.path.as_ref().map(PathAndQuery::path),
            status: self.status.unwrap_or(CLIENT_GONE),
            bytes_in: self.passed.inward.load(Ordering::Relaxed),
            bytes_out: self.passed.outward.load(Ordering::Relaxed),
            queue_us: us(self.trail.queue),
            wake_us: us(self.trail.wake),
            first_byte_us: self.trail.first_byte.map(us),
            total_us: us(self.started.elapsed()),
            retries: self.trail.retries,
            replays: self.trail.replays,
            reason: self.reason.or_else(|| self.status.is_none().then_some("client_gone")),
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(app) = &self.app {
            app.metrics.ended(self.switched.unwrap_or_else(|| self.started.elapsed()));
            if self.status.is_none() {
                app.metrics.answered(0);
            }
        }
        if let Some(asked) = self.asked.take() {
            self.log(&asked);
        }
    }
}

/// An answer with its record.
pub struct Recorded {
    body: AnswerBody,
    record: Option<Box<Record>>,
    ended: bool,
    failed: bool,
}

impl Body for Recorded {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(record)) = (frame.data_ref(), &self.record) {
                    record.passed.outward.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
            }
            Poll::Ready(Some(Err(_))) => self.failed = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let whole = !self.failed && (self.ended || self.body.is_end_stream());
        if let Some(record) = self.record.as_mut().filter(|record| !whole && !record.is_head) {
            record.reason = record.reason.or(Some("broken"));
        }
    }
}

/// A client's connection whose bytes are counted.
pub struct Metered<IO> {
    pub io: IO,
    pub passed: Arc<Passed>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Metered<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = out.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, out);
        self.passed.inward.fetch_add((out.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Metered<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.passed.outward.fetch_add(*written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
