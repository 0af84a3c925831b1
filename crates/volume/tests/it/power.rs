//! Power cuts. An ext4 lives on a hydrating clone whose backing file and map record every write, hole and sync. Then
//! the log is replayed to the states that a disk may hold after a cut: all that was synced, plus any subset of the
//! sectors written since. In each state the map vouches only for blocks that were durable, the clone opened on it
//! hydrates to the end, every acknowledged flush holds, and (for whole file systems) `e2fsck -fn` finds nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use godwit_volume::backing::Backing;
use godwit_volume::front::Frontend;
use godwit_volume::front::fuse::{self, FuseFront};
use godwit_volume::front::loop_device::LoopDevice;
use godwit_volume::map::{BLOCK_BYTES, Geometry, Identity, LiveMap, SlotWrite, Slots};
use godwit_volume::map_file::MapStore;
use godwit_volume::shm::SharedBoard;
use godwit_volume::source::file::FileSource;
use godwit_volume::source::{Extent, Source};
use godwit_volume::{CloneConfig, CloneDevice, CloneParts};

use crate::support::{EPOCH, eventually, pattern, run, tool};

const SIZE: u64 = 16 << 20;
/// What a disk writes whole or not at all. Under ext4 it is a block: its superblock, of two small sectors under one
/// checksum, is lost on a disk that tears it, with a clone beneath or without.
const SECTOR: u64 = 512;
const EXT4_BLOCK: u64 = 4096;
/// How many states CI looks at; `GODWIT_POWER_STATES` asks for more.
const STATES: u64 = 300;

/// One effect on the disk, in the order in which it happened.
enum Effect {
    Data {
        offset: u64,
        bytes: Vec<u8>,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    Map {
        offset: u64,
        bytes: Vec<u8>,
    },
    SyncData,
    SyncMap,
    /// A guest's flush was acknowledged: from here on, what it wrote before must be found.
    Promise {
        version: u64,
    },
}

#[derive(Default)]
struct Log(Mutex<Vec<Effect>>);

impl Log {
    fn push(&self, effect: Effect) {
        self.0.lock().expect("the log").push(effect);
    }
}

/// The backing file, with every effect recorded once it happened (and syncs once they returned).
struct Recorded {
    file: File,
    log: Arc<Log>,
    /// Orders effects as the file sees them.
    order: Mutex<()>,
}

impl Backing for Recorded {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let _order = self.order.lock().expect("the order");
        self.log.push(Effect::Data { offset, bytes: buf.to_vec() });
        self.file.write_all_at(buf, offset)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _order = self.order.lock().expect("the order");
        self.log.push(Effect::Zero { offset, len });
        Backing::punch(&self.file, offset, len)
    }
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch(offset, len)
    }
    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let _order = self.order.lock().expect("the order");
        self.log.push(Effect::SyncData);
        Ok(())
    }
    fn extents(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        Backing::extents(&self.file, offset, len)
    }
}

struct RecordedMap(Arc<Log>);

impl MapStore for RecordedMap {
    fn write(&self, slot: &SlotWrite) -> io::Result<()> {
        self.0.push(Effect::Map { offset: slot.offset, bytes: slot.bytes.clone() });
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.0.push(Effect::SyncMap);
        Ok(())
    }
}

/// A small deterministic draw.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*: good enough to choose sectors.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// The disk after a cut: for the data and the map, what was synced and what was written since.
struct Disk {
    data: Vec<u8>,
    map: Vec<u8>,
    pending: Vec<(bool, u64, Vec<u8>)>,
    /// The last version that a guest was told is safe.
    promised: u64,
}

