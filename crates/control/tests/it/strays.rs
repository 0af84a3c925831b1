//! What a host holds and no row names is listed, ended by its exact id, and nothing else is touched.

use godwit_api::machine::MachineState;
use serde_json::json;

use crate::bed::{Bed, config, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_no_row_names_is_listed_and_ended_and_what_has_a_row_is_not() {
    let bed = Bed::with_hosts(1).await;
    let (api, agent) = (&bed.api, &bed.agents[0]);
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let known = api.new_machine("web", config()).await;
    api.until("web", &known, MachineState::Started).await;
    let strays = format!("/hosts/{}/strays", agent.id);
    assert_eq!(api.get(&strays).await.expect(200), json!([]));
    // As after a restore from an older copy: the host holds two more, one of a name that nearly is the other's.
    let mut placement = agent.journal().held.values().next().expect("one is held").placement.clone();
    for (id, app) in [("00000000000001", "web"), ("00000000000010", "gone")] {
        (placement.machine, placement.app) = (id.parse().unwrap(), app.parse().unwrap());
        agent.receives(&placement, |held| (held.held, held.state) = (true, MachineState::Started));
    }
    let listed = until("both are listed", || async {
        let listed = api.get(&strays).await.expect(200);
        (listed.as_array().unwrap().len() == 2).then_some(listed)
    });
    let listed = listed.await;
    assert_eq!(listed[0]["id"], "00000000000001");
    assert_eq!((&listed[1]["app"], &listed[1]["kind"]), (&json!("gone"), &json!("machine")));
    assert_eq!((&listed[1]["state"], &listed[1]["ending"]), (&json!("started"), &json!(false)));

    // What has a row, and what nobody holds, are no strays.
    api.delete(&format!("{strays}/{known}")).await.refused(404, "holds no stray");
    api.delete(&format!("{strays}/00000000000100")).await.refused(404, "holds no stray");
    api.delete(&format!("/hosts/no-such-0000/strays/{known}")).await.refused(404, "");
    api.delete(&format!("{strays}/00000000000001")).await.expect(200);
    until("it has ended", || async {
        let listed = api.get(&strays).await.expect(200);
        (listed.as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    let held: Vec<String> = {
        let journal = agent.journal();
        let living = journal.held.values().filter(|held| held.state == MachineState::Started);
        living.map(|held| held.placement.machine.to_string()).collect()
    };
    assert!(held.contains(&known) && held.contains(&"00000000000010".to_owned()), "{held:?}");
    assert!(!held.contains(&"00000000000001".to_owned()), "{held:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_ports_below_1024_and_those_of_control_are_refused_unless_allowed() {
    let mut bed = Bed::with_hosts(1).await;
    bed.api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let raw = |port: u16| {
        let services = json!([{ "internal_port": 1, "ports": [{ "port": port }] }]);
        json!({ "config": { "image": crate::bed::IMAGE, "services": services } })
    };
    let control: u16 = bed.url.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    bed.api.post("/apps/web/machines", raw(25)).await.refused(422, "allows 1024-65535");
    bed.restart(|raw| raw.listen_also = vec![format!("127.0.0.1:{}", control + 1)]);
    bed.api.post("/apps/web/machines", raw(control + 1)).await.refused(422, "control itself listens");
    // HTTP on 80 and 443 is no raw port.
    let web = bed.api.new_machine("web", crate::bed::web(80)).await;
    let update = format!("/apps/web/machines/{web}");
    bed.api.post(&update, raw(25)).await.refused(422, "port 25");
    bed.restart(|raw| raw.raw_ports = vec!["25".into()]);
    bed.api.post("/apps/web/machines", raw(25)).await.expect(200);
}
