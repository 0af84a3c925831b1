//! What a host holds and no row names is listed, ended or adopted by its exact id, and nothing else is touched.

use godwit_api::machine::MachineState;
use godwit_api::row::Placement;
use godwit_store::{Op, Txn};
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

/// Takes the rows of a Machine and its volume out of the store, as if it were put back from a copy that is older.
async fn forget(bed: &Bed, machine: &str, name: &str, volume: &str) {
    let (host, number) = (&bed.agents[0].id, volume.trim_start_matches("vol_"));
    let address = bed.api.get(&format!("/apps/web/machines/{machine}")).await.expect(200)["private_ip"].clone();
    let rows = [
        format!("machines/web/{machine}"),
        format!("machine-names/web/{name}"),
        format!("addresses/{}", address.as_str().unwrap()),
        format!("placements/{host}/{machine}"),
        format!("volumes/web/{volume}"),
        format!("placements/{host}/{number}"),
    ];
    let txn = Txn::of(rows.into_iter().map(Op::delete));
    assert!(bed.running.control.as_ref().unwrap().store().txn(txn).await.unwrap().succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_is_adopted_with_its_volumes_above_what_its_host_holds() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    for app in ["web", "shop"] {
        api.post("/apps", json!({ "app_name": app })).await.expect(201);
    }
    let host = bed.agents[0].id.clone();
    api.post(&format!("/hosts/{}/cordon", bed.agents[1].id), json!({})).await.expect(200);
    let volume = api.post("/apps/web/volumes", json!({ "name": "data", "size_gb": 2 })).await.expect(200)["id"].clone();
    let volume = volume.as_str().unwrap().to_owned();
    let mut wanted = config();
    wanted["mounts"] = json!([{ "volume": volume, "path": "/data" }]);
    wanted["env"] = json!({ "KEPT": "yes" });
    wanted["services"] = json!([{ "internal_port": 5432, "ports": [{ "port": 5432 }] }]);
    let made = api.post("/apps/web/machines", json!({ "name": "db", "config": wanted })).await.expect(200);
    let machine = made["id"].as_str().unwrap().to_owned();
    api.until("web", &machine, MachineState::Started).await;
    let before = api.get(&format!("/apps/web/machines/{machine}")).await.expect(200);
    let epoch = bed.agents[0].journal().held[&machine.parse().unwrap()].epoch;
    forget(&bed, &machine, "db", &volume).await;
    let strays = format!("/hosts/{host}/strays");
    until("both are strays", || async {
        (api.get(&strays).await.expect(200).as_array().unwrap().len() == 2).then_some(())
    })
    .await;

    let adopt = format!("{strays}/{machine}/adopt");
    // Mistakes are named, and change nothing.
    api.post(&adopt, json!({})).await.refused(422, "app: ");
    api.post(&adopt, json!({ "app": "shop" })).await.refused(422, "is of app web, not of shop");
    api.post(&format!("{strays}/00000000000100/adopt"), json!({ "app": "web" })).await.refused(404, "holds no stray");
    let taken = api.post("/apps/web/machines", json!({ "name": "db", "skip_launch": true, "config": config() })).await;
    let taken = taken.expect(200)["id"].as_str().unwrap().to_owned();
    api.post(&adopt, json!({ "app": "web" })).await.refused(409, "is taken by Machine");
    let (other, placement) = {
        let journal = bed.agents[0].journal();
        (&bed.agents[1], journal.held[&machine.parse().unwrap()].placement.clone())
    };
    let elsewhere = Placement { host: other.id.parse().unwrap(), ..placement };
    other.receives(&elsewhere, |held| (held.held, held.state) = (true, MachineState::Stopped));
    let listed_elsewhere = |count: usize| async move {
        let listed = api.get(&format!("/hosts/{}/strays", other.id)).await.expect(200);
        (listed.as_array().unwrap().len() == count).then_some(())
    };
    until("another host holds it too", || listed_elsewhere(1)).await;
    api.post(&adopt, json!({ "app": "web", "name": "db2" })).await.refused(409, "is held by host");
    other.forgets(&machine).await;
    until("it does no more", || listed_elsewhere(0)).await;
    assert_eq!(api.get(&strays).await.expect(200).as_array().unwrap().len(), 2);

    // With its volume, its address, its configuration and its version; the epoch is above.
    let adopted = api.post(&adopt, json!({ "app": "web", "name": "db2" })).await.expect(200);
    assert_eq!(
        (&adopted["name"], &adopted["kind"], &adopted["volumes"]),
        (&json!("db2"), &json!("machine"), &json!([volume]))
    );
    let after = api.get(&format!("/apps/web/machines/{machine}")).await.expect(200);
    for member in ["private_ip", "instance_id", "config", "host_id", "region", "state"] {
        assert_eq!(after[member], before[member], "{member}");
    }
    assert_eq!(after["image_ref"]["digest"], before["image_ref"]["digest"]);
    let volume_now = api.get(&format!("/apps/web/volumes/{volume}")).await.expect(200);
    assert_eq!((&volume_now["attached_machine_id"], &volume_now["size_gb"]), (&json!(machine), &json!(2)));
    until("its host knows the newer epoch, and it runs on", || async {
        let journal = bed.agents[0].journal();
        let held = &journal.held[&machine.parse().unwrap()];
        (held.placement.epoch > epoch && held.state == MachineState::Started).then_some(())
    })
    .await;
    assert_eq!(api.get(&strays).await.expect(200), json!([]));
    api.post(&adopt, json!({ "app": "web" })).await.refused(404, "holds no stray");
    // It is the app's as any other is: its port is taken, and it can be stopped.
    let raw = json!({ "config": { "image": crate::bed::IMAGE, "services": [{ "internal_port": 1, "ports": [{ "port": 5432 }] }] } });
    api.post("/apps/shop/machines", raw).await.refused(409, "is already used by app web");
    api.post(&format!("/apps/web/machines/{machine}/stop"), json!({})).await.expect(200);
    api.until("web", &machine, MachineState::Stopped).await;
    api.delete(&format!("/apps/web/machines/{taken}?force=true")).await.expect(200);
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
