//! The pages that are generated from this crate are fresh. `UPDATE=1 cargo test -p godwit-api` writes them.

use std::path::Path;

use godwit_api::fields::{Support, support_of};
use serde_json::Value;

#[track_caller]
fn check(path: &str, fresh: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, fresh).unwrap();
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stands == fresh, "{} is stale: run UPDATE=1 cargo test -p godwit-api", path.display());
}

#[test]
fn the_page_of_fields_is_fresh() {
    check("docs/api-fields.md", &godwit_api::fields::page());
}

#[test]
fn the_openapi_document_is_fresh() {
    let mut text = serde_json::to_string_pretty(&godwit_api::openapi::document()).unwrap();
    text.push('\n');
    check("openapi/godwit.json", &text);
}

/// Every property of the reference's Machine configuration and of its requests has a line.
#[test]
fn every_field_of_the_reference_has_a_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/reference/machines-2024-01.yaml");
    let document: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (request, endpoint) in [
        ("CreateMachineRequest", "Machines_create"),
        ("UpdateMachineRequest", "Machines_update"),
        ("CreateAppRequest", "Apps_create"),
        ("StopRequest", "Machines_stop"),
        ("SignalRequest", "Machines_signal"),
        ("MachineExecRequest", "Machines_exec"),
        ("CreateLeaseRequest", "Machines_create_lease"),
    ] {
        let mut missing = Vec::new();
        let schema = document.pointer(&format!("/components/schemas/{request}")).unwrap();
        walk(&document, schema, "", endpoint, &mut missing);
        assert!(missing.is_empty(), "{request}: no line for {missing:?}");
    }
}

/// Goes down wherever the table says that a field is built: what is not built has one line for all below it.
fn walk(document: &Value, schema: &Value, path: &str, endpoint: &str, missing: &mut Vec<String>) {
    if let Some(pointer) = schema.get("$ref").and_then(Value::as_str) {
        return walk(document, document.pointer(&pointer[1..]).unwrap(), path, endpoint, missing);
    }
    if let Some(all) = schema.get("allOf").and_then(Value::as_array) {
        return walk(document, &all[0], path, endpoint, missing);
    }
    for (name, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match support_of(endpoint, &path) {
            None => missing.push(path),
            Some(Support::NotBuilt(_)) => {}
            Some(_) => walk(document, below, &path, endpoint, missing),
        }
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.get("$ref").is_some()) {
        walk(document, values, &format!("{path}{{}}"), endpoint, missing);
    }
    if let Some(items) = schema.get("items") {
        walk(document, items, &format!("{path}[]"), endpoint, missing);
    }
}
