//! What a Machine may use, and what it reports when it used too much or ended by itself.

use std::time::Duration;

use godwit_api::machine::MachineState;
use godwit_lab::fleet::eventually;
use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, run};

#[test]
fn limits_hold_and_ends_are_told_truly() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app("limits").await.expect("the app");
        let machine = demo_machine(&fleet, "limits", json!({ "guest": { "memory_mb": 256 } }), true).await;
        let id = machine.id.as_str();

        // Processes: the app asks for far more than it may have, and lives to tell how many it got.
        let answer = fleet.get("limits", "/fork?n=100000", PATIENCE).await.expect("an answer");
        assert_eq!(answer.status, 200, "{:?}", answer);
        let got = answer.json()["forked"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()));
        assert!(got > 100 && got < 1_024, "forked {got} of 100000; the bound is 4 a MiB");

        // Memory: told as an OOM kill, not as a plain exit.
        let _ = fleet.get("limits", "/alloc?mb=512", PATIENCE).await;
        let stopped = fleet
            .wait_state("limits", id, &[MachineState::Stopped, MachineState::Failed], PATIENCE)
            .await
            .expect("the kernel kills it");
        let exit =
            stopped.events.iter().find_map(|event| event.request.as_ref()?.exit_event.clone()).expect("an exit event");
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

/// `max_retries` counts restarts: one start and three more, and then the Machine stays where it is.
#[test]
fn three_retries_make_four_starts() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app("crash").await.expect("the app");
        let mut service = crate::support::demo_config(json!({}))["services"][0].clone();
        service["autostart"] = json!(false);
        let changes = json!({ "restart": { "policy": "on-failure", "max_retries": 3 }, "services": [service] });
        let machine = demo_machine(&fleet, "crash", changes, true).await;
        let id = machine.id.as_str();
        for start in 1..=4 {
            eventually("the next start", PATIENCE, async || {
                let shown = fleet.machine("crash", id).await?;
                Ok((shown.state == MachineState::Started && starts(&shown) == start).then_some(()))
            })
            .await
            .expect("it is started again");
            // Its answer may or may not get out before the exit.
            let _ = fleet.get("crash", "/exit?code=1", Duration::from_secs(5)).await;
        }
        let shown = fleet
            .wait_state("crash", id, &[MachineState::Stopped, MachineState::Failed], PATIENCE)
            .await
            .expect("the retries are used up");
        assert_eq!(starts(&shown), 4, "{:?}", shown.events);
        let exit = shown.events.iter().find_map(|event| event.request.as_ref()?.exit_event.clone()).expect("an exit");
        assert_eq!((exit.exit_code, exit.oom_killed, exit.requested_stop), (1, false, false), "{exit:?}");
    });
}

fn starts(machine: &godwit_api::machine::Machine) -> usize {
    machine.events.iter().filter(|event| event.kind == "start" && event.status == "started").count()
}
