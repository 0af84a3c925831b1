//! Host names that apps have of their own, and what the store holds for each: whose it is, its certificates with their
//! keys, and the answer that a certificate authority is to be given.
//!
//! Only `CertificateRow` and a TLS-ALPN-01 challenge hold a private key: they are read by control and by edges, and by
//! nobody else (`base::peer`).

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{AppName, InvalidId};

/// A name of the DNS in lower case without its last dot; `*.` before it stands for any one label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Hostname(String);

const MAX_BYTES: usize = 253;

impl Hostname {
    /// Reads what a person writes: any case, and a last dot.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let base = name.strip_prefix("*.").unwrap_or(&name);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        // An address has digits alone in its last label, and no top-level domain has.
        let is_address = base.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
        if name.len() <= MAX_BYTES && base.contains('.') && base.split('.').all(label) && !is_address {
            return Ok(Self(name));
        }
        Err(InvalidId {
            kind: "host name",
            text: text.chars().take(80).collect(),
            rule: "labels of a-z, 0-9 and '-' with dots between, at most 253 characters, `*.` only at its beginning",
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain whose labels it stands for.
    pub fn wildcard_of(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

impl FromStr for Hostname {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::parse(text)
    }
}
impl TryFrom<String> for Hostname {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(&text)
    }
}
impl From<Hostname> for String {
    fn from(name: Hostname) -> String {
        name.0
    }
}
impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A private key in PEM. It is written to rows and files, and never shows itself otherwise.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyPem(pub String);

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a private key")
    }
}

/// Where a certificate is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Brought by the app's owner. Served before the other, as long as it is valid.
    Custom,
    /// Issued to control over ACME.
    Acme,
}

impl Source {
    pub const ALL: [Self; 2] = [Self::Custom, Self::Acme];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Acme => "acme",
        }
    }
}

/// A host name and its app (`keys::hostname`): edges route by it. It holds nothing secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostnameRow {
    pub hostname: Hostname,
    pub app: AppName,
    pub created_at_ms: u64,
    pub updated_at_ms: u64,
    /// Control is to get certificates for it, and to renew them.
    #[serde(default)]
    pub acme: Option<AcmeWish>,
    #[serde(default)]
    pub custom: Option<CertificateInfo>,
    #[serde(default)]
    pub issued: Option<CertificateInfo>,
    /// What the last check found.
    #[serde(default)]
    pub check: Option<HostnameCheck>,
}

/// How far control is with a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AcmeWish {
    /// Orders that failed since the last that succeeded.
    pub failures: u32,
    /// Not before then.
    pub next_at_ms: u64,
    /// One control orders until then; whoever finds this in the past may take over.
    pub ordering_until_ms: u64,
    pub last_error: Option<String>,
    pub failed_at_ms: Option<u64>,
    /// The kind of challenge by which the last certificate was issued.
    pub challenge: Option<String>,
    /// The last order met a limit of the authority, which lasts until then.
    pub limited_until_ms: Option<u64>,
}

/// What everybody may know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateInfo {
    /// DNS names that it is for.
    pub names: Vec<String>,
    pub issuer: String,
    pub serial: String,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    /// `ecdsa`, `rsa` or `ed25519`.
    pub key_type: String,
    /// SHA-256 of the leaf, hex.
    pub sha256: String,
    pub self_signed: bool,
    /// When it came into the store.
    pub stored_at_ms: u64,
}

/// What control saw of a host name from where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostnameCheck {
    pub checked_at_ms: u64,
    pub addresses: Vec<String>,
    /// A file that only this fleet's edges serve was there, over HTTP.
    pub http_reached: bool,
    pub error: Option<String>,
}

/// A chain with its key (`keys::certificate`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    pub hostname: Hostname,
    pub source: Source,
    pub not_after_ms: u64,
    /// Leaf first.
    pub chain_pem: String,
    pub key_pem: KeyPem,
}

/// What an edge answers to a certificate authority that asks for a host name (`keys::challenge`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeRow {
    pub hostname: Hostname,
    pub until_ms: u64,
    pub answer: ChallengeAnswer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChallengeAnswer {
    /// The body of `/.well-known/acme-challenge/TOKEN` (RFC 8555 section 8.3).
    Http01 { token: String, key_authorization: String },
    /// The certificate of a handshake for `acme-tls/1` (RFC 8737).
    TlsAlpn01 { chain_pem: String, key_pem: KeyPem },
}

/// Control's account with one certificate authority (`keys::ACME_ACCOUNT`); read by control alone.
#[derive(Clone, Serialize, Deserialize)]
pub struct AcmeAccountRow {
    pub directory_url: String,
    pub credentials: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_people_write_it_and_nothing_else_passes() {
        for (text, name) in
            [("WWW.Example.com.", "www.example.com"), ("*.a.b", "*.a.b"), ("xn--bcher-kva.de", "xn--bcher-kva.de")]
        {
            assert_eq!(Hostname::parse(text).unwrap().as_str(), name);
        }
        let long = format!("{}.com", ["x"; 130].join("."));
        for wrong in
            ["", "com", "*.com", "*", "a..b", "-a.b", "a.b-", "a.*.b", "a_b.c", "10.0.0.1", "a/b.c", "a b.c", &long]
        {
            assert!(Hostname::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_does_not_show_itself() {
        assert_eq!(format!("{:?}", KeyPem("secret".into())), "a private key");
    }
}
