//! A new volume's rows: it is placed like a Machine, by the room that it needs, and nothing else of it differs.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_api::config::{Guest, MachineConfig, Mount};
use godwit_api::machine::MachineState;
use godwit_api::row::{Refusals, VolumeRow};
use godwit_api::volume::VolumeFs;
use godwit_api::{ApiError, AppName, HostId, InstanceId, VolumeId, keys};
use godwit_base::clock;
use godwit_machine::capacity;
use godwit_store::{Compare, Txn};

use crate::control::{Control, contended, no_app};
use crate::place::Request;
use crate::placing::{choose, first_epoch, generation_unchanged, in_regions, no_room};
use crate::rows::json;
use crate::subject::{volume_need, volume_placement};
use crate::view;
use crate::world::{Known, World};

/// A new volume's file takes its host less than a second; one that takes longer is told as `creating`.
const READY_WAIT: Duration = Duration::from_secs(10);
/// A Machine that is asked to stop may take its time; one that is killed does not.
const FREE_WAIT: Duration = Duration::from_secs(10);

/// A volume that was validated and has no host yet.
pub(crate) struct Draft {
    pub id: VolumeId,
    pub instance_id: InstanceId,
    pub app: AppName,
    pub name: String,
    /// Those that are asked for, in order; none: any.
    pub regions: Vec<String>,
    pub size_gb: u64,
    pub fstype: VolumeFs,
    /// The Machine that it is for: a host with room for it too is preferred.
    pub beside: Option<Guest>,
    /// Other volumes whose hosts are avoided, if there is another.
    pub apart: Option<Apart>,
}

/// Volumes of the same app from which a new one is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apart {
    OfName,
    OfApp,
}

impl Apart {
    /// The field that asks for it.
    fn field(self) -> &'static str {
        match self {
            Self::OfName => "require_unique_zone",
            Self::OfApp => "unique_zone_app_wide",
        }
    }
}

