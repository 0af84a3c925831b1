//! A hundred Machines on one host, and nothing left of them.

use godwit_api::machine::MachineState;
use godwit_lab::fleet::eventually;
use serde_json::json;

use crate::support::{PATIENCE, demo_config, fleet, footprint, processes_below, run};

const MACHINES: usize = 100;

#[test]
fn a_hundred_machines_come_and_go_without_a_trace() {
    run(async {
        let fleet = fleet(1, &["--capacity", "cpus=200,memory_mb=16000,disk_mb=200000"]);
        fleet.create_app("many").await.expect("the app");
        let before = footprint(&fleet);
        let mut ids = Vec::new();
        for _ in 0..MACHINES {
            let machine =
                fleet.create_machine("many", json!({ "config": demo_config(json!({})) })).await.expect("created");
            ids.push(machine.id);
        }
        for id in &ids {
            fleet.wait_state("many", id.as_str(), &[MachineState::Started], PATIENCE).await.expect("starts");
        }
        let listed: serde_json::Value =
            serde_json::from_str(&fleet.cli_ok(&["machine", "list", "-a", "many", "--json"]).expect("listed"))
                .expect("JSON");
        assert_eq!(listed.as_array().map(Vec::len), Some(MACHINES));

        let host = fleet.dev().expect("dev.json").hosts.remove(0);
        let (mut shims, mut shim_kib, mut all_kib) = (0, 0, 0);
        for (pid, command) in processes_below(&host) {
            let kib = proportional_kib(pid);
            if command.contains("godwit-shim") {
                shims += 1;
                shim_kib += kib;
            }
            if command.contains("godwit-shim") || command.starts_with("/demo-app") {
                all_kib += kib;
            }
        }
        assert_eq!(shims, MACHINES);
        println!(
            "an idle Machine: {} KiB in all, of which its shim {} KiB (PSS, mean of {MACHINES})",
            all_kib / MACHINES as u64,
            shim_kib / MACHINES as u64
        );

        for id in &ids {
            fleet.destroy_machine("many", id.as_str()).await.expect("destroyed");
        }
        eventually("everything is gone", PATIENCE * 2, async || {
            let now = footprint(&fleet);
            anyhow::ensure!(now == before, "before {before:?}, now {now:?}");
            Ok(Some(()))
        })
        .await
        .expect("no leak");
        // The hosts are done; what they acknowledged reaches control a moment later.
        eventually("control has heard of it", PATIENCE, async || {
            let listed = fleet.cli_ok(&["machine", "list", "-a", "many", "--json"])?;
            let left: serde_json::Value = serde_json::from_str(&listed)?;
            Ok((left.as_array().map(Vec::len) == Some(0)).then_some(()))
        })
        .await
        .expect("none is listed");
    });
}

/// Proportional set size of a process, 0 if it is gone.
fn proportional_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}
