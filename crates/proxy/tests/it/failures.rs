//! What goes away behind the edge: the door, the agent, the store, the Machine's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use godwit_api::MachineId;
use godwit_api::ids::HostId;
use godwit_api::route::{Readiness, RouteMachine};
use godwit_store::{BoxFuture, Error, Identity, Range, RangeReply, Store, Txn, TxnReply, Watch};

use crate::backend::free_port;
use crate::client::{Browser, fed_body, metric, until};
use crate::fleet::{Host, Setup, http_service, one_machine, one_running, start_edge};
use crate::relay::Relay;

/// A store behind a switch, as a partition would make it.
pub struct Switched {
    pub store: Arc<dyn Store>,
    pub away: Arc<AtomicBool>,
}

impl Switched {
    fn call<'a, T: 'a>(&'a self, call: BoxFuture<'a, Result<T, Error>>) -> BoxFuture<'a, Result<T, Error>> {
        if self.away.load(Ordering::SeqCst) {
            let away = Error::Unavailable { url: "x".into(), reason: "cut off".into(), source: None };
            return Box::pin(async move { Err(away) });
        }
        call
    }
}

impl Store for Switched {
    fn range(&self, range: Range) -> BoxFuture<'_, Result<RangeReply, Error>> {
        self.call(self.store.range(range))
    }
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnReply, Error>> {
        self.call(self.store.txn(txn))
    }
    fn watch(&self, prefix: String, from_revision: u64) -> BoxFuture<'_, Result<Watch, Error>> {
        self.call(self.store.watch(prefix, from_revision))
    }
    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.call(self.store.compact(revision))
    }
    fn identity(&self) -> BoxFuture<'_, Result<Identity, Error>> {
        self.call(self.store.identity())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_restarts_fails_no_request() {
    let (fleet, mut host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.code, 200);
    let stop = Arc::new(AtomicBool::new(false));
    let load = join_all((0..4).map(|_| {
        let (browser, stop) = (browser.clone(), stop.clone());
        tokio::spawn(async move {
            let mut served = 0;
            while !stop.load(Ordering::SeqCst) {
                let answer = browser.get("/").await;
                assert_eq!(answer.code, 200, "{}", answer.text());
                served += 1;
            }
            served
        })
    }));
    let restarts = async {
        for _ in 0..3 {
            host.door_down().await;
            host.door_up().await;
            let before = metric(host.door_admin, "godwit_door_answers_total{class=\"2xx\"} ").await;
            until("it serves again", async || {
                let now = metric(host.door_admin, "godwit_door_answers_total{class=\"2xx\"} ").await;
                (now > before).then_some(())
            })
            .await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    let (served, ()) = tokio::join!(load, restarts);
    assert!(served.into_iter().map(|one: Result<u64, _>| one.unwrap()).sum::<u64>() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_serves_on_without_its_agent_even_after_a_restart() {
    let (fleet, mut host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.code, 200);
    until("the door has kept what it was told", async || host.kept().contains("\"started\"").then_some(())).await;
    host.agent.down().await;
    assert_eq!(browser.get("/").await.code, 200);
    host.door_down().await;
    host.door_up().await;
    assert_eq!(browser.get("/").await.code, 200);
    host.agent.up();
    until("the agent is heard again", async || {
        (metric(host.door_admin, "godwit_door_agent_age_seconds ").await.abs() < 1.0).then_some(())
    })
    .await;
    assert_eq!(browser.get("/").await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_an_agent_that_restarts() {
    let (fleet, host, _) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    // The door must know its edge and Machine before the agent goes.
    until("the door has the Machine", async || {
        (metric(host.door_admin, "godwit_door_machines ").await == 1.0).then_some(())
    })
    .await;
    host.agent.down().await;
    let waiting = tokio::spawn(async move { browser.get("/").await });
    until("the start call came", async || {
        (metric(host.door_admin, "godwit_door_start_calls_total ").await >= 1.0).then_some(())
    })
    .await;
    host.agent.up();
    assert_eq!(waiting.await.unwrap().code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_routes_go_on_without_the_store_also_after_a_restart_of_the_edge() {
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let away = Arc::new(AtomicBool::new(false));
    let store = Arc::new(Switched { store: fleet.store.clone(), away: away.clone() });
    let folder = tempfile::TempDir::new().unwrap();
    let edge = start_edge(folder.path(), store.clone(), &Setup::default()).await;
    let browser = Browser::new(edge.addr, "web.localhost");
    assert_eq!(browser.get("/").await.code, 200);
    away.store(true, Ordering::SeqCst);
    fleet.store.close().await;
    assert_eq!(browser.get("/").await.code, 200);
    edge.role.stop().await;

    let edge = start_edge(folder.path(), store, &Setup::default()).await;
    let browser = Browser::new(edge.addr, "web.localhost");
    assert_eq!(browser.get("/").await.code, 200, "from the copy on disk");
    assert_eq!(Browser::new(edge.addr, "other.localhost").get("/").await.code, 404);
    until("it says how old its routes are", async || {
        (metric(edge.admin, "godwit_edge_routes_age_seconds ").await > 0.0).then_some(())
    })
    .await;
    // A stopped Machine still wakes, for that needs no store.
    host.agent.crash(&MachineId::from_bits(1)).await;
    until("the second life answers", async || (browser.get("/").await.text() == "2").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_knows_nothing_says_so() {
    let away = Arc::new(AtomicBool::new(true));
    let folder = tempfile::TempDir::new().unwrap();
    let inner = godwit_store::SqliteStore::open(folder.path().join("s.db"), Default::default()).unwrap();
    let store = Arc::new(Switched { store: Arc::new(inner), away });
    let edge = start_edge(folder.path(), store, &Setup::default()).await;
    let answer = Browser::new(edge.addr, "web.localhost").get("/").await;
    assert_eq!(answer.code, 503);
    assert!(answer.text().contains("has no routes yet"), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_route_is_set_right_by_the_door() {
    let (fleet, old, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let new = Host::start("w2").await;
    // Another Machine of the app tells the edge where the door of w2 is.
    let other = MachineId::from_bits(9);
    let port = free_port();
    new.agent.add(other.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    fleet.publish(&[&old, &new]).await;
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.code, 200);
    // The Machine moves, and keeps its port; nobody tells the edge. Its first request there wakes it.
    let services = old.agent.machines().remove(0).services;
    let port = services[0].internal_port;
    new.agent.add(id.clone(), &fleet.app, Host::epoch(2), port, services);
    new.agent.with(&id, |held| held.lives = 40);
    until("the new door has both", async || {
        (metric(new.door_admin, "godwit_door_machines ").await == 2.0).then_some(())
    })
    .await;
    // The other one would answer half of the requests.
    new.agent.with(&other, |held| held.refuse = Some(godwit_api::door::Refusal::Full));
    old.agent.hand_over(&id, &new.id, None, Host::epoch(2)).await;
    until("the move is followed", async || (browser.get("/").await.text() == "41").then_some(())).await;
    // The old door is asked no more once its word was heard.
    let refusals = metric(fleet.edge.admin, "godwit_edge_refusals_total{reason=\"moved\"} ").await;
    for _ in 0..20 {
        assert_eq!(browser.get("/").await.text(), "41");
    }
    let after = metric(fleet.edge.admin, "godwit_edge_refusals_total{reason=\"moved\"} ").await;
    assert_eq!(refusals, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_a_host_that_nobody_named_is_waited_for() {
    let (fleet, old, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    assert_eq!(browser.get("/").await.code, 200);
    let new = Host::start("w2").await;
    old.agent.hand_over(&id, &HostId::parse("w2").unwrap(), None, Host::epoch(2)).await;
    let waiting = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get("/").await }
    });
    until("the old door said where it went", async || {
        let admin = fleet.edge.admin;
        let text = godwit_base::http::client::Client::tcp(&format!("http://{admin}"), None);
        let request = http::Request::new(godwit_base::http::client::empty());
        let answer = crate::client::read(text.send_raw("/metrics", request, crate::client::PATIENCE).await.unwrap());
        answer.await.text().contains("edge_refusals_total{reason=\"moved\"}").then_some(())
    })
    .await;
    let port = free_port();
    new.agent.add(id.clone(), &fleet.app, Host::epoch(2), port, vec![http_service(port)]);
    new.agent.run(&id);
    fleet.publish(&[&new]).await;
    assert_eq!(waiting.await.unwrap().code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_host_is_passed_by() {
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let dead = RouteMachine {
        machine: MachineId::from_bits(5),
        host: HostId::parse("dead").unwrap(),
        door_addr: format!("127.0.0.1:{}", free_port()),
        epoch: Host::epoch(1),
        private_ip: std::net::Ipv6Addr::LOCALHOST,
        readiness: Readiness::Running,
        cordoned: false,
        services: vec![http_service(1)],
        closed_ports: Vec::new(),
    };
    let live = host.agent.machines().remove(0);
    let live = RouteMachine {
        machine: live.machine,
        host: host.id.clone(),
        door_addr: host.door_addr.to_string(),
        services: live.services,
        closed_ports: Vec::new(),
        ..dead.clone()
    };
    fleet.write_row(vec![dead, live]).await;
    for _ in 0..50 {
        assert_eq!(fleet.browser().get("/").await.code, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_from_a_door() {
    let (_fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let link = godwit_proxy::link::client::Link::new(
        &host.door_addr.to_string(),
        http::HeaderValue::from_static("Bearer gwe_of_somebody_else"),
    );
    let refused = link.sender().await.expect_err("a door must not take a stranger");
    assert!(refused.to_string().contains("does not know this edge"), "{refused}");
}

/// A fleet of two running Machines, the first of them behind a relay.
async fn one_behind_a_relay() -> (crate::fleet::Fleet, Host, Host, Relay) {
    one_far_away(Duration::ZERO).await
}

/// The same, where the relay takes `delay` each way.
async fn one_far_away(delay: Duration) -> (crate::fleet::Fleet, Host, Host, Relay) {
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let other = Host::start("w2").await;
    let port = free_port();
    let id = MachineId::from_bits(2);
    other.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    other.agent.run(&id);
    let relay = Relay::far(host.door_addr, delay).await;
    let of = |host: &Host, door_addr: std::net::SocketAddr| {
        let machine = host.agent.machines().remove(0);
        RouteMachine {
            machine: machine.machine,
            host: host.id.clone(),
            door_addr: door_addr.to_string(),
            epoch: machine.epoch,
            private_ip: machine.private_ip,
            readiness: Readiness::Running,
            cordoned: false,
            services: machine.services,
            closed_ports: Vec::new(),
        }
    };
    fleet.write_row(vec![of(&host, relay.addr), of(&other, other.door_addr)]).await;
    (fleet, host, other, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_goes_black_costs_reads_nothing_but_time() {
    let (fleet, host, _other, relay) = one_behind_a_relay().await;
    let browser = fleet.browser();
    let door = host.door_admin;
    until("both are in use", async || {
        assert_eq!(browser.get("/").await.code, 200);
        (metric(door, "godwit_door_answers_total{class=\"2xx\"} ").await > 0.0).then_some(())
    })
    .await;
    relay.black.send_replace(true);
    for answer in join_all((0..30).map(|_| browser.get("/"))).await {
        assert_eq!(answer.code, 200, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_a_machine_had_is_never_sent_twice() {
    let (fleet, host, other, relay) = one_behind_a_relay().await;
    let requests = |host: &Host, bits| {
        let count = |held: &mut crate::agent::Held| held.counts.requests.load(Ordering::SeqCst);
        host.agent.with(&MachineId::from_bits(bits), count)
    };
    let mut lost = 0;
    while lost == 0 {
        let before = requests(&host, 1) + requests(&other, 2);
        let (chunks, body) = fed_body();
        let post = tokio::spawn({
            let browser = fleet.browser();
            async move { browser.post("/echo", body).await }
        });
        chunks.send(vec![1u8; 1000]).await.unwrap();
        until("a Machine has it", async || (requests(&host, 1) + requests(&other, 2) > before).then_some(())).await;
        relay.cut.send_modify(|cuts| *cuts += 1);
        // If it went through the relay it is lost now; if not, it ends well.
        drop(chunks);
        let answer = post.await.unwrap();
        assert!(answer.code == 200 || answer.code == 502, "{}", answer.code);
        lost += u32::from(answer.code == 502);
        assert_eq!(requests(&host, 1) + requests(&other, 2), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hosts_of_a_region_the_nearer_one_serves_once_both_are_measured() {
    let (fleet, host, other, _relay) = one_far_away(Duration::from_millis(20)).await;
    let browser = fleet.browser();
    let [far, near] = [host.door_admin, other.door_admin];
    until("both are measured", async || {
        assert_eq!(browser.get("/").await.code, 200);
        (metric(far, "godwit_door_answers_total{class=\"2xx\"} ").await > 0.0
            && metric(near, "godwit_door_answers_total{class=\"2xx\"} ").await > 0.0)
            .then_some(())
    })
    .await;
    let before = metric(far, "godwit_door_answers_total{class=\"2xx\"} ").await;
    for _ in 0..40 {
        assert_eq!(browser.get("/").await.code, 200);
    }
    assert_eq!(metric(far, "godwit_door_answers_total{class=\"2xx\"} ").await, before, "it is farther away");
}
