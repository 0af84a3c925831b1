//! What a host's agent asks of its volumes, as functions that block and are each bounded: files, loop devices over
//! whole volumes, and keepers from outside. It must not know Machines, nor start processes: an agent starts
//! `roles`, each with its spec, and asks here what became of them. Every function may be called again after a crash
//! of its caller.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use godwit_api::ids::Epoch;
use serde::{Deserialize, Serialize};

use crate::device::CloneStatus;
use crate::error::{Result, VolumeError};
use crate::exporter::{ExportSpec, ExporterAsk, ExporterStatus};
use crate::front::fuse;
use crate::front::loop_device::{FileId, LoopDevice};
use crate::keeper::{self, KeeperAsk, KeeperStatus, ServerAsk, control};
use crate::lock::{Lock, path_of};
use crate::map::{Geometry, Identity, Slots};
use crate::pace::Limits;
use crate::precopy::{self, PrecopyAsk, PrecopySpec, PrecopyStatus};
use crate::process::{Watched, within};
use crate::spec::VolumeSpec;

/// For making a file system; 100 GiB take a fifth of a second on a quiet disk.
const CREATE_BOUND: Duration = Duration::from_secs(60);
/// For a sync, which may have gigabytes to write.
const SYNC_BOUND: Duration = Duration::from_secs(120);
const LOOP_BOUND: Duration = Duration::from_secs(10);
/// For a question that is answered from memory.
const ASK_BOUND: Duration = Duration::from_secs(5);
/// For a keeper's stop: its own bounds, and then its end.
const STOP_BOUND: Duration = Duration::from_secs(40);
const END_BOUND: Duration = Duration::from_secs(10);

/// What is put into a new volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    Ext4,
    /// Nothing: zeros.
    Raw,
}

/// Makes a volume's sparse file with an empty file system, whole or not at all, and durable. A finished one of this
/// size is left as it is; one of another size is an error.
pub fn create(path: &Path, size_bytes: u64, file_system: FileSystem) -> Result<()> {
    Geometry::new(size_bytes)?;
    match std::fs::metadata(path) {
        Ok(found) if found.len() == size_bytes => return Ok(()),
        Ok(found) => {
            let what = format!("{} is there already and has {} bytes", path.display(), found.len());
            return Err(VolumeError::Process { what });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(VolumeError::io(format!("looking for {}", path.display()))(error)),
    }
    let making = making(path)?;
    let what = || VolumeError::io(format!("making {}", path.display()));
    // Left from a try that was cut short.
    gone_is_fine(std::fs::remove_file(&making)).map_err(what())?;
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&making).map_err(what())?;
    file.set_len(size_bytes).map_err(what())?;
    if file_system == FileSystem::Ext4 {
        make_ext4(&making)?;
    }
    let (path, bound) = (path.to_owned(), SYNC_BOUND);
    within("syncing a new volume", bound, move || {
        let what = || VolumeError::io(format!("making {}", path.display()));
        file.sync_all().map_err(what())?;
        std::fs::rename(&making, &path).map_err(what())?;
        sync_folder(&path)
    })
}

/// `x` is made as `.x.making` beside it.
fn making(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| VolumeError::Process { what: "a volume needs a name".to_owned() })?;
    Ok(path.with_file_name(format!(".{}.making", name.to_string_lossy())))
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(VolumeError::io(format!("syncing {}", folder.display())))
}

fn gone_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A new file's holes are zeros: mke2fs sees that and marks the inode tables as done, so that nothing is written to
/// them now nor by the kernel at the first mount. The journal is left a hole as well.
fn make_ext4(path: &Path) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |what: &str| VolumeError::io(format!("{what} mke2fs"));
    let mut child = command.spawn().map_err(failed("starting"))?;
    let watched = Watched::of(child.id()).map_err(failed("watching"))?;
    let ended = watched.ended(Some(CREATE_BOUND)).map_err(failed("watching"))?;
    if !ended {
        let _ = child.kill();
    }
    // Its complaints fit into the pipe's buffer; more of them would be one that does not end, above.
    let output = child.wait_with_output().map_err(failed("waiting for"))?;
    if !ended {
        return Err(VolumeError::Late { what: "mke2fs".to_owned(), bound_ms: CREATE_BOUND.as_millis() as u64 });
    }
    if output.status.success() {
        return Ok(());
    }
    let text: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(VolumeError::Process { what: format!("mke2fs failed ({}): {text}", output.status) })
}

