//! `--machine-config`: a document read and understood as one of three: a configuration, a whole request that holds one
//! (`{"config": {…}}`, as the API takes it and as `machine status --json` prints it), or a fly.toml. Nothing in it is
//! dropped: what a fly.toml says is turned into a configuration or refused by name, all else is for the API to judge.

use std::path::Path;

use serde_json::{Map, Value};

use super::fly_toml;
use super::spec::Config;
use crate::error::{CliError, Result};

/// What the API answers of a Machine and does not take: the rest of `machine status --json`.
const ANSWERED: [&str; 14] = [
    "id",
    "state",
    "image_ref",
    "instance_id",
    "private_ip",
    "created_at",
    "updated_at",
    "events",
    "checks",
    "nonce",
    "host_status",
    "host_id",
    "cordoned",
    "app",
];

#[derive(Debug, Default)]
pub struct Document {
    pub config: Config,
    /// Other members of a request: `name`, `region`, `skip_launch` and what else stood there.
    pub request: Map<String, Value>,
    /// What its writer should know.
    pub notes: Vec<String>,
}

/// Reads what `--machine-config` was given: JSON itself, or the path of a file.
pub fn read(given: &str) -> Result<Document> {
    let path = Path::new(given);
    if given.trim_start().starts_with('{') {
        return understand(json(given)?);
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("--machine-config: cannot read {given}: {error}")))?;
    let is_toml = path.extension().is_some_and(|extension| extension == "toml");
    let value = if is_toml || !text.trim_start().starts_with('{') { toml(&text)? } else { json(&text)? };
    understand(value)
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| wrong(format!("it is not JSON: {error}")))
}

fn toml(text: &str) -> Result<Value> {
    let table: toml::Table = toml::from_str(text).map_err(|error| wrong(format!("it is not TOML: {error}")))?;
    Ok(serde_json::to_value(table)?)
}

fn wrong(why: String) -> CliError {
    CliError::usage(format!("--machine-config is not a valid Machine configuration: {why}"))
}

fn understand(value: Value) -> Result<Document> {
    let Value::Object(mut members) = value else { return Err(wrong("it is not an object".to_owned())) };
    if let Some(Value::Object(config)) = members.get_mut("config").map(Value::take) {
        members.remove("config");
        members.retain(|name, _| !ANSWERED.contains(&name.as_str()));
        return Ok(Document { config, request: members, notes: Vec::new() });
    }
    if fly_toml::is_one(&members) {
        return fly_toml::convert(members);
    }
    Ok(Document { config: members, ..Document::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_configuration_stays_as_it_is_written() {
        let raw = json!({ "image": "x", "enviroment": { "A": "1" }, "containers": [], "env": null });
        let document = read(&raw.to_string()).unwrap();
        assert_eq!(Value::Object(document.config), raw);
        assert!(document.request.is_empty());
    }

    #[test]
    fn a_whole_request_is_told_from_a_configuration() {
        let document =
            read(r#"{"name": "web", "id": "0a", "config": {"image": "x"}, "skip_launch": true, "odd": 1}"#).unwrap();
        assert_eq!(Value::Object(document.config), json!({ "image": "x" }));
        assert_eq!(Value::Object(document.request), json!({ "name": "web", "skip_launch": true, "odd": 1 }));
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for bad in ["{bad", "{\"a\":1} x", "/does/not/exist"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "image = 'x'\n[env]\nA = '1'\n").unwrap();
        let document = read(path.to_str().unwrap()).unwrap();
        assert_eq!(Value::Object(document.config), json!({ "image": "x", "env": { "A": "1" } }));
        std::fs::write(&path, "image = \n").unwrap();
        assert!(read(path.to_str().unwrap()).unwrap_err().to_string().contains("not TOML"));
    }
}
