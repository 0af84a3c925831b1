//! The source away while the target still reads from it: for a while, in which nothing on the host may hang, and for
//! good, after which nothing may pretend to have the blocks that are lost.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::VolumesDelete;
use godwit_api::migration::MigrationPhase;
use godwit_lab::fleet::{eventually, kill};
use serde_json::json;

use super::bed::{APP, Bed, End, SLOW_BYTES_PER_S};
use super::everything;
use super::table::{Row, conclude};
use super::traces::{Cut, holdings, parent_of, rows_of_store};
use crate::support::{PATIENCE, run};

/// What must not hang has ended by then.
const NO_HANG: Duration = Duration::from_secs(45);

fn outage() -> Duration {
    Duration::from_secs(if everything() { 60 } else { 8 })
}

/// A slow move that is being filled.
async fn hydrating(bed: &Bed) -> Result<String> {
    let id = bed.begin(json!({ "rate_bytes_per_s": SLOW_BYTES_PER_S })).await?;
    let shown = bed.reaches(&id, MigrationPhase::Hydrating).await?;
    ensure!(shown.phase == MigrationPhase::Hydrating, "it is {} too soon", shown.phase.as_str());
    Ok(id)
}

#[test]
fn a_source_that_is_away_for_a_while_stalls_reads_and_hangs_nothing() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        let seconds = outage().as_secs();
        let stall = bed.row(format!("source away for {seconds} s while hydrating"), End::Moved, async |bed, ends| {
            let id = hydrating(bed).await?;
            let cut = Cut::between(&ends.source, &ends.target)?;
            let until = Instant::now() + outage();
            stalled(bed, &id).await?;
            tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
            let shown = bed.migration(&id).await?;
            ensure!(shown.phase == MigrationPhase::Hydrating, "{} without its source", shown.phase.as_str());
            drop(cut);
            Ok(id)
        });
        rows.push(stall.await);
        let stop = bed.row("source away: stop ends the Machine", End::Moved, async |bed, ends| {
            let id = hydrating(bed).await?;
            let _cut = Cut::between(&ends.source, &ends.target)?;
            stalled(bed, &id).await?;
            ends_by(bed, NO_HANG).await?;
            Ok(id)
        });
        rows.push(stop.await);
        let sync = bed.row("source away: sync ends after a stop", End::Moved, async |bed, ends| {
            let id = hydrating(bed).await?;
            let _cut = Cut::between(&ends.source, &ends.target)?;
            stalled(bed, &id).await?;
            let mut sync = Command::new("sync").stdin(Stdio::null()).spawn()?;
            ends_by(bed, NO_HANG).await?;
            eventually("sync has ended", NO_HANG, async || Ok(sync.try_wait()?)).await?;
            Ok(id)
        });
        rows.push(sync.await);
        conclude(&rows);
    });
}

/// The API calls the move stalled, and says why.
async fn stalled(bed: &Bed, id: &str) -> Result<()> {
    eventually("the API says that the source is away", PATIENCE, async || {
        let shown = bed.migration(id).await?;
        let why = shown.progress.stalled.clone().unwrap_or_default();
        ensure!(why.contains("away"), "{} {:?}", shown.phase.as_str(), shown.progress);
        Ok(Some(()))
    })
    .await
}

/// Stops the Machine; its app must have ended by then, whatever it was waiting for. Requests may wake it again.
async fn ends_by(bed: &Bed, bound: Duration) -> Result<()> {
    let pid = bed.app_pid()?;
    bed.fleet.stop_machine(APP, &bed.machine).await?;
    eventually("the Machine's app has ended", bound, async || {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(comm != "app\n" || state.contains(") Z"), "it is {state}");
        Ok(Some(()))
    })
    .await
}

#[test]
fn a_machine_whose_source_is_away_can_be_destroyed() {
    run(async {
        let bed = Bed::new(&[]).await.expect("a bed");
        let mut row = Row::named("source away: destroy ends everything");
        let done: Result<()> = async {
            let ends = bed.ends().await?;
            let id = hydrating(&bed).await?;
            let cut = Cut::between(&ends.source, &ends.target)?;
            stalled(&bed, &id).await?;
            destroy(&bed).await?;
            gone_from(&bed, &ends.target.id, NO_HANG).await?;
            drop(cut);
            gone_from(&bed, &ends.source.id, PATIENCE).await?;
            eventually("the store forgets them", PATIENCE, async || {
                let rows = rows_of_store(&bed.fleet, &["tickets/".into(), "placements/".into()]);
                ensure!(rows.is_empty(), "{rows:?}");
                Ok(Some(()))
            })
            .await?;
            let over = bed.over(&id).await?;
            row.end = over.phase.as_str().into();
            Ok(())
        }
        .await;
        row.judged(done, &bed);
        conclude(&[row]);
    });
}

async fn destroy(bed: &Bed) -> Result<()> {
    bed.fleet.destroy_machine(APP, &bed.machine).await?;
    eventually("the volume may be destroyed", NO_HANG, async || {
        bed.fleet.api()?.call::<VolumesDelete>(&[APP, &bed.volume], &Empty {}, &Empty {}).await?;
        Ok(Some(()))
    })
    .await
}

async fn gone_from(bed: &Bed, host: &str, bound: Duration) -> Result<()> {
    eventually(&format!("nothing is left on {host}"), bound, async || {
        let left = holdings(&bed.fleet.host(host)?);
        ensure!(left.is_empty(), "{left:?}");
        Ok(Some(()))
    })
    .await
}

#[test]
fn a_source_that_is_gone_for_good_is_told_and_nothing_runs_on_missing_blocks() {
    run(async {
        let bed = Bed::new(&[]).await.expect("a bed");
        let mut row = Row::named("source gone for good while hydrating");
        let done: Result<()> = async {
            let ends = bed.ends().await?;
            let id = hydrating(&bed).await?;
            // Its programs' configuration first: the dev fleet starts a host again that dies.
            for name in ["agent.toml", "door.toml"] {
                std::fs::remove_file(ends.source.data_dir.join(name))?;
            }
            kill(parent_of(ends.source.agent_pid)?, libc::SIGKILL);
            eventually("its folder is wiped", PATIENCE, async || {
                std::fs::remove_dir_all(ends.source.data_dir.join("volumes"))?;
                Ok(Some(()))
            })
            .await?;
            stalled(&bed, &id).await?;
            // A process that waits for a block cannot end, and so no other one begins; one that begins reads the rest,
            // and waits for it. Neither must ever see something else in its place.
            bed.kill(&ends.target, "godwit-shim").await?;
            for _ in 0..8 {
                let told = bed.fleet.get(APP, "/log/verify", Duration::from_secs(1)).await;
                if let Ok(told) = told.map(|told| (told.status, told.text())) {
                    ensure!(told.0 != 200, "all of it was read from a source that is gone: {}", told.1);
                }
            }
            let shown = bed.migration(&id).await?;
            ensure!(shown.phase == MigrationPhase::Hydrating, "{}", shown.phase.as_str());
            row.end = format!("stalled: {}", shown.progress.stalled.unwrap_or_default());
            ensure!(bed.ledger.contradictions().is_empty(), "{:?}", bed.ledger.contradictions());
            destroy(&bed).await?;
            gone_from(&bed, &ends.target.id, NO_HANG).await
        }
        .await;
        row.judged(done, &bed);
        conclude(&[row]);
    });
}
