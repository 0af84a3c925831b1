//! The moment at which a Machine changes hands: replies lost, links cut, cancels that race it.

use std::time::Duration;

use anyhow::{Result, ensure};
use godwit_api::migration::MigrationPhase;
use godwit_base::http::client::CallError;
use godwit_lab::fleet::{eventually, kill};
use serde_json::json;

use super::bed::{Bed, End};
use super::everything;
use super::table::conclude;
use super::traces::Cut;
use crate::support::{PATIENCE, run};

/// How long a link is cut.
const CUT: Duration = Duration::from_secs(5);
/// How long after the ask for a move its cancel is sent.
const CANCEL_AFTER_MS: [u64; 12] = [0, 5, 10, 20, 40, 80, 160, 320, 480, 640, 960, 1_400];

#[test]
fn whatever_is_lost_at_the_handoff_is_asked_again() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        let lost = bed.row("the handoff's reply lost", End::Moved, async |bed, ends| {
            let (id, _slow) = bed.begin_draining(json!({})).await?;
            let cut = Cut::between(&ends.source, &ends.target)?;
            // Control hears of the handoff from the source, while the target cannot.
            bed.reaches(&id, MigrationPhase::Starting).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(cut);
            Ok(id)
        });
        rows.push(lost.await);
        let halted = bed.row("source's agent halted at the handoff", End::Moved, async |bed, ends| {
            let (id, slow) = bed.begin_draining(json!({})).await?;
            let agent = bed.fleet.host(&ends.source.id)?.agent_pid;
            slow.await?;
            kill(agent, libc::SIGSTOP);
            tokio::time::sleep(CUT).await;
            kill(agent, libc::SIGCONT);
            Ok(id)
        });
        rows.push(halted.await);
        let cut = bed.row("the link cut at the handoff for 5 s", End::Moved, async |bed, ends| {
            let (id, _slow) = bed.begin_draining(json!({})).await?;
            let cut = Cut::between(&ends.target, &ends.source)?;
            tokio::time::sleep(CUT).await;
            drop(cut);
            Ok(id)
        });
        rows.push(cut.await);
        for at_source in [true, false] {
            let side = if at_source { "source" } else { "target" };
            let off = bed.row(format!("{side} cut off at the handoff for 5 s"), End::Moved, async |bed, ends| {
                let (id, _slow) = bed.begin_draining(json!({})).await?;
                let cut = Cut::off(if at_source { &ends.source } else { &ends.target })?;
                tokio::time::sleep(CUT).await;
                drop(cut);
                Ok(id)
            });
            rows.push(off.await);
        }
        conclude(&rows);
    });
}

#[test]
fn a_cancel_that_races_the_handoff_ends_as_the_api_says() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        let mut seen = Vec::new();
        let rounds = if everything() { 5 } else { 1 };
        for after_ms in CANCEL_AFTER_MS.into_iter().cycle().take(CANCEL_AFTER_MS.len() * rounds) {
            let row = bed.row(format!("cancel {after_ms} ms after the ask"), End::Either, async |bed, _| {
                let id = bed.begin(json!({})).await?;
                tokio::time::sleep(Duration::from_millis(after_ms)).await;
                let answer = cancel(bed, &id).await?;
                let over = bed.over(&id).await?;
                match answer {
                    // It was over, or past the handoff: it cannot be called off any more.
                    Some(_) => ensure!(over.phase == MigrationPhase::Completed, "refused, and {}", over.phase.as_str()),
                    None => ensure!(
                        matches!(over.phase, MigrationPhase::Cancelled | MigrationPhase::Completed),
                        "{}: {:?}",
                        over.phase.as_str(),
                        over.reason
                    ),
                }
                Ok(id)
            });
            let row = row.await;
            seen.push(row.end.clone());
            rows.push(row);
        }
        conclude(&rows);
        assert!(seen.iter().any(|end| end == "cancelled"), "no cancel came in time: {seen:?}");
        assert!(seen.iter().any(|end| end == "completed"), "no cancel came too late: {seen:?}");
    });
}

/// `Some`: why it was refused.
async fn cancel(bed: &Bed, id: &str) -> Result<Option<String>> {
    eventually("the cancel is answered", PATIENCE, async || match bed.cancel(id).await {
        Ok(_) => Ok(Some(None)),
        Err(CallError::Answered(error)) if error.code == 409 => Ok(Some(Some(error.to_string()))),
        Err(error) => Err(error.into()),
    })
    .await
}
