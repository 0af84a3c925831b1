//! The Machines' side: connections to their ports, kept alive within bounds, and one HTTP/1.1 exchange on each.
//!
//! `h1` frames the messages. This file must not know limits of Machines, or edges.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_base::dial::{Addresses, Answered, Family, dial as dial_either};
use h2::client::SendRequest;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::machines::Entry;
use crate::h1;
use crate::h1::io::Answer;
use crate::headers::is_idempotent;
use crate::link::body::StreamBody;

/// Connecting to a Machine of this host.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Common servers close an idle connection after 5 s; to use it at that moment is a race that nobody wins.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// What cannot be repeated takes only a connection that was in use a moment ago.
const IDLE_TIMEOUT_UNSAFE: Duration = Duration::from_secs(1);
/// Idle connections of one Machine: never more than it had requests at once a moment ago. With fewer than that, a burst would
/// open what the one before it has closed, and each that is closed here holds its port for a minute.
const MAX_IDLE: usize = 1_024;
/// A connection opened to see whether the port accepts is kept for the first request.
const SPARE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to a port, between two exchanges.
type Free = h1::io::Connection<TcpStream>;
/// The body of an answer; the connection is inside it until it was read.
pub type AnswerBody = Answer<TcpStream, RequestBody>;

/// What goes to the Machine.
pub enum RequestBody {
    Empty,
    Stream(StreamBody),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

struct Idle {
    port: u16,
    connection: Free,
    since: Instant,
}

#[derive(Default)]
struct Inner {
    /// Counts the Machine's lives: a connection of an earlier one never comes back.
    life: u64,
    idle: Vec<Idle>,
    spare: Option<(u16, TcpStream, Instant)>,
    /// By port, of Machines that speak HTTP/2: never more than they have services.
    multiplexed: Vec<(u16, SendRequest<Bytes>)>,
    answered: Answered,
}

/// The idle connections of one Machine.
#[derive(Default)]
pub struct Pools {
    inner: Mutex<Inner>,
}

impl Pools {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Machine goes down, or came up anew.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.idle.clear();
        inner.spare = None;
        inner.multiplexed.clear();
        inner.answered.forget();
    }

    /// The connection of a port that speaks HTTP/2, and the life that a new one would belong to.
    pub fn multiplexed(&self, port: u16) -> (u64, Option<SendRequest<Bytes>>) {
        let inner = self.lock();
        let standing = inner.multiplexed.iter().find(|(of, _)| *of == port);
        (inner.life, standing.map(|(_, sender)| sender.clone()))
    }

    pub fn set_multiplexed(&self, life: u64, port: u16, sender: SendRequest<Bytes>) {
        let mut inner = self.lock();
        if inner.life == life {
            inner.multiplexed.retain(|(of, _)| *of != port);
            inner.multiplexed.push((port, sender));
        }
    }

    /// Closes what was idle for too long.
    pub fn sweep(&self) {
        let mut inner = self.lock();
        inner.idle.retain_mut(|idle| idle.since.elapsed() < IDLE_TIMEOUT && idle.connection.is_usable());
        if inner.spare.as_ref().is_some_and(|(_, _, since)| since.elapsed() >= SPARE_TIMEOUT) {
            inner.spare = None;
        }
    }

    /// The address that a port was reached at last, and the life that it was in.
    fn answered(&self, port: u16) -> (u64, Option<Family>) {
        let inner = self.lock();
        (inner.life, inner.answered.last(port))
    }

    fn note_answered(&self, life: u64, port: u16, family: Family) {
        let mut inner = self.lock();
        if inner.life == life {
            inner.answered.note(port, family);
        }
    }

    fn take(&self, port: u16, max_age: Duration) -> (u64, Option<Free>) {
        let mut inner = self.lock();
        while let Some(index) = inner.idle.iter().rposition(|idle| idle.port == port) {
            let mut idle = inner.idle.swap_remove(index);
            if idle.since.elapsed() < max_age && idle.connection.is_usable() {
                return (inner.life, Some(idle.connection));
            }
        }
        (inner.life, None)
    }

    fn put(&self, life: u64, port: u16, connection: Free) {
        let mut inner = self.lock();
        if inner.life == life && inner.idle.len() < MAX_IDLE {
            inner.idle.push(Idle { port, connection, since: Instant::now() });
        }
    }

    fn take_spare(&self, port: u16) -> Option<TcpStream> {
        let mut inner = self.lock();
        let (spare_port, stream, since) = inner.spare.take()?;
        // Silent and open: reading would block. Anything else is not fresh.
        let fresh = spare_port == port && since.elapsed() < SPARE_TIMEOUT;
        let silent = matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        (fresh && silent).then_some(stream)
    }
}

