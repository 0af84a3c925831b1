//! A WebSocket echo (RFC 6455), server side: messages come back whole, whatever their fragments; pings are answered;
//! a close is echoed. A breach of the protocol closes with the code that the RFC asks for.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::header::{self, HeaderMap, HeaderValue};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The longest message that is echoed; longer ones close with 1009.
const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const INVALID_DATA: u16 = 1007;
const TOO_BIG: u16 = 1009;

/// The answer's `Sec-WebSocket-Accept`; `None` when the request is no WebSocket handshake of version 13.
pub fn accept_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let has = |name, token: &str| {
        let value = headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        value.is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let wanted = has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    wanted.then(|| accept_of(key))?
}

fn accept_of(key: &str) -> Option<HeaderValue> {
    let hash = Sha1::digest(format!("{key}{GUID}").as_bytes());
    HeaderValue::from_str(&BASE64.encode(hash)).ok()
}

struct Frame {
    last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

/// Why the conversation ends.
enum End {
    /// The peer said so, or vanished.
    Io(io::Error),
    /// It must be told this code.
    Breach(u16),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Echoes until the peer closes, breaks the protocol, or `stop`.
pub async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, stop: CancellationToken) -> io::Result<()> {
    let ended = tokio::select! {
        ended = converse(&mut stream) => ended,
        () = stop.cancelled() => Err(End::Breach(GOING_AWAY)),
    };
    match ended {
        Ok(()) => {}
        Err(End::Io(error)) => return Err(error),
        Err(End::Breach(code)) => write_frame(&mut stream, CLOSE, &code.to_be_bytes()).await?,
    }
    stream.shutdown().await
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), End> {
    // Kind and content of a message whose last fragment has not come.
    let mut message: Option<(u8, Vec<u8>)> = None;
    loop {
        let have = message.as_ref().map_or(0, |(_, content)| content.len());
        let frame = read_frame(stream, MESSAGE_LIMIT_BYTES - have).await?;
        match frame.opcode {
            PING => write_frame(stream, PONG, &frame.payload).await?,
            PONG => {}
            CLOSE => {
                // One byte cannot be a code (section 5.5.1).
                if frame.payload.len() == 1 {
                    return Err(End::Breach(PROTOCOL_ERROR));
                }
                let code = &frame.payload[..frame.payload.len().min(2)];
                write_frame(stream, CLOSE, code).await?;
                return Ok(());
            }
            opcode => {
                let (kind, mut content) = match (message.take(), opcode) {
                    (Some(begun), CONTINUATION) => begun,
                    (None, TEXT | BINARY) => (opcode, Vec::new()),
                    _ => return Err(End::Breach(PROTOCOL_ERROR)),
                };
                content.extend_from_slice(&frame.payload);
                if !frame.last {
                    message = Some((kind, content));
                } else if kind == TEXT && std::str::from_utf8(&content).is_err() {
                    return Err(End::Breach(INVALID_DATA));
                } else {
                    write_frame(stream, kind, &content).await?;
                }
            }
        }
    }
}

/// Section 5.2; frames of clients must be masked, control frames short and whole.
async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S, limit_bytes: usize) -> Result<Frame, End> {
    let head = stream.read_u16().await?;
    let (last, reserved, opcode) = (head & 0x8000 != 0, head & 0x7000, (head >> 8 & 0x0f) as u8);
    let (masked, short) = (head & 0x80 != 0, head & 0x7f);
    let length = match short {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    let control = opcode >= CLOSE;
    if reserved != 0 || !masked || opcode > PONG || (3..CLOSE).contains(&opcode) || (control && (!last || short > 125))
    {
        return Err(End::Breach(PROTOCOL_ERROR));
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if !control && length > limit_bytes {
        return Err(End::Breach(TOO_BIG));
    }
    let mask = stream.read_u32().await?.to_be_bytes();
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Ok(Frame { last, opcode, payload })
}

async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, opcode: u8, payload: &[u8]) -> io::Result<()> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        short @ 0..=125 => bytes.push(short as u8),
        middle @ 126..=0xffff => {
            bytes.push(126);
            bytes.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            bytes.push(127);
            bytes.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_gives_the_answer_of_the_rfc() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ==").unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [7, 1, 200, 33];
        let mut bytes = vec![head, 0x80 | payload.len() as u8];
        bytes.extend_from_slice(&mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }

    /// What comes back for `sent`.
    async fn answers(sent: &[&[u8]]) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let echoing = tokio::spawn(echo(server, CancellationToken::new()));
        client.write_all(&sent.concat()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        let _ = echoing.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn fragments_become_one_message_with_a_ping_between_them() {
        let close = frame(0x88, &1000u16.to_be_bytes());
        let sent = [frame(0x01, b"hel"), frame(0x89, b"p"), frame(0x80, b"lo"), close];
        let sent: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
        assert_eq!(answers(&sent).await, b"\x8a\x01p\x81\x05hello\x88\x02\x03\xe8");
    }

    #[tokio::test]
    async fn a_breach_is_told_its_code() {
        let unmasked: &[u8] = b"\x81\x01x";
        let closed = |code: u16| [&[0x88, 2][..], &code.to_be_bytes()].concat();
        assert_eq!(answers(&[unmasked]).await, closed(PROTOCOL_ERROR));
        assert_eq!(answers(&[&frame(0x80, b"x")]).await, closed(PROTOCOL_ERROR), "continuation of nothing");
        assert_eq!(answers(&[&frame(0x09, b"x")]).await, closed(PROTOCOL_ERROR), "fragmented ping");
        assert_eq!(answers(&[&frame(0x81, &[0xff])]).await, closed(INVALID_DATA));
    }
}
