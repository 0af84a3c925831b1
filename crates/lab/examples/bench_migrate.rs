//! `make bench-migrate`: how long clients go without an answer while a Machine moves with its volume, for volumes of
//! 1, 10 and 100 GiB with the same data in each (900 MiB: about what the smallest has room for), copied after the
//! handoff and copied ahead of it, and once more with requests of two seconds and uploads of 100 MB in flight. Moves of
//! all sizes take turns, so that whatever else the machine does meets each alike.
//!
//! `--moves N`, `--sizes 1,10`, `--data-mib N`, `--rate N`, `--quick-only`, `--no-precopy`, `--json` shorten or change it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use godwit_api::migration::{Migration, MigrationPhase};
use godwit_lab::fleet::Fleet;
use godwit_lab::plain;
use godwit_lab::traffic::{Plan, Traffic};
use serde_json::{Value, json};

/// What a host of the fleet may promise: sparse volumes take little of the disk that is really there.
const CAPACITY: &str = "cpus=8,memory_mb=8192,disk_mb=1048576";
const SEED: u64 = 7;
const UPLOAD_BYTES: u64 = 100_000_000;
const UPLOAD_TIME: Duration = Duration::from_secs(3);
/// Into the upload, and before the next move.
const BREATH: Duration = Duration::from_secs(1);
const FILL_TIMEOUT: Duration = Duration::from_secs(300);
/// Goals, from the issue that asked for the numbers.
const GOAL_P50_MS: f64 = 300.0;
const GOAL_SPREAD: f64 = 1.2;

#[derive(Parser)]
struct Options {
    /// Moves of each row
    #[arg(long, default_value_t = 20)]
    moves: usize,
    /// Sizes of volumes in GiB
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    sizes: Vec<u64>,
    /// Data in each volume
    #[arg(long, default_value_t = 900)]
    data_mib: u64,
    /// Quick requests a second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Without the row of long requests
    #[arg(long)]
    quick_only: bool,
    /// Without the rows that copy ahead
    #[arg(long)]
    no_precopy: bool,
    #[arg(long)]
    json: bool,
}

/// What is measured together.
struct Row {
    size_gb: u64,
    app: String,
    machine: String,
    busy: bool,
    precopy: bool,
    moves: Vec<Measured>,
    failed: u64,
    sent: u64,
}

