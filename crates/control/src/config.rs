//! Control's configuration: raw TOML, then checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::StartError;

/// As it stands in a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Holds the store, the images and the tokens.
    pub data_dir: PathBuf,
    /// `address:port` of the API.
    pub listen: String,
    /// Further addresses of the API: one for people, one for hosts.
    #[serde(default)]
    pub listen_also: Vec<String>,
    /// `sqlite`: the embedded store in `data_dir`.
    #[serde(default = "sqlite")]
    pub store: String,
    /// Holds the first operator's token; written at the first start. Default `data_dir/admin-token`.
    pub admin_token_file: Option<PathBuf>,
    /// Holds the token that admits hosts and edges; written at the first start. Default `data_dir/join-token`.
    pub join_token_file: Option<PathBuf>,
    /// The URL by which others reach the API. Default `http://LISTEN`.
    pub advertise_url: Option<String>,
    /// Names the fleet in its address plan.
    #[serde(default = "fleet")]
    pub fleet: String,
    /// The store was put back from an older copy: epochs begin anew above all that hosts have seen.
    #[serde(default)]
    pub restored: bool,
    /// A host that was not reached for so long counts as unreachable.
    #[serde(default = "lost_after_ms")]
    pub lost_after_ms: u64,
    /// Blobs that no image needs are deleted after so long.
    #[serde(default = "image_grace_s")]
    pub image_grace_s: u64,
    /// Destroyed Machines are shown (`include_deleted`) for so long.
    #[serde(default = "destroyed_kept_s")]
    pub destroyed_kept_s: u64,
}

fn sqlite() -> String {
    "sqlite".into()
}
fn fleet() -> String {
    "godwit".into()
}
fn lost_after_ms() -> u64 {
    10_000
}
fn image_grace_s() -> u64 {
    3_600
}
fn destroyed_kept_s() -> u64 {
    24 * 3_600
}

/// Checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub listen_also: Vec<SocketAddr>,
    pub admin_token_file: PathBuf,
    pub join_token_file: PathBuf,
    pub advertise_url: Option<String>,
    pub fleet: String,
    pub restored: bool,
    pub lost_after: Duration,
    pub image_grace: Duration,
    pub destroyed_kept: Duration,
}

impl TryFrom<Raw> for Config {
    type Error = StartError;

    fn try_from(raw: Raw) -> Result<Self, StartError> {
        let wrong = |field, why: String| StartError::Config { field, why };
        if raw.store != "sqlite" {
            return Err(wrong("store", format!("{:?} is not built: only \"sqlite\"", raw.store)));
        }
        let address = |field, text: &str| -> Result<SocketAddr, StartError> {
            text.parse().map_err(|_| StartError::Config { field, why: format!("{text:?} is no address:port") })
        };
        let listen = address("listen", &raw.listen)?;
        let listen_also = raw.listen_also.iter().map(|text| address("listen_also", text)).collect::<Result<_, _>>()?;
        if let Some(url) = raw.advertise_url.as_deref().filter(|url| !url.starts_with("http://")) {
            return Err(wrong("advertise_url", format!("{url:?} does not begin with http://")));
        }
        if raw.lost_after_ms == 0 {
            return Err(wrong("lost_after_ms", "0 would lose every host".into()));
        }
        Ok(Self {
            listen,
            listen_also,
            admin_token_file: raw.admin_token_file.unwrap_or_else(|| raw.data_dir.join("admin-token")),
            join_token_file: raw.join_token_file.unwrap_or_else(|| raw.data_dir.join("join-token")),
            advertise_url: raw.advertise_url,
            fleet: raw.fleet,
            restored: raw.restored,
            lost_after: Duration::from_millis(raw.lost_after_ms),
            image_grace: Duration::from_secs(raw.image_grace_s),
            destroyed_kept: Duration::from_secs(raw.destroyed_kept_s),
            data_dir: raw.data_dir,
        })
    }
}
