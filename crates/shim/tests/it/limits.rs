//! Cpu, memory and processes: what was asked for is what can be had, and what happened is told.

use crate::fleet::{Fleet, output, until};
use godwit_driver::{Driver, Limits};

#[tokio::test]
async fn a_quarter_of_a_cpu_is_a_quarter() {
    let fleet = Fleet::new();
    let mut spec = fleet.spec("m1", "i1", &["guest", "burn", "2000"]);
    spec.limits = Limits { cpu_quota_millis: 250, ..Limits::default() };
    let (exit, text) = fleet.run(&spec).await;
    assert_eq!(exit.exit_code, Some(0));
    let used_ms: u32 = text.trim().parse().unwrap();
    println!("burned {used_ms} ms of cpu in 2000 ms with 250 ms allowed a second");
    // A quarter of 2 s is 500 ms; a period more or less at each end.
    assert!(used_ms <= 700, "{used_ms} ms");
}

#[tokio::test]
async fn a_machine_that_takes_too_much_memory_is_killed_and_said_to_be() {
    let fleet = Fleet::new();
    let mut spec = fleet.spec("m1", "i1", &["guest", "alloc", "256"]);
    spec.limits = Limits { memory_bytes: 32 << 20, ..Limits::default() };
    let (exit, _) = fleet.run(&spec).await;
    assert_eq!((exit.oom_killed, exit.signal), (true, Some(9)), "{exit:?}");
    spec.instance = "i2".into();
    spec.process.argv[2] = "8".into();
    let (exit, _) = fleet.run(&spec).await;
    assert_eq!((exit.oom_killed, exit.exit_code), (false, Some(0)), "the next start begins at zero: {exit:?}");
}

#[tokio::test]
async fn a_fork_bomb_meets_its_bound_and_dies_whole() {
    let fleet = Fleet::new();
    let mut spec = fleet.spec("m1", "i1", &["guest", "fork", "500"]);
    spec.limits = Limits { pids_max: 32, ..Limits::default() };
    let handle = fleet.driver.start(&spec).await.unwrap();
    until("the forking", || output(&spec.dir).contains("forked")).await;
    let usage = fleet.driver.usage(&handle).await.unwrap();
    assert_eq!(usage.pids, 32, "{}", output(&spec.dir));
    assert_eq!(fleet.driver.processes(&handle).await.unwrap().len(), 31);
    fleet.driver.kill(&handle).await.unwrap();
    let cgroups = godwit_driver::cgroup::Cgroups::detect(&fleet.parent).unwrap();
    assert!(cgroups.container_processes("m1").is_empty());
}
