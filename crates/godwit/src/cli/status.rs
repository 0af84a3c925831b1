//! `godwit status`: an app and its Machines at a glance.

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{AppsShow, MachinesList};
use godwit_api::machine::ListMachines;

use super::context::{AppOption, Context};
use super::machine::show::{checks_of, state_of};
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
    let rows = machines.iter().map(|machine| {
        vec![
            machine.id.to_string(),
            machine.name.clone(),
            state_of(machine),
            machine.region.clone(),
            machine.host_id.clone(),
            checks_of(machine),
            machine.updated_at.clone(),
        ]
    });
    output.table(&["ID", "NAME", "STATE", "REGION", "HOST", "CHECKS", "LAST UPDATED"], rows.collect());
    Ok(())
}
