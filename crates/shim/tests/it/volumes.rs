//! Volumes: mounted in their Machine only, whole when it has ended, and out of everybody else's reach.

use crate::fleet::{Fleet, PATIENCE, exec_request, lives};
use crate::loops::Loop;
use godwit_driver::cgroup::Cgroups;
use godwit_driver::volume::released;
use godwit_driver::{Driver, Error, Found, GuestFile, Handle, RootPolicy, Spec, VolumeFs, VolumeMount};
use std::path::Path;
use std::time::Duration;

impl Fleet {
    fn with(&self, machine: &str, instance: &str, volumes: &[VolumeMount], argv: &[&str]) -> Spec {
        let mut spec = self.spec(machine, instance, argv);
        spec.volumes = volumes.to_vec();
        spec
    }

    /// What a Machine, or the reason that there is none, says about these volumes.
    async fn refusal(&self, spec: &Spec) -> Error {
        match self.driver.start(spec).await {
            Ok(_) => panic!("{} was started", spec.machine),
            Err(e) => e,
        }
    }

    /// Where the device is mounted, in the eyes of the Machine's first process.
    fn mounted_in(&self, handle: &Handle, device: &Path) -> bool {
        let cgroups = Cgroups::detect(&self.parent).unwrap();
        let pids = cgroups.container_processes(&handle.machine);
        assert!(!pids.is_empty());
        pids.iter().any(|pid| mounts(&pid.to_string()).contains(&format!(" - ext4 {} ", device.display())))
    }
}

fn mounts(process: &str) -> String {
    std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap()
}

async fn free(volume: &Loop) -> bool {
    released(&volume.device, PATIENCE).await.unwrap()
}

async fn held(volume: &Loop) -> bool {
    !released(&volume.device, Duration::from_millis(1)).await.unwrap()
}

#[tokio::test]
async fn what_is_written_to_a_volume_is_there_in_the_next_run() {
    let (volume, fleet) = (Loop::ext4(), Fleet::new());
    let mut at = volume.volume("/srv/data", VolumeFs::Ext4);
    let run = async |n: &str, at: &VolumeMount, argv: &[&str]| {
        let spec = fleet.with("m1", n, std::slice::from_ref(at), argv);
        fleet.run(&spec).await
    };
    assert_eq!(run("i1", &at, &["guest", "write", "/srv/data/file", "kept"]).await.0.exit_code, Some(0));
    // At once: the start waits for the kernel to let go of the device.
    assert!(run("i2", &at, &["guest", "cat", "/srv/data/file"]).await.1.ends_with("kept\n"));
    at.guest_path = "/elsewhere".into();
    at.read_only = true;
    let (exit, _) = run("i3", &at, &["guest", "write", "/elsewhere/file", "spoilt"]).await;
    assert_eq!(exit.exit_code, Some(1), "read-only means it");
    assert!(run("i4", &at, &["guest", "remount", "/elsewhere"]).await.1.contains("remount|refused|"));
    assert!(run("i5", &at, &["guest", "cat", "/elsewhere/file"]).await.1.ends_with("kept\n"));
    assert!(free(&volume).await);
    volume.check();
}

#[tokio::test]
async fn a_volume_is_mounted_in_its_machine_only_and_gone_with_it() {
    let (volume, fleet) = (Loop::ext4(), Fleet::new());
    let at = [volume.volume("/data", VolumeFs::Ext4)];
    let handle = fleet.driver.start(&fleet.with("m1", "i1", &at, &["guest", "sleep"])).await.unwrap();
    assert!(fleet.mounted_in(&handle, &volume.device));
    assert!(!mounts("self").contains(volume.device.to_str().unwrap()), "the host has it mounted");
    assert!(!mounts(&handle.pid.to_string()).contains(volume.device.to_str().unwrap()), "the shim has it mounted");
    assert!(held(&volume).await);

    // Commands see it too, and can do as little against it.
    let told = async |argv: &[&str]| String::from_utf8(fleet.exec(&handle, argv).await.stdout).unwrap();
    assert_eq!(told(&["guest", "write", "/data/file", "by exec"]).await, "");
    assert_eq!(told(&["guest", "cat", "/data/file"]).await, "by exec");
    assert!(told(&["guest", "umount", "/data"]).await.contains("umount|refused|"));
    let seen = told(&["guest", "cat", "/proc/self/mounts"]).await;
    let line = seen.lines().find(|line| line.contains(" /data ext4 ")).expect(&seen);
    assert!(line.contains("rw,") && line.contains("nodev") && !line.contains("nosuid"), "{line}");
    assert!(line.contains("errors=remount-ro"), "its wish for a panic was granted: {line}");
    let [major, minor] = volume.numbers();
    let opened = told(&["guest", "device", &major, &minor]).await;
    assert!(opened.contains("open|refused|Operation not permitted"), "the device beneath the file system: {opened}");

    fleet.driver.kill(&handle).await.unwrap();
    assert!(free(&volume).await);
    volume.check();
    volume.detach();
    assert!(!volume.attached());
}

