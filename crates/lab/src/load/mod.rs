//! Load from a process of its own: requests at a steady rate whatever the answers do (open loop), each sent once, each
//! answer judged. What it counts as a failure: another status, another body, a broken connection, or too slow.

mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hyper::{Method, Request, StatusCode};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use godwit_lab::pool::Pool;
pub use report::Report;
use report::{Outcome, Tally};

/// Requests that may be in flight; when as many hang, the next are counted as failed without being sent.
const IN_FLIGHT_LIMIT: usize = 10_000;
/// One request in so many posts a body and has its hash checked.
const ECHO_EVERY: u64 = 5;
const ECHO_MAX_BYTES: u64 = 16 * 1024;

#[derive(clap::Args)]
pub struct Options {
    /// Where to connect
    #[arg(long, value_name = "IP:PORT")]
    addr: SocketAddr,
    /// The Host header
    #[arg(long, value_name = "NAME")]
    host: String,
    /// Requests a second
    #[arg(long, default_value_t = 250)]
    rate: u32,
    /// Requests in all
    #[arg(long, default_value_t = 2500)]
    requests: u64,
    /// Share of requests, in percent, that open a connection of their own; the others keep theirs alive
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    new_connections: u8,
    /// An answer later than this is a failure
    #[arg(long, default_value_t = 5000)]
    slow_ms: u64,
    /// Judge answers by their status alone, for images other than the demo's
    #[arg(long)]
    status_only: bool,
}

/// Runs and prints the report; true if nothing failed.
pub fn run(options: &Options) -> Result<bool> {
    ensure!(options.rate > 0 && options.requests > 0, "--rate and --requests must be more than 0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(send_all(options))?;
    println!("{}", serde_json::to_string(&report).context("the report")?);
    Ok(report.requests_failed == 0)
}

async fn send_all(options: &Options) -> Result<Report> {
    let pool = Arc::new(Pool::new(options.addr));
    let period = Duration::from_secs(1) / options.rate;
    let slow = Duration::from_millis(options.slow_ms);
    let begin = Instant::now();
    let mut tally = Tally::default();
    let mut flights = JoinSet::new();
    for number in 0..options.requests {
        tokio::time::sleep_until((begin + period * u32::try_from(number)?).into()).await;
        while let Some(done) = flights.try_join_next() {
            tally.add(done?);
        }
        if flights.len() >= IN_FLIGHT_LIMIT {
            tally.add(Outcome::unsent(number));
            continue;
        }
        let plan = Plan::of(number, options);
        let pool = pool.clone();
        flights.spawn(async move {
            let sent = Instant::now();
            let judged = match tokio::time::timeout(slow, plan.carry_out(&pool)).await {
                Ok(judged) => judged,
                Err(_) => Err(format!("no whole answer within {} ms", slow.as_millis())),
            };
            Outcome { number, latency: sent.elapsed(), judged }
        });
    }
    while let Some(done) = flights.join_next().await {
        tally.add(done?);
    }
    Ok(tally.report(begin.elapsed(), pool.connections_opened()))
}

/// One request and what its answer must be.
struct Plan {
    host: String,
    own_connection: bool,
    status_only: bool,
    /// The body to have echoed; `None` for a plain `GET /`.
    echo: Option<Bytes>,
}

impl Plan {
    fn of(number: u64, options: &Options) -> Self {
        let echo = !options.status_only && number % ECHO_EVERY == ECHO_EVERY - 1;
        Self {
            host: options.host.clone(),
            // Spread evenly; 37 has no divisor in common with 100.
            own_connection: (number * 37) % 100 < u64::from(options.new_connections),
            status_only: options.status_only,
            echo: echo.then(|| body_of(number)),
        }
    }

    /// Which Machine answered (empty when it does not say), or what is wrong.
    async fn carry_out(&self, pool: &Pool) -> Result<report::Answerer, String> {
        let (method, path) = if self.echo.is_some() { (Method::POST, "/echo") } else { (Method::GET, "/") };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.host)
            .header("user-agent", "godwit-lab-load")
            .body(http_body_util::Full::new(self.echo.clone().unwrap_or_default()))
            .map_err(|error| error.to_string())?;
        let (status, body) = pool.send(request, self.own_connection).await?;
        if status != StatusCode::OK {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            return Err(format!("status {status}: {}", text.trim()));
        }
        if self.status_only {
            return Ok(report::Answerer::default());
        }
        let json: serde_json::Value =
            serde_json::from_slice(&body).map_err(|_| "the body is not the demo app's".to_owned())?;
        match &self.echo {
            Some(sent) => {
                let right = json["length"] == sent.len() as u64
                    && json["sha256"].as_str() == Some(&hex::encode(Sha256::digest(sent)));
                if right { Ok(report::Answerer::default()) } else { Err(format!("a wrong echo: {json}")) }
            }
            None => {
                let text = |name: &str| json[name].as_str().unwrap_or("").to_owned();
                let answerer =
                    report::Answerer { machine: text("machine"), host: text("host"), process: text("started_at") };
                if answerer.machine.is_empty() { Err(format!("no Machine in {json}")) } else { Ok(answerer) }
            }
        }
    }
}

/// A body that differs from request to request, so that a mixed-up answer shows.
fn body_of(number: u64) -> Bytes {
    let length = (number.wrapping_mul(7919) % ECHO_MAX_BYTES) as usize;
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
