//! Blue and green as the documentation of the Machines API has it: the new Machine is created without being registered,
//! looked at, uncordoned; the old one is cordoned and destroyed. Clients notice nothing of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesCordon, MachinesUncordon};
use godwit_api::machine::MachineState;
use godwit_lab::fleet::{Fleet, eventually};
use godwit_lab::plain;
use serde_json::json;

use crate::support::{PATIENCE, demo_config, demo_machine, fleet, run};

const APP: &str = "bluegreen";
const ROUNDS: usize = 3;
const CLIENTS: usize = 4;
/// Answers that clients got between one step and the next.
const BETWEEN_STEPS: u64 = 50;

#[test]
fn blue_and_green_change_places_and_no_request_fails() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app(APP).await.expect("the app");
        let mut blue = demo_machine(&fleet, APP, json!({}), true).await;
        assert_eq!(fleet.get(APP, "/", PATIENCE).await.expect("an answer").status, 200);
        let load = Load::begin(&fleet.dev().expect("dev.json").http_addr);
        load.goes_on().await;
        for round in 1..=ROUNDS {
            let request = json!({ "config": demo_config(json!({})), "skip_service_registration": true });
            let green = fleet.create_machine(APP, request).await.expect("green is created");
            let id = green.id.as_str();
            let green = fleet.wait_state(APP, id, &[MachineState::Started], PATIENCE).await.expect("green starts");
            assert!(green.cordoned, "it takes no requests yet");
            load.goes_on().await;
            let api = fleet.api().expect("control");
            api.call::<MachinesUncordon>(&[APP, id], &Empty {}, &Empty {}).await.expect("uncordoned");
            api.call::<MachinesCordon>(&[APP, blue.id.as_str()], &Empty {}, &Empty {}).await.expect("cordoned");
            assert!(!fleet.machine(APP, id).await.expect("shown").cordoned);
            load.goes_on().await;
            served_by(&fleet, id).await;
            fleet.destroy_machine(APP, blue.id.as_str()).await.expect("blue is destroyed");
            load.goes_on().await;
            println!("round {round}: {} requests, none failed", load.served());
            blue = green;
        }
        println!("{} requests, none failed, in {ROUNDS} changes", load.end().await);
    });
}

/// Waits until an answer comes from this Machine.
async fn served_by(fleet: &Fleet, id: &str) {
    eventually("green answers", PATIENCE, async || {
        let answer = fleet.get(APP, "/", PATIENCE).await?;
        Ok(answer.text().contains(id).then_some(()))
    })
    .await
    .expect("green serves");
}

/// Clients that forgive nothing.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn begin(addr: &str) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..CLIENTS).map(|_| {
            let (stop, served, addr) = (stop.clone(), served.clone(), addr.to_owned());
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let host = format!("{APP}.localhost");
                    let answer = plain::get(&addr, &host, "/", PATIENCE).await.expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        Self { stop: stop.clone(), served: served.clone(), clients: clients.collect() }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Until so many more were answered, or a client has failed.
    async fn goes_on(&self) {
        let until = self.served() + BETWEEN_STEPS;
        while self.served() < until && !self.clients.iter().any(tokio::task::JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.expect("no request fails");
        }
        self.served.load(Ordering::SeqCst)
    }
}
