//! `machine exec`: one command inside a Machine, its streams joined to ours. Its exit code becomes ours; when it could
//! not be run, or its output was cut, ours is 125, so that a script can tell the two apart.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesExec;
use godwit_api::machine::{ExecAnswer, ExecMachine};
use godwit_api::session::{Exec, Exit as Ended, Open};
use godwit_api::{AppName, MachineId};

use super::{LeaseOption, Target};
use crate::cli::context::Context;
use crate::cli::session::{Output, Plan, Session, no_stdin, our_stdin};
use crate::cli::terminal::{self, RawMode};
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// With --json the answer is one document, whose input has a bound.
const JSON_STDIN_LIMIT_BYTES: u64 = 1 << 20;
/// And whose command has a time limit.
const JSON_TIMEOUT: Duration = Duration::from_secs(30);
/// Beyond the command's own time: the way there and back.
const CALL_MARGIN: Duration = Duration::from_secs(15);

/// Run a command inside a running Machine
///
/// Standard output and standard error come as the command writes them, byte for byte and without a limit. The exit code
/// is the command's own, 128 and the number when a signal ended it, or 125 when the command could not be run or its
/// output was cut. When this command line ends, the command inside ends too: SIGHUP at once, SIGKILL after 5 s.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Send standard input to the command
    #[arg(short, long, visible_alias = "stdin", short_alias = 's')]
    interactive: bool,
    /// Run it in a terminal; use `-it` for a shell or an editor
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable for the command
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Run it as this user: a name, a number, or USER:GROUP
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Stop the command after this time; default: no limit
    #[arg(long, value_parser = super::duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    #[command(flatten)]
    lease: LeaseOption,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A command and how it is joined to us.
pub struct Invocation {
    pub command: Exec,
    pub stdin: bool,
    pub timeout: Option<Duration>,
}

pub async fn run(options: &Options, context: &Context) -> Result<ExitCode> {
    let not_run = |error: CliError| CliError { exit: exec_exit(error.exit), ..error };
    if context.output.json {
        return as_json(options, context).await.map_err(not_run);
    }
    let invocation = Invocation {
        command: Exec {
            command: options.command.clone(),
            env: options.env.clone(),
            user: options.user.clone(),
            terminal: options.tty.then(terminal::size),
        },
        stdin: options.interactive,
        timeout: options.timeout,
    };
    let running = async {
        let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
        carry_out(context, &app, &machine.id, &options.lease, invocation).await
    };
    let ended = running.await.map_err(not_run)?;
    Ok(ExitCode::from(ended.shell_code()))
}

/// Whatever kept the command from being run, or its output from being whole, is 125; our own interruption stays one.
pub fn exec_exit(exit: Exit) -> Exit {
    if exit == Exit::Interrupted { exit } else { Exit::Exec }
}

/// Runs it with our streams, on our terminal if it asks for one.
pub async fn carry_out(
    context: &Context,
    app: &AppName,
    machine: &MachineId,
    lease: &LeaseOption,
    invocation: Invocation,
) -> Result<Ended> {
    let Invocation { mut command, stdin, timeout } = invocation;
    let on_terminal = command.terminal.is_some();
    if on_terminal && !command.env.iter().any(|(name, _)| name == "TERM") {
        let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        command.env.push(("TERM".to_owned(), term));
    }
    let session = Session::open(context, app, machine, &lease.headers()?, Open::Exec(command)).await?;
    // From here on, and left however this ends.
    let _raw = if on_terminal && stdin { Some(RawMode::enter()?) } else { None };
    let stdin = match (stdin, on_terminal) {
        (true, _) => Some(our_stdin()),
        // A program that reads finds the end, and does not wait for what never comes.
        (false, false) => Some(no_stdin()),
        // On a terminal the end is a key, which nobody pressed.
        (false, true) => None,
    };
    session.attend(Plan { stdin, stdout: Output::Ours, terminal: on_terminal, timeout }).await
}

/// One JSON document, through the endpoint that answers whole.
async fn as_json(options: &Options, context: &Context) -> Result<ExitCode> {
    if options.tty || options.user.is_some() || !options.env.is_empty() {
        return Err(CliError::usage("--json prints one document: it cannot be used with --tty, --env or --user"));
    }
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let timeout = options.timeout.unwrap_or(JSON_TIMEOUT);
    let request = ExecMachine {
        cmd: None,
        command: options.command.clone(),
        stdin: if options.interactive { Some(read_stdin()?) } else { None },
        timeout: Some(timeout.as_secs().max(1)),
    };
    let path = [app.as_str(), machine.id.as_str()];
    let headers = options.lease.headers()?;
    let wait = timeout + CALL_MARGIN;
    let answer: ExecAnswer =
        context.client.call_with::<MachinesExec>(&path, &Empty {}, &request, &headers, wait).await?;
    context.output.json(&answer)?;
    if answer.truncated {
        return Err(CliError::failed("the output was cut: with --json it is limited to 1 MiB of stdout and of stderr")
            .hint("without --json the output streams, and has no limit"));
    }
    // As shells do, a signal counts as 128 and its number.
    let signal = answer.exit_signal.filter(|signal| *signal > 0);
    let code = signal.map_or(answer.exit_code, |signal| 128 + signal);
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}

fn read_stdin() -> Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(CliError::usage("with --json, --interactive sends a file or a pipe, not a terminal"));
    }
    let mut text = String::new();
    let read = stdin.lock().take(JSON_STDIN_LIMIT_BYTES + 1).read_to_string(&mut text);
    read.map_err(|_| CliError::usage("with --json, standard input must be UTF-8").hint("leave out --json"))?;
    if text.len() as u64 > JSON_STDIN_LIMIT_BYTES {
        let text = format!("with --json, standard input may be {JSON_STDIN_LIMIT_BYTES} bytes at most");
        return Err(CliError::usage(text).hint("leave out --json"));
    }
    Ok(text)
}
