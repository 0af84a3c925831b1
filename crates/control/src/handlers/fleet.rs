//! Hosts as operators see them.

use godwit_api::endpoints::{HostsCordon, HostsList, HostsShow, HostsUncordon};
use godwit_api::fleet::Host;
use godwit_api::machine::Acknowledged;
use godwit_api::row::HostRow;
use godwit_api::{ApiError, HostId, keys};
use godwit_store::{Compare, Txn};

use crate::call::Call;
use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_host};
use crate::rows::json;
use crate::view;

pub async fn list(call: Call<HostsList>) -> Result<Vec<Host>, ApiError> {
    let world = call.control.world();
    Ok(world.hosts.values().map(|row| shown(&call.control, &world, row)).collect())
}

pub async fn show(call: Call<HostsShow>) -> Result<Host, ApiError> {
    let id = call.host()?;
    let world = call.control.world();
    let row = world.hosts.get(&id).ok_or_else(|| no_host(&id))?;
    Ok(shown(&call.control, &world, row))
}

pub async fn cordon(call: Call<HostsCordon>) -> Result<Acknowledged, ApiError> {
    set_cordoned(&call.control, &call.host()?, true).await
}

pub async fn uncordon(call: Call<HostsUncordon>) -> Result<Acknowledged, ApiError> {
    set_cordoned(&call.control, &call.host()?, false).await
}

async fn set_cordoned(control: &Control, id: &HostId, cordoned: bool) -> Result<Acknowledged, ApiError> {
    for _ in 0..COMMIT_ATTEMPTS {
        let row = control.world().hosts.get(id).cloned().ok_or_else(|| no_host(id))?;
        if row.cordoned == cordoned {
            return Ok(Acknowledged { ok: true });
        }
        let key = keys::host(id);
        let next = HostRow { cordoned, ..(*row.value).clone() };
        let txn = Txn::of([json(key.clone(), &next)?]).when(Compare::unchanged(key, row.revision));
        if control.commit(txn).await?.succeeded {
            return Ok(Acknowledged { ok: true });
        }
    }
    Err(contended())
}

fn shown(control: &Control, world: &crate::world::World, row: &HostRow) -> Host {
    let fact = world.host_facts.get(&row.id).map(|fact| &**fact);
    view::host(row, fact, control.liveness.reach(&row.id), control.liveness.last_seen_ms(&row.id))
}
