//! The NBD server's sockets and threads: accepts, greets, starts TLS, and gives each connection a thread of a bounded
//! number. It must not know what is served.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::export::{Exports, Peer};
use super::negotiate::{Negotiation, Outcome, TlsState, greet};
use super::stream::{Socket, Stream};
use super::{NbdError, NbdResult, transmit};
use crate::device::lock;

/// A client that does not get through the options within this is dropped; each of its reads must end within it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A reply that a client does not take within this ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub enum Security {
    /// For unix sockets, and loopback in tests.
    Plain,
    /// TLS with a client certificate, or nothing.
    Tls(Arc<ServerConfig>),
}

pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn accept(&self) -> std::io::Result<Socket> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(socket, _)| Socket::Tcp(socket)),
            Self::Unix(listener) => listener.accept().map(|(socket, _)| Socket::Unix(socket)),
        }
    }
    fn fd(&self) -> i32 {
        match self {
            Self::Tcp(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

struct Shared {
    security: Security,
    exports: Arc<dyn Exports>,
    max_connections: usize,
    stopping: AtomicBool,
    connections: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
    refused: AtomicU64,
}

struct Open {
    socket: Socket,
    thread: Option<JoinHandle<()>>,
}

pub struct NbdServer {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    accepting: Option<JoinHandle<()>>,
}

impl NbdServer {
    /// Serves until `stop` or drop.
    pub fn start(
        listener: Listener,
        security: Security,
        exports: Arc<dyn Exports>,
        max_connections: usize,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            security,
            exports,
            max_connections,
            stopping: AtomicBool::new(false),
            connections: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let listener = Arc::new(listener);
        let (accept_shared, accept_listener) = (Arc::clone(&shared), Arc::clone(&listener));
        let accepting = std::thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept(&accept_shared, &accept_listener))?;
        Ok(Self { shared, listener, accepting: Some(accepting) })
    }

    /// Where it listens, if by TCP.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match &*self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }
    /// Connections refused because there were too many.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    /// Cuts every connection; returns when no thread of the server is left.
    pub fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // SAFETY: a plain system call on a descriptor that `listener` holds; it makes the blocked accept return.
        unsafe { libc::shutdown(self.listener.fd(), libc::SHUT_RDWR) };
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let open: Vec<Open> = lock(&self.shared.connections).drain().map(|(_, open)| open).collect();
        open.iter().for_each(|open| open.socket.shut());
        for open in open {
            if let Some(thread) = open.thread {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// After a failed accept (no descriptors left, say) the next one waits a moment, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    loop {
        let socket = match listener.accept() {
            _ if shared.stopping.load(Ordering::SeqCst) => return,
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if let Err(error) = start(shared, socket) {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "a connection was refused");
        }
    }
}

fn start(shared: &Arc<Shared>, socket: Socket) -> std::io::Result<()> {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let mut connections = lock(&shared.connections);
    if connections.len() >= shared.max_connections {
        return Err(std::io::Error::other("too many connections"));
    }
    let open = Open { socket: socket.try_clone()?, thread: None };
    let body_shared = Arc::clone(shared);
    // The lock is held until the entry stands, so the thread's own removal comes after it.
    let thread = std::thread::Builder::new().name(format!("nbd-{id}")).spawn(move || {
        if let Err(error) = connection(&body_shared, socket) {
            tracing::debug!(%error, "an NBD connection ended");
        }
        lock(&body_shared.connections).remove(&id);
    })?;
    connections.insert(id, Open { thread: Some(thread), ..open });
    Ok(())
}

fn connection(shared: &Shared, mut socket: Socket) -> NbdResult<()> {
    socket.set_timeouts(Some(HANDSHAKE), Some(HANDSHAKE))?;
    let no_zeroes = greet(&mut socket)?;
    let exports = shared.exports.as_ref();
    let mut negotiation = Negotiation { exports, peer: Peer::default(), tls: TlsState::Off, no_zeroes };
    let mut stream = Stream::Plain(socket);
    if let Security::Tls(config) = &shared.security {
        negotiation.tls = TlsState::Needed;
        match negotiation.run(&mut stream)? {
            Outcome::StartTls => {}
            _ => return Ok(()),
        }
        stream = start_tls(stream, Arc::clone(config))?;
        negotiation.peer = peer(&stream);
        negotiation.tls = TlsState::Active;
    }
    let chosen = match negotiation.run(&mut stream)? {
        Outcome::Go(chosen) => chosen,
        _ => return Ok(()),
    };
    // A client may be silent for as long as it likes.
    stream.socket().set_timeouts(None, Some(WRITE_TIMEOUT))?;
    transmit::serve(&mut stream, &chosen)
}

fn start_tls(stream: Stream, config: Arc<ServerConfig>) -> NbdResult<Stream> {
    let Stream::Plain(mut socket) = stream else {
        return Err(NbdError::Protocol("TLS within TLS"));
    };
    let mut connection = ServerConnection::new(config).map_err(|error| NbdError::Tls(error.to_string()))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(Stream::Server(Box::new(StreamOwned::new(connection, socket))))
}

fn peer(stream: &Stream) -> Peer {
    let certificate = match stream {
        Stream::Server(stream) => stream.conn.peer_certificates().and_then(|chain| chain.first()),
        _ => None,
    };
    Peer { certificate: certificate.map(|certificate| crate::source::hash(certificate)) }
}