#[tokio::test]
async fn killed_processes_leave_the_volume_free() {
    let (volume, fleet) = (Loop::ext4(), Fleet::new());
    let at = [volume.volume("/data", VolumeFs::Ext4)];
    let cgroups = Cgroups::detect(&fleet.parent).unwrap();
    let signal = |pid: i32| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();

    let handle = fleet.driver.start(&fleet.with("m1", "i1", &at, &["guest", "stubborn"])).await.unwrap();
    fleet.exec(&handle, &["guest", "write", "/data/file", "kept"]).await;
    let inside = cgroups.container_processes("m1");
    inside.iter().for_each(|pid| signal(*pid));
    tokio::time::timeout(PATIENCE, fleet.driver.wait(&handle)).await.unwrap().unwrap();
    assert!(free(&volume).await);
    volume.check();

    let handle = fleet.driver.start(&fleet.with("m1", "i2", &at, &["guest", "stubborn"])).await.unwrap();
    let inside = cgroups.container_processes("m1");
    signal(handle.pid);
    assert!(matches!(fleet.driver.find(&handle.dir).await.unwrap(), Found::Exited(exit) if exit.lost.is_some()));
    assert!(inside.iter().all(|pid| !lives(*pid)));
    assert!(free(&volume).await);
    volume.check();
    let (_, text) = fleet.run(&fleet.with("m1", "i3", &at, &["guest", "cat", "/data/file"])).await;
    // Behind what the two before it have said, if they came to it before they were killed.
    assert!(text.ends_with("kept\n"), "{text}");
}

#[tokio::test]
async fn machines_that_start_together_do_not_hold_each_other_s_volumes() {
    let (first, second) = (Loop::ext4(), Loop::ext4());
    let fleet = Fleet::new();
    let spec = |machine: &str, instance: &str, volume: &Loop| {
        fleet.with(machine, instance, &[volume.volume("/data", VolumeFs::Ext4)], &["guest", "sleep"])
    };
    for round in 0..3 {
        let instance = format!("i{round}");
        let (a, b) = (spec("m1", &instance, &first), spec("m2", &instance, &second));
        let (a, b) = tokio::join!(fleet.driver.start(&a), fleet.driver.start(&b));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(fleet.mounted_in(&a, &first.device) && fleet.mounted_in(&b, &second.device));
        assert!(!fleet.mounted_in(&a, &second.device) && !fleet.mounted_in(&b, &first.device));
        fleet.driver.kill(&a).await.unwrap();
        assert!(free(&first).await && held(&second).await);
        fleet.driver.kill(&b).await.unwrap();
        assert!(free(&second).await);
    }
}

#[tokio::test]
async fn a_device_that_is_in_use_is_not_given_to_a_second_machine() {
    let (volume, fleet) = (Loop::ext4(), Fleet::new());
    let spec = |machine: &str, fstype| fleet.with(machine, "i1", &[volume.volume("/dev/../data", fstype)], &[]);
    assert!(matches!(fleet.refusal(&spec("m1", VolumeFs::Ext4)).await, Error::Invalid { .. }));
    let both = [("m1", VolumeFs::Ext4), ("m2", VolumeFs::Ext4)]
        .map(|(machine, fstype)| fleet.with(machine, "i1", &[volume.volume("/data", fstype)], &["guest", "sleep"]));
    let (a, b) = tokio::join!(fleet.driver.start(&both[0]), fleet.driver.start(&both[1]));
    let (mut running, refused): (Vec<_>, Vec<_>) = [a, b].into_iter().partition(Result::is_ok);
    assert_eq!((running.len(), refused.len()), (1, 1), "{running:?} {refused:?}");
    let told = refused[0].as_ref().unwrap_err();
    assert!(matches!(told, Error::Host { .. }) && told.to_string().contains("in use"), "{told}");
    let raw = fleet.with("m3", "i1", &[volume.volume("/dev/data", VolumeFs::Raw)], &["guest", "sleep"]);
    assert!(fleet.refusal(&raw).await.to_string().contains("in use"));
    fleet.driver.kill(&running.remove(0).unwrap()).await.unwrap();
    assert!(free(&volume).await);
}

