//! HTTP/1.1 connections that are kept alive, each with one request at a time; nothing is ever sent twice.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Answers beyond this are a failure.
const ANSWER_LIMIT_BYTES: usize = 8 << 20;

pub struct Pool {
    addr: SocketAddr,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    opened: AtomicU64,
}

impl Pool {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, idle: Mutex::default(), opened: AtomicU64::new(0) }
    }

    pub fn connections_opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Sends once, on an idle connection or a new one, and reads the whole answer.
    pub async fn send(&self, request: Request<Full<Bytes>>, own: bool) -> Result<(StatusCode, Bytes), String> {
        let idle = if own { None } else { self.take_idle() };
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.open().await?,
        };
        let answer = connection.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES).collect().await;
        let body = body.map_err(|error| format!("the answer broke off: {error}"))?.to_bytes();
        if !own {
            self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(connection);
        }
        Ok((status, body))
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The last one in is the least likely to have been closed by the other side meanwhile.
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(self.addr).await.map_err(|error| format!("cannot connect: {error}"))?;
        // A request should not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // Its end is seen by whoever sends on it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

fn broken(error: &hyper::Error) -> String {
    format!("the connection broke: {}", godwit_base::telemetry::chain(error))
}
