//! Bad input: each has a clear error, and changes nothing.

use godwit_api::machine::MachineState;
use godwit_store::StoreExt;
use serde_json::{Value, json};

use crate::bed::{Bed, IMAGE, config};
use crate::image;

/// Everything that clients have written: apps, Machines, names, ports, placements, leases.
async fn desire(bed: &Bed) -> Vec<(String, u64)> {
    let control = bed.running.control.as_ref().unwrap();
    let rows = control.store().list("").await.unwrap().rows;
    let ours = ["apps/", "machines/", "machine-names/", "ports/", "placements/", "leases/", "addresses/"];
    let kept = rows.into_iter().filter(|row| ours.iter().any(|folder| row.key.starts_with(folder)));
    kept.map(|row| (row.key, row.mod_revision)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_request_is_named_and_changes_nothing() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let raw = json!({ "image": IMAGE, "services": [{ "internal_port": 25, "ports": [{ "port": 2525 }] }] });
    let id = api.app_with_machine("web", raw.clone()).await;
    api.post("/apps", json!({ "app_name": "other" })).await.expect(201);
    api.until("web", &id, MachineState::Started).await;
    let before = desire(&bed).await;

    let machines = "/apps/web/machines";
    let text = |text: &str| Some(text.as_bytes().to_vec());
    api.get("/apps/nobody/machines").await.refused(404, "nobody");
    api.post("/apps/nobody/machines", json!({ "config": config() })).await.refused(404, "nobody");
    api.get("/apps/No_Name").await.refused(404, "No_Name");
    api.get("/apps/web/machines/0123456789abcd").await.refused(404, "0123456789abcd");
    api.get("/apps/web/machines/x").await.refused(404, "machine id");
    api.get(&format!("/apps/other/machines/{id}")).await.refused(404, "other");
    api.call("POST", machines, text("{"), &[]).await.refused(400, "not JSON");
    api.call("POST", machines, text("[]"), &[]).await.refused(400, "not a JSON object");
    api.call("POST", machines, Some(vec![b' '; 600 << 10]), &[]).await.refused(413, "larger");
    for (config, code, words) in [
        (json!({ "image": IMAGE, "guest": { "cpus": "many" } }), 400, "config.guest.cpus: invalid type: string"),
        (
            json!({ "image": IMAGE, "services": [{ "ports": 80 }] }),
            400,
            "config.services[0].ports: invalid type: integer",
        ),
        (json!({ "image": 1 }), 400, "config.image: invalid type: integer"),
        (
            json!({ "image": IMAGE, "restart": { "policy": "sometimes" } }),
            400,
            "config.restart.policy: unknown variant",
        ),
        (json!({ "image": IMAGE, "stop_config": { "timeout": "soon" } }), 400, "config.stop_config.timeout"),
        (json!({ "image": IMAGE, "mounts": [{ "volume": "v", "path": "/data" }] }), 422, "config.mounts"),
        (json!({ "image": IMAGE, "services": [{ "internal_port": 1, "autostop": "suspend" }] }), 422, "suspend"),
        (json!({ "image": IMAGE, "schedule": "daily" }), 422, "config.schedule"),
        (json!({ "image": IMAGE, "guest": { "cpus": 0 } }), 422, "config.guest.cpus: 0"),
        (json!({ "image": IMAGE, "guest": { "memory_mb": 0 } }), 422, "config.guest.memory_mb: 0"),
        (json!({ "image": IMAGE, "guest": { "cpus": 64, "memory_mb": 512 } }), 422, "larger than any host"),
        (json!({ "image": IMAGE, "guest": { "memory_mb": 100_000 } }), 422, "larger than any host"),
        (json!({ "image": "missing:v9" }), 422, "\"missing:v9\""),
        (json!({ "image": "Not An Image" }), 422, "not an image reference"),
        (json!({}), 422, "config.image is missing"),
    ] {
        api.post(machines, json!({ "config": config })).await.refused(code, words);
    }
    api.post(machines, json!({ "config": config(), "region": "nowhere" })).await.refused(422, "nowhere");
    api.post(machines, json!({ "config": config(), "name": "a/b" })).await.refused(422, "a/b");
    api.post(machines, json!({ "config": config(), "lsvd": true })).await.refused(422, "`lsvd`");
    api.post("/apps/other/machines", json!({ "config": raw })).await.refused(409, "2525");
    api.post("/apps", json!({ "app_name": "A B" })).await.refused(422, "A B");
    api.post("/apps", json!({})).await.refused(422, "app name");
    api.post("/apps", json!({ "app_name": "x", "org_slug": "theirs" })).await.refused(422, "\"theirs\"");
    api.post("/apps", json!({ "app_name": "x", "network": "mine" })).await.refused(422, "`network`");
    api.post(&format!("{machines}/{id}/signal"), json!({ "signal": "SIGNOPE" })).await.refused(422, "SIGNOPE");
    api.post(&format!("{machines}/{id}/signal"), json!({})).await.refused(400, "signal");
    api.post(&format!("{machines}/{id}/exec"), json!({})).await.refused(422, "command");
    api.post(&format!("{machines}/{id}/exec"), json!({ "cmd": "a", "container": "c" }))
        .await
        .refused(422, "`container`");
    api.get(&format!("{machines}/{id}/ps?sort_by=age")).await.refused(400, "age");
    api.get(&format!("{machines}?include_deleted=perhaps")).await.refused(400, "include_deleted");
    api.delete(&format!("{machines}/{id}")).await.refused(412, "force=true");
    api.delete(&format!("{machines}/{id}?kill=false")).await.refused(412, "force=true");
    api.call("PUT", machines, None, &[]).await.refused(405, "PUT");
    api.get("/nothing/here").await.refused(404, "/nothing/here");
    assert_eq!(desire(&bed).await, before, "nothing changed");
    assert_eq!(api.get(machines).await.expect(200).as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_ignored_and_named() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let body = json!({ "config": { "image": IMAGE, "colour": "blue" }, "mood": 1 });
    let answer = api.post("/apps/web/machines", body).await;
    assert_eq!(answer.headers["godwit-ignored-fields"], "config.colour, mood");
    answer.expect(200);
    let plain = api.post("/apps/web/machines", json!({ "config": config(), "lsvd": false })).await;
    assert!(!plain.headers.contains_key("godwit-ignored-fields"));
    let sized = api.post("/apps/web/machines", json!({ "config": { "image": IMAGE, "size": "shared-cpu-2x" } })).await;
    assert_eq!(sized.expect(200)["config"]["guest"], json!({ "cpu_kind": "shared", "cpus": 2, "memory_mb": 512 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_refused_and_leaves_nothing() {
    let bed = Bed::alone().await;
    let api = &bed.api;
    let whole = image::archive("a");
    for (body, what) in [
        (b"this is not an image at all, whatever its name says".to_vec(), "text"),
        (Vec::new(), "nothing"),
        (whole[..whole.len() / 2].to_vec(), "half an archive"),
        (whole.iter().map(|byte| if *byte == b'a' { b'b' } else { *byte }).collect(), "changed bytes"),
    ] {
        let answer = api.call("POST", "/images?name=bad:v1", Some(body), &[]).await;
        assert_eq!(answer.code, 422, "{what}: {}", answer.body);
    }
    let name = api.call("POST", "/images?name=NO%20NAME", Some(whole), &[]).await;
    name.refused(422, "NO NAME");
    assert_eq!(api.get("/images").await.expect(200), json!([]));
    let blobs = bed.dir.path().join("images/blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 0, "no half image stays");
    assert_eq!(api.get("/openapi.json").await.expect(200)["openapi"], Value::from("3.1.0"));
}
