//! The kinds of requests, and what the answer to each must be.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};

use super::{Ledger, Plan};
use crate::pool::Pool;

/// How long the app takes over a slow request.
const SLOW_MS: u64 = 2000;
/// How much of the filled file one request reads.
const PART_BYTES: u64 = 64 << 10;
/// Content of an append; enough that a record spans no fixed number of sectors.
const APPEND_MAX_BYTES: u64 = 3000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `GET /`
    Plain,
    /// `POST /log`, acknowledged when it is on disk
    Append,
    /// A part of the filled file, compared byte by byte
    Part,
    /// `GET /sleep?ms=2000`
    Slow,
    /// A long `POST /echo`
    Upload,
}

impl Kind {
    /// The quick request of this number.
    pub fn of(number: u64) -> Self {
        match number % 10 {
            2 | 7 => Self::Append,
            4 | 9 => Self::Part,
            _ => Self::Plain,
        }
    }

    pub fn is_quick(self) -> bool {
        matches!(self, Self::Plain | Self::Append | Self::Part)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Append => "append",
            Self::Part => "part",
            Self::Slow => "slow",
            Self::Upload => "upload",
        }
    }
}

/// Who gave an answer, as far as it says.
#[derive(Debug, Clone, Default)]
pub struct Answerer {
    pub host: String,
    pub process: String,
}

/// Sends one request and judges its answer.
pub async fn carry_out(kind: Kind, number: u64, plan: &Plan, pool: &Pool, ledger: &Ledger) -> Result<Answerer, String> {
    match (kind, plan.filled) {
        (Kind::Append, _) => append(number, plan, pool, ledger).await,
        (Kind::Part, Some(filled)) => part(number, filled, plan, pool).await,
        (Kind::Slow, _) => {
            let answer = json(pool, plan, Method::GET, &format!("/sleep?ms={SLOW_MS}"), Bytes::new()).await?;
            if answer["slept_ms"] == SLOW_MS { Ok(Answerer::default()) } else { Err(format!("it slept not: {answer}")) }
        }
        (Kind::Plain | Kind::Part | Kind::Upload, _) => {
            let answer = json(pool, plan, Method::GET, "/", Bytes::new()).await?;
            let text = |name: &str| answer[name].as_str().unwrap_or("").to_owned();
            let answerer = Answerer { host: text("host"), process: text("started_at") };
            if answerer.process.is_empty() { Err(format!("no process in {answer}")) } else { Ok(answerer) }
        }
    }
}

async fn append(number: u64, plan: &Plan, pool: &Pool, ledger: &Ledger) -> Result<Answerer, String> {
    let mut content = format!("append {number} ");
    let length = (number.wrapping_mul(7919) % APPEND_MAX_BYTES) as usize;
    content.extend(std::iter::repeat_n('.', length));
    let content = Bytes::from(content);
    let answer = json(pool, plan, Method::POST, "/log", content.clone()).await?;
    let (Some(record), Some(sum)) = (answer["number"].as_u64(), answer["sha256"].as_str()) else {
        return Err(format!("no acknowledgement: {answer}"));
    };
    ledger.note(record, sum, &content)?;
    Ok(Answerer::default())
}

async fn part(number: u64, (mib, seed): (u64, u64), plan: &Plan, pool: &Pool) -> Result<Answerer, String> {
    let parts = (mib << 20) / PART_BYTES;
    // Multiplication by an odd number spreads the reads over the file.
    let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % parts.max(1) * PART_BYTES;
    let body = ok(pool, plan, Method::GET, &format!("/fill?at={at}&bytes={PART_BYTES}"), Bytes::new()).await?;
    let mut expected = vec![0; PART_BYTES as usize];
    let mut reader = blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof();
    reader.set_position(at);
    reader.fill(&mut expected);
    if body == expected { Ok(Answerer::default()) } else { Err(format!("wrong bytes at {at} of the filled file")) }
}

async fn json(pool: &Pool, plan: &Plan, method: Method, path: &str, body: Bytes) -> Result<serde_json::Value, String> {
    let body = ok(pool, plan, method, path, body).await?;
    serde_json::from_slice(&body).map_err(|_| "the body is not the demo app's".to_owned())
}

async fn ok(pool: &Pool, plan: &Plan, method: Method, path: &str, body: Bytes) -> Result<Bytes, String> {
    let request = Request::builder()
        .method(&method)
        .uri(path)
        .header("host", &plan.host)
        .header("user-agent", "godwit-lab")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let (status, body) = pool.send(request, false).await.map_err(|why| format!("{method} {path}: {why}"))?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
    Err(format!("{method} {path}: status {status}: {}", text.trim()))
}
