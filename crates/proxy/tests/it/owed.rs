//! A client is owed an answer, and a reason: of a Machine that breaks off behind its head, and of an answer that was read
//! and cannot be passed on.

use http::{Method, Request};

use crate::raw::Raw;
use crate::scripted::{http2, stage, then_closes};

/// Heads of answers that break off before a byte of their body.
fn broken() -> Vec<crate::scripted::Line> {
    vec![
        then_closes("/length", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"),
        then_closes("/chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        then_closes("/badly", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnever mind"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_breaks_off_right_behind_its_head_is_a_502_over_http1() {
    let stage = stage(broken()).await;
    for path in ["/length", "/chunked", "/badly"] {
        for method in ["GET", "POST"] {
            for _ in 0..40 {
                let mut client = Raw::connect(stage.fleet.edge.addr).await;
                client
                    .send(format!("{method} {path} HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n"))
                    .await;
                let answer = client.rest().await;
                // Its head may have been on its way already; then the answer is cut, and nothing is made up.
                let cut = answer.starts_with("HTTP/1.1 200 OK\r\n") && !answer.contains("\r\n0\r\n\r\n");
                assert!(answer.starts_with("HTTP/1.1 502 ") || cut, "{method} {path}: {answer:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_breaks_off_right_behind_its_head_is_a_502_over_http2() {
    let stage = stage(broken()).await;
    let mut sender = http2(&stage.fleet).await;
    for path in ["/length", "/chunked", "/badly"] {
        for method in [Method::GET, Method::POST] {
            for _ in 0..40 {
                sender = sender.ready().await.unwrap();
                let uri = format!("https://web.localhost{path}");
                let request = Request::builder().method(&method).uri(uri).body(()).unwrap();
                let (answer, _) = sender.send_request(request, true).unwrap();
                let answer = answer.await.unwrap_or_else(|error| panic!("{method} {path}: no answer: {error}"));
                match answer.status().as_u16() {
                    502 => {}
                    200 => {
                        let mut body = answer.into_body();
                        assert!(body.data().await.is_none_or(|data| data.is_err()), "{method} {path}: it is not whole");
                        assert!(body.trailers().await.is_err() || body.is_end_stream(), "{method} {path}");
                    }
                    other => panic!("{method} {path}: {other}"),
                }
            }
        }
    }
}
