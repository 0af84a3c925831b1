//! From a placement and an image to what the driver is handed: command, environment, limits, files. Pure; it must not
//! know where anything lies on disk beyond the paths that it is given.

use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use godwit_api::config::{DnsConfig, InitConfig, MachineConfig};
use godwit_api::ids::HostId;
use godwit_api::row::Placement;
use godwit_driver::{Epoch, GuestFile, Limits, LogLimits, Process, RootPolicy, Spec, VolumeMount};
use godwit_oci::ImageConfig;

/// Processes and threads grow with memory, so that a fork bomb meets this bound before it meets the OOM killer.
const PIDS_PER_MB: u32 = 4;
const PIDS_MIN: u32 = 512;
const PIDS_MAX: u32 = 32_768;
/// Weight of one `performance` processor; a `shared` one has a sixteenth.
const PERFORMANCE_SHARES: u32 = 1024;
const SHARED_SHARES: u32 = PERFORMANCE_SHARES / 16;
const DEFAULT_FILE_MODE: u32 = 0o644;

/// What a start needs besides the placement.
pub struct Surroundings<'a> {
    pub host: &'a HostId,
    /// The run's own id.
    pub run: &'a str,
    pub dir: PathBuf,
    pub netns: Option<PathBuf>,
    pub lowers_base: PathBuf,
    pub lowers: Vec<PathBuf>,
    pub image: &'a ImageConfig,
    /// The host's own `resolv.conf`.
    pub resolv_conf: &'a str,
    pub volumes: Vec<VolumeMount>,
    pub log: LogLimits,
}

/// `Err`: the configuration cannot be carried out; its owner must change it.
pub fn build(placement: &Placement, around: Surroundings<'_>) -> Result<Spec, String> {
    let config = &placement.config;
    let machine = placement.machine.as_str().to_owned();
    let hostname = config.dns.hostname.clone().unwrap_or_else(|| machine.clone());
    Ok(Spec {
        instance: around.run.to_owned(),
        epoch: Epoch { generation: placement.epoch.generation, n: placement.epoch.n },
        dir: around.dir,
        lowers_base: around.lowers_base,
        lowers: around.lowers,
        root: RootPolicy::Fresh,
        process: Process {
            argv: argv(&config.init, around.image)?,
            env: environment(placement, around.image, around.host),
            cwd: plain_path(&around.image.working_dir),
            user: around.image.user.clone(),
        },
        netns: around.netns,
        limits: limits(config),
        files: files(config)?,
        resolv_conf: resolv_conf(&config.dns, around.resolv_conf),
        hosts: hosts(placement, &hostname),
        binds: Vec::new(),
        volumes: around.volumes,
        log: around.log,
        machine,
        hostname,
    })
}

/// As Docker does it: a new entrypoint drops the image's command too.
fn argv(init: &InitConfig, image: &ImageConfig) -> Result<Vec<String>, String> {
    if !init.exec.is_empty() {
        return Ok(init.exec.clone());
    }
    let own_entrypoint = !init.entrypoint.is_empty();
    let entrypoint = if own_entrypoint { &init.entrypoint } else { &image.entrypoint };
    let cmd = match (init.cmd.is_empty(), own_entrypoint) {
        (false, _) => init.cmd.as_slice(),
        (true, true) => &[],
        (true, false) => image.cmd.as_slice(),
    };
    let argv: Vec<String> = entrypoint.iter().chain(cmd).cloned().collect();
    if argv.is_empty() {
        return Err("the image has no entrypoint and no command, and the configuration gives none".into());
    }
    Ok(argv)
}

