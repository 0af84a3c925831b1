//! Moves as desire: begun, listed, called off.

use godwit_api::endpoints::{MachinesMigrate, MigrationsCancel, MigrationsList, MigrationsShow, VolumesMigrate};
use godwit_api::migration::{Migration, MigrationEvent, MigrationPhase};
use godwit_api::row::MigrationRow;
use godwit_api::{ApiError, Endpoint, keys};
use godwit_base::{Peer, clock};
use godwit_store::{Compare, Txn};

use super::lease;
use crate::call::Call;
use crate::control::{COMMIT_ATTEMPTS, contended};
use crate::migrations::note;
use crate::moving::What;
use crate::rows::json;

pub async fn machine(call: Call<MachinesMigrate>) -> Result<Migration, ApiError> {
    let (app, id) = (call.app()?, call.machine()?);
    call.control.machine_row(&app, &id)?;
    let guard = || lease::check(&call.control, &id, &call.headers).map(Some);
    call.control.migrate(&app, &What::Machine(id.clone()), &call.body, &asker(&call), guard).await
}

pub async fn volume(call: Call<VolumesMigrate>) -> Result<Migration, ApiError> {
    let (app, id) = (call.app()?, call.volume()?);
    call.control.volume_row(&app, &id)?;
    call.control.migrate(&app, &What::Volume(id), &call.body, &asker(&call), || Ok(None)).await
}

fn asker<E: Endpoint>(call: &Call<E>) -> String {
    match &call.peer {
        Peer::Operator(name) => name.clone(),
        other => other.to_string(),
    }
}

pub async fn list(call: Call<MigrationsList>) -> Result<Vec<Migration>, ApiError> {
    let (query, world) = (&call.query, call.control.world());
    let wanted = |row: &MigrationRow| {
        (query.all.unwrap_or(false) || !row.phase.is_over())
            && query.app.as_deref().is_none_or(|app| app == row.app.as_str())
            && query.machine.as_deref().is_none_or(|id| row.machine.as_ref().is_some_and(|of| of.as_str() == id))
    };
    let mut found: Vec<_> = world.migrations.values().filter(|of| wanted(&of.row)).collect();
    found.sort_by_key(|of| std::cmp::Reverse(of.row.started_at_ms));
    Ok(found.into_iter().map(|of| call.control.view_migration(&world, of)).collect())
}

pub async fn show(call: Call<MigrationsShow>) -> Result<Migration, ApiError> {
    call.control.show_migration(&call.migration()?)
}

/// Written, and then asked of the source, which decides: the reconciler does that until it has answered.
pub async fn cancel(call: Call<MigrationsCancel>) -> Result<Migration, ApiError> {
    let (control, id) = (&call.control, call.migration()?);
    for _ in 0..COMMIT_ATTEMPTS {
        let row = control.world().migrations.get(&id).map(|of| of.row.clone());
        let row = row.ok_or_else(|| ApiError::not_found(format!("there is no migration {id}")))?;
        if row.phase.is_over() {
            return Err(ApiError::conflict(format!("migration {id} is over: {}", row.phase.as_str())));
        }
        if matches!(row.phase, MigrationPhase::Starting | MigrationPhase::Hydrating) {
            return Err(ApiError::conflict(format!(
                "migration {id} has been handed off to {}: to move it back, start another migration",
                row.target
            )));
        }
        if row.cancel_requested_at_ms.is_some() {
            return control.show_migration(&id);
        }
        let now_ms = clock::unix_ms();
        let mut next = (*row.value).clone();
        next.cancel_requested_at_ms = Some(now_ms);
        let detail = format!("{} asked to cancel", asker(&call));
        note(&mut next, MigrationEvent { timestamp: now_ms, phase: row.phase, at: "control".into(), detail });
        let key = keys::migration(&id);
        let txn = Txn::of([json(key.clone(), &next)?]).when(Compare::unchanged(key, row.revision));
        if control.commit(txn).await?.succeeded {
            return control.show_migration(&id);
        }
    }
    Err(contended())
}
