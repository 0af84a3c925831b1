//! Commands that talk to control's public API, one file a noun. They know the API and the terminal, and nothing of
//! how the roles work.

pub mod apps;
pub mod certs;
pub mod completion;
pub mod config;
pub mod context;
mod contexts;
pub mod document;
pub mod guess;
pub mod help;
pub mod host;
pub mod image;
pub mod ips;
pub mod logs;
pub mod machine;
pub mod migration;
pub mod output;
pub mod places;
pub mod proxy;
pub mod scale;
mod scale_plan;
#[cfg(test)]
mod scale_tests;
pub mod session;
pub mod settings;
mod silence;
pub mod size;
pub mod status;
pub mod terminal;
pub mod volumes;

use std::process::ExitCode;

use crate::args::{Command, Global};
use crate::error::{CliError, Result};
use context::Context;

/// Runs a command of the API on a runtime of its own.
pub fn run(command: Command, global: Global) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Command::Config(command) = command {
            return config::run(command, &global).map(|()| ExitCode::SUCCESS);
        }
        let context = Context::new(&global)?;
        let done = match command {
            Command::Apps(command) => apps::run(command, &context).await,
            Command::Machine(command) => match machine::run(command, &context).await {
                Ok(code) => return Ok(code),
                Err(error) => Err(error),
            },
            Command::Volumes(command) => volumes::run(command, &context).await,
            Command::Migration(command) => migration::run(command, &context).await,
            Command::Certs(command) => certs::run(command, &context).await,
            Command::Image(command) => image::run(command, &context).await,
            Command::Host(command) => host::run(command, &context).await,
            Command::Scale(command) => scale::run(command, &context).await,
            Command::Ips(command) => ips::run(command, &context).await,
            Command::Status(options) => status::run(&options, &context).await,
            Command::Proxy(options) => proxy::run(&options, &context).await,
            Command::Logs(options) => logs::run(&options, &context).await,
            _ => Err(CliError::usage("this command does not use the API")),
        };
        match done {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(context.guess(error).await),
        }
    })
}
