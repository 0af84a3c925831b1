//! `machine migrate`: which Machine moves. What a move takes and how it is told stands with all moves.

use super::{LeaseOption, Target};
use crate::cli::context::Context;
use crate::cli::migration::start;
use crate::error::Result;

#[derive(clap::Args)]
pub struct MigrateOptions {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    way: start::MoveOptions,
    #[command(flatten)]
    running: start::RunningOptions,
    #[command(flatten)]
    lease: LeaseOption,
}

pub async fn run(options: &MigrateOptions, context: &Context) -> Result<()> {
    let headers = options.lease.headers()?;
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    start::machine(context, &app, &machine, (&options.way, &options.running), &headers).await
}
