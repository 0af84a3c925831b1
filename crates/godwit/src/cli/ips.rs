//! `godwit ips`: the private addresses at which Machines reach one another.

use clap::Subcommand;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesList;
use godwit_api::machine::{ListMachines, Machine};

use super::context::{AppOption, Context};
use crate::error::Result;

#[derive(Subcommand)]
pub enum Command {
    /// List the private addresses of an app's Machines
    Private(PrivateOptions),
}

#[derive(clap::Args)]
pub struct PrivateOptions {
    #[command(flatten)]
    app: AppOption,
    /// Only this Machine: its id, or its name together with --app
    #[arg(value_name = "MACHINE")]
    machine: Option<String>,
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    let Command::Private(options) = command;
    let machines = match &options.machine {
        Some(which) => vec![context.machine(&options.app, which).await?.1],
        None => {
            let app = context.app(&options.app)?;
            context.client.call::<MachinesList>(&[app.as_str()], &ListMachines::default(), &Empty {}).await?
        }
    };
    let output = context.output;
    if output.json {
        let addresses = machines.iter().map(|machine| {
            serde_json::json!({ "id": machine.id, "name": machine.name, "region": machine.region, "ip": machine.private_ip })
        });
        return output.json(&addresses.collect::<Vec<_>>());
    }
    if output.quiet {
        machines.iter().for_each(|machine| println!("{}", machine.private_ip));
        return Ok(());
    }
    output.table(&["ID", "NAME", "REGION", "IP"], machines.iter().map(row).collect());
    Ok(())
}

fn row(machine: &Machine) -> Vec<String> {
    vec![machine.id.to_string(), machine.name.clone(), machine.region.clone(), machine.private_ip.to_string()]
}
