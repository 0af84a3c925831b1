//! `machine list` and `status`: Machines shown.

use std::collections::BTreeMap;

use godwit_api::config::Mount;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesList;
use godwit_api::machine::{ListMachines, Machine};

use super::Target;
use crate::cli::context::{AppOption, Context};
use crate::error::Result;

/// Events that `status` shows.
const EVENTS_SHOWN: usize = 10;

#[derive(clap::Args)]
pub struct ListOptions {
    #[command(flatten)]
    app: AppOption,
    /// Only those in this region
    #[arg(short, long)]
    region: Option<String>,
    /// Only those in this state
    #[arg(long)]
    state: Option<String>,
    /// Only those with this metadata
    #[arg(long, value_name = "NAME=VALUE")]
    metadata: Vec<String>,
    /// Destroyed ones too
    #[arg(long)]
    include_deleted: bool,
}

#[derive(clap::Args)]
pub struct StatusOptions {
    #[command(flatten)]
    target: Target,
    /// Its configuration too
    #[arg(short, long, visible_alias = "display-config")]
    config: bool,
}

pub async fn list(options: &ListOptions, context: &Context) -> Result<()> {
    let app = context.app(&options.app)?;
    let mut rest = BTreeMap::new();
    for pair in &options.metadata {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| crate::error::CliError::usage(format!("--metadata {pair}: say NAME=VALUE")))?;
        rest.insert(format!("metadata.{name}"), value.to_owned());
    }
    let query = ListMachines {
        region: options.region.clone(),
        include_deleted: options.include_deleted.then_some(true),
        state: options.state.clone(),
        rest,
    };
    let machines = context.client.call::<MachinesList>(&[app.as_str()], &query, &Empty {}).await?;
    let output = context.output;
    if output.json {
        return output.json(&machines);
    }
    if output.quiet {
        machines.iter().for_each(|machine| println!("{}", machine.id));
        return Ok(());
    }
    let headings =
        ["ID", "NAME", "STATE", "CHECKS", "REGION", "HOST", "IMAGE", "IP ADDRESS", "CREATED", "LAST UPDATED", "SIZE"];
    let rows = machines.iter().map(|machine| {
        let unreachable = if machine.host_status == "ok" { "" } else { "*" };
        vec![
            format!("{}{unreachable}", machine.id),
            machine.name.clone(),
            state_of(machine),
            checks_of(machine),
            machine.region.clone(),
            machine.host_id.clone(),
            image_of(machine),
            machine.private_ip.clone(),
            machine.created_at.clone(),
            machine.updated_at.clone(),
            size_of(machine),
        ]
    });
    output.table(&headings, rows.collect());
    if machines.iter().any(|machine| machine.host_status != "ok") {
        output.say("* its host does not report at the moment: what is shown may be old");
    }
    Ok(())
}

pub async fn status(options: &StatusOptions, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let output = context.output;
    if output.json {
        return output.json(&machine);
    }
    let mut facts = vec![
        ("Machine", machine.id.to_string()),
        ("Name", machine.name.clone()),
        ("App", app.to_string()),
        ("State", state_of(&machine)),
        ("Host", format!("{} ({})", machine.host_id, machine.host_status)),
        ("Region", machine.region.clone()),
        ("Image", image_of(&machine)),
        ("Size", size_of(&machine)),
        ("Version", machine.instance_id.to_string()),
        ("IP address", machine.private_ip.clone()),
        ("Created", machine.created_at.clone()),
        ("Updated", machine.updated_at.clone()),
    ];
    facts.extend(machine.config.mounts.iter().map(|mount| ("Volume", volume_of(mount))));
    facts.extend(machine.unreachable.iter().map(|why| ("Unreachable", why.clone())));
    output.facts(&facts);
    if !machine.checks.is_empty() {
        println!();
        let rows =
            machine.checks.iter().map(|check| vec![check.name.clone(), check.status.clone(), check.output.clone()]);
        output.table(&["CHECK", "STATUS", "OUTPUT"], rows.collect());
    }
    if !machine.events.is_empty() {
        println!();
        let rows = machine.events.iter().take(EVENTS_SHOWN).map(|event| {
            let when = godwit_base::clock::rfc3339(event.timestamp);
            vec![when, event.kind.clone(), event.status.clone(), event.source.clone(), detail_of(event)]
        });
        output.table(&["WHEN", "EVENT", "STATE", "BY", "DETAIL"], rows.collect());
    }
    if options.config {
        println!();
        output.json(&machine.config)?;
    }
    Ok(())
}

pub fn state_of(machine: &Machine) -> String {
    let cordoned = if machine.cordoned { " (cordoned)" } else { "" };
    format!("{}{cordoned}", machine.state.as_str())
}

/// `2/3 passing`, or a dash without checks.
pub fn checks_of(machine: &Machine) -> String {
    if machine.checks.is_empty() {
        return "-".to_owned();
    }
    let passing = machine.checks.iter().filter(|check| check.status == "passing").count();
    format!("{passing}/{} passing", machine.checks.len())
}

fn image_of(machine: &Machine) -> String {
    let image = &machine.image_ref;
    // Control's own registry goes without saying.
    let name = match image.registry.as_str() {
        "" | "registry.godwit" => image.repository.clone(),
        registry => format!("{registry}/{}", image.repository),
    };
    if image.tag.is_empty() { name } else { format!("{name}:{}", image.tag) }
}

fn size_of(machine: &Machine) -> String {
    let guest = &machine.config.guest;
    let kind = if guest.cpu_kind == "shared" { "shared-cpu" } else { guest.cpu_kind.as_str() };
    format!("{kind}-{}x:{}MB", guest.cpus, guest.memory_mb)
}

/// `vol_… (data, 10 GB) at /data`.
fn volume_of(mount: &Mount) -> String {
    let named = if mount.name.is_empty() { String::new() } else { format!(" ({}, {} GB)", mount.name, mount.size_gb) };
    format!("{}{named} at {}", mount.volume, mount.path)
}

fn detail_of(event: &godwit_api::event::MachineEvent) -> String {
    let Some(detail) = &event.request else { return String::new() };
    let mut parts = Vec::new();
    if let Some(exit) = &detail.exit_event {
        parts.push(format!("exit code {}", exit.exit_code));
        if exit.signal > 0 {
            parts.push(format!("signal {}", exit.signal));
        }
        if exit.oom_killed {
            parts.push("out of memory".to_owned());
        }
        if exit.requested_stop {
            parts.push("as asked".to_owned());
        }
    }
    if let Some(count) = detail.restart_count.filter(|count| *count > 0) {
        parts.push(format!("restart {count}"));
    }
    parts.extend(detail.reason.clone());
    parts.join(", ")
}
