//! The edge: takes traffic from outside, finds the app by name or port, a Machine by `choose`, holds what cannot be
//! served yet, and carries it to the Machine's door.
//!
//! `record` and `access` tell what became of each request.
//!
//! `routes` is what it knows, `find` how a request gets to a Machine, `wake` how one is started or awaited, `attempt`
//! the carrying, `gate` the holding. `clients` takes connections, which `http1` and `http2` turn into requests; `tcp` is
//! the other way in. It writes nothing but its own copies of routes.

mod access;
mod app;
mod attempt;
mod autostop;
mod body;
mod call;
mod clients;
pub mod config;
mod find;
pub mod gate;
mod hostnames;
mod hosts;
mod http1;
mod http2;
mod join;
mod metrics;
pub mod names;
mod peers;
mod ports;
mod record;
mod redirect;
mod routes;
mod serve;
mod snapshot;
mod stall;
mod tally;
pub mod taste;
mod tcp;
mod tls;
mod upload;
pub mod view;
mod wake;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use godwit_api::ids::ulid;
use godwit_base::TaskGroup;
use godwit_base::http::client::Client;
use godwit_base::metrics::Metrics;
use godwit_store::{RemoteStore, Store};
use http::HeaderValue;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use config::{EdgeConfig, Live, RawEdgeConfig};
pub use join::Identity;

use crate::Error;
use crate::handover::{self, DrainBounds, Given, Giver, Sockets, Successor};

/// How long requests in flight may go on after the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for raw connections.
const TCP_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// After a take-over a connection that is idle, or that has only just come, is served once more within this.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Connections that the kernel holds until they are accepted: a burst should not be answered by resets.
const BACKLOG: u32 = 8_192;

/// All that the parts of an edge share.
pub struct Edge {
    routes: Arc<routes::Routes>,
    hosts: Arc<hosts::Hosts>,
    names: names::Names,
    hostnames: Arc<hostnames::Hostnames>,
    tls: Arc<tls::Tls>,
    metrics: Arc<metrics::EdgeMetrics>,
    ways: serve::Ways,
    region: String,
    access: Arc<access::AccessLog>,
    gate_deadline_ms: AtomicU64,
    /// Proxies before us that name their clients.
    trusted: Vec<peers::Range>,
    /// In the address of a redirect.
    https_port: u16,
    /// Bounds of a client's connection.
    http1: crate::h1::io::Options,
    /// What a successor would get.
    sockets: Sockets,
    /// How long raw connections may go on after the stop; set with it.
    raw_drain: OnceLock<Duration>,
    group: TaskGroup,
    /// Draws from here need no call into the kernel.
    seed: u64,
    drawn: AtomicU64,
}

impl Edge {
    fn gate_deadline(&self) -> Duration {
        Duration::from_millis(self.gate_deadline_ms.load(Ordering::Relaxed))
    }

    /// Takes new settings over, now and whenever they change.
    async fn follow(self: Arc<Self>, mut settings: watch::Receiver<Live>) {
        while settings.changed().await.is_ok() {
            let live = settings.borrow_and_update().clone();
            self.apply(&live).await;
        }
        std::future::pending().await
    }

    async fn apply(&self, live: &Live) {
        let deadline_ms = u64::try_from(live.gate_deadline.as_millis()).unwrap_or(u64::MAX);
        self.gate_deadline_ms.store(deadline_ms, Ordering::Relaxed);
        if let Err(error) = self.access.open(live.access_log.as_deref()).await {
            tracing::warn!(error = godwit_base::telemetry::chain(&error), "the access log stays as it was");
        }
    }

    /// A number of chance, good enough to spread load and to make ids differ.
    fn chance(&self) -> u64 {
        let n = self.drawn.fetch_add(1, Ordering::Relaxed);
        // SplitMix64 (Steele et al., 2014).
        let mut z = self.seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `ULID-region`.
    fn request_id(&self) -> HeaderValue {
        let chance = (u128::from(self.chance()) << 64) | u128::from(self.chance());
        let mut id = Vec::with_capacity(27 + self.region.len());
        id.extend_from_slice(&ulid(godwit_base::clock::unix_ms(), chance));
        id.push(b'-');
        id.extend_from_slice(self.region.as_bytes());
        // Base 32 and a region's letters always stand in a header.
        let id = HeaderValue::from_maybe_shared(Bytes::from(id)).unwrap_or(HeaderValue::from_static(""));
        crate::headers::never_again(id)
    }
}

/// Binds with a deep queue, and again at once after a restart.
pub(crate) async fn listen(addr: SocketAddr) -> Result<TcpListener, Error> {
    let bind = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| Error::Listen { addr, source })
}

/// An edge with its sockets bound, or taken over, not serving yet.
pub struct BoundEdge {
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
    admin: TcpListener,
    sockets: Sockets,
    /// From the process that serves with this data folder, if there is one.
    given: Option<Given>,
    config: EdgeConfig,
    settings: watch::Sender<Live>,
}

