//! Clients' connections: accepted, counted, with TLS or without, and handed to the protocol that they speak.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;

use super::tls::{ALPN_ACME, ALPN_H2, Hello, Manner, Tls};
use super::{Edge, http1, http2, peers};
use crate::headers::Client;

/// Connections of one listener at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 100_000;

/// Accepts until the edge stops. `tls`: every connection begins with a handshake.
pub(super) async fn accept(edge: Arc<Edge>, listener: TcpListener, tls: Option<Arc<Tls>>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = edge.group.stopping() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((mut socket, from)) => {
                let _ = socket.set_nodelay(true);
                let (of, tls) = (edge.clone(), tls.clone());
                edge.group.spawn(async move {
                    of.metrics.connections.inc();
                    match (peers::ends(&mut socket, from, &of.trusted).await, tls) {
                        (Ok(ends), None) => {
                            http1::connection(&of, socket, &Client::new(ends.source.ip()), &of.ways.plain).await
                        }
                        // Apart, so that a plain connection's task does not have the size of one with TLS.
                        (Ok(ends), Some(tls)) => Box::pin(secured(&of, &tls, socket, ends.source.ip())).await,
                        (Err(error), _) => tracing::debug!(%from, %error, "a trusted proxy does not name its client"),
                    }
                    of.metrics.connections.dec();
                    drop(permit);
                });
            }
            Err(error) => godwit_base::http::server::pause_after_accept_error(&error).await,
        }
    }
}

async fn shake(edge: &Arc<Edge>, tls: &Tls, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let hello = Hello::read(socket).await?;
    let manner = match hello.name() {
        Some(name) => https_manner(edge, &name).await,
        None => None,
    };
    tls.finish(hello, manner).await
}

/// How the app of a name wants to be shaken hands with, if it is not as all do.
async fn https_manner(edge: &Arc<Edge>, name: &str) -> Option<Manner> {
    let app = match edge.names.app(name) {
        Some(app) => app,
        None => edge.hostnames.app(name).await?,
    };
    // A name without an app is told so by an answer, not by a late handshake.
    if !edge.routes.has(&app) {
        return None;
    }
    let app = edge.routes.app(&app).await.ok()?;
    let view = app.view();
    view.https_port(edge.ways.secured.port)?.tls_options.as_ref().map(Manner::of_https)
}

async fn secured(edge: &Arc<Edge>, tls: &Tls, socket: TcpStream, client: IpAddr) {
    let shaken = tokio::select! {
        shaken = shake(edge, tls, socket) => shaken,
        // Nothing was asked yet.
        () = edge.left() => return,
    };
    let stream = match shaken {
        Ok(stream) => stream,
        Err(error) => {
            edge.metrics.handshakes_failed.inc();
            tracing::debug!(%error, "a handshake failed");
            return;
        }
    };
    let client = Client::shaken(client, stream.get_ref().1.server_name());
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_ACME) {
        // The authority has seen what it came for, and nothing is said on this connection (RFC 8737 section 3).
        edge.metrics.handshake("acme-tls/1");
    } else if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) {
        edge.metrics.handshake("h2");
        http2::connection(edge, stream, &client).await;
    } else {
        edge.metrics.handshake("http/1.1");
        http1::connection(edge, stream, &client, &edge.ways.secured).await;
    }
}
