//! `godwit run agent --clean`: takes off this host all that is the platform's, after it has asked.

use std::path::Path;

use super::read;
use crate::args::Global;
use crate::cli::context::Context;
use crate::cli::output::bytes;
use crate::error::{CliError, Result};

pub fn agent(path: &Path, global: &Global) -> Result<()> {
    let config = read::<godwit_agent::Raw, godwit_agent::Config>(path)?;
    let context = Context::new(global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let failed = |error: godwit_agent::Error| CliError::failed(godwit_base::telemetry::chain(&error));
    let survey = runtime.block_on(godwit_agent::clean::survey(&config)).map_err(failed)?;
    let data_dir = survey.data_dir.display();
    if survey.is_empty() {
        context.output.say(format!("{data_dir} does not exist: there is nothing to remove."));
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::usage("this needs root: it ends Machines and removes mounts, links and cgroups"));
    }
    context.confirm(&format!(
        "End {} and delete {} ({} of data) and all of {data_dir} on this host? Nothing of it can be brought back.",
        counted(survey.machines.len(), "Machine"),
        counted(survey.volumes.len(), "volume"),
        bytes(survey.volumes_bytes),
    ))?;
    runtime.block_on(godwit_agent::clean::clean(&config, &survey)).map_err(failed)?;
    context.output.say(format!(
        "Removed {}, {} and {data_dir}. {}, the programs and their units are still there.",
        counted(survey.machines.len(), "Machine"),
        counted(survey.volumes.len(), "volume"),
        path.display(),
    ));
    Ok(())
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
