//! Beginning a move, of a Machine or of a volume that nothing holds: what both commands take, the call, and what is
//! said of a dry run.

use std::time::Duration;

use godwit_api::AppName;
use godwit_api::endpoint::{Empty, Endpoint};
use godwit_api::endpoints::{MachinesMigrate, VolumesMigrate};
use godwit_api::error::Status;
use godwit_api::machine::Machine;
use godwit_api::migration::{Migrate, Migration, MigrationPhase};
use godwit_api::volume::Volume;
use godwit_base::http::client::{CallError, HEAD_TIMEOUT};
use http::HeaderMap;

use super::watch::{self, Voice};
use super::words;
use crate::cli::context::Context;
use crate::cli::machine::duration;
use crate::cli::size;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Where to and how, for whatever moves.
#[derive(clap::Args)]
pub struct MoveOptions {
    /// The host to move to; default: any other host with room
    #[arg(long, visible_aliases = ["host", "to-host"], value_name = "HOST", conflicts_with = "region")]
    to: Option<String>,
    /// Move to any host in this region
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// Limit the copy in the background, for example 100MiB/s
    #[arg(long, value_name = "RATE", value_parser = size::rate)]
    rate: Option<u64>,
    /// Copy the volumes before the Machine stops, then only what changed since
    #[arg(long)]
    precopy: bool,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until the move ends (the default)
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    /// Return at once, without waiting
    #[arg(short, long)]
    detach: bool,
    /// How long to wait; default: until it ends
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    wait_timeout: Option<Duration>,
}

/// What matters only to something that runs.
#[derive(clap::Args)]
pub struct RunningOptions {
    /// How long requests in flight may take to finish; default: 5s
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    drain_timeout: Option<Duration>,
    /// Start the new copy before the old one stops; only without volumes, and both run for a short time
    #[arg(long)]
    start_first: bool,
}

impl MoveOptions {
    fn request(&self) -> Migrate {
        Migrate {
            host: self.to.clone(),
            region: self.region.clone(),
            rate_bytes_per_s: self.rate,
            precopy: self.precopy,
            dry_run: self.dry_run,
            ..Migrate::default()
        }
    }
}

/// Moves a Machine with its volumes.
pub async fn machine(
    context: &Context,
    app: &AppName,
    machine: &Machine,
    (way, running): (&MoveOptions, &RunningOptions),
    headers: &HeaderMap,
) -> Result<()> {
    let drain = running.drain_timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    let request = Migrate { drain_timeout_ms: drain, start_first: running.start_first, ..way.request() };
    let begun = match begin::<MachinesMigrate>(context, app, machine.id.as_str(), &request, headers).await {
        Ok(begun) => begun,
        Err(error) => return Err(context.or_unknown_host(error, way.to.as_deref()).await),
    };
    go_on(context, begun, way).await
}

/// Moves a volume that no Machine holds.
pub async fn volume(context: &Context, app: &AppName, volume: &Volume, way: &MoveOptions) -> Result<()> {
    let begun = begin::<VolumesMigrate>(context, app, volume.id.as_str(), &way.request(), &HeaderMap::new()).await;
    let begun = begun.map_err(|error| match &volume.attached_machine_id {
        Some(machine) if error.exit != Exit::Unreachable => {
            error.hint(format!("it moves with its Machine: `godwit machine migrate {machine} -a {app}`"))
        }
        _ => error,
    });
    let begun = match begun {
        Ok(begun) => begun,
        Err(error) => return Err(context.or_unknown_host(error, way.to.as_deref()).await),
    };
    go_on(context, begun, way).await
}

async fn begin<E>(
    context: &Context,
    app: &AppName,
    id: &str,
    request: &Migrate,
    headers: &HeaderMap,
) -> Result<Migration>
where
    E: Endpoint<Query = Empty, Request = Migrate, Response = Migration>,
{
    let path = [app.as_str(), id];
    context.client.call_with::<E>(&path, &Empty {}, request, headers, HEAD_TIMEOUT).await.map_err(explain)
}

/// What to do next when a move or a volume is refused.
pub fn explain(error: CallError) -> CliError {
    let full = matches!(&error, CallError::Answered(answer) if answer.status == Status::InsufficientCapacity);
    let error = CliError::from(error);
    match error.exit {
        _ if full => error.hint("`godwit host list` shows the free capacity of each host"),
        Exit::Conflict => error.hint("`godwit migration list` shows the moves that are under way"),
        _ => error,
    }
}

async fn go_on(context: &Context, begun: Migration, way: &MoveOptions) -> Result<()> {
    let output = context.output;
    if way.dry_run {
        return tell_plan(context, &begun);
    }
    if way.detach {
        output.say(format!(
            "{}: `godwit migration watch {}` follows it, `godwit migration cancel {}` cancels it.",
            words::beginning(&begun),
            begun.id,
            begun.id
        ));
        return answer(context, &begun);
    }
    output.say(format!("{}.", words::beginning(&begun)));
    let ended = watch::follow(context, begun, Voice::Chatter, way.wait_timeout).await?;
    answer(context, &ended)
}

/// What a script wants: the migration, or its id.
fn answer(context: &Context, migration: &Migration) -> Result<()> {
    if context.output.json {
        return context.output.json(migration);
    }
    println!("{}", migration.id);
    Ok(())
}

fn tell_plan(context: &Context, plan: &Migration) -> Result<()> {
    let output = context.output;
    if output.json {
        output.json(plan)?;
    } else if !output.quiet {
        output.facts(&words::plan(plan));
        super::events(context, plan);
    }
    if plan.phase == MigrationPhase::Failed {
        let why = plan.reason.as_deref().unwrap_or("no reason was given");
        return Err(CliError::failed(format!("{} could not move: {why}", words::subject(plan))));
    }
    output.say("\nDry run; nothing was changed.");
    Ok(())
}
