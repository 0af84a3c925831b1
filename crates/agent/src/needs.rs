//! What a host must have for its agent: rights, kernel features, programs; each that is missing is named with the Debian
//! package or the command that brings it. It only looks, and changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use godwit_base::check::{self, Check, Level};
use godwit_base::http::client::Client;

use crate::config::{Config, DriverChoice, NetworkChoice};
use crate::error::Error;
use crate::measure;

/// Controllers of cgroups by which Machines are limited.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// All that `godwit run agent --check` looks at.
pub async fn check(config: &Config) -> Vec<Check> {
    let mut found = vec![
        check::folder("data_dir", &config.data_dir),
        check::listen("listen", config.listen),
        check::identity(
            &config.data_dir.join(crate::join::IDENTITY),
            config.join_token.as_deref(),
            config.join_token_file.as_deref(),
        ),
        check::control(&config.control_url, Client::tcp(&config.control_url, None)).await,
        capacity(config),
    ];
    found.extend(machine(config));
    found
}

/// What the agent refuses to start without: every error at once, so that nobody mends them one by one.
pub(crate) fn demand(config: &Config) -> Result<(), Error> {
    let mut missing = Vec::new();
    // A lab's hosts share one machine, and state what they pretend to have.
    let capacity = (!config.lab).then(|| capacity(config));
    for check in machine(config).into_iter().chain(capacity) {
        let hint = check.hint.unwrap_or_default();
        match check.level {
            Level::Ok => {}
            Level::Warning => tracing::warn!(check = check.check, hint, "{}", check.found),
            Level::Error => missing.push(format!("{} ({hint})", check.found)),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::Needs(missing.join("; "))) }
}

/// The rights and the parts of this machine that Machines need.
fn machine(config: &Config) -> Vec<Check> {
    let mut found = Vec::new();
    let (container, network) =
        (matches!(config.driver, DriverChoice::Container { .. }), matches!(config.network, NetworkChoice::Host { .. }));
    if container || network {
        found.push(root());
    }
    if network {
        found.push(program("nft", "nftables", "Machines' packet rules"));
    }
    if let DriverChoice::Container { shim, .. } = &config.driver {
        found.push(shim_program(shim));
        found.push(cgroups());
        found.push(overlay());
        found.push(program("mke2fs", "e2fsprogs", "volumes' file systems"));
        found.push(device("/dev/loop-control", "loop", "volumes"));
        found.push(device("/dev/fuse", "fuse", "volumes that move"));
    }
    found
}

fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        return Check::ok("root", "runs as root");
    }
    Check::error("root", "this is not root: an agent makes namespaces, mounts and cgroups", "run it as root")
}

fn shim_program(path: &Path) -> Check {
    match nix::unistd::access(path, nix::unistd::AccessFlags::X_OK) {
        Ok(()) => Check::ok("driver.shim", format!("{} is there", path.display())),
        Err(_) => Check::error(
            "driver.shim",
            format!("{} does not exist, or is not a program", path.display()),
            "install godwit-shim beside godwit, or name it by driver.shim",
        ),
    }
}

/// A program in PATH. Debian keeps these in /usr/sbin, which a user's PATH may lack: that is a different mistake.
fn program(name: &str, package: &str, what_for: &str) -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
    if let Some(found) = std::env::split_paths(&path).map(|folder| folder.join(name)).find(is_program) {
        return Check::ok(name, format!("{}, for {what_for}", found.display()));
    }
    let beside = ["/usr/sbin", "/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
    match beside.iter().find(|path| is_program(path)) {
        Some(path) => Check::error(
            name,
            format!("{name} is installed, but its folder is not in PATH ({what_for} need it)"),
            format!("add {} to PATH", path.parent().unwrap_or(path).display()),
        ),
        None => Check::error(
            name,
            format!("the program {name} is not installed ({what_for} need it)"),
            format!("apt-get install {package}"),
        ),
    }
}

