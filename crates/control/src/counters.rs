//! What control counts for Prometheus.

use godwit_base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    pub code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HostLabels {
    pub state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MigrationLabels {
    /// `completed`, `cancelled` or `failed`.
    pub outcome: &'static str,
    /// `machine`, `machine_with_volumes` or `volume`.
    pub kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabels {
    pub phase: &'static str,
}

/// Seconds, from a quick phase to the filling of a large volume over a slow link.
const PHASE_BOUNDS_S: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0];
/// Seconds: the goal is 0.3.
const DOWNTIME_BOUNDS_S: [f64; 11] = [0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0, 60.0];

pub struct Counters {
    pub answers: Family<AnswerLabels, Counter>,
    /// Machines that were given a host.
    pub placed: Counter,
    /// Hosts' refusals, each followed by a new placement or an error.
    pub refused: Counter,
    /// Transactions that lost their compare.
    pub conflicts: Counter,
    /// Route rows written or deleted.
    pub route_writes: Counter,
    pub machines: Gauge,
    pub hosts: Family<HostLabels, Gauge>,
    pub migrations: Family<MigrationLabels, Counter>,
    pub migration_phases: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    pub migration_downtime: Histogram,
}

impl Counters {
    pub fn register(metrics: &Metrics) -> Self {
        let counters = Self {
            answers: Family::default(),
            placed: Counter::default(),
            refused: Counter::default(),
            conflicts: Counter::default(),
            route_writes: Counter::default(),
            machines: Gauge::default(),
            hosts: Family::default(),
            migrations: Family::default(),
            migration_phases: Family::new_with_constructor(|| Histogram::new(PHASE_BOUNDS_S)),
            migration_downtime: Histogram::new(DOWNTIME_BOUNDS_S),
        };
        metrics.register(|registry| {
            registry.register("api_answers", "Answers of the API by code", counters.answers.clone());
            registry.register("placements", "Machines that were given a host", counters.placed.clone());
            registry.register("placements_refused", "Placements that a host refused", counters.refused.clone());
            registry.register("store_conflicts", "Transactions that lost a compare", counters.conflicts.clone());
            registry.register("route_writes", "Route rows written or deleted", counters.route_writes.clone());
            registry.register("machines", "Machines that are not destroyed", counters.machines.clone());
            registry.register("hosts", "Hosts by state", counters.hosts.clone());
            registry.register("migrations", "Moves that have ended", counters.migrations.clone());
            let phases = counters.migration_phases.clone();
            registry.register("migration_phase_duration_seconds", "Time that moves spent in a phase", phases);
            let downtime = counters.migration_downtime.clone();
            registry.register("migration_downtime_seconds", "From the closed door to the running process", downtime);
        });
        counters
    }
}
