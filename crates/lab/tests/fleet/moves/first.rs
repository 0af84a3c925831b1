//! Moves that start the new copy before they stop the old one, for Machines without volumes: no client waits, nobody is
//! left with two copies, and whoever is killed meanwhile, one is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesMigrate, MigrationsCancel, MigrationsShow};
use godwit_api::machine::MachineState;
use godwit_api::migration::{Migrate, Migration, MigrationPhase};
use godwit_lab::fleet::{DevHost, Fleet, eventually};
use serde_json::json;

use super::kills::{arm, fired};
use super::traces::holdings;
use crate::kills::Copies;
use crate::support::{PATIENCE, demo_machine, fleet, run};

const APP: &str = "first";
const ASK_EVERY: Duration = Duration::from_millis(10);

struct Asked {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<(usize, Duration)>,
}

/// A client that asks one after the other.
fn ask_on(fleet: &Fleet) -> Asked {
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (ended, counted, addr) = (stop.clone(), failed.clone(), fleet.dev().expect("dev.json").http_addr);
    let task = tokio::spawn(async move {
        let (mut sent, mut longest) = (0, Duration::ZERO);
        while !ended.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = godwit_lab::plain::get(&addr, &format!("{APP}.localhost"), "/", PATIENCE).await;
            if !answer.is_ok_and(|answer| answer.status == 200) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            sent += 1;
            longest = longest.max(began.elapsed());
            tokio::time::sleep(ASK_EVERY).await;
        }
        (sent, longest)
    });
    Asked { stop, failed, task }
}

async fn ends(fleet: &Fleet, machine: &str) -> Result<(DevHost, DevHost)> {
    let at = fleet.machine(APP, machine).await?.host_id;
    let (source, target): (Vec<_>, Vec<_>) = fleet.dev()?.hosts.into_iter().partition(|host| host.id == at);
    Ok((source.into_iter().next().expect("its host"), target.into_iter().next().expect("another")))
}

async fn over(fleet: &Fleet, id: &str) -> Result<Migration> {
    eventually("the move is over", Duration::from_secs(60), async || {
        let shown = fleet.api()?.call::<MigrationsShow>(&[id], &Empty {}, &Empty {}).await?;
        Ok(shown.phase.is_over().then_some(shown))
    })
    .await
}

/// It runs at one host, and nothing of it is at the other.
async fn settled(fleet: &Fleet, machine: &str, has: &str, has_not: &str) -> Result<()> {
    eventually(&format!("it is at {has} alone"), PATIENCE, async || {
        let shown = fleet.machine(APP, machine).await?;
        ensure!(shown.state == MachineState::Started && shown.host_id == has, "{:?} {}", shown.state, shown.host_id);
        let left = holdings(&fleet.host(has_not)?);
        ensure!(left.is_empty(), "{has_not} still holds {left:?}");
        Ok(Some(()))
    })
    .await
}

#[test]
fn a_machine_that_starts_there_before_it_stops_here_keeps_no_client_waiting() {
    run(async {
        let fleet = fleet(2, &["--lab"]);
        fleet.create_app(APP).await.expect("an app");
        let changes = json!({ "guest": { "memory_mb": 256 }, "restart": { "policy": "always" } });
        let machine = demo_machine(&fleet, APP, changes, true).await.id.to_string();
        let wish = Migrate { start_first: true, ..Migrate::default() };
        let begin = async || {
            let begun = fleet.api()?.call::<MachinesMigrate>(&[APP, &machine], &Empty {}, &wish).await?;
            anyhow::Ok(begun.id.to_string())
        };
        for fault in ["", "move_in:start_ahead:before", "move_in:start_ahead:after", "move_in:start_process:before"] {
            let (source, target) = ends(&fleet, &machine).await.expect("two hosts");
            let (asked, copies) = (ask_on(&fleet), Copies::count(machine.clone()));
            if !fault.is_empty() {
                arm(&target, fault).expect("armed");
            }
            let id = begin().await.expect("it begins");
            if !fault.is_empty() {
                fired(&target).await.expect("killed");
            }
            let end = over(&fleet, &id).await.expect("it ends");
            assert_eq!(end.phase, MigrationPhase::Completed, "{fault}: {:?}", end.reason);
            settled(&fleet, &machine, &target.id, &source.id).await.expect("settled");
            asked.stop.store(true, Ordering::Relaxed);
            let (sent, longest) = asked.task.await.expect("the client");
            let (failed, copies) = (asked.failed.load(Ordering::Relaxed), copies.most());
            println!(
                "{fault:30} {sent} sent, {failed} failed, longest {longest:?}, down {:?}",
                end.progress.downtime_ms
            );
            assert_eq!((failed, copies), (0, 2), "{fault}: of {sent} requests, and copies at one time");
        }
        // Called off while both run: the new one goes, before anything else of it does.
        let (source, target) = ends(&fleet, &machine).await.expect("two hosts");
        arm(&target, "move_in:start_ahead:after").expect("armed");
        let id = begin().await.expect("it begins");
        fired(&target).await.expect("killed");
        let cancelled = fleet.api().expect("dev.json").call::<MigrationsCancel>(&[&id], &Empty {}, &Empty {}).await;
        cancelled.expect("taken note of");
        let end = over(&fleet, &id).await.expect("it ends");
        let (has, has_not) = match end.phase {
            MigrationPhase::Completed => (&target, &source),
            _ => (&source, &target),
        };
        settled(&fleet, &machine, &has.id, &has_not.id).await.expect("settled");
    });
}
