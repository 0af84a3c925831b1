//! Start, end, signals, execs: what happens is what is told.

use crate::fleet::{Fleet, PATIENCE, exec_request, lives, output, until};
use godwit_driver::{Driver, Error, Exit, Found, Spec};
use std::collections::BTreeSet;
use std::path::Path;

#[tokio::test]
async fn exit_codes_and_signals_are_reported_truly() {
    let fleet = Fleet::new();
    let cases = [("exit", "0", Some(0), None), ("exit", "3", Some(3), None), ("exit", "255", Some(255), None)];
    let signals = [("raise", "9", None, Some(9)), ("raise", "15", None, Some(15)), ("raise", "11", None, Some(11))];
    for (n, (act, number, code, signal)) in cases.into_iter().chain(signals).enumerate() {
        let (exit, _) = fleet.run(&fleet.spec("m1", &format!("i{n}"), &["guest", act, number])).await;
        assert_eq!((exit.exit_code, exit.signal), (code, signal), "{act} {number}");
        assert!(!exit.oom_killed && exit.lost.is_none());
        let found = fleet.driver.find(&fleet.spec("m1", "-", &[]).dir).await.unwrap();
        assert_eq!(found, Found::Exited(exit));
    }
}

#[tokio::test]
async fn signals_reach_the_program_with_their_default_actions() {
    let fleet = Fleet::new();
    let wait = async |handle| tokio::time::timeout(PATIENCE, fleet.driver.wait(handle)).await.unwrap().unwrap();
    // A real pid 1 without a handler would ignore this one.
    let handle = fleet.start("m1", &["guest", "sleep"]).await;
    fleet.driver.signal(&handle, 15).await.unwrap();
    let exit = wait(&handle).await;
    assert_eq!((exit.exit_code, exit.signal), (None, Some(15)));
    assert!(matches!(fleet.driver.signal(&handle, 15).await.unwrap_err(), Error::NotRunning));

    let handle = fleet.start("m2", &["guest", "trap"]).await;
    until("the handler", || output(&handle.dir).contains("trapping")).await;
    fleet.driver.signal(&handle, 15).await.unwrap();
    assert_eq!(wait(&handle).await.exit_code, Some(7));

    let handle = fleet.start("m3", &["guest", "poke-init"]).await;
    assert_eq!(wait(&handle).await.signal, Some(15), "`kill 1` from inside is meant for the program");

    let handle = fleet.start("m4", &["guest", "stubborn"]).await;
    until("it ignores signals", || output(&handle.dir).contains("stubborn")).await;
    fleet.driver.signal(&handle, 15).await.unwrap();
    let exit = fleet.driver.kill(&handle).await.unwrap();
    assert_eq!(exit.signal, Some(9));
    assert_eq!(fleet.driver.kill(&handle).await.unwrap(), exit, "a second kill tells the same end");
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why_and_leaves_nothing() {
    let fleet = Fleet::new();
    let failure = async |change: &dyn Fn(&mut Spec)| {
        let mut spec = fleet.spec("m1", "i1", &["guest", "sleep"]);
        change(&mut spec);
        let error = fleet.driver.start(&spec).await.unwrap_err();
        assert_eq!(fleet.driver.find(&spec.dir).await.unwrap(), Found::Nothing);
        match error {
            Error::StartFailed { exit_code, reason } => (exit_code, reason),
            other => panic!("{other:?}"),
        }
    };
    let (code, reason) = failure(&|s| s.process.argv[0] = "absent".into()).await;
    assert_eq!((code, reason.as_str()), (Some(127), "program \"absent\" was not found in PATH"));
    let one_folder = |s: &mut Spec| {
        s.process.argv[0] = "absent".into();
        s.process.env = vec![("PATH".into(), "/bin".into())];
    };
    let (_, reason) = failure(&one_folder).await;
    assert_eq!(reason, "program \"absent\" was not found in PATH", "however many folders there are");
    let (code, reason) = failure(&|s| s.process.argv[0] = "/bin/absent".into()).await;
    assert!(code == Some(127) && reason.contains("/bin/absent"), "{reason}");
    let (code, reason) = failure(&|s| s.process.argv[0] = "/etc/passwd".into()).await;
    assert!(code == Some(126) && reason.contains("not executable"), "{reason}");
    let (_, reason) = failure(&|s| s.process.user = "ghost".into()).await;
    assert!(reason.contains("\"ghost\" is unknown"), "{reason}");
    let invalid = fleet.driver.start(&fleet.spec("m1", "i1", &[])).await.unwrap_err();
    assert!(matches!(invalid, Error::Invalid { field: "argv", .. }), "{invalid}");
    // The same instance may be tried again once its cause is gone.
    fleet.start("m1", &["guest", "sleep"]).await;
}

#[tokio::test]
async fn one_instance_is_one_copy_however_often_it_is_started() {
    let fleet = Fleet::new();
    let spec = fleet.spec("m1", "i1", &["guest", "sleep"]);
    let starts = (0..4).map(|_| fleet.driver.start(&spec));
    let mut handles = BTreeSet::new();
    for start in futures(starts).await {
        handles.insert(start.unwrap().pid);
    }
    // Another agent on the same folder.
    let other = Fleet::at(&fleet.parent, &fleet.folder);
    let handle = other.driver.start(&spec).await.unwrap();
    handles.insert(handle.pid);
    assert_eq!(handles.len(), 1);
    let second = fleet.driver.start(&fleet.spec("m1", "i2", &["guest", "sleep"])).await.unwrap_err();
    assert!(matches!(second, Error::OtherInstance { found } if found == "i1"));
    assert_eq!(fleet.driver.processes(&handle).await.unwrap().len(), 1);
    let exit = fleet.driver.kill(&handle).await.unwrap();
    // It has had its run: a start that is repeated late does not give it another.
    let again = fleet.driver.start(&spec).await.unwrap();
    assert_eq!((again.pid, fleet.driver.wait(&again).await.unwrap()), (handle.pid, exit));
}

/// Runs them side by side.
async fn futures<T>(list: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = list.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        for (future, result) in &mut pending {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        match pending.iter().all(|(_, result)| result.is_some()) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, result)| result).collect()
}

