//! Parts that are gone for a while: control, a host, a host's memory of itself.

use std::time::Duration;

use godwit_api::machine::MachineState;
use godwit_lab::fleet::{eventually, kill};
use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, run};

/// Control hangs (worse than dead: its socket still accepts), then dies, then is back.
#[test]
fn without_control_running_machines_serve_and_stopped_ones_wake() {
    run(async {
        let fleet = fleet(2, &[]);
        fleet.create_app("alone").await.expect("the app");
        let runs = demo_machine(&fleet, "alone", json!({}), true).await;
        fleet.create_app("sleeper").await.expect("the app");
        let sleeps = demo_machine(&fleet, "sleeper", json!({}), true).await;
        // The edge learns both routes while control lives.
        for app in ["alone", "sleeper"] {
            let answer = fleet.get(app, "/", PATIENCE).await.expect("an answer");
            assert_eq!(answer.status, 200, "{app}: {}", answer.text());
        }
        fleet.stop_machine("sleeper", sleeps.id.as_str()).await.expect("stops");
        fleet.wait_state("sleeper", sleeps.id.as_str(), &[MachineState::Stopped], PATIENCE).await.expect("stopped");

        let control = fleet.dev().expect("dev.json").control_pid;
        kill(control, libc::SIGSTOP);
        for round in 0..20 {
            let answer = fleet.get("alone", "/", PATIENCE).await.expect("an answer");
            assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        }
        let woken = fleet.get("sleeper", "/", PATIENCE).await.expect("an answer");
        assert_eq!(woken.status, 200, "{}", woken.text());

        kill(control, libc::SIGKILL);
        for round in 0..20 {
            let answer = fleet.get("alone", "/", PATIENCE).await.expect("an answer");
            assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        }
        eventually("control is back", PATIENCE, async || {
            let pid = fleet.dev()?.control_pid;
            Ok((pid != control).then_some(()))
        })
        .await
        .expect("the dev fleet starts control again");
        // What happened meanwhile reaches control.
        fleet
            .wait_state("sleeper", sleeps.id.as_str(), &[MachineState::Started], PATIENCE)
            .await
            .expect("the wake is told");
        assert_eq!(fleet.machine("alone", runs.id.as_str()).await.expect("shown").state, MachineState::Started);
    });
}

/// The tombstone waits for the host.
#[test]
fn a_host_that_was_away_during_destroy_destroys_on_return() {
    run(async {
        let fleet = fleet(2, &[]);
        fleet.create_app("gone").await.expect("the app");
        let machine = demo_machine(&fleet, "gone", json!({}), true).await;
        let host = fleet.host(&machine.host_id).expect("its host");
        kill(host.agent_pid, libc::SIGSTOP);
        fleet.destroy_machine("gone", machine.id.as_str()).await.expect("destroy answers without the host");
        let shown = fleet.machine("gone", machine.id.as_str()).await.expect("shown");
        assert_eq!(shown.state, MachineState::Destroying);
        kill(host.agent_pid, libc::SIGCONT);
        eventually("the Machine is destroyed", PATIENCE, async || {
            match fleet.machine("gone", machine.id.as_str()).await {
                Ok(shown) => Ok((shown.state == MachineState::Destroyed).then_some(())),
                Err(error) => {
                    Ok(matches!(error, godwit_base::http::client::CallError::Answered(answer) if answer.code == 404)
                        .then_some(()))
                }
            }
        })
        .await
        .expect("destroyed");
        eventually("nothing of it runs", PATIENCE, async || {
            let shims = crate::support::footprint(&fleet)[&format!("{} shims", host.id)];
            Ok((shims == 0).then_some(()))
        })
        .await
        .expect("no shim is left");
    });
}

/// A wiped host is another host: what stood on the old one is not guessed at.
#[test]
fn a_host_with_a_wiped_data_folder_joins_as_new() {
    run(async {
        let mut fleet = fleet(1, &[]);
        fleet.create_app("wiped").await.expect("the app");
        let machine = demo_machine(&fleet, "wiped", json!({}), true).await;
        let old = fleet.host(&machine.host_id).expect("its host");
        fleet.down().expect("stops");
        std::fs::remove_dir_all(&old.data_dir).expect("wiped");
        fleet.up().expect("starts again");
        let new = fleet.dev().expect("dev.json").hosts.remove(0);
        assert_ne!(new.id, old.id);
        let shown = fleet.machine("wiped", machine.id.as_str()).await.expect("still known");
        assert_eq!(shown.host_id, old.id);
        // The new host serves.
        fleet.create_app("fresh").await.expect("the app");
        let fresh = demo_machine(&fleet, "fresh", json!({}), true).await;
        assert_eq!(fresh.host_id, new.id);
    });
}

/// Power off and on: what ran runs again, what was stopped stays stopped, and `dev --clean` leaves nothing.
#[test]
fn after_a_power_cut_what_ran_runs_again() {
    run(async {
        let mut fleet = fleet(2, &[]);
        fleet.create_app("power").await.expect("the app");
        let ran = demo_machine(&fleet, "power", json!({}), true).await;
        // No request may wake it while the other one is on its way up.
        let mut service = crate::support::demo_config(json!({}))["services"][0].clone();
        service["autostart"] = json!(false);
        let rested = demo_machine(&fleet, "power", json!({ "services": [service] }), false).await;
        let before = fleet.get("power", "/", PATIENCE).await.expect("an answer").json();
        fleet.cut_power().expect("killed");
        fleet.up().expect("starts again");
        fleet.wait_state("power", ran.id.as_str(), &[MachineState::Started], PATIENCE).await.expect("runs again");
        let after = eventually("it answers again", PATIENCE, async || {
            let answer = fleet.get("power", "/", Duration::from_secs(10)).await?;
            Ok((answer.status == 200).then(|| answer.json()))
        })
        .await
        .expect("answers");
        assert_eq!(after["machine"], before["machine"]);
        assert_ne!(after["started_at"], before["started_at"], "another process");
        let rested = fleet.machine("power", rested.id.as_str()).await.expect("shown");
        assert!(matches!(rested.state, MachineState::Stopped | MachineState::Created), "{:?}", rested.state);

        fleet.cut_power().expect("killed");
        fleet.clean().expect("cleaned");
        let traces = traces_of(&fleet);
        assert!(traces.is_empty(), "left behind: {traces:?}");
    });
}

/// Namespaces, links, mounts, cgroups and nft tables that still bear the fleet's name or folder.
fn traces_of(fleet: &godwit_lab::fleet::Fleet) -> Vec<String> {
    let folder = fleet.dir().display().to_string();
    let mut traces = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    traces.extend(mounts.lines().filter(|line| line.contains(&folder)).map(str::to_owned));
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&folder) {
            traces.push(command);
        }
    }
    if fleet.dir().join("hosts").exists() {
        traces.push("hosts/".into());
    }
    traces
}
