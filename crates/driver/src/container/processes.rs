//! What `ps` shows: read from `/proc`, for the pids that the kernel lists in a Machine's cgroup.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::sockets::{TCP_LISTEN, UDP_OPEN, in_state};
use crate::spec::{ListenSocket, ProcessStat};

/// Most processes that one answer names, and most open files looked at in each.
pub const MAX_PROCESSES: usize = 1024;
const MAX_DESCRIPTORS: usize = 4096;
const MAX_COMMAND_BYTES: usize = 4096;

/// Statistics of every process of `pids` that still lives, by their pid inside. `skip` is the Machine's pid 1, which
/// is ours: it reaps and forwards signals, and users did not ask for it.
pub fn read(pids: &BTreeSet<i32>, skip: Option<i32>) -> Vec<ProcessStat> {
    let mut sockets = None;
    let chosen = pids.iter().filter(|pid| Some(**pid) != skip).take(MAX_PROCESSES);
    let mut stats: Vec<_> = chosen.filter_map(|pid| read_one(*pid, &mut sockets)).collect();
    stats.sort_by_key(|stat| stat.pid);
    stats
}

/// Is this process pid 1 of its own namespace?
pub fn is_namespace_init(pid: i32) -> bool {
    inner_pid(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()) == Some(1)
}

type Sockets = HashMap<u64, ListenSocket>;

fn read_one(pid: i32, sockets: &mut Option<Sockets>) -> Option<ProcessStat> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let status = fs::read_to_string(proc.join("status")).ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split_ascii_whitespace().collect();
    // Counted from field 3 of proc(5): 14 utime, 15 stime, 22 starttime, 24 rss in pages.
    let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    let (tick_ms, page) = (1000 / system_number(libc::_SC_CLK_TCK, 100), system_number(libc::_SC_PAGESIZE, 4096));
    let sockets = sockets.get_or_insert_with(|| listening(&proc));
    Some(ProcessStat {
        pid: inner_pid(&status).unwrap_or(pid),
        stime_ms: field(15) * tick_ms,
        rtime_ms: uptime_ms().saturating_sub(field(22) * tick_ms),
        command: command(&proc, &stat),
        directory: fs::read_link(proc.join("cwd")).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default(),
        cpu_ms: (field(14) + field(15)) * tick_ms,
        rss_bytes: field(24) * page,
        listen_sockets: owned(&proc, sockets),
    })
}

fn system_number(name: i32, otherwise: u64) -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|v| *v > 0).unwrap_or(otherwise)
}

fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or(0.0);
    (seconds * 1000.0) as u64
}

fn inner_pid(status: &str) -> Option<i32> {
    status.lines().find_map(|l| l.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

fn command(proc: &Path, stat: &str) -> String {
    let line = fs::read(proc.join("cmdline")).unwrap_or_default();
    let line = &line[..line.len().min(MAX_COMMAND_BYTES)];
    let words: Vec<_> = line.split(|b| *b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy).collect();
    match words.is_empty() {
        // Kernel threads and zombies have no arguments: their short name stands between the brackets.
        true => stat.split_once('(').and_then(|(_, s)| s.rsplit_once(')')).map_or("", |(name, _)| name).to_owned(),
        false => words.join(" "),
    }
}

/// The sockets that a process holds open, of those that listen in its network namespace.
fn owned(proc: &Path, sockets: &Sockets) -> Vec<ListenSocket> {
    let Ok(entries) = fs::read_dir(proc.join("fd")) else { return Vec::new() };
    let links = entries.flatten().take(MAX_DESCRIPTORS).filter_map(|e| fs::read_link(e.path()).ok());
    let inodes = links.filter_map(|l| l.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
    let mut found: Vec<ListenSocket> = inodes.filter_map(|inode| sockets.get(&inode).cloned()).collect();
    found.sort_by(|a, b| (&a.proto, &a.address).cmp(&(&b.proto, &b.address)));
    found.dedup();
    found
}

/// Listening sockets of a process's network namespace, by inode.
fn listening(proc: &Path) -> Sockets {
    let mut sockets = Sockets::new();
    for (proto, state) in [("tcp", TCP_LISTEN), ("tcp6", TCP_LISTEN), ("udp", UDP_OPEN), ("udp6", UDP_OPEN)] {
        let table = fs::read_to_string(proc.join("net").join(proto)).unwrap_or_default();
        for socket in in_state(&table, state) {
            let address = socket.at.to_string();
            sockets.insert(socket.inode, ListenSocket { proto: proto.to_owned(), address });
        }
    }
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself_and_what_it_listens_on() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let me = std::process::id() as i32;
        let stats = read(&BTreeSet::from([me]), None);
        let wanted = ListenSocket { proto: "tcp".into(), address: listener.local_addr().unwrap().to_string() };
        assert!(stats[0].listen_sockets.contains(&wanted), "{stats:?}");
        assert!(stats[0].rss_bytes > 0 && !stats[0].command.is_empty());
    }
}
