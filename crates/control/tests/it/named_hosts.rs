//! A creation that names its host: it goes there or nowhere, and who asked is told why.

use godwit_api::machine::MachineState;
use serde_json::{Value, json};

use crate::bed::{Bed, config, until};
use crate::volumes::{mounting, until_volume};

fn on(host: &str, config: Value) -> Value {
    json!({ "host": host, "config": config })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_placed_on_the_host_that_is_named_or_not_at_all() {
    let mut bed = Bed::with_hosts(3).await;
    bed.add_host("far", "syd", 4096).await;
    bed.add_host("small", "fra", 128).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let ids: Vec<String> = bed.agents.iter().map(|agent| agent.id.to_string()).collect();
    // Spread over the hosts they would be, if nobody named one.
    for _ in 0..3 {
        let made = api.post("/apps/web/machines", on(&ids[1], config())).await.expect(200);
        assert_eq!(made["host_id"], ids[1].as_str());
    }
    let far = api.post("/apps/web/machines", on(&ids[3], config())).await.expect(200);
    assert_eq!((far["host_id"].as_str(), far["region"].as_str()), (Some(ids[3].as_str()), Some("syd")));
    let before = api.get("/apps/web/machines").await.expect(200).as_array().unwrap().len();

    api.post("/apps/web/machines", on("nobody", config())).await.refused(422, &ids[0]);
    // No prefix of an id means a host.
    api.post("/apps/web/machines", on(&ids[0][..ids[0].len() - 1], config())).await.refused(422, "there is no host");
    let elsewhere = json!({ "host": ids[3], "region": "fra", "config": config() });
    api.post("/apps/web/machines", elsewhere).await.refused(422, "is in region syd, not in fra");
    api.post("/apps/web/machines", on(&ids[4], config())).await.refused(422, "smaller than the Machine");
    let mut large = config();
    large["guest"] = json!({ "memory_mb": 3900 });
    api.post("/apps/web/machines", on(&ids[1], large)).await.refused(503, "has no room for it now");
    api.post(&format!("/hosts/{}/cordon", ids[0]), json!({})).await.expect(200);
    api.post("/apps/web/machines", on(&ids[0], config())).await.refused(422, "is cordoned");
    bed.agents[2].turn(|knobs| knobs.away = true);
    until("the host counts as unreachable", || async {
        let host = api.get(&format!("/hosts/{}", ids[2])).await.expect(200);
        (host["state"] == "unreachable").then_some(())
    })
    .await;
    api.post("/apps/web/machines", on(&ids[2], config())).await.refused(503, "is unreachable");
    assert_eq!(api.get("/apps/web/machines").await.expect(200).as_array().unwrap().len(), before, "nothing was made");

    let id = far["id"].as_str().unwrap();
    let path = format!("/apps/web/machines/{id}");
    api.post(&path, on(&ids[1], config())).await.refused(422, "an update leaves Machine");
    api.post(&path, on(&ids[3], config())).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_host_that_refuses_is_the_last_word_and_volumes_have_theirs() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let ids: Vec<String> = bed.agents.iter().map(|agent| agent.id.to_string()).collect();
    bed.agents[0].turn(|knobs| knobs.refuse = Some("the disk is broken".into()));
    api.post("/apps/web/machines", on(&ids[0], config())).await.refused(503, "the disk is broken");
    assert_eq!(api.get("/apps/web/machines").await.expect(200), json!([]), "and no other host was asked");
    // Its refusal may come when nobody waits any more: it goes nowhere else then either.
    bed.agents[0].turn(|knobs| knobs.lose_answers = true);
    let made = api.post("/apps/web/machines", on(&ids[0], config())).await.expect(200);
    let id = made["id"].as_str().unwrap();
    until("its refusal is journaled", || async { (!bed.agents[0].journal().held.is_empty()).then_some(()) }).await;
    // What is made later and named freely goes on: the other host is well.
    let free = api.new_machine("web", config()).await;
    let free = api.until("web", &free, MachineState::Started).await;
    assert_eq!(free.host_id, ids[1]);
    assert_eq!(api.machine("web", id).await.host_id, ids[0]);

    let volume = api.post("/apps/web/volumes", json!({ "name": "data", "size_gb": 1 })).await.expect(200);
    let volume = volume["id"].as_str().unwrap().to_owned();
    until_volume(&bed, "web", &volume, "created").await;
    let other = if api.get(&format!("/apps/web/volumes/{volume}")).await.expect(200)["zone"] == ids[0].as_str() {
        1
    } else {
        0
    };
    api.post("/apps/web/machines", on(&ids[other], mounting(&volume, "/data")))
        .await
        .refused(422, "the volumes are on host");
}
