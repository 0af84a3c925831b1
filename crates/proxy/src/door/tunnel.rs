//! Upgrades and raw TCP: a stream of bytes between an edge and a port of a Machine, with half-close.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};

use super::Door;
use super::hint;
use super::machines::{Admitted, Refused};
use super::serve;
use super::upstream;
use crate::link::tunnel::{Tunnel, copy};
use godwit_api::door::Refusal;

pub(super) async fn serve(
    door: &Arc<Door>,
    admitted: Admitted,
    receive: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut machine = match upstream::dial(&admitted.entry, admitted.to, admitted.port).await {
        Ok(machine) => machine,
        Err(error) => {
            tracing::debug!(machine = %admitted.entry.id, %error, "cannot reach a port");
            let epoch = Some(admitted.entry.view().epoch);
            let hint = hint::for_refusal(door, &admitted.entry, admitted.port).await;
            let refused = Refused { refusal: Refusal::Unreachable { hint }, epoch, load: admitted.load };
            return serve::refuse(door, &refused, &mut respond);
        }
    };
    door.metrics.tunnels.inc();
    let send = respond.send_response(serve::accepted(admitted.load), false)?;
    let mut edge = Tunnel::new(send, receive);
    let cut = admitted.cut.clone();
    let whole = tokio::select! {
        copied = copy(&mut edge, &mut machine) => copied.is_ok(),
        () = cut.cancelled() => false,
    };
    if !whole {
        // One side broke: so does the other, rather than to end as if all were said.
        respond.send_reset(Reason::CANCEL);
        let _ = machine.set_zero_linger();
    }
    Ok(())
}
