//! What has a placement: a Machine, or a volume, which hosts hold like a Machine without a process. What placing,
//! settling and moving have in common over both stands here, so that there is one mechanism. Pure.

use godwit_api::event::MachineEvent;
use godwit_api::fact::Resources;
use godwit_api::row::{MachineRow, Placement, Refusals, VolumeRow};
use godwit_api::volume::{GB_BYTES, PlacedVolume};
use godwit_api::{ApiError, AppName, Epoch, HostId, InstanceId, MachineId, MigrationId, keys};
use godwit_machine::capacity;
use godwit_store::Op;

use crate::rows::json;
use crate::view;
use crate::world::{Known, World};

#[derive(Debug, Clone)]
pub enum Subject {
    Machine(Known<MachineRow>),
    Volume(Known<VolumeRow>),
}

/// Where it is to stand.
#[derive(Debug, Clone)]
pub struct Place {
    pub host: HostId,
    pub region: String,
    pub epoch: Epoch,
}

/// What a transaction changes of its row; the rest stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    pub place: Option<Place>,
    /// The move that it is in from now on, or none.
    pub moving: Option<Option<MigrationId>>,
    /// By whom it was refused where it stood, and what that host told of it.
    pub refused: Option<Refused>,
    /// The highest number of an epoch that is promised by this transaction.
    pub epoch_used: u64,
    pub now_ms: u64,
}

#[derive(Debug, Clone)]
pub struct Refused {
    pub host: HostId,
    pub at_ms: u64,
    pub events: Vec<MachineEvent>,
}

impl Subject {
    /// Whose placement this is, on whichever host it stands.
    pub fn of(world: &World, placement: &Placement) -> Option<Self> {
        match &placement.volume {
            Some(volume) => world.volumes.get(&placement.app)?.get(&volume.id).cloned().map(Self::Volume),
            None => world.machines.get(&placement.app)?.get(&placement.machine).cloned().map(Self::Machine),
        }
    }
    /// For messages.
    pub fn words(&self) -> String {
        match self {
            Self::Machine(row) => format!("Machine {}", row.id),
            Self::Volume(row) => format!("volume {}", row.id),
        }
    }
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Machine(_) => "Machine",
            Self::Volume(_) => "volume",
        }
    }
    /// The id under which hosts hold it.
    pub fn carrier(&self) -> MachineId {
        match self {
            Self::Machine(row) => row.id.clone(),
            Self::Volume(row) => row.id.carrier(),
        }
    }
    pub fn app(&self) -> &AppName {
        match self {
            Self::Machine(row) => &row.app,
            Self::Volume(row) => &row.app,
        }
    }
    pub fn host(&self) -> &HostId {
        match self {
            Self::Machine(row) => &row.host,
            Self::Volume(row) => &row.host,
        }
    }
    pub fn region(&self) -> &str {
        match self {
            Self::Machine(row) => &row.region,
            Self::Volume(row) => &row.region,
        }
    }
    pub fn epoch(&self) -> Epoch {
        match self {
            Self::Machine(row) => row.epoch,
            Self::Volume(row) => row.epoch,
        }
    }
    /// The highest number that was ever promised for it.
    pub fn epoch_used(&self) -> u64 {
        match self {
            Self::Machine(row) => row.epoch_used,
            Self::Volume(row) => row.epoch_used,
        }
    }
    pub fn instance_id(&self) -> &InstanceId {
        match self {
            Self::Machine(row) => &row.instance_id,
            Self::Volume(row) => &row.instance_id,
        }
    }
    pub fn revision(&self) -> u64 {
        match self {
            Self::Machine(row) => row.revision,
            Self::Volume(row) => row.revision,
        }
    }
    pub fn updated_at_ms(&self) -> u64 {
        match self {
            Self::Machine(row) => row.updated_at_ms,
            Self::Volume(row) => row.updated_at_ms,
        }
    }
    pub fn moving(&self) -> Option<&MigrationId> {
        match self {
            Self::Machine(row) => row.moving.as_ref(),
            Self::Volume(row) => row.moving.as_ref(),
        }
    }
    pub fn is_destroyed(&self) -> bool {
        match self {
            Self::Machine(row) => row.destroyed_at_ms.is_some(),
            Self::Volume(row) => row.destroyed_at_ms.is_some(),
        }
    }
    pub fn refusals(&self) -> &Refusals {
        match self {
            Self::Machine(row) => &row.refusals,
            Self::Volume(row) => &row.refusals,
        }
    }
    /// It keeps to its host whatever that says: a Machine with volumes or whose creation named its host, and a volume that
    /// a Machine holds.
    pub fn is_bound(&self) -> bool {
        match self {
            Self::Machine(row) => !row.config.mounts.is_empty() || row.asked_host.as_ref() == Some(&row.host),
            Self::Volume(row) => row.machine.is_some(),
        }
    }
    /// Of its row in the store.
    pub fn key(&self) -> String {
        match self {
            Self::Machine(row) => keys::machine(&row.app, &row.id),
            Self::Volume(row) => keys::volume(&row.app, &row.id),
        }
    }
    pub fn cpus(&self) -> u32 {
        match self {
            Self::Machine(row) => row.config.guest.cpus,
            Self::Volume(_) => 0,
        }
    }
    /// What it takes of a host.
    pub fn need(&self, running: bool) -> Resources {
        match self {
            Self::Machine(row) => capacity::need(&row.config, running),
            Self::Volume(row) => volume_need(row.size_gb),
        }
    }

    /// A new generation starts counting anew, and no number that was ever promised comes twice.
    pub fn next_epoch(&self, generation: u64) -> Epoch {
        let (last, used) = match self {
            Self::Machine(row) => (row.epoch, row.epoch_used),
            Self::Volume(row) => (row.epoch, row.epoch_used),
        };
        let last = if last.generation == generation { last.n } else { 0 };
        Epoch { generation, n: last.max(used) + 1 }
    }

    /// Writes its row with a change.
    pub fn changed(&self, change: &Change) -> Result<Op, ApiError> {
        match self {
            Self::Machine(row) => json(self.key(), &machine_with(row, change)),
            Self::Volume(row) => json(self.key(), &volume_with(row, change)),
        }
    }

    /// The row that a host pulls, as it would stand there.
    pub fn placement(&self, place: &Place, network: &str, launch: bool) -> Placement {
        let change = Change { place: Some(place.clone()), ..Change::default() };
        match self {
            Self::Machine(row) => machine_placement(&machine_with(row, &change), network, launch),
            Self::Volume(row) => volume_placement(&volume_with(row, &change), network),
        }
    }
}

