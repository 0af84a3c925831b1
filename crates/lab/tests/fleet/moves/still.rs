//! What does not run moves in the same way: a stopped Machine, which stays stopped, and starts there with its data.

use anyhow::{Result, ensure};
use godwit_api::machine::MachineState;
use godwit_api::migration::MigrationPhase;
use godwit_lab::fleet::eventually;
use serde_json::json;

use super::bed::{APP, Bed, create_volume};
use super::kills::{arm, fired};
use super::table::{Row, conclude};
use crate::support::{PATIENCE, demo_config, demo_machine, run};

#[test]
fn a_stopped_machine_moves_and_stays_stopped() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        // One that no request wakes.
        let volume = create_volume(&bed.fleet).await.expect("a volume");
        let mut service = demo_config(json!({}))["services"][0].clone();
        service["autostart"] = json!(false);
        let changes = json!({ "mounts": [{ "volume": volume.id, "path": "/data" }], "services": [service] });
        bed.fleet.destroy_machine(APP, &bed.machine).await.expect("destroyed");
        bed.machine = demo_machine(&bed.fleet, APP, changes, true).await.id.to_string();
        eventually("it answers", PATIENCE, async || {
            let answer = bed.fleet.get(APP, "/", PATIENCE).await?;
            Ok((answer.json()["machine"] == bed.machine.as_str()).then_some(()))
        })
        .await
        .expect("it answers");
        bed.volume = volume.id.to_string();
        bed.ledger = super::ledger::Ledger::begin(&bed.fleet, APP);
        for fault in ["", "move_out:hand_off:outcome", "move_in:attach_volumes:before"] {
            let mut row = Row::named(&format!("a stopped Machine {fault}"));
            let done = one(&bed, fault, &mut row.end).await;
            row.judged(done, &bed);
            rows.push(row);
        }
        conclude(&rows);
    });
}

async fn one(bed: &Bed, fault: &str, end: &mut String) -> Result<()> {
    let written = bed.ledger.tally().acknowledged;
    eventually("something is written", PATIENCE, async || {
        Ok((bed.ledger.tally().acknowledged > written + 10).then_some(()))
    })
    .await?;
    bed.fleet.stop_machine(APP, &bed.machine).await?;
    bed.fleet.wait_state(APP, &bed.machine, &[MachineState::Stopped], PATIENCE).await?;
    let ends = bed.ends().await?;
    let host = if fault.starts_with("move_out") { &ends.source } else { &ends.target };
    if !fault.is_empty() {
        arm(host, fault)?;
    }
    let id = bed.begin(json!({})).await?;
    if !fault.is_empty() {
        fired(host).await?;
    }
    let over = bed.over(&id).await?;
    *end = over.phase.as_str().into();
    ensure!(over.phase == MigrationPhase::Completed, "{:?}", over.reason);
    let shown = bed.fleet.machine(APP, &bed.machine).await?;
    ensure!(shown.state == MachineState::Stopped && shown.host_id == ends.target.id, "{:?}", shown.state);
    ensure!(bed.app_pid().is_err(), "it runs");
    bed.fleet.start_machine(APP, &bed.machine).await?;
    bed.runs_at(&ends.target.id).await?;
    bed.lost_nothing(&mut Row::default()).await
}
