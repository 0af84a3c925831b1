//! A Machine moves to another host: its clients see nothing but time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use godwit_api::MachineId;
use godwit_api::door::{DoorMachine, MovingTo, Refusal};
use godwit_api::machine::MachineState;
use godwit_api::route::{Readiness, RouteMachine};
use godwit_base::http::client::full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tungstenite::Message;

use crate::backend::free_port;
use crate::client::{Answer, Browser, PATIENCE, fed_body, metric, metric_or_zero, payload, until};
use crate::fleet::{Fleet, Host, Setup, http_service, one_running};
use crate::relay::Relay;
use crate::tunnels::{connect, raw_service, websocket_server};

const DRAIN_TIMEOUT_MS: u64 = 10_000;
/// How long the target takes to boot in these tests.
const BOOT: Duration = Duration::from_millis(300);

/// One app of one running Machine, and a second host. The edge has served a request, so its routes are at hand.
struct Stage {
    fleet: Fleet,
    source: Host,
    target: Host,
    id: MachineId,
}

impl Stage {
    async fn set() -> Self {
        let (fleet, source, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
        assert_eq!(fleet.browser().get("/").await.text(), "1");
        Self { fleet, source, target: Host::start("w2").await, id }
    }

    fn machine(&self) -> DoorMachine {
        self.source.agent.machines().remove(0)
    }

    fn destination(&self, epoch: u64) -> MovingTo {
        MovingTo {
            host: self.target.id.clone(),
            door_addr: self.target.door_addr.to_string(),
            epoch: Host::epoch(epoch),
        }
    }

    /// Begins the move and comes back when the source's door says so. The first answer is of whoever heard it.
    async fn begin(&self) -> JoinHandle<Answer> {
        self.source.agent.change(&self.id, |held| held.machine.moving = Some(self.destination(2)));
        let browser = self.fleet.browser();
        // Its first try may be ahead of the door; those are served by the source.
        let first = tokio::spawn(async move {
            loop {
                let answer = browser.get("/").await;
                assert_eq!(answer.code, 200, "{}", answer.text());
                if answer.text() != "1" {
                    return answer;
                }
            }
        });
        heard_moving(&self.source).await;
        first
    }

    async fn hand_off(&self) {
        assert_eq!(self.source.agent.move_out(&self.id, self.destination(2), DRAIN_TIMEOUT_MS).await.cut_off, 0);
    }
}

async fn heard_moving(source: &Host) {
    until("the source's door says that it is moving", async || {
        let refusals = metric_or_zero(source.door_admin, "godwit_door_refusals_total{reason=\"moving\"} ").await;
        (refusals >= 1.0).then_some(())
    })
    .await;
}

fn gets(browser: &Browser, count: usize) -> Vec<JoinHandle<Answer>> {
    let get = |_| {
        let browser = browser.clone();
        tokio::spawn(async move { browser.get("/").await })
    };
    (0..count).map(get).collect()
}

async fn all_answer(waiting: Vec<JoinHandle<Answer>>, text: &str) {
    for answer in join_all(waiting).await {
        let answer = answer.unwrap();
        assert_eq!((answer.code, answer.text()), (200, text));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_across_a_move_wait_for_the_target_and_make_one_start() {
    let stage = Stage::set().await;
    let (agent, target) = (&stage.source.agent, &stage.target.agent);
    let long: Vec<_> = (0..20)
        .map(|_| {
            let browser = stage.fleet.browser();
            tokio::spawn(async move { browser.get("/sleep?ms=300").await })
        })
        .collect();
    until("all are in flight", async || {
        (agent.with(&stage.id, |held| held.counts.in_flight.load(Ordering::SeqCst)) == 20).then_some(())
    })
    .await;
    target.accept(&stage.machine(), Host::epoch(2));
    let first = stage.begin().await;
    let waiting = gets(&stage.fleet.browser(), 200);
    stage.hand_off().await;
    tokio::time::sleep(BOOT).await;
    target.arrived(&stage.id);
    all_answer(long, "1").await;
    all_answer(waiting, "101").await;
    all_answer(vec![first], "101").await;
    assert_eq!(target.starts.load(Ordering::SeqCst), 1);
    assert_eq!(metric(stage.target.door_admin, "godwit_door_start_calls_total ").await, 1.0);
    assert_eq!(agent.starts.load(Ordering::SeqCst), 0);
    // The row is still the old one; the source is asked no more.
    let before = metric(stage.source.door_admin, "godwit_door_refusals_total{reason=\"moving\"} ").await;
    all_answer(gets(&stage.fleet.browser(), 20), "101").await;
    assert_eq!(metric(stage.source.door_admin, "godwit_door_refusals_total{reason=\"moving\"} ").await, before);
    stage.fleet.publish(&[&stage.target]).await;
    agent.hand_over(&stage.id, &stage.target.id, None, Host::epoch(2)).await;
    all_answer(gets(&stage.fleet.browser(), 20), "101").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_has_not_heard_yet_is_asked_until_it_has() {
    let stage = Stage::set().await;
    let machine = stage.machine();
    let first = stage.begin().await;
    let waiting = gets(&stage.fleet.browser(), 20);
    stage.hand_off().await;
    tokio::time::sleep(BOOT).await;
    stage.target.agent.accept(&machine, Host::epoch(2));
    stage.target.agent.arrived(&stage.id);
    all_answer(waiting, "101").await;
    all_answer(vec![first], "101").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_post_that_comes_during_the_move_arrives_whole() {
    let stage = Stage::set().await;
    stage.target.agent.accept(&stage.machine(), Host::epoch(2));
    let first = stage.begin().await;
    let (body, expected) = payload(7, 8 << 20);
    let browser = stage.fleet.browser();
    let post = tokio::spawn(async move { browser.post("/echo", full(body)).await });
    until("it is held", async || {
        (metric(stage.fleet.edge.admin, "godwit_edge_gate_waiting ").await >= 2.0).then_some(())
    })
    .await;
    stage.hand_off().await;
    tokio::time::sleep(BOOT).await;
    stage.target.agent.arrived(&stage.id);
    all_answer(vec![post], &expected).await;
    all_answer(vec![first], "101").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_the_source_has_ends_well_within_the_drain() {
    let stage = Stage::set().await;
    let (chunks, body) = fed_body();
    let browser = stage.fleet.browser();
    let upload = tokio::spawn(async move { browser.post("/echo", body).await });
    let in_flight = |held: &mut crate::agent::Held| held.counts.in_flight.load(Ordering::SeqCst);
    chunks.send(vec![7; 100_000]).await.unwrap();
    until("the source has it", async || (stage.source.agent.with(&stage.id, in_flight) == 1).then_some(())).await;
    stage.target.agent.accept(&stage.machine(), Host::epoch(2));
    let first = stage.begin().await;
    let rest = async {
        for _ in 0..20 {
            chunks.send(vec![7; 100_000]).await.unwrap();
        }
        drop(chunks);
    };
    tokio::join!(rest, stage.hand_off());
    use sha2::{Digest, Sha256};
    let expected = format!("2100000 {}", hex::encode(Sha256::digest(vec![7; 2_100_000])));
    all_answer(vec![upload], &expected).await;
    stage.target.agent.arrived(&stage.id);
    all_answer(vec![first], "101").await;
}

/// A move that is taken back: those who wait are served by the source again, and so are those who come.
async fn taken_back(handed_off: bool, epoch: u64, target_heard: bool) {
    let stage = Stage::set().await;
    let (agent, target) = (&stage.source.agent, &stage.target.agent);
    let mut waiting = Vec::new();
    if target_heard {
        target.accept(&stage.machine(), Host::epoch(2));
    }
    let life = if handed_off {
        waiting.push(stage.begin().await);
        stage.hand_off().await;
        "2"
    } else {
        agent.change(&stage.id, |held| held.machine.moving = Some(stage.destination(2)));
        heard_moving_by_probe(&stage).await;
        "1"
    };
    waiting.extend(gets(&stage.fleet.browser(), 50));
    agent.take_back(&stage.id, Host::epoch(epoch));
    waiting.extend(gets(&stage.fleet.browser(), 50));
    if target_heard {
        target.not_arriving(&stage.id, Refusal::Unknown, Host::epoch(2));
    }
    all_answer(waiting, life).await;
    // And the next move is believed again.
    let next = MovingTo { epoch: Host::epoch(epoch + 2), ..stage.destination(2) };
    target.accept(&stage.machine(), next.epoch);
    agent.move_out(&stage.id, next, DRAIN_TIMEOUT_MS).await;
    let waiting = gets(&stage.fleet.browser(), 20);
    target.arrived(&stage.id);
    all_answer(waiting, "101").await;
}

/// As `Stage::begin`, for a source whose process does not end.
async fn heard_moving_by_probe(stage: &Stage) {
    let browser = stage.fleet.browser();
    let probe = tokio::spawn(async move {
        loop {
            browser.get("/").await;
        }
    });
    heard_moving(&stage.source).await;
    probe.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_cancelled_before_the_handoff_leaves_the_source_serving() {
    taken_back(false, 1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_cancelled_before_its_target_heard_of_it_leaves_the_source_serving() {
    taken_back(false, 1, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_handed_back_after_the_handoff_is_served_by_the_source_at_its_new_epoch() {
    taken_back(true, 3, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hands_back_sends_the_waiting_ones_to_the_source() {
    let stage = Stage::set().await;
    stage.target.agent.accept(&stage.machine(), Host::epoch(2));
    let first = stage.begin().await;
    stage.hand_off().await;
    let home = stage.source.id.clone();
    let moved = Refusal::Moved { host: home, door_addr: Some(stage.source.door_addr.to_string()) };
    stage.target.agent.not_arriving(&stage.id, moved, Host::epoch(3));
    stage.source.agent.take_back(&stage.id, Host::epoch(3));
    all_answer(vec![first], "2").await;
    all_answer(gets(&stage.fleet.browser(), 20), "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_forgets_the_machine_after_it_ran_leaves_it_to_the_source() {
    let stage = Stage::set().await;
    stage.target.agent.accept(&stage.machine(), Host::epoch(2));
    let first = stage.begin().await;
    stage.hand_off().await;
    stage.target.agent.arrived(&stage.id);
    all_answer(vec![first], "101").await;
    stage.target.agent.not_arriving(&stage.id, Refusal::Unknown, Host::epoch(2));
    until("the target's door has forgotten it", async || {
        (metric(stage.target.door_admin, "godwit_door_machines ").await == 0.0).then_some(())
    })
    .await;
    let waiting = gets(&stage.fleet.browser(), 20);
    stage.source.agent.take_back(&stage.id, Host::epoch(3));
    all_answer(waiting, "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_right_after_the_handoff_costs_nothing_but_time() {
    let stage = Stage::set().await;
    let machine = stage.machine();
    let relay = Relay::to(stage.source.door_addr).await;
    let row = |host: &Host, door_addr: String, epoch: u64| RouteMachine {
        machine: machine.machine.clone(),
        host: host.id.clone(),
        door_addr,
        epoch: Host::epoch(epoch),
        private_ip: machine.private_ip,
        readiness: Readiness::Running,
        cordoned: false,
        services: machine.services.clone(),
        closed_ports: Vec::new(),
    };
    stage.fleet.write_row(vec![row(&stage.source, relay.addr.to_string(), 1)]).await;
    stage.target.agent.accept(&machine, Host::epoch(2));
    let first = stage.begin().await;
    let waiting = gets(&stage.fleet.browser(), 50);
    stage.hand_off().await;
    relay.kill();
    let late = gets(&stage.fleet.browser(), 50);
    tokio::time::sleep(BOOT).await;
    stage.target.agent.arrived(&stage.id);
    stage.fleet.write_row(vec![row(&stage.target, stage.target.door_addr.to_string(), 2)]).await;
    all_answer(vec![first], "101").await;
    all_answer(waiting, "101").await;
    all_answer(late, "101").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_connection_is_closed_at_the_handoff_and_a_new_one_waits() {
    let setup = Setup { listen_tcp: true, ..Setup::default() };
    let public = free_port();
    let (fleet, source, id) = one_running(&setup, |port| vec![raw_service(port, public)]).await;
    let target = Host::start("w2").await;
    fleet.serve_port(public).await;
    let machine = source.agent.machines().remove(0);
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut old = connect(public).await;
    old.write_all(request).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = old.read(&mut answer).await.unwrap();
    assert!(answer[..length].ends_with(b"\r\n\r\n1"));
    target.agent.accept(&machine, Host::epoch(2));
    let to = MovingTo { host: target.id.clone(), door_addr: target.door_addr.to_string(), epoch: Host::epoch(2) };
    // It would go on for ever; nobody waits for that.
    let drained = source.agent.move_out(&id, to, PATIENCE.as_millis() as u64).await;
    assert_eq!(drained.cut_off, 1);
    let read = tokio::time::timeout(PATIENCE, old.read(&mut answer)).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let mut new: TcpStream = connect(public).await;
    new.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    heard_moving(&source).await;
    target.agent.arrived(&id);
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, new.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n101"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_closed_at_the_handoff_and_a_new_one_waits() {
    let (fleet, source, id) = one_running(&Setup::default(), |_| vec![http_service(websocket_server())]).await;
    let target = Host::start("w2").await;
    let edge = fleet.edge.addr;
    let open = move || {
        let stream = std::net::TcpStream::connect(edge).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut socket, response) = tungstenite::client("ws://web.localhost/ws", stream).unwrap();
        assert_eq!(response.status(), 101);
        socket.send(Message::text("here?")).unwrap();
        assert_eq!(socket.read().unwrap(), Message::text("here?"));
        socket
    };
    let mut old = tokio::task::spawn_blocking(open).await.unwrap();
    target.agent.accept(&source.agent.machines().remove(0), Host::epoch(2));
    let to = MovingTo { host: target.id.clone(), door_addr: target.door_addr.to_string(), epoch: Host::epoch(2) };
    assert_eq!(source.agent.move_out(&id, to, PATIENCE.as_millis() as u64).await.cut_off, 1);
    tokio::task::spawn_blocking(move || assert!(old.read().is_err())).await.unwrap();
    let new = tokio::task::spawn_blocking(open);
    heard_moving(&source).await;
    target.agent.arrived(&id);
    new.await.unwrap();
    assert!(metric(target.door_admin, "godwit_door_tunnels_total ").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_moves_is_not_put_to_sleep() {
    let setup = Setup { autostop_interval_ms: 20, ..Setup::default() };
    let (fleet, host, id) = one_running(&setup, |port| {
        vec![godwit_api::config::Service { min_machines_running: Some(1), ..http_service(port) }]
    })
    .await;
    // Alone it is kept. With a second one beside it, one of the two is spare.
    let target = Host::start("w2").await;
    let to = MovingTo { host: target.id.clone(), door_addr: target.door_addr.to_string(), epoch: Host::epoch(2) };
    host.agent.change(&id, |held| held.machine.moving = Some(to));
    let other = MachineId::from_bits(2);
    let port = free_port();
    let service = godwit_api::config::Service { min_machines_running: Some(0), ..http_service(port) };
    host.agent.add(other.clone(), &fleet.app, Host::epoch(1), port, vec![service]);
    host.agent.run(&other);
    host.agent.change(&id, |held| held.machine.services[0].min_machines_running = Some(0));
    fleet.publish(&[&host]).await;
    let (fleet, host) = (Arc::new(fleet), host);
    until("the other one sleeps", async || {
        host.agent.with(&other, |held| held.machine.state == MachineState::Stopped).then_some(())
    })
    .await;
    let passes = async || metric(fleet.edge.admin, "godwit_edge_autostop_passes_total ").await;
    let before = passes().await;
    until("more passes went by", async || (passes().await >= before + 10.0).then_some(())).await;
    assert_eq!(host.agent.with(&id, |held| (held.idle_stops, held.machine.state)), (0, MachineState::Started));
}
