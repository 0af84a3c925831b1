//! A new volume's rows: it is placed like a Machine, by the room that it needs, and nothing else of it differs.

use godwit_api::row::VolumeRow;
use godwit_api::volume::VolumeFs;
use godwit_api::{ApiError, AppName, HostId, InstanceId, VolumeId, keys};
use godwit_base::clock;
use godwit_store::{Compare, Txn};

use crate::control::{Control, contended, no_app};
use crate::place::Request;
use crate::placing::{choose, first_epoch, generation_unchanged, json, no_room};
use crate::subject::{volume_need, volume_placement};
use crate::world::{Known, World};

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
        self.volume_row(&draft.app, &draft.id)
    }
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
