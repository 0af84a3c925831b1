//! Volumes by the command line: made, shown, deleted, and given to Machines by id, by name and in files.

use serde_json::{Value, json};

use crate::api::Api;
use crate::cli::{godwit_with, home, stderr, stdout};

pub const MACHINE: &str = "0000000000000a";

pub fn volume(id: u64, name: &str, changes: Value) -> Value {
    let mut volume = json!({
        "id": format!("vol_{id:014x}"), "name": name, "state": "created", "size_gb": 10, "region": "fra", "zone": "w1",
        "encrypted": false, "fstype": "ext4", "attached_alloc_id": null, "created_at": "2026-01-01T00:00:00Z",
        "block_size": 4096, "blocks": 1, "blocks_avail": 1, "blocks_free": 1, "snapshot_retention": 0, "host_status": "ok",
    });
    lay_over(&mut volume, changes);
    volume
}

pub fn machine(config: Value) -> Value {
    json!({
        "id": MACHINE, "name": "web", "state": "started", "region": "fra",
        "image_ref": { "registry": "", "repository": "img", "tag": "1", "digest": "sha256:0", "labels": {} },
        "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "private_ip": "fdaa::1", "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z", "config": config, "events": [], "checks": [], "host_status": "ok",
        "host_id": "w1", "cordoned": false,
    })
}

pub fn lay_over(value: &mut Value, changes: Value) {
    if let (Value::Object(value), Value::Object(changes)) = (value, changes) {
        value.extend(changes);
    }
}

fn run(api: &Api, arguments: &[&str]) -> std::process::Output {
    godwit_with(home().path(), arguments, &[("GODWIT_API_URL", &api.url), ("GODWIT_APP", "shop")])
}

