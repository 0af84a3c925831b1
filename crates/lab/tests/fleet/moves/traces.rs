//! What stands on a host and in the store, seen from outside: what may be held by the one that has the Machine, and
//! must be gone from the one that has not. It only looks.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use godwit_api::row::MigrationRow;
use godwit_api::ticket::SignedTicket;
use godwit_lab::fleet::{DevHost, Fleet};

use crate::support::processes_below;

/// Parts of a host by how their command lines are told apart.
pub const PARTS: [(&str, &str); 5] = [
    ("keeper", "volume-process keeper "),
    ("server", "volume-process serve "),
    ("exporter", "volume-process export "),
    ("export server", "volume-process export-serve "),
    ("shim", "godwit-shim"),
];

/// What a host holds of Machines and volumes; what it has none of is left out.
pub fn holdings(host: &DevHost) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    let mut count = |what: &str, number: usize| {
        if number > 0 {
            held.insert(what.to_owned(), number);
        }
    };
    let processes = processes_below(host);
    for (part, needle) in PARTS {
        count(part, processes.iter().filter(|(_, command)| command.contains(needle)).count());
    }
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", host.agent_pid)).unwrap_or_default();
    let mounted = |mark: &str| mounts.lines().filter(|line| line.contains(mark)).count();
    count("fuse mounts", mounted(" - fuse"));
    count("namespaces", mounts.lines().filter(|line| line.contains("/netns/") && line.contains(" - nsfs ")).count());
    count("loops", loops_below(&host.data_dir));
    // As the host sees it: the folder may be a file system of its own.
    let volumes = format!("/proc/{}/root{}", host.agent_pid, host.data_dir.join("volumes").display());
    count("volume folders", entries(Path::new(&volumes)));
    count("machine folders", entries(&host.data_dir.join("machines")));
    held
}

fn entries(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names.filter(|entry| entry.file_name() != "lost+found").count()
}

fn loops_below(folder: &Path) -> usize {
    let devices = std::fs::read_dir("/sys/block").expect("/sys/block").flatten();
    let backing = |device: std::fs::DirEntry| std::fs::read_to_string(device.path().join("loop/backing_file")).ok();
    let is_volume = |path: &Path| path.starts_with(folder) && path.to_string_lossy().contains("volume.raw");
    devices.filter_map(backing).filter(|path| is_volume(Path::new(path.trim_end()))).count()
}

/// Rows of control's store that bear one of `prefixes`, by key.
pub fn rows_of_store(fleet: &Fleet, prefixes: &[String]) -> Vec<String> {
    let store = open_store(fleet).expect("the store opens");
    let mut query = store.prepare("select key from current").expect("the store's table");
    let keys = query.query_map([], |row| row.get::<_, String>(0)).expect("keys");
    let keys = keys.filter_map(Result::ok);
    keys.filter(|key| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))).collect()
}

/// Pids of the processes of a host whose command line holds `needle`.
pub fn pids(host: &DevHost, needle: &str) -> Vec<i32> {
    processes_below(host).into_iter().filter(|(_, command)| command.contains(needle)).map(|(pid, _)| pid).collect()
}

/// Runs a command of the shell in a namespace (`--mount`, `--net`) of a process.
pub fn inside(pid: i32, namespace: &str, command: &str) -> Result<()> {
    let target = format!("--target={pid}");
    let output = Command::new("nsenter").args([&target, namespace, "--", "sh", "-c", command]).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Pid 1 of a host, by one of its roles: its namespaces are there whichever of the roles dies.
pub fn parent_of(pid: i32) -> Result<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    parent.context("a role's parent")
}

/// The ticket of the first move that left this host.
pub fn ticket_of(fleet: &Fleet, source: &str) -> Result<SignedTicket> {
    let store = open_store(fleet)?;
    let mut query = store.prepare(
        "select log.value from current join log on log.id = current.id where current.key like 'migrations/%'
         order by current.create_revision",
    )?;
    let values = query.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
    let mut rows = values.filter_map(|value| serde_json::from_slice::<MigrationRow>(&value.ok()?).ok());
    let row = rows.find(|row| row.source.as_str() == source).context("no move left it")?;
    Ok(row.ticket)
}

fn open_store(fleet: &Fleet) -> Result<rusqlite::Connection> {
    let file = fleet.dir().join("control/data/store.db");
    Ok(rusqlite::Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?)
}

/// Two hosts that do not hear each other, or one that hears nobody, until this is dropped.
pub struct Cut(i32);

impl Cut {
    pub fn between(host: &DevHost, other: &DevHost) -> Result<Self> {
        let addr = &other.addr;
        Self::make(host, &format!("ip6 saddr {addr} drop"), &format!("ip6 daddr {addr} drop"))
    }

    /// What it says arrives nowhere, and nothing arrives at it; what is local goes on.
    pub fn off(host: &DevHost) -> Result<Self> {
        Self::make(host, "iifname != lo drop", "oifname != lo drop")
    }

    fn make(host: &DevHost, input: &str, output: &str) -> Result<Self> {
        let pid = parent_of(host.agent_pid)?;
        let hook = |name: &str, rule: &str| {
            format!("chain {name} {{ type filter hook {name} priority -300; policy accept; {rule}; }};")
        };
        let table = format!("table inet lab_cut {{ {} {} }};", hook("input", input), hook("output", output));
        inside(pid, "--net", &format!("nft '{table}'"))?;
        Ok(Self(pid))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = inside(self.0, "--net", "nft delete table inet lab_cut") {
            eprintln!("the hosts stay apart: {error:#}");
        }
    }
}
