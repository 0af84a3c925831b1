//! Is a Machine's configuration one that a host can carry out? Pure: each refusal names the field and its rule.

use base64::Engine;
use godwit_api::ApiError;
use godwit_api::config::{Check, MOUNTS_MAX, MachineConfig, Port, Service, TlsOptions};
use godwit_api::volume::VOLUME_MAX_GB;
use godwit_machine::signal;

/// A configuration as JSON: with its older versions it must fit a row of the store.
pub const CONFIG_LIMIT_BYTES: usize = 256 << 10;
pub const CPUS_MAX: u32 = 256;
pub const MEMORY_MAX_MB: u32 = 4 << 20;
pub const SERVICES_MAX: usize = 64;
pub const CHECKS_MAX: usize = 64;
/// Public ports with raw bytes of one Machine: each is a row of the transaction that claims it.
pub const RAW_PORTS_MAX: usize = 32;
/// Regions that one request may list.
pub const REGIONS_MAX: usize = 16;
pub const STOP_TIMEOUT_MAX_S: u64 = 300;
pub const CHECK_INTERVAL_MIN_MS: u64 = 50;

/// What the driver takes (`godwit_driver::MAX_GUEST_FILES` and its bound on paths): more never starts.
pub const FILES_MAX: usize = 256;
pub const GUEST_PATH_MAX_BYTES: usize = 4_000;

const HANDLERS: [&str; 3] = ["http", "tls", "proxy_proto"];
const TLS_VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];
const HTTPS_ALPN: [&str; 2] = ["h2", "http/1.1"];
/// Protocols that one port offers.
pub const ALPN_MAX: usize = 8;
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn wrong(text: impl Into<String>) -> ApiError {
    ApiError::unprocessable(text)
}

pub fn config(config: &MachineConfig) -> Result<(), ApiError> {
    if config.image.is_empty() {
        return Err(wrong("config.image is missing: name the image to run"));
    }
    let size = serde_json::to_vec(config).map_or(usize::MAX, |text| text.len());
    if size > CONFIG_LIMIT_BYTES {
        return Err(wrong(format!("config is {size} bytes long, more than the {CONFIG_LIMIT_BYTES} allowed")));
    }
    guest(config)?;
    for (name, value) in &config.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(wrong(format!(
                "config.env: {name:?} is not a valid variable: a name has no '=', and neither name nor value has NUL"
            )));
        }
    }
    let words = [&config.init.exec, &config.init.entrypoint, &config.init.cmd];
    if words.into_iter().flatten().any(|word| word.contains('\0')) {
        return Err(wrong("config.init: a command holds no NUL"));
    }
    for (name, words) in [("exec", &config.init.exec), ("entrypoint", &config.init.entrypoint)] {
        if words.first().is_some_and(String::is_empty) {
            return Err(wrong(format!("config.init.{name}[0] is empty: it names the program to run")));
        }
    }
    if config.services.len() > SERVICES_MAX {
        return Err(wrong(format!("config.services: at most {SERVICES_MAX}")));
    }
    for (number, of) in config.services.iter().enumerate() {
        service(of, &format!("config.services[{number}]"))?;
    }
    if raw_ports(config).len() > RAW_PORTS_MAX {
        return Err(wrong(format!("config.services: at most {RAW_PORTS_MAX} ports without the handler http")));
    }
    if config.checks.len() > CHECKS_MAX {
        return Err(wrong(format!("config.checks: at most {CHECKS_MAX}")));
    }
    for (name, of) in &config.checks {
        check(of, None, &format!("config.checks.{name}"))?;
    }
    files(config)?;
    mounts(config)?;
    if let Some(name) = &config.stop_config.signal {
        signal(name, "config.stop_config.signal")?;
    }
    if config.stop_config.timeout.is_some_and(|timeout| timeout.0.as_secs() > STOP_TIMEOUT_MAX_S) {
        return Err(wrong(format!("config.stop_config.timeout: at most {STOP_TIMEOUT_MAX_S}s")));
    }
    dns(config)
}

