//! Every field that a request of the Machines API may carry, and whether this version builds it. A request is judged
//! by this table before it is read into its type: a known field that is not built, set to anything but its default,
//! is refused by name; a field that nobody knows is passed over and named in a warning. `docs/api-fields.md` is this
//! table printed. Pure; it must not know who serves the requests.

mod table;
mod unset;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::error::ApiError;

pub use table::TABLES;
pub use unset::drop_unset;

/// The header that names the fields which nobody knows.
pub const IGNORED_HEADER: &str = "godwit-ignored-fields";
/// At most so many ignored fields are named; a `…` stands for the rest.
pub const IGNORED_NAMED: usize = 20;
/// Requests nest no deeper than this, whatever they hold.
pub const DEPTH_LIMIT: usize = 32;

/// How far a field is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    Built,
    /// Built for all values but these (JSON texts).
    Except(&'static [&'static str]),
    /// A time span: built, and nothing (`0`, `"0s"`, less than a millisecond) means that it is not set.
    Span,
    /// A text of which the empty one is a value too; elsewhere an empty text means that it is not set.
    Text,
    /// Accepted only as one of these (JSON texts); `null`, `""` and absence always are.
    NotBuilt(&'static [&'static str]),
    /// Clients send it by default, and nothing is lost without it: anything but these (JSON texts) is accepted, named as
    /// ignored, and answered as what is really so.
    Ignored(&'static [&'static str]),
}

/// One field: its path (`a.b`, `list[].x`, `map{}.x`) in a request.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub path: &'static str,
    pub support: Support,
}

/// The requests of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    pub title: &'static str,
    /// The endpoints (`Endpoint::ID`) whose requests it judges.
    pub endpoints: &'static [&'static str],
    pub fields: &'static [Field],
}

static BY_ENDPOINT: LazyLock<BTreeMap<&'static str, BTreeMap<&'static str, Support>>> = LazyLock::new(|| {
    let mut index = BTreeMap::new();
    for table in TABLES {
        let fields: BTreeMap<&str, Support> = table.fields.iter().map(|field| (field.path, field.support)).collect();
        for endpoint in table.endpoints {
            index.insert(*endpoint, fields.clone());
        }
    }
    index
});

/// What the table says of one path.
pub fn support_of(endpoint: &str, path: &str) -> Option<Support> {
    BY_ENDPOINT.get(endpoint)?.get(path).copied()
}

/// Judges a request of an endpoint. `Ok` holds the paths of fields that nobody knows.
pub fn judge(endpoint: &str, request: &Value) -> Result<Vec<String>, ApiError> {
    let Some(fields) = BY_ENDPOINT.get(endpoint) else { return Ok(Vec::new()) };
    let mut judge = Judge { fields, unknown: Vec::new() };
    judge.visit(request, "", "", 0)?;
    Ok(judge.unknown)
}

struct Judge<'a> {
    fields: &'a BTreeMap<&'static str, Support>,
    unknown: Vec<String>,
}

