//! The host's volumes on disk: where each lies, the processes that serve it, and one lock a volume, because a Machine's
//! job and its volume's own may come to it at the same time. It must not decide anything about a Machine.
//!
//! ```text
//! DATA/volumes/<number>/ volume.raw   the blocks            keeper.json   what its keeper is told
//!                        map          which are here        precopy.json  what copies before the handoff is told
//!                        mnt/         the FUSE file         client.*      this host's certificate for the move
//!                        export/      what another host reads  precopy.result  what that did
//! ```

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_api::ids::{Epoch, MachineId};
use godwit_api::ticket::ExportGrant;
use godwit_api::volume::{PlacedVolume, VolumeFs};
use godwit_machine::Hydration;
use godwit_volume::host::{self, FileSystem, VolumeStatus};
use godwit_volume::pace::Limits;
use godwit_volume::roles;
use godwit_volume::spec::{AddressSpec, SourceSpec, TlsSpec, VolumeSpec};

use crate::config::Config;

mod ahead;
mod export;

/// What the certificates of a move are made out to: they are known by their keys, and each only to the other host.
const CERTIFICATE_NAME: &str = "godwit-move";
/// For a process that was started to answer.
const PROCESS_ANSWERS_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub enum VolumeFault {
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Volume(#[from] godwit_volume::VolumeError),
    #[error("the volume's {what} did not answer within {after_s} s: {log}")]
    Silent { what: &'static str, after_s: u64, log: String },
    #[error("the volume's {what} ended with {status}: {log}")]
    Ended { what: &'static str, status: std::process::ExitStatus, log: String },
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("the work was cut off")]
    CutOff,
}

type Result<T> = std::result::Result<T, VolumeFault>;

fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> VolumeFault {
    let path = path.into();
    move |source| VolumeFault::Io { action, path, source }
}

/// The organ. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    config: Arc<VolumesConfig>,
    /// How many volumes are being filled now: they share what the host allows.
    filling: Arc<AtomicU64>,
    locks: Arc<Mutex<HashMap<MachineId, Arc<tokio::sync::Mutex<()>>>>>,
}

struct VolumesConfig {
    dir: PathBuf,
    program: Vec<String>,
    listen: SocketAddr,
    export_ports: (u16, u16),
    rate_bytes_per_s: u64,
}

impl Volumes {
    pub fn new(config: &Config) -> Self {
        let config = VolumesConfig {
            dir: config.data_dir.join("volumes"),
            program: config.volume_program.clone(),
            listen: config.export_listen(),
            export_ports: config.export_ports,
            rate_bytes_per_s: config.rate_bytes_per_s,
        };
        Self { config: Arc::new(config), filling: Arc::default(), locks: Arc::default() }
    }

    pub async fn lock(&self, volume: &MachineId) -> tokio::sync::OwnedMutexGuard<()> {
        // One entry a volume of this host, and each is a whole one: a panic cannot leave it half-made.
        let lock = self.locks.lock().unwrap_or_else(PoisonError::into_inner).entry(volume.clone()).or_default().clone();
        lock.lock_owned().await
    }

    fn dir(&self, volume: &MachineId) -> PathBuf {
        self.config.dir.join(volume.as_str())
    }

    fn raw(&self, volume: &MachineId) -> PathBuf {
        self.dir(volume).join("volume.raw")
    }

    pub async fn create(&self, volume: &MachineId, placed: &PlacedVolume) -> Result<()> {
        let (dir, raw, placed) = (self.dir(volume), self.raw(volume), placed.clone());
        blocking(move || {
            std::fs::create_dir_all(&dir).map_err(io("make", &dir))?;
            Ok(host::create(&raw, placed.size_bytes, file_system(placed.fstype))?)
        })
        .await
    }

    /// An empty file for the blocks of a volume that comes from another host, and the certificate by which this host
    /// will read them: `certificate` is of the whole move.
    pub async fn make_replica(&self, volume: &MachineId, placed: &PlacedVolume, pair: &Pair) -> Result<()> {
        let (dir, raw, placed, pair) = (self.dir(volume), self.raw(volume), placed.clone(), pair.clone());
        blocking(move || {
            std::fs::create_dir_all(dir.join("mnt")).map_err(io("make", &dir))?;
            host::create(&raw, placed.size_bytes, FileSystem::Raw)?;
            write(&dir.join("client.pem"), &pair.certificate)?;
            write(&dir.join("client.key"), &pair.key)
        })
        .await
    }

    /// The certificate of a move's first volume, or a new one.
    pub async fn pair_of(&self, volume: &MachineId) -> Result<Pair> {
        let dir = self.dir(volume);
        blocking(move || Pair::read_or_draw(&dir.join("client.pem"), &dir.join("client.key"))).await
    }

    /// Nothing of it stays here.
    pub async fn remove(&self, volume: &MachineId) -> Result<()> {
        self.end_copy_ahead(volume).await?;
        self.stop_keeper(volume).await?;
        let dir = self.dir(volume);
        blocking(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &dir)(error)),
            _ => Ok(()),
        })
        .await
    }

    /// A device with the volume's blocks. Whole ones are shown by the kernel alone, others by a keeper.
    pub async fn attach(
        &self,
        volume: &MachineId,
        placed: &PlacedVolume,
        epoch: Epoch,
        hydration: Option<&Hydration>,
    ) -> Result<PathBuf> {
        let Some(hydration) = hydration else {
            self.stop_keeper(volume).await?;
            let raw = self.raw(volume);
            return blocking(move || Ok(host::attach(&raw)?)).await;
        };
        let spec = self.keeper_spec(volume, placed, epoch, hydration)?;
        self.tell_keeper(volume, &spec, &hydration.export).await?;
        let ready = |status: &VolumeStatus| status.keeper.loop_device.clone();
        if let Some(status) = self.living_keeper(&spec).await?
            && let Some(device) = ready(&status)
        {
            // It stood by for the handoff. Without a server there is no knowing; the next one reads the new spec.
            if status.clone.is_none_or(|clone| clone.held) {
                blocking(move || Ok(host::release(&spec).map(drop)?)).await?;
            }
            return Ok(device);
        }
        let child = self.start_keeper(volume)?;
        self.await_keeper(volume, &spec, child, ready).await
    }

    /// Ahead of the handoff: the keeper that `attach` will find, with its device. It reads nothing of the source before
    /// that. Volumes of a move that is given up are detached or removed, and it goes with them.
    pub async fn stand_by(
        &self,
        volume: &MachineId,
        placed: &PlacedVolume,
        epoch: Epoch,
        hydration: &Hydration,
    ) -> Result<()> {
        let spec = VolumeSpec { held: true, ..self.keeper_spec(volume, placed, epoch, hydration)? };
        self.tell_keeper(volume, &spec, &hydration.export).await?;
        let ready = |status: &VolumeStatus| status.keeper.loop_device.clone();
        if self.living_keeper(&spec).await?.as_ref().and_then(ready).is_some() {
            return Ok(());
        }
        let child = self.start_keeper(volume)?;
        self.await_keeper(volume, &spec, child, ready).await.map(drop)
    }

    /// Makes sure that the volume is being filled; what its keeper says.
    pub async fn fill(
        &self,
        volume: &MachineId,
        placed: &PlacedVolume,
        epoch: Epoch,
        hydration: &Hydration,
    ) -> Result<VolumeStatus> {
        let spec = self.keeper_spec(volume, placed, epoch, hydration)?;
        self.tell_keeper(volume, &spec, &hydration.export).await?;
        if let Some(report) = self.living_keeper(&spec).await? {
            return Ok(report);
        }
        let child = self.start_keeper(volume)?;
        self.await_keeper(volume, &spec, child, |report| Some(report.clone())).await
    }

    /// No device of it is left, and what was written is on disk.
    pub async fn detach(&self, volume: &MachineId) -> Result<()> {
        self.stop_keeper(volume).await?;
        let raw = self.raw(volume);
        blocking(move || {
            if !raw.exists() {
                return Ok(());
            }
            host::detach(&raw)?;
            Ok(host::sync(&raw)?)
        })
        .await
    }

    /// What its keeper says, if it has one.
    pub async fn look(&self, volume: &MachineId) -> Result<Option<VolumeStatus>> {
        match self.written_spec(volume).await? {
            Some(spec) => self.keeper(&spec).await,
            None => Ok(None),
        }
    }

    /// The device that shows it now, if one does.
    pub async fn device(&self, volume: &MachineId) -> Result<Option<PathBuf>> {
        if let Some(status) = self.look(volume).await? {
            return Ok(status.keeper.loop_device);
        }
        let raw = self.raw(volume);
        blocking(move || match raw.exists() {
            true => Ok(host::find(&raw)?),
            false => Ok(None),
        })
        .await
    }

    /// All IO of it fails for good, so that nothing hangs on a source that is away. The next keeper begins anew.
    pub async fn poison(&self, volume: &MachineId) -> Result<()> {
        let Some(spec) = self.written_spec(volume).await? else { return Ok(()) };
        blocking(move || Ok(host::poison(&spec)?)).await
    }

    async fn stop_keeper(&self, volume: &MachineId) -> Result<()> {
        let Some(spec) = self.written_spec(volume).await? else { return Ok(()) };
        let path = self.dir(volume).join("keeper.json");
        blocking(move || {
            host::stop(&spec)?;
            // Without its spec there is nothing to stop again.
            std::fs::remove_file(&path).map_err(io("remove", &path))
        })
        .await
    }

    /// A poisoned one serves nothing any more and only waits to be stopped: the next begins anew.
    async fn living_keeper(&self, spec: &VolumeSpec) -> Result<Option<VolumeStatus>> {
        let found = self.keeper(spec).await?;
        if !found.as_ref().is_some_and(|status| status.keeper.poisoned) {
            return Ok(found);
        }
        let spec = spec.clone();
        blocking(move || Ok(host::stop(&spec)?)).await?;
        Ok(None)
    }

    async fn keeper(&self, spec: &VolumeSpec) -> Result<Option<VolumeStatus>> {
        let spec = spec.clone();
        blocking(move || Ok(host::keeper_status(&spec))).await
    }

    /// Where a volume is read from.
    fn source_of(&self, volume: &MachineId, export: &ExportGrant) -> Result<SourceSpec> {
        let dir = self.dir(volume);
        let address = export.addr.parse().map_err(|_| {
            io("understand", &export.addr)(std::io::Error::new(std::io::ErrorKind::InvalidData, "no address and port"))
        })?;
        Ok(SourceSpec::Nbd {
            address: AddressSpec::Tcp(address),
            export: export.export.clone(),
            tls: Some(TlsSpec {
                certificates: dir.join("client.pem"),
                key: dir.join("client.key"),
                trusted: dir.join("server.pem"),
                server_name: CERTIFICATE_NAME.to_owned(),
            }),
        })
    }

    fn keeper_spec(
        &self,
        volume: &MachineId,
        placed: &PlacedVolume,
        epoch: Epoch,
        hydration: &Hydration,
    ) -> Result<VolumeSpec> {
        let dir = self.dir(volume);
        Ok(VolumeSpec {
            volume: placed.id.as_str().to_owned(),
            epoch,
            size_bytes: placed.size_bytes,
            local: self.raw(volume),
            map: dir.join("map"),
            source: Some(self.source_of(volume, &hydration.export)?),
            held: false,
            limits: self.limits(hydration.rate_bytes_per_s),
            mountpoint: dir.join("mnt"),
            control: dir.join("keeper.sock"),
        })
    }

    /// Writes down what its keeper is to do. One that stood by for another export than was granted in the end is stopped:
    /// nobody has used it yet.
    async fn tell_keeper(&self, volume: &MachineId, spec: &VolumeSpec, export: &ExportGrant) -> Result<()> {
        let before = self.written_spec(volume).await?;
        if before.is_some_and(|before| before.held && before.source != spec.source) {
            self.stop_keeper(volume).await?;
        }
        let dir = self.dir(volume);
        let (path, text, certificate) = (dir.join("keeper.json"), to_json(spec), export.server_certificate.clone());
        blocking(move || {
            std::fs::create_dir_all(dir.join("mnt")).map_err(io("make", &dir))?;
            write(&dir.join("server.pem"), &certificate)?;
            write(&path, &text)
        })
        .await
    }

    /// The move's own bound, and this volume's share of the host's.
    pub fn limits(&self, rate_bytes_per_s: u64) -> Limits {
        let share = self.config.rate_bytes_per_s / self.filling.load(Ordering::Relaxed).max(1);
        let mut limits = Limits::default();
        let caps = [rate_bytes_per_s, share].into_iter().filter(|cap| *cap > 0);
        limits.cap_bytes_per_s = caps.fold(limits.cap_bytes_per_s, u64::min);
        limits
    }

    /// Counts as being filled until it is dropped.
    pub fn count_filling(&self) -> Filling {
        self.filling.fetch_add(1, Ordering::Relaxed);
        Filling(self.filling.clone())
    }

    /// What changed since its keeper was told: other volumes have come or gone.
    pub async fn set_limits(&self, volume: &MachineId, limits: Limits) -> Result<()> {
        let Some(spec) = self.written_spec(volume).await? else { return Ok(()) };
        blocking(move || Ok(host::set_limits(&spec, limits).map(drop)?)).await
    }

    /// As it was last told its keeper.
    async fn written_spec(&self, volume: &MachineId) -> Result<Option<VolumeSpec>> {
        let path = self.dir(volume).join("keeper.json");
        blocking(move || match path.exists() {
            true => Ok(Some(VolumeSpec::read(&path)?)),
            false => Ok(None),
        })
        .await
    }

    fn start_keeper(&self, volume: &MachineId) -> Result<tokio::process::Child> {
        let dir = self.dir(volume);
        self.spawn(&dir, "keeper", &dir.join("keeper.json"))
    }

    /// The process outlives this agent; its words go to a file beside its spec.
    fn spawn(&self, dir: &Path, role: &'static str, spec: &Path) -> Result<tokio::process::Child> {
        let log = dir.join("process.log");
        let stderr = std::fs::File::options().create(true).append(true).open(&log).map_err(io("write", &log))?;
        let program = self.config.program.first().map(String::as_str).unwrap_or_default();
        let mut command = tokio::process::Command::new(program);
        command.args(&self.config.program[1..]).arg(role).arg(spec);
        // A group of its own: a terminal's signals to the agent are not for it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).process_group(0);
        // May be dropped: that kills nothing, and the runtime reaps it whenever it ends.
        command.spawn().map_err(io("start", program))
    }

    async fn await_keeper<T>(
        &self,
        volume: &MachineId,
        spec: &VolumeSpec,
        mut child: tokio::process::Child,
        ready: impl Fn(&VolumeStatus) -> Option<T>,
    ) -> Result<T> {
        let dir = self.dir(volume);
        let looking = async {
            loop {
                let ended = self.failed("keeper", &dir, &mut child);
                if let Some(found) = self.keeper(spec).await?.as_ref().and_then(&ready) {
                    return Ok(found);
                }
                ended?;
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(PROCESS_ANSWERS_WITHIN, looking).await {
            Ok(found) => found,
            Err(_) => Err(self.silent("keeper", &dir)),
        }
    }

    /// Nobody answers for one that has failed; one that ended because another is there leaves that to answer.
    fn failed(&self, what: &'static str, dir: &Path, child: &mut tokio::process::Child) -> Result<()> {
        match child.try_wait() {
            Ok(Some(status)) if status.code() != Some(i32::from(roles::EXIT_TAKEN)) => {
                Err(VolumeFault::Ended { what, status, log: last_words(dir) })
            }
            // What cannot be looked at is waited for as long as one that lives.
            _ => Ok(()),
        }
    }

    fn silent(&self, what: &'static str, dir: &Path) -> VolumeFault {
        VolumeFault::Silent { what, after_s: PROCESS_ANSWERS_WITHIN.as_secs(), log: last_words(dir) }
    }

    /// What only a filling needed. Its keeper goes on until the next start, and the servers that it may have to start
    /// again must not look for a source any more.
    pub async fn settle(&self, volume: &MachineId) -> Result<()> {
        let dir = self.dir(volume);
        let spec = self.written_spec(volume).await?;
        blocking(move || {
            if let Some(spec) = spec {
                write(&dir.join("keeper.json"), &to_json(&VolumeSpec { source: None, ..spec }))?;
            }
            for name in ["client.pem", "client.key"] {
                let path = dir.join(name);
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(io("remove", path)(error));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    pub async fn allocated_bytes(&self, volume: &MachineId) -> u64 {
        let raw = self.raw(volume);
        blocking(move || Ok(host::allocated_bytes(&raw)?)).await.unwrap_or_default()
    }
}

fn last_words(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("process.log")).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}

/// One volume that is being filled.
pub struct Filling(Arc<AtomicU64>);

impl Drop for Filling {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A certificate and its key, PEM both.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Pair {
    fn read_or_draw(certificate: &Path, key: &Path) -> Result<Self> {
        if certificate.exists() && key.exists() {
            let read = |path: &Path| std::fs::read_to_string(path).map_err(io("read", path));
            return Ok(Self { certificate: read(certificate)?, key: read(key)? });
        }
        let drawn = rcgen::generate_simple_self_signed(vec![CERTIFICATE_NAME.to_owned()])?;
        let pair = Self { certificate: drawn.cert.pem(), key: drawn.signing_key.serialize_pem() };
        if let Some(dir) = certificate.parent() {
            std::fs::create_dir_all(dir).map_err(io("make", dir))?;
        }
        // The key first: a certificate without one is drawn anew.
        write(key, &pair.key)?;
        write(certificate, &pair.certificate)?;
        Ok(pair)
    }
}

fn file_system(fstype: VolumeFs) -> FileSystem {
    match fstype {
        VolumeFs::Ext4 => FileSystem::Ext4,
        VolumeFs::Raw => FileSystem::Raw,
    }
}

/// Our own specs always become JSON: no map of theirs has keys that are not text.
fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Whole or not at all, and for nobody else's eyes; left alone when it says so already. Not synced: the journal has
/// what a power cut takes, and a key without its certificate is drawn anew.
fn write(path: &Path, text: &str) -> Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|stands| stands == text) {
        return Ok(());
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let written = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(io("write", path))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(VolumeFault::CutOff))
}
