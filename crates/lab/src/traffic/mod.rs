//! Traffic of clients that notice everything: requests at a steady rate whatever the answers do, each sent once, each
//! answer judged, each acknowledged write remembered. It runs on a thread of its own until it is stopped, and tells at
//! any time how long clients went without an answer. It knows the demo app, and nothing of the platform behind it.

mod gaps;
mod ledger;
mod overlap;
mod request;
mod socket;
mod tally;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use crate::pool::Pool;
pub use ledger::{Audit, Ledger};
use request::Kind;
use tally::Tally;
pub use tally::TrafficReport;

/// Requests that may be in flight; when as many hang, the next are counted as failed without being sent.
const IN_FLIGHT_LIMIT: usize = 10_000;
/// An answer later than this is a failure. Longer than a move may hold requests, for it is not speed that is judged here.
const SLOW: Duration = Duration::from_secs(30);
/// How long the last answers are waited for.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// While slow requests are asked for, one starts in each such interval.
const SLOW_INTERVAL: Duration = Duration::from_millis(250);

/// What is sent, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The edge.
    pub addr: SocketAddr,
    /// The Host header.
    pub host: String,
    /// Quick requests a second: of ten, six are plain GETs, two append to the log, two read a part of the filled file.
    pub rate: u32,
    /// The file that was filled before: MiB and seed.
    pub filled: Option<(u64, u64)>,
    /// Also keeps a WebSocket open, and opens it again when it is closed.
    pub web_socket: bool,
}

/// Running traffic.
pub struct Traffic {
    runtime: Runtime,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

struct Shared {
    plan: Plan,
    pool: Pool,
    tally: Tally,
    ledger: Ledger,
    slow: AtomicBool,
    stop: tokio_util::sync::CancellationToken,
}

impl Traffic {
    pub fn start(plan: Plan) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shared = Arc::new(Shared {
            pool: Pool::new(plan.addr),
            plan,
            tally: Tally::default(),
            ledger: Ledger::default(),
            slow: AtomicBool::new(false),
            stop: tokio_util::sync::CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        let traffic = Self { runtime, shared, tasks };
        traffic.spawn(steady);
        traffic.spawn(slow_requests);
        if traffic.shared.plan.web_socket {
            traffic.spawn(|shared, _| socket::keep_open(shared));
        }
        Ok(traffic)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Shared>, TaskTracker) -> F) {
        self.tasks.spawn_on(work(self.shared.clone(), self.tasks.clone()), self.runtime.handle());
    }

    /// From now on some requests take two seconds each, or no longer.
    pub fn with_slow_requests(&self, on: bool) {
        self.shared.slow.store(on, Ordering::Relaxed);
    }

    /// Begins an upload that takes about `time`; how it ended is in the report.
    pub fn upload(&self, bytes: u64, time: Duration) {
        self.spawn(|shared, _| async move {
            let sent = Instant::now();
            let done = tokio::time::timeout(SLOW, upload::send(&shared.plan, bytes, time)).await;
            let judged = done.unwrap_or_else(|_| Err(too_late())).map(|()| request::Answerer::default());
            shared.tally.add(Kind::Upload, sent, judged);
        });
    }

    /// The longest time between `from` and `to` in which no quick request of any client was answered.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        self.shared.tally.longest_gap(from, to)
    }

    /// Quick requests that have been answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.tally.answered()
    }

    /// Sends nothing more, waits for the answers that are due, and tells what came of everything.
    pub fn stop(self) -> (TrafficReport, Ledger) {
        self.shared.stop.cancel();
        self.tasks.close();
        let ended = self.runtime.block_on(async { tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait()).await });
        let mut report = self.shared.tally.report();
        report.connections_opened = self.shared.pool.connections_opened();
        if ended.is_err() {
            report.requests_failed += 1;
            report.failures.push("some requests never ended".into());
        }
        (report, self.shared.ledger.take())
    }
}

/// The quick requests.
async fn steady(shared: Arc<Shared>, tasks: TaskTracker) {
    let period = Duration::from_secs(1) / shared.plan.rate.max(1);
    let mut ticks = tokio::time::interval(period);
    // Open loop: what was due while we were late is sent at once.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut number = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stop.cancelled() => return,
        }
        launch(&shared, &tasks, Kind::of(number), number);
        number += 1;
    }
}

async fn slow_requests(shared: Arc<Shared>, tasks: TaskTracker) {
    let mut ticks = tokio::time::interval(SLOW_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stop.cancelled() => return,
        }
        if shared.slow.load(Ordering::Relaxed) {
            launch(&shared, &tasks, Kind::Slow, 0);
        }
    }
}

fn launch(shared: &Arc<Shared>, tasks: &TaskTracker, kind: Kind, number: u64) {
    if tasks.len() >= IN_FLIGHT_LIMIT {
        shared.tally.add(kind, Instant::now(), Err("not sent: too many in flight".into()));
        return;
    }
    let shared = shared.clone();
    tasks.spawn(async move {
        let sent = Instant::now();
        let carried = request::carry_out(kind, number, &shared.plan, &shared.pool, &shared.ledger);
        let judged = tokio::time::timeout(SLOW, carried).await.unwrap_or_else(|_| Err(too_late()));
        shared.tally.add(kind, sent, judged);
    });
}

fn too_late() -> String {
    format!("no whole answer within {} s", SLOW.as_secs())
}