impl Judge<'_> {
    /// `path` as the table writes it, `place` as the caller wrote it.
    fn visit(&mut self, value: &Value, path: &str, place: &str, depth: usize) -> Result<(), ApiError> {
        if depth > DEPTH_LIMIT {
            return Err(ApiError::bad_request(format!("`{place}` nests deeper than {DEPTH_LIMIT} levels")));
        }
        match value {
            Value::Object(members) => {
                // A map's keys are the caller's own; an object's are the table's.
                let values = format!("{path}{{}}");
                let is_map = self.fields.contains_key(values.as_str());
                for (name, member) in members {
                    let here = join(place, name);
                    let table_path = if is_map { values.clone() } else { join(path, name) };
                    self.field(member, &table_path, &here, depth)?;
                }
            }
            Value::Array(items) => {
                let elements = format!("{path}[]");
                for (number, item) in items.iter().enumerate() {
                    self.field(item, &elements, &format!("{place}[{number}]"), depth)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn field(&mut self, value: &Value, path: &str, place: &str, depth: usize) -> Result<(), ApiError> {
        match self.fields.get(path) {
            Some(Support::NotBuilt(defaults)) => {
                if is_nothing(value) || is_one_of(value, defaults) {
                    return Ok(());
                }
                Err(ApiError::not_built(place))
            }
            Some(Support::Ignored(defaults)) => {
                if !is_nothing(value) && !is_one_of(value, defaults) {
                    self.unknown.push(place.to_owned());
                }
                Ok(())
            }
            Some(Support::Except(refused)) if is_one_of(value, refused) => {
                Err(ApiError::not_built(&format!("{place}: {value}")))
            }
            Some(_) => self.visit(value, path, place, depth + 1),
            // Elements of a list of plain values need no line of their own.
            None if path.ends_with("[]") && !value.is_object() => Ok(()),
            None if path.ends_with("[]") => self.visit(value, path, place, depth + 1),
            None => {
                self.unknown.push(place.to_owned());
                Ok(())
            }
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

fn is_one_of(value: &Value, texts: &[&str]) -> bool {
    texts.iter().any(|text| serde_json::from_str::<Value>(text).is_ok_and(|other| same(value, &other)))
}

/// Equal, and numbers by value: `0` and `0.0` are one.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// The ignored fields as the header names them: what cannot stand in a header is escaped.
pub fn ignored_header(unknown: &[String]) -> String {
    let named = unknown.iter().take(IGNORED_NAMED).map(|place| place.escape_default().take(120).collect::<String>());
    let mut text = named.collect::<Vec<_>>().join(", ");
    if unknown.len() > IGNORED_NAMED {
        text.push_str(", ...");
    }
    text
}

/// Takes out members that are `null`: clients written in Go send them for what they leave out.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Replaces the old `config.size` by the `guest` that it means.
pub fn expand_size(request: &mut Value) -> Result<(), ApiError> {
    let Some(config) = request.get_mut("config").and_then(Value::as_object_mut) else { return Ok(()) };
    let size = match config.remove("size") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(text)) if text.is_empty() => return Ok(()),
        Some(Value::String(text)) => text,
        Some(other) => return Err(ApiError::bad_request(format!("config.size: {other} is not a string"))),
    };
    if config.get("guest").is_some_and(|guest| !guest.is_null() && guest != &Value::Object(Map::new())) {
        return Err(ApiError::unprocessable("set either `config.guest` or the older `config.size`, not both"));
    }
    let guest = preset(&size).ok_or_else(|| {
        ApiError::unprocessable(format!(
            "config.size: {size:?} is not a size; there are shared-cpu-1x, -2x, -4x, -6x, -8x and performance-1x, -2x, -4x, -6x, -8x, -10x, -12x, -14x, -16x"
        ))
    })?;
    config.insert("guest".into(), guest);
    Ok(())
}

/// `shared-cpu-Nx` has 256 MB a processor, `performance-Nx` 2,048 MB.
fn preset(size: &str) -> Option<Value> {
    let (kind, factor, memory_mb, most) = match size.strip_prefix("shared-cpu-") {
        Some(factor) => ("shared", factor, 256, 8),
        None => ("performance", size.strip_prefix("performance-")?, 2_048, 16),
    };
    let cpus: u64 = factor.strip_suffix('x')?.parse().ok()?;
    let known = [1, 2, 4, 6, 8, 10, 12, 14, 16].contains(&cpus) && cpus <= most;
    known.then(|| json!({ "cpu_kind": kind, "cpus": cpus, "memory_mb": cpus * memory_mb }))
}

/// The tables as a page of documentation.
pub fn page() -> String {
    let mut page = String::from(
        "# The fields of the API\n\n\
         Every field that a request of the Machines API may carry, and what this version does with it. A *built* field\n\
         works. A field that is *not built* may be left out, `null`, or set to the value named; anything else is answered\n\
         422 with its name. A field that stands nowhere here, or is *without effect*, is ignored and named in the answer's\n\
         header `godwit-ignored-fields`. `null` and an empty text always mean that a field is not set. Generated from `crates/api/src/fields/table.rs`.\n",
    );
    for table in TABLES {
        page.push_str(&format!(
            "\n## {}\n\nOf {}.\n\n| field | |\n|---|---|\n",
            table.title,
            table.endpoints.join(", ")
        ));
        for field in table.fields {
            let words = match field.support {
                Support::Built | Support::Text => "built".to_owned(),
                Support::Span => "built; zero means not set".to_owned(),
                Support::Ignored(values) => format!("accepted, without effect ({} says the same)", values.join(", ")),
                Support::Except(values) => format!("built, except {}", values.join(", ")),
                Support::NotBuilt([]) => "not built".to_owned(),
                Support::NotBuilt(values) => format!("not built ({})", values.join(", ")),
            };
            page.push_str(&format!("| `{}` | {words} |\n", field.path));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(config: Value) -> Result<Vec<String>, ApiError> {
        judge("Machines_create", &json!({ "config": config }))
    }

    #[test]
    fn a_known_field_that_is_not_built_is_named() {
        for (config, name) in [
            (json!({ "services": [{}, { "autostop": "suspend" }] }), "config.services[1].autostop: \"suspend\""),
            (
                json!({ "services": [{ "ports": [{ "handlers": ["pg_tls"] }] }] }),
                "config.services[0].ports[0].handlers[0]",
            ),
            (
                json!({ "services": [{ "ports": [{ "tls_options": { "default_self_signed": true } }] }] }),
                "config.services[0].ports[0].tls_options.default_self_signed",
            ),
            (json!({ "checks": { "alive": { "tls_skip_verify": true } } }), "config.checks.alive.tls_skip_verify"),
            (json!({ "mounts": [{ "volume": "v", "add_size_gb": 1 }] }), "config.mounts[0].add_size_gb"),
            (json!({ "guest": { "gpus": 1 } }), "config.guest.gpus"),
            (json!({ "rootfs": { "persist": "always" } }), "config.rootfs.persist"),
            (json!({ "files": [{ "guest_path": "/a", "secret_name": "S" }] }), "config.files[0].secret_name"),
            (json!({ "schedule": "hourly" }), "config.schedule"),
        ] {
            let refused = create(config.clone()).unwrap_err();
            assert_eq!(refused.code, 422, "{config}");
            assert!(refused.error.contains(name), "{}", refused.error);
        }
        let refused = judge("Machines_create", &json!({ "lsvd": true })).unwrap_err();
        assert!(refused.error.contains("`lsvd`"));
    }

    #[test]
    fn defaults_of_what_is_not_built_pass() {
        let config = json!({
            "image": "a", "mounts": [], "schedule": "", "guest": { "cpus": 1, "gpus": 0.0 }, "rootfs": { "persist": "never" },
            "services": [{ "autostop": true, "ports": [{ "port": 80, "handlers": ["http"], "force_https": false, "tls_options": null }] }],
            "metrics": null, "init": { "tty": false }, "metadata": { "mounts": "x" }, "env": { "anything": "y" },
        });
        assert_eq!(create(config), Ok(vec![]));
    }

    #[test]
    fn what_nobody_knows_is_told_and_passed_over() {
        let unknown =
            create(json!({ "image": "a", "colour": 1, "services": [{ "shape": {} }], "checks": { "c": { "x": 1 } } }));
        let unknown = unknown.unwrap();
        assert_eq!(unknown, ["config.colour", "config.services[0].shape", "config.checks.c.x"]);
        assert!(ignored_header(&["a\nb".to_owned()]).is_ascii());
        assert!(ignored_header(&vec!["x".to_owned(); 50]).ends_with(", ..."));
    }

    #[test]
    fn every_size_of_the_platform_is_known() {
        let sizes = [("shared-cpu-6x", 6, 1_536), ("performance-6x", 6, 12_288), ("performance-14x", 14, 28_672)];
        for (size, cpus, memory_mb) in sizes {
            let mut request = json!({ "config": { "size": size } });
            expand_size(&mut request).unwrap();
            assert_eq!(request["config"]["guest"]["cpus"], cpus, "{size}");
            assert_eq!(request["config"]["guest"]["memory_mb"], memory_mb, "{size}");
        }
    }

    #[test]
    fn what_clients_send_by_default_without_need_is_named_and_passed_over() {
        let named = judge(
            "Volumes_create",
            &json!({ "name": "d", "encrypted": true, "snapshot_retention": 5, "auto_backup_enabled": false }),
        );
        assert_eq!(named.unwrap(), ["encrypted", "snapshot_retention"]);
        assert_eq!(judge("Volumes_create", &json!({ "encrypted": false, "snapshot_retention": 0 })).unwrap(), [""; 0]);
        let refused = judge("Volumes_create", &json!({ "snapshot_id": "vs_1" })).unwrap_err();
        assert!(refused.code == 422 && refused.error.contains("snapshot_id"), "{refused}");
    }

    #[test]
    fn old_sizes_become_guests() {
        let mut request = json!({ "config": { "size": "shared-cpu-2x" } });
        expand_size(&mut request).unwrap();
        assert_eq!(request["config"]["guest"], json!({ "cpu_kind": "shared", "cpus": 2, "memory_mb": 512 }));
        for size in ["shared-cpu-3x", "huge", "performance-x", "shared-cpu-16x"] {
            assert_eq!(expand_size(&mut json!({ "config": { "size": size } })).unwrap_err().code, 422, "{size}");
        }
    }

    #[test]
    fn every_line_of_a_table_stands_once_and_below_its_parent() {
        for table in TABLES {
            let mut seen = std::collections::BTreeSet::new();
            for field in table.fields {
                assert!(seen.insert(field.path), "{} twice", field.path);
                let parent = field.path.rsplit_once('.').map(|(parent, _)| parent.trim_end_matches("[]"));
                if let Some(parent) = parent {
                    assert!(seen.contains(parent), "{}: no line for {parent}", field.path);
                }
            }
        }
    }

    #[test]
    fn every_default_is_json() {
        for field in TABLES.iter().flat_map(|table| table.fields) {
            let (Support::NotBuilt(values) | Support::Except(values) | Support::Ignored(values)) = field.support else {
                continue;
            };
            for text in values {
                assert!(serde_json::from_str::<Value>(text).is_ok(), "{}: {text}", field.path);
            }
        }
    }
}