fn machine_with(row: &MachineRow, change: &Change) -> MachineRow {
    let mut next = row.clone();
    if let Some(place) = &change.place {
        (next.host, next.region, next.epoch) = (place.host.clone(), place.region.clone(), place.epoch);
        next.updated_at_ms = next.updated_at_ms.max(change.now_ms);
    }
    if let Some(moving) = &change.moving {
        next.moving = moving.clone();
    }
    if let Some(Refused { host, at_ms, events }) = &change.refused {
        next.refusals.add(host.clone(), *at_ms);
        next.events = view::merged(events, &row.events);
    }
    next.epoch_used = next.epoch_used.max(change.epoch_used);
    next
}

fn volume_with(row: &VolumeRow, change: &Change) -> VolumeRow {
    let mut next = row.clone();
    if let Some(place) = &change.place {
        (next.host, next.region, next.epoch) = (place.host.clone(), place.region.clone(), place.epoch);
        next.updated_at_ms = next.updated_at_ms.max(change.now_ms);
    }
    if let Some(moving) = &change.moving {
        next.moving = moving.clone();
    }
    if let Some(Refused { host, at_ms, .. }) = &change.refused {
        next.refusals.add(host.clone(), *at_ms);
    }
    next.epoch_used = next.epoch_used.max(change.epoch_used);
    next
}

/// Its whole size, whether used or not.
pub fn volume_need(size_gb: u64) -> Resources {
    Resources { disk_mb: size_gb.saturating_mul(GB_BYTES) >> 20, ..Resources::default() }
}

pub fn machine_placement(row: &MachineRow, network: &str, launch: bool) -> Placement {
    Placement {
        machine: row.id.clone(),
        app: row.app.clone(),
        host: row.host.clone(),
        epoch: row.epoch,
        instance_id: row.instance_id.clone(),
        name: row.name.clone(),
        region: row.region.clone(),
        network: network.to_owned(),
        private_ip: row.private_ip,
        image_digest: row.image_ref.digest.clone(),
        image_name: row.image_ref.repository.clone(),
        config: row.config.clone(),
        launch,
        destroy: false,
        force: false,
        proof: String::new(),
        volume: None,
    }
}

pub fn volume_placement(row: &VolumeRow, network: &str) -> Placement {
    Placement {
        machine: row.id.carrier(),
        app: row.app.clone(),
        host: row.host.clone(),
        epoch: row.epoch,
        instance_id: row.instance_id.clone(),
        name: row.name.clone(),
        region: row.region.clone(),
        network: network.to_owned(),
        private_ip: std::net::Ipv6Addr::UNSPECIFIED,
        image_digest: String::new(),
        image_name: String::new(),
        config: Default::default(),
        launch: false,
        destroy: false,
        force: false,
        proof: String::new(),
        volume: Some(PlacedVolume {
            id: row.id.clone(),
            name: row.name.clone(),
            size_bytes: row.size_gb.saturating_mul(GB_BYTES),
            fstype: row.fstype,
        }),
    }
}
