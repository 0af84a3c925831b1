//! Apps that listen as people's apps listen: on `0.0.0.0`, on loopback alone, on another port. Each is served through
//! everything that happens to a Machine, or told what is wrong with it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesMigrate, MachinesRestart, MachinesUpdate, MigrationsShow};
use godwit_api::machine::{CreateMachine, Machine, MachineState, RestartQuery};
use godwit_api::migration::{Migrate, MigrationPhase};
use godwit_lab::fleet::{Fleet, eventually};
use godwit_lab::plain;
use serde_json::{Value, json};

use crate::support::{PATIENCE, demo_config, demo_machine, fleet, merge, run};

const CLIENTS: usize = 4;

fn service(changes: Value) -> Value {
    let check = |kind: &str| json!({ "type": kind, "path": "/", "interval": "300ms", "grace_period": "0s" });
    let mut service = demo_config(json!({}))["services"][0].clone();
    service["checks"] = json!([check("tcp"), check("http")]);
    merge(&mut service, changes);
    service
}

async fn checks_are(fleet: &Fleet, app: &str, id: &str, status: &str) -> Machine {
    eventually(&format!("the checks of {app} are {status}"), PATIENCE, async || {
        let shown = fleet.machine(app, id).await?;
        let all = shown.checks.len() == 2 && shown.checks.iter().all(|check| check.status == status);
        Ok(all.then_some(shown))
    })
    .await
    .expect("its checks")
}

#[test]
fn an_app_on_0_0_0_0_is_woken_and_stopped_restarted_and_moved_and_no_request_fails() {
    run(async {
        let fleet = Arc::new(fleet(2, &["--autostop-interval-ms", "100", "--autostop-idle-ms", "200"]));
        let app = "any4";
        fleet.create_app(app).await.expect("the app");
        let changes = json!({ "env": { "LISTEN": "0.0.0.0" }, "services": [service(json!({ "autostop": true }))] });
        let id = demo_machine(&fleet, app, changes.clone(), false).await.id.to_string();
        let mut births = BTreeSet::new();
        for n in 0..4 {
            let answer = fleet.get(app, "/", PATIENCE).await.expect("an answer");
            assert_eq!(answer.status, 200, "wake {n}: {}", answer.text());
            births.insert(answer.json()["started_at"].to_string());
            fleet.wait_state(app, &id, &[MachineState::Stopped], PATIENCE).await.expect("autostop");
        }
        assert_eq!(births.len(), 4, "each wake is a process of its own");

        let load = Load::begin(&fleet, app);
        let shown = checks_are(&fleet, app, &id, "passing").await;
        assert!(shown.unreachable.is_empty(), "{:?}", shown.unreachable);
        let api = fleet.api().expect("the API");
        let query = RestartQuery::default();
        api.call::<MachinesRestart>(&[app, &id], &query, &Empty {}).await.expect("a restart");
        load.serves_another(5).await;
        for _ in 0..2 {
            let from = fleet.machine(app, &id).await.expect("shown").host_id;
            let wish: Migrate = serde_json::from_value(json!({})).expect("a wish");
            let begun = api.call::<MachinesMigrate>(&[app, &id], &Empty {}, &wish).await.expect("a move");
            eventually("the move is over", PATIENCE, async || {
                let shown = api.call::<MigrationsShow>(&[begun.id.as_str()], &Empty {}, &Empty {}).await?;
                Ok((shown.phase == MigrationPhase::Completed).then_some(()))
            })
            .await
            .expect("it moves");
            assert_ne!(fleet.machine(app, &id).await.expect("shown").host_id, from);
            load.serves_another(5).await;
        }
        checks_are(&fleet, app, &id, "passing").await;
        let served = load.end().await;
        println!("{served} requests over wakes, a restart and two moves; none failed");
        fleet.wait_state(app, &id, &[MachineState::Stopped], PATIENCE).await.expect("left alone it stops");
    });
}

/// Clients that forgive nothing.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn begin(fleet: &Fleet, app: &str) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let addr = fleet.dev().expect("dev.json").http_addr;
        let clients = (0..CLIENTS).map(|_| {
            let (stop, served, addr, host) = (stop.clone(), served.clone(), addr.clone(), format!("{app}.localhost"));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let answer = plain::get(&addr, &host, "/", PATIENCE).await.expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        });
        Self { stop: stop.clone(), served: served.clone(), clients: clients.collect() }
    }

    async fn serves_another(&self, requests: u64) {
        let until = self.served.load(Ordering::SeqCst) + requests * CLIENTS as u64;
        eventually("the load goes on", PATIENCE, async || {
            Ok((self.served.load(Ordering::SeqCst) >= until).then_some(()))
        })
        .await
        .expect("it is served");
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.expect("no request fails");
        }
        self.served.load(Ordering::SeqCst)
    }
}

