//! What follows from facts: refused Machines go elsewhere, destroyed ones give back what they held, leases end, and
//! hosts that have not taken in their placements are told to pull.

use std::sync::Arc;
use std::time::Duration;

use godwit_api::fact::MachineFact;
use godwit_api::machine::MachineState;
use godwit_api::row::{MachineRow, Placement, Refusals};
use godwit_api::{ApiError, HostId, InstanceId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Op, Txn};

use crate::control::Control;
use crate::placing::Replaced;
use crate::subject::Subject;
use crate::view::PLACEMENTS_MAX;
use crate::world::{Known, World};

/// A host that refused a Machine is not asked again for so long.
const REFUSAL_MEMORY_MS: u64 = 30_000;
/// After the second refusal of a Machine the next host is asked so much later, and after each further one twice as
/// late, up to the bound. `view::PLACEMENTS_MAX` bounds how many are asked in all.
const REPLACE_FIRST_MS: u64 = 1_000;
const REPLACE_MAX_MS: u64 = 600_000;
/// Destroyed Machines of one app that are shown; of more, the oldest go before their time.
const DESTROYED_KEPT_MAX: usize = 1_000;
/// A host is told to pull at most this often.
const PULL_INTERVAL: Duration = Duration::from_secs(5);
/// A placement is the host's to pull by itself for so long before it is told.
const PULL_AFTER_MS: u64 = 2_000;

pub async fn settle(control: Arc<Control>) -> Result<(), ApiError> {
    destroyed(&control).await?;
    orphans(&control).await?;
    refused(&control).await?;
    refused_updates(&control).await?;
    leases(&control).await?;
    prune(&control).await?;
    hints(&control);
    Ok(())
}

/// Has the host acknowledged that nothing of it is left there? A journaled refusal says so as well.
fn is_gone(world: &World, placement: &Placement, fact: Option<&MachineFact>) -> bool {
    let Some(fact) = fact else { return false };
    let is_destroyed = fact.state == MachineState::Destroyed && fact.epoch >= placement.epoch;
    if !is_destroyed {
        return placement.destroy && is_refusal(placement, fact);
    }
    // Above its row, it may have come to its end here because another host had it by then: the store was put back from
    // an older copy, and that host's word may be on its way.
    let is_unwanted = || placement.destroy || present(world, placement).is_none();
    fact.epoch == placement.epoch || (is_unwanted() && !is_held_above(world, placement))
}

/// Does any host hold it at a higher epoch than this row's? Then the row is about to follow.
fn is_held_above(world: &World, placement: &Placement) -> bool {
    let told = world.facts.values().filter_map(|facts| facts.get(&placement.machine));
    present(world, placement).is_some()
        && told.into_iter().any(|fact| fact.held && fact.epoch > placement.epoch && world.is_proven(fact))
}

/// Of exactly this row: a refusal of an older version says nothing of a newer one, which the host may have taken.
fn is_refusal(placement: &Placement, fact: &MachineFact) -> bool {
    fact.refused.is_some() && fact.epoch == placement.epoch && fact.instance_id == placement.instance_id
}

async fn destroyed(control: &Control) -> Result<(), ApiError> {
    let (gone, strays) = {
        let world = control.world();
        let mut gone: Vec<Subject> = Vec::new();
        let mut strays = Vec::new();
        for (host, placements) in &world.placements {
            for placement in placements.values() {
                let fact = world.facts.get(host).and_then(|facts| facts.get(&placement.machine));
                let fact = fact.map(|fact| &**fact);
                if is_moving(&world, placement) {
                    continue;
                }
                if is_past(&world, placement, fact) {
                    strays.push((keys::placement(host, &placement.machine), placement.revision));
                    continue;
                }
                if !is_gone(&world, placement, fact) {
                    continue;
                }
                match present(&world, placement) {
                    Some(subject) => gone.push(subject),
                    // A past host's tombstone, or one whose row is gone.
                    None => strays.push((keys::placement(host, &placement.machine), placement.revision)),
                }
            }
        }
        (gone, strays)
    };
    for subject in gone {
        if control.erase(&subject, Some(clock::unix_ms())).await? {
            tracing::info!(app = %subject.app(), "{} is destroyed", subject.words());
        }
    }
    for (key, revision) in strays {
        control.commit(Txn::of([Op::delete(key.clone())]).when(Compare::unchanged(key, revision))).await?;
    }
    Ok(())
}

/// A row at a host that had it once, where another host holds it now: left by a store that was put back from an older
/// copy and heard of its move only from the host that has it. The past host tells nothing of it, or that it holds and
/// lends nothing: the row asks for nothing any more.
fn is_past(world: &World, placement: &Placement, fact: Option<&MachineFact>) -> bool {
    let Some(subject) = Subject::of(world, placement) else { return false };
    let lends = |fact: &MachineFact| fact.volume.as_ref().is_some_and(|volume| volume.lent_to.is_some());
    let let_go = fact.is_none_or(|fact| !fact.held && !lends(fact));
    let is_older = *subject.host() != placement.host && placement.epoch < subject.epoch() && !placement.destroy;
    let present = world.fact(subject.host(), &placement.machine);
    is_older && let_go && present.is_some_and(|fact| fact.held && fact.epoch >= subject.epoch())
}

