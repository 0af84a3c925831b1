//! The agent's configuration: read raw, then checked into what the parts take. It must not open or start anything.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use godwit_api::Span;
use godwit_net::plan::{Prefix, Prefix4};

use crate::error::Error;

/// As it stands in the file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Everything that this host keeps lies in it.
    pub data_dir: PathBuf,
    /// Where the host API listens.
    pub listen: SocketAddr,
    /// `http://[addr]:port` by which control reaches the host API.
    pub advertise_url: String,
    /// The unix socket on which the door finds its agent.
    #[schemars(extend("default" = "DATA_DIR/door.sock"))]
    pub door_socket: Option<PathBuf>,
    /// `[addr]:port` by which edges reach the door.
    pub door_addr: String,
    /// `http://host:port` of control.
    pub control_url: String,
    /// The join token itself; needed, this or the file, until the host has joined.
    pub join_token: Option<String>,
    /// Holds control's join token.
    pub join_token_file: Option<PathBuf>,
    /// The wanted name; control adds four digits to it.
    pub name: String,
    /// Where this host is; requests go to Machines of the edge's own region first. 1 to 32 of a-z, 0-9 and `-`.
    pub region: String,
    /// What its Machines may have together. What is left out is measured, less a reserve for the system.
    #[serde(default)]
    pub capacity: RawCapacity,
    #[serde(default)]
    pub driver: RawDriver,
    #[serde(default)]
    pub network: RawNetwork,
    #[serde(default)]
    pub images: RawImages,
    #[serde(default)]
    pub volumes: RawVolumes,
    #[serde(default)]
    pub logs: RawLogs,
    #[serde(default)]
    pub timing: RawTiming,
    /// A file whose content changes when the host is started anew.
    #[serde(default = "default_boot_id_file")]
    pub boot_id_file: PathBuf,
    /// Name servers of Machines come from it, unless their configuration names others.
    #[serde(default = "default_resolv_conf")]
    pub resolv_conf: PathBuf,
    /// Allows fakes and crash points. Never on a host that serves people.
    #[serde(default)]
    pub lab: bool,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCapacity {
    /// CPUs that Machines may have together.
    #[schemars(extend("default" = "all of the machine"))]
    pub cpus: Option<u32>,
    /// Memory that Machines may have together; leave some to the system.
    #[schemars(extend("default" = "the machine's less a tenth, and less 512 at least"))]
    pub memory_mb: Option<u64>,
    /// Disk that Machines' writable layers and volumes may have together.
    #[schemars(extend("default" = "that of DATA_DIR less a tenth, and less 2048 at least"))]
    pub disk_mb: Option<u64>,
}

