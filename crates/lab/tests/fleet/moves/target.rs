//! A target without room: by its ledger, which is said at once, and by its disk, which is found out late.

use std::time::Duration;

use anyhow::{Result, ensure};
use godwit_api::migration::MigrationPhase;
use godwit_base::http::client::CallError;
use serde_json::json;

use super::bed::{Bed, End, create_volume};
use super::table::{Row, conclude};
use super::traces::{inside, parent_of};
use crate::support::run;

/// The whole file system of the target's volumes, and what of it is taken at first: there is room for a part of the
/// data.
const DISK: &str = "96M";
const TAKEN: &str = "64M";

#[test]
fn a_full_target_refuses_or_waits_and_loses_nothing() {
    run(async {
        let bed = Bed::new(&["--capacity", "disk_mb=1536"]).await.expect("a bed");
        let mut full = Row::named("target's ledger full");
        let done: Result<()> = async {
            let ends = bed.ends().await?;
            let other = create_volume(&bed.fleet).await?;
            ensure!(other.zone == ends.target.id, "the only room is at {}", ends.target.id);
            match bed.ask(json!({ "host": ends.target.id })).await {
                Err(CallError::Answered(error)) => full.end = format!("{} {error}", error.code),
                other => anyhow::bail!("expected a refusal: {other:?}"),
            }
            bed.runs_at(&ends.source.id).await?;
            bed.lost_nothing(&mut full).await
        }
        .await;
        full.judged(done, &bed);
        drop(bed);

        let mut bed = Bed::new(&[]).await.expect("a bed");
        let waits = bed.row("target's disk full while hydrating, then room again", End::Moved, async |bed, ends| {
            let small = Small::mount(&ends.target)?;
            let id = bed.begin(json!({})).await?;
            bed.reaches(&id, MigrationPhase::Hydrating).await?;
            tokio::time::sleep(Duration::from_secs(4)).await;
            let shown = bed.migration(&id).await?;
            ensure!(shown.phase == MigrationPhase::Hydrating, "{} on a full disk", shown.phase.as_str());
            small.make_room()?;
            bed.over(&id).await?;
            // The Machine goes on on it: it is taken away with the fleet.
            Ok(id)
        });
        let waits = waits.await;
        conclude(&[full, waits]);
    });
}

/// A small file system where the target keeps its volumes. It goes with the host's mount namespace.
struct Small {
    host: i32,
    folder: String,
}

impl Small {
    fn mount(host: &godwit_lab::fleet::DevHost) -> Result<Self> {
        let (pid, folder) = (parent_of(host.agent_pid)?, host.data_dir.join("volumes").display().to_string());
        let image = format!("{folder}.small");
        let commands = format!(
            "mkdir -p {folder} && truncate -s {DISK} {image} && mkfs.ext4 -q -F -m 0 {image} && \
             mount -o loop {image} {folder} && \
             fallocate -l {TAKEN} {folder}/lost+found/taken"
        );
        inside(pid, "--mount", &commands)?;
        Ok(Self { host: pid, folder })
    }

    fn make_room(&self) -> Result<()> {
        inside(self.host, "--mount", &format!("rm {}/lost+found/taken", self.folder))
    }
}
