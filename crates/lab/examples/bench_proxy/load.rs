//! The loads. h2load makes those that it can make; the others are a few lines each. An answer that is not what was asked for
//! ends the benchmark: a cost without its work is none.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustls::client::Resumption;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::subject::Subject;

/// Held at the same time, each after one request.
const IDLE: usize = 10_000;
/// Opened at a time.
const OPENING: usize = 32;
const SOCKETS: usize = 64;
const MESSAGE_BYTES: usize = 128;
const GIB: u64 = 1 << 30;
const CHUNK_BYTES: usize = 256 << 10;
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, PartialEq)]
pub enum Size {
    /// Enough for connections and caches to stand.
    Warm,
    Whole,
}

impl Size {
    fn of(self, warm: u64, whole: u64) -> u64 {
        if self == Self::Warm { warm } else { whole }
    }
}

/// Puts the load on; how many operations it was.
pub async fn run(kind: &str, one: &Subject, host: &str, size: Size) -> Result<f64> {
    let done = async {
        match kind {
            "h1" => h2load(one.http, &format!("http://{host}/"), &["--h1", "-c64"], size.of(3_000, 60_000)).await,
            "h1s" => h2load(one.https, &format!("https://{host}/"), &["--h1", "-c64"], size.of(3_000, 60_000)).await,
            "h2" => h2load(one.https, &format!("https://{host}/"), &["-c16", "-m16"], size.of(3_000, 60_000)).await,
            "tls" => handshakes(one, host, size.of(50, 1_000)).await,
            "ws" => messages(one.http, host, size.of(10, 800)).await,
            "post" => post(one.http, host, size.of(GIB / 64, GIB)).await,
            other => bail!("no load is called {other:?}: h1, h1s, h2, tls, ws, post, idle"),
        }
    };
    tokio::time::timeout(LIMIT, done).await.with_context(|| format!("{kind} through {}", one.name))?
}

async fn h2load(addr: SocketAddr, url: &str, more: &[&str], requests: u64) -> Result<f64> {
    let output = tokio::process::Command::new("h2load")
        .args(["-t1", &format!("-n{requests}"), &format!("--connect-to={addr}")])
        .args(more)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot start h2load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let all = format!("status codes: {requests} 2xx");
    ensure!(text.contains(&all), "h2load {url} at {addr}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(requests as f64)
}

/// Connections of full handshakes with one request each.
async fn handshakes(one: &Subject, host: &str, count: u64) -> Result<f64> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(one.authority.clone())?;
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream::iter(0..count)
        .map(|_| async {
            let stream = TcpStream::connect(one.https).await?;
            stream.set_nodelay(true)?;
            let mut stream = connector.connect(name.clone(), stream).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            // Some peers end without a word of TLS; what counts is that the answer is whole.
            let _ = stream.read_to_end(&mut answer).await;
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            Ok(())
        })
        .buffer_unordered(16)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(count as f64)
}

/// Messages to and fro: each is counted as one.
async fn messages(addr: SocketAddr, host: &str, each: u64) -> Result<f64> {
    // FIN and binary; masked, as a client must, by a mask that changes nothing (RFC 6455, 5.2).
    let length = u16::try_from(MESSAGE_BYTES)?.to_be_bytes();
    let mut frame = vec![0x82, 0x80 | 126, length[0], length[1], 0, 0, 0, 0];
    frame.resize(frame.len() + MESSAGE_BYTES, b'x');
    let mut expected = vec![0x82, 126, length[0], length[1]];
    expected.resize(expected.len() + MESSAGE_BYTES, b'x');
    let asked = format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let talking = (0..SOCKETS).map(|_| async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        stream.write_all(asked.as_bytes()).await?;
        let head = head(&mut stream).await?;
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        let mut heard = vec![0; expected.len()];
        for _ in 0..each {
            stream.write_all(&frame).await?;
            stream.read_exact(&mut heard).await?;
            ensure!(heard == expected, "another message came back");
        }
        Ok(())
    });
    futures_util::future::try_join_all(talking).await?;
    Ok((SOCKETS as u64 * each) as f64)
}

/// One upload; counted as one operation, whatever its size.
async fn post(addr: SocketAddr, host: &str, bytes: u64) -> Result<f64> {
    let mut stream = TcpStream::connect(addr).await?;
    let request =
        format!("POST /echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let chunk = vec![0x5a; CHUNK_BYTES];
    for _ in 0..bytes / CHUNK_BYTES as u64 {
        stream.write_all(&chunk).await?;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let whole = answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("\"length\":{bytes}"));
    ensure!(whole, "{answer}");
    Ok(1.0)
}

/// Connections that have asked once and say nothing more.
pub async fn hold(addr: &SocketAddr, host: &str) -> Result<Vec<TcpStream>> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream::iter(0..IDLE)
        .map(|_| async {
            let mut stream = TcpStream::connect(addr).await?;
            stream.write_all(request.as_bytes()).await?;
            let head = head(&mut stream).await?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            let length = head.to_ascii_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<usize>().ok())
            });
            let mut body = vec![0; length.context("an answer without a length")?];
            stream.read_exact(&mut body).await?;
            Ok(stream)
        })
        .buffer_unordered(OPENING)
        .try_collect()
        .await
}

/// Up to the empty line and not a byte further.
async fn head<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await?);
        ensure!(bytes.len() < 16 << 10, "a head without an end");
    }
    Ok(String::from_utf8(bytes)?)
}
