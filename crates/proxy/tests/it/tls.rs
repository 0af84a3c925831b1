//! HTTPS: certificates by name, their change under load, and both protocols that a handshake may choose.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use godwit_base::http::client::{Body, empty, full};
use http::{Method, Request};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Answer, metric, payload, read, until};
use crate::fleet::{Fleet, Host, Setup, http_service, one_running};

/// Writes a new certificate for the names, and answers what a client must trust.
pub fn certify(folder: &Path, file: &str, names: &[&str]) -> CertificateDer<'static> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let pem = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
    // As whoever renews one should: a reader sees the old file or the new one.
    let fresh = folder.join(format!("{file}.new"));
    std::fs::write(&fresh, pem).unwrap();
    std::fs::rename(fresh, folder.join(file)).unwrap();
    made.cert.der().clone()
}

pub fn trust(roots: &[&CertificateDer<'static>], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add((*root).clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(store).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

pub async fn handshake(
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(config.clone()).connect(name, TcpStream::connect(addr).await?).await
}

/// As soon as the edge has the certificate.
pub async fn connected(addr: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> TlsStream<TcpStream> {
    until("the certificate is served", async || handshake(addr, config, name).await.ok()).await
}

pub fn request(method: Method, uri: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(body).unwrap()
}

/// One connection that speaks HTTP/1.1.
pub struct Http1(http1::SendRequest<Body>);

impl Http1 {
    pub async fn over(stream: TlsStream<TcpStream>) -> Self {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.get_at("web.localhost", path).await
    }

    pub async fn get_at(&mut self, host: &str, path: &str) -> Answer {
        let mut request = request(Method::GET, path, empty());
        request.headers_mut().insert("host", host.parse().unwrap());
        self.0.ready().await.unwrap();
        read(self.0.send_request(request).await.unwrap()).await
    }
}

pub async fn http2(stream: TlsStream<TcpStream>) -> http2::SendRequest<Body> {
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn running() -> (Fleet, Host) {
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    (fleet, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_has_its_certificate_and_a_stranger_none() {
    let (fleet, _host) = running().await;
    let edge = &fleet.edge;
    let one = certify(&edge.certificates, "one.pem", &["web.localhost"]);
    let other = certify(&edge.certificates, "other.pem", &["*.example.com"]);
    std::fs::write(edge.certificates.join("damaged.pem"), "-----BEGIN CERTIFICATE-----\nx\n").unwrap();
    let trusts_one = trust(&[&one], &[]);
    let mut browser = Http1::over(connected(edge.https, &trusts_one, "web.localhost").await).await;
    let answer = browser.get("/head").await;
    for line in ["\nx-forwarded-proto: https\n", "\nx-forwarded-port: 443\n", "\nvia: 1.1 godwit\n"] {
        assert!(answer.text().contains(line), "no {line:?} in {}", answer.text());
    }
    let trusts_other = trust(&[&other], &[]);
    connected(edge.https, &trusts_other, "www.example.com").await;
    for (config, name) in [(&trusts_one, "www.example.com"), (&trusts_other, "a.b.example.com"), (&trusts_one, "x")] {
        assert!(handshake(edge.https, config, name).await.is_err(), "{name}");
    }
    // Plain HTTP, and a protocol that nobody speaks here.
    let plain = crate::client::Browser::new(edge.addr, "web.localhost");
    assert_eq!(plain.get("/").await.code, 200);
    assert!(handshake(edge.https, &trust(&[&one], &[b"spdy/1"]), "web.localhost").await.is_err());
    // A client knows of its failure before the edge has counted it.
    let failed = async || metric(edge.admin, "godwit_edge_handshakes_failed_total ").await;
    until("four failed handshakes", async || (failed().await >= 4.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_and_drops_no_connection() {
    let (fleet, _host) = running().await;
    let edge = &fleet.edge;
    let before = certify(&edge.certificates, "web.pem", &["web.localhost"]);
    let stream = connected(edge.https, &trust(&[&before], &[]), "web.localhost").await;
    let mut standing = Http1::over(stream).await;
    assert_eq!(standing.get("/").await.text(), "1");
    // A renewal that went wrong changes nothing.
    std::fs::write(edge.certificates.join("web.pem"), "nothing").unwrap();
    let after = certify(&edge.certificates, "renewed.pem", &["web.localhost"]);
    std::fs::rename(edge.certificates.join("renewed.pem"), edge.certificates.join("web.pem")).unwrap();
    let mut fresh = Http1::over(connected(edge.https, &trust(&[&after], &[]), "web.localhost").await).await;
    assert_eq!(fresh.get("/").await.text(), "1");
    assert_eq!(standing.get("/").await.text(), "1", "the old connection stands");
    assert!(handshake(edge.https, &trust(&[&before], &[]), "web.localhost").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_again_resumes() {
    let (fleet, _host) = running().await;
    let root = certify(&fleet.edge.certificates, "web.pem", &["web.localhost"]);
    let config = trust(&[&root], &[]);
    // Its ticket comes with the first answer.
    Http1::over(connected(fleet.edge.https, &config, "web.localhost").await).await.get("/").await;
    let again = handshake(fleet.edge.https, &config, "web.localhost").await.unwrap();
    assert_eq!(again.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_carries_many_requests_side_by_side_on_one_connection() {
    let (fleet, _host) = running().await;
    let root = certify(&fleet.edge.certificates, "web.pem", &["web.localhost"]);
    let config = trust(&[&root], &[b"h2", b"http/1.1"]);
    let sender = http2(connected(fleet.edge.https, &config, "web.localhost").await).await;
    let answers = join_all((0..100u64).map(|n| {
        let mut sender = sender.clone();
        async move {
            let (bytes, expected) = payload(n, 1 + (n as usize * 9_973) % 300_000);
            let request = request(Method::POST, "https://web.localhost/echo", full(bytes));
            let answer = read(sender.send_request(request).await.unwrap()).await;
            assert_eq!((answer.code, answer.text()), (200, expected.as_str()));
        }
    }));
    answers.await;
    let mut sender = sender;
    let mut ask = async |request: Request<Body>| read(sender.send_request(request).await.unwrap()).await;
    let mut odd = request(Method::GET, "https://web.localhost/head?a=b", empty());
    for part in ["a=1", "b=2"] {
        odd.headers_mut().append("cookie", part.parse().unwrap());
    }
    odd.headers_mut().insert("te", "trailers".parse().unwrap());
    odd.headers_mut().insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
    let seen = ask(odd).await;
    for line in ["GET /head?a=b HTTP/1.1\n", "\nhost: web.localhost\n", "\ncookie: a=1; b=2\n", "\nvia: 2 godwit\n"] {
        assert!(format!("\n{}", seen.text()).contains(line), "no {line:?} in {}", seen.text());
    }
    assert!(!seen.text().contains("6.6.6.6") && !seen.text().contains("\nte:"), "{}", seen.text());
    let head = ask(request(Method::HEAD, "https://web.localhost/", empty())).await;
    assert_eq!((head.code, head.headers["content-length"].to_str().unwrap(), head.body.len()), (200, "1", 0));
    assert_eq!(ask(request(Method::GET, "https://web.localhost/nothing", empty())).await.code, 204);
    assert_eq!(ask(request(Method::GET, "https://other.localhost/", empty())).await.code, 404);
    let large = ask(request(Method::GET, "https://web.localhost/large?ms=8", empty())).await;
    assert_eq!(large.body.len(), 8 << 20);
    assert_eq!(metric(fleet.edge.admin, "godwit_edge_handshakes_total{protocol=\"h2\"} ").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2_is_one_over_http1_to_its_machine() {
    let port = crate::tunnels::websocket_server();
    let (fleet, host, _) = one_running(&Setup::default(), |_| vec![http_service(port)]).await;
    let root = certify(&fleet.edge.certificates, "web.pem", &["web.localhost"]);
    let config = trust(&[&root], &[b"h2"]);
    let mut sender = http2(connected(fleet.edge.https, &config, "web.localhost").await).await;
    // Its answer comes after the edge's settings, which allow what follows.
    sender.send_request(request(Method::GET, "https://other.localhost/", empty())).await.unwrap();
    let mut connect = request(Method::CONNECT, "https://web.localhost/chat", empty());
    connect.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    connect.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    let mut response = sender.send_request(connect).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept") && !response.headers().contains_key("upgrade"));
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    for text in [&b"hello"[..], b"again"] {
        // A masked text frame; its echo is not masked (RFC 6455 section 5.2).
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 1, 2, 3, 4];
        frame.extend(text.iter().enumerate().map(|(at, byte)| byte ^ [1, 2, 3, 4][at % 4]));
        stream.write_all(&frame).await.unwrap();
        let mut echo = vec![0; 2 + text.len()];
        tokio::time::timeout(crate::client::PATIENCE, stream.read_exact(&mut echo)).await.unwrap().unwrap();
        assert_eq!(echo, [&[0x81, text.len() as u8][..], text].concat());
    }
    drop(stream);
    until("its place is given back", async || {
        (metric(host.door_admin, "godwit_door_in_flight ").await == 0.0).then_some(())
    })
    .await;
    // Another protocol is no more than a CONNECT.
    let mut odd = request(Method::CONNECT, "https://web.localhost/chat", empty());
    odd.extensions_mut().insert(hyper::ext::Protocol::from_static("connect-udp"));
    assert_eq!(sender.send_request(odd).await.unwrap().status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_breaks_its_stream_and_no_other() {
    use http_body_util::BodyExt;
    let (fleet, _host) = running().await;
    let root = certify(&fleet.edge.certificates, "web.pem", &["web.localhost"]);
    let config = trust(&[&root], &[b"h2"]);
    let mut sender = http2(connected(fleet.edge.https, &config, "web.localhost").await).await;
    let broken = sender.send_request(request(Method::GET, "https://web.localhost/break", empty())).await.unwrap();
    let whole: Result<_, _> = broken.into_body().collect().await;
    assert!(whole.is_err());
    let early = request(Method::POST, "https://web.localhost/early", full(Bytes::from(vec![1; 4 << 20])));
    assert_eq!(sender.send_request(early).await.unwrap().status(), 413);
    let next = sender.send_request(request(Method::GET, "https://web.localhost/", empty())).await.unwrap();
    assert_eq!(read(next).await.text(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_stops_answers_what_is_under_way_on_both_protocols() {
    let (fleet, _host) = running().await;
    let root = certify(&fleet.edge.certificates, "web.pem", &["web.localhost"]);
    let h2 = trust(&[&root], &[b"h2"]);
    let mut sender = http2(connected(fleet.edge.https, &h2, "web.localhost").await).await;
    let mut old = Http1::over(connected(fleet.edge.https, &trust(&[&root], &[]), "web.localhost").await).await;
    let slow = sender.send_request(request(Method::GET, "https://web.localhost/sleep?ms=700", empty()));
    let (slow, old_slow) = (tokio::spawn(slow), tokio::spawn(async move { old.get("/sleep?ms=700").await.code }));
    until("both are in flight", async || {
        (metric(fleet.edge.admin, "godwit_edge_in_flight ").await >= 2.0).then_some(())
    })
    .await;
    fleet.edge.role.stop().await;
    assert_eq!(slow.await.unwrap().unwrap().status(), 200);
    assert_eq!(old_slow.await.unwrap(), 200);
}

/// The alert that a handshake ends with.
async fn alert(addr: SocketAddr, name: ServerName<'static>) -> rustls::AlertDescription {
    let config = trust(&[], &[]);
    let error = TlsConnector::from(config).connect(name, TcpStream::connect(addr).await.unwrap()).await.unwrap_err();
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match told {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_an_unknown_name_or_for_none_is_told_so() {
    use rustls::AlertDescription::{MissingExtension, UnrecognisedName};
    let (fleet, _host) = running().await;
    let stranger = ServerName::try_from("stranger.example.com").unwrap();
    assert_eq!(alert(fleet.edge.https, stranger).await, UnrecognisedName);
    // An address is no name, and so none is sent.
    let address = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    assert_eq!(alert(fleet.edge.https, address).await, MissingExtension);
}
