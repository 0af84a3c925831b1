//! From flags to a Machine's configuration, in flyctl's words. The configuration is a JSON document, which the API
//! judges: what a user wrote in it stays as it is. Reads the files that flags name, and nothing else.

use std::path::PathBuf;

use godwit_api::Span;
use godwit_api::config::{Check, RestartPolicy};
use godwit_api::fields;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::document::{self, Document};
use super::files;
use super::mounts::{self, MountSpec};
use super::parse::{self, PortSpec};
use crate::error::{CliError, Result};

/// A Machine's configuration as it is sent.
pub type Config = Map<String, Value>;

/// What a Machine runs, how large it is and how it is served. Unset flags change nothing.
#[derive(clap::Args, Default)]
pub struct ConfigFlags {
    /// Publish a port: PUBLIC[:INTERNAL][/tcp[:http]]; raw TCP unless it has the handler http or tls
    #[arg(short, long = "port", value_name = "SPEC", help_heading = "Services")]
    ports: Vec<PortSpec>,
    /// Start the Machine when a request arrives
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", value_parser = parse::switch, help_heading = "Services")]
    autostart: Option<bool>,
    /// Stop the Machine when it is idle
    #[arg(long, value_name = "off|stop", num_args = 0..=1, default_missing_value = "stop", value_parser = parse::autostop, help_heading = "Services")]
    autostop: Option<String>,
    /// Autostop keeps at least this many Machines of the app running
    #[arg(long, value_name = "N", help_heading = "Services")]
    min_machines_running: Option<u32>,
    /// Above this number of concurrent requests or connections, other Machines are preferred
    #[arg(long, value_name = "N", help_heading = "Services")]
    soft_limit: Option<u32>,
    /// Never pass it more than this number at once
    #[arg(long, value_name = "N", help_heading = "Services")]
    hard_limit: Option<u32>,
    /// What the limits count
    #[arg(long, value_name = "connections|requests", value_parser = ["connections", "requests"], help_heading = "Services")]
    concurrency: Option<String>,

    /// A health check: [NAME=]http:PORT:PATH or [NAME=]tcp:PORT, then ,interval=15s,timeout=2s,grace=10s as needed
    #[arg(long = "check", value_name = "SPEC", value_parser = parse::check, help_heading = "Services")]
    checks: Vec<(String, Check)>,

    /// Set an environment variable; NAME alone takes the value from your environment
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = parse::variable, help_heading = "Process")]
    env: Vec<(String, String)>,
    /// Read environment variables from a file, one NAME=VALUE per line; --env overrides it
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    env_file: Vec<PathBuf>,
    /// Replace the image's entrypoint, quoted as in a shell
    #[arg(long, value_name = "COMMAND", help_heading = "Process")]
    entrypoint: Option<String>,
    /// Whether to restart when the process exits
    #[arg(long, value_name = "no|on-failure|always", value_parser = parse::restart_policy, help_heading = "Process")]
    restart: Option<RestartPolicy>,
    /// Give up after this many restarts in a row
    #[arg(long, value_name = "N", help_heading = "Process")]
    max_retries: Option<u32>,
    /// The signal that asks the process to stop
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    kill_signal: Option<String>,
    /// How long to wait after the signal before the process is killed
    #[arg(long, value_name = "DURATION", value_parser = super::duration, help_heading = "Process")]
    kill_timeout: Option<std::time::Duration>,
    /// Destroy the Machine when its process exits
    #[arg(long = "rm", help_heading = "Process")]
    auto_destroy: bool,
    /// Copy a local file, or all files of a local directory, into the Machine
    #[arg(long, value_name = "/PATH=FILE|DIR", value_parser = parse::key_value, help_heading = "Process")]
    file_local: Vec<(String, String)>,
    /// Write a file with this text into the Machine
    #[arg(long, value_name = "/PATH=TEXT", value_parser = parse::key_value, help_heading = "Process")]
    file_literal: Vec<(String, String)>,

    /// Mount a volume: an id, or a name that exactly one free volume has
    #[arg(short, long = "volume", value_name = "VOLUME:/PATH", help_heading = "Volumes")]
    volumes: Vec<MountSpec>,

    /// A named size: shared-cpu-Nx or performance-Nx
    #[arg(long, value_name = "SIZE", value_parser = parse::vm_size, help_heading = "Size")]
    vm_size: Option<(String, u32, u32)>,
    /// Number of CPUs
    #[arg(long, value_name = "N", help_heading = "Size")]
    vm_cpus: Option<u32>,
    /// The kind of CPU: shared or performance
    #[arg(long, value_name = "KIND", value_parser = ["shared", "performance"], help_heading = "Size")]
    vm_cpu_kind: Option<String>,
    /// Memory in MB, or with a unit: 512mb, 1gb
    #[arg(long, value_name = "SIZE", value_parser = parse::memory_mb, help_heading = "Size")]
    vm_memory: Option<u32>,

    /// Set a metadata key
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::key_value)]
    metadata: Vec<(String, String)>,
    /// Start from this configuration: a JSON or TOML file, a fly.toml, or JSON text; the other flags override it
    #[arg(long, value_name = "FILE|JSON")]
    machine_config: Option<String>,
}