#[tokio::test]
async fn commands_run_inside_bounded_in_time_and_output() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "sleep"]).await;
    let reply = fleet.exec(&handle, &["guest", "exit", "5"]).await;
    assert_eq!((reply.exit_code, reply.signal), (Some(5), None));
    assert_eq!(fleet.exec(&handle, &["guest", "raise", "11"]).await.signal, Some(11));

    let env = String::from_utf8(fleet.exec(&handle, &["guest", "env"]).await.stdout).unwrap();
    assert!(env.contains("GREETING=hello\n"), "{env}");
    let mut request = exec_request(&["guest", "stdin"]);
    request.stdin = vec![b'z'; 300_000];
    request.output_limit_bytes = 1000;
    let reply = fleet.driver.exec(&handle, &request).await.unwrap();
    assert!(reply.truncated && reply.stdout == vec![b'z'; 1000]);

    let mut request = exec_request(&["guest", "stubborn"]);
    request.timeout_ms = 50;
    let reply = fleet.driver.exec(&handle, &request).await.unwrap();
    assert!(reply.timed_out && reply.signal == Some(9), "{reply:?}");

    let reply = fleet.exec(&handle, &["absent"]).await;
    assert_eq!(reply.exit_code, Some(127), "{reply:?}");
    let mut request = exec_request(&["guest", "id"]);
    request.user = Some("app".into());
    let reply = fleet.driver.exec(&handle, &request).await.unwrap();
    let id = String::from_utf8_lossy(&reply.stdout).into_owned();
    assert!(id.starts_with("uid=100 gid=101 groups=10,"), "{id}");
    request.user = Some("ghost".into());
    assert!(matches!(fleet.driver.exec(&handle, &request).await.unwrap_err(), Error::Refused { .. }));

    let status = fleet.exec(&handle, &["guest", "cat", "/proc/self/status"]).await;
    let status = String::from_utf8(status.stdout).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t0", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb"] {
        assert!(status.contains(line), "an exec is held like the Machine: {line} in {status}");
    }
    fleet.driver.kill(&handle).await.unwrap();
    let gone = fleet.driver.exec(&handle, &exec_request(&["guest", "id"])).await.unwrap_err();
    assert!(matches!(gone, Error::NotRunning));
}

