//! Either agent killed at every step of a move: before its effect, after it, after its outcome; and both at once.

use anyhow::{Result, ensure};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MigrationsShow, VolumesDelete, VolumesMigrate, VolumesShow};
use godwit_api::migration::{Migrate, MigrationPhase};
use godwit_lab::fleet::{DevHost, eventually, kill};
use godwit_machine::job::{JobKind, Step, StopMode, rows};
use serde_json::json;

use super::bed::{APP, Bed, End, create_volume};
use super::everything;
use super::table::{Row, conclude};
use super::traces::holdings;
use crate::support::{PATIENCE, run};

/// The kinds of job that are killed here; `crate::kills` has all others.
pub const KINDS: [JobKind; 10] = [
    JobKind::MoveIn,
    JobKind::MoveOut,
    JobKind::TakeBack,
    JobKind::VolumeCreate,
    JobKind::VolumeDestroy,
    JobKind::VolumeMoveIn,
    JobKind::VolumeMoveOut,
    JobKind::VolumeTakeBack,
    JobKind::Hydrate,
    JobKind::Lend,
];
const POINTS: [&str; 3] = ["before", "after", "outcome"];

/// What stands in `crash-at`.
struct Point {
    kind: JobKind,
    step: Step,
    instant: &'static str,
}

impl Point {
    fn label(&self) -> String {
        format!("{}:{}:{}", self.kind.as_str(), self.step.as_str(), self.instant)
    }

    fn is_at_target(&self) -> bool {
        matches!(self.kind, JobKind::MoveIn | JobKind::VolumeMoveIn | JobKind::Hydrate)
    }
}

/// Every step of these jobs with every instant; or with one, so that three neighbours have all.
fn points(kinds: &[JobKind], starts: bool) -> Vec<Point> {
    let mut points = Vec::new();
    for kind in kinds.iter().copied() {
        for row in rows(kind, StopMode::Graceful, starts) {
            // It is cut off by the release, and so has no end of its own.
            let ends = row.step != Step::ServeExport;
            let drawn = points.len() % POINTS.len();
            for (index, instant) in POINTS.into_iter().enumerate() {
                let wanted = everything() || index == if ends { drawn } else { 0 };
                if wanted && (ends || instant == "before") {
                    points.push(Point { kind, step: row.step, instant });
                }
            }
        }
    }
    points
}

pub fn arm(host: &DevHost, label: &str) -> Result<()> {
    std::fs::write(host.data_dir.join("crash-at.tmp"), label)?;
    Ok(std::fs::rename(host.data_dir.join("crash-at.tmp"), host.data_dir.join("crash-at"))?)
}

/// The file goes as the agent dies.
pub async fn fired(host: &DevHost) -> Result<()> {
    let crash_at = host.data_dir.join("crash-at");
    let gone = eventually("the agent is killed", PATIENCE, async || Ok((!crash_at.exists()).then_some(()))).await;
    // Not to go off in the next row.
    let _ = std::fs::remove_file(&crash_at);
    gone
}

#[test]
fn either_agent_killed_at_any_step_of_a_move_costs_nothing_but_time() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows: Vec<Row> = vec![bed.row("nothing", End::Moved, async |bed, _| bed.begin(json!({})).await).await];
        for point in points(&[JobKind::MoveIn, JobKind::MoveOut, JobKind::Hydrate, JobKind::Lend], true) {
            let row = bed.row(format!("kill agent {}", point.label()), End::Moved, async |bed, ends| {
                let host = if point.is_at_target() { &ends.target } else { &ends.source };
                arm(host, &point.label())?;
                let id = bed.begin(json!({ "precopy": point.step == Step::CopyAhead })).await?;
                fired(host).await?;
                Ok(id)
            });
            rows.push(row.await);
        }
        let both = bed.row("kill both agents at the handoff", End::Moved, async |bed, ends| {
            let (id, _slow) = bed.begin_draining(json!({})).await?;
            for host in [&ends.source, &ends.target] {
                kill(bed.fleet.host(&host.id)?.agent_pid, libc::SIGKILL);
            }
            Ok(id)
        });
        rows.push(both.await);
        let both = bed.row("kill both agents at the point of no return", End::Moved, async |bed, ends| {
            arm(&ends.source, "move_out:hand_off:outcome")?;
            arm(&ends.target, "move_in:attach_volumes:after")?;
            let id = bed.begin(json!({})).await?;
            fired(&ends.source).await?;
            fired(&ends.target).await?;
            Ok(id)
        });
        rows.push(both.await);
        conclude(&rows);
    });
}

