//! Nobody is believed without proof: what each kind of caller may try over the real socket, in one printed table. A row
//! is refused by its code, or is written (a host's folder is its own) and changes nothing, and is counted.

use std::time::{Duration, Instant};

use godwit_api::fact::MachineFact;
use godwit_api::machine::MachineState;
use godwit_api::migration::{MovePart, MoveRole};
use godwit_api::row::{GenerationRow, MachineRow, Placement, VolumeRow};
use godwit_api::{AppName, Epoch, HostId, MachineId, keys};
use godwit_base::Prover;
use godwit_base::http::client::{Client, empty};
use godwit_store::{Error, Range, Store, StoreExt, Txn, put_json};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::api::{Api, PATIENCE};
use crate::bed::{Bed, config, until};
use crate::moves::{begin, machine_row};
use crate::volumes::ready_volume;

/// What is disbelieved is counted by then; what is not, is believed.
const COUNTED: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Table {
    attempts: usize,
    failed: Vec<String>,
}

impl Table {
    fn row(&mut self, peer: &str, attempt: &str, answer: &str, is_right: bool) {
        self.attempts += 1;
        let mark = if is_right { "" } else { "  <== BELIEVED" };
        let line = format!("{:>3}  {peer:<9} {attempt:<66} {answer}{mark}", self.attempts);
        println!("{line}");
        if !is_right {
            self.failed.push(line);
        }
    }

    fn end(self, least: usize) {
        println!("{} attempts, {} believed", self.attempts, self.failed.len());
        assert!(self.failed.is_empty(), "believed:\n{}", self.failed.join("\n"));
        assert!(self.attempts >= least, "{} attempts", self.attempts);
    }
}

fn code<T>(answer: &Result<T, Error>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(Error::Unauthenticated) => 401,
        Err(Error::Forbidden { .. }) => 403,
        Err(_) => 500,
    }
}

/// A fleet of two hosts: `good` has the victims, `evil` has lost its key, with one Machine of its own.
struct Scene {
    bed: Bed,
    good: usize,
    evil: usize,
    victim: String,
    volume: String,
    own: String,
    rows: (MachineRow, VolumeRow),
    seq: u64,
}

