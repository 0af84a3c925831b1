//! A clone while it fills: what guests read and write, what crosses the wire, what happens when the source is gone,
//! wrong or full of holes.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use godwit_volume::map::BLOCK_BYTES;
use godwit_volume::source::faulty::{FaultySource, Knobs};
use godwit_volume::source::file::FileSource;
use godwit_volume::{CloneConfig, CloneDevice, VolumeError};
use tempfile::TempDir;

use crate::support::{EPOCH, assert_same_file, eventually, image, open_clone, pattern, read};

const MIB: u64 = 1 << 20;

struct Scene {
    folder: TempDir,
    size: u64,
    knobs: Arc<Knobs>,
    source: Option<FaultySource<FileSource>>,
}

impl Scene {
    fn new(size: u64, data: impl Fn(u64) -> bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        image(&folder.path().join("source.raw"), size, data);
        let (source, knobs) = FaultySource::new(FileSource::new(folder.path().join("source.raw")));
        Self { folder, size, knobs, source: Some(source) }
    }
    fn open(&mut self, tune: impl FnOnce(&mut CloneConfig)) -> CloneDevice {
        let source = self.source.take().expect("opened once; later opens use `reopen`");
        open_clone(self.folder.path(), self.size, Some(Arc::new(source)), tune)
    }
    fn reopen(&self) -> CloneDevice {
        let source = FileSource::new(self.folder.path().join("source.raw"));
        open_clone(self.folder.path(), self.size, Some(Arc::new(source)), |_| {})
    }
    fn local(&self) -> std::path::PathBuf {
        self.folder.path().join("volume.raw")
    }
}

/// Copying never begins: what a test sees is demand alone.
fn demand_only(config: &mut CloneConfig) {
    config.limits.cap_bytes_per_s = 0;
}

#[test]
fn a_clone_fills_and_equals_its_source_and_holes_never_travel() {
    let mut scene = Scene::new(64 * MIB + 12_345, |block| block % 100 < 30 || block == 1024);
    let device = scene.open(|_| {});
    eventually("complete", || device.is_complete());
    let status = device.status();
    assert_same_file(&scene.folder.path().join("source.raw"), &scene.local());
    let data = (0..1025).filter(|block| block % 100 < 30 || *block == 1024).count() as u64;
    assert_eq!(status.present_blocks, 1025);
    assert_eq!(status.mismatches, 0);
    assert_eq!(status.verified_blocks, 1025);
    assert_eq!(status.hydrated_bytes.div_ceil(BLOCK_BYTES), data);
    assert!(scene.knobs.fetched_bytes.load(Ordering::SeqCst) <= data * BLOCK_BYTES);
    let stored = std::fs::metadata(scene.local()).expect("the file").blocks() * 512;
    assert!(stored <= (data + 64) * BLOCK_BYTES, "{stored} bytes are stored of {} data", data * BLOCK_BYTES);
    // The source is needed no more, now or at the next start.
    drop(device);
    std::fs::remove_file(scene.folder.path().join("source.raw")).expect("released");
    let device = open_clone(scene.folder.path(), scene.size, None, |_| {});
    assert!(device.status().verified, "durably");
    assert_eq!(read(&device, 0, 65536), pattern(1, 65536));
}

/// The first read of a guest is answered before the copier gets on, and around a read the copier follows first.
#[test]
fn a_demand_goes_before_the_copier() {
    let mut scene = Scene::new(64 * MIB, |_| true);
    scene.knobs.hold(true);
    let device = scene.open(|config| config.demand_workers = 0);
    // Both copiers hold one fetch each; everything else is queued behind.
    eventually("copiers are busy", || scene.knobs.order.lock().expect("order").len() == 2);
    let wanted = 50 * MIB;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&device, wanted, 4096));
        eventually("asked for", || !device.prefetch(wanted, 4096));
        scene.knobs.hold(false);
        assert_eq!(reader.join().expect("reads"), pattern(wanted / BLOCK_BYTES + 1, 65536)[..4096]);
    });
    let order = scene.knobs.order.lock().expect("order").clone();
    assert_eq!(order[2], 50 * MIB, "the guest's block is the next that is fetched: {:?}", &order[..6]);
    eventually("complete", || device.is_complete());
}

