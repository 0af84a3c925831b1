//! HTTP/1.1 from clients: each connection is a task that turns what `h1` reads into calls of `Edge::serve`.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Edge;
use crate::h1::io::{Ended, serve};

/// Connections of one listener at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 100_000;

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
    let service = |request, upgrade| edge.serve(request, client, upgrade);
    // Told to stop, the request under way is answered; the connection is not used again.
    let ended = serve(socket, &edge.http1, service, edge.group.stopping()).await;
    if let Ended::Refused(refusal) = &ended {
        edge.metrics.client_refused(refusal.word());
    }
    tracing::debug!(?ended, "a client's connection ended");
}
