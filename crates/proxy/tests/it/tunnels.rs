//! WebSockets and raw TCP.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use godwit_api::config::{Port, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tungstenite::Message;

use crate::backend::free_port;
use crate::client::{PATIENCE, metric, payload, until};
use crate::fleet::{Setup, http_service, one_machine, one_running};

/// Echoes WebSocket messages on a port, until the test ends.
pub fn websocket_server() -> u16 {
    let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || {
                // A connection that only looks whether the port accepts ends here.
                let Ok(mut socket) = tungstenite::accept(stream) else { return };
                while let Ok(message) = socket.read() {
                    if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_carried_both_ways_and_closed_both_ways() {
    let (fleet, host, _) = one_running(&Setup::default(), |_| vec![http_service(websocket_server())]).await;
    let edge = fleet.edge.addr;
    tokio::task::spawn_blocking(move || {
        let stream = std::net::TcpStream::connect(edge).unwrap();
        let (mut socket, response) = tungstenite::client("ws://web.localhost/ws", stream).unwrap();
        assert_eq!(response.status(), 101);
        for n in 0..200usize {
            let (bytes, _) = payload(n as u64, 1 + n * 331);
            socket.send(Message::binary(bytes.clone())).unwrap();
            assert_eq!(socket.read().unwrap().into_data(), bytes);
        }
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    })
    .await
    .unwrap();
    assert!(metric(host.door_admin, "godwit_door_tunnels_total ").await >= 1.0);
    until("its place is given back", async || {
        (metric(host.door_admin, "godwit_door_in_flight ").await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_declines_an_upgrade_is_heard() {
    let (fleet, _host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let answer = fleet.browser().get_with("/", &[("connection", "upgrade"), ("upgrade", "websocket")]).await;
    assert_eq!((answer.code, answer.text()), (200, "1"));
    let answer = fleet.browser().get_with("/head", &[("connection", "upgrade"), ("upgrade", "h2c")]).await;
    assert!(!answer.text().contains("upgrade"), "{}", answer.text());
}

/// Reads to the end, then answers how much that was, and closes.
async fn counting_server() -> u16 {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                stream.write_all(bytes.len().to_string().as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    port
}

pub fn raw_service(internal_port: u16, public: u16) -> Service {
    Service {
        internal_port,
        ports: vec![Port { port: Some(public), ..Port::default() }],
        ..http_service(internal_port)
    }
}

pub async fn connect(port: u16) -> TcpStream {
    let addr: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    until("the public port is open", async || TcpStream::connect(addr).await.ok()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_tcp_passes_with_half_close() {
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let inside = counting_server().await;
    let public = free_port();
    let (fleet, host, _) = one_running(&setup, |_| vec![raw_service(inside, public)]).await;
    fleet.serve_port(public).await;
    for length in [0usize, 5, 3_000_000] {
        let mut stream = connect(public).await;
        let (bytes, _) = payload(length as u64, length);
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.unwrap().unwrap();
        assert_eq!(answer, length.to_string());
    }
    assert!(metric(host.door_admin, "godwit_door_tunnels_total ").await >= 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_connection_wakes_its_machine() {
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let public = free_port();
    let (fleet, host, _) = one_machine(&setup, |port| vec![raw_service(port, public)]).await;
    fleet.serve_port(public).await;
    let mut stream = connect(public).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n1"), "{answer}");
    assert_eq!(host.agent.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_connection_that_is_cut_off_does_not_look_ended() {
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let public = free_port();
    let (fleet, host, id) = one_running(&setup, |port| vec![raw_service(port, public)]).await;
    fleet.serve_port(public).await;
    let mut stream = connect(public).await;
    stream.write_all(b"GET /sleep?ms=60000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    until("the Machine has it", async || {
        (host.agent.with(&id, |held| held.counts.in_flight.load(Ordering::SeqCst)) > 0).then_some(())
    })
    .await;
    assert_eq!(host.agent.stop(&id, 20).await.cut_off, 1);
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