fn cgroups() -> Check {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    match missing_controllers(&table, &unified) {
        None => Check::error("cgroups", "no cgroup file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup"),
        Some(missing) if missing.is_empty() => {
            Check::ok("cgroups", format!("{} can be limited", CONTROLLERS.join(", ")))
        }
        Some(missing) => Check::error(
            "cgroups",
            format!("cgroup controllers are missing: {}", missing.join(", ")),
            "boot with cgroup_enable=memory swapaccount=1, or mount the missing v1 hierarchies",
        ),
    }
}

/// `table`: /proc/self/mountinfo; `unified`: /sys/fs/cgroup/cgroup.controllers, empty where there is none. `None`: there are
/// no cgroups at all. A v1 hierarchy names its controllers in its super options, the last field (proc(5)).
fn missing_controllers(table: &str, unified: &str) -> Option<Vec<&'static str>> {
    let mounts = table.lines().filter_map(|line| line.split_once(" - ").map(|(_, rest)| rest));
    let kinds: Vec<(&str, &str)> =
        mounts.filter_map(|rest| Some((rest.split(' ').next()?, rest.split(' ').nth(2).unwrap_or("")))).collect();
    let old = kinds.iter().filter(|(kind, _)| *kind == "cgroup").flat_map(|(_, options)| options.split(','));
    let old: Vec<&str> = old.collect();
    if old.is_empty() && !kinds.iter().any(|(kind, _)| *kind == "cgroup2") {
        return None;
    }
    let has = |controller: &&str| old.contains(controller) || unified.split_whitespace().any(|one| one == *controller);
    Some(CONTROLLERS.into_iter().filter(|controller| !has(controller)).collect())
}

fn overlay() -> Check {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        return Check::ok("overlayfs", "the kernel has overlayfs");
    }
    // A module that is loaded at its first use is not listed before.
    Check::warning(
        "overlayfs",
        "the kernel does not list overlayfs; Machines' root file systems need it",
        "modprobe overlay; and a line `overlay` in /etc/modules-load.d/godwit.conf",
    )
}

fn device(path: &str, module: &str, what_for: &str) -> Check {
    if Path::new(path).exists() {
        return Check::ok(path, format!("is there, for {what_for}"));
    }
    Check::warning(
        path,
        format!("{path} is missing; {what_for} need it"),
        format!("modprobe {module}; and a line `{module}` in /etc/modules-load.d/godwit.conf"),
    )
}

/// What the configuration promises beside what the machine has.
fn capacity(config: &Config) -> Check {
    let has = measure::whole(&config.data_dir);
    let over = measure::over(&config.capacity, &has);
    if over.is_empty() {
        let may = measure::capacity(&config.capacity, &has);
        let (cpus, memory_mb, disk_mb) = (may.cpu_millis / 1000, may.memory_mb, may.disk_mb);
        return Check::ok("capacity", format!("{cpus} CPUs, {memory_mb} MB of memory, {disk_mb} MB of disk"));
    }
    Check::warning(
        "capacity",
        over.join("; "),
        "leave it out to have it measured, or state less: Machines that use what they were promised will fail",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_in_either_version_and_missing_ones_are_named() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                  31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let v2 = "29 25 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(missing_controllers(v1, ""), Some(vec!["pids"]));
        assert_eq!(missing_controllers(v2, "cpuset cpu io memory pids\n"), Some(vec![]));
        assert_eq!(missing_controllers(v2, "cpu pids\n"), Some(vec!["memory"]));
        assert_eq!(missing_controllers("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n", ""), None);
    }

    #[test]
    fn a_program_is_found_in_path_or_named_with_its_package() {
        assert_eq!(program("sh", "dash", "tests").level, Level::Ok);
        let missing = program("godwit-no-such-program", "no-package", "tests");
        assert!(missing.level == Level::Error && missing.hint.unwrap() == "apt-get install no-package");
    }
}