/// Deletes a volume's file, durably; one that is gone is fine.
pub fn remove(path: &Path) -> Result<()> {
    let (path, making) = (path.to_owned(), making(path)?);
    // Freeing a large file's extents takes a while.
    within("deleting a volume", SYNC_BOUND, move || {
        for path in [&path, &making] {
            gone_is_fine(std::fs::remove_file(path))
                .map_err(VolumeError::io(format!("deleting {}", path.display())))?;
        }
        match path.parent().map(Path::exists) {
            Some(true) => sync_folder(&path),
            _ => Ok(()),
        }
    })
}

/// Makes what was written to a file durable.
pub fn sync(path: &Path) -> Result<()> {
    let path = path.to_owned();
    within("syncing a volume", SYNC_BOUND, move || {
        let sync = File::open(&path).and_then(|file| file.sync_all());
        sync.map_err(VolumeError::io(format!("syncing {}", path.display())))
    })
}

/// What a file takes of its disk.
pub fn allocated_bytes(path: &Path) -> Result<u64> {
    let found = std::fs::metadata(path).map_err(VolumeError::io(format!("measuring {}", path.display())))?;
    Ok(found.blocks() * 512)
}

/// A loop device over a whole volume's file, with direct IO: the one that is over it already, or a new one.
pub fn attach(file: &Path) -> Result<PathBuf> {
    let file = file.to_owned();
    within("attaching a loop device", LOOP_BOUND, move || {
        if let Some(device) = find_device(&file)? {
            return Ok(device.path);
        }
        LoopDevice::attach(&file).map(|device| device.path)
    })
}

/// The loop device over this file, if there is one: the same file, whatever its names are.
pub fn find(file: &Path) -> Result<Option<PathBuf>> {
    let file = file.to_owned();
    within("finding a loop device", LOOP_BOUND, move || Ok(find_device(&file)?.map(|device| device.path)))
}

fn find_device(file: &Path) -> Result<Option<LoopDevice>> {
    let what = || VolumeError::io(format!("looking at {}", file.display()));
    let id = FileId::of(file).map_err(what())?;
    Ok(LoopDevice::find(id, &file.canonicalize().map_err(what())?))
}

/// Detaches whatever loop device is over this file, and waits until it is gone. A device that somebody still uses is
/// an error: it goes with its last user, and this may be asked again.
pub fn detach(file: &Path) -> Result<()> {
    let file = file.to_owned();
    within("detaching a loop device", 2 * LOOP_BOUND, move || {
        while let Some(device) = find_device(&file)? {
            if !device.detach(LOOP_BOUND)? {
                return Err(VolumeError::Front { what: format!("{} is still in use", device.path.display()) });
            }
        }
        Ok(())
    })
}

/// What a keeper and its server say of themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub keeper: KeeperStatus,
    /// `None` while no server answers.
    pub clone: Option<CloneStatus>,
}

/// `None`: no keeper answers.
pub fn keeper_status(spec: &VolumeSpec) -> Option<VolumeStatus> {
    let (control, server) = (spec.control.clone(), spec.server_control());
    let ask = move || {
        let keeper = control::ask_within(&control, &KeeperAsk::Status, ASK_BOUND)?;
        Ok(VolumeStatus { keeper, clone: control::ask_within(&server, &ServerAsk::Status, ASK_BOUND).ok() })
    };
    within("asking a keeper", 2 * ASK_BOUND, ask).ok()
}

/// How fast the copier may go from now on (until the server is started anew: then the spec's word counts).
pub fn set_limits(spec: &VolumeSpec, limits: Limits) -> Result<CloneStatus> {
    let server = spec.server_control();
    within("asking a server", ASK_BOUND, move || control::ask_within(&server, &ServerAsk::Limits { limits }, ASK_BOUND))
}

/// After the handoff, for a keeper that was started `held`: reads go on from here. May be asked again.
pub fn release(spec: &VolumeSpec) -> Result<CloneStatus> {
    let server = spec.server_control();
    within("releasing a volume", ASK_BOUND, move || control::ask_within(&server, &ServerAsk::Release, ASK_BOUND))
}