impl ConfigFlags {
    /// What `--machine-config` gives, if it was given.
    pub fn document(&self) -> Result<Option<Document>> {
        self.machine_config.as_deref().map(document::read).transpose()
    }

    /// Lays the flags over a configuration.
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        for path in &self.env_file {
            let variables = files::variables(path)?;
            object(config, "env")?.extend(variables.into_iter().map(|(name, value)| (name, value.into())));
        }
        set_all(config, "env", &self.env)?;
        set_all(config, "metadata", &self.metadata)?;
        for (name, check) in &self.checks {
            object(config, "checks")?.insert(name.clone(), to_json(check)?);
        }
        if let Some(entrypoint) = &self.entrypoint {
            object(config, "init")?.insert("entrypoint".into(), parse::shell_words("--entrypoint", entrypoint)?.into());
        }
        self.apply_size(config)?;
        self.apply_ending(config)?;
        mounts::apply(&self.volumes, config)?;
        self.apply_files(config)?;
        self.apply_services(config)
    }

    fn apply_size(&self, config: &mut Config) -> Result<()> {
        if self.vm_size.is_none() && self.vm_cpu_kind.is_none() && self.vm_cpus.is_none() && self.vm_memory.is_none() {
            return Ok(());
        }
        if self.vm_size.is_some() {
            config.remove("size");
        }
        // A part of the size that the document names: the rest of it must stay.
        let mut request = json!({ "config": std::mem::take(config) });
        let expanded = fields::expand_size(&mut request);
        if let Some(Value::Object(whole)) = request.get_mut("config").map(Value::take) {
            *config = whole;
        }
        expanded.map_err(|error| CliError::usage(error.error))?;
        let guest = object(config, "guest")?;
        if let Some((kind, cpus, memory_mb)) = &self.vm_size {
            guest.insert("cpu_kind".into(), kind.clone().into());
            guest.insert("cpus".into(), (*cpus).into());
            guest.insert("memory_mb".into(), (*memory_mb).into());
        }
        if let Some(kind) = &self.vm_cpu_kind {
            guest.insert("cpu_kind".into(), kind.clone().into());
        }
        if let Some(cpus) = self.vm_cpus {
            guest.insert("cpus".into(), cpus.into());
        }
        if let Some(memory_mb) = self.vm_memory {
            guest.insert("memory_mb".into(), memory_mb.into());
        }
        Ok(())
    }

    /// What happens when its process ends, and how it is asked to.
    fn apply_ending(&self, config: &mut Config) -> Result<()> {
        if let Some(policy) = self.restart {
            object(config, "restart")?.insert("policy".into(), to_json(&policy)?);
        }
        if let Some(retries) = self.max_retries {
            object(config, "restart")?.insert("max_retries".into(), retries.into());
        }
        if let Some(signal) = &self.kill_signal {
            object(config, "stop_config")?.insert("signal".into(), signal.clone().into());
        }
        if let Some(timeout) = self.kill_timeout {
            object(config, "stop_config")?.insert("timeout".into(), to_json(&Span(timeout))?);
        }
        if self.auto_destroy {
            config.insert("auto_destroy".into(), true.into());
        }
        Ok(())
    }

    fn apply_files(&self, config: &mut Config) -> Result<()> {
        let mut written = Vec::new();
        for (path, source) in &self.file_local {
            written.extend(files::local(path, std::path::Path::new(source))?);
        }
        written.extend(self.file_literal.iter().map(|(path, text)| files::file(path, text.as_bytes(), None)));
        for file in written {
            let list = array(config, "files")?;
            list.retain(|other| other.get("guest_path").and_then(Value::as_str) != Some(file.guest_path.as_str()));
            list.push(to_json(&file)?);
        }
        Ok(())
    }

    fn apply_services(&self, config: &mut Config) -> Result<()> {
        for port in &self.ports {
            super::ports::add(array(config, "services")?, port)?;
        }
        let limits = self.soft_limit.is_some() || self.hard_limit.is_some() || self.concurrency.is_some();
        let tuned =
            self.autostart.is_some() || self.autostop.is_some() || self.min_machines_running.is_some() || limits;
        if !tuned {
            return Ok(());
        }
        let services = array(config, "services")?;
        if services.is_empty() {
            return Err(CliError::usage("the Machine publishes no port that this could apply to")
                .hint("give it one with --port 80:8080/tcp:http"));
        }
        for service in services {
            let service = service.as_object_mut().ok_or_else(|| no("services", "a list of objects"))?;
            if let Some(autostart) = self.autostart {
                service.insert("autostart".into(), autostart.into());
            }
            if let Some(autostop) = &self.autostop {
                service.insert("autostop".into(), autostop.clone().into());
            }
            if let Some(least) = self.min_machines_running {
                service.insert("min_machines_running".into(), least.into());
            }
            if limits {
                let concurrency = object(service, "concurrency")?;
                if let Some(kind) = &self.concurrency {
                    concurrency.insert("type".into(), kind.clone().into());
                }
                if let Some(soft) = self.soft_limit {
                    concurrency.insert("soft_limit".into(), soft.into());
                }
                if let Some(hard) = self.hard_limit {
                    concurrency.insert("hard_limit".into(), hard.into());
                }
            }
        }
        Ok(())
    }
}