#[tokio::test]
async fn a_raw_device_is_the_machine_s_and_its_neighbours_are_not() {
    let (volume, neighbour) = (Loop::blank(), Loop::blank());
    let fleet = Fleet::new();
    let mut at = volume.volume("/dev/disk/data", VolumeFs::Raw);
    let mut spec = fleet.with("m1", "i1", &[at.clone()], &["guest", "sleep"]);
    spec.process.user = "app".into();
    let handle = fleet.driver.start(&spec).await.unwrap();
    let told = async |handle: &Handle, user: &str, argv: &[&str]| {
        let mut request = exec_request(argv);
        request.user = Some(user.into());
        String::from_utf8(fleet.driver.exec(handle, &request).await.unwrap().stdout).unwrap()
    };
    for (user, text) in [("app", "by app"), ("0", "root's")] {
        told(&handle, user, &["guest", "write", "/dev/disk/data", text]).await;
        assert_eq!(told(&handle, user, &["guest", "peek", "/dev/disk/data", "6"]).await, format!("{text}\n"));
    }
    let [major, minor] = neighbour.numbers();
    let opened = told(&handle, "0", &["guest", "device", &major, &minor]).await;
    assert!(opened.contains("open|refused|Operation not permitted"), "a neighbour's volume: {opened}");
    let commands = told(&handle, "0", &["guest", "loop", "/dev/disk/data"]).await;
    let got_through: Vec<&str> = commands.lines().filter(|l| !l.ends_with("|Operation not permitted")).collect();
    print!("{commands}");
    assert!(got_through.is_empty() && commands.lines().count() >= 5, "{commands}");
    assert!(volume.attached());
    fleet.driver.kill(&handle).await.unwrap();

    at.read_only = true;
    let handle = fleet.driver.start(&fleet.with("m1", "i2", &[at], &["guest", "sleep"])).await.unwrap();
    told(&handle, "0", &["guest", "write", "/dev/disk/data", "spoilt"]).await;
    assert_eq!(told(&handle, "0", &["guest", "peek", "/dev/disk/data", "6"]).await, "root's\n");
    let [major, minor] = volume.numbers();
    let opened = told(&handle, "0", &["guest", "device", &major, &minor]).await;
    assert!(opened.contains("open|refused|"), "a node of its own making: {opened}");
    fleet.driver.kill(&handle).await.unwrap();
    assert!(free(&volume).await);
}

#[tokio::test]
async fn links_of_an_image_do_not_lead_a_volume_out_of_the_root() {
    let (volume, fleet) = (Loop::ext4(), Fleet::new());
    let outside = fleet.folder.join("outside");
    std::fs::create_dir(&outside).unwrap();
    let layer = fleet.folder.join("layers/files");
    std::fs::create_dir_all(layer.join("real")).unwrap();
    std::fs::write(layer.join("plain"), "").unwrap();
    let link = |target: &Path, name: &str| std::os::unix::fs::symlink(target, layer.join(name)).unwrap();
    link(&outside, "out");
    link("/real".as_ref(), "inner");
    link("../../..".as_ref(), "up");
    let spec = |n: &str, path: &str| {
        fleet.with("m1", n, &[volume.volume(path, VolumeFs::Ext4)], &["guest", "write", "/real/deep/file", "here"])
    };
    for (n, path) in ["/up", "/plain", "/plain/x"].iter().enumerate() {
        let told = fleet.refusal(&spec(&format!("a{n}"), path)).await;
        assert!(matches!(told, Error::StartFailed { .. }) && told.to_string().contains(path), "{path}: {told}");
        assert!(free(&volume).await);
    }
    // Not the host's folder of that name, but one inside, made for it.
    for (n, path) in ["/out", "/out/deeper"].iter().enumerate() {
        let write = outside.join(if n == 0 { "file" } else { "deeper/file" });
        let argv = ["guest", "write", write.to_str().unwrap(), "here"];
        let spec = fleet.with("m1", &format!("b{n}"), &[volume.volume(path, VolumeFs::Ext4)], &argv);
        assert_eq!(fleet.run(&spec).await.0.exit_code, Some(0), "{path}");
        assert!(free(&volume).await);
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fleet.run(&spec("i1", "/inner/deep")).await.0.exit_code, Some(0));
    assert!(free(&volume).await);
    volume.check();
}

/// Owner and mode of a volume's root, as they are on the device.
fn root_of(volume: &Loop) -> String {
    let told = std::process::Command::new("debugfs").args(["-R", "stat <2>"]).arg(&volume.device).output();
    let text = String::from_utf8(told.expect("these tests need debugfs").stdout).unwrap();
    let after =
        |word: &str| text.split(word).nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap().to_owned();
    format!("{}:{} {}", after("User:"), after("Group:"), after("Mode:"))
}

