//! A stopped Machine and the requests that want it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use godwit_api::door::Refusal;
use godwit_base::http::client::full;

use crate::client::{metric, metrics_with, payload, until};
use crate::fleet::{Setup, http_service, one_machine};

async fn a_thousand_at_once(listen_delay: Duration) {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    host.agent.with(&id, |held| held.listen_delay = Some(listen_delay));
    let browser = fleet.browser();
    let answers = join_all((0..1000).map(|_| {
        let browser = browser.clone();
        tokio::spawn(async move { browser.get("/").await })
    }));
    for answer in answers.await {
        let answer = answer.unwrap();
        assert_eq!((answer.code, answer.text()), (200, "1"), "every answer comes from the first life");
    }
    assert_eq!(host.agent.starts.load(Ordering::SeqCst), 1);
    assert_eq!(metric(host.door_admin, "godwit_door_start_calls_total ").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_to_a_stopped_machine_make_one_start() {
    a_thousand_at_once(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_wait_for_a_machine_that_listens_late() {
    a_thousand_at_once(Duration::from_millis(3_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_never_listens_is_answered_503_within_the_bound() {
    let setup = Setup { gate_deadline_ms: 700, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    host.agent.with(&id, |held| held.listen_delay = None);
    let browser = fleet.browser();
    for answer in join_all((0..20).map(|_| browser.get("/"))).await {
        assert_eq!(answer.code, 503, "{}", answer.text());
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert_eq!(host.agent.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_wakes_a_machine_arrives_whole() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    host.agent.with(&id, |held| held.listen_delay = Some(Duration::from_millis(300)));
    for (seed, length) in [(1, 10), (2, 70_000), (3, 3_000_000)] {
        let (body, expected) = payload(seed, length);
        let answer = fleet.browser().post("/echo", full(body)).await;
        assert_eq!((answer.code, answer.text()), (200, expected.as_str()));
        host.agent.crash(&id).await;
        until("the door sees it stopped", async || (fleet.browser().get("/").await.code == 200).then_some(())).await;
        host.agent.crash(&id).await;
    }
}

/// Several times: who decides at the very same moment is what it is about.
#[tokio::test(flavor = "multi_thread")]
async fn two_stopped_machines_are_not_both_woken_by_a_burst() {
    for _ in 0..5 {
        let (fleet, host, _) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
        let second = godwit_api::MachineId::from_bits(2);
        let port = crate::backend::free_port();
        host.agent.add(second, &fleet.app, crate::fleet::Host::epoch(1), port, vec![http_service(port)]);
        for machine in host.agent.machines() {
            host.agent.with(&machine.machine, |held| held.listen_delay = Some(Duration::from_millis(300)));
        }
        fleet.publish(&[&host]).await;
        let browser = fleet.browser();
        for answer in join_all((0..100).map(|_| browser.get("/"))).await {
            assert_eq!(answer.code, 200);
        }
        let told = metrics_with(fleet.edge.admin, &["refusals", "wakes", "retries", "ejections"]).await;
        assert_eq!(host.agent.starts.load(Ordering::SeqCst), 1, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_memory_leaves_the_start_to_another_machine() {
    let (fleet, host, id) = one_machine(&Setup::default(), |port| vec![http_service(port)]).await;
    host.agent.with(&id, |held| held.refuse = Some(Refusal::Full));
    let browser = fleet.browser();
    let waiting = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get("/").await }
    });
    until("the start was refused", async || (host.agent.starts.load(Ordering::SeqCst) > 0).then_some(())).await;
    let other = crate::fleet::Host::start("w2").await;
    let second = godwit_api::MachineId::from_bits(2);
    let port = crate::backend::free_port();
    other.agent.add(second, &fleet.app, crate::fleet::Host::epoch(1), port, vec![http_service(port)]);
    fleet.publish(&[&host, &other]).await;
    assert_eq!(waiting.await.unwrap().code, 200);
    assert_eq!(other.agent.starts.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_runs_and_nothing_that_may_start_is_said_at_once() {
    let service = |port| vec![godwit_api::config::Service { autostart: Some(false), ..http_service(port) }];
    let (fleet, host, _) = one_machine(&Setup::default(), service).await;
    let answer = fleet.browser().get("/").await;
    assert_eq!(answer.code, 503);
    assert!(answer.text().contains("has no running Machine, and none that a request may start"), "{}", answer.text());
    assert_eq!(host.agent.starts.load(Ordering::SeqCst), 0);
}
