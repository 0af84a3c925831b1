//! What single flags of a Machine say, read from their words: ports, checks, sizes, variables. Reads texts, and of the
//! environment only the variables that `--env NAME` names.

use godwit_api::Span;
use godwit_api::config::{Check, RestartPolicy};

use crate::error::{CliError, Result};

/// One `--port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    pub public: u16,
    pub internal: u16,
    pub protocol: String,
    pub handlers: Vec<String>,
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
                .ok_or_else(|| format!("{text:?} is not a port: write it as 80:8080/tcp:http"))
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

pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("say NAME=VALUE".to_owned()),
    }
}

/// `NAME=VALUE`, or `NAME` for the value that it has here.
pub fn variable(text: &str) -> Result<(String, String), String> {
    if text.is_empty() || text.starts_with('=') {
        return Err("say NAME=VALUE, or NAME to pass on your own value".to_owned());
    }
    if text.contains('=') {
        return key_value(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("{text} is not set here; say NAME=VALUE")),
    }
}

/// `true` and `false`. A word that is neither may be what was meant to stand after a bare flag.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "on" | "yes" => Ok(true),
        "false" | "off" | "no" => Ok(false),
        _ => Err(format!("say true or false; if {text:?} is the image, write it before the flags")),
    }
}

/// Any word: the API judges `suspend` and whatever else it may know one day.
pub fn autostop(text: &str) -> Result<String, String> {
    match text {
        "off" | "false" | "no" => Ok("off".to_owned()),
        "stop" | "true" | "yes" => Ok("stop".to_owned()),
        "suspend" => Err("suspend is not supported yet: use off or stop".to_owned()),
        _ => Err(format!("use off or stop; if {text:?} is the image, write it before the flags")),
    }
}

/// Splits a command as a POSIX shell does, without expanding anything.
pub fn shell_words(flag: &str, text: &str) -> Result<Vec<String>> {
    shlex::split(text).ok_or_else(|| {
        CliError::usage(format!("{flag} {text:?}: a quote is not closed, or there is a backslash at the end"))
            .hint("it is split as a shell does it: \"/bin/sh -c 'echo hello'\"")
    })
}

/// One `--check`: `[NAME=]http:PORT:PATH` or `[NAME=]tcp:PORT`, then `,interval=15s` and the like.
pub fn check(text: &str) -> Result<(String, Check), String> {
    let say = || "say http:8080:/healthz or tcp:5432, then ,interval=15s,timeout=2s,grace=10s as needed".to_owned();
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let (name, target) = match first.split_once('=') {
        Some((name, target)) if !name.contains([':', '/']) => (Some(name), target),
        _ => (None, first),
    };
    let mut words = target.splitn(3, ':');
    let kind = words.next().unwrap_or_default();
    let port: u16 = words.next().and_then(|port| port.parse().ok()).filter(|port| *port != 0).ok_or_else(say)?;
    let path = words.next();
    let fits = match kind {
        "http" => path.is_none_or(|path| path.starts_with('/')),
        "tcp" => path.is_none(),
        _ => false,
    };
    if !fits || name.is_some_and(str::is_empty) {
        return Err(say());
    }
    let mut check = Check { kind: Some(kind.to_owned()), port: Some(port), ..Check::default() };
    if kind == "http" {
        check.path = Some(path.unwrap_or("/").to_owned());
    }
    for option in parts {
        let (key, value) = option.split_once('=').ok_or_else(say)?;
        let span = || super::duration(value).map(|span| Some(Span(span)));
        match key {
            "interval" => check.interval = span()?,
            "timeout" => check.timeout = span()?,
            "grace" | "grace_period" => check.grace_period = span()?,
            "method" if kind == "http" => check.method = Some(value.to_owned()),
            _ => {
                return Err(format!(
                    "unknown option {key:?} of a {kind} check; use interval, timeout, grace or method"
                ));
            }
        }
    }
    Ok((name.map_or_else(|| format!("{kind}-{port}"), str::to_owned), check))
}

pub fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "no" => Ok(RestartPolicy::No),
        "on-failure" | "on-fail" => Ok(RestartPolicy::OnFailure),
        "always" => Ok(RestartPolicy::Always),
        _ => Err("say no, on-failure or always".to_owned()),
    }
}

pub fn memory_mb(text: &str) -> Result<u32, String> {
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
pub fn vm_size(text: &str) -> Result<(String, u32, u32), String> {
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
    fn commands_are_split_as_a_shell_does() {
        let split = |text| shell_words("--entrypoint", text).ok();
        let words = |list: &[&str]| Some(list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(split("/bin/sh -c 'echo a  b'"), words(&["/bin/sh", "-c", "echo a  b"]));
        assert_eq!(split(r#"a "b c" d\ e ''"#), words(&["a", "b c", "d e", ""]));
        assert_eq!(split("echo 'open"), None);
    }

    #[test]
    fn checks_are_read_in_one_word() {
        let (name, http) = check("http:8080:/healthz?deep=1,interval=15s,grace=1m").unwrap();
        assert_eq!(
            (name.as_str(), http.port, http.path.as_deref()),
            ("http-8080", Some(8080), Some("/healthz?deep=1"))
        );
        assert_eq!(http.interval, Some(Span(std::time::Duration::from_secs(15))));
        let (name, tcp) = check("db=tcp:5432").unwrap();
        assert_eq!((name.as_str(), tcp.kind.as_deref(), tcp.path), ("db", Some("tcp"), None));
        for bad in
            ["", "http", "http:0:/x", "tcp:1:/x", "http:80:x", "udp:53", "=tcp:1", "tcp:1,interval", "tcp:1,method=GET"]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn switches_say_what_they_take() {
        assert_eq!(autostop("true").as_deref(), Ok("stop"));
        assert!(autostop("nginx").unwrap_err().contains("before the flags"));
        assert!(switch("nginx").unwrap_err().contains("true or false"));
        assert!(variable("=x").is_err() && variable("A_NAME_THAT_NOBODY_SETS").is_err());
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
    }
}
