//! The one error of this crate: why an agent could not start, or had to stop. It must not know HTTP: callers of the
//! host API are answered with `ApiError`.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the agent's configuration is wrong: {0}")]
    Config(String),
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the journal {} cannot be used", path.display())]
    Journal { path: PathBuf, source: godwit_store::Error },
    /// Its Machines run on; a new agent resumes from what was committed last.
    #[error("the journal could not be written after {attempts} attempts")]
    JournalBroken { attempts: u32, source: godwit_store::Error },
    #[error("{what} in the journal cannot be read; a newer program may have written it")]
    Row { what: String, source: serde_json::Error },
    #[error("this machine is not ready to run Machines: {0}")]
    Needs(String),
    #[error(transparent)]
    JoinToken(#[from] godwit_base::join_token::JoinTokenError),
    #[error("control refused to admit this host; is {token} control's join-token?")]
    Join { token: String, source: godwit_base::http::client::CallError },
    #[error("control answered with an invalid host id")]
    Identity(#[source] godwit_api::ids::InvalidId),
    #[error("the identity {} is damaged", path.display())]
    DamagedIdentity { path: PathBuf },
    #[error("the driver cannot be used")]
    Driver(#[from] godwit_driver::Error),
    #[error("the network cannot be used")]
    Network(#[from] godwit_net::Error),
    #[error("images cannot be used")]
    Images(#[from] godwit_oci::Error),
    #[error("this host's agent runs (it answers at {}); stop it and its door first", socket.display())]
    StillRuns { socket: PathBuf },
    #[error("volume {volume} cannot be removed")]
    CleanVolume { volume: godwit_api::ids::MachineId, source: crate::organs::volumes::VolumeFault },
    #[error("the agent was told to stop before it had joined")]
    Stopped,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
