//! What a Machine may use, and what it reports when it used too much or ended by itself.

use std::time::Duration;

use godwit_api::machine::MachineState;
use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, run};

#[test]
fn limits_hold_and_ends_are_told_truly() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app("limits").await.expect("the app");
        let machine = demo_machine(&fleet, "limits", json!({}), true).await;
        let id = machine.id.as_str();

        // Processes: the app asks for far more than it may have, and lives to tell how many it got.
        let answer = fleet.get("limits", "/fork?n=100000", PATIENCE).await.expect("an answer");
        let got = answer.json()["forked"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()));
        assert!(got > 10 && got < 5_000, "forked {got} of 100000");

        // Memory: told as an OOM kill, not as a plain exit.
        let _ = fleet.get("limits", "/alloc?mb=512", PATIENCE).await;
        let stopped = fleet
            .wait_state("limits", id, &[MachineState::Stopped, MachineState::Failed], PATIENCE)
            .await
            .expect("the kernel kills it");
        let exit = stopped
            .events
            .iter()
            .find_map(|event| event.request.as_ref()?.exit_event.clone())
            .expect("an exit event");
        assert!(exit.oom_killed, "{exit:?}");
    });
}

/// A burn on one shared processor does not get more processor time than its quota: counted by the kernel.
#[test]
fn a_burning_machine_is_throttled() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app("burn").await.expect("the app");
        demo_machine(&fleet, "burn", json!({}), true).await;
        // Four threads burn at once for two seconds; with one processor they get at most 2 s and a little.
        let burns: Vec<_> = (0..4).map(|_| fleet.get("burn", "/burn?ms=2000", PATIENCE)).collect();
        let answers = futures_util::future::join_all(burns).await;
        let cpu_ms: u64 = answers
            .into_iter()
            .map(|answer| {
                let answer = answer.expect("an answer");
                answer.json()["cpu_ms"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()))
            })
            .sum();
        println!("4 x 2000 ms of burning got {cpu_ms} ms of processor");
        assert!(cpu_ms < 8_000 * 3 / 4, "{cpu_ms} ms of processor in about 2 s on a quota of one");
    });
}

/// `max_retries` counts restarts: one start and three more.
#[test]
fn three_retries_make_four_starts() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app("crash").await.expect("the app");
        let changes = json!({ "restart": { "policy": "on-failure", "max_retries": 3 }, "init": { "exec": ["/app", "exit", "1"] } });
        let request = json!({ "config": crate::support::demo_config(changes) });
        let machine = fleet.create_machine("crash", request).await.expect("created");
        let last = godwit_lab::fleet::eventually("the retries are used up", PATIENCE, async || {
            let shown = fleet.machine("crash", machine.id.as_str()).await?;
            let starts = shown.events.iter().filter(|event| event.kind == "start" && event.status == "started").count();
            let rests = matches!(shown.state, MachineState::Stopped | MachineState::Failed);
            Ok((rests && starts >= 4).then_some((shown, starts)))
        })
        .await
        .expect("it comes to rest");
        assert_eq!(last.1, 4, "{:?}", last.0.events);
        // And it stays there.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let shown = fleet.machine("crash", machine.id.as_str()).await.expect("shown");
        let starts = shown.events.iter().filter(|event| event.kind == "start" && event.status == "started").count();
        assert_eq!(starts, 4);
    });
}
