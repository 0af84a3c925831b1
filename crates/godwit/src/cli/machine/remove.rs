//! What an update takes away. What is not there cannot be taken away: that is told, for it is a slip of the pen.

use serde_json::Value;

use super::spec::{Config, array, object};
use super::{mounts, ports};
use crate::cli::guess::did_you_mean;
use crate::error::{CliError, Result};
use crate::exit::Exit;

#[derive(clap::Args, Default)]
pub struct RemoveFlags {
    /// Remove an environment variable
    #[arg(long, value_name = "NAME", help_heading = "Removal")]
    unset_env: Vec<String>,
    /// Close a public port
    #[arg(long, value_name = "PORT", help_heading = "Removal")]
    rm_port: Vec<u16>,
    /// Detach a volume by its id, name or path; its data is kept
    #[arg(long, value_name = "VOLUME|/PATH", help_heading = "Removal")]
    rm_volume: Vec<String>,
    /// Remove a file from the configuration
    #[arg(long, value_name = "/PATH", help_heading = "Removal")]
    rm_file: Vec<String>,
    /// Remove a metadata key
    #[arg(long, value_name = "KEY", help_heading = "Removal")]
    rm_metadata: Vec<String>,
    /// Remove a health check
    #[arg(long, value_name = "NAME", help_heading = "Removal")]
    rm_check: Vec<String>,
}

impl RemoveFlags {
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        self.members(config)?;
        for port in &self.rm_port {
            let services = array(config, "services")?;
            let open = ports::public(services);
            if !open.contains(&u64::from(*port)) {
                let open: Vec<String> = open.iter().map(u64::to_string).collect();
                return Err(missing("--rm-port", &port.to_string(), &open));
            }
            ports::take(services, *port)?;
        }
        for volume in &self.rm_volume {
            if !mounts::remove(volume, config)? {
                return Err(missing("--rm-volume", volume, &texts(config, "mounts", &["volume", "name", "path"])));
            }
        }
        for path in &self.rm_file {
            let files = array(config, "files")?;
            let before = files.len();
            files.retain(|file| file.get("guest_path").and_then(Value::as_str) != Some(path));
            if files.len() == before {
                return Err(missing("--rm-file", path, &texts(config, "files", &["guest_path"])));
            }
        }
        Ok(())
    }

    fn members(&self, config: &mut Config) -> Result<()> {
        for (flag, member, names) in [
            ("--unset-env", "env", &self.unset_env),
            ("--rm-metadata", "metadata", &self.rm_metadata),
            ("--rm-check", "checks", &self.rm_check),
        ] {
            for name in names {
                let members = object(config, member)?;
                if members.remove(name).is_none() {
                    let known: Vec<String> = members.keys().cloned().collect();
                    return Err(missing(flag, name, &known));
                }
            }
        }
        Ok(())
    }
}

fn texts(config: &Config, list: &str, members: &[&str]) -> Vec<String> {
    let items = config.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
    let texts = items.iter().flat_map(|item| members.iter().filter_map(|member| item.get(*member)?.as_str()));
    texts.map(str::to_owned).collect()
}

fn missing(flag: &str, what: &str, known: &[String]) -> CliError {
    let error = CliError::new(Exit::NotFound, format!("{flag} {what}: the Machine has none with this name"));
    match did_you_mean(what, known) {
        Some(guess) => error.hint(guess),
        None if known.is_empty() => error.hint("it has none at all"),
        None => error.hint(format!("it has {}", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_named_goes_and_the_rest_stays() {
        let before = json!({
            "image": "x", "env": { "A": "1", "B": "2" }, "metadata": { "m": "1" }, "checks": { "up": {} },
            "services": [{ "internal_port": 1, "ports": [{ "port": 80 }, { "port": 81 }] }, { "internal_port": 2, "ports": [{ "port": 90 }] }],
            "mounts": [{ "volume": "vol_1", "name": "data", "path": "/data" }, { "volume": "vol_2", "path": "/logs" }],
            "files": [{ "guest_path": "/a" }, { "guest_path": "/b" }],
        });
        let mut config = before.as_object().cloned().expect("an object");
        let flags = RemoveFlags {
            unset_env: vec!["A".into()],
            rm_port: vec![80, 90],
            rm_volume: vec!["data".into()],
            rm_file: vec!["/b".into()],
            rm_metadata: vec!["m".into()],
            rm_check: vec!["up".into()],
        };
        flags.apply(&mut config).unwrap();
        let wanted = json!({
            "image": "x", "env": { "B": "2" }, "metadata": {}, "checks": {},
            "services": [{ "internal_port": 1, "ports": [{ "port": 81 }] }],
            "mounts": [{ "volume": "vol_2", "path": "/logs" }],
            "files": [{ "guest_path": "/a" }],
        });
        assert_eq!(Value::Object(config.clone()), wanted);
        let again = flags.apply(&mut config).unwrap_err();
        assert_eq!(again.exit, Exit::NotFound);
        let typo = RemoveFlags { rm_file: vec!["/aa".into()], ..Default::default() }.apply(&mut config).unwrap_err();
        assert!(typo.to_string().contains("did you mean /a?"), "{typo}");
    }
}
