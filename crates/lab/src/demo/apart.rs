//! Two things about processes, looked at again and again while a Machine moves: whether any process of the target holds
//! a file of the source's folder, and how many processes of the app exist. Read from `/proc`, so that it takes nobody's
//! word. Files are compared by device and inode: each host sees paths of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use godwit_lab::fleet::DevHost;

const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// The app's program, as its image names it.
const PROGRAM: &str = "/app";
/// Breaches that are told; one is too many.
const TOLD_MAX: usize = 5;

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub looks: u64,
    /// Processes of the target that were looked at, at most at one time.
    pub processes: usize,
    /// `PID holds FILE`.
    pub breaches: BTreeSet<String>,
    pub most_copies: usize,
}

pub struct Lookout {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Lookout {
    /// Looks until it is asked what it saw. `machine` is what the app's processes say in their environment.
    pub fn start(source: &DevHost, target: &DevHost, machine: &str) -> Result<Self> {
        let init = parent(target.agent_pid).context("the target's agent has no parent")?;
        let (folder, marker) = (source.data_dir.clone(), format!("FLY_MACHINE_ID={machine}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                look(&mut seen, init, &folder, marker.as_bytes())?;
                std::thread::sleep(LOOK_INTERVAL);
            }
            Ok(seen)
        });
        Ok(Self { stop, thread })
    }

    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the lookout broke"))?
    }
}

fn look(seen: &mut Seen, init: i32, source: &Path, marker: &[u8]) -> Result<()> {
    seen.looks += 1;
    let parents = parents()?;
    let copies = parents.keys().filter(|pid| is_app(**pid, marker)).count();
    seen.most_copies = seen.most_copies.max(copies);
    let mut files = BTreeMap::new();
    collect(source, &mut files);
    let descends = |mut pid: i32| {
        while let Some(above) = parents.get(&pid).filter(|_| pid != init) {
            pid = *above;
        }
        pid == init
    };
    let targets: Vec<i32> = parents.keys().copied().filter(|pid| descends(*pid)).collect();
    seen.processes = seen.processes.max(targets.len());
    for pid in targets {
        for file in held(pid).iter().filter_map(|id| files.get(id)) {
            if seen.breaches.len() < TOLD_MAX {
                seen.breaches.insert(format!("{} holds {}", describe(pid), file.display()));
            }
        }
    }
    Ok(())
}

/// Device and inode.
type FileId = (u64, u64);

/// Everything below a folder that is no folder itself. What vanishes meanwhile is left out.
fn collect(folder: &Path, into: &mut BTreeMap<FileId, PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            collect(&path, into);
        } else {
            into.insert((metadata.dev(), metadata.ino()), path);
        }
    }
}

/// The files that a process has open or mapped.
fn held(pid: i32) -> Vec<FileId> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    // Followed through the kernel's own link: it works for files that no path leads to.
    let mut held: Vec<FileId> = open
        .filter_map(|entry| entry.path().metadata().ok())
        .map(|metadata| (metadata.dev(), metadata.ino()))
        .collect();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    held.extend(maps.lines().filter_map(mapped));
    held
}

/// `address permissions offset MAJOR:MINOR INODE path`, numbers of the device in hexadecimal.
fn mapped(line: &str) -> Option<FileId> {
    let mut words = line.split_whitespace().skip(3);
    let (major, minor) = words.next()?.split_once(':')?;
    let device = libc::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    (inode != 0).then_some((device, inode))
}

fn is_app(pid: i32, marker: &[u8]) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|program| program == Path::new(PROGRAM))
        && std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|variables| variables.split(|byte| *byte == 0).any(|variable| variable == marker))
}

/// Every process and its parent.
fn parents() -> Result<BTreeMap<i32, i32>> {
    let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid| Some((pid, parent(pid)?))).collect())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, but it ends at the last parenthesis.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn describe(pid: i32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> =
        command.split(|byte| *byte == 0).take(3).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    format!("{pid} ({})", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_open_or_mapped_is_found_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "content").unwrap();
        let mut files = BTreeMap::new();
        collect(folder.path(), &mut files);
        let us = i32::try_from(std::process::id()).unwrap();
        let holds = || held(us).iter().any(|id| files.get(id) == Some(&path));
        assert!(!holds());
        let open = std::fs::File::open(&path).unwrap();
        assert!(holds());
        drop(open);
        // The program itself is mapped, and by no descriptor.
        let program = std::env::current_exe().unwrap().metadata().unwrap();
        assert!(held(us).contains(&(program.dev(), program.ino())));
        assert_eq!(parent(us), Some(nix::unistd::getppid().as_raw()));
    }
}
