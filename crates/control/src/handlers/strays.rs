//! What hosts hold and no row names: listed, and ended or adopted by its exact id.

use std::time::Duration;

use godwit_api::endpoints::{HostsAdoptStray, HostsEndStray, HostsStrays};
use godwit_api::fleet::{Adopted, Stray};
use godwit_api::machine::Acknowledged;
use godwit_api::{ApiError, MachineId, VolumeId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Txn};

use crate::call::Call;
use crate::control::{COMMIT_ATTEMPTS, contended, no_host};
use crate::rows::json;
use crate::world::World;
use crate::{adopt, strays, validate};

pub async fn list(call: Call<HostsStrays>) -> Result<Vec<Stray>, ApiError> {
    let host = call.host()?;
    let world = call.control.world();
    if !world.hosts.contains_key(&host) {
        return Err(no_host(&host));
    }
    Ok(strays::of(&world, &host).map(|fact| strays::shown(&world, &host, fact)).collect())
}

/// Works with the host away: the tombstone waits for it. What has a row by now is none any more, and is not touched.
pub async fn end(call: Call<HostsEndStray>) -> Result<Acknowledged, ApiError> {
    let (control, host) = (&call.control, call.host()?);
    let id = carrier(call.param("stray_id"))?;
    for _ in 0..COMMIT_ATTEMPTS {
        let (txn, tombstone) = {
            let world = control.world();
            let fact = world.fact(&host, &id).filter(|fact| strays::is_stray(&world, &host, fact));
            let fact = fact
                .ok_or_else(|| ApiError::not_found(format!("host {host} holds no stray {}", call.param("stray_id"))))?;
            if world.placement(&host, &id).is_some() {
                return Ok(Acknowledged { ok: true });
            }
            let row = match &fact.volume {
                Some(volume) => keys::volume(&fact.app, &volume.id),
                None => keys::machine(&fact.app, &id),
            };
            let row_revision = strays::row_revision(&world, fact);
            let tombstone = strays::tombstone(&host, fact);
            let key = keys::placement(&host, &id);
            let txn = Txn::of([json(key.clone(), &tombstone)?])
                .when(Compare::absent(key))
                .when(Compare::unchanged(row, row_revision));
            (txn, tombstone)
        };
        if control.commit(txn).await?.succeeded {
            tracing::info!(%host, stray = %id, "what no row names is told to end");
            let control = control.clone();
            // The answer does not wait for the host, which may be away.
            tokio::spawn(async move { control.hint(&tombstone).await });
            return Ok(Acknowledged { ok: true });
        }
    }
    Err(contended())
}

/// A host that has accepted a newer epoch tells of it by then; it is adopted in any case.
const TOLD_WAIT: Duration = Duration::from_secs(5);

/// Asks the host what it is, and writes it down. What is running runs on: the host finds its placement as it knows it, at a
/// newer epoch.
pub async fn adopt(call: Call<HostsAdoptStray>) -> Result<Adopted, ApiError> {
    let (control, host) = (&call.control, call.host()?);
    let id = carrier(call.param("stray_id"))?;
    let app = call.body.app.parse().map_err(|error: godwit_api::ids::InvalidId| {
        ApiError::unprocessable(format!("app: {error}; it names the app that the stray belonged to"))
    })?;
    let name = call.body.name.as_deref().filter(|name| !name.is_empty());
    if let Some(name) = name {
        validate::machine_name(name)?;
    }
    for _ in 0..COMMIT_ATTEMPTS {
        {
            let world = control.world();
            let fact = world.fact(&host, &id).filter(|fact| strays::is_stray(&world, &host, fact));
            let none = || ApiError::not_found(format!("host {host} holds no stray {}", call.param("stray_id")));
            adopt::may(&world, &host, &app, fact.ok_or_else(none)?)?;
        }
        let held = control.ask_held(&host, &id).await?;
        if held.busy {
            return Err(ApiError::unavailable(format!("host {host} is doing something with {id}; try again"), 1));
        }
        let wish = adopt::Wish { host: &host, app: &app, name, held: &held, now_ms: clock::unix_ms() };
        let plan = adopt::plan(&control.world(), &wish)?;
        if control.commit(plan.txn).await?.succeeded {
            tracing::info!(%host, stray = %id, %app, "what no row named is on record again");
            for placed in &plan.placed {
                let placement = control.world().placement(&host, placed).cloned();
                if let Some(placement) = placement {
                    // A lost answer is nobody's loss: the host pulls.
                    let _ = control.hint(&placement).await;
                }
            }
            // Whoever looks next finds it as it is: what its host tells is at the new epoch by then.
            let told = |world: &World| {
                plan.placed.iter().all(|placed| {
                    let epoch = world.placement(&host, placed).map(|placement| placement.epoch);
                    world.fact(&host, placed).map(|fact| fact.epoch) == epoch
                })
            };
            control.sees(TOLD_WAIT, told).await;
            return Ok(plan.adopted);
        }
    }
    Err(contended())
}

/// Of a Machine, or of a volume.
fn carrier(id: &str) -> Result<MachineId, ApiError> {
    if let Ok(volume) = id.parse::<VolumeId>() {
        return Ok(volume.carrier());
    }
    id.parse().map_err(|error: godwit_api::ids::InvalidId| ApiError::not_found(error.to_string()))
}
