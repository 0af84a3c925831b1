//! What a Machine looks like from inside.

use crate::fleet::Fleet;
use godwit_driver::{Bind, Driver, GuestFile, RootPolicy};

#[tokio::test]
async fn the_process_is_held_as_docker_holds_one() {
    let fleet = Fleet::new();
    let (_, status) = fleet.run(&fleet.spec("m1", "i1", &["guest", "cat", "/proc/self/status"])).await;
    let wanted = ["Seccomp:\t2", "NoNewPrivs:\t0", "CapEff:\t00000000a80425fb", "CapPrm:\t00000000a80425fb"];
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
    let there = fleet.folder.join("file");
    spec.process.argv = ["guest", "cat", there.to_str().unwrap()].map(str::to_owned).to_vec();
    assert!(
        fleet.run(&spec).await.1.ends_with("secret\nsecret\n"),
        "a link to a host folder is one to a folder of that name inside"
    );
    assert!(!there.exists());
}

#[tokio::test]
async fn odd_roots_start_or_are_told_to_be_the_image_s_fault() {
    let fleet = Fleet::new();
    let layers = fleet.folder.join("layers");
    // A root that holds a program and a link for /etc that leads nowhere yet.
    for (name, target) in [("below", "usr/etc"), ("above", "../../../usr/./etc"), ("absolute", "/usr/etc")] {
        std::fs::create_dir_all(layers.join(name).join("bin")).unwrap();
        std::fs::copy(layers.join("program/bin/guest"), layers.join(name).join("bin/guest")).unwrap();
        std::os::unix::fs::symlink(target, layers.join(name).join("etc")).unwrap();
        let mut spec = fleet.spec(name, "i1", &["guest", "cat", "/usr/etc/hostname"]);
        spec.lowers = vec![name.into()];
        assert_eq!(fleet.run(&spec).await.1, format!("{name}\n"));
    }
    let check = async |machine: &str, make: &dyn Fn(&std::path::Path), wanted: &str| {
        let layer = layers.join(machine);
        std::fs::create_dir_all(&layer).unwrap();
        make(&layer);
        let mut spec = fleet.spec(machine, "i1", &["guest", "sleep"]);
        spec.lowers.insert(0, machine.into());
        match fleet.driver.start(&spec).await {
            Err(godwit_driver::Error::StartFailed { reason, .. }) => assert!(reason.contains(wanted), "{reason}"),
            other => panic!("{machine}: {other:?}"),
        }
    };
    let folder = |layer: &std::path::Path| std::fs::create_dir_all(layer.join("etc/resolv.conf/x")).unwrap();
    check("folder", &folder, "cannot write /etc/resolv.conf into the Machine: the image has a folder there").await;
    let file = |layer: &std::path::Path| std::fs::write(layer.join("etc"), "").unwrap();
    check("file", &file, "cannot write /etc/hostname into the Machine: the image has a file").await;
    let circle = |layer: &std::path::Path| std::os::unix::fs::symlink("etc", layer.join("etc")).unwrap();
    check("circle", &circle, "cannot write /etc/hostname into the Machine").await;
    // Nothing of the kernel's is mounted through a link, whether it leads somewhere or not, nor over a file.
    for (name, target) in [("proc", "tmp"), ("sys", "/etc"), ("dev", "../dev")] {
        let link = |layer: &std::path::Path| std::os::unix::fs::symlink(target, layer.join(name)).unwrap();
        check(&format!("{name}-link"), &link, &format!("/{name} of the image is not a folder")).await;
        let file = |layer: &std::path::Path| std::fs::write(layer.join(name), "").unwrap();
        check(&format!("{name}-file"), &file, &format!("/{name} of the image is not a folder")).await;
    }
}

