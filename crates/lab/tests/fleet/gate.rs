//! Requests that wait for a Machine: a thousand at once, a Machine that never listens, wakes that race autostop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_api::machine::MachineState;
use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, run};

/// One start and one process for a thousand requests at once, whether the app listens at once or after 3 s.
#[test]
fn a_thousand_requests_at_once_start_a_stopped_machine_once() {
    run(async {
        let fleet = Arc::new(fleet(1, &[]));
        for (app, listen_delay_ms) in [("storm-now", "0"), ("storm-late", "3000")] {
            fleet.create_app(app).await.expect("the app");
            let machine =
                demo_machine(&fleet, app, json!({ "env": { "LISTEN_DELAY_MS": listen_delay_ms } }), false).await;
            let requests: Vec<_> = (0..1000)
                .map(|_| {
                    let fleet = fleet.clone();
                    tokio::spawn(async move { fleet.get(app, "/", PATIENCE).await })
                })
                .collect();
            let mut births = BTreeSet::new();
            let mut answered = 0;
            for request in requests {
                let answer = request.await.expect("no panic").expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
                births.insert(answer.json()["started_at"].to_string());
                answered += 1;
            }
            assert_eq!(answered, 1000);
            assert_eq!(births.len(), 1, "one process answered all: {births:?}");
            let shown = fleet.machine(app, machine.id.as_str()).await.expect("shown");
            let starts = shown.events.iter().filter(|event| event.kind == "start" && event.status == "started").count();
            assert_eq!(starts, 1, "{:?}", shown.events);
        }
    });
}

/// The gate's bound holds: a Machine that never listens costs its caller a 503 with Retry-After, not for ever.
#[test]
fn a_machine_that_never_listens_is_answered_503_within_the_bound() {
    run(async {
        let fleet = fleet(1, &["--gate-deadline-ms", "4000"]);
        fleet.create_app("deaf").await.expect("the app");
        demo_machine(&fleet, "deaf", json!({ "env": { "LISTEN_DELAY_MS": "3600000" } }), false).await;
        let asked = Instant::now();
        let answer = fleet.get("deaf", "/", PATIENCE).await.expect("an answer");
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
        assert!(asked.elapsed() >= Duration::from_secs(3), "it was held first");
    });
}

/// 500 requests with pauses around the autostop interval: each finds the Machine running, stopping or stopped.
#[test]
fn five_hundred_wakes_racing_autostop_all_succeed() {
    run(async {
        let fleet = Arc::new(fleet(1, &["--autostop-interval-ms", "40", "--autostop-idle-ms", "0"]));
        fleet.create_app("nap").await.expect("the app");
        let mut service = crate::support::demo_config(json!({}))["services"][0].clone();
        service["autostop"] = json!(true);
        let machine = demo_machine(&fleet, "nap", json!({ "services": [service] }), false).await;
        let mut births = BTreeSet::new();
        for n in 0..500u64 {
            let answer = fleet.get("nap", "/", PATIENCE).await.unwrap_or_else(|error| panic!("request {n}: {error:#}"));
            assert_eq!(answer.status, 200, "request {n}: {}", answer.text());
            births.insert(answer.json()["started_at"].to_string());
            // A spread of pauses, so that requests meet every moment of a stop.
            tokio::time::sleep(Duration::from_millis((n * 7) % 97)).await;
        }
        assert!(births.len() > 10, "autostop did race: {} processes", births.len());
        println!("500 wakes met {} processes", births.len());
        fleet
            .wait_state("nap", machine.id.as_str(), &[MachineState::Stopped], PATIENCE)
            .await
            .expect("left alone it stops");
    });
}
