//! `machine destroy`: what runs is not destroyed by a slip; of several Machines all go or none.

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesDelete;
use godwit_api::machine::{DeleteQuery, MachineState};
use godwit_base::http::client::HEAD_TIMEOUT;

use super::Targets;
use super::life::look_up;
use crate::cli::context::Context;
use crate::error::{CliError, Result};
use crate::exit::Exit;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    targets: Targets,
    /// Destroy running Machines too, without asking
    #[arg(short, long)]
    force: bool,
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    let headers = options.targets.lease.headers()?;
    let found = look_up(&options.targets, context).await?;
    use MachineState::{Created, Destroyed, Destroying, Failed, Stopped};
    let at_rest = [Created, Stopped, Failed, Destroying, Destroyed];
    if !options.force {
        if let Some((app, machine)) = found.iter().find(|(_, machine)| !at_rest.contains(&machine.state)) {
            let why = format!("Machine {} is {}; nothing was destroyed", machine.id, machine.state.as_str());
            return Err(CliError::new(Exit::Conflict, why).hint(format!(
                "stop it first (`godwit machine stop {} -a {app}`), or destroy it while it runs with --force",
                machine.id
            )));
        }
        let names: Vec<String> =
            found.iter().map(|(_, machine)| format!("Machine {} ({})", machine.id, machine.name)).collect();
        context.confirm(&format!("Destroy {}? Volumes stay.", names.join(", ")))?;
    }
    let query = DeleteQuery { force: options.force.then_some(true), kill: None };
    for (app, machine) in &found {
        let path = [app.as_str(), machine.id.as_str()];
        let called = context.client.call_with::<MachinesDelete>(&path, &query, &Empty {}, &headers, HEAD_TIMEOUT).await;
        called.map_err(|error| match CliError::from(error) {
            error if error.exit == Exit::Conflict && error.hint.is_none() && !options.force => {
                error.hint("stop it first, or use --force")
            }
            error => error,
        })?;
        context.output.say(format!("Machine {} is being destroyed.", machine.id));
    }
    if context.output.json {
        let ids: Vec<&str> = found.iter().map(|(_, machine)| machine.id.as_str()).collect();
        return context.output.json(&serde_json::json!({ "destroyed": ids }));
    }
    Ok(())
}
