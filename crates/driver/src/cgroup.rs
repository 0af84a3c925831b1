//! The cgroups of Machines, on v1, hybrid and v2 hosts: which they are, who lives in them, their counters, their end.
//!
//! A Machine has two names under the driver's parent: `<machine>` holds the container and its limits, in every
//! hierarchy; `<machine>.shim` holds the shim and whatever it forks, in one hierarchy (the v2 one where there is one).
//! Together they name every process that can exist because of the Machine, which is what "proven dead" rests on.
//! libcontainer sets the limits; this file only reads, kills and removes. Names are exact, never prefixes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::spec::Usage;

/// How long processes that were sent SIGKILL may take to vanish before we say that we cannot prove them dead.
pub const DEATH_TIMEOUT_MS: u64 = 15_000;
const POLL_MS: u64 = 2;
/// Suffix of the shim's own cgroup; ids of Machines hold no dot, so no Machine can bear this name.
const SHIM_SUFFIX: &str = ".shim";

/// Controllers of which a Machine sees its own cgroup.
const SHOWN: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

#[derive(Debug, Clone)]
struct Hierarchy {
    root: PathBuf,
    /// Empty for v2.
    controllers: Vec<String>,
}

/// The hierarchies of this host and the parent under which Machines live.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
}

impl Cgroups {
    pub fn detect(parent: &str) -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/mountinfo")?;
        let hierarchies = parse_mounts(&text);
        if hierarchies.is_empty() {
            return Err(io::Error::other("no cgroup file system is mounted"));
        }
        Ok(Self { hierarchies, parent: parent.trim_matches('/').to_owned() })
    }

    /// No v1 controller is in use: limits live in v2.
    pub fn unified(&self) -> bool {
        self.hierarchies.iter().all(|h| h.controllers.is_empty())
    }

    /// The path to hand to the OCI runtime.
    pub fn container_path(&self, machine: &str) -> String {
        format!("/{}/{machine}", self.parent)
    }

    /// Where the limits that programs ask for are, in v1: controller and the Machine's folder in its hierarchy.
    pub fn shown(&self, machine: &str) -> Vec<(String, PathBuf)> {
        let each =
            self.hierarchies.iter().flat_map(|h| h.controllers.iter().map(move |c| (c.clone(), self.dir(h, machine))));
        each.filter(|(controller, _)| SHOWN.contains(&controller.as_str())).collect()
    }

    fn dir(&self, hierarchy: &Hierarchy, name: &str) -> PathBuf {
        hierarchy.root.join(&self.parent).join(name)
    }

    /// The hierarchy in which shims are tracked.
    fn tracker(&self) -> &Hierarchy {
        let v2 = self.hierarchies.iter().find(|h| h.controllers.is_empty());
        let pids = self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == "pids"));
        // `detect` refuses an empty list.
        v2.or(pids).unwrap_or(&self.hierarchies[0])
    }

    /// The Machine's shim cgroup, made when absent, if it is one that a process can be forked into (v2).
    pub fn fork_target(&self, machine: &str) -> io::Result<Option<fs::File>> {
        let dir = self.dir(self.tracker(), &format!("{machine}{SHIM_SUFFIX}"));
        fs::create_dir_all(&dir)?;
        if self.tracker().controllers.is_empty() { fs::File::open(dir).map(Some) } else { Ok(None) }
    }

    /// Moves the calling process into its Machine's shim cgroup, so that whatever it forks can be found, and so that
    /// nobody takes it for a part of the agent.
    pub fn enter_as_shim(&self, machine: &str) -> io::Result<()> {
        let dir = self.dir(self.tracker(), &format!("{machine}{SHIM_SUFFIX}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("cgroup.procs"), "0")
    }

    fn dirs(&self, machine: &str) -> Vec<PathBuf> {
        let shim = self.dir(self.tracker(), &format!("{machine}{SHIM_SUFFIX}"));
        let container = self.hierarchies.iter().map(|h| self.dir(h, machine));
        // The shim's first: on v2, processes move from there to the container's, never back, so that one who moves
        // while we look is seen in one of them.
        [shim].into_iter().chain(container).filter(|dir| dir.is_dir()).collect()
    }

    /// Everybody in the Machine's cgroups, except `me`.
    pub fn processes(&self, machine: &str, me: i32) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs(machine) {
            collect(&dir, &mut pids);
        }
        pids.remove(&me);
        pids
    }

    /// Processes of the container alone.
    pub fn container_processes(&self, machine: &str) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            collect(&self.dir(hierarchy, machine), &mut pids);
        }
        pids
    }

    /// Kills everybody in the Machine's cgroups but `me`, and returns once the kernel lists nobody any more.
    pub fn kill_all(&self, machine: &str, me: i32) -> Result<(), Vec<i32>> {
        let deadline = Instant::now() + Duration::from_millis(DEATH_TIMEOUT_MS);
        loop {
            let pids = self.processes(machine, me);
            if pids.is_empty() {
                return Ok(());
            }
            for &pid in &pids {
                // Pid 0 would be our own group: the kernel shows it for processes outside our pid namespace.
                if pid > 1 {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
            if Instant::now() >= deadline {
                return Err(pids.into_iter().collect());
            }
            std::thread::sleep(Duration::from_millis(POLL_MS));
        }
    }

    /// Removes the Machine's cgroups. The kernel refuses those in which somebody lives; whether any remained is told.
    pub fn remove(&self, machine: &str) -> bool {
        let mut removed_all = true;
        for dir in self.dirs(machine) {
            removed_all &= remove_tree(&dir);
        }
        removed_all
    }

    /// Ids of all Machines that have a cgroup under the parent.
    pub fn machines(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            for name in children(&hierarchy.root.join(&self.parent)) {
                names.insert(name.strip_suffix(SHIM_SUFFIX).unwrap_or(&name).to_owned());
            }
        }
        names
    }

    /// Removes the parent, and its parents, as far as they are empty.
    pub fn remove_parents(&self) {
        for hierarchy in &self.hierarchies {
            let mut dir = hierarchy.root.join(&self.parent);
            while dir != hierarchy.root && fs::remove_dir(&dir).is_ok() {
                dir.pop();
            }
        }
    }

    fn file(&self, machine: &str, controller: &str, v1: &str, v2: &str) -> Option<String> {
        let v1_home = self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller));
        let (home, name) = match v1_home {
            Some(home) => (home, v1),
            None => (self.hierarchies.iter().find(|h| h.controllers.is_empty())?, v2),
        };
        fs::read_to_string(self.dir(home, machine).join(name)).ok()
    }

    /// How many processes the kernel has killed because the Machine's memory limit was reached.
    pub fn oom_kills(&self, machine: &str) -> u64 {
        let text = self.file(machine, "memory", "memory.oom_control", "memory.events");
        text.and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0)
    }

    pub fn usage(&self, machine: &str) -> Usage {
        let number = |text: Option<String>| text.and_then(|t| t.trim().parse().ok()).unwrap_or(0u64);
        let cpu_stat = self.file(machine, "cpu", "cpu.stat", "cpu.stat").unwrap_or_default();
        let (cpu_ms, throttled_ms) = if self.unified() {
            let ms = |key| keyed(&cpu_stat, key).unwrap_or(0) / 1000;
            (ms("usage_usec"), ms("throttled_usec"))
        } else {
            let used_ns = number(self.file(machine, "cpuacct", "cpuacct.usage", "cpu.stat"));
            (used_ns / 1_000_000, keyed(&cpu_stat, "throttled_time").unwrap_or(0) / 1_000_000)
        };
        Usage {
            cpu_ms,
            throttled_ms,
            memory_bytes: number(self.file(machine, "memory", "memory.usage_in_bytes", "memory.current")),
            memory_peak_bytes: number(self.file(machine, "memory", "memory.max_usage_in_bytes", "memory.peak")),
            pids: number(self.file(machine, "pids", "pids.current", "pids.current")),
            oom_kills: self.oom_kills(machine),
        }
    }

    /// Does this host account swap separately (`memory.memsw.*` in v1)? Then a memory limit must name both.
    pub fn limits_swap(&self) -> bool {
        match self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == "memory")) {
            Some(home) => home.root.join("memory.memsw.limit_in_bytes").exists(),
            None => true,
        }
    }
}

