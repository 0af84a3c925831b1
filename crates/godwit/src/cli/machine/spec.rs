//! From flags to a Machine's configuration, in flyctl's words. Reads the files that flags name, and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use godwit_api::Span;
use godwit_api::config::{
    Autostop, Concurrency, File, MachineConfig, Port, Restart, RestartPolicy, Service, StopConfig,
};

use super::mounts::{self, MountSpec};
use crate::error::{CliError, Result};

/// What a Machine runs, how large it is and how it is served. Unset flags change nothing.
#[derive(clap::Args, Default)]
pub struct ConfigFlags {
    /// Serve a port: PUBLIC[:INTERNAL][/tcp[:http]]; without a handler bytes pass as raw TCP
    #[arg(short, long = "port", value_name = "SPEC", help_heading = "Services")]
    ports: Vec<PortSpec>,
    /// Start the Machine when a request comes
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Services")]
    autostart: Option<bool>,
    /// Stop the Machine when it is idle
    #[arg(long, value_name = "off|stop", num_args = 0..=1, require_equals = true, default_missing_value = "stop", value_parser = autostop, help_heading = "Services")]
    autostop: Option<Autostop>,
    /// Autostop leaves so many Machines of the app running
    #[arg(long, value_name = "N", help_heading = "Services")]
    min_machines_running: Option<u32>,
    /// Beyond this many at once, other Machines are preferred
    #[arg(long, value_name = "N", help_heading = "Services")]
    soft_limit: Option<u32>,
    /// Never more than this many at once
    #[arg(long, value_name = "N", help_heading = "Services")]
    hard_limit: Option<u32>,
    /// What the limits count
    #[arg(long, value_name = "connections|requests", value_parser = ["connections", "requests"], help_heading = "Services")]
    concurrency: Option<String>,

    /// An environment variable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = key_value, help_heading = "Process")]
    env: Vec<(String, String)>,
    /// Replaces the image's entrypoint; words are split at blanks
    #[arg(long, value_name = "COMMAND", help_heading = "Process")]
    entrypoint: Option<String>,
    /// What to do when the process ends by itself
    #[arg(long, value_name = "no|on-failure|always", value_parser = restart_policy, help_heading = "Process")]
    restart: Option<RestartPolicy>,
    /// Restarts in a row before the Machine stays stopped
    #[arg(long, value_name = "N", help_heading = "Process")]
    max_retries: Option<u32>,
    /// The signal that asks it to stop
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    kill_signal: Option<String>,
    /// How long it may take to stop
    #[arg(long, value_name = "DURATION", value_parser = super::duration, help_heading = "Process")]
    kill_timeout: Option<std::time::Duration>,
    /// Destroy the Machine when its process ends
    #[arg(long = "rm", help_heading = "Process")]
    auto_destroy: bool,
    /// A file from here: /PATH/INSIDE=FILE
    #[arg(long, value_name = "PATH=FILE", value_parser = key_value, help_heading = "Process")]
    file_local: Vec<(String, String)>,
    /// A file with this text: /PATH/INSIDE=TEXT
    #[arg(long, value_name = "PATH=TEXT", value_parser = key_value, help_heading = "Process")]
    file_literal: Vec<(String, String)>,

    /// A volume in the Machine: its id, or its name if exactly one free one has it, and where
    #[arg(short, long = "volume", value_name = "VOLUME:/PATH", help_heading = "Volumes")]
    volumes: Vec<MountSpec>,

    /// A size by name: shared-cpu-Nx or performance-Nx
    #[arg(long, value_name = "SIZE", value_parser = vm_size, help_heading = "Size")]
    vm_size: Option<(String, u32, u32)>,
    /// Processors
    #[arg(long, value_name = "N", help_heading = "Size")]
    vm_cpus: Option<u32>,
    /// shared or performance
    #[arg(long, value_name = "KIND", value_parser = ["shared", "performance"], help_heading = "Size")]
    vm_cpu_kind: Option<String>,
    /// Memory in MB, or with a unit: 512mb, 1gb
    #[arg(long, value_name = "SIZE", value_parser = memory_mb, help_heading = "Size")]
    vm_memory: Option<u32>,

    /// Metadata
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// A whole configuration to begin with: a JSON file, a TOML file (named *.toml), or JSON itself
    #[arg(long, value_name = "FILE|JSON")]
    machine_config: Option<String>,
}

