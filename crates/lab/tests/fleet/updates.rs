//! A Machine is given new configurations while clients keep asking: none of them sees more than a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use godwit_lab::fleet::eventually;
use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, run};

const APP: &str = "updated";
const UPDATES: usize = 20;
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(10);

/// Asks one thing after the other on connections of its own; answers how many were asked, and what failed.
async fn client(addr: String, ended: Arc<AtomicBool>) -> (usize, Vec<String>) {
    let (mut asked, mut failures) = (0, Vec::new());
    while !ended.load(Ordering::Relaxed) {
        let (method, body): (_, &[u8]) = if asked % 4 == 3 { ("POST", b"a line") } else { ("GET", b"") };
        let host = format!("{APP}.localhost");
        match godwit_lab::plain::request(&addr, method, &host, "/", &[], body, PATIENCE).await {
            Ok(answer) if answer.status < 500 => {}
            Ok(answer) => failures.push(format!("{method}: {} {}", answer.status, answer.text())),
            Err(error) => failures.push(format!("{method}: {error}")),
        }
        asked += 1;
        tokio::time::sleep(PAUSE).await;
    }
    (asked, failures)
}

#[test]
fn twenty_updates_under_load_fail_no_request() {
    run(async {
        let fleet = fleet(1, &[]);
        fleet.create_app(APP).await.expect("the app");
        let machine = demo_machine(&fleet, APP, json!({}), true).await;
        let ended = Arc::new(AtomicBool::new(false));
        let addr = fleet.dev().expect("dev.json").http_addr;
        let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client(addr.clone(), ended.clone()))).collect();
        for number in 0..UPDATES {
            let value = format!("N={number}");
            let id = machine.id.to_string();
            fleet.cli_ok(&["machine", "update", &id, "-a", APP, "--env", &value, "--yes"]).expect("it is updated");
            eventually("the new version runs", PATIENCE, async || {
                let shown = fleet.machine(APP, &id).await?;
                let runs = shown.state == godwit_api::machine::MachineState::Started
                    && shown.config.env.get("N").is_some_and(|value| *value == number.to_string());
                Ok(runs.then_some(()))
            })
            .await
            .expect("it runs");
        }
        ended.store(true, Ordering::Relaxed);
        let (mut asked, mut failures) = (0, Vec::new());
        for client in clients {
            let (of_one, failed) = client.await.expect("a client");
            asked += of_one;
            failures.extend(failed);
        }
        println!("{UPDATES} updates, {asked} requests, {} failed", failures.len());
        assert!(asked > UPDATES * CLIENTS, "the clients asked {asked} times only");
        assert!(failures.is_empty(), "{failures:#?}");
    });
}
