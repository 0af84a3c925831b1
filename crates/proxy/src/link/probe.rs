//! Probing a connection with PING, so that a host that went black without a word is noticed.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};

use super::{PING_INTERVAL, PING_TIMEOUT};

/// Probes that go out at once on a new link: the shortest of them is how far away the peer is. One alone may be a
/// moment's load.
const FIRST_PROBES: u32 = 4;

/// Ends when a probe of a link stays unanswered; tells each round trip.
pub async fn probe(ping: Option<PingPong>, told: impl Fn(Duration)) {
    run(FIRST_PROBES, PING_INTERVAL, PING_TIMEOUT, ping, told).await;
}

/// The same of any connection: `interval` after an answer comes the next probe, which has `timeout`.
pub async fn probe_every(interval: Duration, timeout: Duration, ping: Option<PingPong>, told: impl Fn(Duration)) {
    run(0, interval, timeout, ping, told).await;
}

async fn run(at_once: u32, interval: Duration, timeout: Duration, ping: Option<PingPong>, told: impl Fn(Duration)) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    for n in 0u64.. {
        if n >= u64::from(at_once) {
            tokio::time::sleep(interval).await;
        }
        let sent = Instant::now();
        if ping.send_ping(Ping::opaque()).is_err() {
            return;
        }
        match tokio::time::timeout(timeout, poll_fn(|cx| ping.poll_pong(cx))).await {
            Ok(Ok(_)) => told(sent.elapsed()),
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
