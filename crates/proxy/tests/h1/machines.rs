//! Connections to Machines: answers of all kinds, what makes a connection usable again, and switching protocols.

use std::net::SocketAddr;

use bytes::Bytes;
use godwit_proxy::h1::io::{Connection, Failed};
use godwit_proxy::h1::{Limits, Refusal};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peers::{Raw, listener, patient, proxy};

/// A Machine that says the given bytes after each request's head (and two bytes of body for a POST), then closes if
/// told to.
async fn machine(answers: &'static [&'static str], close: bool) -> SocketAddr {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                for answer in answers {
                    let mut request = Vec::new();
                    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let _ = socket.write_all(answer.as_bytes()).await;
                }
                if !close {
                    // Until the other side closes.
                    let mut rest = [0; 64];
                    while socket.read(&mut rest).await.unwrap_or(0) > 0 {}
                }
            });
        }
    });
    addr
}

fn request(method: Method, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = "/".parse().unwrap();
    request.headers_mut().insert("host", http::HeaderValue::from_static("a"));
    request
}

async fn connect(addr: SocketAddr) -> Connection<TcpStream> {
    Connection::new(TcpStream::connect(addr).await.unwrap(), Limits::default())
}

/// The answer's status and body, and whether the connection came back.
async fn exchange(method: Method, answer: &'static str, close: bool) -> Result<(u16, String, bool), Failed> {
    let addr = machine(Box::leak(Box::new([answer])), close).await;
    patient(async {
        let (answer, freed) = connect(addr).await.send(request(method, ""), &mut |_| ()).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap(), freed.await.is_ok()))
    })
    .await
}

#[tokio::test]
async fn answers_end_where_their_framing_says() {
    for (method, answer, expected) in [
        (Method::GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, "hello", true)),
        (Method::GET, "HTTP/1.1 200 OK\nContent-Length : 5\n\nhello", (200, "hello", true)),
        (Method::GET, "HTTP/1.1 200\r\nContent-Length: 5, 5\r\nContent-Length: 5\r\n\r\nhello", (200, "hello", true)),
        (
            Method::GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n",
            (200, "hello", true),
        ),
        (Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", (200, "", true)),
        (Method::GET, "HTTP/1.1 204 No\r\n\r\n", (204, "", true)),
        (Method::GET, "HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", (304, "", true)),
        (
            Method::GET,
            "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            (200, "", true),
        ),
        (Method::GET, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", (200, "hello", false)),
        (Method::GET, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, "hello", false)),
        (
            Method::GET,
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
            (200, "hello", true),
        ),
        // More than it promised: what follows belongs to nobody.
        (Method::GET, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, world", (200, "hello", false)),
        (Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, "", false)),
        (Method::GET, "HTTP/1.1 204 No\r\n\r\nbody", (204, "", false)),
    ] {
        let got = exchange(method, answer, false).await.unwrap_or_else(|error| panic!("{answer:?}: {error}"));
        assert_eq!((got.0, got.1.as_str(), got.2), expected, "{answer:?}");
    }
    let until_close = exchange(Method::GET, "HTTP/1.1 200 OK\r\n\r\nhello", true).await.unwrap();
    assert_eq!(until_close, (200, "hello".to_owned(), false));
}

