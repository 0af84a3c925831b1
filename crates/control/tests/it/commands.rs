//! Commands go to the host that holds the Machine, and each is bounded.

use godwit_api::machine::MachineState;
use serde_json::json;

use crate::agent::MEASURED;
use crate::bed::{Bed, config, until};

#[tokio::test(flavor = "multi_thread")]
async fn commands_reach_the_machines_host() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    let machine = api.until("web", &id, MachineState::Started).await;
    let path = format!("/apps/web/machines/{id}");
    api.post(&format!("{path}/stop"), json!({ "signal": "SIGTERM", "timeout": 3_000_000_000u64 })).await.expect(200);
    api.until("web", &id, MachineState::Stopped).await;
    let started = api.post(&format!("{path}/start"), json!(null)).await.expect(200);
    assert_eq!(started["previous_state"], "stopped");
    api.call("POST", &format!("{path}/restart?timeout=5&force_stop=true"), None, &[]).await.expect(200);
    api.post(&format!("{path}/signal"), json!({ "signal": "SIGUSR1" })).await.expect(200);
    let answer = api.post(&format!("{path}/exec"), json!({ "command": ["echo", "a"], "timeout": 5 })).await.expect(200);
    assert_eq!(answer, json!({ "exit_code": 3, "stdout": "echo a", "stderr": "" }));
    let processes = api.get(&format!("{path}/ps?sort_by=rss&order=asc")).await.expect(200);
    assert_eq!(processes[0]["pid"], 2);
    let logs = api.get(&format!("{path}/logs?tail=3")).await;
    assert_eq!(logs.body.as_str().unwrap().lines().count(), 3);
    let agent = bed.agent_of(&machine.host_id);
    let calls = agent.journal().calls.clone();
    assert!(calls.contains(&"stop Some(\"SIGTERM\") Some(3000)".to_owned()), "{calls:?}");
    assert!(calls.contains(&"signal SIGUSR1".to_owned()), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_to_a_host_that_is_away_is_told_to_come_again() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    bed.agents[0].turn(|knobs| knobs.away = true);
    api.post(&format!("/apps/web/machines/{id}/start"), json!({})).await.refused(503, "is not reached");
    until("the host counts as unreachable", || async {
        (api.machine("web", &id).await.host_status == "unreachable").then_some(())
    })
    .await;
    assert_eq!(api.get("/hosts").await.expect(200)[0]["state"], "unreachable");
    api.post("/apps/web/machines", json!({ "config": config() })).await.refused(503, "1 unreachable");
    // What the host last said of the Machine still stands, and its metadata can be changed.
    assert_eq!(api.machine("web", &id).await.state, MachineState::Started);
    api.post(&format!("/apps/web/machines/{id}/metadata/a"), json!({ "value": "b" })).await.expect(204);
    bed.agents[0].turn(|knobs| knobs.away = false);
    until("the host is back", || async { (api.machine("web", &id).await.host_status == "ok").then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cordons_keep_machines_out_of_routes_and_placements_off_hosts() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.post(&format!("/apps/web/machines/{id}/cordon"), json!({})).await.expect(200);
    assert!(api.machine("web", &id).await.cordoned);
    api.post(&format!("/apps/web/machines/{id}/uncordon"), json!({})).await.expect(200);
    assert!(!api.machine("web", &id).await.cordoned);
    let host = &bed.agents[0].id;
    api.post(&format!("/hosts/{host}/cordon"), json!({})).await.expect(200);
    api.post("/apps/web/machines", json!({ "config": config() })).await.refused(503, "1 cordoned");
    api.post(&format!("/hosts/{host}/uncordon"), json!({})).await.expect(200);
    api.new_machine("web", config()).await;
    api.get("/hosts/nobody").await.refused(404, "nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_tells_apart_what_it_may_give_what_is_reserved_and_what_is_used() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    let host = until("the reservation is told", || async {
        let host = api.get(&format!("/hosts/{}", bed.agents[0].id)).await.expect(200);
        (host["reserved"]["memory_mb"] == 256).then_some(host)
    })
    .await;
    assert_eq!(host["capacity"]["memory_mb"], 4096);
    assert_eq!(host["used"], json!(MEASURED.used));
    assert_eq!(host["machine"], json!(MEASURED.whole));
}
