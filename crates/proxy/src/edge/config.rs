//! An edge's configuration: as written, and as checked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use godwit_api::ids::AppName;
use schemars::JsonSchema;
use serde::Deserialize;

use super::peers::Range;
use crate::Error;

/// As it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawEdgeConfig {
    /// Addresses for HTTP, each `addr:port`.
    pub listen_http: Vec<String>,
    /// Addresses for HTTPS. Certificates come from the store, and from `certificates_dir` if it is set.
    #[serde(default)]
    pub listen_https: Vec<String>,
    /// Holds `*.pem`, each a chain with its key, served by the names in it. Changes are seen within seconds.
    #[serde(default)]
    pub certificates_dir: Option<PathBuf>,
    /// For development: the certificate and key (PEM) of an authority that makes certificates for `APP.SUFFIX` on the spot.
    #[serde(default)]
    pub mint_from: Option<PathBuf>,
    /// Ranges of addresses of proxies before this edge. Each of their connections must begin with a PROXY protocol
    /// header (version 1 or 2), whose word about the client is believed.
    #[serde(default)]
    pub proxy_protocol_from: Vec<String>,
    /// `/healthz` and `/metrics`.
    pub listen_admin: String,
    /// The address on which raw TCP ports are opened; none: no raw TCP.
    #[serde(default)]
    pub listen_tcp: Option<String>,
    /// Public ports that may be opened for raw TCP; absent: every port that an app serves.
    #[serde(default)]
    pub tcp_ports: Option<Vec<u16>>,
    /// The public port that HTTP clients are told they came in by.
    #[serde(default = "default_http_port")]
    pub public_http_port: u16,
    /// The same for HTTPS.
    #[serde(default = "default_https_port")]
    pub public_https_port: u16,
    /// The port in the address of a redirect to HTTPS; absent: `public_https_port`.
    #[serde(default)]
    pub redirect_https_port: Option<u16>,
    /// `http://addr:port` of control, without `/v1`.
    pub control_url: String,
    /// Where this edge is; Machines of the same region are asked first. 1 to 32 of a-z, 0-9 and `-`.
    pub region: String,
    /// The name to join under.
    #[serde(default = "default_name")]
    pub name: String,
    /// Holds id and key; written when the edge joins.
    pub identity_file: PathBuf,
    /// The join token itself; needed, this or the file, until the edge has joined.
    #[serde(default)]
    pub join_token: Option<String>,
    /// Holds control's join token.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// Last known routes, served when the store is away.
    pub snapshot_dir: PathBuf,
    /// Domains under which each app has its name: `localhost` makes `APP.localhost`.
    #[serde(default)]
    pub suffixes: Vec<String>,
    /// Further host names and their apps.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// A file that gets one line of JSON for each request, or `-` for standard output; absent: none. SIGHUP reads this
    /// anew, with `gate_deadline_ms`, and opens the file anew.
    #[serde(default)]
    pub access_log: Option<PathBuf>,
    /// How long a request may be held.
    #[serde(default = "default_gate_deadline_ms")]
    pub gate_deadline_ms: u64,
    /// How long what is in flight may go on after a new process took over: WebSockets, streams, uploads.
    #[serde(default = "default_upgrade_drain_ms")]
    pub upgrade_drain_ms: u64,
    /// Between two looks for idle Machines; 0: never.
    #[serde(default = "default_autostop_interval_ms")]
    pub autostop_interval_ms: u64,
    /// Without a request for so long a Machine is idle; absent: the interval.
    #[serde(default)]
    pub autostop_idle_ms: Option<u64>,
    /// Apps whose routes are watched at once.
    #[serde(default = "default_max_apps")]
    pub max_apps: usize,
}

fn default_http_port() -> u16 {
    80
}
fn default_https_port() -> u16 {
    443
}
fn default_name() -> String {
    "edge".into()
}
fn default_gate_deadline_ms() -> u64 {
    30_000
}
pub(crate) fn default_upgrade_drain_ms() -> u64 {
    300_000
}
fn default_autostop_interval_ms() -> u64 {
    60_000
}
fn default_max_apps() -> usize {
    4_096
}

/// Bounds of what may be configured.
const GATE_DEADLINE_MS: std::ops::RangeInclusive<u64> = 100..=120_000;
pub(crate) const UPGRADE_DRAIN_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;
const MAX_APPS: std::ops::RangeInclusive<usize> = 1..=100_000;