#[tokio::test]
async fn a_new_volume_belongs_to_whom_the_image_gives_its_folder() {
    let fleet = Fleet::new();
    let layer = fleet.folder.join("layers/files");
    let folder = |name: &str, owner: u32, group: u32, mode: u32| {
        let path = layer.join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(group)).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    folder("owned", 100, 101, 0o2750);
    folder("sticky", 0, 0, 0o1777);
    folder("root-s", 0, 0, 0o755);
    let run = async |n: &str, volume: &Loop, change: &dyn Fn(&mut VolumeMount), path: &str, user: &str| {
        let mut at = volume.volume(path, VolumeFs::Ext4);
        change(&mut at);
        let file = format!("{path}/{n}");
        let mut spec = fleet.with("m1", n, &[at], &["guest", "write", &file, "mine"]);
        spec.process.user = user.into();
        let exit = fleet.run(&spec).await.0;
        assert!(free(volume).await);
        (exit.exit_code, root_of(volume))
    };
    let plain = |_: &mut VolumeMount| {};
    let told = |code: i32, root: &str| (Some(code), root.to_owned());
    let first = Loop::ext4();
    assert_eq!(run("i1", &first, &plain, "/owned", "app").await, told(0, "100:101 02750"));
    // Another image's wishes, or other ones of the owner's, come too late: it holds something.
    let late = |at: &mut VolumeMount| at.uid = Some(7);
    assert_eq!(run("i2", &first, &late, "/sticky", "").await, told(0, "100:101 02750"));
    assert_eq!(run("i3", &Loop::ext4(), &plain, "/sticky", "app").await, told(0, "0:0 01777"));
    assert_eq!(run("i4", &Loop::ext4(), &plain, "/root-s", "app").await, told(1, "0:0 0755"));
    // What the owner says counts more than the image, and the image's user where it has no folder.
    let own = |at: &mut VolumeMount| (at.uid, at.gid) = (Some(100), Some(5));
    assert_eq!(run("i5", &Loop::ext4(), &own, "/root-s", "app").await, told(0, "100:5 0755"));
    assert_eq!(run("i6", &Loop::ext4(), &plain, "/made/for/it", "app").await, told(0, "100:101 0755"));
    assert_eq!(run("i7", &Loop::ext4(), &plain, "/made/for/it", "").await, told(0, "0:0 0755"));
    let read_only = |at: &mut VolumeMount| (at.read_only, at.uid) = (true, Some(100));
    assert_eq!(run("i8", &Loop::ext4(), &read_only, "/owned", "app").await, told(1, "0:0 0755"));
}

#[tokio::test]
async fn volumes_may_lie_in_one_another_and_hold_the_platform_s_files() {
    let (outer, inner) = (Loop::ext4(), Loop::ext4());
    let fleet = Fleet::new();
    let at = [inner.volume("/data/deep/er", VolumeFs::Ext4), outer.volume("/data", VolumeFs::Ext4)];
    let mut spec = fleet.with("m1", "i1", &at, &["guest", "cat", "/data/deep/er/file"]);
    spec.root = RootPolicy::Keep;
    spec.process.cwd = "/data/work".into();
    spec.files = vec![GuestFile { guest_path: "/data/deep/er/file".into(), content: b"placed\n".into(), mode: 0o600 }];
    assert_eq!(fleet.run(&spec).await.1, "placed\n");
    assert!(free(&inner).await && free(&outer).await);

    let mut alone = fleet.with("m2", "i1", &[inner.volume("/x", VolumeFs::Ext4)], &["guest", "cat", "/x/file"]);
    assert_eq!(fleet.run(&alone).await.1, "placed\n", "it was written to the inner volume");
    alone.instance = "i2".into();
    alone.volumes[0].read_only = true;
    alone.files = vec![GuestFile { guest_path: "/x/file".into(), content: vec![], mode: 0o600 }];
    let told = fleet.refusal(&alone).await;
    assert!(matches!(told, Error::StartFailed { .. }), "{told}");
    let upper = spec.dir.join("upper/data");
    assert_eq!(std::fs::read_dir(upper).unwrap().count(), 0, "nothing of a volume is in the writable layer");
}

#[tokio::test]
async fn what_cannot_be_mounted_is_named() {
    let (blank, fleet) = (Loop::blank(), Fleet::new());
    let check = async |n: &str, at: VolumeMount, part: &str| {
        let told = fleet.refusal(&fleet.with("m1", n, &[at], &["guest", "sleep"])).await;
        assert!(told.to_string().contains(part), "{told}");
    };
    check("i1", blank.volume("/data", VolumeFs::Ext4), "holds no ext4").await;
    let mut file = blank.volume("/data", VolumeFs::Ext4);
    file.device = "/dev/null".into();
    check("i2", file.clone(), "/dev/null is not a block device").await;
    file.device = "/dev/absent".into();
    check("i3", file, "/dev/absent").await;
    check("i4", blank.volume("/proc/data", VolumeFs::Ext4), "belongs to the kernel").await;
    check("i5", blank.volume("/data", VolumeFs::Raw), "not in /dev").await;
    assert!(free(&blank).await);
}