/// The image's, then ours, then the configuration's: the last word on a name counts.
fn environment(placement: &Placement, image: &ImageConfig, host: &HostId) -> Vec<(String, String)> {
    let config = &placement.config;
    // A line without a name or without `=` sets nothing.
    let image_env = image.env.iter().filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.is_empty());
    let image_env = image_env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let machine = placement.machine.as_str();
    let mut ours = vec![
        ("FLY_APP_NAME", placement.app.as_str().to_owned()),
        ("FLY_MACHINE_ID", machine.to_owned()),
        ("FLY_ALLOC_ID", machine.to_owned()),
        ("FLY_MACHINE_VERSION", placement.instance_id.as_str().to_owned()),
        ("FLY_REGION", placement.region.clone()),
        ("FLY_PRIVATE_IP", placement.private_ip.to_string()),
        ("FLY_IMAGE_REF", format!("{}@{}", placement.image_name, placement.image_digest)),
        ("FLY_VM_MEMORY_MB", config.guest.memory_mb.to_string()),
        ("GODWIT_HOST_ID", host.as_str().to_owned()),
    ];
    if let Some(group) = config.metadata.get("fly_process_group") {
        ours.push(("FLY_PROCESS_GROUP", group.clone()));
    }
    let ours = ours.into_iter().map(|(name, value)| (name.to_owned(), value));
    let own = config.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in image_env.chain(ours).chain(own) {
        match env.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => env.push((name, value)),
        }
    }
    env
}

fn limits(config: &MachineConfig) -> Limits {
    let cpus = config.guest.cpus;
    let shares = if config.guest.cpu_kind == "performance" { PERFORMANCE_SHARES } else { SHARED_SHARES };
    Limits {
        cpu_quota_millis: cpus.saturating_mul(1000),
        cpu_shares: cpus.saturating_mul(shares),
        memory_bytes: u64::from(config.guest.memory_mb) << 20,
        pids_max: config.guest.memory_mb.saturating_mul(PIDS_PER_MB).clamp(PIDS_MIN, PIDS_MAX),
    }
}

fn files(config: &MachineConfig) -> Result<Vec<GuestFile>, String> {
    let file = |file: &godwit_api::config::File| {
        let content = STANDARD
            .decode(&file.raw_value)
            .map_err(|error| format!("files: raw_value of {} is not base 64: {error}", file.guest_path))?;
        let mode = file.mode.unwrap_or(DEFAULT_FILE_MODE);
        Ok(GuestFile { guest_path: file.guest_path.clone(), content, mode })
    };
    config.files.iter().map(file).collect()
}

fn hosts(placement: &Placement, hostname: &str) -> String {
    let ip = placement.private_ip;
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{ip} fly-local-6pn {hostname}\n")
}

