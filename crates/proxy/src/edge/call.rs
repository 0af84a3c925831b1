//! The edge's own two calls to a door: start a Machine, stop it if idle.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use godwit_api::door::{StartCall, StartReply, StopIfIdle, StopReply, start_path, stop_if_idle_path};
use godwit_api::ids::MachineId;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::link::body::StreamBody;
use crate::link::client::Link;
use crate::link::send::send_data;

/// A door answers a call a little later than the time that it was given for it.
const GRACE: Duration = Duration::from_secs(2);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_ANSWER_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Away(#[from] crate::link::client::Away),
    #[error("the connection to the door broke")]
    Broken,
    #[error("the door did not answer in time")]
    Timeout,
    #[error("the door answered {0}")]
    Answered(StatusCode),
    #[error("the door's answer is not understood")]
    Garbled,
}

pub async fn start(
    link: &Arc<Link>,
    machine: &MachineId,
    request: &StartCall,
    timeout: Duration,
) -> Result<StartReply, CallError> {
    call(link, &start_path(machine), request, timeout + GRACE).await
}

pub async fn stop_if_idle(link: &Arc<Link>, machine: &MachineId, request: &StopIfIdle) -> Result<StopReply, CallError> {
    call(link, &stop_if_idle_path(machine), request, STOP_TIMEOUT).await
}

async fn call<Q: Serialize, A: DeserializeOwned>(
    link: &Arc<Link>,
    path: &str,
    request: &Q,
    timeout: Duration,
) -> Result<A, CallError> {
    match tokio::time::timeout(timeout, exchange(link, path, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(CallError::Timeout),
    }
}

async fn exchange<Q: Serialize, A: DeserializeOwned>(link: &Arc<Link>, path: &str, call: &Q) -> Result<A, CallError> {
    let bytes = serde_json::to_vec(call).map_err(|_| CallError::Garbled)?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://door{path}").parse().map_err(|_| CallError::Garbled)?;
    let mut sender = link.sender().await?;
    let (answer, mut stream) = sender.send_request(request, false).map_err(|_| CallError::Broken)?;
    send_data(&mut stream, Bytes::from(bytes), true).await.map_err(|_| CallError::Broken)?;
    let answer = answer.await.map_err(|_| CallError::Broken)?;
    if answer.status() != StatusCode::OK {
        return Err(CallError::Answered(answer.status()));
    }
    let (parts, body) = answer.into_parts();
    let body = Limited::new(StreamBody::new(body, &parts.headers), MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(|_| CallError::Broken)?.to_bytes();
    serde_json::from_slice(&body).map_err(|_| CallError::Garbled)
}
