//! The soak: load without an end in sight on a fleet whose parts are killed one after another. Every round must pass
//! without a failed request, and the killed part must be back before the next.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::demo::fleet::{self, DemoFleet, Dev};

const APP: &str = "soak";
const HOSTS: usize = 3;
const MACHINES: usize = 4;
const RATE: u64 = 200;
const REQUESTS_A_ROUND: u64 = 2000;
/// How far into a round its victim is killed.
const KILL_AFTER: Duration = Duration::from_secs(3);
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Options {
    /// The demo image
    #[arg(long, value_name = "PATH")]
    image: PathBuf,
    /// Where the fleet lives meanwhile
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Rounds of ten seconds
    #[arg(long, default_value_t = 30)]
    rounds: usize,
}

/// One part of the fleet: what to call it, and its pid now.
type Part = (String, Box<dyn Fn(&Dev) -> Result<i32>>);

/// True if no request failed in any round.
pub fn run(options: &Options) -> Result<bool> {
    let fleet = DemoFleet::start(&options.output.join("fleet"), HOSTS)?;
    fleet.cli(&["image", "load", options.image.to_str().context("the image's path is not UTF-8")?, "--name", APP])?;
    fleet.cli(&["apps", "create", APP])?;
    for _ in 0..MACHINES {
        fleet.cli(&["machine", "run", APP, "-a", APP, "--port", "80:8080/tcp:http", "--autostop=off"])?;
    }
    let parts = parts(&fleet.dev()?);
    let (mut sent, mut failed) = (0, 0);
    for round in 0..options.rounds {
        let (name, pid_of) = &parts[round % parts.len()];
        let load = fleet.load(&format!("{APP}.localhost"), REQUESTS_A_ROUND, RATE, false)?;
        std::thread::sleep(KILL_AFTER);
        let before = pid_of(&fleet.dev()?)?;
        fleet::kill(before)?;
        let report = load.finish()?;
        fleet.wait_for("what was killed comes back", RETURN_TIMEOUT, || {
            let now = pid_of(&fleet.dev()?)?;
            Ok((now != before && fleet::lives(now)).then_some(()))
        })?;
        sent += report.requests_sent;
        failed += report.requests_failed;
        println!(
            "round {:>3}  kill -9 {name:<16} {} requests, {} failed, p99 {} ms, slowest {} ms",
            round + 1,
            report.requests_sent,
            report.requests_failed,
            report.latency_ms_p99,
            report.latency_ms_max
        );
        report.failures.iter().take(3).for_each(|failure| println!("           {failure}"));
    }
    fleet.remove()?;
    println!("{sent} requests, {failed} failed");
    Ok(failed == 0)
}

fn parts(dev: &Dev) -> Vec<Part> {
    let mut parts: Vec<Part> = vec![("control".into(), Box::new(|dev| Ok(dev.control_pid)))];
    for host in &dev.hosts {
        let (agent, door) = (host.id.clone(), host.id.clone());
        parts.push((format!("agent {agent}"), Box::new(move |dev| Ok(dev.host(&agent)?.agent_pid))));
        parts.push((format!("door {door}"), Box::new(move |dev| Ok(dev.host(&door)?.door_pid))));
    }
    parts
}
