//! `godwit machine`: what the commands take and which file carries each out.

pub mod changes;
pub mod clone;
mod copy;
mod destroy;
mod document;
mod exec;
mod files;
mod fly_toml;
pub mod follow;
mod lease;
mod life;
pub mod make;
mod mounts;
mod parse;
mod ports;
mod relocate;
mod remove;
mod shell;
pub mod show;
mod spec;
mod top;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::context::{AppOption, Context};
use crate::error::{CliError, Result};

#[derive(Subcommand)]
pub enum Command {
    /// Create a Machine and start it
    Run(Box<make::RunOptions>),
    /// Create a Machine and leave it stopped
    Create(Box<make::RunOptions>),
    /// Create a copy of a Machine: same image and configuration
    Clone(Box<clone::Options>),
    /// List the Machines of an app
    #[command(visible_alias = "ls")]
    List(show::ListOptions),
    /// Show a Machine's state, checks and events
    #[command(visible_alias = "show")]
    Status(show::StatusOptions),
    /// Start Machines
    Start(life::StartOptions),
    /// Stop Machines
    Stop(life::StopOptions),
    /// Restart Machines
    Restart(life::RestartOptions),
    /// Send a signal to a Machine's process
    #[command(visible_alias = "signal")]
    Kill(life::KillOptions),
    /// Change a Machine's image or configuration
    Update(Box<make::UpdateOptions>),
    /// Move a Machine and its volumes to another host
    Migrate(Box<relocate::MigrateOptions>),
    /// Destroy Machines
    #[command(visible_aliases = ["rm", "remove"])]
    Destroy(destroy::Options),
    Exec(Box<exec::Options>),
    Shell(shell::Options),
    #[command(name = "cp", visible_alias = "copy")]
    Copy(copy::Options),
    Top(top::Options),
    /// Wait until a Machine reaches a state
    Wait(life::WaitOptions),
    /// Send no new requests to Machines
    Cordon(life::CordonOptions),
    /// Send requests to Machines again
    Uncordon(life::CordonOptions),
    /// Manage leases; only the holder of a lease may change the Machine
    #[command(subcommand, visible_alias = "leases")]
    Lease(lease::Command),
}

/// Which Machines a command means.
#[derive(clap::Args)]
pub struct Targets {
    #[command(flatten)]
    pub app: AppOption,
    /// Ids, or names together with --app
    #[arg(required = true, value_name = "MACHINE")]
    pub machines: Vec<String>,
    #[command(flatten)]
    pub lease: LeaseOption,
}

/// Which one Machine a command means.
#[derive(clap::Args)]
pub struct Target {
    #[command(flatten)]
    pub app: AppOption,
    /// The id, or the name together with --app
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

#[derive(clap::Args)]
pub struct LeaseOption {
    /// The nonce of your lease on the Machine
    #[arg(long, env = "GODWIT_LEASE_NONCE", hide_env_values = true, value_name = "NONCE")]
    lease_nonce: Option<String>,
}

impl LeaseOption {
    pub fn headers(&self) -> Result<HeaderMap> {
        nonce_header(self.lease_nonce.as_deref())
    }
}

/// The header by which a lease's holder shows itself.
pub fn nonce_header(nonce: Option<&str>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(nonce) = nonce {
        let value = HeaderValue::from_str(nonce).map_err(|_| CliError::usage("a lease nonce is plain text"))?;
        headers.insert(HeaderName::from_static(godwit_api::lease::NONCE_HEADER), value);
    }
    Ok(headers)
}

/// Waiting for what a command began.
#[derive(clap::Args)]
pub struct WaitOption {
    /// Return at once, without waiting
    #[arg(short, long)]
    pub detach: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = duration, value_name = "DURATION")]
    pub wait_timeout: Duration,
}

/// `90`, `90s`, `5m`, `1h30m`; a bare number counts seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    godwit_api::Span::parse(text).map(|span| span.0).ok_or_else(|| "write 90s, 5m or 1h30m".to_owned())
}

pub async fn run(command: Command, context: &Context) -> Result<ExitCode> {
    let done = match command {
        Command::Run(options) => make::run(&options, context, true).await,
        Command::Create(options) => make::run(&options, context, false).await,
        Command::Clone(options) => clone::run(&options, context).await,
        Command::Update(options) => make::update(&options, context).await,
        Command::List(options) => show::list(&options, context).await,
        Command::Status(options) => show::status(&options, context).await,
        Command::Start(options) => life::start(&options, context).await,
        Command::Stop(options) => life::stop(&options, context).await,
        Command::Restart(options) => life::restart(&options, context).await,
        Command::Kill(options) => life::kill(&options, context).await,
        Command::Destroy(options) => destroy::run(&options, context).await,
        Command::Migrate(options) => relocate::run(&options, context).await,
        Command::Wait(options) => life::wait(&options, context).await,
        Command::Cordon(options) => life::cordon(&options, context, true).await,
        Command::Uncordon(options) => life::cordon(&options, context, false).await,
        Command::Lease(command) => lease::run(command, context).await,
        Command::Copy(options) => copy::run(&options, context).await,
        Command::Top(options) => top::run(&options, context).await,
        Command::Exec(options) => return exec::run(&options, context).await,
        Command::Shell(options) => return shell::run(&options, context).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}
