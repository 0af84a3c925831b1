//! What the store does on a disk: `bench_store FOLDER [--seconds N] [--watchers N] [--writers N] [--json]`.
//!
//! Durable writes a second with watchers, directly and through a socket, beside plain SQLite with the same commit size
//! in the same minute; how late watchers hear; and how many syncs the disk was asked for (counted by `strace` in a run
//! of its own, because counting slows). Everything runs in this process, the remote's server too: its figures hold for
//! both ends on these cores. It must be built with `--release`.

mod report;
mod runs;

use std::path::{Path, PathBuf};
use std::process::Command;

use report::{Report, Syncs};
use runs::{Load, Way};

const VALUE_BYTES: usize = 512;

#[derive(Clone)]
pub struct Settings {
    pub folder: PathBuf,
    pub seconds: u64,
    pub watchers: usize,
    pub writers: usize,
    /// Puts a second while lateness is measured.
    pub pace: u64,
    pub json: bool,
    /// Only this one run, for `strace` or `perf` to look at: `direct`, `everything`, `remote`, `late` or `remote-late`.
    pub only: Option<String>,
}

fn main() {
    let settings = match parse(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(wrong) => {
            eprintln!(
                "{wrong}\nusage: bench_store FOLDER [--seconds N] [--watchers N] [--writers N] [--pace N] [--json]"
            );
            std::process::exit(2);
        }
    };
    if cfg!(debug_assertions) {
        eprintln!("warning: not built with --release; these figures mean nothing");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    if let Some(only) = &settings.only {
        runtime.block_on(run_only(&settings, only));
        return;
    }
    let report = runtime.block_on(measure(&settings));
    if settings.json {
        println!("{}", report.json());
    } else {
        report.print();
    }
}

/// Prints `WRITES COMMITS`, which `count_syncs` reads.
async fn run_only(settings: &Settings, only: &str) {
    let (way, load) = match only {
        "everything" => (Way::Direct, Load::Everything),
        "remote" => (Way::Remote, Load::OwnPrefix),
        "late" | "remote-late" => {
            let way = if only == "late" { Way::Direct } else { Way::Remote };
            let run = runs::lateness(settings, way).await;
            return println!("{} start {} ack {}", run.name, run.put_start_to_each, run.put_ack_to_each);
        }
        _ => (Way::Direct, Load::OwnPrefix),
    };
    let run = runs::throughput(settings, way, load).await;
    println!("{} {}", run.writes, run.commits);
}

async fn measure(settings: &Settings) -> Report {
    let mut report = Report::new(settings);
    let say = |what: &str| eprintln!("bench-store: {what}");
    say("plain SQLite");
    report.plain_writes_per_s.push(runs::plain_sqlite(settings));
    for (way, load) in [(Way::Direct, Load::OwnPrefix), (Way::Direct, Load::Everything), (Way::Remote, Load::OwnPrefix)]
    {
        say(&format!("{} {}", way.name(), load.name()));
        let run = runs::throughput(settings, way, load).await;
        report.throughput.push(run);
        report.plain_writes_per_s.push(runs::plain_sqlite(settings));
    }
    for way in [Way::Direct, Way::Remote] {
        say(&format!("{} lateness", way.name()));
        report.lateness.push(runs::lateness(settings, way).await);
    }
    say("counting syncs");
    report.syncs = count_syncs(settings);
    report
}

/// Runs this program again under `strace`; none where there is no `strace`.
fn count_syncs(settings: &Settings) -> Option<Syncs> {
    let summary = settings.folder.join("bench-store.strace");
    let output = Command::new("strace")
        .args(["-f", "--seccomp-bpf", "-c", "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&summary)
        .arg(std::env::current_exe().ok()?)
        .arg(&settings.folder)
        .args(["--seconds", &settings.seconds.to_string()])
        .args(["--watchers", &settings.watchers.to_string()])
        .args(["--writers", &settings.writers.to_string()])
        .args(["--only", "direct"])
        .output()
        .ok()?;
    let table = std::fs::read_to_string(&summary).ok()?;
    let _ = std::fs::remove_file(&summary);
    let text = String::from_utf8(output.stdout).ok()?;
    let (writes, commits) = text.trim().split_once(' ')?;
    Some(Syncs {
        writes: writes.parse().ok()?,
        commits: commits.parse().ok()?,
        fsync: calls(&table, "fsync"),
        fdatasync: calls(&table, "fdatasync"),
    })
}

/// The `calls` column (the fourth) of a syscall in `strace -c`'s table.
fn calls(table: &str, name: &str) -> u64 {
    let line = table.lines().find(|line| line.split_whitespace().last() == Some(name));
    line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(0)
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Settings, String> {
    let mut settings = Settings {
        folder: PathBuf::new(),
        seconds: 5,
        watchers: 100,
        writers: 256,
        pace: 200,
        json: false,
        only: None,
    };
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64, String> {
            let value = args.next().ok_or(format!("{arg} needs a number"))?;
            let number = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
            if number == 0 { Err(format!("{arg} must not be 0")) } else { Ok(number) }
        };
        match arg.as_str() {
            "--seconds" => settings.seconds = number()?,
            "--watchers" => settings.watchers = number()? as usize,
            "--writers" => settings.writers = number()? as usize,
            "--pace" => settings.pace = number()?,
            "--json" => settings.json = true,
            "--only" => settings.only = Some(args.next().ok_or("--only needs a run")?),
            folder if !folder.starts_with('-') => settings.folder = Path::new(folder).to_owned(),
            other => return Err(format!("unknown option {other}")),
        }
    }
    if !settings.folder.is_dir() {
        return Err("FOLDER must be an existing folder, on the disk to be measured".to_owned());
    }
    Ok(settings)
}