impl Scene {
    async fn new() -> Self {
        let bed = Bed::with_hosts(2).await;
        bed.api.post("/apps", json!({ "app_name": "web" })).await.expect(201);
        let env = json!({ "image": config()["image"], "env": { "DB_PASSWORD": "hunter2" } });
        let victim = bed.api.new_machine("web", env).await;
        let at = bed.api.until("web", &victim, MachineState::Started).await.host_id;
        let good = bed.agents.iter().position(|agent| agent.id == at).unwrap();
        let evil = 1 - good;
        let place = |wish: Value, evil: &str, api: Api, path: &'static str| {
            let evil = evil.to_owned();
            async move {
                loop {
                    let made = api.post(path, wish.clone()).await.expect(200);
                    let host = made["host_id"].as_str().or(made["zone"].as_str()).unwrap().to_owned();
                    if host == evil {
                        return made["id"].as_str().unwrap().to_owned();
                    }
                }
            }
        };
        let path = "/apps/web/machines";
        let own = place(json!({ "config": config() }), &bed.agents[evil].id, bed.api.clone(), path).await;
        bed.api.until("web", &own, MachineState::Started).await;
        let volume = loop {
            let (id, host) = ready_volume(&bed, "web", json!({ "name": "data", "size_gb": 1 })).await;
            if host == bed.agents[good].id {
                break id;
            }
        };
        let rows = (machine_row(&bed, &victim).await, crate::moves::volume_row(&bed, &volume).await);
        Self { bed, good, evil, victim, volume, own, rows, seq: 1_000_000 }
    }

    fn evil(&self) -> &Agent {
        &self.bed.agents[self.evil]
    }
    fn good(&self) -> &Agent {
        &self.bed.agents[self.good]
    }
    fn store(&self) -> std::sync::Arc<dyn Store> {
        self.bed.running.control.as_ref().unwrap().store().clone()
    }

    /// How often something of a kind was refused.
    async fn counted(&self, peer: &str, kind: &str) -> u64 {
        let text = self.bed.metrics().await;
        let of = format!("godwit_distrusted_total{{peer=\"{peer}\",kind=\"{kind}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&of)?.parse().ok()).unwrap_or(0)
    }

    /// The rows of the victims stand as they stood, and the evil host was given nothing of them.
    async fn is_unharmed(&self) -> bool {
        let machine = machine_row(&self.bed, &self.victim).await;
        let volume = crate::moves::volume_row(&self.bed, &self.volume).await;
        let given = self.store().list(&keys::placements_of(&self.evil().id.parse().unwrap())).await.unwrap().rows;
        let secret = given.iter().any(|row| String::from_utf8_lossy(&row.value).contains("hunter2"));
        (machine.host, machine.epoch) == (self.rows.0.host.clone(), self.rows.0.epoch)
            && (volume.host, volume.epoch) == (self.rows.1.host.clone(), self.rows.1.epoch)
            && !secret
    }

    /// A fact of the victim as the evil host would tell it.
    fn claim(&mut self, machine: &str, epoch: Epoch, edit: impl FnOnce(&mut Value)) -> Value {
        self.seq += 1;
        let mut fact = json!({
            "machine": machine, "app": "web", "host": self.evil().id, "epoch": epoch, "state": "started",
            "stamp": { "incarnation": self.evil().incarnation, "seq": self.seq },
            "instance_id": self.rows.0.instance_id, "updated_at_ms": 1, "held": true
        });
        edit(&mut fact);
        fact
    }

    /// The evil host writes something into its own folder. It is refused by being counted as `kind`.
    async fn tells(&self, table: &mut Table, attempt: &str, key: &str, value: &Value, kind: &str) {
        let before = self.counted("host", kind).await;
        let written = self.bed.store_as(&self.evil().key).txn(Txn::of([put_json(key, value).unwrap()])).await;
        written.expect("its folder is its own");
        let deadline = Instant::now() + COUNTED;
        let mut is_counted = false;
        while !is_counted && Instant::now() < deadline {
            is_counted = self.counted("host", kind).await > before;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let is_unharmed = self.is_unharmed().await;
        let answer = match (is_counted, is_unharmed) {
            (true, true) => format!("nothing changes: {kind}"),
            (_, false) => "THE ROW FOLLOWS".to_owned(),
            (false, true) => format!("not counted as {kind}"),
        };
        table.row("host", attempt, &answer, is_counted && is_unharmed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_believed_without_proof() {
    let mut scene = Scene::new().await;
    let mut table = Table::default();
    foreign_keys(&scene, &mut table).await;
    foreign_calls(&scene, &mut table).await;
    foreign_images(&scene, &mut table).await;
    claims(&mut scene, &mut table).await;
    members(&mut scene, &mut table).await;
    stamps(&mut scene, &mut table).await;
    moves(&mut scene, &mut table).await;
    generations(&mut scene, &mut table).await;
    table.end(100);
}

/// Whoever is not its writer or reader does not get at a row.
async fn foreign_keys(scene: &Scene, table: &mut Table) {
    let joiner = Api::new(&scene.bed.url, Some(&scene.bed.join_token()));
    let wish = json!({ "role": "edge", "name": "edge", "region": "fra", "incarnation": "e1" });
    let edge = joiner.post("/join", wish).await.expect(200)["key"].as_str().unwrap().to_owned();
    let admin = std::fs::read_to_string(scene.bed.dir.path().join("admin-token")).unwrap();
    let peers = [
        ("host", scene.evil().key.clone(), 403),
        ("edge", edge, 403),
        ("operator", admin.trim().to_owned(), 403),
        ("joiner", scene.bed.join_token(), 403),
        ("nobody", "gwh_made_up".to_owned(), 401),
    ];
    let (good, evil) = (scene.good().id.clone(), scene.evil().id.clone());
    let machine = &scene.victim;
    let writes = [
        format!("facts/{good}/machines/{machine}"),
        format!("facts/{good}/host"),
        format!("facts/{good}/fence"),
        format!("placements/{evil}/{machine}"),
        format!("placements/{good}/{machine}"),
        format!("tickets/{evil}/mig_00000000000001"),
        format!("machines/web/{machine}"),
        format!("hosts/{evil}"),
        "edges/mine".into(),
        "tokens/mine".into(),
        "meta/proofs".into(),
        "meta/generation".into(),
    ];
    let reads = [
        format!("placements/{good}/"),
        format!("tickets/{good}/"),
        format!("facts/{good}/"),
        "machines/".into(),
        "migrations/".into(),
        "hosts/".into(),
        "tokens/".into(),
        "meta/proofs".into(),
    ];
    for (peer, key, wanted) in &peers {
        let store = scene.bed.store_as(key);
        for at in &writes {
            let answer = code(&store.put(at, "{}").await);
            table.row(peer, &format!("write {at}"), &answer.to_string(), answer == *wanted);
        }
        for at in &reads {
            let range = if at.ends_with('/') { Range::prefix(at) } else { Range::exact(at) };
            let answer = code(&store.range(range).await);
            table.row(peer, &format!("read {at}"), &answer.to_string(), answer == *wanted);
        }
        let answer = code(&store.watch(format!("tickets/{good}/"), 1).await);
        table.row(peer, &format!("watch tickets/{good}/"), &answer.to_string(), answer == *wanted);
    }
    let is_unharmed = scene.is_unharmed().await;
    table.row("all", "what became of the rows", if is_unharmed { "as they were" } else { "CHANGED" }, is_unharmed);
    let counted = scene.counted("host", "forbidden_call").await.min(scene.counted("nobody", "unnamed_call").await);
    table.row("all", "and each was counted", &format!("at least {counted} of a kind"), counted >= 20);
}

async fn foreign_calls(scene: &Scene, table: &mut Table) {
    let admin = std::fs::read_to_string(scene.bed.dir.path().join("admin-token")).unwrap();
    let join = json!({ "role": "host", "name": "w", "region": "fra", "incarnation": "i" });
    let machine = format!("/apps/web/machines/{}", scene.victim);
    for (peer, key, method, path, body, wanted) in [
        ("host", Some(scene.evil().key.clone()), "GET", machine.clone(), None, 403),
        ("host", Some(scene.evil().key.clone()), "DELETE", format!("{machine}?force=true"), None, 403),
        ("host", Some(scene.evil().key.clone()), "POST", format!("{machine}/migrate"), Some(json!({})), 403),
        ("host", Some(scene.evil().key.clone()), "POST", "/join".into(), Some(join.clone()), 403),
        ("host", Some(scene.evil().control_key().to_owned()), "GET", machine.clone(), None, 401),
        ("operator", Some(admin.trim().to_owned()), "POST", "/join".into(), Some(join), 403),
        ("joiner", Some(scene.bed.join_token()), "GET", machine.clone(), None, 403),
        ("nobody", Some("gwo_made_up".into()), "GET", machine.clone(), None, 401),
        ("nobody", None, "DELETE", machine, None, 401),
    ] {
        let api = Api::new(&scene.bed.url, key.as_deref());
        let body = body.map(|body: Value| body.to_string().into_bytes());
        let answer = api.call(method, &path, body, &[]).await.code;
        table.row(peer, &format!("{method} {path}"), &answer.to_string(), answer == wanted);
    }
}

/// A host pulls what it is to run, and nothing else.
async fn foreign_images(scene: &Scene, table: &mut Table) {
    let archive = crate::image::archive("of another app");
    let loaded = scene.bed.api.call("POST", "/images?name=other:v1", Some(archive), &[]).await.expect(200);
    let foreign = loaded[0]["digest"].as_str().unwrap().to_owned();
    let mine = scene.rows.0.image_ref.digest.clone();
    let evil = scene.evil();
    for (peer, key, path, wanted) in [
        ("host", Some(evil.key.clone()), format!("/v2/demo/manifests/{mine}"), 200),
        ("host", Some(evil.key.clone()), format!("/v2/other/manifests/{foreign}"), 403),
        ("host", Some(evil.key.clone()), format!("/v2/other/blobs/{foreign}"), 403),
        ("host", Some(evil.key.clone()), "/v2/other/manifests/v1".into(), 403),
        ("host", Some(evil.key.clone()), "/v2/other/tags/list".into(), 403),
        ("joiner", Some(scene.bed.join_token()), format!("/v2/other/manifests/{foreign}"), 403),
        ("nobody", None, format!("/v2/other/manifests/{foreign}"), 401),
    ] {
        let client = Client::tcp(&scene.bed.url, key);
        let answer = client.send_raw(&path, http::Request::new(empty()), PATIENCE).await.unwrap().status().as_u16();
        let shown = if wanted == 200 { "GET (its own) " } else { "GET " };
        table.row(peer, &format!("{shown}{}", &path[..path.len().min(48)]), &answer.to_string(), answer == wanted);
    }
}

/// Claims on what the host was never given.
async fn claims(scene: &mut Scene, table: &mut Table) {
    let evil: HostId = scene.evil().id.parse().unwrap();
    let machine: MachineId = scene.victim.parse().unwrap();
    let key = keys::machine_fact(&evil, &machine);
    let of = |host: &str, id: &str| {
        let journal = scene.bed.agent_of(host).journal();
        journal.held[&id.parse::<MachineId>().unwrap()].placement.proof.clone()
    };
    let (own, victims) = (of(evil.as_str(), &scene.own), of(&scene.good().id, &scene.victim));
    assert!(own.len() == 64 && victims.len() == 64 && own != victims);
    let now = scene.rows.0.epoch;
    let made_up = Prover::new("a secret of its own").prove(&evil, &machine, Epoch { n: 50, ..now });
    let with_its_key = Prover::new(scene.evil().control_key()).prove(&evil, &machine, Epoch { n: 51, ..now });
    for (attempt, epoch, proof) in [
        ("a generation of the far future", Epoch { generation: 9_999_999_999_999, n: 7 }, String::new()),
        ("the next number", now.next(), String::new()),
        ("a number further on", Epoch { n: now.n + 30, ..now }, "x".into()),
        ("a proof of zeros", Epoch { n: 40, ..now }, "0".repeat(64)),
        ("the victim's own proof", Epoch { n: 41, ..now }, victims),
        ("its own proof of another Machine", Epoch { n: 42, ..now }, own),
        ("a proof that it made up", Epoch { n: 50, ..now }, made_up),
        ("a proof made with the key it shares with control", Epoch { n: 51, ..now }, with_its_key),
        ("a generation that is one higher", Epoch { generation: now.generation + 1, n: 0 }, String::new()),
    ] {
        let fact = scene.claim(machine.as_str(), epoch, |fact| fact["proof"] = json!(proof));
        scene.tells(table, &format!("claim a Machine by {attempt}"), &key, &fact, "unproven_epoch").await;
    }
    let carrier = scene.rows.1.id.carrier();
    let volume = json!({ "id": scene.volume, "size_bytes": 1 << 30, "allocated_bytes": 0 });
    for n in [90, 91] {
        let fact = scene.claim(carrier.as_str(), Epoch { n, ..scene.rows.1.epoch }, |fact| {
            fact["volume"] = volume.clone();
            fact["state"] = json!("stopped");
        });
        let key = keys::machine_fact(&evil, &carrier);
        scene.tells(table, &format!("claim a volume by number {n}"), &key, &fact, "unproven_epoch").await;
    }
    for numbers in [(1, u64::MAX), (u64::MAX, 1), (1 << 53, 1), (1, 1 << 53)] {
        let fact = scene.claim(machine.as_str(), now, |fact| {
            fact["epoch"] = json!({ "generation": numbers.0, "n": numbers.1 });
        });
        scene.tells(table, &format!("an epoch of {numbers:?}"), &key, &fact, "unreadable_fact").await;
    }
}

/// Facts that are not of what their key names.
async fn members(scene: &mut Scene, table: &mut Table) {
    let (good, evil) = (scene.good().id.clone(), scene.evil().id.clone());
    let host: HostId = evil.parse().unwrap();
    let (victim, own) = (scene.victim.clone(), scene.own.clone());
    let high = Epoch { generation: 9_999_999_999_999, n: 9 };
    let at = |machine: &str| keys::machine_fact(&host, &machine.parse().unwrap());
    let fact = scene.claim(&victim, high, |fact| fact["host"] = json!(good));
    scene.tells(table, "a fact of the other host in its own folder", &at(&victim), &fact, "foreign_fact").await;
    let fact = scene.claim(&victim, high, |fact| fact["host"] = json!(good));
    scene.tells(table, "the same below a number of its own", &at("324b7c0ab05fff"), &fact, "foreign_fact").await;
    let fact = scene.claim(&victim, high, |_| {});
    scene.tells(table, "a fact of the victim below its own Machine", &at(&own), &fact, "foreign_fact").await;
    let fact = scene.claim(&own, high, |fact| fact["app"] = json!("another"));
    scene.tells(table, "its own Machine as another app's", &at(&own), &fact, "foreign_fact").await;
    let fact = scene.claim(&victim, high, |fact| {
        fact["volume"] = json!({ "id": scene_volume(&scene_id(&own)), "size_bytes": 1, "allocated_bytes": 0 });
    });
    scene.tells(table, "a Machine as a volume of another number", &at(&victim), &fact, "foreign_fact").await;
    for (attempt, incarnation) in
        [("a made up", "x".to_owned()), ("the other host's", scene.good().incarnation.clone())]
    {
        let fact = scene.claim(&victim, high, |fact| fact["stamp"]["incarnation"] = json!(incarnation));
        let attempt = format!("a fact of {attempt} incarnation");
        scene.tells(table, &attempt, &at(&victim), &fact, "foreign_incarnation").await;
    }
    for (attempt, value) in [("no object", json!(7)), ("an empty one", json!({})), ("a list", json!([[[]]]))] {
        scene.tells(table, &format!("a fact that is {attempt}"), &at(&victim), &value, "unreadable_fact").await;
    }
    let host_fact = scene.store().get_json::<Value>(&keys::host_fact(&host)).await.unwrap().unwrap().value;
    let told = |edit: &dyn Fn(&mut Value)| {
        let mut fact = host_fact.clone();
        fact["capacity"]["memory_mb"] = json!(1_000_000);
        edit(&mut fact);
        fact
    };
    let key = keys::host_fact(&host);
    let foreign = told(&|fact| fact["host"] = json!(good));
    scene.tells(table, "the other host's capacity", &key, &foreign, "foreign_fact").await;
    let foreign = told(&|fact| fact["stamp"]["incarnation"] = json!("x"));
    scene.tells(table, "a capacity of another incarnation", &key, &foreign, "foreign_incarnation").await;
    scene.tells(table, "no capacity", &key, &json!({ "host": evil }), "unreadable_fact").await;
    let shown = scene.bed.api.get(&format!("/hosts/{evil}")).await.expect(200)["capacity"]["memory_mb"].clone();
    table.row("host", "what is shown of its capacity", &shown.to_string(), shown == json!(4096));
}

fn scene_id(machine: &str) -> MachineId {
    machine.parse().unwrap()
}

fn scene_volume(carrier: &MachineId) -> String {
    format!("vol_{carrier}")
}

/// What is older than what was told changes nothing.
async fn stamps(scene: &mut Scene, table: &mut Table) {
    let host: HostId = scene.evil().id.parse().unwrap();
    let own: MachineId = scene.own.parse().unwrap();
    let key = keys::machine_fact(&host, &own);
    let row = machine_row(&scene.bed, &scene.own.clone()).await;
    let epoch = row.epoch;
    let newest = scene.claim(own.as_str(), epoch, |fact| {
        fact["state"] = json!("started");
        fact["instance_id"] = json!(row.instance_id);
    });
    scene.store().put(&key, newest.to_string()).await.unwrap();
    for (back, state) in [(1, "destroyed"), (2, "failed"), (500_000, "stopped")] {
        let older = scene.claim(own.as_str(), epoch, |fact| {
            fact["state"] = json!(state);
            fact["instance_id"] = json!(row.instance_id);
            fact["stamp"]["seq"] = json!(newest["stamp"]["seq"].as_u64().unwrap() - back);
        });
        let attempt = format!("a fact of {back} before: {state}");
        scene.tells(table, &attempt, &key, &older, "stale_fact").await;
    }
    let shown = scene.bed.api.machine("web", own.as_str()).await.state;
    table.row("host", "what is shown of it", shown.as_str(), shown == MachineState::Started);
    let key = keys::host_fact(&host);
    let mut older = scene.store().get_json::<Value>(&key).await.unwrap().unwrap().value;
    // The picture keeps what it believed last; the store holds what was written last.
    older["stamp"] = json!({ "incarnation": scene.evil().incarnation, "seq": 0 });
    older["host"] = json!(host);
    let whole = json!({
        "host": host, "stamp": older["stamp"], "boot_id": "b", "agent_version": "v", "applied_revision": 0,
        "capacity": { "cpu_millis": 1, "memory_mb": 1, "disk_mb": 1 }, "machines": 0, "drivers": [],
        "used": { "cpu_millis": 0, "memory_mb": 0, "disk_mb": 0 }, "published_at_ms": 1
    });
    scene.tells(table, "a capacity of long ago", &key, &whole, "stale_fact").await;
}

/// What tickets promised, and what became of it.
async fn moves(scene: &mut Scene, table: &mut Table) {
    let evil: HostId = scene.evil().id.parse().unwrap();
    let machine: MachineId = scene.victim.parse().unwrap();
    let key = keys::machine_fact(&evil, &machine);
    // The evil host is to take the victim over, and the source calls it off.
    let begun = begin(&scene.bed, &format!("/apps/web/machines/{machine}"), json!({})).await;
    let (lead, back) = (begun.ticket.lead.clone(), begun.ticket.back[&machine].clone());
    assert_eq!((lead.host.clone(), lead.proof.len()), (evil.clone(), 64));
    let foreign = scene.claim(machine.as_str(), lead.epoch, |fact| {
        fact["held"] = json!(false);
        fact["machine"] = json!(scene_id("00000000000abc"));
        fact["volume"] = json!({ "id": "vol_00000000000abc", "size_bytes": 1, "allocated_bytes": 0, "hydration": {
            "migration": begun.id, "total_blocks": 9, "done_blocks": 9, "verified": true } });
    });
    let at = keys::machine_fact(&evil, &scene_id("00000000000abc"));
    scene.tells(table, "progress of a move that does not bring that volume", &at, &foreign, "foreign_move").await;
    begun.source(&scene.bed).becomes(machine.as_str(), |held| {
        held.plays(&begun.ticket, MoveRole::Source, MovePart::Refused, &[]);
    });
    begun.until(&scene.bed, "failed").await;
    for (attempt, epoch, proof) in [
        ("claim what the ticket of a refused move promised", lead.epoch, lead.proof.clone()),
        ("claim what would have been the source's", lead.epoch.next(), back),
    ] {
        let fact = scene.claim(machine.as_str(), epoch, |fact| fact["proof"] = json!(proof));
        let kind = if epoch == lead.epoch { "spent_epoch" } else { "unproven_epoch" };
        scene.tells(table, attempt, &key, &fact, kind).await;
    }
    // Its own Machine goes to the good host; then it says that it has taken it back.
    let own = scene.own.clone();
    let begun = begin(&scene.bed, &format!("/apps/web/machines/{own}"), json!({})).await;
    begun.accept(&scene.bed);
    begun.hand_off(&scene.bed);
    begun.attach(&scene.bed);
    begun.until(&scene.bed, "completed").await;
    let proof = begun.ticket.back[&scene_id(&own)].clone();
    let fact = scene.claim(&own, begun.ticket.lead.epoch.next(), |fact| fact["proof"] = json!(proof));
    let key = keys::machine_fact(&evil, &scene_id(&own));
    scene.tells(table, "take back what it handed off for good", &key, &fact, "spent_epoch").await;
    let row = machine_row(&scene.bed, &own).await;
    let is_there = (row.host.as_str(), row.epoch) == (scene.good().id.as_str(), begun.ticket.lead.epoch);
    table.row("host", "where it is", row.host.as_str(), is_there);
    // A row that control wrote for another host is no proof at this one.
    let placement = scene.store().get_json::<Placement>(&keys::placement(&row.host, &row.id)).await.unwrap().unwrap();
    let far = Epoch { n: row.epoch.n + 20, ..row.epoch };
    let fact = scene.claim(&own, far, |fact| fact["proof"] = json!(placement.value.proof));
    scene.tells(table, "with the proof of the host that has it now", &key, &fact, "unproven_epoch").await;
}

/// A host's number becomes no generation, also not when the store is put back from a copy.
async fn generations(scene: &mut Scene, table: &mut Table) {
    let evil: HostId = scene.evil().id.parse().unwrap();
    let machine: MachineId = scene.victim.parse().unwrap();
    let far = Epoch { generation: 9_999_999_999_999, n: 77 };
    let fact = scene.claim(machine.as_str(), far, |_| {});
    let key = keys::machine_fact(&evil, &machine);
    scene.tells(table, "a generation of the far future again", &key, &fact, "unproven_epoch").await;
    let _: MachineFact = serde_json::from_value(fact).unwrap();
    scene.bed.restart(|raw| raw.restored = true);
    let row = scene.store().get_json::<GenerationRow>(keys::GENERATION).await.unwrap().unwrap().value;
    let is_own = row.generation < far.generation;
    table.row("host", "the generation after a restore", &row.generation.to_string(), is_own);
    until("control has its picture", || async { (scene.bed.api.get("/apps").await.code == 200).then_some(()) }).await;
    let is_unharmed = scene.is_unharmed().await;
    table.row("host", "the victims after a restore", if is_unharmed { "as they were" } else { "TAKEN" }, is_unharmed);
    let app = AppName::parse("web").unwrap();
    assert!(scene.store().get_json::<MachineRow>(&keys::machine(&app, &machine)).await.unwrap().is_some());
}