fn set_all(config: &mut Config, member: &str, pairs: &[(String, String)]) -> Result<()> {
    if !pairs.is_empty() {
        object(config, member)?.extend(pairs.iter().map(|(name, value)| (name.clone(), value.clone().into())));
    }
    Ok(())
}

/// The object under a name; made where there is none, for `null` means none.
pub fn object<'a>(config: &'a mut Config, name: &str) -> Result<&'a mut Config> {
    let value = config.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or_else(|| no(name, "an object"))
}

/// The list under a name; made where there is none.
pub fn array<'a>(config: &'a mut Config, name: &str) -> Result<&'a mut Vec<Value>> {
    let value = config.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().ok_or_else(|| no(name, "a list"))
}

pub fn no(name: &str, kind: &str) -> CliError {
    CliError::usage(format!("--machine-config: `{name}` is not {kind}"))
}

pub fn to_json<T: Serialize>(value: &T) -> Result<Value> {
    Ok(serde_json::to_value(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Config {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn flags_change_what_they_name_and_nothing_else() {
        let before = json!({
            "image": "x", "env": { "A": "1" }, "guest": { "cpus": 2 }, "colour": "red", "metadata": null,
            "services": [{ "internal_port": 80, "shape": 1, "ports": [{ "port": 80 }], "concurrency": { "type": "requests" } }],
        });
        let flags = ConfigFlags {
            env: vec![("B".into(), "2".into())],
            metadata: vec![("m".into(), "n".into())],
            autostart: Some(false),
            autostop: Some("stop".into()),
            soft_limit: Some(5),
            ..Default::default()
        };
        let mut after = config(before);
        flags.apply(&mut after).unwrap();
        let wanted = json!({
            "image": "x", "env": { "A": "1", "B": "2" }, "guest": { "cpus": 2 }, "colour": "red", "metadata": { "m": "n" },
            "services": [{
                "internal_port": 80, "shape": 1, "ports": [{ "port": 80 }], "autostart": false, "autostop": "stop",
                "concurrency": { "type": "requests", "soft_limit": 5 },
            }],
        });
        assert_eq!(Value::Object(after), wanted);
        assert!(flags.apply(&mut Config::new()).is_err(), "autostart without a port is a mistake");
        assert!(flags.apply(&mut config(json!({ "env": "A=1" }))).is_err(), "what is not an object is named");
    }

    #[test]
    fn a_size_by_name_keeps_what_no_flag_names() {
        let mut sized = config(json!({ "size": "shared-cpu-2x" }));
        ConfigFlags { vm_memory: Some(1024), ..Default::default() }.apply(&mut sized).unwrap();
        assert_eq!(sized["guest"], json!({ "cpu_kind": "shared", "cpus": 2, "memory_mb": 1024 }));
        assert!(!sized.contains_key("size"));
        let flags = ConfigFlags { vm_size: Some(("performance".into(), 1, 2048)), ..Default::default() };
        flags.apply(&mut sized).unwrap();
        assert_eq!(sized["guest"], json!({ "cpu_kind": "performance", "cpus": 1, "memory_mb": 2048 }));
        let wrong =
            ConfigFlags { vm_cpus: Some(1), ..Default::default() }.apply(&mut config(json!({ "size": "huge" })));
        assert!(wrong.unwrap_err().to_string().contains("huge"));
    }
}
