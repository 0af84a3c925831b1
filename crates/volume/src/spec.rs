//! What a keeper and its server are told, as one JSON file. It owns the raw form and how it becomes a device; it must
//! not know who wrote it.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_api::ids::Epoch;
use serde::{Deserialize, Serialize};

use crate::device::{CloneConfig, CloneDevice, CloneParts};
use crate::error::{Result, VolumeError};
use crate::map::{Geometry, Identity, LiveMap};
use crate::map_file;
use crate::nbd::client::{Address, ClientTls, Target};
use crate::nbd::tls;
use crate::pace::Limits;
use crate::shm::SharedBoard;
use crate::source::Source;
use crate::source::file::FileSource;
use crate::source::remote::NbdSource;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    pub volume: String,
    pub epoch: Epoch,
    pub size_bytes: u64,
    /// The sparse file on this host.
    pub local: PathBuf,
    pub map: PathBuf,
    pub source: Option<SourceSpec>,
    /// Started ahead of the handoff: nothing is read of the source until `host::release`. False in the spec of a keeper
    /// that starts after it.
    #[serde(default)]
    pub held: bool,
    #[serde(default)]
    pub limits: Limits,
    /// An empty folder: the FUSE file appears in it as `volume.raw`.
    pub mountpoint: PathBuf,
    /// Where the keeper listens, and beside it (`.server`) the server.
    pub control: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SourceSpec {
    File(PathBuf),
    Nbd { address: AddressSpec, export: String, tls: Option<TlsSpec> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum AddressSpec {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSpec {
    pub certificates: PathBuf,
    pub key: PathBuf,
    pub trusted: PathBuf,
    pub server_name: String,
}

impl VolumeSpec {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(VolumeError::io(format!("reading {}", path.display())))?;
        serde_json::from_slice(&text)
            .map_err(|error| VolumeError::io(format!("understanding {}", path.display()))(error.into()))
    }
    pub fn geometry(&self) -> Result<Geometry> {
        Ok(Geometry::new(self.size_bytes)?)
    }
    pub fn server_control(&self) -> PathBuf {
        let mut path = self.control.clone().into_os_string();
        path.push(".server");
        path.into()
    }

    /// The device over the shared map that the keeper holds: what an earlier server left in it counts, otherwise what
    /// is durable.
    pub fn open(&self, shared: &File) -> Result<CloneDevice> {
        let geometry = self.geometry()?;
        let backing = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.local)
            .map_err(VolumeError::io(format!("opening {}", self.local.display())))?;
        let len = backing.metadata().map_err(VolumeError::io("measuring the volume's file"))?.len();
        if len < self.size_bytes {
            backing.set_len(self.size_bytes).map_err(VolumeError::io("sizing the volume's file"))?;
        }
        let identity = Identity::new(&self.volume, self.epoch);
        let (map, slots, head, pages) = map_file::open(&self.map, identity, geometry)?;
        let board = SharedBoard::map(shared, LiveMap::board_words(&geometry))?;
        let live = match LiveMap::adopt(Box::new(board), geometry, self.epoch) {
            Ok(live) => live,
            Err(board) => LiveMap::fresh(board, geometry, self.epoch, head, &pages)
                .ok_or_else(|| VolumeError::Process { what: "the shared map is too small".to_owned() })?,
        };
        let mut config = CloneConfig::new(self.epoch);
        config.limits = self.limits;
        config.held = self.held;
        let source = self.source.as_ref().map(SourceSpec::open).transpose()?;
        let parts = CloneParts { backing: Arc::new(backing), map_store: Box::new(map), slots, live, source };
        CloneDevice::start(config, parts)
    }
}

impl SourceSpec {
    pub(crate) fn open(&self) -> Result<Arc<dyn Source>> {
        match self {
            Self::File(path) => Ok(Arc::new(FileSource::new(path))),
            Self::Nbd { address, export, tls } => {
                let address = match address {
                    AddressSpec::Tcp(addr) => Address::Tcp(*addr),
                    AddressSpec::Unix(path) => Address::Unix(path.clone()),
                };
                let mut target = Target::new(address, export.clone());
                target.tls = tls.as_ref().map(TlsSpec::open).transpose()?;
                Ok(Arc::new(NbdSource::new(target)))
            }
        }
    }
}

impl TlsSpec {
    fn open(&self) -> Result<ClientTls> {
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(VolumeError::io(format!("reading {}", path.display())));
        let identity = tls::Identity {
            certificates_pem: read(&self.certificates)?,
            key_pem: read(&self.key)?,
            trusted_pem: read(&self.trusted)?,
        };
        Ok(ClientTls { config: identity.client()?, server_name: self.server_name.clone() })
    }
}
