//! Things that several tests use: files with data and holes, clones of them, waiting with a deadline, outside tools.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_api::ids::Epoch;
use godwit_volume::map::{BLOCK_BYTES, Geometry, Identity, LiveMap};
use godwit_volume::shm::SharedBoard;
use godwit_volume::source::Source;
use godwit_volume::{CloneConfig, CloneDevice, CloneParts, map_file};

pub const EPOCH: Epoch = Epoch { generation: 1, n: 7 };
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until it holds, or fails after a minute.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Bytes that differ everywhere and are the same each time.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A sparse file: blocks where `data(block)` holds have content, the others are holes.
pub fn image(path: &Path, size: u64, data: impl Fn(u64) -> bool) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("a file");
    file.set_len(size).expect("its size");
    for block in (0..size.div_ceil(BLOCK_BYTES)).filter(|block| data(*block)) {
        let at = block * BLOCK_BYTES;
        let len = BLOCK_BYTES.min(size - at) as usize;
        file.write_all_at(&pattern(block + 1, len), at).expect("a block");
    }
    file.sync_all().expect("synced");
    file
}

/// A clone in `folder`, as its first start or a later one would open it.
pub fn open_clone(
    folder: &Path,
    size: u64,
    source: Option<Arc<dyn Source>>,
    tune: impl FnOnce(&mut CloneConfig),
) -> CloneDevice {
    let geometry = Geometry::new(size).expect("a size");
    let path = folder.join("volume.raw");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path).expect("the file");
    file.set_len(size).expect("its size");
    let identity = Identity::new("vol_1", EPOCH);
    let (map, slots, head, pages) = map_file::open(&folder.join("volume.map"), identity, geometry).expect("the map");
    let words = LiveMap::board_words(&geometry);
    let board = SharedBoard::map(&SharedBoard::create(words).expect("shared memory"), words).expect("mapped");
    let live = LiveMap::fresh(Box::new(board), geometry, EPOCH, head, &pages).expect("a board that is large enough");
    let mut config = CloneConfig::new(EPOCH);
    tune(&mut config);
    let parts = CloneParts { backing: Arc::new(file), map_store: Box::new(map), slots, live, source };
    CloneDevice::start(config, parts).expect("the clone starts")
}

pub fn read(device: &CloneDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xAA; len];
    device.read(offset, &mut buf).expect("a read");
    buf
}

/// A tool of Debian's, or a failure that names its package.
pub fn tool(name: &str, package: &str) -> Command {
    let found = ["/usr/bin", "/usr/sbin", "/sbin", "/bin"].map(|folder| PathBuf::from(folder).join(name));
    match found.into_iter().find(|path| path.exists()) {
        Some(path) => Command::new(path),
        None => panic!("`{name}` is missing: apt-get install {package}"),
    }
}

/// Runs it to its end; it must succeed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub fn assert_same_file(a: &Path, b: &Path) {
    let (a, b) = (std::fs::read(a).expect("read"), std::fs::read(b).expect("read"));
    assert_eq!(a.len(), b.len());
    let differs = a.iter().zip(&b).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the files differ first at this byte");
}

/// SIGKILL. Dead already is as good.
pub fn kill_hard(pid: u32) {
    if pid != 0 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
    }
}
