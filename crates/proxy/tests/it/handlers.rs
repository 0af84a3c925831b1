//! What a port's handlers do at the edge: TLS that ends there before raw bytes, the PROXY protocol behind it, and plain
//! HTTP that is sent to HTTPS.

use std::net::SocketAddr;

use godwit_api::config::{Port, ProxyProtoOptions, Service, TlsOptions};
use godwit_base::http::client::empty;
use godwit_proxy::proxy_protocol::{Ends, v1, v2};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::backend::{echo, free_port};
use crate::certificates::add;
use crate::client::{Browser, PATIENCE, payload, read, until};
use crate::fleet::{Setup, http_service, one_running};
use crate::tls::{connected, handshake, trust};
use crate::tunnels::connect;

pub fn port(public: u16, handlers: &[&str]) -> Port {
    Port { port: Some(public), handlers: handlers.iter().map(|one| (*one).to_owned()).collect(), ..Port::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_ends_at_the_edge_and_its_bytes_reach_the_machine_raw() {
    let inside = echo().await;
    let [plain, told_v1, told_v2, narrow] = [free_port(), free_port(), free_port(), free_port()];
    let v2_options = Some(ProxyProtoOptions { version: "v2".into() });
    let only = TlsOptions { alpn: vec!["imap".into(), "pop3".into()], versions: vec!["TLSv1.3".into()] };
    let ports = vec![
        port(plain, &["tls"]),
        port(told_v1, &["tls", "proxy_proto"]),
        Port { proxy_proto_options: v2_options, ..port(told_v2, &["proxy_proto", "tls"]) },
        Port { tls_options: Some(only), ..port(narrow, &["tls"]) },
    ];
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |_| vec![Service { ports, ..http_service(inside) }]).await;
    let host = "mail.example.org";
    let root = add(&fleet, host).await;
    let config = trust(&[&root], &[]);
    for public in [plain, told_v1, told_v2, narrow] {
        fleet.serve_port(public).await;
        connect(public).await;
    }
    let addr = |public: u16| -> SocketAddr { format!("127.0.0.1:{public}").parse().unwrap() };
    for public in [plain, told_v1, told_v2] {
        let mut stream = connected(addr(public), &config, host).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), None);
        let source = stream.get_ref().0.local_addr().unwrap();
        let (bytes, _) = payload(u64::from(public), 700_000);
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.unwrap().unwrap();
        let ends = Ends { source, destination: addr(public) };
        let header = match public {
            _ if public == told_v1 => v1(ends),
            _ if public == told_v2 => v2(ends),
            _ => Vec::new(),
        };
        assert_eq!(heard.len(), header.len() + bytes.len());
        assert!(heard == [header, bytes.to_vec()].concat());
    }
    // A stranger's name has no certificate, and what is no handshake reaches nobody.
    assert!(handshake(addr(plain), &config, "other.example.org").await.is_err());
    let mut plainly = connect(plain).await;
    plainly.write_all(b"hello, this is not a handshake\r\n").await.unwrap();
    plainly.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, plainly.read_to_end(&mut heard)).await.unwrap();
    assert!(!String::from_utf8_lossy(&heard).contains("hello"));
    // Protocols and versions are the port's own.
    let both = trust(&[&root], &[b"pop3", b"imap"]);
    let stream = handshake(addr(narrow), &both, host).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"imap"[..]));
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert!(handshake(addr(narrow), &trust(&[&root], &[b"h2"]), host).await.is_err());
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let old = std::sync::Arc::new(old);
    assert!(handshake(addr(narrow), &old, host).await.is_err());
    assert!(handshake(addr(plain), &old, host).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_shaken_hands_with_in_its_own_manner_on_the_port_that_all_share() {
    let old = TlsOptions { alpn: vec!["http/1.1".into()], versions: vec!["TLSv1.2".into()] };
    let port443 = Port { tls_options: Some(old), ..port(443, &["tls", "http"]) };
    let service = |inside| vec![Service { ports: vec![port443, port(80, &["http"])], ..http_service(inside) }];
    let (fleet, _host, _) = one_running(&Setup::default(), service).await;
    let host = "old.example.org";
    let root = add(&fleet, host).await;
    let https = fleet.edge.https;
    let config = trust(&[&root], &[b"h2", b"http/1.1"]);
    let mut stream = connected(https, &config, host).await;
    let version = stream.get_ref().1.protocol_version();
    assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_2));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    stream.write_all(b"GET / HTTP/1.1\r\nhost: old.example.org\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Nobody else is.
    let folder = &fleet.edge.certificates;
    let other = crate::tls::certify(folder, "other.pem", &["other.localhost"]);
    let stream = connected(https, &trust(&[&other], &[b"h2"]), "other.localhost").await;
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    // And nobody gets round it by another's name: the client is told to make a connection of its own.
    let mut round = crate::tls::http2(stream).await;
    let answer =
        round.send_request(crate::tls::request(Method::GET, "https://old.example.org/", empty())).await.unwrap();
    assert_eq!(answer.status(), 421);
    let stream = connected(https, &trust(&[&other], &[b"http/1.1"]), "other.localhost").await;
    let mut round = crate::tls::Http1::over(stream).await;
    assert_eq!(round.get_at("old.example.org", "/").await.code, 421);
    assert_eq!(round.get_at("OLD.example.org:443", "/").await.code, 421);
    // Another name of the same app is no other app.
    let own = crate::tls::certify(folder, "own.pem", &["web.localhost"]);
    let stream = connected(https, &trust(&[&own], &[b"http/1.1"]), "web.localhost").await;
    let mut same = crate::tls::Http1::over(stream).await;
    assert_eq!(same.get_at("old.example.org", "/").await.code, 200);
}

