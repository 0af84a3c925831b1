//! Hosts of one dev fleet share nothing but the network.

use std::path::PathBuf;

use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, processes_below, run};

#[test]
fn no_process_of_one_host_holds_a_file_of_anothers_folder() {
    run(async {
        let fleet = fleet(3, &[]);
        fleet.create_app("apart").await.expect("the app");
        let mut used = std::collections::BTreeSet::new();
        for _ in 0..3 {
            used.insert(demo_machine(&fleet, "apart", json!({}), true).await.host_id);
        }
        assert_eq!(used.len(), 3, "three Machines of an app spread over three hosts");
        for _ in 0..12 {
            assert_eq!(fleet.get("apart", "/", PATIENCE).await.expect("an answer").status, 200);
        }
        let hosts = fleet.dev().expect("dev.json").hosts;
        let mut looked_at = 0;
        for host in &hosts {
            let processes = processes_below(host);
            assert!(processes.len() >= 4, "agent, door, shim and app of {}: {processes:?}", host.id);
            for (pid, command) in processes {
                for path in held_by(pid) {
                    looked_at += 1;
                    for other in hosts.iter().filter(|other| other.id != host.id) {
                        assert!(!path.starts_with(&other.data_dir), "{} ({command}) holds {}", host.id, path.display());
                    }
                }
            }
        }
        assert!(looked_at > 100, "descriptors and maps were seen: {looked_at}");
    });
}

/// Every file that a process has open, mapped, or stands in.
fn held_by(pid: i32) -> Vec<PathBuf> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let mut held = Vec::new();
    for entry in std::fs::read_dir(root.join("fd")).into_iter().flatten().flatten() {
        held.extend(std::fs::read_link(entry.path()));
    }
    for link in ["cwd", "exe", "root"] {
        held.extend(std::fs::read_link(root.join(link)));
    }
    let maps = std::fs::read_to_string(root.join("maps")).unwrap_or_default();
    held.extend(maps.lines().filter_map(|line| line.splitn(6, ' ').nth(5)).map(|path| PathBuf::from(path.trim())));
    held
}
