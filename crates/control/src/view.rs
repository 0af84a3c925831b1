//! A Machine, an app and a host as the API shows them, from rows and facts. Pure.

use godwit_api::app::{App, ListedApp, Organization};
use godwit_api::config::{MachineConfig, Mount};
use godwit_api::event::MachineEvent;
use godwit_api::fact::{EVENTS_PUBLISHED, HostFact, MachineFact};
use godwit_api::fleet::Host;
use godwit_api::machine::{ImageRef, Machine, MachineState};
use godwit_api::row::{AppRow, HostRow, MachineRow, Placement, VolumeRow};
use godwit_api::volume::{GB_BYTES, Volume};
use godwit_base::clock::rfc3339;

/// A Machine that so many hosts have refused, one after the other, is `failed` until its owner changes it.
pub const PLACEMENTS_MAX: u32 = 24;

/// What control knows of a host's being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Ok,
    /// Control has not listened for long enough to say.
    Unknown,
    Unreachable,
}

impl Reach {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The state that users see: what the host says of this epoch; before it has said anything, `created`.
pub fn state(row: &MachineRow, placement: Option<&Placement>, fact: Option<&MachineFact>) -> MachineState {
    if row.destroyed_at_ms.is_some() {
        return MachineState::Destroyed;
    }
    let told = fact.filter(|fact| fact.refused.is_none());
    // Destroyed is what has given back all that it held: its name, its address, its volumes.
    if placement.is_some_and(|placement| placement.destroy) {
        return MachineState::Destroying;
    }
    if fact.is_some_and(|fact| fact.refused.is_some()) && row.refusals.count >= PLACEMENTS_MAX {
        return MachineState::Failed;
    }
    // In a move the target may not have told anything yet: what it is about to be.
    let expected = match (&row.moving, placement) {
        (None, _) => MachineState::Created,
        (Some(_), Some(placement)) if placement.launch => MachineState::Starting,
        (Some(_), _) => MachineState::Stopped,
    };
    match told {
        None => expected,
        Some(fact) if fact.state == MachineState::Created => expected,
        Some(fact) if matches!(fact.state, MachineState::Destroying | MachineState::Destroyed) => {
            MachineState::Destroying
        }
        Some(fact) if is_pending(row, fact) => MachineState::Replacing,
        Some(fact) => fact.state,
    }
}

/// Is the host about to take another version than the one that it holds?
pub fn is_pending(row: &MachineRow, fact: &MachineFact) -> bool {
    let refused = fact.refused_update.as_ref().is_some_and(|refused| refused.instance_id == row.instance_id);
    fact.instance_id != row.instance_id && !refused
}

/// `mounts`: with the names and sizes of their volumes. `nonce`: of its present lease.
pub fn machine(
    row: &MachineRow,
    placement: Option<&Placement>,
    fact: Option<&MachineFact>,
    reach: Reach,
    mounts: Vec<Mount>,
    nonce: Option<String>,
) -> Machine {
    let state = state(row, placement, fact);
    let updated_at_ms = fact.map_or(0, |fact| fact.updated_at_ms).max(row.updated_at_ms);
    Machine {
        id: row.id.clone(),
        name: row.name.clone(),
        state,
        region: row.region.clone(),
        image_ref: image_ref(&row.image_ref),
        instance_id: row.instance_id.clone(),
        private_ip: row.private_ip.to_string(),
        created_at: rfc3339(row.created_at_ms),
        updated_at: rfc3339(updated_at_ms),
        config: MachineConfig { mounts, ..row.config.clone() },
        events: events(row, fact),
        checks: fact.map(|fact| fact.checks.clone()).unwrap_or_default(),
        unreachable: fact.map(|fact| fact.unreachable.clone()).unwrap_or_default(),
        nonce,
        host_status: reach.as_str().to_owned(),
        host_id: row.host.to_string(),
        cordoned: is_out_of_routes(row),
        skip_service_registration: row.skip_service_registration,
    }
}

/// Newer and older events, newest first, each once.
pub fn merged(newer: &[MachineEvent], older: &[MachineEvent]) -> Vec<MachineEvent> {
    let older = older.iter().filter(|event| newer.iter().all(|known| known.id != event.id));
    newer.iter().chain(older).take(EVENTS_PUBLISHED).cloned().collect()
}

/// The registry that an image of no other registry's name is told to be of: control itself.
pub const REGISTRY: &str = "registry.godwit";

/// An image's name taken apart as its clients expect: what they put together of it (`registry/repository:tag@digest`)
/// names the same image again. A row keeps the name whole, by which hosts pull.
pub fn image_ref(stored: &ImageRef) -> ImageRef {
    let (registry, repository) = match stored.repository.split_once('/') {
        // As Docker reads a name: its first part is a registry if it has a dot, a port, or is localhost.
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (REGISTRY, stored.repository.as_str()),
    };
    ImageRef { registry: registry.to_owned(), repository: repository.to_owned(), ..stored.clone() }
}

/// Cordoned, or created without being registered: an `uncordon` puts either into its app's routes.
pub fn is_out_of_routes(row: &MachineRow) -> bool {
    row.cordoned || row.skip_service_registration
}

/// The events of its host, and of those that have told their last; before there are any, that the Machine was created.
pub fn events(row: &MachineRow, fact: Option<&MachineFact>) -> Vec<MachineEvent> {
    let told = fact.map(|fact| fact.events.as_slice()).unwrap_or_default();
    match merged(told, &row.events) {
        events if !events.is_empty() => events,
        _ => vec![MachineEvent {
            id: format!("{}-created", row.instance_id),
            kind: "launch".into(),
            status: MachineState::Created.as_str().into(),
            source: "user".into(),
            timestamp: row.created_at_ms,
            request: None,
        }],
    }
}

/// Of a volume's file system, for the block numbers of the API.
const BLOCK_BYTES: u64 = 4096;

/// What users are told of a volume's life: what its host says of this epoch; before that, `creating`.
pub fn volume_state(row: &VolumeRow, placement: Option<&Placement>, fact: Option<&MachineFact>) -> &'static str {
    if row.destroyed_at_ms.is_some() {
        return "destroyed";
    }
    let told = fact.map(|fact| fact.state);
    if placement.is_some_and(|placement| placement.destroy) {
        return if told == Some(MachineState::Destroyed) { "destroyed" } else { "pending_destroy" };
    }
    let Some(fact) = fact else { return if row.moving.is_some() { "hydrating" } else { "creating" } };
    if fact.refused.is_some() {
        return "failed";
    }
    if fact.volume.as_ref().is_some_and(|volume| volume.hydration.is_some()) {
        return "hydrating";
    }
    match fact.state {
        MachineState::Created | MachineState::Starting => "creating",
        MachineState::Failed => "failed",
        MachineState::Destroying => "pending_destroy",
        MachineState::Destroyed => "destroyed",
        _ => "created",
    }
}

