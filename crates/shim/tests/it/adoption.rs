//! Machines outlive whoever started them; nothing outlives its shim.

use crate::fleet::{Fleet, PATIENCE, lives, until};
use godwit_driver::cgroup::Cgroups;
use godwit_driver::container::monotonic_ns;
use godwit_driver::{Driver, Found, Lost};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const STARTER: &str = "GODWIT_TEST_STARTER";

/// Not a test by itself: the process that `a_machine_outlives_its_starter` kills.
#[tokio::test]
async fn starter() {
    let Ok(place) = std::env::var(STARTER) else { return };
    let (parent, folder) = place.split_once('=').unwrap();
    let fleet = Fleet::at(parent, folder.as_ref());
    let handle = fleet.start("m1", &["guest", "trap"]).await;
    println!("\nstarted {}", handle.pid);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_machine_outlives_its_starter_and_is_found_by_another() {
    let fleet = Fleet::new();
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "adoption::starter", "--nocapture"])
        .env(STARTER, format!("{}={}", fleet.parent, fleet.folder.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(starter.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|l| l.strip_prefix("started ").map(|p| p.parse::<i32>().unwrap()));
    starter.kill().unwrap();
    starter.wait().unwrap();

    let dir = fleet.spec("m1", "i1", &[]).dir;
    let Found::Running(handle) = fleet.driver.find(&dir).await.unwrap() else { panic!("not found") };
    assert_eq!(Some(handle.pid), pid);
    assert!(handle.alive());
    assert_eq!(fleet.exec(&handle, &["guest", "exit", "4"]).await.exit_code, Some(4));
    until("the handler", || crate::fleet::output(&dir).contains("trapping")).await;
    let waiting = fleet.driver.wait(&handle);
    let signalling = fleet.driver.signal(&handle, 15);
    let (exit, signalled) = tokio::join!(tokio::time::timeout(PATIENCE, waiting), signalling);
    signalled.unwrap();
    assert_eq!(exit.unwrap().unwrap().exit_code, Some(7), "the exit reaches somebody who is not the parent");
}

#[tokio::test]
async fn when_the_shim_is_killed_nothing_of_its_machine_lives_on() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "stubborn"]).await;
    let cgroups = Cgroups::detect(&fleet.parent).unwrap();
    let inside = cgroups.container_processes("m1");
    assert_eq!(inside.len(), 2);
    let waiting = fleet.driver.wait(&handle);
    kill(handle.pid);
    let exit = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!((exit.lost, exit.exit_code, exit.signal), (Some(Lost::HolderDied), None, None));
    assert!(inside.iter().all(|pid| !lives(*pid)), "proven dead before it was told");
    assert_eq!(fleet.driver.find(&handle.dir).await.unwrap(), Found::Exited(exit));
    // The next instance starts as if nothing had happened.
    let next = fleet.driver.start(&fleet.spec("m1", "i2", &["guest", "sleep"])).await.unwrap();
    fleet.driver.kill(&next).await.unwrap();
}

/// SIGKILL at every stage of a start: whatever had been made is gone after the next look.
#[tokio::test]
async fn a_shim_killed_while_it_starts_leaves_nothing() {
    let fleet = Fleet::new();
    let cgroups = Cgroups::detect(&fleet.parent).unwrap();
    let mut outcomes = Vec::new();
    for step in 0..20u64 {
        let machine = format!("m{step}");
        let spec = fleet.spec(&machine, "i1", &["guest", "stubborn"]);
        let killing = async {
            let began = monotonic_ns();
            loop {
                tokio::task::yield_now().await;
                // Spread over the time that a start takes here.
                if monotonic_ns() - began >= step * 2_000_000
                    && let Some(shim) = shim_of(&spec.dir)
                {
                    return kill(shim);
                }
            }
        };
        let started = tokio::select! {
            started = fleet.driver.start(&spec) => started,
            () = killing => Err(godwit_driver::Error::NotRunning),
        };
        if let Some(shim) = shim_of(&spec.dir) {
            kill(shim);
        }
        let found = fleet.driver.find(&spec.dir).await.unwrap();
        assert!(!matches!(found, Found::Running(_)), "step {step}: {found:?}");
        assert!(cgroups.processes(&machine, 0).is_empty(), "step {step}: {started:?}");
        outcomes.push(match found {
            Found::Nothing => "nothing",
            _ => "lost",
        });
        fleet.driver.remove(&spec.dir).await.unwrap();
    }
    println!("killed at 20 moments of a start, then found: {outcomes:?}");
}

/// The shim whose working folder was the Machine's, by its arguments and lock: looked up in /proc, since a start that
/// is under way has given no handle yet.
fn shim_of(dir: &std::path::Path) -> Option<i32> {
    let machine = dir.file_name()?.to_str()?;
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let mine = line.split('\0').next()?.ends_with("godwit-shim") && line.split('\0').nth(1) == Some(machine);
        // Its log is in the Machine's folder: tests of other processes may use the same id.
        let log = std::fs::read_link(entry.path().join("fd/2")).ok()?;
        (mine && log.starts_with(dir) && lives(pid)).then_some(pid)
    })
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).ok();
}

#[tokio::test]
async fn a_shim_that_hangs_does_not_save_its_machine() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "stubborn"]).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(handle.pid), nix::sys::signal::SIGSTOP).unwrap();
    let inside = Cgroups::detect(&fleet.parent).unwrap().container_processes("m1");
    let exit = fleet.driver.kill(&handle).await.unwrap();
    assert_eq!(exit.lost, Some(Lost::HolderDied));
    assert!(inside.iter().all(|pid| !lives(*pid)));
}

/// Figures for the record; asserts only that they could be taken.
#[tokio::test]
async fn figures_of_a_start() {
    let fleet = Fleet::new();
    let mut times_us = Vec::new();
    let mut spans = String::new();
    for n in 0..20 {
        let began = monotonic_ns();
        let handle = fleet.driver.start(&fleet.spec("m1", &format!("i{n}"), &["guest", "sleep"])).await.unwrap();
        times_us.push((monotonic_ns() - began) / 1000);
        spans = std::fs::read_to_string(handle.dir.join("run/shim.log")).unwrap();
        if n == 19 {
            println!("shim: {}", memory(handle.pid));
            let cgroups = Cgroups::detect(&fleet.parent).unwrap();
            for pid in cgroups.container_processes("m1") {
                println!("inside, {}: {}", comm(pid), memory(pid));
            }
        }
        fleet.driver.kill(&handle).await.unwrap();
        // A start from rest, not one that waits for the last shim's clean-up.
        until("the shim's end", || !lives(handle.pid)).await;
    }
    times_us.sort_unstable();
    println!(
        "start, driver's call to its answer, us: median {} min {} max {}",
        times_us[10], times_us[0], times_us[19]
    );
    println!("{spans}");
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn memory(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let wanted = ["Rss:", "Pss:", "Private_Dirty:", "Private_Clean:"];
    let lines = text.lines().filter(|l| wanted.iter().any(|w| l.starts_with(w)));
    lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}
