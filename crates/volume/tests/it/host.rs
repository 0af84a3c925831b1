//! What an agent asks of its volumes: files, raw loop devices, and what it learns of a keeper and can make of it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use godwit_volume::host::{self, FileSystem};
use godwit_volume::keeper::ServerAsk;
use godwit_volume::keeper::control;
use godwit_volume::pace::Limits;
use godwit_volume::schedule::Phase;
use godwit_volume::{CloneStatus, VolumeError};

use crate::front::{Scene, check_files, is_attached};
use crate::support::{EPOCH, eventually, run, tool};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Mounted until dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(device: &Path, at: std::path::PathBuf) -> Self {
        std::fs::create_dir_all(&at).expect("a folder");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(device), &at, Some("ext4"), flags, None::<&str>).expect("mounts");
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0);
    }
}

#[test]
fn a_large_volume_takes_little_and_is_made_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vol_1.raw");
    // A try that was cut short is no obstacle.
    std::fs::write(folder.path().join(".vol_1.raw.making"), b"half").expect("written");
    host::create(&path, 100 * GIB, FileSystem::Ext4).expect("made");
    let allocated = host::allocated_bytes(&path).expect("measured");
    assert!(allocated < 16 * MIB, "{allocated} bytes for 100 GiB of nothing");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
    let tables = run(tool("dumpe2fs", "e2fsprogs").arg(&path));
    let text = String::from_utf8_lossy(&tables.stdout).into_owned();
    let groups = text.matches(": (Blocks ").count();
    assert_eq!(text.matches("ITABLE_ZEROED").count(), groups, "the kernel has nothing to write at the first mount");
    let inode = std::fs::metadata(&path).expect("there").ino();
    host::create(&path, 100 * GIB, FileSystem::Ext4).expect("again");
    assert_eq!(std::fs::metadata(&path).expect("there").ino(), inode, "left alone");
    host::create(&path, 99 * GIB, FileSystem::Ext4).expect_err("another size");
    let raw = folder.path().join("raw");
    host::create(&raw, 5 * MIB + 512, FileSystem::Raw).expect("made");
    assert_eq!(std::fs::metadata(&raw).expect("there").len(), 5 * MIB + 512);
    host::sync(&raw).expect("synced");
    for _ in 0..2 {
        host::remove(&path).expect("gone, or gone already");
    }
    assert!(!path.exists() && raw.exists());
}

#[test]
fn a_raw_loop_is_found_by_its_file_and_detached_once_nobody_uses_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, other) = (folder.path().join("w1"), folder.path().join("w10"));
    for path in [&path, &other] {
        host::create(path, 64 * MIB, FileSystem::Ext4).expect("made");
    }
    assert_eq!(host::find(&path).expect("looked"), None);
    let device = host::attach(&path).expect("attached");
    let second = host::attach(&other).expect("attached");
    assert_ne!(device, second);
    let cleanup = Detach([path.clone(), other.clone()]);
    assert_eq!(host::attach(&path).expect("again"), device);
    // The same file by another name.
    let alias = folder.path().join("alias");
    std::os::unix::fs::symlink(&path, &alias).expect("a link");
    assert_eq!(host::find(&alias).expect("looked"), Some(device.clone()));
    let mounted = Mounted::new(&device, folder.path().join("mnt"));
    std::fs::write(mounted.0.join("f"), b"kept").expect("written");
    host::detach(&other).expect("detached");
    assert_eq!(host::find(&path).expect("looked"), Some(device), "its neighbour is not touched");
    drop(mounted);
    host::detach(&path).expect("detached");
    host::detach(&path).expect("gone already");
    assert_eq!(host::find(&path).expect("looked"), None);
    assert!(!is_attached(folder.path()));
    let device = host::attach(&path).expect("attached");
    let mounted = Mounted::new(&device, folder.path().join("mnt"));
    assert_eq!(std::fs::read(mounted.0.join("f")).expect("read"), b"kept");
    drop(mounted);
    drop(cleanup);
}

struct Detach([std::path::PathBuf; 2]);

impl Drop for Detach {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = host::detach(path);
        }
    }
}

