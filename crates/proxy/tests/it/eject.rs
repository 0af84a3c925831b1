//! Machines that fail come after all others for a while, are tried again one request at a time, and come back. No client can
//! take a Machine out, and the last one is always asked.

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

/// The shape of an app with one bad route: `/boom` makes it hang up, at once or right behind its head; the rest works.
async fn with_a_crashing_route(fleet: &Fleet, host: &Host, id: u64) -> Arc<AtomicU64> {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let booms: Arc<AtomicU64> = Arc::default();
    let counted = booms.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let booms = counted.clone();
            tokio::spawn(async move {
                let mut heard = Vec::new();
                while socket.read_buf(&mut heard).await.unwrap_or(0) > 0 {
                    if !heard.windows(4).any(|four| four == b"\r\n\r\n") {
                        continue;
                    }
                    if heard.windows(6).any(|six| six == b" /boom") {
                        booms.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    heard.clear();
                    if socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    add(fleet, host, id, port, vec![http_service(port)]);
    booms
}

/// One client asks for what makes the app hang up, again and again; everybody else must not notice. Over and over, so that
/// doubts end and begin anew.
async fn nobody_else_notices(machines: u64) {
    let fleet = Fleet::start(&Setup::default()).await;
    let host = Host::start("w1").await;
    let mut booms = Vec::new();
    for id in 1..=machines {
        booms.push(with_a_crashing_route(&fleet, &host, id).await);
    }
    fleet.publish(&[&host]).await;
    let (browser, admin) = (fleet.browser(), fleet.edge.admin);
    until("the route is known", async || (browser.get("/").await.code == 200).then_some(())).await;
    let attack = async {
        let one = fleet.browser();
        for _ in 0..30 {
            for answer in join_all((0..4).map(|_| one.get("/boom"))).await {
                assert_eq!(answer.code, 502);
            }
        }
    };
    let (done, others) = (std::cell::Cell::new(false), fleet.browser());
    let everybody = async {
        let mut asked = 0;
        while !done.get() {
            for answer in join_all((0..4).map(|_| others.get("/"))).await {
                assert_eq!((answer.code, answer.text()), (200, "ok"));
                asked += 1;
            }
        }
        asked
    };
    let ((), asked) = tokio::join!(
        async {
            attack.await;
            done.set(true);
        },
        everybody
    );
    assert!(asked > 0 && booms.iter().all(|booms| booms.load(Ordering::SeqCst) > 0), "each Machine broke");
    // Nothing but breaks in a row: the worst that a client can do.
    for _ in 0..40 {
        assert_eq!(browser.get("/boom").await.code, 502);
    }
    assert!(metric_or_zero(admin, "godwit_edge_ejections_total{reason=\"broke\"} ").await >= 1.0, "it was seen");
    for answer in join_all((0..40).map(|_| others.get("/"))).await {
        assert_eq!((answer.code, answer.text()), (200, "ok"));
    }
    assert_eq!(metric_or_zero(admin, "godwit_edge_turned_away_total{reason=\"ejected\"} ").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_on_a_crashing_route_does_not_take_the_only_machine_from_the_others() {
    nobody_else_notices(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_take_several_machines_out_one_after_the_other() {
    nobody_else_notices(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_machine_is_asked_however_often_it_broke_and_answers_as_soon_as_it_can() {
    let fleet = Fleet::start(&Setup::default()).await;
    let host = Host::start("w1").await;
    let moody = Moody::start(BREAKS).await;
    add(&fleet, &host, 2, moody.port, vec![http_service(moody.port)]);
    fleet.publish(&[&host]).await;
    let browser = fleet.browser();
    for asked in 1..=30 {
        // A POST that was read is never sent twice: each one is told at once.
        assert_eq!(browser.post("/", full("x")).await.code, 502);
        assert_eq!(moody.asked(), asked);
    }
    moody.mood.store(WORKS, Ordering::SeqCst);
    for answer in join_all((0..50).map(|_| browser.get("/"))).await {
        assert_eq!(answer.code, 200);
    }
}

/// Its port is closed for so long that it is left alone, and opens while its time is not over.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_machine_is_tried_though_its_port_took_no_connection() {
    let setup = Setup { gate_deadline_ms: 1_000, ..Setup::default() };
    let fleet = Fleet::start(&setup).await;
    let host = Host::start("w1").await;
    let port = crate::backend::free_port();
    add(&fleet, &host, 1, port, vec![Service { autostart: Some(false), ..http_service(port) }]);
    fleet.publish(&[&host]).await;
    let (browser, admin) = (fleet.browser(), fleet.edge.admin);
    let ejections = "godwit_edge_ejections_total{reason=\"connect\"} ";
    let told = until("it is left alone for long", async || {
        let answer = browser.get("/").await;
        assert_eq!(answer.code, 503, "{}", answer.text());
        (metric_or_zero(admin, ejections).await >= 3.0).then_some(answer)
    })
    .await;
    assert!(told.headers.contains_key("retry-after"));
    let process =
        crate::backend::spawn((std::net::Ipv6Addr::LOCALHOST, port).into(), 7, Some(Duration::ZERO), Arc::default());
    // No longer than it was passed over for its last refusal: the four seconds of its ejection are not waited for.
    let before = metric(admin, ejections).await;
    until("it is asked", async || (browser.get("/").await.code == 200).then_some(())).await;
    assert_eq!(metric(admin, ejections).await, before);
    until("the gauge forgets it", async || (metric(admin, "godwit_edge_ejected ").await == 0.0).then_some(())).await;
    process.kill().await;
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
