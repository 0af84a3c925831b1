//! The one binary: the command line, the roles, the dev fleet. This file parses, dispatches, and turns the outcome
//! into an exit code; it must not know what any command does.

mod args;
mod cli;
mod dev;
mod error;
mod examples;
mod exit;
mod roles;
mod usage;

use std::process::ExitCode;

use args::{Arguments, Command};
use error::Result;

/// An edge allocates some dozens of times for a request; this costs it a third of what the C library's does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match examples::parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage::report(&error),
    };
    if !matches!(arguments.command, Command::Run(_) | Command::VolumeProcess { .. } | Command::DevHost(_)) {
        // A reader that has seen enough (`| head`) ends a command quietly, as it does any filter. A role's clients come
        // and go, and must not.
        default_sigpipe();
    }
    let style = cli::output::Style::for_stderr(arguments.global.color);
    let json = arguments.global.json;
    match dispatch(arguments) {
        Ok(code) => code,
        Err(error) => {
            if json {
                eprintln!("{}", error.to_json());
            } else {
                eprintln!("{} {error}", style.error("Error:"));
            }
            error.exit.into()
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Run(command) => roles::run(command, &arguments.global),
        Command::Taster => roles::taster().map(|()| ExitCode::SUCCESS),
        Command::VolumeProcess { arguments } => Ok(roles::volume_process(&arguments)),
        Command::Dev(options) => dev::run(options, &arguments.global).map(|()| ExitCode::SUCCESS),
        Command::DevHost(options) => dev::run_host(&options).map(|()| ExitCode::SUCCESS),
        Command::Help { topic } => cli::help::print(&topic).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            cli::completion::print(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Complete { arguments } => {
            cli::completion::answer(&arguments);
            Ok(ExitCode::SUCCESS)
        }
        command => cli::run(command, arguments.global),
    }
}

fn default_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no handler of ours, so nothing can run in signal context; no other thread exists.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