#[test]
fn a_volume_is_made_and_waited_for() {
    let api = Api::start();
    let making = volume(1, "data", json!({ "state": "creating" }));
    api.on("POST /v1/apps/shop/volumes", [(200, making.clone())])
        .on("GET /v1/apps/shop/volumes/vol_00000000000001", [(200, making), (200, volume(1, "data", json!({})))]);
    let made = run(&api, &["volumes", "create", "data", "--size", "10GiB", "--region", "fra"]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert_eq!(stdout(&made), "vol_00000000000001\n", "a script gets the id alone");
    assert!(stderr(&made).contains("placed on w1") && stderr(&made).contains("It is created."), "{}", stderr(&made));
    let sent = api.sent("POST /v1/apps/shop/volumes");
    assert_eq!(sent, [json!({ "name": "data", "region": "fra", "size_gb": 10, "fstype": "ext4" })]);

    let broken = volume(1, "data", json!({ "state": "failed" }));
    api.on("GET /v1/apps/shop/volumes/vol_00000000000001", [(200, broken)]);
    let failed = run(&api, &["volume", "create", "data", "--fstype", "raw"]);
    assert_eq!(failed.status.code(), Some(1), "{}", stderr(&failed));
    assert!(stderr(&failed).contains("could not be created on w1"), "{}", stderr(&failed));

    let full = json!({ "error": "no host in fra has 10 GB of disk left", "status": "insufficient_capacity" });
    api.on("POST /v1/apps/shop/volumes", [(422, full)]);
    let refused = run(&api, &["volumes", "create", "data"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("no host in fra") && stderr(&refused).contains("godwit host list"));
}

#[test]
fn volumes_are_listed_shown_and_deleted() {
    let api = Api::start();
    let filling = volume(
        2,
        "logs",
        json!({
            "state": "hydrating", "attached_machine_id": MACHINE,
            "hydration": { "source": "w9", "data_bytes": 1000, "hydrated_bytes": 430, "stalled": "w9 does not answer" },
        }),
    );
    api.on("GET /v1/apps/shop/volumes", [(200, json!([volume(1, "data", json!({})), filling]))])
        .on("GET /v1/apps/shop/volumes/vol_00000000000002", [(200, filling.clone())])
        .on("GET /v1/apps/shop/volumes/vol_00000000000001", [(200, volume(1, "data", json!({})))])
        .on("DELETE /v1/apps/shop/volumes/vol_00000000000001", [(200, volume(1, "data", json!({})))])
        .on(
            "DELETE /v1/apps/shop/volumes/vol_00000000000002",
            [(
                409,
                json!({
            "error": "a Machine holds volume vol_00000000000002", "status": "conflict" }),
            )],
        );
    let listed = stdout(&run(&api, &["volumes", "list"]));
    assert!(listed.contains("hydrating (43 %, stalled)") && listed.contains(MACHINE), "{listed}");
    assert_eq!(stdout(&run(&api, &["volumes", "ls", "-q"])), "vol_00000000000001\nvol_00000000000002\n");
    let shown = stdout(&run(&api, &["volumes", "show", "logs"]));
    assert!(shown.contains("w9 does not answer") && shown.contains("430 B of 1.0 KB from w9"), "{shown}");
    let json: Value = serde_json::from_str(&stdout(&run(&api, &["volumes", "show", "logs", "--json"]))).expect("JSON");
    assert_eq!(json["hydration"]["hydrated_bytes"], 430);

    let unasked = run(&api, &["volumes", "delete", "data"]);
    assert_eq!(unasked.status.code(), Some(2), "nobody can be asked");
    assert!(api.sent("DELETE /v1/apps/shop/volumes/vol_00000000000001").is_empty());
    assert!(run(&api, &["volumes", "delete", "data", "--yes"]).status.success());
    assert_eq!(api.sent("DELETE /v1/apps/shop/volumes/vol_00000000000001").len(), 1);
    let held = run(&api, &["volumes", "delete", "vol_00000000000002", "--yes"]);
    assert_eq!(held.status.code(), Some(4));
    assert!(stderr(&held).contains(&format!("Machine {MACHINE} uses it")), "{}", stderr(&held));
    let prefix = run(&api, &["volumes", "show", "dat"]);
    assert_eq!(prefix.status.code(), Some(3), "nothing is matched by its beginning");
}

#[test]
fn a_machine_gets_its_volumes_by_id_by_name_and_from_files() {
    let api = Api::start();
    api.on("POST /v1/apps/shop/machines", [(200, machine(json!({ "image": "img" })))]).on(
        "GET /v1/apps/shop/volumes",
        [(
            200,
            json!([
                volume(1, "data", json!({ "attached_machine_id": "0000000000000b" })),
                volume(2, "data", json!({})),
                volume(3, "twice", json!({})),
                volume(4, "twice", json!({})),
            ]),
        )],
    );
    let mounts = |arguments: &[&str]| -> Value {
        let ran = run(&api, &[&["machine", "run", "--detach"], arguments].concat());
        assert!(ran.status.success(), "{arguments:?}: {}", stderr(&ran));
        api.sent("POST /v1/apps/shop/machines").pop().expect("it was sent")["config"]["mounts"].clone()
    };
    let by_flags = mounts(&["--volume", "vol_00000000000009:/a", "-v", "data:/data", "img"]);
    let both = json!([
        { "volume": "vol_00000000000009", "path": "/a" }, { "volume": "vol_00000000000002", "path": "/data" }
    ]);
    assert_eq!(by_flags, both);
    let folder = home();
    let (toml, json_file) = (folder.path().join("web.toml"), folder.path().join("web.json"));
    std::fs::write(&toml, "image = 'img'\n[[mounts]]\nvolume = 'data'\npath = '/data'\n").expect("written");
    std::fs::write(&json_file, r#"{"image": "img", "mounts": [{"name": "data", "path": "/data"}]}"#).expect("written");
    for file in [toml, json_file] {
        let by_file = mounts(&["--machine-config", file.to_str().expect("UTF-8")]);
        assert_eq!(by_file, json!([{ "volume": "vol_00000000000002", "path": "/data" }]), "{}", file.display());
    }
    for (name, code, words) in
        [("twice", 4, "vol_00000000000003, vol_00000000000004"), ("none", 3, "volumes create none")]
    {
        let refused = run(&api, &["machine", "run", "img", "-v", &format!("{name}:/d")]);
        assert_eq!(refused.status.code(), Some(code), "{name}");
        assert!(stderr(&refused).contains(words), "{name}: {}", stderr(&refused));
    }

    let held = json!({ "image": "img", "mounts": [
        { "volume": "vol_00000000000002", "path": "/data", "name": "data", "size_gb": 10 }] });
    api.on(&format!("GET /v1/apps/shop/machines/{MACHINE}"), [(200, machine(held))]);
    let shown = stdout(&run(&api, &["machine", "status", MACHINE]));
    assert!(shown.contains("vol_00000000000002 (data, 10 GB) at /data"), "{shown}");
}
