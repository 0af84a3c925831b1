//! `godwit volumes`: disks that outlive a Machine's process and move with it.

pub mod find;

use std::time::Instant;

use clap::Subcommand;
use godwit_api::AppName;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{VolumesCreate, VolumesDelete, VolumesShow};
use godwit_api::volume::{CreateVolume, Volume, VolumeFs};

use super::context::{AppOption, Context, LOOK_INTERVAL};
use super::machine::WaitOption;
use super::migration::start;
use super::migration::words::percent;
use super::output::{Column, bytes};
use super::size;
use crate::error::{CliError, Result};
use crate::exit::Exit;
use find::Target;

#[derive(Subcommand)]
pub enum Command {
    /// Create a volume
    Create {
        #[command(flatten)]
        app: AppOption,
        /// The name; it need not be unique
        name: String,
        /// The size in gigabytes, or with a unit: 10, 10GiB, 1TiB
        #[arg(short, long, value_name = "SIZE", default_value = "1", value_parser = size::volume_gb)]
        size: u64,
        /// The region; default: any
        #[arg(short, long, value_name = "REGION")]
        region: Option<String>,
        /// The file system: ext4, or raw for a bare block device
        #[arg(long, value_name = "ext4|raw", default_value = "ext4", value_parser = fstype)]
        fstype: VolumeFs,
        #[command(flatten)]
        wait: WaitOption,
    },
    /// List the volumes of an app
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        app: AppOption,
    },
    /// Show a volume
    #[command(visible_alias = "status")]
    Show(Target),
    /// Delete a volume that no Machine holds, and all its data
    #[command(visible_aliases = ["destroy", "rm"])]
    Delete(Target),
    /// Move a volume that no Machine holds to another host
    Migrate(MigrateOptions),
}

#[derive(clap::Args)]
pub struct MigrateOptions {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    way: start::MoveOptions,
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    match command {
        Command::Create { app, name, size, region, fstype, wait } => {
            let app = context.app(&app)?;
            let request =
                CreateVolume { name, region, size_gb: Some(size), fstype: Some(fstype), ..CreateVolume::default() };
            create(context, &app, &request, &wait).await
        }
        Command::List { app } => list(context, &context.app(&app)?).await,
        Command::Show(target) => {
            let (app, volume) = find::find(context, &target).await?;
            show(context, &app, volume)
        }
        Command::Delete(target) => delete(context, &target).await,
        Command::Migrate(options) => {
            let (app, volume) = find::find(context, &options.target).await?;
            start::volume(context, &app, &volume, &options.way).await
        }
    }
}

async fn create(context: &Context, app: &AppName, request: &CreateVolume, wait: &WaitOption) -> Result<()> {
    let output = context.output;
    let call = context.client.call::<VolumesCreate>(&[app.as_str()], &Empty {}, request).await;
    let mut volume = call.map_err(start::explain)?;
    output.say(format!("Volume {} ({}) is placed on {}.", volume.id, volume.name, volume.zone));
    if !wait.detach {
        volume = until_made(context, app, volume, wait).await?;
        output.say(format!("It is {}.", volume.state));
    }
    if output.json {
        return output.json(&volume);
    }
    println!("{}", volume.id);
    Ok(())
}

/// Its host makes the file and the file system in it.
async fn until_made(context: &Context, app: &AppName, mut volume: Volume, wait: &WaitOption) -> Result<Volume> {
    let _progress = context.output.progress(format!("waiting until volume {} is created", volume.id));
    let deadline = Instant::now() + wait.wait_timeout;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    while volume.state == "creating" {
        if Instant::now() > deadline {
            let why = format!("volume {} is still being created after {} s", volume.id, wait.wait_timeout.as_secs());
            return Err(CliError::new(Exit::TimedOut, why)
                .hint(format!("it continues: `godwit volumes show {} -a {app}` shows it", volume.id)));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            _ = &mut interrupted => {
                let why = format!("no longer waiting; volume {} is created all the same", volume.id);
                return Err(CliError::new(Exit::Interrupted, why));
            }
        }
        let path = [app.as_str(), volume.id.as_str()];
        match context.client.call::<VolumesShow>(&path, &Empty {}, &Empty {}).await.map_err(CliError::from) {
            Ok(seen) => volume = seen,
            Err(error) if error.exit == Exit::Unreachable => {}
            Err(error) => return Err(error),
        }
    }
    if volume.state == "failed" {
        return Err(CliError::failed(format!("volume {} could not be created on {}", volume.id, volume.zone)).hint(
            format!("`godwit host show {}` shows its free capacity; delete the volume and try again", volume.zone),
        ));
    }
    Ok(volume)
}

