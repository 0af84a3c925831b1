//! Moves that copy before they stop: what was copied is not fetched again, whatever is wrong meanwhile costs no more
//! than the copying, and a move that is called off leaves nothing.

use anyhow::{Result, ensure};
use godwit_api::migration::{Migration, MigrationPhase};
use godwit_lab::fleet::eventually;
use serde_json::{Value, json};

use super::bed::{Bed, End, SLOW_BYTES_PER_S};
use super::table::conclude;
use super::traces::Cut;
use crate::support::{PATIENCE, run};

fn ahead() -> Value {
    json!({ "precopy": true })
}

/// With it the copying takes several seconds.
fn slowly() -> Value {
    json!({ "precopy": true, "rate_bytes_per_s": SLOW_BYTES_PER_S })
}

/// Some of it has been copied, and it still runs where it was.
async fn copies(bed: &Bed, id: &str) -> Result<Migration> {
    eventually("something is copied ahead", PATIENCE, async || {
        let shown = bed.migration(id).await?;
        ensure!(shown.phase == MigrationPhase::Preparing, "it is {}", shown.phase.as_str());
        let copied = shown.progress.precopy.as_ref().map_or(0, |ahead| ahead.copied_bytes);
        Ok((copied > 0).then_some(shown))
    })
    .await
}

#[test]
fn a_move_that_copies_first_fetches_only_what_changed() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        for _ in 0..2 {
            let row = bed.row("copied ahead", End::Moved, async |bed, _| {
                let id = bed.begin(ahead()).await?;
                let over = bed.over(&id).await?;
                let progress = &over.progress;
                let copied = progress.precopy.clone().unwrap_or_default();
                // Its 16 MiB of fill cross before; after the handoff, what was written meanwhile, and hashes.
                ensure!(copied.copied_bytes > 16 << 20 && copied.wire_bytes > 16 << 20, "ahead: {copied:?}");
                ensure!(progress.wire_bytes < 8 << 20 && progress.mismatches == 0, "afterwards: {progress:?}");
                Ok(id)
            });
            rows.push(row.await);
        }
        conclude(&rows);
    });
}

#[test]
fn what_goes_wrong_while_it_copies_costs_only_the_copying() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        for (process, at_source) in [("precopy.json", false), ("export.json", true)] {
            let name = format!("kill every {process} while it copies ahead");
            let row = bed.row(name, End::Moved, async |bed, ends| {
                let id = bed.begin(slowly()).await?;
                copies(bed, &id).await?;
                bed.kill(if at_source { &ends.source } else { &ends.target }, process).await?;
                Ok(id)
            });
            rows.push(row.await);
        }
        let row = bed.row("the link cut for 3 s while it copies ahead", End::Moved, async |bed, ends| {
            let id = bed.begin(slowly()).await?;
            copies(bed, &id).await?;
            let cut = Cut::between(&ends.target, &ends.source)?;
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            drop(cut);
            Ok(id)
        });
        rows.push(row.await);
        let row = bed.row("its Machine restarted while it copies ahead", End::Moved, async |bed, _| {
            let id = bed.begin(slowly()).await?;
            copies(bed, &id).await?;
            // Whoever attaches the volume ends what another host reads of it.
            godwit_lab::fleet::kill(bed.app_pid()?, libc::SIGKILL);
            Ok(id)
        });
        rows.push(row.await);
        let row = bed.row("called off while it copies ahead", End::Stays, async |bed, _| {
            let id = bed.begin(slowly()).await?;
            copies(bed, &id).await?;
            bed.cancel(&id).await?;
            Ok(id)
        });
        rows.push(row.await);
        // Right behind it, another.
        let row =
            bed.row("copied ahead after one that was called off", End::Moved, async |bed, _| bed.begin(ahead()).await);
        rows.push(row.await);
        conclude(&rows);
    });
}
