//! Streams into a Machine, passed on to its host and back: sessions (a command, a copy of files) and connections to a
//! port. Control checks who asks and reads nothing of what passes; its own end ends them all.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use godwit_api::host::ConnectQuery;
use godwit_api::{ApiError, AppName, MachineId, session};
use godwit_base::Verb;
use godwit_base::http::Failure;
use godwit_base::http::upgrade::{asked, granted, relay};
use http::HeaderMap;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use super::lease;
use crate::call::query;
use crate::control::Control;
use crate::hosts::{COMMAND_TIMEOUT, host_error};

/// Streams that pass through control at once.
const MAX_STREAMS: usize = 4096;
static STREAMS: Semaphore = Semaphore::const_new(MAX_STREAMS);

pub async fn session(
    State(control): State<Arc<Control>>,
    Path(which): Path<(String, String)>,
    request: Request,
) -> Response {
    open(&control, &which, request, session::PROTOCOL, "session")
        .await
        .unwrap_or_else(|error| Failure(error).into_response())
}

pub async fn connect(
    State(control): State<Arc<Control>>,
    Path(which): Path<(String, String)>,
    request: Request,
) -> Response {
    let wanted: Result<ConnectQuery, ApiError> = query(request.uri());
    let opened = match wanted {
        Ok(wanted) => open(&control, &which, request, "tcp", &format!("connect?port={}", wanted.port)).await,
        Err(error) => Err(error),
    };
    opened.unwrap_or_else(|error| Failure(error).into_response())
}

/// `path` follows the Machine's own in the host API.
async fn open(
    control: &Control,
    (app, machine): &(String, String),
    mut request: Request,
    protocol: &'static str,
    path: &str,
) -> Result<Response, ApiError> {
    control.allow(request.headers(), Verb::Operate, "")?;
    let not_found = |error: godwit_api::ids::InvalidId| ApiError::not_found(error.to_string());
    let app: AppName = app.parse().map_err(not_found)?;
    let machine: MachineId = machine.parse().map_err(not_found)?;
    let row = control.living_row(&app, &machine)?;
    lease::check(control, &row.id, request.headers())?;
    let upgrade = asked(&mut request, protocol)?;
    let busy = |_| ApiError::unavailable(format!("control carries {MAX_STREAMS} streams already; try again"), 5);
    let slot = STREAMS.try_acquire().map_err(busy)?;
    let path = format!("/host/v1/machines/{machine}/{path}");
    let host = control.host_client(&row.host)?;
    let inside = host.upgrade(&path, protocol, &HeaderMap::new(), COMMAND_TIMEOUT).await;
    let inside = inside.map_err(|error| host_error(&row, error))?;
    tokio::spawn(async move {
        let _slot = slot;
        let Ok(client) = upgrade.await else { return };
        if let Err(error) = relay(TokioIo::new(client), inside).await {
            tracing::debug!(%machine, %error, "a stream broke");
        }
    });
    Ok(granted(protocol))
}
