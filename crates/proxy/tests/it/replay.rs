//! A Machine sends a request on to another one.

use std::sync::atomic::Ordering;

use godwit_api::MachineId;
use godwit_base::http::client::full;

use crate::backend::free_port;
use crate::client::{metric, payload};
use crate::fleet::{Fleet, Host, Setup, http_service, one_running};

/// Two running Machines on one host; the second one's life is 51.
async fn two_running() -> (Fleet, Host, [MachineId; 2]) {
    let (fleet, host, first) = one_running(&Setup::default(), |port| vec![http_service(port)]).await;
    let second = MachineId::from_bits(2);
    let port = free_port();
    host.agent.add(second.clone(), &fleet.app, Host::epoch(1), port, vec![http_service(port)]);
    host.agent.with(&second, |held| held.lives = 50);
    host.agent.run(&second);
    fleet.publish(&[&host]).await;
    (fleet, host, [first, second])
}

fn seen(host: &Host, ids: &[MachineId; 2]) -> u64 {
    ids.iter().map(|id| host.agent.with(id, |held| held.counts.requests.load(Ordering::SeqCst))).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_that_was_named_answers_with_the_whole_body_and_knows_who_sent_it() {
    let (fleet, _host, [first, second]) = two_running().await;
    let browser = fleet.browser();
    for _ in 0..10 {
        let answer =
            browser.get_with(&format!("/goto?instance={second}&state=a=1"), &[("fly-replay-src", "forged")]).await;
        assert_eq!(answer.code, 200);
        assert!(!answer.headers.contains_key("fly-replay"));
        let text = answer.text();
        assert!(text.starts_with("51 instance=") && text.contains(";region=fra;t="), "{text}");
        assert!(text.contains(";state=a=1 0 ") && !text.contains("forged"), "{text}");
    }
    let (body, digest) = payload(3, 20_000);
    let answer = browser.post(&format!("/goto?instance={first}"), full(body)).await;
    assert_eq!(answer.code, 200);
    assert!(answer.text().starts_with("1 instance=") && answer.text().ends_with(&digest), "{}", answer.text());
    assert_eq!(metric(fleet.edge.admin, "godwit_edge_replays_total ").await, 11.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn elsewhere_is_another_machine_and_never_for_ever() {
    let (fleet, host, ids) = two_running().await;
    let browser = fleet.browser();
    let answer = browser.get("/goto?elsewhere=true").await;
    let (life, source) = answer.text().split_once(" instance=").unwrap();
    let other = if life == "1" { &ids[1] } else { &ids[0] };
    assert!(source.starts_with(other.as_str()), "{}", answer.text());
    let before = seen(&host, &ids);
    let answer = browser.get("/goto?elsewhere=true&loop=1").await;
    assert_eq!(answer.code, 502);
    assert!(answer.text().contains("too often"), "{}", answer.text());
    assert_eq!(seen(&host, &ids) - before, 4, "once, and three times more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_on_is_said() {
    let (fleet, _host, ids) = two_running().await;
    let browser = fleet.browser();
    // A body that a Machine has read is gone, unless it is small.
    let large = browser.post(&format!("/goto?instance={}&read=1", ids[1]), full(payload(1, 2 << 20).0)).await;
    assert_eq!(large.code, 502, "{}", large.text());
    assert!(large.text().contains("so large a body"), "{}", large.text());
    let nowhere = browser.get("/goto?region=ams").await;
    assert_eq!(nowhere.code, 503, "{}", nowhere.text());
    assert!(nowhere.text().contains("that matches what the request asks for"), "{}", nowhere.text());
    assert_eq!(browser.get("/goto?app=nobody").await.code, 502);
    // A word that nobody understands is kept from the client, and the answer stands.
    let odd = browser.get("/goto?instance=1").await;
    assert_eq!((odd.code, odd.text()), (200, "sent on"));
    assert!(!odd.headers.contains_key("fly-replay"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_name_its_machine() {
    let (fleet, _host, [first, second]) = two_running().await;
    let browser = fleet.browser();
    for (id, life) in [(&first, "1"), (&second, "51")] {
        for _ in 0..8 {
            assert_eq!(browser.get_with("/", &[("fly-force-instance-id", id.as_str())]).await.text(), life);
        }
    }
    let nobody = MachineId::from_bits(77);
    assert_eq!(browser.get_with("/", &[("fly-force-instance-id", nobody.as_str())]).await.code, 503);
}
