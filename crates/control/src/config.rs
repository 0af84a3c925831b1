//! Control's configuration: raw TOML, then checked.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::StartError;
use crate::raw_ports::RawPorts;
use crate::tls::Files;

/// As it stands in a file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// Holds the store, the images and the tokens.
    pub data_dir: PathBuf,
    /// `address:port` of the API.
    pub listen: String,
    /// Further addresses of the API: one for people, one for hosts.
    #[serde(default)]
    pub listen_also: Vec<String>,
    /// Addresses of the API over TLS, for people; needs `tls_certificate` and `tls_private_key`.
    #[serde(default)]
    pub listen_https: Vec<String>,
    /// PEM of the certificate that `listen_https` shows, with its chain. Read anew when it changes, and on SIGHUP.
    pub tls_certificate: Option<PathBuf>,
    /// PEM of the certificate's private key.
    pub tls_private_key: Option<PathBuf>,
    /// `sqlite`: the embedded store in `data_dir`.
    #[serde(default = "sqlite")]
    pub store: String,
    /// Holds the first operator's token; written at the first start.
    #[schemars(extend("default" = "DATA_DIR/admin-token"))]
    pub admin_token_file: Option<PathBuf>,
    /// Holds the token that admits hosts and edges; written at the first start.
    #[schemars(extend("default" = "DATA_DIR/join-token"))]
    pub join_token_file: Option<PathBuf>,
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
    /// Addresses at which the edges are reached from outside: told to whoever adds a host name.
    #[serde(default)]
    pub public_addresses: Vec<String>,
    /// Where people reach an app, `{app}` standing for its name: `https://{app}.example.com`. What edges serve under
    /// their `suffixes`; told to whoever runs a Machine.
    #[serde(default)]
    pub app_urls: Vec<String>,
    /// The port at which a host name is asked for when it is checked.
    #[serde(default = "check_http_port")]
    pub check_http_port: u16,
    /// Public ports that apps may have opened for raw TCP, each a port or `FIRST-LAST`. HTTP handlers' ports are not meant.
    #[serde(default = "raw_ports")]
    pub raw_ports: Vec<String>,
    /// What is said to a volume that asks for `encrypted`, which clients do unasked: `none` (it is not, and the answer says
    /// so), `refuse`, or `hosts` (the disks of all hosts are encrypted by their operator, who vouches for it here).
    #[serde(default)]
    #[schemars(extend("default" = "none"))]
    pub volume_encryption: VolumeEncryption,
    /// The authority that issues certificates; absent: none.
    pub acme: Option<RawAcme>,
}

/// Who encrypts what volumes hold: the platform itself never does (docs/decisions/0018).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeEncryption {
    #[default]
    None,
    Refuse,
    Hosts,
}

/// `[acme]`. By naming an authority its terms of service are agreed to.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAcme {
    /// Let's Encrypt's is `https://acme-v02.api.letsencrypt.org/directory`.
    pub directory_url: String,
    /// `mailto:…`, whom the authority may tell of trouble.
    #[serde(default)]
    pub contact: Vec<String>,
    /// PEM of the root that the directory's own certificate must come from; absent: those of this system.
    pub root_file: Option<PathBuf>,
    /// Kinds of challenge, in the order in which they are tried.
    #[serde(default = "challenges")]
    pub challenges: Vec<String>,
    /// A certificate is renewed when less of its life than that is left, in thousandths.
    #[serde(default = "renew_left_permille")]
    pub renew_left_permille: u32,
    /// Edges hear of a challenge within so long.
    #[serde(default = "spread_ms")]
    pub spread_ms: u64,
    /// After a first failure; each further one doubles it, up to six hours.
    #[serde(default = "retry_first_ms")]
    pub retry_first_ms: u64,
}

fn raw_ports() -> Vec<String> {
    vec![crate::raw_ports::DEFAULT.into()]
}
fn check_http_port() -> u16 {
    80
}
fn challenges() -> Vec<String> {
    vec![HTTP_01.into(), TLS_ALPN_01.into()]
}
fn renew_left_permille() -> u32 {
    333
}
fn spread_ms() -> u64 {
    2_000
}
fn retry_first_ms() -> u64 {
    60_000
}

pub const HTTP_01: &str = "http-01";
pub const TLS_ALPN_01: &str = "tls-alpn-01";
const SPREAD_MAX_MS: u64 = 30_000;

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
    pub listen_https: Vec<SocketAddr>,
    /// There if `listen_https` names an address.
    pub tls: Option<Files>,
    pub admin_token_file: PathBuf,
    pub join_token_file: PathBuf,
    pub fleet: String,
    pub restored: bool,
    pub lost_after: Duration,
    pub image_grace: Duration,
    pub destroyed_kept: Duration,
    pub public_addresses: Vec<IpAddr>,
    pub app_urls: Vec<String>,
    pub check_http_port: u16,
    pub raw_ports: RawPorts,
    pub volume_encryption: VolumeEncryption,
    pub acme: Option<Acme>,
}

