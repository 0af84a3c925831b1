//! Frames and header blocks of HTTP/2, written and read by hand: no library would send what the table sends.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::PATIENCE;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An integer with a prefix of `bits` (RFC 7541 section 5.1).
fn integer(out: &mut Vec<u8>, first: u8, bits: u32, mut value: usize) {
    let most = (1usize << bits) - 1;
    if value < most {
        return out.push(first | value as u8);
    }
    out.push(first | most as u8);
    value -= most;
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Literals that nobody remembers (RFC 7541 section 6.2.2), as they are.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            integer(&mut block, 0, 7, text.len());
            block.extend(text);
        }
    }
    block
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    frame(SETTINGS, 0, 0, &payload)
}

pub fn window(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// The `:status` of an answer's block, if it comes first, as servers write it.
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match *block {
        [first @ 0x88..=0x8e, ..] => Some(INDEXED[usize::from(first - 0x88)]),
        // A literal with the name's index, 8.
        [0x08 | 0x18 | 0x48, length, ref rest @ ..] => {
            let text = rest.get(..usize::from(length & 0x7f))?;
            let text = if length & 0x80 == 0 { String::from_utf8(text.to_vec()).ok()? } else { digits(text) };
            text.parse().ok()
        }
        // A change of the table's size comes before all.
        [0x20..=0x3f, ref rest @ ..] => status(rest),
        _ => None,
    }
}

/// Digits in Huffman's code: 0, 1 and 2 have five bits, the others six (RFC 7541 appendix B).
fn digits(bytes: &[u8]) -> String {
    let mut bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let mut text = String::new();
    while bits.len() >= 5 {
        let five = bits[..5].iter().fold(0u8, |sum, bit| sum << 1 | bit);
        let (digit, length) = match five {
            0..=2 => (five, 5),
            _ if bits.len() < 6 => break,
            _ => ((five << 1 | bits[5]).wrapping_sub(0b01_1001).wrapping_add(3), 6),
        };
        if digit > 9 {
            break;
        }
        text.push(char::from(b'0' + digit));
        bits.drain(..length);
    }
    text
}

/// What the edge said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Head {
        stream: u32,
        status: Option<u16>,
        end: bool,
    },
    Data {
        stream: u32,
        length: usize,
        end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    GoAway {
        code: u32,
    },
    Pong([u8; 8]),
    SettingsAck,
    Other,
    /// Nothing more comes.
    Closed,
}

pub struct Wire {
    read: tokio::io::ReadHalf<TlsStream<TcpStream>>,
    /// Taken by a writer of its own: the edge may stop reading while it must be read.
    to_write: tokio::sync::mpsc::UnboundedSender<Vec<u8>>,
}

impl Wire {
    pub fn over(stream: TlsStream<TcpStream>) -> Self {
        let (read, mut write) = tokio::io::split(stream);
        let (to_write, mut pieces) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                // A connection that is gone is told by reading; an empty piece ends it.
                let written = if piece.is_empty() { write.shutdown().await } else { write.write_all(&piece).await };
                if written.is_err() || write.flush().await.is_err() {
                    return;
                }
            }
        });
        Self { read, to_write }
    }

    pub fn send(&self, bytes: Vec<u8>) {
        let _ = self.to_write.send(bytes);
    }

    pub async fn hear(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.next()).await.expect("a frame or the end")
    }

    async fn next(&mut self) -> Heard {
        let mut head = [0; 9];
        if self.read.read_exact(&mut head).await.is_err() {
            return Heard::Closed;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if self.read.read_exact(&mut payload).await.is_err() {
            return Heard::Closed;
        }
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let end = flags & END_STREAM != 0;
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            HEADERS => Heard::Head { stream, status: status(&payload), end },
            DATA => Heard::Data { stream, length: payload.len(), end },
            RST_STREAM => Heard::Reset { stream, code: number(0) },
            GOAWAY => Heard::GoAway { code: number(4) },
            PING if flags & ACK != 0 => Heard::Pong(payload[..8].try_into().unwrap()),
            SETTINGS if flags & ACK != 0 => Heard::SettingsAck,
            _ => Heard::Other,
        }
    }
}

#[test]
fn a_status_is_read_however_it_is_written() {
    assert_eq!(status(&[0x88]), Some(200));
    assert_eq!(status(b"\x20\x48\x03502"), Some(502));
    for (code, bits) in [(405, "011010 00000 011011"), (503, "011011 00000 011001"), (431, "011010 011001 00001")] {
        let mut bits = bits.replace(' ', "");
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let bytes: Vec<u8> =
            (0..bits.len() / 8).map(|at| u8::from_str_radix(&bits[8 * at..8 * at + 8], 2).unwrap()).collect();
        assert_eq!(status(&[&[0x48, 0x80 | bytes.len() as u8], &bytes[..]].concat()), Some(code));
    }
}