fn guest(config: &MachineConfig) -> Result<(), ApiError> {
    let guest = &config.guest;
    if !["shared", "performance"].contains(&guest.cpu_kind.as_str()) {
        return Err(wrong(format!("config.guest.cpu_kind: {:?} is neither shared nor performance", guest.cpu_kind)));
    }
    if !(1..=CPUS_MAX).contains(&guest.cpus) {
        return Err(wrong(format!("config.guest.cpus: {} is not between 1 and {CPUS_MAX}", guest.cpus)));
    }
    if !(1..=MEMORY_MAX_MB).contains(&guest.memory_mb) {
        return Err(wrong(format!("config.guest.memory_mb: {} is not between 1 and {MEMORY_MAX_MB}", guest.memory_mb)));
    }
    Ok(())
}

fn service(service: &Service, at: &str) -> Result<(), ApiError> {
    if service.protocol != "tcp" {
        return Err(wrong(format!("{at}.protocol: {:?} is not tcp", service.protocol)));
    }
    if service.internal_port == 0 {
        return Err(wrong(format!("{at}.internal_port is missing: name the port that the Machine listens on")));
    }
    for (number, port) in service.ports.iter().enumerate() {
        let at = format!("{at}.ports[{number}]");
        match port.range() {
            Some((0, _)) | None => {
                return Err(wrong(format!("{at}: set `port`, or `start_port` and `end_port`, within 1 to 65535")));
            }
            Some(_) => {}
        }
        handlers(port, &at)?;
    }
    if let Some(concurrency) = &service.concurrency {
        if !["connections", "requests"].contains(&concurrency.kind.as_str()) {
            return Err(wrong(format!(
                "{at}.concurrency.type: {:?} is neither connections nor requests",
                concurrency.kind
            )));
        }
        if concurrency.hard_limit == Some(0) {
            return Err(wrong(format!("{at}.concurrency.hard_limit: 0 would admit nothing")));
        }
        if concurrency.hard_limit.is_some_and(|hard| hard < concurrency.soft_limit) {
            return Err(wrong(format!("{at}.concurrency: hard_limit is below soft_limit")));
        }
    }
    for (number, of) in service.checks.iter().enumerate() {
        check(of, Some(service.internal_port), &format!("{at}.checks[{number}]"))?;
    }
    Ok(())
}

/// Handlers, and the options that make sense with them.
fn handlers(port: &Port, at: &str) -> Result<(), ApiError> {
    if let Some(handler) = port.handlers.iter().find(|handler| !HANDLERS.contains(&handler.as_str())) {
        return Err(wrong(format!("{at}.handlers: {handler:?} is none of {}", HANDLERS.join(", "))));
    }
    if port.is_http() && port.has("proxy_proto") {
        return Err(wrong(format!(
            "{at}.handlers: with the handler http the client's address is in Fly-Client-IP; remove proxy_proto"
        )));
    }
    if port.force_https && !port.is_http() {
        return Err(wrong(format!("{at}.force_https: it needs the handler http")));
    }
    if port.force_https && port.is_tls() {
        return Err(wrong(format!("{at}.force_https: with the handler tls there is no plain HTTP to redirect")));
    }
    if let Some(options) = &port.tls_options {
        tls_options(port, options, &format!("{at}.tls_options"))?;
    }
    if let Some(options) = &port.proxy_proto_options
        && !["", "v1", "v2"].contains(&options.version.as_str())
    {
        return Err(wrong(format!("{at}.proxy_proto_options.version: {:?} is neither v1 nor v2", options.version)));
    }
    Ok(())
}

fn tls_options(port: &Port, options: &TlsOptions, at: &str) -> Result<(), ApiError> {
    if let Some(version) = options.versions.iter().find(|version| !TLS_VERSIONS.contains(&version.as_str())) {
        return Err(wrong(format!("{at}.versions: {version:?} is none of {}", TLS_VERSIONS.join(", "))));
    }
    if options.alpn.len() > ALPN_MAX {
        return Err(wrong(format!("{at}.alpn: at most {ALPN_MAX}")));
    }
    let fits = |name: &&String| (1..=255).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(name) = options.alpn.iter().find(|name| !fits(name)) {
        return Err(wrong(format!("{at}.alpn: {name:?} is not 1 to 255 printable characters")));
    }
    if options.alpn.iter().any(|name| name == "acme-tls/1") {
        return Err(wrong(format!("{at}.alpn: acme-tls/1 is the edge's own")));
    }
    // What is spoken there is HTTP, whatever is offered.
    if port.is_http()
        && let Some(name) = options.alpn.iter().find(|name| !HTTPS_ALPN.contains(&name.as_str()))
    {
        return Err(wrong(format!("{at}.alpn: {name:?} is not HTTP: with that handler, {}", HTTPS_ALPN.join(", "))));
    }
    Ok(())
}

