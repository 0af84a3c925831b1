//! What this machine has and how much of it is in use, read from the kernel. What its Machines may have follows from it,
//! unless the configuration says so. It only reads.

use std::fs;
use std::path::{Path, PathBuf};

use godwit_api::fact::{Measured, Resources};

use crate::config::Stated;

/// Left to the system when the configuration does not say what Machines may have: a tenth, and at least so much.
const RESERVE_SHARE: u64 = 10;
const RESERVE_MEMORY_MB: u64 = 512;
const RESERVE_DISK_MB: u64 = 2_048;

/// The whole machine. What cannot be read is 0.
pub fn whole(data_dir: &Path) -> Resources {
    let cpus = std::thread::available_parallelism().map_or(0, |count| count.get() as u64);
    let disk = disk(data_dir).unwrap_or_default();
    Resources { cpu_millis: cpus * 1000, memory_mb: meminfo("MemTotal:").unwrap_or(0), disk_mb: disk.0 }
}

/// What Machines may have together: as stated, else the machine's less a reserve. Processors have none: they are shared,
/// and nobody who waits for one loses anything.
pub fn capacity(stated: &Stated, whole: &Resources) -> Resources {
    let less = |all: u64, least: u64| all.saturating_sub((all / RESERVE_SHARE).max(least)).max(1);
    Resources {
        cpu_millis: stated.cpu_millis.unwrap_or(whole.cpu_millis.max(1_000)),
        memory_mb: stated.memory_mb.unwrap_or(less(whole.memory_mb, RESERVE_MEMORY_MB)),
        disk_mb: stated.disk_mb.unwrap_or(less(whole.disk_mb, RESERVE_DISK_MB)),
    }
}

/// What was stated and is not there, by name. What could not be read (0) says nothing.
pub fn over(stated: &Stated, has: &Resources) -> Vec<String> {
    let cpus = |millis: u64| millis / 1000;
    let parts = [
        ("cpus", stated.cpu_millis.map(cpus), cpus(has.cpu_millis)),
        ("memory_mb", stated.memory_mb, has.memory_mb),
        ("disk_mb", stated.disk_mb, has.disk_mb),
    ];
    let over = parts.into_iter().filter_map(|(name, said, has)| Some((name, said.filter(|said| *said > has)?, has)));
    let over = over.filter(|(_, _, has)| *has > 0);
    over.map(|(name, said, has)| format!("capacity.{name} = {said}, but this machine has {has}")).collect()
}

/// Measures again and again: how busy the processors were is known between two looks.
pub struct Meter {
    data_dir: PathBuf,
    /// Busy and all ticks at the last look.
    ticks: Option<(u64, u64)>,
}

impl Meter {
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), ticks: None }
    }

    pub fn look(&mut self) -> Measured {
        let whole = whole(&self.data_dir);
        let ticks = fs::read_to_string("/proc/stat").ok().and_then(|stat| ticks(&stat));
        let busy_permille = match (self.ticks, ticks) {
            (Some(before), Some(now)) => {
                let (busy, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
                busy.saturating_mul(1000).checked_div(all).unwrap_or(0)
            }
            _ => 0,
        };
        self.ticks = ticks;
        let used = Resources {
            cpu_millis: whole.cpu_millis * busy_permille.min(1000) / 1000,
            memory_mb: whole.memory_mb.saturating_sub(meminfo("MemAvailable:").unwrap_or(whole.memory_mb)),
            disk_mb: disk(&self.data_dir).map_or(0, |(all, free)| all.saturating_sub(free)),
        };
        Measured { whole, used }
    }
}

/// Busy and all ticks of all processors since the machine started (proc_stat(5)): idle and iowait are the fourth and fifth,
/// and what guests took is counted among user and nice already.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

fn meminfo(name: &str) -> Option<u64> {
    memory_mb(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

/// A line of /proc/meminfo, which counts in KiB.
fn memory_mb(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// Size and free MiB of the file system that the data folder lies in, or will lie in.
fn disk(data_dir: &Path) -> Option<(u64, u64)> {
    let stands = data_dir.ancestors().find(|path| path.exists())?;
    let found = nix::sys::statvfs::statvfs(stands).ok()?;
    let mb = |blocks: u64| blocks.saturating_mul(found.fragment_size()) >> 20;
    Some((mb(found.blocks()), mb(found.blocks_available())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HAS: Resources = Resources { cpu_millis: 4_000, memory_mb: 8_192, disk_mb: 100_000 };

    #[test]
    fn what_is_not_stated_is_the_machines_less_a_reserve() {
        let measured = capacity(&Stated::default(), &HAS);
        assert_eq!(measured, Resources { cpu_millis: 4_000, memory_mb: 7_373, disk_mb: 90_000 });
        let small = Resources { cpu_millis: 1_000, memory_mb: 1_024, disk_mb: 4_096 };
        assert_eq!(capacity(&Stated::default(), &small), Resources { memory_mb: 512, disk_mb: 2_048, ..small });
        let stated = Stated { memory_mb: Some(2_000), ..Stated::default() };
        assert_eq!(capacity(&stated, &HAS), Resources { memory_mb: 2_000, ..measured });
    }

    #[test]
    fn what_is_stated_beyond_the_machine_is_named() {
        let stated = Stated { cpu_millis: Some(16_000), memory_mb: Some(60_000), disk_mb: Some(1_000) };
        let named =
            ["capacity.cpus = 16, but this machine has 4", "capacity.memory_mb = 60000, but this machine has 8192"];
        assert_eq!(over(&stated, &HAS), named);
        assert!(over(&stated, &Resources::default()).is_empty(), "what could not be read says nothing");
        assert!(over(&Stated::default(), &HAS).is_empty());
    }

    #[test]
    fn a_busy_processor_is_seen_between_two_looks() {
        assert_eq!(ticks("cpu  10 0 20 60 10 0 0 0 5 5\ncpu0 1 1\n"), Some((30, 100)));
        assert_eq!(ticks("nothing"), None);
        let mut meter = Meter::new(Path::new("/no/such/folder"));
        meter.look();
        let measured = meter.look();
        assert!(measured.used.cpu_millis <= measured.whole.cpu_millis);
        assert!(measured.used.memory_mb > 0 && measured.used.memory_mb < measured.whole.memory_mb);
        assert!(measured.whole.disk_mb > 0, "that of the root");
    }
}
