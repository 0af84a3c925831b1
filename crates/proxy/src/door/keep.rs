//! What the agent last told, on disk: a door that starts while its agent is away serves what it knew.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use godwit_api::door::DoorUpdate;

use super::Door;
use super::machines::Machines;
use crate::Error;

const FILE: &str = "door.json";
/// Changes are gathered this long before they are written.
const GATHER: Duration = Duration::from_millis(500);

pub struct Keeper {
    path: PathBuf,
}

impl Keeper {
    pub fn new(data_dir: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(data_dir).map_err(|source| Error::File { path: data_dir.to_owned(), source })?;
        Ok(Self { path: data_dir.join(FILE) })
    }

    /// A copy that cannot be read is no reason not to start: the agent tells all anew.
    pub fn load_into(&self, machines: &Machines) {
        let read = godwit_base::durable::read(&self.path);
        let parsed = read.and_then(|bytes| {
            bytes.map(|bytes| serde_json::from_slice::<DoorUpdate>(&bytes).map_err(io::Error::other)).transpose()
        });
        match parsed {
            // A closing that it shows is followed again when the agent tells of it.
            Ok(Some(update)) => drop(machines.apply(update)),
            Ok(None) => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "the kept Machines cannot be read"),
        }
    }

    pub(super) async fn run(self, door: Arc<Door>) {
        let mut revision = door.machines.revision.subscribe();
        loop {
            if revision.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(GATHER).await;
            revision.mark_unchanged();
            // A closing is told anew by the agent.
            let snapshot = door.machines.snapshot(false);
            let path = self.path.clone();
            let written = tokio::task::spawn_blocking(move || {
                let bytes = serde_json::to_vec(&snapshot).map_err(io::Error::other)?;
                godwit_base::durable::write(&path, &bytes, 0o600)
            });
            if let Ok(Err(error)) = written.await {
                tracing::warn!(path = %self.path.display(), %error, "cannot keep what the agent told");
            }
        }
    }
}
