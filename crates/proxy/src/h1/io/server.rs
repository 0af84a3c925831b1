//! A client's connection: requests in, each handed to a service, its answer out, while the request's body still flows.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

use super::inbox::Inbox;
use super::outbox::{COPIED_BYTES, Outbox};
use super::switched::{OnSwitch, Switched, pair};
use super::upload::{BodyError, RequestBody, Upload, Want, channel};
use crate::h1::body::Encoder;
use crate::h1::conn::{Event, Finish, Server};
use crate::h1::framing::Framing;
use crate::h1::head::Version;
use crate::h1::limits::Limits;
use crate::h1::refusal::Refusal;
use crate::h1::{map, write};
use crate::interim::Interims;

/// For the last answer on a connection to be written.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// After it, a client that may still be sending is read from: in all, and between two of its bytes (as nginx does it).
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);
/// A fast sender must get the time to see its answer before it sees a reset.
const MAX_LINGER_BYTES: usize = 256 << 20;
/// What most answers' heads take.
const USUAL_HEAD_BYTES: usize = 640;

/// Bounds of one connection.
#[derive(Debug, Clone)]
pub struct Options {
    pub limits: Limits,
    /// For a request to begin.
    pub idle_timeout: Duration,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
    /// Without a byte moving, while a body is waited for or an answer is not taken.
    pub stall_timeout: Duration,
    /// Milliseconds that an idle connection gets for one more request once it is told to stop: to close at once would cross
    /// with what its client is just sending. Read at that moment.
    pub stop_grace_ms: Arc<AtomicU64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            idle_timeout: Duration::from_secs(60),
            head_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            stop_grace_ms: Arc::default(),
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// As either side may.
    Closed,
    /// By us: what was sent was refused.
    Refused(Refusal),
    /// Idle, or too slow.
    Timeout,
    /// The service's body broke off, or broke its promise; the client saw the connection end.
    Aborted,
    /// The same, before a byte of the answer was written; the client was told 502.
    Unanswered,
    /// The socket went to the new protocol.
    Switched,
    Io(io::Error),
}

/// Serves a connection until it ends. `stopping` resolves when no further request shall be taken: an idle connection
/// closes, one with a request under way says `close` in its answer.
///
/// The service gets a handle on the socket if the client asks for another protocol; it is used by answering 101. Interim
/// answers are left in `interims`.
pub async fn serve<IO, S, F, B>(
    io: IO,
    options: &Options,
    interims: &Interims,
    service: S,
    stopping: impl Future<Output = ()>,
) -> Ended
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<RequestBody>, Option<OnSwitch<IO>>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes, Error: Display>,
{
    let mut stopping = pin!(stopping);
    let mut driver = Driver {
        io,
        inbox: Inbox::default(),
        outbox: Outbox::default(),
        server: Server::new(options.limits),
        timer: Timer::default(),
        stopped: false,
        leaving: false,
    };
    loop {
        let head = match poll_fn(|cx| driver.poll_head(cx, options, stopping.as_mut())).await {
            Ok(head) => head,
            Err(ended) => return driver.turn_away(ended).await,
        };
        let framing = driver.server.head().framing;
        let Ok(request) = map::request(driver.server.head(), &head) else {
            return driver.turn_away(Ended::Refused(Refusal::BadTarget)).await;
        };
        // From here on the head lives as long as the request does.
        drop(head);
        let (upload, body) = channel(framing);
        let (switch, on_switch) = match driver.server.head().upgrade.map(|_| pair()) {
            Some((switch, on_switch)) => (Some(switch), Some(on_switch)),
            None => (None, None),
        };
        interims.renew();
        let answer = {
            let mut answer = pin!(service(request.map(|()| body), on_switch));
            let mut waits = Waits { options, interims, upload: &upload, stopping: stopping.as_mut() };
            poll_fn(|cx| driver.poll_answer(cx, &mut waits, answer.as_mut())).await
        };
        let ended = match answer {
            Ok(answer) => driver.send(answer, switch.is_some(), options, &upload).await,
            Err(ended) => Err(ended),
        };
        match ended {
            Ok(Finish::Next) => {}
            Ok(Finish::Switched) => {
                let switched = Switched::new(driver.io, driver.inbox.into_bytes());
                // A service that no longer waits has ended the connection.
                return switch
                    .map_or(Ended::Closed, |switch| switch.send(switched).map_or(Ended::Closed, |()| Ended::Switched));
            }
            Ok(Finish::Close { linger }) => return driver.close(linger).await,
            Err(ended) => return driver.turn_away(ended).await,
        }
    }
}

