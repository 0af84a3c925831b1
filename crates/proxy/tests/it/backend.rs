//! What runs in a Machine: an HTTP server on a port of `::1`, or of IPv4's loopback, that can be started and killed like a process.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A port that nobody listens on now, for a Machine that will.
/// It stays free while nothing listens there: below the ports that the kernel gives to connections and to whoever asks for
/// any; and claimed by a UDP socket at the same number, which another run of tests meets before it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static CLAIMS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    loop {
        let at = (start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        let address = SocketAddr::from((Ipv6Addr::LOCALHOST, FIRST + at));
        if let Ok(claim) = UdpSocket::bind((std::net::Ipv4Addr::new(127, 255, 255, 1), FIRST + at))
            && std::net::TcpListener::bind(address).is_ok()
        {
            CLAIMS.lock().unwrap().push(claim);
            return FIRST + at;
        }
    }
}

/// A raw port that says what it heard, up to the end of the other half.
pub async fn echo() -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = Vec::new();
                let _ = socket.read_to_end(&mut heard).await;
                let _ = socket.write_all(&heard).await;
            });
        }
    });
    port
}

/// Counted over all lives of a Machine.
#[derive(Default)]
pub struct Counts {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    pub in_flight: AtomicU64,
    pub peak: AtomicU64,
}

/// One life. Dropping it kills the process: listener and connections end at once.
pub struct Process {
    task: tokio::task::JoinHandle<()>,
}

impl Process {
    /// When this returns it accepts no more.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs from now on; the port accepts after `listen_delay`, or never.
pub fn spawn(addr: SocketAddr, life: u64, listen_delay: Option<Duration>, counts: Arc<Counts>) -> Process {
    let router = router(life, counts.clone());
    let task = tokio::spawn(async move {
        match listen_delay {
            Some(delay) => tokio::time::sleep(delay).await,
            None => std::future::pending().await,
        }
        serve(bind(addr).await, router, counts).await;
    });
    Process { task }
}

/// The life before may not have let go of the port yet.
async fn bind(addr: SocketAddr) -> TcpListener {
    loop {
        let v6 = || tokio::net::TcpSocket::new_v6();
        let socket = if addr.is_ipv6() { v6() } else { tokio::net::TcpSocket::new_v4() }.unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(addr).and_then(|()| socket.listen(4096)) {
            Ok(listener) => return listener,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn serve(listener: TcpListener, router: Router, counts: Arc<Counts>) {
    // Dropped with this future, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        counts.connections.fetch_add(1, Ordering::SeqCst);
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        while connections.try_join_next().is_some() {}
    }
}

struct Inside(Arc<Counts>);
impl Inside {
    fn enter(counts: &Arc<Counts>) -> Self {
        counts.requests.fetch_add(1, Ordering::SeqCst);
        let now = counts.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        counts.peak.fetch_max(now, Ordering::SeqCst);
        Self(counts.clone())
    }
}
impl Drop for Inside {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(serde::Deserialize)]
struct Ms {
    ms: u64,
}

fn router(life: u64, counts: Arc<Counts>) -> Router {
    let (c1, c2, c3, c4, c5) = (counts.clone(), counts.clone(), counts.clone(), counts.clone(), counts);
    Router::new()
        .route(
            "/",
            get(move || {
                let _inside = Inside::enter(&c1);
                async move { life.to_string() }
            }),
        )
        .route("/echo", post(move |request: Request| digest(request, Inside::enter(&c2))))
        .route(
            "/sleep",
            get(move |Query(Ms { ms }): Query<Ms>| {
                let inside = Inside::enter(&c3);
                async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    drop(inside);
                    life.to_string()
                }
            }),
        )
        // Answers at once and ignores the body.
        .route("/early", post(|| async { (StatusCode::PAYLOAD_TOO_LARGE, "too much") }))
        .route("/nothing", get(|| async { StatusCode::NO_CONTENT }))
        .route("/unchanged", get(|| async { (StatusCode::NOT_MODIFIED, [("etag", "\"1\"")]) }))
        .route("/large", get(|Query(Ms { ms: mib }): Query<Ms>| async move { large(mib) }))
        .route("/head", any(heads))
        .route(
            "/forge",
            get(|| async { ([("godwit-refusal", "stopped"), ("godwit-load", "7"), ("x-own", "1")], "mine") }),
        )
        .route("/goto", any(move |request: Request| goes_on(request, life, Inside::enter(&c5))))
        .route("/break", get(move || breaks(Inside::enter(&c4))))
}

/// Sends the request on as its query says (with `&` for `;`). One that was sent on is answered by its life, by whom
/// it was sent, and the digest of its body, unless the query says `loop`.
async fn goes_on(request: Request, life: u64, inside: Inside) -> axum::response::Response {
    let query = request.uri().query().unwrap_or("").to_owned();
    let source = request.headers().get("fly-replay-src").map(|source| source.to_str().unwrap().to_owned());
    match source {
        Some(source) if !query.contains("loop") => {
            let body = digest(request, inside).await.into_body().collect().await.unwrap().to_bytes();
            format!("{life} {source} {}", String::from_utf8_lossy(&body)).into_response()
        }
        _ => {
            if query.contains("read") {
                digest(request, inside).await;
            }
            ([("fly-replay", query.replace('&', ";"))], "sent on").into_response()
        }
    }
}

/// Length and SHA-256 of what came.
async fn digest(request: Request, inside: Inside) -> axum::response::Response {
    let mut body = request.into_body();
    let (mut length, mut hash) = (0u64, Sha256::new());
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return (StatusCode::BAD_REQUEST, "broken").into_response() };
        if let Ok(data) = frame.into_data() {
            length += data.len() as u64;
            hash.update(&data);
        }
    }
    drop(inside);
    format!("{length} {}", hex::encode(hash.finalize())).into_response()
}

fn large(mib: u64) -> Body {
    let chunks = (0..mib * 16).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[7u8; 65_536])));
    Body::from_stream(futures_util::stream::iter(chunks))
}

/// The head as the Machine got it: method, target, version, then each header.
async fn heads(request: Request) -> String {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    let headers: &HeaderMap = request.headers();
    for (name, value) in headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text
}

/// Promises more than it sends: breaks off once the beginning is out.
async fn breaks(inside: Inside) -> axum::response::Response {
    drop(inside);
    let chunks = futures_util::stream::unfold(0, |step| async move {
        if step == 0 {
            return Some((Ok(bytes::Bytes::from_static(b"half")), 1));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        Some((Err(std::io::Error::other("crash")), 1))
    });
    Body::from_stream(chunks).into_response()
}
