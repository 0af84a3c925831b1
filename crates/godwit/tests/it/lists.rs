//! What is listed and shown: within 80 columns, with relative times, with what cannot be reached marked, and with the
//! places where an app is reached.

use serde_json::json;

use crate::api::Api;
use crate::cli::{godwit_with, home, stderr, stdout};
use crate::control::Fleet;
use crate::volumes::{MACHINE, lay_over, machine};

#[test]
fn lists_fit_eighty_columns_and_are_whole_with_wide() {
    let fleet = Fleet::start(2);
    for app in ["shop", "a-rather-long-name-of-an-app"] {
        fleet.ok(&["apps", "create", app]);
        for _ in 0..2 {
            fleet.ok(&["machine", "run", "x-base", "-a", app, "--port", "80:8080/tcp:http", "--check", "tcp:8080"]);
        }
    }
    for arguments in [
        &["machine", "list", "-a", "shop"][..],
        &["status", "-a", "shop"],
        &["host", "list"],
        &["image", "list"],
        &["apps", "list"],
    ] {
        let text = stdout(&fleet.ok(arguments));
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{arguments:?}: {} columns: {line}", line.chars().count());
        }
        assert!(!text.contains("T0") && !text.contains("Z\n"), "{arguments:?} tells times as people do: {text}");
        let wide = stdout(&fleet.ok(&[arguments, &["--wide"]].concat()));
        assert!(wide.len() >= text.len(), "{arguments:?}");
    }
    let wide = stdout(&fleet.ok(&["machine", "list", "-a", "shop", "--wide"]));
    for heading in ["ID", "NAME", "CHECKS", "REGION", "IP ADDRESS", "SIZE", "CREATED"] {
        assert!(wide.lines().next().is_some_and(|line| line.contains(heading)), "{heading}: {wide}");
    }
    let all = fleet.json(&["machine", "list", "--all"]);
    assert_eq!(all.as_array().map(Vec::len), Some(4));
    let host = all[0]["host_id"].as_str().expect("an id").to_owned();
    let of_host = fleet.json(&["machine", "list", "--host", &host]);
    let wanted = all.as_array().expect("a list").iter().filter(|machine| machine["host_id"] == host.as_str()).count();
    assert_eq!(of_host.as_array().map(Vec::len), Some(wanted));
}

#[test]
fn status_marks_what_cannot_be_reached_and_ends_with_where_the_app_is() {
    let api = Api::start();
    let served = json!({ "image": "img", "services": [
        { "internal_port": 8080, "ports": [{ "port": 80, "handlers": ["http"] }] },
        { "internal_port": 5432, "ports": [{ "port": 5432 }] },
    ] });
    let mut lost = machine(served.clone());
    lay_over(
        &mut lost,
        json!({ "id": "0000000000000b", "name": "lost", "host_status": "unreachable", "host_id": "w2" }),
    );
    let app = json!({
        "id": "1", "name": "shop", "status": "deployed", "organization": { "name": "o", "slug": "o" },
        "machine_count": 2, "volume_count": 0, "network": "default", "urls": ["http://shop.example.com"],
    });
    api.on("GET /v1/apps/shop", [(200, app)])
        .on("GET /v1/apps/shop/machines", [(200, json!([machine(served), lost]))])
        .on(&format!("GET /v1/apps/shop/machines/{MACHINE}"), [(404, json!({}))]);
    let output = godwit_with(home().path(), &["status"], &[("GODWIT_API_URL", &api.url), ("GODWIT_APP", "shop")]);
    let (out, err) = (stdout(&output), stderr(&output));
    assert!(out.contains("0000000000000b*") && out.contains("* w2 cannot be reached"), "{out}");
    assert!(!out.contains(&format!("{MACHINE}*")), "{out}");
    assert!(err.contains("http://shop.example.com/ → port 8080"), "{err}");
    assert!(err.contains("shop.example.com port 5432, raw TCP → port 5432"), "{err}");
}

