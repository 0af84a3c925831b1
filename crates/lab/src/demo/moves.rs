//! The story's second half: a Machine with a large volume serves and writes while it moves from host to host, and all
//! that its clients were promised is checked afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_api::migration::Migration;
use godwit_lab::plain;
use godwit_lab::traffic::{Audit, Ledger, Plan, Traffic, TrafficReport};
use serde::Serialize;

use super::apart::{Lookout, Seen};
use super::fleet::DemoFleet;
use super::story::Story;

const APP: &str = "notes";
const HOST: &str = "notes.localhost";
const VOLUME: &str = "data";
const VOLUME_GB: &str = "10";
const FILL_MIB: u64 = 1024;
const FILL_SEED: u64 = 20_260_101;
const MOVES: usize = 3;
const RATE: u32 = 120;
/// The move in which requests of two seconds and an upload are in flight.
const BUSY_MOVE: usize = 1;
const UPLOAD_BYTES: u64 = 64 << 20;
const UPLOAD_TIME: Duration = Duration::from_secs(3);
/// Traffic before the first move, between two, and after the last.
const BREATH: Duration = Duration::from_secs(2);
/// Filling the volume, and reading all of it again.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);
const ASK_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of the map may be filled when the Machine runs at its new host.
const MAP_MAX: f64 = 0.05;
/// How far bytes on the wire may be from the data.
const WIRE_TOLERANCE: f64 = 0.05;

/// One move, measured.
#[derive(Debug, Serialize)]
pub struct Moved {
    source: String,
    target: String,
    /// The longest time in which no client's quick request was answered.
    downtime_ms: f64,
    /// From the closed door to the running process, as the platform tells it.
    platform_downtime_ms: Option<u64>,
    /// Whether slow requests and an upload were in flight, for which the door waits.
    slow_requests_in_flight: bool,
    /// Share of the volume's blocks that were there when the Machine ran.
    map_full_at_running: Option<f64>,
    first_read_ms: Option<f64>,
    demand_fetches: u64,
    data_bytes: u64,
    wire_bytes: u64,
    hydrated_bytes: u64,
    mismatches: u64,
    seconds: f64,
    verified: bool,
    /// Files of the source that a process of the target held: none.
    source_files_held: usize,
}

/// All of them, and what is left to say at the end.
#[derive(Debug, Serialize)]
pub struct Moves {
    pub migrations: Vec<Moved>,
    pub traffic: TrafficReport,
    pub writes: Audit,
    /// Acknowledged writes that are missing.
    pub data_lost: u64,
    pub checksum_same: bool,
    /// Copies of the app at one time, counted by itself, by clients, and in the machine's process list.
    pub most_copies: usize,
    pub copies_by_app: u64,
    pub copies_by_clients: usize,
    pub copies_by_processes: usize,
    /// What was not as it should be, in words.
    pub faults: Vec<String>,
}

pub fn tell(fleet: &DemoFleet, story: &mut Story) -> Result<Moves> {
    let addr = fleet.dev()?.http_addr.parse().context("the edge's address")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = |method, path: &str, timeout| runtime.block_on(ask(addr, method, path, timeout));

    story.chapter("A Machine with a volume of 10 GiB, on one host's own disk");
    let machine = create(fleet, story)?;
    let filled = ask("POST", &format!("/fill?mib={FILL_MIB}&seed={FILL_SEED}"), FILL_TIMEOUT)?;
    let checksum = text(&filled, "blake3")?;
    story.line(format!("the app wrote {FILL_MIB} MiB of random data into it; BLAKE3 {}", &checksum[..16]));

    let filled = Some((FILL_MIB, FILL_SEED));
    let traffic = Traffic::start(Plan { addr, host: HOST.into(), rate: RATE, filled, web_socket: true })?;
    std::thread::sleep(BREATH);
    let (mut migrations, mut faults, mut copies_by_processes) = (Vec::new(), Vec::new(), 0);
    for number in 0..MOVES {
        let (moved, seen) = one_move(fleet, story, &machine, &traffic, number)?;
        copies_by_processes = copies_by_processes.max(seen.most_copies);
        judge_move(&moved, &seen, &mut faults);
        migrations.push(moved);
        std::thread::sleep(BREATH);
    }

    story.chapter("What clients were promised");
    let (traffic, ledger) = traffic.stop();
    story.traffic(&traffic);
    let mut moves = check(fleet, story, (traffic, &ledger), &checksum, &runtime)?;
    moves.most_copies = moves.most_copies.max(copies_by_processes);
    moves.copies_by_processes = copies_by_processes;
    moves.migrations = migrations;
    faults.append(&mut moves.faults);
    judge(&moves, &mut faults);
    moves.faults = faults;
    for fault in &moves.faults {
        story.fault(fault);
    }
    story.ran(&fleet.cli(&["apps", "destroy", APP, "--with-volumes", "--yes"])?);
    Ok(moves)
}

