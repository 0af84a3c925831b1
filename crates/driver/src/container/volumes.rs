//! Copies into and out of volumes that no Machine has: a shim that holds no Machine is started for one copy, and mounts them
//! in a namespace of its own, so that they are free again with its end. How it mounts and copies is the shim's.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::Options;
use super::client::Client;
use crate::error::{Error, Result};
use crate::protocol::{VOLUMES_ARGUMENT, VolumesOrder};
use crate::session::{SessionRequest, VolumesSession};
use crate::volume_mount::{VolumeMount, check_volumes};

/// A device that something else still holds is waited for by then (a former process's unmount may be under way), and a
/// journal is replayed.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// After the hang-up it notices at its next read or write, or is killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn session(
    options: &Options,
    volumes: &[VolumeMount],
    request: &SessionRequest,
) -> Result<VolumesSession> {
    request.check()?;
    check_volumes(volumes, &[])?;
    let (ours, theirs) = StdUnixStream::pair().map_err(Error::io("cannot make a socket"))?;
    let ours = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    let ours = ours.map_err(Error::io("cannot use a socket"))?;
    let mut child = Command::new(&options.shim)
        .arg(VOLUMES_ARGUMENT)
        .env_clear()
        // Where it mounts; nobody else sees it.
        .current_dir(&options.run_dir)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        // What it has to say goes through the socket; what is left are panics.
        .stderr(Stdio::inherit())
        // Signals of a terminal to the agent are not for it.
        .process_group(0)
        .spawn()
        .map_err(Error::io("cannot spawn the shim"))?;
    let order = VolumesOrder { volumes: volumes.to_vec(), request: request.clone() };
    match Client::copy_of_volumes(ours, &order, BEGIN_TIMEOUT).await {
        Ok(session) => Ok(VolumesSession { session, released: Box::pin(async move { end(&mut child).await }) }),
        Err(error) => {
            end(&mut child).await;
            Err(error)
        }
    }
}

/// Returns when the process has ended, and its mounts with it.
async fn end(child: &mut Child) {
    if tokio::time::timeout(END_TIMEOUT, child.wait()).await.is_err() {
        tracing::warn!("a copy that was hung up goes on; it is killed");
        // Also what the kernel keeps waiting (a volume whose source is away) still holds its devices until it has ended.
        let _ = child.kill().await;
    }
}
