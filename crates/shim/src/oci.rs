//! From a Machine's spec to an OCI runtime configuration: what the inside of a Machine looks like. Pure.
//! The system call filter is not in it: see `filter`.

use godwit_driver::{Bind, Limits};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

use crate::user::Identity;

/// Docker's default set, in all sets that a root process inside uses; inheritable and ambient stay empty.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const CGROUPS: &str = "/sys/fs/cgroup";
const READ_ONLY: [&str; 6] = [CGROUPS, "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Docker's limit of open files, where the host allows it.
pub const OPEN_FILES: u64 = 1_048_576;
const SHARED_MEMORY_MIN_BYTES: u64 = 64 << 20;
const CPU_PERIOD_US: u64 = 100_000;

/// A raw volume, as the configuration needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDevice {
    pub guest_path: PathBuf,
    pub major: u64,
    pub minor: u64,
    pub read_only: bool,
}

/// All that the configuration is made from.
pub struct Inside<'a> {
    pub root: &'a Path,
    pub hostname: &'a str,
    pub argv: &'a [String],
    pub env: &'a [String],
    pub cwd: &'a str,
    pub identity: &'a Identity,
    pub netns: Option<&'a Path>,
    pub limits: &'a Limits,
    pub binds: &'a [Bind],
    pub devices: &'a [RawDevice],
    pub cgroup_path: &'a str,
    /// In v1: the Machine's folder in the hierarchy of each controller whose limits it is to see.
    pub cgroups: &'a [(String, PathBuf)],
    /// Limits live in cgroup v2: it is shown inside, read-only, in a cgroup namespace. And libcontainer, built without
    /// BPF, sets no rules for devices: see [`capabilities`].
    pub unified: bool,
    pub open_files: u64,
    /// A memory limit must name swap too.
    pub limits_swap: bool,
}

pub fn configuration(inside: &Inside) -> Value {
    let caps = capabilities(inside);
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": inside.root, "readonly": false},
        "hostname": inside.hostname,
        "process": {
            "terminal": false,
            "user": {
                "uid": inside.identity.uid,
                "gid": inside.identity.gid,
                "additionalGids": inside.identity.additional_gids,
            },
            "args": inside.argv,
            "env": inside.env,
            "cwd": inside.cwd,
            "capabilities": {
                "bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": inside.open_files, "soft": inside.open_files}],
            // Docker's default: programs of an image may be set-uid or have file capabilities (decision 0022).
            "noNewPrivileges": false,
            "oomScoreAdj": 0,
        },
        "mounts": mounts(inside),
        "linux": {
            "namespaces": namespaces(inside),
            "cgroupsPath": inside.cgroup_path,
            "resources": resources(inside),
            "devices": devices(inside),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            // The namespace is the Machine's own: any user inside may serve port 80 and send pings.
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
        },
    })
}

/// Until our entry has put the filter on, which takes it; then it is given up, and no program of the image has it.
const FOR_THE_FILTER: &str = "CAP_SYS_ADMIN";

/// Where no cgroup says which devices may be opened, no device node may be made: those of `/dev` are all there are
/// then, since every other file system is mounted without devices.
fn capabilities(inside: &Inside) -> Vec<&'static str> {
    let kept = CAPABILITIES.into_iter().filter(|cap| !inside.unified || *cap != "CAP_MKNOD");
    kept.chain([FOR_THE_FILTER]).collect()
}

fn namespaces(inside: &Inside) -> Value {
    let mut list: Vec<Value> = ["pid", "mount", "ipc", "uts"].iter().map(|kind| json!({"type": kind})).collect();
    list.push(match inside.netns {
        Some(path) => json!({"type": "network", "path": path}),
        None => json!({"type": "network"}),
    });
    if inside.unified {
        list.push(json!({"type": "cgroup"}));
    }
    Value::Array(list)
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": target, "type": kind, "source": source, "options": options})
}

/// Half of the Machine's memory, and never less than what Docker gives: databases and browsers keep there what their
/// processes share. What lies in it counts as the Machine's memory, so its size promises nothing that is not paid for.
fn shared_memory_bytes(limits: &Limits) -> u64 {
    (limits.memory_bytes / 2).max(SHARED_MEMORY_MIN_BYTES)
}

fn mounts(inside: &Inside) -> Vec<Value> {
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &format!("size={}k", shared_memory_bytes(inside.limits) >> 10)],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    list.extend(cgroup_mounts(inside));
    for bind in inside.binds {
        let mode = if bind.read_only { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", "nosuid", "nodev", mode];
        list.push(mount(&bind.guest_path, "bind", &bind.source.to_string_lossy(), &options));
    }
    list
}

