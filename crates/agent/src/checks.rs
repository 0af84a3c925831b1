//! Health: dials a running Machine at its private address as its checks say, and tells each result. A failure within
//! the grace period does not count. It must not know what a result leads to.

use std::net::{Ipv6Addr, SocketAddr};
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

use crate::engine::{Input, NamedCheck};
use crate::owner::Inputs;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_GRACE: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(200);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// Of an answer's body so much is read and shown.
const OUTPUT_BYTES: usize = 512;

/// Runs until it is aborted.
pub async fn look_after(inputs: Inputs, machine: MachineId, run: String, checks: Vec<NamedCheck>, ip: Ipv6Addr) {
    let mut tasks = JoinSet::new();
    for check in checks {
        tasks.spawn(watch_one(inputs.clone(), machine.clone(), run.clone(), check, ip));
    }
    while tasks.join_next().await.is_some() {}
}

fn bounded(span: Option<Span>, default: Duration) -> Duration {
    span.map_or(default, |span| span.0).min(MAX_INTERVAL)
}

async fn watch_one(inputs: Inputs, machine: MachineId, run: String, named: NamedCheck, ip: Ipv6Addr) {
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
    loop {
        let result = match tokio::time::timeout(timeout, probe(check, ip)).await {
            Ok(result) => result,
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

async fn probe(check: &Check, ip: Ipv6Addr) -> Result<String, String> {
    let Some(port) = check.port else { return Err("the check names no port".into()) };
    let stream = TcpStream::connect(SocketAddr::from((ip, port))).await.map_err(|error| error.to_string())?;
    if check.kind.as_deref() != Some("http") {
        return Ok("connected".into());
    }
    http_probe(check, ip, port, stream).await
}

async fn http_probe(check: &Check, ip: Ipv6Addr, port: u16, stream: TcpStream) -> Result<String, String> {
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
        request = request.header("host", format!("[{ip}]:{port}"));
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
