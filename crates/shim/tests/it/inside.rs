//! What a Machine looks like from inside.

use crate::fleet::Fleet;
use godwit_driver::{Bind, Driver, GuestFile, RootPolicy};

#[tokio::test]
async fn the_process_is_held_as_docker_holds_one() {
    let fleet = Fleet::new();
    let (_, status) = fleet.run(&fleet.spec("m1", "i1", &["guest", "cat", "/proc/self/status"])).await;
    let wanted = ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t00000000a80425fb", "CapPrm:\t00000000a80425fb"];
    let empty = ["CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "CapBnd:\t00000000a80425fb"];
    for line in wanted.iter().chain(&empty).chain(&["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000"]) {
        assert!(status.contains(line), "{line} in {status}");
    }
}

#[tokio::test]
async fn user_folder_name_and_environment_are_the_image_s() {
    let fleet = Fleet::new();
    let mut spec = fleet.spec("m1", "i1", &["guest", "id"]);
    spec.process.user = "app".into();
    spec.process.cwd = "/srv/made/for/it".into();
    let (_, text) = fleet.run(&spec).await;
    assert!(text.contains("uid=100 gid=101 groups=10, cwd=/srv/made/for/it host=m1 pid=2"), "{text}");
    let mut spec = fleet.spec("m2", "i1", &["guest", "env"]);
    spec.process.user = "100".into();
    let (_, text) = fleet.run(&spec).await;
    assert!(text.starts_with("GREETING=hello\nPATH=/usr/local/sbin:"), "{text}");
    assert!(text.contains("HOME=/home/app\n"), "{text}");
    let mut spec = fleet.spec("m3", "i1", &["guest", "stdout"]);
    spec.process.user = "app".into();
    let (exit, text) = fleet.run(&spec).await;
    assert_eq!((exit.exit_code, text.as_str()), (Some(0), "reopened\n"), "/dev/stdout opens for any user");
}

#[tokio::test]
async fn the_platform_s_files_are_in_place_and_links_do_not_lead_them_out() {
    let fleet = Fleet::new();
    let outside = fleet.folder.join("outside");
    std::fs::write(&outside, "untouched").unwrap();
    let etc = fleet.folder.join("layers/program/etc");
    std::os::unix::fs::symlink(&outside, etc.join("resolv.conf")).unwrap();
    std::os::unix::fs::symlink(&fleet.folder, etc.join("app")).unwrap();
    let cat = |path: &str, n: &str| fleet.spec("m1", n, &["guest", "cat", path]);
    let (_, text) = fleet.run(&cat("/etc/resolv.conf", "i1")).await;
    assert_eq!(text, "nameserver ::1\n");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");

    let file = |path: &str| GuestFile { guest_path: path.into(), content: b"secret\n".to_vec(), mode: 0o600 };
    let mut spec = fleet.spec("m2", "i1", &["guest", "cat", "/etc/deep/er/file"]);
    spec.files = vec![file("/etc/deep/er/file")];
    assert_eq!(fleet.run(&spec).await.1, "secret\n");
    spec.instance = "i2".into();
    spec.files = vec![file("/etc/app/file")];
    assert!(fleet.driver.start(&spec).await.is_err(), "a link to a host folder leads nowhere inside");
    assert!(!fleet.folder.join("file").exists());
}

#[tokio::test]
async fn the_root_is_fresh_at_each_start_unless_it_is_kept() {
    let fleet = Fleet::new();
    let write = fleet.spec("m1", "i1", &["guest", "write", "/tmp/mark", "here"]);
    assert_eq!(fleet.run(&write).await.0.exit_code, Some(0));
    let read = fleet.spec("m1", "i2", &["guest", "cat", "/tmp/mark"]);
    assert_eq!(fleet.run(&read).await.0.exit_code, Some(1));

    let kept = |n: &str, argv: &[&str]| {
        let mut spec = fleet.spec("m2", n, argv);
        spec.root = RootPolicy::Keep;
        spec
    };
    fleet.run(&kept("i1", &["guest", "write", "/tmp/mark", "here"])).await;
    assert_eq!(fleet.run(&kept("i2", &["guest", "cat", "/tmp/mark"])).await.1, "here\n");
}

#[tokio::test]
async fn binds_show_host_folders_and_read_only_means_it() {
    let fleet = Fleet::new();
    let data = fleet.folder.join("data");
    std::fs::create_dir(&data).unwrap();
    let run = async |n: &str, read_only: bool, text: &str| {
        let mut spec = fleet.spec("m1", n, &["guest", "write", "/data/file", text]);
        spec.binds = vec![Bind { source: data.clone(), guest_path: "/data".into(), read_only }];
        fleet.run(&spec).await.0.exit_code
    };
    assert_eq!(run("i1", false, "first").await, Some(0));
    assert_eq!(run("i2", true, "second").await, Some(1));
    assert_eq!(std::fs::read_to_string(data.join("file")).unwrap(), "first");
}

#[tokio::test]
async fn a_given_network_namespace_is_joined() {
    let fleet = Fleet::new();
    let name = format!("gwshim{}", std::process::id());
    let ip = |args: &[&str]| std::process::Command::new("ip").args(args).status().unwrap().success();
    assert!(ip(&["netns", "add", &name]), "these tests need ip(8)");
    let path = std::path::Path::new("/run/netns").join(&name);
    let inode = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let mut spec = fleet.spec("m1", "i1", &["guest", "sleep"]);
    spec.netns = Some(path.clone());
    let outcome = fleet.driver.start(&spec).await;
    let wanted = inode(&path);
    let cgroups = godwit_driver::cgroup::Cgroups::detect(&fleet.parent).unwrap();
    let joined: Vec<bool> = cgroups
        .container_processes("m1")
        .into_iter()
        .map(|pid| inode(std::path::Path::new(&format!("/proc/{pid}/ns/net"))) == wanted)
        .collect();
    if let Ok(handle) = &outcome {
        fleet.driver.kill(handle).await.unwrap();
    }
    assert!(ip(&["netns", "del", &name]));
    outcome.unwrap();
    assert_eq!(joined, [true, true]);
}