/// Machines and volumes of a live move are the move's own matter.
fn is_moving(world: &World, placement: &Placement) -> bool {
    Subject::of(world, placement).is_some_and(|subject| subject.moving().is_some())
}

/// The Machine or volume whose present placement this is.
fn present(world: &World, placement: &Placement) -> Option<Subject> {
    let subject = Subject::of(world, placement)?;
    (*subject.host() == placement.host && !subject.is_destroyed()).then_some(subject)
}

async fn refused(control: &Control) -> Result<(), ApiError> {
    let now_ms = clock::unix_ms();
    let waiting: Vec<(Known<Placement>, Vec<HostId>)> = {
        let world = control.world();
        let placements = world.placements.values().flat_map(|rows| rows.values());
        let refused = placements.filter(|placement| {
            let fact = world.facts.get(&placement.host).and_then(|facts| facts.get(&placement.machine));
            !placement.destroy
                && fact.is_some_and(|fact| is_refusal(placement, fact))
                && present(&world, placement).is_some()
                && !is_moving(&world, placement)
        });
        let due = refused.filter_map(|placement| {
            let subject = present(&world, placement)?;
            let fact = world.fact(&placement.host, &placement.machine)?;
            let is_due = replace_at_ms(subject.refusals(), fact.updated_at_ms)? <= now_ms;
            is_due.then(|| (placement.clone(), recently_refused(&subject, fact, now_ms)))
        });
        due.collect()
    };
    for (placement, tried) in waiting {
        match control.replace_refused(&placement, &tried).await? {
            Replaced::Placed(next) => {
                tracing::info!(machine = %next.machine, from = %placement.host, to = %next.host, "placed again after a refusal");
                control.counters.refused.inc();
                // A lost answer is nobody's loss: the host pulls.
                let _ = control.hint(&next).await;
            }
            Replaced::Nowhere(why) => tracing::debug!(machine = %placement.machine, %why, "refused, and no other host"),
            Replaced::Overtaken => {}
        }
    }
    Ok(())
}

/// A version that its host would not take, or could not: the one that it holds stands again.
async fn refused_updates(control: &Control) -> Result<(), ApiError> {
    let dropped: Vec<(Known<MachineRow>, InstanceId, String)> = {
        let world = control.world();
        let rows = world.machines.values().flat_map(|rows| rows.values());
        let rows = rows.filter(|row| row.destroyed_at_ms.is_none() && row.moving.is_none());
        let dropped = rows.filter_map(|row| {
            let fact = world.fact_of(row)?;
            let refused = fact.refused_update.as_ref().filter(|refused| refused.instance_id == row.instance_id)?;
            (fact.instance_id != row.instance_id)
                .then(|| (row.clone(), fact.instance_id.clone(), refused.reason.clone()))
        });
        dropped.collect()
    };
    for (row, version, reason) in dropped {
        // What stands in the way (a volume that went meanwhile) is no reason to keep the others waiting.
        match control.put_back(&row, &version).await {
            Ok(true) => {
                tracing::info!(machine = %row.id, %version, reason, "an update was refused; the version before it stands")
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(machine = %row.id, %error, "the version before a refused update cannot be put back")
            }
        }
    }
    Ok(())
}

/// Volumes of apps that were deleted go once no Machine holds them.
async fn orphans(control: &Control) -> Result<(), ApiError> {
    let orphans: Vec<Known<Placement>> = {
        let world = control.world();
        let rows = world.volumes.iter().flat_map(|(app, rows)| rows.values().map(move |row| (app, row)));
        let orphans = rows.filter(|(app, row)| {
            let has_app = world.apps.get(*app).is_some_and(|app| app.created_at_ms <= row.created_at_ms);
            !has_app && row.machine.is_none() && row.moving.is_none() && row.destroyed_at_ms.is_none()
        });
        let placed = orphans.filter_map(|(_, row)| world.placement(&row.host, &row.id.carrier()));
        placed.filter(|placement| !placement.destroy).cloned().collect()
    };
    for placement in orphans {
        control.write_tombstone(&placement, false, None).await?;
    }
    Ok(())
}

/// When what was refused at `refused_at_ms` may be placed again; `None`: never, until its owner changes it.
fn replace_at_ms(before: &Refusals, refused_at_ms: u64) -> Option<u64> {
    if before.count >= PLACEMENTS_MAX {
        return None;
    }
    let wait_ms = match before.count {
        0 => 0,
        more => REPLACE_FIRST_MS.saturating_mul(1 << (more - 1).min(16)).min(REPLACE_MAX_MS),
    };
    Some(refused_at_ms.saturating_add(wait_ms))
}

