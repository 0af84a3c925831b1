//! Bytes as they go over a socket: a client that sends them, and readings of them as naive as can be.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A test that waits longer waits for nothing.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn patient<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("nothing happened for too long")
}

/// As the `http` crate writes it: names in lower case, and a length for a POST without a body.
pub fn over_map(forwarded: &[u8]) -> String {
    let text = String::from_utf8(forwarded.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let mut out = lines.next().unwrap().to_owned();
    let has_framing = head.contains("content-length: ") || head.contains("transfer-encoding: ");
    // What frames or switches is written last, behind the fields.
    let mut fields: Vec<_> = lines
        .map(|line| {
            line.split_once(':').map(|(name, value)| format!("{}: {}", name.to_lowercase(), value.trim())).unwrap()
        })
        .collect();
    if head.starts_with("POST ") && !has_framing {
        fields.push("content-length: 0".to_owned());
    }
    for field in fields {
        out.push_str("\r\n");
        out.push_str(&field);
    }
    format!("{out}\r\n\r\n{}", body.replace("X-Sum", "x-sum"))
}

/// A reading as naive as can be; the proxy's writing must be plain enough for it.
pub fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    if head.contains("transfer-encoding: chunked") {
        return body.starts_with("0\r\n") && body.ends_with("\r\n\r\n")
            || body.contains("\r\n0\r\n") && body.ends_with("\r\n\r\n");
    }
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

/// A client that sends raw bytes.
pub struct Raw {
    pub socket: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(addr).await.unwrap(), read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        patient(self.socket.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Everything up to and with `end`.
    pub async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|part| part == end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            let read = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.read)).await;
            let read = read
                .unwrap_or_else(|_| panic!("{end:?} does not come after {:?}", String::from_utf8_lossy(&self.read)));
            let read = read.unwrap();
            assert!(read > 0, "ended without {end:?} after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// Everything up to the connection's end.
    pub async fn rest(&mut self) -> String {
        // A reset after the answer is an end too.
        while patient(self.socket.read_buf(&mut self.read)).await.unwrap_or(0) > 0 {}
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }
}
