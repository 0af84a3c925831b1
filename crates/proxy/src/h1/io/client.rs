//! A connection to a Machine: one exchange at a time, driven by whoever waits for it. No task stands behind it: the
//! answer's body moves the request's body on as well, while that still flows.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, UPGRADE};
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::inbox::Inbox;
use super::outbox::Outbox;
use super::switched::Switched;
use crate::h1::body::Encoder;
use crate::h1::conn::{Client, Event};
use crate::h1::framing::Framing;
use crate::h1::limits::Limits;
use crate::h1::refusal::Refusal;
use crate::h1::response::ResponseHead;
use crate::h1::{map, write};
use crate::interim::MAX_PASSED;

/// Why there is no answer, or no more of one.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Not a byte of an answer came: if the connection had been idle, the request may never have been seen.
    #[error("the Machine closed the connection without an answer")]
    Closed,
    #[error("the connection to the Machine broke")]
    Io(#[source] io::Error),
    #[error("the Machine's answer is not HTTP/1.1 ({0})")]
    Refused(Refusal),
    /// The client's fault, or what it sent did not match its head.
    #[error("the request's body broke off")]
    Upload,
}

impl Failed {
    /// What was wrong with an answer that came.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(*refusal),
            Self::Closed | Self::Io(_) | Self::Upload => None,
        }
    }
}

/// An open connection, without a request.
pub struct Connection<IO> {
    io: IO,
    inbox: Inbox,
    client: Client,
}

/// The answer's body, and with it the connection. Dropped early it closes the connection.
pub struct Answer<IO, U> {
    exchange: Option<Exchange<IO, U>>,
    left: Option<u64>,
    free: Option<oneshot::Sender<Connection<IO>>>,
}

