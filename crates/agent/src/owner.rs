//! The one thread that owns engine and journal. It awaits the next event, applies it (and those that came with it),
//! commits what they wrote as one transaction, and only then releases what follows. It must not carry anything out
//! itself: effects run elsewhere, and what they find comes back as events.
//!
//! A journal that cannot be written stops the agent: its memory would run ahead of what a new one finds. The
//! Machines run on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use godwit_api::ids::MachineId;
use godwit_base::clock;
use godwit_machine::{Answer, Ask, AskId, Refusal, Source, Until, What};
use godwit_store::journal::{Batch, Journal};

use crate::crash::Instant;
use crate::door::Hub;
use crate::effects::Effects;
use crate::engine::{Engine, Holding, Input, Output};
use crate::error::Error;
use crate::facts::Outbox;
use crate::metrics::{Meters, MoveMeters};
use crate::view::View;

/// Events that wait for the engine; whoever brings more waits.
const QUEUE: usize = 4096;
/// Events that share one commit.
const MAX_TOGETHER: usize = 64;
/// A commit that fails (a full disk, mostly) is tried so often before the agent gives up.
const COMMIT_ATTEMPTS: u32 = 10;
const COMMIT_PAUSE: Duration = Duration::from_millis(500);

/// What is brought to the owner.
pub enum Envelope {
    /// An event, and who waits for its answer.
    Event { input: Input, reply: Option<(AskId, oneshot::Sender<Answer>)> },
    /// A question; it changes nothing.
    Look { machine: MachineId, reply: oneshot::Sender<Option<Holding>> },
}

/// Where events are brought. Cheap to clone.
#[derive(Clone)]
pub struct Inputs {
    sender: mpsc::Sender<Envelope>,
    next_ask: Arc<AtomicU64>,
}

impl Inputs {
    pub fn channel() -> (Self, mpsc::Receiver<Envelope>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sender, next_ask: Arc::new(AtomicU64::new(1)) }, receiver)
    }

    /// Does nothing once the agent stops: the next one finds out by itself.
    pub async fn send(&self, input: Input) {
        let _ = self.sender.send(Envelope::Event { input, reply: None }).await;
    }

    /// What the host holds of it now: every change that was applied before is in it. `None`: nothing, or the agent stops.
    pub async fn look(&self, machine: &MachineId) -> Option<Holding> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Envelope::Look { machine: machine.clone(), reply }).await.ok()?;
        receiver.await.ok().flatten()
    }

    /// Asks something of a Machine and waits for the answer, at most `bound`. `None`: the outcome is not known yet.
    pub async fn ask(
        &self,
        machine: MachineId,
        what: What,
        source: Source,
        until: Until,
        bound: Duration,
    ) -> Option<Answer> {
        let id = AskId(self.next_ask.fetch_add(1, Ordering::Relaxed));
        let (sender, receiver) = oneshot::channel();
        let input = Input::Ask { machine, ask: Ask { id, what, source, until } };
        let asked = async {
            self.sender.send(Envelope::Event { input, reply: Some((id, sender)) }).await.ok()?;
            receiver.await.ok()
        };
        tokio::time::timeout(bound, asked).await.ok().flatten()
    }
}

/// Where what follows goes.
pub struct Outlets {
    pub effects: Effects,
    pub hub: Hub,
    pub view: View,
    pub outbox: Outbox,
    pub meters: Meters,
    pub moves: MoveMeters,
}

pub struct Owner {
    pub engine: Engine,
    pub journal: Journal,
    pub inputs: mpsc::Receiver<Envelope>,
    pub outlets: Outlets,
    replies: HashMap<AskId, oneshot::Sender<Answer>>,
}

impl Owner {
    pub fn new(engine: Engine, journal: Journal, inputs: mpsc::Receiver<Envelope>, outlets: Outlets) -> Self {
        Self { engine, journal, inputs, outlets, replies: HashMap::new() }
    }

    /// Runs on a thread of its own, because commits block, until `stop` resolves or the journal fails.
    pub fn spawn(mut self, stop: tokio_util::sync::CancellationToken) -> Result<Running, Error> {
        let (done, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("agent-owner".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                let result = match runtime {
                    Ok(runtime) => runtime.block_on(self.run(stop)),
                    Err(source) => Err(Error::Io { action: "start a runtime for", path: "the owner".into(), source }),
                };
                // The receiver is gone only when the agent ends anyway.
                let _ = done.send(result);
            })
            .map_err(Error::io("start the thread of", "the owner"))?;
        Ok(Running { ended })
    }

