//! Calls to agents: the host API, with a deadline each, and errors that say which host did not answer.

use std::time::Duration;

use godwit_api::host::{Held, PlaceReply};
use godwit_api::machine::Acknowledged;
use godwit_api::row::{MachineRow, Placement};
use godwit_api::ticket::{CancelAnswer, SignedTicket};
use godwit_api::{ApiError, HostId, MachineId, Method};
use godwit_base::http::client::{CallError, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::Control;
use crate::view::Reach;
use crate::world::World;

/// A placement is journaled by then, or asked for again.
pub const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// A start, stop or signal is journaled by then.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// Added to what a call itself is told to wait (a restart's stop, a command).
pub const CALL_MARGIN: Duration = Duration::from_secs(20);
/// A host that is told to pull answers by then, or is left to its own pace.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);
/// A cancel is answered by then, or asked again.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);
/// When a caller may try again after a host was not reached.
pub const RETRY_AFTER_S: u32 = 2;

impl Control {
    pub(crate) fn host_client(&self, host: &HostId) -> Result<Client, ApiError> {
        let row = self.world().hosts.get(host).cloned();
        let row = row.ok_or_else(|| ApiError::unavailable(format!("host {host} is gone"), RETRY_AFTER_S))?;
        Ok(self.hosts.of(&row))
    }

    /// Tells placement who is unreachable now. Liveness is no row, so the picture does not learn it by itself.
    pub(crate) fn mark_lost(&self, world: &mut World) {
        let World { hosts, snapshot, .. } = world;
        for id in hosts.keys() {
            snapshot.lost(id, self.liveness.reach(id) == Reach::Unreachable);
        }
    }

    /// Hands a placement to its host. `Err` means that the outcome is unknown.
    pub(crate) async fn put_placement(&self, placement: &Placement) -> Result<PlaceReply, CallError> {
        let client = self.host_client(&placement.host).map_err(CallError::Answered)?;
        let path = format!("/host/v1/placements/{}", placement.machine);
        let reply = client.json(Method::Put, &path, Some(placement), PLACE_TIMEOUT).await;
        if reply.is_ok() {
            self.liveness.agent(&placement.host);
        }
        reply
    }

    /// Tells a host to pull now, without waiting. It would by itself, later.
    pub(crate) fn tell_to_pull(&self, host: &HostId) {
        let Ok(client) = self.host_client(host) else { return };
        let host = host.clone();
        tokio::spawn(async move {
            let hint = client.json::<(), Acknowledged>(Method::Post, "/host/v1/pull", None, PULL_TIMEOUT);
            if let Err(error) = hint.await {
                tracing::debug!(%host, %error, "a host was not told to pull");
            }
        });
    }

    /// Asks the source of a move to call it off.
    pub(crate) async fn ask_cancel(&self, source: &HostId, ticket: &SignedTicket) -> Result<CancelAnswer, CallError> {
        let client = self.host_client(source).map_err(CallError::Answered)?;
        client.json(Method::Post, "/host/v1/moves/cancel", Some(&ticket.shown()), CANCEL_TIMEOUT).await
    }

    /// Asks a host what it holds of a Machine or a volume, whether a row names it or not.
    pub(crate) async fn ask_held(&self, host: &HostId, id: &MachineId) -> Result<Held, ApiError> {
        let (client, path) = (self.host_client(host)?, format!("/host/v1/machines/{id}/held"));
        let answer = client.json::<(), Held>(Method::Get, &path, None, COMMAND_TIMEOUT).await;
        answer.map_err(|error| match error {
            CallError::Answered(error) if error.code == 404 => error,
            error => {
                tracing::warn!(%host, error = godwit_base::telemetry::chain(&error), "a host did not say what it holds");
                ApiError::unavailable(format!("host {host} does not say what it holds; try again"), RETRY_AFTER_S)
            }
        })
    }

    /// Asks the host that holds a Machine. `path` follows `/host/v1/machines/{id}`.
    pub(crate) async fn ask_host<Q: Serialize, A: DeserializeOwned>(
        &self,
        row: &MachineRow,
        method: Method,
        path: &str,
        request: Option<&Q>,
        timeout: Duration,
    ) -> Result<A, ApiError> {
        let client = self.host_client(&row.host)?;
        let path = format!("/host/v1/machines/{}{path}", row.id);
        let answer = client.json(method, &path, request, timeout).await;
        answer.map_err(|error| host_error(row, error))
    }
}

/// What a caller is told when a Machine's host did not do what was asked.
pub(crate) fn host_error(row: &MachineRow, error: CallError) -> ApiError {
    match error {
        // Written moments ago: the host has not taken it in yet.
        CallError::Answered(error) if error.code == 404 => ApiError::unavailable(
            format!("host {} does not hold Machine {} yet; try again", row.host, row.id),
            RETRY_AFTER_S,
        ),
        // The host refuses control's key: nothing that the caller could mend.
        CallError::Answered(error) if matches!(error.code, 401 | 403) => {
            tracing::error!(host = %row.host, %error, "a host does not know control");
            ApiError::unavailable(format!("host {} does not accept control's key", row.host), RETRY_AFTER_S)
        }
        CallError::Answered(error) => error,
        error => {
            tracing::warn!(host = %row.host, error = godwit_base::telemetry::chain(&error), "a host did not answer");
            ApiError::unavailable(
                format!("host {} of Machine {} is not reached; try again", row.host, row.id),
                RETRY_AFTER_S,
            )
        }
    }
}
