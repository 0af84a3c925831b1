//! Machines that go to sleep, and requests that come at that moment.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use godwit_api::machine::MachineState;
use godwit_base::http::client::full;

use crate::client::{metric, payload, until};
use crate::fleet::{Fleet, Host, Setup, http_service, one_machine, one_running};

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_machine_sleeps_and_a_request_wakes_it_again() {
    let setup = Setup { autostop_interval_ms: 50, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    let (fleet, hosts) = (Arc::new(fleet), Arc::new(vec![host]));
    let _publishing = fleet.keep_published(hosts.clone());
    let host = &hosts[0];
    for life in 1..=3 {
        assert_eq!(fleet.browser().get("/").await.text(), life.to_string());
        until("it sleeps", async || {
            host.agent.with(&id, |held| held.machine.state == MachineState::Stopped).then_some(())
        })
        .await;
    }
    until("the edge counted them", async || {
        (metric(fleet.edge.admin, "godwit_edge_idle_stops_total ").await >= 3.0).then_some(())
    })
    .await;
}

/// One wake after another, each as soon as the Machine was told to stop, so that every one meets a gate that closes.
async fn wakes_racing_autostop(wakes: u64) {
    let setup = Setup { autostop_interval_ms: 1, ..Setup::default() };
    let (fleet, host, id) = one_machine(&setup, |port| vec![http_service(port)]).await;
    let (fleet, hosts) = (Arc::new(fleet), Arc::new(vec![host]));
    let _publishing = fleet.keep_published(hosts.clone());
    let browser = fleet.browser();
    let (mut done, mut seed) = (0, 0);
    while hosts[0].agent.with(&id, |held| held.lives) < wakes {
        let requests = (0..8).map(|n| {
            let (browser, seed) = (browser.clone(), seed + n);
            async move {
                if n % 2 == 0 {
                    let answer = browser.get("/").await;
                    assert_eq!(answer.code, 200, "{}", answer.text());
                } else {
                    let (body, expected) = payload(seed, 100 + (seed as usize * 7919) % 200_000);
                    let answer = browser.post("/echo", full(body)).await;
                    assert_eq!((answer.code, answer.text()), (200, expected.as_str()));
                }
            }
        });
        join_all(requests).await;
        done += 8;
        seed += 8;
        assert!(done < 200 * wakes, "it never sleeps");
    }
    let starts = hosts[0].agent.with(&id, |held| held.lives);
    println!("{done} requests over {starts} lives, none failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_wakes_racing_autostop_lose_nothing() {
    wakes_racing_autostop(500).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_what_is_in_flight_end_and_holds_what_comes() {
    let (fleet, host, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    let long = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get("/sleep?ms=700").await }
    });
    until("it is in flight", async || {
        (host.agent.with(&id, |held| held.counts.in_flight.load(Ordering::SeqCst)) == 1).then_some(())
    })
    .await;
    let stop = host.agent.stop(&id, 10_000);
    // Those that came before the door heard of it are still served by the first life; then one is held.
    let held = until("one was held and served by the next life", async || {
        let answer = browser.get("/").await;
        assert_eq!(answer.code, 200, "{}", answer.text());
        (answer.text() == "2").then_some(())
    });
    let (drained, ()) = tokio::join!(stop, held);
    assert_eq!(drained.cut_off, 0);
    let long = long.await.unwrap();
    assert_eq!((long.code, long.text()), (200, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_outlasts_the_stop_is_cut_off_and_counted() {
    let (fleet, host, id) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let browser = fleet.browser();
    let long = tokio::spawn(async move { browser.get("/sleep?ms=60000").await });
    until("it is in flight", async || {
        (host.agent.with(&id, |held| held.counts.in_flight.load(Ordering::SeqCst)) == 1).then_some(())
    })
    .await;
    let drained = host.agent.stop(&id, 50).await;
    assert_eq!(drained.cut_off, 1);
    assert_eq!(long.await.unwrap().code, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_kept_running_never_sleeps() {
    let setup = Setup { autostop_interval_ms: 20, ..Setup::default() };
    let service = |port| vec![godwit_api::config::Service { min_machines_running: Some(1), ..http_service(port) }];
    let fleet = Fleet::start(&setup).await;
    let host = Host::start("w1").await;
    for bits in [1, 2] {
        let id = godwit_api::MachineId::from_bits(bits);
        let port = crate::backend::free_port();
        host.agent.add(id.clone(), &fleet.app, Host::epoch(1), port, service(port));
        host.agent.run(&id);
    }
    fleet.publish(&[&host]).await;
    let (fleet, hosts) = (Arc::new(fleet), Arc::new(vec![host]));
    let _publishing = fleet.keep_published(hosts.clone());
    let running = || {
        let machines = hosts[0].agent.machines();
        machines.iter().filter(|machine| machine.state == MachineState::Started).count()
    };
    until("one of them sleeps", async || (running() < 2).then_some(())).await;
    // A good many passes later the other one still runs.
    let passes = async || metric(fleet.edge.admin, "godwit_edge_autostop_passes_total ").await;
    let before = passes().await;
    until("more passes went by", async || (passes().await >= before + 10.0).then_some(())).await;
    assert_eq!(running(), 1);
}
