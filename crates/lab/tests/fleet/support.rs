//! What the fleet tests share: the demo image, a ready-made Machine, a runtime, and counts of what may leak.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use godwit_api::machine::{Machine, MachineState};
use godwit_lab::fleet::Fleet;
use serde_json::{Value, json};

/// Long enough for a busy machine of two cores; nothing here measures speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on a runtime of its own.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    raise_descriptor_limit();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test)
}

/// A thousand sockets at once need more than the usual soft limit.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard);
    }
}

pub fn demo_image() -> PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace");
    let path = root.join("target/demo/image.tar");
    assert!(path.exists(), "{} is missing: run `make demo-image`", path.display());
    path
}

/// A fleet that holds the demo image.
pub fn fleet(hosts: usize, more: &[&str]) -> Fleet {
    let fleet = Fleet::start(hosts, more).expect("the dev fleet starts");
    let image = demo_image();
    fleet.cli_ok(&["image", "load", image.to_str().expect("UTF-8"), "--name", "demo"]).expect("the demo image loads");
    fleet
}

/// The configuration of a Machine of the demo image: one HTTP service on 8080.
pub fn demo_config(changes: Value) -> Value {
    let mut config = json!({
        "image": "demo",
        "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 64 },
        "services": [{
            "protocol": "tcp",
            "internal_port": 8080,
            "autostart": true,
            "autostop": false,
            "ports": [{ "port": 80, "handlers": ["http"] }],
            "concurrency": { "type": "requests", "soft_limit": 1000 },
        }],
        "restart": { "policy": "no" },
    });
    merge(&mut config, changes);
    config
}

/// Puts `changes` over `value`, object by object.
pub fn merge(value: &mut Value, changes: Value) {
    match (value, changes) {
        (Value::Object(value), Value::Object(changes)) => {
            for (name, change) in changes {
                merge(value.entry(name).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change,
    }
}

/// Creates a demo Machine that is started, or stopped with `launch` false, and waits until it is.
pub async fn demo_machine(fleet: &Fleet, app: &str, changes: Value, launch: bool) -> Machine {
    let request = json!({ "config": demo_config(changes), "skip_launch": !launch });
    let machine = fleet.create_machine(app, request).await.expect("the Machine is created");
    let states: &[MachineState] =
        if launch { &[MachineState::Started] } else { &[MachineState::Stopped, MachineState::Created] };
    let machine = fleet.wait_state(app, machine.id.as_str(), states, PATIENCE).await.expect("it comes to rest");
    if !launch {
        // Created is also what control says before the host has journaled it; a route tells that it has.
        godwit_lab::fleet::eventually("the host knows the Machine", PATIENCE, async || {
            let shown = fleet.machine(app, machine.id.as_str()).await?;
            Ok((!shown.events.is_empty()).then_some(()))
        })
        .await
        .expect("the host journals it");
    }
    machine
}

/// What a host could leak, counted from outside: network namespaces, links, mounts, cgroups, shims.
pub fn footprint(fleet: &Fleet) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for host in fleet.dev().expect("dev.json").hosts {
        let root = format!("/proc/{}", host.agent_pid);
        let mounts = std::fs::read_to_string(format!("{root}/mountinfo")).unwrap_or_default();
        let machines = mounts.lines().filter(|line| line.contains("/netns/") || line.contains(" - overlay ")).count();
        counts.insert(format!("{} mounts", host.id), machines);
        let links = std::fs::read_to_string(format!("{root}/net/dev")).unwrap_or_default();
        counts.insert(format!("{} links", host.id), links.lines().filter(|line| line.contains(':')).count());
        let shims = processes_below(&host).into_iter().filter(|(_, command)| command.contains("godwit-shim")).count();
        counts.insert(format!("{} shims", host.id), shims);
    }
    counts.insert("cgroups".into(), cgroups_of_fleet(fleet));
    counts
}

/// Every process of a host's pid namespace: pid as seen here, and command line.
pub fn processes_below(host: &godwit_lab::fleet::DevHost) -> Vec<(i32, String)> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let pid_namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let agent = host.agent_pid.to_string();
    let (mine, mine_mnt) = (pid_namespace(&agent), namespace(&agent));
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<i32>() else { continue };
        let inside = mine.is_some() && (pid_namespace(&name) == mine || namespace(&name) == mine_mnt);
        if inside {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// Cgroup folders of this fleet's hosts, over every hierarchy. Other fleets come and go meanwhile.
fn cgroups_of_fleet(fleet: &Fleet) -> usize {
    let record = std::fs::read(fleet.dir().join("fleet.json")).expect("the fleet's record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    let mark = format!("godwit-dev-{}-", record["fleet"].as_str().expect("its id"));
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten();
    let hosts = hierarchies.flat_map(|hierarchy| std::fs::read_dir(hierarchy.path()).into_iter().flatten().flatten());
    let ours = hosts.filter(|host| host.file_name().to_string_lossy().starts_with(&mark));
    // The folder of a host itself stays until the host goes.
    ours.map(|host| folders_below(&host.path())).sum()
}

fn folders_below(path: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).map(|entry| 1 + folders_below(&entry.path())).sum()
}
