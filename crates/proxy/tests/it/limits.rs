//! Hard limits hold at the door; who finds no room waits in order.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use godwit_api::MachineId;

use crate::client::metric;
use crate::fleet::{Host, Setup, limited, one_machine, one_running};

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_at_the_hard_limit_is_served_in_turn_and_never_over_it() {
    let (fleet, host, id) = one_running(&Setup::default(), |port| vec![limited(port, 2, 4)]).await;
    let browser = fleet.browser();
    let answers = join_all((0..200).map(|_| {
        let browser = browser.clone();
        tokio::spawn(async move { browser.get("/sleep?ms=10").await })
    }));
    for answer in answers.await {
        assert_eq!(answer.unwrap().code, 200);
    }
    let peak = host.agent.with(&id, |held| held.counts.peak.load(Ordering::SeqCst));
    assert!(peak <= 4, "{peak} at once");
    assert!(peak > 1, "the limit is made use of");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_for_room_is_told_to_come_again() {
    let setup = Setup { gate_deadline_ms: 300, ..Setup::default() };
    let (fleet, _host, _) = one_running(&setup, |port| vec![limited(port, 1, 1)]).await;
    let browser = fleet.browser();
    let long = tokio::spawn({
        let browser = browser.clone();
        async move { browser.get("/sleep?ms=1500").await }
    });
    let admin = fleet.edge.admin;
    crate::client::until("the long one is under way", async || {
        (metric(admin, "godwit_edge_in_flight ").await >= 1.0).then_some(())
    })
    .await;
    let answer = browser.get("/").await;
    assert_eq!(answer.code, 503);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(long.await.unwrap().code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_above_the_soft_limit_starts_a_second_machine_and_is_served_meanwhile() {
    let (fleet, host, first) = one_machine(&Setup::default(), |port| vec![limited(port, 2, 1000)]).await;
    let second = MachineId::from_bits(2);
    let port = crate::backend::free_port();
    host.agent.add(second.clone(), &fleet.app, Host::epoch(1), port, vec![limited(port, 2, 1000)]);
    host.agent.run(&first);
    fleet.publish(&[&host]).await;
    let browser = fleet.browser();
    let answers = join_all((0..20).map(|_| {
        let browser = browser.clone();
        tokio::spawn(async move { browser.get("/sleep?ms=200").await })
    }));
    for answer in answers.await {
        assert_eq!(answer.unwrap().code, 200);
    }
    assert_eq!(host.agent.with(&second, |held| held.lives), 1);
}