/// cgroup file systems in mountinfo's order; each hierarchy once.
fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
        let Some(root) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let controllers: Vec<String> = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(str::to_owned).collect(),
            _ => continue,
        };
        // The named hierarchies (`name=systemd`) carry no controller and no process of ours is moved in them.
        let named = controllers.iter().any(|c| c.starts_with("name="));
        if !named && !found.iter().any(|h| h.controllers == controllers) {
            found.push(Hierarchy { root, controllers });
        }
    }
    found
}

fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let folders = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Pids in a cgroup and in those below it.
fn collect(dir: &Path, pids: &mut BTreeSet<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(dir) {
        collect(&dir.join(child), pids);
    }
}

fn remove_tree(dir: &Path) -> bool {
    for child in children(dir) {
        remove_tree(&dir.join(child));
    }
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_its_controllers_in_v1_and_tracks_shims_in_v2() {
        let text = "30 20 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                    31 20 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                    32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                    33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    34 20 0:30 / /proc rw - proc proc rw\n";
        let cgroups = Cgroups { hierarchies: parse_mounts(text), parent: "godwit".into() };
        assert_eq!(cgroups.hierarchies.len(), 3);
        assert!(!cgroups.unified());
        assert_eq!(cgroups.tracker().root, Path::new("/sys/fs/cgroup/unified"));
        let pure = Cgroups { hierarchies: parse_mounts("1 1 0:1 / /sys/fs/cgroup rw - cgroup2 none rw"), ..cgroups };
        assert!(pure.unified());
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(keyed("oom 7\noom_kill_group 1\n", "oom_kill"), None);
    }
}