struct Measured {
    gap_ms: f64,
    platform_ms: u64,
    seconds: f64,
    first_read_ms: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let fleet = Fleet::start(2, &["--capacity", CAPACITY])?;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the workspace")?;
    let image = root.join("target/demo/image-release.tar");
    ensure!(image.exists(), "{} is missing: run `make bench-image`", image.display());
    fleet.cli_ok(&["image", "load", image.to_str().context("UTF-8")?, "--name", "demo"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let addr = fleet.dev()?.http_addr.parse()?;

    let mut rows = Vec::new();
    for size_gb in options.sizes.iter().copied() {
        let (app, machine) = runtime.block_on(prepare(&fleet, &options, size_gb))?;
        for precopy in [false, true].into_iter().filter(|precopy| !(*precopy && options.no_precopy)) {
            let (app, machine) = (app.clone(), machine.clone());
            rows.push(Row { size_gb, app, machine, busy: false, precopy, moves: Vec::new(), failed: 0, sent: 0 });
        }
    }
    if let (Some(size_gb), false) = (options.sizes.first().copied(), options.quick_only) {
        let (app, machine) = (rows[0].app.clone(), rows[0].machine.clone());
        rows.push(Row { size_gb, app, machine, busy: true, precopy: false, moves: Vec::new(), failed: 0, sent: 0 });
    }
    for round in 0..options.moves {
        for row in &mut rows {
            one_move(&fleet, &options, row, addr)?;
            if let Some(last) = row.moves.last() {
                eprintln!("round {:>2}  {:<28} {:>7.1} ms  {:.1} s", round + 1, name(row), last.gap_ms, last.seconds);
            }
        }
    }
    report(&rows, options.json);
    let failed: u64 = rows.iter().map(|row| row.failed).sum();
    ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

/// An app with one Machine, its volume filled.
async fn prepare(fleet: &Fleet, options: &Options, size_gb: u64) -> Result<(String, String)> {
    let app = format!("bench{size_gb}");
    fleet.create_app(&app).await?;
    let size = size_gb.to_string();
    fleet.cli_ok(&["volumes", "create", "data", "-a", &app, "--size", &size])?;
    let run = ["machine", "run", "demo", "-a", &app, "--port", "80:8080/tcp:http", "--autostop=off", "--volume"];
    let limits = ["data:/data", "--concurrency=requests", "--soft-limit", "1000"];
    let machine = fleet.cli_ok(&[&run[..], &limits].concat())?.trim().to_owned();
    let addr = fleet.dev()?.http_addr;
    let path = format!("/fill?mib={}&seed={SEED}", options.data_mib);
    let answer = plain::request(&addr, "POST", &format!("{app}.localhost"), &path, &[], b"", FILL_TIMEOUT).await?;
    ensure!(answer.status == 200, "{path}: {}", answer.text());
    Ok((app, machine))
}

fn one_move(fleet: &Fleet, options: &Options, row: &mut Row, addr: std::net::SocketAddr) -> Result<()> {
    let filled = Some((options.data_mib, SEED));
    let host = format!("{}.localhost", row.app);
    let traffic = Traffic::start(Plan { addr, host, rate: options.rate, filled, web_socket: false })?;
    if row.busy {
        traffic.with_slow_requests(true);
        traffic.upload(UPLOAD_BYTES, UPLOAD_TIME);
    }
    std::thread::sleep(BREATH);
    let from = Instant::now();
    let precopy = row.precopy.then_some("--precopy");
    let words = ["machine", "migrate", &row.machine, "-a", &row.app, "--json"];
    let told = fleet.cli_ok(&words.into_iter().chain(precopy).collect::<Vec<_>>())?;
    let migration: Migration = serde_json::from_str(&told)?;
    let gap = traffic.longest_gap(from, Instant::now());
    let (report, _) = traffic.stop();
    row.sent += report.requests_sent;
    row.failed += report.requests_failed;
    for failure in &report.failures {
        eprintln!("  {failure}");
    }
    let progress = &migration.progress;
    if migration.phase != MigrationPhase::Completed || !progress.verified {
        bail!("the move ended as {}: {:?}", migration.phase.as_str(), migration.reason);
    }
    row.moves.push(Measured {
        gap_ms: gap.as_secs_f64() * 1e3,
        platform_ms: progress.downtime_ms.unwrap_or(0),
        seconds: migration.seconds,
        first_read_ms: progress.first_read_ms.unwrap_or(0.0),
    });
    Ok(())
}

fn name(row: &Row) -> String {
    let busy = if row.busy { ", long requests" } else { "" };
    let ahead = if row.precopy { ", copied ahead" } else { "" };
    format!("{} GiB{ahead}{busy}", row.size_gb)
}

/// The value that this share of the sorted values does not exceed.
fn at(row: &Row, share: f64, of: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = row.moves.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(f64::NAN)
}

fn report(rows: &[Row], as_json: bool) {
    let gap = |row: &Row, share| at(row, share, |moved| moved.gap_ms);
    if as_json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                let gaps: Vec<f64> = row.moves.iter().map(|moved| moved.gap_ms).collect();
                json!({ "row": name(row), "moves": row.moves.len(), "gap_ms_p50": gap(row, 0.5), "gap_ms_max": gap(row, 1.0),
                        "requests": row.sent, "failed": row.failed, "gaps_ms": gaps })
            })
            .collect();
        println!("{}", json!(rows));
        return;
    }
    println!(
        "{:<28}{:>8}{:>9}{:>14}{:>10}{:>15}{:>10}",
        "longest client gap", "p50 ms", "max ms", "platform p50", "move s", "first read ms", "failed"
    );
    for row in rows {
        let platform = at(row, 0.5, |moved| moved.platform_ms as f64);
        let (seconds, read) = (at(row, 0.5, |moved| moved.seconds), at(row, 0.5, |moved| moved.first_read_ms));
        println!(
            "{:<28}{:>8.0}{:>9.0}{platform:>14.0}{seconds:>10.1}{read:>15.1}{:>10}",
            name(row),
            gap(row, 0.5),
            gap(row, 1.0),
            format!("{}/{}", row.failed, row.sent)
        );
    }
    for (precopy, how) in [(false, "copied after the handoff"), (true, "copied ahead")] {
        let sizes: Vec<f64> =
            rows.iter().filter(|row| !row.busy && row.precopy == precopy).map(|row| gap(row, 0.5)).collect();
        if sizes.is_empty() {
            continue;
        }
        let (least, most) =
            sizes.iter().fold((f64::INFINITY, 0f64), |(least, most), ms| (least.min(*ms), most.max(*ms)));
        println!(
            "{how}: p50 of the sizes at most {most:.0} ms (goal {GOAL_P50_MS:.0}), largest / smallest {:.2} (goal {GOAL_SPREAD})",
            most / least
        );
    }
}
