//! A client with a WebSocket: it talks on it, and opens another when it is closed, as a move closes it. A wrong echo or
//! a refused handshake is a failure; being closed is not.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Shared;

const TALK_INTERVAL: Duration = Duration::from_millis(200);
/// An echo or a handshake that takes longer is a failure; a handshake may wait for a move.
const ECHO_TIMEOUT: Duration = Duration::from_secs(20);
const HEAD_LIMIT_LINES: usize = 100;
const TEXT: u8 = 0x81;
/// A short masked frame of a client; the mask may be any, even this.
const MASK: [u8; 4] = [0x5a, 0x11, 0xc3, 0x27];

/// How a conversation ended.
enum End {
    /// We were told to stop.
    Stopped,
    /// The other side closed it.
    Closed,
    Wrong(String),
}

/// Keeps one open until the traffic stops.
pub async fn keep_open(shared: Arc<Shared>) {
    loop {
        match converse(&shared).await {
            End::Stopped => return,
            End::Closed => shared.tally.web_socket_closed(),
            End::Wrong(why) => {
                shared.tally.web_socket_failed(&why);
                tokio::time::sleep(TALK_INTERVAL).await;
            }
        }
        if shared.stop.is_cancelled() {
            return;
        }
    }
}

async fn converse(shared: &Shared) -> End {
    let opened = tokio::time::timeout(ECHO_TIMEOUT, open(shared)).await;
    let mut stream = match opened {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return End::Wrong(format!("handshake: {error}")),
        Err(_) => return End::Wrong("no handshake in time".into()),
    };
    shared.tally.web_socket_opened();
    let mut number = 0u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(TALK_INTERVAL) => {}
            () = shared.stop.cancelled() => return End::Stopped,
        }
        number += 1;
        match tokio::time::timeout(ECHO_TIMEOUT, echo(&mut stream, &format!("message {number}"))).await {
            Ok(Ok(Some(true))) => {}
            Ok(Ok(Some(false))) => return End::Wrong("another message came back".into()),
            // A close frame, or the end of the connection in whatever way.
            Ok(Ok(None) | Err(_)) => return End::Closed,
            Err(_) => return End::Wrong("no echo in time".into()),
        }
    }
}

async fn open(shared: &Shared) -> io::Result<BufReader<TcpStream>> {
    let mut stream = BufReader::new(TcpStream::connect(shared.plan.addr).await?);
    let key = base64::engine::general_purpose::STANDARD.encode(b"sixteen bytes ok");
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n",
        shared.plan.host
    );
    stream.write_all(head.as_bytes()).await?;
    let mut status = String::new();
    stream.read_line(&mut status).await?;
    if !status.starts_with("HTTP/1.1 101") {
        return Err(io::Error::other(format!("no 101 but {:?}", status.trim())));
    }
    for _ in 0..HEAD_LIMIT_LINES {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            return Ok(stream);
        }
    }
    Err(io::Error::other("the head has no end"))
}

/// Sends a message and reads one: whether it is the same, or `None` if it is a close.
async fn echo(stream: &mut BufReader<TcpStream>, message: &str) -> io::Result<Option<bool>> {
    let mut frame = vec![TEXT, 0x80 | message.len() as u8];
    frame.extend(MASK);
    frame.extend(message.bytes().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    stream.write_all(&frame).await?;
    let (head, length) = (stream.read_u8().await?, stream.read_u8().await?);
    let mut back = vec![0; usize::from(length & 0x7f)];
    stream.read_exact(&mut back).await?;
    Ok((head == TEXT).then(|| back == message.as_bytes()))
}
