//! Probing a connection with PING, so that a host that went black without a word is noticed.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use h2::{Ping, PingPong};

use super::{PING_INTERVAL, PING_TIMEOUT};

/// Ends when a probe of a link stays unanswered; tells each round trip.
pub async fn probe(ping: Option<PingPong>, told: impl Fn(Duration)) {
    probe_every(PING_INTERVAL, PING_TIMEOUT, ping, told).await;
}

/// The same of any connection: `interval` after an answer comes the next probe, which has `timeout`.
pub async fn probe_every(interval: Duration, timeout: Duration, ping: Option<PingPong>, told: impl Fn(Duration)) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(interval).await;
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