/// A Machine that speaks HTTP/2 alone: says what it got, with trailers, and counts its connections.
async fn h2_server(connections: std::sync::Arc<std::sync::atomic::AtomicU64>) -> u16 {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
        let (head, body) = request.into_parts();
        let body = body.collect().await?;
        let trailer = body.trailers().and_then(|all| all.get("x-sum")).cloned();
        let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
        let te = head.headers.get("te").map_or("", |te| te.to_str().unwrap());
        let path = head.uri.path_and_query().unwrap();
        let text = format!("{:?} {} {authority} {path} te={te} {}", head.version, head.method, body.to_bytes().len());
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.extend(trailer.map(|value| (http::HeaderName::from_static("x-sum"), value)));
        let frames = [Frame::data(Bytes::from(text)), Frame::trailers(trailers)];
        let frames = futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>));
        Ok::<_, hyper::Error>(http::Response::new(StreamBody::new(frames)))
    });
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            connections.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let of = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(of.serve_connection(TokioIo::new(socket), service));
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_speaks_http2_gets_it_with_trailers_both_ways_on_one_connection() {
    use http_body_util::BodyExt;
    let connections = std::sync::Arc::default();
    let inside = h2_server(std::sync::Arc::clone(&connections)).await;
    let options = Some(godwit_api::config::HttpOptions { h2_backend: true });
    let ports = vec![Port { http_options: options, ..port(443, &["tls", "http"]) }, port(80, &["http"])];
    let (fleet, _host, _) = one_running(&Setup::default(), |_| vec![Service { ports, ..http_service(inside) }]).await;
    let root = add(&fleet, "grpc.example.org").await;
    let stream = connected(fleet.edge.https, &trust(&[&root], &[b"h2"]), "grpc.example.org").await;
    let mut sender = crate::tls::http2(stream).await;
    let frames = [
        http_body::Frame::data(bytes::Bytes::from(vec![7; 900_000])),
        http_body::Frame::trailers(std::iter::once(("x-sum".parse().unwrap(), "42".parse().unwrap())).collect()),
    ];
    let body = futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>));
    let body = http_body_util::StreamBody::new(body).map_err(|never| match never {}).boxed();
    let mut request = http::Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = "https://grpc.example.org/svc/Call?x=y".parse().unwrap();
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let collected = answer.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap();
    let text = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
    assert_eq!(text, "HTTP/2.0 POST grpc.example.org /svc/Call?x=y te=trailers 900000");
    assert_eq!((trailers["grpc-status"].as_bytes(), trailers["x-sum"].as_bytes()), (&b"0"[..], &b"42"[..]));
    // Clients that speak HTTP/1.1 reach it as well, and all of them share a connection.
    let browser = Browser::new(fleet.edge.addr, "web.localhost");
    let asked = futures_util::future::join_all((0..50).map(|n| {
        let browser = browser.clone();
        async move { browser.get(&format!("/{n}")).await }
    }));
    for (n, answer) in asked.await.into_iter().enumerate() {
        assert_eq!(answer.text(), format!("HTTP/2.0 GET web.localhost /{n} te=trailers 0"));
    }
    let made = connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!(made <= 2, "one, and the one that looked whether the port accepts: {made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_sent_to_https_where_a_service_wants_that() {
    let forced = |inside| {
        let usual = http_service(inside);
        let ports = vec![Port { force_https: true, ..port(80, &["http"]) }, port(443, &["tls", "http"])];
        vec![Service { ports, ..usual }]
    };
    let (fleet, _host, _) = one_running(&Setup::default(), forced).await;
    let host = "shop.example.org";
    let root = add(&fleet, host).await;
    let browser = Browser::new(fleet.edge.addr, &format!("{host}:8080"));
    let answer = until("the name leads to the app", async || {
        Some(browser.get("/a?b=c").await).filter(|answer| answer.code != 404)
    })
    .await;
    assert_eq!((answer.code, answer.headers["location"].to_str().unwrap()), (301, "https://shop.example.org/a?b=c"));
    assert!(answer.body.is_empty() && answer.headers.contains_key("fly-request-id"));
    let (body, _) = payload(1, 100_000);
    let posted = browser.send(Method::POST, "/echo", godwit_base::http::client::full(body), &[]).await;
    assert_eq!(read(posted).await.code, 308);
    // A connection that will not outlive a body that nobody reads says so, and takes no further request with it.
    let post =
        |length: usize| format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n0123456789");
    let mut large = crate::raw::Raw::connect(fleet.edge.addr).await;
    large.send(post(100_000)).await;
    let answer = large.rest().await;
    assert!(answer.starts_with("HTTP/1.1 308 ") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    let mut small = crate::raw::Raw::connect(fleet.edge.addr).await;
    small.send(post(20)).await;
    let answer = small.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 308 ") && !answer.contains("\r\nconnection: "), "{answer}");
    small.send(["0123456789", &post(10)].concat()).await;
    assert!(small.until("\r\n\r\n").await.starts_with("HTTP/1.1 308 "));
    let mut raw = tokio::net::TcpStream::connect(fleet.edge.addr).await.unwrap();
    let asked = "GET /ws HTTP/1.1\r\nhost: shop.example.org\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    raw.write_all(asked.as_bytes()).await.unwrap();
    let mut told = [0; 18];
    tokio::time::timeout(PATIENCE, raw.read_exact(&mut told)).await.unwrap().unwrap();
    assert_eq!(&told, b"HTTP/1.1 301 Moved");
    let stream = connected(fleet.edge.https, &trust(&[&root], &[]), host).await;
    let mut secured = crate::tls::Http1::over(stream).await;
    assert_eq!(secured.get_at(host, "/").await.text(), "1");
}
