//! Clients: whole requests over kept connections, raw bytes, and patience with a deadline.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use godwit_base::http::client::{Body, Client, empty};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until it is so, or fails the test.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An answer read whole.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

#[derive(Clone)]
pub struct Browser {
    client: Client,
    host: String,
}

impl Browser {
    pub fn new(edge: SocketAddr, host: &str) -> Self {
        Self { client: Client::tcp(&format!("http://{edge}"), None), host: host.to_owned() }
    }

    pub async fn send(&self, method: Method, path: &str, body: Body, headers: &[(&str, &str)]) -> Response<Incoming> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        request.headers_mut().insert("host", self.host.parse().unwrap());
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        self.client.send_raw(path, request, PATIENCE).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        read(self.send(Method::GET, path, empty(), &[]).await).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        read(self.send(Method::GET, path, empty(), headers).await).await
    }

    pub async fn post(&self, path: &str, body: Body) -> Answer {
        read(self.send(Method::POST, path, body, &[]).await).await
    }
}

pub async fn read(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

/// Pseudo-random bytes of a seed, and what `/echo` answers for them.
pub fn payload(seed: u64, length: usize) -> (Bytes, String) {
    use sha2::{Digest, Sha256};
    let mut state = seed | 1;
    let bytes: Bytes = (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    let answer = format!("{length} {}", hex::encode(Sha256::digest(&bytes)));
    (bytes, answer)
}

/// The value of one line of an exposition, by the beginning of its name and labels.
pub async fn metric(admin: SocketAddr, line: &str) -> f64 {
    let client = Client::tcp(&format!("http://{admin}"), None);
    let answer = read(client.send_raw("/metrics", Request::new(empty()), PATIENCE).await.unwrap()).await;
    let text = answer.text();
    let found = text.lines().find_map(|one| one.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {line} in\n{text}"))
}

/// All lines that hold one of these words, for the words of a failure.
pub async fn metrics_with(admin: SocketAddr, words: &[&str]) -> String {
    let client = Client::tcp(&format!("http://{admin}"), None);
    let answer = read(client.send_raw("/metrics", Request::new(empty()), PATIENCE).await.unwrap()).await;
    let text = answer.text();
    let lines = text.lines().filter(|line| !line.starts_with('#') && words.iter().any(|word| line.contains(word)));
    lines.collect::<Vec<_>>().join("\n")
}

/// The same, for a line that is not there before it is first counted.
pub async fn metric_or_zero(admin: SocketAddr, line: &str) -> f64 {
    let client = Client::tcp(&format!("http://{admin}"), None);
    let answer = read(client.send_raw("/metrics", Request::new(empty()), PATIENCE).await.unwrap()).await;
    answer.text().lines().find_map(|one| one.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0.0)
}

/// The same, of a process that may be on its way out.
pub async fn try_metric(admin: SocketAddr, line: &str) -> Option<f64> {
    let client = Client::tcp(&format!("http://{admin}"), None);
    let answer = client.send_raw("/metrics", Request::new(empty()), PATIENCE).await.ok()?;
    let text = answer.into_body().collect().await.ok()?.to_bytes();
    std::str::from_utf8(&text).ok()?.lines().find_map(|one| one.strip_prefix(line)?.trim().parse().ok())
}

/// A body that the test feeds.
pub struct Fed(tokio::sync::mpsc::Receiver<Vec<u8>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(http_body::Frame::data(chunk.into()))))
    }
}

pub fn fed_body() -> (tokio::sync::mpsc::Sender<Vec<u8>>, Body) {
    let (feed, fed) = tokio::sync::mpsc::channel(4);
    (feed, Fed(fed).map_err(Into::into).boxed())
}
