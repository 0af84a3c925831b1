//! The smuggling table through the real edge, door and sockets: what the client is told, and what the Machine received.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use godwit_api::MachineId;
use godwit_api::machine::MachineState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::client::{metric, until};
use crate::fleet::{Fleet, Host, Setup, http_service};
use crate::raw::{Raw, is_whole, over_map};
use crate::table::{Expect, cases};

const SECOND: &[u8] = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n";
const SECOND_FORWARDED: &[u8] = b"GET /second HTTP/1.1\r\nhost: a\r\n\r\n";
/// What arrives together with its head is judged with it.
const ONE_READ_BYTES: usize = 4000;

/// What the edge adds to each request, once.
pub const STAMPS: [&str; 9] = [
    "fly-client-ip: 127.0.0.1",
    "fly-forwarded-port: 80",
    "fly-region: fra",
    "fly-request-id: ID",
    "traceparent: ID",
    "via: 1.1 godwit",
    "x-forwarded-for: 127.0.0.1",
    "x-forwarded-port: 80",
    "x-forwarded-proto: http",
];

/// A Machine that keeps every byte it receives, and answers `ok` whenever that is a whole request to a naive reader.
pub struct Recorder {
    port: u16,
    received: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    pub async fn start() -> Self {
        // The usual queue of 128 is short for as many requests at once as one client may have: what does not fit is not
        // connected within the door's bound.
        let socket = TcpSocket::new_v6().unwrap();
        socket.bind("[::1]:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1_024).unwrap();
        let port = listener.local_addr().unwrap().port();
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = received.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let kept = kept.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    loop {
                        let ended = socket.read_buf(&mut bytes).await.unwrap_or(0) == 0;
                        let whole = is_whole(&bytes);
                        if (whole || ended) && !bytes.is_empty() {
                            kept.lock()
                                .unwrap()
                                .push(String::from_utf8_lossy(&std::mem::take(&mut bytes)).into_owned());
                        }
                        if ended {
                            return;
                        }
                        if whole {
                            let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                        }
                    }
                });
            }
        });
        Self { port, received }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

/// A request's bytes with its fields in order of their letters, since a map between edge and door has its own order,
/// and without what chance puts in.
pub fn in_order(request: &str) -> String {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = head
        .split("\r\n")
        .map(|line| match line.split_once(": ") {
            Some(("fly-request-id", _)) => "fly-request-id: ID",
            Some(("traceparent", _)) => "traceparent: ID",
            _ => line,
        })
        .collect();
    lines[1..].sort_unstable();
    format!("{}\r\n\r\n{body}", lines.join("\r\n"))
}

/// What the Machine receives of a request that the framing alone would send on so.
fn stamped(forwarded: &[u8]) -> String {
    let plain = over_map(forwarded);
    let (head, body) = plain.split_once("\r\n\r\n").unwrap();
    in_order(&format!("{head}\r\n{}\r\n\r\n{body}", STAMPS.join("\r\n")))
}

pub async fn stage() -> (Fleet, Host, Recorder) {
    let fleet = Fleet::start(&Setup::default()).await;
    let host = Host::start("w1").await;
    let machine = Recorder::start().await;
    let id = MachineId::from_bits(1);
    host.agent.add(id.clone(), &fleet.app, Host::epoch(1), machine.port, vec![http_service(machine.port)]);
    host.agent.change(&id, |held| held.machine.state = MachineState::Started);
    fleet.publish(&[&host]).await;
    (fleet, host, machine)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_behind_edge_and_door_receives_exactly_these_bytes() {
    let (fleet, _host, machine) = stage().await;
    let mut refused: BTreeMap<&str, u32> = BTreeMap::new();
    for case in cases() {
        let name = format!("{}/{}", case.class, case.name);
        let mut client = Raw::connect(fleet.edge.addr).await;
        client.send([case.bytes.as_slice(), SECOND].concat()).await;
        let expected: Vec<String> = match &case.expect {
            Expect::Refused(refusal) => {
                let answer = client.rest().await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {} ", refusal.status())), "{name}: {answer:?}");
                assert!(answer.contains("\r\nconnection: close\r\n"), "{name}: {answer:?}");
                assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{name}: {answer:?}");
                *refused.entry(refusal.word()).or_default() += 1;
                let received = machine.take();
                if case.bytes.len() < ONE_READ_BYTES {
                    assert!(received.is_empty(), "{name}: {received:?}");
                }
                // What comes later than the head can only be told by breaking off.
                assert!(!received.iter().any(|text| is_whole(text.as_bytes())), "{name}: {received:?}");
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
                let second = [SECOND_FORWARDED.to_vec()];
                requests.iter().chain(&second).map(|request| stamped(request)).collect()
            }
            Expect::ForwardedThenClosed(request) => {
                let answer = client.rest().await;
                let closes = answer.contains("\r\nconnection: close\r\n") && answer.ends_with("\r\n\r\nok");
                assert!(closes, "{name}: {answer:?}");
                vec![stamped(request)]
            }
        };
        let received: Vec<_> = machine.take().iter().map(|request| in_order(request)).collect();
        assert_eq!(received, expected, "{name}");
    }
    for (word, count) in refused {
        let line = format!("godwit_edge_client_refusals_total{{reason=\"{word}\"}} ");
        until("the refusals are counted", async || {
            (metric(fleet.edge.admin, &line).await == f64::from(count)).then_some(())
        })
        .await;
    }
}