/// The Machine's own cgroup, read-only, where programs look for their limits. In v1 without a namespace: what is bound
/// is the Machine's own folder of each hierarchy.
fn cgroup_mounts(inside: &Inside) -> Vec<Value> {
    let read_only = ["nosuid", "noexec", "nodev", "relatime", "ro"];
    if inside.unified {
        return vec![mount(CGROUPS, "cgroup", "cgroup", &read_only)];
    }
    // Writable until all is in it; then it is one of the read-only paths.
    let mut list = vec![mount(CGROUPS, "tmpfs", "tmpfs", &["nosuid", "noexec", "nodev", "mode=755", "size=64k"])];
    list.extend(inside.cgroups.iter().map(|(controller, folder)| {
        let options = [&["bind", "rprivate"], &read_only[..]].concat();
        mount(&format!("{CGROUPS}/{controller}"), "bind", &folder.to_string_lossy(), &options)
    }));
    list
}

/// The nodes of the raw volumes; the usual ones come from libcontainer.
fn devices(inside: &Inside) -> Vec<Value> {
    let node = |device: &RawDevice| {
        json!({
            "type": "b",
            "path": device.guest_path,
            "major": device.major,
            "minor": device.minor,
            "fileMode": if device.read_only { 0o400 } else { 0o600 },
            "uid": inside.identity.uid,
            "gid": inside.identity.gid,
        })
    };
    inside.devices.iter().map(node).collect()
}

fn device_rules(inside: &Inside) -> Vec<Value> {
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    rules.extend(inside.devices.iter().map(|device| {
        let access = if device.read_only { "r" } else { "rw" };
        json!({"allow": true, "type": "b", "major": device.major, "minor": device.minor, "access": access})
    }));
    rules
}

fn resources(inside: &Inside) -> Value {
    let limits = inside.limits;
    let mut resources = json!({"devices": device_rules(inside)});
    if limits.memory_bytes > 0 {
        resources["memory"] = json!({"limit": limits.memory_bytes});
        if inside.limits_swap {
            // Memory and swap together: no swap at all.
            resources["memory"]["swap"] = json!(limits.memory_bytes);
        }
    }
    let mut cpu = json!({});
    if limits.cpu_shares > 0 {
        cpu["shares"] = json!(limits.cpu_shares);
    }
    if limits.cpu_quota_millis > 0 {
        cpu["period"] = json!(CPU_PERIOD_US);
        cpu["quota"] = json!(u64::from(limits.cpu_quota_millis) * CPU_PERIOD_US / 1000);
    }
    resources["cpu"] = cpu;
    if limits.pids_max > 0 {
        resources["pids"] = json!({"limit": limits.pids_max});
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_follows_the_machine_s_memory() {
        let of = |memory_bytes| shared_memory_bytes(&Limits { memory_bytes, ..Limits::default() });
        assert_eq!([of(0), of(100 << 20), of(256 << 20), of(4 << 30)], [64 << 20, 64 << 20, 128 << 20, 2 << 30]);
    }

    #[test]
    fn the_runtime_can_read_the_configuration() {
        let identity = Identity { uid: 7, gid: 8, additional_gids: vec![9], home: "/".into() };
        let limits = Limits { cpu_quota_millis: 250, cpu_shares: 2, memory_bytes: 1 << 20, pids_max: 5 };
        let binds = [Bind { source: "/a".into(), guest_path: "/data".into(), read_only: true }];
        let place = "/dev/data".into();
        let devices = [RawDevice { guest_path: place, major: 7, minor: 3, read_only: true }];
        let inside = Inside {
            root: Path::new("/root"),
            hostname: "m",
            argv: &["app".into()],
            env: &["PATH=/bin".into()],
            cwd: "/",
            identity: &identity,
            netns: Some(Path::new("/run/netns/x")),
            limits: &limits,
            binds: &binds,
            devices: &devices,
            cgroup_path: "/godwit/m",
            cgroups: &[],
            unified: true,
            open_files: OPEN_FILES,
            limits_swap: true,
        };
        let value = configuration(&inside);
        assert_eq!(value["linux"]["resources"]["cpu"]["quota"], 25_000);
        assert!(value["mounts"].as_array().unwrap().iter().any(|m| m["destination"] == "/data"));
        let rules = value["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules[0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(rules[1], json!({"allow": true, "type": "b", "major": 7, "minor": 3, "access": "r"}));
        assert_eq!(rules.len(), 2);
        let spec: libcontainer::oci_spec::runtime::Spec = serde_json::from_value(value).unwrap();
        let node = &spec.linux().as_ref().unwrap().devices().as_ref().unwrap()[0];
        assert_eq!((node.major(), node.minor(), node.file_mode()), (7, 3, Some(0o400)));
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), Some(false));
        let held = process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap();
        assert_eq!(held.len(), CAPABILITIES.len() - 1 + 1, "without rules for devices, none can be made");
        assert_eq!(process.capabilities().as_ref().unwrap().ambient().as_ref().map(|c| c.len()), Some(0));
    }
}
