//! Why a port takes no connection, as the host's agent sees it: asked only once a port has refused. It must not know what an answer leads to.

use std::time::Duration;

use futures_util::future::BoxFuture;
use godwit_api::door::Listening;
use tokio::time::Instant;

use super::Door;
use super::machines::Entry;

/// A process that was just started is given so long before anybody asks.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Between two questions of one start.
const PAUSE: Duration = Duration::from_millis(500);

/// What the agent sees of a port of a running Machine; nothing if it cannot be asked.
pub async fn of(door: &Door, entry: &Entry, port: u16) -> Listening {
    entry.answers.of(port, ask(door, entry, port)).await
}

async fn ask(door: &Door, entry: &Entry, port: u16) -> Listening {
    match door.agent.listening(&entry.id, port).await {
        Ok(listening) => listening,
        Err(error) => {
            tracing::debug!(machine = %entry.id, %error, "the agent says nothing of a port");
            Listening::default()
        }
    }
}

/// For a refusal that no start call follows: it must name the reason itself.
pub async fn for_refusal(door: &Door, entry: &Entry, port: u16) -> Option<String> {
    let machine = entry.machine();
    let service = machine.services.iter().find(|service| service.internal_port == port)?;
    if service.autostart() { None } else { of(door, entry, port).await.hint }
}

/// The questions of one start about its port, beside the dialing: an agent that does not answer holds up no dial.
pub struct Doubt<'a> {
    door: &'a Door,
    entry: &'a Entry,
    port: u16,
    not_before: Instant,
    asking: Option<BoxFuture<'a, Listening>>,
    hint: Option<String>,
}

impl<'a> Doubt<'a> {
    pub fn new(door: &'a Door, entry: &'a Entry, port: u16) -> Self {
        Self { door, entry, port, not_before: Instant::now(), asking: None, hint: None }
    }

    /// The process was started a moment ago: what was known of the one before is over.
    pub fn begin_anew(&mut self) {
        (self.asking, self.hint) = (None, None);
        self.not_before = Instant::now() + FIRST_PAUSE;
    }

    /// The port refused once more.
    pub fn refused(&mut self) {
        if self.asking.is_none() && Instant::now() >= self.not_before {
            self.asking = Some(Box::pin(of(self.door, self.entry, self.port)));
        }
    }

    /// The reason, once the agent has answered that it lasts. Never, if nothing was asked. Dropping it loses nothing.
    pub async fn lasting(&mut self) -> String {
        loop {
            let Some(asking) = &mut self.asking else { return std::future::pending().await };
            let listening = asking.await;
            self.asking = None;
            self.not_before = Instant::now() + PAUSE;
            // An agent that was too busy to answer takes back nothing that it said before.
            self.hint = listening.hint.or(self.hint.take());
            if let (Some(hint), true) = (&self.hint, listening.lasting) {
                return hint.clone();
            }
        }
    }

    /// What to say once the time is over.
    pub fn in_the_end(&self) -> String {
        let port = self.port;
        match &self.hint {
            Some(hint) => format!("port {port} took no connection in time: {hint}"),
            None => format!("port {port} did not accept in time"),
        }
    }
}
