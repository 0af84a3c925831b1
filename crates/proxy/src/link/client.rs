//! The edge's end: one connection to one door, made when first wanted, probed while it stands, made again with
//! backoff. Whoever asks while it is down gets an error at once and may go elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_base::backoff::Backoff;
use h2::Reason;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::net::TcpStream;

use super::batch::batched;
use super::probe::probe;
use super::{
    CONNECTION_WINDOW_BYTES, HELLO_PATH, MAX_FRAME_BYTES, MAX_HEAD_BYTES, MAX_RESETS, SEND_BUFFER_BYTES,
    STREAM_WINDOW_BYTES,
};

/// Connecting and naming oneself must be done by then.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// What became of a request whose stream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The door certainly did not act on it.
    NotSent,
    /// Nobody knows.
    Unknown,
}

impl Lost {
    /// What an error of a stream, before its answer came, says.
    pub fn of(error: &h2::Error) -> Self {
        if error.reason() == Some(Reason::REFUSED_STREAM) { Self::NotSent } else { Self::Unknown }
    }
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("the door at {addr} is away: {why}")]
pub struct Away {
    addr: Arc<str>,
    why: Arc<str>,
}

struct Up {
    sender: SendRequest<Bytes>,
    /// Tells this connection from the ones before.
    number: u64,
}

struct Dialer {
    backoff: Backoff,
    not_before: Option<Instant>,
    why: Arc<str>,
    connections: u64,
}

/// A door, by its address. Shared by all requests that go there.
pub struct Link {
    addr: Arc<str>,
    bearer: http::HeaderValue,
    up: RwLock<Option<Up>>,
    dialer: tokio::sync::Mutex<Dialer>,
    /// Smoothed over the probes; 0 before the first.
    rtt_us: AtomicU64,
}

impl Link {
    /// `bearer` is the whole value of the Authorization header.
    pub fn new(addr: &str, bearer: http::HeaderValue) -> Arc<Self> {
        let dialer = Dialer {
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_MAX),
            not_before: None,
            why: "not tried yet".into(),
            connections: 0,
        };
        Arc::new(Self {
            addr: addr.into(),
            bearer,
            up: RwLock::new(None),
            dialer: tokio::sync::Mutex::new(dialer),
            rtt_us: AtomicU64::new(0),
        })
    }

    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Round trip to the door, smoothed, once it was reached.
    pub fn rtt(&self) -> Option<Duration> {
        match self.rtt_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    fn note_rtt(&self, rtt: Duration) {
        let us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.rtt_us.load(Ordering::Relaxed) {
            // A shorter way cannot be measured by mistake; a longer one may be a moment's load (the gain is RFC 6298's).
            known if known > 0 && us > known => known - known / 8 + us / 8,
            _ => us,
        };
        self.rtt_us.store(smoothed, Ordering::Relaxed);
    }

    pub fn is_up(&self) -> bool {
        self.up.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// A sender that is ready for a request. Connects if need be; many who ask share one attempt.
    pub async fn sender(self: &Arc<Self>) -> Result<SendRequest<Bytes>, Away> {
        if let Some(sender) = self.current() {
            match sender.ready().await {
                Ok(sender) => return Ok(sender),
                Err(_) => self.drop_current(),
            }
        }
        // Apart: a request's task should not have the size of what happens once a connection.
        let sender = Box::pin(self.connect()).await?;
        sender.ready().await.map_err(|error| self.away(error.to_string()))
    }

    fn current(&self) -> Option<SendRequest<Bytes>> {
        self.up.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|up| up.sender.clone())
    }

    /// A connection that takes no more requests (it is going away, or is dead) is not handed out again. Streams that
    /// it still carries end by themselves.
    fn drop_current(&self) {
        *self.up.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn connect(self: &Arc<Self>) -> Result<SendRequest<Bytes>, Away> {
        let mut dialer = self.dialer.lock().await;
        if let Some(sender) = self.current() {
            return Ok(sender);
        }
        if dialer.not_before.is_some_and(|until| Instant::now() < until) {
            return Err(self.away(dialer.why.to_string()));
        }
        dialer.connections += 1;
        let number = dialer.connections;
        let result = match tokio::time::timeout(CONNECT_TIMEOUT, self.dial(number)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no connection within {} ms", CONNECT_TIMEOUT.as_millis())),
        };
        match result {
            Ok(sender) => {
                dialer.backoff.reset();
                dialer.not_before = None;
                Ok(sender)
            }
            Err(why) => {
                dialer.not_before = Some(Instant::now() + dialer.backoff.next_wait());
                dialer.why = why.as_str().into();
                tracing::debug!(door = %self.addr, why, "cannot connect to a door");
                Err(self.away(why))
            }
        }
    }

    async fn dial(self: &Arc<Self>, number: u64) -> Result<SendRequest<Bytes>, String> {
        let socket = transport(&self.addr).await.map_err(|error| error.to_string())?;
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(MAX_FRAME_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_header_list_size(MAX_HEAD_BYTES)
            .max_concurrent_reset_streams(MAX_RESETS)
            .enable_push(false)
            .handshake::<_, Bytes>(socket)
            .await
            .map_err(|error| error.to_string())?;
        let ping = connection.ping_pong();
        let link = self.clone();
        let driver = tokio::spawn(async move {
            // Dropping the connection fails every stream on it, which is what a dead peer calls for.
            let why = tokio::select! {
                ended = batched(connection) => ended.err().map(|error| error.to_string()).unwrap_or_else(|| "closed".into()),
                () = probe(ping, |rtt| link.note_rtt(rtt)) => "no answer to a probe".into(),
            };
            link.forget(number, &why);
        });
        if let Err(why) = self.hello(sender.clone()).await {
            driver.abort();
            return Err(why);
        }
        *self.up.write().unwrap_or_else(PoisonError::into_inner) = Some(Up { sender: sender.clone(), number });
        if driver.is_finished() {
            // It ended before it was published and so could not withdraw it.
            self.forget(number, "closed");
        }
        Ok(sender)
    }

    async fn hello(&self, sender: SendRequest<Bytes>) -> Result<(), String> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("http://door{HELLO_PATH}").parse().map_err(|_| "bad hello path".to_owned())?;
        request.headers_mut().insert(http::header::AUTHORIZATION, self.bearer.clone());
        let mut sender = sender.ready().await.map_err(|error| error.to_string())?;
        let (answer, _) = sender.send_request(request, true).map_err(|error| error.to_string())?;
        let answer = answer.await.map_err(|error| error.to_string())?;
        if answer.status() == StatusCode::NO_CONTENT {
            return Ok(());
        }
        Err(format!("it does not know this edge ({})", answer.status()))
    }

    fn forget(&self, number: u64, why: &str) {
        let mut up = self.up.write().unwrap_or_else(PoisonError::into_inner);
        if up.as_ref().is_some_and(|up| up.number == number) {
            tracing::debug!(door = %self.addr, why, "connection to a door ended");
            *up = None;
        }
    }

    fn away(&self, why: impl Into<Arc<str>>) -> Away {
        Away { addr: self.addr.clone(), why: why.into() }
    }
}

/// The seam for TLS: whatever this returns carries the HTTP/2 connection.
async fn transport(addr: &str) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
