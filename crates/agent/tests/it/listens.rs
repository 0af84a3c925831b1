//! How a Machine's process listens, as its host sees it: checks on either family, and a fault that is named to the fleet, to
//! the door, by the check and in the Machine's history.
//!
//! Without a network of their own these Machines are reached on the host's loopback, `::1` and `127.0.0.1`; `127.0.0.2`
//! stands for what cannot be reached from outside.

use godwit_api::Method;
use godwit_api::door::{Listening, listening_path};
use godwit_api::row::Placement;
use godwit_driver::fake::Knobs;
use serde_json::json;

use crate::control::Control;
use crate::door::Door;
use crate::host::{DEADLINE, Host, free_address};

fn serving(host: &Host, port: u16) -> Placement {
    let mut placement = host.placement(1, 1);
    let check = json!({"type": "tcp", "interval": "200ms", "grace_period": "0s"});
    placement.config = serde_json::from_value(json!({
        "image": "demo", "guest": {"memory_mb": 128},
        "services": [{"protocol": "tcp", "internal_port": port, "checks": [check]}]
    }))
    .unwrap();
    placement
}

/// A port that nothing listens on.
fn quiet_port() -> u16 {
    let (address, claim) = free_address();
    // Kept to the end of the process.
    std::mem::forget(claim);
    address.port()
}

#[tokio::test]
async fn a_check_passes_whichever_family_the_process_listens_on() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    for (n, at) in [(1, "127.0.0.1:0"), (2, "[::1]:0")] {
        let listener = tokio::net::TcpListener::bind(at).await.unwrap();
        let mut placement = serving(&host, listener.local_addr().unwrap().port());
        placement.machine = godwit_api::MachineId::from_bits(n);
        host.launched(&placement).await;
        host.until(&format!("the check of {at} passes"), async || {
            let fact = control.fact(&placement.host, &placement.machine).await?;
            fact.checks.iter().any(|check| check.status == "passing").then_some(())
        })
        .await;
        let door = Door::connect(&host).await;
        assert_eq!(door.machines[&placement.machine].private_ip4, Some(std::net::Ipv4Addr::LOCALHOST));
    }
}

async fn asked(door: &Door, placement: &Placement, port: u16) -> Listening {
    let path = listening_path(&placement.machine, port);
    door.client.json::<(), _>(Method::Get, &path, None, DEADLINE).await.unwrap()
}

#[tokio::test]
async fn a_process_that_cannot_be_reached_is_named_everywhere_until_it_is_mended() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let (port, other) = (quiet_port(), quiet_port());
    let placement = serving(&host, port);
    let id = placement.machine.as_str().to_owned();
    let hint = format!("listens on 127.0.0.2:{port}; make it listen on 0.0.0.0 or [::]");
    let listens = |at: String| Knobs { listens: vec![at.parse().unwrap()], ..Knobs::default() };
    host.driver.set(&id, listens(format!("127.0.0.2:{port}")));
    host.launched(&placement).await;
    let fact = host
        .until("the fleet is told", async || {
            let fact = control.fact(&placement.host, &placement.machine).await?;
            (fact.unreachable == [hint.clone()]).then_some(fact)
        })
        .await;
    let named: Vec<_> = fact.events.iter().filter(|event| event.kind == "unreachable").collect();
    assert_eq!(named.len(), 1, "{:?}", fact.events);
    assert_eq!(named[0].request.as_ref().and_then(|detail| detail.reason.clone()), Some(hint.clone()));
    let door = Door::connect(&host).await;
    host.until("nobody need wait for it", async || {
        let listening = asked(&door, &placement, port).await;
        assert_eq!(listening.hint.as_ref(), Some(&hint));
        listening.lasting.then_some(())
    })
    .await;
    host.until("the check says it too", async || {
        let fact = control.fact(&placement.host, &placement.machine).await?;
        let words = format!("[::1]:{port} and 127.0.0.1:{port}: connection refused: {hint}");
        fact.checks.iter().any(|check| check.status == "critical" && check.output == words).then_some(())
    })
    .await;

    host.driver.set(&id, listens(format!("0.0.0.0:{other}")));
    host.call_restart(&placement, false).await.unwrap();
    let elsewhere = format!("listens on 0.0.0.0:{other}, but the service's internal port is {port}; ");
    host.until("the other port is named", async || {
        let fact = control.fact(&placement.host, &placement.machine).await?;
        fact.unreachable.first()?.starts_with(&elsewhere).then_some(())
    })
    .await;

    host.driver.set(&id, listens(format!("[::]:{port}")));
    host.call_restart(&placement, false).await.unwrap();
    host.until("nothing is wrong any more", async || {
        let fact = control.fact(&placement.host, &placement.machine).await?;
        let listening = asked(&door, &placement, port).await;
        (fact.unreachable.is_empty() && listening == Listening::default()).then_some(())
    })
    .await;

    // Such an app was well in this version: another port that is open first is no reason not to wait for its own.
    host.driver.set(&id, listens(format!("0.0.0.0:{other}")));
    host.call_restart(&placement, false).await.unwrap();
    host.until("it has stood so for long", async || {
        let fact = control.fact(&placement.host, &placement.machine).await?;
        fact.unreachable.first()?.starts_with(&elsewhere).then_some(())
    })
    .await;
    for _ in 0..20 {
        assert!(!asked(&door, &placement, port).await.lasting);
    }
}

#[tokio::test]
async fn a_process_that_listens_on_nothing_yet_is_waited_for() {
    let control = Control::start().await;
    let host = Host::started(&control).await;
    let port = quiet_port();
    let placement = serving(&host, port);
    host.launched(&placement).await;
    let door = Door::connect(&host).await;
    let silent = format!("nothing listens on port {port} yet");
    let listening = host
        .until("the host has looked", async || {
            let listening = asked(&door, &placement, port).await;
            listening.hint.is_some().then_some(listening)
        })
        .await;
    assert_eq!(listening, Listening { hint: Some(silent), lasting: false });
    let stranger = asked(&door, &host.placement(9, 1), port).await;
    assert_eq!(stranger, Listening::default(), "of what is not here nothing is said");
}
