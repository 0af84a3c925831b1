//! Volumes as desire: created, shown, deleted. Machines come to hold them by their `mounts`.

use godwit_api::endpoints::{VolumesCreate, VolumesDelete, VolumesList, VolumesShow};
use godwit_api::volume::Volume;
use godwit_api::{ApiError, InstanceId, VolumeId};
use godwit_base::{clock, secret};

use crate::call::Call;
use crate::config::VolumeEncryption;
use crate::control::no_app;
use crate::validate;
use crate::volumes::{Apart, Draft};

/// Without `size_gb`.
const SIZE_DEFAULT_GB: u64 = 3;

pub async fn list(call: Call<VolumesList>) -> Result<Vec<Volume>, ApiError> {
    let app = call.app()?;
    let rows: Vec<_> = {
        let world = call.control.world();
        if !world.apps.contains_key(&app) {
            return Err(no_app(&app));
        }
        world.volumes_of(&app).filter(|row| row.destroyed_at_ms.is_none()).cloned().collect()
    };
    Ok(rows.iter().map(|row| call.control.view_volume(row)).collect())
}

pub async fn create(call: Call<VolumesCreate>) -> Result<Volume, ApiError> {
    let app = call.app()?;
    let control = &call.control;
    if !control.world().apps.contains_key(&app) {
        return Err(no_app(&app));
    }
    let body = call.body;
    validate::volume_name(&body.name)?;
    let size_gb = body.size_gb.unwrap_or(SIZE_DEFAULT_GB);
    validate::volume_size_gb(size_gb)?;
    let regions = validate::regions(body.region.as_deref())?;
    let encryption = control.config.volume_encryption;
    match encryption {
        VolumeEncryption::Refuse if body.encrypted == Some(true) => {
            return Err(ApiError::unprocessable(
                "encrypted: this fleet does not encrypt volumes, and is set to refuse those that ask for it; send false",
            ));
        }
        // As it is told: what the operator vouches for is no field without effect.
        VolumeEncryption::Hosts => call.ignored.remove("encrypted"),
        _ => {}
    }
    let draft = Draft {
        id: VolumeId::from_bits(secret::random_u64()),
        instance_id: InstanceId::from_parts(clock::unix_ms(), secret::random_u128()),
        app,
        name: body.name,
        regions,
        size_gb,
        fstype: body.fstype.unwrap_or_default(),
        beside: body.compute,
        apart: match (body.unique_zone_app_wide, body.require_unique_zone) {
            (Some(true), _) => Some(Apart::OfApp),
            (_, Some(true)) => Some(Apart::OfName),
            _ => None,
        },
    };
    // A client that goes away must not leave a volume half handed over.
    let task = tokio::spawn({
        let control = control.clone();
        async move { control.create_volume(&draft).await }
    });
    let (row, unmet) = task.await.map_err(|_| ApiError::internal("the creation failed unexpectedly"))??;
    unmet.iter().for_each(|field| call.ignored.add(field));
    Ok(control.view_volume(&row))
}

pub async fn show(call: Call<VolumesShow>) -> Result<Volume, ApiError> {
    let row = call.control.volume_row(&call.app()?, &call.volume()?)?;
    Ok(call.control.view_volume(&row))
}

/// Works with the host away: the tombstone waits for it.
pub async fn delete(call: Call<VolumesDelete>) -> Result<Volume, ApiError> {
    let control = &call.control;
    let (app, id) = (call.app()?, call.volume()?);
    control.volume_row(&app, &id)?;
    control.await_free(&app, &id).await;
    let row = control.volume_row(&app, &id)?;
    let placement = control.world().placement(&row.host, &row.id.carrier()).cloned();
    let tombstone = match placement {
        Some(placement) => control.write_tombstone(&placement, false, None).await?,
        None => None,
    };
    if let Some(tombstone) = tombstone {
        let control = control.clone();
        // The answer does not wait for the host, which may be away.
        tokio::spawn(async move { control.hint(&tombstone).await });
    }
    Ok(control.view_volume(&*control.volume_row(&app, &id)?))
}
