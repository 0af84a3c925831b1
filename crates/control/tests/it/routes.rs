//! What edges see: one row an app and region, following Machines, checks, cordons and hosts.

use godwit_api::machine::{CheckStatus, MachineState};
use godwit_api::route::{AppRegions, ClosedPort, Readiness, RouteRow};
use godwit_api::{AppName, keys};
use godwit_store::StoreExt;
use serde_json::json;

use crate::bed::{Bed, IMAGE, config, until, web};

async fn row(bed: &Bed, region: &str) -> Option<RouteRow> {
    let key = keys::route(region, &AppName::parse("web").unwrap());
    let store = bed.running.control.as_ref().unwrap().store();
    store.get_json(&key).await.unwrap().map(|row| row.value)
}

async fn until_readiness(bed: &Bed, readiness: Readiness) -> RouteRow {
    until(&format!("the route is {readiness:?}"), || async {
        row(bed, "fra").await.filter(|row| row.machines.iter().all(|machine| machine.readiness == readiness))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_follows_its_machine() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", web(8080)).await;
    let path = format!("/apps/web/machines/{id}");
    let route = until_readiness(&bed, Readiness::Running).await;
    let (machine, agent) = (&route.machines[0], &bed.agents[0]);
    assert_eq!((machine.door_addr.as_str(), machine.host.as_str()), (agent.door_addr.as_str(), agent.id.as_str()));
    assert_eq!(machine.services[0].internal_port, 8080);
    api.post(&format!("{path}/stop"), json!({})).await.expect(200);
    until_readiness(&bed, Readiness::Stopped).await;
    api.post(&format!("{path}/start"), json!({})).await.expect(200);
    until_readiness(&bed, Readiness::Running).await;
    let critical = CheckStatus {
        name: "servicecheck-00-http-8080".into(),
        status: "critical".into(),
        output: "refused".into(),
        updated_at: "2026-01-01T00:00:00Z".into(),
    };
    agent.becomes(&id, |held| held.checks = vec![critical.clone()]);
    until_readiness(&bed, Readiness::Unavailable).await;
    // Why nobody can connect is told to edges, also when nothing else has changed since.
    for lasting in [false, true] {
        let closed = ClosedPort { port: 8080, why: "listens on 127.0.0.1:8080".into(), lasting };
        agent.becomes(&id, |held| held.closed_ports = vec![closed.clone()]);
        until("the route says so", || async {
            row(&bed, "fra").await.filter(|row| row.machines[0].closed_ports == [closed.clone()])
        })
        .await;
    }
    agent.becomes(&id, |held| {
        held.checks.clear();
        held.closed_ports.clear();
    });
    let route = until_readiness(&bed, Readiness::Running).await;
    assert!(route.machines[0].closed_ports.is_empty());
    api.post(&format!("{path}/cordon"), json!({})).await.expect(200);
    until("the route is cordoned", || async { row(&bed, "fra").await.filter(|row| row.machines[0].cordoned) }).await;
    api.delete(&format!("{path}?force=true")).await.expect(200);
    until("the row is deleted", || async { row(&bed, "fra").await.is_none().then_some(()) }).await;
    let key = keys::app_regions(&AppName::parse("web").unwrap());
    let store = bed.running.control.as_ref().unwrap().store().clone();
    until("the regions are deleted", || async { store.get(&key).await.unwrap().is_none().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_informs_only_or_serves_nothing_is_not_routed_by() {
    let mut bed = Bed::with_hosts(1).await;
    bed.add_host("far", "syd", 4096).await;
    let api = &bed.api;
    let config_with_check = json!({
        "image": IMAGE, "checks": { "own": { "type": "tcp", "port": 1 } },
        "services": [{ "internal_port": 8080, "ports": [{ "port": 80, "handlers": ["http"] }] }],
    });
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let body = json!({ "region": "fra", "config": config_with_check });
    let id = api.post("/apps/web/machines", body).await.expect(200)["id"].as_str().unwrap().to_owned();
    until_readiness(&bed, Readiness::Running).await;
    let critical =
        CheckStatus { name: "own".into(), status: "critical".into(), output: String::new(), updated_at: String::new() };
    bed.agents[0].becomes(&id, |held| held.checks = vec![critical]);
    until("the check is shown", || async { (!api.machine("web", &id).await.checks.is_empty()).then_some(()) }).await;
    // Neither of these serves the app.
    api.post("/apps/web/machines", json!({ "region": "fra", "config": config() })).await.expect(200);
    let hidden = json!({ "region": "fra", "config": web(1), "skip_service_registration": true });
    api.post("/apps/web/machines", hidden).await.expect(200);
    let far = api.post("/apps/web/machines", json!({ "region": "syd", "config": web(2) })).await.expect(200);
    api.until("web", far["id"].as_str().unwrap(), MachineState::Started).await;
    until("both regions are told", || async {
        let key = keys::app_regions(&AppName::parse("web").unwrap());
        let store = bed.running.control.as_ref().unwrap().store().clone();
        let regions = store.get_json::<AppRegions>(&key).await.unwrap()?;
        (regions.value.regions == ["fra", "syd"]).then_some(())
    })
    .await;
    let route = row(&bed, "fra").await.unwrap();
    assert_eq!(route.machines.len(), 1);
    assert_eq!(route.machines[0].readiness, Readiness::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_written_only_when_it_changes() {
    let bed = Bed::with_hosts(1).await;
    let id = bed.api.app_with_machine("web", web(8080)).await;
    until_readiness(&bed, Readiness::Running).await;
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let key = keys::route("fra", &AppName::parse("web").unwrap());
    let before = store.get(&key).await.unwrap().unwrap().mod_revision;
    for number in 0..5 {
        let path = format!("/apps/web/machines/{id}/metadata/n");
        bed.api.post(&path, json!({ "value": number.to_string() })).await.expect(204);
    }
    // A change that does show comes after all that did not.
    bed.api.post(&format!("/apps/web/machines/{id}/cordon"), json!({})).await.expect(200);
    let after = until("the cordon shows", || async {
        let row = store.get(&key).await.unwrap().unwrap();
        (row.mod_revision > before).then_some(row)
    })
    .await;
    assert_eq!(after.version, store.get(&key).await.unwrap().unwrap().version);
    assert!(after.json::<RouteRow>().unwrap().value.machines[0].cordoned, "the first write after is the cordon's");
}

#[tokio::test(flavor = "multi_thread")]
async fn uncordon_registers_what_was_created_without_and_nothing_else_does() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let blue = api.app_with_machine("web", web(8080)).await;
    until_readiness(&bed, Readiness::Running).await;
    let hidden = json!({ "config": web(8080), "skip_service_registration": true });
    let green = api.post("/apps/web/machines", hidden).await.expect(200);
    assert_eq!(green["cordoned"], true, "it is told as what it is: out of its app's routes");
    let id = green["id"].as_str().unwrap();
    let path = format!("/apps/web/machines/{id}");
    api.until("web", id, MachineState::Started).await;
    // An update that does not speak of it changes nothing of it.
    api.post(&path, json!({ "config": web(8080) })).await.expect(200);
    assert!(api.machine("web", id).await.cordoned);
    api.post(&format!("{path}/uncordon"), json!({})).await.expect(200);
    assert!(!api.machine("web", id).await.cordoned);
    let both =
        until("both are in the route", || async { row(&bed, "fra").await.filter(|row| row.machines.len() == 2) }).await;
    assert!(both.machines.iter().all(|machine| !machine.cordoned));
    api.post(&format!("/apps/web/machines/{blue}/cordon"), json!({})).await.expect(200);
    until("green alone takes requests", || async {
        let row = row(&bed, "fra").await?;
        let open: Vec<_> = row.machines.iter().filter(|machine| !machine.cordoned).collect();
        (open.len() == 1 && open[0].machine.as_str() == id).then_some(())
    })
    .await;
    api.post(&path, json!({ "config": web(8080) })).await.expect(200);
    assert!(!api.machine("web", id).await.cordoned, "an update leaves it registered");
    // Registered once, taken out, put back.
    api.post(&format!("{path}/cordon"), json!({})).await.expect(200);
    assert!(api.machine("web", id).await.cordoned);
    api.post(&format!("{path}/uncordon"), json!({})).await.expect(200);
    assert!(!api.machine("web", id).await.cordoned);
}
