//! A file system on a volume that still hydrates, shown by FUSE and a loop device, while its server is killed, its
//! source is gone, or it is poisoned. Needs root.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_volume::CloneStatus;
use godwit_volume::keeper::{KeeperAsk, KeeperStatus, ServerAsk, control};
use godwit_volume::nbd::export::Named;
use godwit_volume::nbd::server::{Listener, NbdServer, Security};
use godwit_volume::pace::Limits;
use godwit_volume::spec::{AddressSpec, SourceSpec, VolumeSpec};

use crate::device::Tmpfs;
use crate::protocol::file_export;
use crate::support::{EPOCH, eventually, kill_hard, pattern, run, tool};

const MIB: u64 = 1 << 20;

/// A volume with ext4 and files in it, exported by NBD over a unix socket, and a keeper of its clone.
pub struct Scene {
    pub folder: tempfile::TempDir,
    pub spec: VolumeSpec,
    pub source: Option<NbdServer>,
    pub keeper: Child,
    /// A second one would be refused; this is where a successor comes from.
    starts: u32,
    pub mounted: Vec<PathBuf>,
}

pub fn file_of(index: u64) -> Vec<u8> {
    pattern(index, 3 * MIB as usize + 777)
}

impl Scene {
    pub fn new(files: u64, limits: Limits) -> Self {
        Self::over(files, limits, None)
    }
    /// Its blocks lie in another folder.
    pub fn over(files: u64, limits: Limits, local: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("content")).expect("a folder");
        for index in 0..files {
            std::fs::write(path("content").join(format!("f{index}")), file_of(index)).expect("a file");
        }
        let mut mkfs = tool("mkfs.ext4", "e2fsprogs");
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0", "-d"]).arg(path("content")).arg(path("source.raw"));
        run(mkfs.arg("256M"));
        std::fs::create_dir(path("mnt")).expect("a folder");
        let spec = VolumeSpec {
            volume: "vol_1".to_owned(),
            epoch: EPOCH,
            size_bytes: 256 * MIB,
            local: local.map_or_else(|| path("volume.raw"), |local| local.join("volume.raw")),
            map: path("volume.map"),
            source: Some(SourceSpec::Nbd {
                address: AddressSpec::Unix(path("nbd.sock")),
                export: "v".to_owned(),
                tls: None,
            }),
            held: false,
            limits,
            mountpoint: path("mnt"),
            control: path("keeper.sock"),
        };
        std::fs::write(path("spec.json"), serde_json::to_vec(&spec).expect("json")).expect("written");
        let source = Some(serve(folder.path()));
        let keeper = start_keeper(folder.path(), 0);
        Self { folder, spec, source, keeper, starts: 0, mounted: Vec::new() }
    }
    pub fn log(&self) -> String {
        let read = |n| std::fs::read_to_string(self.folder.path().join(format!("keeper{n}.log"))).unwrap_or_default();
        (0..=self.starts).map(read).collect()
    }
    /// Kills the keeper alone.
    pub fn kill_keeper(&mut self) {
        self.keeper.kill().expect("killed");
        self.keeper.wait().expect("reaped");
    }
    pub fn start_another_keeper(&mut self) {
        self.starts += 1;
        self.keeper = start_keeper(self.folder.path(), self.starts);
    }
    fn keeper(&self, ask: &KeeperAsk) -> Option<KeeperStatus> {
        control::ask(&self.spec.control, ask).ok()
    }
    fn server(&self, ask: &ServerAsk) -> Option<CloneStatus> {
        control::ask(&self.spec.server_control(), ask).ok()
    }
    pub fn loop_device(&mut self) -> PathBuf {
        let mut found = None;
        eventually("a loop device", || {
            found = self.keeper(&KeeperAsk::Status).and_then(|status| status.loop_device);
            let ended = self.keeper.try_wait().expect("a child").is_some();
            found.is_some() || ended || self.log().contains("ERROR")
        });
        found.unwrap_or_else(|| panic!("no loop device: {}", self.log()))
    }
    pub fn mount(&mut self, device: &Path) -> PathBuf {
        let at = self.folder.path().join("ext4");
        std::fs::create_dir_all(&at).expect("a folder");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(device), &at, Some("ext4"), flags, None::<&str>).expect("mounts");
        self.mounted.push(at.clone());
        at
    }
    pub fn unmount(&mut self) {
        for at in self.mounted.drain(..) {
            nix::mount::umount(&at).expect("unmounts");
        }
    }
    pub fn kill_server(&self) -> u64 {
        let status = self.keeper(&KeeperAsk::Status).expect("the keeper answers");
        kill_hard(status.server_pid);
        status.server_starts
    }
    /// Both, the server first: whatever its keeper is about to do about it.
    pub fn kill_both(&mut self) {
        let pid = self.keeper(&KeeperAsk::Status).expect("the keeper answers").server_pid;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.keeper.id() as i32), nix::sys::signal::Signal::SIGSTOP)
            .expect("stopped");
        kill_hard(pid);
        self.kill_keeper();
    }
    pub fn stop(&mut self) {
        self.keeper(&KeeperAsk::Stop).expect("the keeper answers");
        let status = self.keeper.wait().expect("it ends");
        assert!(status.success(), "{status}: {}", self.log());
    }
}

