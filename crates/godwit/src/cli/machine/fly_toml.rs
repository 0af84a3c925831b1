//! A fly.toml read as a Machine's configuration. What is simple is turned into it; all else is named in one refusal, so
//! that nothing is lost without a word. Pure. Source: the app configuration reference of fly.io (docs/reference/configuration).

use serde_json::{Map, Value, json};

use super::document::Document;
use super::parse;
use super::spec::{Config, array, object};
use crate::error::{CliError, Result};

/// Members that only a fly.toml has at its top.
const MARKS: [&str; 12] = [
    "app",
    "primary_region",
    "http_service",
    "build",
    "deploy",
    "vm",
    "experimental",
    "kill_signal",
    "kill_timeout",
    "console_command",
    "swap_size_mb",
    "host_dedication_id",
];

pub fn is_one(members: &Map<String, Value>) -> bool {
    let mounts = members.get("mounts").or(members.get("mount"));
    let first = mounts.and_then(|mounts| mounts.get(0).or(Some(mounts)));
    MARKS.iter().any(|mark| members.contains_key(*mark)) || first.is_some_and(|mount| mount.get("source").is_some())
}

pub fn convert(members: Map<String, Value>) -> Result<Document> {
    let mut fly = Reader { config: Config::new(), unread: Vec::new() };
    let mut notes = Vec::new();
    for (name, value) in members {
        match name.as_str() {
            "app" => notes.push(format!("fly.toml: `app = {value}` is ignored; use --app")),
            "primary_region" => {
                notes.push(format!("fly.toml: `primary_region = {value}` is ignored; use --region"));
            }
            _ => fly.member(&name, value)?,
        }
    }
    if fly.unread.is_empty() {
        return Ok(Document { config: fly.config, request: Map::new(), notes });
    }
    Err(CliError::usage(format!("a fly.toml: these are not understood: {}", fly.unread.join(", ")))
        .hint("remove them and use flags instead: `godwit help machine run`"))
}

struct Reader {
    config: Config,
    /// Paths of what has no meaning here.
    unread: Vec<String>,
}

impl Reader {
    fn member(&mut self, name: &str, value: Value) -> Result<()> {
        match name {
            "env" | "metrics" => {
                self.config.insert(name.into(), texts(name, value));
            }
            "build" => self.build(value),
            "http_service" => self.http_service(value)?,
            "services" => {
                for (number, service) in list(value).into_iter().enumerate() {
                    self.service(&format!("services[{number}]"), service)?;
                }
            }
            "vm" => self.size(value)?,
            "mounts" | "mount" => {
                for (number, mount) in list(value).into_iter().enumerate() {
                    self.mount(&format!("mounts[{number}]"), mount)?;
                }
            }
            "checks" => {
                let Value::Object(checks) = value else { return self.skip(name) };
                for (check, value) in checks {
                    let read = self.check(&format!("checks.{check}"), None, value);
                    object(&mut self.config, "checks")?.insert(check, read);
                }
            }
            "restart" => self.restart(value)?,
            "processes" => self.processes(value)?,
            "experimental" => self.experimental(value)?,
            "kill_signal" => {
                object(&mut self.config, "stop_config")?.insert("signal".into(), value);
            }
            "kill_timeout" => {
                object(&mut self.config, "stop_config")?.insert("timeout".into(), span(value));
            }
            "swap_size_mb" => {
                object(&mut self.config, "init")?.insert("swap_size_mb".into(), value);
            }
            "files" | "statics" => {
                self.config.insert(name.into(), Value::Array(list(value)));
            }
            // An empty table says nothing.
            _ if value.as_object().is_some_and(Map::is_empty) => {}
            _ => return self.skip(name),
        }
        Ok(())
    }

    fn skip(&mut self, path: &str) -> Result<()> {
        self.unread.push(path.to_owned());
        Ok(())
    }

    /// What is left of a table once the known members were taken out of it.
    fn rest(&mut self, path: &str, rest: Map<String, Value>) {
        self.unread.extend(rest.into_iter().map(|(name, _)| format!("{path}.{name}")));
    }

    fn build(&mut self, value: Value) {
        let Value::Object(mut build) = value else { return self.unread.push("build".into()) };
        if let Some(image) = build.remove("image") {
            self.config.insert("image".into(), image);
        }
        self.rest("build", build);
    }

