//! What came of the traffic so far; shared by all that send.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::gaps::Gaps;
use super::overlap::Overlap;
use super::request::{Answerer, Kind};

/// Failures that are told in full; the rest is counted.
const FAILURES_TOLD: usize = 20;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TrafficReport {
    pub requests_sent: u64,
    pub requests_failed: u64,
    pub connections_opened: u64,
    /// Requests by kind: `plain`, `append`, `part`, `slow`, `upload`.
    pub kinds: BTreeMap<String, u64>,
    /// Of the quick ones.
    pub latency_ms_max: f64,
    /// Answers by the host that gave them.
    pub hosts: BTreeMap<String, u64>,
    /// Processes of the app that were alive at one moment, judged by their answers.
    pub most_copies: usize,
    pub web_sockets_opened: u64,
    /// Closed by the other side, as a move does.
    pub web_sockets_closed: u64,
    pub failures: Vec<String>,
}

#[derive(Default)]
pub struct Tally(Mutex<State>);

#[derive(Default)]
struct State {
    report: TrafficReport,
    answered: u64,
    gaps: Gaps,
    overlap: Overlap,
    begin: Option<Instant>,
}

impl Tally {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that was sent at `sent` has just ended.
    pub fn add(&self, kind: Kind, sent: Instant, judged: Result<Answerer, String>) {
        let mut guard = self.state();
        let state = &mut *guard;
        // Under the lock, so that answers are noted in order.
        let now = Instant::now();
        let begin = *state.begin.get_or_insert(sent);
        state.report.requests_sent += 1;
        *state.report.kinds.entry(kind.name().to_owned()).or_default() += 1;
        match judged {
            Ok(answerer) => {
                if kind.is_quick() {
                    state.answered += 1;
                    state.gaps.answered(now);
                    let ms = now.duration_since(sent).as_secs_f64() * 1e3;
                    state.report.latency_ms_max = state.report.latency_ms_max.max((ms * 10.0).round() / 10.0);
                }
                if !answerer.process.is_empty() {
                    state.overlap.answered(&answerer.process, sent, now);
                    *state.report.hosts.entry(answerer.host).or_default() += 1;
                }
            }
            Err(why) => {
                let at = sent.duration_since(begin).as_secs_f64();
                let took = now.duration_since(sent).as_millis();
                state.report.fail(format!("{} at {at:.3} s, after {took} ms: {why}", kind.name()));
            }
        }
    }

    pub fn web_socket_opened(&self) {
        self.state().report.web_sockets_opened += 1;
    }

    pub fn web_socket_closed(&self) {
        self.state().report.web_sockets_closed += 1;
    }

    pub fn web_socket_failed(&self, why: &str) {
        self.state().report.fail(format!("WebSocket: {why}"));
    }

    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        self.state().gaps.longest(from, to)
    }

    pub fn answered(&self) -> u64 {
        self.state().answered
    }

    pub fn report(&self) -> TrafficReport {
        let state = self.state();
        TrafficReport { most_copies: state.overlap.most_at_once(), ..state.report.clone() }
    }
}

impl TrafficReport {
    fn fail(&mut self, why: String) {
        self.requests_failed += 1;
        if self.failures.len() < FAILURES_TOLD {
            self.failures.push(why);
        }
    }
}
