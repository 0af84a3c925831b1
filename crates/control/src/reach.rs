//! Does a host name lead to an edge of this fleet? Asked as an authority would ask: resolve it, and fetch over HTTP a
//! challenge that only our edges can answer.

use std::time::Duration;

use godwit_api::hostname::{ChallengeAnswer, ChallengeRow, HostnameCheck};
use godwit_api::{ApiError, Hostname, keys};
use godwit_base::http::client::Client;
use godwit_base::{clock, secret};
use godwit_store::{Compare, Op, Txn};
use http_body_util::{BodyExt, Limited};

use crate::control::{Control, get_request};
use crate::rows::json;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Edges have heard of the challenge by the second or third look.
const FETCH_ATTEMPTS: u32 = 5;
const FETCH_PAUSE: Duration = Duration::from_millis(200);
const BODY_LIMIT_BYTES: usize = 1 << 10;
const ADDRESSES_MAX: usize = 16;
/// A challenge of ours that nobody took away ends then.
const CHALLENGE_LIFE_MS: u64 = 30_000;

pub(crate) async fn check(control: &Control, hostname: &Hostname) -> Result<HostnameCheck, ApiError> {
    let Ok(_place) = control.checks.try_acquire() else {
        return Err(ApiError::unavailable("too many host names are being checked; try again", 2));
    };
    let mut found = HostnameCheck { checked_at_ms: clock::unix_ms(), ..HostnameCheck::default() };
    // A wildcard is looked for at one of its names.
    let name = match hostname.wildcard_of() {
        Some(parent) => format!("godwit-check.{parent}"),
        None => hostname.to_string(),
    };
    match resolve(&name).await {
        Ok(addresses) => found.addresses = addresses,
        Err(why) => {
            found.error = Some(why);
            return Ok(found);
        }
    }
    if hostname.wildcard_of().is_none() {
        match fetch(control, hostname).await? {
            Ok(()) => found.http_reached = true,
            Err(why) => found.error = Some(why),
        }
    }
    Ok(found)
}

async fn resolve(name: &str) -> Result<Vec<String>, String> {
    let looked = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, 80))).await;
    let mut addresses: Vec<String> = match looked {
        Err(_) => return Err(format!("the name servers said nothing of {name} in time")),
        Ok(Err(error)) => return Err(format!("{name} has no address: {error}")),
        Ok(Ok(found)) => found.map(|addr| addr.ip().to_string()).take(ADDRESSES_MAX).collect(),
    };
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() { Err(format!("{name} has no address")) } else { Ok(addresses) }
}

/// Puts a challenge where edges see it, and asks for it by the name.
async fn fetch(control: &Control, hostname: &Hostname) -> Result<Result<(), String>, ApiError> {
    let token = format!("godwit-check-{:032x}", secret::random_u128());
    let expected = format!("{:032x}", secret::random_u128());
    let row = ChallengeRow {
        hostname: hostname.clone(),
        until_ms: clock::unix_ms() + CHALLENGE_LIFE_MS,
        answer: ChallengeAnswer::Http01 { token: token.clone(), key_authorization: expected.clone() },
    };
    let key = keys::challenge(hostname);
    let put = Txn::of([json(key.clone(), &row)?]).when(Compare::absent(key.clone()));
    let reply = control.commit(put).await?;
    if !reply.succeeded {
        return Ok(Err("its certificate is being ordered at this moment: look again soon".into()));
    }
    let outcome = ask(hostname, control.config.check_http_port, &token, &expected).await;
    // An order may have put its own there meanwhile: that one stays.
    control.commit(Txn::of([Op::delete(key.clone())]).when(Compare::unchanged(key, reply.revision))).await?;
    Ok(outcome)
}

async fn ask(hostname: &Hostname, port: u16, token: &str, expected: &str) -> Result<(), String> {
    let base = if port == 80 { format!("http://{hostname}") } else { format!("http://{hostname}:{port}") };
    let client = Client::tcp(&base, None);
    let path = format!("/.well-known/acme-challenge/{token}");
    let mut why = String::new();
    for attempt in 0..FETCH_ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(FETCH_PAUSE).await;
        }
        let response = client.send_raw(&path, get_request(), FETCH_TIMEOUT).await;
        let response = response.map_err(|error| godwit_base::telemetry::chain(&error))?;
        let code = response.status().as_u16();
        let read = Limited::new(response.into_body(), BODY_LIMIT_BYTES).collect();
        let body = tokio::time::timeout(FETCH_TIMEOUT, read).await.ok().and_then(Result::ok);
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if code == 200 && body.trim_ascii() == expected.as_bytes() {
            return Ok(());
        }
        why = format!("{base} is answered ({code}), but not by an edge of this fleet");
    }
    Err(why)
}
