//! The table over real sockets, through a proxy to a Machine that keeps every byte; and what it received, read again
//! by a second parser.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::peers::{Raw, Recorder, is_whole, listener, proxy, refusal_of};
use crate::raw::over_map;
use crate::smuggling::{SECOND, SECOND_FORWARDED};
use crate::table::{Expect, cases};

/// What arrives together with its head is judged with it.
const ONE_READ_BYTES: usize = 4000;

#[tokio::test]
async fn the_machine_receives_exactly_these_bytes_and_the_client_is_told_why_not() {
    let machine = Recorder::start().await;
    let mut proxy = proxy(machine.addr).await;
    for case in cases() {
        let name = format!("{}/{}", case.class, case.name);
        let mut client = Raw::connect(proxy.addr).await;
        client.send([case.bytes.as_slice(), SECOND].concat()).await;
        let expected = match &case.expect {
            Expect::Refused(refusal) => {
                let answer = client.rest().await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {} ", refusal.status())), "{name}: {answer:?}");
                assert!(answer.contains("\r\nconnection: close\r\n"), "{name}: {answer:?}");
                assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{name}: {answer:?}");
                drop(client);
                assert_eq!(refusal_of(&mut proxy.ends).await, Some(*refusal), "{name}");
                let received = machine.take();
                if case.bytes.len() < ONE_READ_BYTES {
                    assert!(received.is_empty(), "{name}: {received:?}");
                }
                // What comes later than the head can only be told by breaking off.
                assert!(!received.iter().any(|bytes| is_whole(bytes)), "{name}: {received:?}");
                continue;
            }
            Expect::Forwarded(requests) => {
                for _ in requests {
                    let answer = client.until("\r\n\r\n").await;
                    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {answer:?}");
                    if !case.bytes.starts_with(b"HEAD") {
                        client.until("ok").await;
                    }
                }
                assert!(client.until("\r\n\r\nok").await.starts_with("HTTP/1.1 200 OK\r\n"), "{name}");
                let mut expected: Vec<_> = requests.iter().map(|request| over_map(request)).collect();
                expected.push(over_map(SECOND_FORWARDED));
                expected
            }
            Expect::ForwardedThenClosed(request) => {
                let answer = client.rest().await;
                assert!(
                    answer.contains("\r\nconnection: close\r\n") && answer.ends_with("\r\n\r\nok"),
                    "{name}: {answer:?}"
                );
                vec![over_map(request)]
            }
        };
        let received: Vec<_> = machine.take().into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect();
        assert_eq!(received, expected, "{name}");
        drop(client);
        assert_eq!(refusal_of(&mut proxy.ends).await, None, "{name}");
    }
}

/// A few visible characters in a target go on as they came, and hyper, which reads here, takes none of them.
fn as_hyper_takes_it(request: &str) -> String {
    let (line, rest) = request.split_once("\r\n").unwrap();
    let line = [('"', "%22"), ('<', "%3C"), ('>', "%3E"), ('`', "%60")]
        .iter()
        .fold(line.to_owned(), |line, (char, code)| line.replace(*char, code));
    format!("{line}\r\n{rest}")
}

/// What we send on must be one request to every other reader too: hyper is the other reader here.
#[tokio::test]
async fn a_second_parser_finds_the_same_requests_in_what_is_sent_on() {
    let (listener, addr) = listener().await;
    let seen: Arc<Mutex<Vec<(String, Bytes)>>> = Arc::default();
    let kept = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let kept = kept.clone();
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let kept = kept.clone();
                async move {
                    let line = format!("{} {}", request.method(), request.uri());
                    let body = request.into_body().collect().await?.to_bytes();
                    kept.lock().unwrap().push((line, body));
                    Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from_static(b"ok"))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .max_headers(200)
                    .serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    let mut compared = 0;
    for case in cases() {
        let Expect::Forwarded(mut requests) = case.expect else { continue };
        // As they are sent on over real sockets.
        requests.iter_mut().for_each(|request| *request = as_hyper_takes_it(&over_map(request)).into_bytes());
        let count = requests.len();
        requests.push(SECOND_FORWARDED.to_vec());
        let mut client = Raw::connect(addr).await;
        client.send(requests.concat()).await;
        for request in &requests {
            client.until(if request.starts_with(b"HEAD") { "\r\n\r\n" } else { "\r\n\r\nok" }).await;
        }
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), count + 1, "{}/{}: {seen:?}", case.class, case.name);
        for (request, (line, body)) in requests.iter().zip(seen) {
            let text = String::from_utf8_lossy(request);
            assert!(text.starts_with(&format!("{line} HTTP/1.1\r\n")), "{}/{}: {line}", case.class, case.name);
            if text.contains("\r\ntransfer-encoding") || text.contains("\r\ncontent-length") {
                let expected: &[u8] = if text.contains("\r\nabc") { b"abc" } else { &body };
                assert_eq!(body, expected, "{}/{}", case.class, case.name);
            }
        }
        compared += 1;
    }
    assert!(compared > 30);
}
