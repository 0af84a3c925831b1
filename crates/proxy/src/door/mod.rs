//! The door: a host's proxy. It counts what its Machines have in flight, enforces their hard limits, dials them, and
//! closes their gates when they are to stop. What it knows comes from its own agent alone.
//!
//! `gate` decides (pure), `machines` is the table of what the agent told, `agent` the conversation with it, `serve`
//! the edges' side, `upstream` the Machines' side, `start` and `closing` the two ways a Machine's run state changes.

mod agent;
mod closing;
mod config;
pub mod gate;
mod keep;
mod machines;
mod metrics;
mod serve;
mod start;
mod tunnel;
mod upstream;
mod upstream_h2;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_base::TaskGroup;
use godwit_base::metrics::Metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{DoorConfig, RawDoorConfig};

use crate::Error;

/// How long streams may go on after the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// All that the parts of a door share.
struct Door {
    machines: machines::Machines,
    agent: agent::Agent,
    metrics: metrics::DoorMetrics,
    group: TaskGroup,
}

/// A door with its sockets bound, not serving yet.
pub struct BoundDoor {
    listener: TcpListener,
    admin: TcpListener,
    config: DoorConfig,
}

impl BoundDoor {
    pub async fn bind(config: DoorConfig) -> Result<Self, Error> {
        let listener = crate::edge::listen(config.listen).await?;
        let admin = crate::edge::listen(config.listen_admin).await?;
        Ok(Self { listener, admin, config })
    }

    pub fn addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }

    /// Serves until told to stop; then admits nothing new and lets streams end within `DRAIN_TIMEOUT`.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { listener, admin, config } = self;
        let registry = Metrics::new();
        let group = TaskGroup::new();
        let door = Arc::new(Door {
            machines: machines::Machines::default(),
            agent: agent::Agent::new(&config.agent_socket),
            metrics: metrics::DoorMetrics::new(&registry),
            group: group.clone(),
        });
        let keeper = keep::Keeper::new(&config.data_dir)?;
        keeper.load_into(&door.machines);
        group.spawn_cancellable(keeper.run(door.clone()));
        group.spawn_cancellable(agent::follow(door.clone()));
        group.spawn_cancellable(metrics::tick(door.clone()));
        let health = door.clone();
        let routes = godwit_base::metrics::routes(registry, move || health.machines.health());
        group.spawn(godwit_base::http::server::serve_tcp(admin, routes, group.clone()));
        group.spawn(serve::accept(door.clone(), listener));
        shutdown.cancelled().await;
        if !group.drain(DRAIN_TIMEOUT).await {
            tracing::warn!("streams were still open when the door stopped");
        }
        Ok(())
    }
}

/// Binds and serves until told to stop.
pub async fn run(config: DoorConfig, shutdown: CancellationToken) -> Result<(), Error> {
    BoundDoor::bind(config).await?.serve(shutdown).await
}