fn start_keeper(folder: &Path, number: u32) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-volume-process"));
    command.arg("keeper").arg(folder.join("spec.json")).stdin(Stdio::null());
    let log = std::fs::File::create(folder.join(format!("keeper{number}.log"))).expect("a log");
    command.stderr(log).spawn().expect("a keeper")
}

pub fn serve(folder: &Path) -> NbdServer {
    let socket = folder.join("nbd.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = Listener::Unix(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let named = Named([("v".to_owned(), file_export(&folder.join("source.raw"), true))].into());
    NbdServer::start(listener, Security::Plain, Arc::new(named), 16).expect("a server")
}

impl Drop for Scene {
    fn drop(&mut self) {
        // After a failure as well: nothing stays mounted, attached or running.
        for at in self.mounted.drain(..) {
            let _ = nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        godwit_volume::front::fuse::abort(&self.spec.mountpoint);
        if let Err(error) = godwit_volume::keeper::stop_without_keeper(&self.spec, Duration::ZERO) {
            eprintln!("not all is cleared: {error}");
        }
    }
}

pub fn check_files(at: &Path, files: u64) {
    for index in 0..files {
        let found = std::fs::read(at.join(format!("f{index}"))).expect("a file");
        assert!(found == file_of(index), "f{index} differs");
    }
}

/// Whether any loop device stands over a file of this folder.
pub fn is_attached(folder: &Path) -> bool {
    let devices = std::fs::read_dir("/sys/block").expect("block devices");
    let over =
        devices.flatten().filter_map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")).ok());
    over.into_iter().any(|file| Path::new(file.trim()).starts_with(folder))
}

/// To a guest, an error is a broken disk: its file system would stop at the first one.
#[test]
fn a_full_disk_of_the_host_is_a_pause_to_the_guest() {
    const WRITTEN: usize = 24 * MIB as usize;
    let small = Tmpfs::mount("size=40m");
    let taken = small.0.path().join("taken");
    std::fs::write(&taken, vec![1; 20 * MIB as usize]).expect("room for that");
    let mut scene = Scene::over(2, Limits::default(), Some(small.0.path()));
    let device = scene.loop_device();
    let at = scene.mount(&device);
    let file = at.join("written");
    let writer = std::thread::spawn(move || -> std::io::Result<PathBuf> {
        let content = pattern(99, WRITTEN);
        let direct = std::fs::File::options().create(true).truncate(true).write(true).open(&file)?;
        content.chunks(MIB as usize).enumerate().try_for_each(|(index, part)| {
            direct.write_all_at(part, index as u64 * MIB).and_then(|()| direct.sync_data())
        })?;
        Ok(file)
    });
    let no_space = |scene: &Scene| scene.server(&ServerAsk::Status).map_or(0, |status| status.no_space);
    eventually("the disk is full", || no_space(&scene) > 1 || writer.is_finished());
    let (first, seen) = (Instant::now(), no_space(&scene));
    // It is tried again and again, and the guest waits.
    eventually("more tries", || no_space(&scene) > seen + 2 || writer.is_finished());
    assert!(!writer.is_finished(), "after {:?}: {:?}", first.elapsed(), writer.join());
    std::fs::remove_file(&taken).expect("room again");
    let file = writer.join().expect("no panic").expect("every write ended well");
    assert!(std::fs::read(file).expect("reads") == pattern(99, WRITTEN));
    scene.unmount();
    scene.stop();
}

#[test]
fn ext4_stays_whole_while_its_server_is_killed_twenty_times() {
    const FILES: u64 = 12;
    let slow = Limits { floor_bytes_per_s: 1 << 20, cap_bytes_per_s: 2 << 20, ..Limits::default() };
    let mut scene = Scene::new(FILES, slow);
    let device = scene.loop_device();
    let at = scene.mount(&device);
    let status = scene.server(&ServerAsk::Status).expect("the server answers");
    assert!(!status.complete && status.demand_fetches > 0, "mounted while most is missing: {status:?}");

    let mut fio = tool("fio", "fio");
    fio.current_dir(scene.folder.path()).arg(format!("--filename={}", at.join("fio").display()));
    fio.args(["--name=v", "--rw=randwrite", "--bsrange=4k-64k", "--size=24M", "--ioengine=libaio", "--direct=1"]);
    fio.args(["--iodepth=16", "--fsync=64", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--rate=2m"]);
    let mut fio = fio.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("fio starts");
    let mut kills = 0;
    let mut longest = Duration::ZERO;
    while kills < 20 {
        // Some work is done in each life.
        let before = scene.server(&ServerAsk::Status);
        eventually("a write or flush goes through", || {
            let now = scene.server(&ServerAsk::Status);
            fio.try_wait().expect("fio").is_some()
                || matches!((&before, &now), (Some(a), Some(b)) if (b.flushes, b.present_blocks) != (a.flushes, a.present_blocks))
        });
        let starts = scene.kill_server();
        let began = Instant::now();
        kills += 1;
        eventually("another server", || {
            scene.keeper(&KeeperAsk::Status).is_some_and(|status| status.server_starts > starts)
                && scene.server(&ServerAsk::Status).is_some()
        });
        longest = longest.max(began.elapsed());
    }
    println!("longest time without a server: {longest:?}");
    let output = fio.wait_with_output().expect("fio ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("verify:"), "{text}\n{}", scene.log());
    check_files(&at, FILES);
    let fast = ServerAsk::Limits { limits: Limits::default() };
    eventually("complete", || scene.server(&fast).is_some_and(|status| status.complete));
    let status = scene.server(&ServerAsk::Status).expect("the server answers");
    assert_eq!(status.mismatches, 0);
    check_files(&at, FILES);
    scene.unmount();
    scene.server(&ServerAsk::Flush).expect("flushed");
    scene.stop();
    assert!(!is_attached(scene.folder.path()), "the loop device is let go");
    run(tool("e2fsck", "e2fsprogs").args(["-fn"]).arg(&scene.spec.local));
}

/// With the source gone, what is here is served as ever, however many reads wait for what is not; and when
/// the source is back they go on.
#[test]
fn a_lost_source_stalls_only_what_is_missing() {
    const FILES: u64 = 14;
    let mut scene = Scene::new(FILES, Limits { cap_bytes_per_s: 0, ..Limits::default() });
    let device = scene.loop_device();
    let at = scene.mount(&device);
    check_files(&at, 1);
    drop(scene.source.take());
    std::thread::scope(|scope| {
        // More readers than the server has threads, with their readahead; and fewer requests than the loop device holds
        // at once (128), beyond which nothing reaches the server.
        let readers: Vec<_> = (1..13)
            .map(|index| {
                let path = at.join(format!("f{index}"));
                scope.spawn(move || std::fs::read(path).is_ok_and(|found| found == file_of(index)))
            })
            .collect();
        eventually("the loss is told", || {
            scene.server(&ServerAsk::Status).is_some_and(|status| status.source_lost_ms.is_some())
        });
        // The superblock is here since the mount; this read goes through to the server. (A write of the file system's
        // might need a block that is not here, and would wait with the others.)
        let open = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(&device).expect("opens");
        let mut block = vec![0u8; 8192];
        let start = block.as_ptr().align_offset(4096);
        open.read_exact_at(&mut block[start..start + 4096], 0).expect("what is here is read");
        assert_eq!(block[start + 1080..start + 1082], [0x53, 0xEF], "ext4's magic");
        scene.server(&ServerAsk::Flush).expect("and flushed");
        assert!(readers.iter().any(|reader| !reader.is_finished()), "no answer is invented");
        // A server that dies meanwhile forgets nothing of this.
        scene.kill_server();
        let _source = serve(scene.folder.path());
        for reader in readers {
            assert!(reader.join().expect("ends"), "every file is read whole");
        }
    });
    scene.unmount();
    scene.stop();
}

/// Poison ends what waits, so that a stop never hangs on a source that is gone.
#[test]
fn poison_ends_all_waits_and_the_machine_can_go() {
    let mut scene = Scene::new(8, Limits { cap_bytes_per_s: 0, ..Limits::default() });
    let device = scene.loop_device();
    let at = scene.mount(&device);
    drop(scene.source.take());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::fs::read(at.join("f3")));
        eventually("it waits", || {
            scene.server(&ServerAsk::Status).is_some_and(|status| status.source_lost_ms.is_some())
        });
        let status = scene.keeper(&KeeperAsk::Poison).expect("the keeper answers");
        assert!(status.poisoned);
        reader.join().expect("ends").expect_err("with an error");
    });
    let ended = || scene.keeper(&KeeperAsk::Status).is_some_and(|status| status.server_pid == 0);
    eventually("the server ends", ended);
    assert_eq!(
        scene.keeper(&KeeperAsk::Status).map(|status| status.server_starts),
        Some(1),
        "and is not started again"
    );
    scene.unmount();
    scene.stop();
}

/// The keeper dies alone: its server goes on, and the next keeper takes over both server and loop device.
#[test]
fn guests_do_not_notice_that_the_keeper_was_killed() {
    const FILES: u64 = 6;
    let slow = Limits { floor_bytes_per_s: 1 << 20, cap_bytes_per_s: 4 << 20, ..Limits::default() };
    let mut scene = Scene::new(FILES, slow);
    let device = scene.loop_device();
    let at = scene.mount(&device);
    let mut fio = tool("fio", "fio");
    fio.current_dir(scene.folder.path()).arg(format!("--filename={}", at.join("fio").display()));
    fio.args(["--name=v", "--rw=randwrite", "--bsrange=4k-64k", "--size=12M", "--ioengine=libaio", "--direct=1"]);
    fio.args(["--iodepth=16", "--fsync=64", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--rate=4m"]);
    let mut fio = fio.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("fio starts");
    let work = |scene: &Scene, fio: &mut Child| {
        let before = scene.server(&ServerAsk::Status).expect("the server answers");
        eventually("a write or flush goes through", || {
            fio.try_wait().expect("fio").is_some()
                || scene
                    .server(&ServerAsk::Status)
                    .is_some_and(|now| (now.flushes, now.present_blocks) != (before.flushes, before.present_blocks))
        });
    };
    for _ in 0..4 {
        let server = scene.keeper(&KeeperAsk::Status).expect("the keeper answers").server_pid;
        scene.kill_keeper();
        work(&scene, &mut fio);
        scene.start_another_keeper();
        assert_eq!(scene.loop_device(), device, "the same device");
        let status = scene.keeper(&KeeperAsk::Status).expect("the keeper answers");
        assert!(status.adopted && status.server_starts == 0 && status.server_pid == server, "{status:?}");
        // And it keeps what it adopted.
        scene.kill_server();
        eventually("another server", || {
            scene.keeper(&KeeperAsk::Status).is_some_and(|status| status.server_starts == 1)
                && scene.server(&ServerAsk::Status).is_some()
        });
        work(&scene, &mut fio);
    }
    let output = fio.wait_with_output().expect("fio ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("verify:"), "{text}\n{}", scene.log());
    check_files(&at, FILES);
    scene.unmount();
    scene.stop();
    assert!(!is_attached(scene.folder.path()), "the loop device is let go");
}

/// Keeper and server die together: IO fails; the next keeper clears what is left and serves every flushed write.
#[test]
fn after_keeper_and_server_were_killed_every_flushed_write_is_there() {
    const FILES: u64 = 6;
    let slow = Limits { floor_bytes_per_s: 1 << 20, cap_bytes_per_s: 4 << 20, ..Limits::default() };
    let mut scene = Scene::new(FILES, slow);
    for round in 0..3 {
        let device = scene.loop_device();
        let at = scene.mount(&device);
        for earlier in 0..round {
            let found = std::fs::read(at.join(format!("w{earlier}"))).expect("a file that was synced");
            assert!(found == pattern(100 + earlier, 2 * MIB as usize), "w{earlier} differs\n{}", scene.log());
        }
        let path = at.join(format!("w{round}"));
        std::fs::write(&path, pattern(100 + round, 2 * MIB as usize)).expect("written");
        std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("synced");
        std::fs::File::open(&at).and_then(|folder| folder.sync_all()).expect("synced");
        // Something is on its way when it happens.
        std::fs::write(at.join("unsynced"), pattern(7, MIB as usize)).expect("written");
        scene.kill_both();
        let open = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(&device).expect("opens");
        let mut block = vec![0u8; 8192];
        let start = block.as_ptr().align_offset(4096);
        open.read_exact_at(&mut block[start..start + 4096], 0).expect_err("closed, never stale");
        drop(open);
        // The Machine is gone with its IO.
        for at in scene.mounted.drain(..) {
            nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
        }
        scene.start_another_keeper();
    }
    let device = scene.loop_device();
    let at = scene.mount(&device);
    check_files(&at, FILES);
    let fast = ServerAsk::Limits { limits: Limits::default() };
    eventually("complete", || scene.server(&fast).is_some_and(|status| status.complete));
    check_files(&at, FILES);
    scene.unmount();
    scene.stop();
    assert!(!is_attached(scene.folder.path()), "no loop device is left");
    run(tool("e2fsck", "e2fsprogs").args(["-fn"]).arg(&scene.spec.local));
}

/// As when a host's processes are killed and its name space of mounts goes with them.
#[test]
fn what_dies_without_a_word_leaves_no_loop_device() {
    let mut scene = Scene::new(1, Limits::default());
    let device = scene.loop_device();
    let at = scene.mount(&device);
    scene.kill_both();
    for at in [&at, &scene.spec.mountpoint] {
        nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
    }
    scene.mounted.clear();
    let name = device.file_name().expect("a name").to_owned();
    let shown = Path::new("/sys/block").join(name).join("loop/backing_file");
    // Without its mount the file has no longer name than this.
    let stays = || std::fs::read_to_string(&shown).is_ok_and(|file| file.trim() == "/volume.raw");
    eventually("it goes with its last user", || !stays());
    scene.start_another_keeper();
    let device = scene.loop_device();
    let at = scene.mount(&device);
    check_files(&at, 1);
    scene.unmount();
    scene.stop();
}

#[test]
fn a_second_keeper_of_one_volume_does_not_start() {
    let mut scene = Scene::new(1, Limits::default());
    let device = scene.loop_device();
    let mut second = start_keeper(scene.folder.path(), 1);
    let status = second.wait().expect("ends");
    assert_eq!(status.code(), Some(i32::from(godwit_volume::roles::EXIT_TAKEN)));
    assert_eq!(scene.loop_device(), device, "the first one goes on");
    scene.stop();
}
