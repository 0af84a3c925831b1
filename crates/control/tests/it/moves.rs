//! Moves as they should go: what is asked, what the two hosts tell, and what users see of it.

use godwit_api::ids::{AppName, Epoch};
use godwit_api::machine::MachineState;
use godwit_api::migration::{MovePart, MoveRole};
use godwit_api::route::{Readiness, RouteRow};
use godwit_api::row::{MachineRow, Placement, VolumeRow};
use godwit_api::ticket::Ticket;
use godwit_api::volume::HydrationFact;
use godwit_api::{MachineId, keys};
use godwit_base::ticket;
use godwit_store::StoreExt;
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::bed::{Bed, IMAGE, config, until, web};
use crate::volumes::{mounting, ready_volume, until_volume};

/// A move that was begun: its id, and its ticket as the target reads it.
pub struct Begun {
    pub id: String,
    pub ticket: Ticket,
}

pub async fn begin(bed: &Bed, path: &str, wish: Value) -> Begun {
    let migration = bed.api.post(&format!("{path}/migrate"), wish).await.expect(202);
    let id = migration["id"].as_str().unwrap().to_owned();
    assert_eq!(migration["phase"], "preparing");
    let target = bed.agent_of(migration["target"].as_str().unwrap());
    let source = bed.agent_of(migration["source"].as_str().unwrap());
    let tickets = target.tickets().await;
    let mut mine = tickets.iter().filter_map(|signed| {
        let opened = ticket::open_as_target(signed, &target.id.parse().unwrap(), target.control_key()).unwrap();
        let as_source = ticket::open_as_source(signed, &source.id.parse().unwrap(), source.control_key());
        (opened.migration.to_string() == id).then(|| (opened.clone(), as_source.unwrap() == opened))
    });
    let (ticket, same) = mine.next_back().expect("the target finds its ticket");
    assert!(same, "both hosts read the same ticket");
    Begun { id, ticket }
}

impl Begun {
    pub fn source<'a>(&self, bed: &'a Bed) -> &'a Agent {
        bed.agent_of(self.ticket.source.as_str())
    }
    pub fn target<'a>(&self, bed: &'a Bed) -> &'a Agent {
        bed.agent_of(self.ticket.target.as_str())
    }

    /// The target has taken in the ticket: it holds nothing yet, and asks the source.
    pub fn accept(&self, bed: &Bed) {
        for placement in self.placements() {
            self.target(bed).receives(placement, |held| {
                held.plays(&self.ticket, MoveRole::Target, MovePart::Asked, &[]);
            });
        }
    }

    /// The source has stopped it and let go.
    pub fn hand_off(&self, bed: &Bed) {
        for placement in self.placements() {
            self.source(bed).becomes(placement.machine.as_str(), |held| {
                (held.held, held.epoch, held.state) = (false, placement.epoch, MachineState::Stopped);
                held.lent_to = placement.volume.is_some().then(|| self.ticket.target.clone());
                held.plays(&self.ticket, MoveRole::Source, MovePart::HandedOff, &[("closing", 1_000)]);
                held.migration.as_mut().unwrap().was_running = placement.launch;
            });
        }
    }

    /// The target holds it, and runs it over volumes that are not filled yet.
    pub fn attach(&self, bed: &Bed) {
        for placement in self.placements() {
            let is_volume = placement.volume.is_some();
            self.target(bed).receives(placement, |held| {
                held.held = true;
                held.state = if placement.launch { MachineState::Started } else { MachineState::Stopped };
                held.hydration = is_volume.then(|| self.hydration(10));
                held.plays(&self.ticket, MoveRole::Target, MovePart::Done, &[("running", 1_250)]);
            });
        }
    }

    pub fn hydration(&self, done_blocks: u64) -> HydrationFact {
        HydrationFact {
            migration: Some(self.ticket.migration.clone()),
            source: Some(self.ticket.source.clone()),
            total_blocks: 100,
            done_blocks,
            data_bytes: 1_000,
            hydrated_bytes: done_blocks * 10,
            wire_bytes: done_blocks * 11,
            demand_fetches: 3,
            map_permille_at_running: Some(4),
            first_read_ms: Some(7.5),
            rate_bytes_per_s: 100,
            ..HydrationFact::default()
        }
    }

    /// Every block is there and checked: the source lets go, and the target has nothing more to tell.
    pub fn fill(&self, bed: &Bed) {
        for carried in &self.ticket.volumes {
            let carrier = carried.placement.machine.as_str();
            self.target(bed).becomes(carrier, |held| {
                held.hydration = None;
                held.hydrated = Some(HydrationFact { verified: true, ..self.hydration(100) });
            });
            self.source(bed).becomes(carrier, |held| {
                (held.state, held.lent_to) = (MachineState::Destroyed, None);
            });
        }
    }

    pub fn placements(&self) -> Vec<&Placement> {
        let volumes = self.ticket.volumes.iter().map(|carried| &carried.placement);
        let volumes = volumes.filter(|placement| placement.machine != self.ticket.lead.machine);
        std::iter::once(&self.ticket.lead).chain(volumes).collect()
    }

    pub async fn until(&self, bed: &Bed, phase: &str) -> Value {
        until(&format!("the move is {phase}"), || async {
            let migration = bed.api.get(&format!("/migrations/{}", self.id)).await.expect(200);
            (migration["phase"] == phase).then_some(migration)
        })
        .await
    }
}