    fn size(&mut self, value: Value) -> Result<()> {
        let mut sizes = list(value);
        if sizes.len() > 1 {
            return self.skip("vm[1]");
        }
        let Some(Value::Object(mut vm)) = sizes.pop() else { return Ok(()) };
        if let Some(Value::String(size)) = vm.remove("size") {
            let (kind, cpus, memory_mb) = parse::vm_size(&size).map_err(|why| wrong("vm.size", &why))?;
            self.config.insert("guest".into(), json!({ "cpu_kind": kind, "cpus": cpus, "memory_mb": memory_mb }));
        }
        for name in ["cpus", "cpu_kind"] {
            if let Some(value) = vm.remove(name) {
                object(&mut self.config, "guest")?.insert(name.into(), value);
            }
        }
        for name in ["memory", "memory_mb"] {
            let Some(value) = vm.remove(name) else { continue };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let memory_mb = parse::memory_mb(&text.replace(' ', "")).map_err(|why| wrong("vm.memory", &why))?;
            object(&mut self.config, "guest")?.insert("memory_mb".into(), memory_mb.into());
        }
        // Of one process group there is nothing to tell apart.
        vm.remove("processes");
        self.rest("vm", vm);
        Ok(())
    }

    fn mount(&mut self, path: &str, value: Value) -> Result<()> {
        let Value::Object(mut mount) = value else { return self.skip(path) };
        let mut made = Config::new();
        for (from, to) in [("source", "name"), ("destination", "path")] {
            made.insert(to.into(), mount.remove(from).unwrap_or_default());
        }
        mount.remove("processes");
        self.rest(path, mount);
        array(&mut self.config, "mounts")?.push(made.into());
        Ok(())
    }

    fn restart(&mut self, value: Value) -> Result<()> {
        let mut rules = list(value);
        if rules.len() > 1 {
            return self.skip("restart[1]");
        }
        let Some(Value::Object(mut rule)) = rules.pop() else { return Ok(()) };
        let restart = object(&mut self.config, "restart")?;
        if let Some(policy) = rule.remove("policy") {
            let known = policy.as_str().map(|text| if text == "never" { "no" } else { text }.to_owned());
            restart.insert("policy".into(), known.map_or(policy, Value::from));
        }
        if let Some(retries) = rule.remove("retries") {
            restart.insert("max_retries".into(), retries);
        }
        rule.remove("processes");
        self.rest("restart", rule);
        Ok(())
    }

    /// One group is a Machine's command; several are several Machines.
    fn processes(&mut self, value: Value) -> Result<()> {
        let groups = value.as_object().cloned().unwrap_or_default();
        match groups.into_iter().collect::<Vec<_>>().as_slice() {
            [] => Ok(()),
            [(_, Value::String(command))] => {
                if !command.trim().is_empty() {
                    let words = parse::shell_words("processes", command)?;
                    object(&mut self.config, "init")?.insert("cmd".into(), words.into());
                }
                Ok(())
            }
            several => {
                self.unread.extend(several.iter().map(|(name, _)| format!("processes.{name}")));
                Ok(())
            }
        }
    }

    fn experimental(&mut self, value: Value) -> Result<()> {
        let Value::Object(mut members) = value else { return self.skip("experimental") };
        for name in ["cmd", "entrypoint", "exec"] {
            let Some(value) = members.remove(name) else { continue };
            let words = match value {
                Value::String(text) => parse::shell_words(name, &text)?.into(),
                words => words,
            };
            object(&mut self.config, "init")?.insert(name.into(), words);
        }
        self.rest("experimental", members);
        Ok(())
    }

    /// What `http_service` stands for: HTTP at 80, HTTPS at 443.
    fn http_service(&mut self, value: Value) -> Result<()> {
        let Value::Object(mut service) = value else { return self.skip("http_service") };
        let mut plain = json!({ "port": 80, "handlers": ["http"] });
        if let Some(force) = service.remove("force_https") {
            plain["force_https"] = force;
        }
        let mut secure = json!({ "port": 443, "handlers": ["http", "tls"] });
        for name in ["http_options", "tls_options"] {
            let Some(value) = service.remove(name) else { continue };
            secure[name] = value.clone();
            if name == "http_options" {
                plain[name] = value;
            }
        }
        service.insert("ports".into(), json!([plain, secure]));
        self.service("http_service", service.into())
    }

    fn service(&mut self, path: &str, value: Value) -> Result<()> {
        let Value::Object(mut service) = value else { return self.skip(path) };
        let mut made = Config::new();
        for (from, to) in [
            ("protocol", "protocol"),
            ("internal_port", "internal_port"),
            ("auto_start_machines", "autostart"),
            ("auto_stop_machines", "autostop"),
            ("min_machines_running", "min_machines_running"),
            ("concurrency", "concurrency"),
            ("ports", "ports"),
        ] {
            if let Some(value) = service.remove(from) {
                made.insert(to.into(), value);
            }
        }
        for (name, kind) in [("checks", "http"), ("http_checks", "http"), ("tcp_checks", "tcp")] {
            for (number, check) in list(service.remove(name).unwrap_or_default()).into_iter().enumerate() {
                let read = self.check(&format!("{path}.{name}[{number}]"), Some(kind), check);
                array(&mut made, "checks")?.push(read);
            }
        }
        service.remove("processes");
        self.rest(path, service);
        array(&mut self.config, "services")?.push(made.into());
        Ok(())
    }