async fn list(context: &Context, app: &AppName) -> Result<()> {
    let output = context.output;
    let volumes = find::list(context, app).await?;
    if output.json {
        return output.json(&volumes);
    }
    if output.quiet {
        volumes.iter().for_each(|volume| println!("{}", volume.id));
        return Ok(());
    }
    let rows = volumes.iter().map(|volume| {
        let unreachable = if volume.host_status == "ok" { "" } else { "*" };
        vec![
            format!("{}{unreachable}", volume.id),
            volume.name.clone(),
            state_of(volume),
            format!("{} GB", volume.size_gb),
            volume.fstype.as_str().to_owned(),
            volume.region.clone(),
            volume.zone.clone(),
            volume.attached_machine_id.clone().unwrap_or_else(|| "-".to_owned()),
            output.when(&volume.created_at),
        ]
    });
    let columns = [
        Column("ID", 0),
        Column("NAME", 0),
        Column("STATE", 0),
        Column("SIZE", 1),
        Column("FSTYPE", 6),
        Column("REGION", 5),
        Column("HOST", 2),
        Column("MACHINE", 0),
        Column("CREATED", 3),
    ];
    output.list(&columns, rows.collect());
    if volumes.iter().any(|volume| volume.host_status != "ok") {
        output.say("* its host is unreachable: this is the last state that it reported");
    }
    Ok(())
}

fn show(context: &Context, app: &AppName, volume: Volume) -> Result<()> {
    let output = context.output;
    if output.json {
        return output.json(&volume);
    }
    let mut facts = vec![
        ("Volume", volume.id.to_string()),
        ("Name", volume.name.clone()),
        ("App", app.to_string()),
        ("State", state_of(&volume)),
        ("Size", format!("{} GB, {}", volume.size_gb, volume.fstype.as_str())),
        ("Host", format!("{} ({})", volume.zone, volume.host_status)),
        ("Region", volume.region.clone()),
        ("Machine", volume.attached_machine_id.clone().unwrap_or_else(|| "none".to_owned())),
        ("Created", volume.created_at.clone()),
    ];
    if let Some(fill) = &volume.hydration {
        let from = fill.source.as_ref().map(|host| format!(" from {host}")).unwrap_or_default();
        facts.push((
            "Filled",
            format!(
                "{} of {}{from}, {}/s, {} demand fetches, {} blocks fetched again",
                bytes(fill.hydrated_bytes),
                bytes(fill.data_bytes),
                bytes(fill.rate_bytes_per_s),
                fill.demand_fetches,
                fill.mismatches
            ),
        ));
        if let Some(migration) = &fill.migration {
            facts.push(("Migration", migration.to_string()));
        }
        if let Some(why) = &fill.stalled {
            facts.push(("Stalled", why.clone()));
        }
    }
    output.facts(&facts);
    Ok(())
}

/// Its state and, while it is being filled, how far that is.
fn state_of(volume: &Volume) -> String {
    let Some(fill) = volume.hydration.as_ref().filter(|_| volume.state == "hydrating") else {
        return volume.state.clone();
    };
    let stalled = if fill.stalled.is_some() { ", stalled" } else { "" };
    format!("{} ({} %{stalled})", volume.state, percent(fill.hydrated_bytes, fill.data_bytes))
}

async fn delete(context: &Context, target: &Target) -> Result<()> {
    let (app, volume) = find::find(context, target).await?;
    let id = &volume.id;
    context.confirm(&format!("Delete volume {id} ({}, {} GB) and all its data?", volume.name, volume.size_gb))?;
    let path = [app.as_str(), id.as_str()];
    let called = context.client.call::<VolumesDelete>(&path, &Empty {}, &Empty {}).await;
    let deleted = called.map_err(|error| match (CliError::from(error), &volume.attached_machine_id) {
        (error, Some(machine)) if error.exit != Exit::Unreachable => error.hint(format!(
            "Machine {machine} uses it: destroy the Machine, or detach the volume with `machine update --rm-volume`"
        )),
        (error, _) => error,
    })?;
    if context.output.json {
        return context.output.json(&deleted);
    }
    context.output.say(format!("Volume {id} is being deleted."));
    Ok(())
}

fn fstype(text: &str) -> Result<VolumeFs, String> {
    match text {
        "ext4" => Ok(VolumeFs::Ext4),
        "raw" => Ok(VolumeFs::Raw),
        _ => Err("say ext4 or raw".to_owned()),
    }
}
