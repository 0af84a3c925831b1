//! The server of one volume: the clone device and its front end, in a process that may die at any time. It outlives its
//! keeper, and hands what they share to the next one. It must not know how it is watched.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use godwit_api::ids::Epoch;
use serde::{Deserialize, Serialize};

use super::control::{self, Answer};
use crate::device::CloneDevice;
use crate::error::{Result, VolumeError};
use crate::front::Frontend;
use crate::front::fuse::FuseFront;
use crate::pace::Limits;
use crate::process::{self, Watched};
use crate::spec::VolumeSpec;

/// Where it finds what its keeper holds, and the lock that it alone holds.
pub(super) const FUSE_FD: RawFd = 3;
pub(super) const MAP_FD: RawFd = 4;
pub(super) const LOCK_FD: RawFd = 5;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum ServerAsk {
    Status,
    /// Everything that was acknowledged, and every bit of the map.
    Flush,
    /// The same, and no change is taken from now on: the end is near.
    Finish,
    Limits {
        limits: Limits,
    },
    /// The source may be read now.
    Release,
    /// For a server without a keeper.
    Poison,
    /// Answered with an `Adoption` and three descriptors: FUSE, map, and this process.
    Adopt,
}

/// Who hands over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Adoption {
    pub pid: u32,
    pub volume: String,
    pub epoch: Epoch,
    pub size_bytes: u64,
    /// It serves no more: an earlier keeper died while it stopped.
    pub finished: bool,
}

struct Server {
    spec: VolumeSpec,
    device: Arc<CloneDevice>,
    shared: Vec<RawFd>,
}

/// The server's whole life, started by a keeper. Ends when the file system is unmounted.
pub fn serve(spec: &VolumeSpec, keeper_pid: u32) -> Result<()> {
    process::prepare_to_serve();
    tracing::info!(keeper_pid, volume = %spec.volume, epoch = %spec.epoch, "serving");
    // SAFETY: the keeper put these descriptors here for us, and nothing else in this process knows them.
    let [fuse, shared, _only] = [FUSE_FD, MAP_FD, LOCK_FD].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let (fuse, shared) = (File::from(fuse), File::from(shared));
    let itself = Watched::of(std::process::id()).map_err(VolumeError::io("opening our own process"))?;
    let device = Arc::new(spec.open(&shared)?);
    // The front end has a descriptor of its own; this one stays open for a keeper that asks for it.
    let for_front = fuse.try_clone().map_err(VolumeError::io("keeping the FUSE descriptor"))?;
    let handed = vec![fuse.as_raw_fd(), shared.as_raw_fd(), itself.as_raw_fd()];
    let server = Server { spec: spec.clone(), device: Arc::clone(&device), shared: handed };
    let listening = control::listen_with_descriptors(&spec.server_control(), move |ask| server.answer(&ask))?;
    let mut front = FuseFront::new(for_front);
    front.start(device)?;
    front.wait();
    drop(listening);
    Ok(())
}

impl Server {
    fn answer(&self, ask: &ServerAsk) -> Answer<serde_json::Value> {
        if *ask == ServerAsk::Adopt {
            let adoption = Adoption {
                pid: std::process::id(),
                volume: self.spec.volume.clone(),
                epoch: self.spec.epoch,
                size_bytes: self.spec.size_bytes,
                finished: self.device.is_finished(),
            };
            return Answer { value: json(&adoption), descriptors: self.shared.clone() };
        }
        let value = self.act(ask).map_err(|error| error.to_string()).and_then(|()| json(&self.device.status()));
        Answer { value, descriptors: Vec::new() }
    }

    fn act(&self, ask: &ServerAsk) -> Result<()> {
        match ask {
            ServerAsk::Status | ServerAsk::Adopt => {}
            ServerAsk::Flush => self.device.save()?,
            ServerAsk::Finish => self.device.finish()?,
            ServerAsk::Limits { limits } => self.device.set_limits(*limits),
            ServerAsk::Release => self.device.release(),
            ServerAsk::Poison => {
                self.device.poison(self.spec.epoch);
            }
        }
        Ok(())
    }
}

fn json(value: &impl Serialize) -> std::result::Result<serde_json::Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}
