//! What was right when others reported it elsewhere, and is held: connections that a Machine closes while they are idle,
//! streams without a length, upgrades as clients write them, clients that go, and gRPC's shapes of an answer.

use bytes::Bytes;
use godwit_api::config::{HttpOptions, Port, Service};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fleet::{Setup, http_service, one_running};
use crate::handlers::port;
use crate::raw::{Raw, patient};
use crate::scripted::{OK, stage, then_closes};
use crate::tls::{certify, connected, trust};

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_its_machine_closes_between_two_requests_costs_neither() {
    // It promises to keep the connection, and closes it.
    let stage = stage(vec![then_closes("/rude", OK)]).await;
    let mut client = Raw::connect(stage.fleet.edge.addr).await;
    for round in 0..100 {
        for ask in [
            "GET /rude HTTP/1.1\r\nHost: web.localhost\r\n\r\n",
            "GET /ok HTTP/1.1\r\nHost: web.localhost\r\n\r\n",
            "GET /rude HTTP/1.1\r\nHost: web.localhost\r\n\r\n",
            "POST /ok HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 2\r\n\r\nhi",
        ] {
            client.send(ask).await;
            let head = client.until("\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{round}: {ask:?}: {head}");
            assert_eq!(client.until("ok").await, "ok");
        }
    }
}

/// A Machine that says the first half of an answer, and the second when it is told to.
async fn in_two_halves(head: &'static str) -> (u16, tokio::sync::mpsc::Sender<()>) {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let inside = listener.local_addr().unwrap().port();
    let (go_on, mut told) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            // One that only looks whether the port accepts says nothing.
            if socket.read(&mut [0; 4096]).await.unwrap_or(0) == 0 {
                continue;
            }
            socket.write_all(format!("{head}\r\n\r\ndata: 1\n\n").as_bytes()).await.unwrap();
            told.recv().await;
            socket.write_all(b"data: 2\n\n").await.unwrap();
        }
    });
    (inside, go_on)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_are_sent_to_clients_of_either_version() {
    for version in ["1.1", "1.0"] {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8",
            "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream",
        ] {
            let (inside, go_on) = in_two_halves(head).await;
            let (fleet, _host, _) = one_running(&Setup::default(), |_| vec![http_service(inside)]).await;
            let mut client = Raw::connect(fleet.edge.addr).await;
            client.send(format!("GET /events HTTP/{version}\r\nHost: web.localhost\r\n\r\n")).await;
            // The second is not written before the first was read.
            let first = client.until("data: 1\n\n").await;
            assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
            go_on.send(()).await.unwrap();
            client.until("data: 2\n\n").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_understood_in_whatever_case_and_company_it_is_written() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let inside = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") {
                    if socket.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8(read).unwrap().to_lowercase();
                let name = text.lines().find_map(|line| line.strip_prefix("upgrade: ")).unwrap_or("none").to_owned();
                let answer =
                    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {name}\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.unwrap();
                let (mut input, mut output) = socket.split();
                let _ = tokio::io::copy(&mut input, &mut output).await;
            });
        }
    });
    let (fleet, _host, _) = one_running(&Setup::default(), |_| vec![http_service(inside)]).await;
    let key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n";
    for (fields, more) in [
        ("Upgrade: websocket\r\nConnection: Upgrade\r\n", key),
        ("Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n", key),
        ("upgrade: websocket\r\nconnection: upgrade\r\n", key),
        ("Upgrade: my-proto/2\r\nConnection: Upgrade\r\n", ""),
    ] {
        let mut client = Raw::connect(fleet.edge.addr).await;
        client.send(format!("GET /up HTTP/1.1\r\nHost: web.localhost\r\n{fields}{more}\r\n")).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{fields:?}: {head}");
        client.send("there and back").await;
        assert_eq!(client.until("back").await, "there and back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_go_in_the_middle_take_nobodys_machine_away() {
    let stage = stage(Vec::new()).await;
    let edge = stage.fleet.edge.addr;
    for half in [
        "POST /x HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 100000\r\n\r\nabc",
        "POST /x HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ] {
        for reset in [true, false] {
            for _ in 0..20 {
                let mut client = Raw::connect(edge).await;
                client.send(half).await;
                if reset {
                    client.socket.set_zero_linger().unwrap();
                }
            }
            let answer = stage.fleet.browser().get("/ok").await;
            assert_eq!((answer.code, answer.text()), (200, "ok"), "{half:?} {reset}");
        }
    }
    let mut client = Raw::connect(edge).await;
    client.send("POST /x HTTP/1.1\r\nHost: web.localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r").await;
    client.socket.shutdown().await.unwrap();
    let told = client.rest().await;
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
}

/// A server of HTTP/2 that answers in gRPC's three shapes.
async fn grpc_server() -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let inside = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(grpc_answer(request, respond));
                }
            });
        }
    });
    inside
}

async fn grpc_answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let head = |status: Option<&str>| {
        let head = Response::builder().header("content-type", "application/grpc");
        status.into_iter().fold(head, |head, status| head.header("grpc-status", status)).body(()).unwrap()
    };
    let status = |number: &str| std::iter::once(("grpc-status".parse().unwrap(), number.parse().unwrap())).collect();
    match request.uri().path() {
        // Its trailers are its head.
        "/only-trailers" => drop(respond.send_response(head(Some("12")), true).unwrap()),
        "/no-message" => respond.send_response(head(None), false).unwrap().send_trailers(status("5")).unwrap(),
        _ => {
            let mut stream = respond.send_response(head(None), false).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(piece)) = body.data().await {
                body.flow_control().release_capacity(piece.len()).unwrap();
                stream.send_data(piece, false).unwrap();
            }
            stream.send_trailers(status("0")).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_shapes_of_a_grpc_answer_pass_as_they_are() {
    let inside = grpc_server().await;
    let options = Some(HttpOptions { h2_backend: true });
    let ports = vec![Port { http_options: options, ..port(443, &["tls", "http"]) }, port(80, &["http"])];
    let (fleet, _host, _) = one_running(&Setup::default(), |_| vec![Service { ports, ..http_service(inside) }]).await;
    let root = certify(&fleet.edge.certificates, "a.pem", &["web.localhost"]);
    let socket = connected(fleet.edge.https, &trust(&[&root], &[b"h2"]), "web.localhost").await;
    let (mut sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| {
        let request = Request::post(format!("https://web.localhost{path}"));
        request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
    };

    let (answer, _) = sender.send_request(ask("/only-trailers"), true).unwrap();
    let answer = patient(answer).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    assert!(answer.body().is_end_stream(), "one frame says it all");

    sender = sender.ready().await.unwrap();
    let (answer, _) = sender.send_request(ask("/no-message"), true).unwrap();
    let mut body = patient(answer).await.unwrap().into_body();
    assert!(patient(body.data()).await.is_none(), "no data");
    assert_eq!(patient(body.trailers()).await.unwrap().unwrap()["grpc-status"], "5");

    // Both ways at once: each answer is there before the next question is put.
    sender = sender.ready().await.unwrap();
    let (answer, mut stream) = sender.send_request(ask("/both-ways"), false).unwrap();
    let mut body = patient(answer).await.unwrap().into_body();
    for word in ["one", "two", "three"] {
        stream.send_data(Bytes::from(word), false).unwrap();
        assert_eq!(patient(body.data()).await.unwrap().unwrap(), word);
        body.flow_control().release_capacity(word.len()).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(patient(body.data()).await.is_none_or(|data| data.is_ok_and(|data| data.is_empty())));
    assert_eq!(patient(body.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
}
