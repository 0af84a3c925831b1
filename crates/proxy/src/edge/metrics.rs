//! What an edge counts. Labels are app and class of code, reasons, doors: all bounded by what is watched.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use godwit_api::ids::{AppName, MachineId};
use godwit_base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::Edge;
use super::taste::TasteMetrics;
use super::view::Target;
use crate::eject::{Failure, Standing};

const TICK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AppClass {
    app: String,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Protocol {
    protocol: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Door {
    door: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AppLabel {
    app: String,
}

/// Seconds: from a cached answer to a request that is held for its Machine's start.
const DURATIONS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

fn durations() -> Histogram {
    Histogram::new(DURATIONS)
}

const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters of one app, looked up once and not for each request.
pub struct AppMetrics {
    by_class: [Counter; 6],
    /// Requests in flight through this edge.
    in_flight: Gauge,
    /// Of this app alone.
    own_in_flight: Gauge,
    durations: Histogram,
}

impl AppMetrics {
    pub fn begun(&self) {
        self.own_in_flight.inc();
    }

    /// To the last byte of its answer, or to the switch of its protocol.
    pub fn ended(&self, after: Duration) {
        self.own_in_flight.dec();
        self.durations.observe(after.as_secs_f64());
    }

    pub fn answered(&self, code: u16) {
        let class = usize::from(code / 100);
        self.by_class[if class < 6 { class } else { 0 }].inc();
    }

    pub fn in_flight(&self) -> Gauge {
        self.in_flight.clone()
    }
}

pub struct EdgeMetrics {
    answers: Family<AppClass, Counter>,
    in_flight: Gauge,
    app_in_flight: Family<AppLabel, Gauge>,
    app_durations: Family<AppLabel, Histogram, fn() -> Histogram>,
    pub taste: TasteMetrics,
    pub access_lines: Counter,
    pub access_dropped: Counter,
    refusals: Family<Reason, Counter>,
    turned_away: Family<Reason, Counter>,
    ejections: Family<Reason, Counter>,
    ejected: Gauge,
    pub wakes: Counter,
    client_refusals: Family<Reason, Counter>,
    handshakes: Family<Protocol, Counter>,
    pub handshakes_failed: Counter,
    pub wakes_failed: Counter,
    pub idle_stops: Counter,
    pub autostop_passes: Counter,
    pub retries: Counter,
    pub replays: Counter,
    pub connections: Gauge,
    pub tcp_connections: Gauge,
    waiting: Gauge,
    apps: Gauge,
    routes_age: Gauge<f64, AtomicU64>,
    door_rtt: Family<Door, Gauge<f64, AtomicU64>>,
}

impl EdgeMetrics {
    pub fn new(metrics: &Metrics) -> Arc<Self> {
        let made = Self {
            answers: Family::default(),
            in_flight: Gauge::default(),
            app_in_flight: Family::default(),
            app_durations: Family::new_with_constructor(durations as fn() -> Histogram),
            taste: TasteMetrics::default(),
            access_lines: Counter::default(),
            access_dropped: Counter::default(),
            refusals: Family::default(),
            turned_away: Family::default(),
            ejections: Family::default(),
            ejected: Gauge::default(),
            client_refusals: Family::default(),
            wakes: Counter::default(),
            handshakes: Family::default(),
            handshakes_failed: Counter::default(),
            wakes_failed: Counter::default(),
            idle_stops: Counter::default(),
            autostop_passes: Counter::default(),
            retries: Counter::default(),
            replays: Counter::default(),
            connections: Gauge::default(),
            tcp_connections: Gauge::default(),
            waiting: Gauge::default(),
            apps: Gauge::default(),
            routes_age: Gauge::default(),
            door_rtt: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("edge_requests", "Requests by app and class of the answer's code", made.answers.clone());
            registry.register("edge_in_flight", "Requests and connections in flight", made.in_flight.clone());
            let of_app = made.app_in_flight.clone();
            registry.register("edge_app_in_flight", "Requests in flight, by app", of_app);
            let of_app = made.app_durations.clone();
            registry.register("edge_request_seconds", "Requests' durations to the last byte, by app", of_app);
            registry.register("edge_access_lines", "Lines of the access log", made.access_lines.clone());
            let dropped = made.access_dropped.clone();
            registry.register("edge_access_lines_dropped", "Lines for which the log was too slow", dropped);
            let poisoned = made.taste.poisoned.clone();
            registry.register("edge_poisoned_rows", "Rows of the store that do harm when they are read", poisoned);
            let untried = made.taste.untried.clone();
            registry.register("edge_untried_rows", "Rows that were read without being tried aside", untried);
            registry.register("edge_refusals", "Refusals of doors, by reason", made.refusals.clone());
            registry.register("edge_turned_away", "Requests that no Machine got, by reason", made.turned_away.clone());
            let ejections = made.ejections.clone();
            registry.register(
                "edge_ejections",
                "Times that a Machine failed too often and others were asked first, by reason",
                ejections,
            );
            registry.register(
                "edge_ejected",
                "Machines that come after all others now, because they failed",
                made.ejected.clone(),
            );
            let refused = made.client_refusals.clone();
            registry.register("edge_client_refusals", "Connections of clients that broke HTTP, by reason", refused);
            registry.register("edge_handshakes", "TLS handshakes, by protocol", made.handshakes.clone());
            let failed = made.handshakes_failed.clone();
            registry.register("edge_handshakes_failed", "TLS handshakes that failed", failed);
            registry.register("edge_wakes", "Start calls to doors", made.wakes.clone());
            registry.register("edge_wakes_failed", "Start calls that failed", made.wakes_failed.clone());
            registry.register("edge_idle_stops", "Machines stopped because idle", made.idle_stops.clone());
            registry.register("edge_autostop_passes", "Looks for idle Machines", made.autostop_passes.clone());
            registry.register("edge_retries", "Requests sent again after a lost connection", made.retries.clone());
            registry.register("edge_replays", "Requests sent on by a Machine's word", made.replays.clone());
            registry.register("edge_connections", "Open HTTP connections of clients", made.connections.clone());
            registry.register("edge_tcp_connections", "Open raw connections of clients", made.tcp_connections.clone());
            registry.register("edge_gate_waiting", "Requests held at the gate", made.waiting.clone());
            registry.register("edge_apps_watched", "Apps whose routes are watched", made.apps.clone());
            registry.register("edge_routes_age_seconds", "Age of the routes served; -1: none", made.routes_age.clone());
            registry.register("edge_door_rtt_seconds", "Round trip of the last probe", made.door_rtt.clone());
        });
        Arc::new(made)
    }

    pub fn app(&self, app: &AppName) -> AppMetrics {
        let of = |class| self.answers.get_or_create_owned(&AppClass { app: app.to_string(), class });
        let label = AppLabel { app: app.to_string() };
        AppMetrics {
            by_class: CLASSES.map(of),
            in_flight: self.in_flight.clone(),
            own_in_flight: self.app_in_flight.get_or_create_owned(&label),
            durations: self.app_durations.get_or_create_owned(&label),
        }
    }

    pub fn forget_app(&self, app: &AppName) {
        for class in CLASSES {
            self.answers.remove(&AppClass { app: app.to_string(), class });
        }
        let label = AppLabel { app: app.to_string() };
        self.app_in_flight.remove(&label);
        self.app_durations.remove(&label);
    }

    /// A Machine failed; `ejected`: it is left alone for it, or comes after all others.
    pub fn ejected(&self, machine: &MachineId, why: Failure, ejected: bool) {
        if ejected {
            tracing::info!(%machine, why = why.word(), "a Machine fails; others are asked first for a while");
            self.ejections.get_or_create(&Reason { reason: why.word() }).inc();
        }
    }

    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// A client sent what is no HTTP, or can be read in two ways.
    pub fn client_refused(&self, reason: &'static str) {
        self.client_refusals.get_or_create(&Reason { reason }).inc();
    }

    pub fn handshake(&self, protocol: &'static str) {
        self.handshakes.get_or_create(&Protocol { protocol }).inc();
    }

    pub fn turned_away(&self, reason: &'static str) {
        self.turned_away.get_or_create(&Reason { reason }).inc();
    }
}

/// Brings the gauges up to date, once a second.
pub(super) async fn tick(edge: Arc<Edge>) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        let metrics = &edge.metrics;
        let apps = edge.routes.all();
        let waiting: usize = apps.iter().map(|app| app.gate.held()).sum();
        metrics.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let now_ms = edge.routes.now_ms();
        let is_out = |target: &&Target| target.tallies.standing(now_ms) != Standing::Healthy;
        let ejected: usize = apps.iter().map(|app| app.view().targets.iter().filter(is_out).count()).sum();
        metrics.ejected.set(i64::try_from(ejected).unwrap_or(i64::MAX));
        metrics.apps.set(i64::try_from(apps.len()).unwrap_or(i64::MAX));
        metrics.routes_age.set(edge.routes.age().map_or(-1.0, |age| age.as_secs_f64()));
        for link in edge.hosts.links() {
            let door = Door { door: link.addr().to_owned() };
            if let Some(rtt) = link.rtt() {
                metrics.door_rtt.get_or_create(&door).set(rtt.as_secs_f64());
            }
        }
    }
}
