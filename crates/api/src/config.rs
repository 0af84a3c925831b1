//! The configuration of a Machine, as far as Godwit builds it. What the Machines API knows besides stands in the
//! field table (`fields`), by which a request is judged before it is read into these types.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Span;
use crate::signal;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a Machine runs and how it is served. `image` is the only member that must be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["image"]))]
pub struct MachineConfig {
    /// `name[:tag][@digest]` of an image that control holds.
    pub image: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    pub init: InitConfig,
    pub guest: Guest,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub checks: BTreeMap<String, Check>,
    pub restart: Restart,
    #[serde(skip_serializing_if = "is_default")]
    pub auto_destroy: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    #[serde(skip_serializing_if = "is_default")]
    pub stop_config: StopConfig,
    #[serde(skip_serializing_if = "is_default")]
    pub dns: DnsConfig,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// Volumes of one Machine.
pub const MOUNTS_MAX: usize = 8;

/// A volume inside a Machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Mount {
    /// The volume's id.
    pub volume: String,
    /// An absolute path inside the Machine: the folder of an ext4 volume, the device node of a raw one.
    pub path: String,
    /// Who owns the root folder of an ext4 volume that holds nothing yet. Left out, it takes owner and mode of the
    /// image's folder at that path, or belongs to the image's user where the image has no such folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Told in answers: the volume's name and size.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub size_gb: u64,
}

/// What replaces the image's own command.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InitConfig {
    /// Runs instead of entrypoint and command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
}

/// The size of a Machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Guest {
    /// `shared` or `performance`.
    #[schemars(extend("enum" = ["shared", "performance"]))]
    pub cpu_kind: String,
    pub cpus: u32,
    pub memory_mb: u32,
}

impl Default for Guest {
    fn default() -> Self {
        Self { cpu_kind: "shared".into(), cpus: 1, memory_mb: 256 }
    }
}

/// One port inside the Machine and how the outside reaches it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Service {
    /// `tcp`.
    #[schemars(extend("enum" = ["tcp"]))]
    pub protocol: String,
    pub internal_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostop: Option<Autostop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_machines_running: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Checks that gate routing: while one is critical, no request goes to the Machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            protocol: "tcp".into(),
            internal_port: 0,
            autostart: None,
            autostop: None,
            min_machines_running: None,
            ports: Vec::new(),
            concurrency: None,
            checks: Vec::new(),
        }
    }
}

/// Whether idle Machines stop: written `false`, `true`, `"off"` or `"stop"`, answered `false` or `true`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "bool")]
pub enum Autostop {
    Off,
    Stop,
}

impl Serialize for Autostop {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(*self == Autostop::Stop)
    }
}

impl<'de> Deserialize<'de> for Autostop {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Autostop;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("false, true, \"off\" or \"stop\"")
            }
            fn visit_bool<E: serde::de::Error>(self, on: bool) -> Result<Autostop, E> {
                Ok(if on { Autostop::Stop } else { Autostop::Off })
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Autostop, E> {
                match text {
                    "off" | "false" => Ok(Autostop::Off),
                    "stop" | "true" => Ok(Autostop::Stop),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn handlers(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "array", "items": { "enum": ["http", "tls", "proxy_proto"] } })
}

/// A public port of a service. Without handlers its bytes pass as raw TCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Port {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// `http`, `tls`, `proxy_proto`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "handlers")]
    pub handlers: Vec<String>,
    /// With `http`: what comes in plain is sent to HTTPS.
    #[serde(skip_serializing_if = "is_default")]
    pub force_https: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_options: Option<TlsOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_options: Option<HttpOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_proto_options: Option<ProxyProtoOptions>,
}

/// How a port with the handler `tls` shakes hands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TlsOptions {
    /// Protocols that are offered, the best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    /// `TLSv1.2`, `TLSv1.3`; both if empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<String>,
}

/// How a port with the handler `http` is served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct HttpOptions {
    /// The Machine speaks HTTP/2 without TLS on this service's port.
    #[serde(skip_serializing_if = "is_default")]
    pub h2_backend: bool,
}

/// How a Machine behind a port with the handler `proxy_proto` is told of its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ProxyProtoOptions {
    /// `v1` (the default) or `v2`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// How much one Machine takes at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Concurrency {
    /// `connections` or `requests`.
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["connections", "requests"]))]
    pub kind: String,
    pub soft_limit: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_limit: Option<u32>,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { kind: "connections".into(), soft_limit: 20, hard_limit: None }
    }
}

/// A health check, `tcp` or `http`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Check {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["tcp", "http", null]))]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `http` in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<CheckHeader>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CheckHeader {
    pub name: String,
    pub values: Vec<String>,
}

/// What happens when the Machine's process ends by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// Restarts in a row before the Machine stays stopped (`on-failure`); default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    No,
    #[default]
    OnFailure,
    Always,
}

/// A file that is written into the Machine before it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct File {
    /// An absolute path inside the Machine.
    pub guest_path: String,
    /// The contents, base 64.
    pub raw_value: String,
    /// Permission bits; 0644 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// How the Machine is asked to stop. Unset, the image's StopSignal, then SIGINT; 5 s.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StopConfig {
    /// `SIGTERM`, `TERM`, or its number, 1 to 64.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "signal::optional")]
    #[schemars(schema_with = "signal::schema")]
    pub signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DnsConfig {
    /// Replaces the host's name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

impl Service {
    pub fn autostart(&self) -> bool {
        self.autostart.unwrap_or(true)
    }
    pub fn autostop(&self) -> Autostop {
        self.autostop.unwrap_or(Autostop::Off)
    }
    pub fn min_machines_running(&self) -> u32 {
        self.min_machines_running.unwrap_or(0)
    }
    pub fn concurrency(&self) -> Concurrency {
        self.concurrency.clone().unwrap_or_default()
    }
}

impl Port {
    /// First and last public port, both included; `None` when neither form is set or the range is empty.
    pub fn range(&self) -> Option<(u16, u16)> {
        match (self.port, self.start_port, self.end_port) {
            (Some(port), None, None) => Some((port, port)),
            (None, Some(start), Some(end)) if start <= end => Some((start, end)),
            _ => None,
        }
    }
    pub fn covers(&self, port: u16) -> bool {
        self.range().is_some_and(|(first, last)| (first..=last).contains(&port))
    }
    pub fn has(&self, handler: &str) -> bool {
        self.handlers.iter().any(|one| one == handler)
    }
    pub fn is_http(&self) -> bool {
        self.has("http")
    }
    pub fn is_h2_backend(&self) -> bool {
        self.is_http() && self.http_options.as_ref().is_some_and(|options| options.h2_backend)
    }
    /// TLS ends at the edge.
    pub fn is_tls(&self) -> bool {
        self.has("tls")
    }
    pub fn announcement(&self) -> Option<ProxyVersion> {
        let version = self.proxy_proto_options.as_ref().map_or("", |options| options.version.as_str());
        self.has("proxy_proto").then_some(if version == "v2" { ProxyVersion::V2 } else { ProxyVersion::V1 })
    }
}