/// One timer for all of a connection's waits. Deadlines move with every request; the timer itself only when it fires.
#[derive(Default)]
struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Timer {
    fn set(&mut self, after: Duration) {
        self.deadline = Some(Instant::now() + after);
    }

    fn is_set(&self) -> bool {
        self.deadline.is_some()
    }

    fn clear(&mut self) {
        self.deadline = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                self.deadline = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// What is looked at while an answer is waited for.
struct Waits<'a, S> {
    options: &'a Options,
    interims: &'a Interims,
    upload: &'a Upload,
    stopping: Pin<&'a mut S>,
}

struct Driver<IO> {
    io: IO,
    inbox: Inbox,
    outbox: Outbox,
    server: Server,
    timer: Timer,
    stopped: bool,
    /// It was idle when it was told to stop, and has its last moment.
    leaving: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Driver<IO> {
    /// The next request's head.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        options: &Options,
        stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Result<Bytes, Ended>> {
        loop {
            let step = self.server.step(self.inbox.bytes(), self.inbox.ended);
            match step.event {
                Event::Head => {
                    self.timer.clear();
                    return Poll::Ready(Ok(self.inbox.take(step.consumed)));
                }
                Event::More if step.consumed > 0 => self.inbox.skip(step.consumed),
                Event::More => {
                    let waits_for_first = self.inbox.bytes().is_empty();
                    if !self.timer.is_set() {
                        self.timer.set(if waits_for_first { options.idle_timeout } else { options.head_timeout });
                    }
                    match self.inbox.poll_fill(cx, &mut self.io, false) {
                        Poll::Ready(Ok(())) if waits_for_first => self.timer.clear(),
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(Ended::Io(error))),
                        Poll::Pending => {
                            if self.server.is_idle() && self.is_stopping(cx, stopping) && !self.leaving {
                                self.leaving = true;
                                self.timer.set(Duration::from_millis(options.stop_grace_ms.load(Ordering::Relaxed)));
                            }
                            if self.timer.poll(cx).is_ready() {
                                let ended = if self.leaving { Ended::Closed } else { Ended::Timeout };
                                return Poll::Ready(Err(ended));
                            }
                            return Poll::Pending;
                        }
                    }
                }
                Event::Refused(refusal) => return Poll::Ready(Err(Ended::Refused(refusal))),
                _ => return Poll::Ready(Err(Ended::Closed)),
            }
        }
    }

    fn is_stopping(&mut self, cx: &mut Context<'_>, stopping: Pin<&mut impl Future<Output = ()>>) -> bool {
        // A future that was ready is not polled again.
        self.stopped = self.stopped || stopping.poll(cx).is_ready();
        self.stopped
    }

    /// Waits for the service's answer while the body flows.
    fn poll_answer<F: Future, S: Future<Output = ()>>(
        &mut self,
        cx: &mut Context<'_>,
        waits: &mut Waits<'_, S>,
        answer: Pin<&mut F>,
    ) -> Poll<Result<F::Output, Ended>> {
        let Waits { options, interims, upload, stopping } = waits;
        let polled = answer.poll(cx);
        self.announce(interims);
        if let Poll::Ready(answer) = polled {
            self.is_stopping(cx, stopping.as_mut());
            return Poll::Ready(Ok(answer));
        }
        let mut moved = false;
        let awaits = match self.poll_upload(cx, upload, &mut moved) {
            Ok(awaits) => awaits,
            Err(ended) => return Poll::Ready(Err(ended)),
        };
        // A 100 may be on its way out.
        let flushed = match self.outbox.poll_flush(cx, &mut self.io, &mut moved) {
            Poll::Ready(Err(error)) => return Poll::Ready(Err(Ended::Io(error))),
            polled => polled.is_ready(),
        };
        if self.is_stalled(cx, awaits || !flushed, moved, options) {
            upload.fail(BodyError::Timeout);
            return Poll::Ready(Err(Ended::Timeout));
        }
        Poll::Pending
    }

    /// Writes what the Machine said before its answer. A client of HTTP/1.0 would take it for the answer (RFC 9110
    /// section 15.2).
    fn announce(&mut self, interims: &Interims) {
        for interim in interims.take() {
            if self.server.head().version == Version::V11 {
                let text = &mut self.outbox.text;
                write::status_line(text, interim.status().as_u16());
                write::map_fields(text, interim.headers());
                write::end(text);
            }
        }
    }

    /// Whether nothing has moved for too long, though something was waited for.
    fn is_stalled(&mut self, cx: &mut Context<'_>, waits: bool, moved: bool, options: &Options) -> bool {
        if !waits {
            self.timer.clear();
            return false;
        }
        if moved || !self.timer.is_set() {
            self.timer.set(options.stall_timeout);
        }
        self.timer.poll(cx).is_ready()
    }

    /// Moves the request's body on as far as it goes: whether the client is waited for.
    fn poll_upload(&mut self, cx: &mut Context<'_>, upload: &Upload, moved: &mut bool) -> Result<bool, Ended> {
        loop {
            if !self.server.is_request_read() {
                match upload.poll_want(cx) {
                    Want::More => {}
                    Want::Never => self.server.discard_body(),
                    Want::Nothing if self.server.head().framing == Framing::None => {}
                    Want::Nothing => return Ok(false),
                }
            }
            let step = self.server.step(self.inbox.bytes(), self.inbox.ended);
            *moved |= step.consumed > 0;
            match step.event {
                Event::Data(range) => {
                    let data = self.inbox.take(step.consumed).slice(range);
                    upload.push(Frame::data(data));
                }
                Event::Trailers(range) => {
                    let trailers = map::trailers(&self.inbox.take(step.consumed)[range]);
                    upload.push(Frame::trailers(trailers));
                }
                Event::End => {
                    self.inbox.skip(step.consumed);
                    upload.end();
                }
                Event::More if step.consumed > 0 => self.inbox.skip(step.consumed),
                Event::More => {
                    if self.inbox.bytes().is_empty() && self.server.continue_due() {
                        self.outbox.text.extend_from_slice(write::CONTINUE);
                    }
                    match self.inbox.poll_fill(cx, &mut self.io, true) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Err(Ended::Io(error)),
                        // A body that nobody wants is nobody's wait.
                        Poll::Pending => return Ok(!self.server.is_discarding()),
                    }
                }
                Event::Wait => return self.watch_client(cx).map(|()| false),
                Event::Refused(refusal) => {
                    upload.fail(BodyError::Refused(refusal));
                    return Err(Ended::Refused(refusal));
                }
                // No more of the body is read.
                _ => return Ok(false),
            }
        }
    }

    /// The request is read: a reset ends it, an end does not. Whoever closes one half still waits for the answer
    /// (RFC 9112 section 9.6). A little of what comes next may be read on the way.
    fn watch_client(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        let looks = self.inbox.bytes().is_empty() && !self.inbox.ended;
        if looks && let Poll::Ready(Err(error)) = self.inbox.poll_fill(cx, &mut self.io, false) {
            return Err(Ended::Io(error));
        }
        Ok(())
    }

    /// Writes the answer, its body as it comes.
    async fn send<B>(
        &mut self,
        answer: Response<B>,
        may_switch: bool,
        options: &Options,
        upload: &Upload,
    ) -> Result<Finish, Ended>
    where
        B: Body<Data = Bytes, Error: Display>,
    {
        let (head, body) = answer.into_parts();
        let mut body = pin!(body);
        let mut status = head.status;
        if status.is_informational() && !(status == StatusCode::SWITCHING_PROTOCOLS && may_switch) {
            tracing::debug!(%status, "a service answered with an interim status");
            status = StatusCode::BAD_GATEWAY;
        }
        let stated = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        // Of an answer without a body only its own word says how long the body would be.
        let bodiless = self.server.head().is_head || status == StatusCode::NOT_MODIFIED;
        let length = if bodiless { stated } else { stated.or(body.size_hint().exact()) };
        // Whether the connection outlives a body that nobody reads is said with the answer (RFC 9112 section 9.6).
        if poll_fn(|cx| Poll::Ready(matches!(upload.poll_want(cx), Want::Never))).await {
            self.server.discard_body();
        }
        let plan = self.server.answer(status.as_u16(), length, self.stopped);
        self.outbox.begin_answer();
        let text = &mut self.outbox.text;
        // Head and small bodies in one piece of memory, taken once.
        let small = length.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX).min(COPIED_BYTES));
        text.reserve(USUAL_HEAD_BYTES + small);
        write::status_line(text, status.as_u16());
        write::map_fields(text, &head.headers);
        if let Some(connection) = plan.connection {
            write::field(text, b"connection", connection.as_bytes());
        }
        let asks = status == StatusCode::UPGRADE_REQUIRED;
        if (asks || status == StatusCode::SWITCHING_PROTOCOLS)
            && let Some(protocol) = head.headers.get(http::header::UPGRADE)
        {
            // Whoever names protocols says so in Connection too (RFC 9110 section 7.8).
            if asks {
                write::field(text, b"connection", b"upgrade");
            }
            write::field(text, b"upgrade", protocol.as_bytes());
        }
        match plan.length {
            Some(length) => write::content_length(text, length),
            None => write::framing(text, plan.framing),
        }
        write::end(text);
        drop(head);
        let mut encoder = Encoder::new(plan.framing);
        let mut over = plan.framing == Framing::None;
        poll_fn(|cx| self.poll_send(cx, options, upload, body.as_mut(), &mut encoder, &mut over)).await?;
        self.timer.clear();
        Ok(self.server.finish())
    }

    fn poll_send<B>(
        &mut self,
        cx: &mut Context<'_>,
        options: &Options,
        upload: &Upload,
        mut body: Pin<&mut B>,
        encoder: &mut Encoder,
        over: &mut bool,
    ) -> Poll<Result<(), Ended>>
    where
        B: Body<Data = Bytes, Error: Display>,
    {
        let mut moved = false;
        loop {
            while !*over && self.outbox.has_room() {
                match fill(&mut self.outbox, cx, body.as_mut(), encoder) {
                    Poll::Ready(Ok(last)) => *over = last,
                    // However late it broke: as long as nothing is out, its client is owed another answer.
                    Poll::Ready(Err(_)) if self.outbox.take_back() => return Poll::Ready(Err(Ended::Unanswered)),
                    Poll::Ready(Err(ended)) => return Poll::Ready(Err(ended)),
                    Poll::Pending => break,
                }
            }
            let was_full = !self.outbox.has_room();
            match self.outbox.poll_flush(cx, &mut self.io, &mut moved) {
                Poll::Ready(Ok(())) if *over => return Poll::Ready(Ok(())),
                // What was in the way is gone; there may be more.
                Poll::Ready(Ok(())) if was_full => continue,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Ended::Io(error))),
                _ => break,
            }
        }
        let waits = match self.poll_upload(cx, upload, &mut moved) {
            Ok(waits) => waits,
            // The answer has begun; its end tells what is wrong.
            Err(Ended::Refused(_)) => return Poll::Ready(Err(Ended::Aborted)),
            Err(ended) => return Poll::Ready(Err(ended)),
        };
        let blocked = !self.outbox.is_empty();
        if self.is_stalled(cx, waits || blocked, moved, options) {
            upload.fail(BodyError::Timeout);
            return Poll::Ready(Err(Ended::Aborted));
        }
        Poll::Pending
    }

    /// Says why, if no answer has begun, and closes.
    async fn turn_away(&mut self, ended: Ended) -> Ended {
        let status = match &ended {
            // It has its answer, and was still sending a body that nobody wants.
            Ended::Closed | Ended::Refused(_) if self.server.is_discarding() => {
                self.close(true).await;
                return ended;
            }
            Ended::Refused(refusal) => refusal.status(),
            Ended::Unanswered => 502,
            // Nobody is told that nothing came.
            Ended::Timeout if !self.server.is_idle() => 408,
            _ => return ended,
        };
        // Behind a 100 that may be on its way.
        write::refusal(&mut self.outbox.text, status, crate::date::now().as_bytes());
        let mut moved = false;
        let outbox = &mut self.outbox;
        let io = &mut self.io;
        let written = poll_fn(|cx| outbox.poll_flush(cx, io, &mut moved));
        if let Ok(Ok(())) = tokio::time::timeout(LAST_WRITE_TIMEOUT, written).await {
            self.close(true).await;
        }
        ended
    }

    /// Closes; `linger` reads on for a moment, since closing over unread bytes resets the connection and may take
    /// the answer from a client that is still sending.
    async fn close(&mut self, linger: bool) -> Ended {
        let shut = async {
            self.io.shutdown().await?;
            let mut read = 0;
            while (linger || !self.inbox.bytes().is_empty()) && !self.inbox.ended && read < MAX_LINGER_BYTES {
                read += self.inbox.bytes().len();
                self.inbox.skip(self.inbox.bytes().len());
                let more = poll_fn(|cx| self.inbox.poll_fill(cx, &mut self.io, false));
                tokio::time::timeout(LINGER_SILENCE, more).await??;
            }
            io::Result::Ok(())
        };
        match tokio::time::timeout(LINGER_TIMEOUT, shut).await {
            Ok(Err(error)) => Ended::Io(error),
            _ => Ended::Closed,
        }
    }
}

