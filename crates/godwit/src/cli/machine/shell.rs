//! `machine shell`: the image's own shell inside a Machine, on a terminal.

use std::io::IsTerminal;
use std::process::ExitCode;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesList;
use godwit_api::machine::{ListMachines, MachineState};
use godwit_api::session::Exec;
use godwit_api::{AppName, MachineId};

use super::LeaseOption;
use super::exec::{Invocation, carry_out, exec_exit};
use crate::cli::context::{AppOption, Context};
use crate::cli::terminal;
use crate::error::{CliError, Result};

/// The user's shell if the image names one that is there, then bash, then whatever `sh` is.
const CHOOSE: &str = "for shell in \"$SHELL\" bash; do \
     if [ -n \"$shell\" ] && command -v \"$shell\" > /dev/null 2>&1; then exec \"$shell\"; fi; done; exec sh";

/// Open a shell inside a running Machine
///
/// It runs $SHELL, bash or sh, whichever the image has, on a terminal that follows the size of yours. Closing it, or the
/// connection, ends the shell and what it runs in the foreground.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    app: AppOption,
    /// The id, or the name together with --app; optional if the app has one running Machine
    #[arg(value_name = "MACHINE")]
    machine: Option<String>,
    /// Be this user: a name, a number, or USER:GROUP
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    lease: LeaseOption,
}

pub async fn run(options: &Options, context: &Context) -> Result<ExitCode> {
    let (app, machine) = which(options, context).await?;
    let on_terminal = std::io::stdin().is_terminal();
    let invocation = Invocation {
        command: Exec {
            command: ["sh", "-c", CHOOSE].map(str::to_owned).to_vec(),
            user: options.user.clone(),
            terminal: on_terminal.then(terminal::size),
            env: Vec::new(),
        },
        stdin: true,
        timeout: None,
    };
    let ended = carry_out(context, &app, &machine, &options.lease, invocation).await;
    let ended = ended.map_err(|error| CliError { exit: exec_exit(error.exit), ..error })?;
    if ended.not_executed {
        return Err(CliError::new(crate::exit::Exit::Exec, format!("the image of Machine {machine} has no shell"))
            .hint(format!(
                "`godwit machine exec {machine} -- PROGRAM` runs a program that it has; `godwit machine cp` copies files \
                 in and out"
            )));
    }
    Ok(ExitCode::from(ended.shell_code()))
}

async fn which(options: &Options, context: &Context) -> Result<(AppName, MachineId)> {
    if let Some(which) = &options.machine {
        let (app, machine) = context.machine(&options.app, which).await?;
        return Ok((app, machine.id));
    }
    let app = context.app(&options.app)?;
    let all = context.client.call::<MachinesList>(&[app.as_str()], &ListMachines::default(), &Empty {}).await?;
    let mut running = all.into_iter().filter(|machine| machine.state == MachineState::Started);
    match (running.next(), running.next()) {
        (Some(machine), None) => Ok((app, machine.id)),
        (None, _) => Err(CliError::failed(format!("no Machine of app {app} is running"))
            .hint(format!("`godwit machine list -a {app}` shows them; `godwit machine start ID` starts one"))),
        (Some(first), Some(_)) => Err(CliError::usage(format!("app {app} runs several Machines: name one"))
            .hint(format!("`godwit machine shell {}`; `godwit machine list -a {app}` shows them all", first.id))),
    }
}
