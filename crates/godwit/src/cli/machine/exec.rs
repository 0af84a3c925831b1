//! `machine exec`: one command inside a Machine. Its exit code becomes ours; when it could not be run at all, ours is
//! 125, so that a script can tell the two apart.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesExec;
use godwit_api::machine::{ExecAnswer, ExecMachine};
use http::HeaderMap;

use super::Target;
use crate::cli::context::Context;
use crate::error::{CliError, Result};
use crate::exit::Exit;

/// Standard input is sent along whole, so it has a bound.
const STDIN_LIMIT_BYTES: u64 = 1 << 20;
/// Beyond the command's own time: the way there and back.
const CALL_MARGIN: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// How long it may run
    #[arg(long, default_value = "30s", value_parser = super::duration, value_name = "DURATION")]
    timeout: Duration,
    /// Send our standard input along
    #[arg(short, long)]
    stdin: bool,
}

pub async fn run(options: &Options, context: &Context) -> Result<ExitCode> {
    let answer = call(options, context).await.map_err(|error| CliError { exit: Exit::Exec, ..error })?;
    if context.output.json {
        context.output.json(&answer)?;
    } else {
        std::io::stdout().write_all(answer.stdout.as_bytes())?;
        std::io::stderr().write_all(answer.stderr.as_bytes())?;
    }
    // As shells do, a signal counts as 128 and its number.
    let signal = answer.exit_signal.filter(|signal| *signal > 0);
    let code = signal.map_or(answer.exit_code, |signal| 128 + signal);
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}

async fn call(options: &Options, context: &Context) -> Result<ExecAnswer> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let request = ExecMachine {
        cmd: None,
        command: options.command.clone(),
        stdin: if options.stdin { Some(read_stdin()?) } else { None },
        timeout: Some(options.timeout.as_secs().max(1)),
    };
    let path = [app.as_str(), machine.id.as_str()];
    let timeout = options.timeout + CALL_MARGIN;
    Ok(context.client.call_with::<MachinesExec>(&path, &Empty {}, &request, &HeaderMap::new(), timeout).await?)
}

fn read_stdin() -> Result<String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(CliError::usage("--stdin sends a file or a pipe, not a terminal"));
    }
    let mut text = String::new();
    stdin.lock().take(STDIN_LIMIT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > STDIN_LIMIT_BYTES {
        return Err(CliError::usage(format!("standard input is larger than {STDIN_LIMIT_BYTES} bytes")));
    }
    Ok(text)
}
