//! `godwit apps`: the named groups that Machines belong to.

use clap::Subcommand;
use godwit_api::AppName;
use godwit_api::app::CreateApp;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsCreate, AppsDelete, AppsList, AppsShow, OrgQuery};
use godwit_api::machine::DeleteQuery;

use super::context::Context;
use crate::error::{CliError, Result};

#[derive(Subcommand)]
pub enum Command {
    /// Create an app
    Create {
        /// 1 to 63 of a-z, 0-9 and '-'
        name: String,
        /// The organization it belongs to
        #[arg(short, long, value_name = "SLUG")]
        org: Option<String>,
    },
    /// List apps
    #[command(visible_alias = "ls")]
    List,
    /// Show an app
    Show { name: String },
    /// Delete an app and its Machines
    #[command(visible_aliases = ["delete", "rm"])]
    Destroy { name: String },
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
            let app = client.call::<AppsShow>(&[parse(&name)?.as_str()], &Empty {}, &Empty {}).await?;
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
        Command::Destroy { name } => {
            let name = parse(&name)?;
            let app = client.call::<AppsShow>(&[name.as_str()], &Empty {}, &Empty {}).await?;
            context.confirm(&format!("Destroy app {name} with {} Machines and all they hold?", app.machine_count))?;
            let query = DeleteQuery { force: Some(true), kill: None };
            client.call::<AppsDelete>(&[name.as_str()], &query, &Empty {}).await?;
            if output.json {
                return output.json(&serde_json::json!({ "ok": true }));
            }
            output.say(format!("App {name} is destroyed."));
        }
    }
    Ok(())
}

fn parse(name: &str) -> Result<AppName> {
    AppName::parse(name).map_err(|error| CliError::usage(error.to_string()))
}
