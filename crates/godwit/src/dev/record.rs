//! `fleet.json`: what the folder must remember so that the fleet goes on, and so that every trace can be removed after
//! a SIGKILL. Written before each effect.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::Process;
use crate::error::{CliError, Result};

const FILE: &str = "fleet.json";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Drawn when the folder was made; names links, tables and cgroups.
    pub fleet: String,
    pub hosts: Vec<HostRecord>,
    /// What was running when it was last written. Those that are gone are told by their start time.
    #[serde(default)]
    pub processes: Vec<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its folder below `hosts/` and the first part of its id.
    pub name: String,
    /// Its number in the fleet's address plan, from 1.
    pub index: u16,
    pub region: String,
}

impl Record {
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let Some(bytes) = godwit_base::durable::read(&dir.join(FILE))? else { return Ok(None) };
        let record = serde_json::from_slice(&bytes)
            .map_err(|error| CliError::failed(format!("{} is damaged: {error}", dir.join(FILE).display())))?;
        Ok(Some(record))
    }

    pub fn write(&self, dir: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        Ok(godwit_base::durable::write(&dir.join(FILE), &bytes, 0o600)?)
    }

    pub fn new() -> Self {
        let fleet = format!("{:08x}", godwit_base::secret::random_u64() as u32);
        Self { fleet, hosts: Vec::new(), processes: Vec::new() }
    }

    /// Makes sure of `count` hosts; those that exist keep what they have.
    pub fn grow(&mut self, count: u16, regions: &[String]) {
        for index in self.hosts.len() as u16 + 1..=count {
            let turn = usize::from(index - 1) % regions.len().max(1);
            let region = regions.get(turn).cloned().unwrap_or_else(|| "local".to_owned());
            self.hosts.push(HostRecord { name: format!("w{index}"), index, region });
        }
    }

    /// The cgroup under which a host's Machines live, relative to each hierarchy's root.
    pub fn cgroup(&self, host: &HostRecord) -> String {
        format!("godwit-dev-{}-{}", self.fleet, host.index)
    }

    /// Notes a process in the place of the one that was the same thing before.
    pub fn note(&mut self, process: Process) {
        self.processes.retain(|known| known.what != process.what);
        self.processes.push(process);
    }
}

pub fn host_dir(dir: &Path, host: &HostRecord) -> PathBuf {
    dir.join("hosts").join(&host.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keep_name_and_region_when_the_fleet_grows() {
        let mut record = Record::new();
        record.grow(2, &["fra".into(), "ams".into()]);
        let first = record.hosts.clone();
        record.grow(3, &["lhr".into()]);
        assert_eq!(record.hosts[..2], first);
        let shown: Vec<_> = record.hosts.iter().map(|host| (host.name.as_str(), host.region.as_str())).collect();
        assert_eq!(shown, [("w1", "fra"), ("w2", "ams"), ("w3", "lhr")]);
        record.grow(1, &[]);
        assert_eq!(record.hosts.len(), 3);
        assert_ne!(record.cgroup(&record.hosts[0]), record.cgroup(&record.hosts[1]));
    }
}
