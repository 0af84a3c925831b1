//! An upload that takes its time: its bytes leave evenly, so that it is in flight whatever happens meanwhile.

use std::io;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Plan;
use crate::plain;

const PIECE_BYTES: u64 = 64 << 10;
/// Answers beyond this are none of the demo app.
const ANSWER_LIMIT_BYTES: u64 = 64 << 10;

/// Sends `bytes` over about `time` on a connection of its own; the app must have received each of them.
pub async fn send(plan: &Plan, bytes: u64, time: Duration) -> Result<(), String> {
    let (answer, sha256) = talk(plan, bytes, time).await.map_err(|error| format!("POST /echo: {error}"))?;
    let json = answer.json();
    if answer.status == 200 && json["length"] == bytes && json["sha256"] == sha256.as_str() {
        return Ok(());
    }
    Err(format!("POST /echo of {bytes} bytes: status {}: {}", answer.status, answer.text().trim()))
}

async fn talk(plan: &Plan, bytes: u64, time: Duration) -> io::Result<(plain::Answer, String)> {
    let mut stream = TcpStream::connect(plan.addr).await?;
    let head =
        format!("POST /echo HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n", plan.host);
    stream.write_all(head.as_bytes()).await?;
    let (begin, mut hash, mut sent) = (Instant::now(), Sha256::new(), 0);
    let mut content = blake3::Hasher::new().finalize_xof();
    let mut piece = vec![0; PIECE_BYTES as usize];
    while sent < bytes {
        let length = PIECE_BYTES.min(bytes - sent) as usize;
        content.fill(&mut piece[..length]);
        hash.update(&piece[..length]);
        stream.write_all(&piece[..length]).await?;
        sent += length as u64;
        let due = begin + time.mul_f64(sent as f64 / bytes as f64);
        tokio::time::sleep_until(due.into()).await;
    }
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer).await?;
    Ok((plain::parse(&answer)?, hex::encode(hash.finalize())))
}