/// The listener that was handed over under this name, or a new one.
pub(crate) async fn open(
    given: Option<&Given>,
    sockets: &Sockets,
    name: &str,
    addr: SocketAddr,
) -> Result<TcpListener, Error> {
    let listener = match given.and_then(|given| given.take(name)) {
        Some(listener) => listener,
        None => listen(addr).await?,
    };
    sockets.keep(name, &listener).map_err(|source| Error::Listen { addr, source })?;
    Ok(listener)
}

/// Folders that an operator fills, or reads. An edge serves without them, so a failure is a warning, once.
fn make_folders(config: &EdgeConfig) {
    if let Some(folder) = &config.certificates_dir
        && let Err(error) = godwit_base::folder::private(folder)
    {
        tracing::warn!(folder = %folder.display(), %error, "cannot make the folder of certificates");
    }
}

impl BoundEdge {
    pub async fn bind(config: EdgeConfig) -> Result<Self, Error> {
        let folder = &config.snapshot_dir;
        let unusable = |source| Error::File { path: folder.clone(), source };
        godwit_base::folder::private(folder).map_err(unusable)?;
        make_folders(&config);
        let given = handover::begin("edge", folder, config.take_over).await?;
        let sockets = Sockets::default();
        let (mut http, mut https) = (Vec::new(), Vec::new());
        for (number, addr) in config.listen_http.iter().enumerate() {
            http.push(open(given.as_ref(), &sockets, &format!("http {number} {addr}"), *addr).await?);
        }
        for (number, addr) in config.listen_https.iter().enumerate() {
            https.push(open(given.as_ref(), &sockets, &format!("https {number} {addr}"), *addr).await?);
        }
        let admin =
            open(given.as_ref(), &sockets, &format!("admin {}", config.listen_admin), config.listen_admin).await?;
        let settings = watch::Sender::new(config.live.clone());
        Ok(Self { http, https, admin, sockets, given, config, settings })
    }

    /// Changes what may change while it serves. Each sending opens the access log anew.
    pub fn settings(&self) -> watch::Sender<Live> {
        self.settings.clone()
    }

    /// The first address for HTTP.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.first()?.local_addr().ok()
    }

    /// The first address for HTTPS.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.https.first()?.local_addr().ok()
    }

    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }

    /// Serves on routes from `store` until told to stop, or until a new process takes over; then what is in flight ends
    /// within a bound.
    ///
    /// Taking over from another process, it accepts nothing before it knows routes and certificates.
    pub async fn serve(
        self,
        identity: Identity,
        store: Arc<dyn Store>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let Self { http, https, admin, sockets, given, config, settings } = self;
        let own = http.iter().chain(&https).chain([&admin]).filter_map(|listener| listener.local_addr().ok());
        let own_ports: Vec<u16> = own.map(|address| address.port()).collect();
        let registry = Metrics::new();
        let group = TaskGroup::new();
        let metrics = metrics::EdgeMetrics::new(&registry);
        let store = match config.taster.clone() {
            Some(program) => taste::over(store, program, metrics.taste.clone()),
            None => store,
        };
        let hosts = Arc::new(hosts::Hosts::new(&identity.key)?);
        let hostnames = hostnames::Hostnames::new(config.snapshot_dir.join("hostnames.json"));
        let tls = tls::Tls::new(&config)?;
        let routes = routes::Routes::new(store.clone(), &config, hosts.clone(), metrics.clone(), group.clone())?;
        let edge = Arc::new(Edge {
            routes: routes.clone(),
            hosts,
            names: names::Names::new(&config.suffixes, config.names.clone()),
            hostnames: hostnames.clone(),
            tls: tls.clone(),
            https_port: config.redirect_https_port,
            metrics: metrics.clone(),
            ways: serve::Ways::new(&config.region, config.public_http_port, config.public_https_port),
            region: config.region.clone(),
            access: access::AccessLog::new(metrics.access_lines.clone(), metrics.access_dropped.clone())?,
            gate_deadline_ms: AtomicU64::new(0),
            trusted: config.proxy_protocol_from.clone(),
            http1: crate::h1::io::Options::default(),
            sockets: sockets.clone(),
            raw_drain: OnceLock::new(),
            group: group.clone(),
            seed: godwit_base::secret::random_u64(),
            drawn: AtomicU64::new(0),
        });
        let live = settings.subscribe();
        edge.apply(&config.live).await;
        group.spawn_cancellable(edge.clone().follow(live));
        group.spawn_cancellable(metrics::tick(edge.clone()));
        let kept = config.snapshot_dir.join("certificates");
        let rows = tls::rows::first_look(&tls, &kept).await;
        group.spawn_cancellable(tls::rows::follow(tls.clone(), store.clone(), kept, rows));
        group.spawn_cancellable(hostnames.follow(store));
        if let Some(folder) = config.certificates_dir.clone() {
            let files = tls::folder::first_look(&tls, &folder).await;
            group.spawn_cancellable(tls::folder::follow(tls.clone(), folder, files));
        }
        if let Some(given) = &given {
            tokio::select! {
                known = tokio::time::timeout(handover::READY_TIMEOUT, routes.known()) => {
                    known.map_err(|_| Error::NotReady { why: "no routes were received yet" })?;
                }
                () = shutdown.cancelled() => return Err(Error::Stopped),
            }
            // The old one is left to itself: all that it has to say is that it accepts no more.
            drop(given.ready().await);
        }
        let health = routes.clone();
        let admin_routes = godwit_base::metrics::routes(registry, move || {
            // Stale routes are served; an edge is unwell only when it knows none.
            health.age().map(drop).ok_or_else(|| "no routes are known yet".to_owned())
        });
        group.spawn(godwit_base::http::server::serve_tcp(admin, admin_routes, group.clone()));
        for listener in http {
            group.spawn(clients::accept(edge.clone(), listener, None));
        }
        for listener in https {
            group.spawn(clients::accept(edge.clone(), listener, Some(tls.clone())));
        }
        let (raw, told) = watch::channel(ports::Raw::default());
        let control = Client::tcp(&config.control_url, Some(identity.key.clone()));
        group.spawn_cancellable(ports::tell(control, own_ports, told));
        match config.listen_tcp {
            Some(address) => {
                group.spawn_cancellable(tcp::follow(edge.clone(), address, config.tcp_ports.clone(), given, raw));
            }
            // What nobody took is closed: it is not served any more.
            None => {
                drop(given);
                group.spawn_cancellable(tcp::none(edge.clone(), raw));
            }
        }
        if let Some(interval) = config.autostop_interval {
            group.spawn_cancellable(autostop::run(edge.clone(), interval, config.autostop_idle));
        }
        let unusable = |source| Error::File { path: config.snapshot_dir.clone(), source };
        let mut giver = Giver::bind(&config.snapshot_dir).map_err(unusable)?;
        tracing::info!(edge = %identity.id, region = config.region, "serving");
        let successor = tokio::select! {
            () = shutdown.cancelled() => None,
            successor = giver.successor(&sockets, String::new) => Some(successor),
        };
        edge.leave(successor, config.upgrade_drain, &shutdown).await;
        Ok(())
    }
}