fn check(check: &Check, port: Option<u16>, at: &str) -> Result<(), ApiError> {
    let kind = check.kind.as_deref().unwrap_or("tcp");
    if !["tcp", "http"].contains(&kind) {
        return Err(wrong(format!("{at}.type: {kind:?} is neither tcp nor http")));
    }
    if check.port.or(port).is_none_or(|port| port == 0) {
        return Err(wrong(format!("{at}.port is missing")));
    }
    if check.interval.is_some_and(|interval| interval.as_millis() < CHECK_INTERVAL_MIN_MS) {
        return Err(wrong(format!("{at}.interval: at least {CHECK_INTERVAL_MIN_MS}ms")));
    }
    if check.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        return Err(wrong(format!("{at}.timeout: more than 0")));
    }
    if check.protocol.as_deref().is_some_and(|protocol| !["http", ""].contains(&protocol)) {
        return Err(wrong(format!("{at}.protocol: only http")));
    }
    if check.path.as_deref().is_some_and(|path| !path.starts_with('/') || path.contains(|c: char| c <= ' ')) {
        return Err(wrong(format!("{at}.path: begins with / and holds no blanks")));
    }
    if check.method.as_deref().is_some_and(|method| !METHODS.contains(&method.to_ascii_uppercase().as_str())) {
        return Err(wrong(format!("{at}.method: not an HTTP method")));
    }
    Ok(())
}

fn files(config: &MachineConfig) -> Result<(), ApiError> {
    if config.files.len() > FILES_MAX {
        return Err(wrong(format!("config.files: at most {FILES_MAX}")));
    }
    for (number, file) in config.files.iter().enumerate() {
        let at = format!("config.files[{number}]");
        let path = &file.guest_path;
        if !path.starts_with('/')
            || path.ends_with('/')
            || path.contains('\0')
            || path.len() > GUEST_PATH_MAX_BYTES
            || path.split('/').any(|part| part == "..")
        {
            return Err(wrong(format!("{at}.guest_path: {path:?} is not an absolute path to a file without `..`")));
        }
        if base64::engine::general_purpose::STANDARD.decode(&file.raw_value).is_err() {
            return Err(wrong(format!("{at}.raw_value is not base64")));
        }
        if file.mode.is_some_and(|mode| mode > 0o7777) {
            return Err(wrong(format!("{at}.mode: at most 0o7777")));
        }
    }
    Ok(())
}

/// What can be said of mounts without their volumes.
fn mounts(config: &MachineConfig) -> Result<(), ApiError> {
    if config.mounts.len() > MOUNTS_MAX {
        return Err(wrong(format!("config.mounts: at most {MOUNTS_MAX}")));
    }
    for (number, mount) in config.mounts.iter().enumerate() {
        let at = format!("config.mounts[{number}]");
        let path = &mount.path;
        let parts = || path.split('/').filter(|part| !part.is_empty());
        let is_odd = path.contains('\0') || path.len() > GUEST_PATH_MAX_BYTES;
        if !path.starts_with('/') || is_odd || parts().any(|part| part == ".." || part == ".") {
            return Err(wrong(format!("{at}.path: {path:?} is not an absolute path without `..`")));
        }
        if parts().next().is_none() {
            return Err(wrong(format!("{at}.path: nothing is mounted at /")));
        }
        if mount.volume.is_empty() {
            return Err(wrong(format!("{at}.volume is missing: name the volume by its id")));
        }
        let earlier = &config.mounts[..number];
        if earlier.iter().any(|other| other.path.split('/').filter(|part| !part.is_empty()).eq(parts())) {
            return Err(wrong(format!("{at}.path: {path:?} is there twice")));
        }
        if earlier.iter().any(|other| other.volume == mount.volume) {
            return Err(wrong(format!("{at}.volume: {} is there twice", mount.volume)));
        }
    }
    Ok(())
}

