//! HTTP/1.1 from clients: a connection is a task that turns what `h1` reads into calls of `Edge::serve`.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::Edge;
use super::record::Record;
use super::serve::Way;
use crate::h1::io::{Ended, serve};
use crate::headers::Client;
use crate::interim::Interims;

pub(super) async fn connection<IO>(edge: &Arc<Edge>, io: IO, client: &Client, way: &Way)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let interims = Interims::default();
    let service = |request, upgrade| edge.serve(request, client, way, upgrade, &interims);
    // Told to stop, the request under way is answered; the connection is not used again.
    let ended = serve(io, &edge.http1, &interims, service, edge.group.stopping()).await;
    if let Ended::Refused(refusal) = &ended {
        edge.metrics.client_refused(refusal.word());
        // What is wrong in a body belongs to its request, which has a line of its own.
        if !refusal.is_of_body() {
            Record::refused(edge, *refusal, client, way);
        }
    }
    tracing::debug!(?ended, "a client's connection ended");
}
