//! `godwit migration`: moves that are under way or have ended. What is said of a move stands in `words`, how one is
//! begun in `start`, how one is followed in `watch`.

pub mod start;
mod watch;
pub mod words;

use std::time::Duration;

use clap::Subcommand;
use godwit_api::MigrationId;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MigrationsCancel, MigrationsList, MigrationsShow};
use godwit_api::migration::{ListMigrations, Migration};

use super::context::Context;
use super::machine::{WaitOption, duration};
use crate::error::{CliError, Result};
use crate::exit::Exit;
use watch::Voice;

#[derive(Subcommand)]
pub enum Command {
    /// List moves in progress
    #[command(visible_alias = "ls")]
    List(ListOptions),
    /// Show a move and its steps
    #[command(visible_alias = "status")]
    Show {
        /// The migration's id
        #[arg(value_name = "MIGRATION", value_parser = parse)]
        id: MigrationId,
    },
    /// Watch a move until it ends; Ctrl-C does not cancel it
    Watch {
        /// The migration's id
        #[arg(value_name = "MIGRATION", value_parser = parse)]
        id: MigrationId,
        /// How long to watch; default: until it ends
        #[arg(long, value_parser = duration, value_name = "DURATION")]
        wait_timeout: Option<Duration>,
    },
    /// Cancel a move, if the Machine has not been handed over yet
    Cancel {
        /// The migration's id
        #[arg(value_name = "MIGRATION", value_parser = parse)]
        id: MigrationId,
        #[command(flatten)]
        wait: WaitOption,
    },
}

#[derive(clap::Args)]
pub struct ListOptions {
    /// Include moves that have ended
    #[arg(long)]
    all: bool,
    /// Only moves in this app
    #[arg(short, long, value_name = "APP")]
    app: Option<String>,
    /// Only moves of this Machine
    #[arg(long, value_name = "ID")]
    machine: Option<String>,
}

pub async fn run(command: Command, context: &Context) -> Result<()> {
    match command {
        Command::List(options) => list(&options, context).await,
        Command::Show { id } => show(context, &look(context, &id).await?),
        Command::Watch { id, wait_timeout } => {
            let first = look(context, &id).await?;
            watch::follow(context, first, Voice::Answer, wait_timeout).await.map(|_| ())
        }
        Command::Cancel { id, wait } => cancel(&id, &wait, context).await,
    }
}

async fn look(context: &Context, id: &MigrationId) -> Result<Migration> {
    let call = context.client.call::<MigrationsShow>(&[id.as_str()], &Empty {}, &Empty {}).await;
    call.map_err(|error| unknown(error.into()))
}

fn unknown(error: CliError) -> CliError {
    if error.exit == Exit::NotFound { error.hint("`godwit migration list --all` lists them") } else { error }
}

async fn list(options: &ListOptions, context: &Context) -> Result<()> {
    let query =
        ListMigrations { all: options.all.then_some(true), app: options.app.clone(), machine: options.machine.clone() };
    let migrations = context.client.call::<MigrationsList>(&[], &query, &Empty {}).await?;
    let output = context.output;
    if output.json {
        return output.json(&migrations);
    }
    if output.quiet {
        migrations.iter().for_each(|migration| println!("{}", migration.id));
        return Ok(());
    }
    if migrations.is_empty() {
        output.say(if options.all { "Nothing has moved." } else { "Nothing is moving; --all shows ended moves too." });
        return Ok(());
    }
    output.table(&words::HEADINGS, migrations.iter().map(words::row).collect());
    match migrations.iter().filter(|migration| words::stalled(migration).is_some()).count() {
        0 => {}
        1 => output.say("\n1 move is stalled: `godwit migration show ID` shows its last step."),
        count => output.say(format!("\n{count} moves are stalled: `godwit migration show ID` shows their last steps.")),
    }
    Ok(())
}

fn show(context: &Context, migration: &Migration) -> Result<()> {
    let output = context.output;
    if output.json {
        return output.json(migration);
    }
    output.facts(&words::facts(migration));
    events(context, migration);
    Ok(())
}

/// Its steps, oldest first as they come.
fn events(context: &Context, migration: &Migration) {
    if migration.events.is_empty() {
        return;
    }
    println!();
    let rows = migration.events.iter().map(|event| {
        let when = godwit_base::clock::rfc3339(event.timestamp);
        vec![when, words::phase(event.phase).to_owned(), event.at.clone(), event.detail.clone()]
    });
    context.output.table(&["WHEN", "PHASE", "AT", "DETAIL"], rows.collect());
}

async fn cancel(id: &MigrationId, wait: &WaitOption, context: &Context) -> Result<()> {
    let output = context.output;
    let call = context.client.call::<MigrationsCancel>(&[id.as_str()], &Empty {}, &Empty {}).await;
    let asked = call.map_err(|error| match unknown(error.into()) {
        error if error.exit == Exit::Conflict => error.hint(format!("`godwit migration show {id}` shows its progress")),
        error => error,
    })?;
    let migration = if wait.detach {
        output.say(format!("Migration {id} is asked to end: its source decides."));
        asked
    } else {
        let _progress = output.progress(format!("waiting until the source of migration {id} has decided"));
        watch::until_called_off(context, asked, wait.wait_timeout).await?
    };
    if output.json {
        return output.json(&migration);
    }
    if migration.phase.is_over() {
        output.say(words::called_off(&migration));
    }
    Ok(())
}

fn parse(text: &str) -> Result<MigrationId, String> {
    MigrationId::parse(text).map_err(|error| error.to_string())
}
