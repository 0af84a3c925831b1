//! The door: a host's proxy. It counts what its Machines have in flight, enforces their hard limits, dials them, and
//! closes their gates when they are to stop. What it knows comes from its own agent alone.
//!
//! `gate` decides (pure), `machines` is the table of what the agent told, `agent` the conversation with it, `serve`
//! the edges' side, `upstream` the Machines' side, `start` and `closing` the two ways a Machine's run state changes,
//! `hint` why a port takes no connection,
//! `upgrade` what two processes tell each other when one takes over.

mod agent;
mod answers;
mod closing;
mod config;
pub mod gate;
mod hint;
mod keep;
mod machines;
mod metrics;
mod serve;
mod start;
mod tunnel;
mod upgrade;
mod upstream;
mod upstream_h2;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_api::door::DoorUpdate;
use godwit_api::ids::MachineId;
use godwit_base::TaskGroup;
use godwit_base::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use config::{DoorConfig, RawDoorConfig};

use crate::Error;
use crate::handover::{self, DrainBounds, Given, Giver, Sockets, Successor};

/// How long streams may go on after the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// All that the parts of a door share.
struct Door {
    machines: machines::Machines,
    agent: agent::Agent,
    metrics: metrics::DoorMetrics,
    /// To the process before this one, while it drains.
    cuts: mpsc::Sender<MachineId>,
    group: TaskGroup,
}

impl Door {
    /// The process before this one cuts off what it has in flight of a Machine.
    fn cut_before(&self, machine: &MachineId) {
        // A queue that is full, or nobody there: then there is nothing left to be cut off.
        let _ = self.cuts.try_send(machine.clone());
    }
}

/// A door with its sockets bound, or taken over, not serving yet.
pub struct BoundDoor {
    listener: TcpListener,
    admin: TcpListener,
    sockets: Sockets,
    given: Option<Given>,
    config: DoorConfig,
}

impl BoundDoor {
    pub async fn bind(config: DoorConfig) -> Result<Self, Error> {
        let folder = &config.data_dir;
        let unusable = |source| Error::File { path: folder.clone(), source };
        godwit_base::folder::private(folder).map_err(unusable)?;
        let given = handover::begin("door", folder, config.take_over).await?;
        let sockets = Sockets::default();
        let name = format!("door {}", config.listen);
        let listener = crate::edge::open(given.as_ref(), &sockets, &name, config.listen).await?;
        let name = format!("admin {}", config.listen_admin);
        let admin = crate::edge::open(given.as_ref(), &sockets, &name, config.listen_admin).await?;
        Ok(Self { listener, admin, sockets, given, config })
    }

    pub fn addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }

    /// Serves until told to stop, or until a new process takes over; then admits nothing new and lets streams end within a
    /// bound.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { listener, admin, sockets, given, config } = self;
        let registry = Metrics::new();
        let group = TaskGroup::new();
        let (cuts, to_cut) = mpsc::channel(upgrade::MAX_CUTS);
        let door = Arc::new(Door {
            machines: machines::Machines::default(),
            agent: agent::Agent::new(&config.agent_socket),
            metrics: metrics::DoorMetrics::new(&registry),
            cuts,
            group: group.clone(),
        });
        let keeper = keep::Keeper::new(&config.data_dir)?;
        keeper.load_into(&door.machines);
        if let Some(given) = given {
            door.take_over(&given, to_cut).await?;
        }
        group.spawn_cancellable(keeper.run(door.clone()));
        group.spawn_cancellable(agent::follow(door.clone()));
        group.spawn_cancellable(metrics::tick(door.clone()));
        let health = door.clone();
        let routes = godwit_base::metrics::routes(registry, move || health.machines.health());
        group.spawn(godwit_base::http::server::serve_tcp(admin, routes, group.clone()));
        group.spawn(serve::accept(door.clone(), listener));
        let unusable = |source| Error::File { path: config.data_dir.clone(), source };
        let mut giver = Giver::bind(&config.data_dir).map_err(unusable)?;
        let state = || serde_json::to_string(&door.machines.snapshot(true)).unwrap_or_default();
        let successor = tokio::select! {
            () = shutdown.cancelled() => None,
            successor = giver.successor(&sockets, state) => Some(successor),
        };
        door.leave(successor, &sockets, config.upgrade_drain, &shutdown).await;
        Ok(())
    }
}

impl Door {
    /// Knows what the door before knew, and what it has in flight.
    async fn take_over(self: &Arc<Self>, given: &Given, to_cut: mpsc::Receiver<MachineId>) -> Result<(), Error> {
        let not_ready = |_| Error::NotReady { why: "what the old door knows is not understood" };
        let known: DoorUpdate = serde_json::from_str(&given.state).map_err(not_ready)?;
        let work = self.machines.apply(known);
        if let Some(stream) = given.ready().await {
            upgrade::hear(self, stream, to_cut).await;
        }
        given.close_rest();
        // Not before it is known what is in flight there.
        for work in work {
            self.group.spawn_cancellable(closing::follow(self.clone(), work));
        }
        Ok(())
    }

    async fn leave(
        self: &Arc<Self>,
        successor: Option<Successor>,
        sockets: &Sockets,
        upgrade_drain: Duration,
        shutdown: &CancellationToken,
    ) {
        let handed = successor.is_some();
        if handed {
            self.machines.hand_over();
        }
        self.group.token().cancel();
        sockets.clear();
        let telling = match successor {
            Some(successor) => {
                tracing::info!("a new process takes over");
                Some(tokio::spawn(upgrade::tell(self.clone(), successor.take_over().await)))
            }
            None => None,
        };
        let bounds = DrainBounds { told: DRAIN_TIMEOUT, handed: upgrade_drain };
        if !bounds.drain(&self.group, handed, shutdown).await {
            tracing::warn!("streams were still open when the door stopped");
        }
        if let Some(telling) = telling {
            telling.abort();
        }
    }
}

/// Binds and serves until told to stop.
pub async fn run(config: DoorConfig, shutdown: CancellationToken) -> Result<(), Error> {
    BoundDoor::bind(config).await?.serve(shutdown).await
}