impl Control {
    /// Writes a new volume and hands it to its host; `Ok` once it is durable, whether the host has answered or not. Beside
    /// it the wishes for its place that no host could meet, by their fields: they are preferences, since clients send
    /// them unasked, also to a fleet of one host.
    pub(crate) async fn create_volume(&self, draft: &Draft) -> Result<(Known<VolumeRow>, Vec<&'static str>), ApiError> {
        let (need, carrier) = (volume_need(draft.size_gb), draft.id.carrier());
        let unmet = Mutex::new(Vec::new());
        let written = self.write_placed(&draft.app, &carrier, need, |world| {
            let (host, given_up) = draft.choose(world)?;
            *unmet.lock().unwrap_or_else(PoisonError::into_inner) = given_up;
            let txn = new_rows(world, draft, &host)?;
            Ok((host, txn))
        });
        let placement = written.await?;
        self.find_taker(placement).await?;
        // Whoever hears of it mounts it at once.
        self.sees(READY_WAIT, |world| world.volume(&draft.app, &draft.id).is_none_or(|row| !is_on_its_way(world, row)))
            .await;
        let row = self.volume_row(&draft.app, &draft.id)?;
        Ok((row, unmet.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// A volume that is about to be ready, or about to be let go by a Machine that is being destroyed, is waited for.
    pub(crate) async fn await_mounts(&self, app: &AppName, mounts: &[Mount]) {
        let ids: Vec<VolumeId> = mounts.iter().filter_map(|mount| mount.volume.parse().ok()).collect();
        if ids.is_empty() {
            return;
        }
        let waits = |world: &World, id: &VolumeId| {
            world.volume(app, id).is_some_and(|row| is_on_its_way(world, row) || is_about_to_be_free(world, row))
        };
        self.sees(READY_WAIT, |world| !ids.iter().any(|id| waits(world, id))).await;
    }

    /// Waits until a volume whose Machine is being destroyed is free.
    pub(crate) async fn await_free(&self, app: &AppName, id: &VolumeId) {
        let waits = |world: &World| world.volume(app, id).is_some_and(|row| is_about_to_be_free(world, row));
        self.sees(FREE_WAIT, |world| !waits(world)).await;
    }
}

impl Draft {
    /// The best host that there is, and the wishes that had to be given up for it: first the Machine's room, then the
    /// distance to others.
    fn choose(&self, world: &World) -> Result<(HostId, Vec<&'static str>), ApiError> {
        let (need, apart) = (volume_need(self.size_gb), self.apart.map(|apart| (apart, self.strangers(world, apart))));
        let beside = self.beside.as_ref().map(|guest| {
            let config = MachineConfig { guest: guest.clone(), ..MachineConfig::default() };
            capacity::sum([need, capacity::need(&config, true)])
        });
        let mut wishes = vec![(beside, apart.as_ref())];
        wishes.extend(beside.map(|_| (None, apart.as_ref())));
        wishes.extend(apart.as_ref().map(|_| (beside, None)));
        wishes.push((None, None));
        in_regions(&self.regions, |region| {
            let mut refused = None;
            for (with, away) in &wishes {
                let (wanted, only) = (with.unwrap_or(need), away.map(|(_, hosts)| hosts.as_slice()));
                let app = &self.app;
                let ask = Request { app, region, need: wanted, running: wanted, cpus: 0, only, refused: &[], tie: 0 };
                match choose(world, ask) {
                    Ok(host) => {
                        let room = beside.filter(|_| with.is_none()).map(|_| "compute");
                        let distance = apart.as_ref().filter(|_| away.is_none()).map(|(apart, _)| apart.field());
                        return Ok((host, room.into_iter().chain(distance).collect()));
                    }
                    Err(why) => refused = Some(why),
                }
            }
            Err(no_room("volume", &refused.unwrap_or_default(), region, &[]))
        })
    }

    /// Hosts that hold none of the volumes from which this one is to be apart.
    fn strangers(&self, world: &World, apart: Apart) -> Vec<HostId> {
        let held = world.volumes_of(&self.app).filter(|row| row.destroyed_at_ms.is_none());
        let held = held.filter(|row| apart == Apart::OfApp || row.name == self.name);
        let taken: BTreeSet<&HostId> = held.map(|row| &row.host).collect();
        world.hosts.keys().filter(|host| !taken.contains(host)).cloned().collect()
    }
}

/// Accepted by a host that has not said that it is there.
fn is_on_its_way(world: &World, row: &VolumeRow) -> bool {
    let placement = world.placement(&row.host, &row.id.carrier()).map(|placement| &**placement);
    view::volume_state(row, placement, world.volume_fact(row).map(|fact| &**fact)) == "creating"
}

/// Held by a Machine that is being destroyed, or is destroyed and gives back what it held.
fn is_about_to_be_free(world: &World, row: &VolumeRow) -> bool {
    let holder = row.machine.as_ref().and_then(|machine| world.machine(&row.app, machine));
    holder.is_some_and(|holder| {
        let placement = world.placement(&holder.host, &holder.id).map(|placement| &**placement);
        let fact = world.fact_of(holder).map(|fact| &**fact);
        matches!(view::state(holder, placement, fact), MachineState::Destroying | MachineState::Destroyed)
    })
}

fn new_rows(world: &World, draft: &Draft, host: &HostId) -> Result<Txn, ApiError> {
    let app = world.apps.get(&draft.app).ok_or_else(|| no_app(&draft.app))?;
    let host_row = world.hosts.get(host).ok_or_else(contended)?;
    let now_ms = clock::unix_ms();
    let row = VolumeRow {
        id: draft.id.clone(),
        app: draft.app.clone(),
        name: draft.name.clone(),
        region: host_row.region.clone(),
        size_gb: draft.size_gb,
        fstype: draft.fstype,
        host: host.clone(),
        epoch: first_epoch(world),
        instance_id: draft.instance_id.clone(),
        machine: None,
        created_at_ms: now_ms,
        updated_at_ms: now_ms,
        destroyed_at_ms: None,
        moving: None,
        epoch_used: 1,
        refusals: Refusals::default(),
    };
    let key = keys::volume(&row.app, &row.id);
    let mut txn = Txn::default()
        .when(Compare::exists(keys::app(&row.app)))
        .when(Compare::absent(key.clone()))
        .when(Compare::unchanged(keys::host(host), host_row.revision))
        .when(generation_unchanged(world));
    txn.then.push(json(key, &row)?);
    // Deleting the app and creating this exclude each other.
    txn.then.push(json(keys::app_use(&row.app), &row.id)?);
    txn.then.push(world.placement_op(&volume_placement(&row, &app.network))?);
    Ok(txn)
}
