//! What a role sees of fake Machines, and of their faults.

use godwit_driver::fake::{FakeDriver, Knobs};
use godwit_driver::{Driver, Epoch, Error, Found, Lost, Process, Spec};
use std::path::Path;

fn spec(dir: &Path, instance: &str) -> Spec {
    Spec {
        machine: "m1".into(),
        instance: instance.into(),
        epoch: Epoch { generation: 1, n: 1 },
        hostname: "m1".into(),
        dir: dir.join("m1"),
        lowers_base: dir.to_owned(),
        lowers: vec!["layer".into()],
        root: Default::default(),
        process: Process { argv: vec!["app".into()], env: vec![], cwd: String::new(), user: String::new() },
        netns: None,
        limits: Default::default(),
        files: vec![],
        resolv_conf: String::new(),
        hosts: String::new(),
        binds: vec![],
        volumes: vec![],
        log: Default::default(),
    }
}

#[tokio::test]
async fn starting_the_same_instance_twice_begins_one() {
    let folder = tempfile::tempdir().unwrap();
    let driver = FakeDriver::new();
    let first = driver.start(&spec(folder.path(), "a")).await.unwrap();
    assert_eq!(driver.start(&spec(folder.path(), "a")).await.unwrap(), first);
    assert_eq!(driver.starts("m1"), 1);
    let other = driver.start(&spec(folder.path(), "b")).await.unwrap_err();
    assert!(matches!(other, Error::OtherInstance { found } if found == "a"));
    let exit = driver.kill(&first).await.unwrap();
    assert_eq!((exit.signal, exit.exit_code), (Some(9), None));
    driver.start(&spec(folder.path(), "b")).await.unwrap();
    assert!(matches!(driver.wait(&first).await.unwrap_err(), Error::OtherInstance { found } if found == "b"));
}

#[tokio::test]
async fn an_agent_made_anew_finds_its_machines_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("m1");
    let handle = FakeDriver::new().start(&spec(folder.path(), "a")).await.unwrap();
    let later = FakeDriver::new();
    assert_eq!(later.find(&dir).await.unwrap(), Found::Running(handle.clone()));
    assert!(matches!(later.remove(&dir).await.unwrap_err(), Error::Running));
    later.signal(&handle, 15).await.unwrap();
    assert_eq!(later.wait(&handle).await.unwrap().exit_code, Some(0));
    later.remove(&dir).await.unwrap();
    assert_eq!(later.find(&dir).await.unwrap(), Found::Nothing);
    later.remove(&dir).await.unwrap();
}

#[tokio::test]
async fn the_knobs_make_the_faults_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, dir) = (FakeDriver::new(), folder.path().join("m1"));
    driver.set("m1", Knobs { start_fails: Some((127, "no such program".into())), ..Knobs::default() });
    let failed = driver.start(&spec(folder.path(), "a")).await.unwrap_err();
    assert!(matches!(failed, Error::StartFailed { exit_code: Some(127), .. }), "{failed}");
    assert_eq!(driver.find(&dir).await.unwrap(), Found::Nothing);

    driver.set("m1", Knobs { exits_after_ms: Some(20), exit_code: 3, ..Knobs::default() });
    let handle = driver.start(&spec(folder.path(), "b")).await.unwrap();
    assert_eq!(driver.wait(&handle).await.unwrap().exit_code, Some(3));

    driver.set("m1", Knobs { ignores_signals: true, unkillable: true, ..Knobs::default() });
    let handle = driver.start(&spec(folder.path(), "c")).await.unwrap();
    driver.signal(&handle, 15).await.unwrap();
    assert_eq!(driver.find(&dir).await.unwrap(), Found::Running(handle.clone()));
    assert!(matches!(driver.kill(&handle).await.unwrap_err(), Error::NotProvenDead { .. }));
    driver.signal(&handle, 9).await.unwrap();

    driver.set("m1", Knobs { lost_on_adopt: true, ..Knobs::default() });
    let handle = driver.start(&spec(folder.path(), "d")).await.unwrap();
    assert_eq!(driver.find(&dir).await.unwrap(), Found::Running(handle));
    let Found::Exited(exit) = FakeDriver::new().find(&dir).await.unwrap() else { panic!("still running") };
    assert_eq!(exit.lost, Some(Lost::HolderDied));
}
