//! Machines: created, listed, updated, waited for, destroyed.

use godwit_api::event::MachineEvent;
use godwit_api::machine::MachineState;
use serde_json::{Value, json};

use crate::bed::{Bed, IMAGE, config, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_created_started_and_shown() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let body = json!({ "name": "one", "region": "fra", "config": { "image": IMAGE, "metadata": { "role": "a" } } });
    let made = api.post("/apps/web/machines", body).await.expect(200);
    let id = made["id"].as_str().unwrap();
    assert_eq!((&made["name"], &made["region"]), (&json!("one"), &json!("fra")));
    assert!(made["private_ip"].as_str().unwrap().starts_with("fdaa:"));
    assert_eq!(made["image_ref"]["labels"]["made-by"], "a test");
    assert!(made["image_ref"]["digest"].as_str().unwrap().starts_with("sha256:"));
    api.get(&format!("/apps/web/machines/{id}/wait?state=started&timeout=30")).await.expect(200);
    let machine = api.until("web", id, MachineState::Started).await;
    assert_eq!((machine.host_status.as_str(), machine.name.as_str()), ("ok", "one"));
    let events = api.get(&format!("/apps/web/machines/{id}/events")).await.expect(200);
    assert_eq!(events[0]["type"], "start");
    let taken = api.post("/apps/web/machines", json!({ "name": "one", "config": config() })).await;
    assert_eq!(taken.refused(409, "one")["status"], "name_taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_an_app_spread_over_hosts_and_lists_filter() {
    let mut bed = Bed::with_hosts(2).await;
    bed.add_host("far", "syd", 4096).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let mut hosts = std::collections::BTreeSet::new();
    for number in 0..2 {
        let config = json!({ "image": IMAGE, "metadata": { "number": number.to_string() } });
        let made = api.post("/apps/web/machines", json!({ "region": "fra", "config": config })).await.expect(200);
        hosts.insert(made["host_id"].as_str().unwrap().to_owned());
    }
    assert_eq!(hosts.len(), 2, "one Machine on each host of the region");
    let body = json!({ "region": "syd", "skip_launch": true, "config": config() });
    let far = api.post("/apps/web/machines", body).await.expect(200);
    let far_id = far["id"].as_str().unwrap();
    api.until("web", far_id, MachineState::Stopped).await;
    let count = |list: Value| list.as_array().unwrap().len();
    assert_eq!(count(api.get("/apps/web/machines").await.expect(200)), 3);
    assert_eq!(count(api.get("/apps/web/machines?region=syd").await.expect(200)), 1);
    assert_eq!(count(api.get("/apps/web/machines?metadata.number=1").await.expect(200)), 1);
    assert_eq!(count(api.get("/apps/web/machines?metadata.number=10").await.expect(200)), 0);
    let stopped = api.get("/apps/web/machines?state=stopped").await.expect(200);
    assert_eq!(stopped[0]["id"], far_id);
    api.delete(&format!("/apps/web/machines/{far_id}?force=true")).await.expect(200);
    api.get(&format!("/apps/web/machines/{far_id}/wait?state=destroyed&timeout=30")).await.expect(200);
    assert_eq!(count(api.get("/apps/web/machines").await.expect(200)), 2);
    let all = api.get("/apps/web/machines?include_deleted=true").await.expect(200);
    assert_eq!(count(all), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_keeps_versions_and_knows_stale_ones() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let before = api.until("web", &id, MachineState::Started).await;
    let path = format!("/apps/web/machines/{id}");
    let body = json!({ "config": { "image": IMAGE, "env": { "A": "1" } }, "current_version": before.instance_id });
    let updated = api.post(&path, body.clone()).await.expect(200);
    assert_ne!(updated["instance_id"], json!(before.instance_id));
    api.post(&path, body).await.refused(409, "stale");
    let wait = format!("{path}/wait?instance_id={}&state=started&timeout=30", updated["instance_id"].as_str().unwrap());
    api.get(&wait).await.expect(200);
    let after = api.machine("web", &id).await;
    assert_eq!((after.config.env["A"].as_str(), after.private_ip), ("1", before.private_ip));
    let versions = api.get(&format!("{path}/versions")).await.expect(200);
    assert_eq!(versions.as_array().unwrap().len(), 2);
    assert_eq!(versions[1]["version"], json!(before.instance_id));
    assert_eq!(bed.agents[0].journal().held.len(), 1, "the same Machine, on the same host");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_the_host_refuses_leaves_the_old_version() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let before = api.until("web", &id, MachineState::Started).await;
    bed.agents[0].turn(|knobs| knobs.refuse = Some("no room for that".into()));
    let body = json!({ "config": { "image": IMAGE, "env": { "A": "1" }, "services": [{ "internal_port": 1, "ports": [{ "port": 2525 }] }] } });
    api.post(&format!("/apps/web/machines/{id}"), body).await.refused(422, "no room for that");
    let after = api.machine("web", &id).await;
    assert_eq!(
        (after.instance_id, after.config, after.state),
        (before.instance_id, before.config, MachineState::Started)
    );
    bed.agents[0].turn(|knobs| knobs.refuse = None);
    // The port that the refused version claimed is free again.
    api.post("/apps", json!({ "app_name": "other" })).await.expect(201);
    api.new_machine(
        "other",
        json!({ "image": IMAGE, "services": [{ "internal_port": 1, "ports": [{ "port": 2525 }] }] }),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_changes_without_a_new_version() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let before = api.until("web", &id, MachineState::Started).await;
    let path = format!("/apps/web/machines/{id}/metadata");
    api.post(&format!("{path}/color"), json!({ "value": "blue" })).await.expect(204);
    assert_eq!(api.get(&path).await.expect(200), json!({ "color": "blue" }));
    api.delete(&format!("{path}/color")).await.expect(204);
    assert_eq!(api.get(&path).await.expect(200), json!({}));
    assert_eq!(api.machine("web", &id).await.instance_id, before.instance_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_machine_gives_back_its_name_and_port() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "one" })).await.expect(201);
    api.post("/apps", json!({ "app_name": "two" })).await.expect(201);
    let raw = json!({ "image": IMAGE, "services": [{ "internal_port": 25, "ports": [{ "port": 2525 }] }] });
    let made = api.post("/apps/one/machines", json!({ "name": "mail", "config": raw })).await.expect(200);
    let id = made["id"].as_str().unwrap();
    api.post("/apps/two/machines", json!({ "config": raw })).await.refused(409, "2525");
    api.new_machine("one", raw.clone()).await;
    api.delete(&format!("/apps/one/machines/{id}?force=true")).await.expect(200);
    api.delete(&format!("/apps/one/machines/{id}")).await.expect(200);
    api.get(&format!("/apps/one/machines/{id}/wait?state=destroyed&timeout=30")).await.expect(200);
    api.post(&format!("/apps/one/machines/{id}/start"), json!({})).await.refused(409, "destroyed");
    until("the name is free again", || async {
        let body = json!({ "name": "mail", "config": config() });
        let answer = api.post("/apps/one/machines", body).await;
        (answer.code == 200).then_some(())
    })
    .await;
    // The second Machine of the app serves the port still.
    api.post("/apps/two/machines", json!({ "config": raw })).await.refused(409, "2525");
    api.delete("/apps/one?force=true").await.expect(202);
    until("the port is free again", || async {
        (api.post("/apps/two/machines", json!({ "config": raw })).await.code == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_in_time_and_says_how_things_stand() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    let path = format!("/apps/web/machines/{id}/wait");
    let late = api.get(&format!("{path}?state=stopped&timeout=1")).await;
    late.refused(408, "it is started");
    api.get(&format!("{path}?state=stopped&state=started&timeout=1")).await.expect(200);
    api.get(&format!("{path}?state=started&timeout=61")).await.refused(400, "60");
    api.get(&format!("{path}?state=sleeping")).await.refused(400, "sleeping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_has_passed_since_an_event_counts() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    // It went through a stop while nobody looked.
    let event = |id: &str, status: &str| MachineEvent {
        id: id.to_owned(),
        kind: "start".to_owned(),
        status: status.to_owned(),
        source: "user".to_owned(),
        timestamp: 1,
        request: None,
    };
    let (first, stopped, last) =
        ("01AAAAAAAAAAAAAAAAAAAAAAAA", "01BBBBBBBBBBBBBBBBBBBBBBBB", "01CCCCCCCCCCCCCCCCCCCCCCCC");
    bed.agents[0].becomes(&id, |held| {
        held.events = vec![event(last, "started"), event(stopped, "stopped"), event(first, "started")];
    });
    let path = format!("/apps/web/machines/{id}/wait?state=stopped");
    until("its events are told", || async {
        let told = api.get(&format!("/apps/web/machines/{id}/events")).await.expect(200);
        (told.as_array().unwrap().len() == 3).then_some(())
    })
    .await;
    api.get(&format!("{path}&from_event_id={first}&timeout=1")).await.expect(200);
    // One that is told no more, or was never, has newer ones all the same.
    api.get(&format!("{path}&from_event_id=01A&timeout=1")).await.expect(200);
    for since in [stopped, last] {
        api.get(&format!("{path}&from_event_id={since}&timeout=0")).await.refused(408, "it is started");
    }
    api.get(&format!("{path}&from_event_id=&timeout=0")).await.refused(408, "it is started");
}