pub async fn machine_row(bed: &Bed, id: &str) -> MachineRow {
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let key = keys::machine(&AppName::parse("web").unwrap(), &id.parse().unwrap());
    store.get_json::<MachineRow>(&key).await.unwrap().unwrap().value
}

pub async fn volume_row(bed: &Bed, id: &str) -> VolumeRow {
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let key = keys::volume(&AppName::parse("web").unwrap(), &id.parse().unwrap());
    store.get_json::<VolumeRow>(&key).await.unwrap().unwrap().value
}

/// `host number` of everything placed under an id, in order of the bed's hosts.
pub async fn placed(bed: &Bed, id: &str) -> Vec<(usize, Epoch)> {
    let id: MachineId = id.strip_prefix("vol_").unwrap_or(id).parse().unwrap();
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let mut found = Vec::new();
    for (number, agent) in bed.agents.iter().enumerate() {
        let key = keys::placement(&agent.id.parse().unwrap(), &id);
        found.extend(store.get_json::<Placement>(&key).await.unwrap().map(|row| (number, row.value.epoch)));
    }
    found
}

/// An app with a Machine that holds a volume, both ready; their ids, and which of the two hosts has them.
pub async fn machine_with_volume(bed: &Bed) -> (String, String, usize) {
    bed.api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let (volume, host) = ready_volume(bed, "web", json!({ "name": "data", "size_gb": 2 })).await;
    let mut config = web(8080);
    config["mounts"] = mounting(&volume, "/data")["mounts"].clone();
    let machine = bed.api.new_machine("web", config).await;
    bed.api.until("web", &machine, MachineState::Started).await;
    let number = bed.agents.iter().position(|agent| agent.id == host).unwrap();
    (machine, volume, number)
}

