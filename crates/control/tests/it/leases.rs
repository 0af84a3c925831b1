//! Leases: one holder changes the Machine, everybody else waits.

use godwit_api::lease::NONCE_HEADER;
use godwit_api::machine::MachineState;
use serde_json::{Value, json};

use crate::bed::{Bed, config, until};
use crate::reference::REFERENCE;

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_changes_the_machine() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let path = format!("/apps/web/machines/{id}");
    let lease_path = format!("{path}/lease");
    api.get(&lease_path).await.refused(404, "there is no lease");
    let taken = api.post(&lease_path, json!({ "ttl": 30, "description": "deploy" })).await.expect(201);
    REFERENCE.validate(&json!({ "$ref": "#/components/schemas/Lease" }), &taken["data"], "lease");
    let nonce = taken["data"]["nonce"].as_str().unwrap().to_owned();
    assert_eq!((&taken["status"], &taken["data"]["owner"]), (&json!("success"), &json!("admin")));
    assert_eq!(api.get(&lease_path).await.expect(200)["data"]["description"], "deploy");

    let body = || Some(json!({ "config": config() }).to_string().into_bytes());
    let held = [(NONCE_HEADER, nonce.as_str())];
    for (method, suffix) in [
        ("POST", ""),
        ("DELETE", ""),
        ("POST", "/start"),
        ("POST", "/stop"),
        ("POST", "/restart"),
        ("POST", "/cordon"),
        ("DELETE", "/metadata/a"),
        ("POST", "/lease"),
    ] {
        let sent = if suffix.is_empty() && method == "POST" { body() } else { None };
        let answer = api.call(method, &format!("{path}{suffix}"), sent.clone(), &[]).await;
        assert_eq!(answer.refused(409, "admin holds a lease")["status"], "lease_held");
        let foreign = api.call(method, &format!("{path}{suffix}"), sent, &[(NONCE_HEADER, "0000")]).await;
        foreign.refused(409, "not that of the present lease");
    }
    let before = api.machine("web", &id).await;
    api.call("POST", &path, body(), &held).await.expect(200);
    assert_ne!(api.machine("web", &id).await.instance_id, before.instance_id);
    let renewed = api.call("POST", &format!("{lease_path}?ttl=600"), None, &held).await.expect(201);
    assert_eq!(renewed["data"]["nonce"], nonce.as_str());
    assert!(renewed["data"]["expires_at"].as_u64() > taken["data"]["expires_at"].as_u64());
    api.delete(&lease_path).await.refused(400, NONCE_HEADER);
    assert_eq!(
        api.machine("web", &id).await.nonce.as_deref(),
        Some(nonce.as_str()),
        "a leased Machine shows its nonce"
    );
    let released = api.call("DELETE", &lease_path, None, &held).await.expect(200);
    assert_eq!(released, json!({ "status": "success", "data": { "ok": true } }));
    assert_eq!(api.machine("web", &id).await.nonce, None);
    api.post(&format!("{path}/cordon"), json!({})).await.expect(200);
    api.call("POST", &format!("{path}/cordon"), None, &held).await.refused(409, "expired, was released");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_by_itself_and_its_nonce_with_it() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let made = api.post("/apps/web/machines", json!({ "config": config(), "lease_ttl": 1 })).await.expect(200);
    let (id, nonce) = (made["id"].as_str().unwrap(), made["nonce"].as_str().unwrap().to_owned());
    let path = format!("/apps/web/machines/{id}");
    api.until("web", id, MachineState::Started).await;
    until("the lease has ended", || async { (api.get(&format!("{path}/lease")).await.code == 404).then_some(()) })
        .await;
    api.call("POST", &format!("{path}/stop"), None, &[(NONCE_HEADER, &nonce)]).await.refused(409, "has expired");
    assert_eq!(api.machine("web", id).await.state, MachineState::Started);
    api.post(&format!("{path}/lease"), json!({ "ttl": 0 })).await.refused(422, "ttl");
    assert_eq!(api.get(&path).await.expect(200)["nonce"], Value::Null);
}
