//! Hosts that refuse, lose answers or are away, and control killed between its transaction and its call: a Machine
//! ends on one host, at one epoch.

use std::collections::BTreeMap;

use godwit_api::Epoch;
use godwit_api::machine::MachineState;
use godwit_api::row::{GenerationRow, MachineRow};
use godwit_api::{AppName, keys};
use godwit_store::StoreExt;
use serde_json::json;

use crate::bed::{Bed, IMAGE, config, until};

/// No Machine was ever accepted by two hosts at the same epoch, and none is held by two.
#[track_caller]
fn one_life_each(bed: &Bed) {
    let mut accepted: BTreeMap<(String, Epoch), Vec<&str>> = BTreeMap::new();
    let mut holders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for agent in &bed.agents {
        let journal = agent.journal();
        for (machine, epoch) in &journal.accepted {
            accepted.entry((machine.to_string(), *epoch)).or_default().push(&agent.id);
        }
        for held in journal.held.values().filter(|held| held.state == MachineState::Started) {
            holders.entry(held.placement.machine.to_string()).or_default().push(&agent.id);
        }
    }
    for (what, mut hosts) in accepted {
        hosts.dedup();
        assert_eq!(hosts.len(), 1, "{what:?} accepted by {hosts:?}");
    }
    for (machine, hosts) in holders {
        assert_eq!(hosts.len(), 1, "{machine} runs on {hosts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_machine_is_placed_elsewhere_at_a_new_epoch() {
    let bed = Bed::with_hosts(3).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    for agent in &bed.agents[..2] {
        agent.turn(|knobs| knobs.refuse = Some("the disk is broken".into()));
    }
    for _ in 0..6 {
        let id = api.new_machine("web", config()).await;
        let machine = api.until("web", &id, MachineState::Started).await;
        assert_eq!(machine.host_id, bed.agents[2].id);
    }
    one_life_each(&bed);
    bed.agents[2].turn(|knobs| knobs.refuse = Some("full as well".into()));
    let refused = api.post("/apps/web/machines", json!({ "config": config() })).await;
    let body = refused.refused(503, "full as well");
    assert_eq!(body["status"], "insufficient_capacity");
    assert_eq!(api.get("/apps/web/machines?include_deleted=true").await.expect(200).as_array().unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_asks_the_same_host_again() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    for agent in &bed.agents {
        agent.turn(|knobs| knobs.lose_answers = true);
    }
    for _ in 0..4 {
        let id = api.new_machine("web", config()).await;
        api.until("web", &id, MachineState::Started).await;
    }
    one_life_each(&bed);
    let placed: usize = bed.agents.iter().map(|agent| agent.journal().held.len()).sum();
    assert_eq!(placed, 4);
    assert!(bed.agents.iter().map(|agent| agent.journal().puts).sum::<u64>() > 4, "each was asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_gets_its_machine_when_it_returns() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    bed.agents[0].turn(|knobs| knobs.away = true);
    let id = api.new_machine("web", config()).await;
    assert_eq!(api.machine("web", &id).await.state, MachineState::Created);
    bed.agents[0].turn(|knobs| knobs.away = false);
    api.until("web", &id, MachineState::Started).await;
    one_life_each(&bed);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_killed_between_its_transaction_and_its_call_loses_nothing() {
    let mut bed = Bed::with_hosts(2).await;
    bed.api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    for agent in &bed.agents {
        agent.turn(|knobs| knobs.hang = true);
    }
    let api = bed.api.clone();
    let create = tokio::spawn(async move {
        let body = json!({ "name": "one", "config": config() }).to_string().into_bytes();
        // Its connection dies with control.
        tokio::spawn(async move { api.call("POST", "/apps/web/machines", Some(body), &[]).await }).await.is_err()
    });
    until("control calls the host", || async {
        bed.agents.iter().any(|agent| agent.journal().calls.contains(&"place".to_owned())).then_some(())
    })
    .await;
    bed.kill();
    assert!(create.await.unwrap(), "the client saw no answer");
    for agent in &bed.agents {
        agent.turn(|knobs| knobs.hang = false);
    }
    bed.start_again(|_| {});
    let list = until("the Machine is there", || async {
        let list = bed.api.get("/apps/web/machines").await.expect(200);
        (list.as_array().unwrap().len() == 1).then_some(list)
    })
    .await;
    bed.api.until("web", list[0]["id"].as_str().unwrap(), MachineState::Started).await;
    one_life_each(&bed);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_killed_after_a_refusal_places_again_when_it_is_back() {
    let mut bed = Bed::with_hosts(1).await;
    bed.api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    // The refusal comes by the pull, never by an answer: as if control died before it.
    bed.agents[0].turn(|knobs| {
        knobs.refuse = Some("not here".into());
        knobs.lose_answers = true;
    });
    let api = bed.api.clone();
    let create = tokio::spawn(async move { api.post("/apps/web/machines", json!({ "config": config() })).await.code });
    until("the host has journaled its refusal", || async {
        bed.agents[0].journal().held.values().any(|held| held.refused.is_some()).then_some(())
    })
    .await;
    bed.kill();
    let _ = create.await;
    bed.start_again(|_| {});
    bed.add_host("w2", "fra", 4096).await;
    let id = until("the Machine stands on the other host", || async {
        let list = bed.api.get("/apps/web/machines").await.expect(200);
        let machine = list.as_array().unwrap().first()?.clone();
        (machine["host_id"] == bed.agents[1].id.as_str()).then(|| machine["id"].as_str().unwrap().to_owned())
    })
    .await;
    bed.api.until("web", &id, MachineState::Started).await;
    one_life_each(&bed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_destroyed_with_its_host_away_and_gone_when_it_returns() {
    let bed = Bed::with_hosts(1).await;
    let api = &bed.api;
    let id = api.app_with_machine("web", config()).await;
    api.until("web", &id, MachineState::Started).await;
    bed.agents[0].turn(|knobs| knobs.away = true);
    api.delete(&format!("/apps/web/machines/{id}?force=true")).await.expect(200);
    assert_eq!(api.machine("web", &id).await.state, MachineState::Destroying);
    bed.agents[0].turn(|knobs| knobs.away = false);
    api.until("web", &id, MachineState::Destroyed).await;
    let held = bed.agents[0].journal().held.values().map(|held| held.state).collect::<Vec<_>>();
    assert_eq!(held, [MachineState::Destroyed]);
    let store = bed.running.control.as_ref().unwrap().store().clone();
    until("nothing of it is held", || async {
        let placements = store.list("placements/").await.unwrap().rows;
        let addresses = store.list("addresses/").await.unwrap().rows;
        (placements.is_empty() && addresses.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_destroys_itself_is_destroyed() {
    let bed = Bed::with_hosts(1).await;
    let id = bed.api.app_with_machine("web", json!({ "image": IMAGE, "auto_destroy": true })).await;
    bed.api.until("web", &id, MachineState::Started).await;
    bed.agents[0].becomes(&id, |held| held.state = MachineState::Destroyed);
    bed.api.until("web", &id, MachineState::Destroyed).await;
    until("its row says so", || async {
        let list = bed.api.get("/apps/web").await.expect(200);
        (list["machine_count"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_outranks_every_epoch_that_hosts_have_seen() {
    let mut bed = Bed::with_hosts(1).await;
    let id = bed.api.app_with_machine("web", config()).await;
    bed.api.until("web", &id, MachineState::Started).await;
    let generation = |bed: &Bed| {
        let store = bed.running.control.as_ref().unwrap().store().clone();
        async move { store.get_json::<GenerationRow>(keys::GENERATION).await.unwrap().unwrap().value.generation }
    };
    let before = generation(&bed).await;
    bed.restart(|_| {});
    assert_eq!(generation(&bed).await, before, "a plain restart goes on");
    bed.restart(|raw| raw.restored = true);
    assert!(generation(&bed).await > before);
    let new = bed.api.new_machine("web", config()).await;
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let epoch = |id: String| {
        let store = store.clone();
        async move {
            let key = keys::machine(&AppName::parse("web").unwrap(), &id.parse().unwrap());
            store.get_json::<MachineRow>(&key).await.unwrap().unwrap().value.epoch
        }
    };
    assert!(epoch(new).await > epoch(id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_creates_at_once_fill_no_host_beyond_its_size() {
    let bed = Bed::with_hosts(3).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    // 3 hosts of 4096 MB take 24 Machines of 512 MB, and not one more.
    let body = json!({ "config": { "image": IMAGE, "guest": { "memory_mb": 512 } } });
    let creates = (0..30).map(|_| {
        let (api, body) = (api.clone(), body.clone());
        tokio::spawn(async move { api.post("/apps/web/machines", body).await.code })
    });
    let mut codes = Vec::new();
    for create in creates.collect::<Vec<_>>() {
        codes.push(create.await.unwrap());
    }
    assert!(codes.iter().all(|code| [200, 503].contains(code)), "{codes:?}");
    let mut made = codes.iter().filter(|code| **code == 200).count();
    assert!(made <= 24, "{codes:?}");
    // A host may count a Machine twice until it has reported how far it has pulled: those come again.
    while made < 24 {
        until("room", || async { (api.post("/apps/web/machines", body.clone()).await.code == 200).then_some(()) })
            .await;
        made += 1;
    }
    api.post("/apps/web/machines", body).await.refused(503, "3 full");
    for agent in &bed.agents {
        let placed = agent.journal().held.len();
        assert!(placed <= 8, "{placed} on one host");
    }
    one_life_each(&bed);
}