/// From the first read to a raw loop over what was a clone.
#[test]
fn an_agent_follows_a_clone_until_it_needs_its_source_no_more() {
    const FILES: u64 = 8;
    let mut scene = Scene::new(FILES, Limits { cap_bytes_per_s: 0, ..Limits::default() });
    let whole = |scene: &Scene| host::is_whole(&scene.spec.map, "vol_1", EPOCH, scene.spec.size_bytes);
    let device = scene.loop_device();
    let at = scene.mount(&device);
    check_files(&at, 1);
    let clone = |scene: &Scene| host::keeper_status(&scene.spec).and_then(|status| status.clone);
    eventually("the holes are known", || clone(&scene).is_some_and(|clone| clone.source_data_bytes.is_some()));
    let status = host::keeper_status(&scene.spec).expect("it answers");
    let seen = status.clone.expect("the server answers");
    assert_eq!(seen.phase, Phase::Copy);
    let data = seen.source_data_bytes.expect("known");
    assert!((FILES * 3 * MIB..200 * MIB).contains(&data), "{data}");
    assert!(seen.first_read_ms.is_some() && seen.demand_fetches > 0 && seen.map_permille() < 1000, "{seen:?}");
    assert!(!seen.verified && !whole(&scene).expect("a map"));
    assert!(host::is_whole(&scene.spec.map, "vol_2", EPOCH, scene.spec.size_bytes).is_err(), "another's map");
    // Counters outlive a server.
    scene.kill_server();
    eventually("another server", || clone(&scene).is_some());
    let after = clone(&scene).expect("just seen");
    assert!(after.wire_bytes >= seen.wire_bytes && after.first_read_ms == seen.first_read_ms, "{after:?}");
    host::set_limits(&scene.spec, Limits::default()).expect("the server answers");
    eventually("verified", || clone(&scene).is_some_and(|clone| clone.verified));
    let seen = clone(&scene).expect("the server answers");
    assert!(seen.complete && seen.mismatches == 0 && seen.map_permille() == 1000, "{seen:?}");
    assert!(whole(&scene).expect("a map"), "durably");
    scene.kill_server();
    eventually("another server", || clone(&scene).is_some());
    assert!(clone(&scene).is_some_and(|clone| clone.verified && clone.phase == Phase::Done));
    check_files(&at, FILES);
    scene.unmount();
    host::stop(&scene.spec).expect("stops");
    assert!(scene.keeper.wait().expect("ended").success());
    assert!(host::keeper_status(&scene.spec).is_none() && !is_attached(scene.folder.path()));
    host::stop(&scene.spec).expect("stopped already");
    // The source is released, and so is the map: a raw loop from now on.
    drop(scene.source.take());
    std::fs::remove_file(scene.folder.path().join("source.raw")).expect("released");
    host::remove(&scene.spec.map).expect("released");
    let device = host::attach(&scene.spec.local).expect("attached");
    let mounted = Mounted::new(&device, scene.folder.path().join("raw"));
    check_files(&mounted.0, FILES);
    drop(mounted);
    host::detach(&scene.spec.local).expect("detached");
}

/// A stop neither waits for a source that is gone nor loses what was written.
#[test]
fn a_stop_with_the_source_gone_keeps_what_was_written() {
    let mut scene = Scene::new(6, Limits { cap_bytes_per_s: 0, ..Limits::default() });
    let device = scene.loop_device();
    let at = scene.mount(&device);
    std::fs::write(at.join("mine"), b"kept").expect("written");
    scene.unmount();
    let at = scene.mount(&device);
    drop(scene.source.take());
    let reader = std::thread::spawn(move || std::fs::read(at.join("f4")));
    let lost = |scene: &Scene| {
        let status = control::ask::<_, CloneStatus>(&scene.spec.server_control(), &ServerAsk::Status);
        status.is_ok_and(|status| status.source_lost_ms.is_some())
    };
    eventually("a read waits", || lost(&scene));
    // As a container's end would: the mount goes, though a reader of it still waits.
    for at in scene.mounted.drain(..) {
        nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
    }
    host::stop(&scene.spec).expect("stops");
    reader.join().expect("ends").expect_err("with an error");
    assert!(scene.keeper.wait().expect("ended").success());
    eventually("the loop device goes with its last user", || !is_attached(scene.folder.path()));
    scene.source = Some(crate::front::serve(scene.folder.path()));
    scene.start_another_keeper();
    let device = scene.loop_device();
    let at = scene.mount(&device);
    assert_eq!(std::fs::read(at.join("mine")).expect("read"), b"kept");
    check_files(&at, 6);
    scene.unmount();
    scene.stop();
}

/// Poison and stop find what there is: no keeper but a server, then nothing at all.
#[test]
fn a_volume_without_a_keeper_is_poisoned_and_stopped_as_well() {
    let mut scene = Scene::new(2, Limits { cap_bytes_per_s: 0, ..Limits::default() });
    let device = scene.loop_device();
    let at = scene.mount(&device);
    drop(scene.source.take());
    let reader = std::thread::spawn(move || std::fs::read(at.join("f1")));
    scene.kill_keeper();
    host::poison(&scene.spec).expect("poisoned");
    reader.join().expect("ends").expect_err("with an error");
    scene.unmount();
    host::stop(&scene.spec).expect("stops");
    assert!(!is_attached(scene.folder.path()));
    host::poison(&scene.spec).expect("nothing is there");
    host::stop(&scene.spec).expect("nothing is there");
}

#[test]
fn what_takes_too_long_is_said_and_not_waited_for() {
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let stuck = move || {
        // Until the test is over.
        let _ = held.recv();
        Ok(())
    };
    let error = godwit_volume::process::within("a stuck disk", Duration::from_millis(20), stuck).expect_err("late");
    assert!(matches!(error, VolumeError::Late { .. }), "{error}");
    drop(let_go);
}