/// Capacity as stated; the rest is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stated {
    pub cpu_millis: Option<u64>,
    pub memory_mb: Option<u64>,
    pub disk_mb: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawDriver {
    /// `container`; the lab has others.
    #[schemars(extend("default" = "container"))]
    pub kind: Option<String>,
    /// The `godwit-shim` program, which holds a Machine.
    #[schemars(extend("default" = "godwit-shim beside this program"))]
    pub shim: Option<PathBuf>,
    /// The cgroup under which those of Machines lie.
    #[schemars(extend("default" = "godwit"))]
    pub cgroup_parent: Option<String>,
    /// State of running containers, best on a tmpfs.
    #[schemars(extend("default" = "DATA_DIR/run"))]
    pub run_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawNetwork {
    /// `host`; the lab has others.
    #[schemars(extend("default" = "host"))]
    pub kind: Option<String>,
    /// Names this host's table of packet rules (`godwit_NAME`) and its links.
    #[schemars(extend("default" = "host"))]
    pub name: Option<String>,
    /// Where Machines' IPv4 addresses come from; they mean nothing beyond the host.
    #[schemars(extend("default" = "172.20.0.0/14"))]
    pub pool_v4: Option<String>,
    /// What Machines may not reach, as `address/len`.
    pub denied: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawImages {
    /// How often unused images are collected.
    #[schemars(extend("default" = "10m", "format" = "duration"))]
    pub collect_interval: Option<Span>,
    /// An image that was used within it is kept.
    #[schemars(extend("default" = "10m", "format" = "duration"))]
    pub collect_grace: Option<Span>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawVolumes {
    /// The program, and its first arguments, that runs a volume's processes; empty: this program.
    pub program: Vec<String>,
    /// Bound on the background copies of all moves to this host together, in bytes a second; 0: none.
    pub rate_bytes_per_s: u64,
    /// The first and the last port on which volumes are served to the host that they move to, one port a volume.
    #[schemars(extend("default" = "4300-4399"))]
    pub export_ports: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawLogs {
    /// How much of what each Machine writes to its output is kept, the newest, from its next start on; 4 to 16384. It is
    /// not part of `capacity.disk_mb`.
    #[schemars(extend("default" = 256))]
    pub keep_mb: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTiming {
    /// How often placements are pulled without an occasion.
    #[schemars(extend("default" = "30s", "format" = "duration"))]
    pub pull_interval: Option<Span>,
    /// How often the host tells what it has and uses.
    #[schemars(extend("default" = "5s", "format" = "duration"))]
    pub host_fact_interval: Option<Span>,
    /// How long requests in flight may go on when a Machine is to stop.
    #[schemars(extend("default" = "5s", "format" = "duration"))]
    pub drain_timeout: Option<Span>,
}

/// A few of a Machine's longest lines fit, and a log of no Machine fills a disk by itself.
const KEPT_LOG_MB: RangeInclusive<u32> = 4..=16_384;
const DEFAULT_KEPT_LOG_MB: u32 = 256;

/// A hundred volumes may be on their way from one host at once.
const EXPORT_PORTS: (u16, u16) = (4300, 4399);

fn default_boot_id_file() -> PathBuf {
    "/proc/sys/kernel/random/boot_id".into()
}
fn default_resolv_conf() -> PathBuf {
    "/etc/resolv.conf".into()
}

/// Which driver runs the Machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverChoice {
    Container { shim: PathBuf, cgroup_parent: String, run_dir: PathBuf },
    Fake,
}

impl DriverChoice {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Container { .. } => "container",
            Self::Fake => "fake",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkChoice {
    Host {
        name: String,
        pool_v4: Prefix4,
        denied: Vec<Prefix>,
    },
    /// Machines get no network at all.
    None,
}

/// Checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub advertise_url: String,
    pub door_socket: PathBuf,
    pub door_addr: String,
    pub control_url: String,
    pub join_token: Option<String>,
    pub join_token_file: Option<PathBuf>,
    pub name: String,
    pub region: String,
    pub capacity: Stated,
    pub driver: DriverChoice,
    pub network: NetworkChoice,
    pub collect_interval: Duration,
    pub collect_grace: Duration,
    pub pull_interval: Duration,
    pub host_fact_interval: Duration,
    pub drain_timeout: Duration,
    /// Of each Machine.
    pub kept_log_bytes: u64,
    /// Never empty.
    pub volume_program: Vec<String>,
    pub rate_bytes_per_s: u64,
    /// First and last.
    pub export_ports: (u16, u16),
    pub boot_id_file: PathBuf,
    pub resolv_conf: PathBuf,
    pub lab: bool,
}

impl Config {
    /// Where this host serves the volumes that it has handed off: beside its door, at a port of `export_ports`.
    pub fn export_listen(&self) -> SocketAddr {
        let beside = self.door_addr.parse::<SocketAddr>().unwrap_or(self.listen);
        SocketAddr::new(beside.ip(), 0)
    }

    pub fn machine_dir(&self, machine: &str) -> PathBuf {
        self.data_dir.join("machines").join(machine)
    }
}

impl TryFrom<Raw> for Config {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self, Error> {
        let wrong = |text: String| Err(Error::Config(text));
        if !raw.data_dir.is_absolute() {
            return wrong(format!("data_dir {} is not absolute", raw.data_dir.display()));
        }
        for (field, url) in [("advertise_url", &raw.advertise_url), ("control_url", &raw.control_url)] {
            if !url.starts_with("http://") {
                return wrong(format!("{field} {url:?} does not begin with http://"));
            }
        }
        let said = &raw.capacity;
        if said.cpus == Some(0) || said.memory_mb == Some(0) || said.disk_mb == Some(0) {
            return wrong("capacity: cpus, memory_mb and disk_mb are above 0, or left out".into());
        }
        let driver = driver(&raw)?;
        let network = network(&raw)?;
        let capacity = Stated {
            cpu_millis: said.cpus.map(|cpus| u64::from(cpus) * 1000),
            memory_mb: said.memory_mb,
            disk_mb: said.disk_mb,
        };
        let or = |span: Option<Span>, default: u64| span.map_or(Duration::from_secs(default), |span| span.0);
        Ok(Self {
            door_socket: raw.door_socket.unwrap_or_else(|| raw.data_dir.join("door.sock")),
            data_dir: raw.data_dir,
            listen: raw.listen,
            advertise_url: raw.advertise_url,
            door_addr: raw.door_addr,
            control_url: raw.control_url,
            join_token: raw.join_token,
            join_token_file: raw.join_token_file,
            name: raw.name,
            region: raw.region,
            capacity,
            driver,
            network,
            collect_interval: or(raw.images.collect_interval, 600),
            collect_grace: or(raw.images.collect_grace, 600),
            pull_interval: or(raw.timing.pull_interval, 30),
            host_fact_interval: or(raw.timing.host_fact_interval, 5),
            drain_timeout: or(raw.timing.drain_timeout, 5),
            kept_log_bytes: kept_log_bytes(raw.logs.keep_mb)?,
            export_ports: export_ports(raw.volumes.export_ports.as_deref())?,
            volume_program: volume_program(raw.volumes.program)?,
            rate_bytes_per_s: raw.volumes.rate_bytes_per_s,
            boot_id_file: raw.boot_id_file,
            resolv_conf: raw.resolv_conf,
            lab: raw.lab,
        })
    }
}

fn driver(raw: &Raw) -> Result<DriverChoice, Error> {
    match raw.driver.kind.as_deref() {
        None | Some("container") => Ok(DriverChoice::Container {
            shim: match &raw.driver.shim {
                Some(shim) => shim.clone(),
                None => beside_this_program("godwit-shim")?,
            },
            cgroup_parent: raw.driver.cgroup_parent.clone().unwrap_or_else(|| "godwit".into()),
            run_dir: raw.driver.run_dir.clone().unwrap_or_else(|| raw.data_dir.join("run")),
        }),
        Some("fake") if raw.lab => Ok(DriverChoice::Fake),
        Some(other) => Err(Error::Config(format!("driver.kind {other:?} is not known (or needs lab = true)"))),
    }
}

fn beside_this_program(name: &str) -> Result<PathBuf, Error> {
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    Ok(program.with_file_name(name))
}

fn volume_program(given: Vec<String>) -> Result<Vec<String>, Error> {
    if !given.is_empty() {
        return Ok(given);
    }
    let program = std::env::current_exe().map_err(Error::io("find", "this program"))?;
    let program = program.to_str().ok_or_else(|| Error::Config("this program's path is not UTF-8".into()))?;
    Ok(vec![program.to_owned(), "volume-process".to_owned()])
}

fn kept_log_bytes(mb: Option<u32>) -> Result<u64, Error> {
    let mb = mb.unwrap_or(DEFAULT_KEPT_LOG_MB);
    if !KEPT_LOG_MB.contains(&mb) {
        let (least, most) = (KEPT_LOG_MB.start(), KEPT_LOG_MB.end());
        return Err(Error::Config(format!("logs.keep_mb {mb} is not between {least} and {most}")));
    }
    Ok(u64::from(mb) << 20)
}

fn export_ports(text: Option<&str>) -> Result<(u16, u16), Error> {
    let Some(text) = text else { return Ok(EXPORT_PORTS) };
    let parse = || {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (0 < first && first <= last).then_some((first, last))
    };
    parse().ok_or_else(|| {
        Error::Config(format!("volumes.export_ports {text:?} is not a range of ports; write it as \"4300-4399\""))
    })
}

fn network(raw: &Raw) -> Result<NetworkChoice, Error> {
    match raw.network.kind.as_deref() {
        None | Some("host") => {
            let pool_v4 = match raw.network.pool_v4.as_deref() {
                None => Prefix4::new(Ipv4Addr::new(172, 20, 0, 0), 14),
                Some(text) => match prefix(text)? {
                    Prefix::V4(pool) => pool,
                    Prefix::V6(_) => return Err(Error::Config(format!("network.pool_v4 {text:?} is not IPv4"))),
                },
            };
            let denied = raw.network.denied.iter().map(|text| prefix(text)).collect::<Result<_, _>>()?;
            let name = raw.network.name.clone().unwrap_or_else(|| "host".into());
            Ok(NetworkChoice::Host { name, pool_v4, denied })
        }
        Some("none") if raw.lab => Ok(NetworkChoice::None),
        Some(other) => Err(Error::Config(format!("network.kind {other:?} is not known (or needs lab = true)"))),
    }
}

fn prefix(text: &str) -> Result<Prefix, Error> {
    let parse = || {
        let (address, len) = text.split_once('/')?;
        Some(Prefix::new(address.parse().ok()?, len.parse().ok()?))
    };
    parse().ok_or_else(|| Error::Config(format!("{text:?} is not an address range such as 10.0.0.0/8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(more: &str) -> Result<Config, String> {
        let text = format!(
            "data_dir = '/var/lib/godwit'\nlisten = '[::1]:0'\nadvertise_url = 'http://[::1]:1'\n\
             door_addr = '[::1]:2'\ncontrol_url = 'http://[::1]:3'\nname = 'w1'\nregion = 'fra'\n{more}\n\
             [capacity]\ncpus = 2\nmemory_mb = 1024\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let raw: Raw = godwit_base::config::read(&path).map_err(|e| godwit_base::telemetry::chain(&e))?;
        Config::try_from(raw).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_stand_and_mistakes_are_named() {
        let config = raw("").unwrap();
        assert_eq!(config.door_socket, PathBuf::from("/var/lib/godwit/door.sock"));
        assert_eq!(config.capacity, Stated { cpu_millis: Some(2000), memory_mb: Some(1024), disk_mb: None });
        assert!(raw("colour = 'red'").unwrap_err().contains("colour"));
        assert!(raw("driver = { kind = 'fake' }").unwrap_err().contains("lab"));
        assert_eq!(raw("lab = true\ndriver = { kind = 'fake' }").unwrap().driver, DriverChoice::Fake);
        assert!(raw("network = { pool_v4 = 'x' }").unwrap_err().contains("address range"));
        assert_eq!(config.export_ports, (4300, 4399));
        assert_eq!(
            (config.kept_log_bytes, raw("logs = { keep_mb = 64 }").unwrap().kept_log_bytes),
            (256 << 20, 64 << 20)
        );
        assert!(raw("logs = { keep_mb = 3 }").unwrap_err().contains("between 4 and 16384"));
        assert_eq!(raw("volumes = { export_ports = '7000 - 7003' }").unwrap().export_ports, (7000, 7003));
        for wrong in ["7000", "0-5", "9-8", "a-b", "1-70000"] {
            assert!(raw(&format!("volumes = {{ export_ports = '{wrong}' }}")).unwrap_err().contains("4300-4399"));
        }
    }
}