/// A target that cannot attach, by which the source takes back; and the source's agent killed in the midst of that.
#[test]
fn a_target_that_cannot_attach_hands_back_whoever_is_killed_meanwhile() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        let mut rows = Vec::new();
        let plain = bed.row("target cannot attach", End::Stays, async |bed, ends| {
            let _covered = Covered::fuse(&ends.target)?;
            let id = bed.begin(json!({})).await?;
            bed.over(&id).await?;
            Ok(id)
        });
        rows.push(plain.await);
        for point in points(&[JobKind::TakeBack], true) {
            let row = bed.row(format!("kill agent {}", point.label()), End::Stays, async |bed, ends| {
                let _covered = Covered::fuse(&ends.target)?;
                arm(&ends.source, &point.label())?;
                let id = bed.begin(json!({})).await?;
                fired(&ends.source).await?;
                bed.over(&id).await?;
                Ok(id)
            });
            rows.push(row.await);
        }
        for label in ["move_in:hand_back:before", "move_in:hand_back:after", "move_in:remove_replicas:after"] {
            let row = bed.row(format!("kill agent {label}"), End::Stays, async |bed, ends| {
                let _covered = Covered::fuse(&ends.target)?;
                arm(&ends.target, label)?;
                let id = bed.begin(json!({})).await?;
                fired(&ends.target).await?;
                bed.over(&id).await?;
                Ok(id)
            });
            rows.push(row.await);
        }
        conclude(&rows);
    });
}

/// `/dev/fuse` of one host is something else meanwhile.
struct Covered(i32);

impl Covered {
    fn fuse(host: &DevHost) -> Result<Self> {
        let host = super::traces::parent_of(host.agent_pid)?;
        super::traces::inside(host, "--mount", "mount --bind /dev/null /dev/fuse")?;
        Ok(Self(host))
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        if let Err(error) = super::traces::inside(self.0, "--mount", "umount /dev/fuse") {
            eprintln!("/dev/fuse stays covered: {error:#}");
        }
    }
}

/// A volume that nothing holds: created, moved, destroyed, with the agent killed at each step of each.
#[test]
fn either_agent_killed_while_a_free_volume_is_made_moved_or_destroyed_costs_nothing_but_time() {
    run(async {
        let fleet = crate::support::fleet(2, &["--lab"]);
        fleet.create_app(APP).await.expect("the app");
        let mut cells = Vec::new();
        let kinds = [JobKind::VolumeCreate, JobKind::VolumeDestroy, JobKind::VolumeMoveIn, JobKind::VolumeMoveOut];
        for point in points(&kinds, true) {
            let label = point.label();
            free_volume(&fleet, &point).await.unwrap_or_else(|error| panic!("{label}: {error:#}"));
            cells.push(label);
        }
        println!("a volume that nothing holds, agent killed at: {}: ok", cells.join(", "));
    });
}

async fn free_volume(fleet: &godwit_lab::fleet::Fleet, point: &Point) -> Result<()> {
    let api = fleet.api()?;
    let hosts = fleet.dev()?.hosts;
    if point.kind == JobKind::VolumeCreate {
        // Either may get it.
        hosts.iter().try_for_each(|host| arm(host, &point.label()))?;
    }
    let volume = create_volume(fleet).await?;
    if point.kind == JobKind::VolumeCreate {
        ensure!(hosts.iter().any(|host| !host.data_dir.join("crash-at").exists()), "no agent was killed");
        hosts.iter().for_each(|host| drop(std::fs::remove_file(host.data_dir.join("crash-at"))));
    }
    let (source, target) = match hosts.iter().position(|host| host.id == volume.zone) {
        Some(at) => (&hosts[at], &hosts[1 - at]),
        None => anyhow::bail!("{} is not a host", volume.zone),
    };
    let mut at = source;
    if matches!(point.kind, JobKind::VolumeMoveIn | JobKind::VolumeMoveOut) {
        let host = if point.is_at_target() { target } else { source };
        arm(host, &point.label())?;
        let moving = api.call::<VolumesMigrate>(&[APP, volume.id.as_str()], &Empty {}, &Migrate::default()).await?;
        fired(host).await?;
        eventually("the volume has moved", PATIENCE, async || {
            let shown = api.call::<MigrationsShow>(&[moving.id.as_str()], &Empty {}, &Empty {}).await?;
            ensure!(shown.phase == MigrationPhase::Completed, "{} {:?}", shown.phase.as_str(), shown.reason);
            Ok(Some(()))
        })
        .await?;
        let shown = api.call::<VolumesShow>(&[APP, volume.id.as_str()], &Empty {}, &Empty {}).await?;
        ensure!(shown.zone == target.id && shown.state == "created", "{} {}", shown.zone, shown.state);
        at = target;
    }
    if point.kind == JobKind::VolumeDestroy {
        arm(at, &point.label())?;
    }
    api.call::<VolumesDelete>(&[APP, volume.id.as_str()], &Empty {}, &Empty {}).await?;
    if point.kind == JobKind::VolumeDestroy {
        fired(at).await?;
    }
    eventually("nothing of it is left", PATIENCE, async || {
        for host in fleet.dev()?.hosts {
            let left = holdings(&host);
            ensure!(left.is_empty(), "{} holds {left:?}", host.id);
        }
        Ok(Some(()))
    })
    .await
}
