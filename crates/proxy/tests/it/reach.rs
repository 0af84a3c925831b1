//! A Machine is reached at whichever of its two addresses its process listens on, over wakes, restarts and moves; one that
//! can never be reached is named; equal ones share what comes.
//!
//! 127.77.0.x stand for the host-local IPv4 addresses of Machines: nothing else listens there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit_api::config::{HttpOptions, Port, Service};
use godwit_api::door::Listening;
use godwit_api::ids::MachineId;
use godwit_api::route::{ClosedPort, Readiness, RouteMachine};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tungstenite::Message;

use crate::backend::free_port;
use crate::client::{PATIENCE, metric, metrics_with, until};
use crate::fleet::{Fleet, Host, Setup, http_service, one_machine, one_running};
use crate::relay::Relay;
use crate::tunnels::{connect, raw_service};

const V4: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
const V4_ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 2);

/// The agent tells the Machine's IPv4 address; its process listens there from its next life on, or on IPv6.
fn listen(host: &Host, id: &MachineId, v4: Ipv4Addr, ip: IpAddr) {
    host.agent.change(id, |held| {
        held.machine.private_ip4 = Some(v4);
        held.ip = ip;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_on_either_family_is_woken_and_found_again_when_the_next_one_listens_elsewhere() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    let lives: [IpAddr; 5] = [V4.into(), Ipv6Addr::LOCALHOST.into(), V4.into(), V4.into(), Ipv6Addr::LOCALHOST.into()];
    for (life, ip) in lives.into_iter().enumerate() {
        listen(&host, &id, V4, ip);
        host.agent.with(&id, |held| held.listen_delay = Some(Duration::from_millis(50 * life as u64)));
        for _ in 0..20 {
            let answer = browser.get("/").await;
            assert_eq!((answer.code, answer.text()), (200, &*(life + 1).to_string()), "life {} on {ip}", life + 1);
        }
        host.agent.stop(&id, 1_000).await;
        fleet.publish(&[&host]).await;
    }
    // A restart in place: the door is told of no stop that it could wait for.
    for (life, ip) in [(6, IpAddr::V4(V4)), (7, Ipv6Addr::LOCALHOST.into())] {
        listen(&host, &id, V4, ip);
        host.agent.crash(&id).await;
        host.agent.run(&id);
        let answer = until("the new life answers", async || {
            let answer = browser.get("/").await;
            (answer.code == 200).then_some(answer)
        });
        assert_eq!(answer.await.text(), life.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_moved_with_an_update_is_found_at_its_own_family() {
    let (fleet, host, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.code, 200);
    let moved = free_port();
    host.agent.stop(&id, 1_000).await;
    host.agent.change(&id, |held| {
        held.machine.private_ip4 = Some(V4);
        (held.ip, held.port) = (V4.into(), moved);
        held.machine.services = vec![http_service(moved)];
    });
    fleet.publish(&[&host]).await;
    until("the new port serves", async || (browser.get("/").await.code == 200).then_some(())).await;
}

/// Its IPv4 address is another one there.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_on_ipv4_is_reached_on_the_host_that_it_moved_to() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    listen(&host, &id, V4, V4.into());
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.text(), "1");
    let other = Host::start("w2").await;
    let port = host.agent.with(&id, |held| held.port);
    other.agent.add(id.clone(), &fleet.app, Host::epoch(2), port, vec![http_service(port)]);
    listen(&other, &id, V4_ELSEWHERE, V4_ELSEWHERE.into());
    host.agent.hand_over(&id, &other.id, Some(other.door_addr.to_string()), Host::epoch(2)).await;
    other.agent.run(&id);
    for _ in 0..20 {
        assert_eq!(browser.get("/").await.code, 200);
    }
    assert!(other.agent.with(&id, |held| held.counts.requests.load(Ordering::SeqCst)) >= 20);
}

/// Ten clients at a time through ten lives that change their family.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_processes_on_either_family_come_and_go() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    listen(&host, &id, V4, V4.into());
    let stop = tokio_util::sync::CancellationToken::new();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let (browser, stop) = (fleet.browser(), stop.clone());
            tokio::spawn(async move {
                let mut served = 0;
                while !stop.is_cancelled() {
                    let answer = browser.get("/").await;
                    assert_eq!(answer.code, 200, "{}", answer.text());
                    served += 1;
                }
                served
            })
        })
        .collect();
    for life in 1..=10u64 {
        let lives = async || (host.agent.with(&id, |held| held.lives) >= life).then_some(());
        until("somebody wakes it", lives).await;
        let ip = if life % 2 == 0 { V4.into() } else { Ipv6Addr::LOCALHOST.into() };
        host.agent.stop(&id, 5_000).await;
        host.agent.with(&id, |held| held.ip = ip);
    }
    stop.cancel();
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_tcp_and_websockets_reach_a_process_on_ipv4_alone() {
    let listener = TcpListener::bind((V4, 0)).await.unwrap();
    let inside = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut heard = Vec::new();
                let _ = socket.read_to_end(&mut heard).await;
                let _ = socket.write_all(&heard).await;
            });
        }
    });
    let sockets = std::net::TcpListener::bind((V4, 0)).unwrap();
    let websocket = sockets.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = sockets.accept() {
            std::thread::spawn(move || {
                // A connection that only looks whether the port accepts ends here.
                let Ok(mut socket) = tungstenite::accept(stream) else { return };
                while let Ok(message) = socket.read() {
                    if message.is_binary() && socket.send(message).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let (plain, told) = (free_port(), free_port());
    let told_port = Port { port: Some(told), handlers: vec!["proxy_proto".into()], ..Port::default() };
    let raw = raw_service(inside, plain);
    let raw = Service { ports: raw.ports.iter().cloned().chain([told_port]).collect(), ..raw };
    let (fleet, host, id) = one_running(&setup, |_| vec![raw, http_service(websocket)]).await;
    listen(&host, &id, V4, V4.into());
    for public in [plain, told] {
        fleet.serve_port(public).await;
        let mut stream = connect(public).await;
        stream.write_all(b"across").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("across"), "{answer}");
        assert_eq!(answer.starts_with("PROXY TCP4 "), public == told, "{answer}");
    }
    let edge = fleet.edge.addr;
    let spoken = tokio::task::spawn_blocking(move || {
        let stream = std::net::TcpStream::connect(edge).unwrap();
        let (mut socket, response) = tungstenite::client("ws://web.localhost/ws", stream).unwrap();
        assert_eq!(response.status(), 101);
        socket.send(Message::binary(vec![7u8; 1_000])).unwrap();
        socket.read().unwrap().into_data()
    });
    assert_eq!(spoken.await.unwrap(), vec![7u8; 1_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_reaches_a_process_on_ipv4_alone() {
    let listener = TcpListener::bind((V4, 0)).await.unwrap();
    let inside = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
                    stream.send_data("over 2".into(), true).unwrap();
                }
            });
        }
    });
    let (fleet, host, id) = one_running(&Setup::default(), |_| {
        let options = Some(HttpOptions { h2_backend: true });
        let public = Port { port: Some(80), handlers: vec!["http".into()], http_options: options, ..Port::default() };
        vec![Service { ports: vec![public], ..http_service(inside) }]
    })
    .await;
    listen(&host, &id, V4, V4.into());
    for _ in 0..3 {
        let answer = fleet.browser().get("/").await;
        assert_eq!((answer.code, answer.text()), (200, "over 2"));
    }
}

