//! What a door counts.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use godwit_base::Distrust;
use godwit_base::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Door;

const TICK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    pub class: &'static str,
}

pub struct DoorMetrics {
    /// Answers by class of their code; index is the code's first digit.
    pub answers: [Counter; 6],
    pub refusals: Family<Reason, Counter>,
    pub tunnels: Counter,
    pub starts: Counter,
    pub starts_failed: Counter,
    pub agent_starts: Counter,
    pub idle_stops: Counter,
    pub cut_off: Counter,
    pub distrust: Distrust,
    in_flight: Gauge,
    machines: Gauge,
    agent_age: Gauge<f64, AtomicU64>,
}

/// The label of a code's class.
pub fn class(code: u16) -> &'static str {
    ["other", "1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(code / 100).min(6) % 6]
}

impl DoorMetrics {
    pub fn new(metrics: &Metrics) -> Self {
        let answers: Family<Class, Counter> = Family::default();
        let made = Self {
            answers: std::array::from_fn(|digit| {
                answers.get_or_create_owned(&Class { class: class(u16::try_from(digit * 100).unwrap_or(0)) })
            }),
            refusals: Family::default(),
            tunnels: Counter::default(),
            starts: Counter::default(),
            starts_failed: Counter::default(),
            agent_starts: Counter::default(),
            idle_stops: Counter::default(),
            cut_off: Counter::default(),
            distrust: Distrust::register(metrics),
            in_flight: Gauge::default(),
            machines: Gauge::default(),
            agent_age: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register("door_answers", "Answers of Machines by class of their code", answers);
            registry.register("door_refusals", "Requests not admitted, by reason", made.refusals.clone());
            registry.register("door_tunnels", "Upgrades and raw connections carried", made.tunnels.clone());
            registry.register("door_start_calls", "Start calls of edges", made.starts.clone());
            registry.register("door_start_calls_failed", "Start calls that failed", made.starts_failed.clone());
            registry.register("door_agent_starts", "Machines that the agent started for us", made.agent_starts.clone());
            registry.register("door_idle_stops", "Machines stopped because idle", made.idle_stops.clone());
            registry.register("door_cut_off", "Streams cut off by a stop's deadline", made.cut_off.clone());
            registry.register("door_in_flight", "Requests and connections in flight", made.in_flight.clone());
            registry.register("door_machines", "Machines known", made.machines.clone());
            registry.register("door_agent_age_seconds", "Since the agent was heard; -1: never", made.agent_age.clone());
        });
        made
    }

    pub fn answered(&self, code: u16) {
        self.answers[usize::from(code / 100).min(6) % 6].inc();
    }

    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }
}

/// Brings the gauges up to date and closes idle connections, once a second.
pub(super) async fn tick(door: Arc<Door>) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        let all = door.machines.all();
        let in_flight: i64 = all.iter().map(|entry| i64::from(entry.total())).sum();
        door.metrics.in_flight.set(in_flight);
        door.metrics.machines.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        door.metrics.agent_age.set(door.machines.age().map_or(-1.0, |age| age.as_secs_f64()));
        for entry in all {
            entry.pools.sweep();
        }
    }
}