/// Makes everything durable that was acknowledged, and every bit of the map.
pub fn flush(spec: &VolumeSpec) -> Result<CloneStatus> {
    let server = spec.server_control();
    within("flushing a volume", SYNC_BOUND, move || control::ask_within(&server, &ServerAsk::Flush, SYNC_BOUND))
}

/// Fails all IO of a volume for good, also what waits: with its keeper, with its server alone, or with neither.
pub fn poison(spec: &VolumeSpec) -> Result<()> {
    let (control, server, mountpoint) = (spec.control.clone(), spec.server_control(), spec.mountpoint.clone());
    within("poisoning a volume", 3 * ASK_BOUND, move || {
        let by_keeper = control::ask_within::<_, KeeperStatus>(&control, &KeeperAsk::Poison, ASK_BOUND);
        if by_keeper.is_err() {
            // The flag matters to servers that come after this one; without either there are none.
            let _ = control::ask_within::<_, CloneStatus>(&server, &ServerAsk::Poison, ASK_BOUND);
            fuse::abort(&mountpoint);
        }
        Ok(())
    })
}

/// Ends a volume's front end: loop device, mount, server and keeper, whichever of them there are, and returns when
/// nothing of them is left. What was acknowledged and the map are durable then, unless it was poisoned. Does not wait
/// for a source. A loop device that somebody still uses goes with its last user. If it fails, it may be asked again.
pub fn stop(spec: &VolumeSpec) -> Result<()> {
    let spec = spec.clone();
    within("stopping a volume", 2 * STOP_BOUND, move || {
        let asked = control::ask_within::<_, KeeperStatus>(&spec.control, &KeeperAsk::Stop, STOP_BOUND);
        if let Err(error) = asked {
            tracing::info!(error = %crate::error::chain(&error), "no keeper answered to a stop");
        }
        // Waits for its end, and does what is left to do.
        keeper::stop_without_keeper(&spec, END_BOUND)
    })
}

/// Whether a volume needs its source no more, by its durable map: then a raw loop device may serve it from the next
/// start on, and with the source released the map may be deleted. A map that is not there is not whole: whoever
/// deleted it knows better.
pub fn is_whole(map: &Path, volume: &str, epoch: Epoch, size_bytes: u64) -> Result<bool> {
    let geometry = Geometry::new(size_bytes)?;
    match std::fs::read(map) {
        Ok(bytes) => Ok(Slots::load(Identity::new(volume, epoch), geometry, &bytes)?.1.complete),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(VolumeError::io(format!("reading the map {}", map.display()))(error)),
    }
}

/// `None`: no exporter answers.
pub fn export_status(spec: &ExportSpec) -> Option<ExporterStatus> {
    let control = spec.control.clone();
    within("asking an exporter", ASK_BOUND, move || control::ask_within(&control, &ExporterAsk::Status, ASK_BOUND)).ok()
}

/// Ends an exporter and returns when it is gone. One that is gone already is fine.
pub fn export_stop(spec: &ExportSpec) -> Result<()> {
    let control = spec.control.clone();
    within("stopping an exporter", ASK_BOUND + END_BOUND, move || {
        let _ = control::ask_within::<_, ExporterStatus>(&control, &ExporterAsk::Stop, ASK_BOUND);
        Lock::take(&path_of(&control), END_BOUND).map(drop)
    })
}

/// What a pre-copy that ended well did in all. `None`: it still runs, or did not end well.
pub fn precopy_result(spec: &PrecopySpec) -> Option<PrecopyStatus> {
    serde_json::from_slice(&std::fs::read(precopy::result_of(&spec.control)).ok()?).ok()
}

/// `None`: no pre-copy runs.
pub fn precopy_status(spec: &PrecopySpec) -> Option<PrecopyStatus> {
    let control = spec.control.clone();
    within("asking a pre-copy", ASK_BOUND, move || control::ask_within(&control, &PrecopyAsk::Status, ASK_BOUND)).ok()
}

/// Ends a pre-copy and returns when nothing of it writes any more. One that is over is fine.
pub fn precopy_stop(spec: &PrecopySpec) -> Result<()> {
    let control = spec.control.clone();
    within("stopping a pre-copy", ASK_BOUND + SYNC_BOUND, move || {
        let _ = control::ask_within::<_, PrecopyStatus>(&control, &PrecopyAsk::Stop, ASK_BOUND);
        // It still syncs what it copied.
        Lock::take(&path_of(&control), SYNC_BOUND).map(drop)
    })
}
