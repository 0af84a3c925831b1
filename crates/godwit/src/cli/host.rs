//! `godwit host`: the servers that run Machines.

mod strays;

use clap::Subcommand;
use godwit_api::HostId;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{HostsCordon, HostsList, HostsShow, HostsUncordon};
use godwit_api::fleet::Host;

use super::context::{Asked, Context};
use super::output::{Column, ago};
use crate::error::{CliError, Result};

#[derive(Subcommand)]
pub enum Command {
    /// List hosts
    #[command(visible_alias = "ls")]
    List,
    /// Show a host
    #[command(visible_alias = "status")]
    Show {
        /// The id of the host
        #[arg(value_name = "HOST")]
        id: String,
    },
    /// Stop placing new Machines and volumes on a host
    Cordon {
        /// The id of the host
        #[arg(value_name = "HOST")]
        id: String,
    },
    /// Allow new Machines and volumes on a host again
    Uncordon {
        /// The id of the host
        #[arg(value_name = "HOST")]
        id: String,
    },
    /// Manage strays: Machines and volumes that a host holds but control does not know
    ///
    /// Strays can appear after control was restored from an older backup. Hosts do not touch them.
    Strays {
        #[command(subcommand)]
        command: Option<strays::Command>,
    },
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        Command::List => {
            let hosts = client.call::<HostsList>(&[], &Empty {}, &Empty {}).await?;
            if output.json {
                return output.json(&hosts);
            }
            if output.quiet {
                hosts.iter().for_each(|host| println!("{}", host.id));
                return Ok(());
            }
            let columns = [
                Column("ID", 0),
                Column("REGION", 3),
                Column("STATE", 0),
                Column("MACHINES", 2),
                Column("CPU RESERVED", 0),
                Column("MEMORY RESERVED", 0),
                Column("DISK RESERVED", 4),
                Column("SEEN", 1),
            ];
            output.list(&columns, hosts.iter().map(|host| row(host).to_vec()).collect());
        }
        Command::Show { id } => {
            let id = parse(context, &id)?;
            let host = client.call::<HostsShow>(&[id.as_str()], &Empty {}, &Empty {}).await?;
            if output.json {
                return output.json(&host);
            }
            let [.., machines, cpu, memory, disk, seen] = row(&host);
            output.facts(&[
                ("ID", host.id),
                ("Region", host.region),
                ("State", host.state),
                ("Machines", machines),
                ("CPU reserved", cpu),
                ("Memory reserved", memory),
                ("Disk reserved", disk),
                ("CPU used", format!("{:.1}", host.used.cpu_millis as f64 / 1000.0)),
                ("Memory used", format!("{} MB", host.used.memory_mb)),
                ("Disk used", format!("{} MB", host.used.disk_mb)),
                ("Last seen", seen),
                ("Agent", format!("{} at {}", host.agent_version, host.agent_url)),
                ("Door", host.door_addr),
                ("Drivers", host.drivers.join(", ")),
            ]);
        }
        Command::Strays { command } => return strays::run(command, context).await,
        Command::Cordon { id } => {
            let id = parse(context, &id)?;
            let answer = client.call::<HostsCordon>(&[id.as_str()], &Empty {}, &Empty {}).await?;
            if output.json {
                return output.json(&answer);
            }
            output.say(format!("Host {id} is cordoned: nothing new is placed on it; its Machines keep running."));
        }
        Command::Uncordon { id } => {
            let id = parse(context, &id)?;
            let answer = client.call::<HostsUncordon>(&[id.as_str()], &Empty {}, &Empty {}).await?;
            if output.json {
                return output.json(&answer);
            }
            output.say(format!("Host {id} accepts new Machines again."));
        }
    }
    Ok(())
}

fn row(host: &Host) -> [String; 8] {
    let cpus = |millis: u64| format!("{:.1}", millis as f64 / 1000.0);
    [
        host.id.clone(),
        host.region.clone(),
        host.state.clone(),
        host.machines.to_string(),
        format!("{} of {}", cpus(host.reserved.cpu_millis), cpus(host.capacity.cpu_millis)),
        format!("{} of {} MB", host.reserved.memory_mb, host.capacity.memory_mb),
        format!("{} of {} MB", host.reserved.disk_mb, host.capacity.disk_mb),
        host.last_seen_ms.map_or_else(|| "never".to_owned(), ago),
    ]
}

pub(super) fn parse(context: &Context, id: &str) -> Result<HostId> {
    context.about(Asked::Host(id.to_owned()));
    HostId::parse(id).map_err(|error| CliError::usage(error.to_string()))
}
