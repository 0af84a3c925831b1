//! `godwit scale`: how many Machines an app has. Only an app of one kind of Machine has a number to set: where they
//! differ, nobody can say which to clone or to destroy.

use clap::Subcommand;
use godwit_api::AppName;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesDelete, MachinesList};
use godwit_api::machine::{DeleteQuery, ListMachines, Machine, MachineState};
use godwit_base::http::client::HEAD_TIMEOUT;
use http::HeaderMap;

use super::context::{AppOption, Context};
use super::machine::follow::SmokeOption;
use super::machine::{WaitOption, changes, clone, show};
use super::{places, scale_plan};
use crate::error::{CliError, Result};
use crate::exit::Exit;

#[derive(Subcommand)]
pub enum Command {
    /// Set the number of Machines of an app: clones one, or destroys some
    Count(CountOptions),
    /// Show how many Machines an app has, by region, image and size
    Show {
        #[command(flatten)]
        app: AppOption,
    },
}

#[derive(clap::Args)]
pub struct CountOptions {
    #[command(flatten)]
    app: AppOption,
    /// The number of Machines
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(0..=i64::from(scale_plan::COUNT_MAX)))]
    count: u16,
    /// Count only Machines in this region
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// Also destroy Machines that hold volumes; the volumes are kept
    #[arg(long)]
    with_volumes: bool,
    #[command(flatten)]
    wait: WaitOption,
    #[command(flatten)]
    smoke: SmokeOption,
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    match command {
        Command::Count(options) => count(&options, context).await,
        Command::Show { app } => show(&context.app(&app)?, context).await,
    }
}

/// What counts: all but those that are gone, or about to be.
async fn machines_of(app: &AppName, context: &Context) -> Result<Vec<Machine>> {
    let all = context.client.call::<MachinesList>(&[app.as_str()], &ListMachines::default(), &Empty {}).await?;
    let gone = [MachineState::Destroying, MachineState::Destroyed];
    Ok(all.into_iter().filter(|machine| !gone.contains(&machine.state)).collect())
}

async fn count(options: &CountOptions, context: &Context) -> Result<()> {
    let (app, output) = (context.app(&options.app)?, context.output);
    let machines = machines_of(&app, context).await?;
    one_kind(&app, &machines)?;
    let region = options.region.as_deref();
    let counted: Vec<&Machine> =
        machines.iter().filter(|machine| region.is_none_or(|region| region == machine.region)).collect();
    let (now, wanted) = (counted.len(), usize::from(options.count));
    if now == wanted {
        output.say(format!("App {app} has {} already.", told(now, region)));
        return answer(context, &counted, &[], &[]);
    }
    if wanted > now {
        let made = up(options, context, &app, &machines, wanted - now).await?;
        answer(context, &counted, &made, &[])?;
        let all: Vec<&Machine> = counted.iter().copied().chain(&made).collect();
        places::print(context, &app, &all).await;
        return Ok(());
    }
    let going = scale_plan::leaving(&counted, now - wanted, options.with_volumes).map_err(|spare| {
        let why = format!(
            "{} must go, and {spare} may: the others hold volumes; nothing was destroyed",
            machines_told(now - wanted)
        );
        CliError::new(Exit::Conflict, why).hint("--with-volumes destroys such Machines too; their volumes stay")
    })?;
    for machine in &going {
        let volumes: Vec<&str> = machine.config.mounts.iter().map(|mount| mount.volume.as_str()).collect();
        let spared = if volumes.is_empty() { String::new() } else { format!("; {} stays", volumes.join(", ")) };
        output.say(format!("- Machine {} ({}), {}{spared}", machine.id, machine.name, machine.state.as_str()));
    }
    context.confirm(&format!("Destroy {} of app {app}?", machines_told(going.len())))?;
    // Each may end what it does: a smaller number is no reason to break requests.
    let query = DeleteQuery { force: Some(true), kill: Some(false) };
    for machine in &going {
        let path = [app.as_str(), machine.id.as_str()];
        let headers = HeaderMap::new();
        context.client.call_with::<MachinesDelete>(&path, &query, &Empty {}, &headers, HEAD_TIMEOUT).await?;
        output.say(format!("Machine {} is being destroyed.", machine.id));
    }
    let stay: Vec<&Machine> =
        counted.into_iter().filter(|machine| going.iter().all(|other| other.id != machine.id)).collect();
    answer(context, &stay, &[], &going)
}

