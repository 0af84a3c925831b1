//! What an agent counts. It must not decide anything by it.

mod moves;

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use godwit_base::metrics::Metrics;
use godwit_machine::{JobKind, Step};

pub use moves::MoveMeters;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    job: &'static str,
    step: &'static str,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Meters {
    steps: Family<StepLabel, Counter>,
    unplaced: Gauge<i64, AtomicI64>,
    pulls: Counter,
    pull_failures: Counter,
}

impl Meters {
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register("agent_step_outcomes", "Steps that ended, well or not", this.steps.clone());
            let help = "Machines that are held although no placement asks for them";
            registry.register("agent_unplaced_machines", help, this.unplaced.clone());
            registry.register("agent_pulls", "Placements read from the store", this.pulls.clone());
            registry.register("agent_pull_failures", "Pulls that failed", this.pull_failures.clone());
        });
        this
    }

    pub fn step(&self, job: JobKind, step: Step) {
        self.steps.get_or_create(&StepLabel { job: job.as_str(), step: step.as_str() }).inc();
    }

    pub fn unplaced(&self, machines: usize) {
        self.unplaced.set(i64::try_from(machines).unwrap_or(i64::MAX));
    }

    pub fn pulled(&self, well: bool) {
        if well {
            self.pulls.inc()
        } else {
            self.pull_failures.inc()
        };
    }
}
