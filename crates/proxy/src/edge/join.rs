//! Who this edge is: an id and a key that control gave when the edge joined, kept in a file.

use std::path::Path;
use std::time::Duration;

use godwit_api::endpoint::Empty;
use godwit_api::endpoints::FleetJoin;
use godwit_api::fleet::{Join, JoinRole};
use godwit_api::ids::EdgeId;
use godwit_base::backoff::Backoff;
use godwit_base::http::client::Client;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::config::EdgeConfig;
use crate::Error;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// As it stands in the file. `incarnation` is written first, so that a join whose answer was lost is asked again as
/// the same edge.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    incarnation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<EdgeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Identity {
    pub id: EdgeId,
    pub key: String,
}

/// Reads the identity, or joins until control admits this edge.
pub async fn identity(config: &EdgeConfig, shutdown: &CancellationToken) -> Result<Identity, Error> {
    let path = &config.identity_file;
    let mut kept = match read(path)? {
        Some(Kept { id: Some(id), key: Some(key), .. }) => return Ok(Identity { id, key }),
        Some(kept) => kept,
        None => {
            let unusable = |source| Error::File { path: path.clone(), source };
            godwit_base::folder::private_parent(path).map_err(unusable)?;
            let incarnation = format!("{:032x}", godwit_base::secret::random_u128());
            let kept = Kept { incarnation, id: None, key: None };
            write(path, &kept)?;
            kept
        }
    };
    let identity = tokio::select! {
        joined = join(config, &kept.incarnation) => joined?,
        () = shutdown.cancelled() => return Err(Error::Stopped),
    };
    kept.id = Some(identity.id.clone());
    kept.key = Some(identity.key.clone());
    write(path, &kept)?;
    tracing::info!(edge = %identity.id, "joined the fleet");
    Ok(identity)
}

async fn join(config: &EdgeConfig, incarnation: &str) -> Result<Identity, Error> {
    let token = join_token(config)?;
    let client = Client::tcp(&config.control_url, Some(token));
    let request = Join {
        role: JoinRole::Edge,
        name: config.name.clone(),
        region: config.region.clone(),
        incarnation: incarnation.to_owned(),
        agent_url: String::new(),
        door_addr: String::new(),
    };
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        match client.call::<FleetJoin>(&[], &Empty {}, &request).await {
            Ok(joined) => {
                let id = EdgeId::parse(&joined.id).map_err(|error| Error::config("control_url", error.to_string()))?;
                return Ok(Identity { id, key: joined.key });
            }
            Err(source) => {
                let refused = matches!(
                    &source,
                    godwit_base::http::client::CallError::Answered(error) if error.is_callers_fault()
                );
                if refused {
                    return Err(Error::Join { token: token_place(config), source });
                }
                tracing::info!(error = godwit_base::telemetry::chain(&source), "control did not answer; joining again");
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

fn join_token(config: &EdgeConfig) -> Result<String, Error> {
    if let Some(token) = &config.join_token {
        return Ok(token.clone());
    }
    let Some(path) = &config.join_token_file else {
        return Err(Error::config("join_token", "it is needed, or join_token_file, until the edge has joined"));
    };
    Ok(godwit_base::join_token::read(path)?)
}

/// Where the refused token came from.
fn token_place(config: &EdgeConfig) -> String {
    let file = config.join_token_file.as_ref().filter(|_| config.join_token.is_none());
    file.map_or_else(|| "join_token of the configuration".to_owned(), |path| path.display().to_string())
}

fn read(path: &Path) -> Result<Option<Kept>, Error> {
    let bytes = godwit_base::durable::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    let parse = |bytes: Vec<u8>| {
        serde_json::from_slice(&bytes).map_err(|source| Error::Identity { path: path.to_owned(), source })
    };
    bytes.map(parse).transpose()
}

fn write(path: &Path, kept: &Kept) -> Result<(), Error> {
    let bytes = serde_json::to_vec_pretty(kept).unwrap_or_default();
    godwit_base::durable::write(path, &bytes, 0o600).map_err(|source| Error::File { path: path.to_owned(), source })
}