/// What may change while an edge serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    pub access_log: Option<PathBuf>,
    pub gate_deadline: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeConfig {
    pub listen_http: Vec<SocketAddr>,
    pub listen_https: Vec<SocketAddr>,
    pub certificates_dir: Option<PathBuf>,
    pub mint_from: Option<PathBuf>,
    pub proxy_protocol_from: Vec<Range>,
    pub listen_admin: SocketAddr,
    pub listen_tcp: Option<IpAddr>,
    pub tcp_ports: Option<Vec<u16>>,
    pub public_http_port: u16,
    pub public_https_port: u16,
    pub redirect_https_port: u16,
    pub control_url: String,
    pub region: String,
    pub name: String,
    pub identity_file: PathBuf,
    pub join_token: Option<String>,
    pub join_token_file: Option<PathBuf>,
    pub snapshot_dir: PathBuf,
    /// Each in lower case, without a leading dot.
    pub suffixes: Vec<String>,
    /// Host names in lower case.
    pub names: BTreeMap<String, AppName>,
    pub upgrade_drain: Duration,
    pub live: Live,
    pub autostop_interval: Option<Duration>,
    pub autostop_idle: Duration,
    pub max_apps: usize,
    /// Starts a process that tries updates aside (`taste`); `None`: they are read untried.
    pub taster: Option<Vec<String>>,
    /// Goes on in the place of an edge that serves with this `snapshot_dir`; else such a one is an error.
    pub take_over: bool,
}

/// Reads `addr:port`.
pub fn address(field: &'static str, text: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| Error::config(field, format!("{text:?} is not an `addr:port`")))
}

fn is_region(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

impl TryFrom<RawEdgeConfig> for EdgeConfig {
    type Error = Error;

    fn try_from(raw: RawEdgeConfig) -> Result<Self, Error> {
        if raw.listen_http.is_empty() {
            return Err(Error::config("listen_http", "at least one address is needed"));
        }
        if !is_region(&raw.region) {
            return Err(Error::config("region", "1 to 32 of a-z, 0-9 and '-'"));
        }
        if !raw.control_url.starts_with("http://") {
            return Err(Error::config("control_url", "it must begin with http://"));
        }
        if !GATE_DEADLINE_MS.contains(&raw.gate_deadline_ms) {
            return Err(Error::config("gate_deadline_ms", format!("it must lie in {GATE_DEADLINE_MS:?}")));
        }
        if !UPGRADE_DRAIN_MS.contains(&raw.upgrade_drain_ms) {
            return Err(Error::config("upgrade_drain_ms", format!("it must lie in {UPGRADE_DRAIN_MS:?}")));
        }
        if !MAX_APPS.contains(&raw.max_apps) {
            return Err(Error::config("max_apps", format!("it must lie in {MAX_APPS:?}")));
        }
        let range = |text: &String| text.parse().map_err(|why| Error::config("proxy_protocol_from", why));
        let proxy_protocol_from = raw.proxy_protocol_from.iter().map(range).collect::<Result<_, Error>>()?;
        let listen_https = raw.listen_https.iter().map(|text| address("listen_https", text));
        let listen_http = raw.listen_http.iter().map(|text| address("listen_http", text));
        let listen_tcp = raw.listen_tcp.as_deref().map(|text| {
            text.parse().map_err(|_| Error::config("listen_tcp", format!("{text:?} is not an IP address")))
        });
        let names = raw.names.iter().map(|(name, app)| {
            let app = AppName::parse(app).map_err(|error| Error::config("names", error.to_string()))?;
            Ok((name.to_ascii_lowercase(), app))
        });
        Ok(Self {
            listen_http: listen_http.collect::<Result<_, _>>()?,
            listen_https: listen_https.collect::<Result<_, _>>()?,
            certificates_dir: raw.certificates_dir,
            mint_from: raw.mint_from,
            proxy_protocol_from,
            listen_admin: address("listen_admin", &raw.listen_admin)?,
            listen_tcp: listen_tcp.transpose()?,
            tcp_ports: raw.tcp_ports,
            public_http_port: raw.public_http_port,
            public_https_port: raw.public_https_port,
            redirect_https_port: raw.redirect_https_port.unwrap_or(raw.public_https_port),
            control_url: raw.control_url.trim_end_matches('/').to_owned(),
            region: raw.region,
            name: raw.name,
            identity_file: raw.identity_file,
            join_token: raw.join_token,
            join_token_file: raw.join_token_file,
            snapshot_dir: raw.snapshot_dir,
            suffixes: raw.suffixes.iter().map(|one| one.trim_start_matches('.').to_ascii_lowercase()).collect(),
            names: names.collect::<Result<_, Error>>()?,
            upgrade_drain: Duration::from_millis(raw.upgrade_drain_ms),
            live: Live { access_log: raw.access_log, gate_deadline: Duration::from_millis(raw.gate_deadline_ms) },
            autostop_interval: (raw.autostop_interval_ms > 0).then(|| Duration::from_millis(raw.autostop_interval_ms)),
            autostop_idle: Duration::from_millis(raw.autostop_idle_ms.unwrap_or(raw.autostop_interval_ms)),
            max_apps: raw.max_apps,
            taster: None,
            take_over: false,
        })
    }
}
