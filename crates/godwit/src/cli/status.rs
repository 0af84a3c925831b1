//! `godwit status`: an app and its Machines at a glance.

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsShow, MachinesList};
use godwit_api::machine::{ListMachines, Machine};

use super::context::{AppOption, Context};
use super::machine::show::table;
use super::places;
use crate::error::Result;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    app: AppOption,
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    let name = context.app(&options.app)?;
    let output = context.output;
    let app = context.client.call::<AppsShow>(&[name.as_str()], &Empty {}, &Empty {}).await?;
    let query = ListMachines::default();
    let machines = context.client.call::<MachinesList>(&[name.as_str()], &query, &Empty {}).await?;
    if output.json {
        return output.json(&serde_json::json!({ "app": app, "machines": machines }));
    }
    app.warnings.iter().for_each(|warning| output.warn(warning));
    output.facts(&[("App", app.name), ("Status", app.status), ("Machines", machines.len().to_string())]);
    if machines.is_empty() {
        output.say(format!("\nIt has no Machines yet: `godwit machine run IMAGE -a {name}` makes one."));
        return Ok(());
    }
    println!();
    let machines: Vec<(String, Machine)> = machines.into_iter().map(|machine| (name.to_string(), machine)).collect();
    table(context, &machines, false);
    places::print(context, &name, &machines.iter().map(|(_, machine)| machine).collect::<Vec<_>>()).await;
    Ok(())
}