#[test]
fn whole_block_writes_and_discards_fetch_nothing() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    let device = scene.open(demand_only);
    device.write(MIB, &pattern(99, 2 * MIB as usize)).expect("a write");
    device.discard(4 * MIB, MIB).expect("a discard");
    device.write_zeroes(5 * MIB, MIB, true).expect("zeroes");
    // Half a block more at each end: the edges are missing, so they are left alone.
    device.discard(7 * MIB - 32768, 65536 * 2).expect("a discard");
    assert_eq!(read(&device, MIB, 2 * MIB as usize), pattern(99, 2 * MIB as usize));
    assert_eq!(read(&device, 4 * MIB, 2 * MIB as usize), vec![0; 2 * MIB as usize]);
    assert_eq!(scene.knobs.fetches.load(Ordering::SeqCst), 0);
    let edge = read(&device, 7 * MIB - 65536, 65536);
    assert_eq!(edge, pattern(7 * 16, 65536), "a discard may leave a part as it was");
    // A small write needs the rest of its block.
    device.write(3 * MIB + 100, b"godwit").expect("a write");
    let mut expected = pattern(3 * 16 + 1, 65536);
    expected[100..106].copy_from_slice(b"godwit");
    assert_eq!(read(&device, 3 * MIB, 65536), expected);
    assert_eq!(scene.knobs.fetches.load(Ordering::SeqCst), 2);
}

/// The copier brings a block while the guest overwrites it: the guest's bytes stay.
#[test]
fn a_fetch_never_lands_over_a_write() {
    let mut scene = Scene::new(4 * MIB, |_| true);
    scene.knobs.hold(true);
    let device = scene.open(|_| {});
    eventually("a fetch is out", || !scene.knobs.order.lock().expect("order").is_empty());
    for block in 0..64 {
        device.write(block * BLOCK_BYTES, &pattern(1000 + block, 65536)).expect("a write");
    }
    scene.knobs.hold(false);
    eventually("complete", || device.is_complete());
    for block in 0..64 {
        assert_eq!(read(&device, block * BLOCK_BYTES, 65536), pattern(1000 + block, 65536), "block {block}");
    }
}

/// Eight guests write and read their own sectors while the copier runs and the source stutters.
#[test]
fn guests_see_their_own_writes_while_the_clone_fills() {
    let mut scene = Scene::new(32 * MIB, |block| block % 3 != 0);
    let device = scene.open(|config| config.copy_workers = 3);
    let knobs = Arc::clone(&scene.knobs);
    std::thread::scope(|scope| {
        for guest in 0..8u64 {
            let device = &device;
            scope.spawn(move || {
                for round in 0..150u64 {
                    let draw = pattern(guest << 32 | round, 8);
                    let draw = u64::from_le_bytes(draw.try_into().expect("eight bytes"));
                    let sector = draw % (32 * MIB / 4096 / 8) * 8 + guest;
                    let bytes = pattern(draw, 4096);
                    device.write(sector * 4096, &bytes).expect("a write");
                    assert_eq!(read(device, sector * 4096, 4096), bytes);
                    if round % 50 == 49 {
                        device.flush().expect("a flush");
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..5 {
                knobs.set_down(true);
                std::thread::park_timeout(Duration::from_millis(20));
                knobs.set_down(false);
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
    });
    eventually("complete", || device.is_complete());
    assert_eq!(device.status().mismatches, 0);
}

#[test]
fn a_byte_flipped_at_the_source_is_fetched_again_and_counted() {
    let mut scene = Scene::new(16 * MIB, |_| true);
    scene.knobs.flips.store(3, Ordering::SeqCst);
    let device = scene.open(|_| {});
    eventually("complete", || device.is_complete());
    assert_eq!(device.status().mismatches, 3);
    assert_same_file(&scene.folder.path().join("source.raw"), &scene.local());
}

/// Bytes that rot in the local file are found before the source is released; what the guest wrote is not "rot".
#[test]
fn a_byte_flipped_in_the_local_file_is_found_before_release() {
    let mut scene = Scene::new(16 * MIB, |_| true);
    let device = scene.open(|config| config.limits.cap_bytes_per_s = 20 << 20);
    let copied = || device.status().present_blocks > 20;
    eventually("some is copied", copied);
    device.write(5 * BLOCK_BYTES + 7, b"guest").expect("a write");
    scene.knobs.hold(true);
    let file = File::options().read(true).write(true).open(scene.local()).expect("the file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 * BLOCK_BYTES + 77).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], 3 * BLOCK_BYTES + 77).expect("rot");
    scene.knobs.hold(false);
    eventually("complete", || device.is_complete());
    assert_eq!(device.status().mismatches, 1);
    assert!(device.status().verified);
    assert_eq!(read(&device, 3 * BLOCK_BYTES, 65536), pattern(4, 65536));
    assert_eq!(read(&device, 5 * BLOCK_BYTES + 7, 5), b"guest");
}

#[test]
fn while_the_source_is_gone_reads_wait_and_then_go_on() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    let device = scene.open(demand_only);
    assert_eq!(read(&device, 0, 4096), pattern(1, 65536)[..4096]);
    scene.knobs.set_down(true);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&device, 5 * MIB, 4096));
        eventually("the loss is told", || device.status().source_lost_ms.is_some());
        assert!(device.status().source_error.expect("why").contains("is down"));
        // What is here is served meanwhile, and flushed.
        assert_eq!(read(&device, 100, 50), pattern(1, 65536)[100..150]);
        device.write(0, &pattern(5, 4096)).expect("a write");
        device.flush().expect("a flush");
        assert!(!reader.is_finished(), "no answer is invented");
        scene.knobs.set_down(false);
        assert_eq!(reader.join().expect("reads on"), pattern(81, 65536)[..4096]);
    });
    assert_eq!(device.status().source_lost_ms, None);
}

#[test]
fn a_policy_may_give_the_source_up() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    scene.knobs.set_down(true);
    let device = scene.open(|config| config.give_up_after = Some(Duration::from_millis(200)));
    let error = device.read(0, &mut [0; 512]).expect_err("nothing to read");
    assert!(matches!(error, VolumeError::SourceGone), "{error}");
    assert_eq!(error.errno(), libc::EIO);
}

#[test]
fn poison_fails_what_waits_and_what_comes() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    scene.knobs.hold(true);
    let device = scene.open(|_| {});
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|i| {
                scope.spawn({
                    let device = &device;
                    move || device.read(i * MIB, &mut [0; 512])
                })
            })
            .collect();
        eventually("asked for", || !device.prefetch(3 * MIB, 512));
        let earlier = godwit_api::ids::Epoch { n: EPOCH.n - 1, ..EPOCH };
        assert!(!device.poison(earlier), "an older epoch has no say over this one");
        assert!(device.poison(EPOCH));
        for reader in waiting {
            let error = reader.join().expect("ends").expect_err("fails");
            assert!(matches!(error, VolumeError::Poisoned(EPOCH)), "{error}");
        }
    });
    assert!(matches!(device.write(0, &[0; 65536]), Err(VolumeError::Poisoned(_))));
    assert!(matches!(device.flush(), Err(VolumeError::Poisoned(_))));
    assert!(matches!(device.discard(0, 65536), Err(VolumeError::Poisoned(_))));
    scene.knobs.hold(false);
}

