//! Bodies stream both ways, whole, in order, and no faster than they are read.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::stream;
use godwit_base::http::client::{Body, empty, full};
use http::Method;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use sha2::{Digest, Sha256};

use crate::client::{payload, read};
use crate::fleet::{Setup, http_service, one_running};

/// Of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn chunks(count: usize) -> Body {
    let frames = (0..count).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[9u8; 65_536]))));
    StreamBody::new(stream::iter(frames)).map_err(Into::into).boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_megabytes_pass_through_flat_memory() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.code, 200);
    let before = resident();
    let answer = browser.post("/echo", chunks(4_800)).await;
    let mut hash = Sha256::new();
    (0..4_800).for_each(|_| hash.update([9u8; 65_536]));
    assert_eq!(answer.text(), format!("{} {}", 4_800 * 65_536, hex::encode(hash.finalize())));
    let response = browser.send(Method::GET, "/large?ms=300", empty(), &[]).await;
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(length, 300 << 20);
    // Client, edge, door and Machine all live in this process, and other tests beside them.
    let grown = resident().saturating_sub(before);
    assert!(grown < 128 << 20, "grew by {} MiB", grown >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_one_request_after_another() {
    let (fleet, host, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    for n in 0..100 {
        let (body, expected) = payload(n, 1 + 977 * n as usize);
        assert_eq!(browser.post("/echo", full(body)).await.text(), expected);
        assert_eq!(browser.get("/").await.text(), "1");
    }
    // The Machine saw few connections, for they are kept.
    let connections = host.agent.with(&id, |held| held.counts.connections.load(Ordering::SeqCst));
    assert!(connections < 10, "{connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_the_client_before_the_body_is_through() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    // The body never ends by itself: only an answer before its end can come through.
    let endless: Body = Endless.map_err(|never| match never {}).boxed();
    let response = fleet.browser().send(Method::POST, "/early", endless, &[]).await;
    assert_eq!(response.status(), 413);
}

struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = std::convert::Infallible;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[1u8; 1024])))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_never_looks_whole() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    let response = browser.send(Method::GET, "/break", empty(), &[]).await;
    assert!(response.into_body().collect().await.is_err(), "the client sees that the end is missing");
    let broken =
        stream::iter([Ok(Frame::data(Bytes::from_static(b"half"))), Err(std::io::Error::other("the client is gone"))]);
    let broken: Body = StreamBody::new(broken).map_err(Into::into).boxed();
    let mut request = http::Request::new(broken);
    *request.method_mut() = Method::POST;
    request.headers_mut().insert("host", "web.localhost".parse().unwrap());
    let client = godwit_base::http::client::Client::tcp(&format!("http://{}", fleet.edge.addr), None);
    let sent = client.send_raw("/echo", request, crate::client::PATIENCE).await;
    let answered = match sent {
        Ok(response) => read(response).await.code,
        Err(_) => 0,
    };
    assert_ne!(answered, 200);
}
