//! Copies into and out of the volumes of a Machine that is stopped. While one is under way it holds the volumes' locks, as a
//! step would that comes to them: a start, a move or an end of the Machine waits until it is over, which is bounded. It
//! changes no state of the host, and leaves the volumes as it found them: attached nowhere.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use godwit_api::ApiError;
use godwit_api::ids::MachineId;
use godwit_api::machine::MachineState;
use godwit_api::volume::VolumeFs;
use godwit_base::telemetry::chain;
use godwit_driver::{BoxFuture, Session, SessionRequest, VolumeFs as DriverFs, VolumeMount};

use super::HostApi;
use super::inside::{not_running, refused};
use crate::engine::Holding;
use crate::organs::volumes::VolumeFault;

/// So long it may keep a start waiting.
pub const COPY_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Another copy, or a job at its volume.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// What is being done with a Machine that is about to rest is done by then.
const REST_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// A copy that has begun, and what must be done when it is over.
pub struct Copy {
    pub session: Session,
    pub after: After,
}

pub struct After {
    released: BoxFuture<'static, ()>,
    held: Attached,
}

impl After {
    /// The session was dropped; nobody waits for the volumes any more when this returns.
    pub async fn settle(self, api: &HostApi) {
        self.released.await;
        self.held.let_go(api).await;
    }
}

/// Volumes that nobody else comes to meanwhile, and those of them that go when it is over: what is still being filled stays
/// with its keeper.
#[derive(Default)]
struct Attached {
    locks: Vec<OwnedMutexGuard<()>>,
    whole: Vec<MachineId>,
}

/// Is there anything to copy to or from, once the Machine is stopped?
pub async fn has_volumes(api: &HostApi, machine: &MachineId) -> bool {
    api.inputs.look(machine).await.is_some_and(|holding| !holding.record.placement.config.mounts.is_empty())
}

pub async fn open(api: &HostApi, machine: &MachineId, request: &SessionRequest) -> Result<Copy, ApiError> {
    if request.copies().is_none() {
        return Err(not_running(machine));
    }
    let mut numbers: Vec<MachineId> = resting(api, machine).await?.volumes.iter().map(number).collect();
    // One order for all, so that two copies never wait for each other.
    numbers.sort();
    let mut held = Attached::default();
    for number in &numbers {
        let lock = tokio::time::timeout(LOCK_TIMEOUT, api.effects.organs().volumes.lock(number)).await;
        let busy = |_| {
            let text = format!("Machine {machine}: another copy or a job is at its volumes; try again");
            ApiError { retry_after_s: Some(5), ..ApiError::conflict(text) }
        };
        held.locks.push(lock.map_err(busy)?);
    }
    // Whoever starts it from here on comes to the locks.
    let begun = begin(api, machine, request, &mut held).await;
    match begun {
        Ok((session, released)) => Ok(Copy { session, after: After { released, held } }),
        Err(error) => {
            held.let_go(api).await;
            Err(error)
        }
    }
}

fn number(record: &godwit_machine::record::Record) -> MachineId {
    record.placement.machine.clone()
}

/// As the host holds it, once it rests here: a stop that was just told may still be putting things away.
async fn resting(api: &HostApi, machine: &MachineId) -> Result<Holding, ApiError> {
    let resting = async {
        loop {
            match rests(api, machine).await {
                Err(error) if error.retry_after_s.is_some() => tokio::time::sleep(LOOK).await,
                other => return other,
            }
        }
    };
    match tokio::time::timeout(REST_TIMEOUT, resting).await {
        Ok(holding) => holding,
        Err(_) => rests(api, machine).await,
    }
}

async fn rests(api: &HostApi, machine: &MachineId) -> Result<Holding, ApiError> {
    let holding = api.inputs.look(machine).await;
    let holding = holding.ok_or_else(|| ApiError::not_found(format!("Machine {machine} is not on this host")))?;
    let state = holding.record.state;
    let rests = matches!(state, MachineState::Created | MachineState::Stopped | MachineState::Failed);
    if !rests || holding.busy || holding.record.running || !holding.record.held {
        let text = format!("Machine {machine} is {}, and something is being done with it; try again", state.as_str());
        return Err(ApiError { retry_after_s: Some(1), ..ApiError::conflict(text) });
    }
    Ok(holding)
}

async fn begin(
    api: &HostApi,
    machine: &MachineId,
    request: &SessionRequest,
    held: &mut Attached,
) -> Result<(Session, BoxFuture<'static, ()>), ApiError> {
    let holding = resting(api, machine).await?;
    let mut mounts = Vec::new();
    for mount in &holding.record.placement.config.mounts {
        let of_mount = |record: &&godwit_machine::record::Record| {
            record.placement.volume.as_ref().is_some_and(|placed| placed.id.as_str() == mount.volume)
        };
        let record = holding.volumes.iter().find(of_mount);
        let Some((record, placed)) = record.and_then(|record| Some((record, record.placement.volume.as_ref()?))) else {
            return Err(ApiError::conflict(format!("Machine {machine}: volume {} is not on this host", mount.volume)));
        };
        if record.lent.is_some() {
            let text = format!("Machine {machine}: volume {} is on its way to another host", mount.volume);
            return Err(ApiError::conflict(text));
        }
        if placed.fstype != VolumeFs::Ext4 {
            continue;
        }
        let attached = attach(api, record, placed).await;
        let device = attached.map_err(|error| ApiError::internal(format!("Machine {machine}: {}", chain(&error))))?;
        if record.hydration.is_none() {
            held.whole.push(number(record));
        }
        mounts.push(VolumeMount {
            device,
            guest_path: mount.path.clone(),
            fstype: DriverFs::Ext4,
            read_only: false,
            uid: mount.uid,
            gid: mount.gid,
        });
    }
    let begun = api.effects.organs().driver.volumes_session(&mounts, request).await;
    let begun = begun.map_err(|error| refused(machine, &error))?;
    Ok((begun.session, begun.released))
}

async fn attach(
    api: &HostApi,
    record: &godwit_machine::record::Record,
    placed: &godwit_api::volume::PlacedVolume,
) -> Result<PathBuf, VolumeFault> {
    let volumes = &api.effects.organs().volumes;
    let number = &record.placement.machine;
    // Taken back from another host, it may still be served to it: whoever writes is the only one.
    if record.hydration.is_none() {
        volumes.end_export(number).await?;
    }
    volumes.attach(number, placed, record.epoch(), record.hydration.as_ref()).await
}

impl Attached {
    async fn let_go(self, api: &HostApi) {
        for number in &self.whole {
            if let Err(error) = api.effects.organs().volumes.detach(number).await {
                // Whoever comes next finds the device and uses it.
                tracing::warn!(volume = %number, error = chain(&error), "it stays attached after a copy");
            }
        }
        drop(self.locks);
    }
}
