//! The two ends of a proxy made of nothing but the framing: a client that sends bytes, a Machine that keeps what it
//! received, and between them `serve` and `Connection`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use godwit_proxy::h1::io::{Answer, Connection, Ended, Failed, OnSwitch, Options, RequestBody, serve};
use godwit_proxy::h1::{Limits, Refusal};
use godwit_proxy::interim::Interims;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub use crate::raw::{Raw, is_whole, patient};

pub type Body = UnsyncBoxBody<Bytes, Failed>;

pub async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// How each connection ended, in order.
pub type Ends = mpsc::UnboundedReceiver<Ended>;

/// A server whose connections are served by `service`. It stops when the sender says so.
pub struct Served {
    pub addr: SocketAddr,
    pub ends: Ends,
    pub stop: watch::Sender<bool>,
}

pub async fn served<S, F>(options: Options, service: S) -> Served
where
    S: Fn(Request<RequestBody>, Option<OnSwitch<TcpStream>>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send,
{
    let (listener, addr) = listener().await;
    let (sender, ends) = mpsc::unbounded_channel();
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (options, service, sender, mut stopping) =
                (options.clone(), service.clone(), sender.clone(), stopping.clone());
            tokio::spawn(async move {
                let stopping = async move {
                    let _ = stopping.wait_for(|stopped| *stopped).await;
                };
                let ended = serve(socket, &options, &Interims::default(), service, stopping).await;
                let _ = sender.send(ended);
            });
        }
    });
    Served { addr, ends, stop }
}

pub fn text(status: u16, text: impl Into<Bytes>) -> Response<Body> {
    let body = http_body_util::Full::new(text.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// What a client gets for a proxy's failure.
pub fn failure(error: &Failed) -> Response<Body> {
    text(if matches!(error, Failed::Upload) { 400 } else { 502 }, "")
}

/// A proxy to one Machine, a new connection for each request.
pub async fn proxy(machine: SocketAddr) -> Served {
    served(Options::default(), move |request, switch| forward(machine, request, switch)).await
}

async fn forward(
    machine: SocketAddr,
    request: Request<RequestBody>,
    switch: Option<OnSwitch<TcpStream>>,
) -> Response<Body> {
    let socket = TcpStream::connect(machine).await.unwrap();
    let answer = match Connection::new(socket, Limits::default()).send(request, &mut |_| ()).await {
        Ok((answer, _)) => answer,
        Err(error) => return failure(&error),
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return answer.map(Answer::boxed_unsync);
    }
    let (head, body) = answer.into_parts();
    let mut machine = body.into_switched().unwrap();
    tokio::spawn(async move {
        if let Some(mut client) = switch.unwrap().await {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut machine).await;
        }
    });
    Response::from_parts(head, empty())
}

/// A Machine that answers every connection's first request with `ok`, and keeps every byte.
pub struct Recorder {
    pub addr: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    pub async fn start() -> Self {
        let (listener, addr) = listener().await;
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = received.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let kept = kept.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    while !is_whole(&bytes) && socket.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
                    kept.lock().unwrap().push(bytes);
                    let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                });
            }
        });
        Self { addr, received }
    }

    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

pub async fn refusal_of(ends: &mut Ends) -> Option<Refusal> {
    match patient(ends.recv()).await.unwrap() {
        Ended::Refused(refusal) => Some(refusal),
        _ => None,
    }
}