fn create(fleet: &DemoFleet, story: &Story) -> Result<String> {
    story.ran(&fleet.cli(&["apps", "create", APP])?);
    story.ran(&fleet.cli(&["volumes", "create", VOLUME, "-a", APP, "--size", VOLUME_GB])?);
    let made = fleet.cli(&[
        "machine",
        "run",
        super::APP,
        "-a",
        APP,
        "--port",
        "80:8080/tcp:http",
        "--autostop=off",
        "--concurrency=requests",
        "--soft-limit",
        "1000",
        "--volume",
        "data:/data",
    ])?;
    story.ran(&made);
    Ok(made.stdout.trim().to_owned())
}

/// One move under traffic, from the command to the released source.
fn one_move(
    fleet: &DemoFleet,
    story: &mut Story,
    machine: &str,
    traffic: &Traffic,
    number: usize,
) -> Result<(Moved, Seen)> {
    let busy = number == BUSY_MOVE;
    let dev = fleet.dev()?;
    let shown = fleet.json(&["machine", "status", machine, "-a", APP])?;
    let at = text(&shown, "host_id")?;
    let here = dev.hosts.iter().position(|host| host.id == at).with_context(|| format!("no host {at}"))?;
    let (source, target) = (&dev.hosts[here], &dev.hosts[(here + 1) % dev.hosts.len()]);
    let with = if busy { ", with requests of 2 s and an upload in flight" } else { "" };
    story.chapter(&format!("It moves from {} to {}{with}", source.id, target.id));

    if busy {
        traffic.with_slow_requests(true);
        traffic.upload(UPLOAD_BYTES, UPLOAD_TIME);
        std::thread::sleep(UPLOAD_TIME / 3);
    }
    let lookout = Lookout::start(source, target, machine)?;
    let from = Instant::now();
    let told = fleet.json_told(story, &["machine", "migrate", machine, "-a", APP, "--to", &target.id])?;
    let migration: Migration = serde_json::from_value(told)?;
    // The answers that the last held requests get belong to the move.
    let gap = traffic.longest_gap(from, Instant::now());
    traffic.with_slow_requests(false);
    let seen = lookout.finish()?;

    let progress = &migration.progress;
    let moved = Moved {
        source: migration.source.to_string(),
        target: migration.target.to_string(),
        downtime_ms: (gap.as_secs_f64() * 10_000.0).round() / 10.0,
        platform_downtime_ms: progress.downtime_ms,
        slow_requests_in_flight: busy,
        map_full_at_running: progress.map_permille_at_running.map(|permille| permille as f64 / 1000.0),
        first_read_ms: progress.first_read_ms,
        demand_fetches: progress.demand_fetches,
        data_bytes: progress.data_bytes,
        wire_bytes: progress.wire_bytes,
        hydrated_bytes: progress.hydrated_bytes,
        mismatches: progress.mismatches,
        seconds: migration.seconds,
        verified: progress.verified,
        source_files_held: seen.breaches.len(),
    };
    tell_move(story, &moved, &seen);
    Ok((moved, seen))
}

fn tell_move(story: &Story, moved: &Moved, seen: &Seen) {
    let platform = moved.platform_downtime_ms.map_or("nothing".into(), |ms| format!("{ms} ms"));
    story.line(format!(
        "no client had an answer for {:.0} ms at most (the platform says {platform}); moved in {:.1} s",
        moved.downtime_ms, moved.seconds
    ));
    let percent = moved.map_full_at_running.map_or("?".into(), |full| format!("{:.1}", full * 100.0));
    story.line(format!(
        "it ran with {percent} % of its data there; {} blocks were fetched because it asked for them",
        moved.demand_fetches
    ));
    let mib = |bytes: u64| bytes >> 20;
    let verified = if moved.verified { "each block checked" } else { "NOT VERIFIED" };
    story.line(format!("{} MiB of data, {} MiB on the wire, {verified}", mib(moved.data_bytes), mib(moved.wire_bytes)));
    story.line(format!(
        "{} processes of {}, looked at {} times: {} files of {} held",
        seen.processes,
        moved.target,
        seen.looks,
        seen.breaches.len(),
        moved.source
    ));
}

