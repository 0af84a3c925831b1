//! Control killed in each phase of a move, and control that was put back to before one.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use godwit_api::migration::MigrationPhase;
use godwit_lab::fleet::{eventually, kill};
use serde_json::json;

use super::bed::{APP, Bed, End, SLOW_BYTES_PER_S};
use super::table::{Row, conclude};
use crate::support::{PATIENCE, run};

#[test]
fn control_killed_in_any_phase_finds_the_move_where_its_hosts_are() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        for phase in
            [MigrationPhase::Preparing, MigrationPhase::HandingOff, MigrationPhase::Starting, MigrationPhase::Hydrating]
        {
            let row = bed.row(format!("kill control, {}", phase.as_str()), End::Moved, async |bed, _| {
                let wish = json!({ "rate_bytes_per_s": SLOW_BYTES_PER_S });
                let id = match phase {
                    MigrationPhase::HandingOff => bed.begin_draining(wish).await?.0,
                    _ => bed.begin(wish).await?,
                };
                bed.reaches(&id, phase).await?;
                kill(bed.fleet.dev()?.control_pid, libc::SIGKILL);
                Ok(id)
            });
            rows.push(row.await);
        }
        conclude(&rows);
    });
}

#[test]
fn control_from_before_the_move_leaves_the_machine_where_it_runs() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        for phase in [MigrationPhase::Completed, MigrationPhase::Hydrating] {
            let mut row = Row::named(&format!("control put back to before the move, {}", phase.as_str()));
            let copies = crate::kills::Copies::count(bed.machine.clone());
            let done = put_back(&bed, phase, &mut row.end).await;
            row.judged(done, &bed);
            row.copies = copies.most();
            if row.copies > 1 {
                row.wrong.push("two copies".into());
            }
            let failed = !row.wrong.is_empty();
            rows.push(row);
            if failed {
                bed = bed.anew().await.expect("another bed");
            }
        }
        conclude(&rows);
    });
}

async fn put_back(bed: &Bed, phase: MigrationPhase, end: &mut String) -> Result<()> {
    let ends = bed.ends().await?;
    let folder = bed.fleet.dir().join("control/data");
    let files = || ["store.db", "store.db-wal"].map(|name| folder.join(name));
    let kept = |file: &PathBuf| {
        file.with_extension(format!("{}-kept", file.extension().unwrap_or_default().to_string_lossy()))
    };
    halted(bed, || {
        for file in files().iter().filter(|file| file.exists()) {
            std::fs::copy(file, kept(file))?;
        }
        Ok(())
    })?;
    let id = bed.begin(json!({ "rate_bytes_per_s": SLOW_BYTES_PER_S })).await?;
    bed.reaches(&id, phase).await?;
    let toml = bed.fleet.dir().join("control/control.toml");
    let before = std::fs::read_to_string(&toml)?;
    std::fs::write(&toml, format!("restored = true\n{before}"))?;
    let old = bed.fleet.dev()?.control_pid;
    kill(old, libc::SIGSTOP);
    for file in files() {
        // The halted one keeps what it has open.
        let _ = std::fs::remove_file(&file);
        if kept(&file).exists() {
            std::fs::rename(kept(&file), &file)?;
        }
    }
    let _ = std::fs::remove_file(folder.join("store.db-shm"));
    kill(old, libc::SIGKILL);
    eventually("control is back", PATIENCE, async || Ok((bed.fleet.dev()?.control_pid != old).then_some(()))).await?;
    eventually("control answers", PATIENCE, async || Ok(Some(bed.fleet.machine(APP, &bed.machine).await?))).await?;
    std::fs::write(&toml, before)?;
    ensure!(bed.migration(&id).await.is_err(), "the old copy knows of the move");
    bed.runs_at(&ends.target.id).await?;
    let mut row = Row::default();
    bed.lost_nothing(&mut row).await?;
    bed.left_nothing(&ends.target.id, &ends.source.id).await?;
    *end = "unknown, and it runs at the target".into();
    Ok(())
}

/// Does something while control is halted.
fn halted(bed: &Bed, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let control = bed.fleet.dev()?.control_pid;
    kill(control, libc::SIGSTOP);
    let done = work();
    kill(control, libc::SIGCONT);
    done
}
