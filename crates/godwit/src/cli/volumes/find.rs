//! Which volume a command means: by its exact id anywhere, by its exact name within an app where only one has it.

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsList, OrgQuery, VolumesList, VolumesShow};
use godwit_api::volume::Volume;
use godwit_api::{ApiError, AppName, MachineId, VolumeId};
use godwit_base::http::client::CallError;

use crate::cli::context::{AppOption, Context};
use crate::cli::guess::did_you_mean;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Which one volume a command means.
#[derive(clap::Args)]
pub struct Target {
    #[command(flatten)]
    pub app: AppOption,
    /// The id, or the name together with --app
    #[arg(value_name = "VOLUME")]
    pub volume: String,
}

pub async fn list(context: &Context, app: &AppName) -> Result<Vec<Volume>> {
    Ok(context.client.call::<VolumesList>(&[app.as_str()], &Empty {}, &Empty {}).await?)
}

/// The app and the volume. Without an app all are looked at, for an id stands in one alone.
pub async fn find(context: &Context, target: &Target) -> Result<(AppName, Volume)> {
    let which = target.volume.as_str();
    let Ok(id) = VolumeId::parse(which) else {
        let named = context.named_app(&target.app).is_some();
        if !named {
            return Err(CliError::usage(format!("{which:?} is not a volume's id"))
                .hint("an id is vol_ and 14 hex digits; a volume is found by its name only within --app"));
        }
        let app = context.app(&target.app)?;
        let volume = by_name(list(context, &app).await?, &app, which)?;
        return Ok((app, volume));
    };
    if context.named_app(&target.app).is_some() {
        let app = context.app(&target.app)?;
        return show(context, &app, &id).await?.map(|volume| (app.clone(), volume)).ok_or_else(|| {
            CliError::not_found(format!("app {app} has no volume {id}"))
                .hint(format!("`godwit volumes list --app {app}` lists its Machines"))
        });
    }
    let apps = context.client.call::<AppsList>(&[], &OrgQuery::default(), &Empty {}).await?;
    for app in apps.apps {
        let app = AppName::parse(&app.name).map_err(|error| CliError::failed(error.to_string()))?;
        if let Some(volume) = show(context, &app, &id).await? {
            return Ok((app, volume));
        }
    }
    Err(CliError::not_found(format!("no app has a volume {id}")))
}

async fn show(context: &Context, app: &AppName, id: &VolumeId) -> Result<Option<Volume>> {
    match context.client.call::<VolumesShow>(&[app.as_str(), id.as_str()], &Empty {}, &Empty {}).await {
        Ok(volume) => Ok(Some(volume)),
        Err(CallError::Answered(ApiError { code: 404, .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Names need not be unique: two volumes of one name must be told apart by their ids.
fn by_name(volumes: Vec<Volume>, app: &AppName, name: &str) -> Result<Volume> {
    let names: Vec<String> = volumes.iter().map(|volume| volume.name.clone()).collect();
    let mut named: Vec<Volume> =
        volumes.into_iter().filter(|volume| volume.name == name && volume.state != "destroyed").collect();
    if named.len() > 1 {
        return Err(several(app, name, &named));
    }
    named.pop().ok_or_else(|| {
        let error = CliError::not_found(format!("app {app} has no volume named {name:?}"));
        match did_you_mean(name, &names) {
            Some(guess) => error.hint(guess),
            None => error.hint(format!("`godwit volumes list -a {app}` lists its Machines")),
        }
    })
}

/// The volume that a mount means by its name: the only one of that name that no other Machine holds, in the region
/// if one was wanted.
pub fn free_by_name(
    volumes: &[Volume],
    app: &AppName,
    name: &str,
    region: Option<&str>,
    machine: Option<&MachineId>,
) -> Result<VolumeId> {
    let named: Vec<&Volume> = volumes.iter().filter(|volume| volume.name == name).collect();
    let ours = |holder: &Option<String>| holder.as_deref().is_none_or(|id| machine.is_some_and(|m| m.as_str() == id));
    let free: Vec<Volume> = named
        .iter()
        .filter(|volume| ours(&volume.attached_machine_id) && is_usable(volume))
        .filter(|volume| region.is_none_or(|region| volume.region == region))
        .map(|volume| (*volume).clone())
        .collect();
    match free.as_slice() {
        [one] => Ok(one.id.clone()),
        [] if named.is_empty() => {
            let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
            let guess = did_you_mean(name, &names).map(|guess| format!("{guess} Or ")).unwrap_or_default();
            Err(CliError::not_found(format!("app {app} has no volume named {name:?}"))
                .hint(format!("{guess}`godwit volumes create {name} -a {app}` makes one")))
        }
        [] => Err(CliError::new(Exit::Conflict, format!("no volume named {name:?} of app {app} is free"))
            .hint(format!("`godwit volumes list --app {app}` shows who holds them, and where they are"))),
        several_free => Err(several(app, name, several_free)),
    }
}

fn is_usable(volume: &Volume) -> bool {
    !matches!(volume.state.as_str(), "failed" | "pending_destroy" | "destroyed")
}

fn several(app: &AppName, name: &str, volumes: &[Volume]) -> CliError {
    let ids: Vec<&str> = volumes.iter().map(|volume| volume.id.as_str()).collect();
    CliError::new(Exit::Conflict, format!("{} volumes of app {app} are named {name:?}", volumes.len()))
        .hint(format!("use its id: {}", ids.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: u64, name: &str, region: &str, holder: Option<&str>, state: &str) -> Volume {
        serde_json::from_value(serde_json::json!({
            "id": VolumeId::from_bits(id), "name": name, "state": state, "size_gb": 1, "region": region, "zone": "w1",
            "encrypted": false, "fstype": "ext4", "attached_machine_id": holder, "attached_alloc_id": null,
            "created_at": "2026-01-01T00:00:00Z", "block_size": 4096, "blocks": 1, "blocks_avail": 1,
            "blocks_free": 1, "snapshot_retention": 0, "host_status": "ok",
        }))
        .unwrap()
    }

    #[test]
    fn a_name_means_a_volume_only_if_exactly_one_free_one_has_it() {
        let app = AppName::parse("shop").unwrap();
        let mine = MachineId::from_bits(7);
        let volumes = [
            volume(1, "data", "fra", Some("00000000000007"), "created"),
            volume(2, "data", "fra", None, "created"),
            volume(3, "data", "ams", None, "created"),
            volume(4, "data", "fra", None, "pending_destroy"),
            volume(5, "held", "fra", Some("00000000000009"), "created"),
        ];
        let free = |name, region, machine| free_by_name(&volumes, &app, name, region, machine);
        assert_eq!(free("data", Some("ams"), None).unwrap(), VolumeId::from_bits(3));
        assert_eq!(free("data", Some("fra"), None).unwrap(), VolumeId::from_bits(2));
        let two = free("data", None, None).unwrap_err();
        assert_eq!(two.exit, Exit::Conflict);
        assert!(two.to_string().contains("vol_00000000000002, vol_00000000000003"), "{two}");
        assert_eq!(free("held", None, None).unwrap_err().exit, Exit::Conflict);
        assert_eq!(free("none", None, None).unwrap_err().exit, Exit::NotFound);
        // An update may name what its own Machine holds.
        assert_eq!(free_by_name(&volumes[..1], &app, "data", None, Some(&mine)).unwrap(), VolumeId::from_bits(1));
    }
}