    async fn run(&mut self, stop: tokio_util::sync::CancellationToken) -> Result<(), Error> {
        let mut first = Output::default();
        self.engine.start(&mut first);
        self.settle(vec![first]).await?;
        loop {
            let event = tokio::select! {
                event = self.select() => event,
                () = stop.cancelled() => return Ok(()),
            };
            let Some(event) = event else { return Ok(()) };
            let mut outputs = vec![self.take(event)];
            while outputs.len() < MAX_TOGETHER
                && let Ok(more) = self.inputs.try_recv()
            {
                outputs.push(self.take(more));
            }
            self.settle(outputs).await?;
        }
    }

    /// The next event: one that was brought, or the passing of time.
    async fn select(&mut self) -> Option<Envelope> {
        let wait = Duration::from_millis(self.engine.due_ms().saturating_sub(clock::unix_ms()));
        tokio::select! {
            biased;
            event = self.inputs.recv() => event,
            () = tokio::time::sleep(wait) => Some(Envelope::Event { input: Input::Tick, reply: None }),
        }
    }

    fn take(&mut self, envelope: Envelope) -> Output {
        match envelope {
            Envelope::Event { input, reply } => {
                self.replies.extend(reply);
                self.engine.apply(input, clock::unix_ms())
            }
            Envelope::Look { machine, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.engine.holding(&machine));
                Output::default()
            }
        }
    }

    /// Commits, then releases.
    async fn settle(&mut self, mut outputs: Vec<Output>) -> Result<(), Error> {
        let mut batch = Batch::default();
        for output in &mut outputs {
            let part = std::mem::take(&mut output.batch);
            batch.require(part.durability);
            batch.writes.extend(part.writes);
        }
        self.commit(&batch).await?;
        for output in outputs {
            self.release(output);
        }
        self.replies.retain(|_, sender| !sender.is_closed());
        Ok(())
    }

    async fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        let mut attempts = 1;
        loop {
            match self.journal.commit(batch) {
                Ok(()) => return Ok(()),
                Err(source) if attempts == COMMIT_ATTEMPTS => return Err(Error::JournalBroken { attempts, source }),
                Err(error) => {
                    tracing::error!(
                        error = godwit_base::telemetry::chain(&error),
                        attempts,
                        "cannot write the journal"
                    );
                    attempts += 1;
                    tokio::time::sleep(COMMIT_PAUSE).await;
                }
            }
        }
    }

    /// Door and host API see a change before anybody is answered, and before anything follows from it.
    fn release(&mut self, output: Output) {
        for (kind, step) in output.outcomes {
            self.outlets.meters.step(kind, step);
            self.outlets.effects.crash().pass(kind, step, Instant::Outcome);
        }
        for seen in output.seen {
            self.outlets.moves.see(&seen);
            self.outlets.hub.see(&seen);
            self.outlets.view.see(seen);
        }
        if let Some(edges) = output.edges {
            self.outlets.hub.edges(edges);
        }
        for fact in output.facts {
            self.outlets.outbox.put(fact);
        }
        for command in output.commands {
            self.outlets.effects.begin(command);
        }
        if let Some(unplaced) = output.unplaced {
            self.outlets.meters.unplaced(unplaced.len());
            for machine in unplaced {
                tracing::warn!(%machine, "held here, but no placement asks for it; it is left alone");
            }
        }
        for (id, answer) in output.answers {
            if let Some(sender) = self.replies.remove(&id) {
                // Whoever asked may have gone; what was answered is so all the same.
                let _ = sender.send(answer);
            }
        }
    }
}

/// An owner at work.
pub struct Running {
    ended: oneshot::Receiver<Result<(), Error>>,
}

impl Running {
    /// Resolves when the owner has stopped.
    pub async fn ended(&mut self) -> Result<(), Error> {
        (&mut self.ended).await.unwrap_or(Ok(()))
    }
}

/// For callers that show it to people.
pub fn words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Full(why) | Refusal::Placement(why) | Refusal::Failed(why) => why.clone(),
        Refusal::Stale => "a newer epoch of the Machine is known here".into(),
        Refusal::Gone => "the Machine is not here".into(),
        Refusal::Busy => "too much is waiting for the Machine, or its state does not allow this".into(),
        Refusal::Cancelled => "a later request came in between".into(),
    }
}
