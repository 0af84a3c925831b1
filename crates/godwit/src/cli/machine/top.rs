//! `machine top`: the processes inside a Machine, refreshed on a terminal.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::{MachinesPs, SortQuery};
use godwit_api::machine::ProcessStat;

use super::Target;
use crate::cli::context::Context;
use crate::cli::output::bytes;
use crate::error::Result;

/// Show the processes of a running Machine
///
/// On a terminal it refreshes until Ctrl-C; otherwise, with --once and with --json it shows them once. CPU is the share
/// of one processor over the process's life.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    /// What to sort by
    #[arg(long, value_name = "COLUMN", default_value = "rss", value_parser = ["rss", "cpu", "pid", "command"])]
    sort: String,
    /// Show them once
    #[arg(long)]
    once: bool,
    /// How often to refresh
    #[arg(long, default_value = "2s", value_parser = super::duration, value_name = "DURATION")]
    interval: Duration,
}

pub async fn run(options: &Options, context: &Context) -> Result<()> {
    let (app, machine) = context.machine(&options.target.app, &options.target.machine).await?;
    let order = if matches!(options.sort.as_str(), "rss" | "cpu") { "desc" } else { "asc" };
    let query = SortQuery { sort_by: Some(options.sort.clone()), order: Some(order.to_owned()) };
    let refreshing = !options.once && !context.output.json && std::io::stdout().is_terminal();
    loop {
        let path = [app.as_str(), machine.id.as_str()];
        let asked = Instant::now();
        let processes = context.client.call::<MachinesPs>(&path, &query, &Empty {}).await?;
        if context.output.json {
            return context.output.json(&processes);
        }
        if refreshing {
            // Home, and clear to the end of the screen.
            print!("\x1b[H\x1b[2J");
        }
        println!("Machine {} of app {app}: {} processes, {}", machine.id, processes.len(), memory(&processes));
        context.output.table(&["PID", "CPU", "MEMORY", "TIME", "LISTENS", "COMMAND"], rows(&processes, refreshing));
        std::io::stdout().flush()?;
        if !refreshing {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(options.interval.saturating_sub(asked.elapsed())) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn memory(processes: &[ProcessStat]) -> String {
    format!("{} of memory", bytes(processes.iter().map(|process| process.rss).sum()))
}

fn rows(processes: &[ProcessStat], refreshing: bool) -> Vec<Vec<String>> {
    // What does not fit a screen would scroll its head away.
    const BESIDE: u16 = 3;
    let size = crate::cli::terminal::size();
    let shown = if refreshing { usize::from(size.rows.saturating_sub(BESIDE)) } else { processes.len() };
    processes.iter().take(shown).map(row).collect()
}

fn row(process: &ProcessStat) -> Vec<String> {
    const COMMAND_CHARS: usize = 40;
    let mut ports: BTreeMap<&str, ()> = BTreeMap::new();
    for socket in &process.listen_sockets {
        if let Some((_, port)) = socket.address.rsplit_once(':') {
            ports.insert(port, ());
        }
    }
    let ports: Vec<&str> = ports.into_keys().collect();
    let mut command: String = process.command.chars().filter(|c| !c.is_control()).take(COMMAND_CHARS + 1).collect();
    if command.chars().count() > COMMAND_CHARS {
        command = command.chars().take(COMMAND_CHARS - 1).chain(['…']).collect();
    }
    vec![
        process.pid.to_string(),
        format!("{} %", process.cpu),
        bytes(process.rss),
        age(process.rtime / 100),
        ports.join(","),
        command,
    ]
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
