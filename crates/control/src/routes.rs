//! What edges are told of an app: its route rows by region, from Machines, placements and facts. Pure.

use std::collections::BTreeMap;

use godwit_api::fact::MachineFact;
use godwit_api::machine::MachineState;
use godwit_api::route::{Readiness, RouteMachine, RouteRow};
use godwit_api::row::MachineRow;
use godwit_api::{AppName, HostId};

use crate::view;
use crate::world::World;

/// The rows of an app as they should stand: by region, only regions with Machines. `is_lost` says of a host that
/// neither its agent nor its door is reached.
pub fn of_app(world: &World, app: &AppName, is_lost: impl Fn(&HostId) -> bool) -> BTreeMap<String, RouteRow> {
    let mut rows: BTreeMap<String, RouteRow> = BTreeMap::new();
    for row in world.machines_of(app) {
        let Some(machine) = route_machine(world, row, &is_lost) else { continue };
        let of_region = rows.entry(row.region.clone());
        let route = of_region.or_insert_with(|| RouteRow {
            app: app.clone(),
            region: row.region.clone(),
            machines: Vec::new(),
        });
        route.machines.push(machine);
    }
    rows
}

fn route_machine(world: &World, row: &MachineRow, is_lost: impl Fn(&HostId) -> bool) -> Option<RouteMachine> {
    if row.skip_service_registration || row.config.services.is_empty() || row.destroyed_at_ms.is_some() {
        return None;
    }
    let placement = world.placement(&row.host, &row.id).map(|placement| &**placement);
    // A tombstone takes the Machine out at once: its door will close in any case.
    if placement.is_none_or(|placement| placement.destroy) {
        return None;
    }
    let host = world.hosts.get(&row.host)?;
    let fact = world.fact_of(row).map(|fact| &**fact);
    let mut readiness = readiness(row, view::state(row, placement, fact), fact);
    if is_lost(&row.host) {
        readiness = Readiness::Unavailable;
    }
    Some(RouteMachine {
        machine: row.id.clone(),
        host: row.host.clone(),
        door_addr: host.door_addr.clone(),
        epoch: row.epoch,
        private_ip: row.private_ip,
        readiness,
        cordoned: row.cordoned,
        services: row.config.services.clone(),
        closed_ports: fact.map(|fact| fact.closed_ports.clone()).unwrap_or_default(),
    })
}

fn readiness(row: &MachineRow, state: MachineState, fact: Option<&MachineFact>) -> Readiness {
    match state {
        MachineState::Started if has_critical_service_check(row, fact) => Readiness::Unavailable,
        MachineState::Started => Readiness::Running,
        MachineState::Starting | MachineState::Restarting | MachineState::Replacing => Readiness::Starting,
        // One that is stopping will have stopped: the door lets a start wait for that. Were it told as unavailable, an
        // edge that hears nothing more of control would hold its requests in vain.
        MachineState::Created | MachineState::Stopping | MachineState::Stopped => Readiness::Stopped,
        MachineState::Failed | MachineState::Destroying | MachineState::Destroyed => Readiness::Unavailable,
    }
}

/// Checks of services gate routing; those named in `config.checks` only inform.
fn has_critical_service_check(row: &MachineRow, fact: Option<&MachineFact>) -> bool {
    let checks = fact.map(|fact| fact.checks.as_slice()).unwrap_or_default();
    checks.iter().any(|check| check.status == "critical" && !row.config.checks.contains_key(&check.name))
}