async fn readiness(bed: &Bed) -> Vec<(String, Readiness)> {
    let store = bed.running.control.as_ref().unwrap().store().clone();
    let row = store.get_json::<RouteRow>(&keys::route("fra", &AppName::parse("web").unwrap())).await.unwrap();
    let machines = row.map(|row| row.value.machines).unwrap_or_default();
    machines.into_iter().map(|machine| (machine.host.to_string(), machine.readiness)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_moves_with_its_volume() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    let to = 1 - from;
    let before = api.machine("web", &machine).await;
    let path = format!("/apps/web/machines/{machine}");
    let plan = api.post(&format!("{path}/migrate"), json!({ "dry_run": true })).await.expect(202);
    assert_eq!((&plan["dry_run"], &plan["target"]), (&json!(true), &json!(bed.agents[to].id)));
    assert_eq!(api.get("/migrations?all=true").await.expect(200), json!([]));

    let begun = begin(&bed, &path, json!({ "drain_timeout_ms": 700 })).await;
    let ticket = &begun.ticket;
    assert_eq!((ticket.drain_timeout_ms, ticket.volumes.len(), ticket.lead.launch), (700, 1, true));
    assert!(ticket.lead.epoch > ticket.from_epoch);
    assert_eq!(
        (ticket.source_url.as_str(), ticket.target_door.as_str()),
        (bed.agents[from].agent_url.as_str(), bed.agents[to].door_addr.as_str())
    );
    until("the target is told to pull", || async {
        bed.agents[to].journal().calls.contains(&"pull".to_owned()).then_some(())
    })
    .await;
    // What would change its place or its configuration is refused by the name of the move; the rest goes on.
    api.post(&path, json!({ "config": config() })).await.refused(409, &begun.id);
    api.delete(&path).await.refused(409, &begun.id);
    api.post(&format!("{path}/migrate"), json!({})).await.refused(409, &begun.id);
    api.post(&format!("{path}/metadata/color"), json!({ "value": "blue" })).await.expect(204);
    api.post(&format!("{path}/cordon"), json!({})).await.expect(200);
    api.post(&format!("{path}/uncordon"), json!({})).await.expect(200);

    begun.accept(&bed);
    let migration = begun.until(&bed, "handing_off").await;
    assert_eq!((&migration["machine"], &migration["volumes"]), (&json!(machine), &json!([volume])));
    assert_eq!(placed(&bed, &machine).await.len(), 1, "nothing moves before the source has let go");
    begun.hand_off(&bed);
    begun.until(&bed, "starting").await;
    // The rows are at the target; the source's stay until it has nothing left to lend.
    assert_eq!(machine_row(&bed, &machine).await.host.as_str(), bed.agents[to].id);
    assert_eq!(volume_row(&bed, &volume).await.host.as_str(), bed.agents[to].id);
    assert!(placed(&bed, &machine).await.contains(&(to, ticket.lead.epoch)));
    assert_eq!((placed(&bed, &machine).await.len(), placed(&bed, &volume).await.len()), (2, 2));
    until("edges are told that it is about to run there", || async {
        (readiness(&bed).await == [(bed.agents[to].id.clone(), Readiness::Starting)]).then_some(())
    })
    .await;
    begun.attach(&bed);
    let migration = begun.until(&bed, "hydrating").await;
    assert_eq!(migration["progress"]["downtime_ms"], 250);
    assert_eq!(placed(&bed, &machine).await, [(to, ticket.lead.epoch)]);
    let after = api.machine("web", &machine).await;
    assert_eq!((after.private_ip, after.state, after.id), (before.private_ip, MachineState::Started, before.id));
    assert_eq!((after.host_id.as_str(), after.config.metadata["color"].as_str()), (bed.agents[to].id.as_str(), "blue"));
    until_volume(&bed, "web", &volume, "hydrating").await;

    bed.agents[to].becomes(&volume, |held| held.hydration = Some(begun.hydration(40)));
    let progress = until("progress is told as it goes", || async {
        let progress = api.get(&format!("/migrations/{}", begun.id)).await.expect(200)["progress"].clone();
        (progress["done_blocks"] == 40).then_some(progress)
    })
    .await;
    assert_eq!((&progress["hydrated_bytes"], &progress["eta_s"]), (&json!(400), &json!(6)));
    // The Machine is free already; its volume is not.
    api.post(&path, json!({ "config": mounting(&volume, "/data") })).await.expect(200);
    api.post(&format!("{path}/migrate"), json!({})).await.refused(409, "copied");
    begun.fill(&bed);
    let done = begun.until(&bed, "completed").await;
    let progress = &done["progress"];
    assert_eq!(
        (&progress["done_blocks"], &progress["verified"], &progress["downtime_ms"]),
        (&json!(100), &json!(true), &json!(250))
    );
    assert_eq!((&progress["map_permille_at_running"], &progress["wire_bytes"]), (&json!(4), &json!(1100)));
    assert_eq!(placed(&bed, &volume).await.len(), 1);
    assert!(bed.agents[to].tickets().await.is_empty());
    let phases: Vec<&str> =
        done["events"].as_array().unwrap().iter().map(|event| event["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["preparing", "handing_off", "handing_off", "starting", "hydrating", "completed"]);
    assert_eq!(api.get("/migrations").await.expect(200), json!([]));
    let ended = api.get(&format!("/migrations?all=true&app=web&machine={machine}")).await.expect(200);
    assert_eq!(ended[0]["id"], json!(begun.id));
    assert_eq!(api.get("/migrations?all=true&app=other").await.expect(200), json!([]));
    api.post(&format!("/migrations/{}/cancel", begun.id), json!({})).await.refused(409, "over");

    // And back again, at epochs that were never promised before.
    let back = begin(&bed, &path, json!({ "host": bed.agents[from].id })).await;
    assert!(back.ticket.lead.epoch > ticket.lead.epoch.next(), "{} {}", back.ticket.lead.epoch, ticket.lead.epoch);
    back.accept(&bed);
    back.hand_off(&bed);
    back.attach(&bed);
    back.until(&bed, "hydrating").await;
    back.fill(&bed);
    back.until(&bed, "completed").await;
    assert_eq!(api.machine("web", &machine).await.host_id, bed.agents[from].id);
    let metrics = bed.metrics().await;
    let line = "godwit_migrations_total{outcome=\"completed\",kind=\"machine_with_volumes\"} 2";
    assert!(metrics.contains(line), "{metrics}");
    assert!(metrics.contains("godwit_migration_downtime_seconds_count 2"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_without_volumes_moves_and_stays_stopped() {
    let mut bed = Bed::with_hosts(1).await;
    let id = bed.api.app_with_machine("web", config()).await;
    bed.api.until("web", &id, MachineState::Started).await;
    bed.api.post(&format!("/apps/web/machines/{id}/stop"), json!({})).await.expect(200);
    bed.api.until("web", &id, MachineState::Stopped).await;
    bed.add_host("far", "syd", 4096).await;
    let api = &bed.api;
    let path = format!("/apps/web/machines/{id}");
    api.post(&format!("{path}/migrate"), json!({})).await.refused(422, "no other host in region fra");
    let begun = begin(&bed, &path, json!({ "region": "syd" })).await;
    assert!(!begun.ticket.lead.launch);
    begun.accept(&bed);
    begun.hand_off(&bed);
    begun.until(&bed, "starting").await;
    assert_eq!(api.machine("web", &id).await.state, MachineState::Stopped);
    begun.attach(&bed);
    begun.until(&bed, "completed").await;
    let machine = api.machine("web", &id).await;
    assert_eq!((machine.region.as_str(), machine.state), ("syd", MachineState::Stopped));
    // The old host forgets it; a start goes to the new one.
    assert_eq!(placed(&bed, &id).await, [(1, begun.ticket.lead.epoch)]);
    api.post(&format!("{path}/start"), json!({})).await.expect(200);
    api.until("web", &id, MachineState::Started).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_nothing_holds_moves_alone() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    let (volume, host) = ready_volume(&bed, "web", json!({ "name": "data" })).await;
    let path = format!("/apps/web/volumes/{volume}");
    let begun = begin(&bed, &path, json!({})).await;
    assert_ne!(begun.ticket.target.as_str(), host);
    assert_eq!(begun.ticket.volumes[0].placement, begun.ticket.lead);
    api.delete(&path).await.refused(409, &begun.id);
    api.post("/apps/web/machines", json!({ "config": mounting(&volume, "/data") })).await.refused(409, &begun.id);
    begun.accept(&bed);
    begun.hand_off(&bed);
    begun.attach(&bed);
    let migration = begun.until(&bed, "hydrating").await;
    assert_eq!(migration.get("machine"), None);
    // Until it is whole it is neither moved nor given away.
    api.post(&format!("{path}/migrate"), json!({})).await.refused(409, "copied");
    api.post("/apps/web/machines", json!({ "config": mounting(&volume, "/data") })).await.refused(409, &begun.id);
    begun.fill(&bed);
    begun.until(&bed, "completed").await;
    let made = api.post("/apps/web/machines", json!({ "config": mounting(&volume, "/data") })).await.expect(200);
    assert_eq!(made["host_id"], json!(begun.ticket.target));
    api.post(&format!("{path}/migrate"), json!({})).await.refused(409, made["id"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_volume_is_being_filled_can_be_destroyed_and_so_can_the_volume() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    let (machine, volume, _) = machine_with_volume(&bed).await;
    let begun = begin(&bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    begun.accept(&bed);
    begun.hand_off(&bed);
    begun.attach(&bed);
    begun.until(&bed, "hydrating").await;
    api.delete(&format!("/apps/web/machines/{machine}?force=true")).await.expect(200);
    api.until("web", &machine, MachineState::Destroyed).await;
    until("its volume is free, and still filled", || async {
        let row = volume_row(&bed, &volume).await;
        (row.machine.is_none() && row.moving.is_some()).then_some(())
    })
    .await;
    // So is the volume: its source may be gone for good, and it would never be whole.
    api.delete(&format!("/apps/web/volumes/{volume}")).await.expect(200);
    until_volume(&bed, "web", &volume, "destroyed").await;
    let ended = begun.until(&bed, "completed").await;
    assert!(ended["reason"].as_str().unwrap().contains("destroyed before it was whole"), "{ended}");
    assert_eq!(ended["progress"]["verified"], json!(false));
    // The source hears that nobody will ask it for blocks any more.
    until("no row of it is left", || async { placed(&bed, &volume).await.is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_is_refused_before_anything_happens() {
    let mut bed = Bed::with_hosts(2).await;
    let (machine, volume, from) = machine_with_volume(&bed).await;
    bed.add_host("small", "fra", 128).await;
    let api = &bed.api;
    let to = 1 - from;
    let path = format!("/apps/web/machines/{machine}/migrate");
    let host = |number: usize| json!({ "host": bed.agents[number].id });
    api.post("/apps/web/machines/00000000000000/migrate", json!({})).await.refused(404, "00000000000000");
    api.post(&path, host(from)).await.refused(409, "already");
    api.post(&path, json!({ "host": "nowhere" })).await.refused(422, "no host \"nowhere\"");
    api.post(&path, json!({ "host": bed.agents[to].id, "region": "syd" })).await.refused(422, "region fra");
    api.post(&path, json!({ "region": "syd" })).await.refused(422, "region syd");
    api.post(&path, json!({ "start_first": true })).await.refused(422, "start_first");
    api.post(&path, json!({ "drain_timeout_ms": 10_000_000 })).await.refused(422, "drain_timeout_ms");
    api.post(&path, host(2)).await.refused(422, "smaller than the Machine");
    api.post(&format!("/apps/web/volumes/{volume}/migrate"), json!({})).await.refused(409, &machine);
    api.post(&format!("/hosts/{}/cordon", bed.agents[to].id), json!({})).await.expect(200);
    api.post(&path, host(to)).await.refused(422, "cordoned");
    api.post(&path, json!({})).await.refused(503, "only hosts of its region");
    api.post(&format!("/hosts/{}/uncordon", bed.agents[to].id), json!({})).await.expect(200);
    let lease = api.post(&format!("/apps/web/machines/{machine}/lease"), json!({ "ttl": 60 })).await.expect(201);
    api.post(&path, json!({})).await.refused(409, "holds a lease");
    assert_eq!(api.get("/migrations?all=true").await.expect(200), json!([]));
    let nonce = lease["data"]["nonce"].as_str().unwrap();
    let begun = api.call("POST", &path, Some(b"{}".to_vec()), &[("fly-machine-lease-nonce", nonce)]).await;
    assert_eq!(begun.expect(202)["requested_by"], "admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_reserves_its_room_at_the_target_until_it_ends() {
    let bed = Bed::with_hosts(2).await;
    let api = &bed.api;
    api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
    // 97 GiB a host.
    let (volume, host) = ready_volume(&bed, "web", json!({ "name": "big", "size_gb": 60 })).await;
    let begun = begin(&bed, &format!("/apps/web/volumes/{volume}"), json!({})).await;
    assert_ne!(begun.ticket.target.as_str(), host);
    let wish = json!({ "name": "other", "size_gb": 50 });
    api.post("/apps/web/volumes", wish.clone()).await.refused(503, "2 full");
    // Also when control has started anew.
    let mut bed = bed;
    bed.restart(|_| {});
    let api = &bed.api;
    until("both hosts are heard of again", || async {
        let answer = api.post("/apps/web/volumes", wish.clone()).await;
        answer.body["error"].as_str().unwrap().contains("2 full").then_some(())
    })
    .await;
    // It ends without having moved: the room is free at once.
    begun.source(&bed).becomes(&volume, |held| held.plays(&begun.ticket, MoveRole::Source, MovePart::Refused, &[]));
    begun.until(&bed, "failed").await;
    let made = api.post("/apps/web/volumes", wish).await.expect(200);
    assert_eq!(made["zone"], json!(begun.ticket.target));
    let image = json!({ "image": IMAGE });
    api.new_machine("web", image).await;
}
