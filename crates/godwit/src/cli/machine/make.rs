//! `machine run`, `create` and `update`: Machines made and changed.

use godwit_api::config::MachineConfig;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesCreate, MachinesUpdate};
use godwit_api::machine::{CreateMachine, MachineState};
use godwit_base::http::client::HEAD_TIMEOUT;
use serde_json::Value;

use super::mounts;
use super::spec::ConfigFlags;
use super::{LeaseOption, Target, WaitOption};
use crate::cli::context::{AppOption, Context, ON_THE_WAY_UP};
use crate::error::Result;

#[derive(clap::Args)]
pub struct RunOptions {
    #[command(flatten)]
    app: AppOption,
    /// The image, `name[:tag][@digest]`
    #[arg(required_unless_present = "machine_config")]
    image: Option<String>,
    /// Replaces the image's command
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
    /// Its name; one is made up otherwise
    #[arg(short, long)]
    name: Option<String>,
    /// Where it should run
    #[arg(short, long)]
    region: Option<String>,
    #[command(flatten)]
    config: ConfigFlags,
    /// Create it and leave it stopped
    #[arg(long)]
    skip_launch: bool,
    /// Leave it out of the app's routes
    #[arg(long, visible_alias = "skip-dns-registration")]
    skip_service_registration: bool,
    #[command(flatten)]
    wait: WaitOption,
}

#[derive(clap::Args)]
pub struct UpdateOptions {
    #[command(flatten)]
    target: Target,
    /// Another image
    #[arg(short, long)]
    image: Option<String>,
    /// Replaces the image's command
    #[arg(short = 'C', long, value_name = "COMMAND")]
    command: Option<String>,
    #[command(flatten)]
    config: ConfigFlags,
    /// Leave it stopped
    #[arg(long, visible_alias = "skip-start")]
    skip_launch: bool,
    #[command(flatten)]
    lease: LeaseOption,
    #[command(flatten)]
    wait: WaitOption,
}

pub async fn run(options: &RunOptions, context: &Context, launch: bool) -> Result<()> {
    let app = context.app(&options.app)?;
    let mut config = options.config.base()?.unwrap_or_default();
    if let Some(image) = &options.image {
        config.image.clone_from(image);
    }
    if !options.command.is_empty() {
        config.init.cmd.clone_from(&options.command);
    }
    options.config.apply(&mut config)?;
    mounts::resolve(context, &app, options.region.as_deref(), None, &mut config).await?;
    let launch = launch && !options.skip_launch;
    let request = CreateMachine {
        name: options.name.clone(),
        region: options.region.clone(),
        config,
        skip_launch: !launch,
        skip_service_registration: options.skip_service_registration,
        ..CreateMachine::default()
    };
    let output = context.output;
    let mut machine = {
        let _progress = output.progress("creating a Machine");
        context.client.call::<MachinesCreate>(&[app.as_str()], &Empty {}, &request).await?
    };
    output.say(format!("Machine {} ({}) is placed on {}.", machine.id, machine.name, machine.host_id));
    if !options.wait.detach {
        // Made without a launch, it is stopped once its host holds image and files.
        let wanted = [if launch { MachineState::Started } else { MachineState::Stopped }];
        let timeout = options.wait.wait_timeout;
        machine = context.wait_for(&app, &machine.id, &wanted, Some(&ON_THE_WAY_UP), timeout).await?;
        output.say(format!("It is {}.", machine.state.as_str()));
    }
    if output.json {
        return output.json(&machine);
    }
    println!("{}", machine.id);
    Ok(())
}

pub async fn update(options: &UpdateOptions, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let mut config = options.config.base()?.unwrap_or_else(|| machine.config.clone());
    if let Some(image) = &options.image {
        config.image.clone_from(image);
    }
    if let Some(command) = &options.command {
        config.init.cmd = command.split_whitespace().map(str::to_owned).collect();
    }
    if config.image.is_empty() {
        config.image.clone_from(&machine.config.image);
    }
    options.config.apply(&mut config)?;
    mounts::resolve(context, &app, None, Some(&machine.id), &mut config).await?;
    let output = context.output;
    let changes = difference(&machine.config, &config)?;
    if changes.is_empty() && options.image.is_none() {
        output.say("Nothing would change.");
        return if output.json { output.json(&machine) } else { Ok(()) };
    }
    output.say(format!("Machine {} changes:", machine.id));
    changes.iter().for_each(|line| output.say(format!("  {line}")));
    context.confirm(&format!("Update Machine {}?", machine.id))?;
    let request = CreateMachine {
        config,
        skip_launch: options.skip_launch,
        current_version: Some(machine.instance_id.to_string()),
        ..CreateMachine::default()
    };
    let path = [app.as_str(), machine.id.as_str()];
    let headers = options.lease.headers()?;
    let client = &context.client;
    let mut updated = client.call_with::<MachinesUpdate>(&path, &Empty {}, &request, &headers, HEAD_TIMEOUT).await?;
    if !options.wait.detach {
        let rest = [MachineState::Started, MachineState::Stopped];
        let wanted = if options.skip_launch { &rest[..] } else { &rest[..1] };
        let on_the_way = [&ON_THE_WAY_UP[..], &[MachineState::Started]].concat();
        let on_the_way = (!options.skip_launch).then_some(&on_the_way[..]);
        updated = context.wait_for(&app, &machine.id, wanted, on_the_way, options.wait.wait_timeout).await?;
    }
    if output.json {
        return output.json(&updated);
    }
    output.say(format!("Machine {} is now at version {}.", updated.id, updated.instance_id));
    Ok(())
}

/// What differs, member by member: `- path: old` and `+ path: new`.
fn difference(old: &MachineConfig, new: &MachineConfig) -> Result<Vec<String>> {
    let flat = |config: &MachineConfig| -> Result<Vec<(String, Value)>> {
        let mut members = Vec::new();
        flatten("", &serde_json::to_value(config)?, &mut members);
        Ok(members)
    };
    let (old, new) = (flat(old)?, flat(new)?);
    let mut lines: Vec<(String, String)> = Vec::new();
    for member in old.iter().filter(|member| !new.contains(member)) {
        lines.push((member.0.clone(), format!("- {}: {}", member.0, member.1)));
    }
    for member in new.iter().filter(|member| !old.contains(member)) {
        lines.push((member.0.clone(), format!("+ {}: {}", member.0, member.1)));
    }
    // The sort is stable: of one path, the old value stands first.
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

fn flatten(path: &str, value: &Value, members: &mut Vec<(String, Value)>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| flatten(&below(name), value, members)),
        Value::Array(array) => {
            array.iter().enumerate().for_each(|(n, value)| flatten(&below(&n.to_string()), value, members));
        }
        value => members.push((path.to_owned(), value.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_shows_what_changes_and_only_that() {
        let old = MachineConfig { image: "a".into(), ..Default::default() };
        let mut new = old.clone();
        new.guest.memory_mb = 512;
        new.env.insert("K".into(), "v".into());
        let lines = difference(&old, &new).unwrap();
        assert_eq!(lines, ["+ env.K: \"v\"", "- guest.memory_mb: 256", "+ guest.memory_mb: 512"]);
        assert!(difference(&old, &old).unwrap().is_empty());
    }
}