#[test]
fn destroying_an_app_names_its_machines_and_volumes_and_spares_data_unless_told() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    fleet.ok(&["machine", "run", "x-base", "-a", "shop", "-n", "web"]);
    fleet.ok(&["volumes", "create", "data", "-a", "shop", "--size", "3", "--detach"]);
    let spared = fleet.run(&["apps", "destroy", "shop", "--yes"]);
    assert_eq!(spared.status.code(), Some(4), "{}", stderr(&spared));
    assert!(stderr(&spared).contains("(data, 3 GB)") && stderr(&spared).contains("--with-volumes"));
    assert_eq!(fleet.json(&["machine", "list", "-a", "shop"]).as_array().map(Vec::len), Some(1));
    let done = fleet.ok(&["apps", "delete", "shop", "--with-volumes", "--yes"]);
    let told = stderr(&done);
    assert!(told.contains("(web), started") && told.contains("(data, 3 GB)"), "{told}");
    assert_eq!(fleet.run(&["apps", "show", "shop"]).status.code(), Some(3));
}

#[test]
fn a_running_machine_is_destroyed_only_by_force_and_of_several_all_or_none() {
    let fleet = Fleet::start(1);
    fleet.ok(&["apps", "create", "shop"]);
    for name in ["one", "two"] {
        fleet.ok(&["machine", "run", "x-base", "-a", "shop", "-n", name]);
    }
    fleet.ok(&["machine", "stop", "one", "-a", "shop"]);
    let refused = fleet.run(&["machine", "destroy", "one", "two", "-a", "shop", "--yes"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains("nothing was destroyed"), "{}", stderr(&refused));
    assert_eq!(fleet.json(&["machine", "list", "-a", "shop"]).as_array().map(Vec::len), Some(2));
    fleet.ok(&["machine", "destroy", "one", "-a", "shop", "--yes"]);
    fleet.ok(&["machine", "destroy", "two", "-a", "shop", "--force"]);
    fleet.until("both are gone", |fleet| {
        fleet.json(&["machine", "list", "-a", "shop"]).as_array().is_some_and(Vec::is_empty).then_some(())
    });
}

#[test]
fn who_asked_for_a_raw_port_is_told_that_no_edge_could_open_it() {
    let api = Api::start();
    let config = json!({ "image": "img", "services": [{ "internal_port": 1, "ports": [{ "port": 5432 }, { "port": 80, "handlers": ["http"] }] }] });
    let app = |open: serde_json::Value, closed: serde_json::Value| {
        json!({
            "id": "1", "name": "shop", "status": "deployed", "organization": { "name": "o", "slug": "o" },
            "machine_count": 1, "volume_count": 0, "network": "default",
            "raw_ports": [{ "port": 5432, "open_at": open, "closed_at": closed }],
        })
    };
    let made = machine(config);
    api.on("POST /v1/apps/shop/machines", [(200, made.clone())])
        .on(&format!("GET /v1/apps/shop/machines/{MACHINE}"), [(200, made)])
        .on("GET /v1/images", [(200, json!([]))]);
    let run = |answers: Vec<serde_json::Value>, flags: &[&str]| {
        api.on("GET /v1/apps/shop", answers.into_iter().map(|answer| (200, answer)));
        let arguments = [&["machine", "run", "img", "--smoke-time", "0s"], flags].concat();
        let output = godwit_with(home().path(), &arguments, &[("GODWIT_API_URL", &api.url), ("GODWIT_APP", "shop")]);
        assert!(output.status.success(), "the Machine runs: {}", stderr(&output));
        stderr(&output)
    };
    let closed = json!([{ "edge": "edge-1-0001", "why": "Address already in use" }]);
    // The edge reports a little later than the Machine is made.
    let told = run(vec![app(json!([]), json!([])), app(json!([]), closed.clone())], &[]);
    assert!(told.contains("warning: port 5432 is not open at edge edge-1-0001: Address already in use"), "{told}");
    let told = run(vec![app(json!([]), closed)], &["--json"]);
    assert!(told.contains("\"warning\":\"port 5432 is not open at edge"), "{told}");
    let told = run(vec![app(json!(["edge-1-0001"]), json!([]))], &[]);
    assert!(!told.contains("warning"), "{told}");
    let told = run(vec![app(json!([]), json!([]))], &[]);
    assert!(told.contains("warning: no edge has reported port 5432 as open yet"), "{told}");
}