fn judge_move(moved: &Moved, seen: &Seen, faults: &mut Vec<String>) {
    let mut must = |holds: bool, why: String| {
        if !holds {
            faults.push(format!("{} → {}: {why}", moved.source, moved.target));
        }
    };
    must(moved.verified, "its volume is not verified".into());
    let full = moved.map_full_at_running;
    must(full.is_some_and(|full| full <= MAP_MAX), format!("its map was full to {full:?} when it ran"));
    must(moved.demand_fetches > 0, "nothing was fetched on demand".into());
    let off = (moved.wire_bytes as f64 / moved.data_bytes.max(1) as f64 - 1.0).abs();
    must(off <= WIRE_TOLERANCE, format!("{} bytes on the wire for {} of data", moved.wire_bytes, moved.data_bytes));
    must(seen.looks > 0 && seen.processes > 0, "no process of the target was looked at".into());
    for breach in &seen.breaches {
        must(false, breach.clone());
    }
}

/// Asks the app, after all of it, what it still has.
fn check(
    fleet: &DemoFleet,
    story: &Story,
    (traffic, ledger): (TrafficReport, &Ledger),
    checksum: &str,
    runtime: &tokio::runtime::Runtime,
) -> Result<Moves> {
    let addr = fleet.dev()?.http_addr.parse().context("the edge's address")?;
    let ask = |path: &str, timeout| runtime.block_on(ask(addr, "GET", path, timeout));
    let mut faults = Vec::new();
    let writes = runtime.block_on(ledger.audit(addr, HOST))?;
    story.line(format!(
        "{} writes were acknowledged: {} found, {} lost, {} that nobody asked for",
        writes.acknowledged, writes.found, writes.lost, writes.extra
    ));
    let log = ask("/log/verify", ASK_TIMEOUT)?;
    if log["ok"] != true {
        faults.push(format!("the log is damaged: {log}"));
    }
    let now = text(&ask("/checksum", FILL_TIMEOUT)?, "blake3")?;
    story.line(format!("{FILL_MIB} MiB read again: BLAKE3 {}", &now[..16]));
    let lives = ask("/lives", ASK_TIMEOUT)?;
    let copies_by_app = lives["most_at_once"].as_u64().unwrap_or(0);
    story.line(format!(
        "the app was started {} times; most copies at one time {copies_by_app}, counted by the app itself",
        lives["lives"]
    ));
    Ok(Moves {
        migrations: Vec::new(),
        data_lost: writes.lost,
        checksum_same: now == checksum,
        most_copies: traffic.most_copies.max(copies_by_app as usize),
        copies_by_app,
        copies_by_clients: traffic.most_copies,
        copies_by_processes: 0,
        traffic,
        writes,
        faults,
    })
}

fn judge(moves: &Moves, faults: &mut Vec<String>) {
    let (traffic, writes) = (&moves.traffic, &moves.writes);
    let mut must = |holds: bool, why: String| {
        if !holds {
            faults.push(why);
        }
    };
    let sent = |kind: &str| traffic.kinds.get(kind).copied().unwrap_or(0);
    must(traffic.requests_failed == 0, format!("{} requests failed", traffic.requests_failed));
    must(moves.data_lost == 0, format!("{} acknowledged writes are lost", moves.data_lost));
    must(writes.acknowledged > 0, "no write was acknowledged".into());
    // What a failed request wrote nobody acknowledged; more than that was written twice.
    must(writes.extra <= traffic.requests_failed, format!("{} records that nobody asked for", writes.extra));
    must(moves.checksum_same, "the checksum of the filled file differs".into());
    for (who, copies) in [
        ("the app", moves.copies_by_app as usize),
        ("its clients", moves.copies_by_clients),
        ("the process list", moves.copies_by_processes),
    ] {
        must(copies == 1, format!("{who} counted {copies} copies at one time"));
    }
    must(sent("slow") > 0 && sent("upload") == 1, "the slow requests or the upload were not sent".into());
    must(traffic.web_sockets_closed >= MOVES as u64, "a WebSocket outlived a move, or none was open".into());
}

async fn ask(addr: std::net::SocketAddr, method: &str, path: &str, timeout: Duration) -> Result<serde_json::Value> {
    let answer = plain::request(&addr.to_string(), method, HOST, path, &[], b"", timeout).await?;
    ensure!(answer.status == 200, "{method} {path}: {} {}", answer.status, answer.text());
    Ok(answer.json())
}

fn text(json: &serde_json::Value, name: &str) -> Result<String> {
    Ok(json[name].as_str().with_context(|| format!("no {name} in {json}"))?.to_owned())
}
