//! A client is owed an answer, and a reason: of a Machine that breaks off behind its head, and of an answer that was read
//! and cannot be passed on.

use std::sync::atomic::Ordering;

use http::{Method, Request};

use crate::client::until;
use crate::raw::Raw;
use crate::scripted::{http2, says, stage, then_closes};

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

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_an_answer_is_told_what_was_wrong_with_it_and_so_is_the_log() {
    let many: String = (0..130).map(|n| format!("x-{n}: y\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(70 << 10));
    let ok = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nok");
    let cases = [
        ("/many", ok(&many), "too_many_fields", "more than 128 header fields"),
        ("/long", ok(&long), "head_too_large", "header is larger than 64 KiB"),
        ("/folded", ok("x-a: b\r\n c\r\n"), "obs_fold", "goes on in a second line"),
        ("/status", "HTTP/1.1 999 No\r\ncontent-length: 2\r\n\r\nok".to_owned(), "bad_status", "status line"),
        ("/noise", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), "bad_version", "not an HTTP/1.1 answer"),
        ("/lengths", ok("content-length: 3\r\n"), "duplicate_length", "Content-Length"),
    ];
    let stage = stage(cases.iter().map(|(path, answer, ..)| says(path, answer.as_str())).collect()).await;
    let browser = stage.fleet.browser();
    let mut sender = http2(&stage.fleet).await;
    for (path, _, word, text) in &cases {
        let answer = browser.get(path).await;
        assert_eq!(answer.code, 502, "{path}");
        assert!(answer.text().contains(text), "{path}: {}", answer.text());
        let asked = stage.asked.load(Ordering::SeqCst);
        sender = sender.ready().await.unwrap();
        let request = Request::post(format!("https://web.localhost{path}")).body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!((answer.status().as_u16(), stage.asked.load(Ordering::SeqCst)), (502, asked + 1), "{path}");
        until("the log says why", async || {
            let log = std::fs::read_to_string(&stage.fleet.edge.access_log).unwrap_or_default();
            let told = format!("\"reason\":\"{word}\"");
            let lines: Vec<_> = log.lines().filter(|line| line.contains(&format!("\"{path}\""))).collect();
            (lines.len() == 2 && lines.iter().all(|line| line.contains(&told))).then_some(())
        })
        .await;
    }
}
