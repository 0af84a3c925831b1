//! `godwit apps`: the named groups that Machines belong to.

use clap::Subcommand;
use godwit_api::AppName;
use godwit_api::app::CreateApp;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsCreate, AppsDelete, AppsList, AppsShow, MachinesList, OrgQuery};
use godwit_api::machine::{DeleteQuery, ListMachines};
use godwit_api::volume::Volume;

use super::context::{Asked, Context};
use super::volumes::find;
use crate::error::{CliError, Result};
use crate::exit::Exit;

#[derive(Subcommand)]
pub enum Command {
    /// Create an app
    Create {
        /// The app's name: 1 to 63 characters of a-z, 0-9 and '-'
        name: String,
        /// The organization it belongs to
        #[arg(short, long, value_name = "SLUG")]
        org: Option<String>,
    },
    /// List apps
    #[command(visible_alias = "ls")]
    List,
    /// Show an app
    Show {
        /// The name of the app
        #[arg(value_name = "APP")]
        name: String,
    },
    /// Destroy an app and its Machines, and with --with-volumes its volumes
    #[command(visible_aliases = ["delete", "rm"])]
    Destroy {
        /// The name of the app
        #[arg(value_name = "APP")]
        name: String,
        /// Also destroy its volumes and all their data
        #[arg(long)]
        with_volumes: bool,
    },
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        Command::Create { name, org } => {
            let name = parse(&name)?;
            let request = CreateApp {
                app_name: Some(name.to_string()),
                name: Some(name.to_string()),
                org_slug: org,
                network: None,
            };
            let created = client.call::<AppsCreate>(&[], &Empty {}, &request).await?;
            if output.json {
                return output.json(&created);
            }
            output.say(format!("App {name} is created."));
        }
        Command::List => {
            let list = client.call::<AppsList>(&[], &OrgQuery::default(), &Empty {}).await?;
            if output.json {
                return output.json(&list.apps);
            }
            if output.quiet {
                list.apps.iter().for_each(|app| println!("{}", app.name));
                return Ok(());
            }
            let rows = list.apps.into_iter().map(|app| vec![app.name, app.machine_count.to_string()]);
            output.table(&["NAME", "MACHINES"], rows.collect());
        }
        Command::Show { name } => {
            let name = parse(&name)?;
            context.about(Asked::App(name.to_string()));
            let app = client.call::<AppsShow>(&[name.as_str()], &Empty {}, &Empty {}).await?;
            if output.json {
                return output.json(&app);
            }
            output.facts(&[
                ("Name", app.name),
                ("Status", app.status),
                ("Organization", app.organization.slug),
                ("Machines", app.machine_count.to_string()),
                ("Network", app.network),
            ]);
        }
        Command::Destroy { name, with_volumes } => destroy(&parse(&name)?, with_volumes, context).await?,
    }
    Ok(())
}

/// Names all that goes before it asks. Data go only if that was said in so many words.
async fn destroy(name: &AppName, with_volumes: bool, context: &Context) -> Result<()> {
    let (client, output) = (&context.client, context.output);
    context.about(Asked::App(name.to_string()));
    let machines = client.call::<MachinesList>(&[name.as_str()], &ListMachines::default(), &Empty {}).await?;
    let volumes: Vec<Volume> = find::list(context, name).await?;
    let volumes: Vec<Volume> = volumes
        .into_iter()
        .filter(|volume| !matches!(volume.state.as_str(), "destroyed" | "pending_destroy"))
        .collect();
    let total_gb: u64 = volumes.iter().map(|volume| volume.size_gb).sum();
    let told: Vec<String> =
        volumes.iter().map(|volume| format!("{} ({}, {} GB)", volume.id, volume.name, volume.size_gb)).collect();
    if !volumes.is_empty() && !with_volumes {
        let what = format!(
            "app {name} has {} with data: {}; nothing was destroyed",
            count(volumes.len(), "volume"),
            told.join(", ")
        );
        return Err(CliError::new(Exit::Conflict, what)
            .hint("--with-volumes destroys them too; `godwit volumes list` shows them"));
    }
    for machine in &machines {
        output.say(format!("Machine {} ({}), {}", machine.id, machine.name, machine.state.as_str()));
    }
    told.iter().for_each(|volume| output.say(format!("Volume {volume}")));
    let data = if volumes.is_empty() {
        String::new()
    } else {
        format!(" and {} ({total_gb} GB)", count(volumes.len(), "volume"))
    };
    context.confirm(&format!("Destroy app {name} with {}{data}?", count(machines.len(), "Machine")))?;
    let query = DeleteQuery { force: Some(true), kill: None };
    client.call::<AppsDelete>(&[name.as_str()], &query, &Empty {}).await?;
    if output.json {
        let machines: Vec<&str> = machines.iter().map(|machine| machine.id.as_str()).collect();
        let volumes: Vec<&str> = volumes.iter().map(|volume| volume.id.as_str()).collect();
        return output.json(&serde_json::json!({ "ok": true, "machines": machines, "volumes": volumes }));
    }
    output.say(format!("App {name} is destroyed."));
    Ok(())
}

/// `1 volume`, `2 volumes`.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn parse(name: &str) -> Result<AppName> {
    AppName::parse(name).map_err(|error| CliError::usage(error.to_string()))
}
