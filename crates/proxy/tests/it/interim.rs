//! What is said before an answer: a Machine's 1xx reach its clients, and a client that waits for 100 gets one.

use std::future::poll_fn;

use bytes::Bytes;
use godwit_api::MachineId;
use godwit_api::config::{HttpOptions, Port, Service};
use godwit_api::machine::MachineState;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpListener;

use crate::client::PATIENCE;
use crate::fleet::{Fleet, Host, Setup, http_service, one_running};
use crate::raw::Raw;
use crate::scripted::{OK, http2, says, stage};

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
    Godwit-Load: 7\r\n\r\n";
/// RFC 9110 section 15.2 lets a proxy keep what it asked for itself, and this one does.
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const PROCESSING: &str = "HTTP/1.1 102 Processing\r\n\r\n";

fn get(path: &str) -> Request<()> {
    Request::get(format!("https://web.localhost{path}")).body(()).unwrap()
}

/// All that a stream says: its interim answers, then its answer.
async fn heard(mut answer: h2::client::ResponseFuture) -> (Vec<(u16, HeaderMap)>, Response<h2::RecvStream>) {
    let mut interims = Vec::new();
    let all = async {
        while let Some(interim) = poll_fn(|cx| answer.poll_informational(cx)).await {
            let (parts, ()) = interim.unwrap().into_parts();
            interims.push((parts.status.as_u16(), parts.headers));
        }
        answer.await.unwrap()
    };
    let answer = tokio::time::timeout(PATIENCE, all).await.expect("an answer");
    (interims, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_of_a_machine_reach_clients_of_every_version_that_knows_them() {
    let stage = stage(vec![says("/early", [CONTINUE, HINT, PROCESSING, OK].concat())]).await;
    let mut client = Raw::connect(stage.fleet.edge.addr).await;
    for _ in 0..2 {
        client.send("GET /early HTTP/1.1\r\nHost: web.localhost\r\n\r\n").await;
        let hint = client.until("\r\n\r\n").await;
        assert_eq!(hint, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
        assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 102 Processing\r\n\r\n");
        let answer = client.until("\r\n\r\nok").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    // A client of HTTP/1.0 would take the first for its answer.
    let mut old = Raw::connect(stage.fleet.edge.addr).await;
    old.send("GET /early HTTP/1.0\r\nHost: web.localhost\r\n\r\n").await;
    let answer = old.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");

    let mut sender = http2(&stage.fleet).await.ready().await.unwrap();
    let (answer, _) = sender.send_request(get("/early"), true).unwrap();
    let (interims, answer) = heard(answer).await;
    assert_eq!(answer.status(), 200);
    let [(103, hint), (102, processing)] = &interims[..] else { panic!("{interims:?}") };
    assert_eq!((hint.len(), hint["link"].to_str().unwrap()), (1, "</a.css>; rel=preload"));
    assert!(processing.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_says_much_beforehand_is_answered_for_all_the_same() {
    let stage = stage(vec![says("/many", HINT.repeat(40) + OK)]).await;
    let mut client = Raw::connect(stage.fleet.edge.addr).await;
    client.send("GET /many HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
    let all = client.rest().await;
    assert_eq!(all.matches("HTTP/1.1 103 ").count(), godwit_proxy::interim::MAX_PASSED, "{all}");
    assert!(all.contains("\r\n\r\nHTTP/1.1 200 OK\r\n") && all.ends_with("\r\n\r\nok"), "{all}");
    let mut sender = http2(&stage.fleet).await.ready().await.unwrap();
    let (answer, _) = sender.send_request(get("/many"), true).unwrap();
    let (interims, answer) = heard(answer).await;
    assert_eq!((interims.len(), answer.status()), (godwit_proxy::interim::MAX_PASSED, StatusCode::OK));
}

#[tokio::test(flavor = "multi_thread")]
async fn early_hints_of_a_machine_that_speaks_http2_pass_too() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let of = |status: u16| Response::builder().status(status).header("x-of", status).body(()).unwrap();
                    for status in [100, 103, 103] {
                        respond.send_informational(of(status)).unwrap();
                    }
                    respond.send_response(of(200), true).unwrap();
                }
            });
        }
    });
    let fleet = Fleet::start(&Setup::default()).await;
    let host = Host::start("w1").await;
    let options = Some(HttpOptions { h2_backend: true });
    let public = Port { port: Some(80), handlers: vec!["http".into()], http_options: options, ..Port::default() };
    let id = MachineId::from_bits(1);
    let service = Service { ports: vec![public], ..http_service(port) };
    host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, vec![service]);
    host.agent.change(&id, |held| held.machine.state = MachineState::Started);
    fleet.publish(&[&host]).await;
    let mut sender = http2(&fleet).await.ready().await.unwrap();
    let (answer, _) = sender.send_request(get("/"), true).unwrap();
    let (interims, answer) = heard(answer).await;
    assert_eq!(
        (interims.iter().map(|one| one.0).collect::<Vec<_>>(), answer.status()),
        (vec![103, 103], StatusCode::OK)
    );
    let mut client = Raw::connect(fleet.edge.addr).await;
    client.send("GET / HTTP/1.1\r\nHost: web.localhost\r\nConnection: close\r\n\r\n").await;
    let all = client.rest().await;
    assert_eq!((all.matches("HTTP/1.1 103 ").count(), all.matches("HTTP/1.1 200 ").count()), (2, 1), "{all}");
}

fn expecting(host: &str) -> Request<()> {
    let request = Request::post(format!("https://{host}/echo")).header("expect", "100-continue");
    request.header("content-length", "5").body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_that_waits_for_a_word_before_its_body_gets_one() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let mut sender = http2(&fleet).await.ready().await.unwrap();
    for _ in 0..3 {
        let (mut answer, mut body) = sender.send_request(expecting("web.localhost"), false).unwrap();
        let word = tokio::time::timeout(PATIENCE, poll_fn(|cx| answer.poll_informational(cx))).await.expect("a word");
        assert_eq!(word.unwrap().unwrap().status(), 100);
        body.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let (more, answer) = heard(answer).await;
        assert!(more.is_empty(), "one is enough: {more:?}");
        assert_eq!(answer.status(), 200);
    }
    // A client that does not wait is not told to go on.
    let (answer, mut body) = sender.send_request(expecting("web.localhost"), false).unwrap();
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    let (words, answer) = heard(answer).await;
    assert!(words.len() <= 1, "{words:?}");
    assert_eq!(answer.status(), 200);
    // Where nobody wants the body, the last word is the only one.
    let (answer, _body) = sender.send_request(expecting("nobody.localhost"), false).unwrap();
    let (words, answer) = heard(answer).await;
    assert_eq!((words.len(), answer.status()), (0, StatusCode::NOT_FOUND));
    let mut other = expecting("web.localhost");
    other.headers_mut().insert("expect", "a-miracle".parse().unwrap());
    let (answer, _body) = sender.send_request(other, false).unwrap();
    let (words, answer) = heard(answer).await;
    assert_eq!((words.len(), answer.status()), (0, StatusCode::EXPECTATION_FAILED));
}
