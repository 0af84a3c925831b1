//! The demo: the main job as a short story, every number in it measured. It uses the command line as a person would,
//! sends load from a process of its own, kills by the pids that the dev fleet tells, and moves a Machine with its volume.

mod apart;
pub mod fleet;
mod moves;
mod story;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use godwit_lab::traffic::TrafficReport;
use serde::Serialize;
use serde_json::Value;

use crate::load::Report as Load;
use fleet::DemoFleet;
use story::Story;

const APP: &str = "demo";
const HOSTS: usize = 3;
/// Each phase sends this many requests at this rate.
const REQUESTS: u64 = 2500;
const RATE: u64 = 250;
/// How far into a phase the kill comes: enough before it and after it.
const KILL_AFTER: Duration = Duration::from_millis(3000);
/// What was killed must be there again by then.
const RETURN_TIMEOUT: Duration = Duration::from_secs(30);
pub const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Lines of the log that the story shows.
const LOG_LINES: usize = 6;

#[derive(clap::Args)]
pub struct Options {
    /// The image: an OCI layout folder, an OCI archive or a `docker save` archive
    #[arg(long, value_name = "PATH")]
    image: PathBuf,
    /// It is not the demo image: an answer counts by its status alone
    #[arg(long)]
    foreign: bool,
    /// The port that the image serves HTTP on
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where the report goes, and where the fleet lives meanwhile
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// `report.json`, all measured.
#[derive(Debug, Serialize)]
struct Report {
    image: String,
    cold_start_ms: u64,
    requests_sent: u64,
    requests_failed: u64,
    starts: u64,
    agent_killed_requests_failed: u64,
    control_killed_requests_failed: u64,
    /// Of the demo image alone: another one keeps no log to check.
    #[serde(flatten)]
    moves: Option<moves::Moves>,
}

/// True if the story went as it should and no request failed.
pub fn run(options: &Options) -> Result<bool> {
    std::fs::create_dir_all(&options.output)?;
    let report_file = options.output.join("report.json");
    let _ = std::fs::remove_file(&report_file);
    let mut story = Story::begin();
    let report = tell(options, &mut story)?;
    std::fs::write(&report_file, serde_json::to_string_pretty(&report)? + "\n")?;
    let faultless = report.moves.as_ref().is_none_or(|moves| moves.faults.is_empty());
    let good = report.requests_failed == 0 && faultless;
    let lost = report.moves.as_ref().map(|moves| moves.data_lost);
    story.end(good, report.requests_sent, report.requests_failed, lost, &report_file);
    Ok(good)
}

fn tell(options: &Options, story: &mut Story) -> Result<Report> {
    ensure!(options.image.exists(), "{} does not exist: `make demo-image` makes it", options.image.display());

    story.chapter("A fleet of three hosts, each in namespaces of its own");
    let fleet = DemoFleet::start(&options.output.join("fleet"), HOSTS)?;
    let dev = fleet.dev()?;
    for host in &dev.hosts {
        story.line(format!("host {}  agent {}  door {}", host.id, host.agent_pid, host.door_pid));
    }

    story.chapter("An image, an app, two Machines that are stopped");
    story.ran(&fleet.cli(&["image", "load", path(&options.image)?, "--name", APP])?);
    story.ran(&fleet.cli(&["apps", "create", APP])?);
    let port = format!("80:{}/tcp:http", options.port);
    let mut machines = Vec::new();
    for _ in 0..2 {
        let made = fleet.cli(&[
            "machine",
            "create",
            APP,
            "-a",
            APP,
            "--port",
            &port,
            "--autostart",
            "--autostop=off",
            "--concurrency=requests",
            "--soft-limit",
            "1000",
        ])?;
        machines.push(made.stdout.trim().to_owned());
        story.ran(&made);
    }
    for machine in &machines {
        fleet.wait_until_placed(APP, machine)?;
    }

    story.chapter("A request comes: it waits for a Machine to start, and so do all that follow");
    let wake = phase(options, &fleet, story, None)?;
    let cold_start_ms = wake.first_answer_ms;
    story.line(format!("the first answer came after {cold_start_ms} ms, the start of a Machine included"));

    story.chapter("What an operator sees");
    story.ran(&fleet.cli(&["status", "-a", APP])?);
    let mut logs = fleet.cli(&["logs", "-a", APP, "--tail", &LOG_LINES.to_string()])?;
    logs.stdout = logs.stdout.lines().take(LOG_LINES).map(|line| format!("{line}\n")).collect();
    story.ran(&logs);

    story.chapter("kill -9: the agent of the host that answers");
    let host = answering_host(&fleet, &wake, &machines)?;
    let before = fleet.dev()?.host(&host)?.agent_pid;
    story.line(format!("it is {host}, agent {before}"));
    let agent_killed = phase(options, &fleet, story, Some(before))?;
    let after = fleet.wait_for("the agent comes back", RETURN_TIMEOUT, || {
        let pid = fleet.dev()?.host(&host)?.agent_pid;
        Ok((pid != before && fleet::lives(pid)).then_some(pid))
    })?;
    story.line(format!("its Machine never noticed; the new agent {after} found it again"));

    story.chapter("kill -9: control");
    let before = fleet.dev()?.control_pid;
    let control_killed = phase(options, &fleet, story, Some(before))?;
    fleet.wait_for("control comes back", RETURN_TIMEOUT, || {
        let pid = fleet.dev()?.control_pid;
        Ok((pid != before && fleet.cli(&["apps", "list", "--json"]).is_ok()).then_some(()))
    })?;
    story.line("requests never ask control; it came back and knows what it knew");
    let starts = count_starts(&fleet)?;

    story.ran(&fleet.cli(&["apps", "destroy", APP, "--yes"])?);

    let moves = if options.foreign { None } else { Some(moves::tell(&fleet, story)?) };

    story.chapter("Clean-up");
    fleet.remove()?;
    story.line("the fleet is gone: processes, namespaces, links, cgroups, files");

    let moved = |count: fn(&TrafficReport) -> u64| moves.as_ref().map_or(0, |moves| count(&moves.traffic));
    let phases = [&wake, &agent_killed, &control_killed];
    Ok(Report {
        image: options.image.display().to_string(),
        cold_start_ms,
        requests_sent: phases.iter().map(|load| load.requests_sent).sum::<u64>() + moved(|moves| moves.requests_sent),
        requests_failed: phases.iter().map(|load| load.requests_failed).sum::<u64>()
            + moved(|moves| moves.requests_failed),
        starts,
        agent_killed_requests_failed: agent_killed.requests_failed,
        control_killed_requests_failed: control_killed.requests_failed,
        moves,
    })
}

/// Load from a process of its own; in the midst of it, a kill.
fn phase(options: &Options, fleet: &DemoFleet, story: &mut Story, victim: Option<i32>) -> Result<Load> {
    let load = fleet.load(&format!("{APP}.localhost"), REQUESTS, RATE, options.foreign)?;
    if let Some(pid) = victim {
        std::thread::sleep(KILL_AFTER);
        fleet::kill(pid)?;
        story.line(format!("{} s into the load: kill -9 {pid}", KILL_AFTER.as_secs()));
    }
    let report = load.finish()?;
    story.load(&report);
    Ok(report)
}

/// By the answers themselves; for an image that does not say, by the Machine that is started.
fn answering_host(fleet: &DemoFleet, wake: &Load, machines: &[String]) -> Result<String> {
    if let Some((host, _)) = wake.hosts.iter().max_by_key(|(_, answers)| **answers) {
        return Ok(host.clone());
    }
    for machine in machines {
        let shown = fleet.json(&["machine", "status", machine, "-a", APP])?;
        if shown["state"] == "started" {
            return Ok(shown["host_id"].as_str().context("a Machine without a host")?.to_owned());
        }
    }
    bail!("no Machine is started")
}

/// Starts of all Machines, as their hosts wrote them down.
fn count_starts(fleet: &DemoFleet) -> Result<u64> {
    let machines = fleet.json(&["machine", "list", "-a", APP])?;
    let events = machines
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|machine| machine["events"].as_array().into_iter().flatten());
    let is_start = |event: &&Value| event["type"] == "start" && event["status"] == "started";
    Ok(events.filter(is_start).count() as u64)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