/// The configuration's name servers, else the host's own; those on the host's loopback are left out, for a Machine
/// cannot reach them.
fn resolv_conf(dns: &DnsConfig, hosts_own: &str) -> String {
    let mut text = String::new();
    if dns.nameservers.is_empty() {
        for line in hosts_own.lines() {
            let mut words = line.split_whitespace();
            let keep = match (words.next(), words.next()) {
                (Some("nameserver"), Some(address)) => {
                    address.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback())
                }
                (Some("search" | "domain"), _) => dns.searches.is_empty(),
                (Some("options"), _) => true,
                _ => false,
            };
            if keep {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    for server in &dns.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    text
}

/// An absolute path without `.`, `..` and doubled slashes, as Docker reads an image's working folder; `..` at the root stays
/// there. A relative path stays as it is: the driver refuses it by name, as runc does.
fn plain_path(path: &str) -> String {
    if !path.starts_with('/') {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            env: vec!["PATH=/bin".into(), "A=image".into(), "FLY_REGION=lie".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["serve".into()],
            ..ImageConfig::default()
        }
    }

    fn placement() -> Placement {
        serde_json::from_value(serde_json::json!({
            "machine": "00000000000001", "app": "shop", "host": "w1", "epoch": {"generation": 1, "n": 2},
            "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "name": "m", "region": "fra", "network": "default",
            "private_ip": "fdaa::7", "image_digest": "sha256:aa", "image_name": "demo", "launch": true,
            "config": {"image": "demo", "env": {"A": "own"}, "metadata": {"fly_process_group": "web"},
                       "files": [{"guest_path": "/etc/x", "raw_value": "aGk="}]}
        }))
        .unwrap()
    }

    fn built(placement: &Placement) -> Result<Spec, String> {
        let host = HostId::parse("w1").unwrap();
        let image = image();
        let around = Surroundings {
            host: &host,
            run: "R1",
            dir: "/d".into(),
            netns: None,
            lowers_base: "/l".into(),
            lowers: vec!["a".into()],
            image: &image,
            volumes: Vec::new(),
            resolv_conf: "nameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch corp\n",
            log: LogLimits::default(),
        };
        build(placement, around)
    }

    #[test]
    fn a_machine_sees_the_environment_that_users_know() {
        let spec = built(&placement()).unwrap();
        let value = |name: &str| spec.process.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(value("A"), Some("own"), "the configuration over the image");
        assert_eq!(value("FLY_REGION"), Some("fra"), "the host over the image");
        assert_eq!(value("FLY_APP_NAME"), Some("shop"));
        assert_eq!(value("FLY_PRIVATE_IP"), Some("fdaa::7"));
        assert_eq!(value("FLY_PROCESS_GROUP"), Some("web"));
        assert_eq!(value("GODWIT_HOST_ID"), Some("w1"));
        assert_eq!(spec.process.argv, ["/entry", "serve"]);
        assert_eq!(spec.files[0].content, b"hi");
        assert!(spec.hosts.contains("fdaa::7 fly-local-6pn 00000000000001\n"));
        assert_eq!(spec.resolv_conf, "nameserver 10.0.0.2\nsearch corp\n");
    }

    #[test]
    fn commands_are_replaced_as_docker_replaces_them() {
        let argv_of = |init: serde_json::Value| {
            let mut placement = placement();
            placement.config.init = serde_json::from_value(init).unwrap();
            built(&placement).unwrap().process.argv
        };
        assert_eq!(argv_of(serde_json::json!({"cmd": ["x"]})), ["/entry", "x"]);
        assert_eq!(argv_of(serde_json::json!({"entrypoint": ["/e"]})), ["/e"]);
        assert_eq!(argv_of(serde_json::json!({"exec": ["/only", "me"], "cmd": ["x"]})), ["/only", "me"]);
    }

    #[test]
    fn variables_of_an_image_arrive_as_they_were_written() {
        let odd =
            ["A=1=2", "MULTI=line1\nline2\n", "UNI=naïve ✓", "dup=1", "dup=2", "EMPTY=", "SP=  x  ", "D=$A", "a.b-c=d"];
        let env = odd.iter().chain(&["NOEQ", "=x"]).map(|line| (*line).to_owned()).collect();
        let image = ImageConfig { env, ..image() };
        let mut placement = placement();
        placement.config.env.clear();
        let made = environment(&placement, &image, &HostId::parse("w1").unwrap());
        let made: Vec<String> = made.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for line in odd.iter().filter(|line| **line != "dup=1") {
            assert!(made.iter().any(|own| own == line), "{line:?} in {made:?}");
        }
        assert!(!made.iter().any(|own| own == "dup=1" || own.starts_with('=') || own.starts_with("NOEQ")), "{made:?}");
    }

    #[test]
    fn a_working_folder_is_read_as_docker_reads_it() {
        for (written, meant) in [
            ("/home/../home/app", "/home/app"),
            ("/srv//app/./", "/srv/app"),
            ("/../../x", "/x"),
            ("/", "/"),
            ("", ""),
            ("relative", "relative"),
        ] {
            assert_eq!(plain_path(written), meant, "{written}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_the_owners_fault() {
        let mut placement = placement();
        placement.config.files[0].raw_value = "%".into();
        assert!(built(&placement).unwrap_err().contains("base 64"));
    }
}
