//! HTTP/1.1 from clients. hyper frames the messages; this file is the seam where framing of our own comes in: it
//! turns a connection into calls of `Edge::serve`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Edge;

/// A head must be complete, and an idle connection must ask again, within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections of one listener at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 100_000;
/// Headers of one request.
const MAX_HEADERS: usize = 200;
/// Bytes of one head.
const MAX_HEAD_BYTES: usize = 64 << 10;

pub(super) async fn accept(edge: Arc<Edge>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = edge.group.stopping() => return,
        };
        match accepted {
            Ok((socket, from)) => {
                let _ = socket.set_nodelay(true);
                let of = edge.clone();
                edge.group.spawn(async move {
                    of.metrics.connections.inc();
                    connection(&of, socket, from).await;
                    of.metrics.connections.dec();
                    drop(permit);
                });
            }
            Err(error) => super::pause_after_accept_error(&error).await,
        }
    }
}

async fn connection(edge: &Arc<Edge>, socket: TcpStream, from: SocketAddr) {
    let client = from.ip();
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let upgrade = request.headers().contains_key(http::header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let edge = edge.clone();
        async move { Ok::<_, Infallible>(edge.serve(request, client, upgrade).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::pin!(connection);
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a client's connection ended");
                }
                return;
            }
            () = edge.group.stopping(), if !leaving => {
                leaving = true;
                // The request under way is answered; the connection is not used again.
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
