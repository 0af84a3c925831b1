//! How things end is told: faults of owners, refused updates, destroyed Machines, and waits that nothing can fulfil.

use std::time::{Duration, Instant};

use godwit_api::event::ExitEvent;
use godwit_api::machine::MachineState;
use godwit_store::StoreExt;
use serde_json::{Value, json};

use crate::agent::event;
use crate::bed::{Bed, IMAGE, config, until};
use crate::volumes::{mounting, until_volume};

fn reasons(events: &Value) -> Vec<String> {
    let events = events.as_array().unwrap().iter();
    events.filter_map(|event| event["request"]["reason"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_owner_gave_wrong_fails_once_and_no_other_host_is_asked() {
    let bed = Bed::with_hosts(3).await;
    for agent in &bed.agents {
        agent.turn(|knobs| knobs.fail = Some("layer 2 cannot be unpacked".into()));
    }
    let id = bed.api.app_with_machine("web", config()).await;
    bed.api.until("web", &id, MachineState::Failed).await;
    let events = bed.api.get(&format!("/apps/web/machines/{id}/events")).await.expect(200);
    assert_eq!(reasons(&events), ["layer 2 cannot be unpacked"]);
    // Whatever else happens, nothing is placed again.
    let other = bed.api.new_machine("web", config()).await;
    bed.api.until("web", &other, MachineState::Failed).await;
    assert_eq!(bed.agents.iter().map(|agent| agent.journal().accepted.len()).sum::<usize>(), 2);
    let began = Instant::now();
    let path = format!("/apps/web/machines/{id}/wait?state=started&timeout=60");
    bed.api.get(&path).await.refused(409, "layer 2 cannot be unpacked");
    assert!(began.elapsed() < Duration::from_secs(30), "it ended because nothing could come, not by its time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_every_host_refuses_is_asked_for_ever_more_rarely_and_keeps_its_reasons() {
    let bed = Bed::with_hosts(3).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    for agent in &bed.agents {
        // By the pull alone, so that the create is not refused while its client waits.
        agent.turn(|knobs| {
            knobs.refuse = Some("the disk is broken".into());
            knobs.lose_answers = true;
        });
    }
    let made = api.post("/apps/web/machines", json!({ "config": config() })).await;
    let id = made.expect(200)["id"].as_str().unwrap().to_owned();
    let refusals = || bed.agents.iter().map(|agent| agent.journal().held.len()).sum::<usize>();
    until("each host has refused it", || async { (refusals() == 3).then_some(()) }).await;
    until("its events keep what the hosts before told", || async {
        let events = api.get(&format!("/apps/web/machines/{id}/events")).await.expect(200);
        (events.as_array().unwrap().len() >= 3).then_some(())
    })
    .await;
    let epoch = crate::moves::machine_row(&bed, &id).await;
    assert_eq!((epoch.refusals.count, epoch.refusals.by.len()), (2, 2), "{epoch:?}");
    // The present one, and the two before: nobody is asked again at once, whatever else changes meanwhile.
    for agent in &bed.agents {
        agent.turn(|knobs| knobs.refuse = None);
    }
    for _ in 0..5 {
        api.new_machine("web", config()).await;
    }
    assert_eq!(crate::moves::machine_row(&bed, &id).await.epoch, epoch.epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_its_host_drops_later_leaves_the_old_version() {
    let mut bed = Bed::with_hosts(1).await;
    let raw = json!({ "image": IMAGE, "services": [{ "internal_port": 1, "ports": [{ "port": 2525 }] }] });
    let id = bed.api.app_with_machine("web", raw).await;
    let before = bed.api.until("web", &id, MachineState::Started).await;
    bed.agents[0].turn(|knobs| knobs.drop_updates = Some("layer 2 cannot be unpacked".into()));
    let path = format!("/apps/web/machines/{id}");
    let body = json!({ "config": { "image": IMAGE, "env": { "A": "1" } } });
    let updated = bed.api.post(&path, body.clone()).await.expect(200);
    let version = updated["instance_id"].as_str().unwrap().to_owned();
    let wait = format!("{path}/wait?instance_id={version}&state=started&timeout=60");
    bed.api.get(&wait).await.refused(409, "layer 2 cannot be unpacked");
    let stands = |bed: &Bed| {
        let (api, id, before) = (bed.api.clone(), id.clone(), before.clone());
        async move {
            until("the old version is shown", || async {
                let now = api.machine("web", &id).await;
                let same = (&now.instance_id, &now.config, &now.image_ref)
                    == (&before.instance_id, &before.config, &before.image_ref);
                (same && now.state == MachineState::Started).then_some(())
            })
            .await;
        }
    };
    stands(&bed).await;
    assert_eq!(bed.api.get(&format!("{path}/versions")).await.expect(200).as_array().unwrap().len(), 1);
    // Its port is its own again.
    bed.api.post("/apps", json!({ "app_name": "other" })).await.expect(201);
    let raw = json!({ "image": IMAGE, "services": [{ "internal_port": 1, "ports": [{ "port": 2525 }] }] });
    bed.api.post("/apps/other/machines", json!({ "config": raw })).await.refused(409, "2525");

    // The same when control dies between its row and its call: the host hears of it by its pull.
    bed.agents[0].turn(|knobs| knobs.hang = true);
    let (api, to) = (bed.api.clone(), path.clone());
    let update = tokio::spawn(async move {
        let body = body.to_string().into_bytes();
        tokio::spawn(async move { api.call("POST", &to, Some(body), &[]).await }).await.is_err()
    });
    until("control calls the host", || async {
        let calls = bed.agents[0].journal().calls.iter().filter(|call| *call == "place").count();
        (calls >= 3).then_some(())
    })
    .await;
    bed.kill();
    update.await.unwrap();
    bed.agents[0].turn(|knobs| knobs.hang = false);
    bed.start_again(|_| {});
    stands(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_of_a_machine_that_destroyed_itself_stays() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("job", json!({ "image": IMAGE, "auto_destroy": true })).await;
    api.until("job", &id, MachineState::Started).await;
    let path = format!("/apps/job/machines/{id}");
    let waiting = tokio::spawn({
        let (api, path) = (api.clone(), path.clone());
        async move { api.get(&format!("{path}/wait?state=stopped&timeout=60")).await.code }
    });
    let exit = ExitEvent { exit_code: 7, ..ExitEvent::default() };
    bed.agents[0].becomes(&id, |held| {
        held.events = vec![event("exit", "stopped", "exited with code 7", Some(exit.clone()))];
        held.state = MachineState::Destroyed;
        held.held = false;
    });
    assert_eq!(waiting.await.unwrap(), 200, "it has stopped before it was destroyed");
    api.until("job", &id, MachineState::Destroyed).await;
    until("the host has forgotten it", || async {
        let store = bed.running.control.as_ref().unwrap().store().clone();
        let placements = store.list("placements/").await.unwrap().rows;
        placements.is_empty().then_some(())
    })
    .await;
    bed.agents[0].forgets(&id).await;
    for told in [
        api.get(&path).await.expect(200)["events"].clone(),
        api.get(&format!("{path}/events")).await.expect(200),
        api.get("/apps/job/machines?include_deleted=true").await.expect(200)[0]["events"].clone(),
    ] {
        assert_eq!(told[0]["request"]["exit_event"]["exit_code"], 7, "{told}");
    }
    api.get(&format!("{path}/wait?state=stopped&timeout=60")).await.expect(200);
    api.get(&format!("{path}/wait?state=destroyed&timeout=60")).await.expect(200);
    api.get(&format!("{path}/wait?state=started&timeout=60")).await.refused(409, "it is destroyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_can_be_mounted_as_soon_as_it_is_told_and_deleted_as_soon_as_its_machine_is() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    for _ in 0..30 {
        let made = api.post("/apps/web/volumes", json!({ "name": "data" })).await.expect(200);
        assert_eq!(made["state"], "created");
        let volume = made["id"].as_str().unwrap();
        let id = api.new_machine("web", mounting(volume, "/data")).await;
        api.delete(&format!("/apps/web/machines/{id}?force=true")).await.expect(200);
        api.get(&format!("/apps/web/machines/{id}/wait?state=destroyed&timeout=60")).await.expect(200);
        api.delete(&format!("/apps/web/volumes/{volume}")).await.expect(200);
    }
    // And without a wait in between.
    for _ in 0..30 {
        let made = api.post("/apps/web/volumes", json!({ "name": "data" })).await.expect(200);
        let volume = made["id"].as_str().unwrap();
        let id = api.new_machine("web", mounting(volume, "/data")).await;
        api.delete(&format!("/apps/web/machines/{id}?force=true")).await.expect(200);
        api.delete(&format!("/apps/web/volumes/{volume}")).await.expect(200);
        until_volume(&bed, "web", volume, "destroyed").await;
    }
}