impl ConfigFlags {
    /// The configuration that `--machine-config` gives, if it was given.
    pub fn base(&self) -> Result<Option<MachineConfig>> {
        let Some(given) = &self.machine_config else { return Ok(None) };
        let is_toml = PathBuf::from(given).extension().is_some_and(|extension| extension == "toml");
        let text = if given.trim_start().starts_with('{') {
            given.clone()
        } else {
            std::fs::read_to_string(given).map_err(|error| CliError::usage(format!("cannot read {given}: {error}")))?
        };
        let config = if is_toml {
            toml::from_str(&text).map_err(|error| error.to_string())
        } else {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        };
        config
            .map(Some)
            .map_err(|error| CliError::usage(format!("--machine-config is no Machine configuration: {error}")))
    }

    /// Lays the flags over a configuration.
    pub fn apply(&self, config: &mut MachineConfig) -> Result<()> {
        config.env.extend(self.env.iter().cloned());
        config.metadata.extend(self.metadata.iter().cloned());
        if let Some(entrypoint) = &self.entrypoint {
            config.init.entrypoint = entrypoint.split_whitespace().map(str::to_owned).collect();
        }
        self.apply_size(config);
        if let Some(policy) = self.restart {
            config.restart = Restart { policy, max_retries: config.restart.max_retries };
        }
        if self.max_retries.is_some() {
            config.restart.max_retries = self.max_retries;
        }
        if self.kill_signal.is_some() || self.kill_timeout.is_some() {
            let before = std::mem::take(&mut config.stop_config);
            config.stop_config = StopConfig {
                signal: self.kill_signal.clone().or(before.signal),
                timeout: self.kill_timeout.map(Span).or(before.timeout),
            };
        }
        config.auto_destroy |= self.auto_destroy;
        mounts::apply(&self.volumes, config)?;
        self.apply_files(config)?;
        self.apply_services(config)
    }

    fn apply_size(&self, config: &mut MachineConfig) {
        let guest = &mut config.guest;
        if let Some((kind, cpus, memory_mb)) = &self.vm_size {
            (guest.cpu_kind, guest.cpus, guest.memory_mb) = (kind.clone(), *cpus, *memory_mb);
        }
        if let Some(kind) = &self.vm_cpu_kind {
            guest.cpu_kind.clone_from(kind);
        }
        guest.cpus = self.vm_cpus.unwrap_or(guest.cpus);
        guest.memory_mb = self.vm_memory.unwrap_or(guest.memory_mb);
    }

    fn apply_files(&self, config: &mut MachineConfig) -> Result<()> {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for (path, source) in &self.file_local {
            let bytes = std::fs::read(PathBuf::from(source))
                .map_err(|error| CliError::usage(format!("cannot read {source}: {error}")))?;
            files.push((path.clone(), bytes));
        }
        files.extend(self.file_literal.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes())));
        for (guest_path, bytes) in files {
            config.files.retain(|file| file.guest_path != guest_path);
            config.files.push(File { guest_path, raw_value: BASE64.encode(&bytes), mode: None });
        }
        Ok(())
    }

    fn apply_services(&self, config: &mut MachineConfig) -> Result<()> {
        if !self.ports.is_empty() {
            config.services = services(&self.ports);
        }
        let limits = self.soft_limit.is_some() || self.hard_limit.is_some() || self.concurrency.is_some();
        let tuned =
            self.autostart.is_some() || self.autostop.is_some() || self.min_machines_running.is_some() || limits;
        if tuned && config.services.is_empty() {
            return Err(CliError::usage("the Machine serves no port that this could apply to")
                .hint("give it one with --port 80:8080/tcp:http"));
        }
        for service in &mut config.services {
            service.autostart = self.autostart.or(service.autostart);
            service.autostop = self.autostop.or(service.autostop);
            service.min_machines_running = self.min_machines_running.or(service.min_machines_running);
            if limits {
                let before = service.concurrency();
                service.concurrency = Some(Concurrency {
                    kind: self.concurrency.clone().unwrap_or(before.kind),
                    soft_limit: self.soft_limit.unwrap_or(before.soft_limit),
                    hard_limit: self.hard_limit.or(before.hard_limit),
                });
            }
        }
        Ok(())
    }
}

/// One `--port`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PortSpec {
    public: u16,
    internal: u16,
    protocol: String,
    handlers: Vec<String>,
}

