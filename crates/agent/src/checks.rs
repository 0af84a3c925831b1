//! Health: dials a running Machine at its private addresses as its checks say, and tells each result. A failure within
//! the grace period does not count. It must not know what a result leads to.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use godwit_api::Span;
use godwit_api::config::Check;
use godwit_api::ids::MachineId;
use godwit_api::machine::CheckStatus;
use godwit_base::clock;
use godwit_base::dial::{Addresses, Family, dial};

use crate::engine::{Input, NamedCheck};
use crate::owner::Inputs;
use crate::reach::{BY_CHECK, Reaches};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_GRACE: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(200);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// Of an answer's body so much is read and shown.
const OUTPUT_BYTES: usize = 512;

/// Runs until it is aborted.
pub async fn look_after(
    inputs: Inputs,
    reaches: Reaches,
    machine: MachineId,
    run: String,
    checks: Vec<NamedCheck>,
    at: Addresses,
) {
    let mut tasks = JoinSet::new();
    for check in checks {
        tasks.spawn(watch_one(inputs.clone(), reaches.clone(), machine.clone(), run.clone(), check, at));
    }
    while tasks.join_next().await.is_some() {}
}

fn bounded(span: Option<Span>, default: Duration) -> Duration {
    span.map_or(default, |span| span.0).min(MAX_INTERVAL)
}

async fn watch_one(
    inputs: Inputs,
    reaches: Reaches,
    machine: MachineId,
    run: String,
    named: NamedCheck,
    at: Addresses,
) {
    let check = &named.check;
    let interval = bounded(check.interval, DEFAULT_INTERVAL).max(MIN_INTERVAL);
    let timeout = bounded(check.timeout, DEFAULT_TIMEOUT).max(MIN_INTERVAL);
    let grace = bounded(check.grace_period, DEFAULT_GRACE);
    let started = Instant::now();
    let tell = |status: &'static str, output: String| {
        let updated_at = clock::rfc3339(clock::unix_ms());
        let status = CheckStatus { name: named.name.clone(), status: status.into(), output, updated_at };
        inputs.send(Input::Check { machine: machine.clone(), run: run.clone(), status })
    };
    tell("warning", "not checked yet".into()).await;
    let mut last = None;
    loop {
        let result = match tokio::time::timeout(timeout, probe(check, at, &mut last, timeout)).await {
            Ok(Err(Fault::Unreached(error))) => {
                Err(match reaches.ask(&machine, check.port.unwrap_or(0), BY_CHECK).await.hint {
                    Some(hint) => format!("{error}: {hint}"),
                    None => error,
                })
            }
            Ok(Err(Fault::Answer(error))) => Err(error),
            Ok(Ok(output)) => Ok(output),
            Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
        };
        match result {
            Ok(output) => tell("passing", output).await,
            Err(output) if started.elapsed() < grace => tell("warning", output).await,
            Err(output) => tell("critical", output).await,
        }
        tokio::time::sleep(interval).await;
    }
}

/// Why a check failed.
enum Fault {
    /// Neither address took a connection.
    Unreached(String),
    Answer(String),
}

/// `last`: the address that answered last, for the next time.
async fn probe(check: &Check, at: Addresses, last: &mut Option<Family>, bound: Duration) -> Result<String, Fault> {
    let Some(port) = check.port else { return Err(Fault::Answer("the check names no port".into())) };
    let dialed = dial(at, port, *last, bound).await;
    let (stream, family) = dialed.map_err(|error| Fault::Unreached(error.to_string()))?;
    *last = Some(family);
    if check.kind.as_deref() != Some("http") {
        return Ok("connected".into());
    }
    http_probe(check, stream).await.map_err(Fault::Answer)
}

async fn http_probe(check: &Check, stream: TcpStream) -> Result<String, String> {
    let host = stream.peer_addr().map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driving = tokio::spawn(connection);
    let method = check.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let mut request = Request::builder()
        .method(method.as_str())
        .uri(check.path.as_deref().unwrap_or("/"))
        .header("user-agent", "godwit-check");
    for header in &check.headers {
        for value in &header.values {
            request = request.header(header.name.as_str(), value.as_str());
        }
    }
    if !check.headers.iter().any(|header| header.name.eq_ignore_ascii_case("host")) {
        request = request.header("host", host.to_string());
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string());
    let result = match answer {
        Err(error) => Err(error),
        Ok(answer) => {
            let status = answer.status();
            // A body past the bound is no fault of the Machine's: its beginning is enough.
            let body = Limited::new(answer.into_body(), OUTPUT_BYTES).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            let output = format!("{status}: {}", String::from_utf8_lossy(&body));
            if status.is_success() { Ok(output) } else { Err(output) }
        }
    };
    driving.abort();
    result
}
