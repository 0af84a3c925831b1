//! What fits on a host: sums and differences of resources. It must not know where the numbers come from.

use godwit_api::config::MachineConfig;
use godwit_api::fact::Resources;
use godwit_api::row::Placement;

/// What every Machine takes of the disk, running or not: its writable layer and its logs.
pub const DISK_MB: u64 = 256;
/// How many Machines of `shared` processors share one.
const SHARED_PER_CPU: u64 = 16;

/// What a Machine takes; processor and memory only while it runs.
pub fn need(config: &MachineConfig, running: bool) -> Resources {
    let disk_mb = DISK_MB;
    if !running {
        return Resources { disk_mb, ..Resources::default() };
    }
    Resources { cpu_millis: cpu_millis(config), memory_mb: u64::from(config.guest.memory_mb), disk_mb }
}

/// What a placement takes of its host: a volume its whole size, whether that is used or not; a Machine as `need` says.
pub fn of_placement(placement: &Placement, running: bool) -> Resources {
    match &placement.volume {
        Some(volume) => Resources { disk_mb: volume.size_bytes.div_ceil(1 << 20), ..Resources::default() },
        None => need(&placement.config, running),
    }
}

/// Thousandths of a processor that are set aside. A `shared` processor is a sixteenth: what is busy beyond that is
/// shared by weight.
pub fn cpu_millis(config: &MachineConfig) -> u64 {
    let whole = u64::from(config.guest.cpus) * 1000;
    if config.guest.cpu_kind == "performance" { whole } else { whole / SHARED_PER_CPU }
}

/// What is left of `all` beside `used`, never below zero.
pub fn left(all: Resources, used: Resources) -> Resources {
    Resources {
        cpu_millis: all.cpu_millis.saturating_sub(used.cpu_millis),
        memory_mb: all.memory_mb.saturating_sub(used.memory_mb),
        disk_mb: all.disk_mb.saturating_sub(used.disk_mb),
    }
}

pub fn sum(parts: impl IntoIterator<Item = Resources>) -> Resources {
    parts.into_iter().fold(Resources::default(), |a, b| Resources {
        cpu_millis: a.cpu_millis.saturating_add(b.cpu_millis),
        memory_mb: a.memory_mb.saturating_add(b.memory_mb),
        disk_mb: a.disk_mb.saturating_add(b.disk_mb),
    })
}

/// What of `need` does not fit into `free`, in words; `None` when all of it does.
pub fn lacking(need: Resources, free: Resources) -> Option<String> {
    let parts = [
        ("memory", need.memory_mb, free.memory_mb, "MiB"),
        ("processor", need.cpu_millis, free.cpu_millis, "thousandths"),
        ("disk", need.disk_mb, free.disk_mb, "MiB"),
    ];
    let (what, need, free, unit) = parts.into_iter().find(|(_, need, free, _)| need > free)?;
    Some(format!("not enough {what}: {need} {unit} needed, {free} free"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_machine_takes_disk_only() {
        let mut config = MachineConfig::default();
        config.guest.memory_mb = 512;
        assert_eq!(need(&config, false), Resources { cpu_millis: 0, memory_mb: 0, disk_mb: DISK_MB });
        assert_eq!(need(&config, true), Resources { cpu_millis: 62, memory_mb: 512, disk_mb: DISK_MB });
        config.guest.cpu_kind = "performance".into();
        assert_eq!(cpu_millis(&config), 1000);
    }

    #[test]
    fn what_is_lacking_is_named() {
        let all = Resources { cpu_millis: 1000, memory_mb: 100, disk_mb: 1000 };
        let need = Resources { cpu_millis: 1, memory_mb: 101, disk_mb: 1 };
        assert!(lacking(need, all).unwrap().contains("memory: 101 MiB needed, 100 free"));
        assert_eq!(lacking(all, all), None);
        assert_eq!(left(need, all).memory_mb, 1);
    }
}
