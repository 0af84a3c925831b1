//! What control counts for Prometheus.

use godwit_base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabels {
    pub code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HostLabels {
    pub state: &'static str,
}

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
        };
        metrics.register(|registry| {
            registry.register("api_answers", "Answers of the API by code", counters.answers.clone());
            registry.register("placements", "Machines that were given a host", counters.placed.clone());
            registry.register("placements_refused", "Placements that a host refused", counters.refused.clone());
            registry.register("store_conflicts", "Transactions that lost a compare", counters.conflicts.clone());
            registry.register("route_writes", "Route rows written or deleted", counters.route_writes.clone());
            registry.register("machines", "Machines that are not destroyed", counters.machines.clone());
            registry.register("hosts", "Hosts by state", counters.hosts.clone());
        });
        counters
    }
}
