//! `machine list` and `status`: Machines shown.

use std::collections::BTreeMap;

use godwit_api::config::Mount;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::MachinesList;
use godwit_api::machine::{ListMachines, Machine};

use super::Target;
use crate::cli::context::{AppOption, Context};
use crate::cli::output::Column;
use crate::error::Result;

/// Events that `status` shows.
const EVENTS_SHOWN: usize = 10;

#[derive(clap::Args)]
pub struct ListOptions {
    #[command(flatten)]
    app: AppOption,
    /// Only Machines in this region
    #[arg(short, long, value_name = "REGION")]
    region: Option<String>,
    /// Only Machines in this state
    #[arg(long)]
    state: Option<String>,
    /// Only Machines with this metadata
    #[arg(long, value_name = "NAME=VALUE")]
    metadata: Vec<String>,
    /// Include destroyed Machines
    #[arg(long)]
    include_deleted: bool,
    /// Machines of all apps
    #[arg(long, conflicts_with = "app")]
    all: bool,
    /// Only Machines on this host, of all apps unless --app is given
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
}

#[derive(clap::Args)]
pub struct StatusOptions {
    #[command(flatten)]
    target: Target,
    /// Show the configuration as well
    #[arg(short, long, visible_alias = "display-config")]
    config: bool,
}

pub async fn list(options: &ListOptions, context: &Context) -> Result<()> {
    let mut rest = BTreeMap::new();
    for pair in &options.metadata {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| crate::error::CliError::usage(format!("--metadata {pair}: write it as NAME=VALUE")))?;
        rest.insert(format!("metadata.{name}"), value.to_owned());
    }
    let query = ListMachines {
        region: options.region.clone(),
        include_deleted: options.include_deleted.then_some(true),
        state: options.state.clone(),
        rest,
    };
    // Of a host, Machines of every app are meant unless one is named.
    let named = options.app.app.is_some();
    let apps = if options.all || (options.host.is_some() && !named) {
        context.app_names().await?
    } else {
        vec![context.app(&options.app)?.to_string()]
    };
    let mut machines: Vec<(String, Machine)> = Vec::new();
    for app in apps {
        let of_app = context.client.call::<MachinesList>(&[app.as_str()], &query, &Empty {}).await?;
        let wanted =
            of_app.into_iter().filter(|machine| options.host.as_ref().is_none_or(|host| *host == machine.host_id));
        machines.extend(wanted.map(|machine| (app.clone(), machine)));
    }
    if machines.is_empty()
        && let Some(host) = &options.host
    {
        context.known_host(host).await?;
    }
    let output = context.output;
    if output.json {
        let machines: Vec<&Machine> = machines.iter().map(|(_, machine)| machine).collect();
        return output.json(&machines);
    }
    if output.quiet {
        machines.iter().for_each(|(_, machine)| println!("{}", machine.id));
        return Ok(());
    }
    let of_several = options.all || options.host.is_some();
    table(context, &machines, of_several);
    Ok(())
}

/// Machines under headings; those of hosts that do not report are marked.
pub fn table(context: &Context, machines: &[(String, Machine)], with_app: bool) {
    let output = context.output;
    let columns = [
        Column("ID", 0),
        Column("APP", if with_app { 0 } else { 10 }),
        Column("NAME", 0),
        Column("STATE", 0),
        Column("CHECKS", 2),
        Column("HOST", 0),
        Column("REGION", 5),
        Column("IMAGE", 3),
        Column("SIZE", 7),
        Column("IP ADDRESS", 9),
        Column("CREATED", 8),
        Column("UPDATED", 4),
    ];
    let rows = machines.iter().map(|(app, machine)| {
        let unreachable = if machine.host_status == "ok" { "" } else { "*" };
        vec![
            format!("{}{unreachable}", machine.id),
            app.clone(),
            machine.name.clone(),
            state_of(machine),
            checks_of(machine),
            machine.host_id.clone(),
            machine.region.clone(),
            image_of(machine),
            size_of(machine),
            machine.private_ip.clone(),
            output.when(&machine.created_at),
            output.when(&machine.updated_at),
        ]
    });
    output.list(&columns, rows.collect());
    let mut lost: Vec<&str> = machines
        .iter()
        .filter(|(_, machine)| machine.host_status != "ok")
        .map(|(_, machine)| machine.host_id.as_str())
        .collect();
    lost.sort_unstable();
    lost.dedup();
    if !lost.is_empty() {
        println!("\n* {} cannot be reached: the state of its Machines is the last that it reported.", lost.join(", "));
    }
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
        ("Created", output.when(&machine.created_at)),
        ("Updated", output.when(&machine.updated_at)),
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
            let when = output.when(&godwit_base::clock::rfc3339(event.timestamp));
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

pub fn image_of(machine: &Machine) -> String {
    let image = &machine.image_ref;
    // Control's own registry goes without saying.
    let name = match image.registry.as_str() {
        "" | "registry.godwit" => image.repository.clone(),
        registry => format!("{registry}/{}", image.repository),
    };
    if image.tag.is_empty() { name } else { format!("{name}:{}", image.tag) }
}

pub fn size_of(machine: &Machine) -> String {
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

/// A Machine for unit tests.
#[cfg(test)]
pub fn sample() -> Machine {
    let answer = serde_json::json!({
        "id": "0000000000000a", "name": "web", "state": "started", "region": "fra",
        "image_ref": { "registry": "", "repository": "web", "tag": "latest", "digest": "sha256:1" },
        "instance_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "private_ip": "", "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "", "config": { "image": "web" }, "events": [], "checks": [], "host_status": "ok",
        "host_id": "w1", "cordoned": false,
    });
    serde_json::from_value(answer).expect("a Machine")
}
