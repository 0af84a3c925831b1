//! Raw TCP: one listener for each public port that some app serves without the handler `http`. The store's `ports/` rows
//! say which; listeners come and go with them. With the handler `tls` the client's TLS ends here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use godwit_api::config::ProxyVersion;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::attempt::TunnelAttempt;
use super::find::find;
use super::ports::{Closed, Raw};
use super::record::Trail;
use super::tls::Manner;
use super::view::Entrance;
use super::{Edge, peers};
use crate::handover::Given;
use crate::link::tunnel::copy;
use crate::proxy_protocol::{self, Ends};
use crate::replay::Wanted;

/// Connections of one port at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 20_000;
/// Ports of one edge.
const MAX_PORTS: usize = 1_024;
/// Why a port is not tried.
const LEFT_OUT: &str = "its tcp_ports do not allow it, or it has too many ports";
/// A port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Opens and closes ports as the rows say, until the group stops.
///
/// `told` learns which are open and which could not be opened.
pub(super) async fn follow(
    edge: Arc<Edge>,
    address: IpAddr,
    allowed: Option<Vec<u16>>,
    given: Option<Given>,
    told: watch::Sender<Raw>,
) {
    let mut changes = edge.routes.ports.subscribe();
    let mut open: HashMap<u16, CancellationToken> = HashMap::new();
    loop {
        changes.mark_unchanged();
        let is_allowed = |port: &u16| allowed.as_ref().is_none_or(|allowed| allowed.contains(port));
        let wanted: Vec<u16> = edge.routes.tcp_ports().into_iter().filter(is_allowed).take(MAX_PORTS).collect();
        open.retain(|port, token| {
            let keep = wanted.contains(port);
            if !keep {
                edge.sockets.forget(&format!("tcp {address} {port}"));
                token.cancel();
            }
            keep
        });
        let mut failed = Closed::new();
        let left_out = edge.routes.tcp_ports().into_iter().filter(|port| !wanted.contains(port)).take(MAX_PORTS);
        let left_out: Vec<u16> = left_out.collect();
        for port in wanted {
            if open.contains_key(&port) {
                continue;
            }
            let name = format!("tcp {address} {port}");
            match super::open(given.as_ref(), &edge.sockets, &name, SocketAddr::new(address, port)).await {
                Ok(listener) => {
                    let token = edge.group.token().child_token();
                    edge.group.spawn(accept(edge.clone(), listener, port, token.clone()));
                    open.insert(port, token);
                }
                Err(error) => {
                    let why = godwit_base::telemetry::chain(&error);
                    // Tried again every two seconds; told when it is new.
                    if told.borrow().closed.get(&port) != Some(&why) {
                        tracing::warn!(port, error = why, "cannot open a port");
                    }
                    failed.insert(port, why);
                }
            }
        }
        let again = !failed.is_empty();
        failed.extend(left_out.into_iter().map(|port| (port, LEFT_OUT.to_owned())));
        let now = Raw { open: open.keys().copied().collect(), closed: failed };
        told.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
        if let Some(given) = given.as_ref().filter(|_| edge.routes.is_store_well()) {
            // Until now there may have been fewer rows than there are.
            given.close_rest();
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if again => {}
        }
    }
}

/// An edge without `listen_tcp` opens none, and says so.
pub(super) async fn none(edge: Arc<Edge>, told: watch::Sender<Raw>) {
    let mut changes = edge.routes.ports.subscribe();
    loop {
        changes.mark_unchanged();
        let all = edge.routes.tcp_ports().into_iter().take(MAX_PORTS);
        let all: Closed = all.map(|port| (port, "its configuration has no listen_tcp".to_owned())).collect();
        let now = Raw { closed: all, ..Raw::default() };
        told.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn accept(edge: Arc<Edge>, listener: TcpListener, port: u16, token: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = token.cancelled() => return,
        };
        match accepted {
            Ok((socket, from)) => {
                let _ = socket.set_nodelay(true);
                let of = edge.clone();
                edge.group.spawn(async move {
                    of.metrics.tcp_connections.inc();
                    connection(&of, socket, from, port).await;
                    of.metrics.tcp_connections.dec();
                    drop(permit);
                });
            }
            Err(error) => godwit_base::http::server::pause_after_accept_error(&error).await,
        }
    }
}

async fn connection(edge: &Arc<Edge>, mut client: TcpStream, from: SocketAddr, port: u16) {
    let Ok(ends) = peers::ends(&mut client, from, &edge.trusted).await else { return };
    let Some(name) = edge.routes.app_of_port(port) else { return };
    let Ok(app) = edge.routes.app(&name).await else { return };
    // Before a Machine is looked for: what does not shake hands wakes nobody.
    match manner(&app, port) {
        None => carry(edge, &app, client, ends, port).await,
        Some(manner) => match edge.tls.handshake_of(&manner, client).await {
            Ok(secured) => {
                edge.metrics.handshake("tcp");
                Box::pin(carry(edge, &app, secured, ends, port)).await;
            }
            Err(error) => {
                edge.metrics.handshakes_failed.inc();
                tracing::debug!(%error, port, "a handshake failed");
            }
        },
    }
}

/// How a port shakes hands, if TLS ends here.
fn manner(app: &App, port: u16) -> Option<Manner> {
    let view = app.view();
    let one = view.raw_port(port).filter(|one| one.is_tls())?;
    Some(one.tls_options.as_ref().map(Manner::of).unwrap_or_default())
}

/// A client's stream, with or without TLS around it.
trait Client: AsyncRead + AsyncWrite + Send + Unpin {
    fn socket(&self) -> &TcpStream;
}

impl Client for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Client for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

async fn carry<C: Client>(edge: &Arc<Edge>, app: &Arc<App>, mut client: C, ends: Ends, port: u16) {
    let mut attempt = TunnelAttempt::tcp(port);
    match find(edge, app, &Wanted::default(), Entrance::Tcp(port), &mut Trail::default(), &mut attempt).await {
        Ok((mut machine, _in_flight)) => {
            let header = attempt.announced.map(|version| match version {
                ProxyVersion::V1 => proxy_protocol::v1(ends),
                ProxyVersion::V2 => proxy_protocol::v2(ends),
            });
            let ended = async {
                if let Some(header) = header
                    && machine.write_all(&header).await.is_err()
                {
                    return false;
                }
                let copying = copy(&mut client, &mut machine);
                tokio::pin!(copying);
                tokio::select! {
                    copied = &mut copying => copied.is_ok(),
                    () = edge.group.stopping() => {
                        // A raw connection has no moment at which it could be asked to leave: it gets the drain's time.
                        let bound = *edge.raw_drain.get_or_init(|| super::TCP_DRAIN_TIMEOUT);
                        matches!(tokio::time::timeout(bound, copying).await, Ok(Ok(_)))
                    }
                }
            };
            if !ended.await {
                // What broke must not look like an orderly end: the client gets a reset.
                let _ = client.socket().set_zero_linger();
            }
        }
        Err(turned) => {
            edge.metrics.turned_away(turned.reason());
            tracing::debug!(app = %app.name, port, ?turned, "a raw connection was turned away");
        }
    }
}