impl Disk {
    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Data { offset, bytes } => self.pending.push((false, *offset, bytes.clone())),
            Effect::Zero { offset, len } => self.pending.push((false, *offset, vec![0; *len as usize])),
            Effect::Map { offset, bytes } => self.pending.push((true, *offset, bytes.clone())),
            Effect::SyncData => self.settle(false),
            Effect::SyncMap => self.settle(true),
            Effect::Promise { version } => self.promised = *version,
        }
    }
    fn settle(&mut self, map: bool) {
        let (settled, rest) = std::mem::take(&mut self.pending).into_iter().partition(|(of_map, ..)| *of_map == map);
        self.pending = rest;
        for (_, offset, bytes) in Vec::from_iter::<Vec<(bool, u64, Vec<u8>)>>(settled) {
            let place = if map { &mut self.map } else { &mut self.data };
            place[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
    }
    /// Any subset of the sectors that were not synced may have reached the disk.
    fn cut(&self, whole: u64, draw: &mut Draw) -> (Vec<u8>, Vec<u8>) {
        let (mut data, mut map) = (self.data.clone(), self.map.clone());
        // From nothing to nearly all.
        let of_hundred = draw.below(101);
        for (of_map, offset, bytes) in &self.pending {
            let place = if *of_map { &mut map } else { &mut data };
            for (i, sector) in bytes.chunks(whole as usize).enumerate() {
                if draw.below(100) < of_hundred {
                    let at = *offset as usize + i * whole as usize;
                    place[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        (data, map)
    }
}

fn start(
    backing: Arc<dyn Backing>,
    map_store: Box<dyn MapStore>,
    loaded: (Slots, LiveMap),
    source: &Path,
    tune: impl FnOnce(&mut CloneConfig),
) -> CloneDevice {
    let mut config = CloneConfig::new(EPOCH);
    tune(&mut config);
    let source: Arc<dyn Source> = Arc::new(FileSource::new(source));
    let (slots, live) = loaded;
    CloneDevice::start(config, CloneParts { backing, map_store, slots, live, source: Some(source) }).expect("starts")
}

fn load(map: &[u8]) -> (Slots, LiveMap) {
    let geometry = Geometry::new(SIZE).expect("a size");
    let (slots, head, pages) =
        Slots::load(Identity::new("vol_1", EPOCH), geometry, map).expect("one slot of each pair is whole");
    let words = LiveMap::board_words(&geometry);
    let board = SharedBoard::map(&SharedBoard::create(words).expect("memory"), words).expect("mapped");
    (slots, LiveMap::fresh(Box::new(board), geometry, EPOCH, head, &pages).expect("large enough"))
}

fn empty_map() -> Vec<u8> {
    let geometry = Geometry::new(SIZE).expect("a size");
    let mut map = vec![0; geometry.map_file_bytes() as usize];
    for write in Slots::create(Identity::new("vol_1", EPOCH), geometry).1 {
        map[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }
    map
}

fn sparse(path: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("a file");
    file.set_len(SIZE).expect("its size");
    file
}

fn states() -> u64 {
    std::env::var("GODWIT_POWER_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(STATES)
}

/// Where the guest of this test writes its versions: one sector in each of 64 places, and whole blocks now and then.
const PLACES: u64 = 64;

fn place_of(version: u64) -> u64 {
    (version * 29 % PLACES) * (SIZE / PLACES)
}

/// A guest writes numbered sectors and flushes; the disk is cut anywhere.
#[test]
fn after_any_power_cut_the_map_vouches_only_for_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("source.raw");
    let original = crate::support::image(&source, SIZE, |block| block % 5 != 0);
    let mut expected_source = vec![0; SIZE as usize];
    original.read_exact_at(&mut expected_source, 0).expect("the source");
    let log = Arc::new(Log::default());
    let recorded =
        Recorded { file: sparse(&folder.path().join("volume.raw")), log: Arc::clone(&log), order: Mutex::new(()) };
    let map = empty_map();
    let device = start(Arc::new(recorded), Box::new(RecordedMap(Arc::clone(&log))), load(&map), &source, |config| {
        config.persist_bytes = 1 << 20;
        config.limits.cap_bytes_per_s = 24 << 20;
    });
    // The guest: version after version, each with its number in it, a flush after every third.
    let mut version = 0;
    while !device.is_complete() || version < 200 {
        version += 1;
        match version % 7 {
            // A whole block, which needs no fetch, and a discard of another beside it.
            0 => {
                device.write(place_of(version), &pattern(version, BLOCK_BYTES as usize)).expect("a write");
                device.discard(place_of(version) + BLOCK_BYTES, BLOCK_BYTES).expect("a discard");
            }
            _ => device.write(place_of(version), &pattern(version, SECTOR as usize)).expect("a write"),
        }
        if version % 3 == 0 {
            device.flush().expect("a flush");
            log.push(Effect::Promise { version });
        }
        assert!(version < 1_000_000, "hydration ends");
    }
    drop(device);
    let effects = std::mem::take(&mut *log.0.lock().expect("the log"));

    let mut draw = Draw(0x676f_6477_6974);
    let states = states();
    let mut looked_at = 0;
    let mut disk = Disk { data: vec![0; SIZE as usize], map, pending: Vec::new(), promised: 0 };
    // Cuts are dense where the clone is not complete yet, and anywhere else too.
    let mut cuts: Vec<u64> = (0..states).map(|_| draw.below(effects.len() as u64)).collect();
    cuts.sort_unstable();
    let mut at = 0;
    for cut in cuts {
        while (at as u64) <= cut {
            disk.apply(&effects[at]);
            at += 1;
        }
        let (data, map) = disk.cut(SECTOR, &mut draw);
        check_state(&expected_source, &data, &map, &disk);
        looked_at += 1;
    }
    assert_eq!(looked_at, states);
    println!("{states} states of {} effects", effects.len());
}

/// In this state: an untouched present block is the source's; every promised sector is there.
fn check_state(source: &[u8], data: &[u8], map: &[u8], disk: &Disk) {
    let (_, live) = load(map);
    let block_of =
        |bytes: &'_ [u8], block: u64| bytes[(block * BLOCK_BYTES) as usize..][..BLOCK_BYTES as usize].to_vec();
    for block in 0..SIZE / BLOCK_BYTES {
        if live.present(block) && !live.written(block) {
            // An unflushed write may have reached it in part; then some sectors differ, and only those of a place.
            let (found, wanted) = (block_of(data, block), block_of(source, block));
            let differing = found.chunks(512).zip(wanted.chunks(512)).filter(|(a, b)| a != b).count();
            let is_place = block % (SIZE / PLACES / BLOCK_BYTES) <= 1;
            assert!(differing == 0 || is_place, "block {block}: {differing} sectors are not the source's");
        }
    }
    // The newest promised version of each place, unless a later one was written over it.
    for place in 0..PLACES {
        let newest = (1..=disk.promised).rev().find(|version| place_of(*version) == place * (SIZE / PLACES));
        let Some(newest) = newest else { continue };
        let at = place_of(newest);
        assert!(live.present(at / BLOCK_BYTES), "the block of promised version {newest} is forgotten");
        assert!(live.written(at / BLOCK_BYTES), "that version {newest} is the guest's is forgotten");
        let found = &data[at as usize..(at + SECTOR) as usize];
        let later = (newest..newest + 3 * PLACES).filter(|version| place_of(*version) == at);
        let known =
            later.into_iter().any(|version| found == &pattern(version, BLOCK_BYTES as usize)[..SECTOR as usize]);
        assert!(known, "place {place} holds neither version {newest} nor a later one");
    }
}

/// A file system on the loop device over the FUSE file over the recorded clone, all of it taken down at the end.
struct Mounted {
    folder: tempfile::TempDir,
    front: FuseFront,
    device: LoopDevice,
}

impl Mounted {
    fn new(clone: &Arc<CloneDevice>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (fuse_at, at) = (folder.path().join("fuse"), folder.path().join("ext4"));
        for path in [&fuse_at, &at] {
            std::fs::create_dir(path).expect("a folder");
        }
        let mut front = FuseFront::new(fuse::mount(&fuse_at).expect("mounts (as root)"));
        front.start(Arc::clone(clone)).expect("serves");
        let device = LoopDevice::attach(&fuse_at.join(fuse::FILE_NAME)).expect("a loop device");
        let mounted = Self { folder, front, device };
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some(&mounted.device.path), &at, Some("ext4"), flags, None::<&str>).expect("mounts");
        mounted
    }
    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("ext4")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.root(), nix::mount::MntFlags::MNT_DETACH);
        let _ = self.device.let_go();
        let _ = fuse::unmount(&self.folder.path().join("fuse"));
        self.front.wait();
    }
}

fn file_of(version: u64) -> Vec<u8> {
    pattern(version, 3_000 + (version as usize * 1_777) % 90_000)
}

/// What hydration makes of a state: missing blocks come from the source, and so do those that verification finds to
/// differ although no guest wrote to them.
fn hydrated(source: &[u8], data: &[u8], live: &LiveMap) -> Vec<u8> {
    let mut result = data.to_vec();
    for block in (0..SIZE / BLOCK_BYTES).filter(|block| !live.written(*block)) {
        let range = (block * BLOCK_BYTES) as usize..((block + 1) * BLOCK_BYTES) as usize;
        result[range.clone()].copy_from_slice(&source[range]);
    }
    result
}

/// The same by the real device.
fn hydrate(source: &Path, folder: &Path, data: &[u8], map: &[u8]) -> Vec<u8> {
    let path = folder.join("after.raw");
    let file = sparse(&path);
    file.write_all_at(data, 0).expect("the state");
    let map_file = File::options().read(true).write(true).create(true).truncate(true).open(folder.join("after.map"));
    let map_file = map_file.expect("a map");
    map_file.write_all_at(map, 0).expect("the state");
    let device = start(Arc::new(file), Box::new(map_file), load(map), source, |_| {});
    eventually("complete", || device.is_complete());
    drop(device);
    std::fs::read(path).expect("the result")
}

/// After the cut the file system's journal is replayed, then nothing is wrong, and every file that was fsynced is there.
#[test]
fn ext4_on_a_hydrating_clone_survives_any_power_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, content) = (folder.path().join("source.raw"), folder.path().join("content"));
    std::fs::create_dir(&content).expect("a folder");
    for index in 0..20 {
        std::fs::write(content.join(format!("old{index}")), pattern(index, 150_000)).expect("a file");
    }
    let mut mkfs = tool("mkfs.ext4", "e2fsprogs");
    mkfs.args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", "-d"]).arg(&content).arg(&source);
    run(mkfs.arg("16M"));
    let expected_source = std::fs::read(&source).expect("the source");

    let log = Arc::new(Log::default());
    let recorded =
        Recorded { file: sparse(&folder.path().join("volume.raw")), log: Arc::clone(&log), order: Mutex::new(()) };
    let map = empty_map();
    let store = Box::new(RecordedMap(Arc::clone(&log)));
    let clone = Arc::new(start(Arc::new(recorded), store, load(&map), &source, |config| {
        config.persist_bytes = 512 << 10;
        config.limits.cap_bytes_per_s = 2 << 20;
    }));
    {
        let mounted = Mounted::new(&clone);
        let mut version = 0;
        while !clone.is_complete() || version < 60 {
            version += 1;
            let file = File::create(mounted.root().join(format!("v{version}"))).expect("a file");
            file.write_all_at(&file_of(version), 0).expect("a write");
            file.sync_all().expect("a sync");
            log.push(Effect::Promise { version });
            if version > 8 {
                std::fs::remove_file(mounted.root().join(format!("v{}", version - 8))).expect("removed");
            }
        }
        nix::mount::umount(&mounted.root()).expect("unmounts");
    }
    drop(clone);
    let effects = std::mem::take(&mut *log.0.lock().expect("the log"));

    let mut draw = Draw(0x766f_6c75_6d65);
    let mut disk = Disk { data: vec![0; SIZE as usize], map, pending: Vec::new(), promised: 0 };
    let mut cuts: Vec<u64> = (0..states()).map(|_| draw.below(effects.len() as u64)).collect();
    cuts.sort_unstable();
    let mut at = 0;
    for (number, cut) in cuts.iter().enumerate() {
        while (at as u64) <= *cut {
            disk.apply(&effects[at]);
            at += 1;
        }
        let (data, map) = disk.cut(EXT4_BLOCK, &mut draw);
        let result = hydrated(&expected_source, &data, &load(&map).1);
        if number % 10 == 0 {
            assert!(
                hydrate(&source, folder.path(), &data, &map) == result,
                "cut {cut}: the device makes something else"
            );
        }
        check_file_system(folder.path(), &result, disk.promised);
    }
    println!("{} states of {} effects, {} fsynced files", cuts.len(), effects.len(), disk.promised);
}

fn check_file_system(folder: &Path, image: &[u8], promised: u64) {
    let path = folder.join("check.raw");
    std::fs::write(&path, image).expect("the state");
    let replay = tool("e2fsck", "e2fsprogs").args(["-y", "-E", "journal_only"]).arg(&path).output().expect("e2fsck");
    assert!(replay.status.code().is_some_and(|code| code <= 1), "{replay:?}");
    run(tool("e2fsck", "e2fsprogs").arg("-fn").arg(&path));
    if promised > 0 {
        let found = run(tool("debugfs", "e2fsprogs").args(["-R", &format!("cat /v{promised}")]).arg(&path));
        assert!(found.stdout == file_of(promised), "the fsynced file v{promised} is not whole");
    }
}
