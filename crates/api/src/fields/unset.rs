//! What clients send and mean "not set" by: encoders of Go write the empty text, and the span of no time, of a member that
//! nobody has set. Such members are taken out before a request is read, so that a default stays a default. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{BY_ENDPOINT, Support, join};
use crate::duration::Span;

/// Takes members that mean "not set" out of a request. A map's own keys (`env`, `metadata`) are its owner's: their values
/// stay, also empty ones.
pub fn drop_unset(endpoint: &str, request: &mut Value) {
    if let Some(fields) = BY_ENDPOINT.get(endpoint) {
        visit(fields, request, "");
    }
}

fn visit(fields: &BTreeMap<&'static str, Support>, value: &mut Value, path: &str) {
    match value {
        Value::Object(members) => {
            let values = format!("{path}{{}}");
            if fields.contains_key(values.as_str()) {
                return members.values_mut().for_each(|member| visit(fields, member, &values));
            }
            members.retain(|name, member| {
                let here = join(path, name);
                visit(fields, member, &here);
                fields.get(here.as_str()).is_none_or(|support| !means_unset(*support, member))
            });
        }
        Value::Array(items) => {
            let elements = format!("{path}[]");
            items.iter_mut().for_each(|item| visit(fields, item, &elements));
        }
        _ => {}
    }
}

fn means_unset(support: Support, value: &Value) -> bool {
    match (support, value) {
        (Support::Text, _) => false,
        (_, Value::String(text)) if text.is_empty() => true,
        (Support::Span, value) => {
            serde_json::from_value(value.clone()).is_ok_and(|span: Span| span.or_unset().is_none())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(endpoint: &str, mut sent: Value, meant: Value) {
        drop_unset(endpoint, &mut sent);
        assert_eq!(sent, meant);
    }

    #[test]
    fn the_zero_values_of_go_are_members_left_out() {
        for nothing in [json!("0s"), json!(0), json!(""), json!("0"), json!("0m0s"), json!(999_999)] {
            check("Machines_stop", json!({ "id": "a", "signal": "", "timeout": nothing }), json!({ "id": "a" }));
            let config = json!({ "config": { "stop_config": { "timeout": nothing }, "checks": { "a": { "interval": nothing, "timeout": nothing } } } });
            check("Machines_create", config, json!({ "config": { "stop_config": {}, "checks": { "a": {} } } }));
        }
        check("Machines_stop", json!({ "timeout": "10s" }), json!({ "timeout": "10s" }));
        check("Machines_stop", json!({ "timeout": "soon" }), json!({ "timeout": "soon" }));
        check("Machines_stop", json!({ "timeout": 1_000_000 }), json!({ "timeout": 1_000_000 }));
    }

    #[test]
    fn empty_texts_are_members_left_out_but_in_maps_of_ones_own() {
        let sent = json!({ "config": {
            "restart": { "policy": "", "max_retries": 0 }, "guest": { "cpu_kind": "", "cpus": 1 }, "env": { "EMPTY": "" },
            "metadata": { "k": "" }, "services": [{ "protocol": "", "ports": [{ "port": 80 }] }], "init": { "cmd": ["a", ""] },
        }});
        let meant = json!({ "config": {
            "restart": { "max_retries": 0 }, "guest": { "cpus": 1 }, "env": { "EMPTY": "" },
            "metadata": { "k": "" }, "services": [{ "ports": [{ "port": 80 }] }], "init": { "cmd": ["a", ""] },
        }});
        check("Machines_create", sent, meant);
        check("Machines_update_metadata", json!({ "value": "" }), json!({ "value": "" }));
        check("Volumes_create", json!({ "name": "d", "fstype": "" }), json!({ "name": "d" }));
    }
}
