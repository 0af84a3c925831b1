//! What a load run found, as the JSON that it prints.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Failures that are told in full; the rest is counted.
const FAILURES_TOLD: usize = 20;

/// Who gave an answer, as far as it says.
#[derive(Debug, Clone, Default)]
pub struct Answerer {
    pub machine: String,
    pub host: String,
    pub process: String,
}

pub struct Outcome {
    pub number: u64,
    pub latency: Duration,
    pub judged: Result<Answerer, String>,
}

impl Outcome {
    pub fn unsent(number: u64) -> Self {
        Self { number, latency: Duration::ZERO, judged: Err("not sent: too many in flight".into()) }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub requests_sent: u64,
    pub requests_failed: u64,
    pub duration_ms: u64,
    pub requests_per_second: f64,
    pub connections_opened: u64,
    /// How long the very first request took: the cold start when the Machine was stopped.
    pub first_answer_ms: u64,
    pub latency_ms_p50: f64,
    pub latency_ms_p99: f64,
    pub latency_ms_max: f64,
    /// Answers by Machine, by host, and by process (its start time).
    pub machines: BTreeMap<String, u64>,
    pub hosts: BTreeMap<String, u64>,
    pub processes: BTreeMap<String, u64>,
    pub failures: Vec<String>,
}

#[derive(Default)]
pub struct Tally {
    report: Report,
    latencies: Vec<Duration>,
}

impl Tally {
    pub fn add(&mut self, outcome: Outcome) {
        let report = &mut self.report;
        report.requests_sent += 1;
        self.latencies.push(outcome.latency);
        if outcome.number == 0 {
            report.first_answer_ms = outcome.latency.as_millis() as u64;
        }
        match outcome.judged {
            Ok(answerer) => {
                let counts = [
                    (&mut report.machines, answerer.machine),
                    (&mut report.hosts, answerer.host),
                    (&mut report.processes, answerer.process),
                ];
                for (count, name) in counts {
                    if !name.is_empty() {
                        *count.entry(name).or_default() += 1;
                    }
                }
            }
            Err(why) => {
                report.requests_failed += 1;
                if report.failures.len() < FAILURES_TOLD {
                    let ms = outcome.latency.as_millis();
                    report.failures.push(format!("request {} after {ms} ms: {why}", outcome.number));
                }
            }
        }
    }

    pub fn report(mut self, duration: Duration, connections_opened: u64) -> Report {
        self.latencies.sort_unstable();
        let at = |share: f64| {
            let last = self.latencies.len().saturating_sub(1);
            let latency = self.latencies.get((last as f64 * share) as usize).copied().unwrap_or_default();
            (latency.as_secs_f64() * 10_000.0).round() / 10.0
        };
        Report {
            duration_ms: duration.as_millis() as u64,
            requests_per_second: (self.report.requests_sent as f64 / duration.as_secs_f64() * 10.0).round() / 10.0,
            connections_opened,
            latency_ms_p50: at(0.5),
            latency_ms_p99: at(0.99),
            latency_ms_max: at(1.0),
            ..self.report
        }
    }
}
