//! What an edge knows, it serves: with the store cut off without a word, with control dead, and while another edge takes its
//! place in the middle of it.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use godwit_lab::fleet::{binary, eventually, kill};
use godwit_lab::plain;
use serde_json::json;

use crate::support::{PATIENCE, demo_machine, fleet, run};

/// Longer than the silence after which the store counts as away.
const CUT: Duration = Duration::from_secs(5);
const CLIENTS: usize = 6;

#[test]
fn known_routes_fail_no_request_whatever_becomes_of_control_the_watch_and_the_edge() {
    run(async {
        let fleet = fleet(1, &[]);
        for app in ["known-a", "known-b"] {
            fleet.create_app(app).await.expect("the app");
            demo_machine(&fleet, app, json!({}), true).await;
            assert_eq!(fleet.get(app, "/", PATIENCE).await.expect("an answer").status, 200);
        }
        let dev = fleet.dev().expect("dev.json");
        // What it has learned is on its disk soon: where another edge will begin.
        let snapshots = fleet.dir().join("edge/snapshots");
        eventually("the edge writes what it knows", PATIENCE, async || {
            let read = |name: &str| std::fs::read_to_string(snapshots.join(name)).unwrap_or_default();
            let is_whole = ["known-a", "known-b"].iter().all(|app| {
                read("directory.json").contains(app) && read(&format!("apps/{app}.json")).contains("\"running\"")
            });
            Ok(is_whole.then_some(()))
        })
        .await
        .expect("snapshots");
        let load = Load::begin(&dev.http_addr);

        // Every packet between edge and control vanishes; nobody is told.
        let port = dev.api_url.rsplit(':').next().expect("a port").to_owned();
        let cut = Cut::of(&port);
        tokio::time::sleep(CUT).await;
        let served_alone = load.served();

        // A new edge, which cannot reach control either, takes over; the old one ends, and `godwit dev` starts a third.
        let config = fleet.dir().join("edge/edge.toml");
        let log = std::fs::File::create(fleet.dir().join("edge/second.log")).expect("a log");
        let mut second = Command::new(binary("godwit").expect("the program"))
            .args(["run", "edge", "--config"])
            .arg(&config)
            .arg("--take-over")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("a second edge");
        eventually("the first edge has ended", PATIENCE, async || {
            Ok((!std::path::Path::new(&format!("/proc/{}", dev.edge_pid)).exists()).then_some(()))
        })
        .await
        .expect("a take-over");
        eventually("the second edge has ended", PATIENCE, async || Ok(second.try_wait()?))
            .await
            .expect("the fleet's own edge takes its place back");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let served_by_others = load.served() - served_alone;
        drop(cut);

        let control = fleet.dev().expect("dev.json").control_pid;
        kill(control, libc::SIGKILL);
        eventually("control is back", PATIENCE, async || Ok((fleet.dev()?.control_pid != control).then_some(())))
            .await
            .expect("the dev fleet starts control again");
        let sent = load.end().await;
        println!(
            "{sent} requests, none failed; {served_alone} while cut off, {served_by_others} across two take-overs"
        );
        assert!(served_alone > 0 && served_by_others > 0);
        // And what changes reaches the edge again.
        eventually("control takes an app", PATIENCE, async || Ok(fleet.create_app("known-c").await.ok()))
            .await
            .expect("control is well again");
        demo_machine(&fleet, "known-c", json!({}), true).await;
        eventually("the edge hears of it", PATIENCE, async || {
            Ok((fleet.get("known-c", "/", PATIENCE).await?.status == 200).then_some(()))
        })
        .await
        .expect("the watch is back");
    });
}

/// Clients that take turns between the apps and forgive nothing.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn begin(addr: &str) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..CLIENTS).map(|n| {
            let (stop, served, addr) = (stop.clone(), served.clone(), addr.to_owned());
            let host = ["known-a.localhost", "known-b.localhost"][n % 2];
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let answer = plain::get(&addr, host, "/", PATIENCE).await.expect("an answer");
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        });
        Self { stop: stop.clone(), served: served.clone(), clients: clients.collect() }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await.expect("no request fails");
        }
        self.served.load(Ordering::SeqCst)
    }
}

/// A table of nftables that drops what goes to or comes from one loopback port, until it is dropped itself.
struct Cut(String);

impl Cut {
    fn of(port: &str) -> Self {
        let table = format!("godwit-lab-cut-{port}");
        let rules = format!(
            "table inet {table} {{ chain out {{ type filter hook output priority 0; \
             oif \"lo\" tcp dport {port} drop; oif \"lo\" tcp sport {port} drop; }}; }}"
        );
        let status = Command::new("nft").arg(&rules).status().expect("nft");
        assert!(status.success(), "nft {rules}: {status}");
        Self(table)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let deleted = Command::new("nft").args(["delete", "table", "inet", &self.0]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("the table {} of nftables stays", self.0);
        }
    }
}
