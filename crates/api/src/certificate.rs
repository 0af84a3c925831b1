//! Certificates of an app's host names on the wire, as users of the Machines API know them. A private key comes in and
//! never goes out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST …/certificates/acme`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["hostname"]))]
pub struct RequestCertificate {
    pub hostname: String,
}

/// `POST …/certificates/custom`.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["hostname", "fullchain", "private_key"]))]
pub struct ImportCertificate {
    pub hostname: String,
    /// PEM, leaf first.
    pub fullchain: String,
    /// PEM: PKCS #8, SEC1 or PKCS #1.
    pub private_key: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ListCertificates {
    /// Part of a host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// At most so many; 500 at most, and if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CertificateList {
    pub certificates: Vec<CertificateSummary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    pub total_count: u64,
}

/// A host name in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateSummary {
    pub hostname: String,
    /// `active`, `pending_validation`, `failed` (it is tried again), `expired`, or `no_certificate`: there is none, and none
    /// is asked for.
    pub status: String,
    /// Who serves the name's zone; null: not known. Control asks the DNS for addresses only.
    #[serde(default)]
    pub dns_provider: Option<String>,
    /// A valid certificate is served.
    pub configured: bool,
    pub acme_requested: bool,
    pub has_custom_certificate: bool,
    /// One that was issued over ACME; the name is that of older clients.
    pub has_fly_certificate: bool,
    pub acme_dns_configured: bool,
    pub acme_alpn_configured: bool,
    pub acme_http_configured: bool,
    pub ownership_txt_configured: bool,
    /// RFC 3339, of the certificate that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    pub created_at: String,
    pub updated_at: String,
}

/// A host name with all that is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateDetail {
    pub hostname: String,
    /// As in a list.
    pub status: String,
    /// As in a list.
    #[serde(default)]
    pub dns_provider: Option<String>,
    /// RFC 3339: the authority issues none for this name before then, because of its limits (RFC 8555 section 6.6).
    #[serde(default)]
    pub rate_limited_until: Option<String>,
    pub configured: bool,
    pub acme_requested: bool,
    /// The one that is served stands first.
    pub certificates: Vec<StoredCertificate>,
    pub validation: CertificateValidation,
    pub validation_errors: Vec<ValidationError>,
    pub dns_requirements: DnsRequirements,
    /// Control asks the authority again then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    pub created_at: String,
    pub updated_at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredCertificate {
    /// `custom` or `acme`.
    pub source: String,
    /// `active` or `expired`.
    pub status: String,
    pub names: Vec<String>,
    pub issuer: String,
    pub serial: String,
    pub key_type: String,
    pub sha256: String,
    pub self_signed: bool,
    pub valid_from: String,
    pub expires_at: String,
    pub created_at: String,
    /// What an authority issued of it; empty for one that its owner brought.
    #[serde(default)]
    pub issued: Vec<IssuedCertificate>,
}

/// One certificate as its authority issued it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IssuedCertificate {
    /// Of its key: `ecdsa`, `rsa` or `ed25519`.
    #[serde(rename = "type")]
    pub kind: String,
    pub expires_at: String,
    /// `lets_encrypt`, or the issuer as its certificate names it.
    pub certificate_authority: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateValidation {
    /// The name leads to an address; if the edges' addresses are known, to one of theirs.
    pub dns_configured: bool,
    pub alpn_configured: bool,
    /// An edge of this fleet answers for it over HTTP.
    pub http_configured: bool,
    pub ownership_txt_configured: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ValidationError {
    pub code: String,
    pub message: String,
    /// What to do about it.
    pub remediation: String,
    pub timestamp: String,
}

/// Records of the DNS that would lead the name to this fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsRequirements {
    pub a: Vec<String>,
    pub aaaa: Vec<String>,
    pub cname: String,
}
