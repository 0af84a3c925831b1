//! docs/configuration.md: every key of the roles' configuration files, generated from the types that read them.

use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value};

use crate::{read, root};

const PAGE: &str = "docs/configuration.md";
const HEAD: &str = "\
# Configuration files

Each role reads one TOML file: `godwit run ROLE --config FILE`. An unknown key is an error that names the one that was probably
meant. `godwit run ROLE --check --config FILE` reads the file and looks at the server. `docs/examples/` holds a file for each role.

`DATA_DIR` stands for the role's `data_dir`. A key without a default and without *required* may be left out. A duration is text
such as `\"300ms\"`, `\"30s\"` or `\"1h30m\"`.

This page is generated from the types: `UPDATE=1 cargo test -p godwit-lab --test tidy`.
";

#[test]
fn the_configuration_page_is_fresh() {
    let mut made = HEAD.to_owned();
    made.push_str(&role::<godwit_control::Raw>("control"));
    made.push_str(&role::<godwit_agent::Raw>("agent"));
    made.push_str(&role::<godwit_proxy::door::RawDoorConfig>("door"));
    made.push_str(&role::<godwit_proxy::edge::RawEdgeConfig>("edge"));
    let path = root().join(PAGE);
    if std::env::var_os("UPDATE").is_some() {
        return std::fs::write(path, made).expect("docs/ is writable");
    }
    let written = if path.exists() { read(&path) } else { String::new() };
    assert!(written == made, "{PAGE} is stale: UPDATE=1 cargo test -p godwit-lab --test tidy");
}

fn role<Raw: JsonSchema>(name: &str) -> String {
    let schema = schema_for!(Raw);
    let schema = schema.as_value();
    let mut text = format!("\n## {name}\n");
    text.push_str(&table("", schema, schema));
    text
}

/// The keys of one table of the file, then its tables.
fn table(name: &str, schema: &Value, root: &Value) -> String {
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let required = |key: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == key));
    let mut text = String::new();
    if !name.is_empty() {
        text.push_str(&format!("\n### [{name}]\n"));
        if let Some(about) = schema["description"].as_str() {
            text.push_str(&format!("\n{}\n", line(about)));
        }
    }
    text.push_str("\n| key | type | default | what it is |\n|---|---|---|---|\n");
    let mut tables = Vec::new();
    for (key, property) in properties {
        if let Some(inner) = table_of(property, root) {
            tables.push((key, inner));
            continue;
        }
        let about = property["description"].as_str().unwrap_or_else(|| panic!("{name} {key} has no words"));
        let default = match (&property["default"], required(key)) {
            (_, true) => "*required*".to_owned(),
            (Value::Null, _) => String::new(),
            (Value::String(text), _) => format!("`{text}`"),
            (value, _) => format!("`{value}`"),
        };
        text.push_str(&format!("| `{key}` | {} | {default} | {} |\n", kind(key, property), line(about)));
    }
    for (key, inner) in tables {
        text.push_str(&table(key, inner, root));
    }
    text
}

/// A key that is a table of keys of ours.
fn table_of<'a>(property: &'a Value, root: &'a Value) -> Option<&'a Value> {
    let direct = property["$ref"].as_str();
    let maybe = property["anyOf"].as_array().and_then(|all| all.iter().find_map(|one| one["$ref"].as_str()));
    let place = direct.or(maybe)?.strip_prefix('#')?;
    root.pointer(place).filter(|schema| schema["properties"].is_object())
}

fn kind(key: &str, property: &Value) -> String {
    let kind = &property["type"];
    let kind =
        kind.as_str().or_else(|| kind.as_array()?.iter().find_map(|one| one.as_str().filter(|one| *one != "null")));
    let units = [
        ("_bytes_per_s", "bytes a second"),
        ("_permille", "thousandths"),
        ("_mb", "MB"),
        ("_ms", "milliseconds"),
        ("_s", "seconds"),
    ];
    let unit = units.iter().find(|(suffix, _)| key.ends_with(suffix)).map(|(_, unit)| *unit);
    match (kind, property["format"].as_str(), unit) {
        (_, Some("duration"), _) => "duration".to_owned(),
        (Some("integer"), _, Some(unit)) => format!("number of {unit}"),
        (Some("integer"), ..) => "number".to_owned(),
        (Some("boolean"), ..) => "true or false".to_owned(),
        (Some("array"), ..) if property["items"]["type"] == "integer" => "list of numbers".to_owned(),
        (Some("array"), ..) => "list of texts".to_owned(),
        (Some("object"), ..) => "table of texts".to_owned(),
        _ => "text".to_owned(),
    }
}

/// In one line of a table.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
