//! `godwit run ROLE --config FILE`: one role in the foreground, until SIGTERM or SIGINT. It reads the configuration,
//! opens the log, and hands both to the role's crate.

use std::path::PathBuf;

use clap::Subcommand;

use crate::error::{CliError, Result};

#[derive(clap::Args)]
pub struct Options {
    /// The role's configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the log as JSON
    #[arg(long, env = "GODWIT_LOG_JSON")]
    log_json: bool,
}

#[derive(Subcommand)]
pub enum Command {
    /// The API, placement and the fleet's state
    Control(Options),
    /// Runs Machines on this host
    Agent(Options),
    /// This host's proxy
    Door(Options),
    /// Takes traffic from outside
    Edge(Options),
}

pub fn run(command: Command) -> Result<()> {
    let _ = command;
    Err(CliError::failed("not wired"))
}