/// Hosts that need not be asked again yet: the present one, and those before it.
fn recently_refused(subject: &Subject, fact: &MachineFact, now_ms: u64) -> Vec<HostId> {
    let now = (fact.host.clone(), fact.updated_at_ms);
    let by = std::iter::once(now).chain(subject.refusals().by.iter().cloned());
    by.filter(|(_, at_ms)| at_ms.saturating_add(REFUSAL_MEMORY_MS) > now_ms).map(|(host, _)| host).collect()
}

/// Leases that have ended are deleted; whoever looked before had to compare the time anyway.
async fn leases(control: &Control) -> Result<(), ApiError> {
    let now_ms = clock::unix_ms();
    let ended: Vec<(String, u64)> = {
        let world = control.world();
        let ended = world.leases.iter().filter(|(_, lease)| lease.expires_at_ms <= now_ms);
        ended.map(|(machine, lease)| (keys::lease(machine), lease.revision)).collect()
    };
    for (key, revision) in ended {
        control.commit(Txn::of([Op::delete(key.clone())]).when(Compare::unchanged(key, revision))).await?;
    }
    Ok(())
}

/// Rows of destroyed Machines and volumes, and of moves that have ended, are kept for a while, to be shown.
async fn prune(control: &Control) -> Result<(), ApiError> {
    let kept_ms = u64::try_from(control.config.destroyed_kept.as_millis()).unwrap_or(u64::MAX);
    let limit_ms = clock::unix_ms().saturating_sub(kept_ms);
    let old: Vec<(String, u64)> = {
        let world = control.world();
        let old = |at_ms: Option<u64>| at_ms.is_some_and(|at_ms| at_ms <= limit_ms);
        let machines = world.machines.values().flat_map(|rows| {
            let mut ended: Vec<_> = rows.values().filter(|row| row.destroyed_at_ms.is_some()).collect();
            ended.sort_by_key(|row| std::cmp::Reverse(row.destroyed_at_ms));
            ended.into_iter().enumerate().filter(|(at, row)| *at >= DESTROYED_KEPT_MAX || old(row.destroyed_at_ms))
        });
        let machines = machines.map(|(_, row)| row);
        let volumes = world.volumes.values().flat_map(|rows| rows.values());
        let volumes = volumes.filter(|row| old(row.destroyed_at_ms));
        let moves = world.migrations.values().map(|of| &of.row).filter(|row| old(row.ended_at_ms));
        let machines = machines.map(|row| (keys::machine(&row.app, &row.id), row.revision));
        let volumes = volumes.map(|row| (keys::volume(&row.app, &row.id), row.revision));
        machines.chain(volumes).chain(moves.map(|row| (keys::migration(&row.id), row.revision))).collect()
    };
    for (key, revision) in old {
        control.commit(Txn::of([Op::delete(key.clone())]).when(Compare::unchanged(key, revision))).await?;
    }
    Ok(())
}

/// Tells hosts with placements that they have not applied to pull now.
fn hints(control: &Arc<Control>) {
    let now_ms = clock::unix_ms();
    let behind: Vec<HostId> = {
        let world = control.world();
        let hosts = world.placements.iter().filter(|(host, placements)| {
            let fact = world.host_facts.get(*host);
            let applied = fact.map_or(0, |fact| fact.applied_revision);
            placements.values().any(|placement| {
                if placement.revision <= applied {
                    return false;
                }
                // What is moving is its move's matter.
                let subject = Subject::of(&world, placement);
                let is_moving = subject.as_ref().is_some_and(|subject| subject.moving().is_some());
                let written_ms = subject.map_or(0, |subject| subject.updated_at_ms());
                !is_moving && written_ms + PULL_AFTER_MS < now_ms
            })
        });
        hosts.map(|(host, _)| host.clone()).collect()
    };
    for host in behind {
        if !control.liveness.may_hint(&host, PULL_INTERVAL) {
            continue;
        }
        control.tell_to_pull(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_of_what_every_host_refuses_grow_rare_and_end() {
        let (mut refusals, mut now_ms, mut placements) = (Refusals::default(), 0, 0);
        let mut in_ten_minutes = 0;
        while let Some(at_ms) = replace_at_ms(&refusals, now_ms) {
            now_ms = at_ms;
            refusals.add(HostId::parse(&format!("w{}", placements % 3)).unwrap(), now_ms);
            placements += 1;
            in_ten_minutes += u32::from(now_ms <= 600_000);
        }
        assert_eq!(placements, PLACEMENTS_MAX);
        assert!(in_ten_minutes <= 11, "{in_ten_minutes}");
        assert_eq!(refusals.by.len(), 3, "each host once");
    }
}