/// A server that ends half way goes on where its map says, and fetches only the rest.
#[test]
fn hydration_resumes_from_the_durable_map() {
    let mut scene = Scene::new(32 * MIB, |_| true);
    let device = scene.open(|config| config.persist_bytes = 2 * MIB);
    eventually("a part is here", || device.status().map_writes >= 3);
    scene.knobs.set_down(true);
    device.write(31 * MIB, &pattern(77, 65536)).expect("a write");
    device.flush().expect("a flush");
    drop(device);
    let device = scene.reopen();
    assert_eq!(read(&device, 31 * MIB, 65536), pattern(77, 65536), "a flushed write is there");
    eventually("complete", || device.is_complete());
    let status = device.status();
    assert!(status.found_bytes >= 4 * MIB, "{} bytes were found again", status.found_bytes);
    assert!(status.hydrated_bytes < 32 * MIB && status.mismatches == 0 && status.verified, "{status:?}");
    for block in 0..496 {
        assert_eq!(read(&device, block * BLOCK_BYTES, 65536), pattern(block + 1, 65536), "block {block}");
    }
}

/// Made ahead of the handoff: connected, but nothing is read before the source's bytes are final.
#[test]
fn a_held_clone_reads_nothing_until_it_is_released() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    let device = scene.open(|config| config.held = true);
    eventually("connected", || device.status().connects == 4);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&device, 0, 4096));
        eventually("asked for", || !device.prefetch(0, 4096));
        let live = File::options().write(true).open(scene.folder.path().join("source.raw")).expect("the source");
        live.write_all_at(b"last words", 100).expect("a write");
        assert!(device.status().held && scene.knobs.order.lock().expect("order").is_empty() && !reader.is_finished());
        device.release();
        assert_eq!(&reader.join().expect("reads")[100..110], b"last words");
    });
    eventually("complete", || device.is_complete());
    assert!(device.status().verified && !device.status().held);
    assert_same_file(&scene.folder.path().join("source.raw"), &scene.local());
}

/// An orderly end leaves nothing to doubt: what is here is here at once, even without the source.
#[test]
fn after_an_orderly_end_nothing_is_compared_anew() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    let device = scene.open(demand_only);
    assert_eq!(read(&device, 0, 65536), pattern(1, 65536));
    device.write(10, b"mine").expect("a write");
    device.finish().expect("the end");
    let error = device.write(0, b"late").expect_err("too late");
    assert!(matches!(error, VolumeError::Finished), "{error}");
    drop(device);
    std::fs::rename(scene.folder.path().join("source.raw"), scene.folder.path().join("away")).expect("away");
    let device = scene.reopen();
    assert_eq!(read(&device, 10, 4), b"mine");
    assert_eq!(device.status().present_blocks, 1);
}