impl std::str::FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, rest) = text.split_once('/').unwrap_or((text, "tcp"));
        let (public, internal) = ports.split_once(':').unwrap_or((ports, ports));
        let port = |text: &str| {
            text.parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{text:?} is no port: say 80:8080/tcp:http"))
        };
        let mut words = rest.split(':');
        let protocol = words.next().unwrap_or_default().to_owned();
        if protocol != "tcp" {
            return Err(format!("{protocol:?} is not served; only tcp is"));
        }
        Ok(Self {
            public: port(public)?,
            internal: port(internal)?,
            protocol,
            handlers: words.map(str::to_owned).collect(),
        })
    }
}

/// Ports that lead to the same place inside are one service.
fn services(specs: &[PortSpec]) -> Vec<Service> {
    let mut services: BTreeMap<u16, Service> = BTreeMap::new();
    for spec in specs {
        let service = services.entry(spec.internal).or_insert_with(|| Service {
            protocol: spec.protocol.clone(),
            internal_port: spec.internal,
            ..Service::default()
        });
        service.ports.push(Port { port: Some(spec.public), handlers: spec.handlers.clone(), ..Port::default() });
    }
    services.into_values().collect()
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("say NAME=VALUE".to_owned()),
    }
}

fn autostop(text: &str) -> Result<Autostop, String> {
    match text {
        "off" | "false" => Ok(Autostop::Off),
        "stop" | "true" => Ok(Autostop::Stop),
        _ => Err("say off or stop".to_owned()),
    }
}

fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "no" => Ok(RestartPolicy::No),
        "on-failure" | "on-fail" => Ok(RestartPolicy::OnFailure),
        "always" => Ok(RestartPolicy::Always),
        _ => Err("say no, on-failure or always".to_owned()),
    }
}

fn memory_mb(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &lower[digits.len()..] {
        "" | "m" | "mb" | "mib" => 1,
        "g" | "gb" | "gib" => 1024,
        _ => return Err("say 512, 512mb or 1gb".to_owned()),
    };
    let number: u32 = digits.parse().map_err(|_| "say 512, 512mb or 1gb".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

/// Kind, processors, memory in MB of `shared-cpu-2x`: the smallest memory that goes with them.
fn vm_size(text: &str) -> Result<(String, u32, u32), String> {
    let parse = || {
        let (kind, count, mb_each) = if let Some(count) = text.strip_prefix("shared-cpu-") {
            ("shared", count, 256)
        } else {
            ("performance", text.strip_prefix("performance-")?, 2048)
        };
        let cpus: u32 = count.strip_suffix('x')?.parse().ok().filter(|cpus| (1..=64).contains(cpus))?;
        Some((kind.to_owned(), cpus, cpus * mb_each))
    };
    parse().ok_or_else(|| "say shared-cpu-1x or performance-2x".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_flyctls_form() {
        let spec: PortSpec = "80:8080/tcp:http".parse().unwrap();
        assert_eq!((spec.public, spec.internal, spec.handlers.as_slice()), (80, 8080, &["http".to_owned()][..]));
        let raw: PortSpec = "5432".parse().unwrap();
        assert_eq!((raw.public, raw.internal, raw.handlers.len()), (5432, 5432, 0));
        for bad in ["", "x", "0:80", "80:0", "70000", "80:8080/udp"] {
            assert!(bad.parse::<PortSpec>().is_err(), "{bad:?}");
        }
        let merged = services(&["80:8080/tcp:http".parse().unwrap(), "81:8080".parse().unwrap()]);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].ports.len(), 2);
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!(memory_mb("512"), Ok(512));
        assert_eq!(memory_mb("1GB"), Ok(1024));
        assert!(memory_mb("1tb").is_err() && memory_mb("mb").is_err() && memory_mb("9999999gb").is_err());
        assert_eq!(vm_size("shared-cpu-2x"), Ok(("shared".to_owned(), 2, 512)));
        assert!(vm_size("shared-cpu-0x").is_err() && vm_size("huge").is_err());
    }

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let mut config: MachineConfig = serde_json::from_str(
            r#"{"image":"x","env":{"A":"1"},"guest":{"cpu_kind":"shared","cpus":2,"memory_mb":512},
                "services":[{"internal_port":80,"ports":[{"port":80}]}]}"#,
        )
        .unwrap();
        let flags = ConfigFlags { env: vec![("B".into(), "2".into())], autostart: Some(false), ..Default::default() };
        flags.apply(&mut config).unwrap();
        assert_eq!(config.env.len(), 2);
        assert_eq!((config.guest.cpus, config.guest.memory_mb), (2, 512));
        assert_eq!(config.services[0].autostart, Some(false));
        let mut unserved = MachineConfig::default();
        assert!(flags.apply(&mut unserved).is_err(), "autostart without a port is a mistake");
    }
}
