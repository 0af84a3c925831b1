//! Each process that has to do with a volume or its Machine killed by pid, at either end, in each phase of a move.

use anyhow::Result;
use godwit_api::migration::MigrationPhase;
use godwit_lab::fleet::{DevHost, kill};
use serde_json::json;

use super::bed::{Bed, End, SLOW_BYTES_PER_S};
use super::everything;
use super::table::{Row, conclude};
use super::traces::PARTS;
use crate::support::run;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Preparing,
    Draining,
    Hydrating,
}

impl When {
    fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Draining => "draining",
            Self::Hydrating => "hydrating",
        }
    }
}

/// What is there to be killed: the part, at the source or not, when, and how the move may end.
const FAULTS: [(&str, bool, When, End); 17] = [
    ("keeper", true, When::Preparing, End::Moved),
    ("server", true, When::Preparing, End::Moved),
    ("shim", true, When::Preparing, End::Moved),
    ("door", true, When::Preparing, End::Moved),
    ("door", false, When::Preparing, End::Moved),
    ("keeper", true, When::Draining, End::Moved),
    ("server", true, When::Draining, End::Moved),
    ("shim", true, When::Draining, End::Moved),
    ("door", true, When::Draining, End::Moved),
    ("door", false, When::Draining, End::Moved),
    ("exporter", true, When::Hydrating, End::Moved),
    ("export server", true, When::Hydrating, End::Moved),
    ("door", true, When::Hydrating, End::Moved),
    ("keeper", false, When::Hydrating, End::Moved),
    ("server", false, When::Hydrating, End::Moved),
    ("shim", false, When::Hydrating, End::Moved),
    ("door", false, When::Hydrating, End::Moved),
];

#[test]
fn any_process_of_a_move_killed_in_any_phase_costs_nothing_but_time() {
    run(async {
        let mut bed = Bed::new(&[]).await.expect("a bed");
        // From here on the source has a keeper, too.
        let mut rows: Vec<Row> = vec![bed.row("nothing", End::Moved, async |bed, _| bed.begin(json!({})).await).await];
        for (part, at_source, when, end) in FAULTS {
            let side = if at_source { "source" } else { "target" };
            let row = bed.row(format!("kill {side}'s {part}, {}", when.as_str()), end, async |bed, ends| {
                let host = if at_source { &ends.source } else { &ends.target };
                let wish = json!({ "rate_bytes_per_s": SLOW_BYTES_PER_S });
                let id = match when {
                    When::Preparing => bed.begin(json!({})).await?,
                    When::Draining => bed.begin_draining(json!({})).await?.0,
                    When::Hydrating => {
                        let id = bed.begin(wish).await?;
                        bed.reaches(&id, MigrationPhase::Hydrating).await?;
                        id
                    }
                };
                one(bed, host, part).await?;
                Ok(id)
            });
            rows.push(row.await);
        }
        if everything() {
            for _ in 0..20 {
                let row = bed.row("kill target's server again and again, hydrating", End::Moved, async |bed, ends| {
                    let id = bed.begin(json!({ "rate_bytes_per_s": SLOW_BYTES_PER_S })).await?;
                    bed.reaches(&id, MigrationPhase::Hydrating).await?;
                    for _ in 0..5 {
                        one(bed, &ends.target, "server").await?;
                    }
                    Ok(id)
                });
                rows.push(row.await);
            }
        }
        conclude(&rows);
    });
}

async fn one(bed: &Bed, host: &DevHost, part: &str) -> Result<()> {
    match PARTS.iter().find(|(name, _)| *name == part) {
        Some((_, needle)) => bed.kill(host, needle).await,
        None => {
            kill(bed.fleet.host(&host.id)?.door_pid, libc::SIGKILL);
            Ok(())
        }
    }
}
