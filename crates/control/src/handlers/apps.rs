//! Apps: the names under which Machines live.

use godwit_api::app::{App, AppList, CreatedApp};
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsCreate, AppsDelete, AppsList, AppsShow};
use godwit_api::error::Status;
use godwit_api::row::{AppRow, MachineRow};
use godwit_api::{ApiError, AppName, keys};
use godwit_base::{clock, secret};
use godwit_store::{Compare, Op, Txn, put_json};

use crate::call::Call;
use crate::control::{COMMIT_ATTEMPTS, Control, contended, no_app};
use crate::edge_ports;
use crate::rows::store_error;
use crate::view;
use crate::world::{Known, World};

/// The one organization that there is.
const ORGANIZATION: &str = "personal";
const NETWORK: &str = "default";
/// Of an app's own host names so many are told with it; `Certificates_list` has all.
const URLS_TOLD: usize = 16;

pub async fn list(call: Call<AppsList>) -> Result<AppList, ApiError> {
    let world = call.control.world();
    let wanted = call.query.org_slug.as_deref();
    let rows = world.apps.values().filter(|row| wanted.is_none_or(|org| org == row.organization));
    let apps: Vec<_> =
        rows.map(|row| view::listed_app(row, living(&world, &row.name), volumes(&world, &row.name))).collect();
    Ok(AppList { total_apps: apps.len() as u64, apps })
}

pub async fn create(call: Call<AppsCreate>) -> Result<CreatedApp, ApiError> {
    let wanted = call.body.app_name.as_deref().or(call.body.name.as_deref()).unwrap_or_default();
    let name = AppName::parse(wanted).map_err(|error| ApiError::unprocessable(error.to_string()))?;
    if let Some(other) = call.body.org_slug.as_deref().filter(|org| !org.is_empty() && *org != ORGANIZATION) {
        return Err(ApiError::unprocessable(format!(
            "org_slug: there is no organization {other:?}: this fleet has one, {ORGANIZATION:?}; leave it out or name that"
        )));
    }
    let row = AppRow {
        id: format!("{:016x}", secret::random_u64()),
        name: name.clone(),
        organization: ORGANIZATION.into(),
        network: NETWORK.into(),
        created_at_ms: clock::unix_ms(),
    };
    let key = keys::app(&name);
    let put = put_json(key.clone(), &row).map_err(store_error)?;
    if !call.control.commit(Txn::of([put]).when(Compare::absent(key))).await?.succeeded {
        return Err(ApiError::new(422, Status::NameTaken, format!("the name {name} is taken")));
    }
    Ok(CreatedApp { app: view::app(&row, 0, 0, urls_of(&call.control, &name)), created_at: row.created_at_ms })
}

pub async fn show(call: Call<AppsShow>) -> Result<App, ApiError> {
    let app = call.app()?;
    let world = call.control.world();
    let row = world.apps.get(&app).ok_or_else(|| no_app(&app))?;
    let ports: Vec<u16> = world.ports.iter().filter(|(_, row)| row.app == app).map(|(port, _)| *port).collect();
    let raw_ports = call.control.edge_ports.of(&ports, std::time::Instant::now());
    let warnings = edge_ports::warnings(&raw_ports);
    let own = world.hostnames_of(&app).filter(|row| row.hostname.wildcard_of().is_none());
    let own = own.take(URLS_TOLD).map(|row| format!("https://{}", row.hostname));
    let urls = urls_of(&call.control, &app).into_iter().chain(own).collect();
    Ok(App { warnings, raw_ports, ..view::app(row, living(&world, &app), volumes(&world, &app), urls) })
}

/// Its names at the edges, as the configuration has them.
fn urls_of(control: &Control, app: &AppName) -> Vec<String> {
    control.config.app_urls.iter().map(|url| url.replace("{app}", app.as_str())).collect()
}

/// Without Machines, or by force with them: each becomes a tombstone, which outlives the app until its host has
/// acknowledged it.
pub async fn delete(call: Call<AppsDelete>) -> Result<Empty, ApiError> {
    let app = call.app()?;
    let control = &call.control;
    for _ in 0..COMMIT_ATTEMPTS {
        let (row, used, machines, volumes) = {
            let world = control.world();
            let row = world.apps.get(&app).cloned().ok_or_else(|| no_app(&app))?;
            let machines: Vec<_> = alive(&world, &app).cloned().collect();
            let placed = |row: &Known<MachineRow>| world.placement(&row.host, &row.id).cloned();
            let machines: Vec<_> = machines.iter().filter_map(placed).collect();
            (row, world.app_uses.get(&app).copied().unwrap_or(0), machines, volumes(&world, &app))
        };
        if !machines.is_empty() && !call.query.force.unwrap_or(false) {
            return Err(ApiError::conflict(format!(
                "app {app} has {} Machines: destroy them first, or delete with force=true",
                machines.len()
            )));
        }
        if volumes > 0 && !call.query.force.unwrap_or(false) {
            return Err(ApiError::conflict(format!(
                "app {app} has {volumes} volumes: delete them first, or delete with force=true"
            )));
        }
        // Its volumes are marked once their Machines are gone (`reconcile::settle`).
        for machine in machines {
            control.write_tombstone(&machine, true, None).await?;
        }
        // A Machine that is created meanwhile writes the use row, and we look again.
        let txn = Txn::of([Op::delete(keys::app(&app)), Op::delete(keys::app_use(&app))])
            .when(Compare::unchanged(keys::app(&app), row.revision))
            .when(Compare::unchanged(keys::app_use(&app), used));
        if control.commit(txn).await?.succeeded {
            return Ok(Empty {});
        }
    }
    Err(contended())
}

/// Machines of an app that are neither destroyed nor on their way there.
fn alive<'a>(world: &'a World, app: &AppName) -> impl Iterator<Item = &'a Known<MachineRow>> {
    world.machines_of(app).filter(|row| {
        row.destroyed_at_ms.is_none() && world.placement(&row.host, &row.id).is_some_and(|placement| !placement.destroy)
    })
}

fn living(world: &World, app: &AppName) -> u64 {
    alive(world, app).count() as u64
}

/// Volumes of an app that are neither destroyed nor on their way there.
fn volumes(world: &World, app: &AppName) -> u64 {
    let standing = world.volumes_of(app).filter(|row| {
        let placement = world.placement(&row.host, &row.id.carrier());
        row.destroyed_at_ms.is_none() && placement.is_some_and(|placement| !placement.destroy)
    });
    standing.count() as u64
}
