//! A new volume's rows: it is placed like a Machine, by the room that it needs, and nothing else of it differs.

use std::time::Duration;

use godwit_api::config::Mount;
use godwit_api::machine::MachineState;
use godwit_api::row::{Refusals, VolumeRow};
use godwit_api::volume::VolumeFs;
use godwit_api::{ApiError, AppName, HostId, InstanceId, VolumeId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Txn};

use crate::control::{Control, contended, no_app};
use crate::place::Request;
use crate::placing::{choose, first_epoch, generation_unchanged, json, no_room};
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
    pub region: Option<String>,
    pub size_gb: u64,
    pub fstype: VolumeFs,
}

impl Control {
    /// Writes a new volume and hands it to its host; `Ok` once it is durable, whether the host has answered or not.
    pub(crate) async fn create_volume(&self, draft: &Draft) -> Result<Known<VolumeRow>, ApiError> {
        let (need, carrier) = (volume_need(draft.size_gb), draft.id.carrier());
        let written = self.write_placed(&draft.app, &carrier, need, |world| {
            let region = draft.region.as_deref();
            let ask =
                Request { app: &draft.app, region, need, running: need, cpus: 0, only: None, refused: &[], tie: 0 };
            let host = choose(world, ask).map_err(|why| no_room("volume", &why, region, &[]))?;
            let txn = new_rows(world, draft, &host)?;
            Ok((host, txn))
        });
        let placement = written.await?;
        self.find_taker(placement).await?;
        // Whoever hears of it mounts it at once.
        self.sees(READY_WAIT, |world| world.volume(&draft.app, &draft.id).is_none_or(|row| !is_on_its_way(world, row)))
            .await;
        self.volume_row(&draft.app, &draft.id)
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
    txn.then.push(json(keys::placement(host, &row.id.carrier()), &volume_placement(&row, &app.network))?);
    Ok(txn)
}
