//! Volumes: created, listed, held by Machines through their mounts, deleted.

use godwit_api::machine::MachineState;
use serde_json::{Value, json};

use crate::bed::{Bed, IMAGE, config, until};

/// An app and a volume in it, made and ready; its id and host.
pub async fn ready_volume(bed: &Bed, app: &str, wish: Value) -> (String, String) {
    let made = bed.api.post(&format!("/apps/{app}/volumes"), wish).await.expect(200);
    let id = made["id"].as_str().unwrap().to_owned();
    let volume = until_volume(bed, app, &id, "created").await;
    (id, volume["zone"].as_str().unwrap().to_owned())
}

pub async fn until_volume(bed: &Bed, app: &str, id: &str, state: &str) -> Value {
    until(&format!("volume {id} is {state}"), || async {
        let volume = bed.api.get(&format!("/apps/{app}/volumes/{id}")).await.expect(200);
        (volume["state"] == state).then_some(volume)
    })
    .await
}

pub fn mounting(volume: &str, path: &str) -> Value {
    json!({ "image": IMAGE, "mounts": [{ "volume": volume, "path": path }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_created_shown_and_deleted() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.get("/apps/web/volumes").await.refused(404, "no app web");
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let wish = json!({ "name": "data", "region": "fra", "size_gb": 2 });
    let (id, host) = ready_volume(&bed, "web", wish.clone()).await;
    assert_eq!(host, bed.agents[0].id);
    let volume = api.get(&format!("/apps/web/volumes/{id}")).await.expect(200);
    assert_eq!((&volume["name"], &volume["size_gb"], &volume["region"]), (&json!("data"), &json!(2), &json!("fra")));
    assert_eq!(
        (&volume["fstype"], &volume["encrypted"], &volume["attached_alloc_id"]),
        (&json!("ext4"), &json!(false), &Value::Null)
    );
    assert_eq!(
        (&volume["block_size"], &volume["blocks"], &volume["blocks_free"]),
        (&json!(4096), &json!(524_288), &json!(524_286))
    );
    // Names may be shared.
    let (other, _) = ready_volume(&bed, "web", json!({ "name": "data", "fstype": "raw" })).await;
    assert_eq!(api.get("/apps/web/volumes").await.expect(200).as_array().unwrap().len(), 2);
    assert_eq!(api.get("/apps/web").await.expect(200)["volume_count"], 2);
    api.delete("/apps/web").await.refused(409, "2 volumes");
    api.delete(&format!("/apps/web/volumes/{other}")).await.expect(200);
    until_volume(&bed, "web", &other, "destroyed").await;
    until("it is listed no more", || async {
        (api.get("/apps/web/volumes").await.expect(200).as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    // By force, the app takes its volumes along.
    api.delete("/apps/web?force=true").await.expect(202);
    until("nothing is placed any more", || async {
        let store = bed.running.control.as_ref().unwrap().store().clone();
        let rows = godwit_store::StoreExt::list(&*store, "placements/").await.unwrap().rows;
        rows.is_empty().then_some(())
    })
    .await;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    api.get(&format!("/apps/web/volumes/{id}")).await.refused(404, &id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_that_cannot_be_met_is_refused_by_its_field() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    for (wish, field) in [
        (json!({}), "name"),
        (json!({ "name": "a-b" }), "name"),
        (json!({ "name": "x".repeat(31) }), "name"),
        (json!({ "name": "a", "size_gb": 0 }), "size_gb"),
        (json!({ "name": "a", "size_gb": 16_385 }), "size_gb"),
        (json!({ "name": "a", "region": "FRA" }), "region"),
        (json!({ "name": "a", "region": "syd" }), "no host in region"),
        // The host has 100,000 MiB.
        (json!({ "name": "a", "size_gb": 100 }), "larger than any host"),
    ] {
        api.post("/apps/web/volumes", wish).await.refused(422, field);
    }
    assert_eq!(api.get("/apps/web/volumes").await.expect(200), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_fleet_refuses_clearly_and_never_more_than_its_disks_are_promised() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    // Two hosts of 97 GiB: each takes three of 30.
    for _ in 0..6 {
        until("room", || async {
            (api.post("/apps/web/volumes", json!({ "name": "d", "size_gb": 30 })).await.code == 200).then_some(())
        })
        .await;
    }
    let body = api.post("/apps/web/volumes", json!({ "name": "d", "size_gb": 30 })).await.refused(503, "2 full");
    assert_eq!(body["status"], "insufficient_capacity");
    for agent in &bed.agents {
        assert_eq!(agent.journal().held.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_a_volume_is_passed_over() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    bed.agents[0].turn(|knobs| knobs.refuse = Some("the disk is broken".into()));
    for _ in 0..3 {
        let (_, host) = ready_volume(&bed, "web", json!({ "name": "d" })).await;
        assert_eq!(host, bed.agents[1].id);
    }
    bed.agents[1].turn(|knobs| knobs.refuse = Some("worn out".into()));
    api.post("/apps/web/volumes", json!({ "name": "d" })).await.refused(503, "worn out");
    assert_eq!(api.get("/apps/web/volumes").await.expect(200).as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_to_its_volume_and_holds_it_alone() {
    let bed = Bed::with_hosts(3).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let (volume, host) = ready_volume(&bed, "web", json!({ "name": "data", "size_gb": 3 })).await;
    let made = api.post("/apps/web/machines", json!({ "config": mounting(&volume, "/data") })).await.expect(200);
    let id = made["id"].as_str().unwrap();
    assert_eq!(made["host_id"], json!(host));
    let mount = &made["config"]["mounts"][0];
    assert_eq!((&mount["name"], &mount["size_gb"], &mount["volume"]), (&json!("data"), &json!(3), &json!(volume)));
    api.until("web", id, MachineState::Started).await;
    let shown = api.get(&format!("/apps/web/volumes/{volume}")).await.expect(200);
    assert_eq!((&shown["attached_machine_id"], &shown["attached_alloc_id"]), (&json!(id), &json!(id)));
    api.post("/apps/web/machines", json!({ "config": mounting(&volume, "/data") })).await.refused(409, id);
    api.delete(&format!("/apps/web/volumes/{volume}")).await.refused(412, id);
    // An update may keep it; one that drops it lets it go.
    let path = format!("/apps/web/machines/{id}");
    api.post(&path, json!({ "config": mounting(&volume, "/srv") })).await.expect(200);
    api.post(&path, json!({ "config": config() })).await.expect(200);
    let shown = api.get(&format!("/apps/web/volumes/{volume}")).await.expect(200);
    assert_eq!(shown.get("attached_machine_id"), Some(&Value::Null));
    api.post(&path, json!({ "config": mounting(&volume, "/data") })).await.expect(200);
    // A destroyed Machine holds it until its host has said so.
    let agent = bed.agent_of(&host);
    agent.turn(|knobs| knobs.away = true);
    api.delete(&format!("{path}?force=true")).await.expect(200);
    api.delete(&format!("/apps/web/volumes/{volume}")).await.refused(412, id);
    agent.turn(|knobs| knobs.away = false);
    until("it is free", || async {
        let shown = api.get(&format!("/apps/web/volumes/{volume}")).await.expect(200);
        shown["attached_machine_id"].is_null().then_some(())
    })
    .await;
    api.delete(&format!("/apps/web/volumes/{volume}")).await.expect(200);
    until_volume(&bed, "web", &volume, "destroyed").await;
    api.post("/apps/web/machines", json!({ "config": mounting(&volume, "/data") })).await.refused(409, "destroyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_that_cannot_be_are_refused() {
    let mut bed = Bed::with_hosts(1).await;
    bed.add_host("far", "syd", 4096).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    api.post("/apps", json!({ "app_name": "other" })).await.expect(201);
    let (near, _) = ready_volume(&bed, "web", json!({ "name": "a", "region": "fra" })).await;
    let (far, _) = ready_volume(&bed, "web", json!({ "name": "b", "region": "syd" })).await;
    let create = |app: &'static str, body: Value| async move { api.post(&format!("/apps/{app}/machines"), body).await };
    create("web", json!({ "config": mounting("vol_00000000000000", "/data") })).await.refused(422, "has no volume");
    create("other", json!({ "config": mounting(&near, "/data") })).await.refused(422, "has no volume");
    create("web", json!({ "config": mounting(&near, "/proc/x") })).await.refused(422, "path");
    create("web", json!({ "config": mounting(&near, "//sys") })).await.refused(422, "path");
    let (raw, _) = ready_volume(&bed, "web", json!({ "name": "c", "region": "fra", "fstype": "raw" })).await;
    for taken in ["/data", "/dev", "/dev/null", "/dev/pts/7"] {
        create("web", json!({ "config": mounting(&raw, taken) })).await.refused(422, "in /dev");
    }
    create("web", json!({ "region": "syd", "config": mounting(&near, "/data") })).await.refused(422, "region fra");
    let both = json!([{ "volume": near, "path": "/a" }, { "volume": far, "path": "/b" }]);
    create("web", json!({ "config": { "image": IMAGE, "mounts": both } })).await.refused(422, "move one of them");
    let elsewhere = api.post("/apps/web/machines", json!({ "region": "syd", "config": config() })).await.expect(200);
    let path = format!("/apps/web/machines/{}", elsewhere["id"].as_str().unwrap());
    api.post(&path, json!({ "config": mounting(&near, "/data") })).await.refused(422, "migrate one of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_machine_with_a_volume_goes_nowhere_else_and_lets_the_volume_go() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let (volume, host) = ready_volume(&bed, "web", json!({ "name": "data" })).await;
    bed.agent_of(&host).turn(|knobs| knobs.refuse = Some("the file system is damaged".into()));
    let body = json!({ "config": mounting(&volume, "/data") });
    api.post("/apps/web/machines", body.clone()).await.refused(503, "the file system is damaged");
    assert_eq!(api.get("/apps/web/machines?include_deleted=true").await.expect(200), json!([]));
    bed.agent_of(&host).turn(|knobs| knobs.refuse = None);
    let made = api.post("/apps/web/machines", body).await.expect(200);
    assert_eq!(made["host_id"], json!(host));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_machines_that_want_a_volume_at_once_one_gets_it() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let (volume, _) = ready_volume(&bed, "web", json!({ "name": "data" })).await;
    let creates: Vec<_> = (0..6)
        .map(|_| {
            let (api, body) = (api.clone(), json!({ "config": mounting(&volume, "/data") }));
            tokio::spawn(async move { api.post("/apps/web/machines", body).await.code })
        })
        .collect();
    let mut codes = Vec::new();
    for create in creates {
        codes.push(create.await.unwrap());
    }
    codes.sort_unstable();
    assert_eq!(codes, [200, 409, 409, 409, 409, 409]);
}
