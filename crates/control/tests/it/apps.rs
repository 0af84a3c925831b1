//! Apps: created under both names that clients use, listed, shown, deleted.

use godwit_api::machine::MachineState;
use serde_json::json;

use crate::api::Api;
use crate::bed::{Bed, IMAGE, config};

#[tokio::test(flavor = "multi_thread")]
async fn an_app_lives_from_create_to_delete() {
    let bed = Bed::alone().await;
    let api = &bed.api;
    let made = api.post("/apps", json!({ "app_name": "first", "org_slug": "personal" })).await.expect(201);
    assert!(made["id"].is_string() && made["created_at"].is_u64());
    // Clients read it as the app that it is.
    let shown = api.get("/apps/first").await.expect(200);
    for (member, value) in shown.as_object().unwrap() {
        assert_eq!(&made[member], value, "{member}");
    }
    assert_eq!(made["organization"]["slug"], "personal");
    api.post("/apps", json!({ "name": "second", "network": null })).await.expect(201);
    let list = api.get("/apps?org_slug=personal").await.expect(200);
    assert_eq!(list["total_apps"], 2);
    assert_eq!(list["apps"][0]["network"], "default");
    assert_eq!(api.get("/apps?org_slug=others").await.expect(200)["total_apps"], 0);
    let app = api.get("/apps/first").await.expect(200);
    assert_eq!((&app["status"], &app["organization"]["slug"]), (&json!("pending"), &json!("personal")));
    let taken = api.post("/apps", json!({ "app_name": "first" })).await.refused(422, "taken");
    assert_eq!(taken["status"], "name_taken");
    api.delete("/apps/first").await.expect(202);
    api.get("/apps/first").await.refused(404, "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_with_machines_goes_only_by_force_and_its_name_starts_afresh() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    assert_eq!(api.get("/apps/web").await.expect(200)["machine_count"], 1);
    api.delete("/apps/web").await.refused(409, "1 Machines");
    api.delete("/apps/web?force=true").await.expect(202);
    api.get("/apps/web").await.refused(404, "web");
    api.get(&format!("/apps/web/machines/{id}")).await.refused(404, "web");
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    assert_eq!(api.get("/apps/web/machines?include_deleted=true").await.expect(200), json!([]));
    crate::bed::until("the host has destroyed it", || async {
        let journal = bed.agents[0].journal();
        journal.held.values().all(|held| held.state == MachineState::Destroyed).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_ports_tell_at_which_edges_they_are_open_and_why_not_at_others() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let joiner = Api::new(&bed.url, Some(&bed.join_token()));
    let mut edges = Vec::new();
    for name in ["edge-1", "edge-2"] {
        let join = json!({ "role": "edge", "name": name, "region": "fra", "incarnation": name });
        let joined = joiner.post("/join", join).await.expect(200);
        let text = |member: &str| joined[member].as_str().unwrap().to_owned();
        edges.push((text("id"), Api::new(&bed.url, Some(&text("key")))));
    }
    let config = json!({ "image": IMAGE, "services": [{ "internal_port": 1, "ports": [{ "port": 5432 }] }] });
    api.app_with_machine("web", config).await;
    let shown = api.get("/apps/web").await.expect(200);
    assert_eq!(shown["raw_ports"], json!([{ "port": 5432, "open_at": [], "closed_at": [] }]), "nobody has reported");
    let closed = json!([{ "port": 5432, "why": "Address already in use" }]);
    edges[0].1.post("/edges/ports", json!({ "own": [80], "closed": closed })).await.expect(200);
    edges[1].1.post("/edges/ports", json!({ "own": [], "closed": [], "open": [5432, 9999] })).await.expect(200);
    let shown = api.get("/apps/web").await.expect(200);
    let at = json!([{ "edge": edges[0].0, "why": "Address already in use" }]);
    assert_eq!(shown["raw_ports"], json!([{ "port": 5432, "open_at": [edges[1].0], "closed_at": at }]));
    let warning = format!("port 5432 is not open at edge {}: Address already in use", edges[0].0);
    assert_eq!(shown["warnings"], json!([warning]));
}