struct Exchange<IO, U> {
    connection: Connection<IO>,
    outbox: Outbox,
    encoder: Encoder,
    upload: Option<U>,
    /// The Machine reads no more; only its answer counts now.
    deaf: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Connection<IO> {
    pub fn new(io: IO, limits: Limits) -> Self {
        Self { io, inbox: Inbox::default(), client: Client::new(limits) }
    }

    /// Whether an idle connection may carry a request: silent, and open as far as can be seen.
    pub fn is_usable(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // Whatever there is to read, data or an end, there should be nothing.
        self.client.is_reusable(self.inbox.bytes().len())
            && self.inbox.poll_fill(&mut cx, &mut self.io, false).is_pending()
    }

    /// Sends a request and waits for its answer's head. The map's framing fields are not taken over: the body's size,
    /// or a Content-Length for a body of unknown size, decides. Upgrade in the map asks for another protocol. A
    /// `map::RawTarget` stands for the URI's path and query.
    ///
    /// The connection comes back through the receiver once the exchange is over, if it can be used again.
    ///
    /// `tell` gets the Machine's interim answers but 100, which answers nobody here: no request of ours asks for it
    /// (RFC 9110 section 15.2). At most `MAX_PASSED` are told.
    pub async fn send<U>(
        self,
        request: Request<U>,
        tell: &mut (dyn FnMut(Response<()>) + Send),
    ) -> Result<(Response<Answer<IO, U>>, oneshot::Receiver<Connection<IO>>), Failed>
    where
        U: Body<Data = Bytes> + Unpin,
    {
        let (head, body) = request.into_parts();
        let mut outbox = Outbox::default();
        let text = &mut outbox.text;
        let path = match head.extensions.get::<map::RawTarget>() {
            Some(map::RawTarget(raw)) => raw.as_bytes(),
            None => head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).as_bytes(),
        };
        write::request_line(text, head.method.as_str().as_bytes(), path);
        debug_assert!(head.headers.contains_key(HOST), "whoever routes a request knows its host");
        write::map_fields(text, &head.headers);
        let protocol = head.headers.get(UPGRADE);
        if let Some(protocol) = protocol {
            write::field(text, b"connection", b"upgrade");
            write::field(text, b"upgrade", protocol.as_bytes());
        }
        let stated = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let framing = match body.size_hint().exact().or(stated) {
            Some(0) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked,
        };
        match framing {
            // Without it some servers wait for a body (RFC 9110 section 8.6).
            Framing::None if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
                write::content_length(text, 0)
            }
            framing => write::framing(text, framing),
        }
        write::end(text);
        let mut connection = self;
        connection.client.begin(head.method == Method::HEAD, protocol.is_some());
        let mut exchange = Exchange {
            connection,
            outbox,
            encoder: Encoder::new(framing),
            upload: (framing != Framing::None).then_some(body),
            deaf: false,
        };
        let mut told = 0;
        let mut tell = |head: &ResponseHead, bytes: &Bytes| {
            if head.status != 100
                && told < MAX_PASSED
                && let Ok(interim) = map::response(head, bytes)
            {
                told += 1;
                tell(interim);
            }
        };
        let bytes = poll_fn(|cx| exchange.poll_head(&mut tell, cx)).await?;
        let client = &exchange.connection.client;
        let answer = map::response(client.head(), &bytes).map_err(|_| Failed::Refused(Refusal::BadStatus))?;
        let left = match client.framing() {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        let (free, freed) = oneshot::channel();
        let mut body = Answer { exchange: Some(exchange), left, free: Some(free) };
        if left == Some(0) {
            body.settle_if_over();
        }
        Ok((answer.map(|()| body), freed))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, U: Body<Data = Bytes> + Unpin> Exchange<IO, U> {
    /// Moves the request on as far as it goes.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Failed> {
        let mut moved = false;
        loop {
            while self.outbox.has_room() {
                let Some(body) = &mut self.upload else { break };
                let frame = match Pin::new(body).poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(frame) => frame.transpose().map_err(|_| Failed::Upload)?,
                };
                let trailers = match frame.map(Frame::into_data) {
                    Some(Ok(data)) => {
                        self.outbox.push(&mut self.encoder, data).map_err(|_| Failed::Upload)?;
                        continue;
                    }
                    Some(Err(frame)) => frame.into_trailers().ok(),
                    None => None,
                };
                let fields =
                    trailers.iter().flatten().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
                self.encoder.finish(fields, &mut self.outbox.text).map_err(|_| Failed::Upload)?;
                self.upload = None;
            }
            if self.deaf {
                return Ok(());
            }
            let was_full = !self.outbox.has_room();
            match self.outbox.poll_flush(cx, &mut self.connection.io, &mut moved) {
                // All that the head promised is out, though the body may be late to say that it is over.
                Poll::Ready(Ok(())) if self.upload.is_none() || self.encoder.framing() == Framing::Length(0) => {
                    self.connection.client.sent();
                    return Ok(());
                }
                Poll::Ready(Ok(())) if was_full => {}
                // It may have answered before it closed its ears; if not, reading says so.
                Poll::Ready(Err(_)) => {
                    self.deaf = true;
                    self.upload = None;
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    fn poll_head(
        &mut self,
        tell: &mut (impl FnMut(&ResponseHead, &Bytes) + ?Sized),
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Failed>> {
        self.poll_upload(cx)?;
        loop {
            let Connection { io, inbox, client } = &mut self.connection;
            let step = client.step(inbox.bytes(), inbox.ended);
            match step.event {
                Event::Head => return Poll::Ready(Ok(inbox.take(step.consumed))),
                Event::Interim => tell(client.head(), &inbox.take(step.consumed)),
                Event::More if step.consumed > 0 => inbox.skip(step.consumed),
                Event::More => ready!(inbox.poll_fill(cx, io, false)).map_err(Failed::Io)?,
                Event::Refused(refusal) => return Poll::Ready(Err(Failed::Refused(refusal))),
                _ => return Poll::Ready(Err(Failed::Closed)),
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Failed>> {
        self.poll_upload(cx)?;
        loop {
            let Connection { io, inbox, client } = &mut self.connection;
            let step = client.step(inbox.bytes(), inbox.ended);
            match step.event {
                Event::Data(range) => {
                    return Poll::Ready(Ok(Some(Frame::data(inbox.take(step.consumed).slice(range)))));
                }
                Event::Trailers(range) => {
                    let trailers = map::trailers(&inbox.take(step.consumed)[range]);
                    return Poll::Ready(Ok(Some(Frame::trailers(trailers))));
                }
                Event::More if step.consumed > 0 => inbox.skip(step.consumed),
                Event::More => ready!(inbox.poll_fill(cx, io, true)).map_err(Failed::Io)?,
                Event::Refused(refusal) => return Poll::Ready(Err(Failed::Refused(refusal))),
                _ => {
                    inbox.skip(step.consumed);
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, U: Body<Data = Bytes> + Unpin> Answer<IO, U> {
    /// The socket, if the Machine switched protocols.
    pub fn into_switched(mut self) -> Option<Switched<IO>> {
        let connection = self.exchange.take()?.connection;
        let switched = connection.client.head().status == 101;
        switched.then(|| Switched::new(connection.io, connection.inbox.into_bytes()))
    }

    /// An answer without a body may be over with its head.
    fn settle_if_over(&mut self) {
        let Some(exchange) = &mut self.exchange else { return };
        let Connection { inbox, client, .. } = &mut exchange.connection;
        if client.step(inbox.bytes(), inbox.ended).event == Event::End {
            self.settle();
        }
    }

    /// The exchange is over: the connection goes back, or ends.
    fn settle(&mut self) {
        if let (Some(exchange), Some(free)) = (self.exchange.take(), self.free.take()) {
            let connection = exchange.connection;
            if connection.client.is_reusable(connection.inbox.bytes().len()) {
                // Nobody waits: then it ends.
                let _ = free.send(connection);
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, U: Body<Data = Bytes> + Unpin> Body for Answer<IO, U> {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        match ready!(exchange.poll_body(cx)) {
            Ok(Some(frame)) => {
                if let (Some(left), Some(data)) = (self.left.as_mut(), frame.data_ref()) {
                    *left -= data.len() as u64;
                    if *left == 0 {
                        self.settle_if_over();
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Ok(None) => {
                self.settle();
                Poll::Ready(None)
            }
            Err(error) => {
                self.exchange = None;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
