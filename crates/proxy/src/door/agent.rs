//! The conversation with this host's agent over its unix socket: a stream of what it knows, and four calls.
//!
//! The agent may be killed and come back at any time; the door serves on from what it was told last.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use godwit_api::Method;
use godwit_api::door::{
    AGENT_MACHINES, AgentStart, AgentStartReply, AgentStopIfIdle, DoorUpdate, Drained, Listening, listening_path,
};
use godwit_api::ids::MachineId;
use godwit_api::machine::Acknowledged;
use godwit_base::backoff::Backoff;
use godwit_base::http::client::{CallError, Client, empty};
use http::Request;
use http_body_util::BodyExt;

use super::machines::AGENT_SILENCE;
use super::{Door, closing};

/// One line of the stream: a snapshot of a host's Machines at most.
const MAX_LINE_BYTES: usize = 64 << 20;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A look at a Machine's sockets takes milliseconds.
const LISTENING_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(250);

pub struct Agent {
    client: Client,
}

impl Agent {
    pub fn new(socket: &Path) -> Self {
        Self { client: Client::unix(socket) }
    }

    pub async fn start(
        &self,
        machine: &MachineId,
        request: &AgentStart,
        timeout: Duration,
    ) -> Result<AgentStartReply, CallError> {
        let path = format!("{AGENT_MACHINES}/{machine}/start");
        self.client.json(Method::Post, &path, Some(request), timeout).await
    }

    /// True when the stop is journaled.
    pub async fn stop_if_idle(&self, machine: &MachineId, request: &AgentStopIfIdle) -> Result<bool, CallError> {
        let path = format!("{AGENT_MACHINES}/{machine}/stop-if-idle");
        let answer: Acknowledged = self.client.json(Method::Post, &path, Some(request), CALL_TIMEOUT).await?;
        Ok(answer.ok)
    }

    /// How the Machine listens, seen from this port.
    pub async fn listening(&self, machine: &MachineId, port: u16) -> Result<Listening, CallError> {
        let path = listening_path(machine, port);
        self.client.json::<(), _>(Method::Get, &path, None, LISTENING_TIMEOUT).await
    }

    pub async fn drained(&self, machine: &MachineId, drained: &Drained) -> Result<(), CallError> {
        let path = format!("{AGENT_MACHINES}/{machine}/drained");
        let body = serde_json::to_vec(drained).unwrap_or_default();
        let mut request = Request::new(godwit_base::http::client::full(body));
        *request.method_mut() = http::Method::POST;
        let json = http::HeaderValue::from_static("application/json");
        request.headers_mut().insert(http::header::CONTENT_TYPE, json);
        self.client.send(&path, request, CALL_TIMEOUT).await.map(drop)
    }
}

/// Keeps the table as the agent tells it, for ever.
pub(super) async fn follow(door: Arc<Door>) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let why = follow_once(&door, &mut backoff).await;
        tracing::debug!(why, "the agent's stream ended");
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

async fn follow_once(door: &Arc<Door>, backoff: &mut Backoff) -> String {
    let response = match door.agent.client.send(AGENT_MACHINES, Request::new(empty()), CONNECT_TIMEOUT).await {
        Ok(response) => response,
        Err(error) => return godwit_base::telemetry::chain(&error),
    };
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout(AGENT_SILENCE, body.frame()).await {
            Err(_) => return "silence".to_owned(),
            Ok(None) => return "closed".to_owned(),
            Ok(Some(Err(error))) => return error.to_string(),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        if buffer.len() > MAX_LINE_BYTES {
            return format!("a line is longer than {MAX_LINE_BYTES} bytes");
        }
        while let Some(line) = take_line(&mut buffer) {
            let update = match serde_json::from_slice::<DoorUpdate>(&line) {
                Ok(update) => update,
                // Another version of the agent may say what this one does not know; a snapshot never is that.
                Err(error) => {
                    tracing::warn!(%error, "a line of the agent's stream is not understood");
                    continue;
                }
            };
            backoff.reset();
            door.machines.heard();
            for work in door.machines.apply(update) {
                door.group.spawn_cancellable(closing::follow(door.clone(), work));
            }
        }
    }
}

fn take_line(buffer: &mut BytesMut) -> Option<Bytes> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    let line = buffer.split_to(end).freeze();
    buffer.advance(1);
    Some(line)
}