/// Opens a connection to a port of a Machine.
pub async fn dial(entry: &Entry, to: Addresses, port: u16) -> io::Result<TcpStream> {
    if let Some(spare) = entry.pools.take_spare(port) {
        return Ok(spare);
    }
    connect(entry, to, port, DIAL_TIMEOUT).await
}

async fn connect(entry: &Entry, to: Addresses, port: u16, bound: Duration) -> io::Result<TcpStream> {
    let (life, last) = entry.pools.answered(port);
    let (stream, family) = dial_either(to, port, last, bound).await.map_err(io::Error::other)?;
    if last != Some(family) {
        entry.pools.note_answered(life, port, family);
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Looks whether the port accepts; the connection is kept for the first request.
pub async fn try_dial(entry: &Entry, port: u16, deadline: tokio::time::Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    let stream = connect(entry, entry.addresses(), port, left.min(DIAL_TIMEOUT)).await?;
    entry.pools.lock().spare = Some((port, stream, Instant::now()));
    Ok(())
}

/// A connection that is about to carry one exchange.
pub struct Connection {
    free: Free,
    place: Place,
    reused: bool,
}

/// Where a connection belongs when it is idle.
#[derive(Clone, Copy)]
pub struct Place {
    life: u64,
    port: u16,
}

/// An answer that has begun.
pub struct Begun {
    pub answer: Response<AnswerBody>,
    place: Place,
    freed: oneshot::Receiver<Free>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("no connection to the port")]
    Dial(#[source] io::Error),
    #[error("no answer to the request")]
    Exchange(#[source] h1::io::Failed),
}

impl Connection {
    /// An idle connection, or a new one.
    pub async fn open(entry: &Entry, to: Addresses, port: u16, method: &Method) -> Result<Self, Failed> {
        let max_age = if is_idempotent(method) { IDLE_TIMEOUT } else { IDLE_TIMEOUT_UNSAFE };
        match entry.pools.take(port, max_age) {
            (life, Some(free)) => Ok(Self { free, place: Place { life, port }, reused: true }),
            (life, None) => Self::fresh(entry, to, Place { life, port }).await,
        }
    }

    async fn fresh(entry: &Entry, to: Addresses, place: Place) -> Result<Self, Failed> {
        let stream = dial(entry, to, place.port).await.map_err(Failed::Dial)?;
        Ok(Self { free: Free::new(stream, h1::Limits::default()), place, reused: false })
    }

    /// Sends the request and waits for the answer's head; `tell` gets what comes before it. A connection from the pool that turns out to be closed is
    /// replaced once, if nothing of the request can have been acted on.
    pub async fn exchange(
        self,
        entry: &Entry,
        to: Addresses,
        request: Request<RequestBody>,
        tell: &mut (dyn FnMut(Response<()>) + Send),
    ) -> Result<Begun, Failed> {
        let again = if self.reused { repeatable(&request) } else { None };
        match (self.send(request, tell).await, again) {
            (Err((h1::io::Failed::Closed | h1::io::Failed::Io(_), place)), Some(again)) => {
                let fresh = Self::fresh(entry, to, place).await?;
                fresh.send(again, tell).await.map_err(|(failed, _)| Failed::Exchange(failed))
            }
            (sent, _) => sent.map_err(|(failed, _)| Failed::Exchange(failed)),
        }
    }

    async fn send(
        self,
        request: Request<RequestBody>,
        tell: &mut (dyn FnMut(Response<()>) + Send),
    ) -> Result<Begun, (h1::io::Failed, Place)> {
        let place = self.place;
        match self.free.send(request, tell).await {
            Ok((answer, freed)) => Ok(Begun { answer, place, freed }),
            Err(failed) => Err((failed, place)),
        }
    }
}

/// Takes a connection back once its answer was read.
pub struct Settling {
    place: Place,
    freed: oneshot::Receiver<Free>,
}

impl Begun {
    pub fn split(self) -> (Response<AnswerBody>, Settling) {
        (self.answer, Settling { place: self.place, freed: self.freed })
    }
}

impl Settling {
    /// The exchange is over: the connection goes back, if it is worth anything.
    pub fn settle(mut self, entry: &Entry) {
        // It came with the end of the answer, or never comes.
        if let Ok(free) = self.freed.try_recv() {
            entry.pools.put(self.place.life, self.place.port, free);
        }
    }
}

/// A copy to send again, of a request that may be sent twice and has no body.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !matches!(request.body(), RequestBody::Empty) || !is_idempotent(request.method()) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}
