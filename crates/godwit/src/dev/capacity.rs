//! What a dev host says that it has.

use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub cpus: u32,
    pub memory_mb: u64,
    pub disk_mb: u64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { cpus: 8, memory_mb: 4096, disk_mb: 20_480 }
    }
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut capacity = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let number = |value: &str| value.parse::<u64>().ok().filter(|number| *number > 0);
            let parsed = part.split_once('=').and_then(|(name, value)| Some((name, number(value)?)));
            match parsed {
                Some(("cpus", cpus)) => {
                    capacity.cpus = u32::try_from(cpus).map_err(|_| "that many cpus?".to_owned())?
                }
                Some(("memory_mb", memory_mb)) => capacity.memory_mb = memory_mb,
                Some(("disk_mb", disk_mb)) => capacity.disk_mb = disk_mb,
                _ => return Err(format!("{part:?}: say cpus=4,memory_mb=8192,disk_mb=51200")),
            }
        }
        Ok(capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_may_be_left_out_and_mistakes_are_named() {
        assert_eq!("".parse(), Ok(Capacity::default()));
        let given: Capacity = "memory_mb=64, cpus=200".parse().unwrap();
        assert_eq!((given.cpus, given.memory_mb, given.disk_mb), (200, 64, Capacity::default().disk_mb));
        for bad in ["cpus", "cpus=0", "ram=1", "memory_mb=1g"] {
            assert!(bad.parse::<Capacity>().unwrap_err().contains(bad), "{bad}");
        }
    }
}
