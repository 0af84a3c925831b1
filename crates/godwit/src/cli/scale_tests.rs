//! `scale` and `machine clone` before an API of laid-out answers: what is asked for, and what is left alone.

use clap::Parser;
use godwit_api::machine::Machine;
use serde_json::{Value, json};

use super::machine::show::sample;
use crate::args::Arguments;
use crate::error::{CliError, Result};
use crate::exit::Exit;

#[path = "../../tests/it/api.rs"]
mod api;

use api::Api;

const MACHINES: &str = "/v1/apps/shop/machines";

/// The settings of who runs the tests are no part of them: what counts is named.
fn run(api: &Api, words: &[&str]) -> Result<()> {
    let fixed = ["godwit", "--api-url", &api.url, "--token", "t", "--context", "default", "--quiet", "--yes"];
    let arguments = Arguments::try_parse_from(fixed.iter().chain(words)).expect("it parses");
    super::run(arguments.command, arguments.global).map(drop)
}

fn refused(api: &Api, words: &[&str]) -> CliError {
    let error = run(api, words).expect_err("it is refused");
    let changed = |method: &str| api.calls().iter().any(|call| call.starts_with(method));
    assert!(!changed("POST") && !changed("DELETE"), "nothing was asked for: {:?}", api.calls());
    error
}

fn machine(number: u8, state: &str) -> Value {
    let id = format!("{number:014x}");
    let mut machine = serde_json::to_value(Machine { name: format!("web{number}"), ..sample() }).expect("JSON");
    machine["id"] = json!(id);
    machine["state"] = json!(state);
    machine["created_at"] = json!(format!("2026-01-0{number}T00:00:00Z"));
    machine["config"]["env"] = json!({ "K": "v" });
    machine
}

/// An API with these Machines, whose next one is number 9, and where the image's tag means this digest.
fn api(machines: &[Value], digest: &str) -> Api {
    let api = Api::start();
    let image = json!({
        "name": "web:latest", "digest": digest, "size_bytes": 1, "layers": 1, "created_at": "", "in_use": true,
    });
    api.on("GET /v1/images", [(200, json!([image]))]);
    api.on(&format!("GET {MACHINES}"), [(200, Value::from(machines.to_vec()))]);
    api.on(&format!("POST {MACHINES}"), [(200, machine(9, "created"))]);
    for machine in machines.iter().chain([&machine(9, "started")]) {
        let path = format!("{MACHINES}/{}", machine["id"].as_str().expect("an id"));
        api.on(&format!("GET {path}"), [(200, machine.clone())]);
        api.on(&format!("DELETE {path}?force=true&kill=false"), [(200, json!({ "ok": true }))]);
    }
    api
}

#[test]
fn scaling_up_clones_one_that_runs_as_often_as_is_missing() {
    let api = api(&[machine(1, "stopped"), machine(2, "started")], "sha256:1");
    run(&api, &["scale", "count", "4", "-a", "shop", "--smoke-time", "0s"]).expect("two come up");
    let sent = api.sent(&format!("POST {MACHINES}"));
    assert_eq!(sent.len(), 2);
    assert_eq!((&sent[0]["region"], &sent[0]["config"]["image"]), (&json!("fra"), &json!("web")));
    assert_eq!(sent[0]["config"]["env"], json!({ "K": "v" }));
    assert!(sent[0].get("name").is_none(), "two Machines cannot have one name");
    // As many as there should be: nothing is asked for.
    let api = self::api(&[machine(1, "started")], "sha256:1");
    run(&api, &["scale", "count", "1", "-a", "shop"]).expect("it is so already");
    assert!(api.sent(&format!("POST {MACHINES}")).is_empty());
}

#[test]
fn a_clone_runs_the_image_of_the_first_though_its_tag_has_moved() {
    let api = api(&[machine(1, "started")], "sha256:2");
    let clone = ["machine", "clone", "web1", "-a", "shop", "--smoke-time", "0s", "--name", "other", "--region", "ams"];
    run(&api, &clone).expect("it comes up");
    let sent = api.sent(&format!("POST {MACHINES}"));
    assert_eq!(sent[0]["config"]["image"], "web@sha256:1");
    assert_eq!((&sent[0]["name"], &sent[0]["region"]), (&json!("other"), &json!("ams")));
}

#[test]
fn scaling_down_lets_the_stopped_go_then_the_newest_and_each_end_in_peace() {
    let api = api(&[machine(1, "started"), machine(2, "stopped"), machine(3, "started")], "sha256:1");
    run(&api, &["scale", "count", "1", "-a", "shop"]).expect("two go");
    let gone: Vec<String> = api.calls().into_iter().filter(|call| call.starts_with("DELETE")).collect();
    let path = |number: u8| format!("DELETE {MACHINES}/{number:014x}?force=true&kill=false");
    assert_eq!(gone, [path(2), path(3)]);
}

#[test]
fn what_has_no_answer_is_refused_and_nothing_is_changed() {
    let mut other = machine(2, "started");
    other["config"]["env"]["K"] = json!("w");
    let mixed = refused(&api(&[machine(1, "started"), other], "sha256:1"), &["scale", "count", "3", "-a", "shop"]);
    assert!(mixed.exit == Exit::Conflict && mixed.message.contains("env.K"), "{mixed}");
    let empty = refused(&api(&[], "sha256:1"), &["scale", "count", "1", "-a", "shop"]);
    assert!(empty.hint.as_deref().is_some_and(|hint| hint.contains("godwit machine run")), "{empty}");
    let mut held = machine(1, "started");
    held["config"]["mounts"] = json!([{ "volume": "vol_00000000000001", "path": "/data" }]);
    let api = api(&[held], "sha256:1");
    let clone = refused(&api, &["machine", "clone", "web1", "-a", "shop"]);
    assert!(clone.hint.as_deref().is_some_and(|hint| hint.contains("--volume VOLUME:/data")), "{clone}");
    refused(&api, &["scale", "count", "2", "-a", "shop"]);
    let down = refused(&api, &["scale", "count", "0", "-a", "shop"]);
    assert!(down.hint.as_deref().is_some_and(|hint| hint.contains("--with-volumes")), "{down}");
    let volume = ["--volume", "vol_00000000000002:/data", "--smoke-time", "0s"];
    run(&api, &[&["machine", "clone", "web1", "-a", "shop"], &volume[..]].concat()).expect("it has its own");
    let sent = api.sent(&format!("POST {MACHINES}"));
    assert_eq!(sent[0]["config"]["mounts"], json!([{ "volume": "vol_00000000000002", "path": "/data" }]));
}