#[derive(Debug, Clone)]
pub struct Acme {
    pub directory_url: String,
    pub contact: Vec<String>,
    pub root_file: Option<PathBuf>,
    /// Never empty.
    pub challenges: Vec<&'static str>,
    pub renew_left_permille: u32,
    pub spread: Duration,
    pub retry_first_ms: u64,
}

impl TryFrom<RawAcme> for Acme {
    type Error = StartError;

    fn try_from(raw: RawAcme) -> Result<Self, StartError> {
        let wrong = |field, why: String| StartError::Config { field, why };
        if !raw.directory_url.starts_with("https://") {
            return Err(wrong("acme.directory_url", format!("{:?} does not begin with https://", raw.directory_url)));
        }
        if let Some(contact) = raw.contact.iter().find(|contact| !contact.starts_with("mailto:")) {
            return Err(wrong("acme.contact", format!("{contact:?} does not begin with mailto:")));
        }
        let kind = |kind: &String| match kind.as_str() {
            HTTP_01 => Ok(HTTP_01),
            TLS_ALPN_01 => Ok(TLS_ALPN_01),
            other => Err(wrong("acme.challenges", format!("{other:?} is neither {HTTP_01} nor {TLS_ALPN_01}"))),
        };
        let challenges: Vec<_> = raw.challenges.iter().map(kind).collect::<Result<_, _>>()?;
        if challenges.is_empty() {
            return Err(wrong("acme.challenges", "name at least one".into()));
        }
        if !(1..1_000).contains(&raw.renew_left_permille) {
            return Err(wrong("acme.renew_left_permille", "it must lie between 1 and 999".into()));
        }
        if raw.spread_ms > SPREAD_MAX_MS {
            return Err(wrong("acme.spread_ms", format!("at most {SPREAD_MAX_MS}")));
        }
        Ok(Self {
            directory_url: raw.directory_url,
            contact: raw.contact,
            root_file: raw.root_file,
            challenges,
            renew_left_permille: raw.renew_left_permille,
            spread: Duration::from_millis(raw.spread_ms),
            retry_first_ms: raw.retry_first_ms.max(100),
        })
    }
}

impl TryFrom<Raw> for Config {
    type Error = StartError;

    fn try_from(raw: Raw) -> Result<Self, StartError> {
        let wrong = |field, why: String| StartError::Config { field, why };
        if raw.store != "sqlite" {
            return Err(wrong("store", format!("{:?} is not built: only \"sqlite\"", raw.store)));
        }
        let address = |field, text: &str| -> Result<SocketAddr, StartError> {
            text.parse().map_err(|_| StartError::Config { field, why: format!("{text:?} is not an address:port") })
        };
        let listen = address("listen", &raw.listen)?;
        let listen_also: Vec<_> =
            raw.listen_also.iter().map(|text| address("listen_also", text)).collect::<Result<_, _>>()?;
        let listen_https: Vec<_> =
            raw.listen_https.iter().map(|text| address("listen_https", text)).collect::<Result<_, _>>()?;
        let tls = match (raw.tls_certificate, raw.tls_private_key) {
            (Some(certificate), Some(key)) => Some(Files { certificate, key }),
            (None, None) if listen_https.is_empty() => None,
            _ => {
                let why = "listen_https, tls_certificate and tls_private_key go together";
                return Err(wrong("listen_https", why.into()));
            }
        };
        if raw.lost_after_ms == 0 {
            return Err(wrong("lost_after_ms", "0 would lose every host".into()));
        }
        let held = std::iter::once(&listen).chain(&listen_also).chain(&listen_https).map(SocketAddr::port).collect();
        let raw_ports = RawPorts::new(&raw.raw_ports, held).ok_or_else(|| {
            wrong("raw_ports", "write each as a port or as FIRST-LAST, such as \"1024-65535\"".into())
        })?;
        let public = |text: &String| {
            text.parse().map_err(|_| wrong("public_addresses", format!("{text:?} is not an IP address")))
        };
        let is_url = |url: &&String| {
            !(url.contains("{app}")
                && (url.starts_with("http://") || url.starts_with("https://"))
                && !url.ends_with('/'))
        };
        if let Some(url) = raw.app_urls.iter().find(is_url) {
            return Err(wrong("app_urls", format!("{url:?}: say https://{{app}}.example.com, without a path")));
        }
        Ok(Self {
            app_urls: raw.app_urls,
            public_addresses: raw.public_addresses.iter().map(public).collect::<Result<_, _>>()?,
            check_http_port: raw.check_http_port,
            raw_ports,
            volume_encryption: raw.volume_encryption,
            acme: raw.acme.map(Acme::try_from).transpose()?,
            listen,
            listen_also,
            listen_https,
            tls,
            admin_token_file: raw.admin_token_file.unwrap_or_else(|| raw.data_dir.join("admin-token")),
            join_token_file: raw.join_token_file.unwrap_or_else(|| raw.data_dir.join("join-token")),
            fleet: raw.fleet,
            restored: raw.restored,
            lost_after: Duration::from_millis(raw.lost_after_ms),
            image_grace: Duration::from_secs(raw.image_grace_s),
            destroyed_kept: Duration::from_secs(raw.destroyed_kept_s),
            data_dir: raw.data_dir,
        })
    }
}
