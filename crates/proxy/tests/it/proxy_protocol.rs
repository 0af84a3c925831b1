//! Proxies before the edge name their clients, and the edge names its own to Machines that want it.

use std::net::SocketAddr;

use godwit_api::config::{Port, Service};
use godwit_proxy::proxy_protocol::{Ends, v1, v2};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{echo, free_port};
use crate::client::{PATIENCE, until};
use crate::fleet::{Setup, http_service, one_running};
use crate::tunnels::{connect, raw_service};

fn ends(source: &str) -> Ends {
    Ends { source: source.parse().unwrap(), destination: "192.0.2.1:80".parse().unwrap() }
}

const REQUEST: &[u8] = b"GET /head HTTP/1.1\r\nhost: web.localhost\r\nconnection: close\r\n\r\n";

async fn said(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an answer too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_names_its_client_and_must() {
    let setup = Setup { trusted: vec!["10.0.0.0/8", "127.0.0.1"], ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |port| vec![http_service(port)]).await;
    for (header, client) in [
        (v1(ends("203.0.113.7:999")), "203.0.113.7"),
        (v2(ends("203.0.113.8:999")), "203.0.113.8"),
        (v2(ends("[2001:db8::7]:1")), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ] {
        let answer = said(fleet.edge.addr, &[header.as_slice(), REQUEST].concat()).await;
        assert!(answer.contains(&format!("\nfly-client-ip: {client}\n")), "{client}: {answer}");
        assert!(answer.contains(&format!("\nx-forwarded-for: {client}\n")), "{client}: {answer}");
    }
    assert_eq!(said(fleet.edge.addr, REQUEST).await, "", "its own address says nothing of its client");
    // In pieces.
    let mut slow = TcpStream::connect(fleet.edge.addr).await.unwrap();
    slow.set_nodelay(true).unwrap();
    for byte in v2(ends("203.0.113.9:1")) {
        slow.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    slow.write_all(REQUEST).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, slow.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.contains("\nfly-client-ip: 203.0.113.9\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_believed() {
    let setup = Setup { trusted: vec!["10.0.0.0/8"], ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |port| vec![http_service(port)]).await;
    let answer = said(fleet.edge.addr, &[v1(ends("203.0.113.7:999")).as_slice(), REQUEST].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 505"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_wants_it_is_told_of_its_client_before_all_else() {
    let inside = echo().await;
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let (announced, silent) = (free_port(), free_port());
    let port = Port { port: Some(announced), handlers: vec!["proxy_proto".into()], ..Port::default() };
    let both = |_| {
        let raw = raw_service(inside, silent);
        vec![Service { ports: [raw.ports.clone(), vec![port]].concat(), ..raw }]
    };
    let (fleet, _host, _) = one_running(&setup, both).await;
    for (public, with_header) in [(announced, true), (silent, false)] {
        fleet.serve_port(public).await;
        let mut stream = until("the port is open", async || Some(connect(public).await)).await;
        let own = stream.local_addr().unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut heard)).await.unwrap().unwrap();
        let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {public}\r\n", own.port());
        assert_eq!(heard, if with_header { header + "hello" } else { "hello".to_owned() });
    }
}
