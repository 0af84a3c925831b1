//! A Machine's output, streamed through from its host.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use godwit_api::event::MachineEvent;
use godwit_api::host::{LogLine, LogQuery, PLATFORM_STREAM};
use godwit_api::{ApiError, AppName, MachineId};
use godwit_base::Verb;
use godwit_base::clock::rfc3339;
use godwit_base::http::Failure;
use godwit_base::http::client::query_string;

use crate::call::query;
use crate::control::{Control, get_request, streamed};
use crate::hosts::{COMMAND_TIMEOUT, host_error};

pub async fn stream(
    State(control): State<Arc<Control>>,
    Path((app, machine)): Path<(String, String)>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    match open(&control, &app, &machine, &headers, &uri).await {
        Ok(response) => response,
        Err(error) => Failure(error).into_response(),
    }
}

async fn open(
    control: &Control,
    app: &str,
    machine: &str,
    headers: &HeaderMap,
    uri: &Uri,
) -> Result<Response, ApiError> {
    control.allow(headers, Verb::Operate, "")?;
    let not_found = |error: godwit_api::ids::InvalidId| ApiError::not_found(error.to_string());
    let app: AppName = app.parse().map_err(not_found)?;
    let machine: MachineId = machine.parse().map_err(not_found)?;
    let wanted: LogQuery = query(uri)?;
    let row = control.machine_row(&app, &machine)?;
    if row.destroyed_at_ms.is_some() {
        // What it wrote went with it; what was remarked of it is kept with its row.
        return Ok(remarks(&row.events));
    }
    let path = format!("/host/v1/machines/{machine}/logs?{}", query_string(&wanted));
    let client = control.host_client(&row.host)?;
    // The head has a deadline; the lines come as long as both sides want them.
    let response = client.send(&path, get_request(), COMMAND_TIMEOUT).await;
    Ok(streamed(response.map_err(|error| host_error(&row, error))?))
}

/// Events as the lines of a log, oldest first.
fn remarks(events: &[MachineEvent]) -> Response {
    let mut text = String::new();
    for event in events.iter().rev() {
        let line = LogLine {
            timestamp: rfc3339(event.timestamp),
            stream: PLATFORM_STREAM.into(),
            message: event.remark(),
            partial: false,
        };
        // Plain data always becomes JSON.
        text.push_str(&serde_json::to_string(&line).unwrap_or_default());
        text.push('\n');
    }
    ([("content-type", "application/x-ndjson")], text).into_response()
}