#[tokio::test]
async fn an_exec_that_runs_when_the_machine_ends_ends_with_it() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "sleep"]).await;
    let request = exec_request(&["guest", "sleep"]);
    let exec = fleet.driver.exec(&handle, &request);
    let kill = async {
        loop {
            if fleet.driver.processes(&handle).await.unwrap().len() == 2 {
                return fleet.driver.kill(&handle).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let (reply, exit) = tokio::join!(exec, kill);
    assert_eq!(exit.signal, Some(9));
    assert_eq!(reply.unwrap().signal, Some(9));
}

#[tokio::test]
async fn processes_are_shown_as_the_machine_sees_them() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "listen", "8080"]).await;
    until("the listening", || output(&handle.dir).contains("listening")).await;
    let processes = fleet.driver.processes(&handle).await.unwrap();
    assert_eq!(processes.len(), 1, "{processes:?}");
    let process = &processes[0];
    assert_eq!((process.pid, process.command.as_str()), (2, "guest listen 8080"));
    assert_eq!(process.directory, "/");
    assert_eq!(process.listen_sockets[0].address, "0.0.0.0:8080");
    let usage = fleet.driver.usage(&handle).await.unwrap();
    assert!(usage.memory_bytes > 0 && usage.pids >= 2, "{usage:?}");
}

#[tokio::test]
async fn orphans_are_reaped_inside() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "orphans", "20"]).await;
    until("the orphans", || output(&handle.dir).contains("orphaned")).await;
    let cgroups = godwit_driver::cgroup::Cgroups::detect(&fleet.parent).unwrap();
    until("the reaping", || cgroups.container_processes("m1").len() == 2).await;
    assert!(lives(handle.pid));
}

#[tokio::test]
async fn rounds_of_start_and_stop_leak_nothing() {
    let fleet = Fleet::new();
    let spec = |n: u32| fleet.spec("m1", &format!("i{n}"), &["guest", "sleep"]);
    let round = async |n: u32| -> Exit {
        let handle = fleet.driver.start(&spec(n)).await.unwrap();
        fleet.exec(&handle, &["guest", "exit", "0"]).await;
        let exit = fleet.driver.kill(&handle).await.unwrap();
        fleet.driver.remove(&spec(n).dir).await.unwrap();
        until("the shim's end", || !lives(handle.pid)).await;
        exit
    };
    round(0).await;
    let before = traces(&fleet);
    for n in 1..=20 {
        assert_eq!(round(n).await.signal, Some(9));
    }
    let after = traces(&fleet);
    println!("after 20 rounds: cgroups, mounts, files of ours: {before:?} -> {after:?}");
    assert_eq!(before, after);
    assert_eq!(fleet.driver.find(&spec(1).dir).await.unwrap(), Found::Nothing);
    assert!(!spec(1).dir.exists());
    let swept = fleet.driver.sweep(&[]).await.unwrap();
    assert!(swept.strangers.is_empty());
    let parent = fleet.parent.split('/').next().unwrap();
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        assert!(!hierarchy.path().join(parent).exists(), "{} remains", hierarchy.path().display());
    }
}

/// Cgroups of this fleet, mounts that name its folder (in any namespace), processes that do, and files in its folder.
fn traces(fleet: &Fleet) -> (usize, usize, usize, usize) {
    let mut cgroups = 0;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        cgroups += count(&hierarchy.path().join(&fleet.parent));
    }
    let folder = fleet.folder.to_str().unwrap();
    let (mut mounts, mut processes) = (0, 0);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let mountinfo = std::fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        mounts += mountinfo.lines().filter(|l| l.contains(folder)).count();
        let links = ["exe", "cwd", "root"].map(|l| std::fs::read_link(process.path().join(l)).unwrap_or_default());
        processes += links.iter().filter(|l| l.starts_with(folder)).count();
    }
    (cgroups, mounts, processes, count(&fleet.folder))
}

fn count(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let folders = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.map(|e| 1 + count(&e.path())).sum()
}

#[tokio::test]
async fn a_running_machine_is_not_removed() {
    let fleet = Fleet::new();
    let handle = fleet.start("m1", &["guest", "sleep"]).await;
    assert!(matches!(fleet.driver.remove(&handle.dir).await.unwrap_err(), Error::Running));
    let swept = fleet.driver.sweep(&[]).await.unwrap();
    assert_eq!(swept.strangers, ["m1"]);
    assert!(lives(handle.pid));
    fleet.driver.kill(&handle).await.unwrap();
    fleet.driver.remove(&handle.dir).await.unwrap();
    fleet.driver.remove(&handle.dir).await.unwrap();
}