/// Volumes of an app may share one.
pub fn volume_name(name: &str) -> Result<(), ApiError> {
    let fits = (1..=30).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if fits { Ok(()) } else { Err(wrong(format!("name: {name:?} is not 1 to 30 of letters, digits and '_'"))) }
}

pub fn volume_size_gb(size_gb: u64) -> Result<(), ApiError> {
    if (1..=VOLUME_MAX_GB).contains(&size_gb) {
        return Ok(());
    }
    Err(wrong(format!("size_gb: {size_gb} is not between 1 and {VOLUME_MAX_GB}")))
}

fn dns(config: &MachineConfig) -> Result<(), ApiError> {
    if let Some(server) = config.dns.nameservers.iter().find(|server| server.parse::<std::net::IpAddr>().is_err()) {
        return Err(wrong(format!("config.dns.nameservers: {server:?} is not an IP address")));
    }
    let is_name = |name: &str| {
        (1..=253).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    if let Some(search) = config.dns.searches.iter().find(|search| !is_name(search)) {
        return Err(wrong(format!("config.dns.searches: {search:?} is not a domain")));
    }
    if config.dns.hostname.as_deref().is_some_and(|name| !is_name(name) || name.len() > 63) {
        return Err(wrong("config.dns.hostname: 1 to 63 of letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

/// A signal by name, with or without `SIG`, or by number; answers its name.
pub fn signal(written: &str, at: &str) -> Result<String, ApiError> {
    match signal::parse(written) {
        Some(number) => Ok(signal::name(number)),
        None => Err(wrong(format!(
            "{at}: {written:?} is not a signal: write SIGTERM, TERM, 15 or SIGRTMIN+1 (signal(7) lists them)"
        ))),
    }
}

/// Names of Machines become keys and host names.
pub fn machine_name(name: &str) -> Result<(), ApiError> {
    let fits = (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(wrong(format!("name: {name:?} is not 1 to 63 of letters, digits, '-', '_' and '.'")))
    }
}

/// Regions as a request writes them: one, several separated by commas, or `any` for all.
pub fn regions(written: Option<&str>) -> Result<Vec<String>, ApiError> {
    let words = written.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
    let words: Vec<String> = words.map(str::to_owned).collect();
    if words.iter().any(|word| word == "any") {
        return Ok(Vec::new());
    }
    if words.len() > REGIONS_MAX {
        return Err(wrong(format!("region: at most {REGIONS_MAX}")));
    }
    words.iter().try_for_each(|word| region(word))?;
    Ok(words)
}

pub fn region(region: &str) -> Result<(), ApiError> {
    let fits = (1..=32).contains(&region.len())
        && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(()) } else { Err(wrong(format!("region: {region:?} is not 1 to 32 of a-z, 0-9 and '-'"))) }
}

pub fn metadata_key(key: &str) -> Result<(), ApiError> {
    let fits = (1..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(()) } else { Err(wrong(format!("metadata: {key:?} is not 1 to 128 printable characters"))) }
}

/// The public ports of an app's own, whose bytes are no HTTP to the edge, in order, each once.
pub fn raw_ports(config: &MachineConfig) -> Vec<u16> {
    let raw = |port: &&Port| !port.is_http();
    let ranges = config.services.iter().flat_map(|service| service.ports.iter().filter(raw)).filter_map(Port::range);
    let mut ports: Vec<u16> = ranges.flat_map(|(first, last)| first..=last).take(RAW_PORTS_MAX * 64).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    #[track_caller]
    fn refused(config: Value, by: &str) {
        let parsed = serde_json::from_value(config.clone()).unwrap();
        let error = super::config(&parsed).expect_err(&config.to_string());
        assert_eq!(error.code, 422);
        assert!(error.error.contains(by), "{} does not name {by}", error.error);
    }

    #[test]
    fn each_refusal_names_its_field() {
        let with = |extra: Value| {
            let mut config = json!({ "image": "a" });
            config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            config
        };
        refused(json!({}), "config.image");
        refused(with(json!({ "guest": { "cpus": 0 } })), "config.guest.cpus");
        refused(with(json!({ "guest": { "memory_mb": 0 } })), "config.guest.memory_mb");
        refused(with(json!({ "guest": { "cpu_kind": "fast" } })), "cpu_kind");
        refused(with(json!({ "services": [{}] })), "config.services[0].internal_port");
        refused(with(json!({ "services": [{ "internal_port": 1, "ports": [{}] }] })), "config.services[0].ports[0]");
        refused(with(json!({ "services": [{ "internal_port": 1, "ports": [{ "port": 0 }] }] })), "ports[0]");
        refused(
            with(json!({ "services": [{ "internal_port": 1, "ports": [{ "start_port": 1, "end_port": 9999 }] }] })),
            "without the handler http",
        );
        for (port, by) in [
            (json!({ "handlers": ["pg_tls"] }), "ports[0].handlers"),
            (json!({ "handlers": ["http", "proxy_proto"] }), "remove proxy_proto"),
            (json!({ "force_https": true }), "ports[0].force_https"),
            (json!({ "handlers": ["tls", "http"], "force_https": true }), "ports[0].force_https"),
            (json!({ "handlers": ["tls"], "tls_options": { "versions": ["TLSv1.1"] } }), "tls_options.versions"),
            (json!({ "handlers": ["tls"], "tls_options": { "alpn": [""] } }), "tls_options.alpn"),
            (json!({ "handlers": ["tls"], "tls_options": { "alpn": ["acme-tls/1"] } }), "the edge's own"),
            (json!({ "handlers": ["tls", "http"], "tls_options": { "alpn": ["h2", "ftp"] } }), "is not HTTP"),
            (json!({ "handlers": ["proxy_proto"], "proxy_proto_options": { "version": "v3" } }), "neither v1 nor v2"),
        ] {
            let mut port = port;
            port["port"] = json!(443);
            refused(with(json!({ "services": [{ "internal_port": 1, "ports": [port] }] })), by);
        }
        refused(with(json!({ "checks": { "a": { "type": "http" } } })), "config.checks.a.port");
        refused(with(json!({ "files": [{ "guest_path": "/a/../b" }] })), "guest_path");
        refused(with(json!({ "files": [{ "guest_path": "/a", "raw_value": "?" }] })), "raw_value");
        let many: Vec<Value> = (0..=super::FILES_MAX).map(|n| json!({ "guest_path": format!("/{n}") })).collect();
        refused(with(json!({ "files": many })), "config.files: at most 256");
        refused(with(json!({ "files": [{ "guest_path": format!("/{}", "a".repeat(4_000)) }] })), "guest_path");
        refused(with(json!({ "init": { "exec": [""] } })), "config.init.exec[0]");
        refused(with(json!({ "init": { "entrypoint": ["", "a"] } })), "config.init.entrypoint[0]");
        refused(with(json!({ "mounts": [{ "volume": "vol_1", "path": "data" }] })), "config.mounts[0].path");
        refused(with(json!({ "mounts": [{ "volume": "vol_1", "path": "/a/../b" }] })), "config.mounts[0].path");
        refused(with(json!({ "mounts": [{ "volume": "vol_1", "path": "//" }] })), "mounted at /");
        refused(with(json!({ "mounts": [{ "path": "/a" }] })), "config.mounts[0].volume");
        let twice = json!([{ "volume": "vol_1", "path": "/a" }, { "volume": "vol_2", "path": "/a/" }]);
        refused(with(json!({ "mounts": twice })), "twice");
        let many: Vec<Value> = (0..9).map(|n| json!({ "volume": format!("v{n}"), "path": format!("/{n}") })).collect();
        refused(with(json!({ "mounts": many })), "config.mounts: at most 8");
        refused(with(json!({ "stop_config": { "signal": "SIGNOPE" } })), "stop_config.signal");
        refused(with(json!({ "dns": { "nameservers": ["a"] } })), "nameservers");
        refused(with(json!({ "env": { "A=B": "c" } })), "config.env");
        refused(with(json!({ "metadata": { "a": "x".repeat(300_000) } })), "bytes long");
    }

    #[test]
    fn raw_ports_are_counted_once() {
        let config = serde_json::from_value(json!({ "image": "a", "services": [
            { "internal_port": 1, "ports": [{ "port": 80, "handlers": ["http"] }, { "port": 25 }, { "start_port": 24, "end_port": 26 }] },
        ]}))
        .unwrap();
        assert_eq!(super::raw_ports(&config), [24, 25, 26]);
        assert!(super::config(&config).is_ok());
    }
}
