//! What a host holds and no row names: after the store was put back from an older copy, or after a create whose answer was
//! lost and whose row went. Hosts leave it alone and tell of it; an operator ends it, or has it adopted (`adopt`). Pure.

use std::net::Ipv6Addr;

use godwit_api::config::MachineConfig;
use godwit_api::fact::MachineFact;
use godwit_api::fleet::Stray;
use godwit_api::row::Placement;
use godwit_api::volume::{PlacedVolume, VolumeFs};
use godwit_api::{HostId, MachineId};
use godwit_base::clock::rfc3339;

use crate::world::{Known, World};

/// The strays of one host, by their exact ids.
pub fn of<'a>(world: &'a World, host: &'a HostId) -> impl Iterator<Item = &'a Known<MachineFact>> {
    let facts = world.facts.get(host).into_iter().flat_map(|facts| facts.values());
    facts.filter(move |fact| is_stray(world, host, fact))
}

/// Held, with no placement here but one that ends it, and no living row anywhere: what has a row belongs to it, and to its
/// moves.
pub fn is_stray(world: &World, host: &HostId, fact: &MachineFact) -> bool {
    let lends = fact.volume.as_ref().is_some_and(|volume| volume.lent_to.is_some());
    let is_asked_for = world.placement(host, &fact.machine).is_some_and(|placement| !placement.destroy);
    fact.held && !lends && !is_asked_for && !has_row(world, &fact.machine, fact)
}

/// Of the row that may have stood for it once; 0: there is none.
pub fn row_revision(world: &World, fact: &MachineFact) -> u64 {
    match &fact.volume {
        Some(volume) => {
            world.volumes.get(&fact.app).and_then(|rows| rows.get(&volume.id)).map_or(0, |row| row.revision)
        }
        None => world.machines.get(&fact.app).and_then(|rows| rows.get(&fact.machine)).map_or(0, |row| row.revision),
    }
}

fn has_row(world: &World, id: &MachineId, fact: &MachineFact) -> bool {
    match &fact.volume {
        Some(volume) => world.volume(&fact.app, &volume.id).is_some_and(|row| row.destroyed_at_ms.is_none()),
        None => world.machine(&fact.app, id).is_some_and(|row| row.destroyed_at_ms.is_none()),
    }
}

pub fn shown(world: &World, host: &HostId, fact: &MachineFact) -> Stray {
    let volume = fact.volume.as_ref();
    Stray {
        id: volume.map_or_else(|| fact.machine.to_string(), |volume| volume.id.to_string()),
        host_id: host.to_string(),
        kind: if volume.is_some() { "volume" } else { "machine" }.to_owned(),
        app: fact.app.to_string(),
        state: volume.is_none().then_some(fact.state),
        allocated_bytes: volume.map(|volume| volume.allocated_bytes),
        updated_at: rfc3339(fact.updated_at_ms),
        ending: world.placement(host, &fact.machine).is_some(),
    }
}

/// The row that ends a stray: it names what the host holds, and asks for nothing but its end. The host has the rest.
pub fn tombstone(host: &HostId, fact: &MachineFact) -> Placement {
    Placement {
        machine: fact.machine.clone(),
        app: fact.app.clone(),
        host: host.clone(),
        epoch: fact.epoch,
        instance_id: fact.instance_id.clone(),
        name: String::new(),
        region: String::new(),
        network: String::new(),
        private_ip: Ipv6Addr::UNSPECIFIED,
        image_digest: String::new(),
        image_name: String::new(),
        config: MachineConfig::default(),
        launch: false,
        destroy: true,
        force: false,
        proof: String::new(),
        volume: fact.volume.as_ref().map(|volume| PlacedVolume {
            id: volume.id.clone(),
            name: String::new(),
            size_bytes: volume.size_bytes,
            fstype: VolumeFs::default(),
        }),
    }
}