    /// A check; `kind` if where it stands says so.
    fn check(&mut self, path: &str, kind: Option<&str>, value: Value) -> Value {
        let Value::Object(mut check) = value else {
            self.unread.push(path.to_owned());
            return Value::Null;
        };
        let mut made = Config::new();
        if let Some(kind) = kind {
            made.insert("type".into(), kind.into());
        }
        for name in ["type", "port", "method", "path", "protocol", "tls_skip_verify"] {
            if let Some(value) = check.remove(name) {
                made.insert(name.into(), value);
            }
        }
        for name in ["interval", "timeout", "grace_period"] {
            if let Some(value) = check.remove(name) {
                made.insert(name.into(), span(value));
            }
        }
        if let Some(Value::Object(headers)) = check.remove("headers") {
            let headers = headers.into_iter().map(|(name, value)| {
                json!({ "name": name, "values": if value.is_array() { value } else { json!([value]) } })
            });
            made.insert("headers".into(), Value::Array(headers.collect()));
        }
        // It counted for what the platform of before restarted.
        if check.get("restart_limit") == Some(&json!(0)) {
            check.remove("restart_limit");
        }
        self.rest(path, check);
        made.into()
    }
}

/// A table written alone stands for a list of one.
fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items,
        one => vec![one],
    }
}

/// Numbers of a fly.toml are seconds in a duration, where the API counts nanoseconds.
fn span(value: Value) -> Value {
    match value {
        Value::Number(seconds) => format!("{seconds}s").into(),
        other => other,
    }
}

/// Values of variables may be written as numbers.
fn texts(name: &str, value: Value) -> Value {
    match value {
        Value::Object(members) if name == "env" => {
            let text = |value: Value| match value {
                Value::Number(_) | Value::Bool(_) => Value::String(value.to_string()),
                other => other,
            };
            Value::Object(members.into_iter().map(|(name, value)| (name, text(value))).collect())
        }
        other => other,
    }
}

fn wrong(path: &str, why: &str) -> CliError {
    CliError::usage(format!("a fly.toml: {path}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Document> {
        let table: toml::Table = toml::from_str(text).expect("TOML");
        let Value::Object(members) = serde_json::to_value(table).expect("JSON") else { panic!("a table") };
        assert!(is_one(&members), "{text}");
        convert(members)
    }

    #[test]
    fn what_most_apps_write_becomes_a_configuration() {
        let document = read(
            r#"
            app = "shop"
            primary_region = "fra"
            kill_timeout = 30
            [build]
            image = "web:3"
            [env]
            PORT = 8080
            [processes]
            app = "bin/serve --host '0.0.0.0'"
            [http_service]
            internal_port = 8080
            force_https = true
            auto_stop_machines = "stop"
            auto_start_machines = true
            min_machines_running = 0
            processes = ["app"]
            [[http_service.checks]]
            path = "/up"
            interval = "15s"
            timeout = 2
            [[mounts]]
            source = "data"
            destination = "/data"
            [[vm]]
            size = "shared-cpu-2x"
            memory = "1gb"
            "#,
        )
        .unwrap();
        let wanted = json!({
            "stop_config": { "timeout": "30s" },
            "image": "web:3",
            "env": { "PORT": "8080" },
            "init": { "cmd": ["bin/serve", "--host", "0.0.0.0"] },
            "services": [{
                "internal_port": 8080, "autostart": true, "autostop": "stop", "min_machines_running": 0,
                "ports": [{ "port": 80, "handlers": ["http"], "force_https": true },
                          { "port": 443, "handlers": ["http", "tls"] }],
                "checks": [{ "type": "http", "path": "/up", "interval": "15s", "timeout": "2s" }],
            }],
            "mounts": [{ "name": "data", "path": "/data" }],
            "guest": { "cpu_kind": "shared", "cpus": 2, "memory_mb": 1024 },
        });
        assert_eq!(Value::Object(document.config), wanted);
        assert_eq!(document.notes.len(), 2, "app and region are told: {:?}", document.notes);
    }

    #[test]
    fn what_has_no_meaning_here_is_named_and_nothing_is_dropped() {
        let refused = read(
            "app = 'x'\nconsole_command = 'sh'\n[build]\ndockerfile = 'D'\n[deploy]\nrelease_command = 'm'\n\
             [http_service]\ninternal_port = 1\nhttps = 1\n[[mounts]]\nsource = 'd'\ndestination = '/d'\ninitial_size = '1gb'\n\
             [processes]\nweb = 'a'\nworker = 'b'\n",
        );
        let text = refused.unwrap_err().to_string();
        for name in [
            "build.dockerfile",
            "console_command",
            "deploy",
            "http_service.https",
            "mounts[0].initial_size",
            "processes.web",
            "processes.worker",
        ] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}