/// A crash may leave a write in the file that was never flushed. Whatever the first read after it says, stays so.
#[test]
fn a_write_that_a_crash_cut_off_does_not_change_its_mind() {
    let mut scene = Scene::new(8 * MIB, |_| true);
    let device = scene.open(demand_only);
    assert_eq!(read(&device, 0, 2 * MIB as usize)[..65536], pattern(1, 65536));
    device.save().expect("durable");
    device.write(3 * BLOCK_BYTES, b"flushed").expect("a write");
    device.flush().expect("a flush");
    device.write(5 * BLOCK_BYTES, b"unflushed").expect("a write");
    drop(device);
    let device = scene.reopen();
    let first = read(&device, 5 * BLOCK_BYTES, 65536);
    assert_eq!(read(&device, 3 * BLOCK_BYTES, 7), b"flushed");
    eventually("complete", || device.is_complete());
    assert!(read(&device, 5 * BLOCK_BYTES, 65536) == first, "it was seen, and must not change");
    assert_eq!(read(&device, 3 * BLOCK_BYTES, 7), b"flushed");
    assert!(device.status().verified && device.status().mismatches == 0, "{:?}", device.status());
}

/// Copied while the source still ran: only what changed since is fetched, and stale bytes are never seen.
#[test]
fn a_file_that_was_filled_before_the_handoff_is_compared_and_not_fetched() {
    let mut scene = Scene::new(64 * MIB, |block| block % 4 != 3);
    let stale = image(&scene.local(), 64 * MIB, |block| block % 4 != 3);
    // Since then: 20 blocks changed, one became a hole and one came to be.
    for block in (0..20).map(|n| 4 * n + 1) {
        stale.write_all_at(b"stale", block * BLOCK_BYTES + 999).expect("a write");
    }
    stale.write_all_at(&pattern(1, 65536), 503 * BLOCK_BYTES).expect("a block");
    let punched = backing_of(&stale);
    punched.punch(600 * BLOCK_BYTES, BLOCK_BYTES).expect("a hole");
    let device = scene.open(|config| config.limits.cap_bytes_per_s = 64 << 20);
    // A guest reads at once, whatever has been compared by then.
    for block in [1, 5, 503, 600, 602] {
        let expected = if block == 503 { vec![0; 65536] } else { pattern(block + 1, 65536) };
        assert!(read(&device, block * BLOCK_BYTES, 65536) == expected, "block {block}");
    }
    eventually("complete", || device.is_complete());
    let status = device.status();
    assert!(status.verified && status.mismatches == 0, "{status:?}");
    assert!(status.hydrated_bytes <= 30 * BLOCK_BYTES, "{} bytes were fetched", status.hydrated_bytes);
    assert!(status.found_bytes >= 700 * BLOCK_BYTES, "{} bytes were found", status.found_bytes);
    assert_same_file(&scene.folder.path().join("source.raw"), &scene.local());
}

fn backing_of(file: &File) -> &dyn godwit_volume::backing::Backing {
    file
}

/// Space is taken before anybody relies on it, so that a full disk is a refusal and not a stall half way.
#[test]
fn space_for_the_data_is_reserved_or_refused() {
    let mut scene = Scene::new(32 * MIB, |block| block % 2 == 0);
    let device = scene.open(demand_only);
    device.reserve().expect("there is room");
    let stored = std::fs::metadata(scene.local()).expect("the file").blocks() * 512;
    assert!((16 * MIB..18 * MIB).contains(&stored), "{stored} bytes are reserved for 16 MiB of data");
    assert_eq!(read(&device, 0, 65536), pattern(1, 65536));
    drop(device);

    let scene = Scene::new(32 * MIB, |_| true);
    let small = Tmpfs::mount("size=8m");
    let source = FileSource::new(scene.folder.path().join("source.raw"));
    let device = open_clone(small.0.path(), scene.size, Some(Arc::new(source)), demand_only);
    let error = device.reserve().expect_err("there is no room");
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    assert!(!error.is_transient());
}

/// A file system of memory that is gone with the test.
pub struct Tmpfs(pub TempDir);

impl Tmpfs {
    pub fn mount(options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), folder.path(), Some("tmpfs"), flags, Some(options)).expect("mounts (as root)");
        Self(folder)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn an_access_outside_of_the_volume_is_an_error() {
    let mut scene = Scene::new(MIB + 512, |_| true);
    let device = scene.open(|_| {});
    assert!(device.read(MIB, &mut [0; 513]).is_err());
    assert!(device.write(u64::MAX - 3, &[0; 8]).is_err());
    assert!(device.write_zeroes(MIB, 513, false).is_err());
    assert_eq!(read(&device, MIB, 512), pattern(17, 512));
}
