//! Route rows as edges watch them: one whole row an app and region, written only when it differs from what stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use godwit_api::route::{AppRegions, RouteRow};
use godwit_api::{ApiError, AppName, keys};
use godwit_store::{Compare, Op, Txn};

use crate::control::Control;
use crate::routes;
use crate::rows::json;
use crate::world::World;

pub async fn routes(control: Arc<Control>) -> Result<(), ApiError> {
    let stale = std::mem::take(&mut control.world_mut().stale_routes);
    let mut failed = BTreeSet::new();
    let mut outcome = Ok(());
    for app in stale {
        // One transaction an app and region: a row may be large, and each is whole by itself.
        for txn in changes(&control, &app)? {
            match control.commit(txn).await {
                Ok(reply) if reply.succeeded => drop(control.counters.route_writes.inc()),
                Ok(_) => drop(failed.insert(app.clone())),
                Err(error) => {
                    failed.insert(app.clone());
                    outcome = Err(error);
                }
            }
        }
    }
    control.world_mut().stale_routes.extend(failed);
    outcome
}

fn changes(control: &Control, app: &AppName) -> Result<Vec<Txn>, ApiError> {
    let world = control.world();
    let wanted = routes::of_app(&world, app, |host| control.liveness.is_lost(host));
    let mut txns = Vec::new();
    let standing = world.routes.keys().filter(|(_, of)| of == app).map(|(region, _)| region);
    let regions: BTreeSet<&String> = wanted.keys().chain(standing).collect();
    for region in regions {
        let stands = world.routes.get(&(region.clone(), app.clone()));
        let revision = stands.map_or(0, |row| row.revision);
        let key = keys::route(region, app);
        let op = match (wanted.get(region), stands) {
            (Some(row), Some(stands)) if *row == **stands => continue,
            (Some(row), _) => json(key.clone(), row)?,
            (None, _) => Op::delete(key.clone()),
        };
        txns.push(Txn::of([op]).when(Compare::unchanged(key, revision)));
    }
    txns.extend(regions_change(&world, app, &wanted)?);
    Ok(txns)
}

fn regions_change(world: &World, app: &AppName, wanted: &BTreeMap<String, RouteRow>) -> Result<Option<Txn>, ApiError> {
    let stands = world.app_regions.get(app);
    let regions: Vec<String> = wanted.keys().cloned().collect();
    if stands.map_or(regions.is_empty(), |row| row.regions == regions) {
        return Ok(None);
    }
    let key = keys::app_regions(app);
    let revision = stands.map_or(0, |row| row.revision);
    let op = match regions.is_empty() {
        true => Op::delete(key.clone()),
        false => json(key.clone(), &AppRegions { regions })?,
    };
    Ok(Some(Txn::of([op]).when(Compare::unchanged(key, revision))))
}