/// Takes one frame of the answer's body: whether it was the last.
fn fill<B>(
    outbox: &mut Outbox,
    cx: &mut Context<'_>,
    mut body: Pin<&mut B>,
    encoder: &mut Encoder,
) -> Poll<Result<bool, Ended>>
where
    B: Body<Data = Bytes, Error: Display>,
{
    let broken = |error: &dyn Display| {
        tracing::debug!(%error, "an answer broke off");
        Poll::Ready(Err(Ended::Aborted))
    };
    let frame = if body.is_end_stream() {
        None
    } else {
        match body.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => Some(frame),
            Poll::Ready(Some(Err(error))) => return broken(&error),
            Poll::Ready(None) => None,
            Poll::Pending => return Poll::Pending,
        }
    };
    let trailers = match frame.map(Frame::into_data) {
        Some(Ok(data)) => {
            return match outbox.push(encoder, data) {
                Ok(()) => Poll::Ready(Ok(false)),
                Err(error) => broken(&error),
            };
        }
        Some(Err(frame)) => frame.into_trailers().ok(),
        None => None,
    };
    let fields = trailers.iter().flatten().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    match encoder.finish(fields, &mut outbox.text) {
        Ok(()) => Poll::Ready(Ok(true)),
        Err(error) => broken(&error),
    }
}
