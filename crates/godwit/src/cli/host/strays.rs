//! `godwit host strays`: what hosts hold and no record of control names.

use clap::Subcommand;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{HostsAdoptStray, HostsEndStray, HostsList, HostsStrays};
use godwit_api::fleet::{AdoptStray, Stray};

use super::parse;
use crate::cli::context::{AppOption, Context};
use crate::cli::output::bytes;
use crate::error::{CliError, Result};

#[derive(Subcommand)]
pub enum Command {
    /// List the strays of a host, or of all hosts
    List {
        /// The id of the host; default: all hosts
        #[arg(value_name = "HOST")]
        host: Option<String>,
    },
    /// Adopt a stray: control takes it back, with the configuration that its host holds
    ///
    /// It keeps running. The volumes that a Machine mounts are adopted with it. The app must exist.
    Adopt {
        /// The id of the host
        #[arg(value_name = "HOST")]
        host: String,
        /// The id of the Machine or volume
        id: String,
        #[command(flatten)]
        app: AppOption,
        /// A new name for a Machine, if its own is taken
        #[arg(short, long)]
        name: Option<String>,
    },
    /// Stop a stray and delete its data
    End {
        /// The id of the host
        #[arg(value_name = "HOST")]
        host: String,
        /// The id of the stray
        id: String,
    },
}

pub async fn run(command: Option<Command>, context: &Context) -> Result<()> {
    match command.unwrap_or(Command::List { host: None }) {
        Command::List { host } => list(host, context).await,
        Command::Adopt { host, id, app, name } => adopt(&host, &id, &app, name, context).await,
        Command::End { host, id } => end(&host, &id, context).await,
    }
}

async fn of(host: &str, context: &Context) -> Result<Vec<Stray>> {
    Ok(context.client.call::<HostsStrays>(&[host], &Empty {}, &Empty {}).await?)
}

async fn list(host: Option<String>, context: &Context) -> Result<()> {
    let output = context.output;
    let hosts = match host {
        Some(host) => vec![parse(context, &host)?.to_string()],
        None => {
            let hosts = context.client.call::<HostsList>(&[], &Empty {}, &Empty {}).await?;
            hosts.into_iter().map(|host| host.id).collect()
        }
    };
    let mut strays = Vec::new();
    for host in &hosts {
        strays.extend(of(host, context).await?);
    }
    if output.json {
        return output.json(&strays);
    }
    if strays.is_empty() {
        output.say("No strays: control knows every Machine and volume that hosts hold.");
        return Ok(());
    }
    let rows = strays.iter().map(|stray| {
        let what = match (&stray.state, stray.allocated_bytes) {
            (_, _) if stray.ending => "ending".to_owned(),
            (Some(state), _) => state.as_str().to_owned(),
            (None, Some(allocated)) => bytes(allocated),
            (None, None) => String::new(),
        };
        vec![
            stray.id.clone(),
            stray.kind.clone(),
            stray.app.clone(),
            what,
            stray.host_id.clone(),
            stray.updated_at.clone(),
        ]
    });
    output.table(&["ID", "KIND", "APP", "STATE", "HOST", "LAST UPDATED"], rows.collect());
    output.say(
        "\n`godwit host strays adopt HOST ID --app APP` puts one on record again; `godwit host strays end HOST ID` ends one \
         and deletes its data.",
    );
    Ok(())
}

async fn adopt(host: &str, id: &str, app: &AppOption, name: Option<String>, context: &Context) -> Result<()> {
    let host = parse(context, host)?;
    let request = AdoptStray { app: context.app(app)?.to_string(), name };
    let adopted = context.client.call::<HostsAdoptStray>(&[host.as_str(), id], &Empty {}, &request).await?;
    let output = context.output;
    if output.json {
        return output.json(&adopted);
    }
    if output.quiet {
        println!("{}", adopted.id);
        return Ok(());
    }
    let what = if adopted.kind == "volume" { "Volume" } else { "Machine" };
    output.say(format!("{what} {} ({}) of app {} is adopted.", adopted.id, adopted.name, adopted.app));
    if !adopted.volumes.is_empty() {
        output.say(format!("So are its volumes: {}.", adopted.volumes.join(", ")));
    }
    Ok(())
}

async fn end(host: &str, id: &str, context: &Context) -> Result<()> {
    let host = parse(context, host)?;
    let strays = of(host.as_str(), context).await?;
    let stray = strays.iter().find(|stray| stray.id == id).ok_or_else(|| {
        CliError::not_found(format!("host {host} holds no stray {id}"))
            .hint(format!("`godwit host strays list {host}` lists its Machines"))
    })?;
    let (kind, app) = (if stray.kind == "volume" { "volume" } else { "Machine" }, &stray.app);
    context.confirm(&format!("End {kind} {id} of app {app} on host {host} and delete its data?"))?;
    let answer = context.client.call::<HostsEndStray>(&[host.as_str(), id], &Empty {}, &Empty {}).await?;
    if context.output.json {
        return context.output.json(&answer);
    }
    context.output.say(format!("{kind} {id} will be stopped; if host {host} is unreachable, when it is back."));
    Ok(())
}