fn set_xattr(path: &std::path::Path, name: &std::ffi::CStr, value: &[u8]) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: both strings end with a NUL, and the kernel reads `value.len()` bytes of `value`.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test]
async fn set_uid_programs_and_file_capabilities_do_what_an_image_means_by_them() {
    use std::os::unix::fs::PermissionsExt;
    let fleet = Fleet::new();
    let bin = fleet.folder.join("layers/program/bin");
    for name in ["sudo", "ping"] {
        std::fs::copy(bin.join("guest"), bin.join(name)).unwrap();
    }
    std::fs::set_permissions(bin.join("sudo"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    // struct vfs_cap_data, revision 2: cap_net_raw+ep, which Machines hold; then cap_sys_admin too, which they do not.
    let capability = |low: u32| [0x0200_0001u32, low, 0, 0, 0].map(u32::to_le_bytes).concat();
    set_xattr(&bin.join("ping"), c"security.capability", &capability(1 << 13));
    let mut spec = fleet.spec("m1", "i1", &["sudo", "cat", "/proc/self/status"]);
    spec.process.user = "app".into();
    let (_, status) = fleet.run(&spec).await;
    for line in ["Uid:\t100\t0\t0\t0", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    spec.instance = "i2".into();
    spec.process.argv[0] = "ping".into();
    let (_, status) = fleet.run(&spec).await;
    for line in ["Uid:\t100\t100\t100\t100", "CapEff:\t0000000000002000"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    // Commands are held no tighter and no looser.
    let mut spec = fleet.spec("m2", "i1", &["guest", "sleep"]);
    spec.process.user = "app".into();
    let handle = fleet.driver.start(&spec).await.unwrap();
    let told = fleet.exec(&handle, &["sudo", "cat", "/proc/self/status"]).await;
    let status = String::from_utf8(told.stdout).unwrap();
    assert!(status.contains("Uid:\t100\t0\t0\t0") && status.contains("CapEff:\t00000000a80425fb"), "{status}");
    fleet.driver.kill(&handle).await.unwrap();
    // A capability that no Machine has makes a program that cannot be run: the kernel refuses to execute it.
    set_xattr(&bin.join("ping"), c"security.capability", &capability(1 << 21));
    let mut spec = fleet.spec("m3", "i1", &["ping", "exit", "0"]);
    spec.process.user = "app".into();
    assert!(fleet.driver.start(&spec).await.unwrap_err().to_string().contains("cannot be executed"));
}

#[tokio::test]
async fn a_machine_sees_its_own_limits_and_has_shared_memory_to_match() {
    let fleet = Fleet::new();
    let run = async |n: &str, argv: &[&str]| {
        let mut spec = fleet.spec(n, "i1", argv);
        spec.limits.memory_bytes = 256 << 20;
        spec.limits.pids_max = 77;
        fleet.run(&spec).await.1
    };
    let v1 = !godwit_driver::cgroup::Cgroups::detect(&fleet.parent).unwrap().unified();
    let [memory, pids] = match v1 {
        true => ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max"],
        false => ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"],
    };
    assert_eq!(run("m1", &["guest", "cat", memory]).await, "268435456\n");
    assert_eq!(run("m2", &["guest", "cat", pids]).await, "77\n");
    let mounts = run("m3", &["guest", "cat", "/proc/self/mounts"]).await;
    let shared = mounts.lines().find(|line| line.contains(" /dev/shm ")).expect(&mounts);
    assert!(shared.contains("size=131072k"), "half of the Machine's memory: {shared}");
    // Of two at one place the later is seen.
    let seen: std::collections::BTreeMap<_, _> =
        mounts.lines().filter_map(|line| Some((line.split(' ').nth(1)?, line))).collect();
    for line in seen.values().filter(|line| line.contains(" /sys")) {
        assert!(line.contains(" ro,"), "{line} in {mounts}");
    }
    let (exit, _) = fleet.run(&fleet.spec("m4", "i1", &["guest", "write", "/sys/fs/cgroup/mark", "x"])).await;
    assert_eq!(exit.exit_code, Some(1), "nothing can be put there");
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