/// `encrypted`: its host's disk is.
pub fn volume(
    row: &VolumeRow,
    placement: Option<&Placement>,
    fact: Option<&MachineFact>,
    reach: Reach,
    encrypted: bool,
) -> Volume {
    let told = fact.and_then(|fact| fact.volume.as_ref());
    let blocks = row.size_gb.saturating_mul(GB_BYTES) / BLOCK_BYTES;
    let taken = told.map_or(0, |told| told.allocated_bytes).div_ceil(BLOCK_BYTES);
    Volume {
        id: row.id.clone(),
        name: row.name.clone(),
        state: volume_state(row, placement, fact).to_owned(),
        size_gb: row.size_gb,
        region: row.region.clone(),
        zone: row.host.to_string(),
        encrypted,
        fstype: row.fstype,
        attached_machine_id: row.machine.as_ref().map(ToString::to_string),
        attached_alloc_id: row.machine.as_ref().map(ToString::to_string),
        created_at: rfc3339(row.created_at_ms),
        block_size: BLOCK_BYTES,
        blocks,
        blocks_avail: blocks.saturating_sub(taken),
        blocks_free: blocks.saturating_sub(taken),
        snapshot_retention: 0,
        auto_backup_enabled: false,
        host_dedication_key: None,
        host_status: reach.as_str().to_owned(),
        hydration: told.and_then(|told| told.hydration.clone()),
    }
}

pub fn app(row: &AppRow, machines: u64, volumes: u64, urls: Vec<String>) -> App {
    App {
        id: row.id.clone(),
        name: row.name.to_string(),
        status: if machines > 0 { "deployed" } else { "pending" }.to_owned(),
        organization: Organization { name: row.organization.clone(), slug: row.organization.clone() },
        machine_count: machines,
        volume_count: volumes,
        network: row.network.clone(),
        warnings: Vec::new(),
        raw_ports: Vec::new(),
        urls,
    }
}

pub fn listed_app(row: &AppRow, machines: u64, volumes: u64) -> ListedApp {
    ListedApp {
        id: row.id.clone(),
        name: row.name.to_string(),
        machine_count: machines,
        volume_count: volumes,
        network: row.network.clone(),
    }
}

pub fn host(row: &HostRow, fact: Option<&HostFact>, reach: Reach, last_seen_ms: Option<u64>) -> Host {
    let state = match (reach, row.cordoned) {
        (Reach::Unreachable, _) => "unreachable",
        (_, true) => "cordoned",
        _ => "active",
    };
    let measured = fact.and_then(|fact| fact.measured).unwrap_or_default();
    Host {
        id: row.id.to_string(),
        region: row.region.clone(),
        state: state.to_owned(),
        capacity: fact.map(|fact| fact.capacity).unwrap_or_default(),
        reserved: fact.map(|fact| fact.used).unwrap_or_default(),
        used: measured.used,
        machine: measured.whole,
        machines: fact.map_or(0, |fact| fact.machines),
        agent_version: fact.map(|fact| fact.agent_version.clone()).unwrap_or_default(),
        drivers: fact.map(|fact| fact.drivers.clone()).unwrap_or_default(),
        agent_url: row.agent_url.clone(),
        door_addr: row.door_addr.clone(),
        last_seen_ms,
    }
}
