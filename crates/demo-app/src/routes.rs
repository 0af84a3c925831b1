//! Which path answers what. Every answer is JSON with a Content-Length; wrong requests are told what is wrong.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fill::Filling;
use crate::lives::Lives;
use crate::record::Journal;
use crate::{burden, websocket};

/// The longest `/sleep` and `/burn`.
const WAIT_LIMIT_MS: u64 = 600_000;
/// The largest record of `/log`.
const RECORD_LIMIT_BYTES: usize = 1 << 20;
/// The most records that one answer of `GET /log` lists.
const LISTED_LIMIT: u64 = 10_000;
/// The largest file of `/fill`, and the largest part of it in one answer.
const FILL_LIMIT_MIB: u64 = 1 << 20;
const PART_LIMIT_BYTES: u64 = 1 << 20;
/// The fastest pace of `/echo?mib_per_s=`.
const PACE_LIMIT: u64 = 1 << 20;

/// What the process knows about itself.
pub struct App {
    machine: String,
    host: String,
    boot_count: u64,
    started_at: String,
    journal: Journal,
    filling: Filling,
    lives: Mutex<Lives>,
    stop: CancellationToken,
    /// WebSocket connections, which outlive their HTTP request.
    sockets: TaskTracker,
}

impl App {
    pub fn new(data: &Path, stop: CancellationToken) -> Self {
        let now = time::OffsetDateTime::now_utc();
        Self {
            machine: env("FLY_MACHINE_ID"),
            host: env("GODWIT_HOST_ID"),
            boot_count: count_boot(data),
            started_at: now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
            journal: Journal::at(data.join("log")),
            filling: Filling::at(data.join("fill")),
            lives: Mutex::new(Lives::begin(data)),
            stop,
            sockets: TaskTracker::new(),
        }
    }

    pub fn boot_count(&self) -> u64 {
        self.boot_count
    }

    pub async fn sockets_closed(&self) {
        self.sockets.close();
        self.sockets.wait().await;
    }

    /// Nothing may be written after it.
    pub fn end_life(&self) {
        self.lives().end();
    }

    fn lives(&self) -> MutexGuard<'_, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(&self) -> Value {
        json!({
            "machine": self.machine,
            "host": self.host,
            "boot_count": self.boot_count,
            "started_at": self.started_at,
            "pid": std::process::id(),
            "app": env("FLY_APP_NAME"),
            "region": env("FLY_REGION"),
            "private_ip": env("FLY_PRIVATE_IP"),
        })
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// How often this Machine's program was started, as far as its folder remembers.
fn count_boot(data: &Path) -> u64 {
    let file = data.join("boot_count");
    let before: u64 = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let count = before + 1;
    // Without a folder to write to, each start is the first.
    let written = std::fs::create_dir_all(data).and_then(|()| std::fs::write(&file, format!("{count}\n")));
    if written.is_ok() { count } else { 1 }
}

type Answer = Response<Full<Bytes>>;

/// A request that cannot be answered as asked: the code and why.
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(why: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, why.into())
    }
}

pub async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let answer = route(&app, request).await;
    Ok(answer.unwrap_or_else(|Refusal(code, why)| json_answer(code, &json!({ "error": why }))))
}

