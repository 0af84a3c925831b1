//! Who this host is: drawn once, admitted by control, kept in the data folder. A folder that was wiped is a new host.
//! It must not know what the identity is used for.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use godwit_api::HostId;
use godwit_api::endpoint::Empty;
use godwit_api::endpoints::FleetJoin;
use godwit_api::fleet::{Join, JoinRole};
use godwit_base::TaskGroup;
use godwit_base::backoff::Backoff;
use godwit_base::http::client::{CallError, Client};
use godwit_base::{durable, secret};

use crate::config::Config;
use crate::error::Error;

pub(crate) const IDENTITY: &str = "identity.json";
/// Written before the first call, so that a host that was killed while it joined joins as the same.
const INCARNATION: &str = "incarnation";
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Kept with mode 0600: whoever reads it is this host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    pub host: HostId,
    /// By which it names itself to control.
    pub key: String,
    /// By which control names itself to it.
    pub control_key: String,
    pub incarnation: String,
}

/// The identity in the data folder, or a new one that control gives. While control is away it is asked again.
pub async fn identify(config: &Config, group: &TaskGroup) -> Result<Identity, Error> {
    let path = config.data_dir.join(IDENTITY);
    if let Some(bytes) = durable::read(&path).map_err(Error::io("read", &path))? {
        return serde_json::from_slice(&bytes).map_err(|_| Error::DamagedIdentity { path });
    }
    let incarnation = incarnation(&config.data_dir)?;
    let joined = tokio::select! {
        joined = join(config, &incarnation) => joined?,
        () = group.stopping() => return Err(Error::Stopped),
    };
    let identity = Identity {
        host: HostId::parse(&joined.id).map_err(Error::Identity)?,
        key: joined.key,
        control_key: joined.control_key,
        incarnation,
    };
    // Four strings always become JSON.
    let bytes = serde_json::to_vec_pretty(&identity).unwrap_or_default();
    durable::write(&path, &bytes, 0o600).map_err(Error::io("write", &path))?;
    tracing::info!(host = %identity.host, "admitted to the fleet");
    Ok(identity)
}

fn incarnation(data_dir: &Path) -> Result<String, Error> {
    let path = data_dir.join(INCARNATION);
    if let Some(bytes) = durable::read(&path).map_err(Error::io("read", &path))? {
        return Ok(String::from_utf8_lossy(&bytes).trim().to_owned());
    }
    let drawn = format!("{:032x}", secret::random_u128());
    durable::write(&path, drawn.as_bytes(), 0o600).map_err(Error::io("write", &path))?;
    Ok(drawn)
}

fn token(config: &Config) -> Result<String, Error> {
    if let Some(token) = &config.join_token {
        return Ok(token.clone());
    }
    let Some(path) = &config.join_token_file else {
        return Err(Error::Config(
            "this host has not joined yet, and there is no join_token or join_token_file".into(),
        ));
    };
    Ok(godwit_base::join_token::read(path)?)
}

async fn join(config: &Config, incarnation: &str) -> Result<godwit_api::fleet::Joined, Error> {
    let client = Client::tcp(&config.control_url, Some(token(config)?));
    let request = Join {
        role: JoinRole::Host,
        name: config.name.clone(),
        region: config.region.clone(),
        incarnation: incarnation.to_owned(),
        agent_url: config.advertise_url.clone(),
        door_addr: config.door_addr.clone(),
    };
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match client.call::<FleetJoin>(&[], &Empty {}, &request).await {
            Ok(joined) => return Ok(joined),
            Err(error @ CallError::Answered(_)) if !is_passing(&error) => {
                return Err(Error::Join { token: token_place(config), source: error });
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error = godwit_base::telemetry::chain(error), "cannot join yet");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

/// Where the refused token came from.
fn token_place(config: &Config) -> String {
    let file = config.join_token_file.as_ref().filter(|_| config.join_token.is_none());
    file.map_or_else(|| "join_token of the configuration".to_owned(), |path| path.display().to_string())
}

fn is_passing(error: &CallError) -> bool {
    matches!(error, CallError::Answered(answer) if answer.code >= 500 || answer.is_retryable())
}