#[tokio::test]
async fn answers_that_can_be_read_in_two_ways_are_none() {
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::LengthAndEncoding),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", Refusal::DuplicateLength),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello", Refusal::DuplicateLength),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello", Refusal::BadLength),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refusal::BadEncoding),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::EncodingInOld),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", Refusal::BadChunkSize),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Refusal::ObsFold),
        ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", Refusal::Nul),
        ("HTTP/1.1 99 Low\r\n\r\n", Refusal::BadStatus),
        ("HTTP/1.1 999 High\r\n\r\n", Refusal::BadStatus),
        ("HTTP/2.0 200 OK\r\n\r\n", Refusal::BadVersion),
        ("SSH-2.0-OpenSSH\r\n", Refusal::BadVersion),
        ("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", Refusal::UnaskedSwitch),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", Refusal::CutBody),
        ("HTTP/1.1 200 OK\r\nContent-Le", Refusal::CutHead),
    ] {
        match exchange(Method::GET, answer, true).await {
            Err(Failed::Refused(refusal)) => assert_eq!(refusal, expected, "{answer:?}"),
            other => panic!("{answer:?}: {other:?}"),
        }
    }
    assert!(matches!(exchange(Method::GET, "", true).await, Err(Failed::Closed)));
    let flood: &'static str = Box::leak("HTTP/1.1 100 C\r\n\r\n".repeat(1_025).into_boxed_str());
    assert!(matches!(exchange(Method::GET, flood, false).await, Err(Failed::Refused(Refusal::TooManyInterim))));
}

/// A legal answer counts however much was said before it.
#[tokio::test]
async fn interim_answers_are_told_within_a_bound_and_none_costs_the_answer() {
    for (said, expected) in [(1, 1), (3, 3), (16, 16), (17, 16), (40, 16)] {
        let hint =
            "HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n";
        let answer = hint.repeat(said) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let addr = machine(Box::leak(Box::new([&*Box::leak(answer.into_boxed_str())])), false).await;
        let mut told = Vec::new();
        let connection = connect(addr).await;
        let (answer, _freed) =
            patient(connection.send(request(Method::GET, ""), &mut |interim| told.push(interim))).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(told.len(), expected, "{said}");
        assert!(
            told.iter().all(|one| one.status() == 103 && one.headers()["link"] == "</a>" && one.headers().len() == 1)
        );
    }
}

#[tokio::test]
async fn a_connection_carries_one_exchange_after_the_other() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let addr = machine(&[OK, OK, OK], true).await;
    let mut connection = connect(addr).await;
    for _ in 0..3 {
        let (answer, freed) = patient(connection.send(request(Method::GET, ""), &mut |_| ())).await.unwrap();
        assert_eq!(patient(answer.into_body().collect()).await.unwrap().to_bytes(), "ok");
        connection = patient(freed).await.unwrap();
    }
    // The Machine closes after the third; a look shows it, sooner or later.
    patient(async {
        while connection.is_usable() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_before_the_request_is_whole_is_passed_on_and_ends_the_connection() {
    // The Machine reads the head only, answers, and never reads the body.
    let addr = machine(&["HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\nno"], true).await;
    let large: &'static str = Box::leak("x".repeat(32 << 20).into_boxed_str());
    let (answer, freed) = patient(connect(addr).await.send(request(Method::POST, large), &mut |_| ())).await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(patient(answer.into_body().collect()).await.unwrap().to_bytes(), "no");
    assert!(patient(freed).await.is_err());
}

#[tokio::test]
async fn a_switched_connection_carries_the_new_protocol_through_both_ends() {
    let (listener, addr) = listener().await;
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            socket.read_buf(&mut request).await.unwrap();
        }
        assert!(String::from_utf8(request).unwrap().contains("connection: upgrade\r\nupgrade: echo\r\n"));
        // The first bytes of the new protocol come with the head.
        socket
            .write_all(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello ")
            .await
            .unwrap();
        let (mut read, mut write) = socket.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let proxy = proxy(addr).await;
    let mut client = Raw::connect(proxy.addr).await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert_eq!(head, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
    client.until("hello ").await;
    client.send("GET /not/http HTTP/1.1\r\n\r\n").await;
    client.until("GET /not/http HTTP/1.1\r\n\r\n").await;
}

#[tokio::test]
async fn an_upgrade_that_is_declined_leaves_an_ordinary_connection() {
    let addr = machine(&["HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"], true).await;
    let proxy = proxy(addr).await;
    let mut client = Raw::connect(proxy.addr).await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        assert!(client.until("\r\n\r\nno").await.starts_with("HTTP/1.1 403 Forbidden\r\n"));
    }
}