async fn up(
    options: &CountOptions,
    context: &Context,
    app: &AppName,
    machines: &[Machine],
    more: usize,
) -> Result<Vec<Machine>> {
    let output = context.output;
    let Some(first) = scale_plan::model(machines, options.region.as_deref()) else {
        return Err(CliError::new(Exit::Conflict, format!("app {app} has no Machine to clone"))
            .hint(format!("make the first: `godwit machine run IMAGE -a {app}`")));
    };
    // Says why a Machine with volumes cannot be cloned, before anything is asked.
    clone::own_config(first, &[])?;
    let region = options.region.as_deref().unwrap_or(&first.region);
    let what = format!("{}, clones of {} ({}), in {region}", machines_told(more), first.id, first.name);
    output.say(format!("+ {what}"));
    context.confirm(&format!("Create {} of app {app}?", machines_told(more)))?;
    let mut made = Vec::new();
    for number in 0..more {
        let one = clone::one(context, app, first, region, &options.wait, &options.smoke).await;
        made.push(one.map_err(|error| CliError {
            message: format!("{number} of {} came up, then: {}", machines_told(more), error.message),
            ..error
        })?);
    }
    Ok(made)
}

fn one_kind(app: &AppName, machines: &[Machine]) -> Result<()> {
    let Some((one, other)) = scale_plan::unlike(machines) else { return Ok(()) };
    let mut lines = changes::difference(&scale_plan::kind(one)?, &scale_plan::kind(other)?);
    if one.image_ref.digest != other.image_ref.digest || lines.is_empty() {
        lines.insert(0, format!("image: {} → {}", show::image_of(one), show::image_of(other)));
    }
    let why = format!(
        "app {app} has Machines of more than one kind: from {} to {}, {}; nothing was changed",
        one.id,
        other.id,
        lines.join(", ")
    );
    Err(CliError::new(Exit::Conflict, why).hint(
        "make them alike with `godwit machine update`, or choose yourself: `godwit machine clone`, `godwit machine destroy`",
    ))
}

fn answer(context: &Context, stay: &[&Machine], made: &[Machine], gone: &[&Machine]) -> Result<()> {
    let count = stay.len() + made.len();
    if context.output.json {
        let ids = |machines: &[&Machine]| machines.iter().map(|machine| machine.id.to_string()).collect::<Vec<_>>();
        let made: Vec<&Machine> = made.iter().collect();
        return context.output.json(&serde_json::json!({
            "count": count, "created": ids(&made), "destroyed": ids(gone),
        }));
    }
    made.iter().for_each(|machine| println!("{}", machine.id));
    Ok(())
}

async fn show(app: &AppName, context: &Context) -> Result<()> {
    let output = context.output;
    let groups = scale_plan::groups(&machines_of(app, context).await?);
    if output.json {
        return output.json(&groups);
    }
    if groups.is_empty() {
        output.say(format!("App {app} has no Machines."));
        return Ok(());
    }
    let rows = groups
        .into_iter()
        .map(|group| vec![group.region, group.image, group.size, group.count.to_string(), group.started.to_string()]);
    output.table(&["REGION", "IMAGE", "SIZE", "COUNT", "STARTED"], rows.collect());
    Ok(())
}

fn told(count: usize, region: Option<&str>) -> String {
    let region = region.map(|region| format!(" in {region}")).unwrap_or_default();
    format!("{}{region}", machines_told(count))
}

fn machines_told(count: usize) -> String {
    format!("{count} Machine{}", if count == 1 { "" } else { "s" })
}