const HINT: &str = "listens on 127.0.0.1:8000; make it listen on 0.0.0.0 or [::]";

fn seen(lasting: bool) -> Listening {
    Listening { hint: Some(HINT.into()), lasting }
}

/// Long before the gate's deadline, every time, and not after the fault is mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_can_never_be_reached_is_named_at_once_and_serves_as_soon_as_it_is_mended() {
    let setup = Setup { gate_deadline_ms: 120_000, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    host.agent.with(&id, |held| {
        held.listen_delay = None;
        held.listening = seen(true);
    });
    let browser = fleet.browser();
    for _ in 0..5 {
        let answer = tokio::time::timeout(PATIENCE, browser.get("/")).await.expect("an early answer");
        assert_eq!(answer.code, 503);
        assert_eq!(answer.text().trim(), format!("app web cannot be reached. Machine {id}: {HINT}"));
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert_eq!(host.agent.starts.load(Ordering::SeqCst), 1, "it runs");
    host.agent.stop(&id, 1_000).await;
    host.agent.with(&id, |held| {
        held.listen_delay = Some(Duration::ZERO);
        held.listening = Listening::default();
    });
    fleet.publish(&[&host]).await;
    let told = metrics_with(fleet.edge.admin, &["ejections"]).await;
    assert_eq!(browser.get("/").await.code, 200, "it was left alone by nobody: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_still_come_is_waited_for_and_in_the_end_the_reason_is_named() {
    let setup = Setup { gate_deadline_ms: 1_500, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    let port = host.agent.with(&id, |held| {
        held.listen_delay = None;
        held.listening = seen(false);
        held.port
    });
    let answer = fleet.browser().get("/").await;
    assert_eq!(answer.code, 503);
    let why = format!("Machine {id}: port {port} took no connection in time: {HINT}");
    assert!(answer.text().contains(&why), "{}", answer.text());
    // It is left alone for a moment now; that says why too.
    let answer = fleet.browser().get("/").await;
    assert!(answer.code == 503 && answer.text().contains(&why), "{}", answer.text());
    assert!(host.agent.with(&id, |held| held.asked) > 0);
}

/// A check fails because the port is closed: its row is out, and no door is asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_out_because_its_port_is_closed_is_named_at_once_or_at_the_deadline() {
    let setup = Setup { gate_deadline_ms: 1_500, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    let machine = host.agent.machines().remove(0);
    let row = |lasting: bool, readiness: Readiness| RouteMachine {
        machine: id.clone(),
        host: host.id.clone(),
        door_addr: host.door_addr.to_string(),
        epoch: machine.epoch,
        private_ip: machine.private_ip,
        readiness,
        cordoned: false,
        services: machine.services.clone(),
        closed_ports: vec![ClosedPort { port: machine.services[0].internal_port, why: HINT.into(), lasting }],
    };
    let named = format!("app web cannot be reached. Machine {id}: {HINT}");
    let browser = fleet.browser();
    for lasting in [false, true] {
        fleet.write_row(vec![row(lasting, Readiness::Unavailable)]).await;
        let answer = browser.get("/").await;
        assert_eq!((answer.code, answer.text().trim()), (503, &*named), "lasting: {lasting}");
    }
    assert_eq!(host.agent.starts.load(Ordering::SeqCst), 0, "nobody was asked for a start");
    // What was said of a port holds up no request to a Machine that is in.
    fleet.write_row(vec![row(true, Readiness::Stopped)]).await;
    until("it serves", async || (browser.get("/").await.code == 200).then_some(())).await;
}

/// It is never started by a request, so its door names the reason with the refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_autostart_is_named_too() {
    let setup = Setup { gate_deadline_ms: 2_000, ..Setup::default() };
    let service = |port| vec![Service { autostart: Some(false), ..http_service(port) }];
    let (fleet, host, id) = one_machine(&setup, service).await;
    host.agent.with(&id, |held| {
        held.listen_delay = None;
        held.listening = seen(true);
    });
    host.agent.run(&id);
    fleet.publish(&[&host]).await;
    until("the door hears that it runs", async || {
        let answer = fleet.browser().get("/").await;
        assert_eq!(answer.code, 503);
        answer.text().contains(&format!("Machine {id}: {HINT}")).then_some(())
    })
    .await;
}

/// One of two is out of reach: the other serves all, and nobody is told of the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_serves_while_another_cannot_be_reached() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    let second = MachineId::from_bits(2);
    let port = free_port();
    host.agent.add(second.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    host.agent.with(&id, |held| {
        held.listen_delay = None;
        held.listening = seen(true);
    });
    host.agent.run(&id);
    host.agent.run(&second);
    fleet.publish(&[&host]).await;
    for _ in 0..50 {
        assert_eq!(fleet.browser().get("/").await.code, 200);
    }
}

/// The hosts of one region are never equally far to the microsecond.
#[tokio::test(flavor = "multi_thread")]
async fn equal_machines_of_a_region_share_what_comes_one_at_a_time() {
    let fleet = Fleet::start(&Setup::default()).await;
    let mut hosts = Vec::new();
    for (n, delay_ms) in [(1u64, 0), (2, 1), (3, 2)] {
        let host = Host::start(&format!("w{n}")).await;
        let (id, port) = (MachineId::from_bits(n), free_port());
        host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
        host.agent.run(&id);
        let relay = Relay::far(host.door_addr, Duration::from_millis(delay_ms)).await;
        hosts.push((host, relay));
    }
    let row = hosts.iter().map(|(host, relay)| {
        let machine = host.agent.machines().remove(0);
        RouteMachine {
            machine: machine.machine,
            host: host.id.clone(),
            door_addr: SocketAddr::to_string(&relay.addr),
            epoch: machine.epoch,
            private_ip: machine.private_ip,
            readiness: Readiness::Running,
            cordoned: false,
            services: machine.services,
            closed_ports: Vec::new(),
        }
    });
    fleet.write_row(row.collect()).await;
    let browser = fleet.browser();
    for _ in 0..120 {
        assert_eq!(browser.get("/").await.code, 200);
    }
    for (host, _) in &hosts {
        let served = metric(host.door_admin, "godwit_door_answers_total{class=\"2xx\"} ").await;
        // Of 120 by chance: fewer than 15 happens once in ten million times.
        assert!(served >= 15.0, "{} served {served} of 120", host.id);
    }
}