impl Edge {
    /// Resolves when the edge has stopped and a client that was just coming has had its moment.
    async fn left(&self) {
        self.group.stopping().await;
        tokio::time::sleep(Duration::from_millis(self.http1.stop_grace_ms.load(Ordering::Relaxed))).await;
    }

    /// Accepts nothing more and lets what is in flight end.
    async fn leave(&self, successor: Option<Successor>, upgrade_drain: Duration, shutdown: &CancellationToken) {
        let handed = successor.is_some();
        let grace = if handed { STOP_GRACE } else { Duration::ZERO };
        self.http1.stop_grace_ms.store(u64::try_from(grace.as_millis()).unwrap_or(0), Ordering::Relaxed);
        let _ = self.raw_drain.set(if handed { upgrade_drain } else { TCP_DRAIN_TIMEOUT });
        self.group.token().cancel();
        // With these the last copies go that are this process's own.
        self.sockets.clear();
        let _stream = match successor {
            Some(successor) => {
                tracing::info!("a new process takes over");
                Some(successor.take_over().await)
            }
            None => None,
        };
        let bounds = DrainBounds { told: DRAIN_TIMEOUT, handed: upgrade_drain };
        if !bounds.drain(&self.group, handed, shutdown).await {
            tracing::warn!("requests were still in flight when the edge stopped");
        }
        self.access.close().await;
        if !handed {
            // What changed since the last round; the disk is all that this waits for. A successor keeps its own.
            let routes = self.routes.clone();
            let _ = tokio::task::spawn_blocking(move || routes.keep_now()).await;
        }
    }
}

/// Binds, joins if need be, and serves with routes from control until told to stop.
/// `reloaded` gives what may change meanwhile, each time that the configuration was read anew.
pub async fn run(
    config: EdgeConfig,
    shutdown: CancellationToken,
    mut reloaded: mpsc::Receiver<Live>,
) -> Result<(), Error> {
    let identity = join::identity(&config, &shutdown).await?;
    let store = Arc::new(RemoteStore::new(&config.control_url, &identity.key));
    let edge = BoundEdge::bind(config).await?;
    let settings = edge.settings();
    tokio::spawn(async move {
        while let Some(live) = reloaded.recv().await {
            settings.send_replace(live);
        }
    });
    edge.serve(identity, store, shutdown).await
}
