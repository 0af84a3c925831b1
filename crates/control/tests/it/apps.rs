//! Apps: created under both names that clients use, listed, shown, deleted.

use godwit_api::machine::MachineState;
use serde_json::json;

use crate::bed::{Bed, config};

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
