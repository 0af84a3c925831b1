//! Control: the public API, placement, and the reconcilers that make desire and facts meet. It writes desire (apps,
//! Machines, placements, leases, routes) and never run state.
//!
//! | file | what it owns |
//! |---|---|
//! | `world` | the fleet store in memory, typed (pure) |
//! | `place`, `routes`, `view`, `validate`, `names` | decisions and shapes (pure) |
//! | `control` | what handlers and reconcilers share: the picture, commits, tokens |
//! | `subject`, `mounts` | what is placed: Machines and volumes, and which holds which (pure) |
//! | `placing`, `volumes` | giving a Machine or a volume a host, taking it back |
//! | `moving` | beginning a move |
//! | `migrations` | what becomes of a move, by what its hosts tell (pure) |
//! | `certificates` | can this pair be served for this name (pure) |
//! | `acme` | certificates from an authority: ordered and renewed |
//! | `hostnames`, `reach` | host names of apps, and whether they lead here |
//! | `raw_ports` | which public ports apps may have for raw TCP (pure) |
//! | `strays` | what hosts hold and no row names (pure) |
//! | `edge_ports` | which public ports edges could not open, in memory |
//! | `claims` | which unproven claims were counted, in memory |
//! | `stalls` | which moves stand still, in memory |
//! | `router`, `call`, `handlers` | the API: all routes, what one call is, one file a noun |
//! | `rows` | rows as the store takes them |
//! | `host_clients`, `hosts`, `liveness` | calls to agents, and who is there |
//! | `check` | what is looked at before a start |
//! | `tls` | the pair by which the API is served over TLS |
//! | `reconcile` | what follows from facts, without an input |

mod acme;
mod adopt;
mod auth;
mod call;
mod certificates;
mod check;
mod claims;
pub mod config;
mod control;
mod counters;
mod edge_ports;
mod handlers;
mod host_clients;
mod hostnames;
mod hosts;
mod liveness;
mod migrations;
mod mounts;
mod moving;
mod named_host;
mod names;
pub mod place;
mod placing;
mod raw_ports;
mod reach;
mod reconcile;
mod router;
mod routes;
mod rows;
mod stalls;
mod strays;
mod subject;
mod tls;
mod validate;
mod versions;
mod view;
mod volumes;
pub mod world;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use godwit_base::TaskGroup;
use godwit_base::http::server::{serve_tcp, serve_tls};
use tokio::net::TcpListener;

pub use check::check;
pub use config::{Config, Raw, VolumeEncryption};
pub use control::Control;
pub use router::router;

/// Requests in flight and reconcilers end by then.
pub const DRAIN_BOUND: Duration = Duration::from_secs(10);

/// Why control did not start, or stopped. Always for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("configuration: `{field}`: {why}")]
    Config { field: &'static str, why: String },
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the fleet store cannot be used")]
    Store(#[from] godwit_store::Error),
    #[error("the image store cannot be used")]
    Images(#[source] godwit_oci::Error),
    #[error("cannot listen on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("cannot serve the API over TLS")]
    Tls(#[source] godwit_base::http::tls::TlsError),
    #[error("the fleet store told nothing for {waited_s} s")]
    StoreSilent { waited_s: u64 },
}

/// Runs control until `shutdown` resolves, then drains.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    let mut listeners = Vec::new();
    for &address in [&config.listen].into_iter().chain(&config.listen_also) {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|source| StartError::Listen { address, source })?);
    }
    let mut secured = Vec::new();
    for &address in &config.listen_https {
        let bound = TcpListener::bind(address).await;
        secured.push(bound.map_err(|source| StartError::Listen { address, source })?);
    }
    let pair = match config.tls.clone() {
        Some(files) => Some((tokio::sync::watch::Sender::new(files.load()?), files)),
        None => None,
    };
    let control = Control::open(config).await?;
    let group = TaskGroup::new();
    for listener in secured {
        let Some((served, _)) = &pair else { break };
        told(&listener, "https");
        group.spawn(serve_tls(listener, served.subscribe(), router(control.clone()), group.clone()));
    }
    group.spawn_cancellable(tls::follow(pair));
    serve_all(control, listeners, group, shutdown).await;
    Ok(())
}

/// The same on a listener and a control that are open already.
pub async fn serve(control: Arc<Control>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    serve_all(control, vec![listener], TaskGroup::new(), shutdown).await;
}

fn told(listener: &TcpListener, scheme: &str) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, scheme, "control serves");
    }
}

async fn serve_all(
    control: Arc<Control>,
    listeners: Vec<TcpListener>,
    group: TaskGroup,
    shutdown: impl Future<Output = ()>,
) {
    reconcile::start(&control, &group);
    let router = router(control);
    for listener in listeners {
        told(&listener, "http");
        group.spawn(serve_tcp(listener, router.clone(), group.clone()));
    }
    shutdown.await;
    tracing::info!("control stops");
    if !group.drain(DRAIN_BOUND).await {
        tracing::warn!("control stopped with requests in flight");
    }
}
