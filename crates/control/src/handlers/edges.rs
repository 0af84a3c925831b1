//! What edges tell of themselves: kept in memory, written nowhere.

use std::time::Instant;

use godwit_api::ApiError;
use godwit_api::endpoints::EdgesTellPorts;
use godwit_api::machine::Acknowledged;
use godwit_base::Peer;

use crate::call::Call;

pub async fn ports(call: Call<EdgesTellPorts>) -> Result<Acknowledged, ApiError> {
    let Peer::Edge(edge) = &call.peer else {
        return Err(ApiError::forbidden("only an edge tells of its ports"));
    };
    call.control.edge_ports.hear(edge.clone(), call.body, Instant::now());
    Ok(Acknowledged { ok: true })
}