async fn route(app: &Arc<App>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let path = request.uri().path().to_owned();
    let get = *request.method() == Method::GET || *request.method() == Method::HEAD;
    let post = *request.method() == Method::POST;
    let value = match path.as_str() {
        "/" if get => app.identity(),
        "/echo" if post => {
            let pace = if request.uri().query().is_some() { number(&request, "mib_per_s", PACE_LIMIT)? } else { 0 };
            echo(request.into_body(), pace).await?
        }
        "/env" if get => json!(std::env::vars().collect::<BTreeMap<_, _>>()),
        "/sleep" if get => {
            let ms = number(&request, "ms", WAIT_LIMIT_MS)?;
            tokio::time::sleep(Duration::from_millis(ms)).await;
            json!({ "slept_ms": ms })
        }
        "/burn" if get => {
            let ms = number(&request, "ms", WAIT_LIMIT_MS)?;
            aside(move || burden::burn(Duration::from_millis(ms))).await?
        }
        "/alloc" if get => {
            let mb = number(&request, "mb", 1 << 20)?;
            aside(move || burden::allocate(mb)).await?
        }
        "/fork" if get => {
            let n = number(&request, "n", 1 << 20)?;
            aside(move || burden::fork(n)).await?
        }
        "/exit" if get => {
            let code = number(&request, "code", 255)?;
            burden::exit_soon(code as i32);
            json!({ "exiting_with": code })
        }
        "/log" if post => append(app, request.into_body()).await?,
        "/log" if get => {
            let (from, count) = (number(&request, "from", u64::MAX)?, number(&request, "count", LISTED_LIMIT)?);
            let app = app.clone();
            aside(move || app.journal.list(from, count)).await?.map_err(internal)?
        }
        "/log/verify" if get => {
            let app = app.clone();
            aside(move || app.journal.verify()).await?.map_err(internal)?
        }
        "/fill" if post => {
            let (mib, seed) = (number(&request, "mib", FILL_LIMIT_MIB)?, number(&request, "seed", u64::MAX)?);
            let app = app.clone();
            aside(move || app.filling.write(mib, seed)).await?.map_err(internal)?
        }
        "/fill" if get => {
            let (at, bytes) = (number(&request, "at", u64::MAX)?, number(&request, "bytes", PART_LIMIT_BYTES)?);
            let app = app.clone();
            let part = aside(move || app.filling.part(at, bytes as usize)).await?.map_err(internal)?;
            return Ok(Response::new(Full::new(part.into())));
        }
        "/checksum" if get => {
            let app = app.clone();
            aside(move || app.filling.checksum()).await?.map_err(internal)?
        }
        "/lives" if get => {
            let app = app.clone();
            aside(move || app.lives().tell()).await?.map_err(internal)?
        }
        "/ws" if get => return websocket(app, request),
        "/" | "/echo" | "/env" | "/sleep" | "/burn" | "/alloc" | "/fork" | "/exit" | "/log" | "/log/verify"
        | "/fill" | "/checksum" | "/lives" | "/ws" => {
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take this method")));
        }
        _ => return Err(Refusal(StatusCode::NOT_FOUND, format!("nothing at {path}"))),
    };
    Ok(json_answer(StatusCode::OK, &value))
}

fn json_answer(code: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

fn internal(error: std::io::Error) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// A required number of the query, at most `limit`.
fn number(request: &Request<Incoming>, name: &str, limit: u64) -> Result<u64, Refusal> {
    let query = request.uri().query().unwrap_or("");
    let text = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let text = text.ok_or_else(|| Refusal::bad(format!("say ?{name}=NUMBER")))?;
    let value: u64 = text.parse().map_err(|_| Refusal::bad(format!("{name}={text} is not a number")))?;
    if value > limit {
        return Err(Refusal::bad(format!("{name} is at most {limit}")));
    }
    Ok(value)
}

/// Runs what blocks on a thread of its own.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Hashes the body as it comes; nothing is kept, so any length will do.
/// Reads no faster than `mib_per_s`, if that is not 0.
async fn echo(mut body: Incoming, mib_per_s: u64) -> Result<Value, Refusal> {
    let (mut length, mut hash) = (0u64, Sha256::new());
    let begun = tokio::time::Instant::now();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::bad(format!("the body broke off: {error}")))?;
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
            hash.update(data);
        }
        if let Some(due_us) = ((length * 1_000_000) >> 20).checked_div(mib_per_s) {
            tokio::time::sleep_until(begun + Duration::from_micros(due_us)).await;
        }
    }
    Ok(json!({ "length": length, "sha256": hex::encode(hash.finalize()) }))
}

async fn append(app: &Arc<App>, body: Incoming) -> Result<Value, Refusal> {
    let collected = Limited::new(body, RECORD_LIMIT_BYTES).collect().await;
    let bytes = collected
        .map_err(|error| Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("no record of it: {error}")))?
        .to_bytes();
    let app = app.clone();
    let (number, checksum) = aside(move || app.journal.append(&bytes)).await?.map_err(internal)?;
    Ok(json!({ "number": number, "sha256": checksum }))
}

fn websocket(app: &Arc<App>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let accept = websocket::accept_key(request.headers())
        .ok_or_else(|| Refusal(StatusCode::UPGRADE_REQUIRED, "/ws speaks WebSocket, version 13".into()))?;
    let stop = app.stop.clone();
    app.sockets.spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            // A peer that breaks the protocol or goes away ends its own connection only.
            let _ = websocket::echo(hyper_util::rt::TokioIo::new(upgraded), stop).await;
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(answer)
}
