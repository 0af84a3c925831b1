//! A Machine that says byte for byte what a test wants, by the path that it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use godwit_api::MachineId;
use godwit_api::machine::MachineState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fleet::{Fleet, Host, Setup, http_service};
use crate::raw::is_whole;
use crate::tls::{certify, connected, trust};

/// What it says to one path.
#[derive(Clone)]
pub struct Line {
    pub path: &'static str,
    pub says: String,
    /// It closes the connection behind it.
    pub closes: bool,
}

pub fn says(path: &'static str, says: impl Into<String>) -> Line {
    Line { path, says: says.into(), closes: false }
}

pub fn then_closes(path: &'static str, says: impl Into<String>) -> Line {
    Line { path, says: says.into(), closes: true }
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub struct Stage {
    pub fleet: Fleet,
    _host: Host,
    /// Requests that the Machine has read whole.
    pub asked: Arc<AtomicU64>,
}

/// An app of one Machine that knows these lines; to all else it says `ok`.
pub async fn stage(lines: Vec<Line>) -> Stage {
    let fleet = Fleet::start(&Setup::default()).await;
    let host = Host::start("w1").await;
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked: Arc<AtomicU64> = Arc::default();
    let (counted, lines) = (asked.clone(), Arc::new(lines));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(connection(socket, lines.clone(), counted.clone()));
        }
    });
    let id = MachineId::from_bits(1);
    host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    host.agent.change(&id, |held| held.machine.state = MachineState::Started);
    fleet.publish(&[&host]).await;
    Stage { fleet, _host: host, asked }
}

async fn connection(mut socket: TcpStream, lines: Arc<Vec<Line>>, asked: Arc<AtomicU64>) {
    let mut bytes = Vec::new();
    loop {
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if !is_whole(&bytes) {
            continue;
        }
        asked.fetch_add(1, Ordering::SeqCst);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let path = text.split(' ').nth(1).unwrap_or("");
        let line = lines.iter().find(|line| path.split('?').next() == Some(line.path)).cloned();
        let Line { says, closes, .. } = line.unwrap_or_else(|| self::says("", OK));
        if socket.write_all(says.as_bytes()).await.is_err() || closes {
            return;
        }
        bytes.clear();
    }
}

/// A connection of HTTP/2 to the edge, frame by frame.
pub async fn http2(fleet: &Fleet) -> h2::client::SendRequest<bytes::Bytes> {
    let root = certify(&fleet.edge.certificates, "a.pem", &["web.localhost"]);
    let config = trust(&[&root], &[b"h2"]);
    let socket = connected(fleet.edge.https, &config, "web.localhost").await;
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    sender
}