async fn update(fleet: &Fleet, app: &str, id: &str, changes: Value) {
    let request: CreateMachine =
        serde_json::from_value(json!({ "config": demo_config(changes) })).expect("a configuration");
    let api = fleet.api().expect("the API");
    api.call::<MachinesUpdate>(&[app, id], &Empty {}, &request).await.expect("an update");
}

/// The 503, the check, `machine status` and an event all say the same; once it is mended, it serves and nothing is said.
#[test]
fn an_app_that_cannot_be_reached_is_told_where_it_listens_and_what_to_do() {
    run(async {
        let fleet = fleet(1, &[]);
        let cases = [
            (
                "inside4",
                json!({ "LISTEN": "127.0.0.1" }),
                "listens on 127.0.0.1:8080; make it listen on 0.0.0.0 or [::]",
            ),
            ("inside6", json!({ "LISTEN": "::1" }), "listens on [::1]:8080; make it listen on 0.0.0.0 or [::]"),
            (
                "elsewhere",
                json!({ "LISTEN": "0.0.0.0", "PORT": "3000" }),
                "listens on 0.0.0.0:3000, but the service's internal port is 8080; ",
            ),
        ];
        for (app, env, hint) in cases {
            fleet.create_app(app).await.expect("the app");
            let changes = json!({ "env": env, "services": [service(json!({}))] });
            let id = demo_machine(&fleet, app, changes, true).await.id.to_string();
            let named = format!("app {app} cannot be reached. Machine {id}: {hint}");
            let answer = fleet.get(app, "/", PATIENCE).await.expect("an answer");
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(answer.text().contains(&named), "{}", answer.text());
            assert!(answer.header("retry-after").is_some());
            let shown = checks_are(&fleet, app, &id, "critical").await;
            // Its row is out now, and no door is asked any more.
            let answer = fleet.get(app, "/", PATIENCE).await.expect("an answer");
            assert!(answer.status == 503 && answer.text().contains(&named), "{}", answer.text());
            let seen_by = hint.replace("the service's internal port", "the check's port");
            for check in &shown.checks {
                assert!(check.output.contains("connection refused") && check.output.contains(&seen_by), "{check:?}");
            }
            let status = fleet.cli_ok(&["machine", "status", &id, "-a", app]).expect("status");
            assert!(status.contains(hint), "{status}");
            let reasons = shown.events.iter().filter(|event| event.kind == "unreachable");
            let reasons: Vec<_> = reasons.filter_map(|event| event.request.as_ref()?.reason.clone()).collect();
            assert!(matches!(&reasons[..], [one] if one.starts_with(hint)), "{reasons:?}");

            update(&fleet, app, &id, json!({ "env": { "LISTEN": "0.0.0.0" }, "services": [service(json!({}))] })).await;
            eventually("it serves once it is mended", PATIENCE, async || {
                Ok((fleet.get(app, "/", PATIENCE).await?.status == 200).then_some(()))
            })
            .await
            .expect("served");
            let shown = checks_are(&fleet, app, &id, "passing").await;
            assert!(shown.unreachable.is_empty(), "{:?}", shown.unreachable);
        }
    });
}

/// Nothing listens for a while: the request is held, whatever is known of it meanwhile.
#[test]
fn an_app_that_takes_long_to_listen_is_waited_for() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app("late").await.expect("the app");
        let changes = json!({ "env": { "LISTEN": "0.0.0.0", "LISTEN_DELAY_MS": "12000" } });
        let id = demo_machine(&fleet, "late", changes, false).await.id.to_string();
        let answer = fleet.get("late", "/", PATIENCE).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let shown = fleet.machine("late", &id).await.expect("shown");
        let reasons: Vec<_> = shown.events.iter().filter(|event| event.kind == "unreachable").collect();
        assert!(reasons.len() <= 1, "{reasons:?}");
        eventually("nothing is wrong with it", PATIENCE, async || {
            Ok(fleet.machine("late", &id).await?.unreachable.is_empty().then_some(()))
        })
        .await
        .expect("it is well");
    });
}
