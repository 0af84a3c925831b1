//! Machines that err are left alone for a while, are tried again one request at a time, and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use godwit_api::MachineId;
use godwit_api::config::Service;
use godwit_api::machine::MachineState;
use godwit_base::http::client::full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::{metric, metric_or_zero, until};
use crate::fleet::{Fleet, Host, Setup, http_service, one_machine, one_running};

const BREAKS: usize = 0;
const ERRS: usize = 1;
const WORKS: usize = 2;

/// A Machine that does as it is told, one request a connection.
struct Moody {
    port: u16,
    mood: Arc<AtomicUsize>,
    requests: Arc<AtomicU64>,
}

impl Moody {
    async fn start(mood: usize) -> Self {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let made = Self { port, mood: Arc::new(AtomicUsize::new(mood)), requests: Arc::default() };
        let (mood, requests) = (made.mood.clone(), made.requests.clone());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (mood, requests) = (mood.clone(), requests.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                        if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    requests.fetch_add(1, Ordering::SeqCst);
                    let answer: &[u8] = match mood.load(Ordering::SeqCst) {
                        BREAKS => b"",
                        ERRS => b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\nconnection: close\r\n\r\noh n",
                        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nmoody",
                    };
                    let _ = socket.write_all(answer).await;
                });
            }
        });
        made
    }

    fn asked(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

fn add(fleet: &Fleet, host: &Host, id: u64, port: u16, services: Vec<Service>) {
    let id = MachineId::from_bits(id);
    host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, services);
    host.agent.change(&id, |held| held.machine.state = MachineState::Started);
}

async fn with_moody(mood: usize) -> (Fleet, Host, Moody) {
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let moody = Moody::start(mood).await;
    add(&fleet, &host, 2, moody.port, vec![http_service(moody.port)]);
    fleet.publish(&[&host]).await;
    (fleet, host, moody)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_breaks_off_is_left_alone_without_a_request_lost_and_comes_back() {
    let (fleet, _host, moody) = with_moody(BREAKS).await;
    let (browser, admin) = (fleet.browser(), fleet.edge.admin);
    let ejections = "godwit_edge_ejections_total{reason=\"broke\"} ";
    until("it is left alone", async || {
        assert_eq!(browser.get("/").await.text(), "1", "the other one answers");
        (metric_or_zero(admin, ejections).await >= 1.0).then_some(())
    })
    .await;
    until("the gauge shows it", async || (metric(admin, "godwit_edge_ejected ").await == 1.0).then_some(())).await;
    // Whatever comes, it sees one probe at most for each of its ejections.
    let (asked, ejected) = (moody.asked(), metric(admin, ejections).await);
    for answers in join_all((0..300).map(|_| browser.get("/"))).await {
        assert_eq!(answers.code, 200);
    }
    let further = metric(admin, ejections).await - ejected;
    assert!(moody.asked() - asked <= further as u64 + 1, "{} more for {further} ejections", moody.asked() - asked);
    moody.mood.store(WORKS, Ordering::SeqCst);
    until("it serves again", async || (browser.get("/").await.text() == "moody").then_some(())).await;
    until("the gauge forgets it", async || (metric(admin, "godwit_edge_ejected ").await == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_none_is_left_clients_are_told_to_come_again_until_one_answers() {
    let fleet = Fleet::start(&Setup::default()).await;
    let host = Host::start("w1").await;
    let moody = Moody::start(BREAKS).await;
    add(&fleet, &host, 2, moody.port, vec![http_service(moody.port)]);
    fleet.publish(&[&host]).await;
    let browser = fleet.browser();
    let mut asked = 0;
    let told = until("none is left", async || {
        // A POST that was read is never sent twice: each one is told at once.
        let answer = browser.post("/", full("x")).await;
        asked += 1;
        assert!(answer.code == 502 || answer.code == 503, "{}", answer.code);
        (answer.code == 503).then_some(answer)
    })
    .await;
    assert_eq!((asked, moody.asked()), (4, 3));
    assert_eq!(told.headers["retry-after"], "1");
    assert!(told.text().contains("left alone"), "{}", told.text());
    assert_eq!(metric(fleet.edge.admin, "godwit_edge_turned_away_total{reason=\"ejected\"} ").await, 1.0);
    moody.mood.store(WORKS, Ordering::SeqCst);
    until("it is tried again", async || (browser.get("/").await.code == 200).then_some(())).await;
    for answer in join_all((0..50).map(|_| browser.get("/"))).await {
        assert_eq!(answer.code, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_takes_no_connection_is_left_alone() {
    let service = |port| Service { autostart: Some(false), ..http_service(port) };
    let (fleet, host, _) = one_running(&Setup::default(), |port| vec![service(port)]).await;
    let nobody = crate::backend::free_port();
    add(&fleet, &host, 2, nobody, vec![service(nobody)]);
    fleet.publish(&[&host]).await;
    let (browser, admin) = (fleet.browser(), fleet.edge.admin);
    until("it is left alone", async || {
        assert_eq!(browser.get("/").await.code, 200);
        (metric_or_zero(admin, "godwit_edge_ejections_total{reason=\"connect\"} ").await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_start_is_not_started_by_every_request() {
    let setup = Setup { gate_deadline_ms: 500, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    host.agent.with(&id, |held| held.listen_delay = None);
    let browser = fleet.browser();
    let starts = "godwit_edge_wakes_total ";
    let ejections = "godwit_edge_ejections_total{reason=\"start\"} ";
    until("its start has failed", async || {
        assert_eq!(browser.get("/").await.code, 503);
        (metric_or_zero(fleet.edge.admin, ejections).await >= 1.0).then_some(())
    })
    .await;
    let (before, failed) = (metric(fleet.edge.admin, starts).await, metric(fleet.edge.admin, ejections).await);
    for answer in join_all((0..100).map(|_| browser.get("/"))).await {
        assert_eq!(answer.code, 503);
        assert!(answer.headers.contains_key("retry-after"));
    }
    let (after, further) = (metric(fleet.edge.admin, starts).await, metric(fleet.edge.admin, ejections).await - failed);
    assert!(after - before <= further + 1.0, "{after} starts, {before} before, {further} ejections");
    host.agent.crash(&id).await;
    host.agent.with(&id, |held| held.listen_delay = Some(Duration::ZERO));
    until("it is started again", async || (browser.get("/").await.code == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apps_own_errors_turn_traffic_to_its_other_machine_and_never_into_ours() {
    let (fleet, host, moody) = with_moody(ERRS).await;
    let browser = fleet.browser();
    let ejections = "godwit_edge_ejections_total{reason=\"answer\"} ";
    until("it is doubted", async || {
        let answer = browser.get("/").await;
        assert!(answer.text() == "1" || answer.text() == "oh n", "{}", answer.text());
        (metric_or_zero(fleet.edge.admin, ejections).await >= 1.0).then_some(())
    })
    .await;
    // The other one goes: the app's own words reach its clients.
    let other = MachineId::from_bits(1);
    host.agent.change(&other, |held| held.machine.state = MachineState::Destroying);
    fleet.publish(&[&host]).await;
    until("the route is known", async || (browser.get("/").await.text() == "oh n").then_some(())).await;
    for _ in 0..30 {
        let answer = browser.get("/").await;
        assert_eq!((answer.code, answer.text()), (500, "oh n"));
    }
    moody.mood.store(WORKS, Ordering::SeqCst);
    assert_eq!(browser.get("/").await.text(), "moody");
}
